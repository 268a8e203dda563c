//! What this worker puts down of its connections, so that they go on if it dies: see
//! `tidegate_ring::keep` for where, [`crate::keeper`] for who takes it up, and
//! `session/keeping.rs` for when.

mod packing;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use tidegate_ring::keep::{Entry, FrameRef, KeepWriter};

use crate::connection::{Connection, Flags, Slot};
use crate::handoff::record::{self, Record};
use crate::hub::ChannelId;
use crate::outbox::{Frame, Outbox};
use crate::session::Movable;
use crate::slab::Token;

/// The keep, and what it is behind with. Without a writer nothing is put down.
#[derive(Default)]
pub struct Keep {
    writer: Option<KeepWriter>,
    /// Places of connections that changed since they were put down, each once.
    pub behind: Vec<u32>,
    /// Connections whose frames wait for their sockets, and since which position of the arena.
    waiting: VecDeque<(u64, Token)>,
    /// Position of the arena at the last sweep through all slots.
    swept: u64,
    /// Sockets that came in hand-offs and are not acknowledged.
    received: usize,
    /// There are connections that nobody serves, and that are ours to keep.
    parked: bool,
    frames: Vec<FrameRef>,
    /// The last description, and what it was packed from.
    blob: Vec<u8>,
    unpacked: Vec<u8>,
}

impl Keep {
    pub fn new(writer: KeepWriter) -> Self {
        Self {
            swept: writer.tail(),
            writer: Some(writer),
            ..Self::default()
        }
    }

    pub fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    /// Encodes all that is to be known of a connection beside its queue.
    pub fn describe(&mut self, record: &Record, channels: &[ChannelId]) {
        self.unpacked.clear();
        encode_blob(record, channels, &mut self.unpacked);
        self.blob.clear();
        packing::pack(&self.unpacked, &mut self.blob);
    }

    #[cfg(test)]
    pub fn described(&self) -> &[u8] {
        &self.blob
    }

    /// Puts a connection down; with `changed`, also what was described last.
    #[inline]
    pub fn put(&mut self, connection: &mut Connection, position: u64, changed: bool) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        let Some(slot) = connection
            .kept
            .slot
            .or_else(|| writer.take_slot().map(Slot::new))
        else {
            return;
        };
        connection.kept.slot = Some(slot);
        let all = collect(writer, &connection.outbox, &mut self.frames);
        writer.write(
            slot.number(),
            &Entry {
                descriptor: connection.socket.as_raw_fd() as u32,
                sent_bytes: connection.kept.sent_bytes,
                received_bytes: connection.kept.received_bytes,
                frames: all.then_some(self.frames.as_slice()),
                head_sent_bytes: connection.outbox.head().map_or(0, |(_, sent)| sent as u32),
                position,
                owes: Movable::of(connection) == Movable::Later,
                pinged: connection.flags.has(Flags::PINGED),
                blob: changed.then_some(self.blob.as_slice()),
            },
        );
    }

    /// All connections have what the log holds before `position`, but for those that are parked.
    pub fn settle(&mut self, position: u64) {
        if let Some(writer) = &mut self.writer
            && !self.parked
        {
            writer.settle(position);
        }
    }

    /// Whether there are connections that were let go of and are not given yet: what the log brings
    /// meanwhile they will have to be sent by whoever serves them next.
    pub fn park(&mut self, parked: bool) {
        self.parked = parked;
    }

    /// A connection's frames wait for its socket. They were put down with the others of a lot.
    pub fn waits(&mut self, token: Token) {
        if let Some(writer) = &self.writer {
            self.waiting
                .push_back((writer.tail() - writer.lot_bytes(), token));
        }
    }

    /// Where a lot begins.
    pub fn tail(&self) -> u64 {
        self.writer.as_ref().map_or(0, KeepWriter::tail)
    }

    /// Whether so much was put down since `tail` that what a lot has put down is to be sent first.
    pub fn is_lot_full(&self, tail: u64) -> bool {
        let lot = |writer: &KeepWriter| writer.tail() - tail >= writer.lot_bytes();
        self.writer.as_ref().is_some_and(lot)
    }

    /// Whether it is time to sweep through all slots, lest they name frames that are overwritten.
    pub fn is_sweep_due(&self) -> bool {
        self.is_lot_full(self.swept)
    }

    /// As [`Keep::is_sweep_due`]; the next is due a good while after this.
    pub fn begins_sweep(&mut self) -> bool {
        let is_due = self.is_sweep_due();
        if is_due {
            self.swept = self.tail();
        }
        is_due
    }

    /// Whether a slot names frames, which may have been sent since.
    pub fn names_frames(&self, slot: Option<Slot>) -> bool {
        let names = |slot: Slot| (self.writer.as_ref()).is_some_and(|it| it.names(slot.number()));
        slot.is_some_and(names)
    }

    /// The next connection whose frames are soon overwritten, if they wait still.
    pub fn next_fading(&mut self) -> Option<Token> {
        let writer = self.writer.as_ref()?;
        let (since, _) = self.waiting.front()?;
        if writer.is_fresh_since(*since) {
            return None;
        }
        self.waiting.pop_front().map(|(_, token)| token)
    }

    /// The connection has ended: before its descriptor is closed, and means another.
    pub fn free(&mut self, slot: Option<Slot>) {
        if let (Some(writer), Some(slot)) = (&mut self.writer, slot) {
            writer.free(slot.number());
        }
    }

    /// These connections are another's from now on, if it learns of it.
    pub fn give(&mut self, slots: impl Iterator<Item = Slot>) {
        if let Some(writer) = &mut self.writer {
            slots.for_each(|slot| writer.give(slot.number()));
        }
    }

    /// It has not learned of it.
    pub fn keep(&mut self, slots: impl Iterator<Item = Slot>) {
        if let Some(writer) = &mut self.writer {
            slots.for_each(|slot| writer.keep(slot.number()));
        }
    }

    /// How many connections the receiver of a hand-off has acknowledged.
    pub fn set_given(&mut self, count: usize) {
        if let Some(writer) = &mut self.writer {
            writer.set_given(count);
        }
    }

    /// So many sockets more, or less, have come in a hand-off and are not acknowledged.
    pub fn change_received(&mut self, by: isize) {
        self.received = self.received.saturating_add_signed(by);
        if let Some(writer) = &mut self.writer {
            writer.set_received(self.received);
        }
    }

    /// This worker ends in good order.
    pub fn end(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.end();
        }
    }
}

/// Names the frames of a queue, and puts those down that are not in the arena, or not for much
/// longer. False: they are more than it takes.
#[inline]
fn collect(writer: &mut KeepWriter, outbox: &Outbox, names: &mut Vec<FrameRef>) -> bool {
    names.clear();
    if outbox.queued_bytes() > writer.queue_bytes_max() {
        return false;
    }
    for frame in outbox.frames() {
        match name(writer, frame) {
            Some(name) => names.push(name),
            None => return false,
        }
    }
    true
}

#[inline]
fn name(writer: &mut KeepWriter, frame: &Rc<Frame>) -> Option<FrameRef> {
    if !writer.is_fresh(frame.kept.get()) {
        frame
            .kept
            .set(writer.put_frame(frame.channel.map(ChannelId::bits), &frame.bytes)?);
    }
    Some(frame.kept.get())
}

/// What a blob of the keep is packed from: the record, and for each of its subscriptions the
/// channel number u64 that frames of the binary protocol name it by.
fn encode_blob(record: &Record, channels: &[ChannelId], out: &mut Vec<u8>) {
    record::encode(record, out);
    if matches!(record.speech, record::Speech::Tcp { .. }) {
        out.extend(channels.iter().flat_map(|id| id.bits().to_le_bytes()));
    }
}

/// What [`Keep::describe`] encoded. `None`: it is no such blob.
pub fn decode_blob(blob: &[u8]) -> Option<(Record, Vec<ChannelId>)> {
    let blob = packing::unpack(blob)?;
    let (record, rest) = record::decode(&blob).ok()?;
    let count = match record.speech {
        record::Speech::Tcp { .. } => record.subscriptions.len(),
        _ => 0,
    };
    // Behind them are the zeros of the last word.
    let (channels, _) = rest.as_chunks::<8>();
    let channels = channels.get(..count)?.iter();
    let number = |each: &[u8; 8]| ChannelId::from_bits(u64::from_le_bytes(*each));
    Some((record, channels.map(number).collect()))
}
