//! The publisher's loop, as its Python shell drives it.

use std::os::fd::RawFd;
use std::time::Duration;

use pyo3::prelude::*;

use super::{Error, bell, borrowed, map};
use crate::history::HistoryRule;
use crate::sequencer::{self, Segments};

#[derive(FromPyObject)]
struct Settings {
    stats_row: u32,
    generation: u64,
    lag_budget_ms: u64,
    /// Namespace, publications of a channel, seconds.
    history: Vec<(String, u64, f64)>,
}

fn rule_of((namespace, size, ttl_s): (String, u64, f64)) -> HistoryRule {
    // Longer than any clock runs is for ever.
    let ttl = Duration::try_from_secs_f64(ttl_s.max(0.0)).unwrap_or(Duration::MAX);
    HistoryRule {
        namespace,
        size,
        ttl,
    }
}

#[pyclass(module = "shm._ring")]
pub(super) struct Sequencer(sequencer::Sequencer);

#[pymethods]
impl Sequencer {
    #[new]
    #[pyo3(signature = (
        log_fd, channels_fd, history_fd, presence_fd, stats_fd, wake_fd, settings,
        awaited = Vec::new()
    ))]
    #[expect(clippy::too_many_arguments, reason = "descriptors of a Python call")]
    fn new(
        log_fd: RawFd,
        channels_fd: RawFd,
        history_fd: RawFd,
        presence_fd: RawFd,
        stats_fd: RawFd,
        wake_fd: RawFd,
        settings: Settings,
        awaited: Vec<u32>,
    ) -> Result<Self, Error> {
        let segments = Segments {
            log: map(log_fd)?,
            channels: map(channels_fd)?,
            history: map(history_fd)?,
            presence: map(presence_fd)?,
            stats: map(stats_fd)?,
        };
        let settings = sequencer::Settings {
            stats_row: settings.stats_row,
            generation: settings.generation,
            lag_budget: Duration::from_millis(settings.lag_budget_ms),
            history: settings.history.into_iter().map(rule_of).collect(),
        };
        let sequencer = sequencer::Sequencer::open(segments, bell(wake_fd)?, settings, awaited)?;
        Ok(Self(sequencer))
    }

    fn attach_reader(&mut self, seat: u32, wake_fd: RawFd) -> Result<(), Error> {
        Ok(self.0.attach_reader(seat, bell(wake_fd)?)?)
    }

    fn detach_reader(&mut self, seat: u32) -> Result<(), Error> {
        Ok(self.0.detach_reader(seat)?)
    }

    fn attach_uplink(
        &mut self,
        id: u32,
        uplink_fd: RawFd,
        reply_wake_fd: RawFd,
    ) -> Result<(), Error> {
        Ok(self
            .0
            .attach_uplink(id, map(uplink_fd)?, bell(reply_wake_fd)?)?)
    }

    fn detach_uplink(&mut self, py: Python<'_>, id: u32) -> Result<(), Error> {
        Ok(py.detach(|| self.0.detach_uplink(id))?)
    }

    fn run(&mut self, py: Python<'_>, link_fd: RawFd) -> Result<Vec<u32>, Error> {
        let link = borrowed(link_fd)?;
        Ok(py.detach(|| self.0.run(link))?)
    }

    fn drain(&mut self, py: Python<'_>) -> Result<(), Error> {
        Ok(py.detach(|| self.0.drain())?)
    }
}
