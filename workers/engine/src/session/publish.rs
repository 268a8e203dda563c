//! Publishes of clients: through this worker's uplink to the publisher, and the answers back.

use std::collections::VecDeque;

use tidegate_ring::error::UplinkError;
use tidegate_ring::uplink::{Reply, Request, UplinkProducer};
use tidegate_ring::wake::Bell;

use super::Sessions;
use crate::slab::Token;

/// Publishes of one connection that may wait for their answers: more is a client that does not
/// wait, and would take the uplink from all others.
pub(super) const PUBLISHES_PER_CONNECTION_MAX: u32 = 64;

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
pub(super) enum Outcome {
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
    pub(super) fn publish(
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
}
