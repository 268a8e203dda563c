//! Which engine the tests of this binary are about: its name says so.

use tidegate_engine::sending::{Engine, RING_SENDS_MIN, Sender};

/// The engine, and from how many sends on a ring does them.
///
/// Where the kernel refuses io_uring, its tests are about what a worker does then.
pub fn engine() -> (Engine, usize) {
    if !env!("CARGO_CRATE_NAME").ends_with("_by_io_uring") {
        return (Engine::Epoll, RING_SENDS_MIN);
    }
    (Engine::Auto, 1)
}

/// Whether workers send by io_uring here.
pub fn has_ring() -> bool {
    let (engine, sends_min) = engine();
    Sender::new(engine, sends_min).unwrap().is_ring()
}
