//! The memory that the processes of Tidegate share.

pub mod error;
pub mod layout;
pub mod region;
pub mod sync;
