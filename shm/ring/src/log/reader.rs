//! The log's readers: gated by the writer while they keep up, told when they do not.

use std::ops::ControlFlow;

use super::interest::Interest;
use super::{CURSOR, EVICTED, GENERATION, JOINED, LAPPED, LogView, SELECTIVE, SLEEPING};
use crate::error::{LapCause, Lapped, SegmentError};
use crate::region::{Claim, Region};
use crate::ring::{Fault, Record, Walk};
use crate::sync::{Ordering, fence};
use crate::wake::Sleeper;

/// The reader of one seat.
///
/// Dropping it leaves the seat joined, as a crash would; the writer is told by its owner
/// ([`super::LogWriter::detach_reader`]) or evicts it in time.
#[derive(Debug)]
pub struct LogReader {
    view: LogView,
    seat: u32,
    seat_at: usize,
    generation: u64,
    walk: Walk,
    sleeper: Sleeper,
    _claim: Claim,
}

impl LogReader {
    /// Takes a seat, to read what is committed from now on.
    ///
    /// # Errors
    /// A [`SegmentError`] if the region is no log, has no such seat, or this process sits on it.
    pub fn join(region: Region, seat: u32) -> Result<LogReader, SegmentError> {
        let view = LogView::attach(&region)?;
        let seat_at = view.seat(seat)?;
        let claim = region.claim(seat_at)?;
        let sleeper = Sleeper::new(&region, seat_at + SLEEPING);
        sleeper.awake();
        let walk = Walk::from(view.tail());
        region.store(seat_at + SELECTIVE, 0);
        let mut reader = LogReader {
            view,
            seat,
            seat_at,
            generation: 0,
            walk,
            sleeper,
            _claim: claim,
        };
        reader.rejoin();
        Ok(reader)
    }

    /// Begins anew at the tail, after [`Lapped`].
    pub fn rejoin(&mut self) {
        let region = self.view.region();
        let last = region
            .load(self.seat_at + GENERATION)
            .max(region.load(self.seat_at + EVICTED));
        self.generation = last + 1;
        region.store(self.seat_at + GENERATION, self.generation);
        region.store(self.seat_at + CURSOR, self.view.tail());
        // SYNC: pairs with log/writer.rs::LogWriter::lag_of
        region
            .word(self.seat_at + JOINED)
            .store(self.generation, Ordering::Release);
        // SYNC: pairs with log/writer.rs::LogWriter::measure. Either the writer sees that this
        // seat is taken, or the tail read below is one from which it has room for a whole lap.
        fence(Ordering::SeqCst);
        self.walk.position = self.view.tail();
        self.release();
    }

    /// Gives the seat back: the writer waits for it no more.
    pub fn leave(self) {
        // SYNC: pairs with log/writer.rs::LogWriter::lag_of
        self.view
            .region()
            .word(self.seat_at + JOINED)
            .store(0, Ordering::Release);
    }

    /// From now on this reader is woken only for what is added to its interest, and for what
    /// concerns everybody; and, now and then, so that it does not fall behind.
    ///
    /// # Errors
    /// [`SegmentError::Claimed`] for a second time.
    pub fn interest(&self) -> Result<Interest, SegmentError> {
        Interest::begin(&self.view, self.seat)
    }

    /// Shows at most `records_max` records in order, returns their number; 0 is: none are there.
    /// Payloads are private, validated copies.
    ///
    /// # Errors
    /// [`Lapped`]: this reader lost its place, nothing more comes until [`LogReader::rejoin`]. The
    /// records shown before were good.
    #[inline]
    pub fn read(
        &mut self,
        records_max: usize,
        mut each: impl FnMut(Record<'_>),
    ) -> Result<usize, Lapped> {
        let tail = self.view.tail();
        let mut taken = 0;
        while self.walk.position != tail && taken < records_max {
            let (view, seat_at, generation) = (&self.view, self.seat_at, self.generation);
            let is_valid =
                |from| view.is_valid(from) && view.region().load(seat_at + EVICTED) != generation;
            let shown = self
                .walk
                .run(&view.ring, tail, records_max - taken, is_valid, |record| {
                    each(record);
                    ControlFlow::Continue(())
                });
            match shown {
                Ok(count) => taken += count,
                Err(fault) => return Err(self.lapped(fault)),
            }
            self.release();
        }
        Ok(taken)
    }

    /// Position of the next record that will be shown.
    pub fn position(&self) -> u64 {
        self.walk.position
    }

    /// Position after the last committed record.
    #[inline]
    pub fn tail(&self) -> u64 {
        self.view.tail()
    }

    /// Access by position, for history.
    pub fn view(&self) -> &LogView {
        &self.view
    }

    /// Announces a sleep. If true, the caller may block until its bell rings; if false, there is
    /// something to read.
    pub fn may_sleep(&self) -> bool {
        self.sleeper
            .may_sleep(|| self.view.tail() == self.walk.position)
    }

    /// Ends the announcement of [`LogReader::may_sleep`].
    pub fn awake(&self) {
        self.sleeper.awake();
    }

    /// Lets the writer overwrite what has been read.
    #[inline]
    fn release(&self) {
        let cursor = self.view.region().word(self.seat_at + CURSOR);
        // SYNC: pairs with log/writer.rs::LogWriter::lag_of
        cursor.store(self.walk.position, Ordering::Release);
    }

    #[cold]
    fn lapped(&self, fault: Fault) -> Lapped {
        let region = self.view.region();
        let evicted = region.load(self.seat_at + EVICTED) == self.generation;
        let cause = match fault {
            Fault::Corrupt => LapCause::Corrupt,
            Fault::Invalid if evicted => LapCause::Evicted,
            Fault::Invalid => LapCause::Overwritten,
        };
        let count = region.load(self.seat_at + LAPPED);
        region.store(self.seat_at + LAPPED, count.wrapping_add(1));
        Lapped {
            position: self.walk.position,
            cause,
        }
    }
}
