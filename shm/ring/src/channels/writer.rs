//! The publisher's side of the channel table: plans in a private mirror, then stores.

use super::{
    BUCKET_ENTRIES, ChannelKey, ChannelTable, EDITION_AT, EPOCH_AT, EPOCH_NOW_AT, KEYED_LAST_AT,
    Top, copy_at, entry_at,
};
use crate::error::SegmentError;
use crate::log::LogView;
use crate::publication::{NO_PREVIOUS, Version};
use crate::region::{Claim, Region, WORD};
use crate::sync::{Ordering, fence};

/// The key of an entry that no channel has.
const FREE: ChannelKey = ChannelKey([0, 0]);

/// What of the log is still there, as it was when a batch began.
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    /// Tail of the log before the batch.
    pub tail: u64,
    pub capacity: u64,
}

impl Horizon {
    /// What is still there now.
    #[must_use]
    pub fn of(log: &LogView) -> Self {
        Self {
            tail: log.tail(),
            capacity: log.capacity(),
        }
    }

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
    /// The newest version that a publication of the channel came with.
    pub version: Version,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: ChannelKey,
    top: Top,
    version: Version,
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
    version: Version::NONE,
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
                    version: Version {
                        number: table.region.load(table.version_at(slot)),
                        epoch: table.region.load(table.version_at(slot) + WORD),
                    },
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
    /// forgotten for it, but for those that are `spared`. `None`: both buckets are full of channels
    /// that may not.
    pub fn place(
        &mut self,
        key: ChannelKey,
        horizon: Horizon,
        spared: impl Fn(ChannelKey) -> bool,
    ) -> Option<Place> {
        let slot = match self.find(key) {
            Some(slot) => slot,
            None => self.make(key, horizon, spared)?,
        };
        let Entry { top, version, .. } = self.mirror[slot];
        Some(Place {
            version,
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
        entry.version = place.version;
        self.touch(place.slot);
    }

    /// A publication without an offset is in the batch, at log position `position`.
    pub fn note(&mut self, place: Place, position: u64) {
        let entry = &mut self.mirror[place.slot];
        if entry.top.offset == 0 {
            // It has no record of its own yet, but is not the first to be forgotten either.
            entry.top.last_position = position;
        }
        entry.version = place.version;
        self.touch(place.slot);
    }

    /// Takes over a publication that a killed publisher had prepared, as [`Self::place`] does.
    /// False: it has no room, its channel will begin a new epoch.
    pub fn restore(
        &mut self,
        key: ChannelKey,
        top: Top,
        version: Version,
        horizon: Horizon,
        spared: impl Fn(ChannelKey) -> bool,
    ) -> bool {
        let Some(place) = self.place(key, horizon, spared) else {
            self.epoch_now = self.epoch_now.wrapping_add(1);
            return false;
        };
        self.mirror[place.slot].top = top;
        self.mirror[place.slot].version = version;
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
    fn make(
        &mut self,
        key: ChannelKey,
        horizon: Horizon,
        spared: impl Fn(ChannelKey) -> bool,
    ) -> Option<usize> {
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
            None => self.evict(key, horizon, spared)?,
        };
        self.mirror[slot].key = key;
        self.mirror[slot].top = Top {
            epoch: self.epoch_now,
            offset: 0,
            last_position: 0,
        };
        self.mirror[slot].version = Version::NONE;
        self.touch(slot);
        Some(slot)
    }

    fn evict(
        &mut self,
        key: ChannelKey,
        horizon: Horizon,
        spared: impl Fn(ChannelKey) -> bool,
    ) -> Option<usize> {
        let age = |slot: &usize| horizon.age(self.mirror[*slot].top.last_position);
        let victim = self
            .table
            .slots(key)
            .filter(|&slot| !self.mirror[slot].touched && !spared(self.mirror[slot].key))
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
        let Entry {
            key, top, version, ..
        } = self.mirror[slot];
        let (region, at) = (&self.table.region, entry_at(slot));
        let edition = region.load(at + EDITION_AT) + 1;
        let known = self.table.key_at(slot) == key;
        if version != Version::NONE || !known {
            // Only a publisher reads them, and one that dies here has its batch done again.
            let version_at = self.table.version_at(slot);
            region.store(version_at, version.number);
            region.store(version_at + WORD, version.epoch);
        }
        if !known {
            region.store(at, 0);
            region.store(at + WORD, 0);
        }
        // SYNC: pairs with the acquire fence in channels.rs::ChannelTable::read: who sees a word
        // stored below also sees that the key is gone, or that this copy was deselected before.
        fence(Ordering::Release);
        region.store(at + EPOCH_AT, u64::from(top.epoch));
        let copy = copy_at(slot, edition);
        region.store(copy, top.offset);
        region.store(copy + WORD, top.last_position);
        // SYNC: pairs with channels.rs::ChannelTable::read (edition, acquire load)
        region
            .word(at + EDITION_AT)
            .store(edition, Ordering::Release);
        if !known {
            // SYNC: pairs with channels.rs::ChannelTable::read (key, acquire load): who sees the
            // new key also sees the new edition, and with it everything above.
            region.word(at + WORD).store(key.0[1], Ordering::Release);
            region.word(at).store(key.0[0], Ordering::Release);
        }
    }
}
