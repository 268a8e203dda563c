//! What the clients of a swarm saw, counted.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::sys::monotonic_ns;

/// Latencies above this are recorded as this: a longer one is an outage, not a latency.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Counts since the start or the last reset.
pub struct Tally {
    since_ns: u64,
    /// Publications received for the first time, live or recovered.
    pub deliveries: u64,
    /// Those of them that came out of the history after a reconnect.
    pub recovered: u64,
    /// Publications at or below the subscriber's position: each is a fault of the server.
    pub repeats: u64,
    /// Offsets that were skipped without a word: each is a fault of the server.
    pub gaps: u64,
    /// Subscriptions told that what they missed cannot be recovered: a loss that was not silent.
    pub unrecovered: u64,
    /// Publications of channels that the client has not subscribed to.
    pub foreign: u64,
    /// Deliveries whose payload has no `sent_ns`.
    pub undated: u64,
    pub pings: u64,
    pub reconnects: u64,
    /// Clients that left because they were told to.
    pub churned: u64,
    pub bytes_received: u64,
    /// Connections that ended after they were open, by close code or by what the socket said.
    pub closes: BTreeMap<String, u64>,
    /// Connection attempts that did not get open, by reason.
    pub failures: BTreeMap<String, u64>,
    /// How the connections of stalled and of misbehaving clients ended, by what they did.
    pub misdeeds: BTreeMap<String, u64>,
    /// What the publishers' clock is ahead of ours, where they are on another host.
    clock_offset_ns: i64,
    latency_live: Histogram<u64>,
    latency_recovered: Histogram<u64>,
    /// From a client's attempt to come back to its being open again.
    latency_returned: Histogram<u64>,
    pause_ns_max: u64,
}

/// How many clients are where, of those that do not misbehave.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Standing {
    pub connected: u32,
    /// Clients that have not been open yet, nor ended.
    pub pending: u32,
    /// Faithful clients that are not open, though nobody told them to leave.
    pub absent: u32,
}

/// A tally and the state of the swarm at one instant. Durations in the unit of their name.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub standing: Standing,
    pub deliveries: u64,
    pub recovered: u64,
    pub repeats: u64,
    pub gaps: u64,
    pub unrecovered: u64,
    pub foreign: u64,
    pub undated: u64,
    pub pings: u64,
    pub reconnects: u64,
    pub churned: u64,
    pub bytes_received: u64,
    pub closes: BTreeMap<String, u64>,
    pub failures: BTreeMap<String, u64>,
    pub misdeeds: BTreeMap<String, u64>,
    pub latency_live: Latency,
    pub latency_recovered: Latency,
    /// From a client's attempt to come back to its being open again: but over TCP, with all that
    /// was recovered.
    pub latency_returned: Latency,
    /// The longest time from one delivery of a subscription to its next.
    pub pause_us_max: f64,
}

/// Percentiles of a time, from publish to receipt or as its field says.
#[derive(Debug, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// All that was recorded, as pairs of a time in nanoseconds and how often it occurred. Times
    /// are rounded up to the histogram's steps, which are the same in every swarm: the counts of
    /// several swarms can be added.
    pub counts: Vec<(u64, u64)>,
}

impl Tally {
    pub fn new() -> Tally {
        // Two significant digits: one part in a hundred is finer than such latencies repeat.
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2)
            .expect("the bounds are constants in the range that the histogram allows");
        Tally {
            since_ns: monotonic_ns(),
            deliveries: 0,
            recovered: 0,
            repeats: 0,
            gaps: 0,
            unrecovered: 0,
            foreign: 0,
            undated: 0,
            pings: 0,
            reconnects: 0,
            churned: 0,
            bytes_received: 0,
            closes: BTreeMap::new(),
            failures: BTreeMap::new(),
            misdeeds: BTreeMap::new(),
            clock_offset_ns: 0,
            latency_recovered: histogram.clone(),
            latency_returned: histogram.clone(),
            latency_live: histogram,
            pause_ns_max: 0,
        }
    }

    /// Sets all counts to zero.
    pub fn reset(&mut self) {
        let clock_offset_ns = self.clock_offset_ns;
        *self = Tally::new();
        self.clock_offset_ns = clock_offset_ns;
    }

    /// From now on publishers stamp by a clock that is so far ahead of ours.
    pub fn align(&mut self, clock_offset_ns: i64) {
        self.clock_offset_ns = clock_offset_ns;
    }

    /// Counts one delivery and its age; `sent_ns` and `now_ns` are CLOCK_MONOTONIC, of the
    /// publisher's host and of this one.
    pub fn delivered(&mut self, sent_ns: Option<u64>, now_ns: u64, recovered: bool) {
        self.deliveries += 1;
        self.recovered += u64::from(recovered);
        let histogram = if recovered {
            &mut self.latency_recovered
        } else {
            &mut self.latency_live
        };
        match sent_ns {
            Some(sent_ns) => {
                let now_ns = now_ns.saturating_add_signed(self.clock_offset_ns);
                histogram.saturating_record(now_ns.saturating_sub(sent_ns));
            }
            None => self.undated += 1,
        }
    }

    /// Counts a client that has come back.
    pub fn returned(&mut self, attempted_ns: u64, now_ns: u64) {
        self.reconnects += 1;
        let took_ns = now_ns.saturating_sub(attempted_ns);
        self.latency_returned.saturating_record(took_ns);
    }

    /// Takes note of a time without a delivery; one that began before the last reset is none.
    pub fn paused(&mut self, since_ns: u64, now_ns: u64) {
        if since_ns >= self.since_ns {
            self.pause_ns_max = self.pause_ns_max.max(now_ns - since_ns);
        }
    }

    pub fn closed(&mut self, reason: &str) {
        count(&mut self.closes, reason);
    }

    pub fn failed(&mut self, reason: &str) {
        count(&mut self.failures, reason);
    }

    pub fn misdeed(&mut self, what: &str) {
        count(&mut self.misdeeds, what);
    }

    pub fn report(&self, standing: Standing) -> Report {
        Report {
            standing,
            deliveries: self.deliveries,
            recovered: self.recovered,
            repeats: self.repeats,
            gaps: self.gaps,
            unrecovered: self.unrecovered,
            foreign: self.foreign,
            undated: self.undated,
            pings: self.pings,
            reconnects: self.reconnects,
            churned: self.churned,
            bytes_received: self.bytes_received,
            closes: self.closes.clone(),
            failures: self.failures.clone(),
            misdeeds: self.misdeeds.clone(),
            latency_live: Latency::of(&self.latency_live),
            latency_recovered: Latency::of(&self.latency_recovered),
            latency_returned: Latency::of(&self.latency_returned),
            pause_us_max: self.pause_ns_max as f64 / 1e3,
        }
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let us = |ns: u64| ns as f64 / 1e3;
        let percentile = |percent: f64| us(histogram.value_at_percentile(percent));
        Latency {
            count: histogram.len(),
            p50_us: percentile(50.0),
            p99_us: percentile(99.0),
            max_us: us(histogram.max()),
            counts: histogram
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
                .collect(),
        }
    }
}

fn count(counts: &mut BTreeMap<String, u64>, reason: &str) {
    match counts.get_mut(reason) {
        Some(count) => *count += 1,
        None => drop(counts.insert(reason.to_owned(), 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_kept_and_one_from_before_a_reset_is_none() {
        let mut tally = Tally::new();
        let start_ns = tally.since_ns;
        for (since_ns, now_ns) in [
            (0, start_ns),
            (start_ns, start_ns + 7_000),
            (start_ns + 7_000, start_ns + 9_000),
        ] {
            tally.paused(since_ns, now_ns);
        }
        assert_eq!(tally.report(Standing::default()).pause_us_max, 7.0);
    }

    #[test]
    fn the_counts_of_a_latency_are_all_that_was_recorded() {
        let mut tally = Tally::new();
        for age_ns in [100, 100, 5_000_000] {
            tally.delivered(Some(1), 1 + age_ns, false);
        }
        let counts = tally.report(Standing::default()).latency_live.counts;
        assert_eq!((counts.len(), counts[0]), (2, (100, 2)));
        let (step_ns, count) = counts[1];
        assert!(
            (5_000_000..5_100_000).contains(&step_ns) && count == 1,
            "{step_ns}"
        );
    }

    #[test]
    fn an_age_is_corrected_by_the_publishers_clock_and_a_reset_keeps_that() {
        let mut tally = Tally::new();
        tally.align(-1_000);
        tally.reset();
        tally.delivered(Some(500), 1_600, false);
        assert_eq!(
            tally.report(Standing::default()).latency_live.counts,
            [(100, 1)]
        );
    }
}
