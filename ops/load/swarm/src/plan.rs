//! What a swarm is asked to do: the first line that it reads.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Deserialize;

use crate::token::Tokens;

/// Connections from one source address. Linux looks for a free port among every second one first
/// (`__inet_hash_connect`): with more than half of the 28,232 ports of its default
/// `ip_local_port_range` taken, each connect would look at 14,116 ports in vain. Well below that,
/// so that also ports in TIME_WAIT from an earlier run do not matter.
const CONNECTIONS_PER_SOURCE: u32 = 8_000;

/// Some thirty years: longer than any test, and far below what 64 bits of nanoseconds hold.
const SECONDS_MAX: f64 = 1e9;

/// The clients to open and how. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The gateway's client port, IPv4: `127.0.0.1:8000`.
    pub address: SocketAddrV4,
    #[serde(default)]
    pub transport: Transport,
    /// Clients of this process. Bounded by its descriptor limit.
    pub connections: u32,
    /// Number of the first client, when several swarms share one test. It decides channels and
    /// sources.
    #[serde(default)]
    pub first: u32,
    /// Base name of the channels, for every pattern but `sets`.
    #[serde(default = "default_channel")]
    pub channel: String,
    #[serde(default)]
    pub subscribe: Pattern,
    /// With these, every client shows a token of its own.
    #[serde(default)]
    pub tokens: Option<Tokens>,
    /// Handshakes in flight at most: below a usual listen backlog, so that no SYN is dropped.
    #[serde(default = "default_handshakes_max")]
    pub handshakes_max: u32,
    #[serde(default = "default_handshake_timeout_s")]
    pub handshake_timeout_s: f64,
    /// New connections a second; 0: as fast as `handshakes_max` allows.
    #[serde(default)]
    pub connects_per_s: f64,
    /// Share of the clients that leave and come back, each minute.
    #[serde(default)]
    pub churn_percent: f64,
    /// Share of the clients that never read again once they are subscribed.
    #[serde(default)]
    pub stall_percent: f64,
    /// Share of the clients that do what no client should.
    #[serde(default)]
    pub misbehave_percent: f64,
    /// Come back after a close, as the public clients do, and ask for what was missed.
    #[serde(default)]
    pub reconnect: bool,
    /// The swarm ends by itself after this long, whoever forgot it.
    pub run_s_max: f64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// The unidirectional WebSocket, JSON.
    #[default]
    Websocket,
    /// The bidirectional WebSocket of the public SDKs, JSON.
    Centrifuge,
    /// Server-sent events, as a browser's `EventSource` takes them.
    Sse,
    /// The binary protocol; `address` is the gateway's TCP port then.
    Tcp,
    /// nginx with nchan: a WebSocket to `/subscribe/<channel>`, one channel a client.
    Nchan,
    /// NATS on its WebSocket port, one channel a client.
    Nats,
}

/// Which channels a client subscribes to, by the client's number.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Everybody on the one channel.
    #[default]
    All,
    /// `<channel>-<number mod K>`.
    Shard(u32),
    /// `<channel>-<number>`: a channel for each.
    Own,
    /// Everybody on the one channel, and every K-th client also on `<channel>-<number>`.
    Mixed(u32),
    /// Client n takes all channels of set n mod the number of sets.
    Sets(Vec<Vec<String>>),
}

fn default_channel() -> String {
    "public:load".to_owned()
}

fn default_handshakes_max() -> u32 {
    256
}

fn default_handshake_timeout_s() -> f64 {
    10.0
}

impl Plan {
    /// Parses and checks the plan's JSON.
    ///
    /// # Errors
    /// A sentence that names the key and its value.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let plan: Plan = serde_json::from_str(text).map_err(|error| format!("plan: {error}"))?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), String> {
        if self.connections == 0 {
            return Err("plan: connections is 0, a swarm has at least one client".to_owned());
        }
        if self.first.checked_add(self.connections).is_none() {
            return Err(format!(
                "plan: first {} + connections {} is over 2^32",
                self.first, self.connections
            ));
        }
        if self.handshakes_max == 0 {
            return Err("plan: handshakes_max is 0, nobody could connect".to_owned());
        }
        for (key, seconds) in [
            ("handshake_timeout_s", self.handshake_timeout_s),
            ("run_s_max", self.run_s_max),
        ] {
            if !(seconds > 0.0 && seconds <= SECONDS_MAX) {
                return Err(format!(
                    "plan: {key} is {seconds}, must be above 0 and at most {SECONDS_MAX}"
                ));
            }
        }
        self.check_shares()?;
        let is_other_server = matches!(self.transport, Transport::Nchan | Transport::Nats);
        if self.tokens.is_some() && is_other_server {
            return Err("plan: tokens are nothing to nchan or nats".to_owned());
        }
        match &self.subscribe {
            Pattern::Shard(0) | Pattern::Mixed(0) => {
                Err("plan: subscribe is shard or mixed 0, must be at least 1".to_owned())
            }
            Pattern::Sets(sets) if sets.is_empty() => Err("plan: subscribe has no sets".to_owned()),
            Pattern::Sets(_) | Pattern::Mixed(_) if is_other_server => {
                Err("plan: an nchan or nats client has one channel, not sets or mixed".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn check_shares(&self) -> Result<(), String> {
        let rate = self.connects_per_s;
        if !(rate >= 0.0 && rate.is_finite()) {
            return Err(format!(
                "plan: connects_per_s is {rate}, must be at least 0"
            ));
        }
        for (key, percent, most) in [
            ("churn_percent", self.churn_percent, 6_000.0),
            ("stall_percent", self.stall_percent, 100.0),
            ("misbehave_percent", self.misbehave_percent, 100.0),
        ] {
            if !(percent >= 0.0 && percent <= most) {
                return Err(format!("plan: {key} is {percent}, must be 0 to {most}"));
            }
        }
        let sum = self.stall_percent + self.misbehave_percent;
        if sum > 100.0 {
            return Err(format!(
                "plan: stall_percent + misbehave_percent is {sum}, over 100"
            ));
        }
        Ok(())
    }

    /// The channels of the client of that index (0 is this swarm's first).
    pub fn channels_of(&self, index: u32) -> Vec<String> {
        let number = self.first + index;
        match &self.subscribe {
            Pattern::All => vec![self.channel.clone()],
            Pattern::Shard(shards) => vec![format!("{}-{}", self.channel, number % shards)],
            Pattern::Own => vec![format!("{}-{number}", self.channel)],
            Pattern::Mixed(every) if number.is_multiple_of(*every) => {
                vec![self.channel.clone(), format!("{}-{number}", self.channel)]
            }
            Pattern::Mixed(_) => vec![self.channel.clone()],
            Pattern::Sets(sets) => sets[number as usize % sets.len()].clone(),
        }
    }

    /// The token of the client of that index; empty: it has none.
    pub fn token_of(&self, index: u32) -> String {
        let tokens = self.tokens.as_ref();
        tokens.map_or_else(String::new, |tokens| tokens.sign(self.first + index))
    }

    /// The loopback address that this client connects from, `None` when the kernel shall choose.
    pub fn source_of(&self, index: u32) -> Option<Ipv4Addr> {
        let block = (self.first + index) / CONNECTIONS_PER_SOURCE;
        let [_, _, high, low] = (block + 1).to_be_bytes();
        self.address
            .ip()
            .is_loopback()
            .then(|| Ipv4Addr::new(127, 0, high, low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(extra: &str) -> Result<Plan, String> {
        Plan::parse(&format!(
            r#"{{"address":"127.0.0.1:8000","run_s_max":60{extra}}}"#
        ))
    }

    #[test]
    fn a_shard_pattern_spreads_clients_over_its_channels() {
        let plan =
            plan(r#","connections":4,"channel":"public:s","subscribe":{"shard":3}"#).unwrap();
        let channels: Vec<_> = (0..4).flat_map(|index| plan.channels_of(index)).collect();
        assert_eq!(
            channels,
            ["public:s-0", "public:s-1", "public:s-2", "public:s-0"]
        );
    }

    #[test]
    fn a_mixed_pattern_gives_every_kth_client_a_channel_of_its_own_too() {
        let plan = plan(r#","connections":4,"first":9,"subscribe":{"mixed":10}"#).unwrap();
        assert_eq!(plan.channels_of(0), ["public:load"]);
        assert_eq!(plan.channels_of(1), ["public:load", "public:load-10"]);
    }

    #[test]
    fn own_channels_follow_the_client_number_across_swarms() {
        let plan = plan(r#","connections":2,"first":30,"subscribe":"own""#).unwrap();
        assert_eq!(plan.channels_of(1), ["public:load-31"]);
    }

    #[test]
    fn sources_change_before_the_ports_of_one_address_run_out() {
        let plan = plan(r#","connections":60000"#).unwrap();
        assert_eq!(plan.source_of(7_999), Some(Ipv4Addr::new(127, 0, 0, 1)));
        assert_eq!(plan.source_of(8_000), Some(Ipv4Addr::new(127, 0, 0, 2)));
    }

    #[test]
    fn a_wrong_plan_is_refused_by_the_name_of_its_key() {
        for (extra, word) in [
            ("", "connections"),
            (r#","connections":0"#, "connections"),
            (r#","connections":1,"handshakes_max":0"#, "handshakes_max"),
            (
                r#","connections":1,"handshake_timeout_s":0"#,
                "handshake_timeout_s",
            ),
            (
                r#","connections":1,"handshake_timeout_s":2e9"#,
                "handshake_timeout_s",
            ),
            (r#","connections":1,"subscribe":{"shard":0}"#, "shard"),
            (r#","connections":1,"subscribe":{"sets":[]}"#, "sets"),
            (r#","connections":1,"subscribe":{"mixed":0}"#, "mixed"),
            (r#","connections":1,"stall_percent":101"#, "stall_percent"),
            (
                r#","connections":1,"stall_percent":60,"misbehave_percent":60"#,
                "over 100",
            ),
            (r#","connections":1,"connects_per_s":-1"#, "connects_per_s"),
            (
                r#","connections":1,"transport":"nchan","subscribe":{"sets":[["a"]]}"#,
                "nchan",
            ),
            (
                r#","connections":1,"transport":"nchan","tokens":{"secret":"","user_claim":""}"#,
                "tokens",
            ),
            (r#","connections":1,"conections":1"#, "conections"),
        ] {
            let error = plan(extra).expect_err(extra);
            assert!(error.contains(word), "{error} does not name {word}");
        }
    }
}
