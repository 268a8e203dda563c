//! The Python face: `workers._engine`, whose stub is `workers/_engine.pyi`.
//!
//! One object for the worker's shell: built from its settings and descriptors, then run. No Python
//! object exists for any client or message, and the interpreter lock is not held while it runs.

use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tidegate_ring::region::Region;

use crate::error::EngineError;
use crate::handoff::{self, Order};
use crate::metrics;
use crate::protocol::close;
use crate::reactor::{Descriptors, Reactor, Regions, Report};
use crate::sending;
use crate::settings::{Namespace, Settings};
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

#[derive(FromPyObject)]
struct NamespaceAttributes {
    name: String,
    allow_subscribe_for_client: bool,
    allow_publish_for_client: bool,
    recovery: bool,
}

impl From<NamespaceAttributes> for Namespace {
    fn from(from: NamespaceAttributes) -> Self {
        Self {
            name: from.name,
            allow_subscribe_for_client: from.allow_subscribe_for_client,
            allow_publish_for_client: from.allow_publish_for_client,
            recovery: from.recovery,
        }
    }
}

/// `workers.settings.WorkerSettings`, by attribute.
#[derive(FromPyObject)]
struct Attributes {
    version: String,
    slot: u32,
    generation: u64,
    seat: u32,
    stats_row: u32,
    connections_max: usize,
    message_bytes_max: usize,
    queue_hard_bytes: usize,
    queue_soft_bytes: usize,
    queue_soft_s: f64,
    channels_per_connection_max: usize,
    handshake_timeout_s: f64,
    header_bytes_max: usize,
    headers_max: usize,
    accepts_per_turn_max: usize,
    engine: String,
    batch_delay_us: u64,
    recovery_publications_max: usize,
    close_timeout_s: f64,
    websocket_ping_interval_s: f64,
    websocket_pong_timeout_s: f64,
    tcp_heartbeat_interval_s: f64,
    tcp_heartbeat_timeout_s: f64,
    allowed_origins: Vec<String>,
    namespaces: Vec<NamespaceAttributes>,
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name} = {value} is not a length of time")))
}

fn engine(name: &str) -> PyResult<sending::Engine> {
    match name {
        "auto" => Ok(sending::Engine::Auto),
        "epoll" => Ok(sending::Engine::Epoll),
        "io_uring" => Ok(sending::Engine::IoUring),
        _ => Err(PyValueError::new_err(format!(
            "engine = {name} is none of auto, epoll and io_uring"
        ))),
    }
}

impl TryFrom<Attributes> for Settings {
    type Error = PyErr;

    fn try_from(from: Attributes) -> PyResult<Self> {
        Ok(Self {
            version: from.version,
            slot: from.slot,
            generation: from.generation,
            seat: from.seat,
            stats_row: from.stats_row,
            connections_max: from.connections_max,
            message_bytes_max: from.message_bytes_max,
            queue_hard_bytes: from.queue_hard_bytes,
            queue_soft_bytes: from.queue_soft_bytes,
            queue_soft: seconds("queue_soft_s", from.queue_soft_s)?,
            channels_per_connection_max: from.channels_per_connection_max,
            handshake_timeout: seconds("handshake_timeout_s", from.handshake_timeout_s)?,
            header_bytes_max: from.header_bytes_max,
            headers_max: from.headers_max,
            accepts_per_turn_max: from.accepts_per_turn_max,
            engine: engine(&from.engine)?,
            batch_delay: Duration::from_micros(from.batch_delay_us),
            recovery_publications_max: from.recovery_publications_max,
            close_timeout: seconds("close_timeout_s", from.close_timeout_s)?,
            websocket_ping_interval: seconds(
                "websocket_ping_interval_s",
                from.websocket_ping_interval_s,
            )?,
            websocket_pong_timeout: seconds(
                "websocket_pong_timeout_s",
                from.websocket_pong_timeout_s,
            )?,
            tcp_heartbeat_interval: seconds(
                "tcp_heartbeat_interval_s",
                from.tcp_heartbeat_interval_s,
            )?,
            tcp_heartbeat_timeout: seconds(
                "tcp_heartbeat_timeout_s",
                from.tcp_heartbeat_timeout_s,
            )?,
            allowed_origins: from.allowed_origins,
            namespaces: from.namespaces.into_iter().map(Into::into).collect(),
        })
    }
}

/// The descriptors of the boot message, by key.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Keys {
    http: RawFd,
    tcp: RawFd,
    log: RawFd,
    channels: RawFd,
    stats: RawFd,
    uplink: RawFd,
    wake: RawFd,
    publisher_wake: RawFd,
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
    fn new(settings: Attributes, descriptors: Keys, link: RawFd) -> PyResult<Self> {
        end_the_process_on_panic();
        let regions = Regions {
            log: map("log", descriptors.log)?,
            channels: map("channels", descriptors.channels)?,
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
        Ok(Self(Reactor::new(settings.try_into()?, regions, owned)?))
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
    module.add_function(wrap_pyfunction!(prefer_memory_node, module)?)
}
