//! What becomes of a client: from accept to a counted end, whatever dialect it speaks.
//!
//! [`Sessions`] joins the parts: bytes from the reactor go through the parsers of `protocol`, and
//! what they say is done to the hub, the queues and the publisher's uplink.

mod delivery;
mod publish;
mod subscribe;
mod tcp;
mod websocket;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tidegate_ring::channels::ChannelTable;
use tidegate_ring::host;
use tidegate_ring::log::LogReader;

use crate::connection::{Connection, Dialect, Flags, Phase, uuid_v4};
use crate::hub::Hub;
use crate::metrics::{Count, Metrics};
use crate::outbox::{Flush, Frame};
use crate::protocol::close::Close;
use crate::protocol::http::HttpReject;
use crate::protocol::{tcp as wire, websocket as frames};
use crate::settings::Settings;
use crate::slab::{Slab, Token};
use crate::sys;
use crate::wheel::{TICK, Tick, Wheel};

use delivery::Deliveries;
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
    /// Where frames of the TCP dialect are put together before they are sent.
    scratch: Vec<u8>,
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
            scratch: Vec::new(),
            ping: websocket::ping_frame(),
            refused: 0,
            queued_bytes: 0,
            random: host::random().unwrap_or(1) | 1,
            now: 0,
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
                let dropped = connection.outbox.drop_unsent();
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
        let is_tcp = connection.is_tcp();
        let gauge = if is_tcp {
            Count::ConnectionsTcp
        } else {
            Count::ConnectionsWebSocket
        };
        self.metrics.subtract(gauge, 1);
        self.refused -= usize::from(connection.flags.has(Flags::REFUSED));
        self.queued_bytes -= connection.queued_bytes();
        self.metrics
            .add(Count::DeliveriesDropped, connection.outbox.clear());
    }

    /// Puts a frame for one connection into its queue.
    fn enqueue(&mut self, token: Token, frame: Rc<Frame>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let before = connection.queued_bytes();
        connection.outbox.push(frame);
        self.queued_bytes += connection.queued_bytes() - before;
        self.after_enqueue(token);
    }

    /// Holds a queue that has grown against its bounds, and sees to it that it is sent.
    fn after_enqueue(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        match pressure(connection, &self.settings) {
            Pressure::Hard if connection.phase != Phase::Closing => {
                self.condemn(token, Close::Slow);
            }
            Pressure::Soft if connection.soft_since.is_none() => {
                connection.soft_since = Some(self.now);
                self.schedule_by(token.index, self.settings.queue_soft);
            }
            _ => {}
        }
        self.mark_to_flush(token.index);
    }

    pub fn mark_to_flush(&mut self, index: u32) {
        let Some(connection) = self.connections.at_mut(index) else {
            return;
        };
        if connection.flags.raise(Flags::TO_FLUSH) {
            self.to_flush.push(index);
        }
    }

    /// The socket takes bytes again.
    pub fn writable(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.flags.set(Flags::BLOCKED, false);
        if connection.queued_bytes() > 0 {
            self.mark_to_flush(token.index);
        }
    }

    /// Sends what this turn has put into queues: one system call for each connection at most.
    pub fn flush(&mut self) {
        let mut again = Vec::new();
        for index in std::mem::take(&mut self.to_flush) {
            if self.flush_one(index) {
                again.push(index);
            }
        }
        for index in again {
            self.mark_to_flush(index);
        }
        self.record_latency();
    }

    /// Returns whether there is more to send without waiting for the socket.
    fn flush_one(&mut self, index: u32) -> bool {
        let Some(connection) = self.connections.at_mut(index) else {
            return false;
        };
        if !connection.flags.has(Flags::TO_FLUSH) {
            return false;
        }
        connection.flags.set(Flags::TO_FLUSH, false);
        if connection.flags.has(Flags::BLOCKED) {
            return false;
        }
        let queued = connection.queued_bytes();
        let socket = connection.socket.as_fd();
        let result = match &mut connection.dialect {
            Dialect::Tcp(tcp) => tcp.flush(&mut connection.outbox, &mut self.scratch, socket),
            _ => connection.outbox.flush(socket),
        };
        let left = connection.queued_bytes();
        self.queued_bytes = self.queued_bytes - queued + left;
        if left <= self.settings.queue_soft_bytes {
            connection.soft_since = None;
        }
        match result {
            Ok((sent, state)) => {
                self.metrics.add(Count::Sends, 1);
                self.metrics.add(Count::SentBytes, sent);
                if state == Flush::Blocked {
                    connection.flags.set(Flags::BLOCKED, true);
                    self.metrics.add(Count::SendsBlocked, 1);
                }
                if left == 0 && connection.phase == Phase::Closing {
                    self.said_goodbye(index);
                }
                state == Flush::More
            }
            Err(error) => {
                self.send_failed(index, &error);
                false
            }
        }
    }

    /// Our last words are with the kernel.
    fn said_goodbye(&mut self, index: u32) {
        let Some(token) = self.connections.token(index) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.flags.has(Flags::HANG_UP) {
            self.forget(token);
        } else if connection.flags.has(Flags::DEAF) {
            sys::finish_sending(connection.socket.as_fd());
        }
    }

    fn send_failed(&mut self, index: u32, error: &io::Error) {
        let Some(token) = self.connections.token(index) else {
            return;
        };
        let is_gone = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        );
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Closing {
            self.metrics.close(if is_gone {
                Close::ConnectionClosed
            } else {
                Close::WriteError
            });
        }
        self.forget(token);
    }

    /// Moves the clock on. Everything in one turn happens at the same tick.
    pub fn tell_time(&mut self) {
        let elapsed = Duration::from_nanos(host::monotonic_ns() - self.started_ns);
        self.now = (elapsed.as_nanos() / TICK.as_nanos()) as Tick;
    }

    /// How long the reactor may sleep on behalf of timers.
    pub fn sleep_max(&self) -> Duration {
        let Some(next) = self.wheel.next() else {
            return Duration::MAX;
        };
        let elapsed = Duration::from_nanos(host::monotonic_ns() - self.started_ns);
        (TICK * next).saturating_sub(elapsed)
    }

    /// Does what is due.
    pub fn timers(&mut self) {
        let mut due = Vec::new();
        self.wheel.advance(self.now, &mut due);
        for index in due {
            if let Some(token) = self.connections.token(index) {
                self.timer(token);
            }
        }
    }

    fn timer(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        match (connection.phase, &connection.dialect) {
            (Phase::Closing, _) => {
                self.metrics.add(Count::CloseTimeouts, 1);
                self.forget(token);
            }
            (Phase::Connecting, Dialect::Http) => self.reject(token, HttpReject::Timeout),
            (Phase::Connecting, _) => self.condemn(token, Close::Stale),
            (Phase::Open, _) => self.life_signs(token),
        }
    }

    /// Asks whether the peer is still there, and draws the consequences if it is not or is slow.
    fn life_signs(&mut self, token: Token) {
        let (now, soft) = (self.now, ticks(self.settings.queue_soft));
        let (interval, timeout) = self.probe_times(token);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection
            .soft_since
            .is_some_and(|since| now >= since + soft)
        {
            return self.condemn(token, Close::Slow);
        }
        let is_tcp = connection.is_tcp();
        // A pong is due so long after its ping; a heartbeat, so long after the last sign of life.
        let pong_due = |connection: &Connection| match is_tcp {
            true => Some(connection.heard + timeout),
            false if connection.flags.has(Flags::PINGED) => {
                Some(connection.probe_due - interval + timeout)
            }
            false => None,
        };
        if pong_due(connection).is_some_and(|due| now >= due) {
            return self.condemn(token, Close::NoPong);
        }
        let probes = now >= connection.probe_due;
        if probes {
            connection.probe_due = now + interval;
            connection.flags.set(Flags::PINGED, true);
        }
        let soft_due = connection.soft_since.map(|since| since + soft);
        let next = [Some(connection.probe_due), pong_due(connection), soft_due];
        let next = next.into_iter().flatten().min().unwrap_or(now + 1);
        self.wheel.schedule(token.index, next);
        if probes {
            self.metrics.add(Count::Pings, 1);
            match is_tcp {
                true => self.tcp_heartbeat(token),
                false => self.enqueue(token, Rc::clone(&self.ping)),
            }
        }
    }

    /// Interval between our probes, and how long the peer may be silent, by dialect.
    fn probe_times(&mut self, token: Token) -> (Tick, Tick) {
        let is_tcp = self
            .connections
            .get_mut(token)
            .is_some_and(|each| each.is_tcp());
        let settings = &self.settings;
        let (interval, timeout) = if is_tcp {
            (
                settings.tcp_heartbeat_interval,
                settings.tcp_heartbeat_timeout,
            )
        } else {
            (
                settings.websocket_ping_interval,
                settings.websocket_pong_timeout,
            )
        };
        (ticks(interval), ticks(timeout))
    }

    /// A connection has said what it wants: from now on it is served.
    fn opened(&mut self, token: Token) {
        let random = [self.random(), self.random()];
        let (interval, _) = self.probe_times(token);
        // The first probe at random in the second half of the interval: connections that came at
        // the same instant (a storm of reconnects) are not all probed at the same instant.
        let first = interval - (random[0] % u64::from(interval / 2 + 1)) as Tick;
        let now = self.now;
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Open;
        connection.heard = now;
        connection.probe_due = now + first;
        let mut bits = [0; 16];
        bits[..8].copy_from_slice(&host::random().unwrap_or(random[0]).to_ne_bytes());
        bits[8..].copy_from_slice(&host::random().unwrap_or(random[1]).to_ne_bytes());
        connection.client = uuid_v4(bits);
        self.wheel.schedule(token.index, now + first);
    }

    fn schedule(&mut self, index: u32, after: Duration) {
        self.wheel.schedule(index, self.now + ticks(after));
    }

    fn schedule_by(&mut self, index: u32, after: Duration) {
        self.wheel.schedule_by(index, self.now + ticks(after));
    }

    /// Brings the gauges up to date and shows all numbers.
    pub fn show_metrics(&mut self) {
        self.metrics.set(Count::QueuedBytes, self.queued_bytes);
        self.metrics.set(Count::Channels, self.hub.channel_count());
        self.metrics
            .set(Count::Subscriptions, self.hub.subscription_count());
        let lag = self.reader.tail().wrapping_sub(self.reader.position());
        self.metrics.set(Count::LogLagBytes, lag as usize);
        self.metrics.show();
    }
}

/// How full a connection's queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pressure {
    None,
    /// Over what it may hold for a while.
    Soft,
    /// Over what it may ever hold.
    Hard,
}

#[inline]
fn pressure(connection: &Connection, settings: &Settings) -> Pressure {
    let queued = connection.queued_bytes();
    if queued <= settings.queue_soft_bytes {
        Pressure::None
    } else if queued <= settings.queue_hard_bytes {
        Pressure::Soft
    } else {
        Pressure::Hard
    }
}

/// A time in ticks, rounded up.
fn ticks(time: Duration) -> Tick {
    Tick::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(Tick::MAX / 2)
}
