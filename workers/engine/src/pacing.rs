//! Closing many connections evenly over a time, so that their clients do not all return at once.

use std::time::Duration;

use crate::protocol::close::Close;
use crate::slab::Token;

/// Who is to be closed, in which order, and how far that is.
pub struct Pacing {
    tokens: Vec<Token>,
    closed: usize,
    began_ns: u64,
    spread: Duration,
    close: Close,
}

impl Pacing {
    /// Closes `tokens` in their order over `spread` from `began_ns` on (CLOCK_MONOTONIC).
    pub fn new(tokens: Vec<Token>, began_ns: u64, spread: Duration, close: Close) -> Self {
        Self {
            tokens,
            closed: 0,
            began_ns,
            spread,
            close,
        }
    }

    pub fn close(&self) -> Close {
        self.close
    }

    /// How many were given out by [`Pacing::due`].
    pub fn closed(&self) -> usize {
        self.closed
    }

    /// Those whose time has come by `now_ns`, each once.
    pub fn due(&mut self, now_ns: u64) -> &[Token] {
        let elapsed_ns = u128::from(now_ns.saturating_sub(self.began_ns));
        let total = self.tokens.len();
        let due = match self.spread.as_nanos() {
            0 => total,
            spread_ns => ((elapsed_ns * total as u128 / spread_ns) as usize).min(total),
        };
        let first = self.closed;
        self.closed = due.max(first);
        &self.tokens[first..self.closed]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_closed_evenly_and_each_once() {
        let tokens: Vec<Token> = (0..100).map(Token::from_bits).collect();
        let mut pacing = Pacing::new(tokens, 1_000, Duration::from_nanos(1_000), Close::Shutdown);
        assert_eq!(pacing.due(1_000).len(), 0);
        assert_eq!(pacing.due(1_500).len(), 50);
        assert_eq!(pacing.due(1_500).len(), 0);
        assert_eq!(pacing.due(9_999).len(), 50);
        assert_eq!(pacing.closed(), 100);
    }

    #[test]
    fn without_a_spread_all_are_due_at_once() {
        let mut pacing = Pacing::new(
            vec![Token::from_bits(1)],
            5,
            Duration::ZERO,
            Close::Shutdown,
        );
        assert_eq!(pacing.due(5).len(), 1);
    }
}
