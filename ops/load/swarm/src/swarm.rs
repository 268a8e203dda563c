//! The reactor that runs all clients of a swarm: one thread, one epoll.

mod conducted;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;

use crate::client::{Client, Ended, Phase};
use crate::control::Lines;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::role::Role;
use crate::session::Moment;
use crate::sys::{self, Epoll, Interest, monotonic_ns};
use crate::tally::{Report, Standing, Tally};

/// Events per turn: a bound on how long a command or a timer waits behind them.
const EVENTS_PER_TURN_MAX: usize = 1024;
/// One read takes a full socket of small messages; frames over it are put together in the client.
const RECEIVE_BYTES: usize = 64 << 10;
/// Descriptors beside the clients' sockets: standard streams, epoll, and what the runtime opens.
const DESCRIPTORS_BESIDE: u64 = 16;
/// Back-off with full jitter as the public Python client has it: `min(max, min + rand(min * 2^n))`.
const BACKOFF_NS_MIN: u64 = 100_000_000;
const BACKOFF_NS_MAX: u64 = 20_000_000_000;
/// Who misbehaves does it about once a second at most.
const BACKOFF_NS_HOSTILE: u64 = 1_000_000_000;
/// Attempts in a row before a client gives up: several minutes of back-off.
const ATTEMPTS_MAX: u32 = 20;
/// A turn waits no longer than this, so that no deadline is missed by a rounding.
const WAIT_MS_MAX: u64 = 1_000;

/// Draws until somebody is found who can leave.
const CHURN_DRAWS_MAX: u32 = 32;

const COMMANDS_TOKEN: u64 = u64::MAX;

/// Deliveries that a conductor waits for, and until when.
#[derive(Clone, Copy)]
struct Awaited {
    deliveries: u64,
    deadline_ns: u64,
}

pub struct Swarm<F> {
    plan: Plan,
    epoll: Epoll,
    commands: Lines<F>,
    clients: Vec<Client>,
    tally: Tally,
    /// Clients that want to connect, in order.
    queue: VecDeque<u32>,
    /// (due, client, its generation): a handshake's deadline or a back-off's end.
    timers: BinaryHeap<Reverse<(u64, u32, u32)>>,
    /// Clients connecting or opening.
    handshakes: u32,
    connected: u32,
    /// Clients that are not settled yet; 0: ready, which is said once.
    unsettled: u32,
    ready_said: bool,
    awaited: Option<Awaited>,
    started_ns: u64,
    random: u64,
    /// How fast clients may connect, and leave to come back.
    connects: Option<Pace>,
    churn: Option<Pace>,
    buffer: Box<[u8]>,
}

impl<F: AsRawFd> Swarm<F> {
    /// A swarm that will obey the lines of `commands`.
    ///
    /// # Errors
    /// `InvalidInput` when the process may not open that many descriptors; the kernel's own.
    pub fn new(plan: Plan, commands: Lines<F>) -> io::Result<Swarm<F>> {
        let limit = sys::raise_descriptor_limit()?;
        if u64::from(plan.connections) + DESCRIPTORS_BESIDE > limit {
            let connections = plan.connections;
            return Err(invalid(format!(
                "connections is {connections}, but this process may open {limit} descriptors: \
                 raise the hard RLIMIT_NOFILE or use several swarms"
            )));
        }
        let epoll = Epoll::new(EVENTS_PER_TURN_MAX)?;
        epoll.add(&commands, COMMANDS_TOKEN, Interest::READABLE)?;
        let now_ns = monotonic_ns();
        let clients: Vec<_> = (0..plan.connections)
            .map(|index| Client::new(&plan, index))
            .collect();
        let churned_per_s = f64::from(plan.connections) * plan.churn_percent / 100.0 / 60.0;
        Ok(Swarm {
            epoll,
            commands,
            // Nobody waits for those that misbehave.
            unsettled: clients.iter().filter(|client| !client.hostile()).count() as u32,
            clients,
            connects: Pace::new(plan.connects_per_s, now_ns),
            churn: Pace::new(churned_per_s, now_ns),
            tally: Tally::new(),
            queue: (0..plan.connections).collect(),
            timers: BinaryHeap::new(),
            handshakes: 0,
            connected: 0,
            ready_said: false,
            awaited: None,
            started_ns: now_ns,
            random: now_ns | 1,
            buffer: vec![0; RECEIVE_BYTES].into(),
            plan,
        })
    }

    /// Runs until its input ends or its time is over. Prints the final report.
    pub fn run(&mut self) -> io::Result<()> {
        let end_ns = self.started_ns + seconds(self.plan.run_s_max);
        let mut stop = false;
        self.obey()?; // What came in one read with the plan.
        loop {
            self.start_handshakes()?;
            self.churn();
            let wait_ms = self.wait_ms(end_ns);
            stop |= monotonic_ns() >= end_ns;
            for index in 0..self.epoll.wait(wait_ms)? {
                let (token, readiness) = self.epoll.event(index);
                if token == COMMANDS_TOKEN {
                    stop |= !self.commands.fill()?;
                    self.obey()?;
                } else {
                    self.serve(token as u32, readiness)?;
                }
            }
            self.expire_timers()?;
            self.tell()?;
            if stop {
                return self.finish();
            }
        }
    }

    fn start_handshakes(&mut self) -> io::Result<()> {
        while self.handshakes < self.plan.handshakes_max && !self.queue.is_empty() {
            if !due(&mut self.connects, true) {
                break;
            }
            let Some(index) = self.queue.pop_front() else {
                break;
            };
            let client = &mut self.clients[index as usize];
            // Those that stay silent must not keep others from connecting.
            self.handshakes += u32::from(!client.hostile());
            match client.connect(&self.plan, index) {
                Ok(socket) => self.epoll.add(socket, u64::from(index), Interest::BOTH)?,
                Err(ended) => {
                    self.end(index, ended);
                    continue;
                }
            }
            self.set_timer(index, seconds(self.plan.handshake_timeout_s));
        }
        Ok(())
    }

    /// Lets as many clients leave, and come back, as the churn asks for.
    fn churn(&mut self) {
        while self.connected > 0 && due(&mut self.churn, false) {
            // Somebody open and faithful is found soon, unless there is hardly anybody.
            for _ in 0..CHURN_DRAWS_MAX {
                let index = (self.draw() % self.clients.len() as u64) as u32;
                let client = &self.clients[index as usize];
                if client.phase == Phase::Open && client.role == Role::Faithful {
                    let moment = self.moment();
                    self.clients[index as usize].leave(moment, Phase::Queued);
                    self.connected -= 1;
                    self.tally.churned += 1;
                    self.queue.push_back(index);
                    break;
                }
            }
        }
    }

    /// A client's socket is ready for something.
    fn serve(&mut self, index: u32, readiness: Interest) -> io::Result<()> {
        let moment = self.moment();
        let client = &mut self.clients[index as usize];
        let before = client.phase;
        if before == Phase::Open && client.role == Role::Stalled {
            // It asked for nothing but its end.
            self.end(index, io::Error::from(io::ErrorKind::UnexpectedEof).into());
            return Ok(());
        }
        let mut result = Ok(());
        if readiness.writable {
            result = match before {
                Phase::Connecting => client.connected(&self.plan, index, moment),
                _ => client.flush(),
            };
        }
        if result.is_ok() && readiness.readable {
            result = client.receive(&mut self.buffer, moment, &mut self.tally);
        }
        if before != Phase::Open && client.phase == Phase::Open {
            if result.is_ok() {
                result = client.offend();
            }
            self.opened(index);
        }
        match result {
            Ok(()) => self.watch(index, readiness),
            Err(ended) => {
                self.end(index, ended);
                Ok(())
            }
        }
    }

    /// Asks for writability only while bytes wait for it.
    fn watch(&mut self, index: u32, readiness: Interest) -> io::Result<()> {
        let client = &self.clients[index as usize];
        let (Some(socket), token) = (client.socket(), u64::from(index)) else {
            return Ok(());
        };
        if client.role == Role::Stalled && client.phase == Phase::Open {
            return self.epoll.change(socket, token, Interest::END);
        }
        match (readiness.writable, client.has_unsent()) {
            (true, false) => self.epoll.change(socket, token, Interest::READABLE),
            (false, true) => self.epoll.change(socket, token, Interest::BOTH),
            _ => Ok(()),
        }
    }

    fn opened(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if client.hostile() {
            return;
        }
        self.handshakes -= 1;
        self.connected += 1;
        client.generation += 1; // The handshake's deadline is void.
        client.attempts = 0;
        client.told_to_leave = false;
        if client.settled {
            self.tally.returned(client.attempted_ns, monotonic_ns());
        }
        self.settle(index);
    }

    fn settle(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if !client.settled && !client.hostile() {
            client.settled = true;
            self.unsettled -= 1;
        }
    }

    /// A connection or an attempt has ended: counts it and decides whether the client comes back.
    fn end(&mut self, index: u32, ended: Ended) {
        let client = &mut self.clients[index as usize];
        let open = client.phase == Phase::Open;
        match client.role {
            Role::Hostile(misdeed) => {
                client.attempts = 1;
                self.tally.misdeed(&format!("{misdeed}: {}", ended.reason));
                client.disconnect(Phase::BackingOff);
                self.set_timer(index, BACKOFF_NS_HOSTILE);
                return;
            }
            Role::Stalled if open => {
                self.connected -= 1;
                self.tally.misdeed(&format!("stall: {}", ended.reason));
            }
            _ if open => {
                self.connected -= 1;
                self.tally.closed(&ended.reason);
            }
            _ => {
                self.handshakes -= 1;
                client.told_to_leave = false; // What keeps it away now is this.
                self.tally.failed(&ended.reason);
            }
        }
        let attempts = client.attempts;
        if self.plan.reconnect && ended.may_reconnect && attempts < ATTEMPTS_MAX {
            client.disconnect(Phase::BackingOff);
            let spread_ns = BACKOFF_NS_MIN
                .saturating_mul(1 << attempts)
                .min(BACKOFF_NS_MAX);
            let delay_ns = BACKOFF_NS_MIN + self.draw() % spread_ns;
            self.set_timer(index, delay_ns.min(BACKOFF_NS_MAX));
        } else {
            client.disconnect(Phase::Done);
            self.settle(index);
        }
    }

    fn set_timer(&mut self, index: u32, delay_ns: u64) {
        let generation = self.clients[index as usize].generation;
        self.timers
            .push(Reverse((monotonic_ns() + delay_ns, index, generation)));
    }

    fn expire_timers(&mut self) -> io::Result<()> {
        let now_ns = monotonic_ns();
        while let Some(&Reverse((due_ns, index, generation))) = self.timers.peek() {
            if due_ns > now_ns {
                break;
            }
            self.timers.pop();
            let client = &mut self.clients[index as usize];
            if client.generation != generation {
                continue;
            }
            match client.phase {
                Phase::BackingOff => {
                    client.phase = Phase::Queued;
                    self.queue.push_back(index);
                }
                _ => self.end(index, io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        }
        Ok(())
    }

    /// Milliseconds until the nearest deadline, rounded up.
    fn wait_ms(&self, end_ns: u64) -> i32 {
        let now_ns = monotonic_ns();
        let deadlines = [
            Some(end_ns),
            self.timers.peek().map(|Reverse((due_ns, ..))| *due_ns),
            self.churn.as_ref().map(Pace::due_ns),
            self.next_connect_ns(),
            self.awaited.as_ref().map(|awaited| awaited.deadline_ns),
        ];
        let nearest_ns = deadlines.into_iter().flatten().min().unwrap_or(end_ns);
        nearest_ns
            .saturating_sub(now_ns)
            .div_ceil(1_000_000)
            .min(WAIT_MS_MAX) as i32
    }

    /// When the next client may connect, if only the pace keeps it from that.
    fn next_connect_ns(&self) -> Option<u64> {
        let room = self.handshakes < self.plan.handshakes_max && !self.queue.is_empty();
        self.connects.as_ref().filter(|_| room).map(Pace::due_ns)
    }

    fn report(&self) -> Report {
        let absent = |client: &&Client| {
            let wanted = client.role == Role::Faithful && !client.told_to_leave;
            wanted && client.phase != Phase::Open
        };
        self.tally.report(Standing {
            connected: self.connected,
            pending: self.unsettled,
            absent: self.clients.iter().filter(absent).count() as u32,
        })
    }

    fn moment(&mut self) -> Moment {
        Moment {
            now_ns: monotonic_ns(),
            random: self.draw() as u32,
        }
    }

    /// Marsaglia's xorshift64: for jitter and masks, where nothing is at stake.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Whether the next one may be; `unpaced` where there is no pace.
fn due(pace: &mut Option<Pace>, unpaced: bool) -> bool {
    match pace {
        Some(pace) => pace.take(monotonic_ns()),
        None => unpaced,
    }
}

fn seconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
