//! One side is the test itself, which says what it likes and when.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tidegate_engine::handoff::message::{MESSAGE_BYTES_MAX, Message, Refusal};
use tidegate_engine::handoff::{HandedOver, record};
use tidegate_engine::sys::passing::{self, Received};
use tidegate_ring::keep::{self, KeepView, KeepWriter};
use tidegate_ring::layout::Owner;
use tidegate_ring::region::Region;

use crate::clients::Uni;
use crate::house::{Pair, channel};

const HELLO: Message = Message::Hello {
    version: record::VERSION,
    oldest: record::VERSION_OLDEST,
    room: 1000,
};

struct Peer(OwnedFd);

impl Peer {
    fn say(&self, message: &Message, passed: &[BorrowedFd<'_>]) {
        passing::send(self.0.as_fd(), &message.encode(), passed).unwrap();
    }

    fn try_hear(&self) -> Option<(Option<Message>, Received)> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let received = passing::receive(self.0.as_fd(), &mut buffer).ok()?;
        Some((Message::parse(&buffer[..received.bytes]), received))
    }

    /// The next message, which a turn of the worker at the other end brings.
    fn hear(&self, pair: &mut Pair) -> (Message, Vec<OwnedFd>) {
        let mut heard = None;
        pair.turn_until("a message", |_| {
            heard = self.try_hear();
            heard.is_some()
        });
        let (message, received) = heard.unwrap();
        (message.unwrap(), received.descriptors)
    }

    fn is_closed(&self, pair: &mut Pair) -> bool {
        let mut heard = None;
        pair.turn_until("the end", |_| {
            heard = self.try_hear();
            heard.is_some()
        });
        heard.unwrap().1.bytes == 0
    }
}

fn subscribers(pair: &mut Pair, count: usize) -> Vec<Uni> {
    pair.serve(|house| {
        let one = |_| Uni::connect(&house, r#"{"public:a":{}}"#).0;
        (0..count).map(one).collect()
    })
}

/// A giver whose receiver is the test.
fn giver(pair: &mut Pair) -> Peer {
    let (ours, theirs) = channel();
    pair.give(0, theirs, None);
    Peer(ours)
}

fn report(pair: &mut Pair) -> HandedOver {
    let mut over = None;
    pair.turn_until("the giver's report", |pair| {
        over = pair.handed_over(0);
        over.is_some()
    });
    over.unwrap()
}

fn all_go_on(pair: &mut Pair, clients: &mut [Uni]) {
    let offset = pair.publish("public:a", "1");
    pair.serve(|_| {
        for client in clients {
            let (_, found, _) = client.next_publication();
            assert_eq!(found, offset);
        }
    });
}

#[test]
fn a_receiver_that_goes_at_any_word_leaves_everything_with_the_giver() {
    let mut pair = Pair::open();
    let mut clients = subscribers(&mut pair, 3);
    for step in 0..4 {
        let peer = giver(&mut pair);
        if step >= 1 {
            peer.say(&HELLO, &[]);
        }
        if step >= 2 {
            assert!(matches!(peer.hear(&mut pair).0, Message::Hello { .. }));
        }
        if step >= 3 {
            let (message, descriptors) = peer.hear(&mut pair);
            assert_eq!(
                message,
                Message::Batch {
                    number: 1,
                    count: 3
                }
            );
            assert_eq!(descriptors.len(), 4);
        }
        drop(peer);
        let over = report(&mut pair);
        assert_eq!(
            (over.moved, over.kept, over.reason),
            (0, 3, "receiver_gone")
        );
        all_go_on(&mut pair, &mut clients);
    }
}

/// A worker's keep, as it is read when the worker is dead.
fn kept(pair: &mut Pair) -> KeepView {
    const SLOTS: u64 = 64;
    const ARENA_BYTES: u64 = 1 << 16;
    let owner = Owner {
        generation: 1,
        pid: 1,
        start: 1,
    };
    let (bytes, _) = keep::segment_bytes(SLOTS, ARENA_BYTES).unwrap();
    let region = Region::heap(bytes);
    keep::format(&region, SLOTS, ARENA_BYTES, owner).unwrap();
    let writer = KeepWriter::attach(region.clone(), None).unwrap();
    pair.worker(0).survive(writer);
    KeepView::attach(region).unwrap()
}

#[test]
fn who_is_let_go_of_and_cannot_be_sent_yet_is_not_said_to_have_what_is_published_meanwhile() {
    let mut pair = Pair::open();
    let keep = kept(&mut pair);
    let mut clients = subscribers(&mut pair, 3);
    let (ours, theirs) = channel();
    let stuffing = theirs.try_clone().unwrap();
    pair.give(0, theirs, None);
    let peer = Peer(ours);
    assert!(matches!(peer.hear(&mut pair).0, Message::Hello { .. }));
    while passing::send(stuffing.as_fd(), b"x", &[]).is_ok() {}
    drop(stuffing);
    peer.say(&HELLO, &[]);
    pair.turn_until("them to be let go of", |pair| pair.websockets(0) == 0);
    let settled = keep.settled();
    let offset = pair.publish("public:a", "1");
    for _ in 0..10 {
        pair.turn();
    }
    assert_eq!(
        keep.settled(),
        settled,
        "a keeper would skip what they did not get"
    );
    drop(peer);
    let over = report(&mut pair);
    assert_eq!((over.moved, over.kept), (0, 3));
    pair.serve(|_| {
        for client in &mut clients {
            assert_eq!(client.next_publication().1, offset);
        }
    });
    pair.turn_until("the keep to go on", |_| keep.settled() != settled);
}

#[test]
fn an_acknowledgement_counts_even_if_the_receiver_has_left_a_batch_unread() {
    let mut pair = Pair::open();
    let mut clients = subscribers(&mut pair, 480);
    let peer = giver(&mut pair);
    peer.say(&HELLO, &[]);
    peer.hear(&mut pair);
    let (message, adopted) = peer.hear(&mut pair);
    assert_eq!(
        message,
        Message::Batch {
            number: 1,
            count: 240
        }
    );
    peer.say(
        &Message::Ack {
            number: 1,
            refused: vec![(0, Refusal::Full)],
        },
        &[],
    );
    for _ in 0..3 {
        pair.worker(1).turn().unwrap();
    }
    drop(peer);
    let over = report(&mut pair);
    assert_eq!((over.moved, over.kept, over.lost), (239, 241, 0));
    drop(adopted);
    pair.publish("public:a", "1");
    let goes_on = pair.serve(|_| {
        let mut goes_on = 0;
        for client in &mut clients {
            goes_on += usize::from(client.0.read().is_ok());
        }
        goes_on
    });
    assert_eq!(goes_on, 241);
}

#[test]
fn nothing_is_given_to_a_receiver_of_another_make() {
    let mut pair = Pair::open();
    let mut clients = subscribers(&mut pair, 3);
    let later = Message::Hello {
        version: record::VERSION + 2,
        oldest: record::VERSION + 1,
        room: 1000,
    };
    let strange = Message::Fin;
    for greeting in [later, strange] {
        let peer = giver(&mut pair);
        peer.say(&greeting, &[]);
        let over = report(&mut pair);
        assert_eq!((over.moved, over.kept, over.reason), (0, 3, "incompatible"));
        assert!(matches!(peer.hear(&mut pair).0, Message::Hello { .. }));
        assert_eq!(peer.hear(&mut pair).0, Message::Fin);
        assert!(peer.is_closed(&mut pair));
        all_go_on(&mut pair, &mut clients);
    }
}

#[test]
fn a_receiver_that_breaks_the_protocol_is_waited_for_and_what_it_had_is_lost() {
    let mut pair = Pair::open();
    let clients = subscribers(&mut pair, 3);
    let peer = giver(&mut pair);
    peer.say(&HELLO, &[]);
    peer.hear(&mut pair);
    let (_, descriptors) = peer.hear(&mut pair);
    let never_sent = Message::Ack {
        number: 9,
        refused: Vec::new(),
    };
    peer.say(&never_sent, &[]);
    for _ in 0..20 {
        pair.turn();
    }
    assert!(pair.handed_over(0).is_none(), "it may own them");
    drop((peer, descriptors));
    let over = report(&mut pair);
    assert_eq!((over.moved, over.kept, over.lost), (0, 0, 3));
    pair.turn();
    assert_eq!(pair.count(0, "handoff_lost_total"), 3);
    drop(clients);
}

#[test]
fn a_giver_of_another_make_or_without_sense_is_not_listened_to() {
    let mut pair = Pair::open();
    let later = Message::Hello {
        version: record::VERSION + 1,
        oldest: record::VERSION,
        room: 0,
    };
    let conversations = [
        (vec![later], "incompatible"),
        (vec![Message::Fin], "incompatible"),
        (vec![HELLO, HELLO], "protocol"),
        (vec![HELLO, Message::Fin], "done"),
        (vec![HELLO], "giver_gone"),
        (vec![], "giver_gone"),
    ];
    for (messages, reason) in conversations {
        let (ours, theirs) = channel();
        pair.worker(1).adopt(theirs, 1);
        let peer = Peer(ours);
        for message in &messages {
            peer.say(message, &[]);
        }
        drop(peer);
        let mut adopted = None;
        pair.turn_until("the receiver's report", |pair| {
            adopted = pair.adopted(1);
            adopted.is_some()
        });
        let adopted = adopted.unwrap();
        assert_eq!((adopted.count, adopted.reason), (0, reason), "{messages:?}");
    }
}

#[test]
fn a_batch_that_is_not_what_it_says_is_refused_whole() {
    let mut pair = Pair::open();
    let (ours, theirs) = channel();
    pair.worker(1).adopt(theirs, 1);
    let peer = Peer(ours);
    peer.say(&HELLO, &[]);
    peer.hear(&mut pair);
    let socket = std::net::TcpStream::connect(pair.house.http).unwrap();
    let empty = passing::sealed_memory(record::Writer::default().bytes()).unwrap();
    let garbage = passing::sealed_memory(b"garbage").unwrap();
    let unsealed = std::fs::File::open("/dev/null").unwrap();
    let batches: [(u32, Vec<BorrowedFd<'_>>); 5] = [
        (1, vec![]),
        (1, vec![empty.as_fd()]),
        (1, vec![empty.as_fd(), socket.as_fd()]),
        (2, vec![garbage.as_fd(), socket.as_fd(), socket.as_fd()]),
        (1, vec![unsealed.as_fd(), socket.as_fd()]),
    ];
    for (place, (count, passed)) in batches.iter().enumerate() {
        let number = place as u32 + 1;
        let count = *count;
        peer.say(&Message::Batch { number, count }, passed);
        let refused = (0..count as u16)
            .map(|place| (place, Refusal::Malformed))
            .collect();
        assert_eq!(peer.hear(&mut pair).0, Message::Ack { number, refused });
    }
    pair.turn();
    assert_eq!(
        pair.count(1, r#"handoff_refused_total{reason="malformed"}"#),
        6
    );
    assert_eq!(pair.websockets(1), 0);
}
