//! The frames that specification, Rust and Python agree on, byte by byte.

use serde_json::Value;

use super::*;
use crate::protocol::tcp::frame::checksum;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../../../tests/vectors/tcp.json")).unwrap()
}

fn items<'a>(vectors: &'a Value, name: &str) -> &'a Vec<Value> {
    vectors[name].as_array().unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn frame_bytes(vector: &Value) -> Vec<u8> {
    let pieces = items(vector, "bytes").iter();
    pieces
        .flat_map(|piece| unhex(piece[0].as_str().unwrap()))
        .collect()
}

#[test]
fn checksums_are_those_of_the_vectors() {
    for vector in items(&vectors(), "crc32c") {
        let bytes = unhex(vector["hex"].as_str().unwrap());
        assert_eq!(hex(&checksum(&[&bytes])), vector["crc"].as_str().unwrap());
        let (front, back) = bytes.split_at(bytes.len() / 2);
        assert_eq!(checksum(&[front, back]), checksum(&[&bytes]));
    }
}

#[test]
fn headers_are_those_of_the_vectors() {
    for vector in items(&vectors(), "frames") {
        let bytes = frame_bytes(vector);
        let agreed = Agreed {
            crc: vector["crc"].as_bool().unwrap(),
        };
        let header = whole(&bytes, &agreed).header;
        let expected = &vector["header"];
        assert_eq!(u64::from(header.seq), expected["seq"]);
        assert_eq!(u64::from(header.ack_seq), expected["ack_seq"]);
        assert_eq!(u64::from(header.window_size), expected["window_size"]);
        if header.kind == Kind::Skippable {
            assert!(expected["type"].as_u64().unwrap() >= 128);
        } else {
            assert_eq!(header.kind as u64, expected["type"]);
            assert_eq!(header.encode(), bytes[..HEADER_BYTES]);
        }
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut], &agreed), Ok(Parsed::Incomplete));
        }
    }
}

fn text<'a>(fields: &'a Value, name: &str) -> &'a str {
    fields[name].as_str().unwrap()
}

fn number<T: TryFrom<u64, Error: std::fmt::Debug>>(fields: &Value, name: &str) -> T {
    T::try_from(fields[name].as_u64().unwrap()).unwrap()
}

fn position(fields: &Value) -> Position<'_> {
    Position {
        epoch: text(fields, "epoch"),
        offset: number(fields, "offset"),
    }
}

/// What a client sends is parsed into the fields that the vector names.
fn check_parsed(payload: &[u8], kind: Kind, fields: &Value) {
    match kind {
        Kind::Connect => {
            let expected = Connect {
                crc: fields["crc"].as_bool().unwrap(),
                window_scale: number(fields, "window_scale"),
                name: text(fields, "name"),
                token: text(fields, "token"),
            };
            assert_eq!(Connect::parse(payload), Ok(expected));
        }
        Kind::Subscribe => {
            let since = &fields["since"];
            let expected = Subscribe {
                request: number(fields, "request"),
                channel: text(fields, "channel"),
                since: since.is_object().then(|| position(since)),
            };
            assert_eq!(Subscribe::parse(payload), Ok(expected));
        }
        Kind::Unsubscribe => {
            let expected = Unsubscribe {
                request: number(fields, "request"),
                alias: number(fields, "alias"),
            };
            assert_eq!(Unsubscribe::parse(payload), Ok(expected));
        }
        Kind::Publish => {
            assert_eq!(u64::from(payload[0]), fields["marker"]);
            let data = unhex(text(fields, "data"));
            let expected = Publish {
                request: number(fields, "request"),
                channel: text(fields, "channel"),
                binary: fields["binary"].as_bool().unwrap(),
                tags: text(fields, "tags"),
                idempotency_key: text(fields, "idempotency_key"),
                data: &data,
            };
            assert_eq!(Publish::parse(&payload[1..]), Ok(expected));
        }
        Kind::Close => {
            let expected = Goodbye {
                code: number(fields, "code"),
                reason: text(fields, "reason"),
            };
            assert_eq!(Goodbye::parse(payload), Ok(expected));
        }
        _ => assert!(payload.is_empty()),
    }
}

/// The fields that the vector names are encoded into what a server sends.
fn encode_fields(kind: Kind, fields: &Value, out: &mut Vec<u8>) {
    match kind {
        Kind::Connected => Connected {
            crc: fields["crc"].as_bool().unwrap(),
            window_scale: number(fields, "window_scale"),
            heartbeat_interval_ms: number(fields, "heartbeat_interval_ms"),
            heartbeat_timeout_ms: number(fields, "heartbeat_timeout_ms"),
            message_bytes_max: number(fields, "message_bytes_max"),
            client: text(fields, "client"),
            version: text(fields, "version"),
        }
        .encode(out),
        Kind::Subscribed => Subscribed {
            request: number(fields, "request"),
            alias: number(fields, "alias"),
            recoverable: fields["recoverable"].as_bool().unwrap(),
            recovered: fields["recovered"].as_bool().unwrap(),
            top: position(&fields["top"]),
        }
        .encode(out),
        Kind::Unsubscribed => Unsubscribed {
            request: number(fields, "request"),
            alias: number(fields, "alias"),
            code: number(fields, "code"),
            reason: text(fields, "reason"),
        }
        .encode(out),
        Kind::Published => {
            let position = position(&fields["position"]);
            Published {
                request: number(fields, "request"),
                position,
            }
            .encode(out);
        }
        Kind::Error => Failure {
            request: number(fields, "request"),
            code: number(fields, "code"),
            temporary: fields["temporary"].as_bool().unwrap(),
            message: text(fields, "message"),
        }
        .encode(out),
        Kind::Close => {
            Goodbye {
                code: number(fields, "code"),
                reason: text(fields, "reason"),
            }
            .encode(out);
        }
        Kind::Data => {
            out.push(number(fields, "marker"));
            let data = unhex(text(fields, "data"));
            Message {
                alias: number(fields, "alias"),
                offset: number(fields, "offset"),
                binary: fields["binary"].as_bool().unwrap(),
                tags: text(fields, "tags").as_bytes(),
                data: &data,
            }
            .encode(out);
        }
        _ => panic!("{kind:?}"),
    }
}

#[test]
fn payloads_are_those_of_the_vectors() {
    let mut fragments = Vec::new();
    for vector in items(&vectors(), "frames") {
        let bytes = frame_bytes(vector);
        let agreed = Agreed {
            crc: vector["crc"].as_bool().unwrap(),
        };
        let Frame { header, payload } = whole(&bytes, &agreed);
        let fields = &vector["fields"];
        if vector["from"] == "client" {
            check_parsed(payload, header.kind, fields);
        } else if fields["marker"] == 1 {
            fragments.extend_from_slice(payload);
            fragments[0] = MARKER_LAST;
        } else if header.kind != Kind::Skippable {
            let mut encoded = Vec::new();
            encode_fields(header.kind, fields, &mut encoded);
            let mut expected = std::mem::take(&mut fragments);
            let skipped = usize::from(!expected.is_empty());
            expected.extend_from_slice(&payload[skipped..]);
            assert_eq!(hex(&encoded), hex(&expected), "{}", vector["name"]);
        }
    }
}

#[test]
fn each_violation_gives_its_numbered_close() {
    for vector in items(&vectors(), "violations") {
        if vector["from"] == "server" {
            continue;
        }
        let crc = vector["crc"].as_bool().unwrap();
        let connected = vector["connected"].as_bool().unwrap();
        let mut server = if connected {
            Server::connected(crc)
        } else {
            Server::new()
        };
        let close = server
            .feed(&unhex(text(vector, "hex")))
            .expect_err(text(vector, "name"));
        assert_eq!(
            u64::from(close.code()),
            vector["close"],
            "{}",
            vector["name"]
        );
    }
}

#[test]
fn varints_are_those_of_the_vectors() {
    // A position's offset is the only unbounded number that a client sends.
    let parse = |varint: &[u8]| {
        let payload = [&[1, 1, 1, b'a', 1, b'e'], varint].concat();
        Subscribe::parse(&payload).map(|subscribe| subscribe.since.unwrap().offset)
    };
    for vector in items(&vectors(), "varints") {
        let bytes = unhex(text(vector, "hex"));
        assert_eq!(parse(&bytes), Ok(vector["value"].as_u64().unwrap()));
        let mut encoded = Vec::new();
        let top = Position {
            epoch: "",
            offset: vector["value"].as_u64().unwrap(),
        };
        Published {
            request: 1,
            position: top,
        }
        .encode(&mut encoded);
        assert_eq!(encoded[2..], bytes);
    }
    for vector in items(&vectors(), "bad_varints") {
        let why = text(vector, "why");
        assert_eq!(
            parse(&unhex(text(vector, "hex"))),
            Err(Close::BadVarint),
            "{why}"
        );
    }
}
