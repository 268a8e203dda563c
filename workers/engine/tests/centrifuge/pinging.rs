//! Pings and the pongs that they are owed.

use std::time::Duration;

use serde_json::json;
use tidegate_engine::settings::Settings;

use crate::client::{Client, settings, token_of};
use crate::house::{House, wait_for};

fn hasty() -> Settings {
    Settings {
        websocket_ping_interval: Duration::from_millis(2500),
        websocket_pong_timeout: Duration::from_millis(2400),
        ..settings()
    }
}

#[test]
fn who_answers_pings_stays_and_who_does_not_is_closed() {
    let house = House::with(hasty());
    let mut quiet = Client::of(house.http, "bob");
    let mut client = Client::of(house.http, "ann");
    for _ in 0..3 {
        assert_eq!(client.text(), None, "a ping");
        client.say("{}");
    }
    assert_eq!(quiet.text(), None);
    assert_eq!(quiet.end(), 3012);
    client.subscribe("chat:a");
}

#[test]
fn other_words_are_no_pong() {
    let house = House::with(hasty());
    let mut client = Client::of(house.http, "ann");
    assert_eq!(client.text(), None);
    client.command("presence", json!({"channel": "chat:a"}));
    assert_eq!(client.end(), 3012);
}

#[test]
fn a_pong_that_nobody_asked_for_ends_the_connection() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    client.say("{}");
    assert_eq!(client.end(), 3501);
    let house = House::with(hasty());
    let mut client = Client::of(house.http, "ann");
    assert_eq!(client.text(), None);
    client.say("{}");
    client.say("{}");
    assert_eq!(client.end(), 3501);
}

#[test]
fn native_pings_are_answered_by_the_library() {
    let house = House::with(hasty());
    let mut client = Client::upgraded(house.http, "?cf_ws_frame_ping_pong=true");
    let result = client.ask("connect", json!({"token": token_of("ann")}));
    assert_eq!((result.get("ping"), result.get("pong")), (None, None));
    client.subscribe("chat:a");
    // The library answers while it reads.
    let reading = std::thread::spawn(move || {
        let push = client.push();
        (push, client.pings)
    });
    wait_for("three pings", || house.count("pings_total") >= 3);
    let mut other = Client::upgraded(house.http, "?cf_ws_frame_ping_pong=true");
    other.ask("connect", json!({"token": token_of("bob")}));
    other.subscribe("chat:a");
    other.ask("publish", json!({"channel": "chat:a", "data": 1}));
    let ((channel, _), pings) = reading.join().unwrap();
    assert_eq!((&*channel, pings), ("chat:a", 0));
}
