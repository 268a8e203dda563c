//! The hand-off of a dead worker's connections: the side that gives, in a process that does nothing
//! else and may wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use tidegate_ring::host;
use tidegate_ring::keep::{KeepView, State};

use super::resume::{Counted, Loss, Places, Resumed, resume};
use super::say;
use crate::handoff::message::{MESSAGE_BYTES_MAX, Message, Refusal};
use crate::handoff::record::{VERSION, Writer};
use crate::handoff::{BATCH_BYTES_SOFT, BATCH_CONNECTIONS_MAX, BATCHES_IN_FLIGHT_MAX};
use crate::sys::{self, passing, process};

/// Time between two reports of progress.
const REPORT_INTERVAL_NS: u64 = 100_000_000;

/// How a giving ended.
pub struct Given {
    moved: usize,
    kept: usize,
    losses: [usize; Loss::ALL.len()],
    reason: &'static str,
}

impl Given {
    pub fn say(&self, link: RawFd) -> io::Result<()> {
        let mut fields = vec![
            ("moved", self.moved),
            ("kept", self.kept),
            ("lost", self.losses.iter().sum()),
        ];
        let names = Loss::ALL.iter().map(|(_, name)| *name);
        fields.extend(names.zip(self.losses));
        say(link, "handed_over", &fields, self.reason)
    }
}

/// A connection on its way.
struct Parcel {
    slot: u32,
    socket: RawFd,
    loss: Option<Loss>,
}

struct Batch {
    number: u32,
    parcels: Vec<Parcel>,
}

/// The connections of a dead worker.
pub struct Giver {
    /// Slots of those that nobody has yet.
    wanted: VecDeque<u32>,
    /// When the worker died, CLOCK_MONOTONIC.
    died_ns: u64,
    moved: usize,
    losses: [usize; Loss::ALL.len()],
    told_ns: u64,
}

/// One hand-off.
struct Talk<'a> {
    receiver: BorrowedFd<'a>,
    link: BorrowedFd<'a>,
    room: usize,
    last_number: u32,
    in_flight: VecDeque<Batch>,
    reason: &'static str,
}

impl Giver {
    pub fn new(died_ns: u64) -> Self {
        Self {
            wanted: VecDeque::new(),
            died_ns,
            moved: 0,
            losses: Default::default(),
            told_ns: 0,
        }
    }

    pub fn take(&mut self, slot: u32) {
        self.wanted.push_back(slot);
    }

    pub fn lose(&mut self, loss: Loss) {
        self.losses[loss as usize] += 1;
    }

    pub fn held(&self) -> usize {
        self.wanted.len()
    }

    pub fn lost(&self) -> usize {
        self.losses.iter().sum()
    }

    /// Gives what there is to the worker at the other end of `receiver`, unless the supervisor
    /// lets go of `link` before.
    pub fn give(
        &mut self,
        view: &KeepView,
        places: &mut Places,
        receiver: BorrowedFd<'_>,
        link: BorrowedFd<'_>,
    ) -> Given {
        let mut talk = Talk {
            receiver,
            link,
            room: 0,
            last_number: 0,
            in_flight: VecDeque::new(),
            reason: "done",
        };
        let told = self.talk(&mut talk, view, places);
        // What was not acknowledged, nobody has touched.
        for batch in std::mem::take(&mut talk.in_flight) {
            self.take_back(batch.parcels);
        }
        if told.is_err() {
            talk.reason = "receiver_gone";
        }
        Given {
            moved: std::mem::take(&mut self.moved),
            kept: self.wanted.len(),
            losses: std::mem::take(&mut self.losses),
            reason: talk.reason,
        }
    }

    fn talk(
        &mut self,
        talk: &mut Talk<'_>,
        view: &KeepView,
        places: &mut Places,
    ) -> io::Result<()> {
        passing::send(talk.receiver, &Message::hello(0).encode(), &[])?;
        match talk.hear()? {
            Some(Message::Hello {
                version,
                oldest,
                room,
            }) if (oldest..=version).contains(&VERSION) => talk.room = room as usize,
            _ => {
                talk.reason = "incompatible";
                return Ok(());
            }
        }
        loop {
            while talk.in_flight.len() < BATCHES_IN_FLIGHT_MAX {
                if talk.room == 0 && !self.wanted.is_empty() {
                    talk.stop("full");
                }
                if talk.reason != "done" {
                    break;
                }
                match self.send_batch(talk, view, places) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // What it said before its end is to be heard first.
                    Err(_) => talk.stop("receiver_gone"),
                }
            }
            let Some(batch) = talk.in_flight.pop_front() else {
                return passing::send(talk.receiver, &Message::Fin.encode(), &[]);
            };
            // Until it is taken, it is ours, and found here if the receiver is gone.
            let number = batch.number;
            talk.in_flight.push_front(batch);
            match talk.hear()? {
                Some(Message::Ack {
                    number: told,
                    refused,
                }) if told == number => {
                    let batch = talk.in_flight.pop_front();
                    let parcels = batch.map_or_else(Vec::new, |batch| batch.parcels);
                    self.acknowledged(talk, parcels, &refused);
                    self.tell(talk);
                }
                _ => {
                    // It may have touched what it was sent: nobody can go on with that.
                    for batch in talk.in_flight.drain(..) {
                        for parcel in batch.parcels {
                            self.lose(parcel.loss.unwrap_or(Loss::Refused));
                            process::close(parcel.socket);
                        }
                    }
                    talk.stop("protocol");
                    return Ok(());
                }
            }
        }
    }

    /// Sends the next connections; false: there are none.
    fn send_batch(
        &mut self,
        talk: &mut Talk<'_>,
        view: &KeepView,
        places: &mut Places,
    ) -> io::Result<bool> {
        let (mut writer, mut parcels) = (Writer::default(), Vec::new());
        while parcels.len() < BATCH_CONNECTIONS_MAX.min(talk.room)
            && writer.bytes().len() < BATCH_BYTES_SOFT
        {
            let Some(slot) = self.wanted.pop_front() else {
                break;
            };
            if let Some((parcel, resumed)) = self.resume(slot, view, places) {
                writer.push(&resumed.record);
                parcels.push(parcel);
            }
        }
        if parcels.is_empty() {
            return Ok(false);
        }
        talk.room -= parcels.len();
        talk.last_number += 1;
        let number = talk.last_number;
        let sent = talk.send(number, &writer, &parcels);
        let Ok(()) = sent else {
            self.take_back(parcels);
            return sent.map(|()| false);
        };
        talk.in_flight.push_back(Batch { number, parcels });
        Ok(true)
    }

    /// A connection as it is now. `None`: nothing can be done for it any more.
    fn resume(
        &mut self,
        slot: u32,
        view: &KeepView,
        places: &mut Places,
    ) -> Option<(Parcel, Resumed)> {
        let State::Held(kept) = view.read(slot) else {
            return None;
        };
        let socket = kept.descriptor as RawFd;
        // SAFETY: what the keep names was open when the worker died, and only we close any.
        let (sent, received) = sys::stream_position(unsafe { process::lend(socket) });
        let counted = Counted {
            sent_bytes: sent as u32,
            received_bytes: received as u32,
        };
        match resume(kept, view.settled(), counted, places, self.died_ns) {
            Ok(resumed) => {
                let loss = resumed.loss;
                Some((Parcel { slot, socket, loss }, resumed))
            }
            Err(loss) => {
                self.lose(loss);
                process::close(socket);
                None
            }
        }
    }

    fn acknowledged(
        &mut self,
        talk: &mut Talk<'_>,
        parcels: Vec<Parcel>,
        refused: &[(u16, Refusal)],
    ) {
        let mut back = Vec::new();
        for (place, parcel) in parcels.into_iter().enumerate() {
            match refused.iter().find(|each| usize::from(each.0) == place) {
                Some((_, refusal)) => {
                    talk.stop(if *refusal == Refusal::Full {
                        "full"
                    } else {
                        "refused"
                    });
                    back.push(parcel);
                }
                None => {
                    match parcel.loss {
                        Some(loss) => self.lose(loss),
                        None => self.moved += 1,
                    }
                    // Closed, never shut down: the connection is the receiver's now.
                    process::close(parcel.socket);
                }
            }
        }
        self.take_back(back);
    }

    /// Says how far it is, so that the supervisor sees that it is getting on.
    fn tell(&mut self, talk: &Talk<'_>) {
        let now_ns = host::monotonic_ns();
        if now_ns >= self.told_ns + REPORT_INTERVAL_NS {
            self.told_ns = now_ns;
            let fields = [("moved", self.moved), ("remaining", self.wanted.len())];
            // One that finds no room is followed by others.
            let _ = say(talk.link.as_raw_fd(), "moving", &fields, "");
        }
    }

    fn take_back(&mut self, parcels: Vec<Parcel>) {
        self.wanted.extend(parcels.iter().map(|parcel| parcel.slot));
    }
}

impl Talk<'_> {
    /// Wants no more, for a reason.
    fn stop(&mut self, reason: &'static str) {
        if self.reason == "done" {
            self.reason = reason;
        }
    }

    /// Sends a batch; waits while the receiver has no room for it.
    fn send(&self, number: u32, writer: &Writer, parcels: &[Parcel]) -> io::Result<()> {
        let memory: OwnedFd = passing::sealed_memory(writer.bytes())?;
        let memory = [std::os::fd::AsFd::as_fd(&memory)];
        // SAFETY: as in `resume`.
        let sockets = parcels
            .iter()
            .map(|each| unsafe { process::lend(each.socket) });
        let passed: Vec<BorrowedFd<'_>> = memory.into_iter().chain(sockets).collect();
        let count = parcels.len() as u32;
        let message = Message::Batch { number, count }.encode();
        loop {
            match passing::send(self.receiver, &message, &passed) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock || passing::is_crowded(&error) =>
                {
                    // It reads in time, or is gone; a poll(2) for room would not see a crowd.
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    self.check()?;
                }
                other => return other,
            }
        }
    }

    /// The next message of the receiver. `None`: it is none that we know.
    fn hear(&self) -> io::Result<Option<Message>> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        loop {
            match passing::receive(self.receiver, &mut buffer) {
                Ok(received) if received.bytes == 0 => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Ok(received) => return Ok(Message::parse(&buffer[..received.bytes])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    process::wait_readable([self.receiver, self.link], -1)?;
                    self.check()?;
                }
                // It has left messages unread; what it has said comes after.
                Err(error) if passing::was_reset(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Fails when the supervisor has let go of us.
    fn check(&self) -> io::Result<()> {
        let [ended, _] = process::wait_readable([self.link, self.link], 0)?;
        if ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}
