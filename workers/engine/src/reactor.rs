//! The worker's only thread: one loop, one turn after the other, each in the same phases.

mod door;
mod input;
mod moving;
mod stopwatch;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tidegate_ring::channels::ChannelTable;
use tidegate_ring::history::HistoryStore;
use tidegate_ring::host;
use tidegate_ring::keep::KeepWriter;
use tidegate_ring::log::LogReader;
use tidegate_ring::presence::PresenceTable;
use tidegate_ring::region::Region;
use tidegate_ring::stats::{Role, Row, state};
use tidegate_ring::uplink::UplinkProducer;
use tidegate_ring::wake::Bell;

use self::door::Door;
use self::stopwatch::Stopwatch;
use crate::asks::{self, AskKind, Questions};
use crate::connection::Flags;
use crate::error::EngineError;
use crate::handoff::{self, Handoffs};
use crate::keep::Keep;
use crate::metrics::{Count, Histogram, Metrics, TurnPhase};
use crate::pacing::Pacing;
use crate::protocol::close::Close;
use crate::sending::Sender;
use crate::session::{Memory, Sessions, Transport, Uplink};
use crate::settings::Settings;
use crate::slab::Token;
use crate::sys::{Epoll, Event, Watch};

/// Events taken from epoll at once.
const EVENTS_PER_TURN_MAX: usize = 1024;
/// The reactor looks at log and uplink at least so often, whatever woke it or did not: a wake-up
/// that was lost shows as a counter instead of a stop.
const SAFETY_POLL: Duration = Duration::from_millis(500);
/// A publisher that was interrupted between its store and its ring is given so long to go on.
const RING_GRACE: Duration = Duration::from_millis(50);
/// Time between two lots of connections that are closed while draining.
const DRAIN_STEP: Duration = Duration::from_millis(10);
/// Time between two reports while draining.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Tokens of descriptors that are not connections: no connection has so high an index.
const HTTP_LISTENER: u64 = u32::MAX as u64;
const TCP_LISTENER: u64 = u32::MAX as u64 - 1;
const WAKE: u64 = u32::MAX as u64 - 2;
const LINK: u64 = u32::MAX as u64 - 3;
const ANSWERS: u64 = u32::MAX as u64 - 5;

/// The shared memory of a worker.
pub struct Regions {
    pub log: Region,
    pub channels: Region,
    pub history: Region,
    pub presence: Region,
    pub stats: Region,
    pub uplink: Region,
}

/// The descriptors of a worker.
pub struct Descriptors {
    pub http: OwnedFd,
    pub tcp: OwnedFd,
    /// Rung when there is something in the log or the replies.
    pub wake: OwnedFd,
    /// To be rung when there is something in the uplink.
    pub publisher_wake: OwnedFd,
    /// The supervisor: [`Reactor::run`] returns when it says something.
    pub link: OwnedFd,
}

/// Why [`Reactor::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The link is readable.
    Link,
    /// Connections are being closed; so many are left.
    Draining { remaining: usize },
    /// All are closed; so many were.
    Drained { closed: usize },
    /// There is news of a hand-off.
    Handoff(handoff::Report),
    /// There are lines for the log: [`Reactor::take_notices`].
    Notices,
}

pub struct Reactor {
    epoll: Epoll,
    sessions: Sessions,
    door: Door,
    /// Watched by epoll, which does not keep them open.
    _watched: [OwnedFd; 2],
    events: Vec<Event>,
    /// Connections that may have more to read.
    to_read: Vec<Token>,
    /// Where input is read to when its connection holds nothing back from before.
    scratch: Vec<u8>,
    log_has_more: bool,
    link_is_ready: bool,
    pacing: Option<Pacing>,
    reported_ns: u64,
    handoffs: Handoffs,
    stopwatch: Stopwatch,
}

impl Reactor {
    /// A reactor that accepts from its first turn on.
    ///
    /// # Errors
    /// [`EngineError`] where the kernel refuses, or a segment is not one that this build knows.
    pub fn new(
        settings: Settings,
        regions: Regions,
        descriptors: Descriptors,
    ) -> Result<Self, EngineError> {
        let Descriptors {
            http,
            tcp,
            wake,
            publisher_wake,
            link,
        } = descriptors;
        let epoll = Epoll::new(EVENTS_PER_TURN_MAX).map_err(EngineError::system("epoll_create"))?;
        for (fd, token, watch) in [
            (http.as_fd(), HTTP_LISTENER, Watch::ReadEdges),
            (tcp.as_fd(), TCP_LISTENER, Watch::ReadEdges),
            (wake.as_fd(), WAKE, Watch::ReadEdges),
            (link.as_fd(), LINK, Watch::ReadLevel),
        ] {
            epoll
                .add(fd, token, watch)
                .map_err(EngineError::system("epoll_ctl"))?;
        }
        Ok(Self {
            epoll,
            sessions: sessions(settings, regions, publisher_wake.into())?,
            door: Door::new(http, tcp).map_err(EngineError::system("fcntl"))?,
            _watched: [wake, link],
            events: Vec::with_capacity(EVENTS_PER_TURN_MAX),
            to_read: Vec::new(),
            scratch: vec![0; input::READ_BYTES_PER_TURN],
            log_has_more: true,
            link_is_ready: false,
            pacing: None,
            reported_ns: 0,
            handoffs: Handoffs::default(),
            stopwatch: Stopwatch::default(),
        })
    }

    /// From now on, puts down what is to be known of each connection if this worker dies.
    pub fn survive(&mut self, keep: KeepWriter) {
        self.sessions.keep = Keep::new(keep);
    }

    /// Asks the application about `kinds` from now on: whoever has the questions answers them.
    ///
    /// # Errors
    /// [`EngineError`] where the kernel refuses.
    pub fn ask_about(&mut self, kinds: &[AskKind]) -> Result<Questions, EngineError> {
        let limits = asks::Limits::from(&self.sessions.settings.hooks);
        let (asks, questions) =
            asks::channel(kinds, limits).map_err(EngineError::system("eventfd"))?;
        if let Some(fd) = asks.as_fd() {
            self.epoll
                .add(fd, ANSWERS, Watch::ReadEdges)
                .map_err(EngineError::system("epoll_ctl"))?;
        }
        self.sessions.asks = asks;
        Ok(questions)
    }

    /// Works until there is something to report.
    ///
    /// # Errors
    /// [`EngineError`]: this worker cannot go on.
    pub fn run(&mut self) -> Result<Report, EngineError> {
        loop {
            self.turn()?;
            if std::mem::take(&mut self.link_is_ready) {
                return Ok(Report::Link);
            }
            if let Some(report) = self.handoff_report() {
                return Ok(Report::Handoff(report));
            }
            if let Some(report) = self.drain_report() {
                return Ok(report);
            }
            if self.sessions.has_notices() {
                return Ok(Report::Notices);
            }
        }
    }

    /// What developers should know of clients that were refused.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.sessions.take_notices()
    }

    /// Every channel that has subscribers here, and how many.
    pub fn channels(&self) -> impl Iterator<Item = (&str, usize)> {
        let hub = &self.sessions.hub;
        let channels = hub.ids().into_iter().filter_map(|id| hub.channel(id));
        channels.map(|channel| (&*channel.name, channel.subscribers.len()))
    }

    /// One turn.
    ///
    /// # Errors
    /// As [`Reactor::run`].
    pub fn turn(&mut self) -> Result<(), EngineError> {
        self.lap(TurnPhase::Other);
        self.wait()?;
        self.lap(TurnPhase::Wait);
        let began_ns = host::monotonic_ns();
        self.sessions.tell_time();
        self.catch_up()?;
        self.accept();
        self.lap(TurnPhase::Accept);
        self.sessions.take_answers();
        self.read_resumed();
        self.read();
        self.sessions.uplink.ring();
        self.lap(TurnPhase::Read);
        self.drain_log()?;
        self.lap(TurnPhase::Drain);
        self.sessions.fan_out();
        self.lap(TurnPhase::FanOut);
        // What clients learn by the flush, the statistics have said before.
        self.sessions.show_metrics();
        self.lap(TurnPhase::Other);
        self.flush();
        self.lap(TurnPhase::Flush);
        self.timers();
        self.lap(TurnPhase::Timers);
        let busy_us = (host::monotonic_ns() - began_ns) / 1000;
        self.sessions.metrics.record(Histogram::TurnUs, busy_us);
        self.sessions.show_metrics();
        Ok(())
    }

    /// Stops accepting and closes every connection, evenly over `spread`; with `leave`, connections
    /// that wait in the listeners' queues are accepted first, as nobody else will.
    pub fn drain(&mut self, spread: Duration, close: Close, leave: bool) {
        if leave {
            self.leave_the_door();
        }
        self.shut_the_door();
        self.sessions.metrics.set_state(state::DRAINING);
        let mut tokens: Vec<Token> = self.sessions.connections.tokens().collect();
        // In a random order: neighbours in time of arrival are not neighbours in time of return.
        for place in (1..tokens.len()).rev() {
            let other = self.sessions.random() as usize % (place + 1);
            tokens.swap(place, other);
        }
        self.pacing = Some(Pacing::new(tokens, host::monotonic_ns(), spread, close));
    }

    /// Closes all connections at once and works for `patience` at most, so that they learn of it.
    ///
    /// # Errors
    /// As [`Reactor::run`].
    pub fn stop(&mut self, patience: Duration) -> Result<usize, EngineError> {
        self.drain(Duration::ZERO, Close::Shutdown, false);
        let deadline_ns = host::monotonic_ns() + patience.as_nanos() as u64;
        while !self.sessions.connections.is_empty() && host::monotonic_ns() < deadline_ns {
            self.turn()?;
        }
        self.sessions.keep.end();
        Ok(self.pacing.as_ref().map_or(0, Pacing::closed))
    }

    // The phases of a turn are not inlined: each is a frame of its own in flame graphs.

    /// Sleeps until something happens, and takes note of it.
    #[inline(never)]
    fn wait(&mut self) -> Result<(), EngineError> {
        let mut timeout = self.sleep_max();
        let may_sleep = !timeout.is_zero()
            && self.sessions.reader.may_sleep()
            && self.sessions.uplink.may_sleep();
        if !may_sleep {
            timeout = Duration::ZERO;
        }
        self.events.clear();
        let mut waited = self.epoll.wait(timeout, &mut self.events);
        // Where a timer has ended the sleep, it is not made to wait for that.
        let is_poll = may_sleep && timeout == SAFETY_POLL;
        if waited.is_ok() && is_poll && self.events.is_empty() && self.has_records() {
            // Records and no ring: they concern others, or it is about to come, or was forgotten.
            let tail = self.sessions.reader.tail();
            waited = self.epoll.wait(RING_GRACE, &mut self.events);
            if !self.events.iter().any(|event| event.token == WAKE) {
                self.sessions.suspect(tail);
            }
        }
        self.sessions.reader.awake();
        self.sessions.uplink.awake();
        waited.map_err(EngineError::system("epoll_wait"))?;
        self.let_more_come();
        self.note_events();
        Ok(())
    }

    /// Gives publications the time to gather that the operator wants them to have. It is at most
    /// milliseconds, for which nothing else is done either.
    fn let_more_come(&self) {
        let delay = self.sessions.settings.batch_delay;
        let has_work = self.log_has_more || self.sessions.has_to_flush();
        if !delay.is_zero() && !has_work && self.has_records() {
            std::thread::sleep(delay);
        }
    }

    pub(super) fn has_records(&self) -> bool {
        self.sessions.reader.position() != self.sessions.reader.tail()
    }

    /// How long there is nothing to do unless something happens.
    fn sleep_max(&mut self) -> Duration {
        let has_work = self.log_has_more || !self.to_read.is_empty();
        if has_work || self.sessions.has_to_flush() || self.handoffs.is_busy() {
            return Duration::ZERO;
        }
        let step = if self.pacing.is_some() {
            DRAIN_STEP
        } else {
            Duration::MAX
        };
        let timers = self.sessions.sleep_max();
        let timers = timers.min(self.sessions.asks.sleep_max());
        SAFETY_POLL.min(timers).min(self.door.idle()).min(step)
    }

    fn note_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.sessions.metrics.add(Count::Events, events.len());
        for event in events.drain(..) {
            match event.token {
                HTTP_LISTENER => self.door.note(Transport::Http),
                TCP_LISTENER => self.door.note(Transport::Tcp),
                // Log, replies and answers are looked at in every turn.
                WAKE | ANSWERS => {}
                LINK => self.link_is_ready = true,
                handoff::TOKEN => self.handoffs.woken(),
                bits => self.note_connection(Token::from_bits(bits), event),
            }
        }
        self.events = events;
    }

    fn note_connection(&mut self, token: Token, event: Event) {
        if event.writable {
            self.sessions.writable(token);
        }
        if event.hung_up
            && let Some(connection) = self.sessions.connections.get_mut(token)
        {
            connection.flags.set(Flags::ENDED, true);
        }
        if event.readable || event.hung_up {
            self.mark_to_read(token);
        }
    }

    /// Those that have waited for an answer have more to say.
    fn read_resumed(&mut self) {
        for token in self.sessions.take_resumed() {
            self.mark_to_read(token);
        }
    }

    fn mark_to_read(&mut self, token: Token) {
        if let Some(connection) = self.sessions.connections.get_mut(token)
            && connection.flags.raise(Flags::TO_READ)
        {
            self.to_read.push(token);
        }
    }

    /// Takes connections from both listeners, up to the budget of a turn.
    #[inline(never)]
    fn accept(&mut self) {
        for _ in 0..self.sessions.settings.accepts_per_turn_max {
            let Some((socket, transport)) = self.door.next(&mut self.sessions.metrics) else {
                return;
            };
            self.admit(socket, transport);
        }
    }

    fn admit(&mut self, socket: OwnedFd, transport: Transport) {
        let Some(token) = self.sessions.accepted(socket, transport) else {
            return;
        };
        let Some(connection) = self.sessions.connections.get_mut(token) else {
            return;
        };
        let socket = connection.socket.as_fd();
        if self.epoll.add(socket, token.bits(), Watch::Edges).is_err() {
            // Out of epoll watches (max_user_watches, epoll(7)): as if out of descriptors.
            self.sessions.metrics.add(Count::RefusedDescriptors, 1);
            return self.sessions.hung_up(token);
        }
        // Its request tends to be there already: then it is answered, and put down, but once.
        self.mark_to_read(token);
    }

    /// Takes what waits in the listeners' queues, whatever the budget of a turn.
    fn accept_waiting(&mut self) {
        self.door.look_again();
        while let Some((socket, transport)) = self.door.next(&mut self.sessions.metrics) {
            self.admit(socket, transport);
        }
    }

    /// Accepts what waits and lets go of the listeners: the supervisor has no copies any more.
    fn leave_the_door(&mut self) {
        self.accept_waiting();
        self.shut_the_door();
        self.door.close();
    }

    fn shut_the_door(&mut self) {
        for listener in self.door.shut() {
            // Fails only for what is not watched any more: the door was shut before.
            let _ = self.epoll.remove(listener);
        }
    }

    /// What lies in the log already is older than what clients will now ask for: who subscribes in
    /// this turn does not get it. A worker that records did not concern may be far behind.
    fn catch_up(&mut self) -> Result<(), EngineError> {
        if self.has_records() {
            self.drain_log()?;
            self.lap(TurnPhase::Drain);
            self.sessions.fan_out();
            self.lap(TurnPhase::FanOut);
        }
        Ok(())
    }

    /// Reads what the publisher has written: records and replies.
    #[inline(never)]
    fn drain_log(&mut self) -> Result<(), EngineError> {
        self.log_has_more = self.sessions.drain_log();
        self.sessions.take_replies()?;
        Ok(())
    }

    #[inline(never)]
    fn timers(&mut self) {
        self.sessions.timers();
        if let Some(pacing) = &mut self.pacing {
            let due: Vec<Token> = pacing.due(host::monotonic_ns()).to_vec();
            let close = pacing.close();
            for token in due {
                self.sessions.condemn(token, close);
            }
        }
    }

    fn drain_report(&mut self) -> Option<Report> {
        let closed = self.pacing.as_ref()?.closed();
        let remaining = self.sessions.connections.len();
        if remaining == 0 {
            self.sessions.keep.end();
            self.pacing = None;
            return Some(Report::Drained { closed });
        }
        let now_ns = host::monotonic_ns();
        if now_ns - self.reported_ns < REPORT_INTERVAL.as_nanos() as u64 {
            return None;
        }
        self.reported_ns = now_ns;
        Some(Report::Draining { remaining })
    }
}

fn sessions(
    settings: Settings,
    regions: Regions,
    publisher: Bell,
) -> Result<Sessions, EngineError> {
    let of = |segment| move |source| EngineError::Segment { segment, source };
    let Regions {
        log,
        channels,
        history,
        presence,
        stats,
        uplink,
    } = regions;
    let row = Row::claim(
        stats,
        settings.stats_row,
        Role::Worker,
        settings.slot.into(),
        settings.generation,
    )
    .map_err(of("stats"))?;
    let metrics = Metrics::new(row).ok_or(EngineError::Schema)?;
    let reader = LogReader::join(log, settings.seat).map_err(of("log"))?;
    let table = ChannelTable::attach(channels).map_err(of("channels"))?;
    let producer = UplinkProducer::attach(uplink).map_err(of("uplink"))?;
    let uplink = Uplink::new(producer, publisher);
    let memory = Memory {
        interest: reader.interest().map_err(of("log"))?,
        reader,
        table,
        history: HistoryStore::attach(history).map_err(of("history"))?,
        presence: PresenceTable::attach(presence).map_err(of("presence"))?,
    };
    let sender = Sender::new(settings.engine)?;
    let mut sessions = Sessions::new(settings, metrics, memory, uplink, sender)?;
    sessions.metrics.set_state(state::SERVING);
    Ok(sessions)
}
