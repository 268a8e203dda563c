//! Every interleaving, and every reordering that the memory model allows, of a few steps:
//! `RUSTFLAGS="--cfg loom" cargo test -p tidegate-ring --test loom --release
//! --target-dir target/loom`
//!
//! What the tests stand on, tried by taking it away: see the note at each test.
#![cfg(loom)]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use loom::sync::Notify;
use loom::thread;
use support::{heap_log, heap_uplink};
use tidegate_ring::log::{Audience, LogReader, LogView, LogWriter, Topic};
use tidegate_ring::region::Region;
use tidegate_ring::uplink::{Reply, Request, UplinkConsumer, UplinkProducer};

/// A ring of 16 words, eight records of two words; it begins where positions wrap at 2^64.
const CAPACITY: u64 = 128;
const START: u64 = 0u64.wrapping_sub(CAPACITY);
const RECORD: u64 = 16;

/// Explores with at most so many involuntary switches; two show every bug known to us.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(model);
}

/// Kind and payload of the record at a position: no two positions have them alike.
fn record_of(position: u64) -> (u32, [u8; 8]) {
    let number = position / RECORD % 1000 + 1;
    (number as u32, (number * 0x0101_0101).to_le_bytes())
}

fn append(writer: &mut LogWriter, wake: impl FnMut(u32)) {
    let mut batch = writer.batch().unwrap();
    let (kind, payload) = record_of(batch.end());
    batch.push(kind, &[&payload]).unwrap();
    batch.prepare().commit(wake);
}

/// A log whose ring is full, with a reader that has all of it before it.
fn full_log(readers: u32) -> (Region, LogWriter, Vec<LogReader>) {
    let region = heap_log(CAPACITY, readers, START);
    let seats = (0..readers)
        .map(|seat| LogReader::join(region.clone(), seat).unwrap())
        .collect();
    let mut writer = LogWriter::open(region.clone(), Duration::ZERO).unwrap();
    for _ in 0..CAPACITY / RECORD {
        append(&mut writer, |_| ());
    }
    (region, writer, seats)
}

/// Reads what is there; all of it must be as it was written. True if the reader was not lapped.
fn read_and_check(reader: &mut LogReader) -> bool {
    let result = reader.read(usize::MAX, |record| {
        let (kind, payload) = record_of(record.position);
        assert_eq!(
            (record.kind, record.payload),
            (kind, &payload[..]),
            "a torn read"
        );
    });
    if result.is_err() {
        reader.rejoin();
    }
    result.is_ok()
}

/// Fails if the fence is taken out of `LogView::is_valid` or of `LogWriter::reserve`, or if the
/// intent is not stored: with any of these, a new word is read under an old intent.
#[test]
fn a_torn_read_is_never_believed() {
    explore(3, || {
        let (_region, mut writer, readers) = full_log(2);
        let threads: Vec<_> = readers
            .into_iter()
            .map(|mut reader| thread::spawn(move || read_and_check(&mut reader)))
            .collect();
        append(&mut writer, |_| ());
        for reader in threads {
            reader.join().unwrap();
        }
    });
}

/// The same for a reader that the writer waits for, here for no time: evicted in the middle.
#[test]
fn a_reader_evicted_while_it_copies_believes_nothing_torn() {
    explore(2, || {
        let (_region, mut writer, mut readers) = full_log(1);
        let mut reader = readers.remove(0);
        writer.attach_reader(0).unwrap();
        let reading = thread::spawn(move || {
            read_and_check(&mut reader);
            read_and_check(&mut reader);
        });
        append(&mut writer, |_| ());
        append(&mut writer, |_| ());
        reading.join().unwrap();
    });
}

/// Fails as [`a_torn_read_is_never_believed`] does.
#[test]
fn history_is_whole_or_gone() {
    explore(3, || {
        let (region, mut writer, _readers) = full_log(1);
        let looking = thread::spawn(move || {
            let view = LogView::attach(&region).unwrap();
            let mut found = Vec::new();
            if let Some(kind) = view.read_at(START, &mut found) {
                assert_eq!(
                    (kind, &found[..]),
                    (record_of(START).0, &record_of(START).1[..])
                );
            }
        });
        append(&mut writer, |_| ());
        append(&mut writer, |_| ());
        looking.join().unwrap();
    });
}

/// Fails, as a deadlock, if the fence is taken out of `Sleeper::may_sleep` or of `wake::announce`,
/// or if the look after the announcement is left out.
#[test]
fn no_wake_up_of_a_reader_is_lost() {
    explore(3, || {
        let region = heap_log(CAPACITY, 1, START);
        let mut reader = LogReader::join(region.clone(), 0).unwrap();
        let mut writer = LogWriter::open(region, Duration::ZERO).unwrap();
        writer.attach_reader(0).unwrap();
        let bell = Arc::new(Notify::new());
        let ringing = Arc::clone(&bell);
        let reading = thread::spawn(move || {
            let mut count = 0;
            while count < 2 {
                count += reader.read(usize::MAX, |_| ()).unwrap();
                if count < 2 && reader.may_sleep() {
                    bell.wait();
                    reader.awake();
                }
            }
        });
        append(&mut writer, |_| ringing.notify());
        append(&mut writer, |_| ringing.notify());
        reading.join().unwrap();
    });
}

/// One record for each of a reader that becomes interested when it was asleep already, and of one
/// in the same word that ceases to be. Fails, as a deadlock, if either fence of `wake.rs` is taken
/// out, or if a bit is changed by a load and a store.
#[test]
fn no_wake_up_is_lost_by_who_has_just_become_interested() {
    const TOPIC: Topic = Topic::of(7);
    explore(2, || {
        let region = heap_log(CAPACITY, 2, START);
        let mut reader = LogReader::join(region.clone(), 0).unwrap();
        let fickle = LogReader::join(region.clone(), 1).unwrap();
        let mut interest = reader.interest().unwrap();
        let mut other = fickle.interest().unwrap();
        other.add(TOPIC);
        let mut writer = LogWriter::open(region, Duration::ZERO).unwrap();
        writer.attach_reader(0).unwrap();
        let bell = Arc::new(Notify::new());
        let ringing = Arc::clone(&bell);
        let reading = thread::spawn(move || {
            interest.add(TOPIC);
            let mut count = 0;
            while count < 1 {
                count += reader.read(usize::MAX, |_| ()).unwrap();
                if count < 1 && reader.may_sleep() {
                    bell.wait();
                    reader.awake();
                }
            }
        });
        let leaving = thread::spawn(move || other.remove(TOPIC));
        let mut batch = writer.batch().unwrap();
        let (kind, payload) = record_of(batch.end());
        batch
            .push_for(Audience::Interested(TOPIC), kind, &[&payload])
            .unwrap();
        batch.prepare().commit(|_| ringing.notify());
        reading.join().unwrap();
        leaving.join().unwrap();
    });
}

fn request(id: u64) -> Request<'static> {
    let (tags, data) = (&[][..], &[][..]);
    Request {
        id,
        want_reply: true,
        json: false,
        idempotency: 5,
        channel: "",
        tags,
        data,
        ..Request::default()
    }
}

/// Both ends sleep whenever they have nothing to do. Fails, as a deadlock, if either lane loses a
/// wake-up, and if a tail is stored with less than release.
#[test]
fn every_request_is_taken_once_and_replied_to() {
    const REQUESTS: u64 = 2;
    explore(2, || {
        let region = heap_uplink(1024, START);
        let mut producer = UplinkProducer::attach(region.clone()).unwrap();
        let mut consumer = UplinkConsumer::attach(region).unwrap();
        let (requests, replies) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (ring_requests, ring_replies) = (Arc::clone(&requests), Arc::clone(&replies));
        let consuming = thread::spawn(move || {
            let mut next = 0;
            while next < REQUESTS {
                let mut ids = Vec::new();
                let taken = consumer.read(usize::MAX, |found, _| {
                    assert_eq!(found, request(next));
                    ids.push(found.id);
                    next += 1;
                    ControlFlow::Continue(())
                });
                if taken == Ok(0) && consumer.may_sleep() {
                    requests.wait();
                    consumer.awake();
                }
                for id in ids {
                    consumer
                        .reply(&Reply {
                            id,
                            status: 0,
                            epoch: 1,
                            offset: id,
                        })
                        .unwrap();
                    if consumer.flush() {
                        ring_replies.notify();
                    }
                }
                consumer.release(consumer.position());
            }
        });
        for id in 0..REQUESTS {
            if producer.publish(&request(id)).unwrap() {
                ring_requests.notify();
            }
        }
        let mut next = 0;
        while next < REQUESTS {
            let count = producer.replies(|reply| {
                assert_eq!((reply.id, reply.offset), (next, next));
                next += 1;
            });
            if count == Ok(0) && producer.may_sleep() {
                replies.wait();
                producer.awake();
            }
        }
        consuming.join().unwrap();
    });
}
