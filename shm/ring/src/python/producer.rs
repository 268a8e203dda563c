//! A producer's end of an uplink.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::IntoPyDict;

use super::{Error, bell, epoch_text, map};
use crate::json;
use crate::publication::{CHANNEL_BYTES_MAX, TAGS_BYTES_MAX, Version, is_channel_name};
use crate::uplink::{Request, RequestKind, UplinkProducer};
use crate::wake::Bell;

/// Request id, status, epoch, offset.
type PyReply = (u64, u32, String, u64);

#[pyclass(frozen, module = "shm._ring")]
pub(super) struct Producer {
    state: Mutex<State>,
    publisher_wake: Bell,
    reply_wake: Bell,
}

struct State {
    uplink: UplinkProducer,
    last_id: u64,
}

/// Text or bytes, as Python has them.
#[derive(FromPyObject)]
enum Bytes {
    Text(PyBackedStr),
    Raw(PyBackedBytes),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Text(text) => text.as_bytes(),
            Bytes::Raw(bytes) => bytes,
        }
    }
}

#[pymethods]
impl Producer {
    #[new]
    fn new(
        uplink_fd: RawFd,
        publisher_wake_fd: RawFd,
        reply_wake_fd: RawFd,
    ) -> Result<Self, Error> {
        let uplink = UplinkProducer::attach(map(uplink_fd)?)?;
        Ok(Self {
            state: Mutex::new(State { uplink, last_id: 0 }),
            publisher_wake: bell(publisher_wake_fd)?,
            reply_wake: bell(reply_wake_fd)?,
        })
    }

    #[pyo3(signature = (
        channel, data, *, tags = None, idempotency_key = None, skip_history = false, version = 0,
        version_epoch = None, delta = false, binary = false, want_reply = true
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python call")]
    fn publish(
        &self,
        py: Python<'_>,
        channel: &str,
        data: Bytes,
        tags: Option<Bytes>,
        idempotency_key: Option<&str>,
        skip_history: bool,
        version: u64,
        version_epoch: Option<&str>,
        delta: bool,
        binary: bool,
        want_reply: bool,
    ) -> Result<u64, Error> {
        check_channel(channel)?;
        let (mut compact_data, mut compact_tags) = (Vec::new(), Vec::new());
        if !binary {
            json::compact(data.as_slice(), &mut compact_data)
                .map_err(|error| Error::Request(format!("data: {error}")))?;
        }
        if let Some(tags) = tags {
            json::compact_object(tags.as_slice(), &mut compact_tags)
                .map_err(|error| Error::Request(format!("tags: {error}")))?;
        }
        if compact_tags.len() > TAGS_BYTES_MAX {
            let bytes = compact_tags.len();
            return Err(Error::Request(format!(
                "tags: {bytes} bytes, at most {TAGS_BYTES_MAX}"
            )));
        }
        let idempotency = idempotency_key.map_or(Ok(0), |key| digest(py, key))?;
        let version = Version {
            number: version,
            epoch: match version_epoch {
                Some(name) if version > 0 && !name.is_empty() => (digest(py, name)? as u64).max(1),
                _ => 0,
            },
        };
        let data = if binary {
            data.as_slice()
        } else {
            &compact_data
        };
        self.hand_over(Request {
            want_reply,
            json: !binary,
            skip_history,
            delta,
            version,
            idempotency,
            channel,
            tags: &compact_tags,
            data,
            ..Request::default()
        })
    }

    #[pyo3(signature = (order, *, want_reply = true))]
    fn order(&self, order: Bytes, want_reply: bool) -> Result<u64, Error> {
        let mut compact = Vec::new();
        json::compact_object(order.as_slice(), &mut compact)
            .map_err(|error| Error::Request(format!("order: {error}")))?;
        self.hand_over(Request {
            kind: RequestKind::Order,
            want_reply,
            data: &compact,
            ..Request::default()
        })
    }

    #[pyo3(signature = (channel, *, want_reply = true))]
    fn history_remove(&self, channel: &str, want_reply: bool) -> Result<u64, Error> {
        check_channel(channel)?;
        self.hand_over(Request {
            kind: RequestKind::HistoryRemove,
            want_reply,
            channel,
            ..Request::default()
        })
    }

    fn replies(&self, py: Python<'_>, timeout_s: f64) -> Result<Vec<PyReply>, Error> {
        let timeout = Duration::try_from_secs_f64(timeout_s.max(0.0))
            .map_err(|error| Error::Request(format!("timeout_s: {error}")))?;
        py.detach(|| self.wait_for_replies(timeout))
    }
}

fn check_channel(channel: &str) -> Result<(), Error> {
    if is_channel_name(channel) {
        return Ok(());
    }
    let bytes = channel.len();
    Err(Error::Request(format!(
        "channel: {bytes} bytes, it has to be 1 to {CHANNEL_BYTES_MAX} ASCII characters"
    )))
}

/// Of an idempotency key, or a version's epoch: the publisher sees digests only. No two keys that
/// anybody can find have the same one, and it is never 0, which stands for no key.
fn digest(py: Python<'_>, key: &str) -> Result<u128, Error> {
    let options = [("digest_size", 16)].into_py_dict(py)?;
    let hash = py
        .import("hashlib")?
        .call_method("blake2b", (key.as_bytes(),), Some(&options))?;
    let digest: [u8; 16] = hash.call_method0("digest")?.extract()?;
    Ok(u128::from_le_bytes(digest).max(1))
}

impl Producer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request over, with an id that it gets here and that its reply will carry.
    fn hand_over(&self, request: Request<'_>) -> Result<u64, Error> {
        let mut state = self.state();
        let id = state.last_id + 1;
        let wake = state.uplink.publish(&Request { id, ..request })?;
        state.last_id = id;
        drop(state);
        if wake {
            self.publisher_wake.ring();
        }
        Ok(id)
    }

    fn wait_for_replies(&self, timeout: Duration) -> Result<Vec<PyReply>, Error> {
        let began = Instant::now();
        loop {
            let mut state = self.state();
            let mut replies = Vec::new();
            state.uplink.replies(|reply| {
                replies.push((
                    reply.id,
                    reply.status,
                    epoch_text(reply.epoch),
                    reply.offset,
                ));
            })?;
            let left = timeout.saturating_sub(began.elapsed());
            if !replies.is_empty() || left.is_zero() {
                return Ok(replies);
            }
            if state.uplink.may_sleep() {
                // Others publish meanwhile.
                drop(state);
                self.reply_wake.wait(left);
                self.state().uplink.awake();
            }
        }
    }
}
