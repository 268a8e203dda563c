//! Reading histories and presence, for the server API and for tools.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::tail::{epoch_and_offset, publication_map};
use super::{Error, map};
use crate::channels::ChannelTable;
use crate::history::HistoryStore;
use crate::presence::{ClientInfo, PresenceTable};
use crate::publication::PublicationView;

/// One answer holds at most so many bytes of publications: no less than any log record can have,
/// and little enough for a reply in memory.
const HISTORY_BYTES_MAX: usize = 64 << 20;

#[pyclass(frozen, module = "shm._ring")]
pub(super) struct History {
    store: HistoryStore,
    channels: ChannelTable,
}

#[pymethods]
impl History {
    #[new]
    fn new(history_fd: RawFd, channels_fd: RawFd) -> Result<Self, Error> {
        Ok(Self {
            store: HistoryStore::attach(map(history_fd)?)?,
            channels: ChannelTable::attach(map(channels_fd)?)?,
        })
    }

    fn top(&self, channel: &str) -> (String, u64) {
        epoch_and_offset(&self.channels, channel)
    }

    #[pyo3(signature = (channel, since_offset = None, limit = None, reverse = false))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        channel: &str,
        since_offset: Option<u64>,
        limit: Option<usize>,
        reverse: bool,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let key = self.channels.key(channel);
        let Some(top) = self.channels.top(key) else {
            return Ok(Vec::new());
        };
        let limit = limit.unwrap_or(usize::MAX);
        let (store, bytes_max) = (&self.store, HISTORY_BYTES_MAX);
        let stretch = py.detach(|| store.read(key, top, since_offset, limit, reverse, bytes_max));
        let payloads = stretch.map_or_else(Vec::new, |stretch| stretch.payloads);
        payloads
            .iter()
            .filter_map(|payload| PublicationView::parse(payload))
            .map(|publication| publication_map(py, &publication))
            .collect()
    }
}

#[pyclass(frozen, module = "shm._ring")]
pub(super) struct Presence {
    table: PresenceTable,
    channels: ChannelTable,
}

#[pymethods]
impl Presence {
    #[new]
    fn new(presence_fd: RawFd, channels_fd: RawFd) -> Result<Self, Error> {
        Ok(Self {
            table: PresenceTable::attach(map(presence_fd)?)?,
            channels: ChannelTable::attach(map(channels_fd)?)?,
        })
    }

    fn stats(&self, channel: &str) -> (u32, u32) {
        self.table.stats(self.channels.key(channel))
    }

    #[pyo3(signature = (channel, clients_max = None))]
    fn members<'py>(
        &self,
        py: Python<'py>,
        channel: &str,
        clients_max: Option<usize>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let key = self.channels.key(channel);
        let clients_max = clients_max.unwrap_or(usize::MAX);
        let members = py.detach(|| self.table.members(key, clients_max));
        members.iter().map(|info| info_map(py, info)).collect()
    }
}

/// A ClientInfo as Python has it.
pub(super) fn info_map<'py>(py: Python<'py>, info: &[u8]) -> PyResult<Bound<'py, PyDict>> {
    let info = ClientInfo::parse(info);
    let map = PyDict::new(py);
    map.set_item("user", String::from_utf8_lossy(info.user))?;
    map.set_item("client", String::from_utf8_lossy(info.client))?;
    map.set_item("conn_info", PyBytes::new(py, info.conn_info))?;
    map.set_item("chan_info", PyBytes::new(py, info.chan_info))?;
    Ok(map)
}
