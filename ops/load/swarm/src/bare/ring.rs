//! The bare loop by io_uring: as many sends in one system call as the ring has entries.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, opcode, types};

/// Sends of one system call.
const ENTRIES: u32 = 256;

pub struct Ring(IoUring);

impl Ring {
    /// # Errors
    /// Where the kernel has no io_uring for us, or is older than 6.1.
    pub fn new() -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        builder.setup_submit_all().build(ENTRIES).map(Ring)
    }

    /// Sends `bytes` to every socket; returns how many took all of them.
    pub fn send_to_all(&mut self, sockets: &[OwnedFd], bytes: &[u8]) -> io::Result<u64> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut taken = 0;
        for batch in sockets.chunks(ENTRIES as usize) {
            for socket in batch {
                let fd = types::Fd(socket.as_raw_fd());
                let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(flags);
                // SAFETY: `bytes` outlives the wait below, which is for all sends of the batch. A
                // batch is as long as the ring at most, so there is room.
                unsafe { self.0.submission().push(&send.build()) }.map_err(io::Error::other)?;
            }
            self.0.submit_and_wait(batch.len())?;
            let whole = |entry: &io_uring::cqueue::Entry| entry.result() == bytes.len() as i32;
            taken += self.0.completion().filter(whole).count() as u64;
        }
        Ok(taken)
    }
}
