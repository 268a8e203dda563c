//! Server-sent events (WHATWG HTML §9.2), and event ids that hold a place in every channel.
//!
//! A browser that comes back says the id of the last event that it has seen whole. An id therefore
//! tells of all channels of the connection, so that each goes on where it was.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::protobuf::{put_varint, take_varint};

/// No id is longer: some 250 channels.
pub const ID_BYTES_MAX: usize = 4096;

/// The end of an id into which not all channels fit. No position is that short.
const MORE: u8 = 0xFF;

/// Where a client is that cannot be caught up: nothing comes after it.
const NOWHERE: (u32, u64) = (0, u64::MAX);

/// How a channel is told from the others of its connection.
const NAME_HASH_BYTES: usize = 6;

/// How far a connection has come in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    pub channel: &'a str,
    pub epoch: u32,
    pub offset: u64,
}

/// Append one event; `data` has no line breaks.
pub fn encode_event(out: &mut Vec<u8>, data: &[u8]) {
    debug_assert!(!data.contains(&b'\n') && !data.contains(&b'\r'));
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}

/// `event` with the id that holds `positions`: those of the connection as they are when this event
/// has been seen. Those that do not fit into `id_bytes_max` are left out, and cannot be recovered
/// when the client comes back: with other headers, the id has to fit into the head of that request.
pub fn with_id<'a>(
    event: &[u8],
    positions: impl Iterator<Item = Position<'a>>,
    id_bytes_max: usize,
) -> Vec<u8> {
    let list_bytes_max = id_bytes_max.min(ID_BYTES_MAX) / 4 * 3;
    let mut list = Vec::new();
    for position in positions {
        let before = list.len();
        list.extend_from_slice(&name_hash(position.channel));
        list.extend_from_slice(&position.epoch.to_le_bytes());
        put_varint(&mut list, position.offset);
        if list.len() >= list_bytes_max {
            list.truncate(before);
            list.push(MORE);
            break;
        }
    }
    let mut out = Vec::with_capacity(event.len() + list.len() * 4 / 3 + 8);
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(URL_SAFE_NO_PAD.encode(list).as_bytes());
    out.push(b'\n');
    out.extend_from_slice(event);
    out
}

/// FNV-1a (draft-eastlake-fnv), folded: the same in every process and version, and a client that
/// makes two of its own channels collide only confuses itself.
fn name_hash(channel: &str) -> [u8; NAME_HASH_BYTES] {
    let hash = channel.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3_u64)
    });
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    [a ^ g, b ^ h, c, d, e, f]
}

/// What a client brings back in the header `Last-Event-ID`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LastEventId {
    positions: Vec<([u8; NAME_HASH_BYTES], u32, u64)>,
    /// There were more channels than these.
    is_cut: bool,
}

impl LastEventId {
    /// `None`: it is no id of ours.
    pub fn parse(id: &[u8]) -> Option<Self> {
        if id.len() > ID_BYTES_MAX {
            return None;
        }
        let list = URL_SAFE_NO_PAD.decode(id).ok()?;
        let mut rest = list.as_slice();
        let mut positions = Vec::new();
        while !matches!(rest, [] | [MORE]) {
            let (&hash, after_hash) = rest.split_first_chunk()?;
            let (&epoch, after_epoch) = after_hash.split_first_chunk()?;
            rest = after_epoch;
            let offset = take_varint(&mut rest).ok()?;
            positions.push((hash, u32::from_le_bytes(epoch), offset));
        }
        Some(Self {
            positions,
            is_cut: rest == [MORE],
        })
    }

    /// Epoch and offset of the last publication of `channel` that the client has seen; if they are
    /// not known, some that nothing can be recovered from. `None`: the client was not there.
    pub fn position(&self, channel: &str) -> Option<(u32, u64)> {
        let wanted = name_hash(channel);
        let found = self.positions.iter().find(|(hash, ..)| *hash == wanted);
        match found {
            Some((_, epoch, offset)) => Some((*epoch, *offset)),
            None => self.is_cut.then_some(NOWHERE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(event: &[u8]) -> &str {
        let text = std::str::from_utf8(event).unwrap();
        text.strip_prefix("id: ").unwrap().lines().next().unwrap()
    }

    fn position(channel: &str, epoch: u32, offset: u64) -> Position<'_> {
        Position {
            channel,
            epoch,
            offset,
        }
    }

    proptest! {
        #[test]
        fn an_id_brings_back_every_position(
            channels in prop::collection::btree_map("[ -~]{1,40}", any::<(u32, u64)>(), 0..20),
        ) {
            let positions = channels.iter().map(|(channel, &(epoch, offset))| {
                position(channel, epoch, offset)
            });
            let event = with_id(b"data: {}\n\n", positions, ID_BYTES_MAX);
            let end = event.ends_with(b"\ndata: {}\n\n");
            prop_assert!(end);
            let read = LastEventId::parse(id(&event).as_bytes()).unwrap();
            for (channel, at) in &channels {
                prop_assert_eq!(read.position(channel), Some(*at));
            }
            prop_assert_eq!(read.position("not there"), None);
        }

        #[test]
        fn arbitrary_ids_never_panic(id in prop::collection::vec(any::<u8>(), 0..100)) {
            LastEventId::parse(&id);
            LastEventId::parse(URL_SAFE_NO_PAD.encode(&id).as_bytes());
        }
    }

    #[test]
    fn an_id_is_bounded_and_holds_what_fits() {
        let channels: Vec<String> = (0..1000).map(|n| format!("public:{n}")).collect();
        for (bytes_max, bound) in [(usize::MAX, ID_BYTES_MAX), (512, 512)] {
            let all = channels.iter().map(|channel| position(channel, 1, 100));
            let event = with_id(b"", all, bytes_max);
            let id = id(&event);
            assert!((bound - 24..=bound).contains(&id.len()));
            let read = LastEventId::parse(id.as_bytes()).unwrap();
            assert_eq!(read.position("public:0"), Some((1, 100)));
            assert_eq!(read.position("public:999"), Some(NOWHERE));
        }
        let longer = "A".repeat(ID_BYTES_MAX + 1);
        assert_eq!(LastEventId::parse(longer.as_bytes()), None);
    }

    #[test]
    fn an_id_means_the_same_in_every_version() {
        let event = with_id(b"", [position("public:a", 7, 300)].into_iter(), 99);
        // Clients bring it back after an upgrade.
        assert_eq!(id(&event), "zMopvaIrBwAAAKwC");
    }
}
