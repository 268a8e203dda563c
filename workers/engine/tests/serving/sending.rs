//! A turn's sends: some go whole, some in part, some fail, and none is the business of another.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde_json::Value;
use tidegate_engine::settings::Settings;

use crate::clients::{Binary, Uni};
use crate::house::engine::has_ring;
use crate::house::{House, settings};
use crate::subscribing::stop_the_clock;

/// More than one batch of io_uring, and not a whole number of them.
const CROWD: usize = 300;

fn crowd(house: &House, count: usize) -> Vec<Uni> {
    let one = |_| Uni::connect(house, r#"{"public:a":{}}"#).0;
    (0..count).map(one).collect()
}

/// Has the kernel send a reset when the client goes (socket(7), SO_LINGER with 0 seconds).
fn reset(client: Uni) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let size = size_of_val(&linger) as libc::socklen_t;
    let fd = client.0.get_ref().as_raw_fd();
    let value = (&raw const linger).cast();
    // SAFETY: the option's value lives through the call and has the length given.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, size) };
    assert_eq!(result, 0);
}

#[test]
fn the_worker_sends_by_what_it_was_told_to() {
    let mut house = House::open();
    let mut crowd = crowd(&house, 5);
    assert_eq!(house.count("io_uring"), u64::from(has_ring()));
    let before = house.count("send_batches_total");
    house.publish("public:a", "1");
    for client in &mut crowd {
        client.next_publication();
    }
    assert_eq!(house.count("send_batches_total") > before, has_ring());
}

#[test]
fn everybody_of_a_large_crowd_gets_every_message_in_order() {
    let mut house = House::open();
    let mut crowd = crowd(&house, CROWD);
    let mut binary = Binary::connect(&house, 60_000, true);
    binary.subscribe("public:a");
    for number in 1..=5 {
        house.publish("public:a", &number.to_string());
    }
    for client in &mut crowd {
        for number in 1..=5 {
            let push = client.next_publication();
            assert_eq!(push, ("public:a".into(), number, Value::from(number)));
        }
    }
    for number in 1..=5u8 {
        let (_, offset, data) = binary.next_message();
        assert_eq!((offset, data), (number, vec![b'0' + number]));
    }
    house.wait_for_count("queued_bytes", 0);
}

#[test]
fn peers_that_reset_in_the_middle_of_a_batch_cost_the_others_nothing() {
    let mut house = House::open();
    let mut crowd = crowd(&house, 60);
    // Both are there before the worker's next turn: the message, and the resets.
    let go = stop_the_clock(&mut house);
    for place in (0..60).rev().step_by(4) {
        reset(crowd.swap_remove(place));
    }
    house.publish("public:a", "1");
    drop(go);
    for client in &mut crowd {
        assert_eq!(client.next_publication().1, 1);
    }
    house.wait_for_count(r#"closes_total{reason="connection_closed"}"#, 15);
    house.wait_for_count(r#"connections{transport="websocket"}"#, 45);
    house.publish("public:a", "2");
    for client in &mut crowd {
        assert_eq!(client.next_publication().1, 2);
    }
    house.wait_for_count("queued_bytes", 0);
}

#[test]
fn a_send_to_who_has_stopped_reading_is_finished_later_and_whole() {
    let mut house = House::with(Settings {
        queue_soft_bytes: 8 << 20,
        queue_hard_bytes: 16 << 20,
        ..settings()
    });
    let mut crowd = crowd(&house, 8);
    let mut late = crowd.split_off(4);
    let message = format!("\"{}\"", "x".repeat(16_000));
    let mut published = 0;
    // Until the sockets of those who do not read are full, and some more wait behind.
    while published < 50 || house.count("sends_blocked_total") < 4 {
        published += 1;
        house.publish("public:a", &message);
        for client in &mut crowd {
            assert_eq!(client.next_publication().1, published);
        }
    }
    assert!(house.count("queued_bytes") > 0);
    for client in &mut late {
        for offset in 1..=published {
            let (_, got, data) = client.next_publication();
            assert_eq!((got, data.as_str().unwrap().len()), (offset, 16_000));
        }
    }
    house.wait_for_count("queued_bytes", 0);
    assert_eq!(house.count(r#"closes_total{reason="slow"}"#), 0);
}

#[test]
fn more_frames_than_one_send_takes_leave_in_one_turn_after_the_other() {
    let mut house = House::open();
    let mut crowd = crowd(&house, 3);
    let go = stop_the_clock(&mut house);
    for number in 0..700 {
        house.publish("public:a", &number.to_string());
    }
    drop(go);
    for client in &mut crowd {
        for offset in 1..=700 {
            assert_eq!(client.next_publication().1, offset);
        }
    }
    let sends = house.count("sends_total");
    assert!(sends < 3 * 700 / 50, "they were not sent together: {sends}");
}

#[test]
fn messages_that_came_together_leave_together_and_are_counted_each() {
    let mut house = House::open();
    let mut early = crowd(&house, 2);
    let mut binary = Binary::connect(&house, 60_000, true);
    binary.subscribe("public:a");
    house.publish("public:a", "1");
    early.iter_mut().for_each(|client| {
        client.next_publication();
    });
    binary.next_message();
    let before = ["sends_total", "deliveries_total"].map(|name| house.count(name));
    let go = stop_the_clock(&mut house);
    for number in 2..=21 {
        house.publish("public:a", &number.to_string());
    }
    drop(go);
    for client in &mut early {
        for offset in 2..=21 {
            let push = client.next_publication();
            assert_eq!(push, ("public:a".into(), offset, Value::from(offset)));
        }
    }
    for offset in 2..=21 {
        assert_eq!(binary.next_message().1, offset);
    }
    house.wait_for_count("deliveries_total", before[1] + 3 * 20);
    // What the publisher handed over before the worker looked may be one lot or two.
    let sends = house.count("sends_total") - before[0];
    assert!(sends <= 3 * 3, "three clients: {sends} sends");
    house.wait_for_count("queued_bytes", 0);
}

#[test]
fn a_message_without_a_byte_is_a_message() {
    let mut house = House::open();
    let mut clients = [0, 1].map(|_| Binary::connect(&house, 60_000, false));
    for client in &mut clients {
        client.subscribe("public:a");
    }
    assert_eq!(house.publish_request("public:a", b"", false).status, 0);
    for client in &mut clients {
        let (_, offset, data) = client.next_message();
        assert_eq!((offset, data), (1, Vec::new()));
    }
}

#[test]
fn who_hears_no_more_is_told_nothing_and_the_others_all() {
    let mut house = House::open();
    let mut crowd = crowd(&house, 20);
    for client in &crowd[..5] {
        client.0.get_ref().shutdown(Shutdown::Read).unwrap();
    }
    house.publish("public:a", "1");
    for client in &mut crowd[5..] {
        assert_eq!(client.next_publication().1, 1);
    }
    house.wait_for_count("queued_bytes", 0);
}

#[test]
fn publications_leave_together_when_the_operator_gives_them_time() {
    let mut house = House::with(Settings {
        batch_delay: Duration::from_millis(200),
        ..settings()
    });
    let mut crowd = crowd(&house, 2);
    let before = house.count("sends_total");
    for number in 0..40 {
        house.publish("public:a", &number.to_string());
    }
    for client in &mut crowd {
        for offset in 1..=40 {
            assert_eq!(client.next_publication().1, offset);
        }
    }
    let sends = house.count("sends_total") - before;
    assert!(sends <= 40, "two clients, 40 messages: {sends} sends");
}
