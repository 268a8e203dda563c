//! Time: one deadline for each connection, and what is done when it comes.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use tidegate_ring::host;

use super::Sessions;
use crate::connection::{Connection, Dialect, Flags, Phase, uuid_v4};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::close::Close;
use crate::protocol::http::{HttpReject, Refused};
use crate::protocol::websocket::PING_FRAME;
use crate::slab::Token;
use crate::sys;
use crate::wheel::{TICK, Tick};

/// Where the clock starts: far enough from zero that times of the connections
/// which it adopts, such as when a peer was last heard of, lie on it. No timeout is longer.
const CLOCK_START: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the clock shows when a worker begins.
pub(super) fn start() -> Tick {
    ticks(CLOCK_START)
}

/// A time in ticks, rounded up.
pub(super) fn ticks(time: Duration) -> Tick {
    Tick::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(Tick::MAX / 2)
}

impl Sessions {
    /// Moves the clock on. Everything in one turn happens at the same tick.
    pub fn tell_time(&mut self) {
        self.now = (self.clock().as_nanos() / TICK.as_nanos()) as Tick;
    }

    fn clock(&self) -> Duration {
        CLOCK_START + Duration::from_nanos(host::monotonic_ns() - self.started_ns)
    }

    /// How long the reactor may sleep on behalf of timers.
    pub fn sleep_max(&self) -> Duration {
        let Some(next) = self.wheel.next() else {
            return Duration::MAX;
        };
        (TICK * next).saturating_sub(self.clock())
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
            (Phase::Connecting, Dialect::Http) => {
                let cors = self.emulations.remove(&token).unwrap_or_default();
                let reject = HttpReject::Timeout;
                self.reject(token, Refused { reject, cors });
            }
            (Phase::Connecting, _) => self.condemn(token, Close::Stale),
            (Phase::Open, _) => self.life_signs(token),
        }
    }

    /// Asks whether the peer is still there, and draws the consequences if it is not or is slow.
    fn life_signs(&mut self, token: Token) {
        if !self.expire(token) {
            return;
        }
        let (now, soft) = (self.now, ticks(self.settings.queue_soft));
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection
            .soft_since
            .is_some_and(|since| now >= since + soft)
        {
            return self.condemn(token, Close::Slow);
        }
        if pong_due(connection).is_some_and(|due| now >= due) {
            // After a stall of ours, more has come than one turn reads: the peer is not to blame.
            if sys::has_unread(connection.socket.as_fd()) {
                return self.wheel.schedule(token.index, now + 1);
            }
            return self.condemn(token, Close::NoPong);
        }
        let interval = connection.probe_interval;
        let probes = now >= connection.probe_due && interval > 0;
        if probes {
            connection.probe_due = now + interval;
            connection.flags.set(Flags::PINGED | Flags::CHANGED, true);
        }
        let (is_tcp, format) = (connection.is_tcp(), connection.format);
        let is_native = connection.flags.has(Flags::NATIVE_PINGS);
        self.schedule_next(token);
        if probes {
            self.metrics.add(Count::Pings, 1);
            match is_tcp {
                true => self.tcp_heartbeat(token),
                false if is_native => self.enqueue(token, Frame::new(PING_FRAME)),
                false => self.enqueue(token, Rc::clone(&self.pings[format as usize])),
            }
        }
    }

    /// Sets the deadline of an open connection to the next time at which something is due.
    pub(super) fn schedule_next(&mut self, token: Token) {
        let soft = ticks(self.settings.queue_soft);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Open {
            return;
        }
        let expiry_s = connection
            .identity
            .as_ref()
            .and_then(|client| client.acts_first_s(self.settings.expired_close_delay));
        let times = [
            (connection.probe_interval > 0).then_some(connection.probe_due),
            pong_due(connection),
            connection.soft_since.map(|since| since + soft),
            expiry_s.map(|at_s| self.now + ticks_until(at_s)),
        ];
        let next = times.into_iter().flatten().min();
        match next {
            Some(next) => self.wheel.schedule(token.index, next),
            None => self.wheel.cancel(token.index),
        }
    }

    /// A connection has said what it wants: from now on it is served.
    pub(super) fn opened(&mut self, token: Token) {
        let random = self.random();
        let settings = &self.settings;
        let http = (
            settings.websocket_ping_interval,
            settings.websocket_pong_timeout,
        );
        let tcp = (
            settings.tcp_heartbeat_interval,
            settings.tcp_heartbeat_timeout,
        );
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let (interval, silence_max) = if connection.is_tcp() { tcp } else { http };
        let interval = ticks(interval);
        // The first probe at random in the second half of the interval: connections that came at
        // the same instant (a storm of reconnects) are not all probed at the same instant.
        let first = interval - (random % u64::from(interval / 2 + 1)) as Tick;
        let now = self.now;
        connection.phase = Phase::Open;
        connection.heard = now;
        connection.probe_interval = interval;
        connection.silence_max = ticks(silence_max);
        connection.probe_due = now + first;
        self.wheel.schedule(token.index, now + first);
    }

    /// Draws the UUID that a client and its logs know its connection by.
    pub(super) fn draw_uuid(&mut self, token: Token) {
        let uuid = self.new_uuid();
        if let Some(connection) = self.connections.get_mut(token)
            && connection.client == [0; 16]
        {
            connection.client = uuid;
        }
    }

    /// A UUID that nobody can guess.
    pub(super) fn new_uuid(&mut self) -> [u8; 16] {
        new_uuid([self.random(), self.random()])
    }

    pub(super) fn schedule(&mut self, index: u32, after: Duration) {
        self.wheel.schedule(index, self.now + ticks(after));
    }

    pub(super) fn schedule_by(&mut self, index: u32, after: Duration) {
        self.wheel.schedule_by(index, self.now + ticks(after));
    }
}

/// `fallback` stands in where the kernel has no random numbers (getrandom(2) fails early at boot).
fn new_uuid(fallback: [u64; 2]) -> [u8; 16] {
    let mut bits = [0; 16];
    for (half, fallback) in bits.chunks_exact_mut(8).zip(fallback) {
        half.copy_from_slice(&host::random().unwrap_or(fallback).to_ne_bytes());
    }
    uuid_v4(bits)
}

/// When the peer has owed a sign of life for too long. A pong is due so long after its ping; in the
/// binary protocol a heartbeat, so long after the last sign of life; those who cannot say anything
/// on their connection owe nothing.
fn pong_due(connection: &Connection) -> Option<Tick> {
    if connection.is_tcp() {
        return Some(connection.heard + connection.silence_max);
    }
    let is_due = connection.flags.has(Flags::PINGED) && connection.format.answers_pings();
    is_due.then(|| connection.probe_due - connection.probe_interval + connection.silence_max)
}

/// Time by the clock of the world, in seconds since 1970.
pub(super) fn now_s() -> u64 {
    host::wall_clock_ms() / 1000
}

/// From now until `at_s`, in seconds since 1970; none if that is past.
fn ticks_until(at_s: u64) -> Tick {
    let left_ms = (at_s.saturating_mul(1000)).saturating_sub(host::wall_clock_ms());
    // What lies further ahead is looked at again on the way, with every ping.
    ticks(Duration::from_millis(left_ms).min(CLOCK_START))
}
