//! The channel table: where each channel stands. The publisher writes it, every process reads it.
//!
//! ```text
//! 4096  epoch_now, keyed_last          entry, 64 bytes
//! 4224  bucket 0: 32 entries             0 key        u64 x 2, zero: free
//!       bucket 1 ...                    16 edition    u64, its lowest bit selects the copy
//!                                       24 epoch      u32
//!                                       32 copy 0:    offset, last position
//!                                       48 copy 1:    offset, last position
//!       version of entry 0 ...  u64 x 2: number and epoch of the newest version, or 0
//! ```
//!
//! A channel lives in one of two buckets that its key names, and never moves. An update writes the
//! copy that nobody reads and then selects it, so a reader never waits: not even for a publisher
//! that was killed half-way. A reader that was overtaken twice sees the edition changed and reads
//! again (a seqlock whose writer leaves the last value readable).
//!
//! When both buckets are full, the channel whose newest record left the log longest ago is
//! forgotten. Should it come back, nobody may take its new offsets for a continuation of the old
//! ones: every channel made after that gets a new epoch.

mod writer;

pub use writer::{ChannelWriter, Horizon, Place};

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::error::SegmentError;
use crate::host;
use crate::layout::{self, HEADER_BYTES, Kind, LINE, Owner};
use crate::publication::NO_PREVIOUS;
use crate::region::{Region, WORD};
use crate::sync::{Ordering, fence};

/// Entries of a bucket. Two choices of buckets so large fill nine tenths of a table before the
/// first channel finds both full (the tests check it); of 8 entries, three quarters.
/// (The model checker, which tries every interleaving, gets the smallest table.)
const BUCKET_ENTRIES: usize = if cfg!(loom) { 1 } else { 32 };

const ENTRY_BYTES: usize = 64;
const EDITION_AT: usize = 16;
const EPOCH_AT: usize = 24;
const COPIES_AT: usize = 32;
const COPY_BYTES: usize = 16;
const VERSION_BYTES: usize = 16;

const EPOCH_NOW_AT: usize = HEADER_BYTES;
const KEYED_LAST_AT: usize = EPOCH_NOW_AT + WORD;
const ENTRIES_AT: usize = HEADER_BYTES + LINE;

/// One entry more for so many that were asked for: the table is never filled beyond nine tenths.
const SPARE: usize = 8;

/// A read is repeated only when the publisher committed the same channel twice meanwhile.
const READS_MAX: usize = 1 << 20;

/// Most channels of a table: keeps its size, about 90 bytes each, below 7 GiB.
pub const CHANNELS_MAX: u64 = 1 << 26;

/// Names a channel: a hash under the table's random key, so that nobody can choose collisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelKey(pub [u64; 2]);

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Top {
    pub epoch: u32,
    /// Offset of the newest publication.
    pub offset: u64,
    /// Log position of the newest publication's record.
    pub last_position: u64,
}

/// Bytes of a segment for at least `channels_max` channels.
///
/// # Errors
/// [`SegmentError::Parameter`] for zero and for more than [`CHANNELS_MAX`].
pub fn segment_bytes(channels_max: u64) -> Result<usize, SegmentError> {
    if channels_max == 0 || channels_max > CHANNELS_MAX {
        return Err(SegmentError::Parameter {
            name: "channels_max",
            value: channels_max,
            rule: "it must be between 1 and 67108864",
        });
    }
    let slots = bucket_count(channels_max as usize) * BUCKET_ENTRIES;
    Ok(layout::whole_pages(
        ENTRIES_AT + slots * (ENTRY_BYTES + VERSION_BYTES),
    ))
}

/// Makes an empty table in a zeroed region of [`segment_bytes`] bytes, with a hash key and an epoch
/// drawn at random.
///
/// # Errors
/// As [`segment_bytes`]; also for a region of another size.
pub fn format(region: &Region, channels_max: u64, owner: Owner) -> Result<(), SegmentError> {
    let bytes = segment_bytes(channels_max)?;
    if region.len() != bytes {
        return Err(SegmentError::Size {
            said: bytes as u64,
            found: region.len() as u64,
        });
    }
    let buckets = bucket_count(channels_max as usize) as u64;
    let parameters = [channels_max, buckets, host::random()?, host::random()?];
    let epoch = host::random()? >> 32;
    layout::format(region, Kind::Channels, owner, &parameters, |region| {
        region.store(EPOCH_NOW_AT, epoch);
        region.store(KEYED_LAST_AT, NO_PREVIOUS);
    });
    Ok(())
}

fn bucket_count(channels_max: usize) -> usize {
    (channels_max + channels_max / SPARE + 1)
        .div_ceil(BUCKET_ENTRIES)
        .max(2)
}

/// The table as every process sees it.
#[derive(Clone, Debug)]
pub struct ChannelTable {
    region: Region,
    channels_max: u64,
    buckets: u64,
    hash_key: [u64; 2],
}

impl ChannelTable {
    /// # Errors
    /// [`SegmentError`] where the region holds no channel table of this version.
    pub fn attach(region: Region) -> Result<Self, SegmentError> {
        let header = layout::attach(&region, Kind::Channels)?;
        let [channels_max, buckets, hash_0, hash_1, ..] = header.parameters;
        if segment_bytes(channels_max)? != region.len()
            || buckets != bucket_count(channels_max as usize) as u64
        {
            return Err(SegmentError::Parameter {
                name: "buckets",
                value: buckets,
                rule: "it must follow from channels_max and the segment's size",
            });
        }
        Ok(Self {
            region,
            channels_max,
            buckets,
            hash_key: [hash_0, hash_1],
        })
    }

    /// What the table was made for; it holds at least as many channels.
    #[must_use]
    pub fn channels_max(&self) -> u64 {
        self.channels_max
    }

    /// The key of the channel called `name`.
    #[must_use]
    pub fn key(&self, name: &str) -> ChannelKey {
        let hash = self.hash(&[name.as_bytes()]);
        // Zero marks a free entry, also in one half of a key that was stored half-way.
        ChannelKey([hash as u64 | 1, (hash >> 64) as u64 | 1])
    }

    /// A hash of `parts` under the table's secret key; parts of other lengths hash otherwise.
    #[must_use]
    pub fn hash(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key[0], self.hash_key[1]);
        for part in parts {
            hasher.write_u64(part.len() as u64);
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }

    /// Where the channel stands; `None` where the table does not know it: then it has nothing that
    /// could be recovered, and its next publication will have offset 1 of [`Self::epoch_now`].
    #[must_use]
    pub fn top(&self, key: ChannelKey) -> Option<Top> {
        self.slots(key).find_map(|slot| self.read(slot, key))
    }

    /// The epoch that a channel gets when it is published to for the first time.
    #[must_use]
    pub fn epoch_now(&self) -> u32 {
        self.region.load(EPOCH_NOW_AT) as u32
    }

    fn read(&self, slot: usize, key: ChannelKey) -> Option<Top> {
        let at = entry_at(slot);
        for _ in 0..READS_MAX {
            // SYNC: pairs with channels/writer.rs::ChannelWriter::store_entry (select)
            let edition = self.region.word(at + EDITION_AT).load(Ordering::Acquire);
            if self.key_at(slot) != key {
                return None;
            }
            let copy = copy_at(slot, edition);
            let top = Top {
                epoch: self.region.load(at + EPOCH_AT) as u32,
                offset: self.region.load(copy),
                last_position: self.region.load(copy + WORD),
            };
            // SYNC: pairs with the release fence in channels/writer.rs::ChannelWriter::store_entry
            fence(Ordering::Acquire);
            // The key first: where the same key came back after another, the edition tells.
            // SYNC: pairs with channels/writer.rs::ChannelWriter::store_entry (key)
            let half = self.region.word(at).load(Ordering::Acquire);
            let same = ChannelKey([half, self.region.load(at + WORD)]) == key;
            if same && self.region.load(at + EDITION_AT) == edition {
                return Some(top);
            }
        }
        None
    }

    /// Where the publisher remembers the version of an entry's channel; nobody else looks.
    fn version_at(&self, slot: usize) -> usize {
        entry_at(self.buckets as usize * BUCKET_ENTRIES) + slot * VERSION_BYTES
    }

    fn key_at(&self, slot: usize) -> ChannelKey {
        let at = entry_at(slot);
        ChannelKey([self.region.load(at), self.region.load(at + WORD)])
    }

    /// The entries of both buckets of `key`.
    fn slots(&self, key: ChannelKey) -> impl Iterator<Item = usize> + use<> {
        key.0.map(|half| self.bucket(half)).into_iter().flatten()
    }

    fn bucket(&self, half: u64) -> std::ops::Range<usize> {
        // The high word of the product maps a hash evenly onto any number of buckets.
        let bucket = ((u128::from(half) * u128::from(self.buckets)) >> 64) as usize;
        bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES
    }
}

fn entry_at(slot: usize) -> usize {
    ENTRIES_AT + slot * ENTRY_BYTES
}

fn copy_at(slot: usize, edition: u64) -> usize {
    entry_at(slot) + COPIES_AT + (edition & 1) as usize * COPY_BYTES
}
