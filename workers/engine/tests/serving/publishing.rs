//! Clients that publish, and windows that hold the server back.

use tidegate_engine::protocol::tcp::Kind;

use crate::clients::{Binary, Uni};
use crate::house::House;

/// A PUBLISH payload of one piece.
fn publish(request: u8, channel: &str, data: &[u8]) -> Vec<u8> {
    let head = [0, request, 0, channel.len() as u8];
    [&head[..], channel.as_bytes(), data].concat()
}

#[test]
fn a_client_publishes_and_is_told_the_place() {
    let house = House::open();
    let (mut reader, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let mut writer = Binary::connect(&house, 60_000, true);
    writer.send(Kind::Publish, &publish(7, "public:a", br#"{ "a" : 1 }"#));
    let (kind, payload) = writer.next();
    assert_eq!(
        (kind, payload[0], payload[payload.len() - 1]),
        (Kind::Published, 7, 1)
    );
    assert_eq!(reader.next()["pub"]["data"]["a"], 1);
    house.wait_for_count(r#"client_publishes_total{result="accepted"}"#, 1);
}

#[test]
fn a_fragmented_publish_is_one_message() {
    let house = House::open();
    let (mut reader, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let mut writer = Binary::connect(&house, 60_000, false);
    let whole = publish(1, "public:a", br#""first second""#);
    let (first, second) = whole[1..].split_at(20);
    writer.send(Kind::Publish, &[&[1], first].concat());
    writer.send(Kind::Publish, &[&[0], second].concat());
    assert_eq!(writer.next().0, Kind::Published);
    assert_eq!(reader.next_publication().2, "first second");
}

#[test]
fn a_publish_that_may_not_be_is_answered_with_an_error() {
    let house = House::open();
    let mut client = Binary::connect(&house, 60_000, false);
    for (channel, data, code) in [
        ("secret", &b"1"[..], 103),
        ("nowhere:a", b"1", 102),
        ("public:a", b"{not json", 107),
        ("", b"1", 107),
        ("public:a", b"", 107),
    ] {
        client.send(Kind::Publish, &publish(9, channel, data));
        let (kind, payload) = client.next();
        assert_eq!(
            (kind, &payload[..2]),
            (Kind::Error, &[9, code][..]),
            "{channel}"
        );
    }
    house.wait_for_count(r#"client_publishes_total{result="denied"}"#, 2);
    house.wait_for_count(r#"client_publishes_total{result="rejected"}"#, 3);
}

#[test]
fn many_publishes_in_one_go_are_all_answered_in_order() {
    let house = House::open();
    let mut client = Binary::connect(&house, 60_000, false);
    for _ in 0..20 {
        for request in 1..=60 {
            client.send(Kind::Publish, &publish(request, "public:a", b"1"));
        }
        for request in 1..=60 {
            let (mut kind, mut payload) = client.next();
            while kind == Kind::Ack {
                (kind, payload) = client.next();
            }
            assert_eq!((kind, payload[0]), (Kind::Published, request));
        }
    }
}

#[test]
fn data_waits_for_the_window_and_flows_again() {
    let mut house = House::open();
    // Room for two frames of 16 + 1 + 4 + 30 bytes.
    let mut client = Binary::connect(&house, 110, false);
    client.subscribe("public:a");
    let data = format!("\"{}\"", "y".repeat(28));
    for _ in 0..5 {
        house.publish("public:a", &data);
    }
    assert_eq!((client.next_message().1, client.next_message().1), (1, 2));
    house.wait_for_count("deliveries_total", 5);
    // An answer overtakes what waits for the window: had a third message been sent, it would be
    // before it.
    client.subscribe("public:b");
    assert_eq!((client.next_message().1, client.next_message().1), (3, 4));
    client.window_size = 0;
    client.send(Kind::Ack, &[]);
    client.window_size = 1000;
    client.send(Kind::WindowUpdate, &[]);
    assert_eq!(client.next_message().1, 5);
}

#[test]
fn a_message_larger_than_the_window_comes_in_pieces() {
    let mut house = House::open();
    let mut client = Binary::connect(&house, 1000, true);
    client.subscribe("public:a");
    let data = format!("\"{}\"", "z".repeat(5000));
    house.publish("public:a", &data);
    let mut message = Vec::new();
    let mut last = false;
    while !last {
        let (kind, payload) = client.next();
        assert_eq!(kind, Kind::Data);
        last = payload[0] == 0;
        message.extend_from_slice(&payload[1..]);
        client.send(Kind::Ack, &[]);
    }
    assert!(message.ends_with(data.as_bytes()));
}
