//! The system calls of this crate: thin, safe, and nothing else says `libc::`.

pub mod passing;
pub mod process;

use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Turns the `-1` of a system call into the error in `errno`.
fn syscall<T: Into<i64> + Copy>(result: T) -> io::Result<T> {
    if result.into() == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Readiness of one descriptor, as epoll(7) reports it.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
    /// The peer will send no more, or the socket is in error.
    pub hung_up: bool,
}

/// An epoll(7) instance.
pub struct Epoll {
    fd: OwnedFd,
    buffer: Vec<libc::epoll_event>,
}

/// How a descriptor is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Reading and writing, each edge once: sockets of clients.
    Edges,
    /// Reading, each edge once: listeners and eventfds (which then need no read(2)).
    ReadEdges,
    /// Reading, as long as there is something to read.
    ReadLevel,
}

impl Epoll {
    /// An instance that reports at most `events_max` events per wait.
    pub fn new(events_max: usize) -> io::Result<Self> {
        // SAFETY: epoll_create1(2) takes no pointers.
        let fd = syscall(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call above made this descriptor and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            buffer: Vec::with_capacity(events_max),
        })
    }

    /// Watches `fd`, whose events carry `token`.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> io::Result<()> {
        let interest = match watch {
            Watch::Edges => libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
            Watch::ReadEdges => libc::EPOLLIN | libc::EPOLLET,
            Watch::ReadLevel => libc::EPOLLIN,
        };
        let mut event = libc::epoll_event {
            events: interest as u32,
            u64: token,
        };
        let (epoll, fd) = (self.fd.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: both descriptors are open; `event` lives through the call.
        syscall(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// Stops watching `fd`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let (epoll, fd, null) = (self.fd.as_raw_fd(), fd.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: both descriptors are open; DEL ignores the event pointer (Linux 2.6.9 on).
        syscall(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, null) })?;
        Ok(())
    }

    /// Waits at most `timeout`, rounded up to milliseconds, and appends what is ready to `events`.
    /// A signal ends the wait with nothing.
    pub fn wait(&mut self, timeout: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout_ms = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let events_max = i32::try_from(self.buffer.capacity()).unwrap_or(i32::MAX);
        let (epoll, buffer) = (self.fd.as_raw_fd(), self.buffer.as_mut_ptr());
        // SAFETY: `buffer` has room for `events_max` events.
        let count = syscall(unsafe { libc::epoll_wait(epoll, buffer, events_max, timeout_ms) });
        let count = match count {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel wrote the first `count` events.
        unsafe { self.buffer.set_len(count) };
        events.extend(self.buffer.iter().map(|event| {
            let is = |bits: i32| event.events & bits as u32 != 0;
            Event {
                token: event.u64,
                readable: is(libc::EPOLLIN),
                writable: is(libc::EPOLLOUT),
                hung_up: is(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
            }
        }));
        Ok(())
    }
}

/// Takes one connection off `listener`'s queue: non-blocking, close-on-exec.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let (listener, null) = (listener.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: accept4(2) takes null pointers when the peer's address is not wanted.
    let fd = syscall(unsafe { libc::accept4(listener, null, std::ptr::null_mut(), flags) })?;
    // SAFETY: the call above made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Spares what `listener` accepts from now on Nagle's delay: a connection begins with the options
/// of its listener, of which Linux makes it a copy.
pub fn set_no_delay(listener: BorrowedFd<'_>) {
    let one: libc::c_int = 1;
    // SAFETY: the option's value lives through the call and has the length given.
    // A failure (a Unix socket in tests) costs latency only.
    unsafe {
        let value = (&raw const one).cast();
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_NODELAY);
        libc::setsockopt(listener.as_raw_fd(), level, option, value, length);
    }
}

/// Whether an accept(2) failed for want of descriptors or memory, of this process or of the host.
pub fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM]
        .iter()
        .any(|&each| code == Some(each))
}

/// Whether an accept(2) failed for the one connection that it would have returned, and may go on.
pub fn is_of_peer(error: &io::Error) -> bool {
    let of_network = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EPERM,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
    ];
    let code = error.raw_os_error();
    of_network.iter().any(|&each| code == Some(each))
}

/// Reads what is there, at most `buffer`; 0: the peer sends no more.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
    let count = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    Ok(syscall(count as i64)? as usize)
}

/// How everything is sent: what the socket takes at once, and no SIGPIPE where the peer has gone.
pub const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Sends what the socket takes of `bytes`.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `bytes.len()` bytes of `bytes`.
    let count = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            SEND_FLAGS,
        )
    };
    Ok(syscall(count as i64)? as usize)
}

/// What sendmsg(2) takes; it points to slices that somebody else keeps.
pub type MessageHeader = libc::msghdr;

/// The header of a message of `slices`, at most 1024 (IOV_MAX, uio(7)), in order.
pub fn message_header(slices: &[io::IoSlice<'_>]) -> MessageHeader {
    // SAFETY: an all-zero msghdr is valid: no name, no control data, no slices.
    let mut header: MessageHeader = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_ptr().cast_mut().cast();
    header.msg_iovlen = slices.len();
    header
}

/// Sends what the socket takes of `slices`, see [`message_header`].
/// sendmsg(2) in place of writev(2), which cannot be told to spare us SIGPIPE.
pub fn send_vectored(socket: BorrowedFd<'_>, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
    let header = message_header(slices);
    // SAFETY: IoSlice has iovec's layout (std's promise on Unix); the kernel only reads the slices.
    let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, SEND_FLAGS) };
    Ok(syscall(count as i64)? as usize)
}

/// How many bytes the kernel took from all who ever wrote to a TCP connection that was accepted,
/// and how many it gave to all who read from it, whoever they were (tcp(7), TCP_INFO): what was
/// acknowledged and what is still to be; what came and is not still to be read. A FIN counts as a
/// byte. Zeros for another socket.
pub fn stream_position(socket: BorrowedFd<'_>) -> (u64, u64) {
    loop {
        // Data that comes between two looks at the same thing is looked at once more.
        let before = tcp_info(socket);
        let unsent = queued(socket, libc::TIOCOUTQ);
        let unread = queued(socket, libc::FIONREAD);
        let after = tcp_info(socket);
        if before == after {
            let (acked, received) = after.unwrap_or((unsent, unread));
            return (acked + unsent, received.saturating_sub(unread));
        }
    }
}

/// Whether this descriptor is a TCP connection.
pub fn is_tcp_connection(socket: BorrowedFd<'_>) -> bool {
    tcp_info(socket).is_some()
}

/// Bytes that the peer has acknowledged and bytes that came of it. `None`: no TCP connection.
fn tcp_info(socket: BorrowedFd<'_>) -> Option<(u64, u64)> {
    /// As <linux/tcp.h> has it, up to what is wanted of it (Linux 4.1 on); libc ends before.
    #[repr(C)]
    struct Info {
        state: u8,
        before: [u8; 119],
        bytes_acked: u64,
        bytes_received: u64,
    }
    /// TCP_LISTEN of <net/tcp_states.h>.
    const LISTEN: u8 = 10;
    const _: () = assert!(std::mem::offset_of!(Info, bytes_acked) == 120);
    // SAFETY: all of it are numbers, for which zeros are values.
    let mut info: Info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let is_whole = length as usize == size_of::<Info>();
    (result == 0 && is_whole && info.state != LISTEN)
        .then_some((info.bytes_acked, info.bytes_received))
}

/// Whether the kernel holds bytes of the peer that nobody has read.
pub fn has_unread(socket: BorrowedFd<'_>) -> bool {
    queued(socket, libc::FIONREAD) > 0
}

/// The port of a socket's own end. `None`: it is no socket of the Internet's.
pub fn local_port(socket: BorrowedFd<'_>) -> Option<u16> {
    // SAFETY: what it is asked is any socket's to answer, and it is never dropped, so not closed.
    let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(socket.as_raw_fd()) });
    socket.local_addr().ok().map(|address| address.port())
}

/// What an ioctl(2) says of a queue of a socket, in bytes (tcp(7): SIOCOUTQ, SIOCINQ).
fn queued(socket: BorrowedFd<'_>, which: libc::Ioctl) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one number into `bytes`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), which, &raw mut bytes) };
    if result == 0 { bytes.max(0) as u64 } else { 0 }
}

/// Says to the peer that no more will be sent. Errors mean that the peer is gone already.
pub fn finish_sending(socket: BorrowedFd<'_>) {
    // SAFETY: shutdown(2) takes no pointers.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// A descriptor kept for bad times: closing it makes room to accept, and refuse, one connection.
pub fn spare_descriptor() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}

/// Makes an inherited socket non-blocking, whatever the parent did.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl(2) with F_GETFL and F_SETFL takes no pointers.
    let flags = syscall(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    syscall(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// A copy of an inherited descriptor, closed on exec; the original stays its owner's.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC takes no pointers.
    let copy = syscall(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the call above made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Prefers memory of NUMA node `node` for all that this thread allocates from now on.
pub fn prefer_memory_node(node: u32) -> io::Result<()> {
    /// MPOL_PREFERRED of set_mempolicy(2): another node is taken when this one is full.
    const MPOL_PREFERRED: libc::c_long = 1;
    const NODES_MAX: usize = 1024;
    let mut mask = [0u64; NODES_MAX / 64];
    let Some(word) = mask.get_mut(node as usize / 64) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    *word = 1 << (node % 64);
    // SAFETY: the kernel reads NODES_MAX bits of `mask`; it looks at maxnode - 1 of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            MPOL_PREFERRED,
            mask.as_ptr(),
            (NODES_MAX + 1) as libc::c_ulong,
        )
    };
    syscall(result as i64)?;
    Ok(())
}

/// Ends this process at once: nothing is unwound, flushed or cleaned up.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn connections_have_the_delay_of_their_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_no_delay(listener.as_fd());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = TcpStream::from(accept(listener.as_fd()).unwrap());
        assert!(accepted.nodelay().unwrap());
    }
}
