//! Codecs against recorded bytes, which the classes that protobuf's compiler made for a client
//! library have written or read (`tests/unit/workers/test_centrifuge_codec.py`).

use std::sync::LazyLock;

use super::*;

const COMMANDS: &str = include_str!("../../../../../../tests/vectors/centrifuge-commands.json");
const REPLIES: &str = include_str!("../../../../../../tests/vectors/centrifuge-replies.json");

#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
struct Vector {
    json: String,
    /// In hexadecimal, without its length.
    protobuf: String,
}

fn vectors(text: &str) -> Vec<Vector> {
    let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
    assert!(!vectors.is_empty());
    vectors
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The recorded commands in Protobuf, each after its length.
pub(super) fn commands() -> Vec<Vec<u8>> {
    let recorded = vectors(COMMANDS);
    recorded
        .iter()
        .map(|each| delimited(&unhex(&each.protobuf)))
        .collect()
}

#[test]
fn both_encodings_of_a_command_mean_the_same() {
    for vector in vectors(COMMANDS) {
        let read = protobuf(&delimited(&unhex(&vector.protobuf)));
        assert!(read.is_ok(), "{vector:?}");
        assert_eq!(json(&vector.json), read, "{vector:?}");
    }
}

#[test]
fn several_commands_come_in_one_message() {
    let recorded = vectors(COMMANDS);
    let texts: Vec<_> = recorded.iter().map(|each| each.json.as_str()).collect();
    let bytes: Vec<u8> = recorded
        .iter()
        .flat_map(|each| delimited(&unhex(&each.protobuf)))
        .collect();
    let read = json(&texts.join("\n")).unwrap();
    assert_eq!(read.len(), recorded.len());
    assert_eq!(json(&(texts.join("\n") + "\n")), Ok(read.clone()));
    assert_eq!(protobuf(&bytes), Ok(read));
}

static INFO_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| INFO.encode());

fn full() -> Publication<'static> {
    Publication {
        data: Data::Plain(b"{\"text\":\n \"n\xC3\xA9\xE6\xBC\xA2\"}\r\n"),
        json: true,
        info: &INFO_BYTES,
        offset: u64::MAX,
        tags: b"{\"k\": \"v\", \"\": \"\xC3\xA9\"}",
    }
}

fn subscribed<'a>(publications: &'a [Publication<'a>]) -> SubscribeResult<'a> {
    SubscribeResult {
        expires: true,
        ttl: 300,
        recoverable: true,
        epoch: "feedbeef",
        publications,
        recovered: true,
        offset: 41,
        positioned: true,
        data: b"{\"a\":1}",
        was_recovering: true,
        delta: true,
    }
}

fn both(encode: impl Fn(&mut Vec<u8>, Encoding) -> Result<(), Close>) -> Vector {
    let [mut json, mut protobuf] = [Vec::new(), Vec::new()];
    encode(&mut json, Encoding::Json).unwrap();
    encode(&mut protobuf, Encoding::Protobuf).unwrap();
    Vector {
        json: String::from_utf8(json).unwrap(),
        protobuf: hex(&protobuf),
    }
}

#[rustfmt::skip]
fn replies() -> Vec<Vector> {
    let publications = [full(), BARE];
    let subscribed = subscribed(&publications);
    let connected = ConnectResult {
        client: INFO.client,
        version: "0.1.0",
        expires: true,
        ttl: 3600,
        data: b"[]",
        subs: &[
            ("public:a", SubscribeResult { epoch: "e", ..subscribed }),
            ("public:b", SubscribeResult::default()),
        ],
        ping: 25,
        pong: true,
        session: "s",
        node: "n",
        time: 1_700_000_000_000,
    };
    let nobody = ClientInfo { client: "c", ..ClientInfo::default() }.encode();
    let replies = [
        Reply::Error { code: 100, message: "internal server error", temporary: true },
        Reply::Error { code: 103, message: "permission denied", temporary: false },
        Reply::Connect(&connected),
        Reply::Connect(&ConnectResult::default()),
        Reply::Subscribe(&subscribed),
        Reply::Subscribe(&SubscribeResult::default()),
        Reply::Unsubscribe,
        Reply::Publish,
        Reply::Presence { members: &[INFO.encode(), nobody] },
        Reply::Presence { members: &[] },
        Reply::PresenceStats { clients: 3, users: 2 },
        Reply::PresenceStats { clients: 0, users: 0 },
        Reply::History { publications: &publications, epoch: "e", offset: 9 },
        Reply::History { publications: &[], epoch: "", offset: 0 },
        Reply::Rpc { data: b"{\"answer\":42}" },
        Reply::Rpc { data: b"" },
        Reply::Refresh { expires: true, ttl: 60 },
        Reply::SubRefresh { expires: true, ttl: 60 },
        Reply::SubRefresh { expires: false, ttl: 0 },
    ];
    (1..)
        .zip(&replies)
        .map(|(id, reply)| both(|out, encoding| encode_reply(out, encoding, id, reply)))
        .collect()
}

#[rustfmt::skip]
fn pushes() -> Vec<Vector> {
    let pushes = [
        ("public:a", Push::Publication(&full())),
        ("public:a", Push::Publication(&BARE)),
        ("public:a", Push::Join(&INFO_BYTES)),
        ("public:a", Push::Leave(&INFO_BYTES)),
        ("public:\"a\"", Push::Unsubscribe { code: 2500, reason: "insufficient state" }),
        ("public:a", Push::Subscribe {
            recoverable: true, positioned: true, epoch: "e", offset: 1, data: b"1",
        }),
        ("", Push::Message { data: b"{\"to\":\"you\"}" }),
        ("", Push::Disconnect { code: 3001, reason: "shutdown" }),
        ("", Push::Refresh { expires: true, ttl: 60 }),
    ];
    pushes
        .iter()
        .map(|(channel, push)| both(|out, encoding| encode_push(out, encoding, channel, push)))
        .collect()
}

/// Every message that we send, in both encodings.
fn written() -> Vec<Vector> {
    [replies(), pushes()].concat()
}

#[test]
fn what_is_written_is_what_was_recorded() {
    let recorded = vectors(REPLIES);
    let written = written();
    for (now, then) in written.iter().zip(&recorded) {
        assert_eq!(now, then);
    }
    assert_eq!(written.len(), recorded.len());
}

#[test]
fn a_message_in_json_is_one_line() {
    assert!(
        written()
            .iter()
            .all(|each| !each.json.contains(['\n', '\r']))
    );
}
