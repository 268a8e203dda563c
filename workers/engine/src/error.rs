//! What can go wrong with a worker as a whole; what clients do wrong is in `protocol::close`.

use std::io;

use tidegate_ring::error::{SegmentError, UplinkError};

use crate::auth::TokenSettingsError;

/// What this worker cannot go on after, or begin with.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{call} failed: {source}")]
    System {
        call: &'static str,
        source: io::Error,
    },
    #[error("segment {segment}: {source}")]
    Segment {
        segment: &'static str,
        source: SegmentError,
    },
    #[error("io_uring is demanded, and the kernel refuses it: {0}")]
    IoUring(io::Error),
    #[error("the statistics segment lacks metrics of this version: run processes of one release")]
    Schema,
    #[error("{0}")]
    Tokens(#[from] TokenSettingsError),
    #[error("the uplink to the publisher is damaged: {0}")]
    Uplink(#[from] UplinkError),
}

impl EngineError {
    /// Stable identifier of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::System { .. } => "engine_system",
            Self::Segment { source, .. } => source.code(),
            Self::IoUring(_) => "engine_io_uring",
            Self::Schema => "engine_schema",
            Self::Tokens(_) => "engine_tokens",
            Self::Uplink(source) => source.code(),
        }
    }

    /// The failure of system call `call`, for `map_err`.
    pub fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}
