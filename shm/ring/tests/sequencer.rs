//! The publisher's loop over memory that an earlier publisher left at every stage of a batch.

#![cfg(not(loom))]

mod support;

use std::time::Duration;

use support::publisher::{CAPACITY, ask, attach, counted, new_uplink, open, replies, segments};
use tidegate_ring::channels::{ChannelTable, ChannelWriter, Horizon};
use tidegate_ring::history::{HistoryStore, recover};
use tidegate_ring::log::{LogReader, LogView, LogWriter};
use tidegate_ring::publication::{NO_PREVIOUS, PublicationView, RECORD_KIND, Source};
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::Segments;
use tidegate_ring::uplink::{self, UplinkProducer};

/// What a publisher does until it is killed: appends a publication for each (position, channel),
/// and more of the steps after that, the later it is killed.
fn half_a_batch(segments: &Segments, requests: &[(u64, &str)], stage: Stage) {
    let mut log = LogWriter::open(segments.log.clone(), Duration::ZERO).unwrap();
    let mut table = ChannelWriter::open(segments.channels.clone()).unwrap();
    let horizon = Horizon {
        tail: log.view().tail(),
        capacity: CAPACITY,
    };
    let mut batch = log.batch().unwrap();
    for &(position, channel) in requests {
        let key = table.table().key(channel);
        let place = table.place(key, horizon, |_| false).unwrap();
        let source = Source {
            uplink: 1,
            generation: 7,
            position,
        };
        let view = PublicationView {
            key,
            epoch: place.epoch,
            offset: place.offset,
            previous: place.previous,
            source,
            ..support::publication(channel, b"{}")
        };
        let at = batch.push(RECORD_KIND, &[&view.encode()]).unwrap();
        table.advance(place, at);
    }
    if stage == Stage::Appended {
        return;
    }
    let prepared = batch.prepare();
    if stage == Stage::Prepared {
        return;
    }
    table.store();
    if stage == Stage::Stored {
        return;
    }
    prepared.commit(|_| ());
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Appended,
    Prepared,
    Stored,
    Committed,
}

/// The positions after each of three requests, and their uplink.
fn three_requests() -> (Region, UplinkProducer, Vec<u64>) {
    let region = new_uplink(7);
    let mut producer = UplinkProducer::attach(region.clone()).unwrap();
    for (id, channel) in [(1, "a"), (2, ""), (3, "a")] {
        ask(&mut producer, id, channel);
    }
    let mut consumer = uplink::UplinkConsumer::attach(region.clone()).unwrap();
    let mut positions = Vec::new();
    let read = consumer.read(10, |_, position| {
        positions.push(position);
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(read, Ok(3));
    (region, producer, positions)
}

#[test]
fn wherever_a_publisher_died_each_request_is_published_and_answered_once() {
    for stage in [
        Stage::Appended,
        Stage::Prepared,
        Stage::Stored,
        Stage::Committed,
    ] {
        let segments = segments();
        let mut reader = LogReader::join(segments.log.clone(), 0).unwrap();
        let (region, mut producer, positions) = three_requests();
        half_a_batch(
            &segments,
            &[(positions[0], "a"), (positions[2], "a")],
            stage,
        );
        let mut sequencer = open(&segments, &[1]);
        attach(&mut sequencer, 1, &region);
        sequencer.drain().unwrap();
        let answers: Vec<_> = replies(&mut producer)
            .iter()
            .map(|reply| (reply.id, reply.status, reply.offset))
            .collect();
        // The second request is malformed: its answer is not in the log, it is found again.
        assert_eq!(answers, [(1, 0, 1), (2, 107, 0), (3, 0, 2)], "{stage:?}");
        let mut offsets = Vec::new();
        let read = reader.read(10, |record| {
            offsets.extend(PublicationView::parse(record.payload).map(|view| view.offset));
        });
        assert_eq!((read, offsets), (Ok(2), vec![1, 2]), "{stage:?}");
        let again = if stage == Stage::Appended { 0 } else { 2 };
        let name = "publisher_answered_again_total";
        assert_eq!(counted(&segments, name), again, "{stage:?}");
        ask(&mut producer, 4, "a");
        sequencer.drain().unwrap();
        assert_eq!(replies(&mut producer)[0].offset, 3, "{stage:?}");
    }
}

#[test]
fn nothing_is_taken_before_every_awaited_uplink_is_back() {
    let segments = segments();
    let (region, mut first, positions) = three_requests();
    half_a_batch(&segments, &[(positions[0], "a")], Stage::Committed);
    let other = new_uplink(8);
    let mut second = UplinkProducer::attach(other.clone()).unwrap();
    ask(&mut second, 1, "b");
    let mut sequencer = open(&segments, &[1, 2]);
    attach(&mut sequencer, 2, &other);
    sequencer.drain().unwrap();
    assert_eq!(replies(&mut second), []);
    drop(sequencer);
    // It died again; what it knew of the unanswered is still to be found.
    let mut sequencer = open(&segments, &[1, 2]);
    attach(&mut sequencer, 2, &other);
    attach(&mut sequencer, 1, &region);
    sequencer.drain().unwrap();
    assert_eq!(replies(&mut second)[0].offset, 1);
    let offsets: Vec<_> = replies(&mut first)
        .iter()
        .map(|reply| reply.offset)
        .collect();
    assert_eq!(offsets, [1, 0, 2]);
}

#[test]
fn an_uplink_that_is_gone_holds_up_nobody() {
    let segments = segments();
    let other = new_uplink(8);
    let mut producer = UplinkProducer::attach(other.clone()).unwrap();
    ask(&mut producer, 1, "b");
    let mut sequencer = open(&segments, &[1, 2]);
    attach(&mut sequencer, 2, &other);
    sequencer.detach_uplink(1).unwrap();
    sequencer.drain().unwrap();
    assert_eq!(replies(&mut producer)[0].offset, 1);
}

/// A producer can write every word of its uplink, also those that are the publisher's.
#[test]
fn a_producer_that_moves_the_publishers_head_does_not_pile_up_answers() {
    const TAIL_AT: usize = 4096;
    const HEAD_AT: usize = TAIL_AT + 128;
    let segments = segments();
    let mut sequencer = open(&segments, &[]);
    let region = new_uplink(7);
    attach(&mut sequencer, 1, &region);
    let mut producer = UplinkProducer::attach(region.clone()).unwrap();
    ask(&mut producer, 1, "a");
    region.store(HEAD_AT, region.load(TAIL_AT));
    sequencer.drain().unwrap();
    assert_eq!(replies(&mut producer).len(), 1);
}

#[test]
fn history_gives_what_was_missed_for_as_long_as_the_log_holds_it() {
    let segments = segments();
    let region = new_uplink(1);
    let mut producer = UplinkProducer::attach(region.clone()).unwrap();
    let mut sequencer = open(&segments, &[]);
    attach(&mut sequencer, 1, &region);
    let table = ChannelTable::attach(segments.channels.clone()).unwrap();
    let view = LogView::attach(&segments.log).unwrap();
    let store = HistoryStore::attach(segments.history.clone()).unwrap();
    let key = table.key("a");
    let history = |since_offset, top, count_max, bytes_max| {
        recover(&view, &store, key, since_offset, top, count_max, bytes_max)
    };
    let since = |offset| history(offset, table.top(key).unwrap(), 50, usize::MAX);
    let mut lost_before = 0;
    for id in 1..2_000_u64 {
        ask(&mut producer, id, if id % 3 == 0 { "b" } else { "a" });
        sequencer.drain().unwrap();
        replies(&mut producer);
        let top = table.top(key).unwrap().offset;
        let payloads = since(top.saturating_sub(40)).unwrap();
        let offsets: Vec<u64> = payloads
            .iter()
            .map(|payload| PublicationView::parse(payload).unwrap().offset)
            .collect();
        let first = top.saturating_sub(40) + 1;
        assert_eq!(offsets, (first..=top).collect::<Vec<_>>());
        assert_eq!(since(top), Some(Vec::new()));
        assert_eq!(since(top + 1), None, "that is the future");
        if id % 20 != 0 {
            continue;
        }
        let unlimited = history(0, table.top(key).unwrap(), usize::MAX, usize::MAX);
        lost_before += u64::from(unlimited.is_none());
        assert!(unlimited.is_none_or(|payloads| payloads.len() as u64 == top));
    }
    assert!(lost_before > 25, "the log was overwritten many times");
    assert_eq!(since(0), None, "more than the limit");
    let mut top = table.top(key).unwrap();
    let two = since(top.offset - 2).unwrap();
    let bytes = two.iter().map(Vec::len).sum();
    let within = |bytes_max| history(top.offset - 2, top, 50, bytes_max);
    assert_eq!((within(bytes), within(bytes - 1)), (Some(two), None));
    top.last_position = NO_PREVIOUS;
    assert_eq!(history(top.offset - 1, top, 50, usize::MAX), None);
}
