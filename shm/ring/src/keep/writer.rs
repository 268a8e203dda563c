//! The worker's side: what it knows of a connection, put down before it acts on it.

use std::os::fd::{AsRawFd, OwnedFd};

use super::blobs::Places;
use super::{
    ARENA_AT, BLOB_ALIGN, BLOB_AT, DIRECT, ENDED_AT, FRAME, FRAMES_AT, FRAMES_MAX, FREE, GIVEN,
    GIVEN_AT, HELD, INTENT_AT, LIST, LISTED, Map, NO_CHANNEL, OWES, PARTIAL, PINGED, POSITION_AT,
    RECEIVED_AT, SENT_AT, SETTLED_AT, SLOT_BYTES, SLOTS_AT, STATE, TAIL_AT, WRITING,
};
use crate::error::SegmentError;
use crate::layout::PAGE;
use crate::region::{Claim, Region, WORD};
use crate::ring::{ALIGN, Ring};
use crate::sync::{Ordering, fence};

/// Slots and blobs are reserved by so many bytes at a time.
const RESERVE_BYTES: usize = 256 * 1024;

/// Names a frame in the arena, for as long as it is [`KeepWriter::is_fresh`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameRef(u64);

/// What is put down of a connection at once.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub descriptor: u32,
    /// Bytes that were handed to the kernel since the connection began, modulo 2^32.
    pub sent_bytes: u32,
    /// Bytes that were got from the kernel and acted on, modulo 2^32.
    pub received_bytes: u32,
    /// What is still to be sent, in order; `None`: more than the keep takes.
    pub frames: Option<&'a [FrameRef]>,
    /// Bytes of the first frame that are among `sent_bytes`.
    pub head_sent_bytes: u32,
    /// The connection has the publications before this position of the log.
    pub position: u64,
    /// The publisher owes it an answer.
    pub owes: bool,
    /// It was pinged, and has not been heard of since.
    pub pinged: bool,
    /// What else there is to know; `None`: what was last said of it holds.
    pub blob: Option<&'a [u8]>,
}

/// Where a blob is, as a slot says it: its place in units of [`BLOB_ALIGN`]; 0: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Blob {
    place: u32,
    bytes: u16,
}

/// The only writer of a keep.
#[derive(Debug)]
pub struct KeepWriter {
    region: Region,
    map: Map,
    arena: Ring,
    tail: u64,
    free_slots: Vec<u32>,
    slots: u32,
    blobs: Places,
    /// The segment's own descriptor, by which memory is reserved; none in private memory.
    memory: Option<OwnedFd>,
    slots_reserved: usize,
    blobs_reserved: usize,
    /// The last list, and where it is.
    list: (Vec<u32>, FrameRef),
    /// Where a list in the making is put together.
    scratch: Vec<u32>,
    bytes: Vec<u8>,
    _claim: Claim,
}

impl KeepWriter {
    /// `memory` is the segment itself: its pages are reserved as they are needed.
    ///
    /// # Errors
    /// [`SegmentError`] where the region holds no keep of this version, or one that was used.
    pub fn attach(region: Region, memory: Option<OwnedFd>) -> Result<Self, SegmentError> {
        let (map, arena) = Map::attach(&region)?;
        let claim = region.claim(ENDED_AT)?;
        let used = region.load(SLOTS_AT);
        if used != 0 {
            let (name, rule) = ("slots", "a keep has one worker in its life");
            return Err(SegmentError::Parameter {
                name,
                value: used,
                rule,
            });
        }
        // A lap is put between the beginning and the first record: position 0 names no frame.
        let tail = map.arena_bytes;
        region.store(INTENT_AT, tail);
        region.store(TAIL_AT, tail);
        // The pages are there since the segment was made: better mapped now than frame by frame.
        for page in (ARENA_AT..map.slots_at).step_by(PAGE) {
            region.store(page, 0);
        }
        Ok(Self {
            map,
            arena,
            tail,
            free_slots: Vec::new(),
            slots: 0,
            blobs: Places::new(map.blobs_at, map.end),
            memory,
            slots_reserved: map.slots_at,
            blobs_reserved: map.blobs_at,
            list: (Vec::new(), FrameRef::default()),
            scratch: Vec::new(),
            bytes: Vec::new(),
            region,
            _claim: claim,
        })
    }

    /// Bytes that may wait for one connection: frames that were put down for it must not overwrite
    /// each other.
    pub fn queue_bytes_max(&self) -> usize {
        self.map.arena_bytes as usize / 4
    }

    /// So much may be put down at a time, and so often slots must be looked after: with what is
    /// fresh, it is less than a lap.
    pub fn lot_bytes(&self) -> u64 {
        self.map.arena_bytes / 4
    }

    /// Whether a slot names frames.
    pub fn names(&self, slot: u32) -> bool {
        (self.region.load(self.map.slot_at(slot)) >> 8) as u8 != 0
    }

    /// A position of the arena; a frame put down now is fresh until half a lap later.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Whether what was put down at `position` of the arena will stay for half a lap at least.
    pub fn is_fresh_since(&self, position: u64) -> bool {
        self.tail - position <= self.map.arena_bytes / 2
    }

    /// Whether a frame can be named.
    #[inline]
    pub fn is_fresh(&self, frame: FrameRef) -> bool {
        frame.0 != 0 && self.is_fresh_since(frame.0)
    }

    /// Puts a frame down. `channel` is the worker's own number for where it was published.
    /// `None`: it is too long.
    pub fn put_frame(&mut self, channel: Option<u64>, bytes: &[u8]) -> Option<FrameRef> {
        let number = channel.unwrap_or(NO_CHANNEL).to_le_bytes();
        self.append(FRAME, &[&number, bytes], WORD + bytes.len())
    }

    fn append(&mut self, kind: u32, parts: &[&[u8]], bytes: usize) -> Option<FrameRef> {
        if bytes > self.arena.payload_bytes_max() {
            return None;
        }
        let record_bytes = Ring::record_bytes(bytes);
        let begin = self.arena.begin(self.tail, record_bytes);
        let end = begin + record_bytes as u64;
        self.region.store(INTENT_AT, end);
        // SYNC: pairs with keep/reader.rs::KeepView::record
        fence(Ordering::Release);
        self.arena.put(self.tail, begin, kind, parts, bytes);
        // SYNC: pairs with keep/reader.rs::KeepView::record
        self.region.word(TAIL_AT).store(end, Ordering::Release);
        self.tail = end;
        Some(FrameRef(begin))
    }

    /// A slot for a connection. `None`: there are no more, or no memory for one.
    pub fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free_slots.pop() {
            return Some(slot);
        }
        let slot = self.slots;
        if slot as usize >= self.map.slots_max {
            return None;
        }
        let end = self.map.slot_at(slot + 1);
        self.slots_reserved = self.reserved(self.slots_reserved, end, self.map.blobs_at)?;
        self.slots += 1;
        self.region.store(SLOTS_AT, self.slots.into());
        Some(slot)
    }

    /// Puts down how a connection stands. If not all of it can be, the slot says so.
    #[inline]
    pub fn write(&mut self, slot: u32, entry: &Entry<'_>) {
        let at = self.map.slot_at(slot);
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        let mut flags = flag(entry.owes, OWES) | flag(entry.pinged, PINGED);
        let (count, references) = match entry.frames.and_then(|frames| self.references(frames)) {
            Some(found) => found,
            None => {
                flags |= PARTIAL;
                (0, [0; DIRECT])
            }
        };
        let before = self.blob_of(at);
        let blob = match entry.blob {
            Some(bytes) => self.put_blob(bytes).unwrap_or_default(),
            None => before,
        };
        if blob.place == 0 {
            flags |= PARTIAL;
        }
        let words = self.region.words(at, SLOT_BYTES / WORD);
        let store = |at: usize, value| words[at / WORD].store(value, Ordering::Relaxed);
        store(0, WRITING.into());
        // SYNC: pairs with keep/reader.rs::KeepView::read. Nothing below is there before it.
        fence(Ordering::Release);
        store(SENT_AT, pair(entry.sent_bytes, entry.head_sent_bytes));
        store(POSITION_AT, entry.position);
        store(BLOB_AT, pair(blob.place, entry.received_bytes));
        store(FRAMES_AT, pair(references[0], references[1]));
        let state = u64::from(HELD | flags)
            | u64::from(count) << 8
            | u64::from(blob.bytes) << 16
            | u64::from(entry.descriptor) << 32;
        // SYNC: pairs with keep/reader.rs::KeepView::read. It says so only when all is there.
        words[0].store(state, Ordering::Release);
        if blob != before {
            self.give_blob(before);
        }
    }

    /// What a slot says of its blob; of one in use, it is whole, as nobody else writes it.
    fn blob_of(&self, at: usize) -> Blob {
        Blob {
            place: self.region.load(at + BLOB_AT) as u32,
            bytes: (self.region.load(at) >> 16) as u16,
        }
    }

    /// How a slot names frames: their number, and the references.
    #[inline]
    fn references(&mut self, frames: &[FrameRef]) -> Option<(u8, [u32; DIRECT])> {
        let mut direct = [0; DIRECT];
        if frames.len() <= DIRECT {
            for (place, frame) in direct.iter_mut().zip(frames) {
                *place = short(*frame);
            }
            return Some((frames.len() as u8, direct));
        }
        if frames.len() > FRAMES_MAX {
            return None;
        }
        let mut list = std::mem::take(&mut self.scratch);
        list.clear();
        list.extend(frames.iter().map(|frame| short(*frame)));
        if !(self.is_fresh(self.list.1) && self.list.0 == list) {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            bytes.extend(list.iter().flat_map(|each| each.to_le_bytes()));
            let place = self.append(LIST, &[&bytes], bytes.len());
            self.bytes = bytes;
            std::mem::swap(&mut self.list.0, &mut list);
            self.list.1 = place.unwrap_or_default();
        }
        self.scratch = list;
        direct[0] = short(self.list.1);
        self.is_fresh(self.list.1).then_some((LISTED, direct))
    }

    /// Puts a blob down where none is.
    fn put_blob(&mut self, bytes: &[u8]) -> Option<Blob> {
        let place = self.blobs.take(bytes.len())?;
        let wanted = place + bytes.len().next_multiple_of(BLOB_ALIGN);
        match self.reserved(self.blobs_reserved, wanted, self.map.end) {
            Some(reserved) => self.blobs_reserved = reserved,
            None => {
                self.blobs.give(place, bytes.len());
                return None;
            }
        }
        let words = self.region.words(place, bytes.len().div_ceil(WORD));
        let (chunks, rest) = bytes.as_chunks::<WORD>();
        for (word, chunk) in words.iter().zip(chunks) {
            word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            words[chunks.len()].store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
        Some(Blob {
            place: (place / BLOB_ALIGN) as u32,
            bytes: bytes.len() as u16,
        })
    }

    fn give_blob(&mut self, blob: Blob) {
        if blob.place != 0 {
            let place = blob.place as usize * BLOB_ALIGN;
            self.blobs.give(place, blob.bytes.into());
        }
    }

    /// The connection has ended, or another process has it.
    pub fn free(&mut self, slot: u32) {
        let at = self.map.slot_at(slot);
        self.set_state(slot, FREE);
        self.give_blob(self.blob_of(at));
        self.region.store(at + BLOB_AT, 0);
        self.free_slots.push(slot);
    }

    /// From now on the connection is another's, if that one learns of it.
    pub fn give(&mut self, slot: u32) {
        self.set_state(slot, GIVEN);
    }

    /// It has not learned of it: the connection is what it was.
    pub fn keep(&mut self, slot: u32) {
        self.set_state(slot, HELD);
    }

    fn set_state(&mut self, slot: u32, state: u8) {
        let word = self.region.word(self.map.slot_at(slot));
        let rest = word.load(Ordering::Relaxed) & !u64::from(STATE);
        // SYNC: pairs with keep/reader.rs::KeepView::read. Before whatever the writer does next.
        word.store(rest | u64::from(state), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Every connection has the publications before `position`, or will be sent them.
    pub fn settle(&mut self, position: u64) {
        // SYNC: pairs with keep/reader.rs::KeepView::settled. After all slots that say the same.
        self.region
            .word(SETTLED_AT)
            .store(position, Ordering::Release);
    }

    /// How many connections the receiver of the hand-off under way has acknowledged.
    pub fn set_given(&mut self, count: usize) {
        self.region.store(GIVEN_AT, count as u64);
    }

    /// How many sockets came in a hand-off and are not ours yet.
    pub fn set_received(&mut self, count: usize) {
        self.region.store(RECEIVED_AT, count as u64);
        fence(Ordering::SeqCst);
    }

    /// Nothing is to be kept any more: this worker ends in good order.
    pub fn end(&mut self) {
        self.region.store(ENDED_AT, 1);
    }

    /// Makes sure that there is memory up to `wanted`; returns how far there is.
    fn reserved(&self, reserved: usize, wanted: usize, end: usize) -> Option<usize> {
        if wanted <= reserved {
            return Some(reserved);
        }
        let upto = wanted.next_multiple_of(RESERVE_BYTES).min(end);
        if let Some(memory) = &self.memory {
            let (fd, from) = (memory.as_raw_fd(), reserved as libc::off_t);
            // Without this a full /dev/shm would be a SIGBUS at some later write (fallocate(2)).
            // SAFETY: fallocate(2) takes no pointers.
            let result = unsafe { libc::fallocate(fd, 0, from, (upto - reserved) as libc::off_t) };
            if result != 0 {
                return None;
            }
        }
        Some(upto)
    }
}

/// A word of two numbers.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// As a slot names it. The arena is shorter than what these 32 bits can tell apart.
fn short(frame: FrameRef) -> u32 {
    (frame.0 / ALIGN as u64) as u32
}
