//! History: what a channel published lately, read back from the log itself.
//!
//! Each publication names the position of its channel's previous one, so a channel's history is a
//! chain through the log that ends where the log has been overwritten. Any process can follow it.

use crate::channels::{ChannelKey, Top};
use crate::log::LogView;
use crate::publication::{PublicationView, RECORD_KIND};

/// The payloads of a channel's publications with offsets `since_offset + 1 ..= top.offset`,
/// ascending; see [`PublicationView::parse`].
///
/// `None`: they cannot be recovered, be it that some have left the log, that they are more than
/// `count_max` or longer than `bytes_max` together (no more than that is read: who asks may be
/// anybody), or that `since_offset` lies beyond `top`. The caller has compared the epochs.
#[must_use]
pub fn history(
    log: &LogView,
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
    let mut payloads = Vec::with_capacity(count);
    let (mut position, mut offset) = (top.last_position, top.offset);
    let mut bytes_left = bytes_max;
    while offset > since_offset {
        let mut payload = Vec::new();
        if log.read_at(position, &mut payload)? != RECORD_KIND {
            return None;
        }
        let publication = PublicationView::parse(&payload)?;
        let found = (publication.key, publication.epoch, publication.offset);
        if found != (key, top.epoch, offset) {
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
