//! All that is kept of one client. Whatever a connection needs to go on in another process is in
//! [`Connection`], and nowhere else: what the hub and the wheel hold can be rebuilt from it.

use std::num::NonZero;
use std::os::fd::OwnedFd;

use tidegate_ring::host;

use crate::client::{Client, Standing};
use crate::hub::Subscription;
use crate::outbox::Outbox;
use crate::protocol::format::Format;
use crate::protocol::tcp::{Flow, Reassembly, SERVER_WINDOW};
use crate::protocol::websocket::Inbound;
use crate::sending::{Buffers, Offer};
use crate::slab;
use crate::wheel::Tick;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Has not said yet what it wants: no whole HTTP request, or no connect message.
    Connecting,
    Open,
    /// Its end is decided, counted and on its way to the client; the peer may take
    /// `close_timeout_s` to answer.
    Closing,
}

/// What the connection speaks, with the state of its parser.
pub enum Dialect {
    /// Until the upgrade, the head of a stream, or a refusal in HTTP.
    Http,
    WebSocket(Inbound),
    /// A response in HTTP that does not end; what the client says here does not matter any more.
    Stream,
    Tcp(Box<Tcp>),
}

/// The binary protocol's part of a connection.
pub struct Tcp {
    pub flow: Flow,
    pub reassembly: Reassembly,
    /// Whole frames, numbered, that the socket did not take yet (the first perhaps in part).
    /// Publications wait in the outbox, unframed, until window and socket have room.
    pub wire: Vec<u8>,
    /// Publishes whose answer is outstanding.
    pub publishes: u32,
}

/// Subscriptions of one connection: most have one.
#[derive(Default)]
pub enum Subscriptions {
    #[default]
    None,
    One(Subscription),
    Many(Box<Vec<Subscription>>),
}

/// Facts about a connection that are either true or not.
#[derive(Default, Clone, Copy)]
pub struct Flags(u16);

impl Flags {
    /// In the list of connections to flush at the end of this turn.
    pub const TO_FLUSH: u16 = 1;
    /// In the list of connections that have more to read than one turn gives them.
    pub const TO_READ: u16 = 1 << 1;
    /// The socket takes no more: epoll will say when it does.
    pub const BLOCKED: u16 = 1 << 2;
    /// Pinged, and not heard of since.
    pub const PINGED: u16 = 1 << 3;
    /// Nothing that the peer says matters any more: to be read and forgotten until it hangs up,
    /// so that unread bytes do not make the kernel reset the connection under our last words.
    pub const DEAF: u16 = 1 << 4;
    /// To be hung up on as soon as the outbox is empty: both sides have said goodbye.
    pub const HANG_UP: u16 = 1 << 5;
    /// Over `connections_max`, and only kept to be told so.
    pub const REFUSED: u16 = 1 << 6;
    /// The peer sends no more: what is left is to be read to its end.
    pub const ENDED: u16 = 1 << 7;
    /// Not read from: it waits for an answer of the publisher, to be handed over then.
    pub const HELD: u16 = 1 << 8;
    /// Not read from: what it said last waits for the application, or for the publisher.
    pub const WAITING: u16 = 1 << 9;
    /// Its connect was answered with an error: nothing else is taken from it.
    pub const TURNED_AWAY: u16 = 1 << 10;
    /// In the directory.
    pub const LISTED: u16 = 1 << 11;
    /// Pinged by frames of the WebSocket protocol, which libraries answer by themselves.
    pub const NATIVE_PINGS: u16 = 1 << 12;
    /// The keep is behind with it: in the list of those, or in that of those to be flushed.
    pub const UNKEPT: u16 = 1 << 13;
    /// More than the queue has changed since it was put down in the keep.
    pub const CHANGED: u16 = 1 << 14;
    /// In the list of connections whose frames wait, and must not be overwritten in the keep.
    pub const LINGERING: u16 = 1 << 15;

    pub fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    pub fn set(&mut self, flag: u16, on: bool) {
        if on { self.0 |= flag } else { self.0 &= !flag }
    }

    /// Sets `flag`; whether it was unset before.
    pub fn raise(&mut self, flag: u16) -> bool {
        let news = !self.has(flag);
        self.0 |= flag;
        news
    }
}

pub struct Connection {
    pub socket: OwnedFd,
    pub phase: Phase,
    /// What publications look like here.
    pub format: Format,
    pub flags: Flags,
    /// When the next ping or heartbeat is to be sent.
    pub probe_due: Tick,
    /// Time between two of them, as the client was told when the connection opened.
    pub probe_interval: Tick,
    /// How long the peer may owe a pong, or be silent where both sides send heartbeats; as told.
    pub silence_max: Tick,
    /// When the peer was last heard of.
    pub heard: Tick,
    /// Since when the queue is over the soft limit. No clock shows 0 any more when it is read.
    pub soft_since: Option<NonZero<Tick>>,
    pub outbox: Outbox,
    pub dialect: Dialect,
    pub subscriptions: Subscriptions,
    /// Start of a request, frame or message whose end has not arrived; not allocated when there is
    /// none.
    pub input: Option<Box<Vec<u8>>>,
    /// None: an anonymous one that takes all as it comes.
    pub identity: Option<Box<Client>>,
    /// UUID that the client and its logs know the connection by; drawn when it asks to connect.
    pub client: [u8; 16],
    /// When it was accepted, by this process or one before it, ms since 1970.
    pub connected_ms: u64,
    pub kept: Kept,
}

/// How the keep knows a connection, and what of it the kernel counts too: modulo 2^32, for only
/// differences matter.
#[derive(Clone, Copy, Default)]
pub struct Kept {
    pub slot: Option<Slot>,
    /// Bytes that the kernel took from us.
    pub sent_bytes: u32,
    /// Bytes that it gave us.
    pub received_bytes: u32,
}

impl Kept {
    pub fn count_sent(&mut self, bytes: usize) {
        self.sent_bytes = self.sent_bytes.wrapping_add(bytes as u32);
    }
}

/// A slot of the keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(NonZero<u32>);

impl Slot {
    pub fn new(number: u32) -> Self {
        Self(NonZero::<u32>::MIN.saturating_add(number))
    }

    pub fn number(self) -> u32 {
        self.0.get() - 1
    }
}

// A million of these are kept: what is added here is added a million times.
const _: () = assert!(size_of::<Connection>() <= 136);
const _: () = assert!(slab::entry_bytes::<Connection>() <= 144);
const _: () = assert!(size_of::<Tcp>() <= 120);

impl Connection {
    pub fn new(socket: OwnedFd, dialect: Dialect, now: Tick) -> Self {
        let format = match dialect {
            Dialect::Tcp(_) => Format::Tcp,
            _ => Format::UniWebSocket,
        };
        Self {
            socket,
            phase: Phase::Connecting,
            format,
            flags: Flags::default(),
            probe_due: 0,
            probe_interval: 0,
            silence_max: 0,
            heard: now,
            soft_since: None,
            outbox: Outbox::default(),
            dialect,
            subscriptions: Subscriptions::None,
            input: None,
            identity: None,
            client: [0; 16],
            connected_ms: host::wall_clock_ms(),
            kept: Kept::default(),
        }
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.dialect, Dialect::Tcp(_))
    }

    /// How it stands in the channel at `place` of its subscriptions; `None`: as all that are
    /// anonymous do.
    pub fn standing(&self, place: usize) -> Option<&Standing> {
        self.identity.as_ref()?.standings.get(place)
    }

    pub fn standing_mut(&mut self, place: usize) -> Option<&mut Standing> {
        self.identity.as_mut()?.standings.get_mut(place)
    }

    /// Empty: anonymous.
    pub fn user(&self) -> &str {
        self.identity.as_ref().map_or("", |client| &client.user)
    }

    /// Requests that the publisher has not answered.
    pub fn unanswered(&self) -> u32 {
        match (&self.dialect, &self.identity) {
            (Dialect::Tcp(tcp), _) => tcp.publishes,
            (_, Some(client)) => client.unanswered,
            _ => 0,
        }
    }

    /// The publisher owes it one answer more.
    pub fn answer_awaited(&mut self) {
        match (&mut self.dialect, &mut self.identity) {
            (Dialect::Tcp(tcp), _) => tcp.publishes += 1,
            (_, Some(client)) => client.unanswered += 1,
            _ => {}
        }
    }

    pub fn answer_came(&mut self) {
        match (&mut self.dialect, &mut self.identity) {
            (Dialect::Tcp(tcp), _) => tcp.publishes -= 1,
            (_, Some(client)) => client.unanswered -= 1,
            _ => {}
        }
    }

    /// Bytes that wait to be sent, overhead included; what the queue's bounds are held against.
    #[inline]
    pub fn queued_bytes(&self) -> usize {
        match &self.dialect {
            Dialect::Tcp(tcp) => self.outbox.queued_bytes() + tcp.wire.len(),
            _ => self.outbox.queued_bytes(),
        }
    }
}

impl Connection {
    /// What is to be sent next.
    pub fn offer(&self) -> Offer<'_> {
        match &self.dialect {
            Dialect::Tcp(tcp) => Offer::new(&tcp.wire, None),
            _ => self.outbox.offer(),
        }
    }

    /// Counts `bytes` of what was offered as sent.
    pub(crate) fn advance(&mut self, bytes: usize, buffers: &mut Buffers) {
        match &mut self.dialect {
            Dialect::Tcp(tcp) => tcp.advance(bytes, buffers),
            _ => self.outbox.advance(bytes),
        }
    }

    /// Whether there is more to send than was offered.
    pub fn has_more(&self) -> bool {
        match &self.dialect {
            Dialect::Tcp(tcp) => tcp.has_more(&self.outbox),
            _ => !self.outbox.is_empty(),
        }
    }
}

impl Dialect {
    pub fn tcp() -> Self {
        Self::Tcp(Box::new(Tcp {
            flow: Flow::new(SERVER_WINDOW),
            reassembly: Reassembly::default(),
            wire: Vec::new(),
            publishes: 0,
        }))
    }
}

impl Subscriptions {
    pub fn as_slice(&self) -> &[Subscription] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Subscription] {
        match self {
            Self::None => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => many,
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub fn push(&mut self, subscription: Subscription) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(subscription),
            Self::One(one) => Self::Many(Box::new(vec![one, subscription])),
            Self::Many(mut many) => {
                many.push(subscription);
                Self::Many(many)
            }
        };
    }

    /// Takes out the one at `place`; the last one takes its place.
    pub fn swap_remove(&mut self, place: usize) -> Subscription {
        match std::mem::take(self) {
            Self::None => panic!("no subscription at {place}"),
            Self::One(one) => one,
            Self::Many(mut many) => {
                let removed = many.swap_remove(place);
                *self = if let [one] = **many {
                    Self::One(one)
                } else {
                    Self::Many(many)
                };
                removed
            }
        }
    }
}

/// A UUID of version 4 (RFC 9562 §5.4) made of random bits.
pub fn uuid_v4(mut bits: [u8; 16]) -> [u8; 16] {
    bits[6] = bits[6] & 0x0F | 0x40;
    bits[8] = bits[8] & 0x3F | 0x80;
    bits
}

/// The usual text of a UUID: 36 characters, lower case.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let mut text = String::with_capacity(36);
    for (place, byte) in uuid.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0x0F] {
            text.push(DIGITS[usize::from(digit)].into());
        }
    }
    text
}

/// The UUID that [`uuid_text`] wrote.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    if text.len() != 36 || digits.len() != 32 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::ChannelId;

    fn subscription(channel: u64) -> Subscription {
        Subscription {
            channel: ChannelId::from_bits(channel),
            subscriber: 0,
        }
    }

    #[test]
    fn one_subscription_needs_no_heap_and_more_give_it_back() {
        let mut list = Subscriptions::default();
        for channel in 0..3 {
            list.push(subscription(channel));
        }
        assert!(matches!(list, Subscriptions::Many(_)));
        assert_eq!(list.swap_remove(0), subscription(0));
        assert_eq!(list.as_slice(), [subscription(2), subscription(1)]);
        assert_eq!(list.swap_remove(1), subscription(1));
        assert!(matches!(list, Subscriptions::One(_)));
        assert_eq!(list.swap_remove(0), subscription(2));
        assert!(list.is_empty());
    }

    #[test]
    fn flags_rise_once() {
        let mut flags = Flags::default();
        assert!(flags.raise(Flags::TO_FLUSH));
        assert!(!flags.raise(Flags::TO_FLUSH));
        assert!(flags.has(Flags::TO_FLUSH) && !flags.has(Flags::BLOCKED));
        flags.set(Flags::TO_FLUSH, false);
        assert!(!flags.has(Flags::TO_FLUSH));
    }

    #[test]
    fn a_uuid_says_its_version() {
        let text = uuid_text(&uuid_v4([0xFF; 16]));
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(parse_uuid(&text), Some(uuid_v4([0xFF; 16])));
        for other in [
            "",
            "fffffffff-fff-4fff-bfff-fffffffffff",
            &text.replace('4', "x"),
        ] {
            assert_eq!(parse_uuid(other), None, "{other}");
        }
    }
}
