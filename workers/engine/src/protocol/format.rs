//! The one list of what a subscriber's bytes look like: encoding, transport and compression.
//!
//! A publication is encoded and framed once for each [`Format`] that somebody wants, and shared by
//! all who want it.

use super::centrifuge::{Encoding, Publication, Push, encode_push, encode_uni_push};
use super::close::{Close, Farewell};
use super::deflate::{self, Window};
use super::protobuf::end_message;
use super::sse;
use super::websocket::{self, Opcode};

/// Stable numbers: connections that are handed over name theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    UniWebSocket = 0,
    UniSse = 1,
    /// JSON, a message a line.
    UniStream = 2,
    JsonWebSocket = 3,
    JsonSse = 4,
    JsonStream = 5,
    ProtobufWebSocket = 6,
    ProtobufStream = 7,
    /// Not of this dialect: `tcp` encodes for it.
    Tcp = 8,
    /// With permessage-deflate.
    UniWebSocketDeflate = 9,
    JsonWebSocketDeflate = 10,
    ProtobufWebSocketDeflate = 11,
    /// With permessage-deflate, for clients that have no room for a whole window.
    UniWebSocketNarrow = 12,
    JsonWebSocketNarrow = 13,
    ProtobufWebSocketNarrow = 14,
}

/// How many there are.
pub const FORMATS: usize = ALL.len();

/// Every format, in the order of its number.
pub const ALL: [Format; 15] = [
    Format::UniWebSocket,
    Format::UniSse,
    Format::UniStream,
    Format::JsonWebSocket,
    Format::JsonSse,
    Format::JsonStream,
    Format::ProtobufWebSocket,
    Format::ProtobufStream,
    Format::Tcp,
    Format::UniWebSocketDeflate,
    Format::JsonWebSocketDeflate,
    Format::ProtobufWebSocketDeflate,
    Format::UniWebSocketNarrow,
    Format::JsonWebSocketNarrow,
    Format::ProtobufWebSocketNarrow,
];

/// What stands around a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    WebSocket { deflate: Option<Window> },
    Sse,
    Stream,
    Tcp,
}

impl Format {
    pub fn from_number(number: u8) -> Option<Self> {
        ALL.get(usize::from(number)).copied()
    }

    pub fn encoding(self) -> Encoding {
        match self {
            Self::ProtobufWebSocket
            | Self::ProtobufStream
            | Self::ProtobufWebSocketDeflate
            | Self::ProtobufWebSocketNarrow => Encoding::Protobuf,
            _ => Encoding::Json,
        }
    }

    /// Whether its clients say one connect request and nothing after it.
    pub fn is_uni(self) -> bool {
        matches!(
            self,
            Self::UniWebSocket
                | Self::UniWebSocketDeflate
                | Self::UniWebSocketNarrow
                | Self::UniSse
                | Self::UniStream
        )
    }

    pub fn is_websocket(self) -> bool {
        matches!(self.framing(), Framing::WebSocket { .. })
    }

    /// Whether both sides may compress messages.
    pub fn is_deflated(self) -> bool {
        matches!(self.framing(), Framing::WebSocket { deflate: Some(_) })
    }

    /// This WebSocket format with permessage-deflate, for clients with room for such a window.
    ///
    /// # Panics
    /// If it is no WebSocket format.
    #[must_use]
    pub fn deflated(self, window: Window) -> Self {
        match (self, window) {
            (Self::UniWebSocket, Window::Full) => Self::UniWebSocketDeflate,
            (Self::UniWebSocket, Window::Narrow) => Self::UniWebSocketNarrow,
            (Self::JsonWebSocket, Window::Full) => Self::JsonWebSocketDeflate,
            (Self::JsonWebSocket, Window::Narrow) => Self::JsonWebSocketNarrow,
            (Self::ProtobufWebSocket, Window::Full) => Self::ProtobufWebSocketDeflate,
            (Self::ProtobufWebSocket, Window::Narrow) => Self::ProtobufWebSocketNarrow,
            _ => panic!("{self:?} is not compressed"),
        }
    }

    /// Whether a ping of ours is owed an answer: by a pong of the dialect, or a native one.
    pub fn answers_pings(self) -> bool {
        !matches!(self, Self::UniSse | Self::UniStream)
    }

    fn framing(self) -> Framing {
        match self {
            Self::UniWebSocket | Self::JsonWebSocket | Self::ProtobufWebSocket => {
                Framing::WebSocket { deflate: None }
            }
            Self::UniWebSocketDeflate
            | Self::JsonWebSocketDeflate
            | Self::ProtobufWebSocketDeflate => Framing::WebSocket {
                deflate: Some(Window::Full),
            },
            Self::UniWebSocketNarrow
            | Self::JsonWebSocketNarrow
            | Self::ProtobufWebSocketNarrow => Framing::WebSocket {
                deflate: Some(Window::Narrow),
            },
            Self::UniSse | Self::JsonSse => Framing::Sse,
            Self::UniStream | Self::JsonStream | Self::ProtobufStream => Framing::Stream,
            Self::Tcp => Framing::Tcp,
        }
    }

    /// A reply or push, as it goes out.
    pub fn frame(self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(body.len() + websocket::HEADER_BYTES_MAX);
        match (self.framing(), self.encoding()) {
            (Framing::WebSocket { deflate }, Encoding::Json) => {
                put_message(&mut out, Opcode::Text, body, deflate);
            }
            (Framing::WebSocket { deflate }, Encoding::Protobuf) => {
                put_message(&mut out, Opcode::Binary, &delimited(body), deflate);
            }
            (Framing::Sse, _) => sse::encode_event(&mut out, body),
            (Framing::Stream, Encoding::Json) => {
                out.extend_from_slice(body);
                out.push(b'\n');
            }
            (Framing::Stream, Encoding::Protobuf) => return delimited(body),
            (Framing::Tcp, _) => panic!("frames of the TCP dialect are made elsewhere"),
        }
        out
    }

    /// A push in the dialect of this format, as it goes out. Fails with `InappropriateProtocol` if
    /// it holds what is not JSON, and the dialect is.
    pub fn push(self, channel: &str, push: &Push<'_>) -> Result<Vec<u8>, Close> {
        let mut body = Vec::with_capacity(push.bytes_about() + channel.len());
        if self.is_uni() {
            encode_uni_push(&mut body, channel, push)?;
        } else {
            encode_push(&mut body, self.encoding(), channel, push)?;
        }
        Ok(self.frame(&body))
    }

    /// A publication, as it goes out; fails as [`Format::push`] does.
    pub fn publication(
        self,
        channel: &str,
        publication: &Publication<'_>,
    ) -> Result<Vec<u8>, Close> {
        self.push(channel, &Push::Publication(publication))
    }

    /// Somebody came to a channel, or went; `info` as `ClientInfo::encode` writes it.
    pub fn join_leave(self, channel: &str, joined: bool, info: &[u8]) -> Vec<u8> {
        let push = if joined {
            Push::Join(info)
        } else {
            Push::Leave(info)
        };
        self.push(channel, &push).expect("client infos are JSON")
    }

    /// An empty reply is a ping to all clients of this dialect. Unidirectional WebSocket clients
    /// are not expected to answer it; a native ping goes with it, which browsers and libraries
    /// answer by themselves.
    pub fn ping(self) -> Vec<u8> {
        let body: &[u8] = match self.encoding() {
            Encoding::Json => b"{}",
            Encoding::Protobuf => b"",
        };
        let mut out = self.frame(body);
        if self.is_uni() && self.is_websocket() {
            out.extend_from_slice(&websocket::PING_FRAME);
        }
        out
    }

    /// Our last words. The disconnect push tells the code where there is no close frame, and
    /// unidirectional WebSocket clients as well; a code below 3000 is none of this dialect.
    pub fn goodbye(self, farewell: &Farewell) -> Vec<u8> {
        let mut out = Vec::new();
        if farewell.code >= 3000 && (self.is_uni() || !self.is_websocket()) {
            let push = Push::Disconnect {
                code: farewell.code.into(),
                reason: &farewell.reason,
            };
            out = self.push("", &push).expect("there is no data in it");
        }
        if self.is_websocket() {
            websocket::encode_close(&mut out, farewell);
        }
        out
    }
}

fn delimited(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 3);
    out.extend_from_slice(body);
    end_message(&mut out, 0);
    out
}

fn put_message(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], deflate: Option<Window>) {
    match deflate.and_then(|window| deflate::compress(payload, window)) {
        Some(compressed) => websocket::encode_compressed(out, opcode, &compressed),
        None => websocket::encode_frame(out, opcode, payload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Parsed;
    use crate::protocol::centrifuge::Data;

    const PUBLICATION: Publication<'_> = Publication {
        data: Data::Plain(b"{}"),
        json: true,
        info: b"",
        offset: 7,
        tags: b"",
    };

    fn each() -> impl Iterator<Item = Format> {
        ALL.into_iter().filter(|format| *format != Format::Tcp)
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_number_names_a_format() {
        for format in ALL {
            assert_eq!(Format::from_number(format as u8), Some(format));
        }
        assert_eq!(Format::from_number(FORMATS as u8), None);
    }

    #[test]
    fn a_publication_stands_in_the_frame_of_its_transport() {
        let framed = |format: Format| format.publication("a", &PUBLICATION).unwrap();
        let uni = r#"{"channel":"a","pub":{"data":{},"offset":7}}"#;
        let push = format!("{{\"push\":{uni}}}");
        let body = b"\x22\x0B\x12\x01a\x22\x06\x22\x02{}\x30\x07";
        assert_eq!(text(framed(Format::UniSse)), format!("data: {uni}\n\n"));
        assert_eq!(text(framed(Format::UniStream)), format!("{uni}\n"));
        assert_eq!(text(framed(Format::JsonSse)), format!("data: {push}\n\n"));
        assert_eq!(text(framed(Format::JsonStream)), format!("{push}\n"));
        assert_eq!(
            framed(Format::UniWebSocket),
            [b"\x81\x2C", uni.as_bytes()].concat()
        );
        assert_eq!(
            framed(Format::JsonWebSocket),
            [b"\x81\x35", push.as_bytes()].concat()
        );
        let delimited = [b"\x0D", &body[..]].concat();
        assert_eq!(framed(Format::ProtobufStream), delimited);
        assert_eq!(
            framed(Format::ProtobufWebSocket),
            [b"\x82\x0E", &delimited[..]].concat()
        );
    }

    #[test]
    fn a_compressed_frame_holds_what_the_plain_one_does() {
        let data = format!("\"{}\"", "tide ".repeat(50));
        let publication = Publication {
            data: Data::Plain(data.as_bytes()),
            ..PUBLICATION
        };
        for plain in [
            Format::UniWebSocket,
            Format::JsonWebSocket,
            Format::ProtobufWebSocket,
        ] {
            let framed = plain.publication("a", &publication).unwrap();
            for window in [Window::Full, Window::Narrow] {
                let format = plain.deflated(window);
                let deflated = format.publication("a", &publication).unwrap();
                assert!(deflated.len() < framed.len() / 3);
                assert_eq!(deflated[0], framed[0] | 0x40);
                assert_eq!(
                    deflate::expand(&deflated[2..], 1000).as_deref(),
                    Ok(&framed[4..])
                );
            }
        }
    }

    #[test]
    fn a_ping_is_an_empty_reply() {
        for (format, ping) in [
            (Format::UniWebSocket, &b"\x81\x02{}\x89\x00"[..]),
            (Format::UniSse, b"data: {}\n\n"),
            (Format::UniStream, b"{}\n"),
            (Format::JsonWebSocket, b"\x81\x02{}"),
            (Format::ProtobufWebSocket, b"\x82\x01\x00"),
            (Format::ProtobufStream, b"\x00"),
            (Format::ProtobufWebSocketDeflate, b"\x82\x01\x00"),
        ] {
            assert_eq!(format.ping(), ping, "{format:?}");
        }
    }

    #[test]
    fn a_goodbye_tells_the_code_once_or_where_clients_look_for_it() {
        let push = r#"{"disconnect":{"code":3001,"reason":"shutdown"}}"#;
        let close = b"\x88\x0A\x0B\xB9shutdown";
        let goodbye = |format: Format| format.goodbye(&Close::Shutdown.into());
        assert_eq!(text(goodbye(Format::UniStream)), format!("{push}\n"));
        assert_eq!(
            text(goodbye(Format::JsonSse)),
            format!("data: {{\"push\":{push}}}\n\n")
        );
        assert_eq!(goodbye(Format::JsonWebSocket), close);
        assert_eq!(goodbye(Format::ProtobufWebSocketDeflate), close);
        let uni = [b"\x81\x30", push.as_bytes(), close].concat();
        assert_eq!(goodbye(Format::UniWebSocket), uni);
        for format in each() {
            let last = format.goodbye(&Close::ProtocolError.into());
            assert_eq!(last.is_empty(), !format.is_websocket(), "{format:?}");
        }
    }

    #[test]
    fn who_cannot_be_told_is_told_why() {
        let binary = Publication {
            data: Data::Plain(b"\xFF"),
            json: false,
            ..PUBLICATION
        };
        for format in each() {
            let framed = format.publication("a", &binary);
            match format.encoding() {
                Encoding::Json => assert_eq!(framed, Err(Close::InappropriateProtocol)),
                Encoding::Protobuf => assert!(framed.is_ok()),
            }
        }
    }

    /// A client would answer in kind, so what we write we must be able to read.
    #[test]
    fn our_own_frames_pass_our_own_rules_once_they_are_masked() {
        for format in each().filter(|format| format.is_websocket()) {
            let data = format!("\"{}\"", "x".repeat(100));
            let publication = Publication {
                data: Data::Plain(data.as_bytes()),
                ..PUBLICATION
            };
            let framed = format.publication("a", &publication).unwrap();
            let header_bytes = if framed[1] == 126 { 4 } else { 2 };
            let mut masked = framed.clone();
            masked[1] |= 0x80;
            masked.splice(header_bytes..header_bytes, [0; 4]);
            let limits = websocket::Limits {
                message_bytes_max: 1000,
                deflate: format.is_deflated(),
            };
            let read = websocket::Inbound::default()
                .decode(&mut masked, &limits)
                .unwrap();
            let Parsed::Complete { value, .. } = read else {
                panic!("incomplete");
            };
            let is_text = matches!(value, websocket::Event::Text(_));
            assert_eq!(is_text, format.encoding() == Encoding::Json);
        }
    }
}
