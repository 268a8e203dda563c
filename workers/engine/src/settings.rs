//! What this worker was told at its start. `workers/settings.py` is the other side of the seam.

use std::time::Duration;

use crate::sending::Engine;

/// The rules of the channels of one namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Text before the first colon of a channel; empty: channels without a colon.
    pub name: String,
    pub allow_subscribe_for_client: bool,
    pub allow_publish_for_client: bool,
    pub recovery: bool,
}

/// Everything the engine needs to know besides its descriptors. Bounds carry their unit.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Version of the gateway, as clients see it in the connect reply.
    pub version: String,
    pub slot: u32,
    pub generation: u64,
    /// This worker's reader seat in the log.
    pub seat: u32,
    /// This worker's row in the statistics segment.
    pub stats_row: u32,

    pub connections_max: usize,
    pub message_bytes_max: usize,
    /// A connection's queue is never longer than this.
    pub queue_hard_bytes: usize,
    /// A connection's queue is not longer than this for `queue_soft`.
    pub queue_soft_bytes: usize,
    pub queue_soft: Duration,
    pub channels_per_connection_max: usize,
    /// From accept to the first whole request, and on to the connect message.
    pub handshake_timeout: Duration,
    pub header_bytes_max: usize,
    pub headers_max: usize,
    pub accepts_per_turn_max: usize,
    pub engine: Engine,
    /// How long publications are left in the log, so that more of them leave together.
    pub batch_delay: Duration,
    pub recovery_publications_max: usize,
    /// How long a peer may take to answer a close.
    pub close_timeout: Duration,

    pub websocket_ping_interval: Duration,
    pub websocket_pong_timeout: Duration,
    pub tcp_heartbeat_interval: Duration,
    pub tcp_heartbeat_timeout: Duration,

    /// Origins that browsers may come from; empty: only requests without `Origin`.
    pub allowed_origins: Vec<String>,
    pub namespaces: Vec<Namespace>,
}

impl Settings {
    /// The rules for `channel`; `None`: no such namespace.
    pub fn namespace(&self, channel: &str) -> Option<&Namespace> {
        // `$` marks a private channel; it is no part of the namespace.
        let name = channel.strip_prefix('$').unwrap_or(channel);
        let name = name.split_once(':').map_or("", |(name, _)| name);
        self.namespaces.iter().find(|each| each.name == name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The defaults of the gateway's configuration, for tests of this crate.
    pub(crate) fn defaults() -> Settings {
        let namespace = |name: &str, allow| Namespace {
            name: name.to_string(),
            allow_subscribe_for_client: allow,
            allow_publish_for_client: allow,
            recovery: true,
        };
        Settings {
            version: "0.1.0".to_string(),
            slot: 0,
            generation: 1,
            seat: 0,
            stats_row: 1,
            connections_max: 1000,
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
            close_timeout: Duration::from_secs(5),
            websocket_ping_interval: Duration::from_secs(25),
            websocket_pong_timeout: Duration::from_secs(8),
            tcp_heartbeat_interval: Duration::from_secs(30),
            tcp_heartbeat_timeout: Duration::from_secs(90),
            allowed_origins: Vec::new(),
            namespaces: vec![namespace("public", true), namespace("", false)],
        }
    }

    #[test]
    fn the_text_before_the_first_colon_names_the_namespace() {
        let settings = defaults();
        assert_eq!(settings.namespace("public:a:b").unwrap().name, "public");
        assert_eq!(settings.namespace("plain").unwrap().name, "");
        assert!(settings.namespace("nowhere:a").is_none());
    }
}
