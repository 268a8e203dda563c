//! What the records of the log mean: publications, and all else that the publisher puts in order.
//!
//! The payloads of kinds other than publications begin alike:
//!
//! ```text
//!  0 source position   u64            20 channel bytes     u8
//!  8 source generation u64            21 flags             u8
//! 16 source            u32            22 0                 u16
//! 24 UUID              16 bytes       client, or session of an emulation
//! 40 channel key       u64 x 2
//!    channel (UTF-8), then: ClientInfo (Protobuf); JSON text of an order; data of an emulation
//! ```
//!
//! Little-endian. The tables follow the log: whatever changes them is a record, so that a change
//! that a killed publisher had prepared can be made again by the next.

use crate::channels::ChannelKey;
use crate::log::{Audience, Topic};
use crate::publication::{PublicationView, RECORD_KIND, Source};

/// Kind of the records that tell subscribers of a join or a leave.
pub const EVENT_KIND: u32 = 2;
/// Kind of the records that carry orders for the workers.
pub const ORDER_KIND: u32 = 3;
/// Kind of the records that carry commands for the owner of a session.
pub const EMULATION_KIND: u32 = 4;
/// Kind of the records of joins and leaves that nobody is told of.
pub const PRESENCE_KIND: u32 = 5;
/// Kind of the records that tell of a history that was removed.
pub const REMOVAL_KIND: u32 = 6;

const HEAD_BYTES: usize = 56;

const FLAG_JOINED: u8 = 1;
const FLAG_PRESENCE: u8 = 2;
const FLAG_ANNOUNCE: u8 = 4;
const FLAG_PROTOBUF: u8 = 8;

/// A record of the log, by its kind. Workers heed the first four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    Publication(PublicationView<'a>),
    /// A join or leave that subscribers are to be told of.
    Event(EventView<'a>),
    Order(OrderView<'a>),
    Emulation(EmulationView<'a>),
    /// A join or leave that nobody is to be told of.
    Presence(EventView<'a>),
    /// What was published to a channel is forgotten.
    Removal(RemovalView<'a>),
}

/// A client came into a channel, moved to another owner, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventView<'a> {
    /// Its `uplink` is the owner of the client's connection.
    pub source: Source,
    pub key: ChannelKey,
    pub channel: &'a str,
    pub client: [u8; 16],
    pub joined: bool,
    /// Whether the presence table shows and counts the client.
    pub presence: bool,
    /// Whether subscribers are told when it goes.
    pub announce: bool,
    /// Protobuf of the ClientInfo.
    pub info: &'a [u8],
}

/// An order for all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderView<'a> {
    pub source: Source,
    /// JSON text.
    pub json: &'a [u8],
}

/// Commands that reached another worker than the owner of their session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulationView<'a> {
    pub source: Source,
    /// UUID.
    pub session: [u8; 16],
    /// Whether the commands are Protobuf; else they are JSON.
    pub protobuf: bool,
    pub data: &'a [u8],
}

/// What was published to a channel so far is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovalView<'a> {
    pub source: Source,
    pub key: ChannelKey,
    pub channel: &'a str,
}

impl From<ChannelKey> for Topic {
    fn from(key: ChannelKey) -> Self {
        Self::of(key.0[0])
    }
}

/// What the owner of a session is interested in: random UUIDs (RFC 9562, version 4) begin with
/// random bits.
#[must_use]
pub fn topic_of_session(session: &[u8; 16]) -> Topic {
    let [first, ..] = session.as_chunks::<8>().0 else {
        return Topic::of(0);
    };
    Topic::of(u64::from_be_bytes(*first))
}

impl<'a> Entry<'a> {
    /// Reads a record. `None` where it makes no sense: nothing of it may be believed.
    #[must_use]
    pub fn parse(kind: u32, payload: &'a [u8]) -> Option<Self> {
        if kind == RECORD_KIND {
            return PublicationView::parse(payload).map(Self::Publication);
        }
        let (head, rest) = payload.split_first_chunk::<HEAD_BYTES>()?;
        let flags = head[21];
        let has = |flag| flags & flag != 0;
        let (channel, body) = rest.split_at_checked(usize::from(head[20]))?;
        let channel = std::str::from_utf8(channel).ok()?;
        let source = Source {
            uplink: u32::from_le_bytes(part(head, 16)),
            generation: u64::from_le_bytes(part(head, 8)),
            position: u64::from_le_bytes(part(head, 0)),
        };
        let key = ChannelKey([40, 48].map(|at| u64::from_le_bytes(part(head, at))));
        let event = EventView {
            source,
            key,
            channel,
            client: part(head, 24),
            joined: has(FLAG_JOINED),
            presence: has(FLAG_PRESENCE),
            announce: has(FLAG_ANNOUNCE),
            info: body,
        };
        Some(match kind {
            EVENT_KIND => Self::Event(event),
            PRESENCE_KIND => Self::Presence(event),
            ORDER_KIND => Self::Order(OrderView { source, json: body }),
            EMULATION_KIND => Self::Emulation(EmulationView {
                source,
                session: part(head, 24),
                protobuf: has(FLAG_PROTOBUF),
                data: body,
            }),
            REMOVAL_KIND => Self::Removal(RemovalView {
                source,
                key,
                channel,
            }),
            _ => return None,
        })
    }

    /// Which request it came from.
    #[must_use]
    pub fn source(&self) -> Source {
        match self {
            Self::Publication(view) => view.source,
            Self::Event(view) | Self::Presence(view) => view.source,
            Self::Order(view) => view.source,
            Self::Emulation(view) => view.source,
            Self::Removal(view) => view.source,
        }
    }

    /// Which workers have to know of it at once.
    #[must_use]
    pub fn audience(&self) -> Audience {
        match self {
            Self::Publication(view) => Audience::Interested(view.key.into()),
            Self::Event(view) => Audience::Interested(view.key.into()),
            Self::Order(_) => Audience::Everybody,
            Self::Emulation(view) => Audience::Interested(topic_of_session(&view.session)),
            // The tables have followed already.
            Self::Presence(_) | Self::Removal(_) => Audience::Nobody,
        }
    }

    /// Kind of the record.
    #[must_use]
    pub fn kind(&self) -> u32 {
        match self {
            Self::Publication(_) => RECORD_KIND,
            Self::Event(_) => EVENT_KIND,
            Self::Order(_) => ORDER_KIND,
            Self::Emulation(_) => EMULATION_KIND,
            Self::Presence(_) => PRESENCE_KIND,
            Self::Removal(_) => REMOVAL_KIND,
        }
    }

    /// The record's payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        const NOBODY: [u8; 16] = [0; 16];
        const NOWHERE: ChannelKey = ChannelKey([0, 0]);
        let source = self.source();
        match self {
            Self::Publication(view) => view.encode(),
            Self::Event(view) | Self::Presence(view) => {
                let flags = u8::from(view.joined) * FLAG_JOINED
                    + u8::from(view.presence) * FLAG_PRESENCE
                    + u8::from(view.announce) * FLAG_ANNOUNCE;
                encode(
                    source,
                    flags,
                    view.client,
                    view.key,
                    view.channel,
                    view.info,
                )
            }
            Self::Order(view) => encode(source, 0, NOBODY, NOWHERE, "", view.json),
            Self::Emulation(view) => {
                let flags = u8::from(view.protobuf) * FLAG_PROTOBUF;
                encode(source, flags, view.session, NOWHERE, "", view.data)
            }
            Self::Removal(view) => encode(source, 0, NOBODY, view.key, view.channel, b""),
        }
    }
}

/// # Panics
/// Where the channel exceeds its bound: the caller has checked it.
fn encode(
    source: Source,
    flags: u8,
    uuid: [u8; 16],
    key: ChannelKey,
    channel: &str,
    body: &[u8],
) -> Vec<u8> {
    let channel_bytes = u8::try_from(channel.len()).expect("the channel is checked");
    let mut payload = Vec::with_capacity(HEAD_BYTES + channel.len() + body.len());
    payload.extend_from_slice(&source.position.to_le_bytes());
    payload.extend_from_slice(&source.generation.to_le_bytes());
    payload.extend_from_slice(&source.uplink.to_le_bytes());
    payload.extend_from_slice(&[channel_bytes, flags, 0, 0]);
    payload.extend_from_slice(&uuid);
    payload.extend_from_slice(&key.0[0].to_le_bytes());
    payload.extend_from_slice(&key.0[1].to_le_bytes());
    payload.extend_from_slice(channel.as_bytes());
    payload.extend_from_slice(body);
    payload
}

fn part<const BYTES: usize>(head: &[u8; HEAD_BYTES], at: usize) -> [u8; BYTES] {
    head[at..at + BYTES].try_into().expect("within the head")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOURCE: Source = Source {
        uplink: 3,
        generation: u64::MAX,
        position: 9,
    };

    proptest! {
        #[test]
        fn what_is_encoded_is_what_is_parsed(
            channel in "[a-z]{1,60}",
            body in prop::collection::vec(any::<u8>(), 0..500),
            uuid: [u8; 16],
            [joined, presence, announce, protobuf] in any::<[bool; 4]>(),
            key: [u64; 2],
        ) {
            let key = ChannelKey(key);
            let event = EventView {
                source: SOURCE,
                key,
                channel: &channel,
                client: uuid,
                joined,
                presence,
                announce,
                info: &body,
            };
            let emulation = EmulationView { source: SOURCE, session: uuid, protobuf, data: &body };
            for entry in [
                Entry::Event(event),
                Entry::Presence(event),
                Entry::Order(OrderView { source: SOURCE, json: &body }),
                Entry::Emulation(emulation),
                Entry::Removal(RemovalView { source: SOURCE, key, channel: &channel }),
            ] {
                let payload = entry.encode();
                prop_assert_eq!(Entry::parse(entry.kind(), &payload), Some(entry));
                prop_assert_eq!(entry.source(), SOURCE);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            kind in 0..9_u32,
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Entry::parse(kind, &payload);
        }
    }

    #[test]
    fn an_unknown_kind_means_nothing() {
        let order = Entry::Order(OrderView {
            source: SOURCE,
            json: b"{}",
        });
        assert_eq!(Entry::parse(0, &order.encode()), None);
        assert_eq!(Entry::parse(REMOVAL_KIND + 1, &order.encode()), None);
    }
}
