//! WebSocket frames, server side (RFC 6455 §5 to §7), with compressed messages (RFC 7692 §6).
//!
//! The caller keeps partial input; [`Inbound::decode`] takes one whole frame from its start. Limits
//! are enforced on the header, so a caller that reads on after `Incomplete` never has to keep more
//! than `message_bytes_max` and [`HEADER_BYTES_MAX`] bytes.

use std::borrow::Cow;

use super::Parsed;
use super::close::{Close, Farewell, REASON_BYTES_MAX};
use super::deflate;

/// Opcode and flags, length byte, 8 bytes of extended length, 4 of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// A ping without payload.
pub const PING_FRAME: [u8; 2] = [FIN | Opcode::Ping as u8, 0];

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
/// The first of the reserved bits: the message is compressed (RFC 7692 §6).
const COMPRESSED: u8 = 0x40;
const MASKED: u8 = 0x80;
const MASK_BYTES: usize = 4;
/// RFC 6455 §5.5.
const CONTROL_PAYLOAD_MAX: u8 = 125;

/// What a frame carries (RFC 6455 §11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// What one frame from the client amounts to.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message; borrowed from the input when it came in one frame.
    Text(Cow<'a, str>),
    Binary(Cow<'a, [u8]>),
    /// Part of a message was kept; nothing to do yet.
    Fragment,
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The client's goodbye, or its answer to ours. `None`: it gave no code.
    Close {
        code: Option<u16>,
        reason: &'a str,
    },
}

/// What has to be remembered between frames: the fragments of an unfinished message. One word, as
/// most connections never send any.
#[derive(Debug, Default)]
pub struct Inbound {
    fragments: Option<Box<Fragments>>,
}

/// The beginning of a message that came in fragments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragments {
    pub is_text: bool,
    pub is_compressed: bool,
    pub payload: Vec<u8>,
    /// How much of a text is known to be UTF-8; what follows is the start of a character, or is
    /// compressed.
    pub valid_bytes: usize,
}

/// What a connection may receive.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a message, its fragments together and expanded.
    pub message_bytes_max: usize,
    /// Whether permessage-deflate was agreed to.
    pub deflate: bool,
}

struct Header {
    is_final: bool,
    is_compressed: bool,
    opcode: Opcode,
    /// As announced; not yet held against any limit.
    payload_bytes: u64,
    mask: [u8; MASK_BYTES],
}

impl Inbound {
    /// What has to be remembered, to go on in another process by [`Inbound::from`].
    pub fn fragments(&self) -> Option<&Fragments> {
        self.fragments.as_deref()
    }

    /// Take the frame at the start of `bytes`, unmasking it in place. Give bytes that were
    /// consumed only once; `Incomplete` leaves all as it was.
    ///
    /// Errors: `ProtocolError`, `InvalidText`, or `MessageTooBig` when a message would exceed
    /// `limits.message_bytes_max`.
    pub fn decode<'a>(
        &mut self,
        bytes: &'a mut [u8],
        limits: &Limits,
    ) -> Result<Parsed<Event<'a>>, Close> {
        let Parsed::Complete {
            value: header,
            consumed: header_bytes,
        } = self.parse_header(bytes, limits.deflate)?
        else {
            return Ok(Parsed::Incomplete);
        };
        if !header.opcode.is_control() {
            let kept = self
                .fragments
                .as_ref()
                .map_or(0, |fragments| fragments.payload.len());
            // What was kept in another process may exceed the limit of this one.
            if header.payload_bytes > limits.message_bytes_max.saturating_sub(kept) as u64 {
                return Err(Close::MessageTooBig);
            }
        }
        // Fits: a control payload is at most 125 bytes, any other at most the limit.
        let consumed = header_bytes + header.payload_bytes as usize;
        let Some(payload) = bytes.get_mut(header_bytes..consumed) else {
            return Ok(Parsed::Incomplete);
        };
        unmask(payload, header.mask);
        let value = self.take(&header, payload, limits.message_bytes_max)?;
        Ok(Parsed::Complete { value, consumed })
    }

    /// Parse and check a frame's header, byte by byte as RFC 6455 §5.2 draws it, so that a wrong
    /// one is refused at its first wrong byte.
    fn parse_header(&self, bytes: &[u8], deflate: bool) -> Result<Parsed<Header>, Close> {
        let Some(&first) = bytes.first() else {
            return Ok(Parsed::Incomplete);
        };
        let opcode = Opcode::from_bits(first & 0x0F).ok_or(Close::ProtocolError)?;
        let is_final = first & FIN != 0;
        let is_in_place = match opcode {
            Opcode::Continuation => self.fragments.is_some(),
            Opcode::Text | Opcode::Binary => self.fragments.is_none(),
            Opcode::Close | Opcode::Ping | Opcode::Pong => is_final,
        };
        let is_compressed = first & RESERVED == COMPRESSED;
        let may_be_compressed = deflate && matches!(opcode, Opcode::Text | Opcode::Binary);
        if (first & RESERVED != 0 && !(is_compressed && may_be_compressed)) || !is_in_place {
            return Err(Close::ProtocolError);
        }
        let Some(&second) = bytes.get(1) else {
            return Ok(Parsed::Incomplete);
        };
        let short_length = second & !MASKED;
        if second & MASKED == 0 || (opcode.is_control() && short_length > CONTROL_PAYLOAD_MAX) {
            return Err(Close::ProtocolError);
        }
        let Parsed::Complete {
            value: payload_bytes,
            consumed: length_bytes,
        } = parse_length(short_length, &bytes[2..])?
        else {
            return Ok(Parsed::Incomplete);
        };
        let mask_at = 2 + length_bytes;
        let Some(&mask) = bytes[mask_at..].first_chunk::<MASK_BYTES>() else {
            return Ok(Parsed::Incomplete);
        };
        let value = Header {
            is_final,
            is_compressed,
            opcode,
            payload_bytes,
            mask,
        };
        Ok(Parsed::Complete {
            value,
            consumed: mask_at + MASK_BYTES,
        })
    }

    fn take<'a>(
        &mut self,
        header: &Header,
        payload: &'a [u8],
        message_bytes_max: usize,
    ) -> Result<Event<'a>, Close> {
        match header.opcode {
            Opcode::Ping => return Ok(Event::Ping(payload)),
            Opcode::Pong => return Ok(Event::Pong(payload)),
            Opcode::Close => return parse_close(payload),
            Opcode::Text if header.is_final && !header.is_compressed => {
                let text = simdutf8::basic::from_utf8(payload).or(Err(Close::InvalidText))?;
                return Ok(Event::Text(Cow::Borrowed(text)));
            }
            Opcode::Binary if header.is_final && !header.is_compressed => {
                return Ok(Event::Binary(Cow::Borrowed(payload)));
            }
            Opcode::Text | Opcode::Binary => {
                self.fragments = Some(Box::new(Fragments {
                    is_text: header.opcode == Opcode::Text,
                    is_compressed: header.is_compressed,
                    payload: Vec::new(),
                    valid_bytes: 0,
                }));
            }
            Opcode::Continuation => {}
        }
        let fragments = self.fragments.as_mut().expect("parse_header checked it");
        fragments.payload.extend_from_slice(payload);
        fragments.check_text()?;
        if !header.is_final {
            return Ok(Event::Fragment);
        }
        self.fragments
            .take()
            .expect("it is there")
            .into_message(message_bytes_max)
    }
}

impl From<Option<Fragments>> for Inbound {
    fn from(fragments: Option<Fragments>) -> Self {
        Self {
            fragments: fragments.map(Box::new),
        }
    }
}

impl Fragments {
    /// Check what came since the last fragment; a character may be cut between two.
    fn check_text(&mut self) -> Result<(), Close> {
        if !self.is_text || self.is_compressed {
            return Ok(());
        }
        match simdutf8::compat::from_utf8(&self.payload[self.valid_bytes..]) {
            Ok(text) => self.valid_bytes += text.len(),
            Err(error) if error.error_len().is_none() => self.valid_bytes += error.valid_up_to(),
            Err(_) => return Err(Close::InvalidText),
        }
        Ok(())
    }

    /// The message that they are, now that all have come.
    fn into_message(self, message_bytes_max: usize) -> Result<Event<'static>, Close> {
        let payload = if self.is_compressed {
            deflate::expand(&self.payload, message_bytes_max)?
        } else {
            self.payload
        };
        if !self.is_text {
            return Ok(Event::Binary(Cow::Owned(payload)));
        }
        let text = String::from_utf8(payload).or(Err(Close::InvalidText))?;
        Ok(Event::Text(Cow::Owned(text)))
    }
}

/// The payload length: 7 bits, or 16 or 64 in network order, in the shortest form that holds it
/// (RFC 6455 §5.2). Consumed are the extended bytes.
fn parse_length(short: u8, extended: &[u8]) -> Result<Parsed<u64>, Close> {
    let (value, consumed, shortest) = match short {
        126 => match extended.first_chunk() {
            Some(&bytes) => (u64::from(u16::from_be_bytes(bytes)), 2, 126),
            None => return Ok(Parsed::Incomplete),
        },
        127 => match extended.first_chunk() {
            Some(&bytes) => (u64::from_be_bytes(bytes), 8, 1 << 16),
            None => return Ok(Parsed::Incomplete),
        },
        _ => (u64::from(short), 0, 0),
    };
    if value < shortest || value > i64::MAX as u64 {
        return Err(Close::ProtocolError);
    }
    Ok(Parsed::Complete { value, consumed })
}

/// RFC 6455 §5.5.1: nothing, or a code and a reason.
fn parse_close(payload: &[u8]) -> Result<Event<'_>, Close> {
    let Some((&code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(Event::Close {
                code: None,
                reason: "",
            }),
            _ => Err(Close::ProtocolError),
        };
    };
    let code = u16::from_be_bytes(code);
    // 1004 is reserved, 1005, 1006 and 1015 must not be sent (RFC 6455 §7.4.1; 1012 to 1014 are
    // IANA's since). Below 3000 the rest is unassigned.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Close::ProtocolError);
    }
    let reason = simdutf8::basic::from_utf8(reason).or(Err(Close::InvalidText))?;
    Ok(Event::Close {
        code: Some(code),
        reason,
    })
}

/// XOR with the repeated mask, a word at a time (RFC 6455 §5.3).
fn unmask(payload: &mut [u8], mask: [u8; MASK_BYTES]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

/// Append a whole, unmasked frame. A control payload is at most 125 bytes.
pub fn encode_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= CONTROL_PAYLOAD_MAX as usize);
    put_frame(out, FIN | opcode as u8, payload);
}

/// Append a message that [`super::deflate::compress`] has compressed (RFC 7692 §6).
pub fn encode_compressed(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    put_frame(out, FIN | COMPRESSED | opcode as u8, payload);
}

fn put_frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.reserve(HEADER_BYTES_MAX - MASK_BYTES + payload.len());
    out.push(first);
    match payload.len() {
        length @ 0..=125 => out.push(length as u8),
        length @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Append our close frame.
pub fn encode_close(out: &mut Vec<u8>, farewell: &Farewell) {
    debug_assert!(farewell.reason.len() <= REASON_BYTES_MAX);
    let mut payload = Vec::with_capacity(CONTROL_PAYLOAD_MAX as usize);
    payload.extend_from_slice(&farewell.code.to_be_bytes());
    payload.extend_from_slice(farewell.reason.as_bytes());
    encode_frame(out, Opcode::Close, &payload);
}

/// Append the answer to the client's close frame: its own code back (RFC 6455 §5.5.1).
pub fn encode_close_reply(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => encode_frame(out, Opcode::Close, &code.to_be_bytes()),
        None => encode_frame(out, Opcode::Close, &[]),
    }
}
