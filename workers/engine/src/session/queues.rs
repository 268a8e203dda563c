//! Queues of connections: held against their bounds, and sent once a turn.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::Sessions;
use crate::connection::{Connection, Dialect, Flags, Phase};
use crate::metrics::Count;
use crate::outbox::{Flush, Frame};
use crate::protocol::close::Close;
use crate::settings::Settings;
use crate::slab::Token;
use crate::sys;

/// How full a connection's queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressure {
    None,
    /// Over what it may hold for a while.
    Soft,
    /// Over what it may ever hold.
    Hard,
}

#[inline]
pub(super) fn pressure(connection: &Connection, settings: &Settings) -> Pressure {
    let queued = connection.queued_bytes();
    if queued <= settings.queue_soft_bytes {
        Pressure::None
    } else if queued <= settings.queue_hard_bytes {
        Pressure::Soft
    } else {
        Pressure::Hard
    }
}

impl Sessions {
    /// Puts a frame for one connection into its queue.
    pub(super) fn enqueue(&mut self, token: Token, frame: Rc<Frame>) {
        // What is said to a client of which more is known tends to be about that.
        if let Some(connection) = self.connections.get_mut(token)
            && connection.identity.is_some()
        {
            self.changed(token.index);
        }
        self.enqueue_ping(token, frame);
    }

    /// As [`Sessions::enqueue`], for what changes nothing that is known of a client.
    pub(super) fn enqueue_ping(&mut self, token: Token, frame: Rc<Frame>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let before = connection.queued_bytes();
        connection.outbox.push(frame);
        self.queued_bytes += connection.queued_bytes() - before;
        self.after_enqueue(token);
    }

    /// Holds a queue that has grown against its bounds, and sees to it that it is sent.
    pub(super) fn after_enqueue(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        match pressure(connection, &self.settings) {
            Pressure::Hard if connection.phase != Phase::Closing => {
                self.condemn(token, Close::Slow);
            }
            Pressure::Soft if connection.soft_since.is_none() => {
                connection.soft_since = NonZero::new(self.now);
                self.schedule_by(token.index, self.settings.queue_soft);
            }
            // What it left has been dropped, and this is its answer.
            Pressure::None => connection.soft_since = None,
            _ => {}
        }
        self.mark_to_flush(token.index);
    }

    pub fn mark_to_flush(&mut self, index: u32) {
        let Some(connection) = self.connections.at_mut(index) else {
            return;
        };
        if connection.flags.raise(Flags::TO_FLUSH) {
            self.to_flush.push(index);
        }
        if connection.flags.raise(Flags::UNKEPT) {
            self.keep.behind.push(index);
        }
    }

    /// The socket takes bytes again.
    pub fn writable(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.flags.set(Flags::BLOCKED, false);
        if connection.queued_bytes() > 0 {
            self.mark_to_flush(token.index);
        }
    }

    /// How many connections have something to send, or had.
    pub fn to_flush(&self) -> usize {
        self.to_flush.len()
    }

    /// Sends what this turn has put into the queues of the first `count` connections that have
    /// something: one system call for each at most. The others are first the next time.
    pub fn flush(&mut self, count: usize) {
        let mut list = std::mem::take(&mut self.to_flush);
        // At its beginning, a list would be split by an allocation of as much again.
        let mut others = match count < list.len() {
            true => list.split_off(count),
            false => Vec::new(),
        };
        list.retain(|index| {
            self.put_down_one(*index);
            self.flush_one(*index)
        });
        list.append(&mut self.to_flush);
        if !others.is_empty() {
            others.append(&mut list);
            list = others;
        }
        self.to_flush = list;
    }

    /// Returns whether there is more to send without waiting for the socket.
    fn flush_one(&mut self, index: u32) -> bool {
        let Some(connection) = self.connections.at_mut(index) else {
            return false;
        };
        if !connection.flags.has(Flags::TO_FLUSH) {
            return false;
        }
        connection.flags.set(Flags::TO_FLUSH, false);
        if connection.flags.has(Flags::BLOCKED) {
            return false;
        }
        let queued = connection.queued_bytes();
        let socket = connection.socket.as_fd();
        let result = match &mut connection.dialect {
            Dialect::Tcp(tcp) => tcp.flush(&mut connection.outbox, &mut self.scratch, socket),
            _ => connection.outbox.flush(socket),
        };
        let left = connection.queued_bytes();
        self.queued_bytes = self.queued_bytes - queued + left;
        if left <= self.settings.queue_soft_bytes {
            connection.soft_since = None;
        }
        match result {
            Ok((sent, state)) => {
                connection.kept.count_sent(sent);
                connection.flags.set(Flags::TO_FLUSH, state == Flush::More);
                connection
                    .flags
                    .set(Flags::BLOCKED, state == Flush::Blocked);
                let has_said_all = left == 0 && connection.phase == Phase::Closing;
                let was_blocked = state == Flush::Blocked;
                // Without anything to send there was no system call.
                let was_called = sent > 0 || was_blocked;
                self.metrics.add(Count::Sends, usize::from(was_called));
                self.metrics.add(Count::SentBytes, sent);
                self.metrics
                    .add(Count::SendsBlocked, usize::from(was_blocked));
                if has_said_all {
                    self.said_goodbye(index);
                } else if was_blocked {
                    self.waits(index);
                }
                state == Flush::More
            }
            Err(error) => {
                self.send_failed(index, &error);
                false
            }
        }
    }

    /// The socket takes no more now.
    fn waits(&mut self, index: u32) {
        let Some(token) = self.connections.token(index) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(token)
            && connection.flags.raise(Flags::LINGERING)
        {
            self.keep.waits(token);
        }
    }

    /// Our last words are with the kernel.
    fn said_goodbye(&mut self, index: u32) {
        let Some(token) = self.connections.token(index) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.flags.has(Flags::HANG_UP) {
            self.forget(token);
        } else if connection.flags.has(Flags::DEAF) {
            sys::finish_sending(connection.socket.as_fd());
        }
    }

    fn send_failed(&mut self, index: u32, error: &io::Error) {
        let Some(token) = self.connections.token(index) else {
            return;
        };
        let is_gone = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        );
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Closing {
            self.metrics.close(if is_gone {
                Close::ConnectionClosed
            } else {
                Close::WriteError
            });
        }
        self.forget(token);
    }
}
