//! One published message as the log carries it: the payload of a record of kind [`RECORD_KIND`].
//!
//! ```text
//!  0 channel key      u64 x 2        40 source position   u64   uplink head after the request
//! 16 offset           u64            48 source generation u64
//! 24 previous         u64            56 source            u32   uplink id
//! 32 time_ms          u64            60 epoch             u32
//! 64 data bytes       u32            68 tags bytes        u16
//! 70 channel bytes    u8             71 flags             u8
//! then, each only where its flag says so:
//!    idempotency      u64 x 3        hash and previous keyed
//!    except           UUID, 16 bytes
//!    version          u64 x 2        number, epoch
//!    info bytes       u32
//! then channel (UTF-8), tags (a JSON object, or nothing), info, data
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

/// The namespace of a channel: the text before its first colon, or none. `$` marks a private
/// channel and is no part of it.
#[must_use]
pub fn namespace_of(channel: &str) -> &str {
    let name = channel.strip_prefix('$').unwrap_or(channel);
    name.split_once(':').map_or("", |(namespace, _)| namespace)
}

/// The longest tags: their length travels in two bytes.
pub const TAGS_BYTES_MAX: usize = u16::MAX as usize;

/// `previous` of a publication that is the first of its channel that the log knows.
pub const NO_PREVIOUS: u64 = u64::MAX;

/// What a publication takes in the log beside channel, tags, info and data.
pub const HEADER_BYTES_MAX: usize =
    FIXED_BYTES + IDEMPOTENCY_BYTES + UUID_BYTES + VERSION_BYTES + INFO_BYTES;

const FIXED_BYTES: usize = 72;
const IDEMPOTENCY_BYTES: usize = 24;
const UUID_BYTES: usize = 16;
const VERSION_BYTES: usize = 16;
const INFO_BYTES: usize = 4;

const FLAG_JSON: u8 = 1;
const FLAG_IDEMPOTENCY: u8 = 2;
const FLAG_EXCEPT: u8 = 4;
const FLAG_VERSION: u8 = 8;
const FLAG_INFO: u8 = 16;
const FLAG_DELTA: u8 = 32;
const FLAG_KEPT: u8 = 64;
const FLAGS: u8 = 0x7f;

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

/// Which state of something a publication describes, by its producer's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// 0: none.
    pub number: u64,
    /// Hash of the name that the producer gave to this count. 0: it has no name.
    pub epoch: u64,
}

impl Version {
    /// What publications without a version have.
    pub const NONE: Self = Self {
        number: 0,
        epoch: 0,
    };

    /// Whether it tells nothing that `newest`, the channel's, has not told before. Counts of two
    /// names cannot be compared; one without a name is compared with any.
    #[must_use]
    pub fn is_superseded_by(self, newest: Self) -> bool {
        self.number != 0
            && self.number <= newest.number
            && (self.epoch == 0 || self.epoch == newest.epoch)
    }
}

/// A publication whose variable parts are borrowed, from a request or from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationView<'a> {
    pub key: ChannelKey,
    pub epoch: u32,
    /// Place in the channel: contiguous from 1 within an epoch. 0: it has none, and only those who
    /// were there got it.
    pub offset: u64,
    /// Log position of the channel's previous publication with an offset, or [`NO_PREVIOUS`].
    pub previous: u64,
    /// Wall clock of the publisher, milliseconds since 1970.
    pub time_ms: u64,
    pub source: Source,
    pub idempotency: Option<Idempotency>,
    /// Newest version of the channel, this publication's included; 0: it never had one.
    pub version: Version,
    /// UUID of the client that must not get it.
    pub except: Option<[u8; 16]>,
    pub channel: &'a str,
    /// Whether `data` is JSON text; else it is any bytes.
    pub json: bool,
    /// Whether subscribers that asked for it get the difference to the one before.
    pub delta: bool,
    /// Whether the history store had it: who misses it looks there, and nowhere else.
    pub kept: bool,
    /// Text of a JSON object, or empty.
    pub tags: &'a [u8],
    /// Protobuf of the ClientInfo of the client that published it, or empty.
    pub info: &'a [u8],
    pub data: &'a [u8],
}

/// The encoded part of a publication before its channel, tags, info and data.
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    used: usize,
}

impl Header {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn push(&mut self, field: &[u8]) {
        self.bytes[self.used..self.used + field.len()].copy_from_slice(field);
        self.used += field.len();
    }
}

impl<'a> PublicationView<'a> {
    /// Reads a record's payload. `None` where it is no publication: nothing of it may be believed.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (fixed, mut rest) = payload.split_at_checked(FIXED_BYTES)?;
        let flags = fixed[71];
        if flags & !FLAGS != 0 {
            return None;
        }
        let mut take = |bytes| {
            let (field, after) = rest.split_at_checked(bytes)?;
            rest = after;
            Some(field)
        };
        let mut optional = |flag, bytes| {
            if flags & flag == 0 {
                return Some(None);
            }
            take(bytes).map(Some)
        };
        let idempotency = optional(FLAG_IDEMPOTENCY, IDEMPOTENCY_BYTES)?;
        let except = optional(FLAG_EXCEPT, UUID_BYTES)?;
        let version = optional(FLAG_VERSION, VERSION_BYTES)?;
        let info_bytes = optional(FLAG_INFO, INFO_BYTES)?;
        let channel = take(usize::from(fixed[70]))?;
        let tags = take(usize::from(u16::from_le_bytes([fixed[68], fixed[69]])))?;
        let info = take(info_bytes.map_or(0, |field| u32_at(field, 0) as usize))?;
        let data = rest;
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
            idempotency: idempotency.map(|mark| Idempotency {
                hash: u128::from(u64_at(mark, 8)) << 64 | u128::from(u64_at(mark, 0)),
                previous: u64_at(mark, 16),
            }),
            version: version.map_or(Version::NONE, |field| Version {
                number: u64_at(field, 0),
                epoch: u64_at(field, 8),
            }),
            except: except.map(|uuid| uuid.try_into().expect("sixteen bytes")),
            channel: std::str::from_utf8(channel).ok()?,
            json: flags & FLAG_JSON != 0,
            delta: flags & FLAG_DELTA != 0,
            kept: flags & FLAG_KEPT != 0,
            tags,
            info,
            data,
        })
    }

    /// Bytes of the payload that [`Self::header`] and the variable parts make.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let rest = self.tags.len() + self.info.len() + self.data.len();
        self.header_bytes() + self.channel.len() + rest
    }

    /// Encodes what comes before channel, tags, info and data.
    ///
    /// # Panics
    /// Where channel, tags, info or data exceed their bounds: the caller has checked them.
    #[must_use]
    #[inline]
    pub fn header(&self) -> Header {
        let mut header = Header {
            bytes: [0; HEADER_BYTES_MAX],
            used: FIXED_BYTES,
        };
        let words = [
            self.key.0[0],
            self.key.0[1],
            self.offset,
            self.previous,
            self.time_ms,
            self.source.position,
            self.source.generation,
        ];
        for (at, word) in header.bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let data_bytes = u32::try_from(self.data.len()).expect("data fits the log");
        let info_bytes = u32::try_from(self.info.len()).expect("info fits the log");
        let tags_bytes = u16::try_from(self.tags.len()).expect("tags are checked");
        let channel_bytes = u8::try_from(self.channel.len()).expect("the channel is checked");
        header.bytes[56..60].copy_from_slice(&self.source.uplink.to_le_bytes());
        header.bytes[60..64].copy_from_slice(&self.epoch.to_le_bytes());
        header.bytes[64..68].copy_from_slice(&data_bytes.to_le_bytes());
        header.bytes[68..70].copy_from_slice(&tags_bytes.to_le_bytes());
        header.bytes[70] = channel_bytes;
        header.bytes[71] = self.flags();
        if let Some(Idempotency { hash, previous }) = self.idempotency {
            header.push(&hash.to_le_bytes());
            header.push(&previous.to_le_bytes());
        }
        if let Some(except) = self.except {
            header.push(&except);
        }
        if self.version != Version::NONE {
            header.push(&self.version.number.to_le_bytes());
            header.push(&self.version.epoch.to_le_bytes());
        }
        if !self.info.is_empty() {
            header.push(&info_bytes.to_le_bytes());
        }
        header
    }

    /// The whole payload, for tests and benchmarks; the publisher writes the parts one by one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [
            self.header().as_bytes(),
            self.channel.as_bytes(),
            self.tags,
            self.info,
            self.data,
        ]
        .concat()
    }

    fn flags(&self) -> u8 {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        flag(self.json, FLAG_JSON)
            | flag(self.idempotency.is_some(), FLAG_IDEMPOTENCY)
            | flag(self.except.is_some(), FLAG_EXCEPT)
            | flag(self.version != Version::NONE, FLAG_VERSION)
            | flag(!self.info.is_empty(), FLAG_INFO)
            | flag(self.delta, FLAG_DELTA)
            | flag(self.kept, FLAG_KEPT)
    }

    fn header_bytes(&self) -> usize {
        FIXED_BYTES
            + usize::from(self.idempotency.is_some()) * IDEMPOTENCY_BYTES
            + usize::from(self.except.is_some()) * UUID_BYTES
            + usize::from(self.version != Version::NONE) * VERSION_BYTES
            + usize::from(!self.info.is_empty()) * INFO_BYTES
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
            version: Version::NONE,
            except: None,
            channel,
            json: true,
            delta: false,
            kept: false,
            tags,
            info: b"",
            data,
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_what_is_parsed(
            channel in "\\PC{1,60}",
            tags in prop::collection::vec(any::<u8>(), 0..200),
            data in prop::collection::vec(any::<u8>(), 0..2000),
            info in prop::collection::vec(any::<u8>(), 0..100),
            hash: u128,
            keyed: bool,
            [json, delta, kept] in any::<[bool; 3]>(),
            offset: u64,
            [number, epoch]: [u64; 2],
            except: Option<[u8; 16]>,
        ) {
            let view = PublicationView {
                idempotency: keyed.then_some(Idempotency { hash, previous: offset }),
                offset,
                version: if kept { Version { number, epoch } } else { Version::NONE },
                except,
                json,
                delta,
                kept,
                info: &info,
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
    fn a_version_is_superseded_by_one_of_its_own_count() {
        let version = |number, epoch| Version { number, epoch };
        for (new, newest, is_superseded) in [
            (version(4, 0), version(5, 0), true),
            (version(5, 0), version(5, 0), true),
            (version(6, 0), version(5, 0), false),
            (version(5, 1), version(5, 1), true),
            (version(4, 1), version(5, 2), false),
            (version(4, 1), version(5, 0), false),
            (version(4, 0), version(5, 1), true),
            (Version::NONE, version(5, 0), false),
        ] {
            assert_eq!(
                new.is_superseded_by(newest),
                is_superseded,
                "{new:?} {newest:?}"
            );
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
