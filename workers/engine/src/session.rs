//! What becomes of a client: from accept to a counted end, whatever dialect it speaks.
//!
//! [`Sessions`] joins the parts: bytes from the reactor go through the parsers of `protocol`, and
//! what they say is done to the hub, the queues and the publisher's uplink.

mod asking;
mod clock;
mod commands;
mod connect;
mod delivery;
mod expiry;
mod fault;
mod forms;
mod forwarding;
mod http;
mod keeping;
mod moving;
mod notices;
mod orders;
mod particular;
mod permission;
mod publish;
mod query;
mod queues;
mod recovery;
mod replay;
mod subscribe;
mod subscriptions;
mod tcp;
mod uplink;
mod websocket;
mod welcome;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use tidegate_ring::channels::ChannelTable;
use tidegate_ring::entry::topic_of_session;
use tidegate_ring::history::HistoryStore;
use tidegate_ring::host;
use tidegate_ring::log::{Interest, LogReader};
use tidegate_ring::presence::PresenceTable;

use crate::asks::Asks;
use crate::auth::{TokenSettingsError, Verifier};
use crate::connection::{Connection, Dialect, Flags, Phase};
use crate::directory::Directory;
use crate::hub::Hub;
use crate::keep::Keep;
use crate::metrics::{Count, Metrics};
use crate::outbox::Frame;
use crate::protocol::close::{Close, Farewell};
use crate::protocol::format::{self, FORMATS, Format};
use crate::protocol::http::{Cors, HttpReject, Refused};
use crate::protocol::{deflate, tcp as wire, websocket as frames};
use crate::random::Pool;
use crate::sending::{Buffers, Sender};
use crate::settings::Settings;
use crate::slab::{Slab, Token};
use crate::wheel::{Tick, Wheel};

use asking::Questions;
use delivery::Deliveries;
pub use moving::{CatchUp, Movable, place_of};
use notices::Notices;
use permission::Names;
pub use uplink::Uplink;

/// Connections over `connections_max` that are kept at a time, only to be told so; the others are
/// closed without a word.
pub const REFUSALS_AT_A_TIME_MAX: usize = 64;

/// How much of an unfinished HTTP request, frame or message may be kept of one connection beside
/// the message itself: the longest header of any dialect.
const INPUT_HEADER_BYTES: usize = frames::HEADER_BYTES_MAX;

/// Which listener a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    Tcp,
}

/// What a session reads of the memory that all processes share.
pub struct Memory {
    pub reader: LogReader,
    pub interest: Interest,
    pub table: ChannelTable,
    pub history: HistoryStore,
    pub presence: PresenceTable,
}

/// Everything about clients, without the descriptors that the reactor waits on.
pub struct Sessions {
    pub settings: Settings,
    pub metrics: Metrics,
    pub connections: Slab<Connection>,
    pub reader: LogReader,
    pub uplink: Uplink,
    pub keep: Keep,
    /// What the application is asked; off until somebody is there to answer.
    pub asks: Asks,
    /// What to do with the answers.
    questions: Questions,
    verifier: Verifier,
    names: Names,
    notices: Notices,
    /// Requests of the emulation endpoint that the publisher has not taken yet.
    emulations: HashMap<Token, Cors>,
    directory: Directory,
    /// Connections whose input waited, and may be read from again.
    resumed: Vec<Token>,
    pub hub: Hub,
    wheel: Wheel,
    table: ChannelTable,
    history: HistoryStore,
    presence: PresenceTable,
    /// Places of connections that have something to send, each once.
    to_flush: VecDeque<u32>,
    deliveries: Deliveries,
    sender: Sender,
    buffers: Buffers,
    /// By the number of a [`Format`].
    pings: [Rc<Frame>; FORMATS],
    refused: usize,
    queued_bytes: usize,
    random: u64,
    secrets: Pool,
    now: Tick,
    started_ns: u64,
}

impl Sessions {
    /// # Errors
    /// A key of `settings.tokens` is none.
    pub fn new(
        settings: Settings,
        metrics: Metrics,
        memory: Memory,
        uplink: Uplink,
        sender: Sender,
    ) -> Result<Self, TokenSettingsError> {
        let entries_max = settings.connections_max + REFUSALS_AT_A_TIME_MAX;
        deflate::set_bytes_min(settings.websocket_compression_bytes_min);
        Ok(Self {
            verifier: Verifier::new(&settings)?,
            connections: Slab::new(entries_max),
            wheel: Wheel::new(entries_max),
            hub: Hub::new(memory.interest),
            keep: Keep::default(),
            reader: memory.reader,
            uplink,
            asks: Asks::off(),
            questions: Questions::default(),
            names: Names::new(&settings),
            notices: Notices::default(),
            emulations: HashMap::new(),
            directory: Directory::default(),
            resumed: Vec::new(),
            table: memory.table,
            history: memory.history,
            presence: memory.presence,
            to_flush: VecDeque::new(),
            deliveries: Deliveries::default(),
            sender,
            buffers: Buffers::default(),
            pings: format::ALL.map(ping),
            refused: 0,
            queued_bytes: 0,
            random: host::random().unwrap_or(1) | 1,
            secrets: Pool::default(),
            now: clock::start(),
            started_ns: host::monotonic_ns(),
            settings,
            metrics,
        })
    }

    /// Connections that are served, or on their way to it.
    pub fn served(&self) -> usize {
        self.connections.len() - self.refused
    }

    /// Whether there is something to send that no event of a socket will remind us of.
    pub fn has_to_flush(&self) -> bool {
        !self.to_flush.is_empty()
    }

    /// A number for jitter; not for secrets (xorshift64, Marsaglia 2003).
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Takes a connection into the house. `None`: it was refused without a word.
    pub fn accepted(&mut self, socket: OwnedFd, transport: Transport) -> Option<Token> {
        let (dialect, count, gauge) = match transport {
            Transport::Http => (
                Dialect::Http,
                Count::AcceptsHttp,
                Count::ConnectionsWebSocket,
            ),
            Transport::Tcp => (Dialect::tcp(), Count::AcceptsTcp, Count::ConnectionsTcp),
        };
        self.metrics.add(count, 1);
        let is_full = self.served() >= self.settings.connections_max;
        if is_full {
            self.metrics.add(Count::RefusedFull, 1);
            if self.refused >= REFUSALS_AT_A_TIME_MAX {
                self.count_refusal(transport);
                return None;
            }
        }
        let token = self
            .connections
            .insert(Connection::new(socket, dialect, self.now));
        self.metrics.add(gauge, 1);
        self.changed(token.index);
        self.schedule(token.index, self.settings.handshake_timeout);
        if is_full {
            self.refused += 1;
            self.connections
                .get_mut(token)?
                .flags
                .set(Flags::REFUSED, true);
            match transport {
                Transport::Http => self.reject(token, HttpReject::Full),
                Transport::Tcp => self.condemn(token, Close::ConnectionLimit),
            }
        }
        Some(token)
    }

    fn count_refusal(&mut self, transport: Transport) {
        match transport {
            Transport::Http => self.metrics.reject(HttpReject::Full),
            Transport::Tcp => self.metrics.close(Close::ConnectionLimit),
        }
    }

    /// Takes bytes from a client; returns how many are done with. The rest is the beginning of
    /// something whose end has not come.
    pub fn received(&mut self, token: Token, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some(connection) = self.connections.get_mut(token) else {
                return bytes.len();
            };
            if connection.flags.has(Flags::DEAF) {
                return bytes.len();
            }
            if connection.flags.has(Flags::WAITING) {
                break;
            }
            let rest = &mut bytes[done..];
            let consumed = match connection.dialect {
                Dialect::Http => self.http_received(token, rest),
                Dialect::WebSocket(_) => self.websocket_received(token, rest),
                // Who listens has nothing more to say here.
                Dialect::Stream => rest.len(),
                Dialect::Tcp(_) => self.tcp_received(token, rest),
            };
            if consumed == 0 {
                break;
            }
            done += consumed;
        }
        self.tcp_acknowledge(token);
        done
    }

    /// Longest beginning that is kept of a connection's input.
    pub fn input_bytes_max(&self) -> usize {
        let message = self.settings.message_bytes_max;
        let in_frame = message + INPUT_HEADER_BYTES;
        let in_body = message + self.settings.header_bytes_max;
        in_frame.max(in_body).max(wire::frame::FRAME_BYTES_MAX)
    }

    /// The peer has gone, or said that it sends no more.
    pub fn hung_up(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Closing {
            // A request that was answered, or that became a stream elsewhere, ends like this.
            self.metrics.close(Close::ConnectionClosed);
            self.part(token, &Close::ConnectionClosed.into());
        }
        self.forget(token);
    }

    /// Ends a connection with a reason: counted here, once; said to the client in its dialect;
    /// nothing else is sent any more.
    pub fn condemn(&mut self, token: Token, farewell: impl Into<Farewell>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase == Phase::Closing {
            return;
        }
        if matches!(connection.dialect, Dialect::Http) {
            return self.reject(token, HttpReject::Full);
        }
        let farewell = farewell.into();
        self.metrics.close(farewell.close);
        self.part(token, &farewell);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Closing;
        let queued = connection.queued_bytes();
        let dropped = match &mut connection.dialect {
            Dialect::Tcp(tcp) => {
                tcp.say_goodbye(&farewell);
                connection.outbox.clear()
            }
            _ => {
                let (dropped, sent) = connection.outbox.cut(connection.socket.as_fd());
                connection.kept.count_sent(sent);
                let words = connection.format.goodbye(&farewell);
                connection.outbox.push(Frame::new(words));
                dropped
            }
        };
        // After a violation the stream means nothing any more, and no answer is waited for; who
        // only listens has no way to answer.
        let is_violation = farewell.code >= 4500 || matches!(farewell.code, 1002 | 1007 | 1009);
        let is_deaf = is_violation && farewell.close != Close::Application;
        let is_stream = matches!(connection.dialect, Dialect::Stream);
        connection.flags.set(Flags::DEAF, is_deaf || is_stream);
        self.queued_bytes = self.queued_bytes + connection.queued_bytes() - queued;
        self.metrics.add(Count::DeliveriesDropped, dropped);
        self.changed(token.index);
        self.mark_to_flush(token.index);
        self.schedule(token.index, self.settings.close_timeout);
    }

    /// A client says goodbye, or answers ours: nothing more will come from it. Returns whether an
    /// answer is due, after which it is hung up.
    fn takes_leave(&mut self, token: Token) -> bool {
        let Some(connection) = self.connections.get_mut(token) else {
            return false;
        };
        if connection.phase == Phase::Closing {
            // Both sides have said it; what is left of our words is with the kernel or lost.
            self.forget(token);
            return false;
        }
        self.metrics.close(Close::Normal);
        self.part(token, &Close::Normal.into());
        if let Some(connection) = self.connections.get_mut(token) {
            connection.phase = Phase::Closing;
            connection.flags.set(Flags::HANG_UP, true);
            connection.flags.set(Flags::DEAF, true);
        }
        true
    }

    /// The end of an open connection, for everybody but its client: channels, directory,
    /// application.
    fn part(&mut self, token: Token, farewell: &Farewell) {
        self.tell_disconnected(token, farewell);
        self.leave_channels(token);
        self.unlist(token);
        if let Some(connection) = self.connections.get_mut(token) {
            // What it waits for is answered to nobody.
            connection.flags.set(Flags::WAITING, false);
        }
    }

    /// Ends a connection that never became one, with an HTTP response.
    fn reject(&mut self, token: Token, refused: impl Into<Refused>) {
        let Refused { reject, cors } = refused.into();
        self.metrics.reject(reject);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Closing;
        connection.flags.set(Flags::DEAF, true);
        self.changed(token.index);
        self.enqueue(token, Frame::new(reject.response(&cors)));
        self.schedule(token.index, self.settings.close_timeout);
    }

    /// Lets go of a connection whose end has been counted.
    pub fn forget(&mut self, token: Token) {
        self.leave_channels(token);
        self.unlist(token);
        self.emulations.remove(&token);
        self.wheel.cancel(token.index);
        let Some(mut connection) = self.connections.remove(token) else {
            return;
        };
        self.keep.free(connection.kept.slot);
        self.metrics.subtract(gauge(&connection), 1);
        self.refused -= usize::from(connection.flags.has(Flags::REFUSED));
        self.queued_bytes -= connection.queued_bytes();
        self.metrics
            .add(Count::DeliveriesDropped, connection.outbox.clear());
    }

    /// Has a connection found by its user and, where others speak for it, by its session.
    fn list(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let Some(client) = &connection.identity else {
            return;
        };
        if connection.flags.raise(Flags::LISTED) {
            if !client.user.is_empty() {
                self.directory.add_user(&client.user, token.index);
            }
            if matches!(connection.dialect, Dialect::Stream) && !connection.format.is_uni() {
                let is_new = self.directory.add_session(client.session, token.index);
                if is_new {
                    self.hub.interest.add(topic_of_session(&client.session));
                }
            }
        }
    }

    fn unlist(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let was_listed = connection.flags.has(Flags::LISTED);
        connection.flags.set(Flags::LISTED, false);
        if let Some(client) = &connection.identity
            && was_listed
        {
            self.directory.remove_user(&client.user, token.index);
            if self.directory.remove_session(&client.session) {
                self.hub.interest.remove(topic_of_session(&client.session));
            }
        }
    }

    /// Connections that may be read from again, though no event says so.
    pub fn take_resumed(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.resumed)
    }

    /// Brings the gauges up to date and shows all numbers.
    pub fn show_metrics(&mut self) {
        self.metrics.set(Count::QueuedBytes, self.queued_bytes);
        self.metrics
            .set(Count::IoUring, usize::from(self.sender.is_ring()));
        self.metrics.set(Count::Channels, self.hub.channel_count());
        self.metrics
            .set(Count::Subscriptions, self.hub.subscription_count());
        self.metrics.set(Count::Users, self.directory.user_count());
        let lag = self.reader.tail().wrapping_sub(self.reader.position());
        self.metrics.set(Count::LogLagBytes, lag as usize);
        let compressions = deflate::take_compressions();
        self.metrics.add(Count::Compressions, compressions);
        self.metrics.hooks(&mut self.asks);
        self.metrics.show();
    }
}

/// What counts a connection while it is here.
fn gauge(connection: &Connection) -> Count {
    match connection.dialect {
        Dialect::Tcp(_) => Count::ConnectionsTcp,
        Dialect::Stream => Count::ConnectionsStream,
        Dialect::Http | Dialect::WebSocket(_) => Count::ConnectionsWebSocket,
    }
}

/// The binary protocol has heartbeats of its own.
fn ping(format: Format) -> Rc<Frame> {
    Frame::new(match format {
        Format::Tcp => Vec::new(),
        _ => format.ping(),
    })
}
