//! The log: one writer, many readers, a byte ring in which every publication has its place.
//!
//! Four positions of the writer, in the order in which a batch moves them:
//!
//! - `intent`: no byte before `intent - capacity` is safe any more. Stored *before* the words that
//!   it speaks of; a reader looks at it *after* its copy. That detects every torn read.
//! - `prepared`: the batch is written whole. After a crash, what is between `tail` and `prepared`
//!   can be done again ([`LogWriter::redo`]); what is beyond is written anew. Never is `intent`
//!   lowered: a dead writer may have torn words up to it.
//! - `tail`: the batch is committed, readers may have it.
//! - `answered`: its producers were answered.
//!
//! The writer waits for slow readers within a budget (liveness), then evicts them; a reader that is
//! evicted or not yet known to the writer still never believes an overwritten byte (safety).

mod batch;
mod interest;
mod reader;
mod writer;

pub use crate::ring::Record;
pub use batch::{Batch, Prepared};
pub use interest::{Audience, Interest, Topic};
pub use reader::LogReader;
pub use writer::LogWriter;

use crate::error::{LapCause, Lapped, SegmentError};
use crate::layout::{self, HEADER_BYTES, Kind, LINE, Owner};
use crate::region::{Region, WORD};
use crate::ring::{ALIGN, Fault, Ring, Walk, check_capacity};
use crate::sync::{Ordering, fence};
use interest::Rows;

const INTENT_AT: usize = HEADER_BYTES;
const PREPARED_AT: usize = INTENT_AT + LINE;
const TAIL_AT: usize = PREPARED_AT + LINE;
const ANSWERED_AT: usize = TAIL_AT + LINE;
const SEATS_AT: usize = ANSWERED_AT + LINE;

/// A seat: a line that its reader writes all the time, one that it writes seldom and that the
/// writer looks at all the time, and one that the writer writes about it.
const SEAT_BYTES: usize = 3 * LINE;
const CURSOR: usize = 0;
const JOINED: usize = LINE;
const SLEEPING: usize = JOINED + WORD;
const LAPPED: usize = SLEEPING + WORD;
const GENERATION: usize = LAPPED + WORD;
const SELECTIVE: usize = GENERATION + WORD;
const EVICTED: usize = 2 * LINE;

const _: () = assert!(SELECTIVE + WORD <= EVICTED && EVICTED + WORD <= SEAT_BYTES);

/// Most reader seats of a log: the writer looks at each of them once for each batch.
pub const READERS_MAX: u32 = 256;

const CAPACITY_PARAMETER: usize = 0;
const READERS_PARAMETER: usize = 1;
const TOPICS_PARAMETER: usize = 2;

/// Most rows of interest: as many as there can be channels.
pub const TOPICS_MAX: u64 = 1 << 26;

/// A look at one record copies so many bytes first: most records, whole.
const LOOK_BYTES: usize = 512;

/// Bytes of a segment that holds a log. Of `topics`, that is to say channels, there may be more:
/// then readers are woken in vain more often.
pub const fn segment_bytes(capacity: u64, readers: u32, topics: u64) -> usize {
    ring_at(Rows::new(readers, topics)) + capacity as usize
}

const fn ring_at(rows: Rows) -> usize {
    layout::whole_pages(rows.end())
}

const fn seat_at(seat: u32) -> usize {
    SEATS_AT + seat as usize * SEAT_BYTES
}

/// Makes a zeroed region of at least [`segment_bytes`] bytes an empty log of `capacity` bytes (a
/// power of two) with `readers` seats and a row of interest for each of `topics`, its first record to
/// be at position `start` (a multiple of 16).
///
/// # Errors
/// [`SegmentError::Parameter`] if the parameters or the size of the region are not possible.
pub fn format(
    region: &Region,
    capacity: u64,
    readers: u32,
    topics: u64,
    start: u64,
    owner: Owner,
) -> Result<(), SegmentError> {
    check_capacity("capacity", capacity)?;
    let refuse = |name, value, rule| Err(SegmentError::Parameter { name, value, rule });
    if readers == 0 || readers > READERS_MAX {
        return refuse("readers", readers.into(), "1 to 256 seats");
    }
    if topics == 0 || topics > TOPICS_MAX {
        return refuse("topics", topics, "between 1 and 67108864");
    }
    if !start.is_multiple_of(ALIGN as u64) {
        return refuse("start", start, "a multiple of 16");
    }
    Ring::new(region, ring_at(Rows::new(readers, topics)), capacity)?;
    layout::format(
        region,
        Kind::Log,
        owner,
        &[capacity, readers.into(), topics],
        |region| {
            for offset in [INTENT_AT, PREPARED_AT, TAIL_AT, ANSWERED_AT] {
                region.store(offset, start);
            }
        },
    );
    Ok(())
}

/// Read access to a log for anybody: committed records by position, without a seat.
#[derive(Clone, Debug)]
pub struct LogView {
    ring: Ring,
    readers: u32,
    rows: Rows,
}

impl LogView {
    /// # Errors
    /// Every [`SegmentError`] that says why the region is not a log that this build can use.
    pub fn attach(region: &Region) -> Result<LogView, SegmentError> {
        let header = layout::attach(region, Kind::Log)?;
        let parameter = |name, at, max: u64, rule| match header.parameters[at] {
            value if value <= max => Ok(value),
            value => Err(SegmentError::Parameter { name, value, rule }),
        };
        let readers_max = READERS_MAX.into();
        let readers =
            parameter("readers", READERS_PARAMETER, readers_max, "1 to 256 seats")? as u32;
        let rule = "between 1 and 67108864";
        let topics = parameter("topics", TOPICS_PARAMETER, TOPICS_MAX, rule)?;
        let rows = Rows::new(readers, topics);
        let capacity = header.parameters[CAPACITY_PARAMETER];
        let ring = Ring::new(region, ring_at(rows), capacity)?;
        Ok(LogView {
            ring,
            readers,
            rows,
        })
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.ring.capacity()
    }

    /// Seats for readers.
    pub fn readers(&self) -> u32 {
        self.readers
    }

    /// Longest payload of a record.
    pub fn payload_bytes_max(&self) -> usize {
        self.ring.payload_bytes_max()
    }

    /// Position after the last committed record.
    #[inline]
    pub fn tail(&self) -> u64 {
        // SYNC: pairs with log/batch.rs::Prepared::commit
        self.region().word(TAIL_AT).load(Ordering::Acquire)
    }

    /// Whether a record that was once at `position` may have been overwritten.
    pub fn has_left(&self, position: u64) -> bool {
        !self.is_valid(position)
    }

    /// Copies the payload of the committed record at `position` into `buffer` and returns its
    /// kind; None if it was overwritten or is not there (yet).
    pub fn read_at(&self, position: u64, buffer: &mut Vec<u8>) -> Option<u32> {
        buffer.clear();
        let mut kind = None;
        if !position.is_multiple_of(ALIGN as u64) {
            return None;
        }
        let mut walk = Walk::by_runs_of(LOOK_BYTES, position);
        walk.run(
            &self.ring,
            self.tail(),
            1,
            |from| self.is_valid(from),
            |record| {
                buffer.extend_from_slice(record.payload);
                kind = Some(record.kind);
                std::ops::ControlFlow::Continue(())
            },
        )
        .ok()?;
        kind
    }

    /// Shows at most `records_max` committed records from `position` on, which it moves behind
    /// them; returns their number. For readers without a seat: nobody waits for them.
    ///
    /// # Errors
    /// [`Lapped`]: the record at `position` is gone.
    pub fn read_from(
        &self,
        position: &mut u64,
        records_max: usize,
        mut each: impl FnMut(Record<'_>),
    ) -> Result<usize, Lapped> {
        let (end, mut walk, mut taken) = (self.tail(), Walk::from(*position), 0);
        while walk.position != end && taken < records_max {
            let is_valid = |from| self.is_valid(from);
            let shown = walk.run(&self.ring, end, records_max - taken, is_valid, |record| {
                each(record);
                std::ops::ControlFlow::Continue(())
            });
            *position = walk.position;
            taken += shown.map_err(|fault| Lapped {
                position: *position,
                cause: match fault {
                    Fault::Invalid => LapCause::Overwritten,
                    Fault::Corrupt => LapCause::Corrupt,
                },
            })?;
        }
        Ok(taken)
    }

    fn region(&self) -> &Region {
        self.ring.region()
    }

    /// Whether no byte from `position` on has been, or is being, overwritten. A copy of such bytes
    /// made before this call is good if this is true.
    #[inline]
    fn is_valid(&self, position: u64) -> bool {
        // SYNC: pairs with log/writer.rs::LogWriter::reserve. If the copy saw a word of a later
        // lap, this fence and the writer's make the intent for that lap visible here.
        fence(Ordering::Acquire);
        let intent = self.region().load(INTENT_AT);
        intent.wrapping_sub(position) <= self.capacity()
    }

    /// Checks that a seat exists and returns the offset of its words.
    fn seat(&self, seat: u32) -> Result<usize, SegmentError> {
        if seat < self.readers {
            return Ok(seat_at(seat));
        }
        let rule = "the log has no such seat (raise the number of its readers)";
        Err(SegmentError::Parameter {
            name: "seat",
            value: seat.into(),
            rule,
        })
    }
}
