//! What clients publish, who hears of it, and what they may ask about a channel.

use serde_json::json;

use crate::client::{Client, settings};
use crate::house::{House, wait_for};
use crate::streams::Stream;

#[test]
fn a_publish_reaches_subscribers_with_who_made_it() {
    let house = House::with(settings());
    let (mut ann, connected) = Client::connect(house.http, &crate::client::token_of("ann"));
    ann.subscribe("chat:a");
    let mut bob = Client::of(house.http, "bob");
    bob.subscribe("chat:a");
    let published = ann.ask(
        "publish",
        json!({"channel": "chat:a", "data": {"x": [1, "\n"]}}),
    );
    assert_eq!(published, json!({}));
    for client in [&mut ann, &mut bob] {
        let publication = client.publication();
        assert_eq!(publication["data"], json!({"x": [1, "\n"]}));
        let info = &publication["info"];
        assert_eq!(
            (&info["user"], &info["client"]),
            (&"ann".into(), &connected["client"])
        );
    }
    house.wait_for_count(r#"client_publishes_total{result="accepted"}"#, 1);
}

#[test]
fn a_publish_that_is_not_allowed_is_refused_by_number() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    for (channel, data, code) in [
        ("chat:a", json!(1), 103),
        ("open:a", json!(1), 103),
        ("nowhere:a", json!(1), 102),
        ("", json!(1), 107),
    ] {
        let request = json!({"channel": channel, "data": data});
        assert_eq!(client.fails("publish", request), code, "{channel:?}");
    }
    assert_eq!(
        client.fails("publish", json!({"channel": "echoless:a"})),
        107,
        "no data"
    );
    house.wait_for_notice(&["publish", "open:a", "allow_publish_for_client"]);
}

#[test]
fn a_publication_may_pass_its_sender_by() {
    let mut house = House::with(settings());
    let mut ann = Client::of(house.http, "ann");
    ann.subscribe("echoless:a");
    let mut bob = Client::of(house.http, "bob");
    bob.subscribe("echoless:a");
    ann.ask("publish", json!({"channel": "echoless:a", "data": 1}));
    house.publish("echoless:a", "2");
    assert_eq!(ann.publication()["data"], 2);
    assert_eq!(
        [bob.publication(), bob.publication()].map(|each| each["data"].clone()),
        [1, 2]
    );
}

#[test]
fn who_is_there_comes_and_goes_is_told_to_those_who_may_know() {
    let house = House::with(settings());
    let mut ann = Client::of(house.http, "ann");
    ann.ask(
        "subscribe",
        json!({"channel": "chat:a", "join_leave": true}),
    );
    assert_eq!(ann.push().1["join"]["info"]["user"], "ann");
    let mut bob = Client::of(house.http, "bob");
    bob.subscribe("chat:a");
    assert_eq!(ann.push().1["join"]["info"]["user"], "bob");
    let presence = ann.ask("presence", json!({"channel": "chat:a"}));
    let members = presence["presence"].as_object().unwrap();
    let mut users: Vec<_> = members
        .values()
        .map(|info| info["user"].as_str().unwrap())
        .collect();
    users.sort_unstable();
    assert_eq!(users, ["ann", "bob"]);
    let stats = ann.ask("presence_stats", json!({"channel": "chat:a"}));
    assert_eq!(stats, json!({"num_clients": 2, "num_users": 2}));
    drop(bob);
    let (channel, push) = ann.push();
    assert_eq!(
        (&*channel, &push["leave"]["info"]["user"]),
        ("chat:a", &"bob".into())
    );
    let stats = ann.ask("presence_stats", json!({"channel": "chat:a"}));
    assert_eq!(stats["num_clients"], 1);
}

#[test]
fn who_only_listens_is_there_as_well() {
    let mut settings = settings();
    let chat = &mut settings.namespaces[0];
    chat.allow_subscribe_for_anonymous = true;
    let house = House::with(settings);
    let mut ann = Client::of(house.http, "ann");
    ann.subscribe("chat:a");
    let request = json!({"subs": {"chat:a": {}}});
    let mut stream = Stream::lines(house.http, "/connection/uni_http_stream", &request);
    let connected = stream.message()["connect"].take();
    let client = connected["client"].as_str().unwrap();
    // Who subscribes is answered before the publisher has heard of it.
    wait_for("its presence", || {
        let presence = ann.ask("presence", json!({"channel": "chat:a"}));
        presence["presence"][client]["user"] == ""
    });
    assert_eq!(
        connected["session"], connected["client"],
        "it has no other name"
    );
}

#[test]
fn presence_and_history_answer_only_where_they_are_on_and_allowed() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    client.subscribe("open:a");
    for method in ["presence", "presence_stats"] {
        assert_eq!(
            client.fails(method, json!({"channel": "open:a"})),
            108,
            "{method}"
        );
        assert_eq!(
            client.fails(method, json!({"channel": "chat:a"})),
            103,
            "{method}"
        );
        assert_eq!(
            client.fails(method, json!({"channel": "nowhere:a"})),
            102,
            "{method}"
        );
    }
    assert_eq!(client.fails("history", json!({"channel": "open:a"})), 103);
    assert_eq!(client.fails("history", json!({"channel": "closed:a"})), 108);
}

#[test]
fn history_is_read_from_either_end_and_its_position_alone() {
    let mut house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    client.subscribe("chat:a");
    let epoch = house.publish("chat:a", "1").0;
    for number in 2..=5 {
        house.publish("chat:a", &number.to_string());
    }
    let mut read = |more: serde_json::Value| {
        let mut request = json!({"channel": "chat:a"});
        let all = request.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        let history = client.ask("history", request);
        assert_eq!(
            (&history["offset"], &history["epoch"]),
            (&5.into(), &json!(epoch))
        );
        let publications = history["publications"].as_array().unwrap();
        publications
            .iter()
            .map(|each| each["data"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert!(read(json!({})).is_empty());
    assert_eq!(read(json!({"limit": -1})), [1, 2, 3, 4, 5]);
    assert_eq!(read(json!({"limit": 2})), [1, 2]);
    assert_eq!(read(json!({"limit": 2, "reverse": true})), [5, 4]);
    let since = json!({"offset": 3, "epoch": epoch});
    assert_eq!(read(json!({"limit": -1, "since": since})), [4, 5]);
    let before = json!({"limit": 10, "since": since, "reverse": true});
    assert_eq!(read(before), [2, 1]);
    let since = json!({"offset": 0, "epoch": epoch});
    let backwards = json!({"channel": "chat:a", "since": since, "reverse": true});
    assert_eq!(client.fails("history", backwards), 107);
    let other = json!({"channel": "chat:a", "since": {"offset": 1, "epoch": "other"}});
    assert_eq!(client.fails("history", other), 112);
}

#[test]
fn without_an_application_there_is_nobody_to_call() {
    let house = House::with(settings());
    let mut client = Client::of(house.http, "ann");
    assert_eq!(client.fails("rpc", json!({"method": "x"})), 108);
    client.say(r#"{"send":{"data":1}}"#);
    assert_eq!(client.end(), 3508);
}
