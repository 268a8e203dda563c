//! The lines by which a program is conducted: JSON commands in, JSON events out, one per line.
//!
//! The first line is the program's plan; every further line is a [`Command`] (a swarm) or a
//! [`BareCommand`](crate::bare::BareCommand). The end of the input is the command to stop.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use serde::{Deserialize, Serialize};

use crate::sys;
use crate::tally::Report;

/// A longer line than any plan with its channel sets needs; a writer of more is not a conductor.
const LINE_BYTES_MAX: usize = 4 << 20;

/// What a running swarm may be told.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Command {
    /// Print a report now.
    Report,
    /// Print a last report, then set all counts and latencies to zero; connections and their
    /// positions stay.
    Reset,
    /// Say `reached` as soon as `deliveries` (since the last reset) are counted, `late` after
    /// `timeout_s`. One at a time.
    Await { deliveries: u64, timeout_s: f64 },
    /// Cut the connections of all open faithful clients; they stay away until they are told to
    /// come back.
    DropOff,
    /// All that are away come back, at once.
    ComeBack,
    /// Print where each channel's subscribers stand.
    Positions,
    /// Print this host's CLOCK_MONOTONIC.
    Clock,
    /// The clock that publishers stamp messages by is so far ahead of this host's.
    Align { offset_ns: i64 },
}

/// What a swarm says.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// Every client is connected, or has failed for good (see the report's `failures`).
    Ready {
        connected: u32,
        seconds: f64,
    },
    Report(Report),
    Reached {
        deliveries: u64,
    },
    Late {
        deliveries: u64,
    },
    Positions {
        channels: BTreeMap<&'a str, Positions>,
    },
    Clock {
        monotonic_ns: u64,
    },
    Final(Report),
}

/// Where the subscribers of one channel stand.
#[derive(Debug, Serialize)]
pub struct Positions {
    pub subscribers: u32,
    pub offset_min: u64,
    pub offset_max: u64,
}

/// Prints one event as a line.
pub fn say(event: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}

/// Complete lines out of a descriptor that is read when it is readable.
pub struct Lines<F> {
    fd: F,
    pending: Vec<u8>,
}

impl<F: AsRawFd> Lines<F> {
    pub fn new(fd: F) -> Lines<F> {
        Lines {
            fd,
            pending: Vec::new(),
        }
    }

    /// One read: false at the end of the input.
    ///
    /// # Errors
    /// The read's own, and `InvalidData` for a line over the bound.
    pub fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let count = sys::read(&self.fd, &mut chunk)?;
        self.pending.extend_from_slice(&chunk[..count]);
        if self.pending.len() > LINE_BYTES_MAX {
            let message = format!("a command line is over {LINE_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count > 0)
    }

    /// The next complete line that has been read, without its end.
    pub fn next_line(&mut self) -> Option<String> {
        let end = self.pending.iter().position(|&byte| byte == b'\n')?;
        let line: Vec<u8> = self.pending.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Waits for the first line; `None` when the input ends before it.
    pub fn wait_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(line) = self.next_line() {
                return Ok(Some(line));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }
}

impl<F: AsRawFd> AsRawFd for Lines<F> {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_given_whole_however_they_arrive() {
        let (ours, theirs) = sys::packet_pair().unwrap();
        let mut lines = Lines::new(ours);
        for part in [&b"{\"cmd\":\"rep"[..], b"ort\"}\n{\"cmd\":\"reset\"}\n"] {
            sys::send_packet(&theirs, part).unwrap();
        }
        assert_eq!(
            lines.wait_line().unwrap().as_deref(),
            Some(r#"{"cmd":"report"}"#)
        );
        assert_eq!(
            lines.wait_line().unwrap().as_deref(),
            Some(r#"{"cmd":"reset"}"#)
        );
        drop(theirs);
        assert_eq!(lines.wait_line().unwrap(), None);
    }

    #[test]
    fn an_await_carries_its_bound() {
        let command = serde_json::from_str(r#"{"cmd":"await","deliveries":7,"timeout_s":1.5}"#);
        assert_eq!(
            command.ok(),
            Some(Command::Await {
                deliveries: 7,
                timeout_s: 1.5
            })
        );
    }
}
