//! Every connection that ends, ends with a reason: said, and counted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tidegate_engine::protocol::close::Close;
use tidegate_engine::protocol::tcp::{Header, Kind};
use tidegate_engine::reactor::Report;
use tungstenite::Message;

use crate::clients::{Binary, Uni};
use crate::house::{House, PATIENCE, settings, wait_for};

#[test]
fn a_client_that_says_goodbye_gets_its_code_back() {
    let house = House::open();
    let (mut client, _) = Uni::connect(&house, "{}");
    let code = tungstenite::protocol::frame::coding::CloseCode::Library(4001);
    let frame = tungstenite::protocol::CloseFrame {
        code,
        reason: "had enough".into(),
    };
    client.0.close(Some(frame)).unwrap();
    assert_eq!(client.close_code(), 4001);
    house.wait_for_count(r#"closes_total{reason="normal"}"#, 1);
    house.wait_for_count(r#"connections{transport="websocket"}"#, 0);
}

#[test]
fn a_client_that_vanishes_is_counted() {
    let house = House::open();
    drop(Uni::connect(&house, r#"{"public:a":{}}"#));
    drop(Binary::connect(&house, 60_000, false));
    house.wait_for_count(r#"closes_total{reason="connection_closed"}"#, 2);
    house.wait_for_count("subscriptions", 0);
    house.wait_for_count("worker_channels", 0);
    house.wait_for_count("queued_bytes", 0);
}

#[test]
fn a_binary_client_that_says_goodbye_is_answered_and_hung_up_on() {
    let house = House::open();
    let mut client = Binary::connect(&house, 60_000, true);
    client.send(Kind::Close, &[0xE8, 0x07, 0]);
    let (kind, payload) = client.next();
    assert_eq!((kind, &payload[..2]), (Kind::Close, &[0xE8, 0x07][..]));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    house.wait_for_count(r#"closes_total{reason="normal"}"#, 1);
}

#[test]
fn a_client_that_answers_pings_stays_and_one_that_does_not_is_closed() {
    let house = House::with(tidegate_engine::settings::Settings {
        websocket_ping_interval: Duration::from_millis(2500),
        websocket_pong_timeout: Duration::from_millis(2400),
        ..settings()
    });
    let (mut alive, _) = Uni::connect(&house, "{}");
    let (silent, _) = Uni::connect(&house, "{}");
    let mut stream: TcpStream = silent.0.get_ref().try_clone().unwrap();
    let mut pings = 0;
    while pings < 3 {
        // Reading also sends the pongs.
        if let Message::Ping(_) = alive.0.read().unwrap() {
            pings += 1;
        }
        alive.0.flush().unwrap();
    }
    house.wait_for_count(r#"closes_total{reason="no_pong"}"#, 1);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(
        bytes.windows(4).any(|four| four == b"\x81\x02{}"),
        "it was pinged"
    );
    assert!(
        bytes.windows(12).any(|some| some == b"\"code\":3012,"),
        "{bytes:?}"
    );
    assert_eq!(house.count(r#"connections{transport="websocket"}"#), 1);
}

#[test]
fn a_silent_binary_client_gets_heartbeats_and_then_its_end() {
    let house = House::with(tidegate_engine::settings::Settings {
        tcp_heartbeat_interval: Duration::from_millis(200),
        tcp_heartbeat_timeout: Duration::from_millis(3000),
        ..settings()
    });
    let mut client = Binary::connect(&house, 60_000, true);
    let mut heartbeats = 0;
    loop {
        match client.next() {
            (Kind::Heartbeat, _) => heartbeats += 1,
            (Kind::Close, payload) => {
                assert_eq!(payload[..2], [0xC4, 0x17], "3012");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(heartbeats >= 2);
    house.wait_for_count(r#"closes_total{reason="no_pong"}"#, 1);
}

#[test]
fn a_peer_that_does_not_answer_a_close_is_dropped_after_the_timeout() {
    let mut house = House::open();
    let (client, _) = Uni::connect(&house, "{}");
    house.order(|reactor| reactor.drain(Duration::ZERO, Close::Shutdown, false));
    house.wait_for_count("close_timeouts_total", 1);
    assert_eq!(client.close_code(), 3001);
}

#[test]
fn draining_closes_everyone_within_the_spread_and_reports_it() {
    let mut house = House::open();
    let clients: Vec<_> = (0..30).map(|_| Uni::connect(&house, "{}").0).collect();
    let mut binary = Binary::connect(&house, 60_000, false);
    let began = Instant::now();
    house.order(|reactor| {
        reactor.drain(Duration::from_millis(600), Close::ForceReconnect, false);
    });
    let ends: Vec<_> = clients
        .into_iter()
        .map(|client| std::thread::spawn(|| client.end()))
        .collect();
    assert_eq!(binary.next().0, Kind::Close);
    binary.send(Kind::Close, &[0xC3, 0x17, 0]);
    for end in ends {
        let (disconnect, frame) = end.join().unwrap();
        assert_eq!(disconnect.unwrap()["code"], 3011);
        assert_eq!(u16::from(frame.unwrap().code), 3011);
    }
    assert!(
        began.elapsed() > Duration::from_millis(300),
        "not all at once"
    );
    let mut last = usize::MAX;
    loop {
        match house.report() {
            Report::Draining { remaining } => {
                assert!(remaining <= last);
                last = remaining;
            }
            Report::Drained { closed } => break assert_eq!(closed, 31),
            Report::Link | Report::Handoff(_) | Report::Notices => {
                unreachable!("not passed on, not asked for")
            }
        }
    }
    house.wait_for_count(r#"closes_total{reason="force_reconnect"}"#, 31);
}

#[test]
fn a_binary_client_that_is_refused_hears_why_whatever_it_says_meanwhile() {
    let house = House::open();
    let mut stream = crate::house::connect(house.tcp);
    let mut bytes = Vec::new();
    // Its token is none, and it does not wait for the answer.
    for (kind, payload) in [
        (Kind::Connect, &[0, 0, 0, 1, b'x'][..]),
        (Kind::Subscribe, &[1, 0, 1, b'a'][..]),
    ] {
        let header = Header {
            kind,
            seq: 0,
            ack_seq: 0,
            window_size: 60_000,
            length: payload.len() as u16,
        };
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
    }
    stream.write_all(&bytes).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    let code_3500 = [0xAC, 0x1B];
    assert_eq!(
        (said[3], &said[16..18]),
        (Kind::Close as u8, &code_3500[..])
    );
    house.wait_for_count(r#"closes_total{reason="invalid_token"}"#, 1);
}

#[test]
fn leaving_takes_those_who_wait_in_the_queue_along() {
    let mut house = House::open();
    let (waiting, told) = std::sync::mpsc::channel();
    let (connected, is_connected) = std::sync::mpsc::channel::<()>();
    house.order(move |reactor| {
        waiting.send(()).unwrap();
        is_connected.recv().unwrap();
        reactor.drain(Duration::ZERO, Close::Shutdown, true);
    });
    told.recv_timeout(PATIENCE).unwrap();
    let mut late = crate::house::connect(house.tcp);
    connected.send(()).unwrap();
    let mut bytes = Vec::new();
    late.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes[..4], [0x4D, 0x42, 1, Kind::Close as u8]);
    house.wait_for_count(r#"accepts_total{transport="tcp"}"#, 1);
}

#[test]
fn a_stop_tells_everyone_and_does_not_wait_for_ever() {
    let mut house = House::open();
    let (client, _) = Uni::connect(&house, "{}");
    let mut binary = Binary::connect(&house, 60_000, false);
    let (done, is_done) = std::sync::mpsc::channel();
    house.order(move |reactor| {
        done.send(reactor.stop(Duration::from_millis(200)).unwrap())
            .unwrap();
    });
    assert_eq!(binary.next().0, Kind::Close);
    assert_eq!(client.close_code(), 3001);
    assert_eq!(is_done.recv_timeout(PATIENCE).unwrap(), 2);
}

#[test]
fn a_slow_client_is_closed_at_the_hard_limit_and_the_others_get_everything() {
    let mut house = House::with(tidegate_engine::settings::Settings {
        queue_hard_bytes: 100_000,
        queue_soft_bytes: 100_000,
        ..settings()
    });
    let (mut quick, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let (_slow, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let data = format!("\"{}\"", "s".repeat(8_000));
    let mut published = 0;
    while house.count(r#"closes_total{reason="slow"}"#) == 0 {
        published += 1;
        house.publish("public:a", &data);
        assert_eq!(quick.next_publication().1, published);
        assert!(published < 10_000, "socket buffers are smaller than that");
    }
    assert!(house.count("queued_bytes") < 100_000);
    house.wait_for_count("subscriptions", 1);
}

#[test]
fn a_client_over_the_soft_limit_is_closed_after_the_soft_time() {
    let mut house = House::with(tidegate_engine::settings::Settings {
        queue_soft_bytes: 20_000,
        queue_soft: Duration::from_millis(300),
        ..settings()
    });
    let mut client = Binary::connect(&house, 100, false);
    client.subscribe("public:a");
    let data = format!("\"{}\"", "s".repeat(8_000));
    for _ in 0..4 {
        house.publish("public:a", &data);
    }
    let began = Instant::now();
    wait_for("the end of patience", || {
        house.count(r#"closes_total{reason="slow"}"#) == 1
    });
    assert!(began.elapsed() > Duration::from_millis(150));
}

#[test]
fn a_client_that_gets_below_the_soft_limit_by_unsubscribing_is_not_slow() {
    let mut house = House::with(tidegate_engine::settings::Settings {
        queue_soft_bytes: 20_000,
        queue_soft: Duration::from_millis(3000),
        tcp_heartbeat_interval: Duration::from_millis(2000),
        ..settings()
    });
    let mut client = Binary::with_scale(&house, u16::MAX, 14, false);
    let (alias, _) = client.subscribe("public:a");
    let data = format!("\"{}\"", "s".repeat(16_000));
    while house.count("sends_blocked_total") == 0 {
        house.publish("public:a", &data);
    }
    for _ in 0..4 {
        house.publish("public:a", &data);
    }
    client.send(Kind::Unsubscribe, &[&[1], &alias[..]].concat());
    house.wait_for_count("subscriptions", 0);
    // Two heartbeats later the time is over.
    let pings = house.count("pings_total");
    wait_for("two heartbeats", || house.count("pings_total") >= pings + 2);
    while client.next().0 != Kind::Unsubscribed {}
    assert_eq!(house.count(r#"closes_total{reason="slow"}"#), 0);
}
