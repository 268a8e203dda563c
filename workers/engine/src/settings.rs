//! What this worker was told at its start. `workers/settings.py` is the other side of the seam: its
//! JSON is read here by name, a length of time as seconds under a name that ends in `_s`, or as
//! microseconds under one that ends in `_us`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::sending::Engine;

/// What a subscription that comes back is caught up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryMode {
    /// Everything that it missed.
    #[default]
    Stream,
    /// The newest publication alone, if it does not have that.
    Cache,
}

/// A way to encode a publication as the difference to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeltaType {
    Fossil,
}

/// A way in for clients of the HTTP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Websocket,
    Sse,
    HttpStream,
    UniWebsocket,
    UniSse,
    UniHttpStream,
}

/// The rules of the channels of one namespace. What is allowed `for_client` is so for clients with
/// a user; those without one need `for_anonymous` besides.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Namespace {
    /// Text before the first colon of a channel; empty: channels without a colon.
    pub name: String,
    pub allow_subscribe_for_client: bool,
    pub allow_subscribe_for_anonymous: bool,
    pub allow_publish_for_client: bool,
    pub allow_publish_for_subscriber: bool,
    pub allow_publish_for_anonymous: bool,
    pub allow_presence_for_client: bool,
    pub allow_presence_for_subscriber: bool,
    pub allow_presence_for_anonymous: bool,
    pub allow_history_for_client: bool,
    pub allow_history_for_subscriber: bool,
    pub allow_history_for_anonymous: bool,
    /// The part after the last `#` names the users that may subscribe.
    pub allow_user_limited_channels: bool,
    /// For the name after the namespace; empty: any.
    pub channel_regex: String,
    pub presence: bool,
    pub join_leave: bool,
    pub force_push_join_leave: bool,
    /// Publications that are kept for each channel; 0: no history.
    pub history_size: usize,
    #[serde(rename = "history_ttl_s", deserialize_with = "seconds")]
    pub history_ttl: Duration,
    /// Whether a subscription may ask for what it missed.
    pub recovery: bool,
    pub force_recovery: bool,
    pub allow_positioning: bool,
    pub force_positioning: bool,
    pub recovery_mode: RecoveryMode,
    /// In cache mode, the newest publication goes out without being asked for.
    pub auto_cache_recover: bool,
    pub allowed_delta_types: Vec<DeltaType>,
    /// Every publication may be sent as a delta, not only those that ask for it.
    pub delta_publish: bool,
    pub subscribe_hook: bool,
    pub publish_hook: bool,
    pub sub_refresh_hook: bool,
    /// A client's publication does not come back to it.
    pub publish_except_sender: bool,
}

/// With what the tokens of clients are checked. Empty text: not configured.
#[derive(Clone, Default, Deserialize)]
pub struct Tokens {
    pub hmac_secret: String,
    /// Taken as well until `hmac_previous_until_s`, in seconds since 1970; 0: for ever.
    pub hmac_previous_secret: String,
    pub hmac_previous_until_s: u64,
    /// PEM, as are the next two.
    pub rsa_public_key: String,
    pub ecdsa_public_key: String,
    pub ed25519_public_key: String,
    /// Where further public keys are to be had (RFC 7517).
    pub jwks_url: String,
    #[serde(rename = "jwks_ttl_s", deserialize_with = "seconds")]
    pub jwks_ttl: Duration,
    pub audience: String,
    pub audience_regex: String,
    pub issuer: String,
    pub issuer_regex: String,
    /// The claim that has the user's id; empty: `sub`.
    pub user_id_claim: String,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets reach no log, whoever prints the settings.
        f.write_str("Tokens(hidden)")
    }
}

/// Bounds of what the application is asked; whom to ask, Python knows.
#[derive(Debug, Clone, Deserialize)]
pub struct Hooks {
    #[serde(rename = "timeout_s", deserialize_with = "seconds")]
    pub timeout: Duration,
    /// Questions without an answer at a time; one more gets the fall-back answer at once.
    pub in_flight_max: usize,
    /// Headers of the client's request that go along, in lower case.
    pub headers: Vec<String>,
    /// The application is not asked for `breaker_open` when of the last so many calls of a kind
    /// so many of a hundred failed.
    pub breaker_calls: usize,
    pub breaker_failures_percent: usize,
    #[serde(rename = "breaker_open_s", deserialize_with = "seconds")]
    pub breaker_open: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            in_flight_max: 1000,
            headers: Vec::new(),
            breaker_calls: 20,
            breaker_failures_percent: 50,
            breaker_open: Duration::from_secs(5),
        }
    }
}

/// Everything the engine needs to know besides its descriptors. Bounds carry their unit.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// Version of the gateway, as clients see it in the connect reply.
    pub version: String,
    /// UUID of the gateway, as clients see it.
    pub node: String,
    pub slot: u32,
    pub generation: u64,
    /// This worker's reader seat in the log.
    pub seat: u32,
    /// This worker's row in the statistics segment.
    pub stats_row: u32,

    pub connections_max: usize,
    /// Of one user in this worker; 0: any number.
    pub user_connections_max: usize,
    pub message_bytes_max: usize,
    /// A connection's queue is never longer than this.
    pub queue_hard_bytes: usize,
    /// A connection's queue is not longer than this for `queue_soft`.
    pub queue_soft_bytes: usize,
    #[serde(rename = "queue_soft_s", deserialize_with = "seconds")]
    pub queue_soft: Duration,
    pub channels_per_connection_max: usize,
    /// From accept to the first whole request, and on to the connect message.
    #[serde(rename = "handshake_timeout_s", deserialize_with = "seconds")]
    pub handshake_timeout: Duration,
    pub header_bytes_max: usize,
    pub headers_max: usize,
    pub accepts_per_turn_max: usize,
    pub engine: Engine,
    /// How long publications are left in the log, so that more of them leave together.
    #[serde(rename = "batch_delay_us", deserialize_with = "microseconds")]
    pub batch_delay: Duration,
    pub recovery_publications_max: usize,
    /// What one history request gets at most.
    pub history_publications_max: usize,
    /// How long a peer may take to answer a close.
    #[serde(rename = "close_timeout_s", deserialize_with = "seconds")]
    pub close_timeout: Duration,

    #[serde(rename = "websocket_ping_interval_s", deserialize_with = "seconds")]
    pub websocket_ping_interval: Duration,
    #[serde(rename = "websocket_pong_timeout_s", deserialize_with = "seconds")]
    pub websocket_pong_timeout: Duration,
    /// permessage-deflate (RFC 7692), for messages of at least `compression_bytes_min`.
    pub websocket_compression: bool,
    pub websocket_compression_bytes_min: usize,
    #[serde(rename = "tcp_heartbeat_interval_s", deserialize_with = "seconds")]
    pub tcp_heartbeat_interval: Duration,
    #[serde(rename = "tcp_heartbeat_timeout_s", deserialize_with = "seconds")]
    pub tcp_heartbeat_timeout: Duration,

    /// Which endpoints of the HTTP port answer.
    pub transports: Vec<Transport>,
    /// Origins that browsers may come from; empty: only requests without `Origin`.
    pub allowed_origins: Vec<String>,
    /// Whether the bidirectional dialects let in who shows no token.
    pub allow_anonymous: bool,
    /// Whether a connection token may be of nobody.
    pub allow_anonymous_tokens: bool,
    /// How long after its expiry a connection, or a subscription, may still be refreshed.
    #[serde(rename = "expired_close_delay_s", deserialize_with = "seconds")]
    pub expired_close_delay: Duration,
    /// Whether each user is subscribed to `<personal_channel_namespace>:#<user>` at connecting.
    pub personal_channel: bool,
    pub personal_channel_namespace: String,
    pub tokens: Tokens,
    /// For subscription tokens; `None`: those of `tokens`.
    pub subscription_tokens: Option<Tokens>,
    pub hooks: Hooks,
    pub namespaces: Vec<Namespace>,
}

/// Seconds as a number, not negative and not beyond what a `Duration` holds.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn microseconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_micros)
}

impl Settings {
    /// Reads the JSON of `WorkerSettings.as_json`; what is for Python alone is passed over.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    pub fn serves(&self, transport: Transport) -> bool {
        self.transports.contains(&transport)
    }

    /// The rules for `channel`; `None`: no such namespace.
    pub fn namespace(&self, channel: &str) -> Option<&Namespace> {
        self.namespace_at(channel).map(|(_, namespace)| namespace)
    }

    /// As [`Settings::namespace`], with its place in the list.
    pub fn namespace_at(&self, channel: &str) -> Option<(usize, &Namespace)> {
        // `$` marks a private channel; it is no part of the namespace.
        let name = channel.strip_prefix('$').unwrap_or(channel);
        let name = match name.split_once(':') {
            // Channels without a colon have the nameless one to themselves.
            Some(("", _)) => return None,
            Some((name, _)) => name,
            None => "",
        };
        let mut namespaces = self.namespaces.iter().enumerate();
        namespaces.find(|(_, each)| each.name == name)
    }
}

/// The defaults of the gateway's configuration, as tests begin with them.
impl Default for Settings {
    fn default() -> Self {
        let namespace = |name: &str, allow| Namespace {
            name: name.to_string(),
            allow_subscribe_for_client: allow,
            allow_subscribe_for_anonymous: allow,
            allow_publish_for_client: allow,
            allow_publish_for_anonymous: allow,
            recovery: true,
            ..Namespace::default()
        };
        Self {
            version: "0.1.0".to_string(),
            node: "8d7c1a52-7f0e-4d0b-9a60-0a2f4f6a7a11".to_string(),
            slot: 0,
            generation: 1,
            seat: 0,
            stats_row: 1,
            connections_max: 1000,
            user_connections_max: 0,
            message_bytes_max: 65_536,
            queue_hard_bytes: 1_048_576,
            queue_soft_bytes: 262_144,
            queue_soft: Duration::from_secs(10),
            channels_per_connection_max: 128,
            handshake_timeout: Duration::from_secs(10),
            header_bytes_max: 8192,
            headers_max: 64,
            accepts_per_turn_max: 64,
            engine: Engine::Auto,
            batch_delay: Duration::ZERO,
            recovery_publications_max: 300,
            history_publications_max: 300,
            close_timeout: Duration::from_secs(5),
            websocket_ping_interval: Duration::from_secs(25),
            websocket_pong_timeout: Duration::from_secs(8),
            websocket_compression: false,
            websocket_compression_bytes_min: 256,
            tcp_heartbeat_interval: Duration::from_secs(30),
            tcp_heartbeat_timeout: Duration::from_secs(90),
            transports: vec![
                Transport::Websocket,
                Transport::Sse,
                Transport::HttpStream,
                Transport::UniWebsocket,
                Transport::UniSse,
                Transport::UniHttpStream,
            ],
            allowed_origins: Vec::new(),
            allow_anonymous: false,
            allow_anonymous_tokens: true,
            expired_close_delay: Duration::from_secs(25),
            personal_channel: false,
            personal_channel_namespace: String::new(),
            tokens: Tokens::default(),
            subscription_tokens: None,
            hooks: Hooks::default(),
            namespaces: vec![namespace("public", true), namespace("", false)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_before_the_first_colon_names_the_namespace() {
        let settings = Settings::default();
        assert_eq!(settings.namespace("public:a:b").unwrap().name, "public");
        assert_eq!(settings.namespace("plain").unwrap().name, "");
        assert!(settings.namespace("nowhere:a").is_none());
        assert!(settings.namespace(":a").is_none());
    }
}
