//! Letting go of a connection with all that is known of it, and going on with one from a record.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::host;
use tidegate_ring::publication::PublicationView;

use super::clock::ticks;
use super::subscribe::Bounds;
use super::{Sessions, gauge, tcp, websocket};
use crate::connection::{Connection, Dialect, Flags, Kept, Phase, Slot, Tcp};
use crate::handoff::record::{Position, Queued, Record, Speech, Timers};
use crate::hub::ChannelId;
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::close::Close;
use crate::protocol::tcp::Reassembly;
use crate::slab::Token;
use crate::sys;
use crate::wheel::{TICK, Tick};

/// Publications that a connection may have to catch up with after a move, as far as its queue's
/// bound lets them in; this one is for the time that reading them takes.
const CATCH_UP_PUBLICATIONS_MAX: usize = 65_536;
/// How often a publication is looked for that is written but not committed: its publisher may have
/// lost the processor between the two, which lasts for milliseconds. Some 100 ms.
const CATCH_UP_LOOKS_MAX: u32 = 100_000;

/// Whether a connection can be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Movable {
    Now,
    /// The publisher owes it an answer.
    Later,
    /// It is only kept to be told that it was refused.
    Never,
}

impl Movable {
    #[inline]
    pub fn of(connection: &Connection) -> Self {
        match &connection.dialect {
            _ if connection.flags.has(Flags::REFUSED) => Self::Never,
            Dialect::Tcp(tcp) if tcp.publishes > 0 => Self::Later,
            _ => Self::Now,
        }
    }
}

/// Frames that subscribers of a channel have missed: read and encoded once for all who missed the
/// same. Lives for one batch of connections.
#[derive(Default)]
pub struct CatchUp(HashMap<Missed, Result<Vec<Rc<Frame>>, Close>>);

#[derive(PartialEq, Eq, Hash)]
struct Missed {
    key: ChannelKey,
    channel: ChannelId,
    is_tcp: bool,
    since_offset: u64,
    top_offset: u64,
}

impl Sessions {
    /// How many connections more may be served.
    pub fn room(&self) -> usize {
        self.settings.connections_max.saturating_sub(self.served())
    }

    /// `None`: the connection is no more.
    pub fn movable(&mut self, token: Token) -> Option<Movable> {
        self.connections
            .get_mut(token)
            .map(|each| Movable::of(each))
    }

    /// Lets go of a connection: from now on it is what the record says. Its publications of this
    /// turn must have been put into its queue. Its slot in the keep is the caller's.
    pub fn detach(&mut self, token: Token) -> Option<(OwnedFd, Record, Option<Slot>)> {
        let (mut record, channels) = self.describe(token)?;
        self.leave_channels(token);
        self.wheel.cancel(token.index);
        let connection = self.connections.remove(token)?;
        self.metrics.subtract(gauge(&connection), 1);
        self.queued_bytes -= connection.queued_bytes();
        let queued = |frame: &Rc<Frame>| Queued {
            subscription: place_of(&channels, frame.channel),
            bytes: frame.bytes.to_vec(),
        };
        record.queue = connection.outbox.frames().map(queued).collect();
        record.head_sent_bytes = connection.outbox.head().map_or(0, |(_, sent)| sent as u32);
        Some((connection.socket, record, connection.kept.slot))
    }

    /// A connection without its queue, and the channels that the frames in its queue may name.
    pub fn describe(&mut self, token: Token) -> Option<(Record, Vec<ChannelId>)> {
        let timers = self.timers_of(token)?;
        let (channels, subscriptions) = self.positions(token)?;
        let connection = self.connections.get_mut(token)?;
        let flags = connection.flags;
        let record = Record {
            phase: connection.phase,
            pinged: flags.has(Flags::PINGED),
            deaf: flags.has(Flags::DEAF),
            hang_up: flags.has(Flags::HANG_UP),
            client: connection.client,
            connected_ms: connection.connected_ms,
            detached_ns: host::monotonic_ns(),
            timers,
            subscriptions,
            queue: Vec::new(),
            head_sent_bytes: 0,
            input: connection.input.as_deref().cloned().unwrap_or_default(),
            speech: match &connection.dialect {
                Dialect::Http => Speech::Http,
                Dialect::WebSocket(inbound) => Speech::WebSocket(inbound.fragments().cloned()),
                Dialect::Tcp(tcp) => Speech::Tcp {
                    flow: tcp.flow.clone().into(),
                    pieces: tcp.reassembly.pieces().to_vec(),
                    wire: tcp.wire.clone(),
                },
            },
        };
        Some((record, channels))
    }

    fn timers_of(&mut self, token: Token) -> Option<Timers> {
        let now = self.now;
        let due = self.wheel.due(token.index).unwrap_or(now);
        let connection = self.connections.get_mut(token)?;
        Some(Timers {
            due_ms: milliseconds(due.saturating_sub(now)),
            probe_ms: milliseconds(connection.probe_due.saturating_sub(now)),
            probe_interval_ms: milliseconds(connection.probe_interval),
            silence_max_ms: milliseconds(connection.silence_max),
            heard_ms: milliseconds(now - connection.heard),
            soft_ms: connection.soft_since.map(|since| milliseconds(now - since)),
        })
    }

    /// The channels of a connection, and how far it has come in each.
    fn positions(&mut self, token: Token) -> Option<(Vec<ChannelId>, Vec<Position>)> {
        let held = self.connections.get_mut(token)?.subscriptions.as_slice();
        let position = |id: ChannelId, subscriber: u32| {
            let channel = self.hub.channel(id)?;
            let after_offset = channel.subscribers.get(subscriber as usize)?.after_offset;
            Some(Position {
                channel: channel.name.to_string(),
                epoch: channel.epoch,
                offset: channel.offset.max(after_offset),
            })
        };
        let each = held
            .iter()
            .map(|each| Some((each.channel, position(each.channel, each.subscriber)?)));
        each.collect::<Option<Vec<_>>>()
            .map(|each| each.into_iter().unzip())
    }

    /// Goes on with a connection from where its record stops.
    pub fn adopt(&mut self, socket: OwnedFd, record: Record, catch_up: &mut CatchUp) -> Token {
        let is_closing = record.phase == Phase::Closing;
        let (positions, queue, sent) = (record.subscriptions, record.queue, record.head_sent_bytes);
        // Not in this turn: a sign of life may wait in the socket, to be read in the next one.
        let due = self.now + from_milliseconds(record.timers.due_ms).max(1);
        let connection = self.revive(socket, record.speech, &record.timers, record.pinged);
        let token = self.connections.insert(Connection {
            phase: record.phase,
            client: record.client,
            connected_ms: record.connected_ms,
            input: (!record.input.is_empty()).then(|| Box::new(record.input)),
            ..connection
        });
        self.wheel.schedule(token.index, due);
        let mut missed = Vec::new();
        let rejoined: Vec<Option<ChannelId>> = positions
            .iter()
            .map(|position| self.rejoin(token, position, catch_up, &mut missed))
            .collect();
        if let Some(connection) = self.connections.get_mut(token) {
            if self.keep.is_on() {
                let (sent_bytes, received_bytes) = sys::stream_position(connection.socket.as_fd());
                connection.kept = Kept {
                    slot: None,
                    sent_bytes: sent_bytes as u32,
                    received_bytes: received_bytes as u32,
                };
            }
            connection.flags.set(Flags::DEAF, record.deaf);
            connection.flags.set(Flags::HANG_UP, record.hang_up);
            for Queued {
                subscription,
                bytes,
            } in queue
            {
                let channel = subscription.and_then(|place| *rejoined.get(place as usize)?);
                connection.outbox.push(Rc::new(Frame {
                    channel,
                    bytes: bytes.into(),
                    kept: Cell::default(),
                }));
            }
            connection.outbox.advance(sent as usize);
            let input_bytes = connection.input.as_ref().map_or(0, |input| input.len());
            let queued_bytes = connection.queued_bytes();
            self.metrics.add(gauge(connection), 1);
            self.queued_bytes += queued_bytes;
            // The limits of this process may be lower than those of the one before.
            if input_bytes >= self.input_bytes_max() {
                self.condemn(token, Close::MessageTooBig);
            }
            if queued_bytes > 0 {
                self.after_enqueue(token);
            }
        }
        self.changed(token.index);
        for frame in missed {
            match frame {
                Ok(frame) if !is_closing && self.is_open(token) => {
                    self.metrics.add(Count::Deliveries, 1);
                    self.enqueue(token, frame);
                }
                Ok(_) => {}
                Err(close) => self.condemn(token, close),
            }
        }
        token
    }

    fn is_open(&mut self, token: Token) -> bool {
        let connection = self.connections.get_mut(token);
        connection.is_some_and(|each| each.phase != Phase::Closing)
    }

    /// A connection with the times and the parser that it had.
    fn revive(&self, socket: OwnedFd, speech: Speech, timers: &Timers, pinged: bool) -> Connection {
        let dialect = match speech {
            Speech::Http => Dialect::Http,
            Speech::WebSocket(fragments) => Dialect::WebSocket(fragments.into()),
            Speech::Tcp { flow, pieces, wire } => Dialect::Tcp(Box::new(Tcp {
                flow: flow.into(),
                reassembly: Reassembly::from(pieces),
                wire,
                publishes: 0,
            })),
        };
        let ago = |ms| self.now.saturating_sub(from_milliseconds(ms));
        let mut connection = Connection::new(socket, dialect, ago(timers.heard_ms));
        connection.probe_due = self.now + from_milliseconds(timers.probe_ms);
        connection.probe_interval = from_milliseconds(timers.probe_interval_ms);
        connection.silence_max = from_milliseconds(timers.silence_max_ms);
        connection.flags.set(Flags::PINGED, pinged);
        connection.soft_since = timers.soft_ms.map(ago);
        connection
    }

    /// Subscribes a connection anew where it stands. What it has missed meanwhile is appended to
    /// `missed`, or that it cannot be had.
    fn rejoin(
        &mut self,
        token: Token,
        position: &Position,
        catch_up: &mut CatchUp,
        missed: &mut Vec<Result<Rc<Frame>, Close>>,
    ) -> Option<ChannelId> {
        let key = self.table.key(&position.channel);
        let top = self.top(key);
        let found = self.hub.find(&key).filter(|id| self.continues(*id, top));
        let id = found.unwrap_or_else(|| {
            self.hub
                .insert(key, &position.channel, top.epoch, top.offset)
        });
        self.join(token, id, top.offset);
        let is_same = position.epoch == top.epoch;
        // A position at the beginning is one in whatever life of the channel came to be first.
        if !is_same && position.offset > 0 {
            self.metrics.add(Count::ResyncsLost, 1);
            missed.push(Err(Close::InsufficientState));
        } else if position.offset != top.offset {
            let is_tcp = self.connections.get_mut(token)?.is_tcp();
            let wanted = Missed {
                key,
                channel: id,
                is_tcp,
                since_offset: position.offset,
                top_offset: top.offset,
            };
            let frames = catch_up
                .0
                .entry(wanted)
                .or_insert_with_key(|wanted| self.missed_frames(wanted, top));
            match frames {
                Ok(frames) => missed.extend(frames.iter().cloned().map(Ok)),
                Err(close) => missed.push(Err(*close)),
            }
        }
        Some(id)
    }

    fn missed_frames(&mut self, wanted: &Missed, top: Top) -> Result<Vec<Rc<Frame>>, Close> {
        let bounds = Bounds {
            publications_max: CATCH_UP_PUBLICATIONS_MAX,
            bytes_max: self.settings.queue_hard_bytes,
            looks_max: CATCH_UP_LOOKS_MAX,
        };
        let payloads = self
            .missed_within(wanted.channel, wanted.since_offset, top, &bounds)
            .ok_or_else(|| {
                self.metrics.add(Count::ResyncsLost, 1);
                Close::InsufficientState
            })?;
        let views = payloads
            .iter()
            .filter_map(|payload| PublicationView::parse(payload));
        views
            .map(|view| match wanted.is_tcp {
                true => Ok(tcp::publication_frame(wanted.channel, &view)),
                false => websocket::publication_frame(&view),
            })
            .collect()
    }
}

/// Place of a channel among those of a connection, as [`Queued`] names it.
pub fn place_of(channels: &[ChannelId], wanted: Option<ChannelId>) -> Option<u32> {
    let place = channels.iter().position(|each| Some(*each) == wanted)?;
    Some(place as u32)
}

fn milliseconds(ticks: Tick) -> u32 {
    u32::try_from(u128::from(ticks) * TICK.as_millis()).unwrap_or(u32::MAX)
}

fn from_milliseconds(milliseconds: u32) -> Tick {
    ticks(Duration::from_millis(milliseconds.into()))
}
