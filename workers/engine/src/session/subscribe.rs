//! Joining a channel, with or without what was missed, and leaving it.

use tidegate_ring::channels::Top;
use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::permission::{self, Act, Closed, Entrance, NameError};
use super::recovery::{Past, Recovered};
use crate::asks::AskKind;
use crate::auth::Overrides;
use crate::client::{Client, Expiry, Standing, Traits};
use crate::connection::Subscriptions;
use crate::hub::{ChannelId, Subscriber, Subscription, Wants};
use crate::metrics::Count;
use crate::settings::{DeltaType, Namespace, RecoveryMode};
use crate::slab::Token;

/// What a client asks for with a subscription, beside the channel.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Asked {
    pub positioned: bool,
    pub recoverable: bool,
    pub join_leave: bool,
    pub delta: bool,
}

/// A subscription that may be made.
pub(super) struct Terms {
    pub standing: Standing,
    pub mode: RecoveryMode,
    /// In cache mode: the newest publication comes unasked.
    pub auto_recover: bool,
}

/// What a subscription got.
pub(super) struct Granted {
    pub channel: ChannelId,
    pub epoch: u32,
    /// Newest offset at this moment.
    pub top_offset: u64,
    pub traits: Traits,
    pub expiry: Expiry,
    /// `None`: not asked for, or not possible.
    pub recovered: Option<Recovered>,
}

impl Granted {
    /// Whether a position in this channel is worth asking for.
    pub fn recoverable(&self) -> bool {
        self.traits.has(Traits::RECOVERABLE)
    }

    pub fn missed(&self) -> impl Iterator<Item = PublicationView<'_>> {
        let payloads = self.recovered.iter().flat_map(|each| each.missed.iter());
        payloads.filter_map(|payload| PublicationView::parse(payload))
    }

    /// What was missed, in bytes of the log.
    pub fn missed_bytes(&self) -> usize {
        let recovered = self.recovered.as_ref();
        recovered.map_or(0, |each| each.missed.iter().map(Vec::len).sum())
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
    /// The namespace does not allow it, or the token does not.
    Denied(Closed),
    Already,
    Limit,
    /// What was missed is lost, and the client wants all or nothing.
    Unrecoverable,
    /// The publisher is behind with who comes and goes.
    Busy,
}

impl From<NameError> for SubscribeError {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Bad => Self::BadName,
            NameError::Unknown => Self::Unknown,
        }
    }
}

impl Sessions {
    /// Whether and how a connection that shows no token for channel `name` comes into it.
    pub(super) fn entrance(&mut self, token: Token, name: &str) -> Result<Entrance, NameError> {
        let namespace = self.names.namespace(&self.settings, name)?;
        let asks = self.asks.is_on(AskKind::Subscribe);
        let connection = self.connections.get_mut(token);
        let user = connection.map_or("", |each| each.user());
        Ok(permission::entrance(namespace, name, user, asks))
    }

    /// Counts a refusal, and says in the log what would open the channel.
    pub(super) fn subscribe_refused(&mut self, token: Token, name: &str, error: SubscribeError) {
        let count = match error {
            SubscribeError::Unknown => Count::SubscribesUnknown,
            SubscribeError::Denied(_) => Count::SubscribesDenied,
            SubscribeError::Limit => Count::SubscribesLimited,
            SubscribeError::BadName | SubscribeError::Already => Count::SubscribesBad,
            SubscribeError::Unrecoverable => Count::SubscribesUnrecoverable,
            SubscribeError::Busy => Count::SubscribesDeferred,
        };
        self.metrics.add(count, 1);
        match error {
            SubscribeError::Denied(closed) => self.notice_refusal(token, "subscribe", name, closed),
            SubscribeError::Unknown => {
                self.notice(|| {
                    format!("channel {name:?} is of no namespace: configure one for it")
                });
            }
            _ => {}
        }
    }

    /// Checks what does not depend on who asks.
    pub(super) fn admissible(&mut self, token: Token, name: &str) -> Result<(), SubscribeError> {
        self.names.namespace(&self.settings, name)?;
        if self.is_subscribed_to(token, name) {
            return Err(SubscribeError::Already);
        }
        let held = self
            .connections
            .get_mut(token)
            .map_or(0, |each| each.subscriptions.len());
        if held >= self.settings.channels_per_connection_max {
            return Err(SubscribeError::Limit);
        }
        if self.uplink.is_crowded() {
            return Err(SubscribeError::Busy);
        }
        Ok(())
    }

    /// The place of a channel in a connection's list.
    pub(super) fn place_of(&mut self, token: Token, id: ChannelId) -> Option<usize> {
        let held = self.connections.get_mut(token)?.subscriptions.as_slice();
        held.iter().position(|each| each.channel == id)
    }

    pub(super) fn is_subscribed_to(&mut self, token: Token, name: &str) -> bool {
        let id = self.hub.find(&self.table.key(name));
        id.is_some_and(|id| self.place_of(token, id).is_some())
    }

    /// Makes a subscription that may be made. Recovers what came after `since` (epoch, offset), if
    /// the terms allow it and it is at most `bytes_max`.
    pub(super) fn enter(
        &mut self,
        token: Token,
        name: &str,
        terms: Terms,
        since: Option<(&str, u64)>,
        bytes_max: usize,
    ) -> Granted {
        let past = self.look_back(name, &terms, since, bytes_max);
        self.settle(token, name, terms, past)
    }

    /// Makes a subscription that begins where `past` ends.
    pub(super) fn settle(&mut self, token: Token, name: &str, terms: Terms, past: Past) -> Granted {
        let Past { top, recovered } = past;
        let key = self.table.key(name);
        let found = self.hub.find(&key).filter(|id| self.continues(*id, top));
        let id = found.unwrap_or_else(|| self.hub.insert(key, name, top.epoch, top.offset));
        let mut standing = terms.standing;
        // Who has the newest publication takes the next one as a difference to it.
        standing.traits.set(Traits::BASED, recovered.is_some());
        let (traits, expiry) = (standing.traits, standing.expiry);
        self.join(token, id, top.offset, standing);
        self.announce(token, id, false);
        if expiry != Expiry::NEVER {
            self.schedule_next(token);
        }
        Granted {
            channel: id,
            epoch: top.epoch,
            top_offset: top.offset,
            traits,
            expiry,
            recovered,
        }
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

    pub(super) fn join(
        &mut self,
        token: Token,
        id: ChannelId,
        after_offset: u64,
        standing: Standing,
    ) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let subscription = connection.subscriptions.len() as u32;
        let subscriber = Subscriber {
            connection: token.index,
            subscription,
            after_offset,
        };
        let traits = standing.traits;
        let mut wants = Wants::from(connection.format);
        if traits.has(Traits::DELTA) {
            wants.add(Wants::DELTA);
        }
        if traits.has(Traits::JOIN_LEAVE) {
            wants.add(Wants::EVENTS);
        }
        let place = self.hub.subscribe(id, subscriber, wants);
        connection.subscriptions.push(Subscription {
            channel: id,
            subscriber: place,
        });
        // Most anonymous ones have nothing that needs remembering.
        if connection.identity.is_none() && standing.is_particular() {
            connection.identity = Some(Box::new(Client {
                // What it was, or will be, told that its session is.
                session: connection.client,
                standings: vec![Standing::anonymous(); subscription as usize],
                ..Client::default()
            }));
        }
        if let Some(client) = &mut connection.identity {
            client.standings.push(standing);
        }
        self.changed(token.index);
    }

    /// Takes a connection out of one channel, and tells those who want to know.
    pub(super) fn unsubscribe(&mut self, token: Token, id: ChannelId) {
        self.retract(token, id);
        let Some(place) = self.place_of(token, id) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
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
        if let Some(client) = &mut connection.identity {
            client.standings.swap_remove(place);
        }
        self.leave(removed);
        self.changed(token.index);
    }

    /// Takes a connection out of all its channels, and tells those who want to know.
    pub(super) fn leave_channels(&mut self, token: Token) {
        for id in self.channels_of(token) {
            self.retract(token, id);
        }
        self.drop_channels(token);
    }

    pub(super) fn channels_of(&mut self, token: Token) -> Vec<ChannelId> {
        let connection = self.connections.get_mut(token);
        let held = connection.map_or(&[][..], |each| each.subscriptions.as_slice());
        held.iter().map(|each| each.channel).collect()
    }

    /// Takes a connection out of all its channels; nobody is told.
    pub(super) fn drop_channels(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let subscriptions: Subscriptions = std::mem::take(&mut connection.subscriptions);
        if let Some(client) = &mut connection.identity {
            client.standings.clear();
        }
        for subscription in subscriptions.as_slice() {
            self.leave(*subscription);
        }
    }

    fn leave(&mut self, subscription: Subscription) {
        let Some(moved) = self.hub.unsubscribe(subscription) else {
            return;
        };
        if let Some(connection) = self.connections.at_mut(moved.connection) {
            let held = connection.subscriptions.as_mut_slice();
            held[moved.subscription as usize].subscriber = moved.subscriber;
        }
    }
}

/// What a subscription of `user` to a channel of `namespace` may have of what is asked for.
pub(super) fn terms(
    namespace: &Namespace,
    user: &str,
    asked: Asked,
    overrides: &Overrides,
) -> Terms {
    let reads_history = permission::may(Act::History, namespace, user, true).is_ok();
    let sees_presence = permission::may(Act::Presence, namespace, user, true).is_ok();
    let or = |option: Option<bool>, namespace: bool| option.unwrap_or(namespace);
    let recoverable = or(overrides.force_recovery, namespace.force_recovery)
        || asked.recoverable && (namespace.recovery || reads_history);
    let positioned = recoverable
        || or(overrides.force_positioning, namespace.force_positioning)
        || asked.positioned && (namespace.allow_positioning || reads_history);
    let announced = or(overrides.join_leave, namespace.join_leave);
    let hears = or(
        overrides.force_push_join_leave,
        namespace.force_push_join_leave,
    ) || asked.join_leave && sees_presence;
    let takes_delta = asked.delta && namespace.allowed_delta_types.contains(&DeltaType::Fossil);
    let traits = Traits::default()
        .with(Traits::RECOVERABLE, recoverable)
        .with(Traits::POSITIONED, positioned)
        .with(Traits::PRESENT, or(overrides.presence, namespace.presence))
        .with(Traits::ANNOUNCED, announced)
        .with(Traits::JOIN_LEAVE, announced && hears)
        .with(Traits::DELTA, takes_delta);
    Terms {
        standing: Standing {
            traits,
            ..Standing::default()
        },
        mode: namespace.recovery_mode,
        auto_recover: namespace.auto_cache_recover,
    }
}
