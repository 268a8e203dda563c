//! Letting go of a connection with all that is known of it, and going on with one from a record.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::host;
use tidegate_ring::publication::PublicationView;
use tidegate_ring::uplink::RequestKind;

use super::clock::ticks;
use super::recovery::Bounds;
use super::uplink::Passage;
use super::{Sessions, forms, gauge};
use crate::client::{Client, Standing, Traits};
use crate::connection::{Connection, Dialect, Flags, Kept, Phase, Slot, Tcp, uuid_text};
use crate::handoff::record::{Identity, Position, Queued, Record, Speech, Timers};
use crate::hub::ChannelId;
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::centrifuge::ClientInfo;
use crate::protocol::close::{Close, Unsubscribed};
use crate::protocol::format::Format;
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
    /// The publisher owes it an answer, or the application.
    Later,
    /// It is only kept to be told that it was refused.
    Never,
}

impl Movable {
    #[inline]
    pub fn of(connection: &Connection) -> Self {
        let is_owed = connection.unanswered() > 0 || connection.flags.has(Flags::WAITING);
        match is_owed {
            _ if connection.flags.has(Flags::REFUSED) => Self::Never,
            true => Self::Later,
            false => Self::Now,
        }
    }
}

/// Publications in the form for one format, each with the client that must not get it; an error
/// where that format cannot say it.
type Lot = Rc<[(Option<[u8; 16]>, Result<Rc<Frame>, Close>)]>;

/// What subscribers of a channel have missed: read and encoded once for all who missed the same.
/// `None`: it is not there any more. Lives for one batch of connections.
#[derive(Default)]
pub struct CatchUp(HashMap<Missed, Option<Lot>>);

#[derive(PartialEq, Eq, Hash)]
struct Missed {
    key: ChannelKey,
    channel: ChannelId,
    format: Format,
    takes_delta: bool,
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
        // It stays in them, elsewhere.
        self.drop_channels(token);
        self.unlist(token);
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
        let identity = self.identity_of(token);
        let connection = self.connections.get_mut(token)?;
        let flags = connection.flags;
        let record = Record {
            phase: connection.phase,
            pinged: flags.has(Flags::PINGED),
            deaf: flags.has(Flags::DEAF),
            hang_up: flags.has(Flags::HANG_UP),
            turned_away: flags.has(Flags::TURNED_AWAY),
            native_pings: flags.has(Flags::NATIVE_PINGS),
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
                Dialect::Stream => Speech::Stream,
                Dialect::Tcp(tcp) => Speech::Tcp {
                    flow: tcp.flow.clone().into(),
                    pieces: tcp.reassembly.pieces().to_vec(),
                    wire: tcp.wire.clone(),
                },
            },
            format: connection.format,
            log_position: Some(self.reader.position()),
            identity,
        };
        Some((record, channels))
    }

    fn identity_of(&mut self, token: Token) -> Option<Identity> {
        let client = self.connections.get_mut(token)?.identity.as_ref()?;
        Some(Identity {
            user: client.user.to_string(),
            info: client.info.to_vec(),
            meta: client.meta.to_vec(),
            headers: client.headers.to_vec(),
            session: client.session,
            expiry: client.expiry,
            standings: client.standings.clone(),
        })
    }

    /// Tells the publisher that clients which were elsewhere are here from now on: before they are
    /// let go of there, so that they are in their channels at every instant.
    pub fn announce_arrivals<'a>(&mut self, records: impl Iterator<Item = &'a Record>) {
        for record in records.filter(|record| record.phase != Phase::Closing) {
            let Some(identity) = &record.identity else {
                continue;
            };
            let each = record.subscriptions.iter().zip(&identity.standings);
            for (position, standing) in each {
                if let Some(passage) = arrival(record, identity, &position.channel, standing) {
                    self.uplink.tell(passage);
                }
            }
        }
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
    pub fn adopt(&mut self, socket: OwnedFd, mut record: Record, catch_up: &mut CatchUp) -> Token {
        let is_open = record.phase == Phase::Open;
        let positions = std::mem::take(&mut record.subscriptions);
        let (queue, sent) = (std::mem::take(&mut record.queue), record.head_sent_bytes);
        // Not in this turn: a sign of life may wait in the socket, to be read in the next one.
        let due = self.now + from_milliseconds(record.timers.due_ms).max(1);
        let standings = record.identity.as_ref().map(|each| each.standings.clone());
        let mut standings = standings.unwrap_or_default().into_iter();
        let connection = self.revive(socket, record);
        let token = self.connections.insert(connection);
        self.wheel.schedule(token.index, due);
        let mut missed = Vec::new();
        let rejoined: Vec<Option<ChannelId>> = positions
            .iter()
            .map(|position| {
                let standing = standings.next().unwrap_or_else(Standing::anonymous);
                self.rejoin(token, position, standing, catch_up, &mut missed)
            })
            .collect();
        if is_open {
            self.list(token);
        }
        self.requeue(token, queue, sent as usize, &rejoined);
        self.changed(token.index);
        self.catch_up(token, missed);
        token
    }

    /// Puts what was on its way into the queue, and applies the limits of this process, which may
    /// be lower than those of the one before.
    fn requeue(
        &mut self,
        token: Token,
        queue: Vec<Queued>,
        sent: usize,
        rejoined: &[Option<ChannelId>],
    ) {
        let input_bytes_max = self.input_bytes_max();
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        for Queued {
            subscription,
            bytes,
        } in queue
        {
            let channel = subscription.and_then(|place| *rejoined.get(place as usize)?);
            connection.outbox.push(Rc::new(Frame {
                channel,
                bytes: bytes.into(),
                messages: 1,
                kept: Cell::default(),
            }));
        }
        connection.outbox.advance(sent);
        let input_bytes = connection.input.as_ref().map_or(0, |input| input.len());
        let queued_bytes = connection.queued_bytes();
        if queued_bytes <= self.settings.queue_soft_bytes {
            connection.soft_since = None;
        }
        self.metrics.add(gauge(connection), 1);
        self.queued_bytes += queued_bytes;
        if input_bytes > 0 {
            // Commands may be among it that only waited for an answer.
            self.resumed.push(token);
        }
        if input_bytes >= input_bytes_max {
            self.condemn(token, Close::MessageTooBig);
        }
        if queued_bytes > 0 {
            self.after_enqueue(token);
        }
    }

    /// Puts into the queue what a connection has missed of all its channels.
    fn catch_up(&mut self, token: Token, missed: Vec<(ChannelId, Option<Lot>)>) {
        let mut has_missed = false;
        for (id, lot) in missed {
            if self.is_open(token) {
                has_missed |= lot.as_ref().is_some_and(|lot| !lot.is_empty());
                self.catch_up_with(token, id, lot);
            }
        }
        let format = self.connections.get_mut(token).map(|each| each.format);
        if has_missed && format == Some(Format::UniSse) && self.is_open(token) {
            // An id without data is remembered, and is no event. Not before all of it is queued: a
            // client that came back with the id would miss the rest.
            let frame = self.with_positions(token, b"\n");
            self.enqueue(token, frame);
        }
    }

    /// Puts into the queue what a connection has missed of a channel, or draws the consequences if
    /// that cannot be had.
    fn catch_up_with(&mut self, token: Token, id: ChannelId, lot: Option<Lot>) {
        let Some(lot) = lot else {
            let end = Unsubscribed::InsufficientState;
            return self.end_subscription(token, id, end, Close::InsufficientState);
        };
        let client = self.connections.get_mut(token).map(|each| each.client);
        for (except, frame) in lot.iter() {
            let is_sender = except.is_some() && *except == client;
            match frame {
                Ok(frame) if !is_sender => {
                    self.metrics.add(Count::Deliveries, 1);
                    self.enqueue(token, Rc::clone(frame));
                }
                Ok(_) => {}
                Err(close) => return self.condemn(token, *close),
            }
            if let Some(place) = self.place_of(token, id)
                && let Some(connection) = self.connections.get_mut(token)
                && let Some(standing) = connection.standing_mut(place)
            {
                standing.traits.set(Traits::BASED, !is_sender);
            }
        }
    }

    fn is_open(&mut self, token: Token) -> bool {
        let connection = self.connections.get_mut(token);
        connection.is_some_and(|each| each.phase != Phase::Closing)
    }

    /// A connection as it was, but for its channels and its queue.
    fn revive(&self, socket: OwnedFd, record: Record) -> Connection {
        let dialect = match record.speech {
            Speech::Http => Dialect::Http,
            Speech::WebSocket(fragments) => Dialect::WebSocket(fragments.into()),
            Speech::Stream => Dialect::Stream,
            Speech::Tcp { flow, pieces, wire } => Dialect::Tcp(Box::new(Tcp {
                flow: flow.into(),
                reassembly: Reassembly::from(pieces),
                wire,
                publishes: 0,
            })),
        };
        let timers = record.timers;
        let ago = |ms| self.now.saturating_sub(from_milliseconds(ms));
        let mut flags = Flags::default();
        flags.set(Flags::PINGED, record.pinged);
        flags.set(Flags::DEAF, record.deaf);
        flags.set(Flags::HANG_UP, record.hang_up);
        flags.set(Flags::TURNED_AWAY, record.turned_away);
        flags.set(Flags::NATIVE_PINGS, record.native_pings);
        let mut kept = Kept::default();
        if self.keep.is_on() {
            let (sent_bytes, received_bytes) = sys::stream_position(socket.as_fd());
            kept.sent_bytes = sent_bytes as u32;
            kept.received_bytes = received_bytes as u32;
        }
        Connection {
            phase: record.phase,
            format: record.format,
            flags,
            probe_due: self.now + from_milliseconds(timers.probe_ms),
            probe_interval: from_milliseconds(timers.probe_interval_ms),
            silence_max: from_milliseconds(timers.silence_max_ms),
            soft_since: timers.soft_ms.map(ago),
            identity: record.identity.map(|identity| Box::new(identity.into())),
            client: record.client,
            connected_ms: record.connected_ms,
            input: (!record.input.is_empty()).then(|| Box::new(record.input)),
            kept,
            ..Connection::new(socket, dialect, ago(timers.heard_ms))
        }
    }

    /// Subscribes a connection anew where it stands. What it has missed meanwhile is appended to
    /// `missed`, or that it cannot be had.
    fn rejoin(
        &mut self,
        token: Token,
        position: &Position,
        standing: Standing,
        catch_up: &mut CatchUp,
        missed: &mut Vec<(ChannelId, Option<Lot>)>,
    ) -> Option<ChannelId> {
        let key = self.table.key(&position.channel);
        let top = self.top(key);
        let found = self.hub.find(&key).filter(|id| self.continues(*id, top));
        let id = found.unwrap_or_else(|| {
            self.hub
                .insert(key, &position.channel, top.epoch, top.offset)
        });
        let takes_delta = standing.traits.has(Traits::DELTA);
        self.join(token, id, top.offset, standing);
        let is_same = position.epoch == top.epoch;
        // A position at the beginning is one in whatever life of the channel came to be first.
        if !is_same && position.offset > 0 {
            self.metrics.add(Count::ResyncsLost, 1);
            missed.push((id, None));
        } else if position.offset != top.offset {
            let wanted = Missed {
                key,
                channel: id,
                format: self.connections.get_mut(token)?.format,
                takes_delta,
                since_offset: position.offset,
                top_offset: top.offset,
            };
            let lot = catch_up
                .0
                .entry(wanted)
                .or_insert_with_key(|wanted| self.missed_frames(wanted, top));
            missed.push((id, lot.clone()));
        }
        Some(id)
    }

    fn missed_frames(&mut self, wanted: &Missed, top: Top) -> Option<Lot> {
        let bounds = Bounds {
            publications_max: CATCH_UP_PUBLICATIONS_MAX,
            bytes_max: self.settings.queue_hard_bytes,
            looks_max: CATCH_UP_LOOKS_MAX,
        };
        let payloads = self.missed_within(wanted.key, wanted.since_offset, top, &bounds);
        let Some(payloads) = payloads else {
            self.metrics.add(Count::ResyncsLost, 1);
            return None;
        };
        let views = payloads
            .iter()
            .filter_map(|payload| PublicationView::parse(payload));
        let frame = |view: PublicationView<'_>| {
            let frame = match wanted.takes_delta {
                true => forms::whole_frame(wanted.format, &view),
                false => forms::frame(wanted.format, wanted.channel, &view),
            };
            (view.except, frame)
        };
        Some(views.map(frame).collect())
    }
}

/// Place of a channel among those of a connection, as [`Queued`] names it.
pub fn place_of(channels: &[ChannelId], wanted: Option<ChannelId>) -> Option<u32> {
    let place = channels.iter().position(|each| Some(*each) == wanted)?;
    Some(place as u32)
}

impl From<Identity> for Client {
    /// Its standings come with its subscriptions.
    fn from(identity: Identity) -> Self {
        Self {
            user: identity.user.into(),
            info: identity.info.into(),
            meta: identity.meta.into(),
            headers: identity.headers.into(),
            session: identity.session,
            expiry: identity.expiry,
            ..Self::default()
        }
    }
}

/// That a client is in a channel still, where its namespace wants to know.
fn arrival(
    record: &Record,
    identity: &Identity,
    channel: &str,
    standing: &Standing,
) -> Option<Passage> {
    let traits = standing.traits;
    traits
        .has(Traits::PRESENT | Traits::ANNOUNCED)
        .then(|| Passage {
            kind: RequestKind::Join,
            channel: channel.into(),
            client: record.client,
            info: ClientInfo {
                user: &identity.user,
                client: &uuid_text(&record.client),
                conn_info: &identity.info,
                chan_info: &standing.info,
            }
            .encode(),
            presence: traits.has(Traits::PRESENT),
            announce: traits.has(Traits::ANNOUNCED),
            quiet: true,
        })
}

fn milliseconds(ticks: Tick) -> u32 {
    u32::try_from(u128::from(ticks) * TICK.as_millis()).unwrap_or(u32::MAX)
}

fn from_milliseconds(milliseconds: u32) -> Tick {
    ticks(Duration::from_millis(milliseconds.into()))
}
