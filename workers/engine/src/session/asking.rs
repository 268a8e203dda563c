//! Questions to the application, and what to do with its answers.
//!
//! A connection whose command waits for an answer is not read from, and what it said after that
//! command waits as well: all is done in the order in which it was said.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Sessions;
use super::clock::now_s;
use super::connect::Connecting;
use super::publish::Message;
use super::subscriptions::Subscribing;
use super::tcp::TcpSubscribing;
use super::uplink::Origin;
use crate::asks::verdict::{self, Answered};
use crate::asks::{Answer, AskKind, Fallback, NOBODY};
use crate::client::Client;
use crate::connection::{Flags, Phase, uuid_text};
use crate::hub::ChannelId;
use crate::protocol::centrifuge::{Command, Encoding};
use crate::protocol::close::Farewell;
use crate::protocol::format::Format;
use crate::slab::Token;

/// What to do with an answer.
pub(super) enum Then {
    Connect(Box<Connecting>),
    /// Check its token again.
    ConnectByToken(Box<Connecting>),
    Subscribe(Box<Subscribing>),
    TcpSubscribe(TcpSubscribing),
    SubscribeByToken(Box<Subscribing>),
    Publish {
        origin: Origin,
        message: Message,
    },
    Rpc {
        id: u32,
    },
    Message,
    /// Do this command again, whose token could not be checked.
    Again(Command),
    /// Not asked for by the client, which waits for nothing: its time is over, or will be.
    Refresh,
    SubRefresh {
        channel: ChannelId,
    },
}

impl Then {
    /// Whether the client's next command waits for it.
    fn is_waited_for(&self) -> bool {
        !matches!(self, Self::Refresh | Self::SubRefresh { .. })
    }
}

/// By the id that the question got.
#[derive(Default)]
pub(super) struct Questions(HashMap<u64, Then>);

/// The part of a question that is alike for all: who asks, and how it is connected.
#[derive(Debug, Default, Serialize)]
pub(super) struct Body<'a> {
    client: String,
    transport: &'static str,
    protocol: &'static str,
    encoding: &'static str,
    /// `None`: that is what is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    b64data: String,
    /// Of a connection that ended: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'a str,
}

impl Body<'_> {
    /// With what the application's client sent: as it is where that is JSON, else in base64.
    pub fn with_data(mut self, data: &[u8]) -> Self {
        self.data = raw(data);
        if self.data.is_none() && !data.is_empty() {
            self.b64data = STANDARD.encode(data);
        }
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and JSON always have a JSON form")
    }
}

/// JSON as it is; `None`: it is none.
fn raw(json: &[u8]) -> Option<Box<RawValue>> {
    serde_json::from_slice(json).ok()
}

fn transport(format: Format) -> &'static str {
    match format {
        Format::UniWebSocket | Format::UniWebSocketDeflate | Format::UniWebSocketNarrow => {
            "uni_websocket"
        }
        Format::UniSse => "uni_sse",
        Format::UniStream => "uni_http_stream",
        Format::JsonSse => "sse",
        Format::JsonStream | Format::ProtobufStream => "http_stream",
        Format::Tcp => "tcp",
        Format::JsonWebSocket
        | Format::JsonWebSocketDeflate
        | Format::JsonWebSocketNarrow
        | Format::ProtobufWebSocket
        | Format::ProtobufWebSocketDeflate
        | Format::ProtobufWebSocketNarrow => "websocket",
    }
}

impl Sessions {
    /// What the application is told of a client with every question.
    pub(super) fn body<'a>(&mut self, token: Token) -> Option<Body<'a>> {
        let connection = self.connections.get_mut(token)?;
        let (protocol, encoding) = match connection.format.encoding() {
            Encoding::Json => ("json", "json"),
            Encoding::Protobuf => ("protobuf", "binary"),
        };
        let of_client = |part: fn(&Client) -> &[u8]| raw(part(connection.identity.as_deref()?));
        let (meta, headers) = (of_client(|it| &it.meta), of_client(|it| &it.headers));
        Some(Body {
            client: uuid_text(&connection.client),
            transport: transport(connection.format),
            protocol,
            encoding,
            user: (connection.phase != Phase::Connecting).then(|| connection.user().to_string()),
            meta,
            headers,
            ..Body::default()
        })
    }

    /// Asks the application; what is to be done with the answer is done when it comes, or at once
    /// where none will come.
    pub(super) fn ask(&mut self, token: Token, kind: AskKind, body: Vec<u8>, then: Then) {
        match self.asks.ask(token, kind, body) {
            Ok(id) => {
                if let Some(connection) = self.connections.get_mut(token)
                    && then.is_waited_for()
                {
                    connection.flags.set(Flags::WAITING, true);
                }
                self.questions.0.insert(id, then);
            }
            Err(fallback) => self.answered(token, then, Err(fallback)),
        }
    }

    /// A token is signed with a key that is not known: perhaps by now there is one.
    pub(super) fn ask_for_keys(&mut self, token: Token, then: Then) {
        self.ask(token, AskKind::Keys, b"{}".to_vec(), then);
    }

    /// Does what answers decide.
    pub fn take_answers(&mut self) {
        for Answer {
            id,
            token,
            kind,
            body,
        } in self.asks.take_answers()
        {
            if let (AskKind::Keys, Ok(keys)) = (kind, &body) {
                self.verifier.take_keys(keys, now_s());
            }
            if token.bits() == NOBODY {
                continue;
            }
            if let Some(then) = self.questions.0.remove(&id) {
                self.answered(token, then, body);
            }
        }
    }

    fn answered(&mut self, token: Token, then: Then, body: Result<Vec<u8>, Fallback>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if !then.is_waited_for() {
            connection.answer_came();
        }
        if connection.phase == Phase::Closing {
            return;
        }
        let was_waited_for = then.is_waited_for() && connection.flags.has(Flags::WAITING);
        if was_waited_for {
            connection.flags.set(Flags::WAITING, false);
        }
        self.changed(token.index);
        match then {
            Then::Connect(connecting) => self.connect_answered(*connecting, parse(body)),
            Then::ConnectByToken(connecting) => self.connect(Connecting {
                has_new_keys: true,
                ..*connecting
            }),
            Then::Subscribe(subscribing) => self.subscribe_answered(*subscribing, parse(body)),
            Then::TcpSubscribe(asked) => self.tcp_subscribe_answered(token, &asked, parse(body)),
            Then::SubscribeByToken(subscribing) => self.subscribe_command(Subscribing {
                has_new_keys: true,
                ..*subscribing
            }),
            Then::Publish { origin, message } => {
                self.publish_answered(token, origin, message, parse(body));
            }
            Then::Rpc { id } => self.rpc_answered(token, id, parse(body)),
            Then::Message => self.message_answered(token, parse(body)),
            Then::Again(command) => self.command(token, command, true),
            Then::Refresh => self.refresh_answered(token, parse(body)),
            Then::SubRefresh { channel } => {
                self.sub_refresh_answered(token, channel, parse(body));
            }
        }
        if was_waited_for {
            self.resume(token);
        }
    }

    /// Goes on with what a client said while it waited.
    fn resume(&mut self, token: Token) {
        while let Some(connection) = self.connections.get_mut(token) {
            if connection.flags.has(Flags::WAITING) || connection.phase == Phase::Closing {
                return;
            }
            let backlog = connection
                .identity
                .as_mut()
                .map(|client| &mut client.backlog);
            match backlog.and_then(|backlog| backlog.pop_front()) {
                Some(command) => self.command(token, command, false),
                None => {
                    self.resumed.push(token);
                    return;
                }
            }
        }
    }

    /// Tells the application that a client has gone, where it wants to know.
    pub(super) fn tell_disconnected(&mut self, token: Token, farewell: &Farewell) {
        if !self.asks.is_on(AskKind::Disconnect) {
            return;
        }
        let connection = self.connections.get_mut(token);
        if connection.is_none_or(|each| each.phase != Phase::Open) {
            return;
        }
        let Some(body) = self.body(token) else {
            return;
        };
        let body = Body {
            code: Some(farewell.code),
            reason: &farewell.reason,
            ..body
        };
        // Nobody waits for an answer; what Python has no room for is counted as such.
        let _ = self.asks.ask(token, AskKind::Disconnect, body.encode());
    }
}

fn parse<T: Answered>(body: Result<Vec<u8>, Fallback>) -> Result<verdict::Verdict<T>, Fallback> {
    verdict::parse(&body?)
}
