//! What a client has missed of a channel: whether it can be had, and within which bounds.

use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::history::recover;

use super::Sessions;
use super::subscribe::Terms;
use crate::client::Traits;
use crate::metrics::Count;
use crate::settings::RecoveryMode;
use crate::slab::Token;

/// How often a history is looked for again while its newest record is written but not committed:
/// the publisher is between two stores then, or was killed there. Each look gives the processor
/// to others first, so this is some 100 µs.
const HISTORY_LOOKS_MAX: u32 = 100;

/// How much trouble is taken to find what was missed.
pub(super) struct Bounds {
    pub publications_max: usize,
    pub bytes_max: usize,
    pub looks_max: u32,
}

/// What came before a subscription.
pub(super) struct Past {
    pub top: Top,
    /// `None`: not asked for, or not possible.
    pub recovered: Option<Recovered>,
}

impl Past {
    pub fn is_recovered(&self) -> bool {
        self.recovered.is_some()
    }
}

pub(super) struct Recovered {
    /// What the client is told that it has: the publications come on top of it.
    pub since_offset: u64,
    /// Payloads of the publications after it, in order, through the top.
    pub missed: Vec<Vec<u8>>,
}

/// An epoch as clients see it.
pub(super) fn epoch_text(epoch: u32) -> String {
    format!("{epoch:08x}")
}

impl Sessions {
    /// Finds out what a subscription on these terms has missed.
    pub(super) fn look_back(
        &mut self,
        name: &str,
        terms: &Terms,
        since: Option<(&str, u64)>,
        bytes_max: usize,
    ) -> Past {
        let key = self.table.key(name);
        let top = self.top(key);
        let recovered = match (terms.mode, since) {
            (RecoveryMode::Cache, None) if !terms.auto_recover => None,
            (RecoveryMode::Cache, since) => self.newest(key, top, since, bytes_max),
            (RecoveryMode::Stream, None) => None,
            (RecoveryMode::Stream, Some((epoch, since_offset))) => {
                let is_same = epoch.is_empty() || epoch == epoch_text(top.epoch);
                let recovers = is_same && terms.standing.traits.has(Traits::RECOVERABLE);
                recovers
                    .then(|| self.missed(key, since_offset, top, bytes_max))
                    .flatten()
                    .map(|missed| Recovered {
                        since_offset,
                        missed,
                    })
            }
        };
        if since.is_some() {
            let count = match recovered {
                Some(_) => Count::Recovered,
                None => Count::Unrecoverable,
            };
            self.metrics.add(count, 1);
        }
        Past { top, recovered }
    }

    /// The newest publication alone, unless the client has it.
    fn newest(
        &mut self,
        key: ChannelKey,
        top: Top,
        since: Option<(&str, u64)>,
        bytes_max: usize,
    ) -> Option<Recovered> {
        let before = top.offset.checked_sub(1)?;
        let has_it = since.is_some_and(|(epoch, offset)| {
            offset == top.offset && (epoch.is_empty() || epoch == epoch_text(top.epoch))
        });
        let since_offset = if has_it { top.offset } else { before };
        let missed = self.missed(key, since_offset, top, bytes_max)?;
        Some(Recovered {
            since_offset,
            missed,
        })
    }

    /// How much may be recovered for a connection: more than its queue may hold for a while would
    /// only get it closed as slow, and again when it comes back.
    pub(super) fn recovery_bytes_max(&mut self, token: Token) -> usize {
        let queued = self
            .connections
            .get_mut(token)
            .map_or(0, |each| each.queued_bytes());
        self.settings.queue_soft_bytes.saturating_sub(queued)
    }

    /// The publications of a channel after `since_offset` up to `top`, if all of them are there and
    /// within the bounds.
    pub(super) fn missed(
        &mut self,
        key: ChannelKey,
        since_offset: u64,
        top: Top,
        bytes_max: usize,
    ) -> Option<Vec<Vec<u8>>> {
        let bounds = Bounds {
            publications_max: self.settings.recovery_publications_max,
            bytes_max,
            looks_max: HISTORY_LOOKS_MAX,
        };
        self.missed_within(key, since_offset, top, &bounds)
    }

    /// As [`Sessions::missed`] with other bounds.
    pub(super) fn missed_within(
        &mut self,
        key: ChannelKey,
        since_offset: u64,
        top: Top,
        bounds: &Bounds,
    ) -> Option<Vec<Vec<u8>>> {
        let count = top.offset.checked_sub(since_offset)?;
        if count == 0 {
            return Some(Vec::new());
        }
        if count > bounds.publications_max as u64 {
            return None;
        }
        for _ in 0..bounds.looks_max {
            // Asked before the look: what is committed during it deserves another one.
            let behind_tail = self.reader.tail().wrapping_sub(top.last_position);
            let is_committed = behind_tail.cast_signed() > 0;
            let view = self.reader.view();
            let (count_max, bytes_max) = (bounds.publications_max, bounds.bytes_max);
            let store = &self.history;
            let found = recover(view, store, key, since_offset, top, count_max, bytes_max);
            if found.is_some() || is_committed {
                return found;
            }
            std::thread::yield_now();
        }
        None
    }
}
