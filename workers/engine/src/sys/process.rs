//! A process beside this one that shares its descriptors, and what it needs to live (clone(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::syscall;

/// Makes a process that shares our table of descriptors and nothing else, a child of our parent:
/// what either opens or closes, it opens or closes for both, until one of them ends; then the
/// other has the table alone. The child runs `run` and ends with the status that it returns;
/// nothing else of this program goes on in it. To be called while this process has one thread.
///
/// # Errors
/// As clone(2).
pub fn beside(run: impl FnOnce() -> i32) -> io::Result<()> {
    let flags = libc::CLONE_FILES | libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack of its own, this is a fork(2): the child goes on in a
    // copy of our memory. Only one thread has locks, and it holds none of the allocator's here.
    let pid = syscall(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    if pid == 0 {
        super::exit_now(run());
    }
    Ok(())
}

/// A descriptor that is readable when this process is dead (pidfd_open(2)).
///
/// # Errors
/// As pidfd_open(2).
pub fn own_pidfd() -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes no pointers.
    let fd = syscall(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) })?;
    // SAFETY: the call above made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub fn parent_pid() -> i32 {
    // SAFETY: getppid(2) cannot fail.
    unsafe { libc::getppid() }
}

/// Has the kernel kill this process when its parent ends (PR_SET_PDEATHSIG, prctl(2)).
pub fn die_with_the_parent() {
    // SAFETY: prctl(2) takes a number here.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Names this process as ps(1) shows it: in place of the command line that it has inherited.
pub fn set_title(title: &str) {
    let name = std::ffi::CString::new(title).unwrap_or_default();
    // SAFETY: a C string, of which the kernel takes 15 bytes (PR_SET_NAME, prctl(2)).
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    let Some((start, end)) = arguments() else {
        return;
    };
    // SAFETY: the kernel put the command line there, for this process to read and write, and this
    // copy of the memory is ours alone; nobody refers to it in this process any more.
    let line = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    line.fill(0);
    let bytes = title.len().min(line.len().saturating_sub(1));
    line[..bytes].copy_from_slice(&title.as_bytes()[..bytes]);
}

/// Where the command line is: fields 48 and 49 of /proc/self/stat (proc(5)).
fn arguments() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(48 - 3);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start > 0 && start < end).then_some((start, end))
}

/// Gives the kernel back what this process inherited and does not need: large private memory that
/// is neither the allocator's nor a stack. Interpreters keep their objects there.
pub fn forget_inherited_memory() {
    /// What CPython takes for its objects at once (Objects/obmalloc.c, ARENA_BITS).
    const ARENA_BYTES: usize = 256 * 1024;
    let here = 0u8;
    // SAFETY: the address of a variable of this thread, which is always there.
    let errno = unsafe { libc::__errno_location() }.addr();
    let needed = [(&raw const here).addr(), errno];
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, end) in maps.lines().filter_map(private_anonymous) {
        let is_needed = needed.iter().any(|each| (start..end).contains(each));
        if is_needed || !(end - start).is_multiple_of(ARENA_BYTES) {
            continue;
        }
        // SAFETY: private anonymous memory, none of it this thread's stack or variables, the
        // allocator's heap or a file's; what is forgotten reads as zeros, and nobody here reads it.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Where a line of /proc/self/maps (proc(5)) speaks of memory that is neither shared nor a file's,
/// and has no name, as heap and stack have.
fn private_anonymous(line: &str) -> Option<(usize, usize)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [range, "rw-p", _, _, _] = fields[..] else {
        return None;
    };
    let (start, end) = range.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    Some((parse(start)?, parse(end)?))
}

/// Which of the two can be read, or is at its end.
///
/// # Errors
/// As poll(2); not for a signal.
pub fn wait_readable(fds: [BorrowedFd<'_>; 2], timeout_ms: i32) -> io::Result<[bool; 2]> {
    let watch = |fd: BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polled = fds.map(watch);
    // SAFETY: the kernel writes into the two entries.
    let result = syscall(unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout_ms) });
    match result {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(polled.map(|each| each.revents != 0)),
    }
}

/// Numbers of all open descriptors.
///
/// # Errors
/// As for reading /proc/self/fd.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.collect())
}

/// Lends a descriptor of a number that another process of the same table had opened.
///
/// # Safety
/// It must be open, and closed by nobody while it is lent.
pub unsafe fn lend<'a>(number: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the caller says so.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Closes a descriptor by its number; what is not open stays so.
pub fn close(number: RawFd) {
    // SAFETY: close(2) takes a number.
    unsafe { libc::close(number) };
}
