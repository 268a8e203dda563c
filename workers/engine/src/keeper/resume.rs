//! A connection as it is, from what its worker put down last and what the kernel has counted since.
//!
//! The worker puts a connection down before it sends what a turn has made for it. So its stream to
//! the client is what was sent by then, and of the frames that waited then, as many bytes more as
//! the kernel has taken. And what it had read by then, it has acted on; if the kernel has given
//! more to somebody, that is lost with the worker.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tidegate_ring::channels::{ChannelTable, Top};
use tidegate_ring::error::SegmentError;
use tidegate_ring::keep::{Damage, Kept, KeptFrame};
use tidegate_ring::log::LogView;
use tidegate_ring::publication::{NO_PREVIOUS, PublicationView, RECORD_KIND};
use tidegate_ring::region::Region;

use crate::connection::{Phase, Tcp};
use crate::handoff::record::{Position, Queued, Record, Speech, Timers};
use crate::hub::ChannelId;
use crate::keep::decode_blob;
use crate::outbox::{Frame, Outbox};
use crate::protocol::close::{Close, Farewell};
use crate::protocol::http::{Cors, HttpReject};
use crate::protocol::tcp::Reassembly;
use crate::sending::Buffers;
use crate::session::place_of;

/// Publications that are looked at to find how far a channel had come; what takes more is caught
/// up with from where the connection was put down last.
const STEPS_MAX: usize = 65_536;
/// How long a publication that is written and not committed is waited for: its publisher may have
/// lost the processor between the two.
const COMMIT_PATIENCE: Duration = Duration::from_millis(100);

/// How long a client that cannot be served on may take to hear of it.
const GOODBYE_MS: u32 = 5_000;

/// Why a connection cannot go on as if nothing had been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
    /// The worker died while it put the connection down.
    Torn,
    /// There was more to it than the keep takes.
    Partial,
    /// Frames that wait for it have been overwritten.
    Overwritten,
    /// The worker had read something of the client and not finished what it was to do about it.
    Input,
    /// The worker had sent something that it had not put down.
    Output,
    /// The publisher owes an answer, which nobody else can pass on.
    Answer,
    /// The receiver did not take it.
    Refused,
}

impl Loss {
    pub const ALL: [(Self, &str); 7] = [
        (Self::Torn, "torn"),
        (Self::Partial, "partial"),
        (Self::Overwritten, "overwritten"),
        (Self::Input, "input"),
        (Self::Output, "output"),
        (Self::Answer, "answer"),
        (Self::Refused, "refused"),
    ];
}

impl From<Damage> for Loss {
    fn from(damage: Damage) -> Self {
        match damage {
            Damage::Torn => Self::Torn,
            Damage::Partial => Self::Partial,
            Damage::Overwritten => Self::Overwritten,
        }
    }
}

/// What the kernel has counted: see [`crate::sys::stream_position`].
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub sent_bytes: u32,
    pub received_bytes: u32,
}

/// A connection that can be served on, if only to be told its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Resumed {
    pub record: Record,
    /// It is closed for this reason: the record is one of a connection that says goodbye.
    pub loss: Option<Loss>,
}

/// The record of a connection, as it was when its worker died, at `now_ns` of CLOCK_MONOTONIC.
///
/// # Errors
/// [`Loss`]: the client cannot even be told.
pub fn resume(
    kept: Kept,
    settled: u64,
    counted: Counted,
    places: &mut Places,
    now_ns: u64,
) -> Result<Resumed, Loss> {
    let (mut record, received_bytes, channels) = decode_blob(&kept.blob).ok_or(Loss::Torn)?;
    let is_closing = record.phase == Phase::Closing;
    let mut sent = counted.sent_bytes.wrapping_sub(kept.sent_bytes) as usize;
    let queued: usize = kept.frames.iter().map(|frame| frame.bytes.len()).sum();
    let is_tcp = matches!(record.speech, Speech::Tcp { .. });
    if is_closing && !is_tcp && sent == queued - kept.head_sent_bytes as usize + 1 {
        // A FIN counts as a byte: all has been said.
        sent -= 1;
    }
    let mut outbox = Outbox::default();
    for KeptFrame { channel, bytes } in kept.frames {
        outbox.push(match channel {
            Some(channel) => Frame::of_channel(ChannelId::from_bits(channel), bytes),
            None => Frame::new(bytes),
        });
    }
    outbox.advance(kept.head_sent_bytes as usize);
    let is_sound = match &mut record.speech {
        Speech::Tcp { flow, wire, .. } => {
            let mut tcp = Tcp {
                flow: flow.clone().into(),
                reassembly: Reassembly::default(),
                wire: std::mem::take(wire),
                publishes: 0,
            };
            let is_sound = advance_tcp(&mut tcp, &mut outbox, sent);
            (*flow, *wire) = (tcp.flow.into(), tcp.wire);
            is_sound
        }
        _ => advance(&mut outbox, sent),
    };
    if !is_sound {
        return Err(Loss::Output);
    }
    pass_time(&mut record, now_ns);
    let loss = if is_closing {
        None
    } else if received_bytes != counted.received_bytes {
        Some(Loss::Input)
    } else if kept.owes {
        Some(Loss::Answer)
    } else {
        None
    };
    if loss.is_some() {
        condemn(&mut record, &mut outbox);
    } else {
        let position = later(kept.position, settled);
        // What was put down at that very position says itself how far it had come.
        if record.log_position != Some(position) {
            for each in &mut record.subscriptions {
                places.advance(each, position);
            }
        }
        record.log_position = Some(position);
    }
    fill_queue(&mut record, &outbox, &channels);
    Ok(Resumed { record, loss })
}

/// Counts bytes of the queue as sent. False: there were never so many.
fn advance(outbox: &mut Outbox, sent: usize) -> bool {
    let begun = outbox.head().map_or(0, |(_, begun)| begun);
    let bytes: usize = outbox.frames().map(|frame| frame.bytes.len()).sum();
    if sent > bytes - begun {
        return false;
    }
    outbox.advance(sent);
    true
}

/// As [`advance`]: messages were put into frames as they were sent, and are so again, for what a
/// frame looks like follows from what came before.
fn advance_tcp(tcp: &mut Tcp, outbox: &mut Outbox, mut sent: usize) -> bool {
    let mut buffers = Buffers::default();
    loop {
        let gone = sent.min(tcp.wire.len());
        tcp.wire.drain(..gone);
        sent -= gone;
        if sent == 0 {
            return true;
        }
        tcp.fill(outbox, &mut buffers);
        if tcp.wire.is_empty() {
            return false;
        }
    }
}

/// Makes it a connection that says goodbye and is then closed.
fn condemn(record: &mut Record, outbox: &mut Outbox) {
    let farewell = Farewell::from(Close::Shutdown);
    record.phase = Phase::Closing;
    record.deaf = true;
    record.timers.due_ms = GOODBYE_MS;
    record.subscriptions.clear();
    record.identity = None;
    // Whoever says goodbye misses nothing.
    record.log_position = None;
    record.input.clear();
    match &mut record.speech {
        Speech::Http => {
            outbox.drop_unsent();
            outbox.push(Frame::new(HttpReject::Full.response(&Cors::default())));
        }
        Speech::WebSocket(fragments) => {
            *fragments = None;
            outbox.drop_unsent();
            outbox.push(Frame::new(record.format.goodbye(&farewell)));
        }
        Speech::Stream => {
            outbox.drop_unsent();
            outbox.push(Frame::new(record.format.goodbye(&farewell)));
        }
        Speech::Tcp { flow, pieces, wire } => {
            pieces.clear();
            outbox.clear();
            let mut tcp = Tcp {
                flow: flow.clone().into(),
                reassembly: Reassembly::default(),
                wire: std::mem::take(wire),
                publishes: 0,
            };
            tcp.say_goodbye(&farewell);
            (*flow, *wire) = (tcp.flow.into(), tcp.wire);
        }
    }
}

fn fill_queue(record: &mut Record, outbox: &Outbox, channels: &[ChannelId]) {
    let is_tcp = matches!(record.speech, Speech::Tcp { .. });
    let queued = |frame: &Rc<Frame>| Queued {
        subscription: place_of(channels, frame.channel)
            .filter(|place| is_tcp && (*place as usize) < record.subscriptions.len()),
        bytes: frame.bytes.to_vec(),
    };
    record.queue = outbox.frames().map(queued).collect();
    record.head_sent_bytes = outbox.head().map_or(0, |(_, sent)| sent as u32);
}

/// Times are as of the moment at which the connection was described.
fn pass_time(record: &mut Record, now_ns: u64) {
    let passed_ns = now_ns.saturating_sub(record.detached_ns);
    let passed_ms = u32::try_from(passed_ns / 1_000_000).unwrap_or(u32::MAX);
    let Timers {
        due_ms,
        probe_ms,
        heard_ms,
        soft_ms,
        ..
    } = &mut record.timers;
    *due_ms = due_ms.saturating_sub(passed_ms);
    *probe_ms = probe_ms.saturating_sub(passed_ms);
    *heard_ms = heard_ms.saturating_add(passed_ms);
    *soft_ms = soft_ms.map(|soft_ms| soft_ms.saturating_add(passed_ms));
    record.detached_ns = now_ns;
}

/// Positions only grow, and wrap at 2^64.
fn later(one: u64, other: u64) -> u64 {
    if is_before(one, other) { other } else { one }
}

fn is_before(one: u64, other: u64) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// How far channels had come at positions of the log.
pub struct Places {
    log: LogView,
    table: ChannelTable,
    /// By channel and position: epoch and offset. Most connections ask for the same.
    known: HashMap<(String, u64), Option<(u32, u64)>>,
}

impl Places {
    /// # Errors
    /// [`SegmentError`] where these are no log and channel table of this version.
    pub fn attach(log: &Region, channels: Region) -> Result<Self, SegmentError> {
        Ok(Self {
            log: LogView::attach(log)?,
            table: ChannelTable::attach(channels)?,
            known: HashMap::new(),
        })
    }

    /// Brings a subscription to where it had come: it has all publications before `position`.
    fn advance(&mut self, subscription: &mut Position, position: u64) {
        let asked = (subscription.channel.clone(), position);
        let found = match self.known.get(&asked) {
            Some(found) => *found,
            None => {
                let found = self.find(&subscription.channel, position);
                self.known.insert(asked, found);
                found
            }
        };
        let Some((epoch, offset)) = found else {
            // An epoch that is not the channel's, so that the client hears of a gap: to go on from
            // where it was would repeat what it has.
            subscription.epoch = subscription.epoch.wrapping_add(1);
            subscription.offset = subscription.offset.max(1);
            return;
        };
        if epoch == subscription.epoch {
            subscription.offset = subscription.offset.max(offset);
        } else if subscription.offset == 0 {
            // It was at the beginning of a channel that was never published to: of whatever life
            // came to be first.
            (subscription.epoch, subscription.offset) = (epoch, offset);
        }
    }

    /// Epoch, and offset of the last publication before `position`. `None`: nobody knows.
    fn find(&self, channel: &str, position: u64) -> Option<(u32, u64)> {
        let key = self.table.key(channel);
        let Some(Top {
            epoch,
            mut offset,
            last_position,
        }) = self.table.top(key)
        else {
            // Never published to, or forgotten since.
            return Some((self.table.epoch_now(), 0));
        };
        let mut at = last_position;
        for _ in 0..STEPS_MAX {
            if offset == 0 || is_before(at, position) {
                return Some((epoch, offset));
            }
            let payload = self.read(at)?;
            let publication = PublicationView::parse(&payload)?;
            if (publication.key, publication.epoch, publication.offset) != (key, epoch, offset) {
                return None;
            }
            offset -= 1;
            at = publication.previous;
            if at == NO_PREVIOUS {
                return Some((epoch, offset));
            }
        }
        None
    }

    fn read(&self, position: u64) -> Option<Vec<u8>> {
        let mut payload = Vec::new();
        let deadline = std::time::Instant::now() + COMMIT_PATIENCE;
        loop {
            let is_committed = is_before(position, self.log.tail());
            match self.log.read_at(position, &mut payload) {
                Some(RECORD_KIND) => return Some(payload),
                Some(_) => return None,
                None if is_committed || std::time::Instant::now() > deadline => return None,
                None => std::thread::yield_now(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
