//! What can go wrong in shared memory: one enum for each family of operations, stable codes.

use std::io;

/// A segment cannot be mapped, formatted or attached.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("{call} failed: {source}")]
    System {
        call: &'static str,
        source: io::Error,
    },
    #[error("a segment of {bytes} bytes is not made of whole 64-bit words")]
    Length { bytes: usize },
    #[error("not a segment of Tidegate (magic {found:#018x})")]
    Magic { found: u64 },
    #[error("the segment holds {found}, not {expected}")]
    Kind {
        expected: &'static str,
        found: String,
    },
    #[error(
        "the segment has layout version {found}, this build knows {expected}; \
         run processes of one release on an instance"
    )]
    Version { expected: u32, found: u32 },
    #[error("the segment says that it has {said} bytes, it has {found}")]
    Size { said: u64, found: u64 },
    #[error("the segment is still being initialised")]
    NotReady,
    #[error("{name} = {value} is not possible: {rule}")]
    Parameter {
        name: &'static str,
        value: u64,
        rule: &'static str,
    },
    #[error("the words at byte {offset} already have a writer in this process")]
    Claimed { offset: usize },
}

impl SegmentError {
    /// The failure of system call `call`, as errno(3) has it now.
    pub fn system(call: &'static str) -> SegmentError {
        SegmentError::System {
            call,
            source: io::Error::last_os_error(),
        }
    }

    /// Stable identifier of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            SegmentError::System { .. } => "segment_system",
            SegmentError::Length { .. } => "segment_length",
            SegmentError::Magic { .. } => "segment_magic",
            SegmentError::Kind { .. } => "segment_kind",
            SegmentError::Version { .. } => "segment_version",
            SegmentError::Size { .. } => "segment_size",
            SegmentError::NotReady => "segment_not_ready",
            SegmentError::Parameter { .. } => "segment_parameter",
            SegmentError::Claimed { .. } => "segment_claimed",
        }
    }
}

/// A record cannot be appended to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("a record of {bytes} bytes is longer than the log allows ({bytes_max})")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the batch is full: commit it first")]
    BatchFull,
    #[error("a prepared batch waits to be committed")]
    Uncommitted,
    #[error("the log is damaged at position {position}")]
    Corrupt { position: u64 },
}

impl LogError {
    /// Stable identifier of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            LogError::TooLarge { .. } => "log_too_large",
            LogError::BatchFull => "log_batch_full",
            LogError::Uncommitted => "log_uncommitted",
            LogError::Corrupt { .. } => "log_corrupt",
        }
    }
}

/// A reader of the log lost its place: rejoin, and tell those whom it reads for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reader lost its place at position {position}: {cause}")]
pub struct Lapped {
    /// The first position that was not read.
    pub position: u64,
    pub cause: LapCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LapCause {
    #[error("the writer waited for its lag budget and evicted it")]
    Evicted,
    #[error("the records were overwritten")]
    Overwritten,
    #[error("the log is damaged there")]
    Corrupt,
}

/// An uplink does not take or give what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    #[error("the uplink is full: the publisher is behind, try again")]
    Full,
    #[error("a request of {bytes} bytes is longer than the uplink allows ({bytes_max})")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the peer damaged the uplink at position {position}: detach it")]
    Corrupt { position: u64 },
}

impl UplinkError {
    /// Stable identifier of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            UplinkError::Full => "uplink_full",
            UplinkError::TooLarge { .. } => "uplink_too_large",
            UplinkError::Corrupt { .. } => "uplink_corrupt",
        }
    }
}
