//! Publishes of clients: through this worker's uplink to the publisher, and the answers back.
//! Only the binary protocol's clients publish; the other dialect is unidirectional.

use std::collections::VecDeque;

use tidegate_ring::error::UplinkError;
use tidegate_ring::json;
use tidegate_ring::publication::is_channel_name;
use tidegate_ring::uplink::{Reply, Request, UplinkProducer};
use tidegate_ring::wake::Bell;

use super::Sessions;
use super::fault::{BAD_REQUEST, BUSY, DENIED, Fault, INTERNAL, LIMIT, UNKNOWN_CHANNEL};
use super::subscribe::epoch_text;
use crate::connection::Dialect;
use crate::metrics::Count;
use crate::protocol::close::Close;
use crate::protocol::tcp::Kind;
use crate::protocol::tcp::payload::{Position, Publish, Published};
use crate::slab::Token;

/// Publishes of one connection that may wait for their answers: more is a client that does not
/// wait, and would take the uplink from all others.
const PUBLISHES_PER_CONNECTION_MAX: u32 = 64;

/// A publish whose answer is outstanding.
struct Outstanding {
    id: u64,
    token: Token,
    /// The client's own number for it.
    request: u32,
}

/// This worker's way to the publisher.
pub struct Uplink {
    producer: UplinkProducer,
    publisher: Bell,
    /// In the order of their ids, which is that of the answers. No longer than what the uplink lets
    /// wait (half of its reply ring).
    outstanding: VecDeque<Outstanding>,
    last_id: u64,
    must_wake: bool,
}

/// What a publish came to, for the client that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Published { epoch: u32, offset: u64 },
    Failed { code: u16 },
}

/// 100: the publisher will never answer.
const INTERNAL_ERROR: u16 = 100;

impl Uplink {
    pub fn new(producer: UplinkProducer, publisher: Bell) -> Self {
        let outstanding = VecDeque::new();
        Self {
            producer,
            publisher,
            outstanding,
            last_id: 0,
            must_wake: false,
        }
    }

    pub fn may_sleep(&self) -> bool {
        self.producer.may_sleep()
    }

    pub fn awake(&self) {
        self.producer.awake();
    }

    /// Hands a client's publish over; `request.id` is given here.
    fn publish(
        &mut self,
        token: Token,
        client_request: u32,
        request: Request<'_>,
    ) -> Result<(), UplinkError> {
        let id = self.last_id + 1;
        self.must_wake |= self.producer.publish(&Request { id, ..request })?;
        self.last_id = id;
        self.outstanding.push_back(Outstanding {
            id,
            token,
            request: client_request,
        });
        Ok(())
    }

    /// Wakes the publisher, once for all that was handed over since the last call.
    pub fn ring(&mut self) {
        if std::mem::take(&mut self.must_wake) {
            self.publisher.ring();
        }
    }

    /// Takes the answers that have come: whom for, the client's number, the outcome.
    fn answers(&mut self) -> Result<Vec<(Token, u32, Outcome)>, UplinkError> {
        let mut answers = Vec::new();
        let outstanding = &mut self.outstanding;
        self.producer.replies(|reply| {
            let passed = outstanding
                .iter()
                .take_while(|each| each.id <= reply.id)
                .count();
            for first in outstanding.drain(..passed) {
                let outcome = if first.id == reply.id {
                    outcome(&reply)
                } else {
                    // Answers come in the order of requests: this one was passed over.
                    Outcome::Failed {
                        code: INTERNAL_ERROR,
                    }
                };
                answers.push((first.token, first.request, outcome));
            }
        })?;
        Ok(answers)
    }
}

fn outcome(reply: &Reply) -> Outcome {
    if reply.status == 0 {
        return Outcome::Published {
            epoch: reply.epoch,
            offset: reply.offset,
        };
    }
    Outcome::Failed {
        code: u16::try_from(reply.status).unwrap_or(INTERNAL_ERROR),
    }
}

impl Sessions {
    /// Hands the publisher's answers to those who asked.
    ///
    /// # Errors
    /// The uplink is damaged: this worker cannot go on.
    pub fn take_replies(&mut self) -> Result<(), UplinkError> {
        for (token, request, outcome) in self.uplink.answers()? {
            self.tcp_published(token, request, outcome);
        }
        Ok(())
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
        match self.tcp_publish(token, &publish) {
            Ok(()) => self.metrics.add(Count::PublishesAccepted, 1),
            Err(fault) => {
                let count = match fault.code {
                    102 | 103 => Count::PublishesDenied,
                    111 => Count::PublishesDeferred,
                    _ => Count::PublishesRejected,
                };
                self.metrics.add(count, 1);
                self.tcp_fail(token, publish.request, fault);
            }
        }
        Ok(())
    }

    fn tcp_publish(&mut self, token: Token, publish: &Publish<'_>) -> Result<(), Fault> {
        let Publish {
            channel,
            binary,
            tags,
            idempotency_key,
            data,
            ..
        } = *publish;
        if !is_channel_name(channel) || data.is_empty() {
            return Err(BAD_REQUEST);
        }
        let namespace = self.settings.namespace(channel).ok_or(UNKNOWN_CHANNEL)?;
        if !namespace.allow_publish_for_client {
            return Err(DENIED);
        }
        if data.len() > self.settings.message_bytes_max {
            return Err(LIMIT);
        }
        let (mut compact_data, mut compact_tags) = (Vec::new(), Vec::new());
        if !binary {
            json::compact(data, &mut compact_data).map_err(|_| BAD_REQUEST)?;
        }
        if !tags.is_empty() {
            json::compact_object(tags.as_bytes(), &mut compact_tags).map_err(|_| BAD_REQUEST)?;
        }
        // Hashed otherwise than backends' keys are: no client can use up a key of theirs.
        let idempotency = match idempotency_key {
            "" => 0,
            key => self
                .table
                .hash(&[channel.as_bytes(), key.as_bytes()])
                .max(1),
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return Ok(());
        };
        let Dialect::Tcp(tcp) = &mut connection.dialect else {
            return Ok(());
        };
        if tcp.publishes >= PUBLISHES_PER_CONNECTION_MAX {
            return Err(BUSY);
        }
        let request = Request {
            id: 0,
            want_reply: true,
            json: !binary,
            idempotency,
            channel,
            tags: &compact_tags,
            data: if binary { data } else { &compact_data },
            ..Request::default()
        };
        self.uplink
            .publish(token, publish.request, request)
            .map_err(|error| match error {
                UplinkError::Full => BUSY,
                UplinkError::TooLarge { .. } => LIMIT,
                UplinkError::Corrupt { .. } => INTERNAL,
            })?;
        tcp.publishes += 1;
        Ok(())
    }

    /// The publisher's answer to a client's publish; the client may be gone.
    fn tcp_published(&mut self, token: Token, request: u32, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let Dialect::Tcp(tcp) = &mut connection.dialect else {
            return;
        };
        tcp.publishes -= 1;
        match outcome {
            Outcome::Published { epoch, offset } => {
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
}
