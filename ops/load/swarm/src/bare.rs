//! The baseline of the benchmarks: what connecting and delivering cost when nothing else is done.
//!
//! Some processes accept the swarm's WebSocket connections on one shared port, and on command send
//! ready-made frames to each of their sockets, with a plain `send()` loop or by io_uring, or what
//! comes out of a pipe to one socket after the other. No epoll (but to read pongs), no parsing, no
//! queues, no checks: it knows the swarm's handshake and assumes that every socket has room.

mod pinging;
mod ring;

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use self::pinging::Pinging;
use self::ring::Ring;
use crate::control::{Lines, say};
use crate::sys;
use crate::websocket;

/// As the gateway's default.
const BACKLOG: i32 = 4096;
/// A request that is slower than this is not the swarm's.
const READ_TIMEOUT_S: i64 = 5;
/// Holds any upgrade request of the swarm, and any frame to send.
const BUFFER_BYTES: usize = 128 << 10;
/// More processes than any machine that this runs on has processors to give.
const PROCESSES_MAX: u32 = 64;

/// The first line that the baseline reads.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarePlan {
    /// Sending processes, as many as the gateway has workers.
    pub processes: u32,
    /// Connections to wait for before it says `ready`.
    pub connections: u64,
    #[serde(default)]
    pub sends_by: SendsBy,
    /// Pipes that were left to it, one for each process or none: what is written to one, a packet
    /// at a time (pipe(2), O_DIRECT), its process sends as it is, each to the next of its clients.
    #[serde(default)]
    pub feeds: Vec<RawFd>,
}

/// How a sending process hands frames to the kernel.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendsBy {
    /// A system call for each socket.
    #[default]
    Send,
    /// A system call for as many as the ring has entries.
    IoUring,
}

/// What a running baseline may be told.
#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum BareCommand {
    /// Send a text frame of each of `texts`, together, to every connection; answered with `sent`.
    Send { texts: Vec<String> },
    /// Ping each connection once in `interval_s`, and read the pongs; after `for_s` answered with
    /// `sent`.
    Ping { interval_s: f64, for_s: f64 },
}

/// What a packet to a sending process asks for: its first byte.
const TO_ALL: u8 = 0;
const PING: u8 = 1;

/// What the baseline says.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum BareEvent<'a> {
    Listening {
        port: u16,
        pids: &'a [u32],
    },
    Ready {
        connected: u64,
    },
    /// `refused` counts sockets that had no room for all: must be 0.
    Sent {
        sends: u64,
        refused: u64,
    },
}

/// What a sending process has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Progress {
    accepted: u64,
    rounds: u64,
    sent: u64,
    refused: u64,
}

impl Progress {
    const BYTES: usize = 32;

    fn encode(self) -> [u8; Self::BYTES] {
        let Progress {
            accepted,
            rounds,
            sent,
            refused,
        } = self;
        let mut bytes = [0; Self::BYTES];
        for (field, value) in bytes
            .chunks_exact_mut(8)
            .zip([accepted, rounds, sent, refused])
        {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: [u8; Self::BYTES]) -> Progress {
        let field = |index: usize| {
            bytes[index * 8..]
                .first_chunk()
                .map_or(0, |field| u64::from_ne_bytes(*field))
        };
        Progress {
            accepted: field(0),
            rounds: field(1),
            sent: field(2),
            refused: field(3),
        }
    }

    fn sum(all: &[Progress]) -> Progress {
        all.iter().fold(Progress::default(), |sum, each| Progress {
            accepted: sum.accepted + each.accepted,
            rounds: sum.rounds + each.rounds,
            sent: sum.sent + each.sent,
            refused: sum.refused + each.refused,
        })
    }
}

/// The conductor's side: starts the sending processes and passes frames to them.
pub struct Bare<F> {
    commands: Lines<F>,
    links: Vec<OwnedFd>,
    progress: Vec<Progress>,
    connections: u64,
}

impl<F: AsRawFd> Bare<F> {
    /// Forks the sending processes (call it before any thread exists) and says where they listen.
    pub fn start(plan: &BarePlan, commands: Lines<F>) -> io::Result<Bare<F>> {
        let processes = plan.processes;
        if processes == 0 || processes > PROCESSES_MAX {
            let message = format!("plan: processes is {processes}, must be 1 to {PROCESSES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let each_has_one = plan.feeds.is_empty() || plan.feeds.len() == processes as usize;
        if !each_has_one || plan.feeds.iter().any(|fd| *fd <= libc::STDERR_FILENO) {
            let message = "plan: feeds has to name a pipe for each process, or none";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let owned = |fd: &RawFd| {
            // SAFETY: who started this program left the descriptor to it, and says so by the plan.
            unsafe { OwnedFd::from_raw_fd(*fd) }
        };
        let mut feeds: Vec<OwnedFd> = plan.feeds.iter().map(owned).collect();
        let (mut links, mut pids, mut port) = (Vec::new(), Vec::new(), 0);
        for index in 0..processes {
            let (listener, bound) = sys::listen_shared(port, BACKLOG)?;
            port = bound;
            let (ours, theirs) = sys::packet_pair()?;
            match sys::fork()? {
                None => {
                    links.clear();
                    drop(ours);
                    // Those of its sisters it closes: a feed ends with its writer.
                    let feed = feeds.drain(..).nth(index as usize);
                    let sent = Sender::new(listener, theirs, feed, plan.sends_by)
                        .and_then(|mut sender| sender.run());
                    if let Err(error) = &sent {
                        eprintln!("tidegate-bare: a sending process: {error}");
                    }
                    std::process::exit(i32::from(sent.is_err()));
                }
                Some(pid) => pids.push(pid),
            }
            links.push(ours);
        }
        say(&BareEvent::Listening { port, pids: &pids })?;
        let progress = vec![Progress::default(); links.len()];
        let connections = plan.connections;
        Ok(Bare {
            commands,
            links,
            progress,
            connections,
        })
    }

    /// Obeys until its input ends. The senders end with their links.
    pub fn run(&mut self) -> io::Result<()> {
        while Progress::sum(&self.progress).accepted < self.connections {
            let mut watched: Vec<&dyn AsRawFd> = vec![&self.commands];
            watched.extend(self.links.iter().map(|link| link as &dyn AsRawFd));
            let readable = sys::wait_readable(&watched, -1)?;
            if readable[0] && !self.commands.fill()? {
                return Ok(());
            }
            for index in 0..self.links.len() {
                if readable[index + 1] {
                    self.take_progress(index)?;
                }
            }
        }
        say(&BareEvent::Ready {
            connected: Progress::sum(&self.progress).accepted,
        })?;
        while let Some(line) = self.commands.wait_line()? {
            match serde_json::from_str(&line)? {
                BareCommand::Send { texts } => self.send(&texts)?,
                BareCommand::Ping { interval_s, for_s } => self.ping(interval_s, for_s)?,
            }
        }
        Ok(())
    }

    fn send(&mut self, texts: &[String]) -> io::Result<()> {
        let mut packet = vec![TO_ALL];
        for text in texts {
            websocket::encode_from_server(&mut packet, websocket::TEXT, text.as_bytes());
        }
        let before = Progress::sum(&self.progress);
        for link in &self.links {
            sys::send_packet(link, &packet)?;
        }
        self.report_since(before)
    }

    fn ping(&mut self, interval_s: f64, for_s: f64) -> io::Result<()> {
        let pinging = Pinging {
            interval_ns: (interval_s * 1e9) as u64,
            for_ns: (for_s * 1e9) as u64,
        };
        if pinging.interval_ns == 0 {
            let message = "ping: interval_s must be above 0";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let before = Progress::sum(&self.progress);
        let mut packet = vec![PING];
        packet.extend(pinging.encode());
        for link in &self.links {
            sys::send_packet(link, &packet)?;
        }
        self.report_since(before)
    }

    /// Waits for every sender's answer, and says what they all have sent since.
    fn report_since(&mut self, before: Progress) -> io::Result<()> {
        for index in 0..self.links.len() {
            let round = self.progress[index].rounds + 1;
            // A late client's arrival may be told first.
            while self.progress[index].rounds < round {
                self.take_progress(index)?;
            }
        }
        let after = Progress::sum(&self.progress);
        let (sends, refused) = (after.sent - before.sent, after.refused - before.refused);
        say(&BareEvent::Sent { sends, refused })
    }

    fn take_progress(&mut self, index: usize) -> io::Result<()> {
        let mut bytes = [0; Progress::BYTES];
        if sys::receive(&self.links[index], &mut bytes)? != bytes.len() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a sending process ended",
            ));
        }
        self.progress[index] = Progress::decode(bytes);
        Ok(())
    }
}

/// A sending process: one listener, its sockets, and the loop that is measured.
struct Sender {
    listener: OwnedFd,
    link: OwnedFd,
    feed: Option<OwnedFd>,
    sockets: Vec<OwnedFd>,
    /// Who gets the next packet of the feed.
    next: usize,
    /// `None`: it sends to each socket by a system call of its own.
    ring: Option<Ring>,
    progress: Progress,
    buffer: Vec<u8>,
}

impl Sender {
    fn new(
        listener: OwnedFd,
        link: OwnedFd,
        feed: Option<OwnedFd>,
        sends_by: SendsBy,
    ) -> io::Result<Sender> {
        let ring = match sends_by {
            SendsBy::Send => None,
            SendsBy::IoUring => Some(Ring::new()?),
        };
        Ok(Sender {
            listener,
            link,
            feed,
            sockets: Vec::new(),
            next: 0,
            ring,
            progress: Progress::default(),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let mut watched: Vec<&dyn AsRawFd> = vec![&self.link, &self.listener];
            watched.extend(self.feed.iter().map(|feed| feed as &dyn AsRawFd));
            let readable = sys::wait_readable(&watched, -1)?;
            if readable.get(2) == Some(&true) {
                self.feed()?;
            }
            if readable[1] {
                self.welcome()?;
            }
            if readable[0] {
                let length = sys::receive(&self.link, &mut self.buffer)?;
                match self.buffer[..length].first() {
                    None => return Ok(()),
                    Some(&TO_ALL) => self.deliver(0..self.sockets.len(), 1..length)?,
                    Some(_) => self.ping(length)?,
                }
                self.progress.rounds += 1;
            }
            if readable[0] || readable[1] {
                sys::send_packet(&self.link, &self.progress.encode())?;
            }
        }
    }

    /// Passes a packet of the feed on. Its end is that of what was to be sent.
    fn feed(&mut self) -> io::Result<()> {
        let Some(feed) = &self.feed else {
            return Ok(());
        };
        let length = sys::read(feed, &mut self.buffer)?;
        if length == 0 {
            self.feed = None;
            return Ok(());
        }
        let next = self.next % self.sockets.len().max(1);
        self.next = next + 1;
        self.deliver(next..next + 1, 0..length)
    }

    /// Accepts one client and grants whatever it asks for.
    fn welcome(&mut self) -> io::Result<()> {
        let socket = sys::accept(&self.listener, READ_TIMEOUT_S)?;
        let mut length = 0;
        while !self.buffer[..length].ends_with(b"\r\n\r\n") {
            match sys::receive(&socket, &mut self.buffer[length..])? {
                0 => return Ok(()), // The client left, or its request is over the buffer.
                count => length += count,
            }
        }
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            websocket::ACCEPT
        )
        .into_bytes();
        let connect = br#"{"connect":{"client":"bare"}}"#;
        websocket::encode_from_server(&mut answer, websocket::TEXT, connect);
        sys::send(&socket, &answer)?;
        self.sockets.push(socket);
        self.progress.accepted += 1;
        Ok(())
    }

    /// Does as the packet of `length` bytes asks.
    fn ping(&mut self, length: usize) -> io::Result<()> {
        let pinging = Pinging::decode(&self.buffer[1..length]);
        let pinging = pinging.ok_or(io::ErrorKind::InvalidData)?;
        let mut frame = Vec::new();
        websocket::encode_from_server(&mut frame, websocket::PING, b"");
        let (sent, refused) = pinging.run(&self.sockets, &frame)?;
        self.progress.sent += sent;
        self.progress.refused += refused;
        Ok(())
    }

    /// The bare loop: these bytes of the buffer to these sockets.
    fn deliver(&mut self, sockets: Range<usize>, bytes: Range<usize>) -> io::Result<()> {
        let bytes = &self.buffer[bytes];
        let sockets = self.sockets.get(sockets).unwrap_or_default();
        let sent = match &mut self.ring {
            Some(ring) => ring.send_to_all(sockets, bytes)?,
            None => {
                let takes = |socket: &&OwnedFd| {
                    sys::send(*socket, bytes).is_ok_and(|count| count == bytes.len())
                };
                sockets.iter().filter(takes).count() as u64
            }
        };
        self.progress.sent += sent;
        self.progress.refused += sockets.len() as u64 - sent;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_back_as_it_was_sent() {
        let progress = Progress {
            accepted: 1,
            rounds: 2,
            sent: u64::MAX,
            refused: 3,
        };
        assert_eq!(Progress::decode(progress.encode()), progress);
    }
}
