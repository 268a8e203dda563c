//! Joining a channel, with or without what was missed, and leaving it.

use tidegate_ring::channels::Top;
use tidegate_ring::history::history;
use tidegate_ring::publication::is_channel_name;

use super::Sessions;
use crate::connection::Subscriptions;
use crate::hub::{ChannelId, Format, Subscriber, Subscription};
use crate::metrics::Count;
use crate::slab::Token;

/// How often a history is looked for again while its newest record is written but not committed:
/// the publisher is between two stores then, or was killed there. Each look gives the processor
/// to others first, so this is some 100 µs.
const HISTORY_LOOKS_MAX: u32 = 100;

/// How much trouble is taken to find what was missed.
pub(super) struct Bounds {
    pub publications_max: usize,
    pub bytes_max: usize,
    pub looks_max: u32,
}

/// What a subscription got.
pub(super) struct Granted {
    pub channel: ChannelId,
    pub epoch: u32,
    /// Newest offset at this moment.
    pub top_offset: u64,
    /// Whether a position in this channel is worth asking for.
    pub recoverable: bool,
    /// `None`: not asked for, or not possible.
    pub recovered: Option<Recovered>,
}

pub(super) struct Recovered {
    /// Where the client said that it left off.
    since_offset: u64,
    /// Payloads of the publications after it, in order, through the top.
    missed: Vec<Vec<u8>>,
}

impl Granted {
    pub fn missed(&self) -> impl Iterator<Item = &[u8]> {
        self.recovered
            .iter()
            .flat_map(|each| each.missed.iter().map(Vec::as_slice))
    }

    /// What was missed, in bytes of the log.
    pub fn missed_bytes(&self) -> usize {
        self.missed().map(<[u8]>::len).sum()
    }

    /// As the client protocol has it: where a recovered client left off, else the top.
    pub fn reported_offset(&self) -> u64 {
        self.recovered
            .as_ref()
            .map_or(self.top_offset, |each| each.since_offset)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubscribeError {
    BadName,
    /// No such namespace.
    Unknown,
    /// The namespace does not allow it.
    Denied,
    Already,
    Limit,
}

/// An epoch as clients see it.
pub(super) fn epoch_text(epoch: u32) -> String {
    format!("{epoch:08x}")
}

impl Sessions {
    /// Subscribes a connection to `name`, recovering what came after `since` (epoch, offset) if
    /// that is asked for, possible, and at most `bytes_max`. Live publications follow from this
    /// turn's fan-out on.
    pub(super) fn subscribe(
        &mut self,
        token: Token,
        name: &str,
        since: Option<(&str, u64)>,
        bytes_max: usize,
    ) -> Result<Granted, SubscribeError> {
        let recoverable = self.may_subscribe(token, name).inspect_err(|error| {
            self.metrics.add(
                match error {
                    SubscribeError::Unknown => Count::SubscribesUnknown,
                    SubscribeError::Denied => Count::SubscribesDenied,
                    SubscribeError::Limit => Count::SubscribesLimited,
                    SubscribeError::BadName | SubscribeError::Already => Count::SubscribesBad,
                },
                1,
            );
        })?;
        let key = self.table.key(name);
        let found = self.hub.find(&key);
        if let Some(id) = found
            && self.is_subscribed(token, id)
        {
            self.metrics.add(Count::SubscribesBad, 1);
            return Err(SubscribeError::Already);
        }
        let top = self.top(key);
        let id = match found.filter(|id| self.continues(*id, top)) {
            Some(id) => id,
            None => self.hub.insert(key, name, top.epoch, top.offset),
        };
        self.join(token, id, top.offset);
        let recovered = since
            .filter(|_| recoverable)
            .and_then(|(epoch, since_offset)| {
                let is_same = epoch.is_empty() || epoch == epoch_text(top.epoch);
                let missed = if is_same {
                    self.missed(id, since_offset, top, bytes_max)
                } else {
                    None
                };
                missed.map(|missed| Recovered {
                    since_offset,
                    missed,
                })
            });
        if since.is_some() {
            let is_recovered = recovered.is_some();
            let count = if is_recovered {
                Count::Recovered
            } else {
                Count::Unrecoverable
            };
            self.metrics.add(count, 1);
        }
        Ok(Granted {
            channel: id,
            epoch: top.epoch,
            top_offset: top.offset,
            recoverable,
            recovered,
        })
    }

    /// Checks what can be checked without the channel; returns whether it can be recovered.
    fn may_subscribe(&mut self, token: Token, name: &str) -> Result<bool, SubscribeError> {
        if !is_channel_name(name) {
            return Err(SubscribeError::BadName);
        }
        let namespace = self
            .settings
            .namespace(name)
            .ok_or(SubscribeError::Unknown)?;
        // A private channel (`$`) wants a token, which nobody can show yet.
        if !namespace.allow_subscribe_for_client || name.starts_with('$') {
            return Err(SubscribeError::Denied);
        }
        let recoverable = namespace.recovery;
        let held = self
            .connections
            .get_mut(token)
            .map_or(0, |each| each.subscriptions.len());
        if held >= self.settings.channels_per_connection_max {
            return Err(SubscribeError::Limit);
        }
        Ok(recoverable)
    }

    fn is_subscribed(&mut self, token: Token, id: ChannelId) -> bool {
        self.connections.get_mut(token).is_some_and(|each| {
            each.subscriptions
                .as_slice()
                .iter()
                .any(|s| s.channel == id)
        })
    }

    /// Whether a channel known here is still the one that the table speaks of. If the table has
    /// forgotten it since (it held too many), its next publication begins a new epoch: those
    /// who wait for the old one are told now, and the channel leaves with them.
    pub(super) fn continues(&mut self, id: ChannelId, top: Top) -> bool {
        let Some(channel) = self.hub.channel(id) else {
            return false;
        };
        // One that was never published to has no epoch yet: its first publication brings it, and
        // what the table has of it already is still on its way to those who wait here.
        if channel.epoch == top.epoch || channel.offset == 0 {
            return true;
        }
        self.lose(id);
        false
    }

    pub(super) fn join(&mut self, token: Token, id: ChannelId, after_offset: u64) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let subscription = connection.subscriptions.len() as u32;
        let subscriber = Subscriber {
            connection: token.index,
            subscription,
            after_offset,
        };
        let place = self.hub.subscribe(id, subscriber, connection.format());
        connection.subscriptions.push(Subscription {
            channel: id,
            subscriber: place,
        });
    }

    /// How much may be recovered for a connection: more than its queue may hold for a while would
    /// only get it closed as slow, and again when it comes back.
    pub(super) fn recovery_bytes_max(&mut self, token: Token) -> usize {
        let queued = self
            .connections
            .get_mut(token)
            .map_or(0, |each| each.queued_bytes());
        self.settings.queue_soft_bytes.saturating_sub(queued)
    }

    /// The publications of a channel after `since_offset` up to `top`, if all of them are there and
    /// within the bounds.
    pub(super) fn missed(
        &mut self,
        id: ChannelId,
        since_offset: u64,
        top: Top,
        bytes_max: usize,
    ) -> Option<Vec<Vec<u8>>> {
        let bounds = Bounds {
            publications_max: self.settings.recovery_publications_max,
            bytes_max,
            looks_max: HISTORY_LOOKS_MAX,
        };
        self.missed_within(id, since_offset, top, &bounds)
    }

    /// As [`Sessions::missed`] with other bounds.
    pub(super) fn missed_within(
        &mut self,
        id: ChannelId,
        since_offset: u64,
        top: Top,
        bounds: &Bounds,
    ) -> Option<Vec<Vec<u8>>> {
        let count = top.offset.checked_sub(since_offset)?;
        if count == 0 {
            return Some(Vec::new());
        }
        if count > bounds.publications_max as u64 {
            return None;
        }
        let key = self.hub.channel(id)?.key;
        for _ in 0..bounds.looks_max {
            // Asked before the look: what is committed during it deserves another one.
            let behind_tail = self.reader.tail().wrapping_sub(top.last_position);
            let is_committed = behind_tail.cast_signed() > 0;
            let view = self.reader.view();
            let (count_max, bytes_max) = (bounds.publications_max, bounds.bytes_max);
            let found = history(view, key, since_offset, top, count_max, bytes_max);
            if found.is_some() || is_committed {
                return found;
            }
            std::thread::yield_now();
        }
        None
    }

    /// Takes a connection out of one channel.
    pub(super) fn unsubscribe(&mut self, token: Token, id: ChannelId) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let format = connection.format();
        let held = connection.subscriptions.as_slice();
        let Some(place) = held.iter().position(|each| each.channel == id) else {
            return;
        };
        let removed = connection.subscriptions.swap_remove(place);
        // The last subscription took the place of this one: its channel has to know.
        let moved = connection.subscriptions.as_slice().get(place).copied();
        if let Some(moved) = moved
            && let Some(channel) = self.hub.channel_mut(moved.channel)
        {
            channel.subscribers[moved.subscriber as usize].subscription = place as u32;
        }
        self.leave(removed, format);
    }

    /// Takes a connection out of all its channels.
    pub(super) fn leave_channels(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let format = connection.format();
        let subscriptions: Subscriptions = std::mem::take(&mut connection.subscriptions);
        for subscription in subscriptions.as_slice() {
            self.leave(*subscription, format);
        }
    }

    fn leave(&mut self, subscription: Subscription, format: Format) {
        let Some(moved) = self.hub.unsubscribe(subscription, format) else {
            return;
        };
        if let Some(connection) = self.connections.at_mut(moved.connection) {
            let held = connection.subscriptions.as_mut_slice();
            held[moved.subscription as usize].subscriber = moved.subscriber;
        }
    }
}
