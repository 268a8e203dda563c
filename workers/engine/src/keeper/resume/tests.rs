//! Wherever a worker dies, the rest of a stream follows from what it had put down.

use proptest::prelude::*;
use tidegate_ring::channels::{ChannelWriter, Horizon};
use tidegate_ring::layout::Owner;
use tidegate_ring::log::LogWriter;
use tidegate_ring::publication::{Source, Version};
use tidegate_ring::{channels, log};

use super::*;
use crate::handoff::record;
use crate::protocol::format::Format;
use crate::protocol::tcp::{Flow, FlowState, SERVER_WINDOW, Window};
use crate::sending::Buffers;

const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};
const SECOND_NS: u64 = 1_000_000_000;

fn segments() -> (Region, Region) {
    let log = Region::heap(log::segment_bytes(1 << 16, 1, 1));
    log::format(&log, 1 << 16, 1, 1, 0, OWNER).unwrap();
    let table = Region::heap(channels::segment_bytes(16).unwrap());
    channels::format(&table, 16, OWNER).unwrap();
    (log, table)
}

fn places() -> Places {
    let (log, table) = segments();
    Places::attach(&log, table).unwrap()
}

fn record(speech: Speech) -> Record {
    let format = match speech {
        Speech::Tcp { .. } => Format::Tcp,
        _ => Format::UniWebSocket,
    };
    Record {
        phase: Phase::Open,
        pinged: false,
        deaf: false,
        hang_up: false,
        turned_away: false,
        native_pings: false,
        client: [7; 16],
        connected_ms: 1,
        detached_ns: SECOND_NS,
        timers: Timers {
            due_ms: 5000,
            probe_ms: 4000,
            probe_interval_ms: 25_000,
            silence_max_ms: 8000,
            heard_ms: 100,
            soft_ms: None,
        },
        subscriptions: Vec::new(),
        queue: Vec::new(),
        head_sent_bytes: 0,
        input: b"beginning".to_vec(),
        speech,
        format,
        log_position: None,
        identity: None,
    }
}

fn kept(record: &Record, frames: &[Vec<u8>], head_sent_bytes: u32) -> Kept {
    let mut blob = 100u32.to_le_bytes().to_vec();
    record::encode(record, &mut blob);
    let frame = |bytes: &Vec<u8>| KeptFrame {
        channel: None,
        bytes: bytes.clone(),
    };
    Kept {
        descriptor: 9,
        // So that the count wraps.
        sent_bytes: u32::MAX - 1,
        frames: frames.iter().map(frame).collect(),
        head_sent_bytes,
        position: 0,
        owes: false,
        blob,
    }
}

fn counted(sent: usize) -> Counted {
    Counted {
        sent_bytes: (u32::MAX - 1).wrapping_add(sent as u32),
        received_bytes: 100,
    }
}

fn resumed(kept: Kept, sent: usize) -> Result<Resumed, Loss> {
    resume(kept, 0, counted(sent), &mut places(), 2 * SECOND_NS)
}

/// All that a record of the WebSocket dialect has still to send.
fn rest(record: &Record) -> Vec<u8> {
    let bytes: Vec<u8> = record
        .queue
        .iter()
        .flat_map(|each| each.bytes.clone())
        .collect();
    bytes[record.head_sent_bytes as usize..].to_vec()
}

/// Frames that a connection of the binary protocol makes of its messages, window or not.
fn stream(tcp: &mut Tcp, outbox: &mut Outbox) -> Vec<u8> {
    let mut all = std::mem::take(&mut tcp.wire);
    loop {
        tcp.fill(outbox, &mut Buffers::default());
        if tcp.wire.is_empty() {
            return all;
        }
        all.append(&mut tcp.wire);
    }
}

fn tcp(flow: FlowState, wire: Vec<u8>) -> Tcp {
    Tcp {
        flow: Flow::from(flow),
        reassembly: Reassembly::default(),
        wire,
        publishes: 0,
    }
}

fn flow(crc: bool, scale: u8) -> FlowState {
    FlowState {
        in_flight: vec![10, 20],
        sent_seq: 77,
        received_seq: 5,
        told_seq: 5,
        received_unacked_bytes: 0,
        own: SERVER_WINDOW,
        peer: Window { size: 6000, scale },
        connected: true,
        greeted: true,
        crc,
    }
}

fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_websocket_goes_on_with_the_very_next_byte(
        frames in frames(), begun in 0usize..100, cut in any::<prop::sample::Index>(),
    ) {
        let begun = begun.min(frames.first().map_or(0, |head| head.len() - 1));
        let all: Vec<u8> = frames.concat()[begun..].to_vec();
        let cut = cut.index(all.len() + 1);
        let whole = record(Speech::WebSocket(None));
        let resumed = resumed(kept(&whole, &frames, begun as u32), cut).unwrap();
        prop_assert_eq!(resumed.loss, None);
        prop_assert_eq!(rest(&resumed.record), &all[cut..]);
        prop_assert_eq!(&resumed.record.input, &whole.input);
    }

    #[test]
    fn a_binary_connection_goes_on_with_the_very_next_byte(
        frames in frames(), crc in any::<bool>(), scale in 0u8..3,
        wire in prop::collection::vec(any::<u8>(), 0..50), cut in any::<prop::sample::Index>(),
    ) {
        let mut outbox = Outbox::default();
        frames.iter().for_each(|bytes| outbox.push(Frame::new(&bytes[..])));
        let all = stream(&mut tcp(flow(crc, scale), wire.clone()), &mut outbox);
        let cut = cut.index(all.len() + 1);
        let speech = Speech::Tcp { flow: flow(crc, scale), pieces: Vec::new(), wire };
        let resumed = resumed(kept(&record(speech), &frames, 0), cut).unwrap();
        let Speech::Tcp { flow, wire, .. } = resumed.record.speech else {
            return Err(TestCaseError::fail("another dialect"));
        };
        let mut left = Outbox::default();
        for Queued { bytes, .. } in resumed.record.queue {
            left.push(Frame::new(bytes));
        }
        left.advance(resumed.record.head_sent_bytes as usize);
        prop_assert_eq!(stream(&mut tcp(flow, wire), &mut left), &all[cut..]);
    }
}

#[test]
fn more_sent_than_there_was_is_not_gone_on_with() {
    let frames = [b"frame".to_vec()];
    let whole = record(Speech::WebSocket(None));
    assert_eq!(resumed(kept(&whole, &frames, 2), 4), Err(Loss::Output));
    assert_eq!(
        resumed(kept(&whole, &frames, 2), usize::MAX),
        Err(Loss::Output)
    );
    let speech = Speech::Tcp {
        flow: flow(true, 0),
        pieces: Vec::new(),
        wire: b"12".to_vec(),
    };
    assert_eq!(resumed(kept(&record(speech), &[], 0), 3), Err(Loss::Output));
}

#[test]
fn whoever_was_read_from_without_effect_is_told_to_come_back_after_the_frame_begun() {
    let frames = [b"first".to_vec(), b"second".to_vec()];
    let mut kept = kept(&record(Speech::WebSocket(None)), &frames, 0);
    kept.owes = true;
    let Resumed { record, loss } = resumed(kept.clone(), 2).unwrap();
    assert_eq!((loss, record.phase), (Some(Loss::Answer), Phase::Closing));
    assert_eq!((record.queue.len(), record.head_sent_bytes), (2, 2));
    assert_eq!(
        record.queue[1].bytes,
        Format::UniWebSocket.goodbye(&Close::Shutdown.into())
    );
    assert!(record.deaf && record.input.is_empty());
    let counted = Counted {
        received_bytes: 101,
        ..counted(5)
    };
    let lost = resume(kept, 0, counted, &mut places(), SECOND_NS).unwrap();
    assert_eq!((lost.loss, lost.record.queue.len()), (Some(Loss::Input), 1));
}

#[test]
fn time_goes_on_while_nobody_serves() {
    let timers = resumed(kept(&record(Speech::Http), &[], 0), 0)
        .unwrap()
        .record
        .timers;
    assert_eq!(
        (timers.due_ms, timers.probe_ms, timers.heard_ms),
        (4000, 3000, 1100)
    );
}

#[test]
fn a_connection_that_has_said_goodbye_and_finished_is_closed_still() {
    let mut closing = record(Speech::WebSocket(None));
    closing.phase = Phase::Closing;
    // The FIN counts as a byte.
    let resumed = resumed(kept(&closing, &[b"bye".to_vec()], 0), 4).unwrap();
    assert_eq!((resumed.loss, resumed.record.queue.len()), (None, 0));
}

/// A log of so many publications of one channel, and where each begins.
fn published(count: u64) -> (Places, Vec<u64>) {
    const WHOLE: Horizon = Horizon {
        tail: 0,
        capacity: u64::MAX,
    };
    let (log, table) = segments();
    let places = Places::attach(&log, table.clone()).unwrap();
    let mut channels = ChannelWriter::open(table).unwrap();
    let mut log = LogWriter::open(log, Duration::from_secs(1)).unwrap();
    let key = places.table.key("public:a");
    let mut positions = Vec::new();
    for _ in 0..count {
        let place = channels.place(key, WHOLE, |_| false).unwrap();
        let publication = PublicationView {
            key,
            epoch: place.epoch,
            offset: place.offset,
            previous: place.previous,
            time_ms: 0,
            source: Source {
                uplink: 1,
                generation: 1,
                position: 0,
            },
            idempotency: None,
            version: Version::NONE,
            except: None,
            channel: "public:a",
            json: true,
            delta: false,
            kept: false,
            tags: b"",
            info: b"",
            data: b"1",
        };
        let mut batch = log.batch().unwrap();
        let position = batch.push(RECORD_KIND, &[&publication.encode()]).unwrap();
        batch.prepare().commit(|_| ());
        channels.advance(place, position);
        channels.store();
        positions.push(position);
    }
    (places, positions)
}

#[test]
fn a_subscription_has_what_lies_before_the_position_that_all_had_come_to() {
    let (mut places, positions) = published(5);
    let epoch = places.table.epoch_now();
    let mut come_to = |offset, epoch, position| {
        let mut subscription = Position {
            channel: "public:a".to_string(),
            epoch,
            offset,
        };
        places.advance(&mut subscription, position);
        (subscription.epoch, subscription.offset)
    };
    assert_eq!(come_to(1, epoch, positions[3]), (epoch, 3));
    assert_eq!(come_to(1, epoch, positions[4] + 16), (epoch, 5));
    assert_eq!(come_to(0, epoch, positions[0]), (epoch, 0));
    // It was told of more when it subscribed than its worker had read by then.
    assert_eq!(come_to(4, epoch, positions[1]), (epoch, 4));
    // Another life of the channel: it is for the receiver to say that something is lost.
    assert_eq!(come_to(9, epoch + 1, positions[3]), (epoch + 1, 9));
    assert_eq!(come_to(0, epoch + 1, positions[3]), (epoch, 3));
}

#[test]
fn a_place_that_nobody_can_tell_any_more_is_a_gap_and_never_a_repetition() {
    let (mut places, positions) = published(5000);
    let epoch = places.table.epoch_now();
    // Long overwritten.
    let mut subscription = Position {
        channel: "public:a".to_string(),
        epoch,
        offset: 0,
    };
    places.advance(&mut subscription, positions[3]);
    assert!(subscription.epoch != epoch && subscription.offset > 0);
    let mut untouched = Position {
        channel: "public:never".to_string(),
        epoch,
        offset: 0,
    };
    places.advance(&mut untouched, positions[3]);
    assert_eq!((untouched.epoch, untouched.offset), (epoch, 0));
}

#[test]
fn the_later_of_two_positions_is_found_across_the_wrap() {
    assert_eq!(later(5, 9), 9);
    assert_eq!(later(u64::MAX - 15, 16), 16);
    assert_eq!(later(16, u64::MAX - 15), 16);
}
