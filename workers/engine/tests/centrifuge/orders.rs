//! What back ends order for the connections of a user.

use serde_json::{Value, json};
use tidegate_ring::uplink::{Request, RequestKind};

use crate::client::{Client, now_s, settings, token_of};
use crate::house::House;

fn order(house: &mut House, order: Value) {
    let reply = house.request(Request {
        kind: RequestKind::Order,
        json: true,
        data: order.to_string().as_bytes(),
        ..Request::default()
    });
    assert_eq!(reply.status, 0);
}

#[test]
fn a_user_is_subscribed_and_unsubscribed_on_all_its_connections() {
    let mut house = House::with(settings());
    let mut anns = [Client::of(house.http, "ann"), Client::of(house.http, "ann")];
    let mut bob = Client::of(house.http, "bob");
    let (epoch, _) = house.publish("chat:a", "1");
    let subscribe = json!({
        "op": "subscribe", "user": "ann", "channel": "chat:a", "data": {"x": 1},
        "recover_since": {"offset": 0, "epoch": epoch},
    });
    order(&mut house, subscribe);
    house.publish("chat:a", "2");
    for ann in &mut anns {
        let (channel, push) = ann.push();
        let subscribe = &push["subscribe"];
        assert_eq!((&*channel, &subscribe["data"]["x"]), ("chat:a", &1.into()));
        assert_eq!(
            (subscribe.get("offset"), &subscribe["recoverable"]),
            (None, &true.into())
        );
        assert_eq!(
            [ann.publication(), ann.publication()].map(|each| each["data"].clone()),
            [1, 2]
        );
    }
    order(
        &mut house,
        json!({"op": "unsubscribe", "user": "ann", "channel": "chat:a"}),
    );
    for ann in &mut anns {
        assert_eq!(ann.push().1["unsubscribe"]["code"], 2000);
    }
    bob.subscribe("chat:b");
}

#[test]
fn an_order_may_name_one_connection_and_spare_others() {
    let mut house = House::with(settings());
    let (one, first) = Client::connect(house.http, &token_of("ann"));
    let (two, second) = Client::connect(house.http, &token_of("ann"));
    let (mut three, third) = Client::connect(house.http, &token_of("ann"));
    order(
        &mut house,
        json!({"op": "disconnect", "user": "ann", "client": first["client"]}),
    );
    assert_eq!(one.end(), 3503);
    order(
        &mut house,
        json!({
            "op": "disconnect", "user": "ann", "whitelist": [third["client"]],
            "code": 4300, "reason": "moved out",
        }),
    );
    assert_eq!(two.end(), 4300);
    three.subscribe("chat:a");
    order(
        &mut house,
        json!({"op": "disconnect", "user": "", "client": third["client"]}),
    );
    assert_eq!(three.end(), 3503);
    assert!(second["client"].is_string());
    house.wait_for_count(r#"closes_total{reason="application"}"#, 1);
}

#[test]
fn a_refresh_is_told_and_an_end_is_one() {
    let mut house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    let later = now_s() + 100;
    order(
        &mut house,
        json!({"op": "refresh", "user": "ann", "expire_at": later}),
    );
    let push = client.push().1;
    assert_eq!(push["refresh"]["expires"], true);
    assert!(push["refresh"]["ttl"].as_u64().unwrap() <= 100);
    order(
        &mut house,
        json!({"op": "refresh", "user": "ann", "expired": true}),
    );
    assert_eq!(client.end(), 3005);
}

#[test]
fn an_order_that_nobody_understands_is_counted() {
    let mut house = House::with(settings());
    // A worker heeds what comes after it has begun, which it has when it serves somebody.
    let _client = Client::of(house.http, "ann");
    order(&mut house, json!({"op": "dance", "user": "ann"}));
    house.wait_for_count("orders_invalid_total", 1);
}
