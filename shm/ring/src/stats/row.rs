//! A row of the statistics, as the process that owns it writes it.

use super::{
    COUNT, FOLDS_AT, GENERATION_AT, HEARTBEAT_AT, Kind, PID_AT, ROLE_AT, Role, SLOT_AT, START_AT,
    STATE_AT, SUM, Stats, bucket_of,
};
use crate::error::SegmentError;
use crate::host;
use crate::region::{Claim, Region, WORD};
use crate::sync::{Ordering, fence};

/// One process's own row.
#[derive(Debug)]
pub struct Row {
    stats: Stats,
    at: usize,
    _claim: Claim,
}

/// Names a value of a row: got once from [`Row::index_of`], used for each count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index(usize);

impl Row {
    /// Takes `row` for this process and zeroes it.
    ///
    /// # Errors
    /// As [`Stats::attach`]; [`SegmentError::Parameter`] for a row that is not there;
    /// [`SegmentError::Claimed`] where this process has it already.
    pub fn claim(
        region: Region,
        row: u32,
        role: Role,
        slot: u64,
        generation: u64,
    ) -> Result<Self, SegmentError> {
        let claimed = Self::resume(region, row)?;
        let (stats, at) = (&claimed.stats, claimed.at);
        let (pid, start) = host::own_identity()?;
        stats.free(at);
        let identity = [(START_AT, start), (ROLE_AT, role as u64), (SLOT_AT, slot)];
        for (offset, value) in identity.into_iter().chain([(GENERATION_AT, generation)]) {
            stats.region.store(at + offset, value);
        }
        // SYNC: pairs with stats.rs::Stats::snapshot
        stats.region.word(at + PID_AT).store(pid, Ordering::Release);
        Ok(claimed)
    }

    /// Takes up the row that this process claimed before it executed other code, values and all.
    ///
    /// # Errors
    /// As [`Row::claim`].
    pub fn resume(region: Region, row: u32) -> Result<Self, SegmentError> {
        let stats = Stats::attach(region)?;
        if row as usize >= stats.layout.rows {
            return Err(SegmentError::Parameter {
                name: "row",
                value: u64::from(row),
                rule: "it must be below the number of rows",
            });
        }
        let at = stats.layout.row_at(row as usize);
        let claim = stats.region.claim(at)?;
        Ok(Self {
            stats,
            at,
            _claim: claim,
        })
    }

    /// The value called `name`, labels included.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<Index> {
        let line = self
            .stats
            .schema
            .iter()
            .position(|line| line.name == name)?;
        Some(Index(self.at + self.stats.places[line]))
    }

    /// The value of a metric that this process declares.
    ///
    /// # Errors
    /// [`SegmentError::Parameter`] where the segment was made for another set of metrics.
    pub fn require(&self, name: &'static str) -> Result<Index, SegmentError> {
        self.index_of(name).ok_or(SegmentError::Parameter {
            name,
            value: 0,
            rule: "the statistics segment must have this metric; restart the whole instance",
        })
    }

    #[inline]
    pub fn add(&self, index: Index, amount: u64) {
        let word = self.stats.region.word(index.0);
        // One writer: no read-modify-write is needed. Counters wrap like any u64.
        word.store(
            word.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    #[inline]
    pub fn set(&self, index: Index, value: u64) {
        self.stats.region.store(index.0, value);
    }

    /// Counts `value` in a histogram.
    #[inline]
    pub fn record(&self, index: Index, value: u64) {
        self.add(Index(index.0 + bucket_of(value) * WORD), 1);
        self.add(Index(index.0 + SUM * WORD), value);
        self.add(Index(index.0 + COUNT * WORD), 1);
    }

    /// Says that this process makes progress.
    #[inline]
    pub fn heartbeat(&self) {
        self.stats
            .region
            .store(self.at + HEARTBEAT_AT, host::monotonic_ns());
    }

    /// One of [`super::state`].
    pub fn set_state(&self, state: u64) {
        self.stats.region.store(self.at + STATE_AT, state);
    }

    /// Adds the counters and histograms of a dead process's row to this one and frees that row.
    /// Gauges end with their process. For the supervisor alone, which knows of deaths for certain.
    ///
    /// # Errors
    /// [`SegmentError::Parameter`] for a row that is not there, or this one.
    pub fn fold(&self, row: u32) -> Result<(), SegmentError> {
        let dead = self.stats.layout.row_at(row as usize);
        if row as usize >= self.stats.layout.rows || dead == self.at {
            return Err(SegmentError::Parameter {
                name: "row",
                value: u64::from(row),
                rule: "it must be another row of the segment",
            });
        }
        let region = &self.stats.region;
        let folds = region.load(FOLDS_AT);
        region.store(FOLDS_AT, folds + 1);
        // SYNC: pairs with the acquire fence in stats.rs::Stats::rows
        fence(Ordering::Release);
        for (line, place) in self.stats.schema.iter().zip(&self.stats.places) {
            let words = if line.kind == Kind::Gauge {
                0
            } else {
                line.kind.words()
            };
            for word in 0..words {
                let offset = place + word * WORD;
                self.add(Index(self.at + offset), region.load(dead + offset));
            }
        }
        self.stats.free(dead);
        // SYNC: pairs with stats.rs::Stats::rows
        region.word(FOLDS_AT).store(folds + 2, Ordering::Release);
        Ok(())
    }
}

impl Stats {
    /// Zeroes a row: from its pid on, so that nobody takes it for a live one half-way.
    fn free(&self, at: usize) {
        for offset in (0..self.layout.row_bytes).step_by(WORD) {
            self.region.store(at + offset, 0);
        }
    }
}
