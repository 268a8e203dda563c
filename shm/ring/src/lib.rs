//! The memory that the processes of Tidegate share.

pub mod channels;
pub mod entry;
pub mod error;
mod heap;
pub mod history;
pub mod host;
pub mod json;
pub mod keep;
mod lane;
pub mod layout;
pub mod log;
pub mod presence;
pub mod publication;
#[cfg(feature = "python")]
mod python;
pub mod region;
mod ring;
pub mod sequencer;
pub mod stats;
pub mod sync;
pub mod uplink;
pub mod wake;
