//! Descriptors and sealed memory on their way to another process (unix(7), memfd_create(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::syscall;

/// Most descriptors that the kernel lets ride with one message (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 253;

/// Room for the control data of [`DESCRIPTORS_MAX`] descriptors, aligned as cmsg(3) wants it.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

const CONTROL_BYTES: usize =
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * size_of::<libc::c_int>()) as u32) } as usize;

/// A message as it came.
pub struct Received {
    pub bytes: usize,
    pub descriptors: Vec<OwnedFd>,
    /// Some of it was lost: it did not fit, or this process has no room for more descriptors.
    pub is_truncated: bool,
}

/// Sends one message with its descriptors, whole or not at all, without waiting.
///
/// # Errors
/// As sendmsg(2); `InvalidInput` for more than [`DESCRIPTORS_MAX`].
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    if passed.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let numbers: Vec<libc::c_int> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = Control([0; CONTROL_BYTES]);
    let mut slice = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: an all-zero msghdr is valid: no name, no control data, no slices.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    if !numbers.is_empty() {
        let payload_bytes = size_of_val(numbers.as_slice());
        message.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload_bytes as u32) } as usize;
        // SAFETY: `control` has room for one header and DESCRIPTORS_MAX numbers, and is aligned;
        // the first header lies at its start.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload_bytes as u32) as usize;
            let data = libc::CMSG_DATA(header);
            std::ptr::copy_nonoverlapping(numbers.as_ptr().cast(), data, payload_bytes);
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: all that `message` points to lives through the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    syscall(sent as i64)?;
    Ok(())
}

/// Receives one message without waiting. No bytes: the peer has closed its end.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut slice = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is valid: no name, no control data, no slices.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: all that `message` points to lives through the call, and has the lengths given.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let bytes = syscall(count as i64)? as usize;
    Ok(Received {
        bytes,
        descriptors: descriptors(&message),
        is_truncated: message.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0,
    })
}

fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel filled the control data that `message` points to.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie within the control data.
        let (level, kind, length) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len,
            )
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above; the data follows its header.
            let data: *const libc::c_int = unsafe { libc::CMSG_DATA(header) }.cast();
            // SAFETY: CMSG_LEN only computes.
            let payload_bytes = length - unsafe { libc::CMSG_LEN(0) } as usize;
            for place in 0..payload_bytes / size_of::<libc::c_int>() {
                // SAFETY: the payload has that many numbers; each is a descriptor that the kernel
                // has just made for this process and nobody else knows.
                found.push(unsafe { OwnedFd::from_raw_fd(data.add(place).read_unaligned()) });
            }
        }
        // SAFETY: `header` is a header of this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    found
}

/// Whether an error of a Unix socket says that the other end is closed for good.
pub fn is_gone(error: &io::Error) -> bool {
    let codes = [
        libc::EPIPE,
        libc::ECONNRESET,
        libc::ECONNREFUSED,
        libc::ENOTCONN,
    ];
    codes.iter().any(|code| error.raw_os_error() == Some(*code))
}

/// Whether the other end was closed with messages unread: told once, before what it has sent.
pub fn was_reset(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNRESET)
}

/// Whether more descriptors are on their way than the sender may have open (ETOOMANYREFS, unix(7)).
pub fn is_crowded(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// Memory that holds `bytes` and can be changed by nobody any more.
///
/// # Errors
/// As memfd_create(2), write(2) and fcntl(2): no descriptors, no memory.
pub fn sealed_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = syscall(unsafe { libc::memfd_create(c"tidegate-handoff".as_ptr(), flags) })?;
    // SAFETY: the call above made this descriptor and nobody else has it.
    let memory = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut file = std::fs::File::from(memory);
    io::Write::write_all(&mut file, bytes)?;
    let memory = OwnedFd::from(file);
    // SAFETY: fcntl(2) with F_ADD_SEALS takes no pointers.
    syscall(unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
    Ok(memory)
}

const SEALS: libc::c_int =
    libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

/// All of a memory that is sealed.
///
/// # Errors
/// As read(2); `InvalidData` if it is not sealed or longer than `bytes_max`.
pub fn read_sealed(memory: OwnedFd, bytes_max: usize) -> io::Result<Vec<u8>> {
    // SAFETY: fcntl(2) with F_GET_SEALS takes no pointers.
    let seals = syscall(unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_GET_SEALS) })?;
    let file = std::fs::File::from(memory);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if seals & SEALS != SEALS || length > bytes_max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    // The offset came along with the descriptor: it is where the writer left it.
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0)?;
    Ok(bytes)
}

/// How many more descriptors this process may have (RLIMIT_NOFILE, getrlimit(2)).
pub fn descriptors_left() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return 0;
    }
    let limit = usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    limit.saturating_sub(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn sealed_memory_holds_what_it_was_given_and_nothing_else_is_read() {
        let memory = sealed_memory(b"records").unwrap();
        let mut file = std::fs::File::from(memory.try_clone().unwrap());
        assert!(file.write_all(b"other").is_err());
        assert!(file.set_len(3).is_err());
        let copy = || memory.try_clone().unwrap();
        assert_eq!(read_sealed(copy(), 7).unwrap(), b"records");
        let too_long = read_sealed(copy(), 6).unwrap_err();
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidData);
        let plain = std::fs::File::open("/proc/self/status").unwrap();
        assert!(read_sealed(plain.into(), 1 << 20).is_err());
    }

    #[test]
    fn more_descriptors_than_the_kernel_takes_are_not_offered() {
        let memory = sealed_memory(b"").unwrap();
        let many = vec![memory.as_fd(); DESCRIPTORS_MAX + 1];
        let error = send(memory.as_fd(), b"x", &many).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
