//! The keeper's side: what a dead worker has put down.

use std::ops::ControlFlow;

use super::{
    BLOB_ALIGN, BLOB_AT, BLOB_BYTES_MAX, DIRECT, ENDED_AT, FRAME, FRAMES_AT, FRAMES_MAX, GIVEN,
    GIVEN_AT, HELD, INTENT_AT, LIST, LISTED, Map, NO_CHANNEL, OWES, PARTIAL, POSITION_AT,
    RECEIVED_AT, SENT_AT, SETTLED_AT, SLOTS_AT, TAIL_AT, WRITING,
};
use crate::error::SegmentError;
use crate::region::{Region, WORD};
use crate::ring::{ALIGN, Ring, Walk};
use crate::sync::{Ordering, fence};

/// A frame that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFrame {
    /// The worker's own number for the channel that it was published to.
    pub channel: Option<u64>,
    pub bytes: Vec<u8>,
}

/// A connection as it stood when its worker last put it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub descriptor: u32,
    /// Bytes that were handed to the kernel, modulo 2^32.
    pub sent_bytes: u32,
    pub frames: Vec<KeptFrame>,
    pub head_sent_bytes: u32,
    /// It has the publications before this position of the log.
    pub position: u64,
    /// The publisher owed it an answer, which nobody can give now.
    pub owes: bool,
    pub blob: Vec<u8>,
}

/// Why a connection cannot go on from what was put down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The worker died while it wrote.
    Torn,
    /// There was more to it than the keep takes.
    Partial,
    /// Frames that it waits for were overwritten.
    Overwritten,
}

/// What a slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Free,
    /// On its way to another worker when this one died.
    Given {
        descriptor: u32,
    },
    Held(Kept),
    Damaged {
        descriptor: u32,
        damage: Damage,
    },
}

/// Read access to the keep of a process that is dead.
#[derive(Debug)]
pub struct KeepView {
    region: Region,
    map: Map,
    arena: Ring,
}

impl KeepView {
    /// # Errors
    /// [`SegmentError`] where the region holds no keep of this version.
    pub fn attach(region: Region) -> Result<KeepView, SegmentError> {
        let (map, arena) = Map::attach(&region)?;
        Ok(KeepView { region, map, arena })
    }

    /// The worker ended in good order.
    pub fn has_ended(&self) -> bool {
        self.region.load(ENDED_AT) != 0
    }

    /// Every connection had the publications before this position of the log.
    pub fn settled(&self) -> u64 {
        // SYNC: pairs with keep/writer.rs::KeepWriter::settle
        self.region.word(SETTLED_AT).load(Ordering::Acquire)
    }

    /// Connections that the receiver of the last hand-off had acknowledged.
    pub fn given(&self) -> u64 {
        self.region.load(GIVEN_AT)
    }

    /// Sockets that came in a hand-off and were not acknowledged.
    pub fn received(&self) -> u64 {
        self.region.load(RECEIVED_AT)
    }

    /// So many slots were ever used.
    pub fn slots(&self) -> u32 {
        let slots = self.region.load(SLOTS_AT) as usize;
        slots.min(self.map.slots_max) as u32
    }

    /// What the slot says.
    pub fn read(&self, slot: u32) -> State {
        let at = self.map.slot_at(slot);
        // SYNC: pairs with keep/writer.rs::KeepWriter::write and set_state
        let word = self.region.word(at).load(Ordering::Acquire);
        let [state, count, flags, ..] = word.to_le_bytes();
        let descriptor = (word >> 32) as u32;
        let damaged = |damage| State::Damaged { descriptor, damage };
        match state {
            WRITING => return damaged(Damage::Torn),
            GIVEN => return State::Given { descriptor },
            HELD => {}
            _ => return State::Free,
        }
        if flags & PARTIAL != 0 {
            return damaged(Damage::Partial);
        }
        let direct = self.region.load(at + FRAMES_AT);
        let direct = [direct as u32, (direct >> 32) as u32];
        let sent = self.region.load(at + SENT_AT);
        let Some(frames) = self.frames(count, direct) else {
            return damaged(Damage::Overwritten);
        };
        let Some(blob) = self.blob(self.region.load(at + BLOB_AT)) else {
            return damaged(Damage::Partial);
        };
        State::Held(Kept {
            descriptor,
            sent_bytes: sent as u32,
            frames,
            head_sent_bytes: (sent >> 32) as u32,
            position: self.region.load(at + POSITION_AT),
            owes: flags & OWES != 0,
            blob,
        })
    }

    fn frames(&self, count: u8, direct: [u32; DIRECT]) -> Option<Vec<KeptFrame>> {
        let list = if count == LISTED {
            let bytes = self.record(direct[0], LIST)?;
            let (list, []) = bytes.as_chunks::<4>() else {
                return None;
            };
            if list.len() > FRAMES_MAX {
                return None;
            }
            list.iter().map(|each| u32::from_le_bytes(*each)).collect()
        } else {
            direct.get(..count.into())?.to_vec()
        };
        list.into_iter().map(|each| self.frame(each)).collect()
    }

    fn frame(&self, reference: u32) -> Option<KeptFrame> {
        let bytes = self.record(reference, FRAME)?;
        let (number, bytes) = bytes.split_first_chunk()?;
        let channel = u64::from_le_bytes(*number);
        Some(KeptFrame {
            channel: (channel != NO_CHANNEL).then_some(channel),
            bytes: bytes.to_vec(),
        })
    }

    /// The payload of a record of the arena. `None`: it was overwritten, or is none.
    fn record(&self, reference: u32, wanted: u32) -> Option<Vec<u8>> {
        // SYNC: pairs with keep/writer.rs::KeepWriter::append
        let tail = self.region.word(TAIL_AT).load(Ordering::Acquire);
        let behind = ((tail / ALIGN as u64) as u32).wrapping_sub(reference);
        let position = tail.checked_sub(u64::from(behind) * ALIGN as u64)?;
        let is_valid = |from: u64| {
            // SYNC: pairs with keep/writer.rs::KeepWriter::append
            fence(Ordering::Acquire);
            self.region.load(INTENT_AT).wrapping_sub(from) <= self.map.arena_bytes
        };
        let mut found = None;
        Walk::from(position)
            .run(&self.arena, tail, 1, is_valid, |record| {
                if record.kind == wanted {
                    found = Some(record.payload.to_vec());
                }
                ControlFlow::Continue(())
            })
            .ok()?;
        found
    }

    fn blob(&self, word: u64) -> Option<Vec<u8>> {
        let (place, bytes) = (
            (word >> 24) as usize * BLOB_ALIGN,
            (word & 0xFF_FFFF) as usize,
        );
        let is_inside = place >= self.map.blobs_at && place + bytes <= self.map.end;
        if word == 0 || !is_inside || bytes > BLOB_BYTES_MAX {
            return None;
        }
        let words = self.region.words(place, bytes.div_ceil(WORD));
        let loaded = words.iter().map(|word| word.load(Ordering::Relaxed));
        let mut blob: Vec<u8> = loaded.flat_map(u64::to_le_bytes).collect();
        blob.truncate(bytes);
        Some(blob)
    }
}
