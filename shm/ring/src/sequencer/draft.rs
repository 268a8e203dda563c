//! One batch in the making: each request gets its place, or the reason why it gets none.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::idempotency::Keys;
use super::tables::Tables;
use super::{Answer, NO_REQUEST, Uplink};
use crate::channels::{ChannelKey, Horizon, Place};
use crate::entry::{EmulationView, Entry, EventView, OrderView, RemovalView};
use crate::error::{LogError, UplinkError};
use crate::host;
use crate::log::{Audience, Batch, LogWriter};
use crate::presence::{self, Member};
use crate::publication::{
    Idempotency, NO_PREVIOUS, PublicationView, RECORD_KIND, Source, TAGS_BYTES_MAX, Version,
    is_channel_name,
};
use crate::ring::Ring;
use crate::uplink::{Reply, Request, RequestKind};

/// Numbers of the client API's errors.
const INTERNAL: u32 = 100;
const LIMIT_EXCEEDED: u32 = 106;
const BAD_REQUEST: u32 = 107;

/// A batch takes so much, then it is committed: its first message should not wait for its last.
const BATCH_BYTES_MAX: u64 = 128 * 1024;

/// ... and at most this part of the log. With a record of the longest kind behind so much, and the
/// padding between them, a batch is never longer than the log's writer allows.
const BATCH_SHARE: u64 = 16;

/// The longest ClientInfo: more than a token that fits a request can say.
const INFO_BYTES_MAX: usize = u16::MAX as usize;

/// Adds up what a batch did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub accepted: u64,
    pub duplicate: u64,
    pub superseded: u64,
    pub no_channel: u64,
    pub too_large: u64,
    pub bad_request: u64,
    pub internal: u64,
    pub joined: u64,
    pub presence_full: u64,
    pub left: u64,
    pub left_behind: u64,
    pub orders: u64,
    pub emulations: u64,
    pub removals: u64,
    pub answered_again: u64,
    pub payload_bytes: u64,
    /// Whether history or presence changed.
    pub followed: bool,
}

pub(super) struct Draft<'a> {
    batch: Batch<'a>,
    tables: &'a mut Tables,
    keys: &'a mut Keys,
    horizon: Horizon,
    payload_bytes_max: usize,
    bytes_max: u64,
    bytes: u64,
    time_ms: u64,
    /// Whether there is anything for history or presence to follow.
    followed: bool,
    /// Clients whose presence this batch changes. Plans are made from the table as it was before,
    /// so each may change only once.
    moved: HashSet<(ChannelKey, [u8; 16])>,
    /// Cells of the presence table that this batch will take.
    cells: usize,
    outcome: Outcome,
}

impl<'a> Draft<'a> {
    /// # Errors
    /// As [`LogWriter::batch`].
    pub fn new(
        log: &'a mut LogWriter,
        tables: &'a mut Tables,
        keys: &'a mut Keys,
    ) -> Result<Self, LogError> {
        let payload_bytes_max = log.view().payload_bytes_max();
        let horizon = Horizon::of(log.view());
        Ok(Self {
            batch: log.batch()?,
            tables,
            keys,
            horizon,
            payload_bytes_max,
            bytes_max: BATCH_BYTES_MAX.min(horizon.capacity / BATCH_SHARE),
            bytes: 0,
            time_ms: host::wall_clock_ms(),
            followed: false,
            moved: HashSet::new(),
            cells: 0,
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

    /// Takes clients out of their channels whose owner is gone, until the batch is full; returns
    /// their number.
    pub fn leave_behind(&mut self, uplink: u32, clients: &[presence::Left]) -> u64 {
        let source = Source {
            uplink,
            generation: NO_REQUEST,
            position: 0,
        };
        for left in clients {
            let event = EventView {
                source,
                key: left.key,
                channel: &left.channel,
                client: left.client,
                joined: false,
                presence: left.member.presence,
                announce: left.member.announce,
                info: &left.info,
            };
            if self.change(event, left.member.announce).is_none() {
                break;
            }
            self.outcome.left_behind += 1;
        }
        self.outcome.left_behind
    }

    /// Makes the batch durable and visible; `wake` is called with the seats of sleeping readers.
    pub fn finish(mut self, wake: impl FnMut(u32)) -> Outcome {
        self.outcome.followed = self.followed;
        if !self.batch.is_empty() {
            let prepared = self.batch.prepare();
            self.tables.commit(prepared, self.followed, wake);
        }
        self.outcome
    }

    /// Appends a request. `None`: the batch is full.
    fn place(&mut self, request: &Request<'_>, source: Source) -> Option<Answer> {
        if !is_sound(request) {
            self.outcome.bad_request += 1;
            return Some(Answer::refused(BAD_REQUEST));
        }
        match request.kind {
            RequestKind::Publish => self.publish(request, source),
            RequestKind::Join => self.join(request, source),
            RequestKind::Leave => self.leave(request, source),
            RequestKind::Order => {
                let order = OrderView {
                    source,
                    json: request.data,
                };
                let answer = self.tell(&Entry::Order(order))?;
                self.outcome.orders += 1;
                Some(answer)
            }
            RequestKind::Emulate => {
                let emulation = EmulationView {
                    source,
                    session: request.client.unwrap_or_default(),
                    protobuf: !request.json,
                    data: request.data,
                };
                let answer = self.tell(&Entry::Emulation(emulation))?;
                self.outcome.emulations += 1;
                Some(answer)
            }
            RequestKind::HistoryRemove => {
                let removal = RemovalView {
                    source,
                    key: self.tables.channels.table().key(request.channel),
                    channel: request.channel,
                };
                let answer = self.tell(&Entry::Removal(removal))?;
                self.followed = true;
                self.outcome.removals += 1;
                Some(answer)
            }
        }
    }

    #[inline]
    fn publish(&mut self, request: &Request<'_>, source: Source) -> Option<Answer> {
        let hash = self.idempotency_hash(request);
        if let Some(answer) = hash.and_then(|hash| self.keys.get(hash, self.time_ms)) {
            self.outcome.duplicate += 1;
            return Some(answer);
        }
        let mut publication = PublicationView {
            key: self.tables.channels.table().key(request.channel),
            epoch: 0,
            offset: 0,
            previous: NO_PREVIOUS,
            time_ms: self.time_ms,
            source,
            idempotency: hash.map(|hash| Idempotency {
                hash,
                previous: self.tables.channels.keyed_last(),
            }),
            version: request.version,
            except: request.client,
            channel: request.channel,
            json: request.json,
            delta: request.delta,
            kept: false,
            tags: request.tags,
            info: request.info,
            data: request.data,
        };
        // It may have to carry the version of an earlier one.
        if self.has_no_room(publication.payload_bytes() + size_of::<Version>())? {
            self.outcome.too_large += 1;
            return Some(Answer::refused(LIMIT_EXCEEDED));
        }
        if request.skip_history && request.version.number == 0 {
            return self.append(&publication, None, hash);
        }
        let Some(mut place) = self.tables.place(publication.key, self.horizon) else {
            self.outcome.no_channel += 1;
            return Some(Answer::refused(LIMIT_EXCEEDED));
        };
        if request.version.is_superseded_by(place.version) {
            self.outcome.superseded += 1;
            return Some(Answer::placed(place.epoch, place.offset - 1));
        }
        if request.version.number != 0 {
            place.version = request.version;
        }
        publication.version = place.version;
        if !request.skip_history {
            (publication.epoch, publication.offset) = (place.epoch, place.offset);
            publication.previous = place.previous;
            let history = &mut self.tables.history;
            publication.kept =
                history.has_rules() && history.keeps(request.channel, publication.payload_bytes());
        }
        self.append(&publication, Some(place), hash)
    }

    /// The last steps of a publish: nothing refuses it any more.
    #[inline]
    fn append(
        &mut self,
        publication: &PublicationView<'_>,
        place: Option<Place>,
        hash: Option<u128>,
    ) -> Option<Answer> {
        let header = publication.header();
        let parts = [
            header.as_bytes(),
            publication.channel.as_bytes(),
            publication.tags,
            publication.info,
            publication.data,
        ];
        let audience = Audience::Interested(publication.key.into());
        let Some(position) = self.push(audience, RECORD_KIND, &parts) else {
            return Some(Answer::refused(INTERNAL));
        };
        match place {
            Some(place) if publication.offset > 0 => self.tables.channels.advance(place, position),
            Some(place) => self.tables.channels.note(place, position),
            None => (),
        }
        self.followed |= publication.kept;
        self.outcome.accepted += 1;
        let answer = Answer::placed(publication.epoch, publication.offset);
        if let Some(hash) = hash {
            self.tables.channels.set_keyed_last(position);
            self.keys.insert(hash, answer, self.time_ms);
        }
        Some(answer)
    }

    #[cold]
    fn join(&mut self, request: &Request<'_>, source: Source) -> Option<Answer> {
        let event = self.event(request, source, true);
        if self.moved.contains(&(event.key, event.client)) {
            return None;
        }
        let presence = &self.tables.presence;
        let known = presence.member(event.key, event.client, event.info);
        let member = Member {
            owner: source.uplink,
            presence: event.presence,
            announce: event.announce,
        };
        if known == Some((member, true)) {
            return Some(Answer::DONE);
        }
        let cells = match known {
            // It only gets another owner.
            Some((before, true)) if before.presence == event.presence => 0,
            _ => presence.cells_for(event.channel, event.info),
        };
        if cells > 0 && presence.room() < self.cells + cells {
            self.outcome.presence_full += 1;
            return Some(Answer::refused(LIMIT_EXCEEDED));
        }
        let is_told = event.announce && !request.quiet && known.is_none();
        let answer = self.change(event, is_told)?;
        self.cells += cells;
        self.outcome.joined += 1;
        Some(answer)
    }

    /// Only who serves a client can say that it is gone: its connection may have moved.
    fn leave(&mut self, request: &Request<'_>, source: Source) -> Option<Answer> {
        let asked = self.event(request, source, false);
        let presence = &self.tables.presence;
        if self.moved.contains(&(asked.key, asked.client)) {
            return None;
        }
        let member = match presence.member(asked.key, asked.client, b"") {
            Some((member, _)) if member.owner == source.uplink => member,
            _ => return Some(Answer::DONE),
        };
        let info = presence.info_of(asked.key, asked.client);
        let event = EventView {
            presence: member.presence,
            announce: member.announce,
            info: &info,
            ..asked
        };
        let answer = self.change(event, member.announce && !request.quiet)?;
        self.outcome.left += 1;
        Some(answer)
    }

    fn event<'r>(&self, request: &Request<'r>, source: Source, joined: bool) -> EventView<'r> {
        EventView {
            source,
            key: self.tables.channels.table().key(request.channel),
            channel: request.channel,
            client: request.client.unwrap_or_default(),
            joined,
            presence: request.presence,
            announce: request.announce,
            info: request.info,
        }
    }

    /// Changes the presence of a client. `None`: not in this batch any more.
    fn change(&mut self, event: EventView<'_>, is_told: bool) -> Option<Answer> {
        let client = (event.key, event.client);
        if self.moved.contains(&client) {
            return None;
        }
        let entry = if is_told {
            Entry::Event(event)
        } else {
            Entry::Presence(event)
        };
        let answer = self.tell(&entry)?;
        self.moved.insert(client);
        self.followed = true;
        Some(answer)
    }

    /// Appends what is no publication. `None`: the batch is full.
    #[cold]
    fn tell(&mut self, entry: &Entry<'_>) -> Option<Answer> {
        let payload = entry.encode();
        if self.has_no_room(payload.len())? {
            self.outcome.too_large += 1;
            return Some(Answer::refused(LIMIT_EXCEEDED));
        }
        let pushed = self.push(entry.audience(), entry.kind(), &[&payload]);
        Some(pushed.map_or(Answer::refused(INTERNAL), |_| Answer::DONE))
    }

    /// Whether the log can never take a payload of so many bytes; `None`: this batch cannot.
    fn has_no_room(&self, payload_bytes: usize) -> Option<bool> {
        let bytes = Ring::record_bytes(payload_bytes) as u64;
        if payload_bytes > self.payload_bytes_max {
            return Some(true);
        }
        (self.bytes == 0 || self.bytes + bytes <= self.bytes_max).then_some(false)
    }

    /// `None` cannot be: the batch's bounds leave the writer room. It is counted all the same.
    #[inline]
    fn push(&mut self, audience: Audience, kind: u32, parts: &[&[u8]]) -> Option<u64> {
        let payload_bytes = parts.iter().map(|part| part.len()).sum();
        let position = self.batch.push_for(audience, kind, parts).ok();
        if position.is_some() {
            self.bytes += Ring::record_bytes(payload_bytes) as u64;
            self.outcome.payload_bytes += payload_bytes as u64;
        } else {
            self.outcome.internal += 1;
        }
        position
    }

    /// Keys are the producers' own, so the channel is a part of the hash, and so is a secret.
    fn idempotency_hash(&self, request: &Request<'_>) -> Option<u128> {
        let key = request.idempotency.to_le_bytes();
        let table = self.tables.channels.table();
        (request.idempotency != 0).then(|| table.hash(&[request.channel.as_bytes(), &key]))
    }
}

/// Whether a request may be shown to others: a producer's library sees to it, but any process may
/// be at the other end.
#[inline]
fn is_sound(request: &Request<'_>) -> bool {
    let is_text = |bytes| std::str::from_utf8(bytes).is_ok();
    match request.kind {
        RequestKind::Publish => {
            is_channel_name(request.channel)
                && request.tags.len() <= TAGS_BYTES_MAX
                && request.info.len() <= INFO_BYTES_MAX
                && is_text(request.tags)
                && (!request.json || is_text(request.data))
        }
        RequestKind::Join | RequestKind::Leave => {
            is_channel_name(request.channel)
                && request.client.is_some()
                && request.info.len() <= INFO_BYTES_MAX
        }
        RequestKind::Order => is_text(request.data),
        RequestKind::Emulate => {
            request.client.is_some() && (!request.json || is_text(request.data))
        }
        RequestKind::HistoryRemove => is_channel_name(request.channel),
    }
}
