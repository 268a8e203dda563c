//! When connections are put down in the keep: once a turn each, after all that the turn has done
//! to them and before anything of it is sent.

use super::Sessions;
use crate::connection::Flags;
use crate::slab::Token;

impl Sessions {
    /// More of a connection has changed than its queue, how much was received of it, and whether it
    /// owes a pong.
    pub fn changed(&mut self, index: u32) {
        if let Some(connection) = self.connections.at_mut(index) {
            connection.flags.set(Flags::CHANGED, true);
            if connection.flags.raise(Flags::UNKEPT) {
                self.keep.behind.push(index);
            }
        }
    }

    /// Bytes of a client have been taken from the kernel. If they change anything, whoever acts on
    /// them says so.
    pub fn count_received(&mut self, token: Token, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(token) {
            let received = &mut connection.kept.received_bytes;
            *received = received.wrapping_add(bytes as u32);
            if connection.flags.raise(Flags::UNKEPT) {
                self.keep.behind.push(token.index);
            }
        }
    }

    /// Puts down whatever has changed since the last call.
    pub fn put_down(&mut self) {
        let mut behind = std::mem::take(&mut self.keep.behind);
        if self.keep.is_on() {
            self.refresh(&mut behind);
            for index in &behind {
                self.put_down_one(*index);
            }
            for place in 0..self.to_flush.len() {
                self.put_down_one(self.to_flush[place]);
            }
            self.keep.settle(self.reader.position());
        }
        behind.clear();
        self.keep.behind = behind;
    }

    /// Puts a connection down, if the keep is behind with it: nothing that this turn has made for
    /// its client is sent before.
    #[inline]
    pub(super) fn put_down_one(&mut self, index: u32) {
        let position = self.reader.position();
        let Some(connection) = self.connections.at_mut(index) else {
            return;
        };
        let flags = connection.flags;
        if !flags.has(Flags::UNKEPT) || !self.keep.is_on() {
            return;
        }
        // Whoever was refused is only told so.
        if flags.has(Flags::REFUSED) {
            return connection.flags.set(Flags::UNKEPT | Flags::CHANGED, false);
        }
        // Each frame of the binary protocol changes numbers that the record has.
        if flags.has(Flags::CHANGED) || connection.is_tcp() {
            return self.put_down_whole(index, position);
        }
        connection.flags.set(Flags::UNKEPT, false);
        self.keep.put(connection, position, false);
    }

    fn put_down_whole(&mut self, index: u32, position: u64) {
        let Some(token) = self.connections.token(index) else {
            return;
        };
        let described = self.describe(token);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.flags.set(Flags::UNKEPT | Flags::CHANGED, false);
        if let Some((record, channels)) = described {
            self.keep.describe(&record, &channels);
            self.keep.put(connection, position, true);
        }
    }

    /// Adds those whose frames have waited for so long that they are soon overwritten; and from
    /// time to time all whose slots name frames, sent or not: they are as good as lost with those.
    fn refresh(&mut self, behind: &mut Vec<u32>) {
        if self.keep.begins_sweep() {
            let tokens: Vec<Token> = self.connections.tokens().collect();
            for token in tokens {
                if let Some(connection) = self.connections.get_mut(token)
                    && self.keep.names_frames(connection.kept.slot)
                    && connection.flags.raise(Flags::UNKEPT)
                {
                    behind.push(token.index);
                }
            }
        }
        while let Some(token) = self.keep.next_fading() {
            let Some(connection) = self.connections.get_mut(token) else {
                continue;
            };
            if connection.queued_bytes() == 0 {
                connection.flags.set(Flags::LINGERING, false);
                continue;
            }
            self.keep.waits(token);
            if connection.flags.raise(Flags::UNKEPT) {
                behind.push(token.index);
            }
        }
    }

    /// After a lap: offsets have gone on otherwise than the log has.
    pub(super) fn all_changed(&mut self) {
        let tokens: Vec<Token> = self.connections.tokens().collect();
        for token in tokens {
            self.changed(token.index);
        }
    }
}
