//! A receiver short of descriptors. RLIMIT_NOFILE is the process's: this test has one to itself.

#[path = "../serving/clients.rs"]
#[allow(dead_code, reason = "shared with the tests of a worker that serves")]
mod clients;
#[path = "../support/engine.rs"]
#[allow(dead_code, reason = "shared with the tests of a worker that serves")]
mod engine;
#[path = "../handoff/pair.rs"]
#[allow(dead_code, reason = "shared with the other tests of hand-offs")]
mod house;

use clients::Uni;
use house::Pair;
use tidegate_engine::sys::passing;

fn descriptor_limit() -> libc::rlimit {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    assert_eq!(result, 0);
    limit
}

/// Lets this process have `more` descriptors than it has; `None`: as many as it could before.
fn limit_descriptors(more: Option<usize>, before: &libc::rlimit) {
    let mut limit = *before;
    if let Some(more) = more {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
        limit.rlim_cur = (open + more) as u64;
    }
    // SAFETY: `limit` lives through the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert_eq!(result, 0);
}

#[test]
fn a_batch_that_was_cut_short_is_refused_whole_and_taken_back() {
    let before = descriptor_limit();
    let mut pair = Pair::open();
    let mut clients: Vec<Uni> = pair.serve(|house| {
        let one = |_| Uni::connect(&house, r#"{"public:a":{}}"#).0;
        (0..100).map(one).collect()
    });
    pair.begin_move(0, None);
    // The receiver has greeted, with room for all; then something else takes the descriptors.
    while pair.websockets(0) > 0 {
        pair.worker(1).turn().unwrap();
        limit_descriptors(None, &before);
        pair.worker(0).turn().unwrap();
        limit_descriptors(Some(40), &before);
    }
    let (over, adopted) = pair.finish_move(0);
    limit_descriptors(None, &before);
    assert_eq!((over.moved, over.kept, over.lost), (0, 100, 0));
    assert_eq!(
        (over.reason, adopted.count, adopted.refused),
        ("refused", 0, 100)
    );
    pair.turn();
    let refused = pair.count(1, r#"handoff_refused_total{reason="descriptors"}"#);
    assert_eq!(refused, 100);
    pair.publish("public:a", "1");
    pair.serve(|_| {
        for client in &mut clients {
            assert_eq!(client.next_publication().1, 1);
        }
    });
    assert!(passing::descriptors_left() > 40);
    // With room again, all go.
    assert_eq!(pair.move_all(0).0.moved, 100);
}
