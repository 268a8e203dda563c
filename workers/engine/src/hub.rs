//! Who gets what: channels of this worker, and the connections subscribed to each.
//!
//! A delivery scans one dense vector of 16-byte entries. A subscription is known on both sides:
//! the channel's entry names the connection and the place in its list, the connection's list
//! names the channel and the place in its vector, so that leaving costs the same in any crowd.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use tidegate_ring::channels::ChannelKey;

use crate::protocol::format::{FORMATS, Format};

/// Number of a channel within this worker. Not used again before all others were.
pub type ChannelId = u32;

/// One subscription, as the channel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscriber {
    /// Its connection's place in the slab. Connections unsubscribe before they leave it.
    pub connection: u32,
    /// Place in the connection's list of subscriptions.
    pub subscription: u32,
    /// It has, or was told of, everything up to this offset.
    pub after_offset: u64,
}

/// One subscription, as the connection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscription {
    pub channel: ChannelId,
    /// Place in the channel's vector of subscribers.
    pub subscriber: u32,
}

/// What the subscribers of a channel want, as a set: the [`Format`]s, and what some of them want
/// beside. It grows as they come; a delivery, which sees them all, corrects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants(u32);

impl Wants {
    /// Publications as differences to the one before.
    pub const DELTA: Self = Self(1 << 30);
    /// Who joins and who leaves.
    pub const EVENTS: Self = Self(1 << 31);

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[inline]
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it matters what came before a publication, or beside it.
    pub fn needs_newest(self) -> bool {
        self.has(Self::DELTA) || self.has(Format::UniSse.into())
    }

    fn keep(&mut self, others: Self) {
        self.0 &= others.0;
    }
}

impl From<Format> for Wants {
    fn from(format: Format) -> Self {
        Self(1 << format as u32)
    }
}

const _: () = assert!(FORMATS <= 30);

pub struct Channel {
    pub key: ChannelKey,
    pub name: Box<str>,
    pub epoch: u32,
    /// Newest publication that this worker has seen, or that all subscribers were told of when
    /// the first of them came: whatever is at or below it in the log is old.
    pub offset: u64,
    pub subscribers: Vec<Subscriber>,
    pub wants: Wants,
    /// What has to be remembered of the newest publication, where it has.
    pub newest: Option<Box<Newest>>,
}

/// What some formats need to know of the publication before.
#[derive(Debug)]
pub struct Newest {
    /// Its data, to tell the next one as a difference; `None`: nobody wants that.
    pub data: Option<Vec<u8>>,
    /// Offset of the last one that was put into the queues.
    pub delivered: u64,
}

impl Channel {
    /// After a delivery that saw what each subscriber wants, but for [`Wants::EVENTS`].
    pub fn correct(&mut self, mut seen: Wants) {
        seen.add(Wants::EVENTS);
        self.wants.keep(seen);
        if !self.wants.needs_newest() {
            self.newest = None;
        } else if !self.wants.has(Wants::DELTA)
            && let Some(newest) = &mut self.newest
        {
            // It is not kept up to date any more, and no base for whoever comes next.
            newest.data = None;
        }
    }
}

/// An entry that took the place of one that left: its connection's list has to learn it.
#[derive(Debug, PartialEq, Eq)]
pub struct Moved {
    pub connection: u32,
    pub subscription: u32,
    pub subscriber: u32,
}

#[derive(Default)]
pub struct Hub {
    by_key: HashMap<ChannelKey, ChannelId, BuildHasherDefault<KeyHasher>>,
    channels: HashMap<ChannelId, Channel, BuildHasherDefault<KeyHasher>>,
    last_id: ChannelId,
    subscriptions: usize,
}

impl Hub {
    pub fn channel_count(&self) -> usize {
        self.by_key.len()
    }

    pub fn subscription_count(&self) -> usize {
        self.subscriptions
    }

    pub fn find(&self, key: &ChannelKey) -> Option<ChannelId> {
        self.by_key.get(key).copied()
    }

    pub fn channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(&id)
    }

    pub fn channel_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(&id)
    }

    /// Every channel that has subscribers.
    pub fn ids(&self) -> Vec<ChannelId> {
        self.by_key.values().copied().collect()
    }

    /// Adds a channel that [`Hub::find`] did not know; its first subscriber must follow.
    pub fn insert(&mut self, key: ChannelKey, name: &str, epoch: u32, offset: u64) -> ChannelId {
        let channel = Channel {
            key,
            name: name.into(),
            epoch,
            offset,
            // A channel of one client has one subscriber; a vector would begin with room for four.
            subscribers: Vec::with_capacity(1),
            wants: Wants::default(),
            newest: None,
        };
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.channels.contains_key(&self.last_id) {
                break;
            }
        }
        self.channels.insert(self.last_id, channel);
        self.by_key.insert(key, self.last_id);
        self.last_id
    }

    /// Adds a subscriber with what it wants; returns its place in the channel's vector.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn subscribe(&mut self, id: ChannelId, subscriber: Subscriber, wants: Wants) -> u32 {
        let channel = self
            .channel_mut(id)
            .expect("the channel was found or inserted");
        let place = u32::try_from(channel.subscribers.len()).expect("fewer than 2^32 subscribers");
        channel.subscribers.push(subscriber);
        channel.wants.add(wants);
        if wants.needs_newest() && channel.newest.is_none() {
            channel.newest = Some(Box::new(Newest {
                data: None,
                delivered: channel.offset,
            }));
        }
        self.subscriptions += 1;
        place
    }

    /// Takes a subscriber out; a channel without any goes with its last one.
    ///
    /// # Panics
    /// If there is no such subscription: the two sides of it must agree.
    pub fn unsubscribe(&mut self, subscription: Subscription) -> Option<Moved> {
        let Subscription {
            channel: id,
            subscriber: place,
        } = subscription;
        let channel = self
            .channel_mut(id)
            .expect("a subscription names a channel");
        channel.subscribers.swap_remove(place as usize);
        let moved = channel.subscribers.get(place as usize).map(|each| Moved {
            connection: each.connection,
            subscription: each.subscription,
            subscriber: place,
        });
        let is_empty = channel.subscribers.is_empty();
        self.subscriptions -= 1;
        if is_empty && let Some(channel) = self.channels.remove(&id) {
            self.by_key.remove(&channel.key);
        }
        moved
    }
}

/// Channel keys are random already: the first word is as good a hash as any. Numbers are not, and
/// are spread by a multiplication (Knuth, TAOCP vol. 3, 6.4: the golden ratio's bits).
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = self.0.rotate_left(32) ^ word;
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    /// The length of an array says nothing about this key.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(connection: u32, subscription: u32) -> Subscriber {
        Subscriber {
            connection,
            subscription,
            after_offset: 0,
        }
    }

    #[test]
    fn leaving_moves_the_last_subscriber_into_the_gap() {
        let mut hub = Hub::default();
        let id = hub.insert(ChannelKey([1, 2]), "public:a", 7, 3);
        for connection in 0..3 {
            let place = hub.subscribe(id, subscriber(connection, 9), Format::UniWebSocket.into());
            assert_eq!(place, connection);
        }
        let moved = hub.unsubscribe(Subscription {
            channel: id,
            subscriber: 0,
        });
        assert_eq!(
            moved,
            Some(Moved {
                connection: 2,
                subscription: 9,
                subscriber: 0
            })
        );
        let moved = hub.unsubscribe(Subscription {
            channel: id,
            subscriber: 1,
        });
        assert_eq!(moved, None);
        assert_eq!(hub.channel(id).unwrap().subscribers, [subscriber(2, 9)]);
        assert_eq!(hub.subscription_count(), 1);
    }

    #[test]
    fn a_channel_goes_with_its_last_subscriber_and_its_number_is_not_used_again() {
        let mut hub = Hub::default();
        let key = ChannelKey([1, 2]);
        let id = hub.insert(key, "public:a", 7, 3);
        hub.subscribe(id, subscriber(0, 0), Format::Tcp.into());
        hub.unsubscribe(Subscription {
            channel: id,
            subscriber: 0,
        });
        assert!(hub.find(&key).is_none() && hub.channel(id).is_none());
        assert_ne!(hub.insert(ChannelKey([3, 4]), "public:b", 7, 0), id);
        assert_eq!(hub.channel_count(), 1);
    }

    #[test]
    fn what_nobody_was_seen_to_want_is_wanted_no_more() {
        let mut hub = Hub::default();
        let id = hub.insert(ChannelKey([1, 2]), "public:a", 7, 3);
        let mut wants = Wants::from(Format::JsonWebSocket);
        wants.add(Wants::DELTA);
        hub.subscribe(id, subscriber(0, 0), wants);
        hub.subscribe(id, subscriber(1, 0), Format::Tcp.into());
        let channel = hub.channel_mut(id).unwrap();
        assert_eq!(channel.newest.as_ref().unwrap().delivered, 3);
        channel.correct(Format::Tcp.into());
        assert!(channel.wants.has(Format::Tcp.into()) && channel.newest.is_none());
        assert!(!channel.wants.has(wants));
    }

    #[test]
    fn what_is_not_kept_up_to_date_is_no_base_for_whoever_comes_next() {
        let mut hub = Hub::default();
        let id = hub.insert(ChannelKey([1, 2]), "public:a", 7, 3);
        hub.subscribe(id, subscriber(0, 0), Format::UniSse.into());
        hub.subscribe(id, subscriber(1, 0), Wants::DELTA);
        let channel = hub.channel_mut(id).unwrap();
        channel.newest.as_mut().unwrap().data = Some(b"old".to_vec());
        channel.correct(Format::UniSse.into());
        assert_eq!(channel.newest.as_ref().unwrap().data, None);
    }

    #[test]
    fn an_entry_of_the_fan_out_is_a_quarter_of_a_cache_line() {
        assert_eq!(size_of::<Subscriber>(), 16);
    }
}
