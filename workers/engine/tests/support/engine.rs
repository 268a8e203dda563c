//! Which engine the tests of this binary are about: its name says so.

use tidegate_engine::sending::{Engine, Sender};

/// Where the kernel refuses io_uring, its tests are about what a worker does then.
pub fn engine() -> Engine {
    if !env!("CARGO_CRATE_NAME").ends_with("_by_io_uring") {
        Engine::Epoll
    } else if Sender::new(Engine::IoUring).is_ok() {
        Engine::IoUring
    } else {
        Engine::Auto
    }
}

/// Whether workers send by io_uring here.
pub fn has_ring() -> bool {
    engine() == Engine::IoUring
}
