//! The conversation with NATS over its WebSocket port: the lines of its client protocol, in binary
//! frames: <https://docs.nats.io/reference/reference-protocols/nats-protocol>. The number that a
//! message has in its channel stands in its payload.

use super::nchan::publication;
use super::{Event, Failure, Moment, websocket::take_frames};
use crate::websocket;

/// The subscription's id: there is one.
const SID: u32 = 1;

pub struct Conversation {
    channel: Box<str>,
    phase: Phase,
    /// What came of a line or message that is not whole yet.
    pieces: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Upgrading,
    /// The subscription was sent, and a ping whose answer says that it is taken.
    Subscribing,
    /// CLOCK_MONOTONIC of that.
    Open {
        since_ns: u64,
    },
}

impl Conversation {
    /// Begins a conversation about one channel: appends the first bytes to send to `out`.
    pub fn begin(host: &str, channel: &str, out: &mut Vec<u8>) -> Conversation {
        out.extend(websocket::upgrade_request(host, "/"));
        Conversation {
            channel: channel.into(),
            phase: Phase::Upgrading,
            pieces: Vec::new(),
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
        if self.phase == Phase::Upgrading {
            let Some(answer) = websocket::upgrade_answer(bytes)? else {
                return Ok(0);
            };
            head = answer;
            self.phase = Phase::Subscribing;
            let options = r#"{"verbose":false,"pedantic":false}"#;
            let channel = &self.channel;
            let lines = format!("CONNECT {options}\r\nSUB {channel} {SID}\r\nPING\r\n");
            websocket::encode_from_client(out, websocket::BINARY, lines.as_bytes(), mask);
        }
        let mut pings = 0;
        let frames = &bytes[head..];
        let taken = take_frames(
            frames,
            websocket::BINARY,
            moment,
            out,
            each,
            |piece, each| {
                let mut pieces = std::mem::take(&mut self.pieces);
                pieces.extend_from_slice(piece);
                let mut taken = 0;
                while let Some((message, message_bytes)) = message(&pieces[taken..])? {
                    taken += message_bytes;
                    pings += u32::from(matches!(message, Message::Ping));
                    self.take(&message, moment, each)?;
                }
                pieces.drain(..taken);
                self.pieces = if pieces.is_empty() {
                    Vec::new()
                } else {
                    pieces
                };
                Ok(())
            },
        )?;
        for _ in 0..pings {
            websocket::encode_from_client(out, websocket::BINARY, b"PONG\r\n", mask);
        }
        Ok(head + taken)
    }

    fn take(
        &mut self,
        message: &Message<'_>,
        moment: Moment,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Failure> {
        match (message, self.phase) {
            (Message::Ping, _) => each(Event::Ping),
            (Message::Pong, Phase::Subscribing) => {
                let since_ns = moment.now_ns;
                self.phase = Phase::Open { since_ns };
                each(Event::Opened);
            }
            (Message::Published(payload), Phase::Open { since_ns }) => {
                publication(&self.channel, payload, since_ns, each)?;
            }
            // Nobody publishes to a client that is not open yet.
            (Message::Published(_) | Message::Pong | Message::Other, _) => {}
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
enum Message<'a> {
    Ping,
    Pong,
    /// A message of the one subscription: its payload.
    Published(&'a [u8]),
    Other,
}

/// The message at the beginning of `bytes` and its length, `None` while it is incomplete.
fn message(bytes: &[u8]) -> Result<Option<(Message<'_>, usize)>, Failure> {
    let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&bytes[..end]);
    let line = line.map_err(|_| Failure::Protocol("a line that is no UTF-8"))?;
    let rest = &bytes[end + 2..];
    let (word, arguments) = line.split_once(' ').unwrap_or((line, ""));
    let message = match word {
        "PING" => Message::Ping,
        "PONG" => Message::Pong,
        "MSG" => {
            // MSG <subject> <sid> [reply-to] <bytes>
            let length = arguments
                .rsplit(' ')
                .next()
                .and_then(|text| text.parse().ok());
            let length: usize = length.ok_or(Failure::Protocol("a message without length"))?;
            let Some(payload) = rest.get(..length).filter(|_| rest.len() >= length + 2) else {
                return Ok(None);
            };
            return Ok(Some((Message::Published(payload), end + 2 + length + 2)));
        }
        "-ERR" => return Err(Failure::Protocol("an error of the server")),
        _ => Message::Other,
    };
    Ok(Some((message, end + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Moment = Moment {
        now_ns: 50,
        random: 0,
    };

    fn server(pieces: &[&str]) -> Vec<u8> {
        let accept = websocket::ACCEPT;
        let head = "HTTP/1.1 101 Switching Protocols";
        let mut bytes = format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes();
        for piece in pieces {
            websocket::encode_from_server(&mut bytes, websocket::BINARY, piece.as_bytes());
        }
        bytes
    }

    fn receive(bytes: &[u8], out: &mut Vec<u8>) -> (Result<usize, Failure>, Vec<String>) {
        let mut conversation = Conversation::begin("host", "a", &mut Vec::new());
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        let result = conversation.receive(bytes, MOMENT, out, &mut each);
        (result, seen)
    }

    #[test]
    fn messages_are_put_together_whatever_the_frames_cut() {
        let (published, rest) = r#"{"number":4,"sent_ns":51}"#.split_at(7);
        let bytes = server(&[
            "INFO {}\r\n",
            "PON",
            &format!("G\r\nMSG a 1 25\r\n{published}"),
            &format!("{rest}\r\nPING\r\n"),
        ]);
        let mut out = Vec::new();
        let (result, seen) = receive(&bytes, &mut out);
        assert_eq!(result, Ok(bytes.len()));
        let publication =
            r#"Publication { channel: "a", offset: 4, sent_ns: Some(51), recovered: false }"#;
        assert_eq!(seen, ["Opened", publication, "Ping"]);
        assert!(out.ends_with(b"PONG\r\n"));
    }

    #[test]
    fn what_the_server_objects_to_is_a_failure() {
        for line in ["-ERR 'x'\r\n", "MSG a 1 many\r\n"] {
            let (result, _) = receive(&server(&[line]), &mut Vec::new());
            assert!(matches!(result, Err(Failure::Protocol(_))), "{line}");
        }
    }
}
