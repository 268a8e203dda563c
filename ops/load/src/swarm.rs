//! The reactor that runs all clients of a swarm: one thread, one epoll.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;

use crate::client::{Client, Ended, Phase};
use crate::control::{Command, Event, Lines, Positions, say};
use crate::plan::Plan;
use crate::session::Moment;
use crate::sys::{self, Epoll, Interest, monotonic_ns};
use crate::tally::Tally;

/// Events per turn: a bound on how long a command or a timer waits behind them.
const EVENTS_PER_TURN_MAX: usize = 1024;
/// One read takes a full socket of small messages; frames over it are put together in the client.
const RECEIVE_BYTES: usize = 64 << 10;
/// Descriptors beside the clients' sockets: standard streams, epoll, and what the runtime opens.
const DESCRIPTORS_BESIDE: u64 = 16;
/// Back-off with full jitter as the public Python client has it: `min(max, min + rand(min * 2^n))`.
const BACKOFF_NS_MIN: u64 = 100_000_000;
const BACKOFF_NS_MAX: u64 = 20_000_000_000;
/// Attempts in a row before a client gives up: several minutes of back-off.
const ATTEMPTS_MAX: u32 = 20;
/// A turn waits no longer than this, so that no deadline is missed by a rounding.
const WAIT_MS_MAX: u64 = 1_000;

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
    report_ns: u64,
    random: u64,
    buffer: Box<[u8]>,
}

impl<F: AsRawFd> Swarm<F> {
    /// A swarm that will obey the lines of `commands`.
    ///
    /// # Errors
    /// `InvalidInput` when the process may not open that many descriptors; the kernel's own.
    pub fn new(plan: Plan, commands: Lines<F>) -> io::Result<Swarm<F>> {
        let limit = sys::descriptor_limit()?;
        if u64::from(plan.connections) + DESCRIPTORS_BESIDE > limit {
            let connections = plan.connections;
            return Err(invalid(format!(
                "connections is {connections}, but this process may open {limit} descriptors: \
                 raise RLIMIT_NOFILE or use several swarms"
            )));
        }
        let epoll = Epoll::new(EVENTS_PER_TURN_MAX)?;
        epoll.add(&commands, COMMANDS_TOKEN, Interest::READABLE)?;
        let now_ns = monotonic_ns();
        Ok(Swarm {
            epoll,
            commands,
            clients: (0..plan.connections)
                .map(|index| Client::new(&plan, index))
                .collect(),
            tally: Tally::new(),
            queue: (0..plan.connections).collect(),
            timers: BinaryHeap::new(),
            handshakes: 0,
            connected: 0,
            unsettled: plan.connections,
            ready_said: false,
            awaited: None,
            started_ns: now_ns,
            report_ns: now_ns,
            random: now_ns | 1,
            buffer: vec![0; RECEIVE_BYTES].into(),
            plan,
        })
    }

    /// Runs until it is told to stop, its input ends, or its time is over. Prints the final report.
    pub fn run(&mut self) -> io::Result<()> {
        let end_ns = self.started_ns + seconds(self.plan.run_s_max);
        let mut stop = self.obey()?; // What came in one read with the plan.
        loop {
            self.start_handshakes()?;
            let wait_ms = self.wait_ms(end_ns);
            stop |= monotonic_ns() >= end_ns;
            for index in 0..self.epoll.wait(wait_ms)? {
                let (token, readiness) = self.epoll.event(index);
                if token == COMMANDS_TOKEN {
                    let more = self.commands.fill()?;
                    stop |= self.obey()? || !more;
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
        while self.handshakes < self.plan.handshakes_max {
            let Some(index) = self.queue.pop_front() else {
                break;
            };
            self.handshakes += 1;
            let client = &mut self.clients[index as usize];
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

    /// A client's socket is ready for something.
    fn serve(&mut self, index: u32, readiness: Interest) -> io::Result<()> {
        let moment = self.moment();
        let client = &mut self.clients[index as usize];
        let before = client.phase;
        let mut result = Ok(());
        if readiness.writable {
            result = match before {
                Phase::Connecting => client.connected(&self.plan, moment),
                _ => client.flush(),
            };
        }
        if result.is_ok() && readiness.readable {
            result = client.receive(&mut self.buffer, moment, &mut self.tally);
        }
        if before != Phase::Open && client.phase == Phase::Open {
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
        match (readiness.writable, client.has_unsent()) {
            (true, false) => self.epoll.change(socket, token, Interest::READABLE),
            (false, true) => self.epoll.change(socket, token, Interest::BOTH),
            _ => Ok(()),
        }
    }

    fn opened(&mut self, index: u32) {
        self.handshakes -= 1;
        self.connected += 1;
        let client = &mut self.clients[index as usize];
        client.generation += 1; // The handshake's deadline is void.
        client.attempts = 0;
        if client.settled {
            self.tally.reconnects += 1;
        }
        self.settle(index);
    }

    fn settle(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        if !client.settled {
            client.settled = true;
            self.unsettled -= 1;
        }
    }

    /// A connection or an attempt has ended: counts it and decides whether the client comes back.
    fn end(&mut self, index: u32, ended: Ended) {
        let client = &mut self.clients[index as usize];
        if client.phase == Phase::Open {
            self.connected -= 1;
            self.tally.closed(&ended.reason);
        } else {
            self.handshakes -= 1;
            self.tally.failed(&ended.reason);
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

    /// Carries out the commands that have been read; true: stop.
    fn obey(&mut self) -> io::Result<bool> {
        while let Some(line) = self.commands.next_line() {
            let command = serde_json::from_str(&line)
                .map_err(|error| invalid(format!("command {line:?}: {error}")))?;
            match command {
                Command::Report => say(&Event::Report(self.tally.report(self.connected)))?,
                Command::Reset => self.tally = Tally::new(),
                Command::Positions => say(&Event::Positions {
                    channels: self.positions(),
                })?,
                Command::Stop => return Ok(true),
                Command::Await {
                    deliveries,
                    timeout_s,
                } => {
                    if self.awaited.is_some() {
                        return Err(invalid("an await while another is under way".to_owned()));
                    }
                    let deadline_ns = monotonic_ns() + seconds(timeout_s);
                    self.awaited = Some(Awaited {
                        deliveries,
                        deadline_ns,
                    });
                }
            }
        }
        Ok(false)
    }

    /// Says what has become true since the last turn.
    fn tell(&mut self) -> io::Result<()> {
        let now_ns = monotonic_ns();
        if self.unsettled == 0 && !self.ready_said {
            self.ready_said = true;
            let elapsed_s = (now_ns - self.started_ns) as f64 / 1e9;
            say(&Event::Ready {
                connected: self.connected,
                seconds: elapsed_s,
            })?;
        }
        if let Some(Awaited {
            deliveries,
            deadline_ns,
        }) = self.awaited
        {
            let so_far = self.tally.deliveries;
            if so_far >= deliveries {
                self.awaited = None;
                say(&Event::Reached { deliveries: so_far })?;
            } else if now_ns >= deadline_ns {
                self.awaited = None;
                say(&Event::Late { deliveries: so_far })?;
            }
        }
        let interval_ns = seconds(self.plan.report_interval_s);
        if interval_ns > 0 && now_ns - self.report_ns >= interval_ns {
            self.report_ns = now_ns;
            say(&Event::Report(self.tally.report(self.connected)))?;
        }
        Ok(())
    }

    fn positions(&self) -> BTreeMap<&str, Positions> {
        let mut channels: BTreeMap<&str, Positions> = BTreeMap::new();
        for subscription in self.clients.iter().flat_map(|client| &client.subscriptions) {
            let Some(position) = &subscription.position else {
                continue;
            };
            let offset = position.offset;
            channels
                .entry(&subscription.channel)
                .and_modify(|positions| {
                    positions.subscribers += 1;
                    positions.offset_min = positions.offset_min.min(offset);
                    positions.offset_max = positions.offset_max.max(offset);
                })
                .or_insert(Positions {
                    subscribers: 1,
                    offset_min: offset,
                    offset_max: offset,
                });
        }
        channels
    }

    fn finish(&mut self) -> io::Result<()> {
        let report = self.tally.report(self.connected);
        for index in 0..self.clients.len() {
            let moment = self.moment();
            self.clients[index].leave(moment);
        }
        say(&Event::Final(report))
    }

    /// Milliseconds until the nearest deadline, rounded up.
    fn wait_ms(&self, end_ns: u64) -> i32 {
        let now_ns = monotonic_ns();
        let interval_ns = seconds(self.plan.report_interval_s);
        let deadlines = [
            Some(end_ns),
            self.timers.peek().map(|Reverse((due_ns, ..))| *due_ns),
            self.awaited.as_ref().map(|awaited| awaited.deadline_ns),
            (interval_ns > 0).then_some(self.report_ns + interval_ns),
        ];
        let nearest_ns = deadlines.into_iter().flatten().min().unwrap_or(end_ns);
        nearest_ns
            .saturating_sub(now_ns)
            .div_ceil(1_000_000)
            .min(WAIT_MS_MAX) as i32
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

fn seconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
