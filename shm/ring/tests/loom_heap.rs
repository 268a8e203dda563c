//! Heaps under the model checker: a reader of presence, or of history, while the publisher gives
//! the cells that it looks at to others. Run as `tests/loom.rs` is.
#![cfg(loom)]

mod support;

use std::time::Duration;

use loom::thread;
use support::{OWNER, publication};
use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::entry::EventView;
use tidegate_ring::history;
use tidegate_ring::history::{HistoryRule, HistoryStore, HistoryWriter};
use tidegate_ring::presence::{self, PresenceTable, PresenceWriter};
use tidegate_ring::publication::{PublicationView, Source};
use tidegate_ring::region::Region;

/// The smallest heap.
const MEMORY_BYTES: u64 = 4096;

/// Of one bucket.
const CHANNELS: [ChannelKey; 2] = [ChannelKey([1, 1]), ChannelKey([1, 3])];

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(model);
}

/// A step of the publisher: client, channel, whether it comes or goes.
type Step = (u8, usize, bool);

fn apply(writer: &mut PresenceWriter, (client, channel, joined): Step) {
    let event = EventView {
        source: Source {
            uplink: 1,
            generation: 1,
            position: 0,
        },
        key: CHANNELS[channel],
        channel: "c",
        client: [client; 16],
        joined,
        presence: true,
        announce: false,
        info: &[client; 8],
    };
    assert!(writer.apply(&event));
}

/// The publisher takes `before`, then `steps`, while a reader looks who is in channel 0: the
/// answer is one of `answers`.
fn presence(
    preemptions: usize,
    before: &'static [Step],
    steps: &'static [Step],
    answers: &'static [&'static [u8]],
) {
    explore(preemptions, move || {
        let region = Region::heap(presence::segment_bytes(MEMORY_BYTES).unwrap());
        presence::format(&region, MEMORY_BYTES, OWNER).unwrap();
        let reader = PresenceTable::attach(region.clone()).unwrap();
        let mut writer = PresenceWriter::open(region).unwrap();
        for step in before {
            apply(&mut writer, *step);
        }
        let reading = thread::spawn(move || {
            let members = reader.members(CHANNELS[0], 9);
            for info in &members {
                assert_eq!(*info, [info[0]; 8], "a torn entry");
            }
            let clients: Vec<u8> = members.iter().map(|info| info[0]).collect();
            assert!(answers.contains(&&clients[..]), "{clients:?}");
        });
        for step in steps {
            apply(&mut writer, *step);
        }
        reading.join().unwrap();
    });
}

/// Fails if a cell is filled without the fence, or read without it.
#[test]
fn an_entry_whose_cell_another_takes_is_never_mixed_with_it() {
    let answers: &[&[u8]] = &[&[2, 1], &[1], &[2], &[3, 2], &[3, 2, 1]];
    presence(
        2,
        &[(1, 0, true), (2, 0, true)],
        &[(1, 0, false), (3, 0, true)],
        answers,
    );
}

/// The cells of channel 0 become those of channel 1: nobody there is ever seen here.
#[test]
fn a_channel_whose_cells_another_takes_is_never_mixed_with_it() {
    presence(
        2,
        &[(1, 0, true)],
        &[(1, 0, false), (2, 1, true)],
        &[&[1], &[]],
    );
}

/// Who is there all the time is in every answer, whoever goes around it.
#[test]
fn a_member_that_stays_is_never_missed() {
    let before: &[Step] = &[(1, 0, true), (2, 0, true), (3, 0, true)];
    presence(
        1,
        before,
        &[(3, 0, false), (2, 0, false)],
        &[&[3, 2, 1], &[2, 1], &[1]],
    );
}

/// A channel that keeps one publication, the next of which takes the cells of the one before last.
#[test]
fn a_publication_is_read_whole_or_not_at_all() {
    explore(1, || {
        let region = Region::heap(history::segment_bytes(MEMORY_BYTES).unwrap());
        history::format(&region, MEMORY_BYTES, OWNER).unwrap();
        let rule = HistoryRule {
            namespace: String::new(),
            size: 1,
            ttl: Duration::from_secs(1),
        };
        let reader = HistoryStore::attach(region.clone()).unwrap();
        let mut writer = HistoryWriter::open(region, vec![rule]).unwrap();
        let mut publish = move |offset: u64| {
            let data = [offset as u8; 2];
            let view = PublicationView {
                key: CHANNELS[0],
                offset,
                kept: true,
                ..publication("c", &data)
            };
            writer.append(&view, &view.encode());
        };
        publish(1);
        publish(2);
        let reading = thread::spawn(move || {
            let top = Top {
                epoch: 1,
                offset: 9,
                last_position: 0,
            };
            let found = reader.read(CHANNELS[0], top, None, 9, false, 999);
            for payload in found.map_or_else(Vec::new, |stretch| stretch.payloads) {
                let view = PublicationView::parse(&payload).expect("a torn publication");
                assert_eq!(view.data, [view.offset as u8; 2], "a torn publication");
            }
        });
        publish(3);
        publish(4);
        reading.join().unwrap();
    });
}
