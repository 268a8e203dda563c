//! A connection in every state that it can be in is moved, and goes on to the byte.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use tidegate_engine::protocol::tcp::Kind;

use crate::clients::{Binary, Uni};
use crate::house::{Pair, UPGRADE, connect, read_until, settings};

/// A masked frame of a client, with a mask that changes nothing.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

const PING: u8 = 0x89;

#[test]
fn an_idle_subscriber_gets_the_next_publication_from_its_new_worker() {
    let mut pair = Pair::open();
    let (mut client, _) = pair.serve(|house| Uni::connect(&house, r#"{"public:a":{}}"#));
    pair.publish("public:a", "1");
    assert_eq!(pair.serve(|_| client.next_publication()).1, 1);
    let (over, adopted) = pair.move_all(0);
    assert_eq!(
        (over.moved, over.kept, over.lost, over.reason),
        (1, 0, 0, "done")
    );
    assert_eq!(
        (adopted.count, adopted.refused, adopted.reason),
        (1, 0, "done")
    );
    assert!(adopted.pause_us_max > 0 && adopted.pause_us_max < 60_000_000);
    pair.turn();
    assert_eq!((pair.websockets(0), pair.websockets(1)), (0, 1));
    assert_eq!(
        (
            pair.count(0, "subscriptions"),
            pair.count(1, "subscriptions")
        ),
        (0, 1)
    );
    pair.publish("public:a", "2");
    let push = pair.serve(|_| client.next_publication());
    assert_eq!(push, ("public:a".to_string(), 2, 2.into()));
    let (back, _) = pair.move_all(1);
    assert_eq!(back.moved, 1);
    pair.publish("public:a", "3");
    assert_eq!(pair.serve(|_| client.next_publication()).1, 3);
}

#[test]
fn what_is_published_while_nobody_owns_a_connection_is_caught_up_with() {
    let mut pair = Pair::open();
    let (mut websocket, _) = pair.serve(|house| Uni::connect(&house, r#"{"public:a":{}}"#));
    let (mut binary, alias) = pair.serve(|house| {
        let mut client = Binary::connect(&house, u16::MAX, true);
        let (alias, _) = client.subscribe("public:a");
        (client, alias)
    });
    pair.begin_move(0, None);
    pair.worker(1).turn().unwrap();
    while pair.count(0, "subscriptions") > 0 {
        pair.worker(0).turn().unwrap();
    }
    for number in 1..=120 {
        pair.publish("public:a", &number.to_string());
    }
    // More than one recovers by itself, and before the other worker has looked at the log.
    let (over, _) = pair.finish_move(0);
    assert_eq!(over.moved, 2);
    pair.publish("public:a", "121");
    pair.serve(|_| {
        for number in 1..=121 {
            assert_eq!(websocket.next_publication().1, number);
            let (from, _, data) = binary.next_message();
            assert_eq!(
                (from, data),
                (alias.clone(), number.to_string().into_bytes())
            );
        }
    });
}

#[test]
fn a_frame_half_received_is_finished_by_the_new_worker() {
    let mut pair = Pair::open();
    let (client, _) = pair.serve(|house| Uni::connect(&house, "{}"));
    let mut stream = client.0.into_inner();
    let before = pair.count(0, "received_bytes_total");
    let ping = masked(PING, b"half and half");
    stream.write_all(&ping[..9]).unwrap();
    pair.turn_until("half a frame", |pair| {
        pair.count(0, "received_bytes_total") == before + 9
    });
    pair.move_all(0);
    stream.write_all(&ping[9..]).unwrap();
    let pong = pair.serve(|_| read_until(&mut stream, b"half and half"));
    assert_eq!(pong, [&[0x8A, 13], &b"half and half"[..]].concat());
}

#[test]
fn bytes_that_wait_in_the_kernel_are_seen_by_the_new_worker() {
    let mut pair = Pair::open();
    let (client, _) = pair.serve(|house| Uni::connect(&house, "{}"));
    let mut stream = client.0.into_inner();
    pair.begin_move(0, None);
    pair.worker(1).turn().unwrap();
    while pair.websockets(0) > 0 {
        pair.worker(0).turn().unwrap();
    }
    stream.write_all(&masked(PING, b"meanwhile")).unwrap();
    pair.finish_move(0);
    let pong = pair.serve(|_| read_until(&mut stream, b"meanwhile"));
    assert_eq!(pong, [&[0x8A, 9], &b"meanwhile"[..]].concat());
}

#[test]
fn a_full_queue_and_the_frame_half_sent_go_along_byte_for_byte() {
    let mut pair = Pair::open();
    let (mut client, _) = pair.serve(|house| Uni::connect(&house, r#"{"public:a":{}}"#));
    let text = format!("\"{}\"", "x".repeat(30_000));
    let mut published = 0;
    // Until the socket takes no more and a good deal waits behind the frame that it took a part of.
    while pair.count(0, "queued_bytes") < 2_000_000 {
        published = pair.publish("public:a", &text);
        pair.turn();
    }
    let (over, _) = pair.move_all(0);
    assert_eq!(over.moved, 1);
    pair.turn();
    assert_eq!(pair.count(0, "queued_bytes"), 0);
    assert!(pair.count(1, "queued_bytes") > 1_000_000);
    pair.serve(|_| {
        for number in 1..=published {
            let (_, offset, data) = client.next_publication();
            assert_eq!((offset, data.as_str().unwrap().len()), (number, 30_000));
        }
    });
    pair.turn();
    assert_eq!(pair.count(1, "queued_bytes"), 0);
}

#[test]
fn a_message_half_received_in_fragments_and_the_handshake_go_along() {
    let mut pair = Pair::open();
    let mut stream = pair.serve(|house| house.websocket());
    stream
        .write_all(&masked(0x01, br#"{"subs":{"pub"#))
        .unwrap();
    pair.turn_until("a fragment", |pair| {
        pair.count(0, r#"received_total{kind="text"}"#) == 1
    });
    let (over, _) = pair.move_all(0);
    assert_eq!(over.moved, 1);
    stream.write_all(&masked(0x80, br#"lic:a":{}}}"#)).unwrap();
    let reply = pair.serve(|_| read_until(&mut stream, b"}}"));
    assert!(String::from_utf8_lossy(&reply).contains("public:a"));
}

#[test]
fn a_request_half_received_goes_along() {
    let mut pair = Pair::open();
    let mut stream = connect(pair.house.http);
    stream.write_all(&UPGRADE[..40]).unwrap();
    pair.turn_until("half a request", |pair| {
        pair.count(0, "received_bytes_total") == 40
    });
    pair.move_all(0);
    stream.write_all(&UPGRADE[40..]).unwrap();
    let response = pair.serve(|_| read_until(&mut stream, b"\r\n\r\n"));
    assert!(response.starts_with(b"HTTP/1.1 101 "));
}

#[test]
fn a_close_handshake_is_finished_by_the_new_worker() {
    let mut pair = Pair::open();
    let mut stream = pair.serve(|house| house.websocket());
    stream.write_all(&masked(0x81, b"no json")).unwrap();
    pair.turn_until("our goodbye", |pair| {
        pair.count(0, r#"closes_total{reason="bad_request"}"#) == 1
    });
    pair.turn();
    let (over, _) = pair.move_all(0);
    assert_eq!(over.moved, 1);
    assert_eq!(pair.websockets(1), 1);
    stream
        .write_all(&masked(0x88, &3501u16.to_be_bytes()))
        .unwrap();
    let mut rest = Vec::new();
    pair.serve(|_| stream.read_to_end(&mut rest).unwrap());
    pair.turn();
    assert_eq!(pair.websockets(1), 0);
    assert_eq!(
        pair.count(1, r#"closes_total{reason="bad_request"}"#),
        0,
        "counted once"
    );
    assert_eq!(pair.count(1, "close_timeouts_total"), 0);
}

#[test]
fn a_closed_window_and_frames_in_flight_go_along() {
    for crc in [false, true] {
        let mut pair = Pair::open();
        let mut client = pair.serve(|house| {
            let mut client = Binary::connect(&house, 1000, crc);
            client.subscribe("public:a");
            client
        });
        for number in 1..=100 {
            pair.publish("public:a", &format!("\"message {number:>20}\""));
        }
        pair.serve(|_| {
            // A window's worth is in flight and not acknowledged.
            for _ in 0..10 {
                client.next_message();
            }
        });
        assert_eq!(pair.move_all(0).0.moved, 1);
        pair.serve(|_| {
            client.send(Kind::Ack, &[]);
            for number in 11..=100 {
                let (_, _, data) = client.next_message();
                assert_eq!(data, format!("\"message {number:>20}\"").into_bytes());
                client.send(Kind::Ack, &[]);
            }
        });
    }
}

#[test]
fn a_publish_in_pieces_goes_along_and_its_alias_stays() {
    let mut pair = Pair::open();
    let (mut client, alias) = pair.serve(|house| {
        let mut client = Binary::connect(&house, u16::MAX, false);
        let (alias, _) = client.subscribe("public:a");
        (client, alias)
    });
    client.send(Kind::Publish, b"\x01\x05\x00\x08public:a\"be");
    pair.turn_until("a piece", |pair| {
        pair.count(0, r#"received_total{kind="frame"}"#) == 3
    });
    pair.move_all(0);
    client.send(Kind::Publish, b"\x00gun\"");
    pair.serve(|_| {
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (kind, payload) = client.next();
            if kind == Kind::Data {
                assert!(payload[1..].starts_with(&alias) && payload.ends_with(b"\"begun\""));
            }
            kinds.push(kind);
        }
        kinds.sort_by_key(|kind| *kind as u8);
        assert_eq!(kinds, [Kind::Data, Kind::Published]);
        client.send(Kind::Unsubscribe, &[&[6], &alias[..]].concat());
        assert_eq!(client.next().0, Kind::Unsubscribed);
    });
}

#[test]
fn a_connection_is_not_moved_before_its_publishes_are_answered() {
    let mut pair = Pair::open();
    let mut client = pair.serve(|house| Binary::connect(&house, u16::MAX, false));
    for request in 1..=50u8 {
        client.send(
            Kind::Publish,
            &[&[0, request, 0, 8], &b"public:a1"[..]].concat(),
        );
    }
    // Read, handed to the publisher and ordered to move in the same turn.
    pair.begin_move(0, None);
    for request in 51..=60u8 {
        client.send(
            Kind::Publish,
            &[&[0, request, 0, 8], &b"public:a1"[..]].concat(),
        );
    }
    let (over, _) = pair.finish_move(0);
    assert_eq!((over.moved, over.reason), (1, "done"));
    pair.serve(|_| {
        for request in 1..=60u8 {
            let (kind, payload) = client.next();
            assert_eq!((kind, payload[0]), (Kind::Published, request));
            assert_eq!(
                *payload.last().unwrap(),
                request,
                "published once, in order"
            );
        }
    });
}

#[test]
fn a_silent_client_is_not_given_more_time_by_a_move() {
    let mut pair = Pair::with(|slot| {
        let mut settings = settings(slot);
        settings.tcp_heartbeat_interval = Duration::from_millis(500);
        settings.tcp_heartbeat_timeout = Duration::from_secs(6);
        settings
    });
    let mut client = pair.serve(|house| Binary::connect(&house, u16::MAX, false));
    let connected = Instant::now();
    while connected.elapsed() < Duration::from_millis(4000) {
        pair.turn();
    }
    pair.move_all(0);
    pair.serve(|_| while client.next().0 != Kind::Close {});
    assert!(connected.elapsed() < Duration::from_millis(9500));
    assert_eq!(pair.count(1, r#"closes_total{reason="no_pong"}"#), 1);
}

#[test]
fn what_a_client_was_told_of_heartbeats_holds_in_a_worker_with_other_settings() {
    let mut pair = Pair::with(|slot| {
        let mut settings = settings(slot);
        if slot == 0 {
            settings.tcp_heartbeat_interval = Duration::from_millis(100);
        }
        settings
    });
    let mut client = pair.serve(|house| Binary::connect(&house, u16::MAX, false));
    pair.move_all(0);
    pair.serve(|_| {
        for _ in 0..3 {
            assert_eq!(client.next().0, Kind::Heartbeat);
        }
    });
}

#[test]
fn two_channels_of_one_alias_are_not_for_one_connection() {
    let mut pair = Pair::open();
    let mut found = HashMap::new();
    let [first, second] = (0u32..)
        .find_map(|number| {
            let name = format!("public:{number}");
            let alias = pair.table.key(&name).0[1] >> 32;
            let other = found.insert(alias, name.clone())?;
            Some([other, name])
        })
        .unwrap();
    let subscribe = |client: &mut Binary, channel: &str| {
        let payload = [&[1, 0, channel.len() as u8], channel.as_bytes()].concat();
        client.send(Kind::Subscribe, &payload);
        client.next()
    };
    pair.serve(|house| {
        let mut client = Binary::connect(&house, u16::MAX, false);
        let mut other = Binary::connect(&house, u16::MAX, false);
        assert_eq!(subscribe(&mut client, &first).0, Kind::Subscribed);
        let (kind, payload) = subscribe(&mut client, &second);
        assert_eq!((kind, payload[1]), (Kind::Error, 108));
        let (kind, payload) = subscribe(&mut client, &first);
        assert_eq!((kind, payload[1]), (Kind::Error, 105));
        assert_eq!(subscribe(&mut other, &second).0, Kind::Subscribed);
    });
}
