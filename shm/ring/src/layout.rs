//! The map of every segment: the header that all share, and where the log and the uplinks keep
//! their words. All words are u64, native byte order, accessed as atomics.
//!
//! ```text
//! every segment                 log                        uplink
//! 0     magic "TIDEGATE"        4096  intent   (writer)
//! 8     version << 32 | kind    +128  prepared (writer)    4096  request tail     (producer)
//! 16    generation              +256  tail     (writer)    +128  request head     (consumer)
//! 24    owner's pid             +384  answered (writer)    +256  request sleeping (consumer)
//! 32    owner's start time      4608  seat 0 (reader)      +384  reply tail       (consumer)
//! 40    size in bytes             +0    cursor             +512  reply head       (producer)
//! 64    parameters, 8 words       +128  joined             +640  reply sleeping   (producer)
//! 128   state, stored last        +136  sleeping           8192  request ring
//! 4096  end of header             +144  lapped             then  reply ring
//!                                 +152  generation
//!                                 +160  selective
//!                                 +256  evicted (writer)
//!                               +384  seat 1 ...
//!                               then rows of interest: a bit a seat (its reader)
//!                               then, page-aligned: the ring
//! ```
//!
//! Words with different writers, and words that are polled, are [`LINE`] bytes apart. Channel
//! table, statistics and keeps have their maps in their own modules; they begin at [`HEADER_BYTES`]
//! too.

use crate::error::SegmentError;
use crate::region::{Region, WORD};
use crate::sync::Ordering;

/// The first word of every segment.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TIDEGATE");

/// Bytes of the common header: a page, so that what follows is page-aligned.
pub const HEADER_BYTES: usize = PAGE;

/// Distance of words that different processes write. Two cache lines: the adjacent-line prefetcher
/// of x86 fetches lines in pairs (Intel Optimization Reference Manual, 3.7.3).
pub const LINE: usize = 128;

/// Kind-specific words in the header.
pub const PARAMETERS: usize = 8;

pub(crate) const PAGE: usize = 4096;

const MAGIC_AT: usize = 0;
const KIND_AT: usize = 8;
const GENERATION_AT: usize = 16;
const OWNER_PID_AT: usize = 24;
const OWNER_START_AT: usize = 32;
const SIZE_AT: usize = 40;
const PARAMETERS_AT: usize = 64;
const STATE_AT: usize = PARAMETERS_AT + PARAMETERS * WORD;

const INITIALISING: u64 = 0;
const READY: u64 = 1;

const _: () = assert!(SIZE_AT + WORD <= PARAMETERS_AT && STATE_AT + WORD <= HEADER_BYTES);
const _: () = assert!(HEADER_BYTES.is_multiple_of(LINE) && LINE.is_multiple_of(WORD));

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Log = 1,
    Channels = 2,
    Statistics = 3,
    Uplink = 4,
    History = 5,
    Presence = 6,
    Keep = 7,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::Log,
        Kind::Channels,
        Kind::Statistics,
        Kind::Uplink,
        Kind::History,
        Kind::Presence,
        Kind::Keep,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Log => "a log",
            Kind::Channels => "a channel table",
            Kind::Statistics => "statistics",
            Kind::Uplink => "an uplink",
            Kind::History => "a history",
            Kind::Presence => "a presence table",
            Kind::Keep => "a keep",
        }
    }

    /// Version of the layout of this kind; any change of the layout changes it.
    pub const fn version(self) -> u32 {
        match self {
            Kind::Log | Kind::Channels | Kind::Uplink => 3,
            Kind::History | Kind::Keep => 2,
            Kind::Statistics | Kind::Presence => 1,
        }
    }

    fn from_number(number: u32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// Who made a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Counts the instance's starts; tells segments of one run from those of another.
    pub generation: u64,
    pub pid: u64,
    /// Field 22 of /proc/pid/stat, in clock ticks since boot: with the pid it names a process.
    pub start: u64,
}

/// The header of a segment that was found sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub version: u32,
    pub owner: Owner,
    pub size: u64,
    pub parameters: [u64; PARAMETERS],
}

/// Writes the header of a new segment; `initialise` fills in what the kind needs before the
/// segment becomes ready for others to attach.
pub fn format(
    region: &Region,
    kind: Kind,
    owner: Owner,
    parameters: &[u64],
    initialise: impl FnOnce(&Region),
) {
    assert!(parameters.len() <= PARAMETERS && region.len() >= HEADER_BYTES);
    region.store(STATE_AT, INITIALISING);
    region.store(
        KIND_AT,
        u64::from(kind.version()) << 32 | u64::from(kind as u32),
    );
    region.store(GENERATION_AT, owner.generation);
    region.store(OWNER_PID_AT, owner.pid);
    region.store(OWNER_START_AT, owner.start);
    region.store(SIZE_AT, region.len() as u64);
    for (index, value) in parameters.iter().enumerate() {
        region.store(PARAMETERS_AT + index * WORD, *value);
    }
    region.store(MAGIC_AT, MAGIC);
    initialise(region);
    // SYNC: pairs with layout.rs::inspect
    region.word(STATE_AT).store(READY, Ordering::Release);
}

/// Reads the header of a segment of whatever kind.
///
/// # Errors
/// Every [`SegmentError`] that says why the segment is not one that this build can use.
pub fn inspect(region: &Region) -> Result<Header, SegmentError> {
    if region.len() < HEADER_BYTES {
        return Err(SegmentError::Length {
            bytes: region.len(),
        });
    }
    // SYNC: pairs with layout.rs::format
    let state = region.word(STATE_AT).load(Ordering::Acquire);
    let magic = region.load(MAGIC_AT);
    if magic != MAGIC {
        // A segment that its maker has not begun to fill is all zero.
        let unborn = magic == 0 && state == INITIALISING;
        return Err(if unborn {
            SegmentError::NotReady
        } else {
            SegmentError::Magic { found: magic }
        });
    }
    if state != READY {
        return Err(SegmentError::NotReady);
    }
    let word = region.load(KIND_AT);
    let (number, version) = (word as u32, (word >> 32) as u32);
    let kind = Kind::from_number(number).ok_or_else(|| SegmentError::Kind {
        expected: "a known kind",
        found: format!("kind {number}"),
    })?;
    if version != kind.version() {
        return Err(SegmentError::Version {
            expected: kind.version(),
            found: version,
        });
    }
    let size = region.load(SIZE_AT);
    if size != region.len() as u64 {
        return Err(SegmentError::Size {
            said: size,
            found: region.len() as u64,
        });
    }
    Ok(Header {
        kind,
        version,
        owner: Owner {
            generation: region.load(GENERATION_AT),
            pid: region.load(OWNER_PID_AT),
            start: region.load(OWNER_START_AT),
        },
        size,
        parameters: std::array::from_fn(|index| region.load(PARAMETERS_AT + index * WORD)),
    })
}

/// Reads the header of a segment that has to be of `kind`.
///
/// # Errors
/// As [`inspect`], and [`SegmentError::Kind`].
pub fn attach(region: &Region, kind: Kind) -> Result<Header, SegmentError> {
    let header = inspect(region)?;
    if header.kind != kind {
        let found = header.kind.name().to_owned();
        return Err(SegmentError::Kind {
            expected: kind.name(),
            found,
        });
    }
    Ok(header)
}

/// `bytes` rounded up to whole pages.
pub const fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        generation: 3,
        pid: 77,
        start: 12_345,
    };

    fn segment() -> Region {
        let region = Region::heap(2 * PAGE);
        format(&region, Kind::Log, OWNER, &[5, 6], |_| ());
        region
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = attach(&segment(), Kind::Log).unwrap();
        assert_eq!((header.owner, header.size), (OWNER, 8192));
        assert_eq!(header.parameters, [5, 6, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn attach_refuses_what_it_does_not_know_and_says_why() {
        let code = |offset: usize, value: u64| {
            let region = segment();
            region.store(offset, value);
            attach(&region, Kind::Log).unwrap_err().code()
        };
        assert_eq!(code(MAGIC_AT, 1), "segment_magic");
        assert_eq!(code(STATE_AT, INITIALISING), "segment_not_ready");
        assert_eq!(code(KIND_AT, 1 << 32 | 1), "segment_version");
        assert_eq!(code(KIND_AT, 1 << 32 | 99), "segment_kind");
        assert_eq!(code(SIZE_AT, 4096), "segment_size");
        assert_eq!(
            attach(&segment(), Kind::Uplink).unwrap_err().code(),
            "segment_kind"
        );
        assert_eq!(
            inspect(&Region::heap(PAGE)).unwrap_err().code(),
            "segment_not_ready"
        );
        assert_eq!(
            inspect(&Region::heap(8)).unwrap_err().code(),
            "segment_length"
        );
    }
}
