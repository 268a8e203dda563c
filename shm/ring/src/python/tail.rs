//! Looking into the log and the channel table, for tools and tests.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::stores::info_map;
use super::{Error, epoch_text, map};
use crate::channels::ChannelTable;
use crate::log::{LogReader, LogView, Record};
use crate::publication::{PublicationView, RECORD_KIND};

#[pyclass(module = "shm._ring")]
pub(super) struct LogTail {
    source: Source,
    lapped: u64,
}

enum Source {
    Seat(LogReader),
    View { view: LogView, position: u64 },
    Left,
}

#[pymethods]
impl LogTail {
    #[new]
    #[pyo3(signature = (log_fd, seat = None))]
    fn new(log_fd: RawFd, seat: Option<u32>) -> Result<Self, Error> {
        let region = map(log_fd)?;
        let source = match seat {
            Some(seat) => Source::Seat(LogReader::join(region, seat)?),
            None => {
                let view = LogView::attach(&region)?;
                Source::View {
                    position: view.tail(),
                    view,
                }
            }
        };
        Ok(Self { source, lapped: 0 })
    }

    #[pyo3(signature = (records_max = 1024))]
    fn read<'py>(
        &mut self,
        py: Python<'py>,
        records_max: usize,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let mut found = Vec::new();
        let each = |record: Record<'_>| {
            if record.kind == RECORD_KIND {
                found.extend(
                    PublicationView::parse(record.payload)
                        .map(|publication| placed_map(py, record.position, &publication)),
                );
            }
        };
        let lapped = match &mut self.source {
            Source::Seat(reader) => reader
                .read(records_max, each)
                .inspect_err(|_| reader.rejoin())
                .is_err(),
            Source::View { view, position } => view
                .read_from(position, records_max, each)
                .inspect_err(|_| *position = view.tail())
                .is_err(),
            Source::Left => false,
        };
        self.lapped += u64::from(lapped);
        found.into_iter().collect()
    }

    #[getter]
    fn position(&self) -> u64 {
        match &self.source {
            Source::Seat(reader) => reader.position(),
            Source::View { position, .. } => *position,
            Source::Left => 0,
        }
    }

    #[getter]
    fn lapped(&self) -> u64 {
        self.lapped
    }

    fn leave(&mut self) {
        if let Source::Seat(reader) = std::mem::replace(&mut self.source, Source::Left) {
            reader.leave();
        }
    }
}

fn placed_map<'py>(
    py: Python<'py>,
    position: u64,
    publication: &PublicationView<'_>,
) -> PyResult<Bound<'py, PyDict>> {
    let map = publication_map(py, publication)?;
    map.set_item("position", position)?;
    Ok(map)
}

/// A publication as Python has it.
pub(super) fn publication_map<'py>(
    py: Python<'py>,
    publication: &PublicationView<'_>,
) -> PyResult<Bound<'py, PyDict>> {
    let info = match publication.info {
        b"" => None,
        info => Some(info_map(py, info)?),
    };
    let map = PyDict::new(py);
    map.set_item("channel", publication.channel)?;
    map.set_item("epoch", epoch_text(publication.epoch))?;
    map.set_item("offset", publication.offset)?;
    map.set_item("data", PyBytes::new(py, publication.data))?;
    map.set_item("binary", !publication.json)?;
    map.set_item("tags", PyBytes::new(py, publication.tags))?;
    map.set_item("time_ms", publication.time_ms)?;
    map.set_item("delta", publication.delta)?;
    map.set_item("info", info)?;
    Ok(map)
}

#[pyclass(frozen, module = "shm._ring")]
pub(super) struct Channels(ChannelTable);

#[pymethods]
impl Channels {
    #[new]
    fn new(fd: RawFd) -> Result<Self, Error> {
        Ok(Self(ChannelTable::attach(map(fd)?)?))
    }

    fn top(&self, channel: &str) -> (String, u64) {
        epoch_and_offset(&self.0, channel)
    }
}

/// Where a channel stands; one that was never published to is at its beginning.
pub(super) fn epoch_and_offset(table: &ChannelTable, channel: &str) -> (String, u64) {
    match table.top(table.key(channel)) {
        Some(top) => (epoch_text(top.epoch), top.offset),
        None => (epoch_text(table.epoch_now()), 0),
    }
}
