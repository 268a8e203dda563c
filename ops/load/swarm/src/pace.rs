//! Lets things happen at a steady rate.

/// A loop that was held up makes good at most this many events at once.
const BEHIND_MAX: u64 = 64;

pub struct Pace {
    interval_ns: u64,
    due_ns: u64,
}

impl Pace {
    /// `None` where the rate is 0.
    pub fn new(per_s: f64, now_ns: u64) -> Option<Pace> {
        let interval_ns = (1e9 / per_s) as u64;
        (per_s > 0.0).then_some(Pace {
            interval_ns,
            due_ns: now_ns.saturating_add(interval_ns),
        })
    }

    /// Whether another one is due; it counts as done then.
    pub fn take(&mut self, now_ns: u64) -> bool {
        if self.due_ns > now_ns {
            return false;
        }
        let earliest_ns = now_ns.saturating_sub(BEHIND_MAX * self.interval_ns);
        self.due_ns = self.due_ns.max(earliest_ns) + self.interval_ns;
        true
    }

    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pace: &mut Pace, now_ns: u64) -> u32 {
        let mut count = 0;
        while pace.take(now_ns) {
            count += 1;
        }
        count
    }

    #[test]
    fn a_rate_is_kept_and_little_of_a_long_pause_is_made_good() {
        let mut pace = Pace::new(1_000.0, 0).unwrap();
        assert_eq!(taken(&mut pace, 999_999), 0);
        assert_eq!(taken(&mut pace, 10_000_000), 10);
        assert_eq!(taken(&mut pace, 60_000_000_000), 1 + BEHIND_MAX as u32);
        assert!(Pace::new(0.0, 0).is_none());
    }
}
