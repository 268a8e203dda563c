//! The phase `read`: bytes from sockets to sessions, through one buffer for all connections.

use std::io;
use std::os::fd::AsFd;

use super::Reactor;
use crate::connection::Flags;
use crate::metrics::Count;
use crate::protocol::close::Close;
use crate::slab::Token;
use crate::sys;

/// Bytes read from one connection in one turn; it has its turn again after the others.
pub(super) const READ_BYTES_PER_TURN: usize = 65_536;
/// A buffer that holds the beginning of a message grows by at least so much.
const INPUT_GROWTH_BYTES: usize = 4096;

impl Reactor {
    /// Reads from every connection that has something, up to the budget of each.
    #[inline(never)]
    pub(super) fn read(&mut self) {
        for token in std::mem::take(&mut self.to_read) {
            if self.read_one(token) {
                self.mark_to_read(token);
            }
        }
    }

    /// Returns whether there may be more to read.
    fn read_one(&mut self, token: Token) -> bool {
        let Some(connection) = self.sessions.connections.get_mut(token) else {
            return false;
        };
        connection.flags.set(Flags::TO_READ, false);
        if connection.flags.has(Flags::HELD) || connection.flags.has(Flags::WAITING) {
            return false;
        }
        match connection.input.take() {
            Some(held) => self.read_on(token, *held),
            None => self.read_afresh(token),
        }
    }

    /// Reads into the shared buffer; what is not finished gets one of its own.
    fn read_afresh(&mut self, token: Token) -> bool {
        let mut buffer = std::mem::take(&mut self.scratch);
        let received = self.receive(token, &mut buffer);
        if let Some((count, _)) = received {
            let done = self.sessions.received(token, &mut buffer[..count]);
            if done < count {
                self.hold(token, buffer[done..count].to_vec());
            }
        }
        self.scratch = buffer;
        received.is_some_and(|(_, more)| more)
    }

    /// Reads on behind what is held from before.
    fn read_on(&mut self, token: Token, mut held: Vec<u8>) -> bool {
        let before = held.len();
        let growth = before.max(INPUT_GROWTH_BYTES);
        let max = self.sessions.input_bytes_max();
        let mut more = true;
        // What waited behind a question may be more than is held otherwise.
        if before < max {
            held.resize(max.min(before + growth), 0);
            let Some((count, may_be_more)) = self.receive(token, &mut held[before..]) else {
                return false;
            };
            held.truncate(before + count);
            more = may_be_more;
        }
        let done = self.sessions.received(token, &mut held);
        held.drain(..done);
        if !held.is_empty() {
            self.hold(token, held);
        }
        more
    }

    /// How many bytes came, and whether there may be more. `None`: the connection is no more.
    fn receive(&mut self, token: Token, buffer: &mut [u8]) -> Option<(usize, bool)> {
        let connection = self.sessions.connections.get_mut(token)?;
        let must_see_end = connection.flags.has(Flags::ENDED);
        match sys::receive(connection.socket.as_fd(), buffer) {
            Ok(0) => {}
            Ok(count) => {
                self.sessions.metrics.add(Count::ReceivedBytes, count);
                self.sessions.count_received(token, count);
                return Some((count, must_see_end || count == buffer.len()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some((0, false)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some((0, true)),
            Err(_) => {}
        }
        self.sessions.hung_up(token);
        None
    }

    /// Keeps the beginning of something whose end has not come.
    fn hold(&mut self, token: Token, rest: Vec<u8>) {
        let bytes_max = self.sessions.input_bytes_max();
        let Some(connection) = self.sessions.connections.get_mut(token) else {
            return;
        };
        if rest.len() >= bytes_max && !connection.flags.has(Flags::WAITING) {
            // The parsers refuse what is too long from its header; nothing should come here.
            return self.sessions.condemn(token, Close::MessageTooBig);
        }
        connection.input = Some(Box::new(rest));
    }
}
