//! A hand-off in the middle of everything: no client can tell.

use std::time::Duration;

use serde_json::json;
use tidegate_engine::connection::parse_uuid;
use tidegate_engine::settings::Settings;
use tidegate_ring::uplink::{Request, RequestKind};

use crate::client::{Client, channel_token, now_s, settings, token_of};
use crate::pair::{self, Pair, Source};
use crate::streams::Stream;

fn settings_of(slot: u32) -> Settings {
    Settings {
        tokens: settings().tokens,
        namespaces: settings().namespaces,
        ..pair::settings(slot)
    }
}

fn two() -> Pair {
    Pair::with(settings_of)
}

fn source(pair: &mut Pair) -> &mut Source {
    pair.source.as_mut().expect("nobody has taken it")
}

/// The first worker lets go of all its clients, and the second one has not taken them yet.
fn let_go(pair: &mut Pair) {
    pair.begin_move(0, None);
    pair.worker(1).turn().unwrap();
    while pair.websockets(0) + pair.count(0, r#"connections{transport="stream"}"#) > 0 {
        pair.worker(0).turn().unwrap();
    }
}

/// Puts `data` into a channel and waits until `client` has it.
fn hears(pair: &mut Pair, client: &mut Client, channel: &str, data: u32) {
    pair.publish(channel, &data.to_string());
    pair.serve(|_| {
        loop {
            let (_, push) = client.push();
            if let Some(publication) = push.get("pub") {
                break assert_eq!(publication["data"], data);
            }
        }
    });
}

#[test]
fn subscriptions_identities_and_pushes_go_on() {
    let mut pair = two();
    let mut client = pair.serve(|house| {
        let mut client = Client::of(house.http, "ann");
        client.ask(
            "subscribe",
            json!({"channel": "chat:a", "join_leave": true}),
        );
        let token = channel_token("ann", "$closed:a", json!({"info": {"x": 1}}));
        client.ask("subscribe", json!({"channel": "$closed:a", "token": token}));
        client
    });
    hears(&mut pair, &mut client, "chat:a", 1);
    for from in [0, 1, 0] {
        assert_eq!(pair.move_all(from).1.count, 1);
        hears(&mut pair, &mut client, "$closed:a", 2);
        hears(&mut pair, &mut client, "chat:a", 3);
    }
    pair.serve(|_| {
        let published = json!({"channel": "chat:a", "data": 4});
        client.ask("publish", published);
        assert_eq!(client.publication()["info"]["user"], "ann");
        client.ask("unsubscribe", json!({"channel": "$closed:a"}));
        client.subscribe("chat:b");
    });
}

#[test]
fn a_client_stays_in_its_channels_and_nobody_hears_of_the_move() {
    let mut pair = two();
    let (mut watcher, moved) = pair.serve(|house| {
        let mut watcher = Client::of(house.http, "ann");
        watcher.ask(
            "subscribe",
            json!({"channel": "chat:a", "join_leave": true}),
        );
        watcher.push();
        let mut moved = Client::of(house.http, "bob");
        moved.subscribe("chat:a");
        assert_eq!(watcher.push().1["join"]["info"]["user"], "bob");
        (watcher, moved)
    });
    assert_eq!(pair.move_all(0).1.count, 2);
    pair.serve(|_| {
        let presence = watcher.ask("presence", json!({"channel": "chat:a"}));
        assert_eq!(presence["presence"].as_object().unwrap().len(), 2);
    });
    hears(&mut pair, &mut watcher, "chat:a", 1);
    drop(moved);
    pair.serve(|_| {
        let push = watcher.push().1;
        assert_eq!(
            push["leave"]["info"]["user"], "bob",
            "the first that is heard of it: {push}"
        );
    });
}

#[test]
fn what_comes_by_the_log_while_a_client_is_away_is_done_when_it_is_back() {
    for is_behind in [false, true] {
        let mut pair = two();
        let (mut ann, mut bob) = pair.serve(|house| {
            let mut ann = Client::of(house.http, "ann");
            ann.ask(
                "subscribe",
                json!({"channel": "chat:a", "join_leave": true}),
            );
            ann.push();
            (ann, Client::of(house.http, "bob"))
        });
        let_go(&mut pair);
        let order = json!({"op": "subscribe", "user": "bob", "channel": "chat:a"}).to_string();
        source(&mut pair).request(Request {
            kind: RequestKind::Order,
            json: true,
            data: order.as_bytes(),
            ..Request::default()
        });
        source(&mut pair).request(Request {
            json: true,
            skip_history: true,
            channel: "chat:a",
            data: b"1",
            ..Request::default()
        });
        if !is_behind {
            pair.worker(1).turn().unwrap();
        }
        pair.finish_move(0);
        pair.serve(|_| {
            assert_eq!(ann.publication(), json!({"data": 1}));
            assert_eq!(ann.push().1["join"]["info"]["user"], "bob");
            assert!(bob.push().1.get("subscribe").is_some());
            bob.ask("unsubscribe", json!({"channel": "chat:a"}));
        });
    }
}

#[test]
fn commands_of_a_session_that_is_away_are_done_when_it_is_back() {
    let mut pair = two();
    let (mut stream, connected) = pair.serve(|house| {
        let connect = json!({"id": 1, "connect": {"token": token_of("ann")}});
        let mut stream = Stream::lines(house.http, "/connection/http_stream", &connect);
        let connected = stream.message()["connect"].take();
        (stream, connected)
    });
    let_go(&mut pair);
    let session = parse_uuid(connected["session"].as_str().unwrap());
    source(&mut pair).request(Request {
        kind: RequestKind::Emulate,
        json: true,
        client: session,
        data: br#"{"id":2,"subscribe":{"channel":"chat:a"}}"#,
        ..Request::default()
    });
    pair.finish_move(0);
    pair.serve(|_| assert!(stream.message()["subscribe"].is_object()));
    pair.publish("chat:a", "1");
    pair.serve(|_| assert_eq!(stream.message()["push"]["pub"]["data"], 1));
}

#[test]
fn differences_go_on_with_the_publication_before_and_after() {
    let mut pair = two();
    let text = |number: u32| format!(r#"{{"long":"{}","number":{number}}}"#, "tide".repeat(50));
    let mut client = pair.serve(|house| {
        let mut client = Client::of(house.http, "ann");
        client.ask(
            "subscribe",
            json!({"channel": "delta:a", "delta": "fossil"}),
        );
        client
    });
    pair.publish("delta:a", &text(1));
    pair.serve(|_| assert_eq!(client.publication()["data"], text(1)));
    pair.move_all(0);
    pair.publish("delta:a", &text(2));
    pair.serve(|_| {
        assert_eq!(
            client.publication()["data"],
            text(2),
            "whole, as it is not known"
        )
    });
}

#[test]
fn expiry_goes_on_where_it_was() {
    let mut pair = Pair::with(|slot| Settings {
        expired_close_delay: Duration::from_secs(1),
        ..settings_of(slot)
    });
    let mut client = pair.serve(|house| {
        let mut client = Client::of(house.http, "ann");
        let token = channel_token("ann", "closed:a", json!({"exp": now_s() + 3}));
        client.ask("subscribe", json!({"channel": "closed:a", "token": token}));
        client
    });
    pair.move_all(0);
    pair.serve(|_| {
        let (channel, push) = client.push();
        assert_eq!(
            (&*channel, &push["unsubscribe"]["code"]),
            ("closed:a", &2501.into())
        );
    });
}

/// Pings after a second and a half at the earliest; the pong may take almost as long.
fn pinging(slot: u32) -> Settings {
    Settings {
        websocket_ping_interval: Duration::from_secs(3),
        websocket_pong_timeout: Duration::from_millis(2900),
        ..settings_of(slot)
    }
}

#[test]
fn a_pong_is_owed_to_whoever_serves_the_client() {
    let mut pair = Pair::with(pinging);
    let (mut client, quiet) = pair.serve(|house| {
        let (mut client, mut quiet) =
            (Client::of(house.http, "ann"), Client::of(house.http, "bob"));
        assert_eq!(client.text(), None, "a ping");
        assert_eq!(quiet.text(), None, "a ping");
        (client, quiet)
    });
    pair.move_all(0);
    pair.serve(|_| {
        client.say("{}");
        client.subscribe("chat:a");
        assert_eq!(quiet.end(), 3012);
    });
}

#[test]
fn history_that_does_not_reach_back_ends_the_subscription_and_not_the_connection() {
    let mut pair = two();
    let mut client = pair.serve(|house| {
        let mut client = Client::of(house.http, "ann");
        client.subscribe("chat:a");
        client.subscribe("open:a");
        client
    });
    hears(&mut pair, &mut client, "chat:a", 1);
    let_go(&mut pair);
    for number in 0..30 {
        pair.publish("chat:a", &number.to_string());
    }
    pair.finish_move(0);
    pair.serve(|_| {
        let (channel, push) = client.push();
        assert_eq!(
            (&*channel, &push["unsubscribe"]["code"]),
            ("chat:a", &2500.into())
        );
        client.subscribe("chat:a");
    });
}
