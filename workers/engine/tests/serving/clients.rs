//! Clients for tests: a WebSocket library that we did not write, and frames put together by hand.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::tcp::frame::{Agreed, Header, Kind, checksum, decode};
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, WebSocket};

use crate::house::{House, connect};

/// A client of the unidirectional dialect.
pub struct Uni(pub WebSocket<TcpStream>);

impl Uni {
    /// Connects with these subscriptions (JSON of `subs`); returns the connect push too.
    pub fn connect(house: &House, subs: &str) -> (Uni, Value) {
        let mut client = Uni::upgraded(house);
        client.say(&format!(r#"{{"subs":{subs}}}"#));
        let reply = client.next();
        assert!(reply.get("connect").is_some(), "{reply}");
        (client, reply["connect"].clone())
    }

    pub fn upgraded(house: &House) -> Uni {
        Uni(WebSocket::from_raw_socket(
            house.websocket(),
            Role::Client,
            None,
        ))
    }

    pub fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    /// The next push that is not a ping.
    pub fn next(&mut self) -> Value {
        loop {
            match self.0.read().unwrap() {
                Message::Text(text) if text.as_str() == "{}" => {}
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn next_publication(&mut self) -> (String, u64, Value) {
        let push = self.next();
        let channel = push["channel"].as_str().unwrap_or_else(|| panic!("{push}"));
        (
            channel.into(),
            push["pub"]["offset"].as_u64().unwrap(),
            push["pub"]["data"].clone(),
        )
    }

    /// Reads on to the close frame; returns it with the disconnect push before it, if any.
    pub fn end(mut self) -> (Option<Value>, Option<CloseFrame>) {
        let mut disconnect = None;
        loop {
            match self.0.read().unwrap() {
                Message::Text(text) => {
                    let push: Value = serde_json::from_str(&text).unwrap();
                    disconnect = push.get("disconnect").cloned().or(disconnect);
                }
                Message::Close(frame) => return (disconnect, frame),
                _ => {}
            }
        }
    }

    pub fn close_code(self) -> u16 {
        self.end().1.unwrap().code.into()
    }
}

/// A client of the binary protocol. Acknowledges only when told to.
pub struct Binary {
    pub stream: TcpStream,
    pub received: Vec<u8>,
    pub agreed: Agreed,
    /// The connection's name at the server.
    pub client: String,
    crc: bool,
    sent_seq: u32,
    pub received_seq: u32,
    pub window_size: u16,
}

impl Binary {
    pub fn connect(house: &House, window_size: u16, crc: bool) -> Binary {
        Binary::with_scale(house, window_size, 0, crc)
    }

    pub fn with_scale(house: &House, window_size: u16, scale: u8, crc: bool) -> Binary {
        let mut client = Binary {
            stream: connect(house.tcp),
            received: Vec::new(),
            agreed: Agreed::BEFORE_CONNECT,
            client: String::new(),
            crc: false,
            sent_seq: 0,
            received_seq: 0,
            window_size,
        };
        client.send(
            Kind::Connect,
            &[u8::from(crc), scale, 4, b't', b'e', b's', b't', 0],
        );
        let (kind, payload) = client.next();
        assert_eq!(kind, Kind::Connected);
        let is_uuid = |bytes: &&[u8]| [8, 13, 18, 23].iter().all(|at| bytes[*at] == b'-');
        let uuid = payload.windows(36).find(is_uuid).unwrap();
        client.client = std::str::from_utf8(uuid).unwrap().to_string();
        (client.crc, client.agreed) = (crc, Agreed { crc });
        client
    }

    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.sent_seq += u32::from(kind.is_sequenced());
        let header = Header {
            kind,
            seq: self.sent_seq,
            ack_seq: self.received_seq,
            window_size: self.window_size,
            length: payload.len() as u16,
        };
        let mut bytes = [&header.encode()[..], payload].concat();
        if self.crc {
            bytes.extend_from_slice(&checksum(&[&bytes]));
        }
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame.
    pub fn next(&mut self) -> (Kind, Vec<u8>) {
        loop {
            let parsed = decode(&self.received, &self.agreed).unwrap();
            if let Parsed::Complete {
                value: frame,
                consumed,
            } = parsed
            {
                let taken = (frame.header.kind, frame.payload.to_vec());
                self.received_seq += u32::from(frame.header.kind.is_sequenced());
                assert_eq!(frame.header.seq, self.received_seq);
                self.received.drain(..consumed);
                return taken;
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).unwrap();
            assert!(count > 0, "the stream ended");
            self.received.extend_from_slice(&bytes[..count]);
        }
    }

    /// Subscribes and returns the alias as it is on the wire, and the rest of the answer.
    pub fn subscribe(&mut self, channel: &str) -> (Vec<u8>, Vec<u8>) {
        let payload = [&[1, 0, channel.len() as u8], channel.as_bytes()].concat();
        self.send(Kind::Subscribe, &payload);
        let (kind, payload) = self.next();
        assert_eq!((kind, payload[0]), (Kind::Subscribed, 1));
        let alias = varint(&payload[2..]).to_vec();
        let rest = payload[2 + alias.len()..].to_vec();
        (alias, rest)
    }

    /// As [`Binary::next_message`], for offsets of any length: their varint is returned.
    pub fn next_data(&mut self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (kind, payload) = self.next();
        assert_eq!((kind, payload[0]), (Kind::Data, 0), "{payload:?}");
        let alias = varint(&payload[1..]);
        let rest = &payload[1 + alias.len()..];
        let offset = varint(rest);
        self.send(Kind::Ack, &[]);
        let data = &rest[offset.len() + 1..];
        (alias.to_vec(), offset.to_vec(), data.to_vec())
    }

    /// The next DATA frame that holds a whole message: alias, offset, data.
    pub fn next_message(&mut self) -> (Vec<u8>, u8, Vec<u8>) {
        let (kind, payload) = self.next();
        assert_eq!((kind, payload[0]), (Kind::Data, 0), "{payload:?}");
        let alias = varint(&payload[1..]).to_vec();
        let rest = &payload[1 + alias.len()..];
        (alias, rest[0], rest[2..].to_vec())
    }
}

/// The varint at the start of `bytes`.
fn varint(bytes: &[u8]) -> &[u8] {
    let last = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap();
    &bytes[..=last]
}
