//! One frame: header, payload, and the checksum when agreed.
//!
//! ```text
//!  0       2       3       4               8              12      14      16
//!  +-------+-------+-------+---------------+---------------+-------+-------+---------+----------+
//!  | magic |version| type  |      seq      |    ack_seq    |window | length| payload | checksum |
//!  | 4D 42 |  01   |       |      u32      |      u32      |  u16  |  u16  | length B| 0 or 4 B |
//!  +-------+-------+-------+---------------+---------------+-------+-------+---------+----------+
//! ```

use crate::protocol::Parsed;
use crate::protocol::close::Close;

pub const MAGIC: u16 = 0x4D42;
pub const VERSION: u8 = 1;
pub const HEADER_BYTES: usize = 16;
pub const CHECKSUM_BYTES: usize = 4;
/// The length field is 16 bits wide; longer messages are fragmented.
pub const PAYLOAD_BYTES_MAX: usize = 65_535;
/// The longest frame, hence the most partial input that a connection can hold back.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + PAYLOAD_BYTES_MAX + CHECKSUM_BYTES;
/// Types from here on may be skipped by who does not know them; an unknown type below is fatal.
const SKIPPABLE_FROM: u8 = 128;

/// Type of a frame, with its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Data = 0,
    Heartbeat = 1,
    Ack = 2,
    WindowUpdate = 3,
    Connect = 4,
    Connected = 5,
    Subscribe = 6,
    Subscribed = 7,
    Unsubscribe = 8,
    Unsubscribed = 9,
    Publish = 10,
    Published = 11,
    Error = 12,
    Close = 13,
    /// A type of a later version that says of itself that it may be skipped. Never sent.
    Skippable = SKIPPABLE_FROM,
}

impl Kind {
    const KNOWN: [Kind; 14] = [
        Kind::Data,
        Kind::Heartbeat,
        Kind::Ack,
        Kind::WindowUpdate,
        Kind::Connect,
        Kind::Connected,
        Kind::Subscribe,
        Kind::Subscribed,
        Kind::Unsubscribe,
        Kind::Unsubscribed,
        Kind::Publish,
        Kind::Published,
        Kind::Error,
        Kind::Close,
    ];

    fn from_wire(number: u8) -> Result<Kind, Close> {
        match Kind::KNOWN.get(usize::from(number)) {
            Some(kind) => Ok(*kind),
            None if number >= SKIPPABLE_FROM => Ok(Kind::Skippable),
            None => Err(Close::BadType),
        }
    }

    /// Whether frames of this type are numbered, counted against the window and acknowledged:
    /// DATA on the way to the client, PUBLISH on the way to the server.
    pub fn is_sequenced(self) -> bool {
        matches!(self, Kind::Data | Kind::Publish)
    }

    /// Whether a client may send it.
    pub fn is_from_client(self) -> bool {
        !matches!(
            self,
            Kind::Data | Kind::Connected | Kind::Subscribed | Kind::Unsubscribed | Kind::Published
        ) && self != Kind::Error
    }

    /// Whether the payload has to be empty.
    fn is_bare(self) -> bool {
        matches!(self, Kind::Heartbeat | Kind::Ack | Kind::WindowUpdate)
    }
}

/// What both sides have settled for the frames of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Each frame ends with the CRC-32C of its header and payload.
    pub crc: bool,
}

impl Agreed {
    /// CONNECT and CONNECTED, and a CLOSE in place of the latter, never carry a checksum.
    pub const BEFORE_CONNECT: Agreed = Agreed { crc: false };

    /// Bytes of a frame around its payload.
    pub fn overhead(self) -> usize {
        HEADER_BYTES + if self.crc { CHECKSUM_BYTES } else { 0 }
    }
}

/// The fields of a header. Magic and version are checked and written, not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Number of this frame if its type is sequenced, else of the last sequenced one sent.
    pub seq: u32,
    /// Number of the last sequenced frame received.
    pub ack_seq: u32,
    /// Room of the sender's receive side, in units of its scale.
    pub window_size: u16,
    /// Bytes of the payload, the checksum not included.
    pub length: u16,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2] = VERSION;
        bytes[3] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ack_seq.to_be_bytes());
        bytes[12..14].copy_from_slice(&self.window_size.to_be_bytes());
        bytes[14..16].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// A whole frame whose checksum, if agreed, has been found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub header: Header,
    pub payload: &'a [u8],
}

/// The first frame in `bytes`, borrowed from them.
///
/// Errors come as soon as the bytes that show them are there, so a peer that speaks something else
/// is not waited for: [`Close::BadMagic`], [`Close::BadVersion`], [`Close::BadType`],
/// [`Close::BadLength`] (a payload where none may be), [`Close::BadChecksum`].
pub fn decode<'a>(bytes: &'a [u8], agreed: &Agreed) -> Result<Parsed<Frame<'a>>, Close> {
    let magic = MAGIC.to_be_bytes();
    let compared = bytes.len().min(magic.len());
    if bytes[..compared] != magic[..compared] {
        return Err(Close::BadMagic);
    }
    if bytes.len() > 2 && bytes[2] != VERSION {
        return Err(Close::BadVersion);
    }
    let kind = match bytes.get(3) {
        Some(number) => Kind::from_wire(*number)?,
        None => return Ok(Parsed::Incomplete),
    };
    if bytes.len() < HEADER_BYTES {
        return Ok(Parsed::Incomplete);
    }
    let header = Header {
        kind,
        seq: u32_at(bytes, 4),
        ack_seq: u32_at(bytes, 8),
        window_size: u16_at(bytes, 12),
        length: u16_at(bytes, 14),
    };
    if kind.is_bare() && header.length != 0 {
        return Err(Close::BadLength);
    }
    let end = HEADER_BYTES + usize::from(header.length);
    let consumed = end + agreed.overhead() - HEADER_BYTES;
    if bytes.len() < consumed {
        return Ok(Parsed::Incomplete);
    }
    if agreed.crc && checksum(&[&bytes[..end]]) != bytes[end..consumed] {
        return Err(Close::BadChecksum);
    }
    let value = Frame {
        header,
        payload: &bytes[HEADER_BYTES..end],
    };
    Ok(Parsed::Complete { value, consumed })
}

/// CRC-32C (Castagnoli, RFC 3720 §12.1) of the parts in a row, in network byte order.
pub fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM_BYTES] {
    let crc = parts
        .iter()
        .fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    crc.to_be_bytes()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
