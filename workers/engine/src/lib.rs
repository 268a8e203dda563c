//! The worker's data plane: accept, parse, subscribe, fan out.
//!
//! Reading order: `reactor` (one turn, phase by phase), `session` (what a client may do),
//! `connection` (all that is kept of one client), `hub` and `outbox` (who gets what, and how it
//! leaves), then the dialects under `protocol`.

pub mod asks;
pub mod auth;
pub mod client;
pub mod connection;
pub mod directory;
pub mod error;
pub mod handoff;
pub mod hub;
pub mod keep;
pub mod keeper;
pub mod metrics;
pub mod outbox;
pub mod pacing;
pub mod protocol;
#[cfg(feature = "python")]
mod python;
pub mod reactor;
pub mod sending;
pub mod session;
pub mod settings;
pub mod slab;
pub mod sys;
pub mod wheel;
