//! One published message as the log carries it: the payload of a record of kind [`RECORD_KIND`].
//!
//! ```text
//!  0 channel key      u64 x 2        40 source position   u64   uplink head after the request
//! 16 offset           u64            48 source generation u64
//! 24 previous         u64            56 source            u32   uplink id
//! 32 time_ms          u64            60 epoch             u32
//! 64 data bytes       u32            68 tags bytes        u16
//! 70 channel bytes    u8             71 flags             u8
//! 72 idempotency      u64 x 3        hash and previous keyed, only where the flag says so
//!    channel (UTF-8), tags (a JSON object, or nothing), data
//! ```
//!
//! Little-endian. The record holds all that its channel's entry in the table holds, so that the
//! table can be brought up to date from the log after a crash.

use crate::channels::ChannelKey;

/// Kind of the log records that carry publications.
pub const RECORD_KIND: u32 = 1;

/// The longest channel name: its length travels in one byte.
pub const CHANNEL_BYTES_MAX: usize = 255;

/// Whether `name` can be a channel's: ASCII, so that it is the same to every client, and of a
/// length that the log can say.
pub fn is_channel_name(name: &str) -> bool {
    (1..=CHANNEL_BYTES_MAX).contains(&name.len()) && name.is_ascii()
}

/// The longest tags: their length travels in two bytes.
pub const TAGS_BYTES_MAX: usize = u16::MAX as usize;

/// `previous` of a publication that is the first of its channel that the log knows.
pub const NO_PREVIOUS: u64 = u64::MAX;

/// What a publication takes in the log beside channel, tags and data.
pub const HEADER_BYTES_MAX: usize = FIXED_BYTES + IDEMPOTENCY_BYTES;

const FIXED_BYTES: usize = 72;
const IDEMPOTENCY_BYTES: usize = 24;

const FLAG_JSON: u8 = 1;
const FLAG_IDEMPOTENCY: u8 = 2;

/// Which request of which producer a publication came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Id of the uplink.
    pub uplink: u32,
    /// Generation of the uplink's segment: ids are used again.
    pub generation: u64,
    /// Head of the uplink's request ring after the request.
    pub position: u64,
}

/// The mark of a publication that came with an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Keyed hash of channel and key.
    pub hash: u128,
    /// Log position of the previous publication with a key, of any channel, or [`NO_PREVIOUS`].
    pub previous: u64,
}

/// A publication whose variable parts are borrowed, from a request or from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationView<'a> {
    pub key: ChannelKey,
    pub epoch: u32,
    /// Place in the channel: contiguous from 1 within an epoch.
    pub offset: u64,
    /// Log position of the channel's previous publication, or [`NO_PREVIOUS`].
    pub previous: u64,
    /// Wall clock of the publisher, milliseconds since 1970.
    pub time_ms: u64,
    pub source: Source,
    pub idempotency: Option<Idempotency>,
    pub channel: &'a str,
    /// Whether `data` is JSON text; else it is any bytes.
    pub json: bool,
    /// Text of a JSON object, or empty.
    pub tags: &'a [u8],
    pub data: &'a [u8],
}

/// The encoded part of a publication before its channel, tags and data.
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    used: usize,
}

impl Header {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

impl<'a> PublicationView<'a> {
    /// Reads a record's payload. `None` where it is no publication: nothing of it may be believed.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = payload.split_at_checked(FIXED_BYTES)?;
        let flags = fixed[71];
        if flags & !(FLAG_JSON | FLAG_IDEMPOTENCY) != 0 {
            return None;
        }
        let (idempotency, rest) = if flags & FLAG_IDEMPOTENCY == 0 {
            (None, rest)
        } else {
            let (mark, rest) = rest.split_at_checked(IDEMPOTENCY_BYTES)?;
            let hash = u128::from(u64_at(mark, 8)) << 64 | u128::from(u64_at(mark, 0));
            (
                Some(Idempotency {
                    hash,
                    previous: u64_at(mark, 16),
                }),
                rest,
            )
        };
        let (channel, rest) = rest.split_at_checked(usize::from(fixed[70]))?;
        let tags_bytes = usize::from(u16::from_le_bytes([fixed[68], fixed[69]]));
        let (tags, data) = rest.split_at_checked(tags_bytes)?;
        if data.len() != u32_at(fixed, 64) as usize || channel.is_empty() {
            return None;
        }
        Some(Self {
            key: ChannelKey([u64_at(fixed, 0), u64_at(fixed, 8)]),
            epoch: u32_at(fixed, 60),
            offset: u64_at(fixed, 16),
            previous: u64_at(fixed, 24),
            time_ms: u64_at(fixed, 32),
            source: Source {
                uplink: u32_at(fixed, 56),
                generation: u64_at(fixed, 48),
                position: u64_at(fixed, 40),
            },
            idempotency,
            channel: std::str::from_utf8(channel).ok()?,
            json: flags & FLAG_JSON != 0,
            tags,
            data,
        })
    }

    /// Bytes of the payload that [`Self::header`] and the variable parts make.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.header_bytes() + self.channel.len() + self.tags.len() + self.data.len()
    }

    /// Encodes what comes before channel, tags and data.
    ///
    /// # Panics
    /// Where channel, tags or data exceed their bounds: the caller has checked them.
    #[must_use]
    pub fn header(&self) -> Header {
        let mut bytes = [0; HEADER_BYTES_MAX];
        let words = [
            self.key.0[0],
            self.key.0[1],
            self.offset,
            self.previous,
            self.time_ms,
            self.source.position,
            self.source.generation,
        ];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let data_bytes = u32::try_from(self.data.len()).expect("data fits the log");
        let tags_bytes = u16::try_from(self.tags.len()).expect("tags are checked");
        let channel_bytes = u8::try_from(self.channel.len()).expect("the channel is checked");
        bytes[56..60].copy_from_slice(&self.source.uplink.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[64..68].copy_from_slice(&data_bytes.to_le_bytes());
        bytes[68..70].copy_from_slice(&tags_bytes.to_le_bytes());
        bytes[70] = channel_bytes;
        bytes[71] = u8::from(self.json) * FLAG_JSON;
        if let Some(Idempotency { hash, previous }) = self.idempotency {
            bytes[71] |= FLAG_IDEMPOTENCY;
            bytes[72..88].copy_from_slice(&hash.to_le_bytes());
            bytes[88..].copy_from_slice(&previous.to_le_bytes());
        }
        Header {
            bytes,
            used: self.header_bytes(),
        }
    }

    /// The whole payload, for tests and benchmarks; the publisher writes the parts one by one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [
            self.header().as_bytes(),
            self.channel.as_bytes(),
            self.tags,
            self.data,
        ]
        .concat()
    }

    fn header_bytes(&self) -> usize {
        if self.idempotency.is_none() {
            FIXED_BYTES
        } else {
            HEADER_BYTES_MAX
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample<'a>(channel: &'a str, tags: &'a [u8], data: &'a [u8]) -> PublicationView<'a> {
        PublicationView {
            key: ChannelKey([1, u64::MAX]),
            epoch: 0xfeed_beef,
            offset: 7,
            previous: NO_PREVIOUS,
            time_ms: 1_700_000_000_000,
            source: Source {
                uplink: 3,
                generation: 9,
                position: u64::MAX - 1,
            },
            idempotency: None,
            channel,
            json: true,
            tags,
            data,
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_what_is_parsed(
            channel in "\\PC{1,60}",
            tags in prop::collection::vec(any::<u8>(), 0..200),
            data in prop::collection::vec(any::<u8>(), 0..2000),
            hash: u128,
            keyed: bool,
            json: bool,
            offset: u64,
        ) {
            let view = PublicationView {
                idempotency: keyed.then_some(Idempotency { hash, previous: offset }),
                json,
                offset,
                ..sample(&channel, &tags, &data)
            };
            let payload = view.encode();
            prop_assert_eq!(payload.len(), view.payload_bytes());
            prop_assert_eq!(PublicationView::parse(&payload), Some(view));
        }

        #[test]
        fn arbitrary_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = PublicationView::parse(&payload);
        }
    }

    #[test]
    fn a_payload_of_any_other_length_is_refused() {
        let payload = sample("news", b"{}", b"[1,2,3]").encode();
        for end in 0..payload.len() {
            assert_eq!(
                PublicationView::parse(&payload[..end]),
                None,
                "cut at {end}"
            );
        }
        let longer = [payload.as_slice(), b"x"].concat();
        assert_eq!(PublicationView::parse(&longer), None);
    }

    #[test]
    fn unknown_flags_an_empty_channel_and_bad_utf8_are_refused() {
        let payload = sample("n", b"", b"1").encode();
        let mut flagged = payload.clone();
        flagged[71] |= 0x80;
        assert_eq!(PublicationView::parse(&flagged), None);
        let mut garbled = payload;
        garbled[72] = 0xff;
        assert_eq!(PublicationView::parse(&garbled), None);
        assert_eq!(
            PublicationView::parse(&sample("", b"", b"1").encode()),
            None
        );
    }
}
