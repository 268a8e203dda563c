//! Sleeping and waking: whoever waits for a ring says so in a word, whoever fills the ring looks at
//! that word and, only if it says so, writes an eventfd.
//!
//! Both sides store one word and then look at the other's (Dekker's pattern), so each needs a
//! store-load barrier between the two, `fence(SeqCst)`: then at least one of them sees the other's
//! store, and no wake-up is lost.
//!
//! The word counts: odd while its owner sleeps, a new odd number at each sleep. So the filler can
//! remember which sleep it has ended already and rings once for each, without writing that word.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::region::Region;
use crate::sync::{AtomicU64, Ordering, fence};

/// The side that waits; owner of the word.
#[derive(Debug)]
pub(crate) struct Sleeper {
    region: Region,
    offset: usize,
}

impl Sleeper {
    pub fn new(region: &Region, offset: usize) -> Sleeper {
        Sleeper {
            region: region.clone(),
            offset,
        }
    }

    fn word(&self) -> &AtomicU64 {
        self.region.word(self.offset)
    }

    /// Announces a sleep, then looks once more whether there `is_idle` still nothing to do. If
    /// true, the caller may block until its eventfd is written; if false, the sleep is called off.
    pub fn may_sleep(&self, is_idle: impl FnOnce() -> bool) -> bool {
        let count = self.word().load(Ordering::Relaxed);
        self.word()
            .store(count.wrapping_add(1) | 1, Ordering::Relaxed);
        // SYNC: pairs with wake.rs::announce
        fence(Ordering::SeqCst);
        let asleep = is_idle();
        if !asleep {
            self.awake();
        }
        asleep
    }

    /// Takes the announcement back; call it after every sleep.
    pub fn awake(&self) {
        let count = self.word().load(Ordering::Relaxed);
        self.word()
            .store(count.wrapping_add(count & 1), Ordering::Relaxed);
    }
}

/// Stands between the store that makes new records visible and the looks at the sleepers' words.
pub(crate) fn announce() {
    // SYNC: pairs with wake.rs::Sleeper::may_sleep
    fence(Ordering::SeqCst);
}

/// The side that fills, one for each sleeper.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    /// The sleep that was ended last; 0 is none.
    ended: u64,
}

impl Waker {
    /// Whether the sleeper has to be woken; true once for each sleep. Call [`announce`] before.
    pub fn must_wake(&mut self, word: &AtomicU64) -> bool {
        let sleep = self.sleep(word);
        if let Some(sleep) = sleep {
            self.end(sleep);
        }
        sleep.is_some()
    }

    /// The number of the sleep that nobody has ended yet, if there is one. Call [`announce`] before.
    #[inline]
    pub fn sleep(&self, word: &AtomicU64) -> Option<u64> {
        let count = word.load(Ordering::Relaxed);
        (count & 1 == 1 && count != self.ended).then_some(count)
    }

    /// Notes that the sleeper is being woken.
    pub fn end(&mut self, sleep: u64) {
        self.ended = sleep;
    }
}

/// An eventfd(2): what a sleeper blocks on.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A new, silent, non-blocking bell.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just opened and belongs to nobody else.
        Ok(Bell(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Rings: whoever waits for the bell becomes ready. Cannot fail in a way that matters: a full
    /// counter (EAGAIN) is ready already.
    pub fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes, which is what eventfd(2) takes.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences the bell; whoever waits with poll(2) does it before looking at the rings. Returns
    /// whether it had rung. (Not needed with EPOLLET: every ring is a new edge.)
    pub fn silence(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes, which is what eventfd(2) fills.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        read == count.len() as isize
    }

    /// Waits until the bell rings, at most `timeout`, and silences it. Returns whether it rang.
    pub fn wait(&self, timeout: Duration) -> bool {
        let rang = wait_readable([self.as_raw_fd()], timeout).is_ok_and(|[rang]| rang);
        rang && self.silence()
    }
}

impl From<OwnedFd> for Bell {
    /// Takes over an eventfd that came from another process; it has to be non-blocking.
    fn from(fd: OwnedFd) -> Bell {
        Bell(fd)
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until one of `fds` is readable (or at its end), at most `timeout`; says which are.
///
/// # Errors
/// What poll(2) says; but a signal only cuts the wait short.
pub fn wait_readable<const N: usize>(fds: [RawFd; N], timeout: Duration) -> io::Result<[bool; N]> {
    let mut polls = fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up, so that a short wait is not a busy one.
    let timeout_ms = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: `polls` is an array of `N` valid entries for the length of the call.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok([false; N]),
            _ => Err(error),
        };
    }
    Ok(polls.map(|poll| poll.revents != 0))
}
