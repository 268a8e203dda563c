//! From publish to subscriber, with and without a gap to fill.

use tidegate_engine::protocol::tcp::Kind;
use tidegate_engine::reactor::Reactor;
use tidegate_engine::settings::Settings;
use tidegate_ring::uplink::{Request, RequestKind};

use crate::clients::{Binary, Uni};
use crate::house::{House, settings, wait_for};

#[test]
fn a_subscriber_gets_every_publication_in_order() {
    let mut house = House::open();
    let (mut client, reply) = Uni::connect(&house, r#"{"public:a":{}}"#);
    assert_eq!(reply["client"].as_str().unwrap().len(), 36);
    assert_eq!(reply["subs"]["public:a"]["recoverable"], true);
    for number in 1..=50 {
        assert_eq!(house.publish("public:a", &number.to_string()).1, number);
    }
    for number in 1..=50 {
        assert_eq!(
            client.next_publication(),
            ("public:a".into(), number, number.into())
        );
    }
    house.wait_for_count("deliveries_total", 50);
}

#[test]
fn every_subscriber_of_a_channel_gets_a_message_and_nobody_else() {
    let mut house = House::open();
    let mut inside: Vec<_> = (0..40)
        .map(|_| Uni::connect(&house, r#"{"public:a":{}}"#).0)
        .collect();
    let mut outside = Uni::connect(&house, r#"{"public:b":{}}"#).0;
    house.publish("public:a", r#"{"to":"a"}"#);
    house.publish("public:b", r#"{"to":"b"}"#);
    for client in &mut inside {
        assert_eq!(client.next_publication().2["to"], "a");
    }
    assert_eq!(outside.next_publication().2["to"], "b");
    assert_eq!(house.count("deliveries_total"), 41);
}

#[test]
fn a_client_that_comes_back_gets_what_it_missed() {
    let mut house = House::open();
    let (client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let (epoch, _) = house.publish("public:a", "1");
    drop(client);
    house.publish("public:a", "2");
    house.publish("public:a", "3");
    let subs = format!(r#"{{"public:a":{{"recover":true,"offset":1,"epoch":"{epoch}"}}}}"#);
    let (mut client, reply) = Uni::connect(&house, &subs);
    let sub = &reply["subs"]["public:a"];
    assert_eq!(
        (&sub["recovered"], &sub["offset"]),
        (&true.into(), &1.into())
    );
    let missed: Vec<_> = sub["publications"].as_array().unwrap().iter().collect();
    assert_eq!(missed.len(), 2);
    assert_eq!(
        (&missed[0]["data"], &missed[0]["offset"]),
        (&2.into(), &2.into())
    );
    house.publish("public:a", "4");
    assert_eq!(client.next_publication().1, 4);
    house.wait_for_count(r#"recoveries_total{result="recovered"}"#, 1);
}

#[test]
fn a_client_that_missed_too_much_is_told_so() {
    let mut house = House::open();
    for _ in 0..150 {
        house.publish("public:a", "0");
    }
    let (_client, reply) = Uni::connect(&house, r#"{"public:a":{"recover":true,"offset":1}}"#);
    let sub = &reply["subs"]["public:a"];
    assert_eq!(
        (sub.get("recovered"), &sub["was_recovering"]),
        (None, &true.into())
    );
    assert_eq!(sub["offset"], 150);
    house.wait_for_count(r#"recoveries_total{result="unrecoverable"}"#, 1);
}

#[test]
fn a_position_of_another_epoch_is_not_recovered() {
    let mut house = House::open();
    house.publish("public:a", "1");
    let subs = r#"{"public:a":{"recover":true,"offset":1,"epoch":"0badcafe"}}"#;
    let (_client, reply) = Uni::connect(&house, subs);
    assert_eq!(reply["subs"]["public:a"].get("recovered"), None);
}

#[test]
fn a_namespace_without_recovery_gives_no_position_to_recover_from() {
    let mut house = House::open();
    house.publish("live:a", "1");
    let subs = r#"{"live:a":{"recover":true,"offset":0}}"#;
    let (_client, reply) = Uni::connect(&house, subs);
    let sub = &reply["subs"]["live:a"];
    assert_eq!((sub.get("recovered"), sub.get("recoverable")), (None, None));
}

#[test]
fn a_channel_that_clients_may_not_have_is_left_out() {
    let house = House::open();
    let (_client, reply) = Uni::connect(&house, r#"{"secret":{},"public:a":{}}"#);
    let subs = reply["subs"].as_object().unwrap();
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["public:a"]);
    house.wait_for_notice(&["secret", "allow_subscribe_for_client"]);
    house.wait_for_count(r#"subscribe_errors_total{reason="denied"}"#, 1);
}

#[test]
fn a_channel_of_no_namespace_ends_the_connection() {
    let house = House::open();
    let mut client = Uni::upgraded(&house);
    client.say(r#"{"subs":{"nowhere:a":{}}}"#);
    let (disconnect, frame) = client.end();
    assert_eq!(disconnect.unwrap()["code"], 3501);
    assert_eq!(u16::from(frame.unwrap().code), 3501);
    house.wait_for_count(r#"closes_total{reason="bad_request"}"#, 1);
}

#[test]
fn binary_data_ends_json_clients_and_reaches_the_others() {
    let mut house = House::open();
    let (json, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let mut binary = Binary::connect(&house, 60_000, true);
    let (alias, _) = binary.subscribe("public:a");
    house.publish_request("public:a", b"\x00\xFF", false);
    assert_eq!(json.close_code(), 3506);
    assert_eq!(binary.next_message(), (alias, 1, b"\x00\xFF".to_vec()));
}

#[test]
fn both_dialects_get_the_same_stream() {
    let mut house = House::open();
    let (mut json, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let mut plain = Binary::connect(&house, 60_000, false);
    let mut checked = Binary::connect(&house, 60_000, true);
    let (alias, _) = plain.subscribe("public:a");
    assert_eq!(checked.subscribe("public:a").0, alias);
    for number in 1..=20u8 {
        house.publish("public:a", &number.to_string());
        assert_eq!(json.next_publication().1, u64::from(number));
        let expected = (alias.clone(), number, number.to_string().into_bytes());
        assert_eq!(plain.next_message(), expected);
        assert_eq!(checked.next_message(), expected);
    }
}

#[test]
fn after_unsubscribed_nothing_of_the_channel_comes() {
    let mut house = House::open();
    let mut client = Binary::connect(&house, 60_000, false);
    let (alias, _) = client.subscribe("public:a");
    let (other, _) = client.subscribe("public:b");
    client.send(Kind::Unsubscribe, &[&[2], &alias[..]].concat());
    assert_eq!(client.next().0, Kind::Unsubscribed);
    house.publish("public:a", "1");
    house.publish("public:b", "2");
    assert_eq!(client.next_message(), (other, 1, b"2".to_vec()));
    client.send(Kind::Unsubscribe, &[&[3], &alias[..]].concat());
    let (kind, payload) = client.next();
    assert_eq!((kind, &payload[..2]), (Kind::Error, &[3, 107][..]));
}

#[test]
fn a_binary_client_that_a_back_end_unsubscribes_is_told() {
    let mut house = House::open();
    let mut client = Binary::connect(&house, 60_000, false);
    let (alias, _) = client.subscribe("public:a");
    let order = serde_json::json!({
        "op": "unsubscribe", "client": client.client, "channel": "public:a",
    });
    let reply = house.request(Request {
        kind: RequestKind::Order,
        json: true,
        data: order.to_string().as_bytes(),
        ..Request::default()
    });
    assert_eq!(reply.status, 0);
    let (kind, payload) = client.next();
    assert_eq!((kind, payload[0]), (Kind::Unsubscribed, 0));
    assert_eq!(&payload[1..=alias.len()], alias);
}

#[test]
fn a_binary_client_recovers_what_it_missed_before_live_data() {
    let mut house = House::open();
    let epoch = house.publish("public:a", "1").0;
    house.publish("public:a", "2");
    let mut client = Binary::connect(&house, 60_000, true);
    let since = [&[1, 1, 8][..], b"public:a", &[8], epoch.as_bytes(), &[1]].concat();
    client.send(Kind::Subscribe, &since);
    let (kind, payload) = client.next();
    assert_eq!(
        (kind, payload[1]),
        (Kind::Subscribed, 3),
        "recoverable and recovered"
    );
    house.publish("public:a", "3");
    assert_eq!(client.next_message().1, 2);
    assert_eq!(client.next_message().1, 3);
}

/// Keeps the worker's thread from its work until the sender is dropped.
pub fn stop_the_clock(house: &mut House) -> std::sync::mpsc::Sender<()> {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (stopped, is_stopped) = std::sync::mpsc::channel();
    house.order(move |_: &mut Reactor| {
        stopped.send(()).unwrap();
        let _ = released.recv();
    });
    is_stopped.recv().unwrap();
    release
}

#[test]
fn a_worker_that_was_lapped_makes_its_channels_whole_from_history() {
    let mut house = House::open();
    let (mut quiet, _) = Uni::connect(&house, r#"{"public:quiet":{}}"#);
    let (mut late, _) = Uni::connect(&house, r#"{"public:late":{}}"#);
    let (busy, _) = Uni::connect(&house, r#"{"public:busy":{}}"#);
    house.publish("public:quiet", "1");
    house.publish("public:late", "1");
    assert_eq!(
        (quiet.next_publication().1, late.next_publication().1),
        (1, 1)
    );
    let clock = stop_the_clock(&mut house);
    let large = format!("\"{}\"", "x".repeat(8_000));
    for _ in 0..80 {
        house.publish("public:busy", &large);
    }
    // These are still in the log when the worker looks again.
    house.publish("public:late", "2");
    house.publish("public:late", "3");
    drop(clock);
    house.wait_for_count("laps_total", 1);
    assert_eq!(
        (late.next_publication().1, late.next_publication().1),
        (2, 3)
    );
    assert_eq!(busy.close_code(), 3010);
    house.publish("public:quiet", "2");
    assert_eq!(quiet.next_publication().1, 2);
    assert_eq!(house.count(r#"resyncs_total{result="recovered"}"#), 1);
    assert_eq!(house.count(r#"resyncs_total{result="lost"}"#), 1);
}

#[test]
fn no_wakeup_is_missed() {
    let mut house = House::open();
    let (mut client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    for number in 1..=500 {
        house.publish("public:a", "0");
        assert_eq!(client.next_publication().1, number);
    }
    wait_for("the deliveries to be shown", || {
        house.count("deliveries_total") == 500
    });
    assert_eq!(house.count(r#"missed_wakeups_total{process="worker"}"#), 0);
}

/// Clients come, go, subscribe and leave in an order from a fixed seed; after every few steps each
/// channel's message has to reach exactly those whom a plain list says.
#[test]
fn the_hub_agrees_with_a_plain_list_whatever_the_order() {
    const CHANNELS: [&str; 5] = ["public:0", "public:1", "public:2", "public:3", "public:4"];
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut house = House::open();
    let fresh = |house: &House| (Binary::connect(house, 60_000, false), Vec::new());
    type Held = Vec<(usize, Vec<u8>)>;
    let mut clients: Vec<(Binary, Held)> = (0..6).map(|_| fresh(&house)).collect();
    let mut deliveries = 0;
    for step in 0..400 {
        let (who, channel) = (random(clients.len()), random(CHANNELS.len()));
        let (client, held) = &mut clients[who];
        let place = held.iter().position(|(held, _)| *held == channel);
        match (random(12), place) {
            (0, _) => {
                let left: usize = clients.iter().map(|(_, held)| held.len()).sum();
                let left = left - clients[who].1.len();
                clients[who] = fresh(&house);
                house.wait_for_count("subscriptions", left as u64);
            }
            (_, Some(place)) => {
                let (_, alias) = held.swap_remove(place);
                client.send(Kind::Unsubscribe, &[&[1], &alias[..]].concat());
                assert_eq!(client.next().0, Kind::Unsubscribed);
            }
            (_, None) if held.len() < 4 => {
                held.push((channel, client.subscribe(CHANNELS[channel]).0))
            }
            (_, None) => {}
        }
        if step % 5 > 0 {
            continue;
        }
        for (channel, name) in CHANNELS.iter().enumerate() {
            house.publish(name, &step.to_string());
            for (client, held) in &mut clients {
                if let Some((_, alias)) = held.iter().find(|(held, _)| *held == channel) {
                    let (got, _, data) = client.next_data();
                    assert_eq!((&got, data), (alias, step.to_string().into_bytes()));
                    deliveries += 1;
                }
            }
        }
        house.wait_for_count("deliveries_total", deliveries);
    }
}

/// Publishes to more channels than the table holds, and enough to push their records out of the
/// log, until the table has had to forget some: channels made from now on begin a new epoch.
fn make_the_table_forget(house: &mut House) {
    let large = format!("\"{}\"", "x".repeat(8_000));
    for round in 0..2 {
        for channel in 0..400 {
            house.publish(&format!("public:{round}-{channel}"), "0");
            if channel % 5 == 0 {
                house.publish("public:filler", &large);
            }
        }
    }
    assert!(house.publisher_count("channel_evictions_total") > 0);
}

#[test]
fn who_waits_for_a_channels_first_publication_gets_it_whoever_else_subscribes_meanwhile() {
    let mut house = House::open();
    let (mut first, before) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let mut second = Uni::upgraded(&house);
    make_the_table_forget(&mut house);
    let clock = stop_the_clock(&mut house);
    for number in 1..=3 {
        house.publish("public:a", &number.to_string());
    }
    // The worker hears of the second subscriber before it looks into the log.
    second.say(r#"{"subs":{"public:a":{}}}"#);
    drop(clock);
    let after = second.next()["connect"]["subs"]["public:a"].clone();
    assert_ne!(before["subs"]["public:a"]["epoch"], after["epoch"]);
    assert_eq!(after["offset"], 3);
    house.publish("public:a", "4");
    for number in 1..=4 {
        assert_eq!(first.next_publication().1, number);
    }
    assert_eq!(second.next_publication().1, 4);
}

#[test]
fn a_lapped_worker_admits_that_it_cannot_know_what_came_before_a_new_epoch() {
    let mut house = House::open();
    let (client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let clock = stop_the_clock(&mut house);
    let (before, _) = house.publish("public:a", "1");
    make_the_table_forget(&mut house);
    let (after, offset) = house.publish("public:a", "2");
    assert_ne!(before, after, "the table should have forgotten the channel");
    assert_eq!(offset, 1);
    drop(clock);
    assert_eq!(client.close_code(), 3010);
}

#[test]
fn an_alias_is_not_given_to_another_channel_while_a_message_is_half_sent() {
    let mut house = House::open();
    let mut client = Binary::connect(&house, 1000, false);
    let (alias, _) = client.subscribe("public:a");
    let data = format!("\"{}\"", "z".repeat(1500));
    house.publish("public:a", &data);
    let (kind, begun) = client.next();
    assert_eq!((kind, begun[0]), (Kind::Data, 1));
    assert!(begun[1..].starts_with(&alias));
    // Without an acknowledgement the message's end has to wait.
    client.received_seq = 0;
    client.send(Kind::Unsubscribe, &[&[2], &alias[..]].concat());
    client.received_seq = 1;
    assert_eq!(client.next().0, Kind::Unsubscribed);
    client.received_seq = 0;
    client.send(Kind::Subscribe, b"\x01\x00\x08public:b");
    client.received_seq = 1;
    let (kind, subscribed) = client.next();
    assert_eq!(kind, Kind::Subscribed);
    assert!(!subscribed[2..].starts_with(&alias));
    client.send(Kind::Ack, &[]);
    let (kind, end) = client.next();
    assert_eq!((kind, end[0]), (Kind::Data, 0));
}

#[test]
fn what_is_recovered_of_several_channels_fits_the_queue_of_the_connection() {
    let mut house = House::with(Settings {
        queue_soft_bytes: 32_768,
        queue_hard_bytes: 65_536,
        ..settings()
    });
    let large = format!("\"{}\"", "x".repeat(8_000));
    for channel in ["public:a", "public:b", "public:c"] {
        for _ in 0..3 {
            house.publish(channel, &large);
        }
    }
    let since = r#"{"recover":true}"#;
    let subs = format!(r#"{{"public:a":{since},"public:b":{since},"public:c":{since}}}"#);
    let (_client, reply) = Uni::connect(&house, &subs);
    let recovered = |channel: &str| reply["subs"][channel].get("recovered").is_some();
    assert_eq!(
        ["public:a", "public:b", "public:c"].map(recovered),
        [true, false, false]
    );
}
