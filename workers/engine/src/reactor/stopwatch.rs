//! Where the time of turns goes, phase by phase, and how large their batches are, while somebody
//! wants to know. It ends by itself, whatever became of who asked.
//!
//! Off, it costs a comparison for each phase. On, it is a look at the clock for each, which takes
//! some 25 ns (vdso(7)), and a few words of the statistics: nothing for each event or delivery.

use std::time::Duration;

use tidegate_ring::host;

use super::Reactor;
use crate::metrics::{Count, Histogram, Metrics, PHASES, TurnPhase};

/// What is a batch at the end of a phase: so much more of the count than at the last such end.
const BATCHES: [(TurnPhase, Count, Histogram); 3] = [
    (TurnPhase::Wait, Count::Events, Histogram::TurnEvents),
    (TurnPhase::Drain, Count::Records, Histogram::DrainRecords),
    (
        TurnPhase::Flush,
        Count::Deliveries,
        Histogram::FlushDeliveries,
    ),
];

#[derive(Default)]
pub(super) struct Stopwatch {
    /// CLOCK_MONOTONIC; 0 while it is off.
    ends_ns: u64,
    /// When the phase before ended.
    lapped_ns: u64,
    longest_ns: [u64; PHASES],
    /// The counts of `BATCHES` when their phases ended last.
    counted: [u64; BATCHES.len()],
}

impl Reactor {
    /// Times the phases of turns from now on, for `duration`, or for as long as was asked before
    /// where that is longer. Between two turns only.
    pub fn profile(&mut self, duration: Duration) {
        let metrics = &self.sessions.metrics;
        self.stopwatch.run(host::monotonic_ns(), duration, metrics);
    }

    /// A phase ends.
    #[inline]
    pub(super) fn lap(&mut self, phase: TurnPhase) {
        if self.stopwatch.ends_ns != 0 {
            let metrics = &mut self.sessions.metrics;
            self.stopwatch.lap(host::monotonic_ns(), phase, metrics);
        }
    }
}

impl Stopwatch {
    fn run(&mut self, now_ns: u64, duration: Duration, metrics: &Metrics) {
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if self.ends_ns == 0 {
            self.lapped_ns = now_ns;
            self.counted = BATCHES.map(|(_, count, _)| metrics.get(count));
        }
        self.ends_ns = self.ends_ns.max(now_ns.saturating_add(duration_ns));
    }

    #[cold]
    fn lap(&mut self, now_ns: u64, phase: TurnPhase, metrics: &mut Metrics) {
        let took_ns = now_ns - std::mem::replace(&mut self.lapped_ns, now_ns);
        metrics.add_phase(phase, took_ns);
        let longest_ns = &mut self.longest_ns[phase as usize];
        if took_ns > *longest_ns {
            *longest_ns = took_ns;
            metrics.set_longest(phase, took_ns);
        }
        for ((ends, count, histogram), counted) in BATCHES.iter().zip(&mut self.counted) {
            if *ends == phase {
                let now = metrics.get(*count);
                let batch = now - std::mem::replace(counted, now);
                // A turn without events is one, too; a flush without deliveries is none.
                if batch > 0 || phase == TurnPhase::Wait {
                    metrics.record(*histogram, batch);
                }
            }
        }
        if now_ns >= self.ends_ns {
            self.stop(metrics);
        }
    }

    fn stop(&mut self, metrics: &Metrics) {
        for phase in TurnPhase::ALL {
            metrics.set_longest(*phase, 0);
        }
        *self = Self::default();
    }
}
