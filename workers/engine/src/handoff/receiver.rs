//! The side that takes: looks at a batch whole, acknowledges it, and only then touches a socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tidegate_ring::host;

use super::message::{MESSAGE_BYTES_MAX, Message, Refusal};
use super::record::{self, VERSION, VERSION_OLDEST};
use super::{Adopted, BATCH_BYTES_MAX, BATCH_CONNECTIONS_MAX, Ground, Parcel, Report, Sent};
use crate::metrics::{Count, Histogram};
use crate::sys::Watch;
use crate::sys::passing::{self, Received};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not watched yet, and nothing said.
    New,
    /// Waits for the other side's greeting.
    Greeting,
    Taking,
}

/// A batch that is found good, and whose acknowledgement is not with the kernel yet.
struct Pending {
    ack: Vec<u8>,
    connections: Vec<Parcel>,
    /// CLOCK_MONOTONIC.
    since_ns: u64,
}

/// How long a batch waits for room in the uplink, in which the publisher is told of its clients: a
/// publisher that is away for longer must not hold up the hand-off.
const UPLINK_NS_MAX: u64 = 1_000_000_000;

pub struct Receiver {
    id: u64,
    socket: OwnedFd,
    stage: Stage,
    room: usize,
    /// There may be something to read, or room to write.
    is_woken: bool,
    pending: Option<Pending>,
    /// Sockets that came, or may come now, and are the giver's still: our keep has to know.
    foreign: usize,
    refused: usize,
    /// Of each connection adopted, in microseconds.
    pauses_us: Vec<u64>,
}

impl Receiver {
    /// `room`: for how many connections there is.
    pub fn new(socket: OwnedFd, id: u64, room: usize) -> Self {
        Self {
            id,
            socket,
            stage: Stage::New,
            room,
            is_woken: true,
            pending: None,
            foreign: 0,
            refused: 0,
            pauses_us: Vec::new(),
        }
    }

    pub fn woken(&mut self) {
        self.is_woken = true;
    }

    pub fn is_busy(&self) -> bool {
        self.is_woken
    }

    /// Goes on by a batch; a report ends it.
    pub fn step(&mut self, ground: &mut Ground<'_>) -> Option<Report> {
        if self.stage == Stage::New && !self.greet(ground) {
            return Some(self.finished("system"));
        }
        if !self.is_woken {
            return None;
        }
        let reason = self.advance(ground);
        if self.pending.is_none() {
            self.hold_foreign(ground, 0);
        }
        let reason = reason?;
        let _ = ground.epoll.remove(self.socket.as_fd());
        Some(self.finished(reason))
    }

    /// Takes the next message; returns why it is the last one, if it is.
    fn advance(&mut self, ground: &mut Ground<'_>) -> Option<&'static str> {
        if let Some(pending) = self.pending.take() {
            let reason = self.acknowledge(ground, pending);
            if self.pending.is_some() {
                return None;
            }
            if reason.is_some() {
                return reason;
            }
        }
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        self.hold_foreign(ground, BATCH_CONNECTIONS_MAX);
        match passing::receive(self.socket.as_fd(), &mut buffer) {
            Ok(received) if received.bytes == 0 => Some("giver_gone"),
            Ok(received) => self.told(ground, &buffer, received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_woken = false;
                None
            }
            // The giver has left messages unread; what it has said comes after.
            Err(error) if passing::was_reset(&error) => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(_) => Some("giver_gone"),
        }
    }

    fn greet(&mut self, ground: &Ground<'_>) -> bool {
        self.stage = Stage::Greeting;
        let hello = Message::hello(self.room).encode();
        let epoll = ground.epoll;
        let watched = epoll.add(self.socket.as_fd(), super::TOKEN, Watch::Edges);
        let said = Sent::from(passing::send(self.socket.as_fd(), &hello, &[]));
        watched.is_ok() && matches!(said, Sent::Done | Sent::Gone)
    }

    /// Takes a message; returns why it is the last one, if it is.
    fn told(
        &mut self,
        ground: &mut Ground<'_>,
        buffer: &[u8],
        received: Received,
    ) -> Option<&'static str> {
        let message = Message::parse(&buffer[..received.bytes]);
        match (self.stage, message) {
            (Stage::Greeting, Some(Message::Hello { version, .. }))
                if (VERSION_OLDEST..=VERSION).contains(&version) =>
            {
                self.stage = Stage::Taking;
                None
            }
            (Stage::Greeting, _) => Some("incompatible"),
            (_, Some(Message::Batch { number, count })) => {
                self.batch(ground, number, count, received)
            }
            (_, Some(Message::Fin)) => Some("done"),
            _ => Some("protocol"),
        }
    }

    fn batch(
        &mut self,
        ground: &mut Ground<'_>,
        number: u32,
        count: u32,
        received: Received,
    ) -> Option<&'static str> {
        let mut room = ground.sessions.room();
        let mut refused = Vec::new();
        let mut connections = Vec::new();
        match unpack(count, received) {
            Ok(unpacked) => {
                for (place, connection) in unpacked.into_iter().enumerate() {
                    if room > 0 {
                        room -= 1;
                        connections.push(connection);
                    } else {
                        refused.push((place as u16, Refusal::Full));
                    }
                }
            }
            Err(refusal) => refused = (0..count as u16).map(|place| (place, refusal)).collect(),
        }
        for (_, refusal) in &refused {
            let count = match refusal {
                Refusal::Full => Count::HandoffRefusedFull,
                Refusal::Descriptors => Count::HandoffRefusedDescriptors,
                Refusal::Malformed => Count::HandoffRefusedMalformed,
            };
            ground.sessions.metrics.add(count, 1);
        }
        self.refused += refused.len();
        self.hold_foreign(ground, connections.len());
        let ack = Message::Ack { number, refused }.encode();
        // The publisher learns whose they are before their giver lets go of them: if the giver's
        // uplink ends next, they are in their channels still.
        let records = connections.iter().map(|parcel| &parcel.record);
        ground.sessions.announce_arrivals(records);
        let pending = Pending {
            ack,
            connections,
            since_ns: host::monotonic_ns(),
        };
        self.acknowledge(ground, pending)
    }

    /// Says that connections are ours, and makes them so. If the giver cannot be told, they are
    /// not: it takes them back when this socket closes, for the reason that is returned.
    fn acknowledge(&mut self, ground: &mut Ground<'_>, pending: Pending) -> Option<&'static str> {
        let waited_ns = host::monotonic_ns() - pending.since_ns;
        if !ground.sessions.uplink.has_told_all() && waited_ns < UPLINK_NS_MAX {
            self.pending = Some(pending);
            return None;
        }
        match passing::send(self.socket.as_fd(), &pending.ack, &[]).into() {
            // A giver that is gone takes nothing back: they are ours as well.
            Sent::Done | Sent::Gone => {
                self.hold_foreign(ground, 0);
                self.adopt(ground, pending.connections);
            }
            Sent::Later => {
                self.pending = Some(pending);
                self.is_woken = false;
            }
            Sent::Crowded | Sent::Failed => return Some("system"),
        }
        None
    }

    fn hold_foreign(&mut self, ground: &mut Ground<'_>, count: usize) {
        let by = count as isize - self.foreign as isize;
        if by != 0 {
            ground.sessions.keep.change_received(by);
        }
        self.foreign = count;
    }

    fn adopt(&mut self, ground: &mut Ground<'_>, connections: Vec<Parcel>) {
        for (_, pause_us) in ground.attach_all(connections) {
            let metrics = &mut ground.sessions.metrics;
            metrics.add(Count::HandoffAdopted, 1);
            metrics.record(Histogram::HandoffPauseUs, pause_us);
            self.pauses_us.push(pause_us);
        }
        // They have left the giver's keep.
        ground.sessions.put_down();
    }

    pub fn finished(&mut self, reason: &'static str) -> Report {
        self.pauses_us.sort_unstable();
        let count = self.pauses_us.len();
        let at = |percent: usize| {
            let place = (count * percent / 100).min(count.saturating_sub(1));
            self.pauses_us.get(place).copied().unwrap_or(0)
        };
        Report::Adopted(Adopted {
            id: self.id,
            count,
            refused: self.refused,
            reason,
            pause_us_p50: at(50),
            pause_us_p99: at(99),
            pause_us_max: at(100),
        })
    }
}

/// Sockets and records of a batch, if it is what its header says.
fn unpack(count: u32, received: Received) -> Result<Vec<Parcel>, Refusal> {
    if received.is_truncated {
        return Err(Refusal::Descriptors);
    }
    let mut descriptors = received.descriptors.into_iter();
    let memory = descriptors.next().ok_or(Refusal::Malformed)?;
    let bytes = passing::read_sealed(memory, BATCH_BYTES_MAX);
    let bytes = bytes.map_err(|_| Refusal::Malformed)?;
    let records = record::read(&bytes).map_err(|_| Refusal::Malformed)?;
    if records.len() != count as usize || descriptors.len() != count as usize {
        return Err(Refusal::Malformed);
    }
    let parcel = |(socket, record)| Parcel {
        socket,
        record,
        slot: None,
    };
    Ok(descriptors.zip(records).map(parcel).collect())
}
