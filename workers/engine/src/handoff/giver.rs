//! The side that gives: lets go of connections batch by batch, and owns again what is not taken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tidegate_ring::host;

use super::message::{MESSAGE_BYTES_MAX, Message, Refusal};
use super::record::{VERSION, Writer};
use super::{
    BATCH_BYTES_SOFT, BATCH_CONNECTIONS_MAX, BATCHES_IN_FLIGHT_MAX, Ground, HandedOver, Order,
    Parcel, Report, Sent,
};
use crate::connection::{Flags, Slot};
use crate::metrics::Count;
use crate::session::Movable;
use crate::slab::Token;
use crate::sys::Watch;
use crate::sys::passing;

/// Time between two reports of progress.
const REPORT_INTERVAL_NS: u64 = 100_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not watched yet, and nothing said.
    New,
    /// Waits for the other side's greeting.
    Greeting,
    Giving,
    /// The other side is gone.
    Gone,
}

/// How long connections are held for answers once all others are through: for as long as the
/// application may take for its own, within these bounds. Whoever is away for longer must not hold
/// up the hand-off, whose watcher would blame the receiver: such connections stay with the giver.
const HELD_MIN: Duration = Duration::from_secs(1);
const HELD_MAX: Duration = Duration::from_secs(5);
/// An answer that did not come in time is given a little later than that.
const HELD_BEYOND: Duration = Duration::from_millis(500);

/// Connections on their way.
struct Batch {
    number: u32,
    memory: OwnedFd,
    connections: Vec<Parcel>,
}

impl Batch {
    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.connections.iter().filter_map(|parcel| parcel.slot)
    }
}

pub struct Giver {
    order: Order,
    socket: OwnedFd,
    stage: Stage,
    /// There may be something to read, or room to write.
    is_woken: bool,
    /// The other side has broken the protocol. What it has not acknowledged may be its own all the
    /// same: nobody may touch that before its end, and nobody can go on with it after.
    is_broken: bool,
    /// Not looked at yet, in order.
    wanted: VecDeque<Token>,
    /// Wait for an answer of the publisher, and are not read from meanwhile.
    held: Vec<Token>,
    /// Since when there is nothing left to do but to wait for them (CLOCK_MONOTONIC).
    waiting_since_ns: Option<u64>,
    /// How many the receiver has room for beyond what is on its way.
    room: usize,
    last_number: u32,
    /// Let go of, and not with the kernel yet.
    outbound: Option<Batch>,
    /// With the kernel, and not acknowledged.
    in_flight: VecDeque<Batch>,
    moved: usize,
    kept: usize,
    lost: usize,
    reason: &'static str,
    reported: (u64, usize),
}

impl Giver {
    pub fn new(socket: OwnedFd, order: Order, mut wanted: Vec<Token>) -> Self {
        wanted.truncate(order.count.unwrap_or(usize::MAX));
        Self {
            order,
            socket,
            stage: Stage::New,
            is_woken: true,
            is_broken: false,
            wanted: wanted.into(),
            held: Vec::new(),
            waiting_since_ns: None,
            room: 0,
            last_number: 0,
            outbound: None,
            in_flight: VecDeque::new(),
            moved: 0,
            kept: 0,
            lost: 0,
            reason: "done",
            reported: (0, 0),
        }
    }

    pub fn woken(&mut self) {
        self.is_woken = true;
    }

    pub fn is_busy(&self) -> bool {
        let may_build = self.stage == Stage::Giving
            && !self.is_broken
            && !self.wanted.is_empty()
            && self.outbound.is_none()
            && self.in_flight.len() < BATCHES_IN_FLIGHT_MAX;
        self.is_woken || may_build
    }

    /// Goes on by a batch. Connections that are owned again are appended to `returned`.
    pub fn step(&mut self, ground: &mut Ground<'_>, returned: &mut Vec<Token>) -> Option<Report> {
        if self.stage == Stage::New && !self.greet(ground) {
            self.stop("system");
            self.stage = Stage::Gone;
        }
        if std::mem::take(&mut self.is_woken) {
            self.read(ground, returned);
            self.send(ground, returned);
        }
        if self.stage == Stage::Gone {
            self.take_all_back(ground, returned);
        }
        self.reconsider_held(ground, returned);
        if self.stage == Stage::Giving
            && !self.is_broken
            && self.outbound.is_none()
            && self.in_flight.len() < BATCHES_IN_FLIGHT_MAX
        {
            self.outbound = self.build(ground, returned);
            self.send(ground, returned);
        }
        ground.sessions.keep.park(self.outbound.is_some());
        if self.is_over() {
            Some(self.finished(ground))
        } else {
            self.progress()
        }
    }

    fn greet(&mut self, ground: &mut Ground<'_>) -> bool {
        self.stage = Stage::Greeting;
        ground.sessions.keep.set_given(0);
        let hello = Message::hello(0).encode();
        let epoll = ground.epoll;
        let watched = epoll.add(self.socket.as_fd(), super::TOKEN, Watch::Edges);
        let said = Sent::from(passing::send(self.socket.as_fd(), &hello, &[]));
        watched.is_ok() && matches!(said, Sent::Done | Sent::Gone)
    }

    /// Takes what the receiver has said, to the last word even if it is gone.
    fn read(&mut self, ground: &mut Ground<'_>, returned: &mut Vec<Token>) {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        loop {
            match passing::receive(self.socket.as_fd(), &mut buffer) {
                Ok(received) if received.bytes == 0 => {
                    self.stage = Stage::Gone;
                    return;
                }
                Ok(received) => {
                    let message = Message::parse(&buffer[..received.bytes]);
                    self.told(ground, message, returned);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The receiver has left messages unread; what it has said comes after.
                Err(error) if passing::was_reset(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.stage = Stage::Gone;
                    return;
                }
            }
        }
    }

    fn told(
        &mut self,
        ground: &mut Ground<'_>,
        message: Option<Message>,
        returned: &mut Vec<Token>,
    ) {
        match message {
            Some(Message::Hello {
                version,
                oldest,
                room,
            }) if self.stage == Stage::Greeting => {
                self.stage = Stage::Giving;
                self.room = room as usize;
                if !(oldest..=version).contains(&VERSION) {
                    self.stop("incompatible");
                }
            }
            // Of a make that does not even greet as we do.
            _ if self.stage == Stage::Greeting => {
                self.stage = Stage::Giving;
                self.stop("incompatible");
            }
            Some(Message::Ack { number, refused }) => {
                self.acknowledged(ground, number, &refused, returned);
            }
            _ => self.is_broken = true,
        }
    }

    fn acknowledged(
        &mut self,
        ground: &mut Ground<'_>,
        number: u32,
        refused: &[(u16, Refusal)],
        returned: &mut Vec<Token>,
    ) {
        let batch = match self.in_flight.pop_front() {
            Some(batch) if batch.number == number => batch,
            other => {
                self.in_flight.extend(other);
                self.is_broken = true;
                return;
            }
        };
        let mut back = Vec::new();
        for (place, connection) in batch.connections.into_iter().enumerate() {
            match refused.iter().find(|each| usize::from(each.0) == place) {
                Some((_, Refusal::Full)) => {
                    self.stop("full");
                    back.push(connection);
                }
                Some(_) => {
                    self.stop("refused");
                    back.push(connection);
                }
                // Closed, never shut down: the connection is the receiver's now.
                None => {
                    self.moved += 1;
                    ground.sessions.keep.free(connection.slot);
                    ground.sessions.metrics.add(Count::HandoffMoved, 1);
                }
            }
        }
        ground.sessions.keep.set_given(self.moved);
        self.take_back(ground, back, returned);
    }

    /// Wants no more, for a reason; what is on its way goes on.
    fn stop(&mut self, reason: &'static str) {
        if self.reason == "done" {
            self.reason = reason;
        }
        self.kept += self.wanted.len();
        self.wanted.clear();
    }

    fn take_back(
        &mut self,
        ground: &mut Ground<'_>,
        connections: Vec<Parcel>,
        returned: &mut Vec<Token>,
    ) {
        // The receiver may have told the publisher that they are its own.
        let records = connections.iter().map(|parcel| &parcel.record);
        ground.sessions.announce_arrivals(records);
        let count = connections.len();
        ground.sessions.metrics.add(Count::HandoffTakenBack, count);
        let attached = ground.attach_all(connections);
        // Until then they were another's to the keep: others have got what they were only now sent.
        ground.sessions.put_down();
        self.kept += attached.len();
        self.lost += count - attached.len();
        returned.extend(attached.into_iter().map(|(token, _)| token));
    }

    /// The receiver is gone, and all that it said has been read: what it did not acknowledge, it
    /// never touched, if it has kept to the protocol.
    fn take_all_back(&mut self, ground: &mut Ground<'_>, returned: &mut Vec<Token>) {
        if !self.is_empty() {
            self.stop("receiver_gone");
        }
        for batch in std::mem::take(&mut self.in_flight) {
            if self.is_broken {
                batch
                    .slots()
                    .for_each(|slot| ground.sessions.keep.free(Some(slot)));
                self.lost += batch.connections.len();
                ground
                    .sessions
                    .metrics
                    .add(Count::HandoffLost, batch.connections.len());
            } else {
                self.take_back(ground, batch.connections, returned);
            }
        }
        if let Some(batch) = self.outbound.take() {
            self.take_back(ground, batch.connections, returned);
        }
    }

    /// Moves those that have their answers; lets all go on here if no more are wanted, or if their
    /// answers do not come.
    fn reconsider_held(&mut self, ground: &mut Ground<'_>, returned: &mut Vec<Token>) {
        let patience = ground.sessions.settings.hooks.timeout + HELD_BEYOND;
        let has_waited = self.has_waited_for(patience.clamp(HELD_MIN, HELD_MAX));
        let is_stopped = self.reason != "done" || self.is_broken || has_waited;
        for token in std::mem::take(&mut self.held) {
            match ground.sessions.movable(token) {
                None => {}
                Some(_) if is_stopped => {
                    self.kept += 1;
                    if let Some(connection) = ground.sessions.connections.get_mut(token) {
                        connection.flags.set(Flags::HELD, false);
                    }
                    returned.push(token);
                }
                Some(Movable::Later) => self.held.push(token),
                Some(_) => self.wanted.push_front(token),
            }
        }
    }

    fn has_waited_for(&mut self, patience: Duration) -> bool {
        let is_waiting = !self.held.is_empty()
            && self.wanted.is_empty()
            && self.outbound.is_none()
            && self.in_flight.is_empty();
        if !is_waiting {
            self.waiting_since_ns = None;
            return false;
        }
        let now_ns = host::monotonic_ns();
        now_ns > *self.waiting_since_ns.get_or_insert(now_ns) + patience.as_nanos() as u64
    }

    /// Lets go of the next connections.
    fn build(&mut self, ground: &mut Ground<'_>, returned: &mut Vec<Token>) -> Option<Batch> {
        let (mut writer, mut connections) = (Writer::default(), Vec::new());
        while connections.len() < BATCH_CONNECTIONS_MAX && writer.bytes().len() < BATCH_BYTES_SOFT {
            if self.room == 0 && !self.wanted.is_empty() {
                self.stop("full");
            }
            let Some(token) = self.wanted.pop_front() else {
                break;
            };
            match ground.sessions.movable(token) {
                Some(Movable::Now) => {}
                Some(Movable::Later) => {
                    self.hold(ground, token);
                    continue;
                }
                Some(Movable::Never) => {
                    self.kept += 1;
                    continue;
                }
                None => continue,
            }
            if let Some(parcel) = ground.detach(token) {
                writer.push(&parcel.record);
                connections.push(parcel);
                self.room -= 1;
            }
        }
        if connections.is_empty() {
            return None;
        }
        let Ok(memory) = passing::sealed_memory(writer.bytes()) else {
            self.stop("system");
            self.take_back(ground, connections, returned);
            return None;
        };
        self.last_number += 1;
        Some(Batch {
            number: self.last_number,
            memory,
            connections,
        })
    }

    fn hold(&mut self, ground: &mut Ground<'_>, token: Token) {
        if let Some(connection) = ground.sessions.connections.get_mut(token) {
            connection.flags.set(Flags::HELD, true);
            self.held.push(token);
        }
    }

    fn send(&mut self, ground: &mut Ground<'_>, returned: &mut Vec<Token>) {
        let Some(batch) = self.outbound.take() else {
            return;
        };
        let message = Message::Batch {
            number: batch.number,
            count: batch.connections.len() as u32,
        };
        let memory = [batch.memory.as_fd()];
        let sockets = batch.connections.iter().map(|each| each.socket.as_fd());
        let passed: Vec<BorrowedFd<'_>> = memory.into_iter().chain(sockets).collect();
        let keep = &mut ground.sessions.keep;
        keep.give(batch.slots());
        let sent = Sent::from(passing::send(
            self.socket.as_fd(),
            &message.encode(),
            &passed,
        ));
        if sent != Sent::Done {
            keep.keep(batch.slots());
        }
        match sent {
            Sent::Done => self.in_flight.push_back(batch),
            Sent::Later => self.outbound = Some(batch),
            // An acknowledgement will tell when there is room.
            Sent::Crowded if !self.in_flight.is_empty() => self.outbound = Some(batch),
            Sent::Gone => {
                // What the receiver said before its end is to be read first.
                self.outbound = Some(batch);
                self.is_woken = true;
            }
            Sent::Crowded | Sent::Failed => {
                self.stop("system");
                self.take_back(ground, batch.connections, returned);
            }
        }
    }

    fn is_over(&self) -> bool {
        let is_of_one_mind = self.stage == Stage::Giving && !self.is_broken;
        self.is_empty() && (is_of_one_mind || self.stage == Stage::Gone)
    }

    /// Nothing is left to give, or on its way.
    fn is_empty(&self) -> bool {
        self.wanted.is_empty()
            && self.held.is_empty()
            && self.outbound.is_none()
            && self.in_flight.is_empty()
    }

    fn finished(&mut self, ground: &mut Ground<'_>) -> Report {
        // A receiver that is gone needs no farewell, and one without room for it sees the end.
        let _ = passing::send(self.socket.as_fd(), &Message::Fin.encode(), &[]);
        let _ = ground.epoll.remove(self.socket.as_fd());
        Report::HandedOver(HandedOver {
            id: self.order.id,
            moved: self.moved,
            kept: self.kept,
            lost: self.lost,
            reason: self.reason,
        })
    }

    fn progress(&mut self) -> Option<Report> {
        let now_ns = host::monotonic_ns();
        let (reported_ns, reported_moved) = self.reported;
        if self.moved == reported_moved || now_ns < reported_ns + REPORT_INTERVAL_NS {
            return None;
        }
        self.reported = (now_ns, self.moved);
        let on_their_way = self.in_flight.iter().chain(&self.outbound);
        let on_their_way: usize = on_their_way.map(|batch| batch.connections.len()).sum();
        Some(Report::Moving {
            id: self.order.id,
            moved: self.moved,
            remaining: self.wanted.len() + self.held.len() + on_their_way,
        })
    }
}
