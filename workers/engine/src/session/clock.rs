//! Time: one deadline for each connection, and what is done when it comes.

use std::rc::Rc;
use std::time::Duration;

use tidegate_ring::host;

use super::Sessions;
use crate::connection::{Connection, Dialect, Flags, Phase, uuid_v4};
use crate::metrics::Count;
use crate::protocol::close::Close;
use crate::protocol::http::HttpReject;
use crate::slab::Token;
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
            (Phase::Connecting, Dialect::Http) => self.reject(token, HttpReject::Timeout),
            (Phase::Connecting, _) => self.condemn(token, Close::Stale),
            (Phase::Open, _) => self.life_signs(token),
        }
    }

    /// Asks whether the peer is still there, and draws the consequences if it is not or is slow.
    fn life_signs(&mut self, token: Token) {
        let (now, soft) = (self.now, ticks(self.settings.queue_soft));
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let (interval, silence_max) = (connection.probe_interval, connection.silence_max);
        if connection
            .soft_since
            .is_some_and(|since| now >= since + soft)
        {
            return self.condemn(token, Close::Slow);
        }
        let is_tcp = connection.is_tcp();
        // A pong is due so long after its ping; a heartbeat, so long after the last sign of life.
        let pong_due = |connection: &Connection| match is_tcp {
            true => Some(connection.heard + silence_max),
            false if connection.flags.has(Flags::PINGED) => {
                Some(connection.probe_due - interval + silence_max)
            }
            false => None,
        };
        if pong_due(connection).is_some_and(|due| now >= due) {
            return self.condemn(token, Close::NoPong);
        }
        let probes = now >= connection.probe_due;
        if probes {
            connection.probe_due = now + interval;
            connection.flags.set(Flags::PINGED | Flags::CHANGED, true);
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

    /// A connection has said what it wants: from now on it is served.
    pub(super) fn opened(&mut self, token: Token) {
        let random = [self.random(), self.random()];
        let settings = &self.settings;
        let websocket = (
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
        let (interval, silence_max) = if connection.is_tcp() { tcp } else { websocket };
        let interval = ticks(interval);
        // The first probe at random in the second half of the interval: connections that came at
        // the same instant (a storm of reconnects) are not all probed at the same instant.
        let first = interval - (random[0] % u64::from(interval / 2 + 1)) as Tick;
        let now = self.now;
        connection.phase = Phase::Open;
        connection.heard = now;
        connection.probe_interval = interval;
        connection.silence_max = ticks(silence_max);
        connection.probe_due = now + first;
        let mut bits = [0; 16];
        bits[..8].copy_from_slice(&host::random().unwrap_or(random[0]).to_ne_bytes());
        bits[8..].copy_from_slice(&host::random().unwrap_or(random[1]).to_ne_bytes());
        connection.client = uuid_v4(bits);
        self.wheel.schedule(token.index, now + first);
    }

    pub(super) fn schedule(&mut self, index: u32, after: Duration) {
        self.wheel.schedule(index, self.now + ticks(after));
    }

    pub(super) fn schedule_by(&mut self, index: u32, after: Duration) {
        self.wheel.schedule_by(index, self.now + ticks(after));
    }
}
