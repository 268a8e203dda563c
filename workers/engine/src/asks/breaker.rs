//! When not to call somebody any more, and when to try again.

use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The last so many calls are looked at; fewer never open it. 0: it never opens.
    pub calls: usize,
    /// It opens when at least so many of a hundred failed.
    pub failures_percent: usize,
    /// After this one call is let through, to see.
    pub open: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until_ns: u64,
    },
    /// The one call that is let through is under way; should its end be lost, the next one goes.
    Trying {
        until_ns: u64,
    },
}

/// Watches the calls of one kind.
#[derive(Debug)]
pub struct Breaker {
    limits: Limits,
    state: State,
    /// Whether each of the last calls failed; a ring once it is full.
    failures: Vec<bool>,
    next: usize,
}

impl Breaker {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Closed,
            failures: Vec::new(),
            next: 0,
        }
    }

    /// Whether a call may be made now; it must then be told of by `called` or `called_off`.
    pub fn admits(&mut self, now_ns: u64) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until_ns } | State::Trying { until_ns } if now_ns >= until_ns => {
                let until_ns = self.opened_until(now_ns);
                self.state = State::Trying { until_ns };
                true
            }
            State::Open { .. } | State::Trying { .. } => false,
        }
    }

    /// A call that was admitted was not made after all.
    pub fn called_off(&mut self) {
        if matches!(self.state, State::Trying { .. }) {
            self.state = State::Open { until_ns: 0 };
        }
    }

    /// A call has ended.
    pub fn called(&mut self, is_well: bool, now_ns: u64) {
        match self.state {
            // Of a call from before it opened.
            State::Open { .. } => {}
            State::Trying { .. } if is_well => {
                self.state = State::Closed;
                self.failures.clear();
                self.next = 0;
            }
            State::Trying { .. } => self.open(now_ns),
            State::Closed => {
                self.note(!is_well);
                if self.has_failed_too_often() {
                    self.open(now_ns);
                }
            }
        }
    }

    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    fn open(&mut self, now_ns: u64) {
        let until_ns = self.opened_until(now_ns);
        self.state = State::Open { until_ns };
    }

    fn opened_until(&self, now_ns: u64) -> u64 {
        now_ns + self.limits.open.as_nanos() as u64
    }

    fn note(&mut self, failed: bool) {
        if self.limits.calls == 0 {
            return;
        }
        if self.failures.len() < self.limits.calls {
            self.failures.push(failed);
        } else {
            self.failures[self.next] = failed;
        }
        self.next = (self.next + 1) % self.limits.calls;
    }

    fn has_failed_too_often(&self) -> bool {
        let calls = self.failures.len();
        let failed = self.failures.iter().filter(|&&failed| failed).count();
        calls != 0
            && calls == self.limits.calls
            && failed * 100 >= self.limits.failures_percent * calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Duration = Duration::from_secs(5);
    const OPEN_NS: u64 = 5_000_000_000;

    fn breaker() -> Breaker {
        Breaker::new(Limits {
            calls: 4,
            failures_percent: 50,
            open: OPEN,
        })
    }

    fn opened() -> Breaker {
        let mut breaker = breaker();
        for _ in 0..4 {
            assert!(breaker.admits(0));
            breaker.called(false, 0);
        }
        breaker
    }

    #[test]
    fn it_opens_when_half_of_the_last_calls_failed() {
        let mut breaker = breaker();
        for is_well in [true, true, true, false] {
            breaker.called(is_well, 0);
        }
        assert!(!breaker.is_open());
        breaker.called(false, 0);
        assert!(breaker.is_open(), "two of the last four failed");
    }

    #[test]
    fn fewer_calls_than_are_looked_at_prove_nothing() {
        let mut breaker = breaker();
        for _ in 0..3 {
            breaker.called(false, 0);
        }
        assert!(breaker.admits(0));
    }

    #[test]
    fn an_open_one_lets_one_call_through_after_its_time() {
        let mut breaker = opened();
        assert!(!breaker.admits(OPEN_NS - 1));
        assert!(breaker.admits(OPEN_NS));
        assert!(!breaker.admits(OPEN_NS), "the one is under way");
    }

    #[test]
    fn it_closes_when_the_call_that_was_let_through_is_answered() {
        let mut breaker = opened();
        assert!(breaker.admits(OPEN_NS));
        breaker.called(true, OPEN_NS);
        assert!(breaker.admits(OPEN_NS));
        breaker.called(false, OPEN_NS);
        assert!(!breaker.is_open(), "the old failures are forgotten");
    }

    #[test]
    fn it_stays_open_when_the_call_that_was_let_through_fails() {
        let mut breaker = opened();
        assert!(breaker.admits(OPEN_NS));
        breaker.called(false, OPEN_NS);
        assert!(!breaker.admits(OPEN_NS + 1));
        assert!(breaker.admits(2 * OPEN_NS));
    }

    #[test]
    fn answers_to_calls_from_before_change_nothing() {
        let mut breaker = opened();
        breaker.called(true, 1);
        assert!(!breaker.admits(1));
    }

    #[test]
    fn a_call_that_is_called_off_may_be_tried_again() {
        let mut breaker = opened();
        assert!(breaker.admits(OPEN_NS));
        breaker.called_off();
        assert!(breaker.admits(OPEN_NS));
    }

    #[test]
    fn a_trial_whose_end_is_never_told_is_followed_by_another() {
        let mut breaker = opened();
        assert!(breaker.admits(OPEN_NS));
        assert!(!breaker.admits(2 * OPEN_NS - 1));
        assert!(breaker.admits(2 * OPEN_NS));
    }

    #[test]
    fn without_calls_to_look_at_it_never_opens() {
        let mut breaker = Breaker::new(Limits {
            calls: 0,
            failures_percent: 0,
            open: OPEN,
        });
        for _ in 0..100 {
            breaker.called(false, 0);
        }
        assert!(breaker.admits(0));
    }
}
