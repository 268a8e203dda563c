//! This worker's way to the publisher: what clients publish, who comes and goes, and the answers.

use std::collections::VecDeque;

use tidegate_ring::error::UplinkError;
use tidegate_ring::uplink::{Reply, Request, RequestKind, UplinkProducer};
use tidegate_ring::wake::Bell;

use crate::slab::Token;

/// Who waits for an answer, by the number that the client gave its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A frame of the binary protocol.
    Frame(u32),
    /// A command of the Centrifuge protocol; 0: one that wants no reply.
    Command(u32),
    /// A request to the emulation endpoint.
    Emulation,
}

/// A request whose answer is outstanding.
struct Outstanding {
    id: u64,
    token: Token,
    origin: Origin,
}

/// A client that comes into a channel or goes.
pub(super) struct Passage {
    pub kind: RequestKind,
    pub channel: Box<str>,
    pub client: [u8; 16],
    /// Protobuf of its ClientInfo, of one that comes.
    pub info: Vec<u8>,
    pub presence: bool,
    pub announce: bool,
    /// It was there before, and has moved to this worker.
    pub quiet: bool,
}

/// Comings and goings that may wait for room in the uplink: some seconds of a storm of clients
/// without a publisher, a few MiB.
const PASSAGES_MAX: usize = 16_384;

pub struct Uplink {
    producer: UplinkProducer,
    publisher: Bell,
    /// In the order of their ids, which is that of the answers. No longer than what the uplink lets
    /// wait (half of its reply ring).
    outstanding: VecDeque<Outstanding>,
    /// For which the uplink had no room yet. While there are [`PASSAGES_MAX`] no new subscriptions
    /// are made, so that what comes on top is only that those which there are end or move.
    passages: VecDeque<Passage>,
    last_id: u64,
    must_wake: bool,
}

/// What a request came to, for the client that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done { epoch: u32, offset: u64 },
    Failed { code: u16 },
}

/// 100: the publisher will never answer.
const INTERNAL_ERROR: u16 = 100;

impl Uplink {
    pub fn new(producer: UplinkProducer, publisher: Bell) -> Self {
        Self {
            producer,
            publisher,
            outstanding: VecDeque::new(),
            passages: VecDeque::new(),
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

    /// Hands a client's request over, to be answered; its `id` is given here.
    pub(super) fn ask(
        &mut self,
        token: Token,
        origin: Origin,
        request: Request<'_>,
    ) -> Result<(), UplinkError> {
        let id = self.last_id + 1;
        self.must_wake |= self.producer.publish(&Request {
            id,
            want_reply: true,
            ..request
        })?;
        self.last_id = id;
        self.outstanding
            .push_back(Outstanding { id, token, origin });
        Ok(())
    }

    /// Tells that a client comes or goes, now or as soon as there is room, in the order of calls.
    pub(super) fn tell(&mut self, passage: Passage) {
        self.passages.push_back(passage);
        self.tell_waiting();
    }

    /// Hands over what there is room for of that.
    pub(super) fn tell_waiting(&mut self) {
        while let Some(passage) = self.passages.front() {
            let request = Request {
                kind: passage.kind,
                channel: &passage.channel,
                client: Some(passage.client),
                info: &passage.info,
                presence: passage.presence,
                announce: passage.announce,
                quiet: passage.quiet,
                ..Request::default()
            };
            match self.producer.publish(&request) {
                Ok(must_wake) => self.must_wake |= must_wake,
                Err(UplinkError::Full) => return,
                // Longer than the uplink takes, which is for messages and far longer than this;
                // or damaged, which the answers will tell.
                Err(UplinkError::TooLarge { .. } | UplinkError::Corrupt { .. }) => {}
            }
            self.passages.pop_front();
        }
    }

    /// Whether so many come and go that no more should.
    pub(super) fn is_crowded(&self) -> bool {
        self.passages.len() >= PASSAGES_MAX
    }

    /// Whether the publisher can know of all that came and went.
    pub fn has_told_all(&self) -> bool {
        self.passages.is_empty()
    }

    /// Wakes the publisher, once for all that was handed over since the last call.
    pub fn ring(&mut self) {
        if std::mem::take(&mut self.must_wake) {
            self.publisher.ring();
        }
    }

    /// Takes the answers that have come: whom for, and the outcome.
    pub(super) fn answers(&mut self) -> Result<Vec<(Token, Origin, Outcome)>, UplinkError> {
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
                answers.push((first.token, first.origin, outcome));
            }
        })?;
        Ok(answers)
    }
}

fn outcome(reply: &Reply) -> Outcome {
    if reply.status == 0 {
        return Outcome::Done {
            epoch: reply.epoch,
            offset: reply.offset,
        };
    }
    Outcome::Failed {
        code: u16::try_from(reply.status).unwrap_or(INTERNAL_ERROR),
    }
}
