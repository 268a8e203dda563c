//! The binary protocol: its requests, its answers, and how its frames reach the socket.

use std::rc::Rc;

use tidegate_ring::channels::ChannelKey;
use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::asking::Then;
use super::connect::{Connecting, How};
use super::fault::{BAD_REQUEST, Fault, NOT_AVAILABLE};
use super::permission::Entrance;
use super::recovery::epoch_text;
use super::subscribe::{Asked, SubscribeError};
use crate::asks::verdict::{SubscribeResult as Admitted, Verdict};
use crate::asks::{AskKind, Fallback};
use crate::client::Traits;
use crate::connection::{Dialect, Flags, Phase, Tcp, uuid_text};
use crate::hub::ChannelId;
use crate::metrics::Count;
use crate::outbox::{Frame, Outbox};
use crate::protocol::Parsed;
use crate::protocol::centrifuge::ConnectRequest;
use crate::protocol::close::{Close, Farewell};
use crate::protocol::tcp::payload::{
    Connect, Connected, Failure, Goodbye, Message, Position, Subscribe, Subscribed, Unsubscribe,
    Unsubscribed,
};
use crate::protocol::tcp::{Kind, SERVER_WINDOW, decode};
use crate::sending::Buffers;
use crate::slab::Token;

/// Bytes of frames put together for one system call; a socket rarely takes more at once.
const WIRE_BYTES_PER_FLUSH: usize = 65_536;

/// A SUBSCRIBE on its way.
pub(super) struct TcpSubscribing {
    request: u32,
    channel: String,
    /// Epoch and offset.
    since: Option<(String, u64)>,
}

/// What stands for a channel in the frames of a connection. It is the same in every worker, as the
/// table's key is, so that a connection that moves keeps it. Two channels have the same one in one
/// case of 2^32: they cannot be on one connection, see [`NOT_AVAILABLE`].
pub(super) fn alias(key: ChannelKey) -> u32 {
    (key.0[1] >> 32) as u32
}

/// A publication as TCP connections get it, before it is cut into frames.
pub(super) fn publication_frame(channel: ChannelId, view: &PublicationView<'_>) -> Rc<Frame> {
    let mut bytes = Vec::new();
    Message {
        alias: alias(view.key),
        offset: view.offset,
        binary: !view.json,
        tags: view.tags,
        data: view.data,
    }
    .encode(&mut bytes);
    Frame::of_channel(channel, bytes)
}

impl Tcp {
    fn say(&mut self, kind: Kind, payload: &[u8]) {
        self.flow.frame(kind, payload, &mut self.wire);
    }

    pub(crate) fn say_goodbye(&mut self, farewell: &Farewell) {
        let mut payload = Vec::new();
        Goodbye {
            code: farewell.code,
            reason: &farewell.reason,
        }
        .encode(&mut payload);
        self.say(Kind::Close, &payload);
    }

    /// Appends DATA frames to what is to be sent: all that the window allows of the outbox, up to
    /// what is sent at once.
    pub(crate) fn fill(&mut self, outbox: &mut Outbox, buffers: &mut Buffers) {
        if self.wire.capacity() == 0 && self.has_more(outbox) {
            self.wire = buffers.take();
        }
        while let Some((frame, sent)) = outbox.head() {
            let left = &frame.bytes[sent..];
            let piece = self.flow.piece(left.len());
            if piece == 0 || self.wire.len() >= WIRE_BYTES_PER_FLUSH {
                return;
            }
            let data = self.flow.data(&left[..piece], piece < left.len());
            self.wire.extend_from_slice(&data.head);
            self.wire.extend_from_slice(&left[..piece]);
            let trailer = data.trailer.as_ref();
            self.wire
                .extend_from_slice(trailer.map_or(&[], |trailer| &trailer[..]));
            outbox.advance(piece);
        }
    }

    /// Whether there would be more to [`Tcp::fill`], and window for it.
    pub(crate) fn has_more(&self, outbox: &Outbox) -> bool {
        let head = outbox.head();
        head.is_some_and(|(frame, sent)| self.flow.piece(frame.bytes.len() - sent) > 0)
    }

    /// Forgets what the socket has taken. An idle connection keeps no buffer.
    pub(crate) fn advance(&mut self, bytes: usize, buffers: &mut Buffers) {
        self.wire.drain(..bytes);
        if self.wire.is_empty() {
            buffers.give(std::mem::take(&mut self.wire));
        } else {
            self.wire.shrink_to_fit();
        }
    }
}

impl Sessions {
    pub(super) fn tcp_received(&mut self, token: Token, bytes: &mut [u8]) -> usize {
        let total = bytes.len();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(token) else {
            return total;
        };
        let Dialect::Tcp(tcp) = &mut connection.dialect else {
            return total;
        };
        let taken = match decode(bytes, &tcp.flow.agreed()) {
            Ok(Parsed::Incomplete) => return 0,
            Ok(Parsed::Complete { value, consumed }) => {
                tcp.flow.receive(&value).map(|()| (value, consumed))
            }
            Err(close) => Err(close),
        };
        connection.heard = now;
        self.metrics.add(Count::ReceivedFrames, 1);
        let handled = match taken {
            Ok((frame, consumed)) => self
                .tcp_frame(token, frame.header.kind, frame.payload)
                .map(|()| consumed),
            Err(close) => Err(close),
        };
        handled.unwrap_or_else(|close| {
            self.tcp_violated(token, close);
            total
        })
    }

    fn tcp_violated(&mut self, token: Token, close: Close) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Closing {
            return self.condemn(token, close);
        }
        // It has its reason, or is about to have it: what follows is not worth another one.
        connection.flags.set(Flags::DEAF, true);
        self.changed(token.index);
        self.mark_to_flush(token.index);
    }

    fn tcp_frame(&mut self, token: Token, kind: Kind, payload: &[u8]) -> Result<(), Close> {
        let Some(phase) = self.connections.get_mut(token).map(|each| each.phase) else {
            return Ok(());
        };
        if kind == Kind::Close {
            self.tcp_closed(token, Goodbye::parse(payload)?.code);
            return Ok(());
        }
        if phase == Phase::Closing {
            return Ok(());
        }
        match kind {
            Kind::Connect => self.tcp_connect(token, &Connect::parse(payload)?),
            Kind::Subscribe => self.tcp_subscribe(token, &Subscribe::parse(payload)?),
            Kind::Unsubscribe => self.tcp_unsubscribe(token, Unsubscribe::parse(payload)?),
            Kind::Publish => self.tcp_piece(token, payload)?,
            // The header was the message: an acknowledgement or a wider window may let data go.
            Kind::Heartbeat | Kind::Ack | Kind::WindowUpdate | Kind::Skippable => {}
            Kind::Data
            | Kind::Connected
            | Kind::Subscribed
            | Kind::Unsubscribed
            | Kind::Published
            | Kind::Error
            | Kind::Close => return Err(Close::UnexpectedFrame),
        }
        self.mark_to_flush(token.index);
        Ok(())
    }

    /// Appends a frame to what is on its way to a client.
    pub(super) fn tcp_say(&mut self, token: Token, kind: Kind, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase == Phase::Closing {
            return;
        }
        let before = connection.queued_bytes();
        let Dialect::Tcp(tcp) = &mut connection.dialect else {
            return;
        };
        let mut payload = Vec::new();
        encode(&mut payload);
        tcp.say(kind, &payload);
        self.queued_bytes += connection.queued_bytes() - before;
        self.after_enqueue(token);
    }

    fn tcp_connect(&mut self, token: Token, connect: &Connect<'_>) {
        self.connect(Connecting {
            token,
            how: How::Frame {
                crc: connect.crc,
                window_scale: connect.window_scale,
            },
            request: ConnectRequest {
                token: connect.token.to_string(),
                name: connect.name.to_string(),
                ..ConnectRequest::default()
            },
            has_new_keys: false,
        });
    }

    /// Tells a client that its connection is open.
    pub(super) fn tcp_welcome(&mut self, token: Token, crc: bool, window_scale: u8) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let client = uuid_text(&connection.client);
        let Dialect::Tcp(tcp) = &mut connection.dialect else {
            return;
        };
        tcp.flow.agree(&Connect {
            crc,
            window_scale,
            name: "",
            token: "",
        });
        let settings = &self.settings;
        let version = settings.version.clone();
        let connected = Connected {
            crc,
            window_scale: SERVER_WINDOW.scale,
            heartbeat_interval_ms: settings.tcp_heartbeat_interval.as_millis() as u64,
            heartbeat_timeout_ms: settings.tcp_heartbeat_timeout.as_millis() as u64,
            message_bytes_max: settings.message_bytes_max as u64,
            client: &client,
            version: &version,
        };
        self.tcp_say(token, Kind::Connected, |payload| connected.encode(payload));
    }

    pub(super) fn tcp_fail(&mut self, token: Token, request: u32, fault: Fault) {
        let Fault {
            code,
            temporary,
            message,
        } = fault;
        let failure = Failure {
            request,
            code: u16::try_from(code).unwrap_or(u16::MAX),
            temporary,
            message: &message,
        };
        self.tcp_say(token, Kind::Error, |payload| failure.encode(payload));
    }

    fn tcp_subscribe(&mut self, token: Token, subscribe: &Subscribe<'_>) {
        let asked = TcpSubscribing {
            request: subscribe.request,
            channel: subscribe.channel.to_string(),
            since: subscribe
                .since
                .map(|since| (since.epoch.to_string(), since.offset)),
        };
        match self.tcp_entrance(token, subscribe.channel) {
            Ok(Entrance::Hook) => {
                if let Some(mut body) = self.body(token) {
                    body.channel = subscribe.channel;
                    let body = body.encode();
                    self.ask(token, AskKind::Subscribe, body, Then::TcpSubscribe(asked));
                }
            }
            Ok(_) => self.tcp_enter(token, &asked, &Admitted::default(), false),
            Err(error) => self.tcp_subscribe_refused(token, &asked, error),
        }
    }

    fn tcp_entrance(&mut self, token: Token, channel: &str) -> Result<Entrance, SubscribeError> {
        match self.entrance(token, channel)? {
            Entrance::Closed(closed) => Err(SubscribeError::Denied(closed)),
            entrance => self.admissible(token, channel).map(|()| entrance),
        }
    }

    fn tcp_subscribe_refused(
        &mut self,
        token: Token,
        asked: &TcpSubscribing,
        error: SubscribeError,
    ) {
        self.subscribe_refused(token, &asked.channel, error);
        self.tcp_fail(token, asked.request, error.into());
    }

    /// The application's answer to a SUBSCRIBE.
    pub(super) fn tcp_subscribe_answered(
        &mut self,
        token: Token,
        asked: &TcpSubscribing,
        answer: Result<Verdict<Admitted>, Fallback>,
    ) {
        match self.decided(token, answer) {
            Ok(None) => {}
            Ok(Some(admitted)) => self.tcp_enter(token, asked, &admitted, true),
            Err(fault) => self.tcp_fail(token, asked.request, fault),
        }
    }

    /// Makes a subscription and answers the SUBSCRIBE, which has no word for data beside it.
    fn tcp_enter(
        &mut self,
        token: Token,
        asked: &TcpSubscribing,
        admitted: &Admitted,
        is_by_hook: bool,
    ) {
        let key = self.table.key(&asked.channel);
        if let Some(id) = self.channel_of_alias(token, alias(key))
            && self.hub.channel(id).is_none_or(|each| each.key != key)
        {
            return self.tcp_fail(token, asked.request, NOT_AVAILABLE);
        }
        let wanted = Asked {
            recoverable: true,
            ..Asked::default()
        };
        let terms = self.granted_terms(token, &asked.channel, wanted, admitted, is_by_hook);
        let mut terms = match terms {
            Ok(terms) => terms,
            Err(error) => return self.tcp_subscribe_refused(token, asked, error.into()),
        };
        terms.standing.traits.set(Traits::SERVER_SIDE, true);
        let since = asked.since.as_ref();
        let since = since.map(|(epoch, offset)| (epoch.as_str(), *offset));
        let bytes_max = self.recovery_bytes_max(token);
        let granted = self.enter(token, &asked.channel, terms, since, bytes_max);
        let epoch = epoch_text(granted.epoch);
        let subscribed = Subscribed {
            request: asked.request,
            alias: alias(key),
            recoverable: granted.recoverable(),
            recovered: granted.recovered.is_some(),
            top: Position {
                epoch: &epoch,
                offset: granted.top_offset,
            },
        };
        self.tcp_say(token, Kind::Subscribed, |payload| {
            subscribed.encode(payload)
        });
        for view in granted.missed() {
            self.enqueue(token, publication_frame(granted.channel, &view));
        }
    }

    /// The channel that an alias stands for on a connection.
    fn channel_of_alias(&mut self, token: Token, wanted: u32) -> Option<ChannelId> {
        let held = self.connections.get_mut(token)?.subscriptions.as_slice();
        let mut ids = held.iter().map(|each| each.channel);
        ids.find(|id| {
            let channel = self.hub.channel(*id);
            channel.is_some_and(|channel| alias(channel.key) == wanted)
        })
    }

    fn tcp_unsubscribe(&mut self, token: Token, unsubscribe: Unsubscribe) {
        let Unsubscribe { request, alias } = unsubscribe;
        let Some(id) = self.channel_of_alias(token, alias) else {
            return self.tcp_fail(token, request, BAD_REQUEST);
        };
        self.unsubscribe(token, id);
        let unsubscribed = Unsubscribed {
            request,
            alias,
            code: 0,
            reason: "unsubscribed",
        };
        self.tcp_unsubscribed(token, id, &unsubscribed);
    }

    /// Tells a client that it is out of a channel: what waits for it of that is not sent any more.
    pub(super) fn tcp_unsubscribed(
        &mut self,
        token: Token,
        id: ChannelId,
        unsubscribed: &Unsubscribed<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let before = connection.queued_bytes();
        let dropped = connection.outbox.drop_channel(id);
        self.queued_bytes = self.queued_bytes - before + connection.queued_bytes();
        self.metrics.add(Count::DeliveriesDropped, dropped);
        self.tcp_say(token, Kind::Unsubscribed, |payload| {
            unsubscribed.encode(payload)
        });
    }

    pub(super) fn tcp_heartbeat(&mut self, token: Token) {
        self.tcp_say(token, Kind::Heartbeat, |_| {});
    }

    /// Acknowledges what was received, if none of this turn's answers has done it in passing.
    pub(super) fn tcp_acknowledge(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if let Dialect::Tcp(tcp) = &connection.dialect
            && connection.phase == Phase::Open
            && tcp.flow.ack_due()
        {
            self.tcp_say(token, Kind::Ack, |_| {});
        }
    }

    /// The client's goodbye, or its answer to ours.
    fn tcp_closed(&mut self, token: Token, code: u16) {
        if !self.takes_leave(token) {
            return;
        }
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let before = connection.queued_bytes();
        let dropped = connection.outbox.clear();
        if let Dialect::Tcp(tcp) = &mut connection.dialect {
            let mut payload = Vec::new();
            Goodbye {
                code,
                reason: Close::Normal.reason(),
            }
            .encode(&mut payload);
            tcp.say(Kind::Close, &payload);
        }
        self.queued_bytes = self.queued_bytes - before + connection.queued_bytes();
        self.metrics.add(Count::DeliveriesDropped, dropped);
        self.mark_to_flush(token.index);
        self.schedule(token.index, self.settings.close_timeout);
    }
}
