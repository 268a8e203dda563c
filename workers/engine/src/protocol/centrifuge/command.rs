//! What clients say: commands, several to a message.
//!
//! JSON ignores keys that it does not know, and takes `null` for the value that a field has when it
//! is left out. Protobuf does the like with its field numbers.

mod json;
mod protobuf;

use super::Encoding;
use crate::protocol::close::Close;

/// One command; its reply carries the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// 0 where no reply is wanted: [`Request::Pong`], [`Request::Send`].
    pub id: u32,
    pub request: Request,
}

impl Command {
    pub fn is_pong(&self) -> bool {
        matches!(self.request, Request::Pong)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The answer to our ping.
    Pong,
    Connect(ConnectRequest),
    Subscribe(SubscribeRequest),
    Unsubscribe {
        channel: String,
    },
    Publish {
        channel: String,
        data: Vec<u8>,
    },
    Presence {
        channel: String,
    },
    PresenceStats {
        channel: String,
    },
    History(HistoryRequest),
    Rpc {
        method: String,
        data: Vec<u8>,
    },
    Send {
        data: Vec<u8>,
    },
    Refresh {
        token: String,
    },
    SubRefresh {
        channel: String,
        token: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectRequest {
    pub token: String,
    /// The application's own; empty: none.
    pub data: Vec<u8>,
    /// By channel: what is known of server-side subscriptions of a connection before this one;
    /// unidirectional clients name here what they want.
    pub subs: Vec<SubscribeRequest>,
    /// Name and version of the client's application, for people.
    pub name: String,
    pub version: String,
    /// HTTP headers that a browser could not set.
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeRequest {
    pub channel: String,
    pub token: String,
    /// Where the client left off, if it wants what it missed.
    pub recover: Option<Since>,
    pub data: Vec<u8>,
    pub positioned: bool,
    pub recoverable: bool,
    pub join_leave: bool,
    /// The kind of delta that the client can apply: `fossil`, or empty.
    pub delta: String,
    /// It would rather have error 112 than a subscription that could not be recovered.
    pub rejects_unrecovered: bool,
    /// It wants a part of the publications only, by their tags.
    pub has_filter: bool,
    /// 0: a stream of publications; others are shared maps and polls.
    pub kind: i32,
}

/// A position in a channel's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// Of the last publication that was seen.
    pub offset: u64,
    /// As the gateway gave it; empty matches any.
    pub epoch: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryRequest {
    pub channel: String,
    /// Publications that are wanted: 0 for none but the position, negative for all there are.
    pub limit: i32,
    pub since: Option<Since>,
    /// From the newest to the oldest.
    pub reverse: bool,
}

/// What a client of a one-way stream says, by a request of its own: commands for the session that
/// the stream belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulationRequest {
    pub node: String,
    pub session: String,
    /// As [`parse_commands`] takes them.
    pub data: Vec<u8>,
}

/// Parse all commands of one message: in JSON objects with one newline between two, at most one
/// after the last; in Protobuf each after its length.
///
/// Anything else, no command at all, and commands that no client sends, are a `BadRequest`.
pub fn parse_commands(encoding: Encoding, message: &[u8]) -> Result<Vec<Command>, Close> {
    match encoding {
        Encoding::Json => json::commands(message),
        Encoding::Protobuf => protobuf::commands(message).ok(),
    }
    .filter(|commands| !commands.is_empty())
    .ok_or(Close::BadRequest)
}

/// Parse the body of a request to the emulation endpoint; `None`: it is none.
pub fn parse_emulation(encoding: Encoding, body: &[u8]) -> Option<EmulationRequest> {
    match encoding {
        Encoding::Json => json::emulation(body),
        Encoding::Protobuf => protobuf::emulation(body).ok(),
    }
}

/// Parse the connect request of a unidirectional client: a bare JSON object, without a command
/// around it. Anything else is a `BadRequest`.
pub fn parse_uni_connect(text: &[u8]) -> Result<ConnectRequest, Close> {
    json::connect(text).ok_or(Close::BadRequest)
}
