//! The conversation of the bidirectional WebSocket in JSON, as the public SDKs have it: connect and
//! all subscriptions at once, then pushes; pings are empty messages, and so are their answers.

use super::websocket::{publication, subscribed, take_frames};
use super::{Event, Failure, Moment, Position};
use crate::{centrifuge, websocket};

/// Of commands in one message: well below what servers take, 64 KiB.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Small, for there is one per connection: what is needed only until it is open stands apart.
pub struct Conversation {
    /// `None`: everything is granted.
    opening: Option<Box<Opening>>,
    answers_pings: bool,
}

struct Opening {
    /// What to say after the upgrade; empty once it is said.
    messages: Vec<String>,
    is_connected: bool,
    /// Channels that are not granted yet. The first is asked for by the command after the connect.
    requested: Vec<Option<Box<str>>>,
}

impl Conversation {
    /// Begins a conversation: appends the first bytes to send to `out`. An empty token is none.
    pub fn begin<'a>(
        host: &str,
        token: &str,
        subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
        out: &mut Vec<u8>,
    ) -> Conversation {
        let mut messages = vec![centrifuge::connect(token)];
        let mut requested = Vec::new();
        for (id, (channel, position)) in (centrifuge::CONNECT_ID + 1..).zip(subscriptions) {
            let command = centrifuge::subscribe(id, channel, position);
            match messages.last_mut() {
                Some(message) if message.len() + command.len() < MESSAGE_BYTES_MAX => {
                    message.push('\n');
                    message.push_str(&command);
                }
                _ => messages.push(command),
            }
            requested.push(Some(channel.into()));
        }
        out.extend(websocket::upgrade_request(host, "/connection/websocket"));
        Conversation {
            opening: Some(Box::new(Opening {
                messages,
                is_connected: false,
                requested,
            })),
            answers_pings: false,
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
        let mask = moment.random.to_ne_bytes();
        let mut head = 0;
        if let Some(opening) = &mut self.opening
            && !opening.messages.is_empty()
        {
            let Some(answer) = websocket::upgrade_answer(bytes)? else {
                return Ok(0);
            };
            head = answer;
            for message in std::mem::take(&mut opening.messages) {
                websocket::encode_from_client(out, websocket::TEXT, message.as_bytes(), mask);
            }
        }
        let mut pings = 0;
        let taken = take_frames(
            &bytes[head..],
            websocket::TEXT,
            moment,
            out,
            each,
            |text, each| {
                for line in text.split(|&byte| byte == b'\n') {
                    // The last line may have an end, too.
                    if !line.is_empty() {
                        pings += u32::from(self.reply(line, each)? == Kind::Ping);
                    }
                }
                Ok(())
            },
        )?;
        for _ in 0..pings {
            if self.answers_pings {
                websocket::encode_from_client(out, websocket::TEXT, centrifuge::PONG, mask);
            }
        }
        Ok(head + taken)
    }

    fn reply(&mut self, text: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<Kind, Failure> {
        let no_json = Failure::Protocol("a reply that is not JSON");
        let reply = centrifuge::reply(text).map_err(|_| no_json)?;
        if let Some(error) = reply.error {
            return Err(Failure::Denied(error.code));
        }
        if let Some(push) = reply.push {
            if let Some(published) = &push.publication {
                publication(&push.channel, published, false, each);
            } else if let Some(unsubscribed) = push.unsubscribe {
                return Err(Failure::Unsubscribed(unsubscribed.code));
            }
            return Ok(Kind::Message);
        }
        if reply.id == 0 {
            each(Event::Ping);
            return Ok(Kind::Ping);
        }
        let Some(opening) = &mut self.opening else {
            return Err(Failure::Protocol("an answer to no command"));
        };
        if reply.id == centrifuge::CONNECT_ID {
            let connected = reply.connect;
            let connected = connected.ok_or(Failure::Protocol("a connect without its result"))?;
            opening.is_connected = true;
            self.answers_pings = connected.pong;
        } else {
            let index = (reply.id - centrifuge::CONNECT_ID - 1) as usize;
            let channel = opening.requested.get_mut(index).and_then(Option::take);
            let (Some(channel), Some(granted)) = (channel, reply.subscribe) else {
                return Err(Failure::Protocol("an answer to no command"));
            };
            subscribed(&channel, &granted, each);
        }
        if opening.is_connected && opening.requested.iter().all(Option::is_none) {
            self.opening = None;
            each(Event::Opened);
        }
        Ok(Kind::Message)
    }
}

#[derive(PartialEq)]
enum Kind {
    Ping,
    Message,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Moment = Moment {
        now_ns: 0,
        random: 0,
    };
    const CONNECTED: &str = r#"{"id":1,"connect":{"client":"c","ping":25,"pong":true}}"#;
    const SUBSCRIBED: &str = concat!(
        r#"{"id":2,"subscribe":{"epoch":"e","offset":1,"recovered":true,"#,
        r#""publications":[{"data":{},"offset":2}]}}"#
    );

    /// The bytes of a server that upgrades and says these messages.
    fn server(messages: &[&str]) -> Vec<u8> {
        let accept = websocket::ACCEPT;
        let head = "HTTP/1.1 101 Switching Protocols";
        let mut bytes = format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes();
        for message in messages {
            websocket::encode_from_server(&mut bytes, websocket::TEXT, message.as_bytes());
        }
        bytes
    }

    fn begun() -> Conversation {
        Conversation::begin("host", "", [("a", None)].into_iter(), &mut Vec::new())
    }

    fn receive(
        conversation: &mut Conversation,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> (Result<usize, Failure>, Vec<String>) {
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        let result = conversation.receive(bytes, MOMENT, out, &mut each);
        (result, seen)
    }

    /// What a failing server's messages lead to.
    fn failure(message: &str) -> Failure {
        let bytes = server(&[CONNECTED, SUBSCRIBED, message]);
        let (result, _) = receive(&mut begun(), &bytes, &mut Vec::new());
        result.unwrap_err()
    }

    #[test]
    fn the_client_is_open_when_it_has_what_it_missed() {
        let bytes = server(&[&format!("{CONNECTED}\n{SUBSCRIBED}\n")]);
        let (result, seen) = receive(&mut begun(), &bytes, &mut Vec::new());
        assert_eq!(result, Ok(bytes.len()));
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
    fn all_commands_are_said_at_once_after_the_upgrade() {
        let mut out = Vec::new();
        let (_, seen) = receive(&mut begun(), &server(&[]), &mut out);
        assert!(seen.is_empty());
        let payload = String::from_utf8(out[out.len() - 120..].to_vec()).unwrap();
        assert!(payload.ends_with(r#""positioned":true}}"#), "{payload}");
        assert!(payload.contains("}}\n{\"id\":2,"), "{payload}");
        let many: Vec<String> = (0..500).map(|number| format!("channel-{number}")).collect();
        let subscriptions = many.iter().map(|name| (name.as_str(), None));
        let conversation = Conversation::begin("host", "", subscriptions, &mut Vec::new());
        let messages = conversation.opening.unwrap().messages;
        assert!(messages.len() > 1);
        assert!(messages.iter().all(|text| text.len() <= MESSAGE_BYTES_MAX));
        let commands: usize = messages.iter().map(|text| text.lines().count()).sum();
        assert_eq!(commands, 501);
    }

    #[test]
    fn a_ping_is_answered_by_an_empty_message_where_that_is_wanted() {
        let pong = [0x81, 0x82, 0, 0, 0, 0, b'{', b'}'];
        for (connected, answered) in [(CONNECTED, true), (r#"{"id":1,"connect":{}}"#, false)] {
            let mut out = Vec::new();
            let (_, seen) = receive(&mut begun(), &server(&[connected, "{}"]), &mut out);
            assert_eq!(
                (seen, out.ends_with(&pong)),
                (vec!["Ping".into()], answered)
            );
        }
    }

    #[test]
    fn what_ends_a_client_tells_its_code() {
        let denied = r#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#;
        let (result, _) = receive(&mut begun(), &server(&[CONNECTED, denied]), &mut Vec::new());
        assert_eq!(result, Err(Failure::Denied(103)));
        let push = r#"{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":""}}}"#;
        assert_eq!(failure(push), Failure::Unsubscribed(2500));
        for text in [SUBSCRIBED, r#"{"id":9,"subscribe":{}}"#, "no JSON"] {
            assert!(matches!(failure(text), Failure::Protocol(_)), "{text}");
        }
        let mut bytes = server(&[]);
        let close = 3503_u16.to_be_bytes();
        websocket::encode_from_server(&mut bytes, websocket::CLOSE, &close);
        let (result, _) = receive(&mut begun(), &bytes, &mut Vec::new());
        assert_eq!(result, Err(Failure::Closed(3503)));
    }
}
