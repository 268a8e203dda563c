//! The bare loop of idle connections: pings go out in lots, and whatever comes is read.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::{self, Epoll, Interest};

/// Between two lots, as in the gateway.
const STEP_NS: u64 = 100_000_000;
/// Events taken at once, as in the gateway.
const EVENTS_MAX: usize = 1024;
/// Holds any pong of the swarm's.
const BUFFER_BYTES: usize = 256;

/// How often each connection is pinged, and for how long that goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pinging {
    pub interval_ns: u64,
    pub for_ns: u64,
}

impl Pinging {
    const BYTES: usize = 16;

    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (field, value) in bytes
            .chunks_exact_mut(8)
            .zip([self.interval_ns, self.for_ns])
        {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    /// `None`: they are none.
    pub fn decode(bytes: &[u8]) -> Option<Pinging> {
        let (interval, rest) = bytes.split_first_chunk()?;
        Some(Pinging {
            interval_ns: u64::from_ne_bytes(*interval),
            for_ns: u64::from_ne_bytes(*rest.first_chunk()?),
        })
    }

    /// Pings `sockets` in turn with `frame`. Returns how many pings went out, and how many sockets
    /// had no room.
    pub fn run(self, sockets: &[OwnedFd], frame: &[u8]) -> io::Result<(u64, u64)> {
        let mut epoll = Epoll::new(EVENTS_MAX)?;
        for (index, socket) in sockets.iter().enumerate() {
            epoll.add(socket, index as u64, Interest::READABLE)?;
        }
        let mut buffer = [0; BUFFER_BYTES];
        let began_ns = sys::monotonic_ns();
        let (mut pinged, mut refused) = (0, 0);
        loop {
            let passed_ns = sys::monotonic_ns() - began_ns;
            if passed_ns >= self.for_ns || sockets.is_empty() {
                return Ok((pinged - refused, refused));
            }
            while pinged < self.due(passed_ns, sockets.len()) {
                let socket = &sockets[pinged as usize % sockets.len()];
                refused += u64::from(!sys::send(socket, frame).is_ok_and(|n| n == frame.len()));
                pinged += 1;
            }
            let left_ns = STEP_NS - (sys::monotonic_ns() - began_ns) % STEP_NS;
            for event in 0..epoll.wait(left_ns.div_ceil(1_000_000) as i32)? {
                let (index, _) = epoll.event(event);
                if sys::receive(&sockets[index as usize], &mut buffer)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }

    /// Pings that are due after so long: of whole lots.
    fn due(self, passed_ns: u64, sockets: usize) -> u64 {
        let lots = u128::from(passed_ns / STEP_NS);
        (lots * u128::from(STEP_NS) * sockets as u128 / u128::from(self.interval_ns)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINGING: Pinging = Pinging {
        interval_ns: 25_000_000_000,
        for_ns: 60_000_000_000,
    };

    #[test]
    fn each_socket_is_due_once_an_interval() {
        assert_eq!(PINGING.due(99_999_999, 10_000), 0);
        assert_eq!(PINGING.due(100_000_000, 10_000), 40);
        assert_eq!(PINGING.due(25_000_000_000, 10_000), 10_000);
    }

    #[test]
    fn what_is_asked_for_is_read_back() {
        assert_eq!(Pinging::decode(&PINGING.encode()), Some(PINGING));
        assert_eq!(Pinging::decode(&[0; 15]), None);
    }
}
