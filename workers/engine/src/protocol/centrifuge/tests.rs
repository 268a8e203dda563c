//! Commands, right and wrong, and what becomes of the application's values on the way.

mod vectors;

use proptest::prelude::*;

use super::*;
use crate::protocol::close::Close;
use crate::protocol::protobuf::end_message;

fn delimited(message: &[u8]) -> Vec<u8> {
    let mut out = message.to_vec();
    end_message(&mut out, 0);
    out
}

fn json(message: &str) -> Result<Vec<Command>, Close> {
    parse_commands(Encoding::Json, message.as_bytes())
}

fn protobuf(message: &[u8]) -> Result<Vec<Command>, Close> {
    parse_commands(Encoding::Protobuf, message)
}

fn one(message: &str) -> Request {
    let [command] = json(message).unwrap().try_into().unwrap();
    command.request
}

#[test]
fn what_is_no_message_of_commands_is_a_bad_request() {
    for text in [
        "",
        "\n",
        "{}\n\n{}",
        "{}\n\n",
        "\n{}",
        "[]",
        "1",
        "null",
        "{",
        "{}{}",
        "{\"id\":-1}",
        "{\"id\":4294967296}",
        "{\"id\":1}",
        "{\"id\":1,\"unknown\":{}}",
        "{\"id\":1,\"ping\":{}}",
        "{\"id\":1,\"publish\":{\"channel\":1}}",
        "{\"id\":1,\"publish\":{\"data\":{\"a\"}}}",
        "{\"id\":1,\"history\":{\"since\":{\"offset\":-1}}}",
    ] {
        assert_eq!(json(text), Err(Close::BadRequest), "{text}");
    }
    for bytes in [
        &[][..],
        &[1],
        &[2, 0x08],
        // Only an id; a ping; a channel that is not UTF-8; a method that is a number.
        &[2, 0x08, 1],
        &[4, 0x08, 1, 0x5A, 0],
        &[7, 0x08, 1, 0x32, 3, 0x0A, 1, 0xFF],
        &[4, 0x08, 1, 0x20, 1],
    ] {
        assert_eq!(protobuf(bytes), Err(Close::BadRequest), "{bytes:02x?}");
    }
}

#[test]
fn null_is_the_value_of_what_is_left_out() {
    let nothing = "{\"id\":1,\"ping\":null,\"connect\":{\"token\":null,\"data\":null,\"subs\":\
                   {\"a\":null},\"name\":null,\"version\":null,\"headers\":null,\"flag\":null}}";
    let expected = ConnectRequest {
        subs: vec![SubscribeRequest {
            channel: "a".to_owned(),
            ..SubscribeRequest::default()
        }],
        ..ConnectRequest::default()
    };
    assert_eq!(one(nothing), Request::Connect(expected));
    assert_eq!(one("{\"id\":null,\"send\":null}"), Request::Pong);
}

#[test]
fn data_is_passed_on_as_it_stands() {
    let data = |text: &str| match one(&format!("{{\"id\":1,\"rpc\":{{\"data\":{text}}}}}")) {
        Request::Rpc { data, .. } => String::from_utf8(data).unwrap(),
        other => panic!("{other:?}"),
    };
    for text in [
        "{\"a\" :  1.0e5, \"a\": 2}",
        "\"\\u00e9\"",
        "9007199254740993",
        "[ ]",
    ] {
        assert_eq!(data(text), text);
    }
    assert_eq!(data("null"), "");
}

#[test]
fn a_kind_of_subscription_that_is_no_stream_is_told() {
    let request = Request::Subscribe(SubscribeRequest {
        channel: "a".to_owned(),
        kind: 3,
        ..SubscribeRequest::default()
    });
    assert_eq!(
        one("{\"id\":1,\"subscribe\":{\"type\":3,\"channel\":\"a\"}}"),
        request
    );
    let bytes = [9, 0x08, 1, 0x2A, 5, 0x0A, 1, b'a', 0x78, 3];
    assert_eq!(protobuf(&bytes).unwrap()[0].request, request);
}

#[test]
fn a_one_way_client_sends_a_bare_request() {
    let request = parse_uni_connect(b" {\"subs\":{\"b\":{},\"a\":{\"recover\":true}},\"id\":7}\n");
    let subs = request.unwrap().subs;
    let channels: Vec<_> = subs.iter().map(|sub| sub.channel.as_str()).collect();
    assert_eq!(channels, ["a", "b"]);
    assert_eq!(subs[0].recover, Some(Since::default()));
    for wrong in [
        &b""[..],
        b"[]",
        b"null",
        b"{\"subs\":[]}",
        b"{\"subs\":{\"a\":1}}",
        b"{\"subs\":{\"a\":{\"offset\":\"1\"}}}",
        b"{\"name\":\"\\ud800\"}",
        b"{\"data\":nope}",
        b"{}\n{}",
        b"\xFF",
    ] {
        assert_eq!(parse_uni_connect(wrong), Err(Close::BadRequest));
    }
}

#[test]
fn a_channel_named_twice_is_subscribed_once() {
    let text = br#"{"subs":{"a":{},"a":{"recover":true,"offset":4}}}"#;
    let connect = b"\x1A\x05\x0A\x01a\x12\x00\x1A\x09\x0A\x01a\x12\x04\x18\x01\x38\x04";
    let message = [b"\x08\x01\x22\x12", &connect[..]].concat();
    let Request::Connect(in_protobuf) = protobuf(&delimited(&message)).unwrap().remove(0).request
    else {
        panic!("no connect request");
    };
    let in_json = parse_uni_connect(text).unwrap();
    assert_eq!((in_json.subs.len(), &in_json.subs), (1, &in_protobuf.subs));
    assert_eq!(in_json.subs[0].recover.as_ref().unwrap().offset, 4);
}

#[test]
fn deeply_nested_data_costs_no_stack() {
    let data = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let request = parse_uni_connect(format!("{{\"data\":{data}}}").as_bytes());
    assert_eq!(request.unwrap().data, data.as_bytes());
}

#[test]
fn both_encodings_of_an_emulation_request_mean_the_same() {
    let text = br#"{"session":"s","node":"n","data":"{\"id\":1}\n{}"}"#;
    let bytes = b"\x0A\x01n\x12\x01s\x1A\x0B{\"id\":1}\n{}";
    let expected = EmulationRequest {
        node: "n".to_owned(),
        session: "s".to_owned(),
        data: b"{\"id\":1}\n{}".to_vec(),
    };
    let read = |encoding, body| parse_emulation(encoding, body);
    assert_eq!(read(Encoding::Json, text), Some(expected.clone()));
    assert_eq!(read(Encoding::Protobuf, bytes), Some(expected));
    assert_eq!(read(Encoding::Json, bytes), None);
    assert_eq!(read(Encoding::Protobuf, text), None);
}

const INFO: ClientInfo<'_> = ClientInfo {
    user: "ann",
    client: "8d7c1a52-7f0e-4d0b-9a60-0a2f4f6a7a11",
    conn_info: b"{\"name\":\"Ann\"}",
    chan_info: b"[1]",
};

const BARE: Publication<'_> = Publication {
    data: Data::Plain(b"0"),
    json: true,
    info: b"",
    offset: 0,
    tags: b"",
};

fn pushed(encoding: Encoding, data: Data<'_>, json: bool) -> Result<Vec<u8>, Close> {
    let publication = Publication {
        data,
        json,
        offset: 1,
        ..BARE
    };
    let mut out = Vec::new();
    encode_push(&mut out, encoding, "a", &Push::Publication(&publication))?;
    Ok(out)
}

#[test]
fn a_delta_is_text_in_json_and_bytes_in_protobuf() {
    let text = |data| String::from_utf8(pushed(Encoding::Json, data, true).unwrap()).unwrap();
    assert_eq!(
        text(Data::Whole(b"{\"a\":\n1}")),
        r#"{"push":{"channel":"a","pub":{"data":"{\"a\":\n1}","offset":1}}}"#
    );
    assert_eq!(
        text(Data::Delta(b"1\n1:\"1;")),
        r#"{"push":{"channel":"a","pub":{"data":"1\n1:\"1;","offset":1,"delta":true}}}"#
    );
    let bytes = |data| pushed(Encoding::Protobuf, data, true).unwrap();
    assert_eq!(bytes(Data::Whole(b"1")), bytes(Data::Plain(b"1")));
    assert!(bytes(Data::Delta(b"1")).ends_with(b"\x22\x011\x30\x01\x40\x01"));
}

#[test]
fn what_is_not_json_is_for_protobuf_alone() {
    let data = Data::Plain(b"\xFF\n");
    assert_eq!(
        pushed(Encoding::Json, data, false),
        Err(Close::InappropriateProtocol)
    );
    assert!(pushed(Encoding::Protobuf, data, false).is_ok());
    let cut = Data::Delta(b"\xC3");
    assert_eq!(
        pushed(Encoding::Json, cut, true),
        Err(Close::InappropriateProtocol)
    );
}

#[test]
fn one_way_clients_get_pushes_with_nothing_around_them() {
    let uni = |channel, push: &Push<'_>| {
        let mut out = Vec::new();
        encode_uni_push(&mut out, channel, push).unwrap();
        String::from_utf8(out).unwrap()
    };
    let connected = ConnectResult {
        client: "c",
        ping: 25,
        ..ConnectResult::default()
    };
    assert_eq!(
        uni("", &Push::Connect(&connected)),
        r#"{"connect":{"client":"c","ping":25}}"#
    );
    assert_eq!(
        uni("a", &Push::Leave(&INFO.encode())),
        format!(
            r#"{{"channel":"a","leave":{{"info":{{"user":"ann","client":"{}",{}}}}}}}"#,
            INFO.client, r#""conn_info":{"name":"Ann"},"chan_info":[1]"#
        )
    );
    let disconnect = Push::Disconnect {
        code: 3008,
        reason: "slow",
    };
    assert_eq!(
        uni("", &disconnect),
        r#"{"disconnect":{"code":3008,"reason":"slow"}}"#
    );
}

#[test]
fn tags_with_values_that_are_not_text_are_written_as_they_stand() {
    let publication = Publication {
        tags: b"{\"n\": 1.50}",
        ..BARE
    };
    let mut out = Vec::new();
    encode_push(
        &mut out,
        Encoding::Protobuf,
        "a",
        &Push::Publication(&publication),
    )
    .unwrap();
    assert!(out.ends_with(b"\x3A\x09\x0A\x01n\x12\x041.50"));
}

proptest! {
    #[test]
    fn a_client_info_is_read_as_it_was_written(
        user in "\\PC{0,20}",
        client in "[0-9a-f-]{0,36}",
        conn_info in prop::collection::vec(any::<u8>(), 0..100),
        chan_info in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let info = ClientInfo {
            user: &user,
            client: &client,
            conn_info: &conn_info,
            chan_info: &chan_info,
        };
        let encoded = info.encode();
        prop_assert_eq!(ClientInfo::parse(&encoded), Some(info));
    }

    #[test]
    fn a_publication_in_json_says_what_was_published(
        channel in "\\PC{1,30}|[\"\\\\\t\n\0\u{7f}\u{2028}é🌊</]{1,5}",
        text in "\\PC{0,50}",
        tags in prop::collection::btree_map("\\PC{0,9}", "\\PC{0,9}", 0..4),
        offset in 1_u64..,
    ) {
        let data = serde_json::json!({ "text": text, "list": [1.5, null] });
        let tags = serde_json::json!(tags);
        let info = INFO.encode();
        let publication = Publication {
            data: Data::Plain(&serde_json::to_vec_pretty(&data).unwrap()),
            json: true,
            info: &info,
            offset,
            tags: &serde_json::to_vec_pretty(&tags).unwrap(),
        };
        let mut out = Vec::new();
        encode_push(&mut out, Encoding::Json, &channel, &Push::Publication(&publication)).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let push = &read["push"];
        prop_assert_eq!(&push["channel"], &channel);
        prop_assert_eq!(&push["pub"]["data"], &data);
        prop_assert_eq!(&push["pub"]["tags"], &tags);
        prop_assert_eq!(&push["pub"]["offset"], &offset);
        prop_assert_eq!(&push["pub"]["info"]["user"], INFO.user);
    }

    #[test]
    fn arbitrary_bytes_are_commands_or_a_bad_request(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            if let Err(close) = parse_commands(encoding, &bytes) {
                prop_assert_eq!(close, Close::BadRequest);
            }
            parse_emulation(encoding, &bytes);
        }
        let _ = parse_uni_connect(&bytes);
        ClientInfo::parse(&bytes);
    }

    #[test]
    fn a_recorded_command_with_some_bytes_changed_never_panics(
        which: prop::sample::Index,
        at: prop::sample::Index,
        byte: u8,
    ) {
        let mut messages = vectors::commands();
        let mut message = messages.swap_remove(which.index(messages.len()));
        let at = at.index(message.len());
        message[at] = byte;
        let _ = protobuf(&message);
    }
}
