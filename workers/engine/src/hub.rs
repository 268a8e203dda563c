//! Who gets what: channels of this worker, and the connections subscribed to each.
//!
//! A delivery scans one dense vector of 16-byte entries. A subscription is known on both sides:
//! the channel's entry names the connection and the place in its list, the connection's list
//! names the channel and the place in its vector, so that leaving costs the same in any crowd.

use hashbrown::HashTable;
use smallvec::SmallVec;
use tidegate_ring::channels::ChannelKey;
use tidegate_ring::log::Interest;

use crate::protocol::format::{FORMATS, Format};
use crate::slab::{Slab, Token};

/// Names a channel of this worker, and never a later one in the same place.
pub type ChannelId = Token;

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
    /// A channel of one client has one, without a list elsewhere.
    pub subscribers: SmallVec<[Subscriber; 1]>,
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

pub struct Hub {
    /// What this worker is woken for: its channels, and what else others add.
    pub interest: Interest,
    channels: Slab<Channel>,
    /// Their places, found by their keys: the keys themselves are in the slab.
    places: HashTable<u32>,
    subscriptions: usize,
}

/// Keys are random already.
fn hash(key: &ChannelKey) -> u64 {
    let [first, second] = key.0;
    first.rotate_left(32) ^ second
}

impl Hub {
    pub fn new(interest: Interest) -> Self {
        Self {
            interest,
            channels: Slab::new(0),
            places: HashTable::new(),
            subscriptions: 0,
        }
    }

    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    pub fn subscription_count(&self) -> usize {
        self.subscriptions
    }

    pub fn find(&self, key: &ChannelKey) -> Option<ChannelId> {
        let has_key = |place: &u32| {
            self.channels
                .at(*place)
                .is_some_and(|each| each.key == *key)
        };
        let place = self.places.find(hash(key), has_key)?;
        self.channels.token(*place)
    }

    pub fn channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(id)
    }

    pub fn channel_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(id)
    }

    /// Every channel that has subscribers.
    pub fn ids(&self) -> Vec<ChannelId> {
        self.channels.tokens().collect()
    }

    /// Adds a channel that [`Hub::find`] did not know; its first subscriber must follow.
    pub fn insert(&mut self, key: ChannelKey, name: &str, epoch: u32, offset: u64) -> ChannelId {
        let id = self.channels.insert(Channel {
            key,
            name: name.into(),
            epoch,
            offset,
            subscribers: SmallVec::new(),
            wants: Wants::default(),
            newest: None,
        });
        self.interest.add(key.into());
        let channels = &self.channels;
        let rehash = |place: &u32| channels.at(*place).map_or(0, |each| hash(&each.key));
        self.places.insert_unique(hash(&key), id.index, rehash);
        id
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
        if is_empty {
            self.remove(id);
        }
        moved
    }

    /// Forgets a channel that has no subscribers any more.
    fn remove(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.remove(id) else {
            return;
        };
        self.interest.remove(channel.key.into());
        let is_its = |place: &u32| *place == id.index;
        if let Ok(found) = self.places.find_entry(hash(&channel.key), is_its) {
            found.remove();
        }
    }
}

// Clients with a channel of their own have one of these each.
const _: () = assert!(size_of::<Channel>() <= 80);

#[cfg(test)]
mod tests {
    use tidegate_ring::layout::Owner;
    use tidegate_ring::log::{self, LogReader};
    use tidegate_ring::region::Region;

    use super::*;

    fn hub() -> Hub {
        let owner = Owner {
            generation: 1,
            pid: 1,
            start: 1,
        };
        let log = Region::heap(log::segment_bytes(1024, 1, 1));
        log::format(&log, 1024, 1, 1, 0, owner).unwrap();
        Hub::new(LogReader::join(log, 0).unwrap().interest().unwrap())
    }

    fn subscriber(connection: u32, subscription: u32) -> Subscriber {
        Subscriber {
            connection,
            subscription,
            after_offset: 0,
        }
    }

    #[test]
    fn leaving_moves_the_last_subscriber_into_the_gap() {
        let mut hub = hub();
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
        assert_eq!(hub.channel(id).unwrap().subscribers[..], [subscriber(2, 9)]);
        assert_eq!(hub.subscription_count(), 1);
    }

    #[test]
    fn a_channel_goes_with_its_last_subscriber_and_its_id_names_no_later_one() {
        let mut hub = hub();
        let key = ChannelKey([1, 2]);
        let id = hub.insert(key, "public:a", 7, 3);
        hub.subscribe(id, subscriber(0, 0), Format::Tcp.into());
        hub.unsubscribe(Subscription {
            channel: id,
            subscriber: 0,
        });
        assert!(hub.find(&key).is_none() && hub.channel(id).is_none());
        let next = hub.insert(ChannelKey([3, 4]), "public:b", 7, 0);
        assert_eq!(next.index, id.index, "its place is used again");
        assert!(hub.channel(id).is_none() && hub.channel_mut(id).is_none());
        assert_eq!(hub.channel_count(), 1);
    }

    #[test]
    fn whatever_comes_and_goes_channels_are_found_by_their_keys() {
        let mut hub = hub();
        let key = |number: u64| ChannelKey([number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, 1]);
        let mut ids: Vec<Option<ChannelId>> = vec![None; 1000];
        for step in 0..20_000u64 {
            let number = (step * step / 7 + step) % 1000;
            let held = &mut ids[number as usize];
            assert_eq!(hub.find(&key(number)), *held);
            match held.take() {
                Some(id) => {
                    let subscriber = 0;
                    let channel = id;
                    hub.unsubscribe(Subscription {
                        channel,
                        subscriber,
                    });
                }
                None => {
                    let id = hub.insert(key(number), &number.to_string(), 1, 0);
                    hub.subscribe(id, subscriber(0, 0), Format::Tcp.into());
                    *held = Some(id);
                }
            }
        }
        let found = ids.iter().flatten().count();
        assert!(found > 100 && found == hub.channel_count());
        assert_eq!(hub.ids().len(), found);
    }

    #[test]
    fn what_nobody_was_seen_to_want_is_wanted_no_more() {
        let mut hub = hub();
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
        let mut hub = hub();
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
