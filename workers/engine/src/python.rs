//! The Python face: `workers._engine`, whose stub is `workers/_engine.pyi`.
//!
//! One object for the worker's shell: built from its settings and descriptors, then run. No Python
//! object exists for any client or message, and the interpreter lock is not held while it runs.

mod tokens;

use std::fs::File;
use std::io::{BufWriter, Write as _};
mod questions;

use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serializer as _;
use tidegate_ring::keep::KeepWriter;
use tidegate_ring::region::Region;

use self::questions::{Questions, kind};
use crate::asks::AskKind;
use crate::error::EngineError;
use crate::handoff::{self, Order};
use crate::keeper;
use crate::metrics;
use crate::protocol::close;
use crate::reactor::{Descriptors, Reactor, Regions, Report};
use crate::settings::Settings;
use crate::sys;

create_exception!(workers._engine, EngineFailed, PyException);

/// sysexits.h EX_SOFTWARE: a bug in this crate ended the worker.
const EXIT_SOFTWARE: i32 = 70;

/// The only place where an error of this crate becomes a Python exception.
impl From<EngineError> for PyErr {
    fn from(error: EngineError) -> Self {
        Python::attach(|py| {
            let failed = EngineFailed::new_err(error.to_string());
            // Setting an attribute of a fresh exception object does not fail.
            let _ = failed.value(py).setattr("code", error.code());
            failed
        })
    }
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name} = {value} is not a length of time")))
}

/// The descriptors of the boot message, by key.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Keys {
    http: RawFd,
    tcp: RawFd,
    log: RawFd,
    channels: RawFd,
    history: RawFd,
    presence: RawFd,
    stats: RawFd,
    uplink: RawFd,
    wake: RawFd,
    publisher_wake: RawFd,
}

/// The descriptors by which connections survive this process, by key.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct KeepKeys {
    keep: RawFd,
    keeper: RawFd,
}

fn map(segment: &'static str, fd: RawFd) -> PyResult<Region> {
    let copy = duplicate(fd)?;
    Region::map(copy.as_fd()).map_err(|source| EngineError::Segment { segment, source }.into())
}

fn duplicate(fd: RawFd) -> PyResult<std::os::fd::OwnedFd> {
    sys::duplicate(fd).map_err(PyOSError::new_err)
}

/// Lets a value of this thread cross [`Python::detach`], which asks for more than it needs.
struct SameThread<T>(T);

// SAFETY: `Python::detach` runs its closure on the thread that called it; the value never reaches
// another thread.
unsafe impl<T> Send for SameThread<T> {}

impl<T> SameThread<T> {
    fn into_inner(self) -> T {
        self.0
    }
}

/// Runs `work` on the reactor without the interpreter lock.
fn detached<R: Send>(
    py: Python<'_>,
    reactor: &mut Reactor,
    work: impl FnOnce(&mut Reactor) -> R,
) -> R {
    let crossing = SameThread((reactor, work));
    py.detach(move || {
        let (reactor, work) = crossing.into_inner();
        work(reactor)
    })
}

#[pyclass(unsendable, module = "workers._engine")]
struct Engine(Reactor);

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (settings, descriptors, link, keep = None))]
    fn new(
        settings: &str,
        descriptors: Keys,
        link: RawFd,
        keep: Option<KeepKeys>,
    ) -> PyResult<Self> {
        end_the_process_on_panic();
        let settings = Settings::from_json(settings)
            .map_err(|error| PyValueError::new_err(format!("worker settings: {error}")))?;
        let regions = Regions {
            log: map("log", descriptors.log)?,
            channels: map("channels", descriptors.channels)?,
            history: map("history", descriptors.history)?,
            presence: map("presence", descriptors.presence)?,
            stats: map("stats", descriptors.stats)?,
            uplink: map("uplink", descriptors.uplink)?,
        };
        let owned = Descriptors {
            http: duplicate(descriptors.http)?,
            tcp: duplicate(descriptors.tcp)?,
            wake: duplicate(descriptors.wake)?,
            publisher_wake: duplicate(descriptors.publisher_wake)?,
            link: duplicate(link)?,
        };
        let Some(keys) = keep else {
            return Ok(Self(Reactor::new(settings, regions, owned)?));
        };
        let memory = keeper::Memory {
            keep: map("keep", keys.keep)?,
            log: regions.log.clone(),
            channels: regions.channels.clone(),
        };
        let listeners = [owned.http.as_fd(), owned.tcp.as_fd()];
        keeper::start(&memory, listeners, duplicate(keys.keeper)?)?;
        let segment = "keep";
        let writer = KeepWriter::attach(memory.keep, Some(duplicate(keys.keep)?))
            .map_err(|source| EngineError::Segment { segment, source })?;
        let mut reactor = Reactor::new(settings, regions, owned)?;
        reactor.survive(writer);
        Ok(Self(reactor))
    }

    fn ask_about(&mut self, kinds: Vec<String>) -> PyResult<Questions> {
        let kinds: Vec<AskKind> = kinds
            .iter()
            .map(|name| kind(name))
            .collect::<PyResult<_>>()?;
        Ok(Questions(self.0.ask_about(&kinds)?))
    }

    fn run<'py>(&mut self, py: Python<'py>) -> PyResult<(&'static str, Bound<'py, PyDict>)> {
        let fields = PyDict::new(py);
        let set = |name, value| fields.set_item(name, value);
        let name = match detached(py, &mut self.0, Reactor::run)? {
            Report::Link => "link",
            Report::Draining { remaining } => {
                set("remaining", remaining)?;
                "draining"
            }
            Report::Drained { closed } => {
                set("closed", closed)?;
                "drained"
            }
            Report::Handoff(report) => handoff_fields(&report, &fields)?,
            Report::Notices => {
                fields.set_item("lines", self.0.take_notices())?;
                "notices"
            }
        };
        Ok((name, fields))
    }

    #[pyo3(signature = (fd, id, count, *, keep_accepting, drain_queue))]
    fn hand_over(
        &mut self,
        fd: RawFd,
        id: u64,
        count: i64,
        keep_accepting: bool,
        drain_queue: bool,
    ) -> PyResult<()> {
        let order = Order {
            id,
            count: usize::try_from(count).ok(),
        };
        let socket = duplicate(fd)?;
        self.0.hand_over(socket, order, keep_accepting, drain_queue);
        Ok(())
    }

    fn adopt(&mut self, fd: RawFd, id: u64) -> PyResult<()> {
        self.0.adopt(duplicate(fd)?, id);
        Ok(())
    }

    fn resume(&mut self) -> PyResult<()> {
        Ok(self.0.resume()?)
    }

    fn profile(&mut self, duration_s: f64) -> PyResult<()> {
        self.0.profile(seconds("duration_s", duration_s)?);
        Ok(())
    }

    /// Writes down which channels have subscribers, and how many.
    fn survey(&self, fd: RawFd) -> PyResult<()> {
        let mut file = BufWriter::new(File::from(duplicate(fd)?));
        serde_json::Serializer::new(&mut file)
            .collect_map(self.0.channels())
            .map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(file.flush()?)
    }

    #[pyo3(signature = (spread_s, code, *, accept_first))]
    fn drain(&mut self, spread_s: f64, code: u16, accept_first: bool) -> PyResult<()> {
        let close = close::ALL
            .iter()
            .find(|close| close.code() == code)
            .ok_or_else(|| PyValueError::new_err(format!("{code} is not a close code")))?;
        self.0
            .drain(seconds("spread_s", spread_s)?, *close, accept_first);
        Ok(())
    }

    fn stop(&mut self, py: Python<'_>, patience_s: f64) -> PyResult<usize> {
        let patience = seconds("patience_s", patience_s)?;
        Ok(detached(py, &mut self.0, |reactor| reactor.stop(patience))?)
    }
}

/// Sets what a report says; returns what it is called.
fn handoff_fields(report: &handoff::Report, fields: &Bound<'_, PyDict>) -> PyResult<&'static str> {
    match *report {
        handoff::Report::Moving {
            id,
            moved,
            remaining,
        } => {
            fields.set_item("id", id)?;
            fields.set_item("moved", moved)?;
            fields.set_item("remaining", remaining)?;
            Ok("moving")
        }
        handoff::Report::HandedOver(over) => {
            fields.set_item("id", over.id)?;
            fields.set_item("moved", over.moved)?;
            fields.set_item("kept", over.kept)?;
            fields.set_item("lost", over.lost)?;
            fields.set_item("reason", over.reason)?;
            Ok("handed_over")
        }
        handoff::Report::Adopted(adopted) => {
            fields.set_item("id", adopted.id)?;
            fields.set_item("count", adopted.count)?;
            fields.set_item("refused", adopted.refused)?;
            fields.set_item("reason", adopted.reason)?;
            fields.set_item("pause_us_p50", adopted.pause_us_p50)?;
            fields.set_item("pause_us_p99", adopted.pause_us_p99)?;
            fields.set_item("pause_us_max", adopted.pause_us_max)?;
            Ok("adopted")
        }
    }
}

/// A panic is a bug after which nothing here can be trusted: the worker ends, the supervisor
/// replaces it, and nothing unwinds into the interpreter.
fn end_the_process_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("tidegate: the worker engine has a bug and ends this worker: {panic}");
        sys::exit_now(EXIT_SOFTWARE);
    }));
}

#[pyfunction]
fn prefer_memory_node(node: u32) -> PyResult<()> {
    sys::prefer_memory_node(node).map_err(PyOSError::new_err)
}

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let metrics: Vec<(&str, String, String)> = metrics::schema()
        .into_iter()
        .map(|line| (line.kind.name(), line.name, line.help))
        .collect();
    module.add("METRICS", metrics)?;
    module.add("EngineFailed", module.py().get_type::<EngineFailed>())?;
    module.add_class::<Engine>()?;
    module.add_class::<tokens::TokenVerifier>()?;
    module.add_function(wrap_pyfunction!(tokens::check_pattern, module)?)?;
    module.add_class::<Questions>()?;
    module.add_function(wrap_pyfunction!(prefer_memory_node, module)?)
}
