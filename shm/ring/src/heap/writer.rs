//! The publisher's side of a heap.

use super::{
    BUCKETS_AT, CELL_WORDS, CHAIN_MAX, CHANNEL_WORDS, COUNT, Cell, FIRST, HIGH_AT, Heap, KEY,
    KIND_CHANNEL, KIND_REST, Link, MORE, NEXT, RECORD, TAG, cells_for,
};
use crate::channels::ChannelKey;
use crate::error::SegmentError;
use crate::layout::Kind;
use crate::region::{Claim, Region, WORD};
use crate::sync::{Ordering, fence};

/// The only writer of a heap. Which cells are free is known to it alone.
#[derive(Debug)]
pub(crate) struct HeapWriter {
    heap: Heap,
    free: Vec<u32>,
    /// Cells from this one on were never used.
    high: usize,
    _claim: Claim,
}

impl HeapWriter {
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    /// Cells that can be written.
    pub fn room(&self) -> usize {
        self.free.len() + self.heap.cells() - self.high
    }

    /// Cells in use.
    pub fn used(&self) -> usize {
        self.heap.cells() - self.room()
    }

    /// Writes a record that nothing leads to yet. `None`: there is no room.
    pub fn write(&mut self, kind: u32, head: &[u64], payload: &[u8]) -> Option<Link> {
        let count = cells_for(head.len(), payload.len());
        if self.room() < count {
            return None;
        }
        let first_bytes = (CELL_WORDS - RECORD - head.len() - 1) * WORD;
        let (start, mut rest) = payload.split_at(payload.len().min(first_bytes));
        let first = self.take();
        let mut more = Vec::with_capacity(count - 1);
        more.extend((1..count).map(|_| self.take()));
        let mut links = more.iter().copied().chain([Link::NONE]);
        let mut next = links.next().unwrap_or(Link::NONE);
        let length = [payload.len() as u64];
        self.fill(first, kind, next, &[head, &length], start);
        for following in links {
            let (part, left) = rest.split_at(rest.len().min((CELL_WORDS - RECORD) * WORD));
            self.fill(next, KIND_REST, following, &[], part);
            (rest, next) = (left, following);
        }
        Some(first)
    }

    /// A word of a live record's head.
    pub fn head(&self, link: Link, index: usize) -> u64 {
        self.word(link, RECORD + index)
    }

    /// Changes a word of a live record's head.
    pub fn set_head(&self, link: Link, index: usize, value: u64) {
        self.store_link(self.word_at(link, RECORD + index), value);
    }

    /// Lets go of a record that nothing leads to any more, but for who found it before.
    pub fn free(&mut self, link: Link) {
        let mut link = link;
        // Each is freed once, whatever somebody scribbled.
        while self.heap.has(link) && self.word(link, TAG) as u32 == link.generation() {
            let more = Link(self.word(link, MORE));
            let dead = u64::from(link.generation().wrapping_add(1));
            let tag = self.heap.region.word(self.word_at(link, TAG));
            // SYNC: pairs with heap/writer.rs::Recovery::open of the writer after: a record is
            // dead only after its last link is gone.
            tag.store(dead, Ordering::Release);
            self.free.push(link.index() as u32);
            link = more;
        }
    }

    /// Makes a channel without entries. `None`: there is no room.
    pub fn add_channel(&mut self, key: ChannelKey, name: &str) -> Option<Link> {
        let bucket_at = self.heap.bucket_at(key);
        let next = self.heap.region.load(bucket_at);
        let head = [next, key.0[0], key.0[1], Link::NONE.0, 0];
        let channel = self.write(KIND_CHANNEL, &head, name.as_bytes())?;
        self.store_link(bucket_at, channel.0);
        Some(channel)
    }

    /// Takes a channel out of the directory.
    pub fn remove_channel(&mut self, channel: Link, key: ChannelKey) {
        let mut at = self.heap.bucket_at(key);
        for _ in 0..CHAIN_MAX {
            let link = Link(self.heap.region.load(at));
            if link == channel {
                self.store_link(at, self.head(channel, NEXT));
                break;
            }
            if !self.heap.has(link) {
                break;
            }
            at = self.word_at(link, RECORD + NEXT);
        }
        self.free(channel);
    }

    /// The first of a channel's entries.
    pub fn first(&self, channel: Link) -> Link {
        Link(self.head(channel, FIRST))
    }

    pub fn set_first(&self, channel: Link, entry: Link) {
        self.set_head(channel, FIRST, entry.0);
    }

    pub fn set_count(&self, channel: Link, count: u64) {
        self.set_head(channel, COUNT, count);
    }

    fn word_at(&self, link: Link, word: usize) -> usize {
        self.heap.cell_at(link) + word * WORD
    }

    fn word(&self, link: Link, word: usize) -> u64 {
        self.heap.region.load(self.word_at(link, word))
    }

    fn store_link(&self, at: usize, value: u64) {
        // SYNC: pairs with heap.rs::Heap::look and the acquire fence in heap.rs::Heap::cell: who
        // sees the link sees the cell that it leads to.
        self.heap.region.word(at).store(value, Ordering::Release);
    }

    /// A free cell, in the life that it is about to begin.
    fn take(&mut self) -> Link {
        let index = self.free.pop().unwrap_or_else(|| {
            self.high += 1;
            self.heap.region.store(HIGH_AT, self.high as u64);
            self.high as u32 - 1
        });
        let before = self.word(Link::new(index, 0), TAG) as u32;
        Link::new(index, before.wrapping_add(1) | 1)
    }

    /// Writes a free cell, then makes it live.
    fn fill(&self, link: Link, kind: u32, more: Link, head: &[&[u64]], payload: &[u8]) {
        let words = self.heap.region.words(self.word_at(link, 0), CELL_WORDS);
        // SYNC: pairs with the acquire fence in heap.rs::Heap::cell: who sees a word stored below
        // sees that the generation before is over.
        fence(Ordering::Release);
        words[MORE].store(more.0, Ordering::Relaxed);
        let mut at = RECORD;
        for value in head.iter().copied().flatten() {
            words[at].store(*value, Ordering::Relaxed);
            at += 1;
        }
        for chunk in payload.chunks(WORD) {
            let mut bytes = [0; WORD];
            bytes[..chunk.len()].copy_from_slice(chunk);
            words[at].store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            at += 1;
        }
        // SYNC: pairs with the acquire fence in heap.rs::Heap::cell: who sees the generation sees
        // all of the cell.
        words[TAG].store(link.tag(kind), Ordering::Release);
    }
}

/// A channel as a dead publisher left it.
#[derive(Debug)]
pub(crate) struct Left {
    pub key: ChannelKey,
    pub link: Link,
    pub name: String,
    /// The first of its entries.
    pub first: Link,
}

/// Finds out what of a heap is in use: whoever opens it keeps what can be reached, one record after
/// the other, and the rest becomes free.
#[derive(Debug)]
pub(crate) struct Recovery {
    writer: HeapWriter,
    kept: Vec<bool>,
}

impl Recovery {
    /// # Errors
    /// As [`Heap::attach`]; [`SegmentError::Claimed`] for a second writer of this process.
    pub fn open(region: Region, kind: Kind) -> Result<Recovery, SegmentError> {
        let claim = region.claim(HIGH_AT)?;
        let heap = Heap::attach(region, kind)?;
        // SYNC: pairs with heap/writer.rs::HeapWriter::free and ::fill of the writer before.
        fence(Ordering::Acquire);
        let high = (heap.region.load(HIGH_AT) as usize).min(heap.cells());
        let writer = HeapWriter {
            heap,
            free: Vec::new(),
            high,
            _claim: claim,
        };
        Ok(Recovery {
            kept: vec![false; high],
            writer,
        })
    }

    /// The channels of the directory, all kept. A chain that makes no sense ends there.
    pub fn channels(&mut self) -> Vec<Left> {
        let mut found = Vec::new();
        for bucket in 0..=self.writer.heap.bucket_mask {
            let mut at = BUCKETS_AT + bucket as usize * WORD;
            loop {
                let link = Link(self.writer.heap.region.load(at));
                if link == Link::NONE {
                    break;
                }
                let Some((cell, name)) = self.channel(link, bucket) else {
                    self.writer.store_link(at, Link::NONE.0);
                    break;
                };
                let key = ChannelKey([cell.head(KEY), cell.head(KEY + 1)]);
                let first = Link(cell.head(FIRST));
                found.push(Left {
                    key,
                    link,
                    name,
                    first,
                });
                at = self.writer.word_at(link, RECORD + NEXT);
            }
        }
        found
    }

    fn channel(&mut self, link: Link, bucket: u64) -> Option<(Cell, String)> {
        let cell = self.writer.heap.cell(link, KIND_CHANNEL)?;
        let at = BUCKETS_AT + bucket as usize * WORD;
        let key = ChannelKey([cell.head(KEY), cell.head(KEY + 1)]);
        if self.writer.heap.bucket_at(key) != at {
            return None;
        }
        let name = self.keep(link, KIND_CHANNEL, CHANNEL_WORDS)?.1;
        Some((cell, String::from_utf8(name).ok()?))
    }

    /// Keeps a record: its first cell and its payload. `None`: it makes no sense.
    pub fn keep(&mut self, link: Link, kind: u32, head_words: usize) -> Option<(Cell, Vec<u8>)> {
        let heap = &self.writer.heap;
        let cell = heap.cell(link, kind)?;
        let payload = heap.payload(&cell, head_words)?;
        let count = cells_for(head_words, payload.len());
        let (mut next, mut marked) = (link, Vec::with_capacity(count));
        while marked.len() < count && self.kept.get(next.index()) == Some(&false) {
            self.kept[next.index()] = true;
            marked.push(next.index());
            next = Link(self.writer.word(next, MORE));
        }
        if marked.len() < count {
            // A cell of another record, or of this one for the second time.
            marked
                .into_iter()
                .for_each(|index| self.kept[index] = false);
            return None;
        }
        Some((cell, payload))
    }

    /// Everything else is free.
    pub fn finish(self) -> HeapWriter {
        let Recovery { mut writer, kept } = self;
        for (index, is_kept) in kept.iter().enumerate().rev() {
            if *is_kept {
                continue;
            }
            let generation = writer.word(Link::new(index as u32, 0), TAG) as u32;
            if generation.is_multiple_of(2) {
                writer.free.push(index as u32);
            } else {
                let at = writer.word_at(Link::new(index as u32, 0), TAG);
                let dead = u64::from(generation.wrapping_add(1));
                // SYNC: as in heap/writer.rs::HeapWriter::free
                writer.heap.region.word(at).store(dead, Ordering::Release);
                writer.free.push(index as u32);
            }
        }
        writer
    }
}
