//! One client's conversation with a gateway: bytes in, events and answers out, no sockets.

mod centrifuge;
mod nats;
mod nchan;
mod sse;
mod tcp;
mod websocket;

use std::fmt;

use serde::Deserialize;

use crate::plan::{Plan, Transport};

/// Where a subscriber stands in a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub epoch: Box<str>,
    pub offset: u64,
}

/// What a conversation needs to know of the world at each step.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// CLOCK_MONOTONIC.
    pub now_ns: u64,
    /// For the masks of WebSocket frames.
    pub random: u32,
}

/// Why a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The upgrade was answered with this HTTP status.
    Refused(u16),
    /// The connect request or a subscription was answered with this error code.
    Denied(u16),
    /// The server ended a subscription with this code. A client that is to have it again connects
    /// anew, in every dialect alike.
    Unsubscribed(u16),
    /// The server closed with this code.
    Closed(u16),
    /// The server broke its protocol.
    Protocol(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(status) => write!(formatter, "http {status}"),
            Failure::Denied(code) => write!(formatter, "error {code}"),
            Failure::Unsubscribed(code) => write!(formatter, "unsubscribed {code}"),
            Failure::Closed(code) => write!(formatter, "{code}"),
            Failure::Protocol(what) => write!(formatter, "protocol: {what}"),
        }
    }
}

impl Failure {
    /// Whether a client may come back: the reconnect rule of the public protocol's codes. An error
    /// may be temporary, or say that another token is wanted.
    pub fn may_reconnect(self) -> bool {
        match self {
            Failure::Refused(status) => status == 503,
            Failure::Closed(code) => !matches!(code, 3500..=3999 | 4500..=4999),
            Failure::Denied(code) => matches!(code, 100 | 109 | 111 | 113),
            Failure::Unsubscribed(code) => code >= 2500,
            Failure::Protocol(_) => false,
        }
    }
}

/// What the server told the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The connect request was granted; `Subscribed` for each channel has come before.
    Opened,
    /// `offset` is the channel's top, or the one asked for where `recovered`. An empty epoch: the
    /// channel keeps no history.
    Subscribed {
        channel: &'a str,
        epoch: &'a str,
        offset: u64,
        recovered: bool,
    },
    /// `offset` 0: the channel keeps no history. `sent_ns`: the publisher's stamp, if there is one.
    Publication {
        channel: &'a str,
        offset: u64,
        sent_ns: Option<u64>,
        recovered: bool,
    },
    Ping,
    /// All that was told until here has this id: what a client brings back with it.
    Id(&'a str),
}

/// What a client says of itself when it connects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Introduction<'a> {
    /// Empty: none.
    pub token: &'a str,
    /// The last one that it was given, in whatever connection; empty: none.
    pub id: &'a str,
}

/// A conversation in one of the dialects. Small, for there is one per connection.
pub enum Session {
    Websocket(websocket::Conversation),
    Centrifuge(centrifuge::Conversation),
    Sse(sse::Conversation),
    Tcp(Box<tcp::Conversation>),
    Nchan(nchan::Conversation),
    Nats(Box<nats::Conversation>),
}

impl Session {
    /// Begins a conversation: appends the first bytes to send to `out`.
    pub fn begin<'a>(
        plan: &Plan,
        introduction: Introduction<'_>,
        subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
        moment: Moment,
        out: &mut Vec<u8>,
    ) -> Session {
        let Introduction { token, id } = introduction;
        let host = plan.address.to_string();
        match plan.transport {
            Transport::Websocket => {
                let conversation = websocket::Conversation::begin(&host, token, subscriptions, out);
                Session::Websocket(conversation)
            }
            Transport::Centrifuge => {
                let conversation =
                    centrifuge::Conversation::begin(&host, token, subscriptions, out);
                Session::Centrifuge(conversation)
            }
            Transport::Sse => {
                let conversation = sse::Conversation::begin(&host, token, subscriptions, id, out);
                Session::Sse(conversation)
            }
            Transport::Tcp => {
                let conversation = tcp::Conversation::begin(token, subscriptions, moment, out);
                Session::Tcp(Box::new(conversation))
            }
            Transport::Nchan => {
                let channel = only_channel(subscriptions);
                Session::Nchan(nchan::Conversation::begin(&host, channel, out))
            }
            Transport::Nats => {
                let channel = only_channel(subscriptions);
                Session::Nats(Box::new(nats::Conversation::begin(&host, channel, out)))
            }
        }
    }

    /// Takes what is complete at the beginning of `bytes` and says how much that was. Answers to
    /// send are appended to `out`.
    ///
    /// # Errors
    /// The conversation is over: send `out`, then close.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        moment: Moment,
        out: &mut Vec<u8>,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, Failure> {
        match self {
            Session::Websocket(conversation) => conversation.receive(bytes, moment, out, each),
            Session::Centrifuge(conversation) => conversation.receive(bytes, moment, out, each),
            Session::Sse(conversation) => conversation.receive(bytes, each),
            Session::Tcp(conversation) => conversation.receive(bytes, moment, out, each),
            Session::Nchan(conversation) => conversation.receive(bytes, moment, out, each),
            Session::Nats(conversation) => conversation.receive(bytes, moment, out, each),
        }
    }

    /// Appends what a client that is open sends before it leaves.
    pub fn end(&self, moment: Moment, out: &mut Vec<u8>) {
        match self {
            Session::Sse(_) => {} // It listens, and then it does not.
            Session::Tcp(conversation) => conversation.end(out),
            _ => websocket::end(moment, out),
        }
    }
}

/// Of a client of a server that has one for each: the plan allows no more.
fn only_channel<'a>(
    subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
) -> &'a str {
    let (channel, _) = subscriptions
        .last()
        .expect("a client has a channel, whatever the pattern");
    channel
}

/// The publisher's `sent_ns` in a payload: CLOCK_MONOTONIC of the host, if it is there.
fn sent_ns(data: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Stamp {
        sent_ns: u64,
    }
    // serde would take an array's first element for the first field.
    let object = Some(data).filter(|text| text.starts_with(b"{"))?;
    serde_json::from_slice::<Stamp>(object)
        .ok()
        .map(|stamp| stamp.sent_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_without_a_stamp_is_undated() {
        for data in [r#""text""#, "7", r#"{"other":1}"#, "[1]", "", "binary"] {
            assert_eq!(sent_ns(data.as_bytes()), None, "{data}");
        }
        assert_eq!(sent_ns(br#"{"pad":"x","sent_ns":7}"#), Some(7));
    }

    #[test]
    fn the_code_decides_whether_a_client_returns() {
        for (code, returns) in [(1006, true), (3001, true), (3500, false), (4501, false)] {
            assert_eq!(Failure::Closed(code).may_reconnect(), returns, "{code}");
        }
        for (code, returns) in [(100, true), (103, false), (109, true)] {
            assert_eq!(Failure::Denied(code).may_reconnect(), returns, "{code}");
        }
        for (code, returns) in [(2000, false), (2500, true)] {
            let failure = Failure::Unsubscribed(code);
            assert_eq!(failure.may_reconnect(), returns, "{code}");
        }
    }
}
