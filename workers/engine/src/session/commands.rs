//! Commands of the bidirectional dialect, in the order in which they were said.

use std::rc::Rc;

use super::Sessions;
use super::asking::Then;
use super::connect::{Connecting, How};
use super::fault::{BAD_REQUEST, Fault, INTERNAL, NOT_AVAILABLE};
use super::publish::{Form, Gate, Message};
use super::subscriptions::Subscribing;
use super::uplink::{Origin, Outcome};
use crate::asks::verdict::{PublishResult, RpcResult, Verdict};
use crate::asks::{AskKind, Fallback};
use crate::connection::{Flags, Phase};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::centrifuge::{Command, Encoding, Reply, Request, encode_reply};
use crate::protocol::close::{Close, Farewell};
use crate::protocol::format::Format;
use crate::slab::Token;

/// Commands that may wait behind one that waits for the application: more than SDKs have under way.
/// Those of one message may be more; it is bounded by its length.
const BACKLOG_MAX: usize = 1024;

/// A reply as it goes out; an error if its data is not JSON, and the format is.
pub(super) fn reply_frame(format: Format, id: u32, reply: &Reply<'_>) -> Result<Rc<Frame>, Close> {
    let mut body = Vec::with_capacity(128);
    encode_reply(&mut body, format.encoding(), id, reply)?;
    Ok(Frame::new(format.frame(&body)))
}

impl Sessions {
    /// Does what the commands of a message say, one after the other.
    pub(super) fn commands(&mut self, token: Token, commands: Vec<Command>) {
        for command in commands {
            let Some(connection) = self.connections.get_mut(token) else {
                return;
            };
            if connection.phase == Phase::Closing {
                return;
            }
            if !connection.flags.has(Flags::WAITING) {
                self.command(token, command, false);
                continue;
            }
            // Pipelined behind a connect that waits, there is nobody to keep it yet.
            let client = connection.identity.get_or_insert_default();
            client.backlog.push_back(command);
            let is_stream = !connection.format.is_websocket();
            if is_stream && client.backlog.len() > BACKLOG_MAX {
                return self.condemn(token, Close::TooManyRequests);
            }
        }
    }

    /// Does what one command says. `has_new_keys`: for its sake the keys that tokens are checked
    /// with were fetched.
    pub(super) fn command(&mut self, token: Token, command: Command, has_new_keys: bool) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let is_connect = matches!(command.request, Request::Connect(_));
        let is_connecting = connection.phase == Phase::Connecting;
        // The first is a connect and no other is; after one that failed nothing is taken.
        if is_connect != is_connecting || connection.flags.has(Flags::TURNED_AWAY) {
            return self.condemn(token, Close::BadRequest);
        }
        let id = command.id;
        let result = match command.request {
            Request::Connect(request) => {
                self.connect(Connecting {
                    token,
                    how: How::Command(id),
                    request,
                    has_new_keys: false,
                });
                Ok(())
            }
            Request::Pong => {
                self.pong(token);
                Ok(())
            }
            Request::Subscribe(request) => {
                self.subscribe_command(Subscribing {
                    token,
                    id,
                    request,
                    has_new_keys,
                });
                Ok(())
            }
            Request::Unsubscribe { channel } => self.unsubscribe_command(token, id, &channel),
            Request::Publish { channel, data } => self.publish_command(token, id, channel, data),
            Request::Presence { channel } => self.presence_command(token, id, &channel),
            Request::PresenceStats { channel } => self.stats_command(token, id, &channel),
            Request::History(request) => self.history_command(token, id, &request),
            Request::Rpc { method, data } => self.rpc_command(token, id, &method, &data),
            Request::Send { data } => {
                self.send_command(token, &data);
                Ok(())
            }
            Request::Refresh {
                token: connection_token,
            } => {
                self.refresh_command(token, id, connection_token, has_new_keys);
                Ok(())
            }
            Request::SubRefresh {
                channel,
                token: subscription_token,
            } => self.sub_refresh_command(token, id, channel, subscription_token, has_new_keys),
        };
        if let Err(fault) = result {
            self.fail(token, id, &fault);
        }
    }

    /// Answers a command.
    pub(super) fn reply(&mut self, token: Token, id: u32, reply: &Reply<'_>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let frame = reply_frame(connection.format, id, reply);
        self.say(token, frame);
    }

    /// Sends what could be encoded; a client that cannot be told what it is due is closed.
    pub(super) fn say(&mut self, token: Token, frame: Result<Rc<Frame>, Close>) {
        let is_open = self
            .connections
            .get_mut(token)
            .is_some_and(|each| each.phase != Phase::Closing);
        match frame {
            Ok(frame) if is_open => self.enqueue(token, frame),
            Ok(_) => {}
            Err(close) => self.condemn(token, close),
        }
    }

    /// Answers a command with an error.
    pub(super) fn fail(&mut self, token: Token, id: u32, fault: &Fault) {
        self.metrics.add(Count::Faults, 1);
        let reply = Reply::Error {
            code: fault.code,
            message: &fault.message,
            temporary: fault.temporary,
        };
        self.reply(token, id, &reply);
    }

    fn pong(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if connection.flags.has(Flags::NATIVE_PINGS) || !connection.flags.has(Flags::PINGED) {
            // Nothing was asked that this could answer.
            return self.condemn(token, Close::BadRequest);
        }
        self.pong_came(token);
    }

    fn unsubscribe_command(&mut self, token: Token, id: u32, channel: &str) -> Result<(), Fault> {
        if channel.is_empty() {
            return Err(BAD_REQUEST);
        }
        // That a client does not have a channel is what it wants.
        if let Some(found) = self.hub.find(&self.table.key(channel)) {
            self.unsubscribe(token, found);
        }
        self.reply(token, id, &Reply::Unsubscribe);
        Ok(())
    }

    fn publish_command(
        &mut self,
        token: Token,
        id: u32,
        channel: String,
        data: Vec<u8>,
    ) -> Result<(), Fault> {
        let Some(connection) = self.connections.get_mut(token) else {
            return Ok(());
        };
        let form = match connection.format.encoding() {
            Encoding::Json => Form::Json,
            Encoding::Protobuf => Form::Either,
        };
        let message = Message {
            channel,
            form,
            data,
            ..Message::default()
        };
        let origin = Origin::Command(id);
        let result = match self.may_publish(token, &message.channel) {
            Ok(Gate::Open) => self.publish(token, origin, &message),
            Ok(Gate::Hook) => self.ask_to_publish(token, origin, message),
            Err(fault) => Err(fault),
        };
        self.count_publish(&result);
        result
    }

    /// Asks the application whether a client may publish.
    pub(super) fn ask_to_publish(
        &mut self,
        token: Token,
        origin: Origin,
        message: Message,
    ) -> Result<(), Fault> {
        let Some(body) = self.body(token) else {
            return Ok(());
        };
        let mut body = body.with_data(&message.data);
        body.channel = &message.channel;
        let body = body.encode();
        self.ask(
            token,
            AskKind::Publish,
            body,
            Then::Publish { origin, message },
        );
        Ok(())
    }

    pub(super) fn publish_answered(
        &mut self,
        token: Token,
        origin: Origin,
        mut message: Message,
        answer: Result<Verdict<PublishResult>, Fallback>,
    ) {
        let result = self.decided(token, answer).and_then(|decided| {
            let Some(decided) = decided else {
                return Ok(());
            };
            if !decided.data.is_empty() {
                message.data = decided.data;
            }
            message.skip_history = decided.skip_history;
            message.except_sender = decided.except_sender;
            self.publish(token, origin, &message)
        });
        if let Err(fault) = result {
            self.metrics.add(Count::PublishesRejected, 1);
            match origin {
                Origin::Frame(request) => self.tcp_fail(token, request, fault),
                Origin::Command(id) => self.fail(token, id, &fault),
                Origin::Emulation => {}
            }
        }
    }

    /// The publisher's answer to a publish; the client may be gone.
    pub(super) fn command_published(&mut self, token: Token, id: u32, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.answer_came();
        match outcome {
            Outcome::Done { .. } => self.reply(token, id, &Reply::Publish),
            Outcome::Failed { code } => {
                self.metrics.add(Count::PublishesRejected, 1);
                self.fail(token, id, &Fault::of_code(code));
            }
        }
    }

    fn rpc_command(
        &mut self,
        token: Token,
        id: u32,
        method: &str,
        data: &[u8],
    ) -> Result<(), Fault> {
        if !self.asks.is_on(AskKind::Rpc) {
            return Err(NOT_AVAILABLE);
        }
        let Some(body) = self.body(token) else {
            return Ok(());
        };
        let mut body = body.with_data(data);
        body.method = method;
        self.ask(token, AskKind::Rpc, body.encode(), Then::Rpc { id });
        Ok(())
    }

    pub(super) fn rpc_answered(
        &mut self,
        token: Token,
        id: u32,
        answer: Result<Verdict<RpcResult>, Fallback>,
    ) {
        let connection = self.connections.get_mut(token);
        let takes_json = connection.is_some_and(|each| each.format.encoding() == Encoding::Json);
        match self.decided(token, answer) {
            Ok(Some(result)) if result.is_binary && takes_json => self.fail(token, id, &INTERNAL),
            Ok(Some(RpcResult { data, .. })) => self.reply(token, id, &Reply::Rpc { data: &data }),
            Ok(None) => {}
            Err(fault) => self.fail(token, id, &fault),
        }
    }

    /// A message for the application, which needs no answer.
    fn send_command(&mut self, token: Token, data: &[u8]) {
        if !self.asks.is_on(AskKind::Message) {
            return self.condemn(token, Close::NotAvailable);
        }
        if let Some(body) = self.body(token) {
            let body = body.with_data(data).encode();
            self.ask(token, AskKind::Message, body, Then::Message);
        }
    }

    pub(super) fn message_answered(&mut self, token: Token, answer: Result<Verdict<()>, Fallback>) {
        // There is no reply that an error could be said in.
        let _ = self.decided(token, answer);
    }

    /// What the application decided. `None`: that the connection ends, which it does.
    pub(super) fn decided<T>(
        &mut self,
        token: Token,
        answer: Result<Verdict<T>, Fallback>,
    ) -> Result<Option<T>, Fault> {
        match answer {
            Ok(Verdict::Result(result)) => Ok(Some(result)),
            Ok(Verdict::Error {
                code,
                message,
                temporary,
            }) => Err(Fault {
                code,
                temporary,
                message: message.into(),
            }),
            Ok(Verdict::Disconnect { code, reason }) => {
                self.condemn(token, Farewell::of_application(code, &reason));
                Ok(None)
            }
            Err(_) => Err(INTERNAL),
        }
    }
}
