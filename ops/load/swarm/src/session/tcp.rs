//! The conversation of the binary protocol: connect, subscribe, take DATA, acknowledge.

use super::{Event, Failure, Moment, Position, sent_ns};
use crate::tcp;

/// A message of 64 KiB with its tags, and some room for a gateway that allows more.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The protocol asks for an acknowledgement when half of the window is unacknowledged …
const UNACKED_BYTES_MAX: u32 = ((tcp::WINDOW_SIZE as u32) << tcp::WINDOW_SCALE) / 2;
/// … or this many frames are.
const UNACKED_FRAMES_MAX: u32 = 1024;
/// Until CONNECTED tells the interval: the protocol's default.
const HEARTBEAT_INTERVAL_NS: u64 = 30_000_000_000;

const MARKER_LAST: u8 = 0;
const MARKER_MORE: u8 = 1;

pub struct Conversation {
    /// Channels whose SUBSCRIBED is still to come, by request: the first one has number 1.
    requested: Vec<Option<Box<str>>>,
    granted: Vec<Grant>,
    /// Number of the last sequenced frame taken.
    received: u32,
    unacked_bytes: u32,
    unacked_frames: u32,
    /// Pieces of a message that is not whole yet.
    pieces: Vec<u8>,
    heartbeat_interval_ns: u64,
    sent_ns: u64,
}

/// What an alias stands for.
struct Grant {
    alias: u64,
    channel: Box<str>,
    /// Publications up to this offset are recovered ones.
    recovered_to: u64,
}

impl Conversation {
    /// See [`super::Session::begin`].
    pub fn begin<'a>(
        token: &str,
        subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
        moment: Moment,
        out: &mut Vec<u8>,
    ) -> Conversation {
        tcp::encode(out, tcp::CONNECT, 0, &tcp::connect(token));
        let mut requested = Vec::new();
        for (channel, position) in subscriptions {
            requested.push(Some(channel.into()));
            let request = requested.len() as u32;
            let payload = tcp::subscribe(request, channel, position);
            tcp::encode(out, tcp::SUBSCRIBE, 0, &payload);
        }
        Conversation {
            requested,
            granted: Vec::new(),
            received: 0,
            unacked_bytes: 0,
            unacked_frames: 0,
            pieces: Vec::new(),
            heartbeat_interval_ns: HEARTBEAT_INTERVAL_NS,
            sent_ns: moment.now_ns,
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
        let mut taken = 0;
        while let Some(frame) = tcp::frame(&bytes[taken..])? {
            taken += frame.bytes();
            self.take(&frame, out, each)?;
        }
        self.acknowledge(moment, out);
        Ok(taken)
    }

    fn take(
        &mut self,
        frame: &tcp::Frame<'_>,
        out: &mut Vec<u8>,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Failure> {
        let expected = self
            .received
            .wrapping_add(u32::from(frame.kind == tcp::DATA));
        if frame.seq != expected {
            return Err(Failure::Protocol("a sequence number that is not the next"));
        }
        match frame.kind {
            tcp::DATA => {
                self.received = expected;
                self.unacked_bytes += frame.bytes() as u32;
                self.unacked_frames += 1;
                self.data(frame.payload, each)
            }
            tcp::HEARTBEAT => {
                each(Event::Ping);
                Ok(())
            }
            tcp::CONNECTED => {
                let interval_ms = tcp::connected(frame.payload)?;
                self.heartbeat_interval_ns = interval_ms.saturating_mul(1_000_000);
                self.open_if_granted(each);
                Ok(())
            }
            tcp::SUBSCRIBED => self.subscribed(frame.payload, each),
            tcp::UNSUBSCRIBED => {
                let alias = tcp::unsubscribed(frame.payload)?;
                self.granted.retain(|grant| grant.alias != alias);
                Ok(())
            }
            tcp::ERROR => Err(Failure::Denied(tcp::error(frame.payload)?)),
            tcp::CLOSE => {
                let code = tcp::closed(frame.payload)?;
                tcp::encode(out, tcp::CLOSE, self.received, &tcp::close(code));
                Err(Failure::Closed(code))
            }
            // What else a server sends needs no answer: ACK, WINDOW_UPDATE, types to be skipped.
            _ => Ok(()),
        }
    }

    fn data(&mut self, payload: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<(), Failure> {
        let (marker, piece) = match payload {
            [marker @ (MARKER_LAST | MARKER_MORE), piece @ ..] if !piece.is_empty() => {
                (*marker, piece)
            }
            _ => return Err(Failure::Protocol("a piece without marker or bytes")),
        };
        if self.pieces.len() + piece.len() > MESSAGE_BYTES_MAX {
            return Err(Failure::Protocol("a message over the bound"));
        }
        if marker == MARKER_MORE {
            self.pieces.extend_from_slice(piece);
            return Ok(());
        }
        if self.pieces.is_empty() {
            return self.message(piece, each);
        }
        let mut message = std::mem::take(&mut self.pieces);
        message.extend_from_slice(piece);
        self.message(&message, each)
    }

    fn message(&self, bytes: &[u8], each: &mut dyn FnMut(Event<'_>)) -> Result<(), Failure> {
        let message = tcp::message(bytes)?;
        // An alias that is not held may still come in after UNSUBSCRIBED: it is ignored.
        if let Some(grant) = self
            .granted
            .iter()
            .find(|grant| grant.alias == message.alias)
        {
            each(Event::Publication {
                channel: &grant.channel,
                offset: message.offset,
                sent_ns: sent_ns(message.data),
                recovered: message.offset <= grant.recovered_to,
            });
        }
        Ok(())
    }

    fn subscribed(
        &mut self,
        payload: &[u8],
        each: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Failure> {
        let answer = tcp::subscribed(payload)?;
        let index = (answer.request as usize).wrapping_sub(1);
        let Some(channel) = self.requested.get_mut(index).and_then(Option::take) else {
            return Err(Failure::Protocol("an answer to no request"));
        };
        let tcp::Subscribed {
            recovered,
            alias,
            epoch,
            offset,
            ..
        } = answer;
        each(Event::Subscribed {
            channel: &channel,
            epoch,
            offset,
            recovered,
        });
        let recovered_to = if recovered { offset } else { 0 };
        self.granted.push(Grant {
            alias,
            channel,
            recovered_to,
        });
        self.open_if_granted(each);
        Ok(())
    }

    fn open_if_granted(&mut self, each: &mut dyn FnMut(Event<'_>)) {
        if self.requested.iter().all(Option::is_none) {
            self.requested = Vec::new();
            each(Event::Opened);
        }
    }

    /// Sends an ACK where one is due, and a HEARTBEAT where nothing was sent for the interval. To
    /// look whenever something comes in is enough: the server is never silent for longer.
    fn acknowledge(&mut self, moment: Moment, out: &mut Vec<u8>) {
        let due =
            self.unacked_bytes >= UNACKED_BYTES_MAX || self.unacked_frames >= UNACKED_FRAMES_MAX;
        let silent_ns = moment.now_ns.saturating_sub(self.sent_ns);
        if due || silent_ns >= self.heartbeat_interval_ns {
            let kind = if due { tcp::ACK } else { tcp::HEARTBEAT };
            tcp::encode(out, kind, self.received, &[]);
            self.unacked_bytes = 0;
            self.unacked_frames = 0;
            self.sent_ns = moment.now_ns;
        }
    }

    /// See [`super::Session::end`].
    pub fn end(&self, out: &mut Vec<u8>) {
        tcp::encode(out, tcp::CLOSE, self.received, &tcp::close(1000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment {
        now_ns: 0,
        random: 0,
    };

    /// A frame as the server sends it, number `seq`.
    fn server(kind: u8, seq: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        tcp::encode(&mut bytes, kind, 0, payload);
        bytes[7] = seq;
        bytes
    }

    /// A conversation about channel `a`, granted with alias 4 at offset 9 of epoch `e`.
    fn granted(flags: u8) -> (Conversation, Vec<String>) {
        let mut conversation =
            Conversation::begin("", [("a", None)].into_iter(), START, &mut Vec::new());
        let connected = server(tcp::CONNECTED, 0, &[0, 2, 10, 30, 100, 0, 0]);
        let mut bytes = connected;
        bytes.extend(server(tcp::SUBSCRIBED, 0, &[1, flags, 4, 1, b'e', 9]));
        let seen = events(&mut conversation, &bytes, START, &mut Vec::new());
        (conversation, seen)
    }

    fn events(
        conversation: &mut Conversation,
        bytes: &[u8],
        moment: Moment,
        out: &mut Vec<u8>,
    ) -> Vec<String> {
        let mut seen = Vec::new();
        let mut each = |event: Event<'_>| seen.push(format!("{event:?}"));
        assert_eq!(
            conversation.receive(bytes, moment, out, &mut each),
            Ok(bytes.len())
        );
        seen
    }

    #[test]
    fn the_client_is_open_when_all_its_subscriptions_are_granted() {
        let (_, seen) = granted(1);
        let subscribed = r#"Subscribed { channel: "a", epoch: "e", offset: 9, recovered: false }"#;
        assert_eq!(seen, [subscribed, "Opened"]);
    }

    #[test]
    fn recovered_publications_end_at_the_top() {
        let (mut conversation, _) = granted(3);
        let mut bytes = server(tcp::DATA, 1, &[0, 4, 9, 0, b'x']);
        bytes.extend(server(tcp::DATA, 2, &[0, 4, 10, 0, b'x']));
        let seen = events(&mut conversation, &bytes, START, &mut Vec::new());
        assert!(seen[0].ends_with("recovered: true }") && seen[1].ends_with("recovered: false }"));
    }

    #[test]
    fn a_fragmented_message_is_one_publication() {
        let (mut conversation, _) = granted(1);
        let mut bytes = server(tcp::DATA, 1, &[1, 4, 10]);
        bytes.extend(server(tcp::DATA, 2, &[0, 0, b'x']));
        assert_eq!(
            events(&mut conversation, &bytes, START, &mut Vec::new()).len(),
            1
        );
    }

    #[test]
    fn a_skipped_sequence_number_is_a_failure() {
        let (mut conversation, _) = granted(1);
        let bytes = server(tcp::DATA, 2, &[0, 4, 10, 0, b'x']);
        let result = conversation.receive(&bytes, START, &mut Vec::new(), &mut |_| {});
        assert!(matches!(result, Err(Failure::Protocol(_))));
    }

    #[test]
    fn half_a_window_is_acknowledged_at_once_and_little_with_the_heartbeat() {
        let (mut conversation, _) = granted(1);
        let mut big = vec![0, 4, 10, 0];
        big.resize(65_535, b'x');
        let mut out = Vec::new();
        events(
            &mut conversation,
            &server(tcp::DATA, 1, &big),
            START,
            &mut out,
        );
        assert_eq!((out[3], out[11]), (tcp::ACK, 1));
        let mut out = Vec::new();
        let small = server(tcp::DATA, 2, &[0, 4, 11, 0, b'x']);
        let later = Moment {
            now_ns: 10_000_000,
            random: 0,
        };
        events(&mut conversation, &small, later, &mut out);
        assert_eq!((out[3], out[11]), (tcp::HEARTBEAT, 2));
    }

    #[test]
    fn a_refused_subscription_tells_its_code() {
        let (mut conversation, _) = granted(1);
        let bytes = server(tcp::ERROR, 0, &[2, 103, 0, 0]);
        let result = conversation.receive(&bytes, START, &mut Vec::new(), &mut |_| {});
        assert_eq!(result, Err(Failure::Denied(103)));
    }
}
