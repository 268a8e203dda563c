//! The client's half of the binary protocol, written from `workers/WIRE_PROTOCOL.md` alone, so that
//! a swarm also checks that page. Bytes in, values out. Checksums are not asked for.

use crate::session::{Failure, Position};
use crate::uni::NAME;

pub const HEADER_BYTES: usize = 16;
const MAGIC: [u8; 2] = *b"MB";
const VERSION: u8 = 1;
/// LEB128 of a u64: seven bits a byte.
const VARINT_BYTES_MAX: usize = 10;

/// What a client announces as its window: 65,535 << 1 bytes. It takes everything at once, so that
/// the window never shrinks.
pub const WINDOW_SIZE: u16 = u16::MAX;
pub const WINDOW_SCALE: u8 = 1;

pub const DATA: u8 = 0;
pub const HEARTBEAT: u8 = 1;
pub const ACK: u8 = 2;
pub const CONNECT: u8 = 4;
pub const CONNECTED: u8 = 5;
pub const SUBSCRIBE: u8 = 6;
pub const SUBSCRIBED: u8 = 7;
pub const UNSUBSCRIBED: u8 = 9;
pub const ERROR: u8 = 12;
pub const CLOSE: u8 = 13;

const SUBSCRIBE_RECOVER: u64 = 1;
const SUBSCRIBED_RECOVERED: u64 = 2;
const MESSAGE_TAGS: u64 = 2;

/// A whole frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u8,
    pub seq: u32,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }
}

/// Reads the frame at the beginning of `bytes`, `None` while it is incomplete.
pub fn frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, Failure> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    if header[..2] != MAGIC || header[2] != VERSION {
        return Err(Failure::Protocol(
            "neither magic nor version of the binary protocol",
        ));
    }
    let [.., high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    Ok(rest.get(..length).map(|payload| Frame {
        kind: header[3],
        seq,
        payload,
    }))
}

/// Appends a frame of a client that has sent no sequenced frame. `received` is the number of the
/// last sequenced frame that it has taken.
pub fn encode(out: &mut Vec<u8>, kind: u8, received: u32, payload: &[u8]) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&received.to_be_bytes());
    out.extend_from_slice(&WINDOW_SIZE.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    out.extend_from_slice(payload);
}

/// An empty token is none.
pub fn connect(token: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    put_varint(&mut payload, 0);
    put_varint(&mut payload, u64::from(WINDOW_SCALE));
    put_text(&mut payload, NAME);
    put_text(&mut payload, token);
    payload
}

pub fn subscribe(request: u32, channel: &str, since: Option<&Position>) -> Vec<u8> {
    let mut payload = Vec::new();
    put_varint(&mut payload, u64::from(request));
    put_varint(
        &mut payload,
        if since.is_some() {
            SUBSCRIBE_RECOVER
        } else {
            0
        },
    );
    put_text(&mut payload, channel);
    if let Some(since) = since {
        put_text(&mut payload, &since.epoch);
        put_varint(&mut payload, since.offset);
    }
    payload
}

pub fn close(code: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    put_varint(&mut payload, u64::from(code));
    put_text(&mut payload, "");
    payload
}

#[derive(Debug, PartialEq, Eq)]
pub struct Subscribed<'a> {
    pub request: u64,
    pub recovered: bool,
    pub alias: u64,
    pub epoch: &'a str,
    pub offset: u64,
}

pub fn subscribed(payload: &[u8]) -> Result<Subscribed<'_>, Failure> {
    let mut fields = Fields(payload);
    Ok(Subscribed {
        request: fields.varint()?,
        recovered: fields.varint()? & SUBSCRIBED_RECOVERED != 0,
        alias: fields.varint()?,
        epoch: fields.text()?,
        offset: fields.varint()?,
    })
}

/// A whole message, put together from DATA frames.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub alias: u64,
    pub offset: u64,
    pub data: &'a [u8],
}

pub fn message(bytes: &[u8]) -> Result<Message<'_>, Failure> {
    let mut fields = Fields(bytes);
    let (alias, offset, flags) = (fields.varint()?, fields.varint()?, fields.varint()?);
    if flags & MESSAGE_TAGS != 0 {
        fields.text()?;
    }
    Ok(Message {
        alias,
        offset,
        data: fields.0,
    })
}

/// The alias that an UNSUBSCRIBED ends.
pub fn unsubscribed(payload: &[u8]) -> Result<u64, Failure> {
    let mut fields = Fields(payload);
    fields.varint()?;
    fields.varint()
}

/// The code of an ERROR.
pub fn error(payload: &[u8]) -> Result<u16, Failure> {
    let mut fields = Fields(payload);
    fields.varint()?;
    fields.code()
}

/// The code of a CLOSE.
pub fn closed(payload: &[u8]) -> Result<u16, Failure> {
    Fields(payload).code()
}

/// The heartbeat interval of a CONNECTED, in milliseconds.
pub fn connected(payload: &[u8]) -> Result<u64, Failure> {
    let mut fields = Fields(payload);
    fields.varint()?;
    fields.varint()?;
    fields.varint()
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Failure> {
        let mut value = 0_u64;
        for (index, byte) in self.0.iter().take(VARINT_BYTES_MAX).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(Failure::Protocol("a varint without end"))
    }

    fn code(&mut self) -> Result<u16, Failure> {
        self.varint()?
            .try_into()
            .map_err(|_| Failure::Protocol("a code above 65,535"))
    }

    fn text(&mut self) -> Result<&'a str, Failure> {
        let length = self.varint()?;
        let split = usize::try_from(length)
            .ok()
            .and_then(|length| self.0.split_at_checked(length));
        let (text, rest) = split.ok_or(Failure::Protocol("a text longer than its payload"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Failure::Protocol("a text that is not UTF-8"))
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_when_it_is_whole() {
        let mut bytes = Vec::new();
        encode(&mut bytes, SUBSCRIBE, 7, &subscribe(1, "a", None));
        let whole = Frame {
            kind: SUBSCRIBE,
            seq: 0,
            payload: &[1, 0, 1, b'a'],
        };
        assert_eq!(frame(&bytes), Ok(Some(whole)));
        for length in 0..bytes.len() {
            assert_eq!(frame(&bytes[..length]), Ok(None), "{length} bytes");
        }
        bytes[0] = 0;
        assert!(matches!(frame(&bytes), Err(Failure::Protocol(_))));
    }

    #[test]
    fn payloads_are_laid_out_as_the_specification_says() {
        let since = Position {
            epoch: "ab".into(),
            offset: 300,
        };
        assert_eq!(
            subscribe(1, "c", Some(&since)),
            [1, 1, 1, b'c', 2, b'a', b'b', 0xAC, 0x02]
        );
        assert_eq!(close(1000), [0xE8, 0x07, 0]);
        let answer = subscribed(&[1, 3, 0x80, 1, 2, b'a', b'b', 5]).unwrap();
        let expected = Subscribed {
            request: 1,
            recovered: true,
            alias: 128,
            epoch: "ab",
            offset: 5,
        };
        assert_eq!(answer, expected);
        let tagged = message(&[4, 9, 2, 2, b'{', b'}', b'x']).unwrap();
        assert_eq!(
            tagged,
            Message {
                alias: 4,
                offset: 9,
                data: b"x"
            }
        );
        assert_eq!(error(&[1, 103, 0, 0]), Ok(103));
    }

    #[test]
    fn what_is_cut_off_is_a_failure() {
        for payload in [&[0x80][..], &[], &[1, 0, 0, 9, b'a']] {
            assert!(
                matches!(subscribed(payload), Err(Failure::Protocol(_))),
                "{payload:?}"
            );
        }
        assert!(matches!(
            error(&[1, 0xFF, 0xFF, 0x7F]),
            Err(Failure::Protocol(_))
        ));
    }
}
