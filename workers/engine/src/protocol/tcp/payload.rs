//! What is inside the frames. Integers are LEB128 varints in their shortest form, texts are a
//! varint length and UTF-8. A parser ignores what follows the last field it knows, so that later
//! versions may append; the encoders append to a buffer of the caller.

use std::borrow::Cow;

use crate::protocol::close::Close;

/// Marker byte of DATA and PUBLISH: this piece ends its message.
pub const MARKER_LAST: u8 = 0;
/// Marker byte of DATA and PUBLISH: the next frame of the same type goes on with the message.
pub const MARKER_MORE: u8 = 1;
/// Room in a message for what is around its data: tags (64 KiB), and numbers, a channel, an
/// idempotency key (1 KiB). It comes on top of `message_bytes_max` when a message is put together.
pub const FIELDS_BYTES_MAX: usize = 65 * 1_024;
/// Enough for the numbers of a message without tags in nearly all cases; a hint for allocation.
const MESSAGE_FIELDS_BYTES: usize = 16;
/// A u64 in groups of seven bits.
const VARINT_BYTES_MAX: usize = 10;

const CONNECT_CRC: u64 = 1;
const SUBSCRIBE_RECOVER: u64 = 1;
const SUBSCRIBED_RECOVERABLE: u64 = 1;
const SUBSCRIBED_RECOVERED: u64 = 2;
const MESSAGE_BINARY: u64 = 1;
const MESSAGE_TAGS: u64 = 2;
const PUBLISH_IDEMPOTENCY_KEY: u64 = 4;
const ERROR_TEMPORARY: u64 = 1;

/// CONNECT, the first frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Ask for checksums.
    pub crc: bool,
    /// Scale of the client's window.
    pub window_scale: u8,
    /// What the client calls itself, for people.
    pub name: &'a str,
    /// Empty: anonymous.
    pub token: &'a str,
}

/// CONNECTED, the answer to CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected<'a> {
    pub crc: bool,
    /// Scale of the server's window.
    pub window_scale: u8,
    pub heartbeat_interval_ms: u64,
    pub heartbeat_timeout_ms: u64,
    pub message_bytes_max: u64,
    /// The connection's name at the server, a UUID.
    pub client: &'a str,
    /// The server's version.
    pub version: &'a str,
}

/// A place in a channel's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    pub epoch: &'a str,
    pub offset: u64,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    pub request: u32,
    pub channel: &'a str,
    /// Recover what came after this position.
    pub since: Option<Position<'a>>,
}

/// SUBSCRIBED, the answer to SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed<'a> {
    pub request: u32,
    /// Stands for the channel in DATA and UNSUBSCRIBE.
    pub alias: u32,
    /// The channel keeps history: a position in it is worth asking for.
    pub recoverable: bool,
    /// All that came after `since` follows before anything live.
    pub recovered: bool,
    /// Newest publication at this moment: the live stream goes on after it.
    pub top: Position<'a>,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    pub request: u32,
    pub alias: u32,
}

/// UNSUBSCRIBED, the answer to UNSUBSCRIBE or, with request 0, the server's own decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribed<'a> {
    pub request: u32,
    pub alias: u32,
    pub code: u16,
    pub reason: &'a str,
}

/// A whole message to be published, put together from PUBLISH frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    pub request: u32,
    pub channel: &'a str,
    /// Data is not JSON.
    pub binary: bool,
    /// JSON object, or empty.
    pub tags: &'a str,
    /// Empty: none.
    pub idempotency_key: &'a str,
    pub data: &'a [u8],
}

/// PUBLISHED, the answer to PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published<'a> {
    pub request: u32,
    pub position: Position<'a>,
}

/// A whole published message, put together from DATA frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub alias: u32,
    pub offset: u64,
    /// Data is not JSON.
    pub binary: bool,
    /// Text of a JSON object, or empty.
    pub tags: &'a [u8],
    pub data: &'a [u8],
}

/// ERROR, the answer to a request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    pub request: u32,
    pub code: u16,
    /// The same request may succeed later.
    pub temporary: bool,
    pub message: &'a str,
}

/// CLOSE, the last frame of each side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goodbye<'a> {
    pub code: u16,
    pub reason: &'a str,
}

impl<'a> Connect<'a> {
    pub fn parse(payload: &'a [u8]) -> Result<Self, Close> {
        let mut fields = Fields(payload);
        let crc = fields.varint()? & CONNECT_CRC != 0;
        let window_scale = fields.number(u64::from(super::Window::SCALE_MAX))? as u8;
        Ok(Self {
            crc,
            window_scale,
            name: fields.text()?,
            token: fields.text()?,
        })
    }
}

impl Connected<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, if self.crc { CONNECT_CRC } else { 0 });
        put_varint(out, u64::from(self.window_scale));
        put_varint(out, self.heartbeat_interval_ms);
        put_varint(out, self.heartbeat_timeout_ms);
        put_varint(out, self.message_bytes_max);
        put_bytes(out, self.client.as_bytes());
        put_bytes(out, self.version.as_bytes());
    }
}

impl<'a> Subscribe<'a> {
    pub fn parse(payload: &'a [u8]) -> Result<Self, Close> {
        let mut fields = Fields(payload);
        let request = fields.request()?;
        let recover = fields.varint()? & SUBSCRIBE_RECOVER != 0;
        let channel = fields.text()?;
        let since = if recover {
            Some(fields.position()?)
        } else {
            None
        };
        Ok(Self {
            request,
            channel,
            since,
        })
    }
}

impl Subscribed<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let recoverable = if self.recoverable {
            SUBSCRIBED_RECOVERABLE
        } else {
            0
        };
        let recovered = if self.recovered {
            SUBSCRIBED_RECOVERED
        } else {
            0
        };
        put_varint(out, u64::from(self.request));
        put_varint(out, recoverable | recovered);
        put_varint(out, u64::from(self.alias));
        put_position(out, &self.top);
    }
}

impl Unsubscribe {
    pub fn parse(payload: &[u8]) -> Result<Self, Close> {
        let mut fields = Fields(payload);
        Ok(Self {
            request: fields.request()?,
            alias: fields.number(u64::from(u32::MAX))? as u32,
        })
    }
}

impl Unsubscribed<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.request));
        put_varint(out, u64::from(self.alias));
        put_varint(out, u64::from(self.code));
        put_bytes(out, self.reason.as_bytes());
    }
}

impl<'a> Publish<'a> {
    /// Parses a whole message, as [`Reassembly::push`] gives it.
    pub fn parse(message: &'a [u8]) -> Result<Self, Close> {
        let mut fields = Fields(message);
        let request = fields.request()?;
        let flags = fields.flags(MESSAGE_BINARY | MESSAGE_TAGS | PUBLISH_IDEMPOTENCY_KEY)?;
        let channel = fields.text()?;
        let tags = if flags & MESSAGE_TAGS != 0 {
            fields.text()?
        } else {
            ""
        };
        let keyed = flags & PUBLISH_IDEMPOTENCY_KEY != 0;
        let idempotency_key = if keyed { fields.text()? } else { "" };
        let binary = flags & MESSAGE_BINARY != 0;
        Ok(Self {
            request,
            channel,
            binary,
            tags,
            idempotency_key,
            data: fields.0,
        })
    }
}

impl Published<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.request));
        put_position(out, &self.position);
    }
}

impl Message<'_> {
    /// What DATA frames carry, the same for every connection of a worker.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let binary = if self.binary { MESSAGE_BINARY } else { 0 };
        let tags = if self.tags.is_empty() {
            0
        } else {
            MESSAGE_TAGS
        };
        out.reserve(MESSAGE_FIELDS_BYTES + self.tags.len() + self.data.len());
        put_varint(out, u64::from(self.alias));
        put_varint(out, self.offset);
        put_varint(out, binary | tags);
        if !self.tags.is_empty() {
            put_bytes(out, self.tags);
        }
        out.extend_from_slice(self.data);
    }
}

impl Failure<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.request));
        put_varint(out, u64::from(self.code));
        put_varint(out, if self.temporary { ERROR_TEMPORARY } else { 0 });
        put_bytes(out, self.message.as_bytes());
    }
}

impl<'a> Goodbye<'a> {
    pub fn parse(payload: &'a [u8]) -> Result<Self, Close> {
        let mut fields = Fields(payload);
        let code = fields.number(u64::from(u16::MAX))? as u16;
        Ok(Self {
            code,
            reason: fields.text()?,
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.code));
        put_bytes(out, self.reason.as_bytes());
    }
}

impl From<Close> for Goodbye<'static> {
    fn from(close: Close) -> Self {
        Goodbye {
            code: close.code(),
            reason: close.reason(),
        }
    }
}

/// Puts messages together from the payloads of PUBLISH frames. Holds memory only between the
/// first and the last piece of a fragmented message.
#[derive(Debug, Default)]
pub struct Reassembly {
    pieces: Vec<u8>,
}

impl Reassembly {
    /// What is put together so far, to go on in another process by [`Reassembly::from`].
    pub fn pieces(&self) -> &[u8] {
        &self.pieces
    }

    /// The whole message if this payload ends one; a message of one piece is borrowed.
    ///
    /// Errors: [`Close::BadFragment`] (no such marker, or a piece without bytes),
    /// [`Close::MessageTooBig`] (over `message_bytes_max` and [`FIELDS_BYTES_MAX`]).
    pub fn push<'a>(
        &mut self,
        payload: &'a [u8],
        message_bytes_max: usize,
    ) -> Result<Option<Cow<'a, [u8]>>, Close> {
        let (marker, piece) = match payload {
            [marker @ (MARKER_LAST | MARKER_MORE), piece @ ..] if !piece.is_empty() => {
                (*marker, piece)
            }
            _ => return Err(Close::BadFragment),
        };
        if self.pieces.len() + piece.len() > message_bytes_max + FIELDS_BYTES_MAX {
            return Err(Close::MessageTooBig);
        }
        if marker == MARKER_MORE {
            self.pieces.extend_from_slice(piece);
            return Ok(None);
        }
        if self.pieces.is_empty() {
            return Ok(Some(Cow::Borrowed(piece)));
        }
        let mut message = std::mem::take(&mut self.pieces);
        message.extend_from_slice(piece);
        Ok(Some(Cow::Owned(message)))
    }
}

impl From<Vec<u8>> for Reassembly {
    fn from(pieces: Vec<u8>) -> Self {
        Self { pieces }
    }
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Close> {
        let mut value = 0_u64;
        for (index, byte) in self.0.iter().take(VARINT_BYTES_MAX).enumerate() {
            let bits = u64::from(byte & 0x7F);
            let overflows = index == VARINT_BYTES_MAX - 1 && bits > 1;
            let padded = index > 0 && *byte == 0;
            if overflows || padded {
                return Err(Close::BadVarint);
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(Close::BadVarint)
    }

    fn number(&mut self, max: u64) -> Result<u64, Close> {
        let value = self.varint()?;
        if value <= max {
            Ok(value)
        } else {
            Err(Close::BadPayload)
        }
    }

    /// The number that the answer will carry; 0 is not one.
    fn request(&mut self) -> Result<u32, Close> {
        match self.number(u64::from(u32::MAX))? {
            0 => Err(Close::BadPayload),
            request => Ok(request as u32),
        }
    }

    /// Flags that say which fields follow: an unknown one makes the rest unreadable.
    fn flags(&mut self, known: u64) -> Result<u64, Close> {
        let flags = self.varint()?;
        if flags & !known == 0 {
            Ok(flags)
        } else {
            Err(Close::BadPayload)
        }
    }

    fn text(&mut self) -> Result<&'a str, Close> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| Close::BadPayload)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Close::BadPayload)?;
        self.0 = rest;
        simdutf8::basic::from_utf8(text).map_err(|_| Close::BadText)
    }

    fn position(&mut self) -> Result<Position<'a>, Close> {
        Ok(Position {
            epoch: self.text()?,
            offset: self.varint()?,
        })
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_position(out: &mut Vec<u8>, position: &Position<'_>) {
    put_bytes(out, position.epoch.as_bytes());
    put_varint(out, position.offset);
}
