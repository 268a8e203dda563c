//! What becomes of a client: from accept to a counted end, whatever dialect it speaks.
//!
//! [`Sessions`] joins the parts: bytes from the reactor go through the parsers of `protocol`, and
//! what they say is done to the hub, the queues and the publisher's uplink.

mod clock;
mod delivery;
mod fault;
mod moving;
mod publish;
mod queues;
mod subscribe;
mod tcp;
mod websocket;

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use tidegate_ring::channels::ChannelTable;
use tidegate_ring::host;
use tidegate_ring::log::LogReader;

use crate::connection::{Connection, Dialect, Flags, Phase};
use crate::hub::Hub;
use crate::metrics::{Count, Metrics};
use crate::outbox::Frame;
use crate::protocol::close::Close;
use crate::protocol::http::HttpReject;
use crate::protocol::{tcp as wire, websocket as frames};
use crate::sending::{Buffers, Sender};
use crate::settings::Settings;
use crate::slab::{Slab, Token};
use crate::wheel::{Tick, Wheel};

use delivery::Deliveries;
pub use moving::{CatchUp, Movable};
pub use publish::Uplink;

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

/// Everything about clients, without the descriptors that the reactor waits on.
pub struct Sessions {
    pub settings: Settings,
    pub metrics: Metrics,
    pub connections: Slab<Connection>,
    pub reader: LogReader,
    pub uplink: Uplink,
    hub: Hub,
    wheel: Wheel,
    table: ChannelTable,
    /// Places of connections that have something to send, each once.
    to_flush: Vec<u32>,
    deliveries: Deliveries,
    sender: Sender,
    buffers: Buffers,
    ping: Rc<Frame>,
    refused: usize,
    queued_bytes: usize,
    random: u64,
    now: Tick,
    started_ns: u64,
}

impl Sessions {
    pub fn new(
        settings: Settings,
        metrics: Metrics,
        reader: LogReader,
        table: ChannelTable,
        uplink: Uplink,
        sender: Sender,
    ) -> Self {
        let entries_max = settings.connections_max + REFUSALS_AT_A_TIME_MAX;
        Self {
            connections: Slab::new(entries_max),
            wheel: Wheel::new(entries_max),
            hub: Hub::default(),
            reader,
            uplink,
            table,
            to_flush: Vec::new(),
            deliveries: Deliveries::default(),
            sender,
            buffers: Buffers::default(),
            ping: websocket::ping_frame(),
            refused: 0,
            queued_bytes: 0,
            random: host::random().unwrap_or(1) | 1,
            now: clock::start(),
            started_ns: host::monotonic_ns(),
            settings,
            metrics,
        }
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
            let rest = &mut bytes[done..];
            let consumed = match connection.dialect {
                Dialect::Http => self.http_received(token, rest),
                Dialect::WebSocket(_) => self.websocket_received(token, rest),
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
        let message = self.settings.message_bytes_max + INPUT_HEADER_BYTES;
        message
            .max(self.settings.header_bytes_max)
            .max(wire::frame::FRAME_BYTES_MAX)
    }

    /// The peer has gone, or said that it sends no more.
    pub fn hung_up(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Closing {
            self.metrics.close(Close::ConnectionClosed);
        }
        self.forget(token);
    }

    /// Ends a connection with a reason: counted here, once; said to the client in its dialect;
    /// nothing else is sent any more.
    pub fn condemn(&mut self, token: Token, close: Close) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase == Phase::Closing {
            return;
        }
        if matches!(connection.dialect, Dialect::Http) {
            return self.reject(token, HttpReject::Full);
        }
        self.metrics.close(close);
        self.leave_channels(token);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Closing;
        let queued = connection.queued_bytes();
        let dropped = match &mut connection.dialect {
            Dialect::Tcp(tcp) => {
                tcp.say_goodbye(close);
                connection.outbox.clear()
            }
            _ => {
                let dropped = connection.outbox.cut(connection.socket.as_fd());
                connection.outbox.push(websocket::goodbye_frame(close));
                dropped
            }
        };
        // After a violation the stream means nothing any more, and no answer is waited for.
        let is_violation = close.code() >= 4500 || matches!(close.code(), 1002 | 1007 | 1009);
        connection.flags.set(Flags::DEAF, is_violation);
        self.queued_bytes = self.queued_bytes + connection.queued_bytes() - queued;
        self.metrics.add(Count::DeliveriesDropped, dropped);
        self.mark_to_flush(token.index);
        self.schedule(token.index, self.settings.close_timeout);
    }

    /// Ends a connection that never became one, with an HTTP response.
    fn reject(&mut self, token: Token, reject: HttpReject) {
        self.metrics.reject(reject);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Closing;
        connection.flags.set(Flags::DEAF, true);
        self.enqueue(token, Frame::new(reject.response()));
        self.schedule(token.index, self.settings.close_timeout);
    }

    /// Lets go of a connection whose end has been counted.
    pub fn forget(&mut self, token: Token) {
        self.leave_channels(token);
        self.wheel.cancel(token.index);
        let Some(mut connection) = self.connections.remove(token) else {
            return;
        };
        self.metrics.subtract(gauge(&connection), 1);
        self.refused -= usize::from(connection.flags.has(Flags::REFUSED));
        self.queued_bytes -= connection.queued_bytes();
        self.metrics
            .add(Count::DeliveriesDropped, connection.outbox.clear());
    }

    /// Brings the gauges up to date and shows all numbers.
    pub fn show_metrics(&mut self) {
        self.metrics.set(Count::QueuedBytes, self.queued_bytes);
        self.metrics
            .set(Count::IoUring, usize::from(self.sender.is_ring()));
        self.metrics.set(Count::Channels, self.hub.channel_count());
        self.metrics
            .set(Count::Subscriptions, self.hub.subscription_count());
        let lag = self.reader.tail().wrapping_sub(self.reader.position());
        self.metrics.set(Count::LogLagBytes, lag as usize);
        self.metrics.show();
    }
}

/// What counts a connection while it is here.
fn gauge(connection: &Connection) -> Count {
    if connection.is_tcp() {
        Count::ConnectionsTcp
    } else {
        Count::ConnectionsWebSocket
    }
}
