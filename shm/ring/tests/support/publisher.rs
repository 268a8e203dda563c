//! A publisher over private memory, and the producers that ask it.

use std::time::Duration;

use tidegate_ring::history::HistoryRule;
use tidegate_ring::layout::Owner;
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::{METRICS, Segments, Sequencer, Settings};
use tidegate_ring::stats::{self, SchemaLine, Stats, Value};
use tidegate_ring::uplink::{self, Reply, Request, RequestKind, UplinkProducer};
use tidegate_ring::wake::Bell;
use tidegate_ring::{channels, history, log, presence};

use super::{OWNER, TOPICS};

pub const CAPACITY: u64 = 1 << 16;
pub const UPLINK_CAPACITY: u64 = 1 << 17;
pub const STORE_BYTES: u64 = 1 << 16;

/// Channels of namespace `kept` keep three publications for ten seconds.
pub fn settings() -> Settings {
    Settings {
        stats_row: 0,
        generation: 1,
        lag_budget: Duration::from_millis(1),
        history: vec![HistoryRule {
            namespace: "kept".to_owned(),
            size: 3,
            ttl: Duration::from_secs(10),
        }],
    }
}

pub fn segments() -> Segments {
    segments_in(Region::heap)
}

/// Segments in memory that `region` makes.
pub fn segments_in(mut region: impl FnMut(usize) -> Region) -> Segments {
    // Close to where positions wrap.
    let start = 0_u64.wrapping_sub(CAPACITY / 2);
    let log = region(log::segment_bytes(CAPACITY, 2, TOPICS));
    log::format(&log, CAPACITY, 2, TOPICS, start, OWNER).unwrap();
    let channels = region(channels::segment_bytes(100).unwrap());
    channels::format(&channels, 100, OWNER).unwrap();
    let history = region(history::segment_bytes(STORE_BYTES).unwrap());
    history::format(&history, STORE_BYTES, OWNER).unwrap();
    let presence = region(presence::segment_bytes(STORE_BYTES).unwrap());
    presence::format(&presence, STORE_BYTES, OWNER).unwrap();
    let schema: Vec<SchemaLine> = METRICS.iter().map(SchemaLine::from).collect();
    let stats = region(stats::segment_bytes(&schema, 1).unwrap());
    stats::format(&stats, &schema, 1, OWNER).unwrap();
    Segments {
        log,
        channels,
        history,
        presence,
        stats,
    }
}

pub fn new_uplink(generation: u64) -> Region {
    new_uplink_in(generation, Region::heap)
}

pub fn new_uplink_in(generation: u64, region: impl FnOnce(usize) -> Region) -> Region {
    let region = region(uplink::segment_bytes(UPLINK_CAPACITY));
    let owner = Owner {
        generation,
        ..OWNER
    };
    uplink::format(&region, UPLINK_CAPACITY, 0, owner).unwrap();
    region
}

pub fn open(segments: &Segments, awaited: &[u32]) -> Sequencer {
    let bell = Bell::new().unwrap();
    Sequencer::open(segments.clone(), bell, settings(), awaited.iter().copied()).unwrap()
}

pub fn attach(sequencer: &mut Sequencer, id: u32, region: &Region) {
    let bell = Bell::new().unwrap();
    sequencer.attach_uplink(id, region.clone(), bell).unwrap();
}

pub fn ask(producer: &mut UplinkProducer, id: u64, channel: &str) {
    let request = Request {
        id,
        want_reply: true,
        json: true,
        channel,
        data: b"{}",
        ..Request::default()
    };
    producer.publish(&request).unwrap();
}

/// A join or leave of a client in a channel, told to its subscribers.
pub fn presence_request<'a>(
    kind: RequestKind,
    id: u64,
    channel: &'a str,
    client: u8,
    info: &'a [u8],
) -> Request<'a> {
    Request {
        id,
        kind,
        want_reply: true,
        presence: true,
        announce: true,
        client: Some([client; 16]),
        channel,
        info,
        ..Request::default()
    }
}

pub fn replies(producer: &mut UplinkProducer) -> Vec<Reply> {
    let mut found = Vec::new();
    producer.replies(|reply| found.push(reply)).unwrap();
    found
}

pub fn counted(segments: &Segments, name: &str) -> u64 {
    let stats = Stats::attach(segments.stats.clone()).unwrap();
    let at = stats.schema().iter().position(|line| line.name == name);
    match &stats.rows()[0].values[at.unwrap()] {
        Value::Number(number) => *number,
        Value::Histogram { count, .. } => *count,
    }
}
