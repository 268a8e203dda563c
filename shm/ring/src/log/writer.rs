//! The log's writer: takes over, reserves room, waits for readers, evicts those that lag.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::batch::{BATCH_SHARE, Batch, Prepared};
use super::interest::{Concern, Seat};
use super::{ANSWERED_AT, CURSOR, EVICTED, INTENT_AT, JOINED, LogView, PREPARED_AT, seat_at};
use crate::error::{LogError, SegmentError};
use crate::region::{Claim, Region};
use crate::ring::{ALIGN, Record, Walk};
use crate::sync::{Ordering, fence};

/// The intent runs ahead of the batch by this part of the ring at most (history is shorter by so
/// much) ...
const RESERVE_SHARE: u64 = 64;

/// ... and by so many bytes at most: one store of the intent for some hundred small records.
const RESERVE_BYTES: u64 = 32 * 1024;

/// A stall is over, and the lag budget whole again, once all readers are so near the tail (1 / 2 of
/// the ring): a reader that moves just a little at a time cannot hold up the others for ever.
const RECOVERED_SHARE: u64 = 2;

/// Looks at the readers before the writer starts to doze while it waits for them: some µs.
const STALL_SPINS: u32 = 256;

/// How long it dozes: short beside the budget, long beside a look.
const STALL_DOZE: Duration = Duration::from_micros(50);

/// The only writer of a log.
#[derive(Debug)]
pub struct LogWriter {
    pub(super) view: LogView,
    pub(super) tail: u64,
    pub(super) prepared: u64,
    /// As last stored; never lowered.
    intent: u64,
    /// Up to here the words may be written: covered by the intent, waited for by the gate.
    pub(super) reserved: u64,
    /// Up to here the readers allow it, as last measured.
    limit: u64,
    pub(super) seats: Vec<Option<Seat>>,
    /// Whom the batch in the making concerns.
    pub(super) concern: Concern,
    pub(super) lag_wakes: u64,
    lag_budget: Duration,
    stalled: Duration,
    stalled_total: Duration,
    stalls: u64,
    evictions: u64,
    _claim: Claim,
}

impl LogWriter {
    /// Becomes the writer, possibly after another died at any instruction: see
    /// [`LogWriter::redo`] and [`LogWriter::unanswered`].
    ///
    /// # Errors
    /// A [`SegmentError`] if the region is no log, or this process already has a writer of it.
    pub fn open(region: Region, lag_budget: Duration) -> Result<LogWriter, SegmentError> {
        let view = LogView::attach(&region)?;
        let claim = region.claim(INTENT_AT)?;
        // SYNC: pairs with log/batch.rs::Batch::prepare of the writer before.
        let prepared = region.word(PREPARED_AT).load(Ordering::Acquire);
        let (tail, intent) = (view.tail(), region.load(INTENT_AT));
        let [batch, reach] = [prepared, intent].map(|position| position.wrapping_sub(tail));
        let is_aligned = (tail | prepared | intent).is_multiple_of(ALIGN as u64);
        if !is_aligned || batch > view.capacity() / BATCH_SHARE || reach > view.capacity() {
            let rule = "the positions of the log contradict each other: it is damaged";
            return Err(SegmentError::Parameter {
                name: "prepared",
                value: prepared,
                rule,
            });
        }
        Ok(LogWriter {
            seats: (0..view.readers()).map(|_| None).collect(),
            concern: Concern::default(),
            lag_wakes: 0,
            view,
            tail,
            prepared,
            intent,
            reserved: prepared,
            limit: prepared,
            lag_budget,
            stalled: Duration::ZERO,
            stalled_total: Duration::ZERO,
            stalls: 0,
            evictions: 0,
            _claim: claim,
        })
    }

    /// Access by position.
    pub fn view(&self) -> &LogView {
        &self.view
    }

    /// Readers evicted by this writer.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Wake-ups of readers that nothing concerned for so long that they fell behind.
    pub fn lag_wakes(&self) -> u64 {
        self.lag_wakes
    }

    /// Times that this writer had to wait for readers.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// How long it waited for them in sum.
    pub fn stalled_total(&self) -> Duration {
        self.stalled_total
    }

    /// From now on this seat is waited for and woken, as soon as a reader has joined it.
    ///
    /// # Errors
    /// [`SegmentError::Parameter`] if there is no such seat.
    pub fn attach_reader(&mut self, seat: u32) -> Result<(), SegmentError> {
        self.view.seat(seat)?;
        self.seats[seat as usize] = Some(Seat::default());
        // Measure again before the next word: the last measure did not know of this seat.
        (self.reserved, self.limit) = (self.prepared, self.prepared);
        Ok(())
    }

    /// The reader of this seat is dead or gone. If it is alive after all, it finds itself evicted.
    ///
    /// # Errors
    /// [`SegmentError::Parameter`] if there is no such seat.
    pub fn detach_reader(&mut self, seat: u32) -> Result<(), SegmentError> {
        let seat_at = self.view.seat(seat)?;
        self.seats[seat as usize] = None;
        self.mark_evicted(seat_at);
        Ok(())
    }

    /// Begins a batch. Nothing of it is visible before [`Prepared::commit`].
    ///
    /// # Errors
    /// [`LogError::Uncommitted`] if a prepared batch waits: [`LogWriter::redo`] it first.
    pub fn batch(&mut self) -> Result<Batch<'_>, LogError> {
        if self.prepared != self.tail {
            return Err(LogError::Uncommitted);
        }
        Ok(Batch::new(self))
    }

    /// The batch that was prepared but not committed, if there is one: by a writer that died, or by
    /// this one if it dropped its [`Prepared`].
    pub fn redo(&mut self) -> Option<Prepared<'_>> {
        if self.prepared == self.tail {
            return None;
        }
        // What is in it was known to who wrote it.
        self.concern.everybody();
        Some(Prepared::new(self))
    }

    /// Says that the producers of all that is committed were answered.
    pub fn set_answered(&mut self) {
        // SYNC: pairs with log/writer.rs::LogWriter::unanswered of the writer after.
        self.region()
            .word(ANSWERED_AT)
            .store(self.tail, Ordering::Release);
    }

    /// Shows the committed records since the last [`LogWriter::set_answered`]; returns their
    /// number.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if they are not there.
    pub fn unanswered(&self, each: impl FnMut(Record<'_>)) -> Result<usize, LogError> {
        // SYNC: pairs with log/writer.rs::LogWriter::set_answered of the writer before.
        let answered = self.region().word(ANSWERED_AT).load(Ordering::Acquire);
        self.walk(answered, self.tail, each)
    }

    /// Shows own records; nobody can overwrite them meanwhile.
    pub(super) fn walk(
        &self,
        from: u64,
        end: u64,
        mut each: impl FnMut(Record<'_>),
    ) -> Result<usize, LogError> {
        let (mut walk, mut taken) = (Walk::from(from), 0);
        let is_valid = |position| self.intent.wrapping_sub(position) <= self.view.capacity();
        while walk.position != end {
            let shown = walk.run(&self.view.ring, end, usize::MAX, is_valid, |record| {
                each(record);
                ControlFlow::Continue(())
            });
            taken += shown.map_err(|_| LogError::Corrupt {
                position: walk.position,
            })?;
        }
        Ok(taken)
    }

    pub(super) fn region(&self) -> &Region {
        self.view.region()
    }

    /// Makes the words before `end` writable.
    #[inline(never)]
    pub(super) fn reserve(&mut self, end: u64) {
        let needed = end.wrapping_sub(self.tail);
        if self.limit.wrapping_sub(self.tail) < needed {
            self.wait_for_readers(needed);
        }
        let ahead = (self.view.capacity() / RESERVE_SHARE).min(RESERVE_BYTES);
        let ahead = ahead.next_multiple_of(ALIGN as u64);
        let bytes = (needed + ahead).min(self.limit.wrapping_sub(self.tail));
        self.reserved = self.tail.wrapping_add(bytes);
        if self.intent.wrapping_sub(self.tail) < bytes {
            self.intent = self.reserved;
        }
        self.region().store(INTENT_AT, self.intent);
        // SYNC: pairs with log.rs::LogView::is_valid. Whoever sees a word stored after this fence
        // sees the intent stored before it. (Even if the intent is that of a dead writer: it is
        // stored again, by this one.)
        fence(Ordering::Release);
    }

    /// Waits until the readers allow `needed` bytes after the tail, and evicts those that do not
    /// within the lag budget.
    #[cold]
    fn wait_for_readers(&mut self, needed: u64) {
        let capacity = self.view.capacity();
        let mut looks = 0;
        loop {
            let room = self.measure();
            self.limit = self.tail.wrapping_add(room);
            if room >= capacity - capacity / RECOVERED_SHARE {
                self.stalled = Duration::ZERO;
            }
            if room >= needed {
                return;
            }
            if self.stalled >= self.lag_budget {
                self.evict_beyond(capacity - needed);
                continue;
            }
            let began = Instant::now();
            if looks < STALL_SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(STALL_DOZE);
            }
            self.stalls += u64::from(looks == 0);
            looks += 1;
            let waited = began.elapsed();
            self.stalled += waited;
            self.stalled_total += waited;
        }
    }

    /// Bytes after the tail that overwrite nothing a reader still has to read.
    fn measure(&self) -> u64 {
        // SYNC: pairs with log/reader.rs::LogReader::rejoin
        fence(Ordering::SeqCst);
        let lag = self
            .attached()
            .filter_map(|seat_at| self.lag_of(seat_at))
            .max();
        self.view.capacity() - lag.unwrap_or(0)
    }

    fn attached(&self) -> impl Iterator<Item = usize> {
        let seats = (0u32..).zip(&self.seats);
        seats
            .filter(|(_, seat)| seat.is_some())
            .map(|(number, _)| seat_at(number))
    }

    /// Bytes that the reader of a seat is behind the tail; None if nobody has to be waited for:
    /// not there, evicted, or overrun before this writer knew of it.
    fn lag_of(&self, seat_at: usize) -> Option<u64> {
        let region = self.region();
        // SYNC: pairs with log/reader.rs::LogReader::rejoin and ::leave
        let joined = region.word(seat_at + JOINED).load(Ordering::Acquire);
        if joined == 0 || joined == region.load(seat_at + EVICTED) {
            return None;
        }
        // SYNC: pairs with log/reader.rs::LogReader::release
        let cursor = region.word(seat_at + CURSOR).load(Ordering::Acquire);
        let lag = self.tail.wrapping_sub(cursor);
        (lag <= self.view.capacity()).then_some(lag)
    }

    /// Evicts the readers that are more than `lag_max` bytes behind.
    fn evict_beyond(&mut self, lag_max: u64) {
        let is_slow = |seat_at: &usize| self.lag_of(*seat_at).is_some_and(|lag| lag > lag_max);
        let slow: Vec<usize> = self.attached().filter(is_slow).collect();
        for seat_at in slow {
            self.mark_evicted(seat_at);
            self.evictions += 1;
        }
    }

    fn mark_evicted(&self, seat_at: usize) {
        self.region()
            .store(seat_at + EVICTED, self.region().load(seat_at + JOINED));
    }
}
