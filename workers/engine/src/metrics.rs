//! What a worker counts: one table of names, counted privately and shown in the statistics segment
//! once a turn.

use tidegate_ring::stats::{Index, Kind, Row, SchemaLine};

use crate::asks::{self, Asks, Outcome};
use crate::protocol::close::{self, Close};
use crate::protocol::http::{self, HttpReject};

macro_rules! table {
    ($kind:ident, $rows:ident:
     $($variant:ident = $metric:ident, $name:literal, $help:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $kind {
            $($variant,)*
        }

        impl $kind {
            pub const ALL: &[$kind] = &[$($kind::$variant,)*];
        }

        const $rows: &[(Kind, &str, &str)] = &[
            $((Kind::$metric, $name, $help),)*
        ];
    };
}

table! { Count, COUNTS:
    ConnectionsWebSocket = Gauge, r#"connections{transport="websocket"}"#,
        "connections accepted on the HTTP port and not ended";
    ConnectionsTcp = Gauge, r#"connections{transport="tcp"}"#,
        "connections accepted on the TCP port and not ended";
    ConnectionsStream = Gauge, r#"connections{transport="stream"}"#,
        "streams of server-sent events or lines that have not ended";
    AcceptsHttp = Counter, r#"accepts_total{transport="websocket"}"#,
        "connections taken from the HTTP port's queue";
    AcceptsTcp = Counter, r#"accepts_total{transport="tcp"}"#,
        "connections taken from the TCP port's queue";
    RefusedFull = Counter, r#"refusals_total{reason="connections_max"}"#,
        "connections refused because limits.connections_max was reached";
    RefusedDescriptors = Counter, r#"refusals_total{reason="descriptors"}"#,
        "connections refused for want of descriptors or memory";
    AcceptErrors = Counter, "accept_errors_total",
        "accepts that failed for another reason than a peer's";
    CloseTimeouts = Counter, "close_timeouts_total",
        "peers that did not answer a close within limits.close_timeout_s";
    ReceivedText = Counter, r#"received_total{kind="text"}"#,
        "WebSocket data frames received";
    ReceivedControl = Counter, r#"received_total{kind="control"}"#,
        "WebSocket control frames received";
    ReceivedFrames = Counter, r#"received_total{kind="frame"}"#,
        "frames of the TCP protocol received";
    ReceivedIgnored = Counter, r#"received_total{kind="ignored"}"#,
        "messages received that the dialect has no use for";
    ReceivedEmulated = Counter, r#"received_total{kind="emulated"}"#,
        "messages of clients that listen on a stream, by a request of their own";
    RequestsAnswered = Counter, "http_answers_total",
        "requests that were answered and opened no connection";
    ReceivedBytes = Counter, "received_bytes_total", "bytes received from clients";
    SentBytes = Counter, "sent_bytes_total", "bytes handed to the kernel for clients";
    Sends = Counter, "sends_total", "sends to clients, by a system call each or in a batch";
    SendsBlocked = Counter, "sends_blocked_total", "sends that left a rest for later";
    SendBatches = Counter, "send_batches_total", "system calls that did a batch of sends";
    IoUring = Gauge, "io_uring", "workers that send by io_uring";
    Publications = Counter, "publications_read_total", "publications read from the log";
    RecordsInvalid = Counter, "records_invalid_total",
        "records of the log that this worker does not understand";
    Compressions = Counter, "compressions_total",
        "messages compressed, each once for all who get it";
    Deliveries = Counter, "deliveries_total", "publications put into a connection's queue";
    DeliveriesDropped = Counter, "deliveries_dropped_total",
        "queued frames that were dropped with their connection or subscription";
    JoinsAndLeaves = Counter, "presence_events_total",
        "joins and leaves put into a connection's queue";
    Faults = Counter, "command_errors_total", "commands answered with an error";
    Unsubscribed = Counter, "unsubscribed_total", "subscriptions that the gateway ended";
    Orders = Counter, "orders_total", "orders of back ends done to a connection";
    OrdersInvalid = Counter, "orders_invalid_total",
        "orders of back ends that this worker does not understand";
    Pings = Counter, "pings_total", "pings and heartbeats sent";
    QueuedBytes = Gauge, "queued_bytes", "bytes waiting in the queues of connections";
    Channels = Gauge, "worker_channels", "channels that somebody here is subscribed to";
    Subscriptions = Gauge, "subscriptions", "subscriptions of connections to channels";
    Users = Gauge, "worker_users", "users with a connection here";
    SubscribesDenied = Counter, r#"subscribe_errors_total{reason="denied"}"#,
        "subscriptions that the namespace does not allow";
    SubscribesUnknown = Counter, r#"subscribe_errors_total{reason="unknown"}"#,
        "subscriptions to channels of no namespace";
    SubscribesLimited = Counter, r#"subscribe_errors_total{reason="limit"}"#,
        "subscriptions over limits.channels_per_connection_max";
    SubscribesBad = Counter, r#"subscribe_errors_total{reason="bad_request"}"#,
        "subscriptions with an impossible name, or made twice";
    SubscribesDeferred = Counter, r#"subscribe_errors_total{reason="busy"}"#,
        "subscriptions answered with 111 because the publisher is behind with who comes and goes";
    SubscribesUnrecoverable = Counter, r#"subscribe_errors_total{reason="unrecoverable"}"#,
        "subscriptions not made because their client wanted all that it missed";
    Recovered = Counter, r#"recoveries_total{result="recovered"}"#,
        "subscriptions that got all they had missed";
    Unrecoverable = Counter, r#"recoveries_total{result="unrecoverable"}"#,
        "subscriptions that were told that something is lost";
    PublishesAccepted = Counter, r#"client_publishes_total{result="accepted"}"#,
        "publishes of clients that the publisher took";
    PublishesDenied = Counter, r#"client_publishes_total{result="denied"}"#,
        "publishes of clients that the namespace does not allow";
    PublishesRejected = Counter, r#"client_publishes_total{result="rejected"}"#,
        "publishes of clients that were malformed, too large or refused by the publisher";
    PublishesDeferred = Counter, r#"client_publishes_total{result="busy"}"#,
        "publishes of clients answered with 111 because too many are outstanding";
    Records = Counter, "records_read_total", "records read from the log, of any kind";
    LogLagBytes = Gauge, "log_lag_bytes", "bytes of the log that this worker has not read yet";
    Laps = Counter, "laps_total", "times that the log overtook this worker";
    ResyncsRecovered = Counter, r#"resyncs_total{result="recovered"}"#,
        "channels made whole from history after a lap";
    ResyncsLost = Counter, r#"resyncs_total{result="lost"}"#,
        "channels whose subscribers were closed after a lap or gap";
    HandoffMoved = Counter, "handoff_moved_total",
        "connections that another worker has taken over";
    HandoffAdopted = Counter, "handoff_adopted_total",
        "connections taken over from another worker";
    HandoffRefusedFull = Counter, r#"handoff_refused_total{reason="connections_max"}"#,
        "connections not taken over because limits.connections_max was reached";
    HandoffRefusedDescriptors = Counter, r#"handoff_refused_total{reason="descriptors"}"#,
        "connections not taken over for want of descriptors";
    HandoffRefusedMalformed = Counter, r#"handoff_refused_total{reason="malformed"}"#,
        "connections not taken over because their batch was not what it said";
    HandoffTakenBack = Counter, "handoff_taken_back_total",
        "connections taken back because the other worker did not take them over";
    HandoffLost = Counter, "handoff_lost_total",
        "connections closed in a hand-off because the kernel did not let them be watched";
    ReplaysCutShort = Counter, "handoff_replays_cut_short_total",
        "batches of connections that were away for so long that orders to them may be lost";
    Events = Counter, "events_total", "events of sockets and bells that turns began with";
    MissedWakeups = Counter, r#"missed_wakeups_total{process="worker"}"#,
        "times that the safety poll found what nobody woke us for; 0 unless a publisher was killed";
    HooksInFlight = Gauge, "hooks_in_flight", "questions to the application without an answer yet";
}

// What a turn does, one after the other. Counted while profiled alone, see reactor/stopwatch.rs.
table! { TurnPhase, TURN_PHASES:
    Wait = Counter, r#"turn_phase_ns_total{phase="wait"}"#,
        "nanoseconds of profiled turns until something happened";
    Accept = Counter, r#"turn_phase_ns_total{phase="accept"}"#,
        "nanoseconds of profiled turns that took connections from the listeners";
    Read = Counter, r#"turn_phase_ns_total{phase="read"}"#,
        "nanoseconds of profiled turns that read from clients, and did what they want";
    Drain = Counter, r#"turn_phase_ns_total{phase="drain"}"#,
        "nanoseconds of profiled turns that read the log, and encoded what it brought";
    FanOut = Counter, r#"turn_phase_ns_total{phase="fan_out"}"#,
        "nanoseconds of profiled turns that put publications into queues";
    Flush = Counter, r#"turn_phase_ns_total{phase="flush"}"#,
        "nanoseconds of profiled turns that sent, and handed connections over";
    Timers = Counter, r#"turn_phase_ns_total{phase="timers"}"#,
        "nanoseconds of profiled turns that did what was due by the clock";
    Other = Counter, r#"turn_phase_ns_total{phase="other"}"#,
        "nanoseconds of profiled turns for statistics, and between turns";
}

table! { Histogram, HISTOGRAMS:
    PublishToFlushMs = Histogram, "publish_to_flush_ms",
        "milliseconds from a publication's place in the log to the end of its sends here";
    HandoffPauseUs = Histogram, "handoff_pause_us",
        "microseconds that a connection was served by nobody while it was taken over";
    HookMs = Histogram, "hook_ms", "milliseconds from a question to the application's answer";
    TurnUs = Histogram, "turn_us", "microseconds that a turn of the reactor was busy";
    TurnEvents = Histogram, "turn_events", "events that a profiled turn began with";
    DrainRecords = Histogram, "drain_records",
        "records that a profiled turn read from the log, where there were some";
    FlushDeliveries = Histogram, "flush_deliveries",
        "deliveries of a profiled turn that were sent together, where there were some";
}

const CLOSES_AT: usize = COUNTS.len();
const REJECTS_AT: usize = CLOSES_AT + close::ALL.len();
const HOOK_CALLS_AT: usize = REJECTS_AT + http::REJECTS.len();
const HOOKS_OPEN_AT: usize = HOOK_CALLS_AT + asks::KINDS.len() * asks::OUTCOMES.len();
const COUNTERS: usize = HOOKS_OPEN_AT + asks::KINDS.len();

/// Phases of a turn.
pub const PHASES: usize = TURN_PHASES.len();
const PHASES_AT: usize = COUNTERS;
const LONGEST_AT: usize = PHASES_AT + PHASES;
const HISTOGRAMS_AT: usize = LONGEST_AT + PHASES;

/// Every metric of a worker: in the order of the private counters, then those that are counted in
/// the shared row at once.
pub fn schema() -> Vec<SchemaLine> {
    let line = |kind, name, help| SchemaLine { kind, name, help };
    let named = |&(kind, name, help): &(Kind, &str, &str)| line(kind, name.into(), help.into());
    let closes = close::ALL.iter().map(|close| {
        let name = format!("closes_total{{reason=\"{}\"}}", close.name());
        let help = format!(
            "connections that ended with {} ({})",
            close.code(),
            close.reason()
        );
        line(Kind::Counter, name, help)
    });
    let rejects = http::REJECTS.iter().map(|reject| {
        let name = format!("http_rejects_total{{reason=\"{}\"}}", reject.name());
        let help = format!("requests answered with {}", reject.status());
        line(Kind::Counter, name, help)
    });
    let hook_calls = asks::KINDS.iter().flat_map(|kind| {
        asks::OUTCOMES.iter().map(move |outcome| {
            let (hook, reason) = (kind.name(), outcome.name());
            let (name, help) = match outcome {
                Outcome::Answered => (
                    format!("hook_answers_total{{hook=\"{hook}\"}}"),
                    "questions that the application answered".to_string(),
                ),
                Outcome::Fallback(_) => (
                    format!("hook_failures_total{{hook=\"{hook}\",reason=\"{reason}\"}}"),
                    format!(
                        "questions that got the fall-back answer: {}",
                        outcome.help()
                    ),
                ),
            };
            line(Kind::Counter, name, help)
        })
    });
    let hooks_open = asks::KINDS.iter().map(|kind| {
        let name = format!("hook_open{{hook=\"{}\"}}", kind.name());
        let help = "1 while the application is not asked because too many calls failed".into();
        line(Kind::Gauge, name, help)
    });
    let longest = TURN_PHASES.iter().map(|(_, name, _)| {
        let name = name.replace("_ns_total", "_longest_ns");
        let help = "the longest of a phase since profiling began; 0 while nobody profiles".into();
        line(Kind::Gauge, name, help)
    });
    let counts = COUNTS.iter().map(named);
    counts
        .chain(closes)
        .chain(rejects)
        .chain(hook_calls)
        .chain(hooks_open)
        .chain(TURN_PHASES.iter().map(named))
        .chain(longest)
        .chain(HISTOGRAMS.iter().map(named))
        .collect()
}

/// This worker's numbers: private counters, and the shared row that shows them.
pub struct Metrics {
    row: Row,
    /// Place in the row of each metric, in the order of [`schema`].
    places: Vec<Index>,
    counters: [u64; COUNTERS],
    shown: [u64; COUNTERS],
}

impl Metrics {
    /// Numbers that are shown in `row`. `None`: its schema lacks a metric of ours, so the segment
    /// was formatted for another version.
    pub fn new(row: Row) -> Option<Self> {
        let places = schema()
            .iter()
            .map(|line| row.index_of(&line.name))
            .collect::<Option<_>>()?;
        Some(Self {
            row,
            places,
            counters: [0; COUNTERS],
            shown: [0; COUNTERS],
        })
    }

    #[inline]
    pub fn add(&mut self, count: Count, amount: usize) {
        self.counters[count as usize] += amount as u64;
    }

    #[inline]
    pub fn set(&mut self, count: Count, value: usize) {
        self.counters[count as usize] = value as u64;
    }

    pub fn get(&self, count: Count) -> u64 {
        self.counters[count as usize]
    }

    pub fn subtract(&mut self, count: Count, amount: usize) {
        self.counters[count as usize] -= amount as u64;
    }

    pub fn close(&mut self, close: Close) {
        self.counters[CLOSES_AT + close.index()] += 1;
    }

    pub fn closes(&self, close: Close) -> u64 {
        self.counters[CLOSES_AT + close.index()]
    }

    pub fn reject(&mut self, reject: HttpReject) {
        self.counters[REJECTS_AT + reject.index()] += 1;
    }

    pub fn rejects(&self, reject: HttpReject) -> u64 {
        self.counters[REJECTS_AT + reject.index()]
    }

    /// Takes over what became of the questions to the application.
    pub fn hooks(&mut self, asks: &mut Asks) {
        let Some(tallies) = asks.tallies() else {
            return;
        };
        for (kind, tally) in tallies.iter().enumerate() {
            for (place, outcome) in asks::OUTCOMES.into_iter().enumerate() {
                let at = HOOK_CALLS_AT + kind * asks::OUTCOMES.len() + place;
                self.counters[at] = tally.of(outcome);
            }
            self.counters[HOOKS_OPEN_AT + kind] = tally.is_open.into();
        }
        self.set(Count::HooksInFlight, asks.in_flight());
        for wait_ms in asks.take_waits_ms() {
            self.record(Histogram::HookMs, wait_ms);
        }
    }

    pub fn record(&mut self, histogram: Histogram, value: u64) {
        self.row
            .record(self.places[HISTOGRAMS_AT + histogram as usize], value);
    }

    /// Adds to the time that a phase of turns took.
    pub fn add_phase(&self, phase: TurnPhase, took_ns: u64) {
        self.row
            .add(self.places[PHASES_AT + phase as usize], took_ns);
    }

    /// Says how long a phase took when it took longest.
    pub fn set_longest(&self, phase: TurnPhase, took_ns: u64) {
        self.row
            .set(self.places[LONGEST_AT + phase as usize], took_ns);
    }

    /// Says what this process does, see [`tidegate_ring::stats::state`].
    pub fn set_state(&mut self, state: u64) {
        self.row.set_state(state);
    }

    /// Shows what has changed, and that this worker is alive.
    pub fn show(&mut self) {
        for (index, value) in self.counters.iter().enumerate() {
            if *value != self.shown[index] {
                self.shown[index] = *value;
                self.row.set(self.places[index], *value);
            }
        }
        self.row.heartbeat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_nothing_is_left_out() {
        let names: HashSet<_> = schema().into_iter().map(|line| line.name).collect();
        assert_eq!(names.len(), HISTOGRAMS_AT + HISTOGRAMS.len());
    }
}
