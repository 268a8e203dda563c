//! Presence: who is in a channel, across all workers.
//!
//! An entry of the table is the Protobuf of the ClientInfo, behind these words:
//!
//! ```text
//! next    link of the entry that came before it into the channel
//! owner   uplink << 32 | flags: who serves the connection
//! client  u64 x 2: its UUID
//! ```
//!
//! The channel's count word is clients << 32 | users, of those that are shown: one load tells them,
//! however many there are. New entries go to the front, so a walk misses nobody who is there all
//! the time; who comes or goes meanwhile is in the answer or not.

mod writer;

pub use writer::{Left, Member, PresenceWriter};

use std::collections::HashSet;

use crate::channels::ChannelKey;
use crate::error::SegmentError;
use crate::heap::{self, Heap, KIND_ENTRY, Link};
use crate::layout::{Kind, Owner};
use crate::region::Region;

pub use crate::heap::segment_bytes;

const NEXT: usize = 0;
const OWNER: usize = 1;
const CLIENT: usize = 2;
const HEAD_WORDS: usize = 4;

const FLAG_SHOWN: u64 = 1;
const FLAG_ANNOUNCE: u64 = 2;

/// A walk begins anew when the entry that it stands before goes just then. Even where thousands go
/// each second that is rare; after so many times the last walk has to do, as far as it got.
const WALKS_MAX: usize = 64;

/// Makes a zeroed region of [`segment_bytes`] bytes an empty presence table.
///
/// # Errors
/// As [`segment_bytes`]; also for a region of another size.
pub fn format(region: &Region, memory_bytes: u64, owner: Owner) -> Result<(), SegmentError> {
    heap::format(region, Kind::Presence, memory_bytes, owner)
}

/// The presence table as every process reads it.
#[derive(Clone, Debug)]
pub struct PresenceTable {
    heap: Heap,
}

impl PresenceTable {
    /// # Errors
    /// [`SegmentError`] where the region holds no presence table of this version.
    pub fn attach(region: Region) -> Result<Self, SegmentError> {
        let heap = Heap::attach(region, Kind::Presence)?;
        Ok(Self { heap })
    }

    /// How many clients and users are in a channel.
    #[must_use]
    pub fn stats(&self, key: ChannelKey) -> (u32, u32) {
        let count = self.heap.find(key).map_or(0, |found| found.count);
        ((count >> 32) as u32, count as u32)
    }

    /// The Protobuf of the ClientInfo of each client in a channel, of at most `max`; those who came
    /// last come first.
    #[must_use]
    pub fn members(&self, key: ChannelKey, max: usize) -> Vec<Vec<u8>> {
        let mut members = Vec::new();
        for _ in 0..WALKS_MAX {
            members.clear();
            if self.walk(key, max, &mut members) {
                break;
            }
        }
        members
    }

    /// False: it was overtaken.
    fn walk(&self, key: ChannelKey, max: usize, members: &mut Vec<Vec<u8>>) -> bool {
        let mut link = self.heap.find(key).map_or(Link::NONE, |found| found.first);
        // While an entry is replaced, the client has two.
        let mut seen = HashSet::new();
        let mut steps = self.heap.cells();
        while link != Link::NONE && members.len() < max && steps > 0 {
            let Some(cell) = self.heap.cell(link, KIND_ENTRY) else {
                return false;
            };
            let client = [cell.head(CLIENT), cell.head(CLIENT + 1)];
            if cell.head(OWNER) & FLAG_SHOWN != 0 && seen.insert(client) {
                let Some(info) = self.heap.payload(&cell, HEAD_WORDS) else {
                    return false;
                };
                members.push(info);
            }
            link = Link(cell.head(NEXT));
            steps -= 1;
        }
        true
    }
}

/// A client as the others see it: the fields 1 to 4 of the Protobuf ClientInfo, each empty where it
/// is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    pub user: &'a [u8],
    pub client: &'a [u8],
    /// JSON text, as `chan_info` is.
    pub conn_info: &'a [u8],
    pub chan_info: &'a [u8],
}

impl<'a> ClientInfo<'a> {
    /// Reads as far as it makes sense; fields that it does not know are passed over.
    #[must_use]
    pub fn parse(info: &'a [u8]) -> Self {
        let (mut found, mut rest) = (Self::default(), info);
        while let Some((number, field)) = next_field(&mut rest) {
            match number {
                1 => found.user = field,
                2 => found.client = field,
                3 => found.conn_info = field,
                4 => found.chan_info = field,
                _ => (),
            }
        }
        found
    }
}

/// The next field of a message, its number and its bytes: none where it is a number. `None`: the
/// end, or what cannot be read.
fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let tag = varint(rest)?;
    let field: &[u8] = match tag & 7 {
        0 => {
            varint(rest)?;
            b""
        }
        2 => {
            let bytes = usize::try_from(varint(rest)?).ok()?;
            let (field, after) = rest.split_at_checked(bytes)?;
            *rest = after;
            field
        }
        _ => return None,
    };
    Some((tag >> 3, field))
}

/// A base-128 number of at most ten bytes.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fields_are_found_wherever_they_stand() {
        let whole = ClientInfo::parse(b"\x12\x01c\x0a\x0242\x18\x05\x22\x02{}");
        let expected = ClientInfo {
            user: b"42",
            client: b"c",
            conn_info: b"",
            chan_info: b"{}",
        };
        assert_eq!(whole, expected);
        assert_eq!(
            ClientInfo::parse(b"\x0a\x0542"),
            ClientInfo::default(),
            "cut off"
        );
        assert_eq!(ClientInfo::parse(b""), ClientInfo::default());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(info in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = ClientInfo::parse(&info);
        }
    }
}
