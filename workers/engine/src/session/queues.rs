//! Queues of connections: held against their bounds, and sent once a turn.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::Sessions;
use crate::connection::{Connection, Flags, Phase};
use crate::metrics::Count;
use crate::outbox::Frame;
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
                connection.soft_since = Some(self.now);
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
    /// something: one send for each at most. The others are first the next time.
    pub fn flush(&mut self, count: usize) {
        let mut list = std::mem::take(&mut self.to_flush);
        let mut others = list.split_off(count.min(list.len()));
        let mut left = Vec::new();
        let mut rest = &list[..];
        while !rest.is_empty() {
            let batch = self.sender.batch(rest.len());
            let (now, after) = rest.split_at(batch.unwrap_or(1));
            match batch {
                None => self.flush_one(now[0], &mut left),
                Some(_) => self.flush_together(now, &mut left),
            }
            rest = after;
        }
        list.clear();
        list.append(&mut left);
        list.append(&mut self.to_flush);
        if !others.is_empty() {
            others.append(&mut list);
            list = others;
        }
        self.to_flush = list;
    }

    /// Sends to one connection, by a system call of its own. `left` gets the index if there is more
    /// to send without waiting for the socket.
    fn flush_one(&mut self, index: u32, left: &mut Vec<u32>) {
        if !self.fill(index) {
            return;
        }
        let Some(connection) = self.connections.at(index) else {
            return;
        };
        let offer = connection.offer();
        let offered = offer.bytes();
        let result = match offered {
            0 => Ok(0),
            _ => offer.send_now(connection.socket.as_fd()),
        };
        self.settle(index, offered, result, left);
    }

    /// Sends to several connections by one system call; each is in `batch` once.
    fn flush_together(&mut self, batch: &[u32], left: &mut Vec<u32>) {
        let ready: Vec<u32> = batch.iter().copied().filter(|&i| self.fill(i)).collect();
        let (mut sent_to, mut offers) = (Vec::new(), Vec::new());
        let mut silent = Vec::new();
        for &index in &ready {
            let Some(connection) = self.connections.at(index) else {
                continue;
            };
            let offer = connection.offer();
            match offer.bytes() {
                0 => silent.push(index),
                offered => {
                    sent_to.push((index, offered));
                    offers.push((connection.socket.as_fd(), offer));
                }
            }
        }
        let results = self.sender.send(&offers);
        self.metrics.add(Count::SendBatches, 1);
        for ((index, offered), result) in sent_to.into_iter().zip(results) {
            self.settle(index, offered, result, left);
        }
        for index in silent {
            self.settle(index, 0, Ok(0), left);
        }
    }

    /// Gets ready what a connection sends next; false: it has nothing to send, or may not.
    fn fill(&mut self, index: u32) -> bool {
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
        connection.fill(&mut self.buffers);
        self.queued_bytes = self.queued_bytes - queued + connection.queued_bytes();
        true
    }

    /// Takes note of what became of a send of `offered` bytes.
    fn settle(
        &mut self,
        index: u32,
        offered: usize,
        result: io::Result<usize>,
        left: &mut Vec<u32>,
    ) {
        let Some(connection) = self.connections.at_mut(index) else {
            return;
        };
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                connection.flags.set(Flags::TO_FLUSH, true);
                return left.push(index);
            }
            Err(error) => return self.send_failed(index, &error),
        };
        let queued = connection.queued_bytes();
        connection.advance(sent, &mut self.buffers);
        let waiting = connection.queued_bytes();
        self.queued_bytes = self.queued_bytes - queued + waiting;
        if waiting <= self.settings.queue_soft_bytes {
            connection.soft_since = None;
        }
        let is_blocked = sent < offered;
        let has_more = !is_blocked && connection.has_more();
        connection.flags.set(Flags::BLOCKED, is_blocked);
        connection.flags.set(Flags::TO_FLUSH, has_more);
        let has_said_all = waiting == 0 && connection.phase == Phase::Closing;
        self.metrics.add(Count::Sends, usize::from(offered > 0));
        self.metrics.add(Count::SentBytes, sent);
        self.metrics.add(Count::SendsBlocked, is_blocked.into());
        if has_said_all {
            self.said_goodbye(index);
        }
        if has_more {
            left.push(index);
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
