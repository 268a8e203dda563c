//! Either side ends at any step: what it did not own is not lost, and what it owned is counted.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use tidegate_engine::handoff::Order;

use crate::clients::Uni;
use crate::house::{House, Pair, UPGRADE, channel, connect, read_until, settings};

/// More than a batch.
const CROWD: usize = 300;
const ALL: Order = Order { id: 1, count: None };

/// Subscribers of one channel, connected and greeted.
fn crowd(pair: &mut Pair, count: usize) -> Vec<Uni> {
    pair.serve(|house| {
        let one = |_| Uni::connect(&house, r#"{"public:a":{}}"#).0;
        (0..count).map(one).collect()
    })
}

fn is_open(client: &Uni) -> bool {
    let stream = client.0.get_ref();
    stream.set_nonblocking(true).unwrap();
    let is_open = match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).unwrap();
    is_open
}

#[test]
fn a_receiver_killed_at_any_step_takes_along_only_what_it_owned() {
    for steps in 0..9 {
        let mut pair = Pair::open();
        let mut clients = crowd(&mut pair, CROWD);
        pair.begin_move(0, None);
        for _ in 0..steps {
            pair.turn();
        }
        pair.publish("public:a", "1");
        let adopted = pair.count(1, "handoff_adopted_total") as usize;
        pair.kill(1);
        let mut over = None;
        pair.turn_until("the giver's report", |pair| {
            over = over.or(pair.handed_over(0));
            over.is_some()
        });
        let over = over.unwrap();
        assert_eq!(
            (over.moved, over.kept, over.lost),
            (adopted, CROWD - adopted, 0)
        );
        assert_eq!(
            over.reason == "done",
            adopted == CROWD,
            "after {steps} steps"
        );
        pair.publish("public:a", "2");
        let goes_on = pair.serve(|_| {
            let mut goes_on = 0;
            for client in &mut clients {
                if !is_open(client) {
                    continue;
                }
                assert_eq!(client.next_publication().1, 1);
                assert_eq!(client.next_publication().1, 2);
                goes_on += 1;
            }
            goes_on
        });
        assert_eq!(goes_on, over.kept, "after {steps} steps");
        let taken_back = pair.count(0, "handoff_taken_back_total") as usize;
        assert!(taken_back <= over.kept && pair.websockets(0) as usize == over.kept);
    }
}

#[test]
fn a_giver_killed_at_any_step_takes_along_only_what_it_had_not_sent() {
    for steps in 0..9 {
        let mut pair = Pair::open();
        let mut clients = crowd(&mut pair, CROWD);
        pair.begin_move(0, None);
        // The giver is ahead, so that batches wait in the socket when it dies.
        for step in 0..steps {
            pair.worker(0).turn().unwrap();
            if step % 3 == 0 {
                pair.worker(1).turn().unwrap();
            }
        }
        pair.kill(0);
        let mut adopted = None;
        pair.turn_until("the receiver's report", |pair| {
            adopted = adopted.or(pair.adopted(1));
            adopted.is_some()
        });
        let adopted = adopted.unwrap();
        pair.publish("public:a", "1");
        let goes_on = pair.serve(|_| {
            let mut goes_on = 0;
            for client in &mut clients {
                if is_open(client) {
                    assert_eq!(client.next_publication().1, 1);
                    goes_on += 1;
                }
            }
            goes_on
        });
        assert_eq!(goes_on, adopted.count, "after {steps} steps");
        assert_eq!(pair.websockets(1) as usize, adopted.count);
        assert!(adopted.reason == "giver_gone" || adopted.count == CROWD);
    }
}

#[test]
fn who_has_no_room_refuses_and_the_giver_keeps_them() {
    let mut pair = Pair::with(|slot| {
        let mut settings = settings(slot);
        settings.connections_max = if slot == 0 { 1000 } else { 100 };
        settings
    });
    let mut clients = crowd(&mut pair, CROWD);
    let (over, adopted) = pair.move_all(0);
    assert_eq!(
        (over.moved, over.kept, over.reason),
        (100, CROWD - 100, "full")
    );
    assert_eq!(adopted.count, 100);
    pair.publish("public:a", "1");
    pair.serve(|_| {
        for client in &mut clients {
            assert_eq!(client.next_publication().1, 1);
        }
    });
}

#[test]
fn only_as_many_are_moved_as_were_ordered() {
    let mut pair = Pair::open();
    let _clients = crowd(&mut pair, 300);
    pair.begin_move(0, Some(100));
    let (over, adopted) = pair.finish_move(0);
    assert_eq!((over.moved, over.kept, adopted.count), (100, 0, 100));
    pair.turn();
    assert_eq!((pair.websockets(0), pair.websockets(1)), (200, 100));
}

#[test]
fn one_giving_at_a_time() {
    let mut pair = Pair::open();
    let _clients = crowd(&mut pair, 3);
    pair.begin_move(0, None);
    let (ours, _theirs) = channel();
    pair.give(0, ours, None);
    let busy = pair.handed_over(0).unwrap();
    assert_eq!((busy.moved, busy.kept, busy.reason), (0, 3, "busy"));
    assert_eq!(pair.finish_move(0).0.moved, 3);
}

#[test]
fn what_is_no_socket_moves_nobody() {
    let mut pair = Pair::open();
    let mut clients = crowd(&mut pair, 3);
    let file = || std::fs::File::open("/dev/null").unwrap().into();
    pair.give(0, file(), None);
    pair.worker(1).adopt(file(), 1);
    let (over, adopted) = pair.finish_move(0);
    assert_eq!((over.moved, over.kept, over.reason), (0, 3, "system"));
    assert_eq!((adopted.count, adopted.reason), (0, "system"));
    let unconnected = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into();
    pair.give(0, unconnected(), None);
    pair.worker(1).adopt(unconnected(), 1);
    let (over, _) = pair.finish_move(0);
    assert_eq!((over.moved, over.kept), (0, 3));
    pair.publish("public:a", "1");
    pair.serve(|_| {
        for client in &mut clients {
            assert_eq!(client.next_publication().1, 1);
        }
    });
}

fn request(house: House) -> TcpStream {
    let mut stream = connect(house.http);
    stream.write_all(UPGRADE).unwrap();
    stream
}

#[test]
fn who_waits_in_the_queue_of_a_worker_that_leaves_is_accepted_before() {
    let mut pair = Pair::open();
    let mut early = request(pair.house);
    let (ours, theirs) = channel();
    pair.worker(0).hand_over(ours, ALL, false, true);
    pair.worker(1).adopt(theirs, 1);
    let (over, _) = pair.finish_move(0);
    assert_eq!((over.moved, over.reason), (1, "done"));
    let response = pair.serve(|_| read_until(&mut early, b"\r\n\r\n"));
    assert!(response.starts_with(b"HTTP/1.1 101 "));
}

#[test]
fn a_worker_that_was_told_to_go_on_accepts_again() {
    let mut pair = Pair::open();
    let (ours, theirs) = channel();
    pair.worker(0).hand_over(ours, ALL, false, false);
    let mut late = request(pair.house);
    drop(theirs);
    pair.turn_until("the giver's report", |pair| pair.handed_over(0).is_some());
    late.set_nonblocking(true).unwrap();
    for _ in 0..50 {
        pair.turn();
    }
    assert_eq!(
        late.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    late.set_nonblocking(false).unwrap();
    pair.worker(0).resume().unwrap();
    let response = pair.serve(|_| read_until(&mut late, b"\r\n\r\n"));
    assert!(response.starts_with(b"HTTP/1.1 101 "));
}
