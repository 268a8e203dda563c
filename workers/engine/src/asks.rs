//! What the engine asks the application: questions go out to Python, answers come back, and nobody
//! waits for an interpreter.
//!
//! [`channel`] makes two halves. The engine's, [`Asks`], never blocks and takes no lock that Python
//! holds: it bounds how many questions wait, gives up on each after a while by a clock of its own,
//! and asks no more for some time where too many fail. Python's, [`Questions`], may be used by any
//! thread. What a client gets instead of an answer is the session's to say, see [`Fallback`].

mod breaker;
pub mod verdict;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_ring::host;
use tidegate_ring::wake::Bell;

use self::breaker::Breaker;
pub use self::breaker::Limits as BreakerLimits;
use crate::settings::Hooks;
use crate::slab::Token;

/// What may be asked. The names are those of the application's methods, of the configured HTTP
/// endpoints and of the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AskKind {
    Connect,
    Subscribe,
    Publish,
    Rpc,
    Message,
    Refresh,
    SubRefresh,
    /// Told, not asked: no answer comes.
    Disconnect,
    /// The public keys at the configured URLs; answered by [`crate::auth::Verifier::take_keys`].
    Keys,
}

pub const KINDS: [AskKind; 9] = [
    AskKind::Connect,
    AskKind::Subscribe,
    AskKind::Publish,
    AskKind::Rpc,
    AskKind::Message,
    AskKind::Refresh,
    AskKind::SubRefresh,
    AskKind::Disconnect,
    AskKind::Keys,
];

impl AskKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Rpc => "rpc",
            Self::Message => "message",
            Self::Refresh => "refresh",
            Self::SubRefresh => "sub_refresh",
            Self::Disconnect => "disconnect",
            Self::Keys => "keys",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.name() == name)
    }
}

/// Why there is no answer of the application. The client then gets: for connect, subscribe, publish
/// and rpc error 100, which is temporary; for message nothing; for refresh and sub_refresh
/// `client.expired_close_delay_s` more, after which the application is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// The hook raised, the back end answered with an error of HTTP, or with what is no answer.
    Failed,
    /// The hook took longer than `hooks.timeout_s`.
    Timeout,
    /// Python said nothing at all: something in it blocks the interpreter or the hooks' loop.
    Stuck,
    /// `hooks.in_flight_max` questions wait already.
    Full,
    /// Too many calls failed; for some time none is made.
    Open,
}

/// How a question ended, for the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    Fallback(Fallback),
}

pub const OUTCOMES: [Outcome; 6] = [
    Outcome::Answered,
    Outcome::Fallback(Fallback::Failed),
    Outcome::Fallback(Fallback::Timeout),
    Outcome::Fallback(Fallback::Stuck),
    Outcome::Fallback(Fallback::Full),
    Outcome::Fallback(Fallback::Open),
];

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Fallback(Fallback::Failed) => "failed",
            Self::Fallback(Fallback::Timeout) => "timeout",
            Self::Fallback(Fallback::Stuck) => "stuck",
            Self::Fallback(Fallback::Full) => "full",
            Self::Fallback(Fallback::Open) => "open",
        }
    }

    pub fn help(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Fallback(Fallback::Failed) => "the hook raised, or gave no answer that is one",
            Self::Fallback(Fallback::Timeout) => "hooks.timeout_s was over",
            Self::Fallback(Fallback::Stuck) => "the interpreter said nothing in time",
            Self::Fallback(Fallback::Full) => "hooks.in_flight_max of them waited",
            Self::Fallback(Fallback::Open) => "too many calls had failed",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Answered => 0,
            Self::Fallback(why) => 1 + why as usize,
        }
    }
}

/// Bounds of the questions of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Questions that wait for an answer at a time.
    pub in_flight_max: usize,
    /// After this Python gives up on a question; the engine does a little later.
    pub timeout: Duration,
    pub breaker: BreakerLimits,
}

impl From<&Hooks> for Limits {
    fn from(hooks: &Hooks) -> Self {
        Self {
            in_flight_max: hooks.in_flight_max,
            timeout: hooks.timeout,
            breaker: BreakerLimits {
                calls: hooks.breaker_calls,
                failures_percent: hooks.breaker_failures_percent,
                open: hooks.breaker_open,
            },
        }
    }
}

/// How much later than Python the engine gives up: a busy interpreter may take that long to say so.
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// Things told that wait for Python; what is told beyond is dropped and counted as full. As many as
/// clients that a busy worker may lose at once; a few hundred bytes each.
const TOLD_MAX: usize = 10_000;
/// The token of answers that nobody asked for: keys that were fetched anew.
pub const NOBODY: u64 = u64::MAX;

/// An answer, or that there is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// What [`Asks::ask`] returned.
    pub id: u64,
    pub token: Token,
    pub kind: AskKind,
    /// JSON, see [`verdict`].
    pub body: Result<Vec<u8>, Fallback>,
}

/// What Python is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Question {
    /// Answer this, by [`Questions::answer`]. `id` is 0 where nobody waits for the answer.
    Ask {
        id: u64,
        kind: AskKind,
        body: Vec<u8>,
    },
    /// Log that a breaker has opened or closed.
    Breaker { kind: AskKind, open: bool },
    /// Log this line.
    Log(String),
}

enum Queued {
    Ask {
        id: u64,
        kind: AskKind,
        body: Vec<u8>,
        /// From then on the engine has given up on it; 0: never.
        deadline_ns: u64,
    },
    Breaker {
        kind: AskKind,
        open: bool,
    },
    Log(String),
}

struct Reply {
    id: u64,
    kind: AskKind,
    body: Result<Vec<u8>, Fallback>,
}

struct Pending {
    token: Token,
    kind: AskKind,
    asked_ns: u64,
}

/// What was asked and how it ended, by kind. Only grows, but for `is_open`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    outcomes: [u64; OUTCOMES.len()],
    pub is_open: bool,
}

impl Tally {
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()]
    }
}

/// The engine's half where somebody is to be asked.
struct Line {
    is_on: [bool; KINDS.len()],
    limits: Limits,
    asks: SyncSender<Queued>,
    tells: SyncSender<Queued>,
    replies: Receiver<Reply>,
    /// Rung for Python.
    asked: Arc<Bell>,
    /// Rung by Python.
    answered: Arc<Bell>,
    pending: HashMap<u64, Pending>,
    /// Deadlines in the order of asking, which is their order in time; also of what is answered.
    deadlines: VecDeque<(u64, u64)>,
    breakers: [Breaker; KINDS.len()],
    tallies: [Tally; KINDS.len()],
    /// Milliseconds from question to answer of those that were answered since `take_waits`.
    waits_ms: Vec<u64>,
    last_id: u64,
}

/// The engine's half: asks, and takes answers. Where nothing is configured it is nothing.
#[derive(Default)]
pub struct Asks(Option<Box<Line>>);

/// Python's half.
pub struct Questions {
    asks: Mutex<Receiver<Queued>>,
    tells: Mutex<Receiver<Queued>>,
    replies: SyncSender<Reply>,
    asked: Arc<Bell>,
    answered: Arc<Bell>,
}

/// Two halves for the questions of `kinds`.
///
/// # Errors
/// What eventfd(2) says.
pub fn channel(kinds: &[AskKind], limits: Limits) -> io::Result<(Asks, Questions)> {
    let (asks, to_answer) = sync_channel(limits.in_flight_max);
    let (tells, told) = sync_channel(TOLD_MAX);
    // As many as can be waited for, and those that were given up and come nevertheless.
    let (replies, answers) = sync_channel(2 * limits.in_flight_max + KINDS.len());
    let (asked, answered) = (Arc::new(Bell::new()?), Arc::new(Bell::new()?));
    let line = Line {
        is_on: KINDS.map(|kind| kinds.contains(&kind)),
        limits,
        asks,
        tells,
        replies: answers,
        asked: asked.clone(),
        answered: answered.clone(),
        pending: HashMap::new(),
        deadlines: VecDeque::new(),
        breakers: KINDS.map(|_| Breaker::new(limits.breaker)),
        tallies: [Tally::default(); KINDS.len()],
        waits_ms: Vec::new(),
        last_id: 0,
    };
    let questions = Questions {
        asks: Mutex::new(to_answer),
        tells: Mutex::new(told),
        replies,
        asked,
        answered,
    };
    Ok((Asks(Some(Box::new(line))), questions))
}

impl Asks {
    /// Nobody is to be asked anything.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether there is somebody to ask this.
    pub fn is_on(&self, kind: AskKind) -> bool {
        self.0
            .as_ref()
            .is_some_and(|line| line.is_on[kind as usize])
    }

    /// Asks; [`Asks::take_answers`] will have one answer with the id that this returns, and with
    /// `token`. Of [`AskKind::Disconnect`] no answer comes.
    ///
    /// # Errors
    /// The question is not asked: the fall-back answer is due now. [`Fallback::Failed`] where the
    /// kind is not on.
    pub fn ask(&mut self, token: Token, kind: AskKind, body: Vec<u8>) -> Result<u64, Fallback> {
        match &mut self.0 {
            Some(line) if line.is_on[kind as usize] => {
                line.ask(token, kind, body, host::monotonic_ns())
            }
            _ => Err(Fallback::Failed),
        }
    }

    /// Has Python log a line, without waiting for the interpreter.
    ///
    /// # Errors
    /// The line, where nobody is there for it.
    pub fn log(&mut self, line: String) -> Result<(), String> {
        let Some(asks) = &self.0 else {
            return Err(line);
        };
        // Lost only where Python reads nothing at all, and so could not log it either.
        let _ = asks.tells.try_send(Queued::Log(line));
        asks.asked.ring();
        Ok(())
    }

    /// What has been answered since, and what will not be.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        match &mut self.0 {
            Some(line) => line.take_answers(host::monotonic_ns()),
            None => Vec::new(),
        }
    }

    /// How long until a question is given up on, for the reactor's sleep.
    pub fn sleep_max(&self) -> Duration {
        let Some(&(deadline_ns, _)) = self.0.as_ref().and_then(|line| line.deadlines.front())
        else {
            return Duration::MAX;
        };
        Duration::from_nanos(deadline_ns.saturating_sub(host::monotonic_ns()))
    }

    /// Readable, each edge once, when there are answers to take.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        let line = self.0.as_ref()?;
        // SAFETY: the bell is open as long as `line`, which the result borrows.
        Some(unsafe { BorrowedFd::borrow_raw(line.answered.as_raw_fd()) })
    }

    /// How many questions wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.0.as_ref().map_or(0, |line| line.pending.len())
    }

    /// How the questions of each kind ended, in the order of [`KINDS`].
    pub fn tallies(&self) -> Option<&[Tally; KINDS.len()]> {
        self.0.as_ref().map(|line| &line.tallies)
    }

    /// Milliseconds from question to answer of each that was answered since the last call.
    pub fn take_waits_ms(&mut self) -> Vec<u64> {
        let line = self.0.as_mut();
        line.map_or_else(Vec::new, |line| std::mem::take(&mut line.waits_ms))
    }
}

impl Line {
    fn ask(
        &mut self,
        token: Token,
        kind: AskKind,
        body: Vec<u8>,
        now_ns: u64,
    ) -> Result<u64, Fallback> {
        let is_told = kind == AskKind::Disconnect;
        if !is_told && self.pending.len() >= self.limits.in_flight_max {
            return Err(self.refuse(kind, Fallback::Full));
        }
        if !self.breakers[kind as usize].admits(now_ns) {
            return Err(self.refuse(kind, Fallback::Open));
        }
        let patience = self.limits.timeout + STUCK_AFTER;
        let deadline_ns = now_ns + patience.as_nanos() as u64;
        let (id, deadline_ns, lane) = if is_told {
            (0, 0, &self.tells)
        } else {
            (self.last_id + 1, deadline_ns, &self.asks)
        };
        let queued = Queued::Ask {
            id,
            kind,
            body,
            deadline_ns,
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lane.try_send(queued) {
            self.breakers[kind as usize].called_off();
            return Err(self.refuse(kind, Fallback::Full));
        }
        self.asked.ring();
        if !is_told {
            self.last_id = id;
            self.deadlines.push_back((deadline_ns, id));
            let pending = Pending {
                token,
                kind,
                asked_ns: now_ns,
            };
            self.pending.insert(id, pending);
        }
        Ok(id)
    }

    fn refuse(&mut self, kind: AskKind, why: Fallback) -> Fallback {
        self.tallies[kind as usize].outcomes[Outcome::Fallback(why).index()] += 1;
        why
    }

    fn take_answers(&mut self, now_ns: u64) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Ok(reply) = self.replies.try_recv() {
            self.replied(reply, now_ns, &mut answers);
        }
        while let Some(&(deadline_ns, id)) = self.deadlines.front() {
            let is_over = self.pending.contains_key(&id);
            if is_over && deadline_ns > now_ns {
                break;
            }
            self.deadlines.pop_front();
            if let Some(pending) = self.pending.remove(&id) {
                self.ended(pending.kind, Outcome::Fallback(Fallback::Stuck), now_ns);
                answers.push(Answer {
                    id,
                    token: pending.token,
                    kind: pending.kind,
                    body: Err(Fallback::Stuck),
                });
            }
        }
        answers
    }

    fn replied(&mut self, reply: Reply, now_ns: u64, answers: &mut Vec<Answer>) {
        let Reply { id, kind, body } = reply;
        let outcome = match &body {
            Ok(_) => Outcome::Answered,
            Err(why) => Outcome::Fallback(*why),
        };
        let token = match self.pending.remove(&id) {
            Some(pending) => {
                self.waits_ms.push((now_ns - pending.asked_ns) / 1_000_000);
                pending.token
            }
            // Nobody asked for them, but they are new.
            None if id == 0 && kind == AskKind::Keys && body.is_ok() => Token::from_bits(NOBODY),
            None if id == 0 => {
                self.ended(kind, outcome, now_ns);
                return;
            }
            // Too late: it was given up, and counted so.
            None => return,
        };
        self.ended(kind, outcome, now_ns);
        answers.push(Answer {
            id,
            token,
            kind,
            body,
        });
    }

    fn ended(&mut self, kind: AskKind, outcome: Outcome, now_ns: u64) {
        let tally = &mut self.tallies[kind as usize];
        tally.outcomes[outcome.index()] += 1;
        let breaker = &mut self.breakers[kind as usize];
        breaker.called(outcome == Outcome::Answered, now_ns);
        let open = breaker.is_open();
        if open != tally.is_open {
            tally.is_open = open;
            // Lost only where Python reads nothing at all, and so could not log it either.
            let _ = self.tells.try_send(Queued::Breaker { kind, open });
            self.asked.ring();
        }
    }
}

impl Questions {
    /// Takes at most `count_max` questions, those that somebody waits for first.
    pub fn take(&self, count_max: usize) -> Vec<Question> {
        self.asked.silence();
        let now_ns = host::monotonic_ns();
        let mut taken = Vec::new();
        for lane in [&self.asks, &self.tells] {
            // A panic elsewhere leaves a receiver as good as it was.
            let lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            while taken.len() < count_max
                && let Ok(queued) = lane.try_recv()
            {
                match queued {
                    // Its client has had the fall-back answer.
                    Queued::Ask { deadline_ns, .. } if (1..=now_ns).contains(&deadline_ns) => {}
                    Queued::Ask { id, kind, body, .. } => {
                        taken.push(Question::Ask { id, kind, body });
                    }
                    Queued::Breaker { kind, open } => taken.push(Question::Breaker { kind, open }),
                    Queued::Log(line) => taken.push(Question::Log(line)),
                }
            }
        }
        taken
    }

    /// Answers a question of `kind`, or says why there is no answer. With `id` 0 that somebody was
    /// told, or that keys were fetched. An answer that comes too late is dropped by the engine.
    pub fn answer(&self, id: u64, kind: AskKind, body: Result<Vec<u8>, Fallback>) {
        // Full only when the engine takes none for long; it then gives up by its own clock.
        let _ = self.replies.try_send(Reply { id, kind, body });
        self.answered.ring();
    }

    /// Readable when there are questions to take.
    pub fn as_raw_fd(&self) -> RawFd {
        self.asked.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
