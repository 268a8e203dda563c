//! The Centrifuge protocol against a worker that serves: every command, push and code.

mod asking;
mod client;
mod connecting;
mod expiring;
#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../serving/house.rs"]
mod house;
mod moving;
mod orders;
#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../handoff/pair.rs"]
mod pair;
mod pinging;
mod publishing;
mod streams;
mod subscribing;
