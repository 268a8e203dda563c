//! Every system call of this crate. Nothing else says `libc::`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Turns a system call's -1 into the error that `errno` tells.
macro_rules! syscall {
    ($call:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: the arguments are valid for this call: descriptors are owned or borrowed by the
        // caller, pointers come from live references of the stated length.
        let result = unsafe { libc::$call($($argument),*) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }};
}

/// Readiness that a caller asks for or is told of. Level-triggered: a client that reads once per
/// event and gets less than its buffer needs no second call to learn that nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
}

impl Interest {
    pub const READABLE: Interest = Interest {
        readable: true,
        writable: false,
    };
    /// Nothing but the connection's end.
    pub const END: Interest = Interest {
        readable: false,
        writable: false,
    };
    pub const BOTH: Interest = Interest {
        readable: true,
        writable: true,
    };

    fn bits(self) -> u32 {
        let readable = if self.readable { libc::EPOLLIN } else { 0 };
        let writable = if self.writable { libc::EPOLLOUT } else { 0 };
        (readable | writable | libc::EPOLLRDHUP) as u32
    }
}

/// An epoll instance with its event buffer. See epoll(7).
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// At most `events_max` events are taken per [`Epoll::wait`].
    pub fn new(events_max: usize) -> io::Result<Epoll> {
        let fd = syscall!(epoll_create1(libc::EPOLL_CLOEXEC))?;
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; events_max];
        // SAFETY: epoll_create1 gave us this descriptor, nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { fd, events })
    }

    pub fn add(&self, fd: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, interest)
    }

    pub fn change(&self, fd: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token, interest)
    }

    fn control(&self, operation: i32, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest.bits(),
            u64: token,
        };
        syscall!(epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event)).map(drop)
    }

    /// Waits and gives the number of events; read them with [`Epoll::event`]. An interrupted wait
    /// has none.
    pub fn wait(&mut self, timeout_ms: i32) -> io::Result<usize> {
        let room = self.events.len() as i32;
        match syscall!(epoll_wait(
            self.fd.as_raw_fd(),
            self.events.as_mut_ptr(),
            room,
            timeout_ms
        )) {
            Ok(count) => Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Token and readiness of one event of the last wait. Errors and hang-ups count as readable:
    /// the following read tells what happened.
    pub fn event(&self, index: usize) -> (u64, Interest) {
        let event = self.events[index];
        let bits = event.events as i32;
        let readable = bits & !libc::EPOLLOUT != 0;
        (
            event.u64,
            Interest {
                readable,
                writable: bits & libc::EPOLLOUT != 0,
            },
        )
    }
}

fn address_of(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*address.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    let value = (&raw const value).cast();
    syscall!(setsockopt(fd.as_raw_fd(), level, option, value, size)).map(drop)
}

fn tcp_socket(flags: i32) -> io::Result<OwnedFd> {
    let fd = syscall!(socket(
        libc::AF_INET,
        libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags,
        0
    ))?;
    // SAFETY: socket gave us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Starts a non-blocking connect; the socket becomes writable when it is decided
/// ([`connect_result`]). `narrow`: with the smallest receive buffer that the kernel allows.
pub fn connect(
    target: SocketAddrV4,
    source: Option<Ipv4Addr>,
    narrow: bool,
) -> io::Result<OwnedFd> {
    let fd = tcp_socket(libc::SOCK_NONBLOCK)?;
    set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    if narrow {
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 1)?;
    }
    let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    if let Some(source) = source {
        // ip(7): the port is chosen at connect, when source and target are known, so that the same
        // port may serve several sources.
        set_option(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        let address = address_of(SocketAddrV4::new(source, 0));
        syscall!(bind(fd.as_raw_fd(), (&raw const address).cast(), size))?;
    }
    let address = address_of(target);
    match syscall!(connect(fd.as_raw_fd(), (&raw const address).cast(), size)) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(fd),
    }
}

/// Makes the coming close a reset (socket(7), SO_LINGER of 0 seconds).
pub fn reset_on_close(fd: &OwnedFd) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    let pointer = (&raw const linger).cast();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_LINGER);
    syscall!(setsockopt(fd.as_raw_fd(), level, option, pointer, size)).map(drop)
}

/// How the connect of a now writable socket ended.
pub fn connect_result(fd: &OwnedFd) -> io::Result<()> {
    let mut error = 0_i32;
    let mut size = size_of::<i32>() as libc::socklen_t;
    let pointer = (&raw mut error).cast();
    syscall!(getsockopt(
        fd.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_ERROR,
        pointer,
        &mut size
    ))?;
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

/// A listener on 127.0.0.1 that shares `port` (0: any) with others of the same user; see socket(7),
/// SO_REUSEPORT.
pub fn listen_shared(port: u16, backlog: i32) -> io::Result<(OwnedFd, u16)> {
    let fd = tcp_socket(0)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    let mut address = address_of(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let mut size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    syscall!(bind(fd.as_raw_fd(), (&raw const address).cast(), size))?;
    syscall!(listen(fd.as_raw_fd(), backlog))?;
    syscall!(getsockname(
        fd.as_raw_fd(),
        (&raw mut address).cast(),
        &mut size
    ))?;
    Ok((fd, u16::from_be(address.sin_port)))
}

/// Accepts one connection, waiting for it, with Nagle's delay off and reads bounded by
/// `read_timeout_s`.
pub fn accept(listener: &OwnedFd, read_timeout_s: i64) -> io::Result<OwnedFd> {
    let null = std::ptr::null_mut();
    let fd = syscall!(accept4(
        listener.as_raw_fd(),
        null,
        std::ptr::null_mut(),
        libc::SOCK_CLOEXEC
    ))?;
    // SAFETY: accept4 gave us this descriptor, nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    let timeout = libc::timeval {
        tv_sec: read_timeout_s,
        tv_usec: 0,
    };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    let pointer = (&raw const timeout).cast();
    syscall!(setsockopt(
        fd.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVTIMEO,
        pointer,
        size
    ))?;
    Ok(fd)
}

/// One recv(2). `Ok(0)` is the end of the stream.
pub fn receive(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    let pointer = buffer.as_mut_ptr().cast();
    syscall!(recv(fd.as_raw_fd(), pointer, buffer.len(), 0)).map(|count| count as usize)
}

/// One send(2) that never waits and never raises SIGPIPE.
pub fn send(fd: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let pointer = bytes.as_ptr().cast();
    syscall!(send(fd.as_raw_fd(), pointer, bytes.len(), flags)).map(|count| count as usize)
}

/// One read(2), for descriptors that are no sockets.
pub fn read(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    let pointer = buffer.as_mut_ptr().cast();
    syscall!(read(fd.as_raw_fd(), pointer, buffer.len())).map(|count| count as usize)
}

/// Two connected ends that keep message boundaries (unix(7), SOCK_SEQPACKET).
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0_i32; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    syscall!(socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()))?;
    // SAFETY: socketpair gave us both descriptors, nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Sends one packet, waiting for room.
pub fn send_packet(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let pointer = bytes.as_ptr().cast();
    syscall!(send(
        fd.as_raw_fd(),
        pointer,
        bytes.len(),
        libc::MSG_NOSIGNAL
    ))
    .map(drop)
}

/// Waits until one of `fds` is readable or hung up; true at its index. `timeout_ms` -1: for ever.
pub fn wait_readable(fds: &[&dyn AsRawFd], timeout_ms: i32) -> io::Result<Vec<bool>> {
    let entry = |fd: &&dyn AsRawFd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polled: Vec<_> = fds.iter().map(entry).collect();
    match syscall!(poll(
        polled.as_mut_ptr(),
        polled.len() as libc::nfds_t,
        timeout_ms
    )) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(polled.iter().map(|entry| entry.revents != 0).collect()),
    }
}

/// Forks. In the child: `None`, and the kernel kills it when its parent ends. In the parent: the
/// child's pid. To be called while the process has one thread.
pub fn fork() -> io::Result<Option<u32>> {
    let parent = std::process::id();
    match syscall!(fork())? {
        0 => {
            syscall!(prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // The parent may have ended before the line above: nobody would kill us then.
            if std::os::unix::process::parent_id() != parent {
                std::process::exit(1);
            }
            Ok(None)
        }
        pid => Ok(Some(pid as u32)),
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock that publishers on this host stamp messages with.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live timespec; CLOCK_MONOTONIC always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Raises the soft RLIMIT_NOFILE to the hard one: how many descriptors this process may have.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    syscall!(getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
    limit.rlim_cur = limit.rlim_max;
    syscall!(setrlimit(libc::RLIMIT_NOFILE, &limit))?;
    Ok(limit.rlim_cur)
}
