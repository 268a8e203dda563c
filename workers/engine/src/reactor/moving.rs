//! Hand-offs: the orders that begin and end them, and their part of a turn.

use std::os::fd::OwnedFd;

use super::{EngineError, HTTP_LISTENER, Reactor, TCP_LISTENER};
use crate::handoff::{Ground, Order, Report};
use crate::metrics::TurnPhase;
use crate::sending::SENDS_PER_BATCH;
use crate::sys::{Watch, passing};

/// Descriptors that adopted connections leave to everything else.
const DESCRIPTORS_RESERVED: usize = 64;

impl Reactor {
    /// Gives connections to another worker, which is at the other end of `socket`. Unless it
    /// `keeps_accepting`, this worker accepts no more from now on; with `drains_queue`, what waits
    /// in the listeners' queues is accepted before, as nobody else will, and they are let go of.
    pub fn hand_over(
        &mut self,
        socket: OwnedFd,
        order: Order,
        keeps_accepting: bool,
        drains_queue: bool,
    ) {
        if drains_queue {
            self.leave_the_door();
        }
        if !keeps_accepting {
            self.shut_the_door();
        }
        let wanted = self.sessions.connections.tokens().collect();
        self.handoffs.give(socket, order, wanted);
    }

    /// Takes the connections that the worker at the other end of `socket` gives.
    pub fn adopt(&mut self, socket: OwnedFd, id: u64) {
        let descriptors = passing::descriptors_left().saturating_sub(DESCRIPTORS_RESERVED);
        let room = self.sessions.room().min(descriptors);
        self.handoffs.take(socket, id, room);
    }

    /// Accepts again after [`Reactor::hand_over`] has stopped it.
    ///
    /// # Errors
    /// [`EngineError::System`] where the kernel refuses.
    pub fn resume(&mut self) -> Result<(), EngineError> {
        let Some(listeners) = self.door.open() else {
            return Ok(());
        };
        for (listener, token) in listeners.zip([HTTP_LISTENER, TCP_LISTENER]) {
            self.epoll
                .add(listener, token, Watch::ReadEdges)
                .map_err(EngineError::system("epoll_ctl"))?;
        }
        Ok(())
    }

    /// The next news of a hand-off.
    pub fn handoff_report(&mut self) -> Option<Report> {
        self.handoffs.report()
    }

    /// The phase `flush`, and between its sends two things that should not wait for them all.
    /// Publications that came meanwhile leave together with what still waits: under load that is
    /// one send for many, and a lone one waits for nothing. And hand-offs: connections on their way
    /// wait for both workers.
    #[inline(never)]
    pub(super) fn flush(&mut self) {
        let mut left = self.sessions.to_flush();
        let latencies = self.sessions.latencies();
        loop {
            self.sessions.flush();
            self.hand_off();
            left = left.saturating_sub(SENDS_PER_BATCH);
            if left == 0 {
                break;
            }
            if self.has_records() {
                self.lap(TurnPhase::Flush);
                self.log_has_more = self.sessions.read_on();
                self.lap(TurnPhase::FanOut);
            }
            // Nobody has asked epoll meanwhile.
            self.handoffs.woken();
        }
        self.sessions.put_down();
        let all_sent = !self.sessions.has_to_flush();
        let sent = if all_sent {
            self.sessions.latencies()
        } else {
            latencies
        };
        self.sessions.record_latency(sent);
    }

    fn hand_off(&mut self) {
        let returned = self.handoffs.step(&mut Ground {
            epoll: &self.epoll,
            sessions: &mut self.sessions,
        });
        for token in returned {
            match &self.pacing {
                // They were away when those that were here had their turn.
                Some(pacing) => self.sessions.condemn(token, pacing.close()),
                None => self.mark_to_read(token),
            }
        }
        self.read_resumed();
    }
}
