//! A byte ring: records in a power-of-two run of bytes, at positions that only grow.
//!
//! A position counts bytes from the birth of the ring and wraps at 2^64; its place in the ring is
//! `position % capacity`. A record is a header word (payload bytes, kind), the payload, and zeros
//! up to a multiple of [`ALIGN`]; it never crosses the end of the ring: a padding record fills what
//! is left there. This module knows bytes only; who may read what, and when, is the business of the
//! log and of the lanes.

use std::ops::ControlFlow;

use crate::error::SegmentError;
use crate::region::{Region, WORD};
use crate::sync::{AtomicU64, Ordering};

/// Records begin at multiples of this, so that a header word never crosses the end.
pub const ALIGN: usize = 16;

/// A record takes at most this part of its ring: the padding at the wrap stays small, and several
/// records always fit.
pub const RECORD_SHARE: usize = 8;

/// The kind of the record that fills the end of the ring.
const PADDING: u32 = 0;

/// Bytes of the header word of a record.
const HEAD: usize = WORD;

/// Bytes copied at once: enough to spread the price of a validation over a batch of small records,
/// little enough to stay in the first-level cache.
const RUN_BYTES: usize = 8192;

const _: () = assert!(ALIGN.is_multiple_of(WORD) && ALIGN.is_power_of_two());
const _: () = assert!(RUN_BYTES.is_multiple_of(ALIGN));

/// A record, copied out of shared memory and validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub position: u64,
    /// Position after the record.
    pub end: u64,
    pub kind: u32,
    pub payload: &'a [u8],
}

/// Why a walk over the ring stopped short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// What was copied may have been overwritten meanwhile.
    Invalid,
    /// No sound record is there.
    Corrupt,
}

/// The bytes of a ring in a region.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    region: Region,
    start: usize,
    capacity: usize,
}

impl Ring {
    /// The ring of `capacity` bytes that begins at byte `start` of the region.
    ///
    /// # Errors
    /// [`SegmentError::Parameter`] if the capacity is no power of two or does not fit.
    pub fn new(region: &Region, start: usize, capacity: u64) -> Result<Ring, SegmentError> {
        check_capacity("capacity", capacity)?;
        let fits = usize::try_from(capacity).ok().filter(|bytes| {
            start
                .checked_add(*bytes)
                .is_some_and(|end| end <= region.len())
        });
        let rule = "the ring has to fit into its segment";
        let capacity = fits.ok_or(SegmentError::Parameter {
            name: "capacity",
            value: capacity,
            rule,
        })?;
        Ok(Ring {
            region: region.clone(),
            start,
            capacity,
        })
    }

    #[inline]
    pub fn region(&self) -> &Region {
        &self.region
    }

    #[inline]
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Bytes that a record with so much payload takes.
    #[inline]
    pub const fn record_bytes(payload_bytes: usize) -> usize {
        (HEAD + payload_bytes).next_multiple_of(ALIGN)
    }

    /// Longest possible payload.
    #[inline]
    pub fn payload_bytes_max(&self) -> usize {
        self.record_bytes_max() - HEAD
    }

    #[inline]
    fn record_bytes_max(&self) -> usize {
        (self.capacity / RECORD_SHARE).max(ALIGN)
    }

    #[inline]
    fn place(&self, position: u64) -> usize {
        (position & (self.capacity() - 1)) as usize
    }

    #[inline]
    fn bytes_to_wrap(&self, position: u64) -> usize {
        self.capacity - self.place(position)
    }

    #[inline]
    fn words(&self, position: u64, bytes: usize) -> &[AtomicU64] {
        self.region
            .words(self.start + self.place(position), bytes / WORD)
    }

    /// Where a record of `bytes` bytes would begin if the ring is filled up to `position`: there,
    /// or after the wrap.
    #[inline]
    pub fn begin(&self, position: u64, bytes: usize) -> u64 {
        let left = self.bytes_to_wrap(position);
        if bytes <= left {
            position
        } else {
            position.wrapping_add(left as u64)
        }
    }

    /// Writes a record at `begin`, as [`Ring::begin`] had it for `position`, and the padding
    /// before it. The parts make up the payload, `payload_bytes` in sum.
    #[inline]
    pub fn put(&self, position: u64, begin: u64, kind: u32, parts: &[&[u8]], payload_bytes: usize) {
        assert_ne!(kind, PADDING, "kind 0 is padding");
        if begin != position {
            let padding = begin.wrapping_sub(position) as usize;
            self.words(position, WORD)[0].store(head(PADDING, padding - HEAD), Ordering::Relaxed);
        }
        let words = self.words(begin, Ring::record_bytes(payload_bytes));
        words[0].store(head(kind, payload_bytes), Ordering::Relaxed);
        let mut packer = Packer {
            words: &words[1..],
            held: 0,
            held_bytes: 0,
        };
        for part in parts {
            packer.put(part);
        }
        packer.finish();
    }
}

/// Refuses capacities that a ring cannot have.
pub(crate) fn check_capacity(name: &'static str, capacity: u64) -> Result<(), SegmentError> {
    if capacity.is_power_of_two() && capacity >= (ALIGN * RECORD_SHARE) as u64 {
        return Ok(());
    }
    let rule = "a power of two, at least 128 bytes";
    Err(SegmentError::Parameter {
        name,
        value: capacity,
        rule,
    })
}

const _: () = assert!(ALIGN * RECORD_SHARE == 128);

#[inline]
fn head(kind: u32, payload_bytes: usize) -> u64 {
    u64::from(kind) << 32 | payload_bytes as u64
}

/// Bytes stored in a row, without a look at the rest: a cache line.
const BLOCK: usize = 64;

/// Packs byte strings of any length into words, without a gap between them.
struct Packer<'a> {
    words: &'a [AtomicU64],
    held: u64,
    held_bytes: usize,
}

impl Packer<'_> {
    #[inline]
    fn put(&mut self, mut part: &[u8]) {
        if self.held_bytes > 0 {
            let (filling, rest) = part.split_at(part.len().min(WORD - self.held_bytes));
            self.hold(filling);
            part = rest;
            if self.held_bytes < WORD {
                return;
            }
            self.finish();
        }
        let (blocks, rest) = part.as_chunks::<BLOCK>();
        for block in blocks {
            let (words, following) = self.words.split_at(BLOCK / WORD);
            for (word, bytes) in words.iter().zip(block.as_chunks::<WORD>().0) {
                word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
            self.words = following;
        }
        let (chunks, rest) = rest.as_chunks::<WORD>();
        let (words, following) = self.words.split_at(chunks.len());
        for (word, bytes) in words.iter().zip(chunks) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        self.words = following;
        self.hold(rest);
    }

    #[inline]
    fn hold(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.held |= u64::from(*byte) << (8 * self.held_bytes);
            self.held_bytes += 1;
        }
    }

    /// Stores the word in the making, zeros in its rest.
    #[inline]
    fn finish(&mut self) {
        if self.held_bytes > 0 {
            self.words[0].store(self.held, Ordering::Relaxed);
            self.words = &self.words[1..];
            (self.held, self.held_bytes) = (0, 0);
        }
    }
}

// The packer and `bytes_of` take the first byte of a string for the low byte of its word.
const _: () = assert!(cfg!(target_endian = "little"));

/// Reads records one after the other, by private copies.
#[derive(Debug)]
pub(crate) struct Walk {
    pub position: u64,
    run_bytes: usize,
    copy: Vec<u64>,
}

impl Walk {
    pub fn from(position: u64) -> Walk {
        Walk::by_runs_of(RUN_BYTES, position)
    }

    /// A walk that copies at most so many bytes at once, unless a record is longer.
    pub fn by_runs_of(run_bytes: usize, position: u64) -> Walk {
        Walk {
            position,
            run_bytes,
            copy: Vec::new(),
        }
    }

    /// Copies the next run of records that ends at or before `run_end` and shows at most
    /// `records_max` of them, until `each` breaks (that record counts as not taken). Returns the
    /// number taken.
    ///
    /// `is_valid(position)` tells, after the copy, whether nothing from `position` on can have been
    /// overwritten; before that, nothing copied is believed, lengths included.
    ///
    /// One call stops at the wrap and at the end of the run; the caller repeats until `position`
    /// is `run_end`. It moves on or returns a fault, but for `each` breaking.
    #[inline]
    pub fn run(
        &mut self,
        ring: &Ring,
        run_end: u64,
        records_max: usize,
        is_valid: impl Fn(u64) -> bool,
        mut each: impl FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<usize, Fault> {
        let available = run_end.wrapping_sub(self.position);
        if available > ring.capacity() {
            return Err(Fault::Invalid);
        }
        if !(self.position | available).is_multiple_of(ALIGN as u64) {
            return Err(Fault::Corrupt);
        }
        let available = (available as usize).min(ring.bytes_to_wrap(self.position));
        self.copy_run(ring, available, is_valid)?;
        let (mut taken, mut rest) = (0, self.copy.as_slice());
        while taken < records_max && !rest.is_empty() {
            let (kind, payload_bytes) = parse_head(rest[0]);
            let bytes = Ring::record_bytes(payload_bytes);
            let end = self.position.wrapping_add(bytes as u64);
            if kind == PADDING {
                // It ends where the ring does, and `run_end` is never within it.
                let is_sound = bytes == ring.bytes_to_wrap(self.position)
                    && bytes as u64 <= run_end.wrapping_sub(self.position);
                if is_sound {
                    self.position = end;
                } else if taken == 0 {
                    return Err(Fault::Corrupt);
                }
                break;
            }
            if bytes / WORD > rest.len() {
                if taken == 0 {
                    return Err(Fault::Corrupt);
                }
                break;
            }
            let (record, following) = rest.split_at(bytes / WORD);
            let payload = &bytes_of(&record[1..])[..payload_bytes];
            let position = self.position;
            if each(Record {
                position,
                end,
                kind,
                payload,
            })
            .is_break()
            {
                break;
            }
            (self.position, rest) = (end, following);
            taken += 1;
        }
        Ok(taken)
    }

    /// Leaves in `copy` a valid run; if its first record is sound, that record is whole.
    #[inline]
    fn copy_run(
        &mut self,
        ring: &Ring,
        available: usize,
        is_valid: impl Fn(u64) -> bool,
    ) -> Result<(), Fault> {
        let mut bytes = available.min(self.run_bytes);
        loop {
            self.copy.clear();
            let words = ring.words(self.position, bytes);
            self.copy
                .extend(words.iter().map(|word| word.load(Ordering::Relaxed)));
            if !is_valid(self.position) {
                self.copy.clear();
                return Err(Fault::Invalid);
            }
            let (kind, payload_bytes) = parse_head(self.copy.first().copied().unwrap_or(0));
            let first = Ring::record_bytes(payload_bytes);
            let possible = available.min(ring.record_bytes_max());
            if kind == PADDING || first <= bytes || first > possible {
                return Ok(());
            }
            bytes = first;
        }
    }
}

/// Kind and payload bytes of a record.
#[inline]
fn parse_head(word: u64) -> (u32, usize) {
    ((word >> 32) as u32, word as u32 as usize)
}

/// The bytes of private words, in the order in which [`Packer`] stored them.
#[inline]
fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: initialised plain words are as many valid bytes, of laxer alignment, for as long.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * WORD) }
}
