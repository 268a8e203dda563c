//! Presence under the model checker: a walk through a channel while others leave it. Run as
//! `tests/loom.rs` is. What cells go through beneath it is checked in `src/heap.rs`.
#![cfg(loom)]

mod support;

use loom::thread;
use support::OWNER;
use tidegate_ring::channels::ChannelKey;
use tidegate_ring::entry::EventView;
use tidegate_ring::presence::{PresenceTable, PresenceWriter, format, segment_bytes};
use tidegate_ring::publication::Source;
use tidegate_ring::region::Region;

/// The smallest heap.
const MEMORY_BYTES: u64 = 4096;

const KEY: ChannelKey = ChannelKey([1, 1]);

fn apply(writer: &mut PresenceWriter, client: u8, joined: bool) {
    let event = EventView {
        source: Source {
            uplink: 1,
            generation: 1,
            position: 0,
        },
        key: KEY,
        channel: "c",
        client: [client; 16],
        joined,
        presence: true,
        announce: false,
        info: &[client; 8],
    };
    assert!(writer.apply(&event));
}

/// Who is there all the time is in every answer, whoever goes around it.
#[test]
fn a_member_that_stays_is_never_missed() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(1);
    builder.max_branches = 100_000;
    builder.check(|| {
        let region = Region::heap(segment_bytes(MEMORY_BYTES).unwrap());
        format(&region, MEMORY_BYTES, OWNER).unwrap();
        let reader = PresenceTable::attach(region.clone()).unwrap();
        let mut writer = PresenceWriter::open(region).unwrap();
        (1..=3).for_each(|client| apply(&mut writer, client, true));
        let reading = thread::spawn(move || {
            let members = reader.members(KEY, 9);
            let clients: Vec<u8> = members.iter().map(|info| info[0]).collect();
            let answers: [&[u8]; 3] = [&[3, 2, 1], &[2, 1], &[1]];
            assert!(answers.contains(&&clients[..]), "{clients:?}");
        });
        apply(&mut writer, 3, false);
        apply(&mut writer, 2, false);
        reading.join().unwrap();
    });
}
