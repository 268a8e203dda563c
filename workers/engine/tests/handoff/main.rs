//! Live connections moved between two workers: real sockets, the real publisher, turns by hand.

mod aborts;
#[path = "../serving/clients.rs"]
#[allow(dead_code, reason = "shared with the tests of a worker that serves")]
mod clients;
#[path = "../support/engine.rs"]
#[allow(dead_code, reason = "shared with the tests of a worker that serves")]
mod engine;
#[path = "pair.rs"]
mod house;
mod protocol;
mod records;
mod states;
mod traffic;
