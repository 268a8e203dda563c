//! The Python face, `shm._ring`: thin conversions, no policy. Its stub is `shm/_ring.pyi`.

mod producer;
mod segments;
mod sequencer;
mod statistics;
mod stores;
mod tail;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyError, PyOSError};
use pyo3::prelude::*;

use crate::error::{LogError, SegmentError, UplinkError};
use crate::region::Region;
use crate::wake::Bell;

create_exception!(shm._ring, RingError, PyException);
create_exception!(shm._ring, FormatError, RingError);
create_exception!(shm._ring, BadRequest, RingError);
create_exception!(shm._ring, TooLarge, RingError);
create_exception!(shm._ring, Full, RingError);

/// Everything that this face raises.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    System(#[from] io::Error),
    #[error(transparent)]
    Python(#[from] PyErr),
    #[error("{0}")]
    Request(String),
    #[error("the statistics have no {kind} called {name}")]
    Metric { kind: &'static str, name: String },
}

impl Error {
    fn code(&self) -> &'static str {
        match self {
            Error::Segment(error) => error.code(),
            Error::Uplink(error) => error.code(),
            Error::Log(error) => error.code(),
            Error::System(_) | Error::Python(_) => "system",
            Error::Request(_) => "bad_request",
            Error::Metric { .. } => "metric",
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Error::Segment(SegmentError::Parameter { .. }) => "correct the value",
            Error::Segment(_) => "run processes of one release on an instance, started together",
            Error::Uplink(UplinkError::Full) => "try again, or raise log.uplink_bytes",
            Error::Uplink(UplinkError::TooLarge { .. }) => "send less, or raise log.uplink_bytes",
            Error::Uplink(UplinkError::Corrupt { .. }) => "ask for a new uplink",
            Error::Log(_) => "restart the instance; if it comes back, report it as a bug",
            Error::Request(_) => "correct the request",
            Error::System(_) | Error::Python(_) | Error::Metric { .. } => "",
        }
    }
}

/// The one place where an error becomes a Python exception.
impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        if let Error::Python(raised) = error {
            return raised;
        }
        let message = error.to_string();
        let raised = match &error {
            Error::System(source) | Error::Segment(SegmentError::System { source, .. }) => {
                return PyOSError::new_err((source.raw_os_error(), message));
            }
            Error::Metric { .. } | Error::Python(_) => return PyKeyError::new_err(message),
            Error::Segment(_) => FormatError::new_err(message.clone()),
            Error::Uplink(UplinkError::Full) => Full::new_err(message.clone()),
            Error::Uplink(UplinkError::TooLarge { .. }) => TooLarge::new_err(message.clone()),
            Error::Request(_) => BadRequest::new_err(message.clone()),
            Error::Uplink(UplinkError::Corrupt { .. }) | Error::Log(_) => {
                RingError::new_err(message.clone())
            }
        };
        let attributes = [
            ("code", error.code()),
            ("message", &message),
            ("remedy", error.remedy()),
        ];
        let set = Python::attach(|py| {
            let value = raised.value(py);
            attributes
                .iter()
                .try_for_each(|(name, text)| value.setattr(*name, *text))
        });
        match set {
            Ok(()) => raised,
            Err(failed) => failed,
        }
    }
}

/// Lends a descriptor that Python owns.
fn borrowed<'fd>(fd: RawFd) -> Result<BorrowedFd<'fd>, Error> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF).into());
    }
    // SAFETY: not -1; Python keeps it open during the call, and where it does not, the system calls
    // that it is used in fail with EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

fn map(fd: RawFd) -> Result<Region, Error> {
    Ok(Region::map(borrowed(fd)?)?)
}

fn bell(fd: RawFd) -> Result<Bell, Error> {
    let own: OwnedFd = borrowed(fd)?.try_clone_to_owned()?;
    Ok(Bell::from(own))
}

fn epoch_text(epoch: u32) -> String {
    format!("{epoch:08x}")
}

#[pymodule]
fn _ring(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("RingError", py.get_type::<RingError>())?;
    module.add("FormatError", py.get_type::<FormatError>())?;
    module.add("BadRequest", py.get_type::<BadRequest>())?;
    module.add("TooLarge", py.get_type::<TooLarge>())?;
    module.add("Full", py.get_type::<Full>())?;
    module.add("CHANNEL_BYTES_MAX", crate::publication::CHANNEL_BYTES_MAX)?;
    segments::add_to(module)?;
    statistics::add_to(module)?;
    module.add_class::<sequencer::Sequencer>()?;
    module.add_class::<producer::Producer>()?;
    module.add_class::<stores::History>()?;
    module.add_class::<stores::Presence>()?;
    module.add_class::<tail::LogTail>()?;
    module.add_class::<tail::Channels>()
}
