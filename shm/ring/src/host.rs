//! Facts that the kernel tells: clocks, random numbers, who this process is.

use std::io;

use crate::error::SegmentError;

/// CLOCK_MONOTONIC in nanoseconds: one clock for all processes of a host.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Wall clock in milliseconds since 1970.
#[must_use]
pub fn wall_clock_ms() -> u64 {
    clock_ns(libc::CLOCK_REALTIME) / 1_000_000
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer. Both clocks exist on every Linux
    // (clock_gettime(2)), so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A random number of the kernel's generator.
///
/// # Errors
/// [`SegmentError::System`] where the kernel gives none (getrandom(2)).
pub fn random() -> Result<u64, SegmentError> {
    let mut bytes = [0_u8; 8];
    fill_random(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Fills `bytes`, at most 256, with random ones of the kernel's generator.
///
/// # Errors
/// As [`random`].
pub fn fill_random(bytes: &mut [u8]) -> Result<(), SegmentError> {
    // SAFETY: the kernel writes at most `bytes.len()` bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole and without EINTR once the generator is ready (getrandom(2)).
    if got != bytes.len() as isize {
        return Err(SegmentError::system("getrandom"));
    }
    Ok(())
}

/// This process: pid, and start time in clock ticks since boot (field 22 of proc_pid_stat(5)).
///
/// # Errors
/// [`SegmentError::System`] where /proc is not mounted.
pub fn own_identity() -> Result<(u64, u64), SegmentError> {
    let failed = |source| SegmentError::System {
        call: "read /proc/self/stat",
        source,
    };
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(failed)?;
    // Field 2, the command, may hold blanks and parentheses: count from its closing one.
    let start = stat
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidData)))?;
    Ok((u64::from(std::process::id()), start))
}
