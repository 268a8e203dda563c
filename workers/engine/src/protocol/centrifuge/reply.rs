//! What clients are told: replies to commands, and pushes.
//!
//! Here is what the messages are; `messages` says once, for both encodings, which fields they have,
//! and `writer` makes JSON or Protobuf of them.

mod messages;
mod writer;

use tidegate_ring::publication::PublicationView;

use super::Encoding;
use crate::protocol::close::Close;
use crate::protocol::protobuf::fields;
use messages::{write_info, write_push, write_reply};
use writer::{Json, Protobuf, Writer};

/// Fails with `InappropriateProtocol` if a value is not JSON and the encoding is.
type Written = Result<(), Close>;

#[derive(Debug)]
pub enum Reply<'a> {
    Error {
        code: u32,
        message: &'a str,
        /// The same command may succeed later.
        temporary: bool,
    },
    Connect(&'a ConnectResult<'a>),
    Subscribe(&'a SubscribeResult<'a>),
    Unsubscribe,
    Publish,
    Presence {
        /// Of each client a [`ClientInfo`], as [`ClientInfo::encode`] writes it.
        members: &'a [Vec<u8>],
    },
    PresenceStats {
        clients: u32,
        users: u32,
    },
    History {
        publications: &'a [Publication<'a>],
        epoch: &'a str,
        /// Top of the channel.
        offset: u64,
    },
    Rpc {
        data: &'a [u8],
    },
    Refresh {
        expires: bool,
        ttl: u32,
    },
    SubRefresh {
        expires: bool,
        ttl: u32,
    },
}

#[derive(Debug)]
pub enum Push<'a> {
    Publication(&'a Publication<'a>),
    /// Of [`ClientInfo`], as [`ClientInfo::encode`] writes it.
    Join(&'a [u8]),
    Leave(&'a [u8]),
    Unsubscribe {
        code: u32,
        reason: &'a str,
    },
    /// A server-side subscription was added.
    Subscribe {
        recoverable: bool,
        positioned: bool,
        epoch: &'a str,
        offset: u64,
        data: &'a [u8],
    },
    Message {
        data: &'a [u8],
    },
    /// The first push of a unidirectional connection. In JSON alone: in Protobuf, which we speak to
    /// no such client, its fields have other numbers than those of a reply.
    Connect(&'a ConnectResult<'a>),
    Disconnect {
        code: u32,
        reason: &'a str,
    },
    Refresh {
        expires: bool,
        ttl: u32,
    },
}

impl Push<'_> {
    /// How much it is, roughly: what room to make for it.
    pub fn bytes_about(&self) -> usize {
        const BESIDE_DATA: usize = 128;
        match self {
            Self::Publication(publication) => {
                let (Data::Plain(data) | Data::Whole(data) | Data::Delta(data)) = publication.data;
                BESIDE_DATA + data.len() + publication.info.len() + publication.tags.len()
            }
            Self::Join(info) | Self::Leave(info) => BESIDE_DATA + info.len(),
            Self::Subscribe { data, .. } | Self::Message { data } => BESIDE_DATA + data.len(),
            _ => BESIDE_DATA,
        }
    }
}

#[derive(Debug, Default)]
pub struct ConnectResult<'a> {
    pub client: &'a str,
    pub version: &'a str,
    /// Whether the client has to refresh within `ttl` seconds.
    pub expires: bool,
    pub ttl: u32,
    pub data: &'a [u8],
    /// Server-side subscriptions by channel.
    pub subs: &'a [(&'a str, SubscribeResult<'a>)],
    /// Seconds between the pings that follow; 0: there are none.
    pub ping: u32,
    /// Whether they are to be answered.
    pub pong: bool,
    /// What requests to the emulation endpoint name.
    pub session: &'a str,
    pub node: &'a str,
    /// ms since 1970; 0: not told.
    pub time: i64,
}

#[derive(Debug, Default)]
pub struct SubscribeResult<'a> {
    pub expires: bool,
    pub ttl: u32,
    pub recoverable: bool,
    pub epoch: &'a str,
    /// What was missed, ascending.
    pub publications: &'a [Publication<'a>],
    pub recovered: bool,
    /// Top of the channel or, if recovered, the offset that the client asked from.
    pub offset: u64,
    pub positioned: bool,
    pub data: &'a [u8],
    pub was_recovering: bool,
    /// Publications may come as deltas.
    pub delta: bool,
}

/// A publication's payload, in the form that its subscriber has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// As it was published.
    Plain(&'a [u8]),
    /// All of it, to a subscription with deltas: in JSON a string that holds the text.
    Whole(&'a [u8]),
    /// The difference to the publication before (see [`crate::protocol::delta`]).
    Delta(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication<'a> {
    pub data: Data<'a>,
    /// Whether the data, before it became a delta, is JSON text.
    pub json: bool,
    /// Of the client that published: [`ClientInfo::encode`] wrote it. Empty: the server did.
    pub info: &'a [u8],
    /// 0: it has no place in the channel's history.
    pub offset: u64,
    /// Text of a JSON object, or empty.
    pub tags: &'a [u8],
}

impl<'a> From<&PublicationView<'a>> for Publication<'a> {
    fn from(view: &PublicationView<'a>) -> Self {
        Self {
            data: Data::Plain(view.data),
            json: view.json,
            info: view.info,
            offset: view.offset,
            tags: view.tags,
        }
    }
}

/// Who a client is to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    pub user: &'a str,
    /// UUID of the connection.
    pub client: &'a str,
    /// JSON from the connection's token, and from the subscription's.
    pub conn_info: &'a [u8],
    pub chan_info: &'a [u8],
}

impl<'a> ClientInfo<'a> {
    /// In Protobuf, as publications and presence in shared memory carry it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let _: Written = write_info(&mut Protobuf::new(&mut out), self);
        out
    }

    /// What [`ClientInfo::encode`] wrote; `None`: it did not.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut info = Self::default();
        for field in fields(message) {
            match field.ok()? {
                (1, value) => info.user = value.text().ok()?,
                (2, value) => info.client = value.text().ok()?,
                (3, value) => info.conn_info = value.bytes().ok()?,
                (4, value) => info.chan_info = value.bytes().ok()?,
                _ => {}
            }
        }
        Some(info)
    }
}

/// Append the reply to command `id`, without framing.
pub fn encode_reply(out: &mut Vec<u8>, encoding: Encoding, id: u32, reply: &Reply<'_>) -> Written {
    match encoding {
        Encoding::Json => Json::object(out, |w| write_reply(w, id, reply)),
        Encoding::Protobuf => write_reply(&mut Protobuf::new(out), id, reply),
    }
}

/// Append a push, without framing; `channel` is empty where it concerns the connection.
pub fn encode_push(
    out: &mut Vec<u8>,
    encoding: Encoding,
    channel: &str,
    push: &Push<'_>,
) -> Written {
    const PUSH: u32 = 4;
    match encoding {
        Encoding::Json => Json::object(out, |w| {
            w.message(("push", PUSH), |w| write_push(w, channel, push))
        }),
        Encoding::Protobuf => {
            Protobuf::new(out).message(("push", PUSH), |w| write_push(w, channel, push))
        }
    }
}

/// Append a push as unidirectional clients get it: JSON, with no reply around it.
pub fn encode_uni_push(out: &mut Vec<u8>, channel: &str, push: &Push<'_>) -> Written {
    Json::object(out, |w| write_push(w, channel, push))
}
