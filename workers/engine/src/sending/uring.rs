//! Many sends in one system call (io_uring(7)), all of them finished when it returns.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::{Offer, SENDS_PER_BATCH};
use crate::sys::{MessageHeader, SEND_FLAGS, message_header};

/// A ring, used by the thread that made it.
pub struct Ring(IoUring);

impl Ring {
    /// A ring that has proven to send.
    ///
    /// # Errors
    /// ENOSYS: no such kernel. EPERM: forbidden by kernel.io_uring_disabled or a seccomp filter.
    /// `Unsupported`: a kernel before 5.6.
    pub fn new() -> io::Result<Self> {
        let mut ring = Self(build()?);
        let mut probe = Probe::new();
        ring.0.submitter().register_probe(&mut probe)?;
        let has_all = [opcode::Send::CODE, opcode::SendMsg::CODE]
            .into_iter()
            .all(|code| probe.is_supported(code));
        // A filter of requests shows only in what becomes of one.
        let (ours, _theirs) = UnixStream::pair()?;
        let trial = ring.send(&[(ours.as_fd(), Offer::new(b"?", None))]);
        match trial.into_iter().next().flatten() {
            Some(Ok(1)) if has_all => Ok(ring),
            Some(Err(error)) => Err(error),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Sends [`SENDS_PER_BATCH`] offers at most. `None`: the ring has failed, and has not taken
    /// that one; it must not be used again.
    pub fn send(
        &mut self,
        offers: &[(BorrowedFd<'_>, Offer<'_>)],
    ) -> Vec<Option<io::Result<usize>>> {
        debug_assert!(offers.len() <= SENDS_PER_BATCH);
        let slices: Vec<io::IoSlice<'_>> = offers
            .iter()
            .flat_map(|(_, offer)| offer.slices().map(io::IoSlice::new))
            .collect();
        let mut rest = &slices[..];
        let mut headers = Vec::with_capacity(offers.len());
        for (_, offer) in offers {
            let (own, others) = rest.split_at(offer.slices().count());
            headers.push(message_header(own));
            rest = others;
        }
        for (place, ((socket, _), header)) in offers.iter().zip(&headers).enumerate() {
            let entry = request(*socket, header).user_data(place as u64);
            // SAFETY: the sockets are open and the bytes unchanged while `offers` borrows them, and
            // `slices` and `headers` are neither moved nor changed below. All of them live until
            // this function returns, and by then no request is with the kernel: MSG_DONTWAIT makes
            // it finish each in the call that submits it, with EAGAIN if it must, and one that it
            // has not taken stays so, as nobody submits from this ring any more.
            let pushed = unsafe { self.0.submission().push(&entry) };
            pushed.expect("a ring has an entry for each send of a batch");
        }
        self.complete(offers.len())
    }

    /// Submits what has been pushed, `count` requests, and collects what becomes of each.
    fn complete(&mut self, count: usize) -> Vec<Option<io::Result<usize>>> {
        let mut results: Vec<_> = std::iter::repeat_with(|| None).take(count).collect();
        let mut left = count;
        while left > 0 {
            match self.0.submit_and_wait(left) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
                Ok(_) => {}
            }
            for entry in self.0.completion() {
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
    match builder
        .dontfork()
        .setup_submit_all()
        .setup_coop_taskrun()
        .build(entries)
    {
        Err(error) if is_unknown(&error) => IoUring::builder().dontfork().build(entries),
        other => other,
    }
}

/// The usual single slice needs no header, which the kernel would have to read.
fn request(socket: BorrowedFd<'_>, header: &MessageHeader) -> squeue::Entry {
    let fd = types::Fd(socket.as_raw_fd());
    if header.msg_iovlen == 1 {
        // SAFETY: `header` was made of one IoSlice, which has iovec's layout (std's promise).
        let slice = unsafe { &*header.msg_iov };
        let length = u32::try_from(slice.iov_len).expect("frames are below 4 GiB");
        return opcode::Send::new(fd, slice.iov_base.cast(), length)
            .flags(SEND_FLAGS)
            .build();
    }
    opcode::SendMsg::new(fd, header)
        .flags(SEND_FLAGS as u32)
        .build()
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
