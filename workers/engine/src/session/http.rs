//! Requests of the client port: what they open, and commands that come by a request of their own.

use tidegate_ring::error::UplinkError;
use tidegate_ring::uplink::{Request, RequestKind};

use super::Sessions;
use super::connect::{Connecting, How};
use super::uplink::{Origin, Outcome};
use crate::connection::{Dialect, Flags, Phase, parse_uuid};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::Parsed;
use crate::protocol::centrifuge::{
    ConnectRequest, Encoding, parse_commands, parse_emulation, parse_uni_connect,
};
use crate::protocol::close::Close;
use crate::protocol::format::Format;
use crate::protocol::http::{
    Asked, Cors, HttpLimits, HttpReject, Opening, Refused, Rules, parse_opening, passed_on,
};
use crate::protocol::sse::LastEventId;
use crate::protocol::websocket::Inbound;
use crate::slab::Token;

impl Sessions {
    pub(super) fn http_received(&mut self, token: Token, bytes: &[u8]) -> usize {
        let settings = &self.settings;
        let rules = Rules {
            limits: HttpLimits {
                header_bytes_max: settings.header_bytes_max,
                headers_max: settings.headers_max,
            },
            body_bytes_max: settings.message_bytes_max,
            origins_allowed: &settings.allowed_origins,
            transports: &settings.transports,
            compression: settings.websocket_compression,
        };
        match parse_opening(bytes, &rules) {
            Ok(Parsed::Incomplete) => 0,
            Ok(Parsed::Complete { value, consumed }) => {
                let limits = rules.limits;
                if matches!(value, Opening::WebSocket { .. } | Opening::Stream { .. }) {
                    self.keep_headers(token, bytes, &limits);
                }
                self.opening(token, value);
                consumed
            }
            Err(refused) => {
                self.reject(token, refused);
                bytes.len()
            }
        }
    }

    fn opening(&mut self, token: Token, opening: Opening) {
        match opening {
            Opening::WebSocket {
                response,
                format,
                native_pings,
                connect,
            } => {
                self.upgrade(token, response, format, native_pings);
                if let Some(text) = connect {
                    self.uni_connect(token, text.as_bytes());
                }
            }
            Opening::Stream {
                response,
                format,
                asked,
                last_event_id,
            } => {
                self.stream(token, response, format);
                match asked {
                    Asked::Commands(commands) => self.commands(token, commands),
                    Asked::Connect(request) => {
                        self.connect_one_way(token, request, last_event_id);
                    }
                }
            }
            Opening::Emulation {
                cors,
                encoding,
                body,
            } => self.emulate(token, cors, encoding, &body),
            Opening::Answered { response } => self.answer(token, response),
        }
    }

    fn upgrade(&mut self, token: Token, response: Vec<u8>, format: Format, native_pings: bool) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.dialect = Dialect::WebSocket(Inbound::default());
        connection.format = format;
        connection.flags.set(Flags::NATIVE_PINGS, native_pings);
        self.enqueue(token, Frame::new(response));
    }

    fn stream(&mut self, token: Token, response: Vec<u8>, format: Format) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.dialect = Dialect::Stream;
        connection.format = format;
        self.metrics.subtract(Count::ConnectionsWebSocket, 1);
        self.metrics.add(Count::ConnectionsStream, 1);
        self.enqueue(token, Frame::new(response));
    }

    /// The connect request of a unidirectional WebSocket client: a bare JSON object.
    pub(super) fn uni_connect(&mut self, token: Token, text: &[u8]) {
        match parse_uni_connect(text) {
            Ok(request) => self.connect_one_way(token, request, None),
            Err(close) => self.condemn(token, close),
        }
    }

    fn connect_one_way(
        &mut self,
        token: Token,
        request: ConnectRequest,
        last_event_id: Option<LastEventId>,
    ) {
        self.connect(Connecting {
            token,
            how: How::Unidirectional(last_event_id),
            request,
            has_new_keys: false,
        });
    }

    /// Commands for another connection: to its owner by way of the log, whoever that is. The client
    /// learns that they are on their way as soon as they are in the log.
    fn emulate(&mut self, token: Token, cors: Cors, encoding: Encoding, body: &[u8]) {
        if let Err(reject) = self.pass_on(token, encoding, body) {
            return self.reject(token, Refused { reject, cors });
        }
        if let Some(connection) = self.connections.get_mut(token) {
            connection.flags.set(Flags::WAITING, true);
            self.emulations.insert(token, cors);
        }
    }

    fn pass_on(&mut self, token: Token, encoding: Encoding, body: &[u8]) -> Result<(), HttpReject> {
        let request = parse_emulation(encoding, body).ok_or(HttpReject::BadRequest)?;
        if request.node != self.settings.node {
            return Err(HttpReject::UnknownNode);
        }
        let session = parse_uuid(&request.session).ok_or(HttpReject::BadRequest)?;
        let sent = self.uplink.ask(
            token,
            Origin::Emulation,
            Request {
                kind: RequestKind::Emulate,
                json: encoding == Encoding::Json,
                client: Some(session),
                data: &request.data,
                ..Request::default()
            },
        );
        sent.map_err(|error| match error {
            UplinkError::TooLarge { .. } => HttpReject::BodyTooLarge,
            UplinkError::Full | UplinkError::Corrupt { .. } => HttpReject::Full,
        })
    }

    /// The publisher's answer to that.
    pub(super) fn emulation_taken(&mut self, token: Token, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.flags.set(Flags::WAITING, false);
        if connection.phase == Phase::Closing {
            // It took too long, and was answered so.
            return;
        }
        let cors = self.emulations.remove(&token).unwrap_or_default();
        match outcome {
            Outcome::Done { .. } => self.answer(token, passed_on(&cors)),
            Outcome::Failed { .. } => {
                let reject = HttpReject::Full;
                self.reject(token, Refused { reject, cors });
            }
        }
    }

    /// Says all that there is to say, and hangs up.
    fn answer(&mut self, token: Token, response: Vec<u8>) {
        self.metrics.add(Count::RequestsAnswered, 1);
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.phase = Phase::Closing;
        connection.flags.set(Flags::DEAF, true);
        self.changed(token.index);
        self.enqueue(token, Frame::new(response));
        self.schedule(token.index, self.settings.close_timeout);
    }

    /// What a client said by a request of its own, if it is a client of this worker.
    pub(super) fn emulated(&mut self, session: &[u8; 16], encoding: Encoding, data: &[u8]) {
        let place = self.directory.session(session);
        let Some(token) = place.and_then(|place| self.connections.token(place)) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.phase != Phase::Open {
            return;
        }
        connection.heard = self.now;
        let is_of_format = encoding == connection.format.encoding();
        self.metrics.add(Count::ReceivedEmulated, 1);
        // If this process dies on the way, nobody shall do it once more.
        connection.answer_awaited();
        self.changed(token.index);
        self.put_down_one(token.index);
        match parse_commands(encoding, data) {
            Ok(commands) if is_of_format => {
                self.commands(token, commands);
            }
            Ok(_) | Err(_) => self.condemn(token, Close::BadRequest),
        }
        if let Some(connection) = self.connections.get_mut(token) {
            connection.answer_came();
        }
        self.changed(token.index);
    }
}
