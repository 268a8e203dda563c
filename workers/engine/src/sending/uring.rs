//! Many sends in one system call (io_uring(7)), all of them finished when it returns.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::{Offer, SENDS_PER_BATCH};
use crate::outbox::Frame;
use crate::sys::{MessageHeader, SEND_FLAGS, message_header};

/// Bytes of a trial send: more than a socket takes at once.
const TRIAL_BYTES: usize = 256 * 1024;
/// Trial sends until one must have found its socket full, whatever net.core.wmem_default is.
const TRIALS_MAX: usize = 256;

/// A ring, used by the thread that made it.
pub struct Ring {
    ring: IoUring,
    /// Nothing is heard of sends that went whole (IOSQE_CQE_SKIP_SUCCESS, 5.17).
    tells_failures_alone: bool,
}

impl Ring {
    /// A ring that has proven to send, and to tell how far it came.
    ///
    /// # Errors
    /// ENOSYS: no such kernel. EPERM: forbidden by kernel.io_uring_disabled or a seccomp filter.
    /// `Unsupported`: a kernel before 5.6.
    pub fn new() -> io::Result<Self> {
        let ring = build()?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [opcode::Send::CODE, opcode::SendMsg::CODE];
        if !codes.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut ring = Self {
            tells_failures_alone: ring.params().is_feature_skip_cqe_on_success(),
            ring,
        };
        let more = VecDeque::from([Frame::new(&b"more"[..])]);
        let is_exact = |ring: &mut Self| Ok(ring.is_exact(None)? && ring.is_exact(Some(&more))?);
        if is_exact(&mut ring)? {
            return Ok(ring);
        }
        ring.tells_failures_alone = false;
        match is_exact(&mut ring) {
            Ok(false) => Err(io::ErrorKind::Unsupported.into()),
            other => other.map(|_| ring),
        }
    }

    /// Fills a socket, with one slice at a time or several: whether as many bytes arrive as the
    /// ring says that it sent.
    ///
    /// # Errors
    /// What becomes of a send: a filter of requests shows only there.
    fn is_exact(&mut self, rest: Option<&VecDeque<Rc<Frame>>>) -> io::Result<bool> {
        let (ours, mut theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let bytes = vec![0; TRIAL_BYTES];
        let mut told = 0;
        for _ in 0..TRIALS_MAX {
            let results = self.send(&[(ours.as_fd(), Offer::new(&bytes, rest))]);
            match results.into_iter().next().flatten() {
                Some(Ok(sent)) => told += sent,
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Some(Err(error)) => return Err(error),
                None => return Ok(false),
            }
        }
        let (mut arrived, mut buffer) = (0, bytes);
        while let Ok(count) = theirs.read(&mut buffer) {
            arrived += count;
        }
        Ok(told > 0 && told == arrived)
    }

    /// Sends [`SENDS_PER_BATCH`] offers at most. `None`: the ring has failed, and has not taken
    /// that one; it must not be used again.
    pub fn send(
        &mut self,
        offers: &[(BorrowedFd<'_>, Offer<'_>)],
    ) -> Vec<Option<io::Result<usize>>> {
        debug_assert!(offers.len() <= SENDS_PER_BATCH);
        let several = offers.iter().filter(|(_, offer)| offer.rest.is_some());
        let slices: Vec<io::IoSlice<'_>> = several
            .clone()
            .flat_map(|(_, offer)| offer.slices().map(io::IoSlice::new))
            .collect();
        let mut rest = &slices[..];
        let headers: Vec<MessageHeader> = several
            .map(|(_, offer)| {
                let (own, others) = rest.split_at(offer.slices().count());
                rest = others;
                message_header(own)
            })
            .collect();
        let mut headers = headers.iter();
        let mut queue = self.ring.submission();
        for (place, (socket, offer)) in offers.iter().enumerate() {
            let entry = match offer.rest {
                None => request(*socket, offer.first, self.tells_failures_alone),
                Some(_) => {
                    let header = headers.next().expect("one was made for each");
                    request_of_several(*socket, header, self.tells_failures_alone)
                }
            };
            // SAFETY: the sockets are open and the bytes unchanged while `offers` borrows them, and
            // `slices` and `headers` are neither moved nor changed below. All of them live until
            // this function returns, and by then no request is with the kernel: MSG_DONTWAIT makes
            // it finish each in the call that submits it, with EAGAIN if it must, and one that it
            // has not taken stays so, as nobody submits from this ring any more.
            let pushed = unsafe { queue.push(&entry.user_data(place as u64)) };
            pushed.expect("a ring has an entry for each send of a batch");
        }
        drop(queue);
        if self.tells_failures_alone {
            self.submit(offers)
        } else {
            self.complete(offers.len())
        }
    }

    /// Submits what has been pushed, a request for each of `offers`: what is not told is sent.
    fn submit(&mut self, offers: &[(BorrowedFd<'_>, Offer<'_>)]) -> Vec<Option<io::Result<usize>>> {
        let mut results: Vec<_> = Vec::with_capacity(offers.len());
        while results.len() < offers.len() {
            let submitted = match self.enter(offers.len() - results.len()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) | Ok(0) => break,
                Ok(submitted) => submitted,
            };
            let taken = &offers[results.len()..][..submitted];
            results.extend(taken.iter().map(|(_, offer)| Some(Ok(offer.bytes()))));
        }
        results.resize_with(offers.len(), || None);
        for entry in self.ring.completion() {
            results[entry.user_data() as usize] = Some(outcome(entry.result()));
        }
        results
    }

    fn enter(&self, count: usize) -> io::Result<usize> {
        // From linux/io_uring.h: with this, what is left to do for requests is done in this call.
        const GET_EVENTS: u32 = 1;
        let submitter = self.ring.submitter();
        // SAFETY: there is no further argument that could be wrong.
        unsafe { submitter.enter::<libc::sigset_t>(count as u32, 0, GET_EVENTS, None) }
    }

    /// Submits what has been pushed, `count` requests, and collects what becomes of each.
    fn complete(&mut self, count: usize) -> Vec<Option<io::Result<usize>>> {
        let mut results: Vec<_> = std::iter::repeat_with(|| None).take(count).collect();
        let mut left = count;
        while left > 0 {
            match self.ring.submit_and_wait(left) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
                Ok(_) => {}
            }
            for entry in self.ring.completion() {
                results[entry.user_data() as usize] = Some(outcome(entry.result()));
                left -= 1;
            }
        }
        results
    }
}

/// The ring with what the kernel can do of this: completions are handed out by the call that waits
/// for them, without interrupting this thread (6.1), or at least only when it enters the kernel
/// (5.19). One invalid request does not hold back those behind it (5.18).
fn build() -> io::Result<IoUring> {
    let entries = SENDS_PER_BATCH as u32;
    // EINVAL, io_uring_setup(2): a flag that this kernel does not know.
    let is_unknown = |error: &io::Error| error.kind() == io::ErrorKind::InvalidInput;
    let mut builder = IoUring::builder();
    let newest = builder.dontfork().setup_submit_all().setup_single_issuer();
    match newest.setup_defer_taskrun().build(entries) {
        Err(error) if is_unknown(&error) => {}
        other => return other,
    }
    let mut builder = IoUring::builder();
    let newer = builder.dontfork().setup_submit_all().setup_coop_taskrun();
    match newer.build(entries) {
        Err(error) if is_unknown(&error) => IoUring::builder().dontfork().build(entries),
        other => other,
    }
}

/// The usual single slice needs no header, which the kernel would have to read.
fn request(socket: BorrowedFd<'_>, bytes: &[u8], is_quiet: bool) -> squeue::Entry {
    let fd = types::Fd(socket.as_raw_fd());
    let length = u32::try_from(bytes.len()).expect("frames are below 4 GiB");
    let (flags, quiet) = flags(is_quiet);
    let send = opcode::Send::new(fd, bytes.as_ptr(), length).flags(flags);
    send.build().flags(quiet)
}

fn request_of_several(
    socket: BorrowedFd<'_>,
    header: &MessageHeader,
    is_quiet: bool,
) -> squeue::Entry {
    let fd = types::Fd(socket.as_raw_fd());
    let (flags, quiet) = flags(is_quiet);
    let send = opcode::SendMsg::new(fd, header).flags(flags as u32);
    send.build().flags(quiet)
}

/// With MSG_WAITALL a send in part is one that failed (io_uring_enter(2)), and so is told.
fn flags(is_quiet: bool) -> (libc::c_int, squeue::Flags) {
    match is_quiet {
        true => (SEND_FLAGS | libc::MSG_WAITALL, squeue::Flags::SKIP_SUCCESS),
        false => (SEND_FLAGS, squeue::Flags::empty()),
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Option<Ring> {
        Ring::new().ok()
    }

    /// What a ring says of a send that its socket takes in part, and of the next one.
    fn sends_to_a_full_socket(ring: &mut Ring, rest: Option<&VecDeque<Rc<Frame>>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let bytes = vec![7; 4 << 20];
        let offer = Offer::new(&bytes, rest);
        let mut sent = ring.send(&[(ours.as_fd(), offer)]);
        let part = sent.remove(0).unwrap().unwrap();
        assert!((1..bytes.len()).contains(&part));
        let (empty, _theirs) = UnixStream::pair().unwrap();
        let three = [&empty, &ours, &empty].map(|each| (each.as_fd(), Offer::new(b"abc", None)));
        let [first, full, last] = <[_; 3]>::try_from(ring.send(&three)).unwrap();
        assert_eq!(first.unwrap().unwrap() + last.unwrap().unwrap(), 6);
        assert_eq!(full.unwrap().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut arrived = vec![0; part];
        theirs.read_exact(&mut arrived).unwrap();
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.read(&mut arrived).is_err());
    }

    #[test]
    fn a_ring_tells_how_much_of_each_send_was_taken() {
        let Some(mut ring) = ring() else {
            return;
        };
        let more = VecDeque::from([Frame::new(&b"more"[..])]);
        for tells_failures_alone in [ring.tells_failures_alone, false] {
            ring.tells_failures_alone = tells_failures_alone;
            sends_to_a_full_socket(&mut ring, None);
            sends_to_a_full_socket(&mut ring, Some(&more));
        }
    }

    #[test]
    fn a_peer_that_is_gone_fails_its_own_send_alone() {
        let Some(mut ring) = ring() else {
            return;
        };
        let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
        pairs[1].1.shutdown(std::net::Shutdown::Both).unwrap();
        let offers = pairs
            .each_ref()
            .map(|(ours, _)| (ours.as_fd(), Offer::new(b"x", None)));
        let results = ring.send(&offers).into_iter().map(Option::unwrap);
        let sent: Vec<_> = results
            .map(|each| each.map_err(|error| error.kind()))
            .collect();
        assert_eq!(sent, [Ok(1), Err(io::ErrorKind::BrokenPipe), Ok(1)]);
    }
}
