//! The channel table: where each channel stands. The publisher writes it, every process reads it.
//!
//! ```text
//! 4096  epoch_now, keyed_last          entry, 64 bytes
//! 4224  bucket 0: 32 entries             0 key        u64 x 2, zero: free
//!       bucket 1 ...                    16 version    u64, its lowest bit selects the copy
//!                                       24 epoch      u32
//!                                       32 copy 0:    offset, last position
//!                                       48 copy 1:    offset, last position
//! ```
//!
//! A channel lives in one of two buckets that its key names, and never moves. An update writes the
//! copy that nobody reads and then selects it, so a reader never waits: not even for a publisher
//! that was killed half-way. A reader that was overtaken twice sees the version changed and reads
//! again (a seqlock whose writer leaves the last value readable).
//!
//! When both buckets are full, the channel whose newest record left the log longest ago is
//! forgotten. Should it come back, nobody may take its new offsets for a continuation of the old
//! ones: every channel made after that gets a new epoch.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::error::SegmentError;
use crate::host;
use crate::layout::{self, HEADER_BYTES, Kind, LINE, Owner};
use crate::publication::NO_PREVIOUS;
use crate::region::{Claim, Region, WORD};
use crate::sync::{Ordering, fence};

/// Entries of a bucket. Two choices of buckets so large fill nine tenths of a table before the
/// first channel finds both full (the tests check it); of 8 entries, three quarters.
/// (The model checker, which tries every interleaving, gets the smallest table.)
const BUCKET_ENTRIES: usize = if cfg!(loom) { 1 } else { 32 };

const ENTRY_BYTES: usize = 64;
const VERSION_AT: usize = 16;
const EPOCH_AT: usize = 24;
const COPIES_AT: usize = 32;
const COPY_BYTES: usize = 16;

const EPOCH_NOW_AT: usize = HEADER_BYTES;
const KEYED_LAST_AT: usize = EPOCH_NOW_AT + WORD;
const ENTRIES_AT: usize = HEADER_BYTES + LINE;

/// One entry more for so many that were asked for: the table is never filled beyond nine tenths.
const SPARE: usize = 8;

/// A read is repeated only when the publisher committed the same channel twice meanwhile.
const READS_MAX: usize = 1 << 20;

/// Most channels of a table: keeps its size, about 72 bytes each, below 5 GiB.
pub const CHANNELS_MAX: u64 = 1 << 26;

/// Names a channel: a hash under the table's random key, so that nobody can choose collisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelKey(pub [u64; 2]);

const FREE: ChannelKey = ChannelKey([0, 0]);

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
    let buckets = bucket_count(channels_max as usize);
    Ok(layout::whole_pages(
        ENTRIES_AT + buckets * BUCKET_ENTRIES * ENTRY_BYTES,
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
            // SYNC: pairs with channels.rs::store_entry (select)
            let version = self.region.word(at + VERSION_AT).load(Ordering::Acquire);
            if self.key_at(slot) != key {
                return None;
            }
            let copy = copy_at(slot, version);
            let top = Top {
                epoch: self.region.load(at + EPOCH_AT) as u32,
                offset: self.region.load(copy),
                last_position: self.region.load(copy + WORD),
            };
            // SYNC: pairs with the release fence in channels.rs::store_entry
            fence(Ordering::Acquire);
            // The key first: where the same key came back after another, the version tells.
            // SYNC: pairs with channels.rs::store_entry (key)
            let half = self.region.word(at).load(Ordering::Acquire);
            let same = ChannelKey([half, self.region.load(at + WORD)]) == key;
            if same && self.region.load(at + VERSION_AT) == version {
                return Some(top);
            }
        }
        None
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

fn copy_at(slot: usize, version: u64) -> usize {
    entry_at(slot) + COPIES_AT + (version & 1) as usize * COPY_BYTES
}

/// What of the log is still there, as it was when a batch began.
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    /// Tail of the log before the batch.
    pub tail: u64,
    pub capacity: u64,
}

impl Horizon {
    /// How far behind the tail a record is; positions wrap at 2^64.
    fn age(self, position: u64) -> u64 {
        self.tail.wrapping_sub(position)
    }
}

/// The place that a channel's next publication gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    slot: usize,
    pub epoch: u32,
    pub offset: u64,
    /// Log position of the channel's previous publication, or [`NO_PREVIOUS`].
    pub previous: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: ChannelKey,
    top: Top,
    /// Differs from the shared table until the next [`ChannelWriter::store`].
    touched: bool,
}

const FREE_ENTRY: Entry = Entry {
    key: FREE,
    top: Top {
        epoch: 0,
        offset: 0,
        last_position: 0,
    },
    touched: false,
};

/// The publisher's side: plans in a private mirror, then stores what it touched.
///
/// A batch is planned before it is in the log, and may enter the table only after: so planning must
/// not be seen. Planning is a function of the table and the batch alone; a batch that a killed
/// publisher stored in part is planned again by the next one with the same result.
#[derive(Debug)]
pub struct ChannelWriter {
    table: ChannelTable,
    mirror: Vec<Entry>,
    touched: Vec<usize>,
    epoch_now: u32,
    keyed_last: u64,
    evictions: u64,
    channels: u64,
    _claim: Claim,
}

impl ChannelWriter {
    /// Takes the table over as an earlier publisher left it.
    ///
    /// # Errors
    /// As [`ChannelTable::attach`]; [`SegmentError::Claimed`] for a second writer of this process.
    pub fn open(region: Region) -> Result<Self, SegmentError> {
        let claim = region.claim(EPOCH_NOW_AT)?;
        let table = ChannelTable::attach(region)?;
        let slots = table.buckets as usize * BUCKET_ENTRIES;
        let mirror: Vec<Entry> = (0..slots)
            .map(|slot| {
                let key = table.key_at(slot);
                table.read(slot, key).map_or(FREE_ENTRY, |top| Entry {
                    key,
                    top,
                    touched: false,
                })
            })
            .map(|entry| {
                if entry.key.0.contains(&0) {
                    FREE_ENTRY
                } else {
                    entry
                }
            })
            .collect();
        let channels = mirror.iter().filter(|entry| entry.key != FREE).count() as u64;
        let epoch_now = table.epoch_now();
        let keyed_last = table.region.load(KEYED_LAST_AT);
        Ok(Self {
            table,
            mirror,
            touched: Vec::new(),
            epoch_now,
            keyed_last,
            evictions: 0,
            channels,
            _claim: claim,
        })
    }

    #[must_use]
    pub fn table(&self) -> &ChannelTable {
        &self.table
    }

    /// Channels that were forgotten to make room, since this writer was opened.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Channels that the table holds.
    #[must_use]
    pub fn channels(&self) -> u64 {
        self.channels
    }

    /// Log position of the newest publication with an idempotency key, or [`NO_PREVIOUS`].
    #[must_use]
    pub fn keyed_last(&self) -> u64 {
        self.keyed_last
    }

    /// A publication with an idempotency key is in the batch, at log position `position`.
    pub fn set_keyed_last(&mut self, position: u64) {
        self.keyed_last = position;
    }

    /// Finds or makes the channel's entry. Channels whose newest record has left the log may be
    /// forgotten for it. `None`: both buckets are full of channels that may not.
    pub fn place(&mut self, key: ChannelKey, horizon: Horizon) -> Option<Place> {
        let slot = match self.find(key) {
            Some(slot) => slot,
            None => self.make(key, horizon)?,
        };
        let top = self.mirror[slot].top;
        Some(Place {
            slot,
            epoch: top.epoch,
            offset: top.offset + 1,
            previous: if top.offset == 0 {
                NO_PREVIOUS
            } else {
                top.last_position
            },
        })
    }

    /// The publication of `place` is in the batch, at log position `position`.
    pub fn advance(&mut self, place: Place, position: u64) {
        let entry = &mut self.mirror[place.slot];
        entry.top = Top {
            epoch: place.epoch,
            offset: place.offset,
            last_position: position,
        };
        self.touch(place.slot);
    }

    /// Takes over a publication that a killed publisher had prepared. False: it has no room, its
    /// channel will begin a new epoch.
    pub fn restore(&mut self, key: ChannelKey, top: Top, horizon: Horizon) -> bool {
        let Some(place) = self.place(key, horizon) else {
            self.epoch_now = self.epoch_now.wrapping_add(1);
            return false;
        };
        self.mirror[place.slot].top = top;
        self.touch(place.slot);
        true
    }

    /// Makes everything planned visible, in the order in which it was planned.
    pub fn store(&mut self) {
        let region = &self.table.region;
        region.store(EPOCH_NOW_AT, u64::from(self.epoch_now));
        region.store(KEYED_LAST_AT, self.keyed_last);
        for slot in std::mem::take(&mut self.touched) {
            self.mirror[slot].touched = false;
            self.store_entry(slot);
        }
    }

    fn find(&self, key: ChannelKey) -> Option<usize> {
        self.table
            .slots(key)
            .find(|&slot| self.mirror[slot].key == key)
    }

    /// Gives a new channel a free entry of the emptier bucket, or the longest forgotten one.
    fn make(&mut self, key: ChannelKey, horizon: Horizon) -> Option<usize> {
        let [first, second] = key.0.map(|half| self.table.bucket(half));
        let free = |bucket: &std::ops::Range<usize>| {
            self.mirror[bucket.clone()]
                .iter()
                .filter(|entry| entry.key == FREE)
                .count()
        };
        let emptier = if free(&second) > free(&first) {
            second
        } else {
            first
        };
        let slot = emptier.clone().find(|&slot| self.mirror[slot].key == FREE);
        let slot = match slot {
            Some(slot) => {
                self.channels += 1;
                slot
            }
            None => self.evict(key, horizon)?,
        };
        self.mirror[slot].key = key;
        self.mirror[slot].top = Top {
            epoch: self.epoch_now,
            offset: 0,
            last_position: 0,
        };
        self.touch(slot);
        Some(slot)
    }

    fn evict(&mut self, key: ChannelKey, horizon: Horizon) -> Option<usize> {
        let age = |slot: &usize| horizon.age(self.mirror[*slot].top.last_position);
        let victim = self
            .table
            .slots(key)
            .filter(|&slot| !self.mirror[slot].touched)
            .max_by_key(age)
            .filter(|slot| age(slot) > horizon.capacity)?;
        self.evictions += 1;
        // Counting up from a random start, no epoch comes twice in four billion evictions.
        self.epoch_now = self.epoch_now.wrapping_add(1);
        Some(victim)
    }

    fn touch(&mut self, slot: usize) {
        if !self.mirror[slot].touched {
            self.mirror[slot].touched = true;
            self.touched.push(slot);
        }
    }

    fn store_entry(&self, slot: usize) {
        let Entry { key, top, .. } = self.mirror[slot];
        let (region, at) = (&self.table.region, entry_at(slot));
        let version = region.load(at + VERSION_AT) + 1;
        let known = self.table.key_at(slot) == key;
        if !known {
            region.store(at, 0);
            region.store(at + WORD, 0);
        }
        // SYNC: pairs with the acquire fence in channels.rs::read: who sees a word stored below
        // also sees that the key is gone, or that this copy was deselected by the last update.
        fence(Ordering::Release);
        region.store(at + EPOCH_AT, u64::from(top.epoch));
        let copy = copy_at(slot, version);
        region.store(copy, top.offset);
        region.store(copy + WORD, top.last_position);
        // SYNC: pairs with channels.rs::read (version, acquire load)
        region
            .word(at + VERSION_AT)
            .store(version, Ordering::Release);
        if !known {
            // SYNC: pairs with channels.rs::read (key, acquire load): who sees the new key also
            // sees the new version, and with it everything above.
            region.word(at + WORD).store(key.0[1], Ordering::Release);
            region.word(at).store(key.0[0], Ordering::Release);
        }
    }
}
