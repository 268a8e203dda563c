//! Which engine the tests of this binary are about: its name says so.

use std::sync::LazyLock;

use tidegate_engine::sending::{Engine, Sender};

/// Asked on a thread of its own: the end of a ring interrupts the thread that made it, whatever
/// that waits for by then, and a read with a timeout is not begun again (signal(7)).
static IS_AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
    let asked = std::thread::spawn(|| Sender::new(Engine::IoUring).is_ok());
    asked.join().unwrap()
});

/// Where the kernel refuses io_uring, its tests are about what a worker does then.
pub fn engine() -> Engine {
    if !env!("CARGO_CRATE_NAME").ends_with("_by_io_uring") {
        Engine::Epoll
    } else if *IS_AVAILABLE {
        Engine::IoUring
    } else {
        Engine::Auto
    }
}

/// Whether workers send by io_uring here.
pub fn has_ring() -> bool {
    engine() == Engine::IoUring
}
