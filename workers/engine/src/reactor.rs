//! The worker's only thread: one loop, one turn after the other, each in the same phases.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tidegate_ring::channels::ChannelTable;
use tidegate_ring::error::{SegmentError, UplinkError};
use tidegate_ring::host;
use tidegate_ring::log::LogReader;
use tidegate_ring::region::Region;
use tidegate_ring::stats::{Role, Row, state};
use tidegate_ring::uplink::UplinkProducer;
use tidegate_ring::wake::Bell;

use crate::connection::Flags;
use crate::metrics::{Count, Histogram, Metrics};
use crate::pacing::Pacing;
use crate::protocol::close::Close;
use crate::session::{Sessions, Transport, Uplink};
use crate::settings::Settings;
use crate::slab::Token;
use crate::sys::{self, Epoll, Event, Watch};

/// Events taken from epoll at once.
const EVENTS_PER_TURN_MAX: usize = 1024;
/// Bytes read from one connection in one turn; it has its turn again after the others.
const READ_BYTES_PER_TURN: usize = 65_536;
/// A buffer that holds the beginning of a message grows by at least so much.
const INPUT_GROWTH_BYTES: usize = 4096;
/// The reactor looks at log and uplink at least so often, whatever woke it or did not: a wake-up
/// that was lost shows as a counter instead of a stop.
const SAFETY_POLL: Duration = Duration::from_millis(500);
/// A publisher that was interrupted between its store and its ring is given so long to go on.
const RING_GRACE: Duration = Duration::from_millis(50);
/// Time between two lots of connections that are closed while draining.
const DRAIN_STEP: Duration = Duration::from_millis(10);
/// Time between two reports while draining.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// How long accepting rests after a shortage that refusing did not relieve.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Tokens of descriptors that are not connections: no connection has so high an index.
const HTTP_LISTENER: u64 = u32::MAX as u64;
const TCP_LISTENER: u64 = u32::MAX as u64 - 1;
const WAKE: u64 = u32::MAX as u64 - 2;
const LINK: u64 = u32::MAX as u64 - 3;

/// What this worker cannot go on after, or begin with.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{call} failed: {source}")]
    System {
        call: &'static str,
        source: io::Error,
    },
    #[error("segment {segment}: {source}")]
    Segment {
        segment: &'static str,
        source: SegmentError,
    },
    #[error("the statistics segment lacks metrics of this version: run processes of one release")]
    Schema,
    #[error("the uplink to the publisher is damaged: {0}")]
    Uplink(#[from] UplinkError),
}

impl EngineError {
    /// Stable identifier of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::System { .. } => "engine_system",
            Self::Segment { source, .. } => source.code(),
            Self::Schema => "engine_schema",
            Self::Uplink(source) => source.code(),
        }
    }

    fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}

/// The shared memory of a worker.
pub struct Regions {
    pub log: Region,
    pub channels: Region,
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
}

struct Listener {
    socket: OwnedFd,
    transport: Transport,
    /// There may be connections in its queue: set by its edge, unset by EAGAIN.
    is_ready: bool,
}

pub struct Reactor {
    epoll: Epoll,
    sessions: Sessions,
    listeners: [Listener; 2],
    wake: OwnedFd,
    _link: OwnedFd,
    spare: Option<OwnedFd>,
    is_accepting: bool,
    /// No accepting before this time (CLOCK_MONOTONIC).
    accept_after_ns: u64,
    events: Vec<Event>,
    /// Connections that may have more to read.
    to_read: Vec<Token>,
    /// Where input is read to when its connection holds nothing back from before.
    scratch: Vec<u8>,
    log_has_more: bool,
    link_is_ready: bool,
    pacing: Option<Pacing>,
    reported_ns: u64,
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
        for listener in [&http, &tcp] {
            sys::set_nonblocking(listener.as_fd()).map_err(EngineError::system("fcntl"))?;
        }
        let sessions = sessions(settings, regions, publisher_wake.into())?;
        let listener = |socket, transport| Listener {
            socket,
            transport,
            is_ready: true,
        };
        Ok(Self {
            epoll,
            sessions,
            listeners: [
                listener(http, Transport::Http),
                listener(tcp, Transport::Tcp),
            ],
            wake,
            _link: link,
            spare: sys::spare_descriptor().ok(),
            is_accepting: true,
            accept_after_ns: 0,
            events: Vec::with_capacity(EVENTS_PER_TURN_MAX),
            to_read: Vec::new(),
            scratch: vec![0; READ_BYTES_PER_TURN],
            log_has_more: true,
            link_is_ready: false,
            pacing: None,
            reported_ns: 0,
        })
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
            if let Some(report) = self.drain_report() {
                return Ok(report);
            }
        }
    }

    /// One turn.
    ///
    /// # Errors
    /// As [`Reactor::run`].
    pub fn turn(&mut self) -> Result<(), EngineError> {
        self.wait()?;
        let began_ns = host::monotonic_ns();
        self.sessions.tell_time();
        self.accept();
        self.read();
        self.drain_log()?;
        self.sessions.fan_out();
        self.sessions.flush();
        self.timers();
        self.sessions.uplink.ring();
        let busy_us = (host::monotonic_ns() - began_ns) / 1000;
        self.sessions.metrics.record(Histogram::TurnUs, busy_us);
        self.sessions.show_metrics();
        Ok(())
    }

    /// Stops accepting and closes every connection, evenly over `spread`; with `leave`, connections
    /// that wait in the listeners' queues are accepted first, as nobody else will.
    pub fn drain(&mut self, spread: Duration, close: Close, leave: bool) {
        if leave {
            self.accept_all();
        }
        self.stop_accepting();
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
        Ok(self.pacing.as_ref().map_or(0, Pacing::closed))
    }

    /// Sleeps until something happens, and takes note of it.
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
        if waited.is_ok() && may_sleep && self.events.is_empty() && self.has_records() {
            // Records and no ring: its writer is about to, or has forgotten us.
            waited = self.epoll.wait(RING_GRACE, &mut self.events);
            let is_missed = !self.events.iter().any(|event| event.token == WAKE);
            self.sessions
                .metrics
                .add(Count::MissedWakeups, usize::from(is_missed));
        }
        self.sessions.reader.awake();
        self.sessions.uplink.awake();
        waited.map_err(EngineError::system("epoll_wait"))?;
        self.note_events();
        Ok(())
    }

    fn has_records(&self) -> bool {
        self.sessions.reader.position() != self.sessions.reader.tail()
    }

    /// How long there is nothing to do unless something happens.
    fn sleep_max(&mut self) -> Duration {
        let is_busy = self.log_has_more
            || !self.to_read.is_empty()
            || self.sessions.has_to_flush()
            || (self.may_accept() && self.listeners.iter().any(|each| each.is_ready));
        if is_busy {
            return Duration::ZERO;
        }
        let resting = self.listeners.iter().any(|each| each.is_ready) && self.is_accepting;
        let rest = if resting { ACCEPT_REST } else { Duration::MAX };
        let step = if self.pacing.is_some() {
            DRAIN_STEP
        } else {
            Duration::MAX
        };
        SAFETY_POLL
            .min(self.sessions.sleep_max())
            .min(rest)
            .min(step)
    }

    fn note_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event.token {
                HTTP_LISTENER => self.listeners[0].is_ready = true,
                TCP_LISTENER => self.listeners[1].is_ready = true,
                // Log and replies are looked at in every turn.
                WAKE => {}
                LINK => self.link_is_ready = true,
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

    fn mark_to_read(&mut self, token: Token) {
        if let Some(connection) = self.sessions.connections.get_mut(token)
            && connection.flags.raise(Flags::TO_READ)
        {
            self.to_read.push(token);
        }
    }

    fn may_accept(&self) -> bool {
        self.is_accepting && host::monotonic_ns() >= self.accept_after_ns
    }

    /// Takes connections from both listeners, in turn, up to the budget of a turn.
    fn accept(&mut self) {
        if !self.may_accept() {
            return;
        }
        let mut budget = self.sessions.settings.accepts_per_turn_max;
        while budget > 0 && self.listeners.iter().any(|each| each.is_ready) {
            for index in 0..self.listeners.len() {
                if self.listeners[index].is_ready {
                    self.accept_one(index);
                    budget = budget.saturating_sub(1);
                }
            }
            if !self.may_accept() {
                return;
            }
        }
    }

    fn accept_one(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        match sys::accept(listener.socket.as_fd()) {
            Ok(socket) => {
                let transport = listener.transport;
                self.admit(socket, transport);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => listener.is_ready = false,
            Err(error) if sys::is_of_peer(&error) => {}
            Err(error) if sys::is_shortage(&error) => self.relieve(index),
            Err(_) => {
                self.sessions.metrics.add(Count::AcceptErrors, 1);
                self.rest();
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd, transport: Transport) {
        let Some(token) = self.sessions.accepted(socket, transport) else {
            return;
        };
        let Some(connection) = self.sessions.connections.get_mut(token) else {
            return;
        };
        let fd: BorrowedFd<'_> = connection.socket.as_fd();
        if self.epoll.add(fd, token.bits(), Watch::Edges).is_err() {
            // Out of epoll watches (max_user_watches, epoll(7)): as if out of descriptors.
            self.sessions.metrics.add(Count::RefusedDescriptors, 1);
            self.sessions.hung_up(token);
        }
    }

    /// Out of descriptors: the spare one makes room to take a connection and close it, lest it
    /// waits in the queue for ever. Out of anything else: a rest.
    fn relieve(&mut self, index: usize) {
        self.sessions.metrics.add(Count::RefusedDescriptors, 1);
        if self.spare.take().is_some() {
            drop(sys::accept(self.listeners[index].socket.as_fd()));
            self.spare = sys::spare_descriptor().ok();
        }
        if self.spare.is_none() {
            self.spare = sys::spare_descriptor().ok();
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.accept_after_ns = host::monotonic_ns() + ACCEPT_REST.as_nanos() as u64;
    }

    /// Takes what waits in the listeners' queues now.
    fn accept_all(&mut self) {
        for index in 0..self.listeners.len() {
            self.listeners[index].is_ready = true;
            while self.listeners[index].is_ready && self.may_accept() {
                self.accept_one(index);
            }
        }
    }

    fn stop_accepting(&mut self) {
        if std::mem::take(&mut self.is_accepting) {
            for listener in &self.listeners {
                // Fails only for what is not watched.
                let _ = self.epoll.remove(listener.socket.as_fd());
            }
        }
    }

    /// Reads from every connection that has something, up to the budget of each.
    fn read(&mut self) {
        for token in std::mem::take(&mut self.to_read) {
            if self.read_one(token) {
                self.mark_to_read(token);
            }
        }
    }

    /// Returns whether there may be more to read.
    fn read_one(&mut self, token: Token) -> bool {
        let Some(connection) = self.sessions.connections.get_mut(token) else {
            return false;
        };
        connection.flags.set(Flags::TO_READ, false);
        match connection.input.take() {
            Some(held) => self.read_on(token, *held),
            None => self.read_afresh(token),
        }
    }

    /// Reads into the shared buffer; what is not finished gets one of its own.
    fn read_afresh(&mut self, token: Token) -> bool {
        let mut buffer = std::mem::take(&mut self.scratch);
        let received = self.receive(token, &mut buffer);
        if let Some((count, _)) = received {
            let done = self.sessions.received(token, &mut buffer[..count]);
            if done < count {
                self.hold(token, buffer[done..count].to_vec());
            }
        }
        self.scratch = buffer;
        received.is_some_and(|(_, more)| more)
    }

    /// Reads on behind what is held from before.
    fn read_on(&mut self, token: Token, mut held: Vec<u8>) -> bool {
        let before = held.len();
        let growth = before.max(INPUT_GROWTH_BYTES);
        held.resize(self.sessions.input_bytes_max().min(before + growth), 0);
        let Some((count, more)) = self.receive(token, &mut held[before..]) else {
            return false;
        };
        held.truncate(before + count);
        let done = self.sessions.received(token, &mut held);
        held.drain(..done);
        if !held.is_empty() {
            self.hold(token, held);
        }
        more
    }

    /// How many bytes came, and whether there may be more. `None`: the connection is no more.
    fn receive(&mut self, token: Token, buffer: &mut [u8]) -> Option<(usize, bool)> {
        let connection = self.sessions.connections.get_mut(token)?;
        let must_see_end = connection.flags.has(Flags::ENDED);
        match sys::receive(connection.socket.as_fd(), buffer) {
            Ok(0) => {}
            Ok(count) => {
                self.sessions.metrics.add(Count::ReceivedBytes, count);
                return Some((count, must_see_end || count == buffer.len()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some((0, false)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some((0, true)),
            Err(_) => {}
        }
        self.sessions.hung_up(token);
        None
    }

    /// Keeps the beginning of something whose end has not come.
    fn hold(&mut self, token: Token, rest: Vec<u8>) {
        if rest.len() >= self.sessions.input_bytes_max() {
            // The parsers refuse what is too long from its header; nothing should come here.
            return self.sessions.condemn(token, Close::MessageTooBig);
        }
        if let Some(connection) = self.sessions.connections.get_mut(token) {
            connection.input = Some(Box::new(rest));
        }
    }

    /// Reads what the publisher has written: records and replies.
    fn drain_log(&mut self) -> Result<(), EngineError> {
        self.log_has_more = self.sessions.drain_log();
        self.sessions.take_replies()?;
        Ok(())
    }

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

    /// What was counted, for tests.
    pub fn metrics(&self) -> &Metrics {
        &self.sessions.metrics
    }

    /// The eventfd that this worker is woken by.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
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
    let mut sessions = Sessions::new(settings, metrics, reader, table, uplink);
    sessions.metrics.set_state(state::SERVING);
    Ok(sessions)
}
