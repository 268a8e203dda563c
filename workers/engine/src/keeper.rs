//! The keeper: a tiny process beside each worker that has its descriptors, and only waits.
//!
//! A worker that dies takes its memory along, but not its sockets: the keeper shares its table of
//! descriptors, so the kernel keeps them open. What else is to be known of the connections, the
//! worker has put down in shared memory ([`crate::keep`]). The keeper makes the records of a
//! hand-off of it, and gives the connections to another worker by the same protocol
//! (`workers/HANDOFF.md`).
//!
//! - [`resume`]: a connection as it is, from what was put down and what the kernel counts.
//! - [`giver`]: the hand-off.
//!
//! It is a child of the supervisor, and ends with it; when its worker has ended in good order; or
//! when the supervisor lets go of its link, on which it says (maps of MessagePack):
//!
//! | type | fields | when |
//! |---|---|---|
//! | `hello` | pid | it is there |
//! | `found` | held, given, acknowledged, unrecorded | its worker is dead |
//! | `moving` | moved, remaining | while it gives, at most ten times a second |
//! | `handed_over` | moved, kept, lost, reason, and of `lost` each reason | a giving is over |
//!
//! A message with a descriptor tells it to give what it has to the worker at the other end.

mod giver;
pub mod resume;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use tidegate_ring::host;
use tidegate_ring::keep::{KeepView, State};
use tidegate_ring::region::Region;

use crate::error::EngineError;
use crate::sys::{self, passing, process};
use resume::Places;

const TITLE: &str = "tidegate: keeper";
/// What the kernel refused, or a supervisor that is gone.
const EXIT_FAILED: i32 = 1;
/// Longest message of the supervisor that is looked at; its descriptor is what matters.
const ORDER_BYTES_MAX: usize = 1024;

/// What a keeper needs to see.
pub struct Memory {
    pub keep: Region,
    pub log: Region,
    pub channels: Region,
}

/// Starts the keeper of this process, to whose clients these `listeners` are. To be called while it
/// has one thread, and before it has connections.
///
/// # Errors
/// [`EngineError`] where the kernel refuses, or a segment is not one that this build knows.
pub fn start(
    memory: &Memory,
    listeners: [BorrowedFd<'_>; 2],
    link: OwnedFd,
) -> Result<(), EngineError> {
    let of = |segment| move |source| EngineError::Segment { segment, source };
    let view = KeepView::attach(memory.keep.clone()).map_err(of("keep"))?;
    let log = memory.log.clone();
    let places = Places::attach(&log, memory.channels.clone()).map_err(of("log"))?;
    let ports = listeners.map(sys::local_port);
    let worker = process::own_pidfd().map_err(EngineError::system("pidfd_open"))?;
    let parent = process::parent_pid();
    // Both descriptors are the keeper's from now on, in the table that we share.
    let (worker, link) = (worker.into_raw_fd(), link.into_raw_fd());
    let cloned = process::beside(move || {
        process::die_with_the_parent();
        // The supervisor may have died before the kernel was told.
        if process::parent_pid() != parent {
            return EXIT_FAILED;
        }
        let keeper = Keeper {
            view,
            places,
            ports,
            worker,
            link,
        };
        keeper.live().map_or(EXIT_FAILED, |()| 0)
    });
    cloned.map_err(EngineError::system("clone"))
}

struct Keeper {
    view: KeepView,
    places: Places,
    /// Of the listeners. Who comes in has one of these at our end, who was called does not: an
    /// application has connections, too.
    ports: [Option<u16>; 2],
    /// Readable when the worker is dead.
    worker: RawFd,
    link: RawFd,
}

impl Keeper {
    fn live(mut self) -> io::Result<()> {
        process::set_title(TITLE);
        process::forget_inherited_memory();
        // SAFETY: both are ours, and open for as long as we live.
        let (worker, link) = unsafe { (process::lend(self.worker), process::lend(self.link)) };
        let pid = std::process::id();
        say(link.as_raw_fd(), "hello", &[("pid", pid as usize)], "")?;
        loop {
            let [dead, told] = process::wait_readable([worker, link], -1)?;
            if told && receive(self.link)?.is_none() {
                return Ok(());
            }
            if dead {
                break;
            }
        }
        let died_ns = host::monotonic_ns();
        if self.view.has_ended() {
            return Ok(());
        }
        let mut giver = giver::Giver::new(died_ns);
        self.find(&mut giver)?;
        // Until the supervisor lets go of the link, or nothing is left.
        while let Some(order) = receive(self.link)? {
            if let Some(receiver) = order {
                let given = giver.give(&self.view, &mut self.places, receiver.as_fd(), link);
                given.say(self.link)?;
            } else {
                process::wait_readable([link, link], -1)?;
            }
        }
        Ok(())
    }

    /// Lets go of all descriptors that are not connections, above all of the ends of hand-offs,
    /// whose other sides wait for them to close. Says what there is.
    fn find(&self, giver: &mut giver::Giver) -> io::Result<()> {
        let mut given = 0;
        let mut known = vec![0, 1, 2, self.worker, self.link];
        let mut foreign = Vec::new();
        for slot in 0..self.view.slots() {
            match self.view.read(slot) {
                State::Free => continue,
                State::Given { descriptor } => {
                    given += 1;
                    foreign.push(descriptor as RawFd);
                }
                State::Held(kept) => {
                    known.push(kept.descriptor as RawFd);
                    giver.take(slot);
                }
                State::Damaged { descriptor, damage } => {
                    giver.lose(damage.into());
                    foreign.push(descriptor as RawFd);
                }
            }
        }
        known.sort_unstable();
        foreign.sort_unstable();
        let mut unrecorded = 0;
        for number in process::open_descriptors()? {
            if known.binary_search(&number).is_ok() {
                continue;
            }
            // SAFETY: it was in the list of those that are open, and nobody else closes any.
            let is_client = self.is_client(unsafe { process::lend(number) });
            unrecorded += usize::from(is_client && foreign.binary_search(&number).is_err());
            process::close(number);
        }
        let received = self.view.received() as usize;
        let fields = [
            ("held", giver.held()),
            ("given", given),
            ("acknowledged", self.view.given() as usize),
            ("damaged", giver.lost()),
            ("unrecorded", unrecorded.saturating_sub(received)),
        ];
        say(self.link, "found", &fields, "")
    }

    fn is_client(&self, descriptor: BorrowedFd<'_>) -> bool {
        let port = sys::local_port(descriptor);
        port.is_some() && self.ports.contains(&port) && sys::is_tcp_connection(descriptor)
    }
}

/// The next message of the supervisor: a descriptor, if it brings one. `None`: the link has ended.
fn receive(link: RawFd) -> io::Result<Option<Option<OwnedFd>>> {
    let mut buffer = [0; ORDER_BYTES_MAX];
    // SAFETY: the link is open for as long as the keeper lives.
    let link = unsafe { process::lend(link) };
    match passing::receive(link, &mut buffer) {
        Ok(received) if received.bytes == 0 => Ok(None),
        Ok(received) => Ok(Some(received.descriptors.into_iter().next())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(None)),
        Err(error) => Err(error),
    }
}

/// Sends a map of MessagePack (<https://github.com/msgpack/msgpack/blob/master/spec.md>).
fn say(link: RawFd, kind: &str, fields: &[(&str, usize)], reason: &str) -> io::Result<()> {
    let mut out = Vec::new();
    let text = |out: &mut Vec<u8>, text: &str| {
        // fixstr: up to 31 bytes, which all of ours are.
        out.push(0xA0 | text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    };
    let entries = 1 + fields.len() + usize::from(!reason.is_empty());
    // map 16: the count in two bytes.
    out.push(0xDE);
    out.extend_from_slice(&(entries as u16).to_be_bytes());
    text(&mut out, "type");
    text(&mut out, kind);
    for (name, value) in fields {
        text(&mut out, name);
        // uint 64.
        out.push(0xCF);
        out.extend_from_slice(&(*value as u64).to_be_bytes());
    }
    if !reason.is_empty() {
        text(&mut out, "reason");
        text(&mut out, reason);
    }
    // SAFETY: as in `receive`.
    passing::send(unsafe { process::lend(link) }, &out, &[])
}
