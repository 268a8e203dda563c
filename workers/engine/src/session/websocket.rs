//! Frames of WebSocket clients: commands, connect requests, pings and goodbyes.

use std::os::fd::AsFd;

use super::Sessions;
use crate::connection::{Dialect, Flags, Phase};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::Parsed;
use crate::protocol::centrifuge::{Command, parse_commands};
use crate::protocol::websocket::{self, Event, Opcode};
use crate::slab::Token;

impl Sessions {
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
        let was_in_fragments = inbound.fragments().is_some();
        match inbound.decode(bytes, &limits) {
            Ok(Parsed::Incomplete) => 0,
            Ok(Parsed::Complete { value, consumed }) => {
                connection.heard = now;
                if was_in_fragments {
                    self.changed(token.index);
                }
                let Some(connection) = self.connections.get_mut(token) else {
                    return total;
                };
                // Others owe a pong of their dialect.
                if connection.format.is_uni() || connection.flags.has(Flags::NATIVE_PINGS) {
                    self.pong_came(token);
                }
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
        if matches!(event, Event::Fragment | Event::Close { .. }) {
            self.changed(token.index);
        }
        match (event, phase) {
            (Event::Close { code, .. }, _) => self.websocket_closed(token, code),
            (_, Phase::Closing) => {}
            // The kind of message is not held against a client.
            (Event::Text(text), _) => self.websocket_message(token, text.as_bytes()),
            (Event::Binary(bytes), _) => self.websocket_message(token, &bytes),
            (Event::Ping(payload), _) => {
                let mut bytes = Vec::with_capacity(payload.len() + 2);
                websocket::encode_frame(&mut bytes, Opcode::Pong, payload);
                self.enqueue(token, Frame::new(bytes));
            }
            (Event::Pong(_) | Event::Fragment, _) => {}
        }
    }

    fn websocket_message(&mut self, token: Token, message: &[u8]) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let (format, phase) = (connection.format, connection.phase);
        if !format.is_uni() {
            return match parse_commands(format.encoding(), message) {
                Ok(commands) => {
                    // A pong says nothing that is put down apart from the keep's own bit for it.
                    if !commands.iter().all(Command::is_pong) {
                        self.changed(token.index);
                    }
                    self.commands(token, commands);
                }
                Err(close) => self.condemn(token, close),
            };
        }
        self.changed(token.index);
        match phase {
            Phase::Connecting => self.uni_connect(token, message),
            // What a client says after its connect request has no meaning in a unidirectional
            // dialect, and clients exist that say something.
            Phase::Open | Phase::Closing => self.metrics.add(Count::ReceivedIgnored, 1),
        }
    }

    /// The client's goodbye or its answer to ours.
    fn websocket_closed(&mut self, token: Token, code: Option<u16>) {
        if !self.takes_leave(token) {
            return;
        }
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let before = connection.queued_bytes();
        let (dropped, sent) = connection.outbox.cut(connection.socket.as_fd());
        connection.kept.count_sent(sent);
        self.queued_bytes = self.queued_bytes - before + connection.queued_bytes();
        self.metrics.add(Count::DeliveriesDropped, dropped);
        let mut bytes = Vec::with_capacity(4);
        websocket::encode_close_reply(&mut bytes, code);
        self.enqueue(token, Frame::new(bytes));
        self.schedule(token.index, self.settings.close_timeout);
    }
}
