//! Histories and presence that somebody scribbled into: never a panic, never a read outside, and a
//! publisher that takes over finds a usable heap.
#![cfg(not(loom))]

mod support;

use std::time::Duration;

use support::{OWNER, Random, publication, scribble};
use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::entry::EventView;
use tidegate_ring::history::{self, HistoryRule, HistoryStore, HistoryWriter};
use tidegate_ring::presence::{self, PresenceTable, PresenceWriter};
use tidegate_ring::publication::{PublicationView, Source};
use tidegate_ring::region::Region;

const MEMORY_BYTES: u64 = 8 * 1024;
const SEEDS: u64 = 100;

fn key(random: &mut Random) -> ChannelKey {
    let number = random.below(6) as u64;
    ChannelKey([(number % 3) << 1 | 1, number << 1 | 1])
}

fn history() -> Region {
    let region = Region::heap(history::segment_bytes(MEMORY_BYTES).unwrap());
    history::format(&region, MEMORY_BYTES, OWNER).unwrap();
    region
}

fn rules() -> Vec<HistoryRule> {
    vec![HistoryRule {
        namespace: String::new(),
        size: 5,
        ttl: Duration::from_millis(30),
    }]
}

#[test]
fn a_damaged_history_harms_nobody() {
    let mut found = 0;
    for seed in 0..SEEDS {
        let (mut random, region) = (Random(seed), history());
        let reader = HistoryStore::attach(region.clone()).unwrap();
        let mut writer = HistoryWriter::open(region.clone(), rules()).unwrap();
        for offset in 1..80 {
            let key = key(&mut random);
            let bytes = random.below(400);
            let data = random.bytes(bytes);
            let view = PublicationView {
                key,
                offset,
                time_ms: offset,
                ..publication("a", &data)
            };
            writer.append(&view, &view.encode());
            match random.below(6) {
                0 => scribble(&region, &mut random),
                1 => writer.expire(offset),
                2 => writer.remove(key),
                3 if random.below(5) == 0 => {
                    drop(writer);
                    writer = HistoryWriter::open(region.clone(), rules()).unwrap();
                }
                _ => (),
            }
            let top = Top {
                epoch: 1,
                offset,
                last_position: 0,
            };
            let since = Some(random.below(80) as u64);
            let reverse = random.below(2) == 0;
            let read = reader.read(key, top, since, 9, reverse, usize::MAX);
            found += read.map_or(0, |stretch| stretch.payloads.len());
        }
    }
    assert!(found > 1_000, "only {found} publications were found");
}

#[test]
fn a_damaged_presence_table_harms_nobody() {
    let mut found = 0;
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let region = Region::heap(presence::segment_bytes(MEMORY_BYTES).unwrap());
        presence::format(&region, MEMORY_BYTES, OWNER).unwrap();
        let reader = PresenceTable::attach(region.clone()).unwrap();
        let mut writer = PresenceWriter::open(region.clone()).unwrap();
        for _ in 0..80 {
            let bytes = random.below(200);
            let event = EventView {
                source: Source {
                    uplink: random.below(3) as u32,
                    generation: 1,
                    position: 0,
                },
                key: key(&mut random),
                channel: "a",
                client: [random.below(9) as u8; 16],
                joined: random.below(3) > 0,
                presence: true,
                announce: false,
                info: &random.bytes(bytes),
            };
            writer.apply(&event);
            match random.below(6) {
                0 => scribble(&region, &mut random),
                1 => drop(writer.owned_by(1, 9)),
                2 if random.below(5) == 0 => {
                    drop(writer);
                    writer = PresenceWriter::open(region.clone()).unwrap();
                }
                _ => (),
            }
            found += reader.members(event.key, 9).len();
            let _ = reader.stats(event.key);
        }
    }
    assert!(found > 1_000, "only {found} members were found");
}

#[test]
fn a_heap_whose_size_does_not_fit_its_segment_is_refused() {
    const CELLS_AT: usize = 64;
    let region = history();
    region.store(CELLS_AT, region.load(CELLS_AT) * 2);
    let refused = HistoryStore::attach(region).unwrap_err();
    assert_eq!(refused.code(), "segment_parameter");
    let refused = PresenceTable::attach(history()).unwrap_err();
    assert_eq!(refused.code(), "segment_kind");
    assert_eq!(
        history::segment_bytes(100).unwrap_err().code(),
        "segment_parameter"
    );
    assert_eq!(
        history::segment_bytes(u64::MAX).unwrap_err().code(),
        "segment_parameter"
    );
}
