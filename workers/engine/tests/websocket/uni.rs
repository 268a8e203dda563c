//! The unidirectional JSON dialect: what is asked and what is pushed.

use serde_json::{Value, from_slice, json};
use tidegate_engine::protocol::close::{ALL, Close};
use tidegate_engine::protocol::uni::{
    ConnectReply, ConnectRequest, Since, SubscribeReply, SubscribeRequest, encode_connect,
    encode_disconnect, encode_publication, parse_connect,
};
use tidegate_ring::channels::ChannelKey;
use tidegate_ring::publication::{NO_PREVIOUS, PublicationView, Source};

fn parsed(text: &str) -> ConnectRequest {
    parse_connect(text).unwrap()
}

fn publication(channel: &str, offset: u64) -> PublicationView<'_> {
    PublicationView {
        key: ChannelKey([1, 2]),
        epoch: 0xC0FFEE,
        offset,
        previous: NO_PREVIOUS,
        time_ms: 1_700_000_000_000,
        source: Source {
            uplink: 1,
            generation: 1,
            position: 64,
        },
        idempotency: None,
        version: 0,
        except: None,
        channel,
        json: true,
        delta: false,
        kept: false,
        tags: b"",
        info: b"",
        data: br#"{"flight":"UA 1545"}"#,
    }
}

#[test]
fn a_connect_request_names_its_channels() {
    let request = parsed(
        r#"{"name":"board","version":"1.2","token":"t","data":{"a": [1, 2]},
            "subs":{"public:JFK":{},"public:EWR":{"recover":true,"offset":18446744073709551615,
            "epoch":"00c0ffee"},"public:LGA":{"recover":false,"offset":7}}}"#,
    );
    assert_eq!(
        (&*request.name, &*request.version, &*request.token),
        ("board", "1.2", "t")
    );
    assert_eq!(request.data.unwrap().get(), r#"{"a": [1, 2]}"#);
    let sub = |channel: &str, recover| SubscribeRequest {
        channel: channel.into(),
        recover,
    };
    let since = Since {
        offset: u64::MAX,
        epoch: "00c0ffee".into(),
    };
    assert_eq!(
        request.subs,
        [
            sub("public:EWR", Some(since)),
            sub("public:JFK", None),
            sub("public:LGA", None)
        ]
    );
}

#[test]
fn everything_in_a_connect_request_may_be_left_out_or_null() {
    for text in [
        "{}",
        " \n{ }\n",
        r#"{"name":null,"version":null,"token":null,"data":null,"subs":null}"#,
        r#"{"flag":3,"headers":{"a":"b"},"profile":"x","unheard":{"of":[]}}"#,
    ] {
        let request = parsed(text);
        assert!(request.name.is_empty() && request.token.is_empty() && request.subs.is_empty());
    }
    let nulls = parsed(r#"{"subs":{"a":null,"b":{"recover":true,"offset":null,"epoch":null}}}"#);
    assert_eq!(nulls.subs[0].recover, None);
    assert_eq!(
        nulls.subs[1].recover,
        Some(Since {
            offset: 0,
            epoch: String::new()
        })
    );
}

#[test]
fn a_channel_named_twice_is_subscribed_once() {
    let twice = parsed(r#"{"subs":{"a":{},"a":{"recover":true,"offset":4,"epoch":"e"}}}"#);
    assert_eq!(twice.subs.len(), 1);
    assert_eq!(
        twice.subs[0].recover,
        Some(Since {
            offset: 4,
            epoch: "e".into()
        })
    );
}

#[test]
fn what_is_not_a_connect_request_is_a_bad_request() {
    for text in [
        "",
        " ",
        "null",
        "1",
        "\"x\"",
        "[]",
        r#"["name","version"]"#,
        "{",
        "{}{}",
        "{}\n{}",
        "{'name':1}",
        r#"{"name":1}"#,
        r#"{"subs":[]}"#,
        r#"{"subs":{"a":1}}"#,
        r#"{"subs":{"a":{"offset":-1}}}"#,
        r#"{"subs":{"a":{"offset":"1"}}}"#,
        r#"{"subs":{"a":{"offset":18446744073709551616}}}"#,
        r#"{"name":"\ud800"}"#,
        r#"{"data":nope}"#,
    ] {
        assert_eq!(
            parse_connect(text).map(|_| ()),
            Err(Close::BadRequest),
            "{text:.80}"
        );
    }
}

#[test]
fn deeply_nested_data_costs_no_stack() {
    let data = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let request = parsed(&format!("{{\"data\":{data}}}"));
    assert_eq!(request.data.unwrap().get(), data);
}

#[test]
fn a_connect_push_leaves_out_what_is_zero() {
    let nothing = ConnectReply {
        client: "c",
        version: "v",
        session: "",
        ping_s: 0,
        subs: &[],
    };
    assert_eq!(
        encode_connect(&nothing).unwrap(),
        br#"{"connect":{"client":"c","version":"v"}}"#
    );
    let reply = ConnectReply {
        client: "6f1c",
        version: "0.1.0",
        session: "s",
        ping_s: 25,
        subs: &[
            SubscribeReply {
                channel: "plain",
                ..SubscribeReply::default()
            },
            SubscribeReply {
                channel: "public:JFK",
                recoverable: true,
                positioned: true,
                epoch: "00c0ffee",
                offset: 3,
                was_recovering: true,
                recovered: true,
                publications: &[publication("public:JFK", 4), publication("public:JFK", 5)],
            },
        ],
    };
    assert_eq!(
        String::from_utf8(encode_connect(&reply).unwrap()).unwrap(),
        concat!(
            r#"{"connect":{"client":"6f1c","version":"0.1.0","subs":{"plain":{},"#,
            r#""public:JFK":{"recoverable":true,"epoch":"00c0ffee","publications":["#,
            r#"{"data":{"flight":"UA 1545"},"offset":4},"#,
            r#"{"data":{"flight":"UA 1545"},"offset":5}],"#,
            r#""recovered":true,"offset":3,"positioned":true,"was_recovering":true}},"#,
            r#""ping":25,"session":"s"}}"#
        )
    );
}

#[test]
fn a_publication_push_holds_data_and_tags_as_they_came() {
    let push = |publication: PublicationView| {
        String::from_utf8(encode_publication(&publication).unwrap()).unwrap()
    };
    let plain = publication("public:JFK", u64::MAX);
    assert_eq!(
        push(PublicationView {
            data: b"[1, 2.50]",
            tags: br#"{"gate":"B 7"}"#,
            ..plain
        }),
        concat!(
            r#"{"channel":"public:JFK","pub":{"data":[1, 2.50],"#,
            r#""offset":18446744073709551615,"tags":{"gate":"B 7"}}}"#
        )
    );
    assert_eq!(
        push(PublicationView {
            data: b"null",
            offset: 0,
            ..plain
        }),
        r#"{"channel":"public:JFK","pub":{"data":null}}"#
    );
}

#[test]
fn data_that_is_not_json_cannot_be_pushed() {
    let binary = PublicationView {
        json: false,
        data: b"\x00",
        ..publication("a", 1)
    };
    assert_eq!(
        encode_publication(&binary),
        Err(Close::InappropriateProtocol)
    );
    let publications = &[publication("a", 1), binary];
    let sub = SubscribeReply {
        channel: "a",
        publications,
        ..SubscribeReply::default()
    };
    let reply = ConnectReply {
        client: "c",
        version: "v",
        session: "",
        ping_s: 0,
        subs: &[sub],
    };
    assert_eq!(encode_connect(&reply), Err(Close::InappropriateProtocol));
}

#[test]
fn any_channel_name_survives_the_json_around_it() {
    for channel in [
        "quote\"",
        "back\\slash",
        "tab\tline\nnul\0",
        "\u{7f}\u{2028}é🌊",
        "</script>",
    ] {
        let push = encode_publication(&publication(channel, 1)).unwrap();
        let value: Value = from_slice(&push).unwrap();
        assert_eq!(value["channel"], channel);
        assert!(!push.contains(&b'\n'));
        let sub = SubscribeReply {
            channel,
            offset: 9,
            ..SubscribeReply::default()
        };
        let reply = ConnectReply {
            client: "c",
            version: "v",
            session: "",
            ping_s: 0,
            subs: &[sub],
        };
        let value: Value = from_slice(&encode_connect(&reply).unwrap()).unwrap();
        assert_eq!(
            value["connect"]["subs"],
            json!({ channel: { "offset": 9 } })
        );
    }
}

#[test]
fn a_disconnect_push_tells_code_and_reason() {
    assert_eq!(
        encode_disconnect(Close::Shutdown),
        br#"{"disconnect":{"code":3001,"reason":"shutdown"}}"#
    );
    for &close in ALL {
        let value: Value = from_slice(&encode_disconnect(close)).unwrap();
        let expected = json!({"code": close.code(), "reason": close.reason()});
        assert_eq!(value, json!({"disconnect": expected}));
    }
}
