//! The channel table under the model checker: every interleaving of a reader with a publisher.
//! Run as `tests/loom.rs` is.
#![cfg(loom)]

use loom::thread;
use tidegate_ring::channels::{
    ChannelKey, ChannelTable, ChannelWriter, Horizon, Top, format, segment_bytes,
};
use tidegate_ring::layout::Owner;
use tidegate_ring::region::Region;

/// Three channels of the first bucket, which has one entry here.
const CHANNELS: [ChannelKey; 3] = [ChannelKey([1, 1]), ChannelKey([3, 3]), ChannelKey([5, 5])];

/// Everything has left the log: the entry may always be given to another channel.
const EMPTY: Horizon = Horizon {
    tail: 1 << 40,
    capacity: 16,
};

/// The publisher publishes once to channel 0, then to each of `steps`, while a reader looks at each
/// of `looks`.
fn explore(preemptions: usize, steps: &'static [usize], looks: &'static [usize]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(move || {
        let owner = Owner {
            generation: 1,
            pid: 1,
            start: 1,
        };
        let region = Region::heap(segment_bytes(1).unwrap());
        format(&region, 1, owner).unwrap();
        let reader = ChannelTable::attach(region.clone()).unwrap();
        let first_epoch = reader.epoch_now();
        let mut writer = ChannelWriter::open(region).unwrap();
        publish(&mut writer, 0);
        let reading = thread::spawn(move || {
            for &channel in looks {
                if let Some(top) = reader.top(CHANNELS[channel]) {
                    check(channel, top, first_epoch);
                }
            }
        });
        for step in steps {
            publish(&mut writer, *step);
        }
        reading.join().unwrap();
    });
}

/// Publishes to a channel, at a position that tells of channel, epoch and offset.
fn publish(writer: &mut ChannelWriter, channel: usize) {
    let place = writer.place(CHANNELS[channel], EMPTY, |_| false).unwrap();
    writer.advance(place, position(channel, place.epoch, place.offset));
    writer.store();
}

fn position(channel: usize, epoch: u32, offset: u64) -> u64 {
    u64::from(epoch & 0xff) << 16 | offset << 8 | channel as u64
}

fn check(channel: usize, top: Top, first_epoch: u32) {
    assert_eq!(
        top.last_position,
        position(channel, top.epoch, top.offset),
        "a torn read of channel {channel}"
    );
    assert!(top.epoch.wrapping_sub(first_epoch) < 4 && top.offset > 0);
}

/// Fails if the release fence is taken out of `store_entry`, or the acquire fence out of `read`.
#[test]
fn an_update_is_seen_whole_or_not_at_all() {
    explore(2, &[0, 0], &[0]);
}

/// Fails if the key is not cleared first, or not stored last, or not looked at again by `read`.
#[test]
fn a_channel_that_takes_anothers_entry_is_never_mixed_with_it() {
    explore(2, &[1], &[0, 1]);
}

/// The same key comes back to the same entry: only the version tells the two apart. Fails if `read`
/// looks at the version again before it has seen, by an acquire load, that the key is the same.
#[test]
fn a_channel_that_comes_back_is_never_mixed_with_its_past() {
    explore(1, &[1, 0], &[0]);
}
