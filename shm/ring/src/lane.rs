//! A lane: a byte ring with one producer and one consumer, in shared memory.
//!
//! Each side owns one position. The producer keeps a copy of the consumer's and looks again only
//! when that copy says full; the consumer looks once for each batch: the lines of the two words
//! rarely travel between cores.
//!
//! The consumer believes nothing of the producer: every length is checked on a private copy.

use std::ops::ControlFlow;

use crate::error::{SegmentError, UplinkError};
use crate::layout::LINE;
use crate::region::{Claim, Region};
use crate::ring::{ALIGN, Record, Ring, Walk};
use crate::sync::Ordering;
use crate::wake::{self, Sleeper, Waker};

/// Bytes of the words of a lane: tail, head, sleeping, a line each.
pub(crate) const LANE_BYTES: usize = 3 * LINE;

const TAIL: usize = 0;
const HEAD: usize = LINE;
const SLEEPING: usize = 2 * LINE;

/// A lane of a segment: its words begin at byte `words_at`, its records are in `ring`.
#[derive(Debug)]
pub(crate) struct Lane {
    pub ring: Ring,
    pub words_at: usize,
}

impl Lane {
    /// Lets the empty lane begin at position `start`.
    pub fn format(region: &Region, words_at: usize, start: u64) {
        region.store(words_at + TAIL, start);
        region.store(words_at + HEAD, start);
    }

    /// Refuses a lane whose positions cannot be.
    fn check(&self) -> Result<(), SegmentError> {
        // SYNC: pairs with lane.rs::LaneConsumer::release; the tail is loaded after the head, so
        // that it is not the older of the two.
        let head = self.region().word(self.at(HEAD)).load(Ordering::Acquire);
        let tail = self.region().load(self.at(TAIL));
        let is_aligned = (head | tail).is_multiple_of(ALIGN as u64);
        if is_aligned && tail.wrapping_sub(head) <= self.ring.capacity() {
            return Ok(());
        }
        let rule = "the positions of the uplink contradict each other: it is damaged";
        Err(SegmentError::Parameter {
            name: "tail",
            value: tail,
            rule,
        })
    }

    fn at(&self, word: usize) -> usize {
        self.words_at + word
    }

    fn region(&self) -> &Region {
        self.ring.region()
    }
}

/// The side that fills a lane.
#[derive(Debug)]
pub(crate) struct LaneProducer {
    lane: Lane,
    tail: u64,
    /// The consumer's head as last seen.
    head: u64,
    waker: Waker,
    _claim: Claim,
}

impl LaneProducer {
    /// # Errors
    /// [`SegmentError::Claimed`] if this process has a producer of the lane already.
    pub fn open(lane: Lane) -> Result<LaneProducer, SegmentError> {
        lane.check()?;
        let claim = lane.region().claim(lane.at(TAIL))?;
        // A record that a producer before this one was writing when it died is written over.
        let tail = lane.region().load(lane.at(TAIL));
        // SYNC: pairs with lane.rs::LaneConsumer::release
        let head = lane.region().word(lane.at(HEAD)).load(Ordering::Acquire);
        Ok(LaneProducer {
            lane,
            tail,
            head,
            waker: Waker::default(),
            _claim: claim,
        })
    }

    /// Longest payload.
    pub fn payload_bytes_max(&self) -> usize {
        self.lane.ring.payload_bytes_max()
    }

    /// Writes a record; [`LaneProducer::publish`] makes it visible. Returns the position after it.
    ///
    /// # Errors
    /// [`UplinkError`]: full, too large, or the consumer's head is impossible.
    #[inline]
    pub fn push(&mut self, kind: u32, parts: &[&[u8]]) -> Result<u64, UplinkError> {
        let ring = &self.lane.ring;
        let bytes = parts.iter().map(|part| part.len()).sum();
        let bytes_max = ring.payload_bytes_max();
        if bytes > bytes_max {
            return Err(UplinkError::TooLarge { bytes, bytes_max });
        }
        let begin = ring.begin(self.tail, Ring::record_bytes(bytes));
        let end = begin.wrapping_add(Ring::record_bytes(bytes) as u64);
        if end.wrapping_sub(self.head) > ring.capacity() {
            // SYNC: pairs with lane.rs::LaneConsumer::release
            self.head = ring
                .region()
                .word(self.lane.at(HEAD))
                .load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head) > ring.capacity() {
                return Err(UplinkError::Corrupt {
                    position: self.head,
                });
            }
            if end.wrapping_sub(self.head) > ring.capacity() {
                return Err(UplinkError::Full);
            }
        }
        ring.put(self.tail, begin, kind, parts, bytes);
        self.tail = end;
        Ok(end)
    }

    /// Makes what was pushed visible. True if the consumer sleeps and has to be woken.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let region = self.lane.region();
        // SYNC: pairs with lane.rs::LaneConsumer::look
        region
            .word(self.lane.at(TAIL))
            .store(self.tail, Ordering::Release);
        wake::announce();
        self.waker.must_wake(region.word(self.lane.at(SLEEPING)))
    }
}

/// The side that empties a lane.
#[derive(Debug)]
pub(crate) struct LaneConsumer {
    lane: Lane,
    walk: Walk,
    sleeper: Sleeper,
    _claim: Claim,
}

impl LaneConsumer {
    /// Goes on where a consumer before this one last released.
    ///
    /// # Errors
    /// [`SegmentError::Claimed`] if this process has a consumer of the lane already.
    pub fn open(lane: Lane) -> Result<LaneConsumer, SegmentError> {
        lane.check()?;
        let claim = lane.region().claim(lane.at(HEAD))?;
        let head = lane.region().load(lane.at(HEAD));
        let sleeper = Sleeper::new(lane.region(), lane.at(SLEEPING));
        sleeper.awake();
        Ok(LaneConsumer {
            walk: Walk::from(head),
            lane,
            sleeper,
            _claim: claim,
        })
    }

    /// Shows at most `records_max` records in order, until `each` breaks (that record counts as
    /// not taken, it is shown again). Returns the number taken. Their room is not free before
    /// [`LaneConsumer::release`].
    ///
    /// # Errors
    /// [`UplinkError::Corrupt`] if what the producer wrote makes no sense.
    #[inline]
    pub fn read(
        &mut self,
        records_max: usize,
        mut each: impl FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<usize, UplinkError> {
        let (mut taken, mut broke) = (0, false);
        let tail = self.look();
        while self.walk.position != tail && taken < records_max && !broke {
            let left = records_max - taken;
            let shown = self.walk.run(
                &self.lane.ring,
                tail,
                left,
                |_| true,
                |record| {
                    let flow = each(record);
                    broke = flow.is_break();
                    flow
                },
            );
            match shown {
                Ok(count) => taken += count,
                Err(_) if taken == 0 => {
                    return Err(UplinkError::Corrupt {
                        position: self.walk.position,
                    });
                }
                // What came before the damage counts; the next call says what is wrong.
                Err(_) => break,
            }
        }
        Ok(taken)
    }

    /// Position of the next record that will be shown.
    pub fn position(&self) -> u64 {
        self.walk.position
    }

    /// Position before which the room was given back, in this process or one before it.
    pub fn head(&self) -> u64 {
        self.lane.region().load(self.lane.at(HEAD))
    }

    /// Gives the room before `position` back to the producer; what was not shown yet is skipped.
    pub fn release(&mut self, position: u64) {
        let head = self.head();
        if position.wrapping_sub(head) > self.walk.position.wrapping_sub(head) {
            self.walk.position = position;
        }
        // SYNC: pairs with lane.rs::LaneProducer::push
        self.lane
            .region()
            .word(self.lane.at(HEAD))
            .store(position, Ordering::Release);
    }

    /// Position after the last record that is there now.
    pub fn end(&self) -> u64 {
        self.look()
    }

    /// Whether nothing is there to read.
    pub fn is_idle(&self) -> bool {
        self.look() == self.walk.position
    }

    /// Announces a sleep. If true, the caller may block until its bell rings.
    pub fn may_sleep(&self) -> bool {
        self.sleeper.may_sleep(|| self.is_idle())
    }

    /// Ends the announcement of [`LaneConsumer::may_sleep`].
    pub fn awake(&self) {
        self.sleeper.awake();
    }

    #[inline]
    fn look(&self) -> u64 {
        // SYNC: pairs with lane.rs::LaneProducer::publish
        self.lane
            .region()
            .word(self.lane.at(TAIL))
            .load(Ordering::Acquire)
    }
}
