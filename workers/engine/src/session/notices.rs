//! What developers are told in the worker's log: why clients are refused, and which option would
//! let them in. Clients are not told.

use std::collections::VecDeque;

use super::Sessions;
use super::permission::Closed;
use crate::connection::uuid_text;
use crate::slab::Token;
use crate::wheel::{TICK, Tick};

/// Lines at a time: a developer who tries something makes a few, an attacker no more than these.
const BURST: usize = 5;
/// Time after which one more may be said, in ticks: one a second.
const REFILL: Tick = (1000 / TICK.as_millis()) as Tick;

#[derive(Default)]
pub(super) struct Notices {
    lines: VecDeque<String>,
    /// When the last was said, as if they had come evenly.
    paid: Tick,
    /// Not said since the last one that was.
    suppressed: usize,
}

impl Notices {
    fn add(&mut self, now: Tick, line: impl FnOnce() -> String) {
        self.paid = self.paid.max(now.saturating_sub(BURST as Tick * REFILL)) + REFILL;
        if self.paid > now {
            self.paid -= REFILL;
            self.suppressed += 1;
            return;
        }
        let mut line = line();
        if self.suppressed > 0 {
            line += &format!(" ({} more lines like this were left out)", self.suppressed);
            self.suppressed = 0;
        }
        self.lines.push_back(line);
    }
}

impl Sessions {
    /// Has a line for the log, unless there were too many.
    pub(super) fn notice(&mut self, line: impl FnOnce() -> String) {
        self.notices.add(self.now, line);
    }

    /// Says which option would have allowed what a client wanted to do.
    pub(super) fn notice_refusal(
        &mut self,
        token: Token,
        act: &str,
        channel: &str,
        closed: Closed,
    ) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let (client, user) = (connection.client, connection.user().to_string());
        self.notices.add(self.now, || {
            let client = uuid_text(&client);
            format!("client {client} (user {user:?}) may not {act} {channel:?}: {closed}")
        });
    }

    /// The lines since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.notices.lines.drain(..).collect()
    }

    /// Whether there are lines that nobody but the worker's shell can log. It needs the interpreter
    /// to come by them, which an application may hold for long; but where there is one, there is
    /// also a thread that logs while this one goes on.
    pub fn has_notices(&mut self) -> bool {
        while let Some(line) = self.notices.lines.pop_front() {
            if let Err(line) = self.asks.log(line) {
                self.notices.lines.push_front(line);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_leaves_a_few_lines_and_their_number() {
        let mut notices = Notices::default();
        let begin = 1_000_000;
        for number in 0..1000 {
            notices.add(begin, || format!("refused {number}"));
        }
        assert_eq!(notices.lines.len(), BURST);
        notices.add(begin + REFILL, || "again".to_string());
        assert_eq!(
            notices.lines.back().unwrap(),
            "again (995 more lines like this were left out)"
        );
        notices.add(begin + REFILL, || "too soon".to_string());
        assert_eq!(notices.lines.len(), BURST + 1);
    }
}
