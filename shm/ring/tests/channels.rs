//! The channel table from outside: what readers see while the publisher writes, forgets, dies.

#![cfg(not(loom))]

use std::collections::HashMap;
use std::sync::mpsc;

use proptest::prelude::*;
use tidegate_ring::channels::{
    ChannelKey, ChannelTable, ChannelWriter, Horizon, Top, format, segment_bytes,
};
use tidegate_ring::layout::Owner;
use tidegate_ring::publication::NO_PREVIOUS;
use tidegate_ring::publication::Version;
use tidegate_ring::region::Region;

const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};

/// A log in which everything is still there.
const YOUNG: Horizon = Horizon {
    tail: 0,
    capacity: u64::MAX,
};

fn table(channels_max: u64) -> Region {
    let region = Region::heap(segment_bytes(channels_max).unwrap());
    format(&region, channels_max, OWNER).unwrap();
    region
}

fn publish(writer: &mut ChannelWriter, name: &str, position: u64, horizon: Horizon) -> Option<Top> {
    let key = writer.table().key(name);
    let place = writer.place(key, horizon, |_| false)?;
    writer.advance(place, position);
    Some(Top {
        epoch: place.epoch,
        offset: place.offset,
        last_position: position,
    })
}

#[test]
fn offsets_of_a_channel_are_contiguous_from_one() {
    let region = table(100);
    let mut writer = ChannelWriter::open(region.clone()).unwrap();
    let reader = ChannelTable::attach(region).unwrap();
    let (a, b) = (reader.key("a"), reader.key("b"));
    assert_eq!(reader.top(a), None);
    let first = writer.place(a, YOUNG, |_| false).unwrap();
    assert_eq!((first.offset, first.previous), (1, NO_PREVIOUS));
    assert_eq!(first.epoch, reader.epoch_now());
    writer.advance(first, 160);
    let second = writer.place(a, YOUNG, |_| false).unwrap();
    assert_eq!(
        (second.offset, second.previous, second.epoch),
        (2, 160, first.epoch)
    );
    writer.advance(second, 320);
    assert_eq!(publish(&mut writer, "b", 480, YOUNG).unwrap().offset, 1);
    assert_eq!(reader.top(a), None, "what is only planned is not seen");
    writer.store();
    let top = Top {
        epoch: first.epoch,
        offset: 2,
        last_position: 320,
    };
    assert_eq!(reader.top(a), Some(top));
    assert_eq!(reader.top(b).unwrap().offset, 1);
}

#[test]
fn the_table_holds_all_that_it_was_made_for_at_every_size() {
    for channels_max in [1, 2, 7, 8, 50, 1_000, 20_000] {
        let mut writer = ChannelWriter::open(table(channels_max)).unwrap();
        for channel in 0..channels_max {
            let top = publish(&mut writer, &format!("channel:{channel}"), 16, YOUNG);
            assert!(top.is_some(), "channel {channel} of {channels_max}");
        }
    }
}

#[test]
fn two_choices_fill_nine_tenths_before_the_first_refusal() {
    let region = table(20_000);
    let entries = (region.len() - 4096 - 128) / 80;
    let mut writer = ChannelWriter::open(region).unwrap();
    let held = (0..).take_while(|channel: &u64| {
        publish(&mut writer, &channel.to_string(), 16, YOUNG).is_some()
    });
    let load = held.count() as f64 / entries as f64;
    assert!(load >= 0.9, "the first refusal came at {load:.3}");
}

#[test]
fn a_full_table_forgets_only_what_has_left_the_log_and_the_oldest_first() {
    let mut writer = ChannelWriter::open(table(1)).unwrap();
    let capacity = 10_000;
    let mut names = Vec::new();
    let mut position = u64::MAX - 15; // Positions wrap.
    let horizon = |tail| Horizon { tail, capacity };
    for name in (0..500).map(|name| format!("n{name}")) {
        if publish(&mut writer, &name, position, horizon(position)).is_some() {
            writer.store();
            names.push(name);
            position = position.wrapping_add(16);
        }
    }
    let (full_at, reader) = (position, writer.table().clone());
    let before = reader.epoch_now();
    let refused = publish(
        &mut writer,
        "late",
        full_at,
        horizon(full_at.wrapping_add(8_000)),
    );
    assert_eq!(refused, None, "every channel is still in the log");
    let later = full_at.wrapping_add(capacity);
    let top = publish(&mut writer, "late", later, horizon(later)).unwrap();
    writer.store();
    assert_eq!(top.offset, 1);
    assert_ne!(
        top.epoch, before,
        "who comes back after this must not fit the old epoch"
    );
    assert_eq!(reader.epoch_now(), top.epoch);
    assert_eq!(writer.evictions(), 1);
    let forgotten: Vec<_> = names
        .iter()
        .filter(|name| reader.top(reader.key(name)).is_none())
        .collect();
    assert_eq!(forgotten.len(), 1);
    let oldest_of_bucket = forgotten[0];
    assert!(
        names[..8].contains(oldest_of_bucket),
        "{oldest_of_bucket} is not among the oldest"
    );
}

#[test]
fn a_channel_that_comes_back_never_continues_its_old_epoch() {
    let mut writer = ChannelWriter::open(table(1)).unwrap();
    let mut seen = HashMap::<String, (u32, u64)>::new();
    for round in 0..20_000_u64 {
        let name = format!("n{}", (round * 7_919) % 211);
        let horizon = Horizon {
            tail: round * 16,
            capacity: 64,
        };
        let top = publish(&mut writer, &name, round * 16, horizon).unwrap();
        writer.store();
        if let Some((epoch, offset)) = seen.insert(name, (top.epoch, top.offset)) {
            let continued = (epoch, offset + 1) == (top.epoch, top.offset);
            assert!(continued || (epoch != top.epoch && top.offset == 1));
        }
    }
    assert!(writer.evictions() > 1_000);
}

#[test]
fn a_successor_finds_what_its_predecessor_stored() {
    let region = table(1_000);
    let mut writer = ChannelWriter::open(region.clone()).unwrap();
    let second = ChannelWriter::open(region.clone());
    assert_eq!(second.unwrap_err().code(), "segment_claimed");
    for channel in 0..500_u64 {
        publish(&mut writer, &channel.to_string(), channel * 16, YOUNG).unwrap();
    }
    writer.store();
    publish(&mut writer, "planned", 16, YOUNG).unwrap();
    drop(writer);
    let mut writer = ChannelWriter::open(region).unwrap();
    assert_eq!(writer.channels(), 500);
    assert_eq!(publish(&mut writer, "7", 8_000, YOUNG).unwrap().offset, 2);
    assert_eq!(
        publish(&mut writer, "planned", 8_016, YOUNG)
            .unwrap()
            .offset,
        1
    );
}

/// What a batch does to a table, told by names of channels.
fn apply(writer: &mut ChannelWriter, batch: &[u8], horizon: Horizon) -> Vec<(ChannelKey, Top)> {
    let places = batch.iter().enumerate().filter_map(|(index, channel)| {
        let name = format!("n{channel}");
        let key = writer.table().key(&name);
        let top = publish(
            writer,
            &name,
            horizon.tail.wrapping_add(index as u64 * 16),
            horizon,
        )?;
        Some((key, top))
    });
    places.collect()
}

fn copy_of(region: &Region) -> Region {
    let copy = Region::heap(region.len());
    for offset in (0..region.len()).step_by(8) {
        copy.store(offset, region.load(offset));
    }
    copy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A publisher is killed while it stores a batch: some words are new, the others old. Whatever
    /// it had stored, readers see whole entries, and its successor ends where it would have.
    #[test]
    fn a_batch_stored_in_part_is_completed_by_the_next_publisher(
        before in prop::collection::vec(0_u8..120, 0..400),
        batch in prop::collection::vec(0_u8..120, 1..60),
        tail in any::<u64>().prop_map(|tail| tail & !15),
        stop in any::<prop::sample::Index>(),
    ) {
        let region = table(20);
        let mut writer = ChannelWriter::open(region.clone()).unwrap();
        let horizon = Horizon { tail, capacity: 320 };
        for (index, chunk) in before.chunks(5).enumerate() {
            let back = (before.len() / 5 + 1 - index) as u64 * 80;
            let then = Horizon { tail: tail.wrapping_sub(back), capacity: 320 };
            apply(&mut writer, chunk, then);
            writer.store();
        }
        let old = copy_of(&region);
        let planned = apply(&mut writer, &batch, horizon);
        drop(writer);
        // The same batch, stored up to some word and not further.
        let words = stored_words(&old, &batch, horizon);
        let torn = copy_of(&old);
        for (offset, value) in &words[..stop.index(words.len() + 1)] {
            torn.store(*offset, *value);
        }
        let reader = ChannelTable::attach(torn.clone()).unwrap();
        let last: HashMap<ChannelKey, Top> = planned.iter().copied().collect();
        let reference = ChannelTable::attach(old).unwrap();
        for (key, top) in &last {
            let seen = reader.top(*key);
            prop_assert!(
                seen == Some(*top) || seen == reference.top(*key) || seen.is_none(),
                "{seen:?} is neither old nor new"
            );
        }
        let mut successor = ChannelWriter::open(torn).unwrap();
        for (key, top) in &planned {
            prop_assert!(successor.restore(*key, *top, Version::NONE, horizon, |_| false));
        }
        successor.store();
        for (key, top) in &last {
            prop_assert_eq!(reader.top(*key), Some(*top));
        }
    }
}

/// The words that storing the batch changes, in the order of the writer's stores within an entry
/// and of the entries among each other.
fn stored_words(old: &Region, batch: &[u8], horizon: Horizon) -> Vec<(usize, u64)> {
    let region = copy_of(old);
    let mut writer = ChannelWriter::open(region.clone()).unwrap();
    let planned = apply(&mut writer, batch, horizon);
    writer.store();
    let reader = ChannelTable::attach(region.clone()).unwrap();
    let changed = |at: usize| region.load(at) != old.load(at);
    let mut words = Vec::new();
    if changed(4096) {
        words.push((4096, region.load(4096)));
    }
    let entries: Vec<usize> = (4096 + 128..region.len() - 63).step_by(64).collect();
    let mut done = Vec::new();
    for (key, _) in planned {
        let _ = reader.top(key);
        let holds = |at: &&usize| [region.load(**at), region.load(**at + 8)] == key.0;
        let at = *entries.iter().find(holds).expect("the batch is stored");
        if done.contains(&at) {
            continue;
        }
        done.push(at);
        let claimed = changed(at) || changed(at + 8);
        if claimed {
            words.extend([(at, 0), (at + 8, 0)]);
        }
        words.extend([24, 32, 40, 48, 56, 16].map(|word| (at + word, region.load(at + word))));
        if claimed {
            words.extend([8, 0].map(|word| (at + word, region.load(at + word))));
        }
    }
    words
}

#[test]
fn readers_never_see_a_torn_entry() {
    const BATCHES: u64 = 200_000;
    let region = table(1);
    let mut writer = ChannelWriter::open(region.clone()).unwrap();
    let names: Vec<String> = (0..150).map(|name| name.to_string()).collect();
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let reader = ChannelTable::attach(region).unwrap();
        let keys: Vec<_> = names.iter().map(|name| reader.key(name)).collect();
        let seen = scope.spawn(move || {
            let mut seen = 0_u64;
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                for top in keys.iter().filter_map(|key| reader.top(*key)) {
                    seen += 1;
                    // Offset and position were chosen to tell of each other and of the epoch.
                    assert_eq!(top.last_position >> 32, top.offset);
                }
            }
            seen
        });
        for batch in 1..=BATCHES {
            let horizon = Horizon {
                tail: u64::MAX,
                capacity: 1,
            };
            let key = writer
                .table()
                .key(&names[((batch * 2_654_435_761) >> 7) as usize % 150]);
            let place = writer.place(key, horizon, |_| false).unwrap();
            writer.advance(place, place.offset << 32);
            writer.store();
        }
        drop(stop);
        assert!(seen.join().unwrap() > 0);
    });
    assert!(writer.evictions() > 0, "claims are a part of this test");
}

#[test]
fn hashes_depend_on_where_parts_end_and_on_the_table() {
    let first = ChannelTable::attach(table(1)).unwrap();
    let second = ChannelTable::attach(table(1)).unwrap();
    assert_ne!(first.hash(&[b"ab", b"c"]), first.hash(&[b"a", b"bc"]));
    assert_ne!(first.key("a"), second.key("a"));
    assert_eq!(first.key("a"), first.key("a"));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    assert_eq!(segment_bytes(0).unwrap_err().code(), "segment_parameter");
    assert_eq!(
        segment_bytes(u64::MAX).unwrap_err().code(),
        "segment_parameter"
    );
    let region = Region::heap(8192);
    assert_eq!(
        format(&region, 10_000, OWNER).unwrap_err().code(),
        "segment_size"
    );
}
