//! The conversation of a browser's `EventSource` with the unidirectional endpoint: a request, then
//! events. What brings a client back to where it was is the id of the last event that it saw.

use super::websocket::push_events;
use super::{Event, Failure, Position};
use crate::{sse, uni};

const PATH: &str = "/connection/uni_sse";

/// Where a conversation is.
#[derive(Debug, PartialEq, Eq)]
pub enum Conversation {
    /// The request was sent.
    Asking,
    /// Events flow.
    Streaming,
}

impl Conversation {
    /// Begins a conversation: appends the first bytes to send to `out`. An empty token is none. An
    /// `EventSource` comes back to the address that it was made with: the connect request names no
    /// positions, and an id does where there is one.
    pub fn begin<'a>(
        host: &str,
        token: &str,
        subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
        last_event_id: &str,
        out: &mut Vec<u8>,
    ) -> Conversation {
        let subscriptions = subscriptions.map(|(channel, _)| (channel, None));
        let body = uni::connect_request(token, subscriptions);
        let query = uni::percent_encode(&body);
        out.extend(sse::request(host, PATH, &query, &body, last_event_id));
        Conversation::Asking
    }

    /// See [`super::Session::receive`].
    pub fn receive(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<usize, Failure> {
        let mut taken = 0;
        if *self == Conversation::Asking {
            let Some(head) = sse::answer(bytes)? else {
                return Ok(0);
            };
            taken = head;
            *self = Conversation::Streaming;
        }
        while let Some(event) = sse::event(&bytes[taken..])? {
            taken += event.bytes;
            if let Some(data) = event.data
                && let Some(code) = push_events(data, each)?
            {
                return Err(Failure::Closed(code));
            }
            if let Some(id) = event.id {
                each(Event::Id(id));
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n\r\n";

    fn receive(text: &str) -> (Result<usize, Failure>, Vec<String>) {
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        let result = Conversation::Asking.receive(text.as_bytes(), &mut each);
        (result, seen)
    }

    #[test]
    fn an_event_is_seen_before_its_id_is_the_one_to_come_back_with() {
        let connect = r#"{"connect":{"subs":{"a":{"epoch":"e","offset":1}},"ping":25}}"#;
        let publication = r#"{"channel":"a","pub":{"data":{"sent_ns":7},"offset":2}}"#;
        let text =
            format!("{HEAD}id: x\ndata: {connect}\n\nid: y\ndata: {publication}\n\ndata: {{}}\n\n");
        let (result, seen) = receive(&format!("{text}data: half"));
        assert_eq!(result, Ok(text.len()));
        assert_eq!(
            seen,
            [
                r#"Subscribed { channel: "a", epoch: "e", offset: 1, recovered: false }"#,
                "Opened",
                r#"Id("x")"#,
                r#"Publication { channel: "a", offset: 2, sent_ns: Some(7), recovered: false }"#,
                r#"Id("y")"#,
                "Ping"
            ]
        );
    }

    #[test]
    fn a_disconnect_push_is_the_end_with_its_code() {
        let push = r#"{"disconnect":{"code":3503,"reason":"force disconnect"}}"#;
        let (result, _) = receive(&format!("{HEAD}data: {push}\n\n"));
        assert_eq!(result, Err(Failure::Closed(3503)));
    }

    #[test]
    fn positions_are_not_named_where_an_id_does_it() {
        let position = Position {
            epoch: "e".into(),
            offset: 5,
        };
        let mut out = Vec::new();
        let subscriptions = [("a", Some(&position))].into_iter();
        Conversation::begin("host", "", subscriptions, "z", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            !text.contains("recover") && text.contains("Last-Event-ID: z"),
            "{text}"
        );
    }
}
