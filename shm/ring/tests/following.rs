//! What follows the log: history, presence and versions, as requests change them through the
//! publisher, and as the next publisher finds them.
#![cfg(not(loom))]

mod support;

use support::publisher::{attach, counted, new_uplink, open, presence_request, replies, segments};
use tidegate_ring::channels::{ChannelKey, ChannelTable, Top};
use tidegate_ring::entry::{
    EVENT_KIND, EmulationView, Entry, OrderView, PRESENCE_KIND, REMOVAL_KIND,
};
use tidegate_ring::history::{HistoryStore, recover};
use tidegate_ring::log::{LogReader, LogView};
use tidegate_ring::presence::PresenceTable;
use tidegate_ring::publication::{PublicationView, RECORD_KIND, Version};
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::{Segments, Sequencer};
use tidegate_ring::uplink::{Reply, Request, RequestKind, UplinkProducer};

const UPLINKS: usize = 3;

/// A publisher with three uplinks, and everything that reads what it writes.
struct House {
    segments: Segments,
    sequencer: Option<Sequencer>,
    uplinks: Vec<Region>,
    producers: Vec<UplinkProducer>,
    reader: LogReader,
    log: LogView,
    channels: ChannelTable,
    history: HistoryStore,
    presence: PresenceTable,
    last_id: u64,
}

impl House {
    fn new() -> House {
        let segments = segments();
        let uplinks: Vec<Region> = (0..UPLINKS)
            .map(|place| new_uplink(place as u64 + 1))
            .collect();
        let producer = |region: &Region| UplinkProducer::attach(region.clone()).unwrap();
        let mut house = House {
            sequencer: None,
            producers: uplinks.iter().map(producer).collect(),
            uplinks,
            reader: LogReader::join(segments.log.clone(), 0).unwrap(),
            log: LogView::attach(&segments.log).unwrap(),
            channels: ChannelTable::attach(segments.channels.clone()).unwrap(),
            history: HistoryStore::attach(segments.history.clone()).unwrap(),
            presence: PresenceTable::attach(segments.presence.clone()).unwrap(),
            segments,
            last_id: 0,
        };
        house.restart();
        house
    }

    /// The publisher is gone; another one takes over.
    fn restart(&mut self) {
        self.sequencer = None;
        let mut sequencer = open(&self.segments, &[1, 2, 3]);
        for (place, region) in self.uplinks.iter().enumerate() {
            attach(&mut sequencer, place as u32 + 1, region);
        }
        self.sequencer = Some(sequencer);
    }

    fn sequencer(&mut self) -> &mut Sequencer {
        self.sequencer.as_mut().unwrap()
    }

    /// Asks through an uplink, and takes the answer.
    fn ask(&mut self, uplink: usize, request: &Request<'_>) -> Reply {
        self.hand_over(uplink, request);
        self.sequencer().drain().unwrap();
        let found = replies(&mut self.producers[uplink - 1]);
        assert_eq!(found.len(), 1);
        found[0]
    }

    fn hand_over(&mut self, uplink: usize, request: &Request<'_>) {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            want_reply: true,
            ..*request
        };
        self.producers[uplink - 1].publish(&request).unwrap();
    }

    fn publish(&mut self, channel: &str, data: &str) -> Reply {
        self.ask(1, &publish(channel, data))
    }

    /// Kinds of the records since the last look.
    fn kinds(&mut self) -> Vec<u32> {
        let mut kinds = Vec::new();
        self.reader
            .read(usize::MAX, |record| kinds.push(record.kind))
            .unwrap();
        kinds
    }

    /// What the records since the last look make known of joins and leaves: client, joined, told.
    fn events(&mut self) -> Vec<(u8, bool, bool)> {
        let mut events = Vec::new();
        let read = self.reader.read(usize::MAX, |record| {
            match Entry::parse(record.kind, record.payload) {
                Some(Entry::Event(event)) => events.push((event.client[0], event.joined, true)),
                Some(Entry::Presence(event)) => events.push((event.client[0], event.joined, false)),
                other => panic!("{other:?}"),
            }
        });
        read.unwrap();
        events
    }

    fn key(&self, channel: &str) -> ChannelKey {
        self.channels.key(channel)
    }

    fn top(&self, channel: &str) -> Top {
        self.channels.top(self.key(channel)).unwrap()
    }

    /// Offsets that the store has of a channel.
    fn kept(&self, channel: &str) -> Vec<u64> {
        let (key, top) = (self.key(channel), self.top(channel));
        let found = self
            .history
            .read(key, top, None, usize::MAX, false, usize::MAX);
        offsets(&found.map_or_else(Vec::new, |stretch| stretch.payloads))
    }

    fn recovered(&self, channel: &str, since: u64) -> Option<Vec<u64>> {
        let (key, top) = (self.key(channel), self.top(channel));
        let found = recover(&self.log, &self.history, key, since, top, 100, usize::MAX);
        found.map(|payloads| offsets(&payloads))
    }

    fn stats(&self, channel: &str) -> (u32, u32) {
        self.presence.stats(self.key(channel))
    }
}

fn publish<'a>(channel: &'a str, data: &'a str) -> Request<'a> {
    Request {
        channel,
        data: data.as_bytes(),
        json: true,
        ..Request::default()
    }
}

fn offsets(payloads: &[Vec<u8>]) -> Vec<u64> {
    let views = payloads
        .iter()
        .map(|payload| PublicationView::parse(payload).unwrap());
    views.map(|view| view.offset).collect()
}

#[test]
fn a_history_is_kept_whatever_other_channels_publish() {
    let mut house = House::new();
    for number in 1..=5 {
        house.publish("kept:a", &number.to_string());
    }
    let flood = "x".repeat(5_000);
    for _ in 0..50 {
        house.publish("flood", &format!("\"{flood}\""));
    }
    assert_eq!(
        house.kept("kept:a"),
        [3, 4, 5],
        "the log has long been overwritten"
    );
    assert_eq!(house.recovered("kept:a", 2), Some(vec![3, 4, 5]));
    assert_eq!(house.recovered("kept:a", 1), None, "2 is not kept any more");
    house.restart();
    assert_eq!(house.kept("kept:a"), [3, 4, 5]);
    assert_eq!(house.publish("kept:a", "6").offset, 6);
    assert_eq!(house.kept("kept:a"), [4, 5, 6]);
    assert_eq!(counted(&house.segments, "history_publications"), 3);
}

#[test]
fn a_channel_with_a_history_is_not_forgotten_for_another() {
    let mut house = House::new();
    let epoch = house.publish("kept:a", "1").epoch;
    let mut refused = 0;
    // Many more channels than the table holds, each of them soon out of the log.
    let flood = format!("\"{}\"", "x".repeat(5_000));
    for channel in 0..400 {
        refused += house.publish(&format!("other:{channel}"), &flood).status;
    }
    assert!(counted(&house.segments, "channel_evictions_total") > 200);
    let next = house.publish("kept:a", "2");
    assert_eq!((refused, next.epoch, next.offset), (0, epoch, 2));
    assert_eq!(house.kept("kept:a"), [1, 2]);
}

#[test]
fn what_the_store_never_had_is_recovered_from_the_log() {
    let mut house = House::new();
    house.publish("free", "1");
    house.publish("free", "2");
    assert!(house.kept("free").is_empty());
    assert_eq!(house.recovered("free", 0), Some(vec![1, 2]));
    // A publication too long for the store is in the log alone: what follows it is in both.
    house.publish("kept:a", "1");
    let long = "x".repeat(7_900);
    assert_eq!(house.publish("kept:a", &format!("\"{long}\"")).offset, 2);
    house.publish("kept:a", "3");
    assert_eq!(
        counted(
            &house.segments,
            "history_dropped_total{reason=\"too_large\"}"
        ),
        1
    );
    assert_eq!(house.recovered("kept:a", 1), Some(vec![2, 3]));
    assert_eq!(
        house.recovered("kept:a", 0),
        None,
        "1 was kept, and a hole lies behind it"
    );
}

#[test]
fn a_removed_history_is_gone_from_the_log_too() {
    let mut house = House::new();
    house.publish("kept:a", "1");
    house.publish("kept:a", "2");
    let remove = Request {
        kind: RequestKind::HistoryRemove,
        channel: "kept:a",
        ..Request::default()
    };
    assert_eq!(house.ask(2, &remove).status, 0);
    assert!(house.kept("kept:a").is_empty());
    assert_eq!(house.recovered("kept:a", 0), None);
    assert_eq!(house.recovered("kept:a", 2), Some(vec![]));
    assert_eq!(house.publish("kept:a", "3").offset, 3, "offsets go on");
    assert_eq!(house.recovered("kept:a", 2), Some(vec![3]));
    assert_eq!(
        house.kinds(),
        [RECORD_KIND, RECORD_KIND, REMOVAL_KIND, RECORD_KIND]
    );
}

#[test]
fn what_is_too_old_goes_without_traffic() {
    let mut house = House::new();
    house.publish("kept:a", "1");
    let published_ms = {
        let found = house.history.read(
            house.key("kept:a"),
            house.top("kept:a"),
            None,
            9,
            false,
            999,
        );
        PublicationView::parse(&found.unwrap().payloads[0])
            .unwrap()
            .time_ms
    };
    house.sequencer().expire(published_ms + 10_000);
    assert_eq!(house.kept("kept:a"), [1]);
    house.sequencer().expire(published_ms + 10_001);
    assert!(house.kept("kept:a").is_empty());
    assert_eq!(counted(&house.segments, "history_expired_total"), 1);
    assert_eq!(counted(&house.segments, "history_bytes"), 0);
}

#[test]
fn a_publication_without_history_has_no_place() {
    let mut house = House::new();
    house.publish("kept:a", "1");
    let request = Request {
        skip_history: true,
        delta: true,
        ..publish("kept:a", "2")
    };
    let reply = house.ask(1, &request);
    assert_eq!((reply.status, reply.offset), (0, 0));
    assert_eq!(house.publish("kept:a", "3").offset, 2);
    assert_eq!(house.kept("kept:a"), [1, 2]);
    let mut seen = Vec::new();
    house
        .reader
        .read(9, |record| {
            let view = PublicationView::parse(record.payload).unwrap();
            seen.push((view.offset, view.delta, view.kept));
        })
        .unwrap();
    assert_eq!(seen, [(1, false, true), (0, true, false), (2, false, true)]);
}

#[test]
fn an_older_version_is_answered_but_not_published() {
    let mut house = House::new();
    let publish = |house: &mut House, number, skip_history| {
        let request = Request {
            version: Version { number, epoch: 0 },
            skip_history,
            ..publish("doc", "{}")
        };
        let reply = house.ask(1, &request);
        (reply.status, reply.offset)
    };
    assert_eq!(publish(&mut house, 5, false), (0, 1));
    assert_eq!(publish(&mut house, 5, false), (0, 1), "no newer");
    assert_eq!(publish(&mut house, 4, false), (0, 1), "older");
    assert_eq!(publish(&mut house, 0, false), (0, 2), "without a version");
    house.restart();
    assert_eq!(publish(&mut house, 5, false), (0, 2), "still known");
    assert_eq!(
        publish(&mut house, 6, true),
        (0, 0),
        "without history it counts too"
    );
    house.restart();
    assert_eq!(publish(&mut house, 6, false), (0, 2));
    assert_eq!(publish(&mut house, u64::MAX, false), (0, 3));
    assert_eq!(house.kinds().len(), 4);
    assert_eq!(
        counted(&house.segments, "publishes_total{outcome=\"superseded\"}"),
        1
    );
}

#[test]
fn versions_are_compared_within_their_epoch_whoever_publishes() {
    let mut house = House::new();
    let publish = |house: &mut House, number, epoch, skip_history| {
        let request = Request {
            version: Version { number, epoch },
            skip_history,
            ..publish("doc", "{}")
        };
        house.ask(1, &request).offset
    };
    assert_eq!(publish(&mut house, 5, 1, false), 1);
    assert_eq!(publish(&mut house, 5, 1, false), 1, "no newer");
    house.restart();
    assert_eq!(publish(&mut house, 4, 1, false), 1, "older, still");
    assert_eq!(publish(&mut house, 4, 0, false), 1, "of no name: of any");
    assert_eq!(publish(&mut house, 1, 2, false), 2, "another count");
    assert_eq!(publish(&mut house, 0, 0, false), 3, "without a version");
    house.restart();
    assert_eq!(publish(&mut house, 1, 2, false), 3);
    assert_eq!(publish(&mut house, 2, 2, true), 0);
    assert_eq!(publish(&mut house, 2, 2, false), 3);
    assert_eq!(publish(&mut house, 5, 1, false), 4, "it is not remembered");
}

#[test]
fn orders_and_emulation_reach_all_workers_once_in_order() {
    let mut house = House::new();
    let order = Request {
        kind: RequestKind::Order,
        data: b"{}",
        ..Request::default()
    };
    let emulation = Request {
        kind: RequestKind::Emulate,
        json: true,
        client: Some([9; 16]),
        data: b"[]",
        ..Request::default()
    };
    assert_eq!(
        (house.ask(1, &order).status, house.ask(3, &emulation).status),
        (0, 0)
    );
    let bad = Request {
        data: b"\xff",
        ..order
    };
    assert_eq!(house.ask(1, &bad).status, 107);
    assert_eq!(
        house
            .ask(
                1,
                &Request {
                    client: None,
                    ..emulation
                }
            )
            .status,
        107
    );
    let mut seen = 0;
    let read = house.reader.read(9, |record| {
        match (seen, Entry::parse(record.kind, record.payload).unwrap()) {
            (0, Entry::Order(OrderView { json, .. })) => assert_eq!(json, b"{}"),
            (1, Entry::Emulation(view)) => {
                let EmulationView {
                    session,
                    protobuf,
                    data,
                    source,
                } = view;
                assert_eq!((session, protobuf, data), ([9; 16], false, &b"[]"[..]));
                assert_eq!(source.uplink, 3);
            }
            (_, other) => panic!("{other:?}"),
        }
        seen += 1;
    });
    assert_eq!(read, Ok(2));
}

#[test]
fn joins_and_leaves_are_counted_and_told_once() {
    let mut house = House::new();
    let info: [&[u8]; 3] = [b"", b"\x0a\x01u\x12\x011", b"\x0a\x01u\x12\x012"];
    let join =
        |client: u8| presence_request(RequestKind::Join, 0, "a", client, info[usize::from(client)]);
    let leave = |client| presence_request(RequestKind::Leave, 0, "a", client, b"");
    assert_eq!(house.ask(1, &join(1)).status, 0);
    assert_eq!(house.ask(1, &join(1)).status, 0, "a repeat changes nothing");
    assert_eq!(house.ask(2, &join(2)).status, 0);
    assert_eq!(house.stats("a"), (2, 1), "two clients of one user");
    assert_eq!(house.events(), [(1, true, true), (2, true, true)]);
    house.restart();
    assert_eq!(house.stats("a"), (2, 1));
    assert_eq!(
        house.presence.members(house.key("a"), 9),
        [info[2], info[1]]
    );
    house.ask(2, &leave(1));
    assert_eq!(
        house.stats("a"),
        (2, 1),
        "only its owner says that it is gone"
    );
    house.ask(1, &leave(1));
    house.ask(1, &leave(1));
    assert_eq!(house.stats("a"), (1, 1));
    house.ask(2, &leave(2));
    assert_eq!(house.stats("a"), (0, 0));
    assert_eq!(house.events(), [(1, false, true), (2, false, true)]);
}

#[test]
fn a_client_that_changes_twice_in_a_batch_ends_as_it_was_last_said() {
    let mut house = House::new();
    let join = presence_request(RequestKind::Join, 0, "a", 1, b"\x0a\x01u");
    let leave = presence_request(RequestKind::Leave, 0, "a", 1, b"");
    for request in [&join, &leave, &join, &leave, &join] {
        house.hand_over(1, request);
    }
    house.sequencer().drain().unwrap();
    assert_eq!(replies(&mut house.producers[0]).len(), 5);
    assert_eq!(house.stats("a"), (1, 1));
    let told: Vec<bool> = house.events().iter().map(|event| event.1).collect();
    assert_eq!(told, [true, false, true, false, true]);
}

#[test]
fn the_clients_of_a_lost_worker_leave_and_those_that_moved_stay() {
    let mut house = House::new();
    let join = |client| presence_request(RequestKind::Join, 0, "a", client, b"\x0a\x01u");
    for client in 1..=4 {
        house.ask(1, &join(client));
    }
    let silent = Request {
        announce: false,
        ..join(4)
    };
    house.ask(
        1,
        &Request {
            client: Some([5; 16]),
            ..silent
        },
    );
    house.events();
    // Client 2 has moved to another worker, which has said so, but nobody has read it yet.
    let moved = Request {
        quiet: true,
        ..join(2)
    };
    house.hand_over(2, &moved);
    house.sequencer().detach_uplink(1).unwrap();
    let mut events = house.events();
    events.sort_unstable();
    let gone = [
        (1, false, true),
        (2, true, false),
        (3, false, true),
        (4, false, true),
    ];
    assert_eq!(events, [&gone[..], &[(5, false, false)]].concat());
    assert_eq!(house.stats("a"), (1, 1));
    house.sequencer().detach_uplink(2).unwrap();
    assert_eq!(
        (house.stats("a"), house.events()),
        ((0, 0), vec![(2, false, true)])
    );
    let left = "presence_leaves_total{cause=\"worker_gone\"}";
    assert_eq!(counted(&house.segments, left), 5);
}

#[test]
fn more_clients_than_a_batch_holds_leave_with_their_worker() {
    let mut house = House::new();
    let info = [&b"\x1a\xf4\x03"[..], &[b'x'; 500]].concat();
    for client in 0..60 {
        let join = presence_request(RequestKind::Join, 0, "a", client, &info);
        assert_eq!(house.ask(1, &join).status, 0);
        house.kinds();
    }
    house.sequencer().detach_uplink(1).unwrap();
    assert_eq!(house.stats("a"), (0, 0));
    assert_eq!(house.kinds(), [EVENT_KIND; 60]);
}

#[test]
fn a_join_that_finds_no_room_is_refused_and_counted() {
    let mut house = House::new();
    let info = [&b"\x1a\xf4\x03"[..], &[b'x'; 500]].concat();
    let join = |client| presence_request(RequestKind::Join, 0, "a", client, &info);
    let full = (0..255)
        .find(|client| house.ask(1, &join(*client)).status != 0)
        .unwrap();
    assert_eq!(house.ask(1, &join(full)).status, 106);
    assert_eq!(house.stats("a").0, u32::from(full));
    assert_eq!(
        counted(&house.segments, "presence_joins_total{outcome=\"full\"}"),
        2
    );
    house.kinds();
    let moved = Request {
        quiet: true,
        ..join(0)
    };
    assert_eq!(house.ask(2, &moved).status, 0, "a move needs no room");
    assert_eq!(house.kinds(), [PRESENCE_KIND]);
    let leave = presence_request(RequestKind::Leave, 0, "a", 0, b"");
    house.ask(2, &leave);
    assert_eq!(house.ask(1, &join(full)).status, 0);
}
