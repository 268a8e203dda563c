//! Subscriptions: who may have them, what they are told, how they recover and end.

use serde_json::{Value, json};
use tidegate_ring::uplink::{Request, RequestKind};

use crate::client::{Client, channel_token, now_s, settings};
use crate::house::House;

fn refusals(client: &mut Client, channels: &[(&str, u64)]) {
    for (channel, code) in channels {
        let request = json!({ "channel": channel });
        assert_eq!(client.fails("subscribe", request), *code, "{channel:?}");
    }
}

#[test]
fn what_is_closed_is_refused_by_number_and_the_log_says_what_opens_it() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    client.subscribe("chat:a");
    refusals(
        &mut client,
        &[
            ("nowhere:a", 102),
            ("closed:a", 103),
            ("chat:a", 105),
            ("", 107),
            ("chat:\u{e4}", 107),
            ("$chat:a", 103),
        ],
    );
    house.wait_for_notice(&["closed:a", "ann", "allow_subscribe_for_client"]);
    house.wait_for_notice(&["$chat:a", "subscription token"]);
    for number in 0..3 {
        client.subscribe(&format!("chat:{number}"));
    }
    refusals(&mut client, &[("chat:b", 106)]);
}

#[test]
fn a_subscription_token_wins_over_what_is_closed() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    let subscribe = |client: &mut Client, channel: &str, token: String| {
        client.reply("subscribe", json!({"channel": channel, "token": token}))
    };
    let claims = json!({"data": {"x": 1}, "exp": now_s() + 100});
    let token = channel_token("ann", "$closed:a", claims);
    let reply = subscribe(&mut client, "$closed:a", token);
    let result = &reply["subscribe"];
    assert_eq!(
        (&result["data"]["x"], &result["expires"]),
        (&1.into(), &true.into())
    );
    let late = channel_token("ann", "$closed:b", json!({"exp": now_s() - 1}));
    let reply = subscribe(&mut client, "$closed:b", late);
    assert_eq!(reply["error"]["code"], 109);
    let reply = subscribe(&mut client, "$closed:b", "nonsense".to_string());
    assert_eq!(reply["error"]["code"], 103);
    for (user, channel) in [("bob", "$closed:b"), ("ann", "$closed:c")] {
        let mut client = Client::of(house.http, "ann");
        let token = channel_token(user, channel, json!({}));
        client.command("subscribe", json!({"channel": "$closed:b", "token": token}));
        assert_eq!(client.end(), 3500, "{user} {channel}");
    }
}

#[test]
fn the_users_in_a_channels_name_get_in_and_no_others() {
    let house = House::with(settings());
    let mut ann = Client::of(house.http, "ann");
    ann.subscribe("users:dialog#bob,ann");
    refusals(
        &mut ann,
        &[("users:dialog#bob", 103), ("users:dialog", 103)],
    );
}

#[test]
fn a_subscription_begins_at_the_top_and_goes_on_live() {
    let mut house = House::with(settings());
    let (epoch, _) = house.publish("chat:a", "1");
    let mut client = Client::of(house.http, "ann");
    let result = client.subscribe("chat:a");
    assert_eq!(
        (&result["epoch"], &result["offset"]),
        (&json!(epoch), &1.into())
    );
    assert!(result.get("publications").is_none());
    house.publish("chat:a", "2");
    assert_eq!(client.publication(), json!({"data": 2, "offset": 2}));
    client.ask("unsubscribe", json!({"channel": "chat:a"}));
    house.publish("chat:a", "3");
    client.subscribe("chat:b");
    house.publish("chat:b", "4");
    assert_eq!(client.publication()["data"], 4);
}

fn recover(client: &mut Client, channel: &str, epoch: &str, offset: u64) -> Value {
    client.ask(
        "subscribe",
        json!({
            "channel": channel, "recoverable": true,
            "recover": true, "epoch": epoch, "offset": offset,
        }),
    )
}

#[test]
fn what_was_missed_comes_with_the_reply_in_order() {
    let mut house = House::with(settings());
    let (epoch, _) = house.publish("chat:a", "1");
    house.publish("chat:a", "2");
    house.publish("chat:a", "3");
    let mut client = Client::of(house.http, "ann");
    let result = recover(&mut client, "chat:a", &epoch, 1);
    assert_eq!(result["recovered"], true);
    assert_eq!(result["offset"], 1, "where the client left off");
    assert_eq!(
        result["publications"],
        json!([{"data": 2, "offset": 2}, {"data": 3, "offset": 3}])
    );
    for flag in ["was_recovering", "recoverable", "positioned"] {
        assert_eq!(result[flag], true, "{flag}");
    }
    let mut current = Client::of(house.http, "bob");
    let result = recover(&mut current, "chat:a", &epoch, 3);
    assert_eq!(
        (&result["recovered"], result.get("publications")),
        (&true.into(), None)
    );
}

#[test]
fn who_missed_more_than_there_is_is_told() {
    let mut house = House::with(settings());
    let (epoch, _) = house.publish("chat:a", "1");
    for _ in 0..20 {
        house.publish("chat:a", "2");
    }
    let mut client = Client::of(house.http, "ann");
    for (channel, epoch, offset) in [("chat:a", &*epoch, 1), ("chat:a", "0badcafe", 21)] {
        let result = recover(&mut client, channel, epoch, offset);
        assert_eq!(
            (result.get("recovered"), &result["offset"]),
            (None, &21.into())
        );
        assert_eq!(result["was_recovering"], true);
        client.ask("unsubscribe", json!({ "channel": channel }));
    }
    let all_or_nothing = json!({
        "channel": "chat:a", "recover": true, "epoch": epoch, "offset": 1, "flag": 2,
    });
    assert_eq!(client.fails("subscribe", all_or_nothing), 112);
    assert_eq!(
        client.fails("presence", json!({"channel": "chat:a"})),
        103,
        "not subscribed"
    );
}

#[test]
fn a_history_that_was_removed_is_told_as_lost() {
    let mut house = House::with(settings());
    let (epoch, _) = house.publish("chat:a", "1");
    house.publish("chat:a", "2");
    house.request(Request {
        kind: RequestKind::HistoryRemove,
        channel: "chat:a",
        ..Request::default()
    });
    let mut client = Client::of(house.http, "ann");
    let result = recover(&mut client, "chat:a", &epoch, 1);
    assert_eq!(
        (result.get("recovered"), &result["offset"]),
        (None, &2.into())
    );
}

#[test]
fn a_cache_gives_the_newest_alone_to_who_has_not_got_it() {
    let mut house = House::with(settings());
    let (epoch, _) = house.publish("cache:a", "1");
    house.publish("cache:a", "2");
    for (offset, expected) in [(0, json!([{"data": 2, "offset": 2}])), (2, Value::Null)] {
        let mut client = Client::of(house.http, "ann");
        let result = recover(&mut client, "cache:a", &epoch, offset);
        assert_eq!(result["recovered"], true);
        assert_eq!(result["publications"], expected);
    }
}

#[test]
fn unknown_kinds_of_subscription_are_not_available() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    let map = json!({"channel": "chat:a", "type": 1});
    assert_eq!(client.fails("subscribe", map), 108);
}

#[test]
fn differences_come_to_the_same_data() {
    let mut house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    let request = json!({"channel": "delta:a", "delta": "fossil"});
    assert_eq!(client.ask("subscribe", request)["delta"], true);
    let text = |number: u32| format!(r#"{{"long":"{}","number":{number}}}"#, "tide".repeat(50));
    let publish = |house: &mut House, data: &str| {
        let reply = house.request(Request {
            json: true,
            delta: true,
            channel: "delta:a",
            data: data.as_bytes(),
            ..Request::default()
        });
        assert_eq!(reply.status, 0);
    };
    publish(&mut house, &text(1));
    publish(&mut house, &text(2));
    publish(&mut house, "3");
    let first = client.publication();
    assert_eq!(
        (&first["data"], first.get("delta")),
        (&json!(text(1)), None)
    );
    let second = client.publication();
    assert_eq!(second["delta"], true);
    assert!(second["data"].as_str().unwrap().len() < 60, "{second}");
    let third = client.publication();
    assert_eq!(
        (&third["data"], third.get("delta")),
        (&json!("3"), None),
        "no shorter"
    );
    let mut plain = Client::of(house.http, "bob");
    plain.subscribe("delta:a");
    publish(&mut house, &text(4));
    assert_eq!(plain.publication()["data"]["number"], 4);
}

#[test]
fn who_recovers_takes_the_next_one_as_a_difference_and_one_without_offset_is_no_base() {
    let mut house = House::with(settings());
    let text = |number: u32| format!(r#"{{"long":"{}","number":{number}}}"#, "tide".repeat(50));
    let publish = |house: &mut House, data: &str, skip_history: bool| {
        let reply = house.request(Request {
            json: true,
            delta: true,
            skip_history,
            channel: "delta:a",
            data: data.as_bytes(),
            ..Request::default()
        });
        assert_eq!(reply.status, 0);
    };
    let mut first = Client::of(house.http, "ann");
    let fresh = first.ask(
        "subscribe",
        json!({"channel": "delta:a", "delta": "fossil"}),
    );
    publish(&mut house, &text(1), false);
    publish(&mut house, &text(2), false);
    let mut second = Client::of(house.http, "bob");
    let request = json!({
        "channel": "delta:a", "delta": "fossil", "recoverable": true,
        "recover": true, "offset": 0, "epoch": fresh["epoch"],
    });
    let recovered = second.ask("subscribe", request)["publications"].take();
    assert_eq!(
        (&recovered[0]["data"], recovered[0].get("delta")),
        (&json!(text(1)), None)
    );
    assert_eq!(recovered[1]["delta"], true);
    publish(&mut house, &text(3), false);
    assert_eq!(second.publication()["delta"], true, "it has the one before");
    publish(&mut house, &text(4), true);
    publish(&mut house, &text(5), false);
    for number in [4, 5] {
        let publication = second.publication();
        assert_eq!(
            (&publication["data"], publication.get("delta")),
            (&json!(text(number)), None)
        );
    }
}
