//! Turns that are timed, and when they are not.

use std::time::{Duration, Instant};

use tidegate_engine::metrics::TurnPhase;
use tidegate_ring::stats::Value;

use crate::clients::Uni;
use crate::house::{House, wait_for};

const PHASES: [&str; 8] = [
    "wait", "accept", "read", "drain", "fan_out", "flush", "timers", "other",
];

fn times(house: &House) -> [Duration; 8] {
    PHASES.map(|phase| {
        let name = format!("turn_phase_ns_total{{phase=\"{phase}\"}}");
        Duration::from_nanos(house.count(&name))
    })
}

fn timed(house: &House) -> Duration {
    times(house).iter().sum()
}

fn longest_ns(house: &House) -> u64 {
    let longest = PHASES.map(|phase| {
        let name = format!("turn_phase_longest_ns{{phase=\"{phase}\"}}");
        house.count(&name)
    });
    longest.into_iter().max().unwrap()
}

/// How many values a histogram has, and their sum.
fn recorded(house: &House, name: &str) -> (u64, u64) {
    match house.measured(name) {
        Value::Histogram { sum, count, .. } => (count, sum),
        Value::Number(_) => panic!("{name} is no histogram"),
    }
}

#[test]
fn a_worker_that_nobody_profiles_times_nothing() {
    let mut house = House::open();
    let (mut client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    house.publish("public:a", "1");
    client.next_publication();
    assert_eq!(timed(&house), Duration::ZERO);
    assert_eq!(recorded(&house, "turn_events"), (0, 0));
    assert_eq!(TurnPhase::ALL.len(), PHASES.len());
}

#[test]
fn the_phases_of_timed_turns_add_up_to_the_time() {
    let mut house = House::open();
    let (mut client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let began = Instant::now();
    house.order(|reactor| reactor.profile(Duration::from_secs(60)));
    wait_for("a timed turn", || timed(&house) > Duration::ZERO);
    let (first, asked) = (timed(&house), Instant::now());
    for _ in 0..50 {
        house.publish("public:a", "1");
        client.next_publication();
    }
    let least = asked.elapsed().saturating_sub(Duration::from_millis(600));
    assert!(timed(&house) - first >= least);
    assert!(timed(&house) <= began.elapsed());
    let [_, _, _, drain, fan_out, flush, ..] = times(&house);
    assert!([drain, fan_out, flush].iter().all(|time| !time.is_zero()));
    assert!(longest_ns(&house) > 0);
}

#[test]
fn batches_of_timed_turns_are_counted() {
    let mut house = House::open();
    let (mut client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    let (mut other, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    house.order(|reactor| reactor.profile(Duration::from_secs(60)));
    wait_for("a timed turn", || timed(&house) > Duration::ZERO);
    for _ in 0..10 {
        house.publish("public:a", "1");
        client.next_publication();
        other.next_publication();
    }
    // The flush is counted after the clients have what it sent.
    wait_for("all deliveries", || {
        recorded(&house, "flush_deliveries").1 == 20
    });
    assert_eq!(recorded(&house, "drain_records").1, 10);
    let (flushes, _) = recorded(&house, "flush_deliveries");
    assert!((1..=10).contains(&flushes));
    let (turns, events) = recorded(&house, "turn_events");
    // A turn that was awake anyway finds records without an event.
    assert!(turns > 0 && events > 0);
}

#[test]
fn profiling_ends_by_itself() {
    let mut house = House::open();
    let (_client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    house.order(|reactor| reactor.profile(Duration::from_millis(50)));
    wait_for("a timed turn", || timed(&house) > Duration::ZERO);
    // The longest phases are forgotten when it ends.
    wait_for("the end of the profile", || longest_ns(&house) == 0);
    let (before, events) = (timed(&house), recorded(&house, "turn_events"));
    for _ in 0..5 {
        house.publish("public:a", "1");
    }
    house.wait_for_count("publications_read_total", 5);
    assert_eq!(
        (timed(&house), recorded(&house, "turn_events")),
        (before, events)
    );
}

#[test]
fn a_shorter_request_does_not_end_a_longer_one() {
    let mut house = House::open();
    let (_client, _) = Uni::connect(&house, r#"{"public:a":{}}"#);
    house.order(|reactor| reactor.profile(Duration::from_secs(60)));
    house.order(|reactor| reactor.profile(Duration::ZERO));
    wait_for("a timed turn", || timed(&house) > Duration::ZERO);
    house.publish("public:a", "1");
    house.wait_for_count("publications_read_total", 1);
    assert!(longest_ns(&house) > 0);
}
