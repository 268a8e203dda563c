//! What a publish costs the publisher: `cargo run --release -p tidegate-ring --example publish_bench`.
//!
//! One thread, private memory: requests are handed over, then the time is taken in which they
//! are sequenced, logged, committed and answered. By channels (each published to in turn), requests
//! of a batch, and readers that sleep meanwhile.

use std::time::{Duration, Instant};

use tidegate_ring::layout::Owner;
use tidegate_ring::log::LogReader;
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::{METRICS, Segments, Sequencer, Settings};
use tidegate_ring::stats::{self, SchemaLine};
use tidegate_ring::uplink::{self, Request, UplinkProducer};
use tidegate_ring::wake::Bell;
use tidegate_ring::{channels, history, log, presence};

const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};
const LOG_BYTES: u64 = 32 << 20;
const CHANNELS_MAX: u64 = 65_536;
const STORE_BYTES: u64 = 1 << 20;
const UPLINK_BYTES: u64 = 1 << 20;
const READERS: u32 = 64;
const PAYLOAD: &[u8] = &[b'7'; 128];

/// Publishes of one round.
const PUBLISHES: usize = 400_000;
const ROUNDS: usize = 9;

fn main() {
    for (channels, batch, sleeping) in [
        (1, 32, 0),
        (10_000, 32, 0),
        (60_000, 32, 0),
        (1, 1, 0),
        (10_000, 1, 0),
        (10_000, 1, 8),
        (10_000, 1, 54),
        (10_000, 32, 54),
    ] {
        let ns = measure(channels, batch, sleeping);
        println!(
            "{channels:6} channels, batches of {batch:2}, {sleeping:2} readers asleep: {ns:6.1} ns"
        );
    }
}

/// The median round's time of a publish.
fn measure(channels: usize, batch: usize, sleeping: u32) -> f64 {
    let segments = segments();
    let readers: Vec<LogReader> = (0..sleeping)
        .map(|seat| LogReader::join(segments.log.clone(), seat).unwrap())
        .collect();
    let settings = Settings {
        lag_budget: Duration::from_millis(1),
        ..Settings::default()
    };
    let mut sequencer = Sequencer::open(segments, Bell::new().unwrap(), settings, []).unwrap();
    let uplink = Region::heap(uplink::segment_bytes(UPLINK_BYTES));
    uplink::format(&uplink, UPLINK_BYTES, 0, OWNER).unwrap();
    let mut producer = UplinkProducer::attach(uplink.clone()).unwrap();
    sequencer
        .attach_uplink(1, uplink, Bell::new().unwrap())
        .unwrap();
    for seat in 0..sleeping {
        sequencer.attach_reader(seat, Bell::new().unwrap()).unwrap();
    }
    // Rung once each; from then on they sleep through, as those do whom nothing concerns.
    for reader in &readers {
        reader.may_sleep();
    }
    let names: Vec<String> = (0..channels).map(|n| format!("public:{n}")).collect();
    let mut next = 0;
    let mut times: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let mut spent = Duration::ZERO;
            for _ in 0..PUBLISHES / batch {
                for _ in 0..batch {
                    let request = Request {
                        json: true,
                        channel: &names[next],
                        data: PAYLOAD,
                        ..Request::default()
                    };
                    producer.publish(&request).unwrap();
                    next = (next + 1) % channels;
                }
                let began = Instant::now();
                sequencer.drain().unwrap();
                spent += began.elapsed();
            }
            spent.as_nanos() as f64 / PUBLISHES as f64
        })
        .skip(1)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn segments() -> Segments {
    let log = Region::heap(log::segment_bytes(LOG_BYTES, READERS, CHANNELS_MAX));
    log::format(&log, LOG_BYTES, READERS, CHANNELS_MAX, 0, OWNER).unwrap();
    let channels = Region::heap(channels::segment_bytes(CHANNELS_MAX).unwrap());
    channels::format(&channels, CHANNELS_MAX, OWNER).unwrap();
    let history = Region::heap(history::segment_bytes(STORE_BYTES).unwrap());
    history::format(&history, STORE_BYTES, OWNER).unwrap();
    let presence = Region::heap(presence::segment_bytes(STORE_BYTES).unwrap());
    presence::format(&presence, STORE_BYTES, OWNER).unwrap();
    let schema: Vec<SchemaLine> = METRICS.iter().map(SchemaLine::from).collect();
    let stats = Region::heap(stats::segment_bytes(&schema, 1).unwrap());
    stats::format(&stats, &schema, 1, OWNER).unwrap();
    Segments {
        log,
        channels,
        history,
        presence,
        stats,
    }
}
