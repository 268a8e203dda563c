//! Sizes, formats and headers of segments.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::statistics::{PyMetric, schema_of};
use super::{Error, map};
use crate::error::SegmentError;
use crate::layout::{self, Kind, Owner};
use crate::{channels, heap, history, host, keep, log, presence, stats, uplink};

pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(log_size, module)?)?;
    module.add_function(wrap_pyfunction!(channels_size, module)?)?;
    module.add_function(wrap_pyfunction!(stats_size, module)?)?;
    module.add_function(wrap_pyfunction!(uplink_size, module)?)?;
    module.add_function(wrap_pyfunction!(keep_size, module)?)?;
    module.add_function(wrap_pyfunction!(heap_size, module)?)?;
    module.add_function(wrap_pyfunction!(format_log, module)?)?;
    module.add_function(wrap_pyfunction!(format_channels, module)?)?;
    module.add_function(wrap_pyfunction!(format_stats, module)?)?;
    module.add_function(wrap_pyfunction!(format_uplink, module)?)?;
    module.add_function(wrap_pyfunction!(format_keep, module)?)?;
    module.add_function(wrap_pyfunction!(format_history, module)?)?;
    module.add_function(wrap_pyfunction!(format_presence, module)?)?;
    module.add_function(wrap_pyfunction!(extend_stats, module)?)?;
    module.add_function(wrap_pyfunction!(inspect, module)?)
}

/// Where a ring begins: not always at its first byte, so that its wrap is met early and everywhere,
/// and with room for ages before the positions themselves wrap.
fn start() -> Result<u64, SegmentError> {
    Ok(host::random()? >> 16 & !15)
}

/// Above this, sizes in bytes could overflow; no machine has so much memory.
const CAPACITY_MAX: u64 = 1 << 40;

fn possible(capacity_bytes: u64) -> Result<u64, Error> {
    if capacity_bytes <= CAPACITY_MAX {
        return Ok(capacity_bytes);
    }
    let (name, value) = ("capacity_bytes", capacity_bytes);
    Err(SegmentError::Parameter {
        name,
        value,
        rule: "at most 1 TiB",
    }
    .into())
}

#[pyfunction]
fn log_size(capacity_bytes: u64, readers: u32, topics: u64) -> Result<usize, Error> {
    // More are refused when it is formatted.
    let topics = topics.min(log::TOPICS_MAX);
    Ok(log::segment_bytes(
        possible(capacity_bytes)?,
        readers,
        topics,
    ))
}

#[pyfunction]
fn channels_size(channels_max: u64) -> Result<usize, Error> {
    Ok(channels::segment_bytes(channels_max)?)
}

#[pyfunction]
fn stats_size(metrics: Vec<PyMetric>, rows: u64) -> Result<usize, Error> {
    Ok(stats::segment_bytes(&schema_of(metrics)?, rows)?)
}

#[pyfunction]
fn uplink_size(capacity_bytes: u64) -> Result<usize, Error> {
    Ok(uplink::segment_bytes(possible(capacity_bytes)?))
}

#[pyfunction]
fn heap_size(memory_bytes: u64) -> Result<usize, Error> {
    Ok(heap::segment_bytes(memory_bytes)?)
}

/// Length of the segment, and how much of it is to be reserved at once.
#[pyfunction]
fn keep_size(slots_max: u64, arena_bytes: u64) -> Result<(usize, usize), Error> {
    Ok(keep::segment_bytes(slots_max, possible(arena_bytes)?)?)
}

/// Generation, owner's pid and start time.
type Identity = (u64, u64, u64);

fn owner_of((generation, pid, start): Identity) -> Owner {
    Owner {
        generation,
        pid,
        start,
    }
}

#[pyfunction]
fn format_log(
    fd: RawFd,
    capacity_bytes: u64,
    readers: u32,
    topics: u64,
    identity: Identity,
) -> Result<(), Error> {
    Ok(log::format(
        &map(fd)?,
        possible(capacity_bytes)?,
        readers,
        topics,
        start()?,
        owner_of(identity),
    )?)
}

#[pyfunction]
fn format_channels(fd: RawFd, channels_max: u64, identity: Identity) -> Result<(), Error> {
    Ok(channels::format(
        &map(fd)?,
        channels_max,
        owner_of(identity),
    )?)
}

#[pyfunction]
fn format_stats(
    fd: RawFd,
    metrics: Vec<PyMetric>,
    rows: u64,
    identity: Identity,
) -> Result<(), Error> {
    Ok(stats::format(
        &map(fd)?,
        &schema_of(metrics)?,
        rows,
        owner_of(identity),
    )?)
}

#[pyfunction]
#[pyo3(signature = (fd, metrics, *, only_check = false))]
fn extend_stats(fd: RawFd, metrics: Vec<PyMetric>, only_check: bool) -> Result<(), Error> {
    Ok(stats::extend(&map(fd)?, &schema_of(metrics)?, only_check)?)
}

#[pyfunction]
fn format_uplink(fd: RawFd, capacity_bytes: u64, identity: Identity) -> Result<(), Error> {
    Ok(uplink::format(
        &map(fd)?,
        possible(capacity_bytes)?,
        start()?,
        owner_of(identity),
    )?)
}

#[pyfunction]
fn format_history(fd: RawFd, memory_bytes: u64, identity: Identity) -> Result<(), Error> {
    Ok(history::format(
        &map(fd)?,
        memory_bytes,
        owner_of(identity),
    )?)
}

#[pyfunction]
fn format_presence(fd: RawFd, memory_bytes: u64, identity: Identity) -> Result<(), Error> {
    Ok(presence::format(
        &map(fd)?,
        memory_bytes,
        owner_of(identity),
    )?)
}

#[pyfunction]
fn format_keep(
    fd: RawFd,
    slots_max: u64,
    arena_bytes: u64,
    identity: Identity,
) -> Result<(), Error> {
    Ok(keep::format(
        &map(fd)?,
        slots_max,
        possible(arena_bytes)?,
        owner_of(identity),
    )?)
}

#[pyfunction]
fn inspect(py: Python<'_>, fd: RawFd) -> PyResult<Option<Bound<'_, PyDict>>> {
    let header = match map(fd).and_then(|region| Ok(layout::inspect(&region)?)) {
        // Empty: the segment has a name, but nobody has given it a size yet.
        Err(Error::Segment(SegmentError::NotReady | SegmentError::Length { bytes: 0 })) => {
            return Ok(None);
        }
        header => header?,
    };
    let kind = match header.kind {
        Kind::Log => "log",
        Kind::Channels => "channels",
        Kind::Statistics => "stats",
        Kind::Uplink => "uplink",
        Kind::History => "history",
        Kind::Presence => "presence",
        Kind::Keep => "keep",
    };
    let values = PyDict::new(py);
    values.set_item("kind", kind)?;
    values.set_item("version", header.version)?;
    values.set_item("generation", header.owner.generation)?;
    values.set_item("owner_pid", header.owner.pid)?;
    values.set_item("owner_start", header.owner.start)?;
    values.set_item("size", header.size)?;
    Ok(Some(values))
}
