//! One batch in the making: each request gets its place, or the reason why it gets none.

use std::ops::ControlFlow;

use super::idempotency::Keys;
use super::{Answer, Uplink};
use crate::channels::{ChannelWriter, Horizon};
use crate::error::{LogError, UplinkError};
use crate::host;
use crate::log::{Batch, LogWriter};
use crate::publication::{
    Idempotency, PublicationView, RECORD_KIND, Source, TAGS_BYTES_MAX, is_channel_name,
};
use crate::ring::Ring;
use crate::uplink::{Reply, Request};

/// Numbers of the client API's errors.
const INTERNAL: u32 = 100;
const LIMIT_EXCEEDED: u32 = 106;
const BAD_REQUEST: u32 = 107;

/// A batch takes so much, then it is committed: its first message should not wait for its last.
const BATCH_BYTES_MAX: u64 = 128 * 1024;

/// ... and at most this part of the log. With a record of the longest kind behind so much, and the
/// padding between them, a batch is never longer than the log's writer allows.
const BATCH_SHARE: u64 = 16;

/// Adds up what a batch did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub accepted: u64,
    pub duplicate: u64,
    pub no_channel: u64,
    pub too_large: u64,
    pub bad_request: u64,
    pub internal: u64,
    pub answered_again: u64,
    pub payload_bytes: u64,
}

pub(super) struct Draft<'a> {
    batch: Batch<'a>,
    channels: &'a mut ChannelWriter,
    keys: &'a mut Keys,
    horizon: Horizon,
    payload_bytes_max: usize,
    bytes_max: u64,
    bytes: u64,
    time_ms: u64,
    outcome: Outcome,
}

impl<'a> Draft<'a> {
    /// # Errors
    /// As [`LogWriter::batch`].
    pub fn new(
        log: &'a mut LogWriter,
        channels: &'a mut ChannelWriter,
        keys: &'a mut Keys,
        horizon: Horizon,
    ) -> Result<Self, LogError> {
        let payload_bytes_max = log.view().payload_bytes_max();
        Ok(Self {
            batch: log.batch()?,
            channels,
            keys,
            horizon,
            payload_bytes_max,
            bytes_max: BATCH_BYTES_MAX.min(horizon.capacity / BATCH_SHARE),
            bytes: 0,
            time_ms: host::wall_clock_ms(),
            outcome: Outcome::default(),
        })
    }

    /// Takes requests until there are no more, the batch is full, or `requests_max` are taken.
    ///
    /// # Errors
    /// [`UplinkError::Corrupt`]: nothing more can be taken from this uplink.
    pub fn take_from(
        &mut self,
        uplink: &mut Uplink,
        requests_max: usize,
    ) -> Result<usize, UplinkError> {
        let Uplink {
            id,
            generation,
            consumer,
            replies,
            unanswered,
            ..
        } = uplink;
        consumer.read(requests_max, |request, position| {
            let source = Source {
                uplink: *id,
                generation: *generation,
                position,
            };
            let answer = match unanswered.remove(&position) {
                Some(answer) => {
                    self.outcome.answered_again += 1;
                    answer
                }
                None => match self.place(&request, source) {
                    Some(answer) => answer,
                    None => return ControlFlow::Break(()),
                },
            };
            if request.want_reply {
                let Answer {
                    status,
                    epoch,
                    offset,
                } = answer;
                replies.push(Reply {
                    id: request.id,
                    status,
                    epoch,
                    offset,
                });
            }
            ControlFlow::Continue(())
        })
    }

    /// Makes the batch durable and visible; `wake` is called with the seats of sleeping readers.
    pub fn finish(self, wake: impl FnMut(u32)) -> Outcome {
        if !self.batch.is_empty() {
            let prepared = self.batch.prepare();
            self.channels.store();
            prepared.commit(wake);
        }
        self.outcome
    }

    /// Appends a request. `None`: the batch is full.
    fn place(&mut self, request: &Request<'_>, source: Source) -> Option<Answer> {
        if !is_sound(request) {
            self.outcome.bad_request += 1;
            return Some(Answer::refused(BAD_REQUEST));
        }
        let hash = self.idempotency_hash(request);
        if let Some(answer) = hash.and_then(|hash| self.keys.get(hash, self.time_ms)) {
            self.outcome.duplicate += 1;
            return Some(answer);
        }
        let mut publication = PublicationView {
            key: self.channels.table().key(request.channel),
            epoch: 0,
            offset: 0,
            previous: 0,
            time_ms: self.time_ms,
            source,
            idempotency: hash.map(|hash| Idempotency {
                hash,
                previous: self.channels.keyed_last(),
            }),
            version: 0,
            except: request.client,
            channel: request.channel,
            json: request.json,
            delta: request.delta,
            kept: false,
            tags: request.tags,
            info: request.info,
            data: request.data,
        };
        let payload_bytes = publication.payload_bytes();
        if payload_bytes > self.payload_bytes_max {
            self.outcome.too_large += 1;
            return Some(Answer::refused(LIMIT_EXCEEDED));
        }
        let bytes = Ring::record_bytes(payload_bytes) as u64;
        if self.bytes > 0 && self.bytes + bytes > self.bytes_max {
            return None;
        }
        let Some(place) = self.channels.place(publication.key, self.horizon) else {
            self.outcome.no_channel += 1;
            return Some(Answer::refused(LIMIT_EXCEEDED));
        };
        (publication.epoch, publication.offset) = (place.epoch, place.offset);
        publication.previous = place.previous;
        let Some(position) = self.append(&publication) else {
            self.outcome.internal += 1;
            return Some(Answer::refused(INTERNAL));
        };
        self.channels.advance(place, position);
        self.bytes += bytes;
        self.outcome.accepted += 1;
        self.outcome.payload_bytes += payload_bytes as u64;
        let answer = Answer::placed(place.epoch, place.offset);
        if let Some(hash) = hash {
            self.channels.set_keyed_last(position);
            self.keys.insert(hash, answer, self.time_ms);
        }
        Some(answer)
    }

    /// `None` cannot be: the batch's bounds leave the writer room. It is counted all the same.
    fn append(&mut self, publication: &PublicationView<'_>) -> Option<u64> {
        let header = publication.header();
        let parts = [
            header.as_bytes(),
            publication.channel.as_bytes(),
            publication.tags,
            publication.info,
            publication.data,
        ];
        self.batch.push(RECORD_KIND, &parts).ok()
    }

    /// Keys are the producers' own, so the channel is a part of the hash, and so is a secret.
    fn idempotency_hash(&self, request: &Request<'_>) -> Option<u128> {
        let key = request.idempotency.to_le_bytes();
        let table = self.channels.table();
        (request.idempotency != 0).then(|| table.hash(&[request.channel.as_bytes(), &key]))
    }
}

/// Whether a request may be shown to clients: a producer's library sees to it, but any process may
/// be at the other end.
fn is_sound(request: &Request<'_>) -> bool {
    is_channel_name(request.channel)
        && request.tags.len() <= TAGS_BYTES_MAX
        && std::str::from_utf8(request.tags).is_ok()
        && (!request.json || std::str::from_utf8(request.data).is_ok())
}
