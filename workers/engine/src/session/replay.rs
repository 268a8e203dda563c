//! What came by the log while a connection was on its way between two workers, and cannot be made
//! good from history: orders, commands of its session, who came and went, messages without offset.

use tidegate_ring::channels::ChannelKey;
use tidegate_ring::entry::{Entry, EventView};
use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::forms;
use crate::client::Traits;
use crate::connection::Connection;
use crate::hub::ChannelId;
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::centrifuge::Encoding;
use crate::slab::Token;

/// Records read at once: each is copied before anything is done with it.
const RECORDS_PER_READ: usize = 64;

impl Sessions {
    /// Reads the log up to `position` at least, so that all of it before that has been done here
    /// when connections come for which it has been done elsewhere.
    pub fn read_up_to(&mut self, position: u64) {
        while position.wrapping_sub(self.reader.position()).cast_signed() > 0 {
            let has_more = self.drain_log();
            self.fan_out();
            if !has_more {
                break;
            }
        }
    }

    /// Does for the connections `arrived`, which were let go of when the log was read up to `from`,
    /// what it has brought since.
    pub fn replay(&mut self, from: u64, arrived: &[Token]) {
        let (log, to) = (self.reader.view().clone(), self.reader.position());
        let mut position = from;
        while to.wrapping_sub(position).cast_signed() > 0 {
            let mut records = Vec::new();
            let read = log.read_from(&mut position, RECORDS_PER_READ, |record| {
                if to.wrapping_sub(record.position).cast_signed() > 0 {
                    records.push((record.kind, record.payload.to_vec()));
                }
            });
            for (kind, payload) in &records {
                if let Some(entry) = Entry::parse(*kind, payload) {
                    self.happened_meanwhile(&entry, arrived);
                }
            }
            // Lapped: so long were they away. What had an offset comes from history.
            if !read.is_ok_and(|count| count > 0) {
                self.metrics.add(Count::ReplaysCutShort, 1);
                return;
            }
        }
    }

    fn happened_meanwhile(&mut self, entry: &Entry<'_>, arrived: &[Token]) {
        match entry {
            Entry::Publication(view) if view.offset == 0 => {
                self.published_meanwhile(view, arrived);
            }
            Entry::Event(view) => self.joined_or_left_meanwhile(view, arrived),
            Entry::Order(view) => self.ordered(view.json, Some(arrived)),
            Entry::Emulation(view) => {
                let place = self.directory.session(&view.session);
                if arrived.iter().any(|token| Some(token.index) == place) {
                    let encoding = match view.protobuf {
                        true => Encoding::Protobuf,
                        false => Encoding::Json,
                    };
                    self.emulated(&view.session, encoding, view.data);
                }
            }
            Entry::Publication(_) | Entry::Presence(_) | Entry::Removal(_) => {}
        }
    }

    fn published_meanwhile(&mut self, view: &PublicationView<'_>, arrived: &[Token]) {
        for (token, id, traits) in self.subscribed_among(&view.key, arrived) {
            let Some(connection) = self.connections.get_mut(token) else {
                continue;
            };
            if view.except == Some(connection.client) {
                continue;
            }
            let frame = match traits.has(Traits::DELTA) {
                true => forms::whole_frame(connection.format, view),
                false => forms::frame(connection.format, id, view),
            };
            // It comes after others that were published later.
            unbase(connection, id);
            self.metrics.add(Count::Deliveries, 1);
            self.say(token, frame);
        }
    }

    fn joined_or_left_meanwhile(&mut self, view: &EventView<'_>, arrived: &[Token]) {
        for (token, _, traits) in self.subscribed_among(&view.key, arrived) {
            let Some(connection) = self.connections.get_mut(token) else {
                continue;
            };
            if traits.has(Traits::JOIN_LEAVE) {
                let format = connection.format;
                let bytes = format.join_leave(view.channel, view.joined, view.info);
                self.metrics.add(Count::JoinsAndLeaves, 1);
                self.enqueue(token, Frame::new(bytes));
            }
        }
    }

    /// Who of `arrived` is subscribed to a channel, and how it stands there.
    fn subscribed_among(
        &mut self,
        key: &ChannelKey,
        arrived: &[Token],
    ) -> Vec<(Token, ChannelId, Traits)> {
        let Some(id) = self.hub.find(key) else {
            return Vec::new();
        };
        let mut subscribed = Vec::new();
        for token in arrived {
            if let Some(place) = self.place_of(*token, id)
                && let Some(connection) = self.connections.get_mut(*token)
            {
                let standing = connection.standing(place);
                let traits = standing.map_or(Traits::default(), |each| each.traits);
                subscribed.push((*token, id, traits));
            }
        }
        subscribed
    }
}

/// What a client has of a channel is not what the next publication can be a difference to.
fn unbase(connection: &mut Connection, id: ChannelId) {
    let held = connection.subscriptions.as_slice();
    let place = held.iter().position(|each| each.channel == id);
    if let Some(standing) = place.and_then(|place| connection.standing_mut(place)) {
        standing.traits.set(Traits::BASED, false);
    }
}
