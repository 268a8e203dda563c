//! The conversation of nchan's WebSocket subscriber: upgrade, then a channel's messages as they
//! were published: <https://nchan.io/#websocket>. The number that a message has in its channel
//! stands in its payload.
//!
//! A client that comes back is given what nchan has kept, if `nchan_subscriber_first_message` is
//! `oldest`, and drops what it has. It does not name the last message it has (`last_event_id`):
//! up to nchan 1.3.6, an id that is kept no more crashes the worker.

use serde::Deserialize;

use super::{Event, Failure, Moment, websocket::take_frames};
use crate::{uni, websocket};

pub struct Conversation {
    channel: Box<str>,
    /// CLOCK_MONOTONIC of the answer to the upgrade, `None` until then.
    opened_ns: Option<u64>,
}

/// What the publisher puts into each payload.
#[derive(Deserialize)]
struct Stamp {
    /// Counts a channel's messages.
    number: u64,
    /// CLOCK_MONOTONIC of the host.
    sent_ns: u64,
}

impl Conversation {
    /// Begins a conversation about one channel: appends the first bytes to send to `out`.
    pub fn begin(host: &str, channel: &str, out: &mut Vec<u8>) -> Conversation {
        let path = format!("/subscribe/{}", uni::percent_encode(channel));
        out.extend(websocket::upgrade_request(host, &path));
        Conversation {
            channel: channel.into(),
            opened_ns: None,
        }
    }

    /// See [`super::Session::receive`].
    pub fn receive(
        &mut self,
        bytes: &[u8],
        moment: Moment,
        out: &mut Vec<u8>,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, Failure> {
        let (head, opened_ns) = match self.opened_ns {
            Some(opened_ns) => (0, opened_ns),
            None => {
                let Some(head) = websocket::upgrade_answer(bytes)? else {
                    return Ok(0);
                };
                self.opened_ns = Some(moment.now_ns);
                each(Event::Opened);
                (head, moment.now_ns)
            }
        };
        let channel = &*self.channel;
        let bytes = &bytes[head..];
        let frames = take_frames(bytes, websocket::TEXT, moment, out, each, |text, each| {
            publication(channel, text, opened_ns, each)
        })?;
        Ok(head + frames)
    }
}

/// Says what a message is whose place in its channel only the publisher knows.
pub fn publication(
    channel: &str,
    payload: &[u8],
    opened_ns: u64,
    each: &mut dyn FnMut(Event<'_>),
) -> Result<(), Failure> {
    let Stamp { number, sent_ns } = serde_json::from_slice(payload)
        .map_err(|_| Failure::Protocol("a payload without number and sent_ns"))?;
    each(Event::Publication {
        channel,
        offset: number,
        sent_ns: Some(sent_ns),
        recovered: sent_ns < opened_ns,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENED: Moment = Moment {
        now_ns: 50,
        random: 0,
    };

    fn answer_and(text: &str) -> Vec<u8> {
        let accept = websocket::ACCEPT;
        let head = "HTTP/1.1 101 Switching Protocols";
        let mut bytes = format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes();
        websocket::encode_from_server(&mut bytes, websocket::TEXT, text.as_bytes());
        bytes
    }

    #[test]
    fn a_channel_is_a_path() {
        let mut out = Vec::new();
        Conversation::begin("host", "public:a", &mut out);
        assert!(out.starts_with(b"GET /subscribe/public%3Aa HTTP/1.1\r\n"));
    }

    #[test]
    fn a_message_tells_its_number_and_whether_it_was_kept_for_the_client() {
        let mut conversation = Conversation::begin("host", "a", &mut Vec::new());
        let mut bytes = answer_and(r#"{"number":4,"sent_ns":49}"#);
        let live = br#"{"number":5,"sent_ns":51,"pad":"x"}"#;
        websocket::encode_from_server(&mut bytes, websocket::TEXT, live);
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        let taken = conversation.receive(&bytes, OPENED, &mut Vec::new(), &mut each);
        assert_eq!(taken, Ok(bytes.len()));
        assert_eq!(
            seen,
            [
                "Opened",
                r#"Publication { channel: "a", offset: 4, sent_ns: Some(49), recovered: true }"#,
                r#"Publication { channel: "a", offset: 5, sent_ns: Some(51), recovered: false }"#,
            ]
        );
    }

    #[test]
    fn a_message_without_its_number_is_a_failure() {
        for text in [r#"{"sent_ns":1}"#, "text"] {
            let mut conversation = Conversation::begin("host", "a", &mut Vec::new());
            let bytes = answer_and(text);
            let result = conversation.receive(&bytes, OPENED, &mut Vec::new(), &mut |_| {});
            assert!(matches!(result, Err(Failure::Protocol(_))), "{text}");
        }
    }
}
