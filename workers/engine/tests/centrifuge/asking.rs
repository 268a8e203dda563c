//! What the application decides, and what clients get while it does.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_engine::asks::{AskKind, Fallback, Question, Questions};
use tidegate_engine::settings::Settings;

use crate::client::{Client, now_s, settings, token_of};
use crate::house::{House, wait_for};

/// The application: takes questions one by one.
struct App(Arc<Questions>);

impl App {
    /// Has the worker of `house` ask about these.
    fn of(house: &mut House, kinds: &'static [AskKind]) -> App {
        let (send, questions) = channel();
        house.order(move |reactor| {
            send.send(reactor.ask_about(kinds).unwrap()).unwrap();
        });
        App(Arc::new(questions.recv().unwrap()))
    }

    /// The next question: its id, kind and body.
    fn next(&self) -> (u64, AskKind, Value) {
        let mut found = None;
        wait_for("a question", || {
            found = self.0.take(1).pop();
            found.is_some()
        });
        match found {
            Some(Question::Ask { id, kind, body }) => {
                (id, kind, serde_json::from_slice(&body).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Answers the next question, which must be of this kind; returns its body.
    fn answer(&self, wanted: AskKind, answer: &Value) -> Value {
        let (id, kind, body) = self.next();
        assert_eq!(kind, wanted);
        self.0.answer(id, kind, Ok(answer.to_string().into_bytes()));
        body
    }
}

fn hooked() -> Settings {
    let mut settings = settings();
    let closed = settings
        .namespaces
        .iter_mut()
        .find(|each| each.name == "closed");
    let closed = closed.unwrap();
    closed.subscribe_hook = true;
    closed.publish_hook = true;
    closed.sub_refresh_hook = true;
    settings
}

#[test]
fn the_application_lets_clients_in_and_subscribes_them() {
    let mut house = House::with(hooked());
    let app = App::of(&mut house, &[AskKind::Connect]);
    let mut client = Client::upgraded(house.http, "");
    let connect = json!({"id": 1, "connect": {"data": {"key": 7}, "name": "test"}});
    let subscribe = json!({"id": 2, "subscribe": {"channel": "chat:a"}});
    client.say(&format!("{connect}\n{subscribe}"));
    let result = json!({"result": {
        "user": "ann", "data": {"hello": 1}, "channels": ["closed:a"], "info": {"name": "Ann"},
    }});
    let asked = app.answer(AskKind::Connect, &result);
    assert_eq!(
        (&asked["data"]["key"], &asked["transport"]),
        (&7.into(), &"websocket".into())
    );
    assert_eq!(asked["name"], "test");
    let connected = client.reply_to(1)["connect"].take();
    assert_eq!(connected["data"]["hello"], 1);
    assert!(connected["subs"]["closed:a"].is_object());
    assert!(client.reply_to(2).get("subscribe").is_some(), "in its turn");
    let mut member = Value::Null;
    // Who subscribes is answered before the publisher has heard of it.
    wait_for("the client's presence", || {
        let presence = client.ask("presence", json!({"channel": "chat:a"}));
        let members = presence["presence"].as_object().unwrap();
        member = members.values().next().cloned().unwrap_or_default();
        !member.is_null()
    });
    assert_eq!(member["conn_info"]["name"], "Ann");
}

#[test]
fn the_application_turns_clients_away_as_it_likes() {
    let mut house = House::with(hooked());
    let app = App::of(&mut house, &[AskKind::Connect]);
    let mut client = Client::upgraded(house.http, "");
    let id = client.command("connect", json!({}));
    app.answer(
        AskKind::Connect,
        &json!({"error": {"code": 777, "message": "no"}}),
    );
    assert_eq!(client.reply_to(id)["error"]["code"], 777);
    let mut client = Client::upgraded(house.http, "");
    client.command("connect", json!({}));
    let disconnect = json!({"disconnect": {"code": 4501, "reason": "never"}});
    app.answer(AskKind::Connect, &disconnect);
    assert_eq!(client.end(), 4501);
    let mut client = Client::upgraded(house.http, "");
    let id = client.command("connect", json!({}));
    let (question, kind, _) = app.next();
    app.0.answer(question, kind, Err(Fallback::Failed));
    assert_eq!(
        client.reply_to(id)["error"],
        json!({
            "code": 100, "message": "internal server error", "temporary": true,
        })
    );
}

#[test]
fn subscribe_publish_and_calls_are_the_applications_to_decide() {
    let mut house = House::with(hooked());
    let app = App::of(
        &mut house,
        &[AskKind::Subscribe, AskKind::Publish, AskKind::Rpc],
    );
    let mut client = Client::of(house.http, "ann");
    let id = client.command("subscribe", json!({"channel": "closed:a", "data": [1]}));
    let result = json!({"result": {"data": {"x": 1}}});
    let asked = app.answer(AskKind::Subscribe, &result);
    assert_eq!(
        (&asked["user"], &asked["channel"]),
        (&"ann".into(), &"closed:a".into())
    );
    assert_eq!(asked["data"], json!([1]));
    assert_eq!(client.reply_to(id)["subscribe"]["data"]["x"], 1);
    let id = client.command("subscribe", json!({"channel": "closed:b"}));
    app.answer(
        AskKind::Subscribe,
        &json!({"error": {"code": 103, "message": "no"}}),
    );
    assert_eq!(client.reply_to(id)["error"]["code"], 103);
    let id = client.command("publish", json!({"channel": "closed:a", "data": "rude"}));
    app.answer(AskKind::Publish, &json!({"result": {"data": "polite"}}));
    assert_eq!(client.reply_to(id)["publish"], json!({}));
    assert_eq!(client.publication()["data"], "polite");
    let id = client.command("rpc", json!({"method": "add", "data": [1, 2]}));
    let asked = app.answer(AskKind::Rpc, &json!({"result": {"data": 3}}));
    assert_eq!(
        (&asked["method"], &asked["data"]),
        (&"add".into(), &json!([1, 2]))
    );
    assert_eq!(client.reply_to(id)["rpc"]["data"], 3);
}

#[test]
fn commands_wait_for_the_one_before_them_and_other_clients_do_not() {
    let mut house = House::with(hooked());
    let app = App::of(&mut house, &[AskKind::Rpc]);
    let mut client = Client::of(house.http, "ann");
    client.subscribe("chat:a");
    let first = client.command("rpc", json!({"method": "slow"}));
    let second = client.command("publish", json!({"channel": "chat:a", "data": 2}));
    let mut other = Client::of(house.http, "bob");
    other.subscribe("chat:a");
    other.ask("publish", json!({"channel": "chat:a", "data": 1}));
    app.answer(AskKind::Rpc, &json!({"result": {}}));
    let mut published = Vec::new();
    while published.len() < 2 {
        let (_, push) = client.push();
        published.extend(push.get("pub").map(|each| each["data"].clone()));
        if published.len() == 1 {
            client.reply_to(first);
            client.reply_to(second);
        }
    }
    assert_eq!(published, [1, 2]);
}

#[test]
fn messages_and_ends_are_told_to_the_application() {
    let mut house = House::with(hooked());
    let app = App::of(&mut house, &[AskKind::Message, AskKind::Disconnect]);
    let mut client = Client::of(house.http, "ann");
    client.say(r#"{"send":{"data":{"x":1}}}"#);
    assert_eq!(
        app.answer(AskKind::Message, &json!({"result": {}}))["data"]["x"],
        1
    );
    client.command("connect", json!({}));
    assert_eq!(client.end(), 3501);
    let (_, kind, body) = app.next();
    assert_eq!(
        (kind, &body["user"], &body["code"]),
        (AskKind::Disconnect, &"ann".into(), &3501.into())
    );
    drop(Client::of(house.http, "bob"));
    let (_, _, body) = app.next();
    assert_eq!(
        (&body["user"], &body["code"]),
        (&"bob".into(), &3000.into())
    );
}

#[test]
fn the_application_is_asked_when_time_is_over() {
    let mut house = House::with(Settings {
        expired_close_delay: Duration::from_secs(30),
        ..hooked()
    });
    let kinds = &[
        AskKind::Connect,
        AskKind::Refresh,
        AskKind::Subscribe,
        AskKind::SubRefresh,
    ];
    let app = App::of(&mut house, kinds);
    let mut client = Client::upgraded(house.http, "");
    let id = client.command("connect", json!({}));
    let result = json!({"result": {"user": "ann", "expire_at": now_s() + 2}});
    app.answer(AskKind::Connect, &result);
    let connected = client.reply_to(id)["connect"].take();
    assert_eq!(connected.get("expires"), None, "it need not care");
    let asked = app.answer(
        AskKind::Refresh,
        &json!({"result": {"expire_at": now_s() + 1000}}),
    );
    assert_eq!(asked["user"], "ann");
    let id = client.command("subscribe", json!({"channel": "closed:a"}));
    app.answer(
        AskKind::Subscribe,
        &json!({"result": {"expire_at": now_s() + 2}}),
    );
    assert_eq!(client.reply_to(id)["subscribe"].get("expires"), None);
    let asked = app.answer(AskKind::SubRefresh, &json!({"result": {"expired": true}}));
    assert_eq!(asked["channel"], "closed:a");
    assert_eq!(client.push().1["unsubscribe"]["code"], 2501);
    client.command("refresh", json!({"token": token_of("ann")}));
    assert_eq!(client.end(), 3501, "who refreshes is settled");
}
