//! The keep: what a worker puts down of its connections, so that they can go on after its death.
//!
//! ```text
//! 4096  ended     1: the worker has ended in good order, nothing is to be kept
//! +8    settled   every connection has the publications before this log position
//! +16   given     connections that the receiver of the hand-off under way has acknowledged
//! +24   received  sockets that came in a hand-off and are not acknowledged yet
//! +32   slots     so many were ever used
//! +128  intent    bytes of the arena before this position are written, or about to be
//! +136  tail      ... are written
//! 8192  arena: a ring (`ring.rs`) of frames, and of lists of frames
//! then  slots, 40 bytes each           0 state | frames << 8 | flags << 16 | descriptor << 32
//! then  blobs                          8 bytes handed to the kernel, modulo 2^32
//!                                     12 ... of which in the first frame
//!                                     16 log position
//!                                     24 blob: place / 8 << 24 | bytes
//!                                     32 frame 0, frame 1
//! ```
//!
//! One process writes: the worker. It is read when that process is dead, by its keeper, so that
//! neither ever waits for the other. What is torn by the death says so: a slot is `WRITING` while
//! it is written, and a frame is believed only if the arena's intent is not beyond it by a lap.
//!
//! A frame is there once for all who wait for it. A slot names up to two of them itself, and
//! more by a list in the arena, which those who wait for the same share too. A blob is what else
//! is to be known of a connection; it is written anew, elsewhere, when that changes.
//!
//! Arena and header are reserved when the segment is made; slots and blobs as they are needed,
//! for the segment is as long as the most connections that there may ever be.

mod blobs;
mod reader;
mod writer;

pub use reader::{Damage, KeepView, Kept, KeptFrame, State};
pub use writer::{Entry, FrameRef, KeepWriter};

use crate::error::SegmentError;
use crate::layout::{self, HEADER_BYTES, Kind, LINE, Owner};
use crate::region::{Region, WORD};
use crate::ring::{Ring, check_capacity};

/// Most connections of a keep: keeps its length below a few GiB of addresses.
pub const SLOTS_MAX: u64 = 1 << 24;
/// Frames that may wait for one connection; one that has more is not kept until it has fewer.
pub const FRAMES_MAX: usize = 1024;
/// Longest blob: a connection with more to be known of, such as the beginning of a long message,
/// is not kept until it has less.
pub const BLOB_BYTES_MAX: usize = 64 * 1024;
/// Addresses, not memory, for the blobs of one connection on average.
const BLOB_BYTES_PER_SLOT: usize = 512;
/// And for all together, so that a keep of few connections has room for large ones.
const BLOB_BYTES_MIN: usize = 4 << 20;

const ENDED_AT: usize = HEADER_BYTES;
const SETTLED_AT: usize = HEADER_BYTES + WORD;
const GIVEN_AT: usize = HEADER_BYTES + 2 * WORD;
const RECEIVED_AT: usize = HEADER_BYTES + 3 * WORD;
const SLOTS_AT: usize = HEADER_BYTES + 4 * WORD;
const INTENT_AT: usize = HEADER_BYTES + LINE;
const TAIL_AT: usize = INTENT_AT + WORD;
const ARENA_AT: usize = 2 * HEADER_BYTES;

const SLOT_BYTES: usize = 40;
const SENT_AT: usize = WORD;
const POSITION_AT: usize = 2 * WORD;
const BLOB_AT: usize = 3 * WORD;
const FRAMES_AT: usize = 4 * WORD;

const FREE: u8 = 0;
const WRITING: u8 = 1;
const HELD: u8 = 2;
const GIVEN: u8 = 3;

/// As a number of frames: the first of the slot's references is one to a list.
const LISTED: u8 = u8::MAX;
/// Frames that a slot names itself.
const DIRECT: usize = 2;

/// The publisher owes the connection an answer, which nobody could give after the worker's death.
const OWES: u8 = 1;
/// There is more to the connection than the keep takes.
const PARTIAL: u8 = 1 << 1;

/// In place of the worker's own number for a channel: the frame is of none.
const NO_CHANNEL: u64 = u64::MAX;

/// Kinds of the arena's records.
const FRAME: u32 = 1;
const LIST: u32 = 2;

/// Blobs begin at multiples of this.
const BLOB_ALIGN: usize = 8;

/// Where the parts of a keep are.
#[derive(Clone, Copy, Debug)]
struct Map {
    slots_max: usize,
    arena_bytes: u64,
    slots_at: usize,
    blobs_at: usize,
    end: usize,
}

impl Map {
    fn of(slots_max: u64, arena_bytes: u64) -> Result<Map, SegmentError> {
        check_capacity("arena_bytes", arena_bytes)?;
        let refuse = |name, value, rule| Err(SegmentError::Parameter { name, value, rule });
        if slots_max == 0 || slots_max > SLOTS_MAX {
            return refuse("slots_max", slots_max, "1 to 16777216 connections");
        }
        if arena_bytes > 1 << 32 {
            return refuse("arena_bytes", arena_bytes, "at most 4 GiB");
        }
        let slots = slots_max as usize;
        let slots_at = ARENA_AT + layout::whole_pages(arena_bytes as usize);
        let blobs_at = slots_at + layout::whole_pages(slots * SLOT_BYTES);
        let blob_bytes = layout::whole_pages(slots * BLOB_BYTES_PER_SLOT).max(BLOB_BYTES_MIN);
        Ok(Map {
            slots_max: slots,
            arena_bytes,
            slots_at,
            blobs_at,
            end: blobs_at + blob_bytes,
        })
    }

    fn slot_at(&self, slot: u32) -> usize {
        self.slots_at + slot as usize * SLOT_BYTES
    }

    fn attach(region: &Region) -> Result<(Map, Ring), SegmentError> {
        let [slots_max, arena_bytes, ..] = layout::attach(region, Kind::Keep)?.parameters;
        let map = Map::of(slots_max, arena_bytes)?;
        if region.len() != map.end {
            return Err(SegmentError::Size {
                said: map.end as u64,
                found: region.len() as u64,
            });
        }
        Ok((map, Ring::new(region, ARENA_AT, arena_bytes)?))
    }
}

/// Length of a segment for `slots_max` connections, and how much of it is to be reserved.
///
/// # Errors
/// [`SegmentError::Parameter`] for what is not possible.
pub fn segment_bytes(slots_max: u64, arena_bytes: u64) -> Result<(usize, usize), SegmentError> {
    let map = Map::of(slots_max, arena_bytes)?;
    Ok((map.end, map.slots_at))
}

/// Makes an empty keep of a zeroed region.
///
/// # Errors
/// As [`segment_bytes`]; also for a region of another size.
pub fn format(
    region: &Region,
    slots_max: u64,
    arena_bytes: u64,
    owner: Owner,
) -> Result<(), SegmentError> {
    let map = Map::of(slots_max, arena_bytes)?;
    if region.len() != map.end {
        return Err(SegmentError::Size {
            said: map.end as u64,
            found: region.len() as u64,
        });
    }
    layout::format(region, Kind::Keep, owner, &[slots_max, arena_bytes], |_| {});
    Ok(())
}
