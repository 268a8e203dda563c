//! The HTTP upgrade, and the unidirectional dialect over WebSocket.

use std::os::fd::AsFd;
use std::rc::Rc;

use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::subscribe::{Granted, SubscribeError, epoch_text};
use crate::connection::{Dialect, Flags, Phase, uuid_text};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::Parsed;
use crate::protocol::close::Close;
use crate::protocol::http::{self, HttpLimits};
use crate::protocol::uni;
use crate::protocol::websocket::{self, Event, Inbound, Opcode};
use crate::slab::Token;

/// The ping of the dialect and a native one, which browsers and libraries answer by themselves.
pub(super) fn ping_frame() -> Rc<Frame> {
    let mut bytes = Vec::new();
    websocket::encode_frame(&mut bytes, Opcode::Text, uni::PING);
    bytes.extend_from_slice(&websocket::PING_FRAME);
    Frame::new(bytes)
}

/// Our last words: the disconnect push, where the code is one of the dialect, and the close frame.
pub(super) fn goodbye_frame(close: Close) -> Rc<Frame> {
    let mut bytes = Vec::new();
    if close.code() >= 3000 {
        websocket::encode_frame(&mut bytes, Opcode::Text, &uni::encode_disconnect(close));
    }
    websocket::encode_close(&mut bytes, close);
    Frame::new(bytes)
}

/// A publication as WebSocket connections get it; an error if the dialect cannot say it.
pub(super) fn publication_frame(view: &PublicationView<'_>) -> Result<Rc<Frame>, Close> {
    Ok(text_frame(&uni::encode_publication(view)?))
}

fn text_frame(text: &[u8]) -> Rc<Frame> {
    let mut bytes = Vec::with_capacity(text.len() + websocket::HEADER_BYTES_MAX);
    websocket::encode_frame(&mut bytes, Opcode::Text, text);
    Frame::new(bytes)
}

impl Sessions {
    pub(super) fn http_received(&mut self, token: Token, bytes: &[u8]) -> usize {
        let limits = HttpLimits {
            header_bytes_max: self.settings.header_bytes_max,
            headers_max: self.settings.headers_max,
        };
        let accepted = match http::parse_request(bytes, &limits) {
            Ok(Parsed::Incomplete) => return 0,
            Ok(Parsed::Complete {
                value: request,
                consumed,
            }) => http::websocket_accept(&request, &self.settings.allowed_origins)
                .and_then(|response| Ok((response, request.query_parameter("cf_connect")?)))
                .map(|(response, connect)| (response, connect, consumed)),
            Err(reject) => Err(reject),
        };
        match accepted {
            Ok((response, connect, consumed)) => {
                self.upgrade(token, response, connect.as_deref());
                consumed
            }
            Err(reject) => {
                self.reject(token, reject);
                bytes.len()
            }
        }
    }

    fn upgrade(&mut self, token: Token, response: Vec<u8>, connect: Option<&str>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.dialect = Dialect::WebSocket(Inbound::default());
        self.enqueue(token, Frame::new(response));
        if let Some(text) = connect {
            self.uni_connect(token, text);
        }
    }

    pub(super) fn websocket_received(&mut self, token: Token, bytes: &mut [u8]) -> usize {
        let message_bytes_max = self.settings.message_bytes_max;
        let total = bytes.len();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(token) else {
            return total;
        };
        let Dialect::WebSocket(inbound) = &mut connection.dialect else {
            return total;
        };
        let limits = websocket::Limits {
            message_bytes_max,
            deflate: connection.format.is_deflated(),
        };
        match inbound.decode(bytes, &limits) {
            Ok(Parsed::Incomplete) => 0,
            Ok(Parsed::Complete { value, consumed }) => {
                connection.heard = now;
                connection.flags.set(Flags::PINGED, false);
                self.websocket_event(token, value);
                consumed
            }
            Err(close) => {
                self.condemn(token, close);
                total
            }
        }
    }

    fn websocket_event(&mut self, token: Token, event: Event<'_>) {
        let Some(phase) = self.connections.get_mut(token).map(|each| each.phase) else {
            return;
        };
        let count = match event {
            Event::Text(_) | Event::Binary(_) | Event::Fragment => Count::ReceivedText,
            Event::Ping(_) | Event::Pong(_) | Event::Close { .. } => Count::ReceivedControl,
        };
        self.metrics.add(count, 1);
        match (event, phase) {
            (Event::Close { code, .. }, _) => self.websocket_closed(token, code),
            (_, Phase::Closing) => {}
            (Event::Text(text), Phase::Connecting) => self.uni_connect(token, &text),
            // As elsewhere, the kind of message is not held against a client.
            (Event::Binary(bytes), Phase::Connecting) => match std::str::from_utf8(&bytes) {
                Ok(text) => self.uni_connect(token, text),
                Err(_) => self.condemn(token, Close::BadRequest),
            },
            // The dialect is unidirectional: what a client says after its connect message has no
            // meaning, and clients exist that say something.
            (Event::Text(_) | Event::Binary(_), Phase::Open) => {
                self.metrics.add(Count::ReceivedIgnored, 1);
            }
            (Event::Ping(payload), _) => {
                let mut bytes = Vec::with_capacity(payload.len() + 2);
                websocket::encode_frame(&mut bytes, Opcode::Pong, payload);
                self.enqueue(token, Frame::new(bytes));
            }
            (Event::Pong(_) | Event::Fragment, _) => {}
        }
    }

    /// The client's goodbye or its answer to ours: after it nothing more will come.
    fn websocket_closed(&mut self, token: Token, code: Option<u16>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase == Phase::Closing {
            // Both sides have said it; what is left of our words is with the kernel or lost.
            return self.forget(token);
        }
        self.metrics.close(Close::Normal);
        self.leave_channels(token);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Closing;
        connection.flags.set(Flags::HANG_UP, true);
        connection.flags.set(Flags::DEAF, true);
        let before = connection.queued_bytes();
        let dropped = connection.outbox.cut(connection.socket.as_fd());
        self.queued_bytes = self.queued_bytes - before + connection.queued_bytes();
        self.metrics.add(Count::DeliveriesDropped, dropped);
        let mut bytes = Vec::with_capacity(4);
        websocket::encode_close_reply(&mut bytes, code);
        self.enqueue(token, Frame::new(bytes));
        self.schedule(token.index, self.settings.close_timeout);
    }

    fn uni_connect(&mut self, token: Token, text: &str) {
        let request = match uni::parse_connect(text) {
            Ok(request) => request,
            Err(close) => return self.condemn(token, close),
        };
        // There is no key to verify tokens with, and who shows one wants to be more than anonymous.
        if !request.token.is_empty() {
            return self.condemn(token, Close::InvalidToken);
        }
        self.opened(token);
        let mut granted = Vec::with_capacity(request.subs.len());
        // One reply carries what was missed of all channels.
        let mut bytes_max = self.recovery_bytes_max(token);
        for sub in &request.subs {
            let since = sub
                .recover
                .as_ref()
                .map(|since| (since.epoch.as_str(), since.offset));
            match self.subscribe(token, &sub.channel, since, bytes_max) {
                Ok(subscription) => {
                    bytes_max -= subscription.missed_bytes();
                    granted.push((sub, subscription));
                }
                // A client of this dialect cannot be told: it sees what it got in the reply.
                Err(SubscribeError::Denied) => {}
                Err(SubscribeError::Limit) => return self.condemn(token, Close::ChannelLimit),
                Err(
                    SubscribeError::Unknown | SubscribeError::BadName | SubscribeError::Already,
                ) => {
                    return self.condemn(token, Close::BadRequest);
                }
            }
        }
        match self.connect_reply(token, &granted) {
            Ok(text) => self.enqueue(token, text_frame(&text)),
            Err(close) => self.condemn(token, close),
        }
    }

    fn connect_reply(
        &mut self,
        token: Token,
        granted: &[(&uni::SubscribeRequest, Granted)],
    ) -> Result<Vec<u8>, Close> {
        let client = self
            .connections
            .get_mut(token)
            .map_or([0; 16], |each| each.client);
        let client = uuid_text(&client);
        let missed: Vec<Vec<PublicationView<'_>>> = granted
            .iter()
            .map(|(_, each)| each.missed().filter_map(PublicationView::parse).collect())
            .collect();
        let epochs: Vec<String> = granted
            .iter()
            .map(|(_, each)| epoch_text(each.epoch))
            .collect();
        let subs: Vec<uni::SubscribeReply<'_>> = granted
            .iter()
            .enumerate()
            .map(|(index, (request, granted))| uni::SubscribeReply {
                channel: &request.channel,
                recoverable: granted.recoverable,
                positioned: granted.recoverable,
                epoch: &epochs[index],
                offset: granted.reported_offset(),
                was_recovering: request.recover.is_some(),
                recovered: granted.recovered.is_some(),
                publications: &missed[index],
            })
            .collect();
        uni::encode_connect(&uni::ConnectReply {
            client: &client,
            version: &self.settings.version,
            session: &client,
            // Whole seconds on the wire, and 0 means none: round up.
            ping_s: self.settings.websocket_ping_interval.as_secs_f64().ceil() as u32,
            subs: &subs,
        })
    }
}
