//! Publishes of clients, and who comes into channels and goes: what reaches the publisher.

use tidegate_ring::error::UplinkError;
use tidegate_ring::json;
use tidegate_ring::uplink::{Request, RequestKind};

use super::Sessions;
use super::fault::{BAD_REQUEST, BUSY, DENIED, Fault, INTERNAL, LIMIT};
use super::permission::{self, Act};
use super::recovery::epoch_text;
use super::uplink::{Origin, Outcome, Passage};
use crate::asks::AskKind;
use crate::client::Traits;
use crate::connection::{Connection, Dialect, uuid_text};
use crate::hub::ChannelId;
use crate::metrics::Count;
use crate::protocol::centrifuge::ClientInfo;
use crate::protocol::close::Close;
use crate::protocol::tcp::Kind;
use crate::protocol::tcp::payload::{Position, Publish, Published};
use crate::slab::Token;

/// Publishes of one connection that may wait for their answers: more is a client that does not
/// wait, and would take the uplink from all others.
const PUBLISHES_PER_CONNECTION_MAX: u32 = 64;

/// What a client publishes.
#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    pub channel: String,
    pub form: Form,
    pub data: Vec<u8>,
    /// Text of a JSON object, or empty.
    pub tags: Vec<u8>,
    pub idempotency_key: String,
    pub skip_history: bool,
    /// It does not come back to its sender; `None`: as the namespace says.
    pub except_sender: Option<bool>,
}

/// What the data of a publish is, by its sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// JSON text, or it is refused.
    #[default]
    Json,
    Binary,
    /// JSON text if it can be read as that.
    Either,
}

/// Whether a publish may be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// The application is to be asked.
    Hook,
}

impl Sessions {
    /// Hands the publisher's answers to those who asked.
    ///
    /// # Errors
    /// The uplink is damaged: this worker cannot go on.
    pub fn take_replies(&mut self) -> Result<(), UplinkError> {
        self.uplink.tell_waiting();
        for (token, origin, outcome) in self.uplink.answers()? {
            match origin {
                Origin::Frame(request) => self.tcp_published(token, request, outcome),
                Origin::Command(id) => self.command_published(token, id, outcome),
                Origin::Emulation => self.emulation_taken(token, outcome),
            }
        }
        Ok(())
    }

    /// Whether a client may publish to a channel.
    pub(super) fn may_publish(&mut self, token: Token, channel: &str) -> Result<Gate, Fault> {
        let is_subscribed = self.is_subscribed_to(token, channel);
        let namespace = self.names.namespace(&self.settings, channel)?;
        if namespace.publish_hook && self.asks.is_on(AskKind::Publish) {
            return Ok(Gate::Hook);
        }
        let user = self
            .connections
            .get_mut(token)
            .map_or("", |each| each.user());
        permission::may(Act::Publish, namespace, user, is_subscribed)
            .map(|()| Gate::Open)
            .map_err(|closed| {
                self.notice_refusal(token, "publish", channel, closed);
                DENIED
            })
    }

    /// Hands over what a client may publish; `origin` will get the answer.
    pub(super) fn publish(
        &mut self,
        token: Token,
        origin: Origin,
        message: &Message,
    ) -> Result<(), Fault> {
        let namespace = self.names.namespace(&self.settings, &message.channel)?;
        let (data, is_json) = checked_data(message, self.settings.message_bytes_max)?;
        let mut tags = Vec::new();
        if !message.tags.is_empty() {
            json::compact_object(&message.tags, &mut tags).map_err(|_| BAD_REQUEST)?;
        }
        // Hashed otherwise than back ends' keys are: no client can use up a key of theirs.
        let idempotency = match message.idempotency_key.as_str() {
            "" => 0,
            key => {
                let parts = [message.channel.as_bytes(), key.as_bytes()];
                self.table.hash(&parts).max(1)
            }
        };
        let except_sender = message
            .except_sender
            .unwrap_or(namespace.publish_except_sender);
        let delta = namespace.delta_publish;
        let id = self.hub.find(&self.table.key(&message.channel));
        let Some(connection) = self.connections.get_mut(token) else {
            return Ok(());
        };
        let outstanding = connection.unanswered();
        if outstanding >= PUBLISHES_PER_CONNECTION_MAX {
            return Err(BUSY);
        }
        let place = id.and_then(|id| place_of(connection, id));
        let info = match connection.identity {
            Some(_) => client_info(connection, place),
            None => Vec::new(),
        };
        let request = Request {
            json: is_json,
            skip_history: message.skip_history,
            delta,
            idempotency,
            client: except_sender.then_some(connection.client),
            channel: &message.channel,
            tags: &tags,
            info: &info,
            data: &data,
            ..Request::default()
        };
        self.uplink.ask(token, origin, request)?;
        connection.answer_awaited();
        Ok(())
    }

    /// Counts what became of a publish before the publisher saw it.
    pub(super) fn count_publish(&mut self, result: &Result<(), Fault>) {
        let count = match result {
            Ok(()) => Count::PublishesAccepted,
            Err(fault) => match fault.code {
                102 | 103 => Count::PublishesDenied,
                111 => Count::PublishesDeferred,
                _ => Count::PublishesRejected,
            },
        };
        self.metrics.add(count, 1);
    }

    /// A PUBLISH frame: a message, or a piece of one.
    pub(super) fn tcp_piece(&mut self, token: Token, payload: &[u8]) -> Result<(), Close> {
        let message_bytes_max = self.settings.message_bytes_max;
        let Some(connection) = self.connections.get_mut(token) else {
            return Ok(());
        };
        let Dialect::Tcp(tcp) = &mut connection.dialect else {
            return Ok(());
        };
        let Some(message) = tcp.reassembly.push(payload, message_bytes_max)? else {
            return Ok(());
        };
        let publish = Publish::parse(&message)?;
        let result = self.tcp_publish(token, &publish);
        self.count_publish(&result);
        if let Err(fault) = result {
            self.tcp_fail(token, publish.request, fault);
        }
        Ok(())
    }

    fn tcp_publish(&mut self, token: Token, publish: &Publish<'_>) -> Result<(), Fault> {
        let message = Message {
            channel: publish.channel.to_string(),
            form: match publish.binary {
                true => Form::Binary,
                false => Form::Json,
            },
            data: publish.data.to_vec(),
            tags: publish.tags.as_bytes().to_vec(),
            idempotency_key: publish.idempotency_key.to_string(),
            ..Message::default()
        };
        let origin = Origin::Frame(publish.request);
        match self.may_publish(token, publish.channel)? {
            Gate::Open => self.publish(token, origin, &message),
            Gate::Hook => self.ask_to_publish(token, origin, message),
        }
    }

    /// The publisher's answer to a client's publish; the client may be gone.
    fn tcp_published(&mut self, token: Token, request: u32, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        connection.answer_came();
        match outcome {
            Outcome::Done { epoch, offset } => {
                let epoch = epoch_text(epoch);
                let published = Published {
                    request,
                    position: Position {
                        epoch: &epoch,
                        offset,
                    },
                };
                self.tcp_say(token, Kind::Published, |payload| published.encode(payload));
            }
            Outcome::Failed { code } => {
                self.metrics.add(Count::PublishesRejected, 1);
                self.tcp_fail(token, request, Fault::of_code(code));
            }
        }
    }

    /// Tells the publisher that a client is in a channel, where its namespace wants to know.
    /// `quiet`: it was there before, on another worker.
    pub(super) fn announce(&mut self, token: Token, id: ChannelId, quiet: bool) {
        let place = self.place_of(token, id);
        let Some((channel, place)) = self.hub.channel(id).zip(place) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let Some(standing) = connection.standing(place) else {
            return;
        };
        let traits = standing.traits;
        if traits.has(Traits::PRESENT | Traits::ANNOUNCED) {
            self.uplink.tell(Passage {
                kind: RequestKind::Join,
                channel: channel.name.clone(),
                client: connection.client,
                info: client_info(connection, Some(place)),
                presence: traits.has(Traits::PRESENT),
                announce: traits.has(Traits::ANNOUNCED),
                quiet,
            });
        }
    }

    /// Tells the publisher that a client leaves a channel, where it was told that it is in it.
    pub(super) fn retract(&mut self, token: Token, id: ChannelId) {
        let place = self.place_of(token, id);
        let Some((channel, place)) = self.hub.channel(id).zip(place) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let traits = connection.standing(place).map(|standing| standing.traits);
        if traits.is_some_and(|traits| traits.has(Traits::PRESENT | Traits::ANNOUNCED)) {
            self.uplink.tell(Passage {
                kind: RequestKind::Leave,
                channel: channel.name.clone(),
                client: connection.client,
                info: Vec::new(),
                presence: false,
                announce: false,
                quiet: false,
            });
        }
    }
}

/// Data as it goes into the log, and whether it is JSON. JSON is made compact: no line break of it
/// may end a line of ours.
fn checked_data(message: &Message, bytes_max: usize) -> Result<(Vec<u8>, bool), Fault> {
    if message.data.is_empty() {
        return Err(BAD_REQUEST);
    }
    if message.data.len() > bytes_max {
        return Err(LIMIT);
    }
    if message.form == Form::Binary {
        return Ok((message.data.clone(), false));
    }
    let mut compact = Vec::with_capacity(message.data.len());
    match json::compact(&message.data, &mut compact) {
        Ok(()) => Ok((compact, true)),
        Err(_) if message.form == Form::Json => Err(BAD_REQUEST),
        Err(_) => Ok((message.data.clone(), false)),
    }
}

fn place_of(connection: &Connection, id: ChannelId) -> Option<usize> {
    let held = connection.subscriptions.as_slice();
    held.iter().position(|each| each.channel == id)
}

/// A client as others see it, in the channel at `place` of its subscriptions.
pub(super) fn client_info(connection: &Connection, place: Option<usize>) -> Vec<u8> {
    let identity = connection.identity.as_deref();
    let standing = place.and_then(|place| connection.standing(place));
    ClientInfo {
        user: connection.user(),
        client: &uuid_text(&connection.client),
        conn_info: identity.map_or(&[], |client| &client.info),
        chan_info: standing.map_or(&[], |standing| &standing.info),
    }
    .encode()
}

impl From<UplinkError> for Fault {
    fn from(error: UplinkError) -> Self {
        match error {
            UplinkError::Full => BUSY,
            UplinkError::TooLarge { .. } => LIMIT,
            UplinkError::Corrupt { .. } => INTERNAL,
        }
    }
}
