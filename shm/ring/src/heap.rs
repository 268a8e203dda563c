//! A heap: records of any length in cells of one size, and a directory of channels to find them by.
//! History and presence each keep theirs in a segment of this layout. One writer, any readers.
//!
//! ```text
//! 4096  high           u64: cells from this one on were never used
//! 4224  bucket 0 ...   a link each: the first channel whose key falls into it
//!       cell 0 ...     128 bytes each, at a multiple of 128
//!         0 tag        kind << 32 | generation; an odd generation: the cell is live
//!         8 more       link: the cell with the rest of the record
//!        16 the record: head words, as many as its kind has; payload bytes u64; payload
//!           (in further cells: only payload)
//! ```
//!
//! A link is index << 32 | generation of a cell, 0 for nothing. Before a cell is written anew its
//! generation has changed, so whoever copies a cell and then still finds the generation of the link
//! that led to it has a good copy. Most words of a live cell never change; those that do are stored
//! whole, and each is true by itself.
//!
//! A publisher may be killed at any store. What can be reached from the buckets is true, all other
//! cells are free: that is how the next one finds its heap, see [`writer::Recovery`].

pub(crate) mod writer;

use crate::channels::ChannelKey;
use crate::error::SegmentError;
use crate::layout::{self, HEADER_BYTES, Kind, LINE, Owner};
use crate::region::{Region, WORD};
use crate::sync::{Ordering, fence};

/// Two cache lines: few cells for a message, little waste for a short one. (The model checker gets
/// the smallest cell that holds a channel.)
const CELL_WORDS: usize = if cfg!(loom) { 9 } else { 16 };
pub(crate) const CELL_BYTES: usize = CELL_WORDS * WORD;

const TAG: usize = 0;
const MORE: usize = 1;
const RECORD: usize = 2;

/// Kinds of cells: the rest of a record, a channel of the directory, what a channel has.
const KIND_REST: u32 = 1;
const KIND_CHANNEL: u32 = 2;
pub(crate) const KIND_ENTRY: u32 = 3;

/// Head words of a channel; its payload is its name.
const NEXT: usize = 0;
const KEY: usize = 1;
const FIRST: usize = 3;
const COUNT: usize = 4;
const CHANNEL_WORDS: usize = 5;

const _: () = assert!(RECORD + CHANNEL_WORDS + 2 <= CELL_WORDS);

const HIGH_AT: usize = HEADER_BYTES;
const BUCKETS_AT: usize = HEADER_BYTES + LINE;

/// Cells for each bucket, about: a channel takes two cells at least, so chains stay short.
const CELLS_PER_BUCKET: usize = 4;

const CELLS_PARAMETER: usize = 0;

/// Channels of one bucket that a reader looks at. Chance does not make chains a tenth as long.
const CHAIN_MAX: usize = 1024;

/// A lookup begins anew when a channel left its bucket just then. Where that happens so often in a
/// row, somebody scribbled.
const LOOKS_MAX: usize = 1024;

const CELLS_MIN: u64 = 32;
const CELLS_MAX: u64 = u32::MAX as u64;

/// Names a cell in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Link(pub u64);

impl Link {
    pub const NONE: Link = Link(0);

    fn new(index: u32, generation: u32) -> Link {
        Link(u64::from(index) << 32 | u64::from(generation))
    }

    pub fn index(self) -> usize {
        (self.0 >> 32) as usize
    }

    fn generation(self) -> u32 {
        self.0 as u32
    }

    fn tag(self, kind: u32) -> u64 {
        u64::from(kind) << 32 | u64::from(self.generation())
    }
}

/// A private copy of a record's first cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell([u64; CELL_WORDS]);

impl Cell {
    /// A word of the head.
    pub fn head(&self, index: usize) -> u64 {
        self.0[RECORD + index]
    }

    pub fn payload_bytes(&self, head_words: usize) -> u64 {
        self.0[RECORD + head_words]
    }

    fn more(&self) -> Link {
        Link(self.0[MORE])
    }

    /// Appends the words from `from` on.
    fn append_to(&self, bytes: &mut Vec<u8>, from: usize) {
        for word in &self.0[from..] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
}

/// A channel as the directory had it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// The first of its entries.
    pub first: Link,
    pub count: u64,
}

/// Cells that a record takes.
pub(crate) const fn cells_for(head_words: usize, payload_bytes: usize) -> usize {
    let first = (CELL_WORDS - RECORD - head_words - 1) * WORD;
    let rest = payload_bytes.saturating_sub(first);
    1 + rest.div_ceil((CELL_WORDS - RECORD) * WORD)
}

/// Cells of a channel whose name has so many bytes.
pub(crate) const fn cells_for_channel(name_bytes: usize) -> usize {
    cells_for(CHANNEL_WORDS, name_bytes)
}

/// Bytes of a segment with a heap of `memory_bytes` bytes.
///
/// # Errors
/// [`SegmentError::Parameter`] for less than 32 cells, and for more than 4 billion.
pub fn segment_bytes(memory_bytes: u64) -> Result<usize, SegmentError> {
    let cells = memory_bytes / CELL_BYTES as u64;
    if !(CELLS_MIN..=CELLS_MAX).contains(&cells) {
        return Err(SegmentError::Parameter {
            name: "memory_bytes",
            value: memory_bytes,
            rule: "between 4096 bytes and 512 GiB",
        });
    }
    let cells = cells as usize;
    Ok(layout::whole_pages(cells_at(cells) + cells * CELL_BYTES))
}

fn bucket_count(cells: usize) -> usize {
    (cells / CELLS_PER_BUCKET).next_power_of_two()
}

fn cells_at(cells: usize) -> usize {
    (BUCKETS_AT + bucket_count(cells) * WORD).next_multiple_of(LINE)
}

/// Makes a zeroed region of [`segment_bytes`] bytes an empty heap for `kind`.
///
/// # Errors
/// As [`segment_bytes`]; also for a region of another size.
pub(crate) fn format(
    region: &Region,
    kind: Kind,
    memory_bytes: u64,
    owner: Owner,
) -> Result<(), SegmentError> {
    let bytes = segment_bytes(memory_bytes)?;
    if region.len() != bytes {
        return Err(SegmentError::Size {
            said: bytes as u64,
            found: region.len() as u64,
        });
    }
    let cells = memory_bytes / CELL_BYTES as u64;
    layout::format(region, kind, owner, &[cells], |_| ());
    Ok(())
}

/// A heap as every process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Heap {
    region: Region,
    cells: usize,
    cells_at: usize,
    bucket_mask: u64,
}

impl Heap {
    /// # Errors
    /// [`SegmentError`] where the region holds no such heap of this version.
    pub fn attach(region: Region, kind: Kind) -> Result<Heap, SegmentError> {
        let header = layout::attach(&region, kind)?;
        let cells = header.parameters[CELLS_PARAMETER];
        let memory_bytes = cells.saturating_mul(CELL_BYTES as u64);
        if segment_bytes(memory_bytes)? != region.len() {
            return Err(SegmentError::Parameter {
                name: "cells",
                value: cells,
                rule: "it must follow from the segment's size",
            });
        }
        let cells = cells as usize;
        Ok(Heap {
            region,
            cells,
            cells_at: cells_at(cells),
            bucket_mask: bucket_count(cells) as u64 - 1,
        })
    }

    /// All cells, used or not.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// The channel called by `key`, if the directory has it.
    pub fn find(&self, key: ChannelKey) -> Option<Found> {
        (0..LOOKS_MAX).find_map(|_| self.look(key)).flatten()
    }

    /// One walk through the bucket; `None` where it was overtaken.
    fn look(&self, key: ChannelKey) -> Option<Option<Found>> {
        // SYNC: pairs with heap/writer.rs::HeapWriter::store_link
        let mut link = Link(
            self.region
                .word(self.bucket_at(key))
                .load(Ordering::Acquire),
        );
        for _ in 0..CHAIN_MAX {
            if link == Link::NONE {
                return Some(None);
            }
            let channel = self.cell(link, KIND_CHANNEL)?;
            if [channel.head(KEY), channel.head(KEY + 1)] == key.0 {
                return Some(Some(Found {
                    first: Link(channel.head(FIRST)),
                    count: channel.head(COUNT),
                }));
            }
            link = Link(channel.head(NEXT));
        }
        // Only a damaged heap has a chain so long.
        Some(None)
    }

    /// A copy of a live cell; `None` where the link leads to none, any more.
    pub fn cell(&self, link: Link, kind: u32) -> Option<Cell> {
        if !self.has(link) {
            return None;
        }
        let words = self.region.words(self.cell_at(link), CELL_WORDS);
        let mut copy = [0; CELL_WORDS];
        for (copied, word) in copy.iter_mut().zip(words).skip(MORE) {
            *copied = word.load(Ordering::Relaxed);
        }
        // SYNC: pairs with the release fence in heap/writer.rs::HeapWriter::fill: who copied a word
        // of a later life of the cell sees that its generation has changed. And with ::store_link:
        // who copied a link sees the cell that it leads to.
        fence(Ordering::Acquire);
        let tag = words[TAG].load(Ordering::Relaxed);
        (tag == link.tag(kind)).then_some(Cell(copy))
    }

    /// The payload of the record that begins with `cell`; `None` where it is not whole any more.
    pub fn payload(&self, cell: &Cell, head_words: usize) -> Option<Vec<u8>> {
        let bytes = usize::try_from(cell.payload_bytes(head_words)).ok()?;
        if bytes > self.cells * CELL_BYTES {
            return None;
        }
        let mut payload = Vec::with_capacity(bytes.next_multiple_of(CELL_BYTES));
        cell.append_to(&mut payload, RECORD + head_words + 1);
        let mut more = cell.more();
        while payload.len() < bytes {
            let rest = self.cell(more, KIND_REST)?;
            rest.append_to(&mut payload, RECORD);
            more = rest.more();
        }
        payload.truncate(bytes);
        Some(payload)
    }

    /// Whether a link leads to a cell, in whatever life. One that was scribbled may lead outside.
    fn has(&self, link: Link) -> bool {
        link != Link::NONE && link.index() < self.cells
    }

    fn bucket_at(&self, key: ChannelKey) -> usize {
        // The lowest bit of a key is always set: see `ChannelTable::key`.
        BUCKETS_AT + (key.0[0] >> 1 & self.bucket_mask) as usize * WORD
    }

    fn cell_at(&self, link: Link) -> usize {
        self.cells_at + link.index() * CELL_BYTES
    }
}

/// Every interleaving of a reader with the publisher; run by `make loom`.
#[cfg(all(test, loom))]
mod tests {
    use loom::thread;

    use super::writer::{HeapWriter, Recovery};
    use super::*;

    /// Of one bucket.
    const KEYS: [ChannelKey; 2] = [ChannelKey([1, 1]), ChannelKey([1, 3])];

    fn explore(model: impl Fn(Heap, HeapWriter) + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.max_branches = 100_000;
        builder.check(move || {
            let bytes = CELLS_MIN * CELL_BYTES as u64;
            let region = Region::heap(segment_bytes(bytes).unwrap());
            let owner = Owner {
                generation: 1,
                pid: 1,
                start: 1,
            };
            format(&region, Kind::Presence, bytes, owner).unwrap();
            let reader = Heap::attach(region.clone(), Kind::Presence).unwrap();
            let writer = Recovery::open(region, Kind::Presence).unwrap().finish();
            model(reader, writer);
        });
    }

    fn write(writer: &mut HeapWriter, value: u64) -> Link {
        let payload = value.to_le_bytes();
        writer.write(KIND_ENTRY, &[value], &payload).unwrap()
    }

    /// Fails if a cell is filled without its fence, or read without.
    #[test]
    fn a_cell_that_another_record_takes_is_never_mixed_with_it() {
        explore(|reader, mut writer| {
            let first = write(&mut writer, 1);
            let reading = thread::spawn(move || {
                if let Some(cell) = reader.cell(first, KIND_ENTRY) {
                    let payload = reader.payload(&cell, 1).unwrap();
                    assert_eq!((cell.head(0), payload), (1, vec![1, 0, 0, 0, 0, 0, 0, 0]));
                }
            });
            writer.free(first);
            let second = write(&mut writer, 2);
            assert_eq!(second.index(), first.index());
            reading.join().unwrap();
        });
    }

    /// Fails if a link is stored with less than release.
    #[test]
    fn who_finds_a_link_finds_what_it_leads_to() {
        explore(|reader, mut writer| {
            let reading = thread::spawn(move || {
                let Some(found) = reader.find(KEYS[0]) else {
                    return;
                };
                if found.first != Link::NONE {
                    let cell = reader.cell(found.first, KIND_ENTRY).unwrap();
                    assert_eq!(cell.head(0), 1);
                }
            });
            let channel = writer.add_channel(KEYS[0], "c").unwrap();
            let entry = write(&mut writer, 1);
            writer.set_first(channel, entry);
            reading.join().unwrap();
        });
    }

    /// Fails if a channel is let go of before nothing leads to it, or a lookup does not begin anew.
    #[test]
    fn a_channel_that_stays_is_found_whoever_goes_before_it() {
        explore(|reader, mut writer| {
            writer.add_channel(KEYS[0], "a").unwrap();
            let other = writer.add_channel(KEYS[1], "b").unwrap();
            let reading = thread::spawn(move || {
                assert!(reader.find(KEYS[0]).is_some());
            });
            writer.remove_channel(other, KEYS[1]);
            reading.join().unwrap();
        });
    }
}
