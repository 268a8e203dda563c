//! Load for a gateway: a **swarm** of subscribers in one process and one thread, and the **bare**
//! send loop that the gateway's fan-out is measured against.
//!
//! Both programs are driven by JSON lines on standard input and answer by JSON lines on standard
//! output ([`control`]), so that any language can conduct them. Reading order:
//!
//! - [`plan`]: what a swarm is asked to do; [`role`]: who of it behaves badly; [`token`]: who they
//!   say that they are; [`control`]: the lines in and out;
//! - [`session`]: one client's conversation, bytes in and events out, no sockets: [`centrifuge`] or
//!   [`uni`] messages in [`websocket`] frames, [`uni`] ones as [`sse`] events, or [`tcp`] frames;
//! - [`client`]: one client's connection and what it remembers across reconnects;
//! - [`swarm`]: the reactor that runs all clients, at a [`pace`]; [`tally`]: what they saw;
//! - [`bare`]: the baseline server; [`sys`]: every system call of this crate.

pub mod bare;
pub mod centrifuge;
pub mod client;
pub mod control;
pub mod pace;
pub mod plan;
pub mod role;
pub mod session;
pub mod sse;
pub mod swarm;
pub mod sys;
pub mod tally;
pub mod tcp;
pub mod token;
pub mod uni;
pub mod websocket;
