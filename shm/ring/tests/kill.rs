//! Real processes, killed with SIGKILL at random points; whoever comes after has to find the shared
//! memory usable and consistent.
//!
//! A role runs in a child: see `support/victim.rs`.
#![cfg(not(loom))]

mod support;

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use support::victim::{PATIENCE, Role, Victim, memory, until};
use support::{OWNER, Random};
use tidegate_ring::error::UplinkError;
use tidegate_ring::keep::{self, Damage, Entry, KeepView, KeepWriter, State};
use tidegate_ring::log::{self, LogReader, LogWriter};
use tidegate_ring::region::Region;
use tidegate_ring::uplink::{self, Reply, Request, UplinkConsumer, UplinkProducer};
use tidegate_ring::wake::Bell;

const LOG_CAPACITY: u64 = 64 * 1024;
const UPLINK_CAPACITY: u64 = 16 * 1024;
const LAG_BUDGET: Duration = Duration::from_millis(20);

const WRITER_DEATHS: usize = 120;
const READER_DEATHS: usize = 80;
const UPLINK_DEATHS: usize = 60;
const WORKER_DEATHS: usize = 150;

const KEEP_SLOTS: u64 = 64;
const KEEP_ARENA: u64 = 64 * 1024;

/// Not a test: what a child process does, for ever.
#[test]
fn child_role() {
    let Some(Role {
        name,
        regions,
        ready,
        argument,
    }) = Role::of_this_process()
    else {
        return;
    };
    let region = regions[0].clone();
    match name.as_str() {
        "writer" => write_for_ever(region, argument, &ready),
        "reader" => read_for_ever(region, argument as u32, &ready),
        "producer" => produce_for_ever(region, argument, &ready),
        "consumer" => consume_for_ever(region, &ready),
        "worker" => keep_for_ever(region, argument, &ready),
        _ => panic!("no such role: {name}"),
    }
}

fn shared_log() -> (OwnedFd, Region) {
    let (fd, region) = memory(log::segment_bytes(LOG_CAPACITY, 2, 1).next_multiple_of(4096));
    log::format(&region, LOG_CAPACITY, 2, 1, 0u64.wrapping_sub(256), OWNER).unwrap();
    (fd, region)
}

fn shared_uplink() -> (OwnedFd, Region) {
    let (fd, region) = memory(uplink::segment_bytes(UPLINK_CAPACITY).next_multiple_of(4096));
    uplink::format(&region, UPLINK_CAPACITY, 0u64.wrapping_sub(256), OWNER).unwrap();
    (fd, region)
}

/// A record that can be checked: a number, and bytes that follow from it.
fn numbered(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let bytes = random.below(700);
    [&number.to_le_bytes()[..], &random.bytes(bytes)].concat()
}

/// The number of a record; panics if a byte of it is wrong.
fn number_of(payload: &[u8]) -> u64 {
    let number = u64::from_le_bytes(payload[..8].try_into().expect("a number"));
    assert_eq!(payload, numbered(number), "a damaged record");
    number
}

/// Appends a batch of records from number `next` on; `pause` is called at every stage.
fn append(writer: &mut LogWriter, random: &mut Random, next: &mut u64, pause: fn()) {
    let mut batch = writer.batch().unwrap();
    for _ in 0..1 + random.below(20) {
        let payload = numbered(*next);
        let (first, last) = payload.split_at(random.below(payload.len()));
        if batch.push(1, &[first, last]).is_err() {
            break;
        }
        *next += 1;
        pause();
    }
    let prepared = batch.prepare();
    pause();
    prepared.commit(|_| ());
    pause();
}

/// Makes each stage long enough to be killed in.
fn linger() {
    for _ in 0..500 {
        std::hint::spin_loop();
    }
}

/// Reads what is there; every record has to be intact and the next one.
fn follow(reader: &mut LogReader, next: &mut u64) -> usize {
    let shown = reader.read(usize::MAX, |record| {
        assert_eq!(number_of(record.payload), *next, "a hole or a repeat");
        *next += 1;
    });
    shown.expect("the writer waits for this reader")
}

fn write_for_ever(region: Region, first: u64, ready: &Bell) {
    let mut writer = LogWriter::open(region, PATIENCE).unwrap();
    writer.attach_reader(0).unwrap();
    let (mut next, mut random) = (first, Random(first ^ u64::from(std::process::id())));
    loop {
        append(&mut writer, &mut random, &mut next, linger);
        if random.below(2) == 0 {
            writer.set_answered();
        }
        ready.ring();
    }
}

#[test]
fn a_writer_killed_anywhere_leaves_a_log_that_its_successor_continues() {
    let (fd, region) = shared_log();
    let mut reader = LogReader::join(region.clone(), 0).unwrap();
    let (mut next, mut random, mut redone) = (0, Random(1), 0);
    for _ in 0..WRITER_DEATHS {
        let victim = Victim::start("writer", &[&fd], next);
        victim.await_ready();
        victim.live(&mut random, || {
            follow(&mut reader, &mut next);
            next
        });
        drop(victim);
        while follow(&mut reader, &mut next) > 0 {}

        let mut writer = LogWriter::open(region.clone(), PATIENCE).expect("a usable log");
        writer.attach_reader(0).unwrap();
        let mut last = None;
        writer
            .unanswered(|record| last = Some(number_of(record.payload)))
            .unwrap();
        assert!(
            last.is_none_or(|last| last + 1 == next),
            "the newest is among the unanswered"
        );
        if let Some(prepared) = writer.redo() {
            let mut expected = next;
            let count = prepared.records(|record| {
                assert_eq!(number_of(record.payload), expected, "a hole or a repeat");
                expected += 1;
            });
            prepared.commit(|_| ());
            assert_eq!(Ok(follow(&mut reader, &mut next)), count);
            redone += 1;
        }
        let mut expected = next;
        append(&mut writer, &mut random, &mut expected, || ());
        follow(&mut reader, &mut next);
        assert_eq!(next, expected);
        writer.set_answered();
    }
    assert!(redone > 0, "no writer died between prepare and commit");
}

/// Follows the log; being lapped is allowed, a damaged record is not.
fn read_for_ever(region: Region, seat: u32, ready: &Bell) {
    let mut reader = LogReader::join(region, seat).unwrap();
    let mut next = None;
    ready.ring();
    loop {
        let shown = reader.read(usize::MAX, |record| {
            let number = number_of(record.payload);
            assert!(next.is_none_or(|next| next == number), "a hole or a repeat");
            next = Some(number + 1);
        });
        if shown.is_err() {
            reader.rejoin();
            next = None;
            ready.ring();
        }
    }
}

#[test]
fn a_reader_killed_anywhere_holds_up_nobody() {
    let (fd, region) = shared_log();
    let mut witness = LogReader::join(region.clone(), 0).unwrap();
    let mut writer = LogWriter::open(region, LAG_BUDGET).unwrap();
    writer.attach_reader(0).unwrap();
    let (mut next, mut seen, mut random) = (0, 0, Random(2));
    let mut moments = Random(6);
    for death in 0..READER_DEATHS {
        let victim = Victim::start("reader", &[&fd], 1);
        writer.attach_reader(1).unwrap();
        victim.await_ready();
        victim.live(&mut moments, || {
            append(&mut writer, &mut random, &mut next, || ());
            follow(&mut witness, &mut seen);
            next
        });
        drop(victim);
        let evictions = writer.evictions();
        // Half of them are noticed by nobody: the lag budget does it.
        if death % 2 == 0 {
            writer.detach_reader(1).unwrap();
        }
        let lap = writer.view().tail().wrapping_add(2 * LOG_CAPACITY);
        while lap.wrapping_sub(writer.view().tail()) <= 2 * LOG_CAPACITY {
            append(&mut writer, &mut random, &mut next, || ());
            follow(&mut witness, &mut seen);
        }
        assert!(writer.evictions() - evictions <= (death % 2) as u64);
        assert_eq!(seen, next);
    }
}

#[test]
fn a_stopped_reader_is_evicted_and_told_while_the_others_go_on() {
    let (fd, region) = shared_log();
    let mut witness = LogReader::join(region.clone(), 0).unwrap();
    let mut writer = LogWriter::open(region, LAG_BUDGET).unwrap();
    writer.attach_reader(0).unwrap();
    writer.attach_reader(1).unwrap();
    let victim = Victim::start("reader", &[&fd], 1);
    victim.await_ready();
    victim.signal(libc::SIGSTOP);
    let (mut next, mut seen, mut random) = (0, 0, Random(3));
    let (began, mut appends) = (Instant::now(), 0);
    while writer.evictions() == 0 || appends < 2000 {
        append(&mut writer, &mut random, &mut next, || ());
        follow(&mut witness, &mut seen);
        assert!(began.elapsed() < PATIENCE, "nobody was evicted");
        appends += 1;
    }
    assert_eq!((writer.evictions(), seen), (1, next));
    victim.signal(libc::SIGCONT);
    // It rings when it has found out and rejoined.
    victim.await_ready();
}

/// Requests without end, each with its number.
fn produce_for_ever(region: Region, first: u64, ready: &Bell) {
    let mut producer = UplinkProducer::attach(region).unwrap();
    let mut next = first;
    loop {
        if publish(&mut producer, next) {
            next += 1;
            ready.ring();
        }
        producer
            .replies(|reply| assert_eq!(reply.offset, reply.id))
            .unwrap();
    }
}

fn publish(producer: &mut UplinkProducer, number: u64) -> bool {
    let data = numbered(number);
    let request = Request {
        id: number,
        want_reply: true,
        channel: "channel",
        data: &data,
        ..Request::default()
    };
    match producer.publish(&request) {
        Ok(_) => true,
        Err(UplinkError::Full) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_producer_killed_anywhere_leaves_an_uplink_that_its_successor_continues() {
    let (fd, region) = shared_uplink();
    let mut consumer = UplinkConsumer::attach(region).unwrap();
    let (mut next, mut random) = (0, Random(4));
    let mut consume = |next: &mut u64| {
        let taken = consumer.read(usize::MAX, |request, _| {
            assert_eq!(
                (request.id, number_of(request.data)),
                (*next, *next),
                "a hole or a repeat"
            );
            *next += 1;
            ControlFlow::Continue(())
        });
        for id in *next - taken.expect("whole requests") as u64..*next {
            // A dead producer reads no replies.
            let reply = consumer.reply(&Reply {
                id,
                status: 0,
                epoch: 0,
                offset: id,
            });
            assert!(matches!(reply, Ok(()) | Err(UplinkError::Full)));
        }
        consumer.flush();
        consumer.release(consumer.position());
    };
    for _ in 0..UPLINK_DEATHS {
        let victim = Victim::start("producer", &[&fd], next);
        victim.await_ready();
        victim.live(&mut random, || {
            consume(&mut next);
            next
        });
        drop(victim);
        consume(&mut next);
    }
}

fn consume_for_ever(region: Region, ready: &Bell) {
    let mut consumer = UplinkConsumer::attach(region).unwrap();
    loop {
        let mut ids = Vec::new();
        let taken = consumer.read(7, |request, _| {
            assert_eq!(number_of(request.data), request.id, "a damaged request");
            ids.push(request.id);
            ControlFlow::Continue(())
        });
        assert_eq!(taken, Ok(ids.len()));
        for id in ids {
            consumer
                .reply(&Reply {
                    id,
                    status: 0,
                    epoch: 0,
                    offset: id,
                })
                .unwrap();
        }
        consumer.flush();
        consumer.release(consumer.position());
        ready.ring();
    }
}

#[test]
fn each_request_has_its_reply_once_however_often_the_consumer_is_killed() {
    let (fd, region) = shared_uplink();
    let mut producer = UplinkProducer::attach(region).unwrap();
    let (mut sent, mut replied, mut random) = (0, 0, Random(5));
    let mut produce = |is_asking: bool| {
        if is_asking && publish(&mut producer, sent) {
            sent += 1;
        }
        let count = producer.replies(|reply| {
            assert_eq!(
                (reply.id, reply.offset),
                (replied, replied),
                "a reply lost or repeated"
            );
            replied += 1;
        });
        count.expect("whole replies");
        (producer.waiting(), replied)
    };
    for _ in 0..UPLINK_DEATHS {
        let victim = Victim::start("consumer", &[&fd], 0);
        victim.await_ready();
        victim.live(&mut random, || produce(true).1);
    }
    let last = Victim::start("consumer", &[&fd], 0);
    until("all replies", || produce(false).0 == 0);
    drop(last);
}

/// Puts connections down without end; all that is said of one follows from a number.
fn keep_for_ever(region: Region, seed: u64, ready: &Bell) {
    let mut writer = KeepWriter::attach(region, None).unwrap();
    let (mut random, mut number) = (Random(seed), 0u64);
    let mut taken = Vec::new();
    loop {
        number += 1;
        match random.below(8) {
            0 if !taken.is_empty() => {
                writer.free(taken.swap_remove(random.below(taken.len())));
                continue;
            }
            1 | 2 => taken.extend(writer.take_slot()),
            _ => {}
        }
        if taken.is_empty() {
            continue;
        }
        let slot = taken[random.below(taken.len())];
        let frames: Vec<_> = (0..number % 6)
            .map(|place| writer.put_frame(None, &numbered(number + place)).unwrap())
            .collect();
        let entry = Entry {
            descriptor: slot,
            sent_bytes: number as u32,
            frames: Some(&frames),
            head_sent_bytes: number as u32,
            position: number,
            owes: false,
            blob: Some(&numbered(number)),
        };
        writer.write(slot, &entry);
        writer.settle(number);
        ready.ring();
    }
}

#[test]
fn a_worker_killed_anywhere_leaves_a_keep_of_which_nothing_torn_is_believed() {
    let mut random = Random(7);
    let (mut held, mut torn) = (0, 0);
    for death in 0..WORKER_DEATHS {
        let (bytes, _) = keep::segment_bytes(KEEP_SLOTS, KEEP_ARENA).unwrap();
        let (fd, region) = memory(bytes);
        keep::format(&region, KEEP_SLOTS, KEEP_ARENA, OWNER).unwrap();
        let view = KeepView::attach(region).unwrap();
        let victim = Victim::start("worker", &[&fd], death as u64);
        victim.await_ready();
        victim.live(&mut random, || view.settled());
        drop(victim);
        let mut torn_here = 0;
        for slot in 0..view.slots() {
            match view.read(slot) {
                State::Held(kept) => {
                    let number = number_of(&kept.blob);
                    assert_eq!((kept.descriptor, kept.position), (slot, number));
                    assert_eq!(
                        (kept.sent_bytes, kept.head_sent_bytes),
                        (number as u32, number as u32)
                    );
                    let frames: Vec<_> = kept
                        .frames
                        .iter()
                        .map(|each| number_of(&each.bytes))
                        .collect();
                    assert_eq!(frames, (number..number + number % 6).collect::<Vec<_>>());
                    held += 1;
                }
                State::Damaged {
                    damage: Damage::Torn,
                    ..
                } => torn_here += 1,
                State::Damaged { damage, .. } => assert_eq!(damage, Damage::Overwritten),
                State::Free => {}
                State::Given { .. } => panic!("nothing was given"),
            }
        }
        assert!(torn_here <= 1, "more than the one that was being written");
        torn += torn_here;
    }
    assert!(
        held > WORKER_DEATHS && torn < WORKER_DEATHS,
        "{held} {torn}"
    );
}
