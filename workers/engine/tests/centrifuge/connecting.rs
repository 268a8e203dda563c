//! Who gets in, and what they are told.

use serde_json::json;
use tidegate_engine::settings::Settings;

use crate::client::{Client, now_s, settings, token, token_of};
use crate::house::House;

#[test]
fn a_token_opens_a_connection_and_the_reply_says_what_clients_need() {
    let house = House::with(settings());
    let (_client, result) = Client::connect(house.http, &token_of("ann"));
    assert_eq!(result["client"].as_str().unwrap().len(), 36);
    assert_eq!(result["version"], "0.1.0");
    assert_eq!(
        (&result["ping"], &result["pong"]),
        (&60.into(), &true.into())
    );
    for absent in ["session", "node", "expires", "ttl", "subs", "data"] {
        assert!(result.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn a_token_that_expires_says_when() {
    let house = House::with(settings());
    let claims = json!({"sub": "ann", "exp": now_s() + 1000});
    let (_client, result) = Client::connect(house.http, &token(&claims));
    assert_eq!(result["expires"], true);
    assert!((990..=1000).contains(&result["ttl"].as_u64().unwrap()));
}

#[test]
fn an_expired_token_is_an_error_after_which_nothing_is_taken() {
    let house = House::with(settings());
    let mut client = Client::upgraded(house.http, "");
    let claims = json!({"sub": "ann", "exp": now_s() - 10});
    assert_eq!(
        client.fails("connect", json!({"token": token(&claims)})),
        109
    );
    client.command("subscribe", json!({"channel": "chat:a"}));
    assert_eq!(client.end(), 3501);
}

#[test]
fn a_bad_token_is_the_end() {
    let house = House::with(settings());
    for bad in ["nonsense", &(token_of("ann") + "x")] {
        let mut client = Client::upgraded(house.http, "");
        client.command("connect", json!({ "token": bad }));
        assert_eq!(client.end(), 3500);
    }
    house.wait_for_count(r#"closes_total{reason="invalid_token"}"#, 2);
}

#[test]
fn who_shows_no_token_gets_in_only_where_that_is_allowed() {
    let house = House::with(settings());
    let mut client = Client::upgraded(house.http, "");
    client.command("connect", json!({}));
    assert_eq!(client.end(), 3501);
    house.wait_for_notice(&["client.allow_anonymous"]);
    let house = House::with(Settings {
        allow_anonymous: true,
        ..settings()
    });
    let (mut client, _) = Client::connect(house.http, "");
    client.subscribe("open:a");
    assert_eq!(client.fails("subscribe", json!({"channel": "chat:a"})), 103);
}

#[test]
fn a_token_of_nobody_opens_a_connection_unless_that_is_forbidden() {
    let nobody = [json!({}), json!({"sub": "", "channels": ["open:a"]})].map(|it| token(&it));
    let house = House::with(settings());
    for token in &nobody {
        Client::connect(house.http, token);
    }
    let house = House::with(Settings {
        allow_anonymous_tokens: false,
        ..settings()
    });
    for token in &nobody {
        let mut client = Client::upgraded(house.http, "");
        client.command("connect", json!({ "token": token }));
        assert_eq!(client.end(), 3507);
    }
    house.wait_for_notice(&["client.allow_anonymous_tokens"]);
    Client::of(house.http, "ann");
}

#[test]
fn the_first_command_is_a_connect_and_no_other_is() {
    let house = House::with(settings());
    let mut early = Client::upgraded(house.http, "");
    early.command("subscribe", json!({"channel": "chat:a"}));
    assert_eq!(early.end(), 3501);
    let mut twice = Client::of(house.http, "ann");
    twice.command("connect", json!({}));
    assert_eq!(twice.end(), 3501);
}

#[test]
fn commands_of_one_message_are_done_in_order() {
    let house = House::with(settings());
    let mut client = Client::upgraded(house.http, "");
    let connect = json!({"connect": {"token": token_of("ann")}, "id": 1});
    let subscribe = json!({"subscribe": {"channel": "chat:a"}, "id": 2});
    client.say(&format!("{connect}\n{subscribe}\n"));
    assert!(client.reply_to(1).get("connect").is_some());
    assert!(client.reply_to(2).get("subscribe").is_some());
}

#[test]
fn what_is_no_command_ends_the_connection() {
    let house = House::with(settings());
    for nonsense in ["", "nonsense", "[]", r#"{"id":7}"#, r#"{"id":7,"ping":{}}"#] {
        let mut client = Client::of(house.http, "ann");
        client.say(nonsense);
        assert_eq!(client.end(), 3501, "{nonsense:?}");
    }
}

#[test]
fn channels_of_a_token_and_the_own_one_are_subscribed_at_once_and_recover() {
    let mut house = House::with(Settings {
        personal_channel: true,
        personal_channel_namespace: "chat".to_string(),
        ..settings()
    });
    let (epoch, _) = house.publish("closed:a", "1");
    house.publish("closed:a", "2");
    let claims = json!({
        "sub": "ann",
        "subs": {"closed:a": {"data": {"x": 1}, "override": {"force_recovery": {"value": true}}}},
    });
    let mut client = Client::upgraded(house.http, "");
    let known = json!({"closed:a": {"recover": true, "offset": 1, "epoch": epoch}});
    let result = client.ask("connect", json!({"token": token(&claims), "subs": known}));
    let subs = result["subs"].as_object().unwrap();
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["chat:#ann", "closed:a"]);
    let sub = &subs["closed:a"];
    assert_eq!(
        (&sub["recovered"], &sub["data"]["x"]),
        (&true.into(), &1.into())
    );
    assert_eq!(sub["publications"], json!([{"data": 2, "offset": 2}]));
    house.publish("closed:a", "3");
    house.publish("chat:#ann", "4");
    let data = [client.publication(), client.publication()].map(|each| each["data"].clone());
    assert_eq!(data, [json!(3), json!(4)]);
}

#[test]
fn a_token_for_a_channel_of_no_namespace_is_an_error() {
    let house = House::with(settings());
    let mut client = Client::upgraded(house.http, "");
    let claims = json!({"sub": "ann", "channels": ["nowhere:a"]});
    assert_eq!(
        client.fails("connect", json!({"token": token(&claims)})),
        102
    );
}

#[test]
fn a_user_has_no_more_connections_than_it_may() {
    let house = House::with(Settings {
        user_connections_max: 1,
        ..settings()
    });
    let first = Client::of(house.http, "ann");
    let mut second = Client::upgraded(house.http, "");
    second.command("connect", json!({"token": token_of("ann")}));
    assert_eq!(second.end(), 3504);
    Client::of(house.http, "bob");
    drop(first);
    house.wait_for_count(r#"connections{transport="websocket"}"#, 0);
    Client::of(house.http, "ann");
}
