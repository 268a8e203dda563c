//! What the publisher counts.

use crate::error::SegmentError;
use crate::region::Region;
use crate::stats::{Index, Kind, Metric, Role, Row};

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Counter,
        name,
        help,
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Gauge,
        name,
        help,
    }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Histogram,
        name,
        help,
    }
}

/// Declares the metrics once: the field that counts, and the line in the schema.
macro_rules! meters {
    ($($field:ident: $kind:ident($name:literal, $help:literal),)*) => {
        /// The publisher's part of the schema.
        pub const METRICS: &[Metric] = &[$($kind($name, $help)),*];

        /// The publisher's row and the places of its values.
        #[derive(Debug)]
        pub struct Meters {
            pub row: Row,
            $(pub $field: Index,)*
        }

        impl Meters {
            /// # Errors
            /// As [`Row::claim`]; also where the segment's schema lacks one of [`METRICS`].
            pub fn claim(region: Region, row: u32, generation: u64) -> Result<Self, SegmentError> {
                let row = Row::claim(region, row, Role::Publisher, 0, generation)?;
                Ok(Self { $($field: row.require($name)?,)* row })
            }
        }
    };
}

meters! {
    accepted: counter("publishes_total{outcome=\"accepted\"}", "Publishes by outcome."),
    duplicate: counter("publishes_total{outcome=\"duplicate\"}", "Publishes by outcome."),
    superseded: counter("publishes_total{outcome=\"superseded\"}", "Publishes by outcome."),
    no_channel: counter("publishes_total{outcome=\"channels_max\"}", "Publishes by outcome."),
    too_large: counter("publishes_total{outcome=\"too_large\"}", "Publishes by outcome."),
    bad_request: counter("publishes_total{outcome=\"bad_request\"}", "Publishes by outcome."),
    internal: counter("publishes_total{outcome=\"internal\"}", "Publishes by outcome."),
    log_bytes: counter("log_appended_bytes_total", "Payload bytes appended to the log."),
    batch_publications: histogram("log_batch_publications", "Publications of a commit."),
    batch_time: histogram("log_batch_microseconds", "From taking a batch to its commit."),
    readers: gauge("log_readers", "Readers that the log's writer waits for."),
    evictions: counter("log_reader_evictions_total", "Readers that lagged for too long."),
    stalls: counter("log_stalls_total", "Times that a batch waited for a lagging reader."),
    stall_time: counter("log_stall_microseconds_total", "Time spent waiting for lagging readers."),
    reader_wakes: counter("log_reader_wakes_total", "Eventfd writes for sleeping readers."),
    lag_wakes: counter(
        "log_reader_lag_wakes_total",
        "Of these, readers that nothing concerned, so that they do not fall behind."
    ),
    reply_wakes: counter("uplink_reply_wakes_total", "Eventfd writes for sleeping producers."),
    sleeps: counter("publisher_sleeps_total", "Times that the publisher had nothing to do."),
    missed_wakeups: counter(
        "missed_wakeups_total{process=\"publisher\"}",
        "Requests found by the safety poll. Stays zero: anything else is a bug."
    ),
    uplinks: gauge("uplinks_attached", "Uplinks that the publisher takes requests from."),
    uplinks_corrupt: counter("uplinks_corrupt_total", "Uplinks dropped for what was in them."),
    replies_dropped: counter("replies_dropped_total", "Replies that a producer left no room for."),
    channels: gauge("channel_table_entries", "Channels that the table holds."),
    channel_evictions: counter("channel_evictions_total", "Channels forgotten for want of room."),
    keys: gauge("idempotency_keys", "Idempotency keys that are remembered."),
    keys_dropped: counter("idempotency_keys_dropped_total", "Keys forgotten before their time."),
    joined: counter("presence_joins_total{outcome=\"accepted\"}", "Joins by outcome."),
    presence_full: counter("presence_joins_total{outcome=\"full\"}", "Joins by outcome."),
    left: counter("presence_leaves_total{cause=\"client\"}", "Leaves by cause."),
    left_behind: counter("presence_leaves_total{cause=\"worker_gone\"}", "Leaves by cause."),
    presence_clients: gauge("presence_clients", "Clients in channels that the table holds."),
    presence_channels: gauge("presence_channels", "Channels that the presence table holds."),
    presence_bytes: gauge("presence_bytes", "Memory that the presence table uses."),
    orders: counter("orders_total", "Orders that all workers were given."),
    emulations: counter("emulations_total", "Requests passed on to the owner of their session."),
    removals: counter("history_removals_total", "Histories that were removed on request."),
    history_publications: gauge("history_publications", "Publications in the history store."),
    history_channels: gauge("history_channels", "Channels in the history store."),
    history_bytes: gauge("history_bytes", "Memory that the history store uses."),
    history_evicted: counter(
        "history_dropped_total{reason=\"memory\"}",
        "Publications that the history store dropped, or never took, before their time."
    ),
    history_too_large: counter(
        "history_dropped_total{reason=\"too_large\"}",
        "Publications that the history store dropped, or never took, before their time."
    ),
    history_expired: counter("history_expired_total", "Publications that became too old."),
    redone: counter("publisher_redone_total", "Records of a dead publisher, committed."),
    answered_again: counter("publisher_answered_again_total", "Answers a dead publisher owed."),
}
