//! The one door to atomics: the model checker loom replaces them when built with `--cfg loom`.
//!
//! Every release/acquire pair in this crate names its partner in a `SYNC:` comment.

#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
