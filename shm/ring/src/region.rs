//! A region: a run of 64-bit words that several processes (or, in tests, several threads) share.
//!
//! Shared memory is never seen as `&[u8]` or `&mut`: the peer may write at any instant, so every
//! access is an atomic one (C11 5.1.2.4 calls anything else a data race). Whoever reads makes
//! a private copy.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::SegmentError;
use crate::sync::{AtomicU64, Ordering};

/// Bytes of a word. Every offset into a region is a multiple of it.
pub const WORD: usize = 8;

/// A shared, cheaply cloned handle of a mapped segment or of heap memory (tests).
#[derive(Clone)]
pub struct Region(Arc<Memory>);

struct Memory {
    base: NonNull<AtomicU64>,
    words: usize,
    origin: Origin,
}

enum Origin {
    #[cfg(not(loom))]
    Mapped {
        device: u64,
        inode: u64,
    },
    Heap,
}

// SAFETY: the memory is only reached through `&AtomicU64`, which may be used from any thread, and
// it lives until the last handle is dropped.
unsafe impl Send for Memory {}
// SAFETY: as for Send.
unsafe impl Sync for Memory {}

impl Region {
    /// Zeroed private memory of `bytes` bytes, for tests and model checking.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of [`WORD`].
    pub fn heap(bytes: usize) -> Region {
        assert!(
            bytes.is_multiple_of(WORD),
            "a region is made of whole words"
        );
        let words: Box<[AtomicU64]> = (0..bytes / WORD).map(|_| AtomicU64::new(0)).collect();
        let words = Box::leak(words);
        Region(Arc::new(Memory {
            words: words.len(),
            base: NonNull::from(words).cast(),
            origin: Origin::Heap,
        }))
    }

    /// Maps the whole file behind `fd` (shm_open(3) or memfd_create(2)), readable and writable.
    ///
    /// # Errors
    /// [`SegmentError::System`] if the kernel refuses, [`SegmentError::Length`] if the file is
    /// empty or not made of whole words.
    #[cfg(not(loom))]
    pub fn map(fd: std::os::fd::BorrowedFd<'_>) -> Result<Region, SegmentError> {
        use std::os::fd::AsRawFd;

        // SAFETY: an all-zero `stat` is a valid value of that C structure.
        let mut status: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `status` is a valid place for the answer, `fd` is open while borrowed.
        if unsafe { libc::fstat(fd.as_raw_fd(), &mut status) } != 0 {
            return Err(SegmentError::system("fstat"));
        }
        let bytes = usize::try_from(status.st_size).unwrap_or(0);
        if bytes == 0 || !bytes.is_multiple_of(WORD) {
            return Err(SegmentError::Length { bytes });
        }
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(SegmentError::system("mmap"));
        }
        let base = NonNull::new(address.cast()).ok_or(SegmentError::Length { bytes })?;
        let origin = Origin::Mapped {
            device: status.st_dev,
            inode: status.st_ino,
        };
        Ok(Region(Arc::new(Memory {
            base,
            words: bytes / WORD,
            origin,
        })))
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.words * WORD
    }

    /// The word at byte `offset`.
    ///
    /// # Panics
    /// If `offset` is unaligned or outside. Offsets are computed from a layout that was checked
    /// against [`Region::len`] at attach, never from unchecked shared words.
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        &self.words(offset, 1)[0]
    }

    /// The `count` words from byte `offset` on.
    ///
    /// # Panics
    /// As [`Region::word`].
    #[inline]
    pub fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let first = offset / WORD;
        assert!(
            offset.is_multiple_of(WORD) && first <= self.0.words && count <= self.0.words - first,
            "words at byte {offset}, {count} of them, are outside of a region of {} bytes",
            self.len()
        );
        // SAFETY: `first + count <= words`, all inside one live mapping or allocation that outlives
        // `&self`; the words are initialised (zeroed) and only ever accessed as atomics.
        unsafe { std::slice::from_raw_parts(self.0.base.as_ptr().add(first), count) }
    }

    /// Relaxed load of the word at byte `offset`.
    #[inline]
    pub fn load(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Relaxed store to the word at byte `offset`.
    #[inline]
    pub fn store(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// Takes the sole right of this process to write the words that begin at `offset`.
    ///
    /// Every shared word has one writer; this makes a second one in the same process an error
    /// instead of an accident, even if the segment is mapped twice. Across processes the supervisor
    /// sees to it. The right ends when the claim is dropped.
    ///
    /// # Errors
    /// [`SegmentError::Claimed`] if it is taken.
    pub fn claim(&self, offset: usize) -> Result<Claim, SegmentError> {
        let (device, inode) = match self.0.origin {
            #[cfg(not(loom))]
            Origin::Mapped { device, inode } => (device, inode),
            Origin::Heap => (u64::MAX, self.0.base.as_ptr().addr() as u64),
        };
        let claim = (device, inode, offset);
        if !claims().insert(claim) {
            return Err(SegmentError::Claimed { offset });
        }
        Ok(Claim(claim))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self.origin {
            #[cfg(not(loom))]
            // SAFETY: exactly the mapping made by `Region::map`; no handle is left to reach it.
            Origin::Mapped { .. } => unsafe {
                libc::munmap(self.base.as_ptr().cast(), self.words * WORD);
            },
            Origin::Heap => {
                let words = std::ptr::slice_from_raw_parts_mut(self.base.as_ptr(), self.words);
                // SAFETY: the allocation leaked by `Region::heap`, given back once.
                drop(unsafe { Box::from_raw(words) });
            }
        }
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Region({} bytes)", self.len())
    }
}

/// (device, inode, offset): names a word whatever the address that it is mapped at.
type WordName = (u64, u64, usize);

/// The right to write some words, see [`Region::claim`].
#[derive(Debug)]
pub struct Claim(WordName);

impl Drop for Claim {
    fn drop(&mut self) {
        claims().remove(&self.0);
    }
}

fn claims() -> std::sync::MutexGuard<'static, BTreeSet<WordName>> {
    static CLAIMS: Mutex<BTreeSet<WordName>> = Mutex::new(BTreeSet::new());
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_outside_of_the_region_are_refused() {
        let region = Region::heap(64);
        assert_eq!(region.words(64, 0).len(), 0);
        for (offset, count) in [
            (64, 1),
            (56, 2),
            (4, 1),
            (usize::MAX & !7, 1),
            (0, usize::MAX),
        ] {
            let outside = std::panic::AssertUnwindSafe(|| region.words(offset, count).len());
            assert!(
                std::panic::catch_unwind(outside).is_err(),
                "{offset} {count}"
            );
        }
    }

    #[test]
    fn what_has_no_bytes_is_not_mapped() {
        use std::os::fd::AsFd;
        let nothing = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            Region::map(nothing.as_fd()).unwrap_err().code(),
            "segment_length"
        );
    }

    #[test]
    fn a_word_has_one_writer_in_a_process() {
        let region = Region::heap(64);
        let claim = region.claim(8).unwrap();
        assert!(matches!(
            region.clone().claim(8),
            Err(SegmentError::Claimed { offset: 8 })
        ));
        assert!(region.claim(16).is_ok());
        drop(claim);
        assert!(region.claim(8).is_ok());
    }
}
