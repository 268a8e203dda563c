//! History: what a channel published lately.
//!
//! Channels of namespaces with a [`HistoryRule`] have it in the history store, as many publications
//! for as long as the rule says, whatever other channels do. What a channel without a rule
//! published is there for as long as the log holds it: each publication names the position of its
//! channel's previous one, so that a history is a chain through the log, or through the store.
//!
//! An entry of the store is the payload of the log's record, behind these words:
//!
//! ```text
//! previous  link of the channel's entry before; leads nowhere once that one was let go
//! sequence  u64, counts the entries of all channels: the lowest goes first where memory is short
//! offset    u64
//! epoch     u32
//! ```
//!
//! Any process reads it without asking anyone. A chain that ends too early is no mistake of the
//! reader's: what would follow was let go, or is being let go.

mod writer;

pub use writer::{Figures, HistoryWriter};

use std::collections::VecDeque;
use std::time::Duration;

use crate::channels::{ChannelKey, Top};
use crate::error::SegmentError;
use crate::heap::{self, Cell, Heap, KIND_ENTRY, Link};
use crate::layout::{Kind, Owner};
use crate::log::LogView;
use crate::publication::{PublicationView, RECORD_KIND};
use crate::region::Region;

pub use crate::heap::segment_bytes;

const PREVIOUS: usize = 0;
const SEQUENCE: usize = 1;
const OFFSET: usize = 2;
const EPOCH: usize = 3;
const HEAD_WORDS: usize = 4;

/// What the channels of a namespace keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRule {
    /// See [`crate::publication::namespace_of`].
    pub namespace: String,
    /// Most publications of a channel.
    pub size: u64,
    /// A publication is let go when it is older.
    pub ttl: Duration,
}

/// Makes a zeroed region of [`segment_bytes`] bytes an empty history store.
///
/// # Errors
/// As [`segment_bytes`]; also for a region of another size.
pub fn format(region: &Region, memory_bytes: u64, owner: Owner) -> Result<(), SegmentError> {
    heap::format(region, Kind::History, memory_bytes, owner)
}

/// What was found of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// As [`PublicationView::parse`] reads them, in the order that was asked for.
    pub payloads: Vec<Vec<u8>>,
    /// Whether nothing is missing between the offset asked for and the channel's top.
    pub complete: bool,
}

/// The history store as every process reads it.
#[derive(Clone, Debug)]
pub struct HistoryStore {
    heap: Heap,
}

impl HistoryStore {
    /// # Errors
    /// [`SegmentError`] where the region holds no history store of this version.
    pub fn attach(region: Region) -> Result<Self, SegmentError> {
        let heap = Heap::attach(region, Kind::History)?;
        Ok(Self { heap })
    }

    /// Publications of a channel that stands at `top`: ascending, those after offset `since` (all,
    /// if none is said); or descending where `reverse`, those before `since`. At most `limit`, and
    /// at most `bytes_max` bytes together: who asks may be anybody.
    ///
    /// `None`: the store has nothing of this channel.
    #[must_use]
    pub fn read(
        &self,
        key: ChannelKey,
        top: Top,
        since: Option<u64>,
        limit: usize,
        reverse: bool,
        bytes_max: usize,
    ) -> Option<Stretch> {
        let first = self.heap.find(key)?.first;
        let wanted = if reverse {
            let before = since.map_or(top.offset, |since| since.saturating_sub(1));
            self.newest(first, top.epoch, before.min(top.offset), limit)
        } else {
            self.oldest(first, top, since.unwrap_or(0), limit)
        };
        let mut bytes_left = bytes_max;
        let mut payloads = Vec::new();
        let mut offsets = Vec::new();
        for (link, offset) in wanted {
            let payload = self.payload(link, bytes_left);
            let Some(payload) = payload else {
                // The oldest are let go first: in ascending order others may be there yet.
                if reverse || !payloads.is_empty() {
                    break;
                }
                continue;
            };
            bytes_left -= payload.len();
            payloads.push(payload);
            offsets.push(offset);
        }
        let due = top.offset.saturating_sub(since.unwrap_or(0));
        let complete = !reverse && is_run(&offsets) && {
            let ends_at_top = offsets.last().is_none_or(|last| *last == top.offset);
            ends_at_top && payloads.len() as u64 == due
        };
        Some(Stretch { payloads, complete })
    }

    /// The entries of an epoch from `first` on, through the chain.
    fn chain(&self, first: Link, epoch: u32) -> impl Iterator<Item = (Link, Cell)> {
        let mut link = first;
        std::iter::from_fn(move || {
            let cell = self.heap.cell(link, KIND_ENTRY)?;
            let found = (link, cell);
            link = Link(cell.head(PREVIOUS));
            Some(found)
        })
        .take_while(move |(_, cell)| cell.head(EPOCH) == u64::from(epoch))
        // No chain is longer, unless somebody scribbled.
        .take(self.heap.cells())
    }

    /// The `limit` newest entries up to offset `last`, descending.
    fn newest(&self, first: Link, epoch: u32, last: u64, limit: usize) -> VecDeque<(Link, u64)> {
        self.chain(first, epoch)
            .map(|(link, cell)| (link, cell.head(OFFSET)))
            .skip_while(|(_, offset)| *offset > last)
            .take(limit)
            .collect()
    }

    /// The `limit` oldest entries after offset `since` up to the top, ascending.
    fn oldest(&self, first: Link, top: Top, since: u64, limit: usize) -> VecDeque<(Link, u64)> {
        let mut found = VecDeque::new();
        let entries = self
            .chain(first, top.epoch)
            .map(|(link, cell)| (link, cell.head(OFFSET)))
            .skip_while(|(_, offset)| *offset > top.offset)
            .take_while(|(_, offset)| *offset > since);
        for entry in entries {
            found.push_front(entry);
            found.truncate(limit);
        }
        found
    }

    fn payload(&self, link: Link, bytes_max: usize) -> Option<Vec<u8>> {
        let cell = self.heap.cell(link, KIND_ENTRY)?;
        if cell.payload_bytes(HEAD_WORDS) > bytes_max as u64 {
            return None;
        }
        self.heap.payload(&cell, HEAD_WORDS)
    }
}

fn is_run(offsets: &[u64]) -> bool {
    offsets
        .windows(2)
        .all(|pair| pair[0].checked_add(1) == Some(pair[1]))
}

/// The payloads of a channel's publications with offsets `since_offset + 1 ..= top.offset`,
/// ascending, from the store and, where that never had them, from the log; see
/// [`PublicationView::parse`].
///
/// `None`: they cannot be recovered, be it that some were let go, that they are more than
/// `count_max` or longer than `bytes_max` together (no more than that is read: who asks may be
/// anybody), or that `since_offset` lies beyond `top`. The caller has compared the epochs. While
/// the newest record is written but not committed, the log cannot tell what is in it: the caller
/// asks again (see [`LogView::tail`]).
#[must_use]
pub fn recover(
    log: &LogView,
    store: &HistoryStore,
    key: ChannelKey,
    since_offset: u64,
    top: Top,
    count_max: usize,
    bytes_max: usize,
) -> Option<Vec<Vec<u8>>> {
    let count = usize::try_from(top.offset.checked_sub(since_offset)?).ok()?;
    if count > count_max {
        return None;
    }
    if count == 0 {
        return Some(Vec::new());
    }
    let kept = store.read(key, top, Some(since_offset), count, false, bytes_max);
    match kept {
        Some(Stretch { payloads, complete }) if complete => Some(payloads),
        Some(Stretch { payloads, .. }) if !payloads.is_empty() => {
            joined(log, key, since_offset, top, payloads, bytes_max)
        }
        _ => from_log(log, key, since_offset, top, bytes_max),
    }
}

/// What the store has, behind what only the log has: the channel has kept its history for a shorter
/// time than the client was away.
fn joined(
    log: &LogView,
    key: ChannelKey,
    since_offset: u64,
    top: Top,
    kept: Vec<Vec<u8>>,
    bytes_max: usize,
) -> Option<Vec<Vec<u8>>> {
    let views = kept.iter().map(|payload| PublicationView::parse(payload));
    let views = views.collect::<Option<Vec<_>>>()?;
    let offsets: Vec<u64> = views.iter().map(|view| view.offset).collect();
    let (first, last) = (views.first()?, views.last()?);
    if last.offset != top.offset || !is_run(&offsets) {
        return None;
    }
    let before = Top {
        epoch: top.epoch,
        offset: first.offset - 1,
        last_position: first.previous,
    };
    let bytes = kept.iter().map(Vec::len).sum();
    let bytes_left = bytes_max.checked_sub(bytes)?;
    let mut payloads = from_log(log, key, since_offset, before, bytes_left)?;
    payloads.extend(kept);
    Some(payloads)
}

/// Follows the chain through the log, through publications that the store never had.
fn from_log(
    log: &LogView,
    key: ChannelKey,
    since_offset: u64,
    top: Top,
    bytes_max: usize,
) -> Option<Vec<Vec<u8>>> {
    let mut payloads = Vec::new();
    let (mut position, mut offset) = (top.last_position, top.offset);
    let mut bytes_left = bytes_max;
    while offset > since_offset {
        let mut payload = Vec::new();
        if log.read_at(position, &mut payload)? != RECORD_KIND {
            return None;
        }
        let publication = PublicationView::parse(&payload)?;
        let found = (publication.key, publication.epoch, publication.offset);
        if found != (key, top.epoch, offset) || publication.kept {
            return None;
        }
        bytes_left = bytes_left.checked_sub(payload.len())?;
        position = publication.previous;
        offset -= 1;
        payloads.push(payload);
    }
    payloads.reverse();
    Some(payloads)
}
