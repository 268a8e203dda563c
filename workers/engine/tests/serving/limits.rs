//! What a client may not do, and what that costs: a number, a counter, and nothing else.

use std::io::{Read, Write};
use std::time::Duration;

use tidegate_engine::protocol::tcp::Kind;
use tidegate_engine::settings::Settings;
use tungstenite::Message;

use crate::clients::{Binary, Uni};
use crate::house::{House, connect, settings};

fn rest(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_request_that_never_ends_times_out() {
    let house = House::with(Settings {
        handshake_timeout: Duration::from_millis(200),
        ..settings()
    });
    let mut stream = connect(house.http);
    stream
        .write_all(b"GET /connection/uni_websocket HTTP/1.1\r\nHost:")
        .unwrap();
    assert!(rest(&stream).starts_with(b"HTTP/1.1 408 "));
    house.wait_for_count(r#"http_rejects_total{reason="timeout"}"#, 1);
}

#[test]
fn a_client_that_never_connects_is_stale() {
    let house = House::with(Settings {
        handshake_timeout: Duration::from_millis(200),
        ..settings()
    });
    assert_eq!(Uni::upgraded(&house).close_code(), 3502);
    let silent = rest(connect(house.tcp));
    assert_eq!(silent[3], Kind::Close as u8);
    house.wait_for_count(r#"closes_total{reason="stale"}"#, 2);
}

#[test]
fn nobody_is_let_in_over_the_limit_and_everyone_is_told() {
    let house = House::with(Settings {
        connections_max: 2,
        ..settings()
    });
    let (first, _) = Uni::connect(&house, "{}");
    let _second = Binary::connect(&house, 60_000, false);
    let mut refused = connect(house.http);
    refused.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(rest(&refused).starts_with(b"HTTP/1.1 503 "));
    let mut told = [0; 18];
    connect(house.tcp).read_exact(&mut told).unwrap();
    assert_eq!(
        (told[3], &told[16..]),
        (Kind::Close as u8, &[0xB0, 0x1B][..]),
        "3504"
    );
    house.wait_for_count(r#"refusals_total{reason="connections_max"}"#, 2);
    drop((first, refused));
    house.wait_for_count(r#"connections{transport="websocket"}"#, 0);
    Uni::connect(&house, "{}");
}

#[test]
fn headers_without_end_are_refused() {
    let house = House::open();
    let mut stream = connect(house.http);
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    // The refusal may come, and end the writing, before all is written.
    let _ = stream.write_all(&[b'x'; 10_000]);
    assert!(rest(&stream).starts_with(b"HTTP/1.1 431 "));
    house.wait_for_count(r#"http_rejects_total{reason="headers_too_large"}"#, 1);
}

#[test]
fn a_message_over_the_limit_ends_the_connection() {
    let house = House::open();
    let (mut client, _) = Uni::connect(&house, "{}");
    let _ = client.0.send(Message::text("x".repeat(16_385)));
    assert_eq!(client.close_code(), 1009);
    house.wait_for_count(r#"closes_total{reason="message_too_big"}"#, 1);
}

#[test]
fn a_message_in_single_bytes_is_put_together_and_leaves_no_buffer() {
    let house = House::open();
    let mut client = Uni::upgraded(&house);
    let mut stream = client.0.get_ref().try_clone().unwrap();
    let text = br#"{"subs":{"public:a":{}}}"#;
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(text);
    for byte in frame {
        stream.write_all(&[byte]).unwrap();
    }
    assert!(client.next().get("connect").is_some());
}

#[test]
fn a_client_that_did_not_wait_for_the_upgrade_is_served() {
    let mut house = House::open();
    let mut stream = connect(house.http);
    let mut bytes =
        b"GET /connection/uni_websocket HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    let text = br#"{"subs":{"public:a":{}}}"#;
    bytes.extend_from_slice(&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0]);
    bytes.extend_from_slice(text);
    stream.write_all(&bytes).unwrap();
    crate::house::read_until(&mut stream, b"\r\n\r\n");
    house.wait_for_count("subscriptions", 1);
    house.publish("public:a", "1");
    crate::house::read_until(&mut stream, br#"{"data":1,"offset":1}}"#);
}

#[test]
fn the_query_may_carry_the_connect_request() {
    let house = House::open();
    let mut stream = connect(house.http);
    stream
        .write_all(
            b"GET /connection/uni_websocket?cf_connect=%7B%22subs%22%3A\
              %7B%22public%3Aa%22%3A%7B%7D%7D%7D \
              HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    crate::house::read_until(&mut stream, b"\"public:a\":");
    house.wait_for_count("subscriptions", 1);
}

#[test]
fn more_channels_than_allowed_end_the_connection() {
    let house = House::open();
    let mut client = Uni::upgraded(&house);
    client
        .say(r#"{"subs":{"public:1":{},"public:2":{},"public:3":{},"public:4":{},"public:5":{}}}"#);
    assert_eq!(client.close_code(), 3505);
    house.wait_for_count("worker_channels", 0);
}

#[test]
fn a_channel_twice_and_one_too_many_are_errors_of_the_request_only() {
    let house = House::open();
    let mut client = Binary::connect(&house, 60_000, false);
    for channel in ["public:1", "public:2", "public:3", "public:4"] {
        client.subscribe(channel);
    }
    for (channel, code) in [
        ("public:5", 106),
        ("secret", 103),
        ("nowhere:1", 102),
        ("", 107),
    ] {
        let payload = [&[1, 0, channel.len() as u8], channel.as_bytes()].concat();
        client.send(Kind::Subscribe, &payload);
        let (kind, payload) = client.next();
        assert_eq!((kind, payload[1]), (Kind::Error, code), "{channel}");
    }
    let mut other = Binary::connect(&house, 60_000, false);
    other.subscribe("public:1");
    other.send(Kind::Subscribe, b"\x01\x00\x08public:1");
    assert_eq!(other.next().1[1], 105);
}

#[test]
fn hostile_bytes_get_a_number_and_a_counter() {
    let house = House::open();
    for (bytes, reason) in [
        (&b"\x00\x00\x00\x00"[..], "bad_magic"),
        (b"MB\x02\x04", "bad_version"),
        (b"MB\x01\x63", "bad_type"),
        (b"MB\x01\x01\0\0\0\0\0\0\0\0\0\0\xFF\xFF", "bad_length"),
        (b"MB\x01\x06\0\0\0\0\0\0\0\0\0\0\0\0", "unexpected_frame"),
    ] {
        let mut stream = connect(house.tcp);
        stream.write_all(bytes).unwrap();
        assert_eq!(rest(&stream)[3], Kind::Close as u8, "{reason}");
        house.wait_for_count(&format!("closes_total{{reason=\"{reason}\"}}"), 1);
    }
    for (bytes, reason) in [
        (&b"\x81\x02{}"[..], "protocol_error"),
        (b"\x81\x81\0\0\0\0\xFF", "invalid_text"),
    ] {
        let mut stream = house.websocket();
        stream.write_all(bytes).unwrap();
        rest(&stream);
        house.wait_for_count(&format!("closes_total{{reason=\"{reason}\"}}"), 1);
    }
    house.wait_for_count(r#"connections{transport="tcp"}"#, 0);
    house.wait_for_count(r#"connections{transport="websocket"}"#, 0);
}
