//! The conversation of the unidirectional WebSocket: upgrade, connect request, pushes.

use super::{Event, Failure, Moment, Position, sent_ns};
use crate::{uni, websocket};

/// A longer query might not fit a server's header limit: the first message carries it then.
const QUERY_BYTES_MAX: usize = 2 << 10;

/// Where a conversation is.
#[derive(Debug)]
pub enum Conversation {
    /// The HTTP upgrade was sent; the connect request still to send, unless the query carried it.
    Upgrading(Option<Box<str>>),
    /// Frames flow.
    Streaming,
}

impl Conversation {
    /// Begins a conversation: appends the first bytes to send to `out`. An empty token is none.
    pub fn begin<'a>(
        host: &str,
        token: &str,
        subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
        out: &mut Vec<u8>,
    ) -> Conversation {
        let request = uni::connect_request(token, subscriptions);
        let query = uni::percent_encode(&request);
        let mut path = String::from("/connection/uni_websocket");
        let by_query = query.len() <= QUERY_BYTES_MAX;
        if by_query {
            path.push_str("?cf_connect=");
            path.push_str(&query);
        }
        out.extend(websocket::upgrade_request(host, &path));
        Conversation::Upgrading((!by_query).then(|| request.into()))
    }

    /// See [`super::Session::receive`].
    pub fn receive(
        &mut self,
        bytes: &[u8],
        moment: Moment,
        out: &mut Vec<u8>,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, Failure> {
        let mask = moment.random.to_ne_bytes();
        let mut taken = 0;
        if let Conversation::Upgrading(request) = self {
            let Some(head) = websocket::upgrade_answer(bytes)? else {
                return Ok(0);
            };
            taken = head;
            if let Some(request) = request.take() {
                websocket::encode_from_client(out, websocket::TEXT, request.as_bytes(), mask);
            }
            *self = Conversation::Streaming;
        }
        let frames = take_frames(
            &bytes[taken..],
            websocket::TEXT,
            moment,
            out,
            each,
            |text, each| {
                // A disconnect push says what the close frame behind it says again.
                push_events(text, each).map(drop)
            },
        )?;
        Ok(taken + frames)
    }
}

/// Takes the whole frames at the beginning of `bytes` and says how long they were: those of the
/// dialect's `opcode` go to `take`, with `each` for what they mean; pings and the close are
/// answered.
pub fn take_frames(
    bytes: &[u8],
    opcode: u8,
    moment: Moment,
    out: &mut Vec<u8>,
    each: &mut dyn FnMut(Event<'_>),
    mut take: impl FnMut(&[u8], &mut dyn FnMut(Event<'_>)) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mask = moment.random.to_ne_bytes();
    let mut taken = 0;
    while let Some(frame) = websocket::frame(&bytes[taken..])? {
        let payload = &bytes[taken..][frame.payload.clone()];
        taken += frame.payload.end;
        match frame.opcode {
            found if found == opcode => take(payload, each)?,
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

/// See [`super::Session::end`].
pub fn end(moment: Moment, out: &mut Vec<u8>) {
    let mask = moment.random.to_ne_bytes();
    websocket::encode_from_client(out, websocket::CLOSE, &1000_u16.to_be_bytes(), mask);
}

/// Says what a unidirectional push means; gives the code of one that is the end.
pub fn push_events(text: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<Option<u16>, Failure> {
    let push = uni::push(text).map_err(|_| Failure::Protocol("a push that is not JSON"))?;
    if let Some(published) = &push.publication {
        publication(&push.channel, published, false, each);
    } else if let Some(connect) = &push.connect {
        for (channel, granted) in &connect.subs {
            subscribed(channel, granted, each);
        }
        each(Event::Opened);
    } else if push.disconnect.is_none() {
        each(Event::Ping);
    }
    Ok(push.disconnect.map(|disconnect| disconnect.code))
}

/// Says how a subscription was granted, and then what was missed of it.
pub fn subscribed(channel: &str, granted: &uni::Subscribed<'_>, each: &mut dyn FnMut(Event<'_>)) {
    each(Event::Subscribed {
        channel,
        epoch: &granted.epoch,
        offset: granted.offset,
        recovered: granted.recovered,
    });
    for missed in &granted.publications {
        publication(channel, missed, true, each);
    }
}

pub fn publication(
    channel: &str,
    published: &uni::Publication<'_>,
    recovered: bool,
    each: &mut dyn FnMut(Event<'_>),
) {
    each(Event::Publication {
        channel,
        offset: published.offset,
        sent_ns: sent_ns(published.data.get().as_bytes()),
        recovered,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Moment = Moment {
        now_ns: 0,
        random: u32::from_ne_bytes([1, 2, 3, 4]),
    };

    fn answer() -> Vec<u8> {
        let accept = websocket::ACCEPT;
        format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into()
    }

    fn events(session: &mut Conversation, bytes: &[u8], out: &mut Vec<u8>) -> Vec<String> {
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        assert_eq!(
            session.receive(bytes, MOMENT, out, &mut each),
            Ok(bytes.len())
        );
        seen
    }

    #[test]
    fn recovered_publications_come_after_their_subscription_and_before_opened() {
        let mut session =
            Conversation::begin("host", "", [("a", None)].into_iter(), &mut Vec::new());
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
        let mut session = Conversation::begin("host", "", subscriptions, &mut out);
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
        assert_eq!(
            events(&mut Conversation::Streaming, &bytes, &mut out),
            ["Ping"]
        );
        assert_eq!(out, [0x8A, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]);
    }

    #[test]
    fn a_close_is_echoed() {
        let mut bytes = Vec::new();
        websocket::encode_from_server(&mut bytes, websocket::CLOSE, &3001_u16.to_be_bytes());
        let mut out = Vec::new();
        let result = Conversation::Streaming.receive(&bytes, MOMENT, &mut out, &mut |_| {});
        assert_eq!((result, out.len()), (Err(Failure::Closed(3001)), 8));
    }
}
