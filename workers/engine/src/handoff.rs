//! Hand-off of live connections between two workers, as `workers/HANDOFF.md` specifies it.
//!
//! - [`record`]: a connection as bytes.
//! - [`message`]: what the two say to each other over a Unix socket.
//! - [`giver`] and [`receiver`]: the two sides, driven by the turns of their reactors, so that all
//!   other connections are served between two batches.
//!
//! A connection has one owner at any instant: the giver until it has let go of it, nobody while it
//! is on its way, and the receiver from the moment at which its acknowledgement is with the kernel.
//! A giver that finds the receiver gone owns again what was not acknowledged.

mod giver;
pub mod message;
mod receiver;
pub mod record;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tidegate_ring::host;

use crate::connection::Slot;
use crate::metrics::Count;
use crate::session::{CatchUp, Sessions};
use crate::slab::Token;
use crate::sys::{Epoll, Watch, passing};

use giver::Giver;
use receiver::Receiver;
use record::Record;

/// What epoll tells for the sockets of hand-offs: no connection has so high an index.
pub const TOKEN: u64 = u32::MAX as u64 - 4;

/// Connections of one batch: with the memory of their records they are below the 253 descriptors
/// that the kernel takes in one message.
pub const BATCH_CONNECTIONS_MAX: usize = 240;
/// Bytes of records after which a batch is closed: long queues take time to copy, and nobody is
/// served meanwhile.
pub const BATCH_BYTES_SOFT: usize = 4 << 20;
/// What a receiver takes for a batch: the soft bound and one connection of any size beyond it.
const BATCH_BYTES_MAX: usize = 1 << 30;
/// Batches that may be on their way: one that the receiver works on and one that waits for it.
/// More only wait longer. Below the 1,024 descriptors, the usual RLIMIT_NOFILE, that the kernel
/// lets a sender have on their way.
pub const BATCHES_IN_FLIGHT_MAX: usize = 2;
/// Takings that may be under way at once: every other worker of a large instance that shrinks.
const TAKINGS_MAX: usize = 64;

/// How long the end of a taking is kept back until the publisher is told of all who came. Whoever
/// hears of it may take the giver's uplink away, and with it what they were in. It is longer than
/// it takes to replace a publisher that hangs.
const TOLD_NS_MAX: u64 = 30_000_000_000;

/// How a giving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedOver {
    pub id: u64,
    /// Connections that the receiver has now.
    pub moved: usize,
    /// Connections that were wanted and are served here still.
    pub kept: usize,
    /// Connections that could not be served on after they had been let go of.
    pub lost: usize,
    pub reason: &'static str,
}

/// How a taking ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    pub id: u64,
    pub count: usize,
    pub refused: usize,
    pub reason: &'static str,
    /// Of the pauses of the adopted connections.
    pub pause_us_p50: u64,
    pub pause_us_p99: u64,
    pub pause_us_max: u64,
}

/// What there is to tell of hand-offs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    Moving {
        id: u64,
        moved: usize,
        remaining: usize,
    },
    HandedOver(HandedOver),
    Adopted(Adopted),
}

/// What a giving is to achieve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Names it in the reports.
    pub id: u64,
    /// `None`: all.
    pub count: Option<usize>,
}

/// A connection that has left its worker, or has not arrived yet.
pub struct Parcel {
    pub socket: OwnedFd,
    pub record: Record,
    /// In the keep of the worker that gives it.
    pub slot: Option<Slot>,
}

/// Where connections live: what both sides of a hand-off work on.
pub struct Ground<'a> {
    pub epoll: &'a Epoll,
    pub sessions: &'a mut Sessions,
}

impl Ground<'_> {
    /// Takes a connection out of everything that could touch it.
    fn detach(&mut self, token: Token) -> Option<Parcel> {
        let connection = self.sessions.connections.get_mut(token)?;
        // Before the socket is sent: an epoll(7) entry outlives the descriptor that made it.
        let _ = self.epoll.remove(connection.socket.as_fd());
        let (socket, record, slot) = self.sessions.detach(token)?;
        Some(Parcel {
            socket,
            record,
            slot,
        })
    }

    /// Serves connections from now on, and does for them what the log has brought while they were
    /// on their way. Of each that can be watched: its token, and its pause in microseconds.
    fn attach_all(&mut self, parcels: Vec<Parcel>) -> Vec<(Token, u64)> {
        let position_of = |parcel: &Parcel| parcel.record.log_position;
        // Those that one turn has let go of have one position; those of a worker that died, two.
        let mut by_position: HashMap<u64, Vec<Token>> = HashMap::new();
        for position in parcels.iter().filter_map(position_of) {
            self.sessions.read_up_to(position);
            by_position.entry(position).or_default();
        }
        let mut catch_up = CatchUp::default();
        let mut attached = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let position = position_of(&parcel);
            let Some((token, pause_us)) = self.attach(parcel, &mut catch_up) else {
                continue;
            };
            attached.push((token, pause_us));
            if let Some(arrived) = position.and_then(|each| by_position.get_mut(&each)) {
                arrived.push(token);
            }
        }
        for (position, arrived) in by_position {
            self.sessions.replay(position, &arrived);
        }
        attached
    }

    /// Serves a connection from now on. The kernel reports at once what the socket is ready for,
    /// so that bytes which came meanwhile are seen. `None`: it cannot be watched, and is closed.
    fn attach(&mut self, parcel: Parcel, catch_up: &mut CatchUp) -> Option<(Token, u64)> {
        let Parcel {
            socket,
            record,
            slot,
        } = parcel;
        let detached_ns = record.detached_ns;
        let token = self.sessions.adopt(socket, record, catch_up);
        let connection = self.sessions.connections.get_mut(token)?;
        connection.kept.slot = slot;
        let socket = connection.socket.as_fd();
        if self.epoll.add(socket, token.bits(), Watch::Edges).is_err() {
            self.sessions.metrics.add(Count::HandoffLost, 1);
            self.sessions.hung_up(token);
            return None;
        }
        let pause_us = host::monotonic_ns().saturating_sub(detached_ns) / 1000;
        Some((token, pause_us))
    }
}

/// All hand-offs of a worker.
#[derive(Default)]
pub struct Handoffs {
    giver: Option<Giver>,
    receivers: Vec<Receiver>,
    /// Of takings that are over, and since when (CLOCK_MONOTONIC).
    kept_back: VecDeque<(Report, u64)>,
    reports: VecDeque<Report>,
}

impl Handoffs {
    /// No hand-off is under way.
    pub fn is_empty(&self) -> bool {
        self.giver.is_none() && self.receivers.is_empty()
    }

    /// Begins to give connections to the worker at the other end of `socket`, in the order of
    /// `wanted`. While another giving is under way it only reports that.
    pub fn give(&mut self, socket: OwnedFd, order: Order, wanted: Vec<Token>) {
        if self.giver.is_none() {
            self.giver = Some(Giver::new(socket, order, wanted));
            return;
        }
        self.reports.push_back(Report::HandedOver(HandedOver {
            id: order.id,
            moved: 0,
            kept: wanted.len(),
            lost: 0,
            reason: "busy",
        }));
    }

    /// Begins to take what the worker at the other end of `socket` gives.
    pub fn take(&mut self, socket: OwnedFd, id: u64, room: usize) {
        let mut receiver = Receiver::new(socket, id, room);
        if self.receivers.len() < TAKINGS_MAX {
            self.receivers.push(receiver);
        } else {
            self.reports.push_back(receiver.finished("busy"));
        }
    }

    /// Something has happened on a socket of a hand-off.
    pub fn woken(&mut self) {
        if let Some(giver) = &mut self.giver {
            giver.woken();
        }
        self.receivers.iter_mut().for_each(Receiver::woken);
    }

    /// Whether there is something to do that no event will remind us of.
    pub fn is_busy(&self) -> bool {
        let giver = self.giver.as_ref().is_some_and(Giver::is_busy);
        giver || self.receivers.iter().any(Receiver::is_busy)
    }

    /// Goes on with each hand-off by a batch at most. Returns the connections that came back.
    pub fn step(&mut self, ground: &mut Ground<'_>) -> Vec<Token> {
        let mut returned = Vec::new();
        if let Some(giver) = &mut self.giver {
            let report = giver.step(ground, &mut returned);
            if let Some(Report::HandedOver(_)) = report {
                self.giver = None;
            }
            self.reports.extend(report);
        }
        let kept_back = &mut self.kept_back;
        self.receivers.retain_mut(|receiver| {
            let report = receiver.step(ground);
            kept_back.extend(report.map(|report| (report, host::monotonic_ns())));
            report.is_none()
        });
        self.let_go(ground);
        returned
    }

    /// Tells of takings that are over, if the publisher has been told before.
    fn let_go(&mut self, ground: &Ground<'_>) {
        while let Some((report, since_ns)) = self.kept_back.front() {
            let waited_ns = host::monotonic_ns() - since_ns;
            if !ground.sessions.uplink.has_told_all() && waited_ns < TOLD_NS_MAX {
                return;
            }
            self.reports.push_back(*report);
            self.kept_back.pop_front();
        }
    }

    pub fn report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }
}

/// What became of a message, as far as the ownership of connections is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Done,
    /// There is no room now; the socket says when there is.
    Later,
    /// More descriptors are on their way than the kernel allows.
    Crowded,
    /// The other side is gone.
    Gone,
    /// The kernel refuses.
    Failed,
}

impl From<io::Result<()>> for Sent {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Self::Later,
            Err(error) if passing::is_crowded(&error) => Self::Crowded,
            Err(error) if passing::is_gone(&error) => Self::Gone,
            Err(_) => Self::Failed,
        }
    }
}
