//! Interest: which sleeping readers a record is worth a wake-up to.
//!
//! Beside its seats the log has rows of bits, one bit for each seat. What a record is about, its
//! [`Topic`], is a hash, and names a row. A reader that wants to be woken for a topic sets its bit
//! in the topic's row; the writer, when it has committed a batch, looks at the rows of the batch's
//! topics, and lets sleep who has a bit in none of them. Topics that meet in a row cost a wake-up
//! in vain now and then, and never one too few. A row is a power of two of words, up to 256 bits,
//! so it lies in one cache line: that line is all that a record costs the writer, and only while
//! somebody sleeps.
//!
//! Every bit has one writer, the reader of its seat. Seats share words, so a bit is changed by one
//! atomic instruction that leaves the others alone (no loop, nothing to be left half-done by the
//! dead). A reader that died leaves its bits behind: nobody is woken for them, because the writer is
//! told that the seat is empty, and who sits down there next clears them.
//!
//! No wake-up is lost. A reader announces a sleep only when it has read all that is committed, and
//! the fence of that announcement comes after whatever it has set before; the writer looks at bits
//! after the fence that follows its commit. So either the writer sees the bit, or the reader sees
//! the commit, and does not sleep ([`crate::wake`]). No order is needed between a bit and what its
//! reader looks up elsewhere, the channel table say: it is awake then.
//!
//! Who is let sleep falls behind, by [`spared_bytes_max`] at most: then it is woken all the same, so
//! that nobody has to wait for it, and what it has to catch up with is little. A reader that never
//! asked for [`super::LogReader::interest`] is woken for everything.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{LogView, LogWriter, READERS_MAX, SELECTIVE, SLEEPING, seat_at};
use crate::error::SegmentError;
use crate::layout;
use crate::region::{Claim, Region, WORD};
use crate::sync::Ordering;
use crate::wake::Waker;

/// Bits of a word.
const BITS: usize = u64::BITS as usize;

/// Words of a row for so many seats as a log can have.
const ROW_WORDS_MAX: usize = READERS_MAX as usize / BITS;

/// A reader that is let sleep is woken when this part of the ring (1 / 4) has been written since:
/// with the longest batch on top, the writer never has to wait for it.
const SPARED_SHARE: u64 = 4;

/// ... or so many bytes: a turn's worth of small records. What concerns a reader waits while it
/// reads what does not.
const SPARED_BYTES_MAX: u64 = 256 * 1024;

/// How far a sleeping reader may fall behind.
fn spared_bytes_max(capacity: u64) -> u64 {
    (capacity / SPARED_SHARE).min(SPARED_BYTES_MAX)
}

/// What a record is about, or a reader is interested in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(u64);

impl Topic {
    /// The topic of this hash, which is as likely to be any number.
    #[must_use]
    pub const fn of(hash: u64) -> Topic {
        Topic(hash)
    }
}

/// Which sleeping readers a record is worth a wake-up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    Everybody,
    Interested(Topic),
    /// They read it when they wake up for another.
    Nobody,
}

/// Where the rows are in the segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    at: usize,
    count: u64,
    row_bytes: usize,
}

impl Rows {
    /// At least one row.
    pub const fn new(readers: u32, topics: u64) -> Rows {
        let words = (readers as usize).div_ceil(BITS).next_power_of_two();
        Rows {
            at: seat_at(readers).next_multiple_of(layout::LINE),
            count: if topics == 0 { 1 } else { topics },
            row_bytes: words * WORD,
        }
    }

    pub const fn end(self) -> usize {
        self.at + self.count as usize * self.row_bytes
    }

    fn row_of(self, topic: Topic) -> usize {
        // The high word of the product maps a hash evenly onto any number of rows.
        let row = (u128::from(topic.0) * u128::from(self.count)) >> u64::BITS;
        self.at + row as usize * self.row_bytes
    }

    fn all(self) -> impl Iterator<Item = usize> {
        (self.at..self.end()).step_by(self.row_bytes)
    }
}

/// Whom the records of a batch concern.
#[derive(Debug, Default)]
pub(super) struct Concern {
    everybody: bool,
    rows: Vec<usize>,
}

impl Concern {
    pub fn nobody(&mut self) {
        self.everybody = false;
        self.rows.clear();
    }

    pub fn everybody(&mut self) {
        self.everybody = true;
    }

    #[inline]
    pub fn add(&mut self, audience: Audience, rows: Rows) {
        match audience {
            Audience::Everybody => self.everybody = true,
            Audience::Interested(topic) => {
                let row = rows.row_of(topic);
                // Batches of one channel are common.
                if self.rows.last() != Some(&row) {
                    self.rows.push(row);
                }
            }
            Audience::Nobody => {}
        }
    }

    /// Seats whose readers any of it concerns, as the rows are now.
    fn seats(&self, region: &Region, rows: Rows) -> Seats {
        if self.everybody {
            return Seats([u64::MAX; ROW_WORDS_MAX]);
        }
        let mut seats = Seats([0; ROW_WORDS_MAX]);
        for row in &self.rows {
            let words = region.words(*row, rows.row_bytes / WORD);
            for (seats, word) in seats.0.iter_mut().zip(words) {
                *seats |= word.load(Ordering::Relaxed);
            }
        }
        seats
    }
}

/// A set of seats.
#[derive(Clone, Copy)]
struct Seats([u64; ROW_WORDS_MAX]);

impl Seats {
    fn has(&self, seat: u32) -> bool {
        let (word, bit) = place_of(seat);
        self.0[word] & bit != 0
    }
}

/// A seat's word in a row, and its bit.
fn place_of(seat: u32) -> (usize, u64) {
    (seat as usize / BITS, 1 << (seat as usize % BITS))
}

/// A reader, as its writer knows it.
#[derive(Debug, Default)]
pub(super) struct Seat {
    waker: Waker,
    /// The sleep that it was last let go on with, and the tail before what it was spared first.
    spared: (u64, u64),
}

impl Seat {
    /// Lets a sleep go on over what was committed from `begin` to `tail`; false if it has been let
    /// go on for too long.
    fn spare(&mut self, sleep: u64, begin: u64, tail: u64, bytes_max: u64) -> bool {
        if self.spared.0 != sleep {
            self.spared = (sleep, begin);
        }
        tail.wrapping_sub(self.spared.1) <= bytes_max
    }
}

impl LogWriter {
    /// Calls `wake` for each sleeping reader that the batch from `begin` to the tail concerns, or
    /// that was let sleep for too long. Call [`crate::wake::announce`] before.
    pub(super) fn wake_readers(&mut self, begin: u64, mut wake: impl FnMut(u32)) {
        let (region, rows, tail) = (self.view.region(), self.view.rows, self.tail);
        let bytes_max = spared_bytes_max(self.view.capacity());
        let mut concerned = None;
        for (number, seat) in (0u32..).zip(&mut self.seats) {
            let Some(seat) = seat else { continue };
            let at = seat_at(number);
            let Some(sleep) = seat.waker.sleep(region.word(at + SLEEPING)) else {
                continue;
            };
            let is_concerned = region.load(at + SELECTIVE) == 0
                || concerned
                    .get_or_insert_with(|| self.concern.seats(region, rows))
                    .has(number);
            if !is_concerned {
                if seat.spare(sleep, begin, tail, bytes_max) {
                    continue;
                }
                self.lag_wakes += 1;
            }
            seat.waker.end(sleep);
            wake(number);
        }
    }
}

/// What a reader is woken for: see the head of this module.
///
/// Dropping it takes nothing back, as a crash would not: its reader should go too.
#[derive(Debug)]
pub struct Interest {
    view: LogView,
    seat: u32,
    /// Topics of a row beyond the first, by its place; most rows have one or none.
    crowded: HashMap<usize, u32>,
    _claim: Claim,
}

impl Interest {
    /// From now on the reader of `seat` is woken for nothing but what is added.
    pub(super) fn begin(view: &LogView, seat: u32) -> Result<Interest, SegmentError> {
        let selective_at = seat_at(seat) + SELECTIVE;
        let region = view.region();
        let claim = region.claim(selective_at)?;
        let interest = Interest {
            view: view.clone(),
            seat,
            crowded: HashMap::new(),
            _claim: claim,
        };
        for row in view.rows.all() {
            // Of whoever died in this seat.
            if interest.is_set(row) {
                interest.set(row, false);
            }
        }
        region.store(selective_at, 1);
        Ok(interest)
    }

    /// Adds a topic; one that is added twice has to be removed twice.
    pub fn add(&mut self, topic: Topic) {
        let row = self.view.rows.row_of(topic);
        if self.is_set(row) {
            *self.crowded.entry(row).or_insert(0) += 1;
        } else {
            self.set(row, true);
        }
    }

    /// Takes back one [`Interest::add`].
    pub fn remove(&mut self, topic: Topic) {
        let row = self.view.rows.row_of(topic);
        match self.crowded.entry(row) {
            Entry::Vacant(_) => self.set(row, false),
            Entry::Occupied(more) if *more.get() == 1 => drop(more.remove()),
            Entry::Occupied(mut more) => *more.get_mut() -= 1,
        }
    }

    fn is_set(&self, row: usize) -> bool {
        let (word, bit) = place_of(self.seat);
        self.view.region().load(row + word * WORD) & bit != 0
    }

    fn set(&self, row: usize, is_set: bool) {
        let (word, bit) = place_of(self.seat);
        let word = self.view.region().word(row + word * WORD);
        // SYNC: the fences of wake.rs stand between this and the writer's look.
        if is_set {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}
