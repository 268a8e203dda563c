//! Statistics: reading all rows, writing one.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{Error, map};
use crate::error::SegmentError;
use crate::sequencer;
use crate::stats::{self, Index, Kind, Role, Row, RowSnapshot, SchemaLine, Value};

pub(super) type PyMetric = (String, String, String);

pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let own: Vec<SchemaLine> = sequencer::METRICS.iter().map(SchemaLine::from).collect();
    module.add("METRICS", metrics_of(&own))?;
    module.add("ROLE_SUPERVISOR", Role::Supervisor as u64)?;
    module.add("ROLE_PUBLISHER", Role::Publisher as u64)?;
    module.add("ROLE_WORKER", Role::Worker as u64)?;
    module.add("ROLE_API", Role::Api as u64)?;
    let bounds: Vec<u64> = (0..stats::BUCKETS).map_while(stats::bucket_bound).collect();
    module.add("HISTOGRAM_BOUNDS", bounds)?;
    module.add_class::<Stats>()?;
    module.add_class::<StatsRow>()
}

pub(super) fn schema_of(metrics: Vec<PyMetric>) -> Result<Vec<SchemaLine>, Error> {
    let line = |(kind, name, help): PyMetric| {
        let kind = Kind::from_name(&kind).ok_or_else(|| {
            Error::Request(format!("{kind:?} is none of counter, gauge, histogram"))
        })?;
        Ok(SchemaLine { kind, name, help })
    };
    metrics.into_iter().map(line).collect()
}

fn metrics_of(schema: &[SchemaLine]) -> Vec<PyMetric> {
    let metric = |line: &SchemaLine| {
        (
            line.kind.name().into(),
            line.name.clone(),
            line.help.clone(),
        )
    };
    schema.iter().map(metric).collect()
}

#[pyclass(frozen, module = "shm._ring")]
pub(super) struct Stats(stats::Stats);

#[pymethods]
impl Stats {
    #[new]
    fn new(fd: RawFd) -> Result<Self, Error> {
        Ok(Self(stats::Stats::attach(map(fd)?)?))
    }

    fn schema(&self) -> Vec<PyMetric> {
        metrics_of(self.0.schema())
    }

    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let rows = py.detach(|| self.0.rows());
        rows.iter().map(|row| row_map(py, row)).collect()
    }

    fn heartbeat_ns(&self, row: usize) -> Result<u64, Error> {
        let rule = "it must be below the number of rows";
        let value = row as u64;
        let refused = SegmentError::Parameter {
            name: "row",
            value,
            rule,
        };
        Ok(self.0.heartbeat_ns(row).ok_or(refused)?)
    }
}

fn row_map<'py>(py: Python<'py>, row: &RowSnapshot) -> PyResult<Bound<'py, PyDict>> {
    let map = PyDict::new(py);
    let identity = row.identity;
    map.set_item("row", row.row)?;
    map.set_item("role", identity.role)?;
    map.set_item("pid", identity.pid)?;
    map.set_item("start", identity.start)?;
    map.set_item("slot", identity.slot)?;
    map.set_item("generation", identity.generation)?;
    map.set_item("heartbeat_ns", identity.heartbeat_ns)?;
    map.set_item("state", identity.state)?;
    let values: PyResult<Vec<Bound<'py, PyAny>>> = row
        .values
        .iter()
        .map(|value| value_object(py, value))
        .collect();
    map.set_item("values", values?)?;
    Ok(map)
}

fn value_object<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Number(number) => Ok(number.into_pyobject(py)?.into_any()),
        Value::Histogram {
            buckets,
            sum,
            count,
        } => {
            let histogram = PyDict::new(py);
            histogram.set_item("buckets", buckets)?;
            histogram.set_item("sum", sum)?;
            histogram.set_item("count", count)?;
            Ok(histogram.into_any())
        }
    }
}

#[pyclass(frozen, module = "shm._ring")]
pub(super) struct StatsRow {
    row: Row,
    schema: Vec<SchemaLine>,
}

impl StatsRow {
    /// The value called `name`, if it is of one of these kinds.
    fn index(&self, name: &str, kinds: &[Kind]) -> Result<Index, Error> {
        let known = self
            .schema
            .iter()
            .any(|line| line.name == name && kinds.contains(&line.kind));
        let index = if known { self.row.index_of(name) } else { None };
        index.ok_or_else(|| Error::Metric {
            kind: kinds[0].name(),
            name: name.into(),
        })
    }
}

#[pymethods]
impl StatsRow {
    #[new]
    fn new(fd: RawFd, row: u32, role: u64, slot: u64, generation: u64) -> Result<Self, Error> {
        let region = map(fd)?;
        let role = [Role::Supervisor, Role::Publisher, Role::Worker, Role::Api]
            .into_iter()
            .find(|known| *known as u64 == role)
            .ok_or_else(|| Error::Request(format!("{role} is no role of a process")))?;
        let schema = stats::Stats::attach(region.clone())?.schema().to_vec();
        Ok(Self {
            row: Row::claim(region, row, role, slot, generation)?,
            schema,
        })
    }

    #[staticmethod]
    fn resume(fd: RawFd, row: u32) -> Result<Self, Error> {
        let region = map(fd)?;
        let schema = stats::Stats::attach(region.clone())?.schema().to_vec();
        Ok(Self {
            row: Row::resume(region, row)?,
            schema,
        })
    }

    #[pyo3(signature = (name, amount = 1))]
    fn add(&self, name: &str, amount: u64) -> Result<(), Error> {
        self.row
            .add(self.index(name, &[Kind::Counter, Kind::Gauge])?, amount);
        Ok(())
    }

    fn set(&self, name: &str, value: u64) -> Result<(), Error> {
        self.row
            .set(self.index(name, &[Kind::Gauge, Kind::Counter])?, value);
        Ok(())
    }

    fn record(&self, name: &str, value: u64) -> Result<(), Error> {
        self.row
            .record(self.index(name, &[Kind::Histogram])?, value);
        Ok(())
    }

    fn set_state(&self, state: u64) {
        self.row.set_state(state);
    }

    fn heartbeat(&self) {
        self.row.heartbeat();
    }

    fn fold(&self, row: u32) -> Result<(), Error> {
        Ok(self.row.fold(row)?)
    }
}
