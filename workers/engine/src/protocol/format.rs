//! The one list of what a subscriber's bytes look like: encoding, transport and compression.
//!
//! A publication is encoded and framed once for each [`Format`] that somebody wants, and shared by
//! all who want it.

use super::centrifuge::{Encoding, Publication, Push, encode_push, encode_uni_push};
use super::close::Close;
use super::protobuf::end_message;
use super::websocket::{self, Opcode};
use super::{deflate, sse};

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
}

/// How many there are; a set of them fits a `u16`.
pub const FORMATS: usize = ALL.len();

/// Every format, in the order of its number.
pub const ALL: [Format; 12] = [
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
];

/// What stands around a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    WebSocket { deflate: bool },
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
            Self::ProtobufWebSocket | Self::ProtobufStream | Self::ProtobufWebSocketDeflate => {
                Encoding::Protobuf
            }
            _ => Encoding::Json,
        }
    }

    /// Whether its clients say one connect request and nothing after it.
    pub fn is_uni(self) -> bool {
        matches!(
            self,
            Self::UniWebSocket | Self::UniWebSocketDeflate | Self::UniSse | Self::UniStream
        )
    }

    /// Whether its clients can answer a ping: unidirectional streams are one-way.
    pub fn answers_pings(self) -> bool {
        !matches!(self, Self::UniSse | Self::UniStream)
    }

    pub fn is_websocket(self) -> bool {
        matches!(self.framing(), Framing::WebSocket { .. })
    }

    /// Whether both sides may compress messages.
    pub fn is_deflated(self) -> bool {
        self.framing() == Framing::WebSocket { deflate: true }
    }

    /// This WebSocket format with permessage-deflate.
    ///
    /// # Panics
    /// If it is no WebSocket format.
    #[must_use]
    pub fn deflated(self) -> Self {
        match self {
            Self::UniWebSocket => Self::UniWebSocketDeflate,
            Self::JsonWebSocket => Self::JsonWebSocketDeflate,
            Self::ProtobufWebSocket => Self::ProtobufWebSocketDeflate,
            _ => panic!("{self:?} is not compressed"),
        }
    }

    fn framing(self) -> Framing {
        match self {
            Self::UniWebSocket | Self::JsonWebSocket | Self::ProtobufWebSocket => {
                Framing::WebSocket { deflate: false }
            }
            Self::UniWebSocketDeflate
            | Self::JsonWebSocketDeflate
            | Self::ProtobufWebSocketDeflate => Framing::WebSocket { deflate: true },
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
        let mut body = Vec::with_capacity(128);
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
    pub fn goodbye(self, close: Close) -> Vec<u8> {
        let mut out = Vec::new();
        if close.code() >= 3000 && (self.is_uni() || !self.is_websocket()) {
            let push = Push::Disconnect {
                code: close.code().into(),
                reason: close.reason(),
            };
            out = self.push("", &push).expect("there is no data in it");
        }
        if self.is_websocket() {
            websocket::encode_close(&mut out, close);
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

fn put_message(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], may_deflate: bool) {
    match may_deflate.then(|| deflate::compress(payload)).flatten() {
        Some(compressed) => websocket::encode_compressed(out, opcode, &compressed),
        None => websocket::encode_frame(out, opcode, payload),
    }
}
