//! One client's conversation with a gateway: bytes in, events and answers out, no sockets.

use std::fmt;

use crate::plan::{Plan, Transport};
use crate::uni::{self, Position};
use crate::websocket;

/// A longer query might not fit a server's header limit: the first message carries it then.
const QUERY_BYTES_MAX: usize = 2 << 10;

/// Why a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The upgrade was answered with this HTTP status.
    Refused(u16),
    /// The server closed with this code.
    Closed(u16),
    /// The server broke its protocol.
    Protocol(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(status) => write!(formatter, "http {status}"),
            Failure::Closed(code) => write!(formatter, "{code}"),
            Failure::Protocol(what) => write!(formatter, "protocol: {what}"),
        }
    }
}

impl Failure {
    /// Whether a client may come back: the reconnect rule of the public protocol's codes.
    pub fn may_reconnect(self) -> bool {
        match self {
            Failure::Refused(status) => status == 503,
            Failure::Closed(code) => !matches!(code, 3500..=3999 | 4500..=4999),
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
}

/// The state of a conversation. Small, for there is one per connection.
#[derive(Debug)]
pub enum Session {
    /// The HTTP upgrade was sent; the connect request still to send, unless the query carried it.
    Upgrading(Option<Box<str>>),
    /// Frames flow.
    Streaming,
}

impl Session {
    /// Begins a conversation: appends the first bytes to send to `out`.
    pub fn begin<'a>(
        plan: &Plan,
        subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
        out: &mut Vec<u8>,
    ) -> Session {
        let Transport::Websocket = plan.transport;
        let request = uni::connect_request(subscriptions);
        let query = uni::percent_encode(&request);
        let mut path = String::from("/connection/uni_websocket");
        let by_query = query.len() <= QUERY_BYTES_MAX;
        if by_query {
            path.push_str("?cf_connect=");
            path.push_str(&query);
        }
        out.extend(websocket::upgrade_request(&plan.address.to_string(), &path));
        Session::Upgrading((!by_query).then(|| request.into()))
    }

    /// Takes what is complete at the beginning of `bytes` and says how much that was. Answers to
    /// send are appended to `out`, masked with `mask`.
    ///
    /// # Errors
    /// The conversation is over: send `out`, then close.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        mask: [u8; 4],
        out: &mut Vec<u8>,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, Failure> {
        let mut taken = 0;
        if let Session::Upgrading(request) = self {
            let Some(head) = websocket::upgrade_answer(bytes)? else {
                return Ok(0);
            };
            taken = head;
            if let Some(request) = request.take() {
                websocket::encode_from_client(out, websocket::TEXT, request.as_bytes(), mask);
            }
            *self = Session::Streaming;
        }
        while let Some(frame) = websocket::frame(&bytes[taken..])? {
            let payload = &bytes[taken..][frame.payload.clone()];
            taken += frame.payload.end;
            match frame.opcode {
                websocket::TEXT => push_events(payload, each)?,
                websocket::PING => {
                    websocket::encode_from_client(out, websocket::PONG, payload, mask);
                    each(Event::Ping);
                }
                websocket::PONG => {}
                websocket::CLOSE => {
                    // RFC 6455 §5.5.1: the answer usually echoes the code; 1005 stands for none.
                    let code = payload
                        .first_chunk()
                        .map_or(1005, |code| u16::from_be_bytes(*code));
                    let echoed = &payload[..payload.len().min(2)];
                    websocket::encode_from_client(out, websocket::CLOSE, echoed, mask);
                    return Err(Failure::Closed(code));
                }
                _ => return Err(Failure::Protocol("an opcode that the dialect does not use")),
            }
        }
        Ok(taken)
    }

    /// Appends what a client sends before it leaves.
    pub fn end(&self, mask: [u8; 4], out: &mut Vec<u8>) {
        if let Session::Streaming = self {
            websocket::encode_from_client(out, websocket::CLOSE, &1000_u16.to_be_bytes(), mask);
        }
    }
}

fn push_events(text: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<(), Failure> {
    let push = uni::push(text).map_err(|_| Failure::Protocol("a push that is not JSON"))?;
    if let Some(publication) = &push.publication {
        let sent_ns = uni::sent_ns(publication.data);
        let (channel, offset) = (&*push.channel, publication.offset);
        each(Event::Publication {
            channel,
            offset,
            sent_ns,
            recovered: false,
        });
    } else if let Some(connect) = &push.connect {
        for (channel, subscribed) in &connect.subs {
            let (epoch, offset, recovered) =
                (&*subscribed.epoch, subscribed.offset, subscribed.recovered);
            each(Event::Subscribed {
                channel,
                epoch,
                offset,
                recovered,
            });
            for publication in &subscribed.publications {
                let (offset, sent_ns) = (publication.offset, uni::sent_ns(publication.data));
                each(Event::Publication {
                    channel,
                    offset,
                    sent_ns,
                    recovered: true,
                });
            }
        }
        each(Event::Opened);
    } else if push.disconnect.is_none() {
        each(Event::Ping);
    }
    // A disconnect push says what the close frame behind it says again.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn answer() -> Vec<u8> {
        let accept = websocket::ACCEPT;
        format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into()
    }

    fn plan() -> Plan {
        Plan::parse(r#"{"address":"127.0.0.1:1","connections":1,"run_s_max":1}"#).unwrap()
    }

    fn events(session: &mut Session, bytes: &[u8], out: &mut Vec<u8>) -> Vec<String> {
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        assert_eq!(
            session.receive(bytes, MASK, out, &mut each),
            Ok(bytes.len())
        );
        seen
    }

    #[test]
    fn recovered_publications_come_after_their_subscription_and_before_opened() {
        let mut session = Session::begin(&plan(), [("a", None)].into_iter(), &mut Vec::new());
        let mut bytes = answer();
        let connect = br#"{"connect":{"subs":{"a":{"epoch":"e","offset":1,"recovered":true,
            "publications":[{"data":{},"offset":2}]}}}}"#;
        websocket::encode_from_server(&mut bytes, websocket::TEXT, connect);
        let seen = events(&mut session, &bytes, &mut Vec::new());
        assert_eq!(
            seen,
            [
                r#"Subscribed { channel: "a", epoch: "e", offset: 1, recovered: true }"#,
                r#"Publication { channel: "a", offset: 2, sent_ns: None, recovered: true }"#,
                "Opened"
            ]
        );
    }

    #[test]
    fn a_long_request_goes_in_the_first_message() {
        let names: Vec<String> = (0..500).map(|number| format!("channel-{number}")).collect();
        let mut out = Vec::new();
        let subscriptions = names.iter().map(|name| (name.as_str(), None));
        let mut session = Session::begin(&plan(), subscriptions, &mut out);
        assert!(!String::from_utf8(out).unwrap().contains("cf_connect"));
        let mut out = Vec::new();
        events(&mut session, &answer(), &mut out);
        assert_eq!(out[0], 0x80 | websocket::TEXT);
    }

    #[test]
    fn a_ping_is_answered_with_its_payload() {
        let mut bytes = Vec::new();
        websocket::encode_from_server(&mut bytes, websocket::PING, b"hi");
        let mut out = Vec::new();
        assert_eq!(events(&mut Session::Streaming, &bytes, &mut out), ["Ping"]);
        assert_eq!(out, [0x8A, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]);
    }

    #[test]
    fn a_close_is_echoed_and_its_code_decides_the_return() {
        for (code, returns) in [(3001_u16, true), (3500, false), (1006, true), (4501, false)] {
            let mut bytes = Vec::new();
            websocket::encode_from_server(&mut bytes, websocket::CLOSE, &code.to_be_bytes());
            let mut out = Vec::new();
            let result = Session::Streaming.receive(&bytes, MASK, &mut out, &mut |_| {});
            assert_eq!(result, Err(Failure::Closed(code)));
            assert_eq!(
                (out.len(), Failure::Closed(code).may_reconnect()),
                (8, returns)
            );
        }
    }
}
