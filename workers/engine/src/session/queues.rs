//! Queues of connections: held against their bounds, and sent once a turn.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::Sessions;
use crate::connection::{Connection, Dialect, Flags, Phase};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::close::Close;
use crate::sending::SENDS_PER_BATCH;
use crate::settings::Settings;
use crate::slab::Token;
use crate::sys;

/// Connections that are put down before the first of them is sent to: as many as stay in a
/// processor's cache beside what the kernel touches for their sends.
const SENDS_PER_LOT: usize = 64;

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
            self.to_flush.push_back(index);
        }
        // It is in that list, which is put down from as well.
        connection.flags.set(Flags::UNKEPT, true);
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

    /// Sends what this turn has put into the queues of the first connections that have something,
    /// [`SENDS_PER_BATCH`] of them: one send for each at most. The others are first the next time.
    pub fn flush(&mut self) {
        let count = self.to_flush.len().min(SENDS_PER_BATCH);
        let batch: Vec<u32> = self.to_flush.drain(..count).collect();
        if self.sender.takes(count) {
            self.flush_together(&batch);
        } else {
            batch
                .chunks(SENDS_PER_LOT)
                .for_each(|lot| self.flush_lot(lot));
        }
        if self.keep.is_sweep_due() {
            self.put_down();
        }
    }

    /// Sends to a few connections, by a system call for each.
    fn flush_lot(&mut self, lot: &[u32]) {
        let begin = self.keep.tail();
        // In one go: what each needs of memory comes while the one before is at work.
        for index in lot {
            if self.keep.is_lot_full(begin) {
                break;
            }
            self.put_down_one(*index);
        }
        lot.iter().for_each(|index| self.flush_one(*index));
    }

    /// Sends to one connection, by a system call of its own.
    fn flush_one(&mut self, index: u32) {
        if !self.get_ready(index) {
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
        self.note_sent(index, offered, result);
    }

    /// Sends to several connections by one system call; each is in `batch` once.
    fn flush_together(&mut self, batch: &[u32]) {
        let begin = self.keep.tail();
        let mut ready = Vec::with_capacity(batch.len());
        for (place, &index) in batch.iter().enumerate() {
            if self.keep.is_lot_full(begin) {
                // Before those that come behind this batch.
                batch[place..]
                    .iter()
                    .rev()
                    .for_each(|&i| self.to_flush.push_front(i));
                break;
            }
            if self.get_ready(index) {
                ready.push(index);
            }
        }
        let (mut sent_to, mut offers) = (Vec::new(), Vec::new());
        let mut silent = Vec::new();
        for index in ready {
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
        self.metrics
            .add(Count::SendBatches, usize::from(!sent_to.is_empty()));
        for ((index, offered), result) in sent_to.into_iter().zip(results) {
            self.note_sent(index, offered, result);
        }
        for index in silent {
            self.note_sent(index, 0, Ok(0));
        }
    }

    /// Gets ready what a connection sends next, and puts it down first: whoever goes on with the
    /// connection after a crash knows what may have been sent. False: it may send nothing.
    #[inline]
    fn get_ready(&mut self, index: u32) -> bool {
        self.put_down_one(index);
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
        if let Dialect::Tcp(tcp) = &mut connection.dialect {
            let queued = connection.outbox.queued_bytes() + tcp.wire.len();
            tcp.fill(&mut connection.outbox, &mut self.buffers);
            self.queued_bytes -= queued;
            self.queued_bytes += connection.queued_bytes();
        }
        true
    }

    /// Takes note of what became of a send of `offered` bytes.
    fn note_sent(&mut self, index: u32, offered: usize, result: io::Result<usize>) {
        let Some(connection) = self.connections.at_mut(index) else {
            return;
        };
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                connection.flags.set(Flags::TO_FLUSH, true);
                return self.to_flush.push_back(index);
            }
            Err(error) => return self.send_failed(index, &error),
        };
        let queued = connection.queued_bytes();
        connection.advance(sent, &mut self.buffers);
        connection.kept.count_sent(sent);
        let waiting = connection.queued_bytes();
        self.queued_bytes -= queued - waiting;
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
        } else if is_blocked {
            self.waits(index);
        } else if has_more {
            self.to_flush.push_back(index);
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
