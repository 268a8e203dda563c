//! Which engine the tests are about: what `TIDEGATE_TEST_ENGINE` says, as `workers.engine` would.

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
    match std::env::var("TIDEGATE_TEST_ENGINE").as_deref() {
        Ok("io_uring") if *IS_AVAILABLE => Engine::IoUring,
        Ok("io_uring" | "auto") => Engine::Auto,
        Ok("epoll") | Err(_) => Engine::Epoll,
        Ok(other) => panic!("TIDEGATE_TEST_ENGINE={other}"),
    }
}

/// Whether workers send by io_uring here, however few the sends are.
#[allow(dead_code, reason = "shared by tests of which some do not ask")]
pub fn has_ring() -> bool {
    engine() == Engine::IoUring
}
