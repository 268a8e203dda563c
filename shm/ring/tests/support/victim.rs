//! Child processes that are killed with SIGKILL at random points.
//!
//! A role runs in a child: the test's binary once more, told by [`ROLE`] what to be, with the
//! shared memory as inherited descriptors. Its test `child_role` does what [`Role`] says.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_ring::region::Region;
use tidegate_ring::wake::Bell;

use super::Random;

const ROLE: &str = "TIDEGATE_RING_TEST_ROLE";

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A child is killed after it has done so much that others can see (records, requests) ...
const DEEDS_MAX: usize = 200;

/// ... and some moments more, so that the blow falls anywhere.
const MOMENTS_MAX: usize = 3000;

/// What a child process is to do.
pub struct Role {
    pub name: String,
    pub regions: Vec<Region>,
    /// To be rung when its work has begun.
    pub ready: Bell,
    pub argument: u64,
}

impl Role {
    /// `None` in the process that runs the tests.
    pub fn of_this_process() -> Option<Role> {
        let role = std::env::var(ROLE).ok()?;
        let mut words = role.split(' ');
        let name = words.next().expect("a name").to_owned();
        let argument = words
            .next()
            .expect("an argument")
            .parse()
            .expect("a number");
        let mut fds = words.map(|number| {
            // SAFETY: inherited for this purpose from the parent, which says its number.
            unsafe { OwnedFd::from_raw_fd(number.parse().expect("a descriptor")) }
        });
        let ready = Bell::from(fds.next().expect("a bell"));
        let regions = fds
            .map(|fd| Region::map(fd.as_fd()).expect("map"))
            .collect();
        Some(Role {
            name,
            regions,
            ready,
            argument,
        })
    }
}

/// A process that is killed when this is dropped.
pub struct Victim {
    child: Child,
    ready: Bell,
}

impl Victim {
    /// Starts a child in a role, over some shared memory.
    pub fn start(role: &str, memory: &[&OwnedFd], argument: u64) -> Victim {
        let ready = Bell::new().unwrap();
        let fds: Vec<i32> = memory.iter().map(|fd| fd.as_raw_fd()).collect();
        let fds = [&[ready.as_raw_fd()], &fds[..]].concat();
        let numbers: Vec<String> = fds.iter().map(i32::to_string).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_role", "--nocapture"]);
        command.env(ROLE, format!("{role} {argument} {}", numbers.join(" ")));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for fd in &fds {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("spawn");
        Victim { child, ready }
    }

    /// Waits until the child has begun its work.
    pub fn await_ready(&self) {
        assert!(self.ready.wait(PATIENCE), "the child does not begin");
    }

    /// Whether the child has begun its work, without waiting for it.
    pub fn is_ready(&self) -> bool {
        self.ready.wait(Duration::ZERO)
    }

    /// Lets it live until `deeds` says that it has done enough, a number to be chosen at random,
    /// and for a random moment.
    pub fn live(&self, random: &mut Random, mut deeds: impl FnMut() -> u64) {
        let enough = deeds() + 1 + random.below(DEEDS_MAX) as u64;
        until("deeds of a child", || deeds() >= enough);
        for _ in 0..random.below(MOMENTS_MAX) {
            std::hint::spin_loop();
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call, to our own child that was not waited for.
        let result = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(result, 0, "kill: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let ended = self.child.try_wait().expect("wait");
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        if let (Some(status), false) = (ended, std::thread::panicking()) {
            panic!("a child ended by itself: {status}");
        }
    }
}

/// Waits, looking again and again, until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::yield_now();
    }
}

pub fn memory(bytes: usize) -> (OwnedFd, Region) {
    // SAFETY: a valid C string.
    let fd = unsafe { libc::memfd_create(c"kill".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain system call on an open descriptor.
    let result = unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) };
    assert_eq!(result, 0, "ftruncate: {}", std::io::Error::last_os_error());
    let region = Region::map(fd.as_fd()).unwrap();
    (fd, region)
}
