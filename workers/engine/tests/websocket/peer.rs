//! The client's side of the WebSocket, as tests need it: masked frames, right and wrong ones, and
//! a reader that gets its input in pieces.

use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::close::Close;
use tidegate_engine::protocol::http::{HttpLimits, Rules};
use tidegate_engine::protocol::websocket::{Event, Inbound, Limits};
use tidegate_engine::settings::Transport;

pub const FIN: u8 = 0x80;
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

pub const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
pub const MESSAGE_BYTES_MAX: usize = 65536;
pub const LIMITS: Limits = Limits {
    message_bytes_max: MESSAGE_BYTES_MAX,
    deflate: false,
};

pub const HTTP_LIMITS: HttpLimits = HttpLimits {
    header_bytes_max: 8192,
    headers_max: 64,
};

/// All that there is, for clients that name no origin.
pub const RULES: Rules<'_> = Rules {
    limits: HTTP_LIMITS,
    body_bytes_max: MESSAGE_BYTES_MAX,
    origins_allowed: &[],
    transports: &[
        Transport::Websocket,
        Transport::Sse,
        Transport::HttpStream,
        Transport::UniWebsocket,
        Transport::UniSse,
        Transport::UniHttpStream,
    ],
    compression: true,
};

/// A masked frame with its first byte as given and the shortest length.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    out
}

/// An event that outlives its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Fragment,
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Failed(Close),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.into_owned()),
            Event::Binary(data) => Self::Binary(data.into_owned()),
            Event::Fragment => Self::Fragment,
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

/// A connection's read side: keeps partial input, stops at the first failure.
#[derive(Default)]
pub struct Reader {
    inbound: Inbound,
    input: Vec<u8>,
    pub seen: Vec<Seen>,
    has_failed: bool,
    deflate: bool,
}

impl Reader {
    /// One that has agreed to permessage-deflate.
    pub fn of_compressed() -> Self {
        Self {
            deflate: true,
            ..Self::default()
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let limits = Limits {
            deflate: self.deflate,
            ..LIMITS
        };
        let mut at = 0;
        while !self.has_failed {
            match self.inbound.decode(&mut self.input[at..], &limits) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Complete { value, consumed }) => {
                    self.seen.push(value.into());
                    at += consumed;
                }
                Err(close) => {
                    self.seen.push(Seen::Failed(close));
                    self.has_failed = true;
                }
            }
        }
        self.input.drain(..at);
    }
}

/// Everything that is seen in `bytes` when they come at once.
pub fn seen_in(bytes: &[u8]) -> Vec<Seen> {
    let mut reader = Reader::default();
    reader.feed(bytes);
    reader.seen
}
