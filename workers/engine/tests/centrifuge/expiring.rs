//! Connections and subscriptions that end by themselves, unless they are refreshed.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_engine::settings::Settings;

use crate::client::{Client, channel_token, now_s, settings, token, token_of};
use crate::house::House;

/// Who is late is closed a second after.
fn soon() -> Settings {
    Settings {
        expired_close_delay: Duration::from_secs(1),
        ..settings()
    }
}

/// Claims count whole seconds: of this many one may be gone in a moment, and one may be wanted for
/// what comes before the end.
const SOON_S: u64 = 3;

fn expiring(user: &str, seconds: u64) -> String {
    token(&json!({"sub": user, "exp": now_s() + seconds}))
}

#[test]
fn a_connection_that_is_not_refreshed_ends() {
    let house = House::with(soon());
    let (client, result) = Client::connect(house.http, &expiring("ann", SOON_S));
    assert!((1..=SOON_S).contains(&result["ttl"].as_u64().unwrap()));
    assert_eq!(client.end(), 3005);
}

#[test]
fn a_connection_that_is_refreshed_goes_on() {
    let house = House::with(soon());
    let (mut client, _) = Client::connect(house.http, &expiring("ann", SOON_S));
    let refreshed = client.ask("refresh", json!({"token": expiring("ann", 1000)}));
    assert_eq!(refreshed["expires"], true);
    assert!(refreshed["ttl"].as_u64().unwrap() >= 900);
    let other = Client::connect(house.http, &expiring("bob", SOON_S)).0;
    assert_eq!(other.end(), 3005, "so long after");
    client.subscribe("chat:a");
    let for_ever = client.ask("refresh", json!({"token": token_of("ann")}));
    assert_eq!(for_ever, json!({}));
}

#[test]
fn a_refresh_with_a_wrong_token_is_the_end() {
    let house = House::with(soon());
    for (bad, code) in [
        (String::new(), 3501),
        ("nonsense".to_string(), 3500),
        (token_of("bob"), 3500),
        (expiring("ann", 0), 3005),
    ] {
        let mut client = Client::of(house.http, "ann");
        client.command("refresh", json!({ "token": bad }));
        assert_eq!(client.end(), code, "{bad}");
    }
}

#[test]
fn a_refresh_with_other_channels_than_those_of_the_token_before_has_the_client_come_back() {
    let house = House::with(Settings {
        personal_channel: true,
        personal_channel_namespace: "chat".to_string(),
        ..soon()
    });
    let of = |channels: &[&str]| token(&json!({"sub": "ann", "channels": channels}));
    let both = of(&["closed:a", "closed:b"]);
    let same = json!({"token": of(&["closed:b", "closed:a", "chat:own"])});
    let (mut client, _) = Client::connect(house.http, &both);
    // What it has otherwise, its token may name or not.
    client.subscribe("chat:own");
    assert_eq!(client.ask("refresh", same), json!({}));
    for others in [
        &["closed:a"][..],
        &[],
        &["closed:a", "closed:b", "closed:c"],
    ] {
        let (mut client, _) = Client::connect(house.http, &both);
        client.command("refresh", json!({ "token": of(others) }));
        assert_eq!(client.end(), 3010, "{others:?}");
    }
}

fn subscribe(client: &mut Client, channel: &str, seconds: u64) -> Value {
    let token = channel_token("ann", channel, json!({"exp": now_s() + seconds}));
    client.ask("subscribe", json!({"channel": channel, "token": token}))
}

#[test]
fn a_subscription_that_is_not_refreshed_ends_and_the_connection_stays() {
    let house = House::with(soon());
    let mut client = Client::of(house.http, "ann");
    let ttl = &subscribe(&mut client, "closed:a", SOON_S)["ttl"];
    assert!((1..=SOON_S).contains(&ttl.as_u64().unwrap()));
    let (channel, push) = client.push();
    assert_eq!(
        (&*channel, &push["unsubscribe"]["code"]),
        ("closed:a", &2501.into())
    );
    subscribe(&mut client, "closed:a", 100);
}

#[test]
fn a_subscription_is_refreshed_or_the_refusal_says_why_not() {
    let house = House::with(soon());
    let mut client = Client::of(house.http, "ann");
    subscribe(&mut client, "closed:a", SOON_S);
    let refresh = |seconds| {
        let token = channel_token("ann", "closed:a", json!({"exp": now_s() + seconds}));
        json!({"channel": "closed:a", "token": token})
    };
    let refreshed = client.ask("sub_refresh", refresh(1000));
    assert!(refreshed["ttl"].as_u64().unwrap() >= 900);
    let unknown = json!({"channel": "closed:b", "token": "x"});
    assert_eq!(client.fails("sub_refresh", unknown), 103);
    assert_eq!(
        client.fails("sub_refresh", json!({"channel": "closed:a"})),
        107
    );
    client.command("sub_refresh", refresh(0));
    assert_eq!(client.end(), 3006, "an expired token is refused");
    for (request, code) in [
        (json!({"token": "x"}), 3501),
        (json!({"channel": "closed:a", "token": "nonsense"}), 3500),
    ] {
        let mut client = Client::of(house.http, "ann");
        subscribe(&mut client, "closed:a", 100);
        client.command("sub_refresh", request);
        assert_eq!(client.end(), code);
    }
}
