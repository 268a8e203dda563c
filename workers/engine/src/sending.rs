//! How bytes leave for clients: a system call for each connection, or one of io_uring for many.
//!
//! Both take an [`Offer`] and tell how many of its bytes the kernel took, now or not at all: no
//! send waits, and none outlives the call of [`Sender::send`]. So a connection between two turns is
//! with nobody but the reactor, which may hand it over.

mod uring;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use serde::Deserialize;

use self::uring::Ring;
use crate::error::EngineError;
use crate::outbox::Frame;
use crate::sys;

/// Most frames of one system call: 4 KiB of stack, below the kernel's IOV_MAX of 1024 (uio(7)).
pub const SLICES_MAX: usize = 256;

/// Sends of one batch, which are one system call of io_uring. Sixteen times as many cost a fifth
/// more: what the kernel keeps for each of a batch should still be in the processor's cache.
pub const SENDS_PER_BATCH: usize = 256;

/// For fewer sends than this a ring costs more than their system calls, a fifth more for
/// one, a twentieth for sixteen (sockets in the cache, x86-64). It pays for crowds: a call that
/// does not return between its sends makes way less often for the peers that they wake.
const RING_SENDS_MIN: usize = 64;

/// Buffers that are kept between sends, a batch's worth of them, and the largest of them that is.
const BUFFERS_MAX: usize = SENDS_PER_BATCH;
const BUFFER_BYTES_MAX: usize = 4096;

/// What sends for this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// By io_uring where the kernel lets us and where it pays.
    Auto,
    Epoll,
    /// By io_uring, always or not at all.
    IoUring,
}

/// Bytes for one socket, in order: one slice or several, borrowed from where they wait.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    first: &'a [u8],
    rest: Option<&'a VecDeque<Rc<Frame>>>,
}

impl<'a> Offer<'a> {
    pub fn new(first: &'a [u8], rest: Option<&'a VecDeque<Rc<Frame>>>) -> Self {
        Self { first, rest }
    }

    /// As many as one system call takes.
    fn slices(&self) -> impl Iterator<Item = &'a [u8]> {
        let rest = self.rest.into_iter().flatten();
        let rest = rest.map(|frame| &frame.bytes[..]);
        std::iter::once(self.first).chain(rest).take(SLICES_MAX)
    }

    /// How many bytes one system call takes of it at most.
    pub fn bytes(&self) -> usize {
        match self.rest {
            None => self.first.len(),
            Some(_) => self.slices().map(<[u8]>::len).sum(),
        }
    }

    /// Sends by a system call of its own.
    pub fn send_now(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if self.rest.is_none() {
            return sys::send(socket, self.first);
        }
        let mut slices = [io::IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (place, slice) in slices.iter_mut().zip(self.slices()) {
            *place = io::IoSlice::new(slice);
            count += 1;
        }
        sys::send_vectored(socket, &slices[..count])
    }
}

/// Sends for all connections of a worker.
pub enum Sender {
    Direct,
    /// A ring, for `sends_min` sends at least.
    Ring {
        ring: Box<Ring>,
        sends_min: usize,
    },
}

impl Sender {
    /// The sender that was asked for.
    ///
    /// # Errors
    /// [`EngineError::IoUring`] where that is demanded and the kernel has none for us.
    pub fn new(engine: Engine) -> Result<Self, EngineError> {
        let by_ring = |sends_min| {
            Ring::new().map(|ring| Self::Ring {
                ring: Box::new(ring),
                sends_min,
            })
        };
        match engine {
            Engine::Epoll => Ok(Self::Direct),
            Engine::IoUring => by_ring(1).map_err(EngineError::IoUring),
            Engine::Auto => Ok(by_ring(RING_SENDS_MIN).unwrap_or(Self::Direct)),
        }
    }

    pub fn is_ring(&self) -> bool {
        matches!(self, Self::Ring { .. })
    }

    /// Whether so many connections that wait are sent to at once, and not each by itself.
    pub fn takes(&self, waiting: usize) -> bool {
        matches!(self, Self::Ring { sends_min, .. } if waiting >= *sends_min)
    }

    /// Sends [`SENDS_PER_BATCH`] offers at most, to a socket each; the results come in their order.
    /// A ring that fails is done without from then on.
    pub fn send(&mut self, offers: &[(BorrowedFd<'_>, Offer<'_>)]) -> Vec<io::Result<usize>> {
        let directly = |(socket, offer): &(BorrowedFd<'_>, Offer<'_>)| offer.send_now(*socket);
        let Self::Ring { ring, .. } = self else {
            return offers.iter().map(directly).collect();
        };
        let results = ring.send(offers);
        if results.iter().any(Option::is_none) {
            // Before anything is sent in its place: what it still holds is never looked at again.
            *self = Self::Direct;
        }
        let results = results.into_iter().zip(offers);
        results
            .map(|(result, offer)| result.unwrap_or_else(|| directly(offer)))
            .collect()
    }
}

/// Buffers in which frames of the TCP dialect are put together, on loan to connections that send.
#[derive(Default)]
pub struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    pub fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    pub fn give(&mut self, buffer: Vec<u8>) {
        let is_worth_it = (1..=BUFFER_BYTES_MAX).contains(&buffer.capacity());
        if is_worth_it && self.0.len() < BUFFERS_MAX {
            self.0.push(buffer);
        }
    }
}
