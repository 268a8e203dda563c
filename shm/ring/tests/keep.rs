//! The keep against a model: whatever a worker does, what is read is what it put down last, or is
//! said to be damaged.
#![cfg(not(loom))]

mod support;

use std::collections::HashMap;

use support::{OWNER, Random};
use tidegate_ring::keep::{self, Damage, Entry, FrameRef, KeepView, KeepWriter, State};
use tidegate_ring::region::Region;

const ARENA: u64 = 64 * 1024;

fn keep(slots: u64) -> (KeepWriter, KeepView) {
    let (bytes, _) = keep::segment_bytes(slots, ARENA).unwrap();
    let region = Region::heap(bytes);
    keep::format(&region, slots, ARENA, OWNER).unwrap();
    let writer = KeepWriter::attach(region.clone(), None).unwrap();
    (writer, KeepView::attach(region).unwrap())
}

fn entry<'a>(descriptor: u32, frames: &'a [FrameRef], blob: Option<&'a [u8]>) -> Entry<'a> {
    Entry {
        descriptor,
        sent_bytes: 7,
        frames: Some(frames),
        head_sent_bytes: 0,
        position: 0,
        owes: false,
        blob,
    }
}

#[test]
fn what_was_put_down_is_read() {
    let (mut writer, view) = keep(4);
    let slot = writer.take_slot().unwrap();
    let frames = [
        writer.put_frame(None, b"one").unwrap(),
        writer.put_frame(Some(9), b"another one").unwrap(),
    ];
    let whole = Entry {
        descriptor: 5,
        sent_bytes: u32::MAX,
        frames: Some(&frames),
        head_sent_bytes: 2,
        position: u64::MAX - 15,
        owes: true,
        blob: Some(b"blob"),
    };
    writer.write(slot, &whole);
    writer.settle(4096);
    let State::Held(kept) = view.read(slot) else {
        panic!("not held");
    };
    assert_eq!((kept.descriptor, kept.sent_bytes), (5, u32::MAX));
    assert_eq!((kept.head_sent_bytes, kept.position), (2, u64::MAX - 15));
    assert_eq!((kept.owes, kept.blob.as_slice()), (true, &b"blob"[..]));
    let read: Vec<_> = kept
        .frames
        .into_iter()
        .map(|f| (f.channel, f.bytes))
        .collect();
    let expected = [(None, b"one".to_vec()), (Some(9), b"another one".to_vec())];
    assert_eq!(read, expected);
    assert_eq!(
        (view.settled(), view.slots(), view.has_ended()),
        (4096, 1, false)
    );
    writer.end();
    assert!(view.has_ended());
}

#[test]
fn a_slot_goes_from_hand_to_hand_and_is_used_again() {
    let (mut writer, view) = keep(1);
    let slot = writer.take_slot().unwrap();
    assert_eq!(writer.take_slot(), None);
    writer.write(slot, &entry(3, &[], Some(b"state")));
    writer.give(slot);
    assert_eq!(view.read(slot), State::Given { descriptor: 3 });
    writer.keep(slot);
    assert!(matches!(view.read(slot), State::Held(_)));
    writer.free(slot);
    assert_eq!(view.read(slot), State::Free);
    assert_eq!(writer.take_slot(), Some(slot));
}

#[test]
fn more_than_the_keep_takes_is_said_to_be_partial_until_it_is_less() {
    let (mut writer, view) = keep(1);
    let slot = writer.take_slot().unwrap();
    let damage = |view: &KeepView| match view.read(slot) {
        State::Damaged { damage, .. } => Some(damage),
        _ => None,
    };
    writer.write(
        slot,
        &entry(3, &[], Some(&vec![0; keep::BLOB_BYTES_MAX + 1])),
    );
    assert_eq!(damage(&view), Some(Damage::Partial));
    writer.write(slot, &entry(3, &[], Some(b"less")));
    assert_eq!(damage(&view), None);
    let frame = writer.put_frame(None, b"x").unwrap();
    writer.write(slot, &entry(3, &vec![frame; keep::FRAMES_MAX + 1], None));
    assert_eq!(damage(&view), Some(Damage::Partial));
    writer.write(slot, &entry(3, &vec![frame; keep::FRAMES_MAX], None));
    assert_eq!(damage(&view), None);
    assert_eq!(writer.put_frame(None, &[0; ARENA as usize / 8]), None);
}

#[test]
fn a_keep_has_one_worker_in_its_life() {
    let (bytes, reserved) = keep::segment_bytes(2, ARENA).unwrap();
    assert!(reserved < bytes);
    let region = Region::heap(bytes);
    keep::format(&region, 2, ARENA, OWNER).unwrap();
    let mut first = KeepWriter::attach(region.clone(), None).unwrap();
    assert_eq!(
        KeepWriter::attach(region.clone(), None).unwrap_err().code(),
        "segment_claimed"
    );
    first.take_slot().unwrap();
    drop(first);
    assert_eq!(
        KeepWriter::attach(region, None).unwrap_err().code(),
        "segment_parameter"
    );
    assert_eq!(
        keep::segment_bytes(0, ARENA).unwrap_err().code(),
        "segment_parameter"
    );
    assert_eq!(
        keep::segment_bytes(1, 100).unwrap_err().code(),
        "segment_parameter"
    );
}

struct Model {
    descriptor: u32,
    frames: Vec<(FrameRef, Vec<u8>)>,
    blob: Vec<u8>,
}

/// Slots, frames and blobs of all sizes, for many laps of the arena.
#[test]
fn whatever_is_written_is_read_back_or_known_to_be_overwritten() {
    let (mut writer, view) = keep(16);
    let mut random = Random(3);
    let mut model: HashMap<u32, Model> = HashMap::new();
    let (mut read, mut overwritten) = (0, 0);
    for step in 0..1_500 {
        if random.below(10) == 0 && !model.is_empty() {
            let slot = *model.keys().nth(random.below(model.len())).unwrap();
            model.remove(&slot);
            writer.free(slot);
        }
        let slot = match random.below(3) {
            0 => writer.take_slot(),
            _ => model.keys().nth(random.below(model.len().max(1))).copied(),
        };
        let Some(slot) = slot else { continue };
        let count = [0, 1, 1, 2, 3, 40][random.below(6)];
        let frames: Vec<(FrameRef, Vec<u8>)> = (0..count)
            .map(|_| {
                let length = random.below(300);
                let bytes = random.bytes(length);
                (writer.put_frame(Some(step.into()), &bytes).unwrap(), bytes)
            })
            .collect();
        let length = [20, 100, 400, 3000][random.below(4)];
        let known = model.remove(&slot);
        let is_new = known.is_none() || random.below(2) == 0;
        let blob = match known {
            Some(known) if !is_new => known.blob,
            _ => random.bytes(length),
        };
        let names: Vec<FrameRef> = frames.iter().map(|each| each.0).collect();
        writer.write(slot, &entry(step, &names, is_new.then_some(&blob)));
        model.insert(
            slot,
            Model {
                descriptor: step,
                frames,
                blob,
            },
        );
        for (slot, expected) in &model {
            match view.read(*slot) {
                State::Held(kept) => {
                    assert_eq!(
                        (kept.descriptor, &kept.blob),
                        (expected.descriptor, &expected.blob)
                    );
                    let bytes: Vec<_> = kept.frames.into_iter().map(|each| each.bytes).collect();
                    let wanted: Vec<_> =
                        expected.frames.iter().map(|each| each.1.clone()).collect();
                    assert_eq!(bytes, wanted);
                    read += 1;
                }
                State::Damaged { damage, .. } => {
                    assert_eq!(damage, Damage::Overwritten);
                    assert!(!expected.frames.iter().all(|each| writer.is_fresh(each.0)));
                    overwritten += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(read > 1000 && overwritten > 100, "{read} {overwritten}");
}
