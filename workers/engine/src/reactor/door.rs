//! Where connections come in: both listeners, and what to do when the host is short of something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tidegate_ring::host;

use crate::metrics::{Count, Metrics};
use crate::session::Transport;
use crate::sys;

/// How long accepting rests after a shortage that refusing did not relieve.
const REST: Duration = Duration::from_millis(100);

struct Listener {
    socket: OwnedFd,
    transport: Transport,
    /// There may be connections in its queue: set by its edge, unset by EAGAIN.
    is_ready: bool,
}

/// What stands between the kernel's queues and the house.
pub struct Door {
    /// None after [`Door::close`].
    listeners: Vec<Listener>,
    /// Where to look first: the listeners take turns.
    first: usize,
    /// Closed when there is no other descriptor left, to take and refuse a connection with.
    spare: Option<OwnedFd>,
    is_open: bool,
    /// No accepting before this time (CLOCK_MONOTONIC).
    rests_until_ns: u64,
}

impl Door {
    /// An open door. The sockets become non-blocking, for whoever shares them.
    pub fn new(http: OwnedFd, tcp: OwnedFd) -> io::Result<Self> {
        for socket in [&http, &tcp] {
            sys::set_nonblocking(socket.as_fd())?;
            sys::set_no_delay(socket.as_fd());
        }
        let listener = |socket, transport| Listener {
            socket,
            transport,
            // What came before epoll watched makes no edge.
            is_ready: true,
        };
        Ok(Self {
            listeners: vec![
                listener(http, Transport::Http),
                listener(tcp, Transport::Tcp),
            ],
            first: 0,
            spare: sys::spare_descriptor().ok(),
            is_open: true,
            rests_until_ns: 0,
        })
    }

    /// A listener's edge: connections have come.
    pub fn note(&mut self, transport: Transport) {
        for listener in &mut self.listeners {
            listener.is_ready |= listener.transport == transport;
        }
    }

    /// How long there is nothing to accept unless a listener says so; zero: there may be now.
    pub fn idle(&self) -> Duration {
        if !self.is_open || !self.listeners.iter().any(|each| each.is_ready) {
            return Duration::MAX;
        }
        Duration::from_nanos(self.rests_until_ns.saturating_sub(host::monotonic_ns()))
    }

    /// The next connection, if one waits.
    pub fn next(&mut self, metrics: &mut Metrics) -> Option<(OwnedFd, Transport)> {
        while self.idle().is_zero() {
            self.first = (self.first + 1) % self.listeners.len();
            let listener = &mut self.listeners[self.first];
            if !listener.is_ready {
                continue;
            }
            match sys::accept(listener.socket.as_fd()) {
                Ok(socket) => return Some((socket, listener.transport)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listener.is_ready = false;
                }
                Err(error) if sys::is_of_peer(&error) => {}
                Err(error) if sys::is_shortage(&error) => {
                    self.relieve(metrics);
                    return None;
                }
                Err(_) => {
                    metrics.add(Count::AcceptErrors, 1);
                    self.rest();
                }
            }
        }
        None
    }

    /// Short of descriptors: the spare one makes room to take a connection and close it, lest it
    /// waits in the queue for ever. Short of anything else: a rest.
    fn relieve(&mut self, metrics: &mut Metrics) {
        metrics.add(Count::RefusedDescriptors, 1);
        let had_spare = self.spare.take().is_some();
        let listener = &self.listeners[self.first];
        let is_relieved = had_spare && sys::accept(listener.socket.as_fd()).is_ok();
        self.spare = sys::spare_descriptor().ok();
        if !is_relieved || self.spare.is_none() {
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.rests_until_ns = host::monotonic_ns() + REST.as_nanos() as u64;
    }

    /// Looks into both queues once more, whatever the edges said.
    pub fn look_again(&mut self) {
        self.listeners
            .iter_mut()
            .for_each(|each| each.is_ready = true);
    }

    /// Accepts again. Returns the listeners in the order of [`Door::new`], to be watched again;
    /// `None`: it was open.
    pub fn open(&mut self) -> Option<impl Iterator<Item = BorrowedFd<'_>>> {
        if std::mem::replace(&mut self.is_open, true) {
            return None;
        }
        self.look_again();
        Some(self.listeners.iter().map(|each| each.socket.as_fd()))
    }

    /// Lets go of the listeners. The kernel closes those that nobody else holds, so that nobody
    /// waits in a queue that no process looks into.
    pub fn close(&mut self) {
        self.is_open = false;
        self.listeners.clear();
    }

    /// Accepts no more. Returns the listeners, not to be watched any more.
    pub fn shut(&mut self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.is_open = false;
        self.listeners.iter().map(|each| each.socket.as_fd())
    }
}
