//! Deliveries where it matters who a subscriber is: it may have published the message itself, take
//! it as a difference to the one before, or have to be told how far it has come everywhere.

use std::rc::Rc;

use super::Sessions;
use super::delivery::{DeltaForms, Publication};
use super::forms::Forms;
use crate::client::Traits;
use crate::connection::{Connection, Subscriptions};
use crate::hub::{ChannelId, Hub, Subscriber, Wants};
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::format::Format;
use crate::protocol::sse;
use crate::settings::Settings;
use crate::slab::Token;

impl Sessions {
    /// Whether one look at a subscriber's format tells what it gets.
    pub(super) fn is_alike_to_all(&self, id: ChannelId, publication: &Publication) -> bool {
        let channel = self.hub.channel(id);
        publication.except.is_none() && channel.is_none_or(|channel| channel.newest.is_none())
    }

    /// As `deliver`, with a look at each subscription.
    pub(super) fn deliver_with_care(&mut self, id: ChannelId, publication: &Publication) {
        let Some(channel) = self.hub.channel_mut(id) else {
            return;
        };
        if let Some(newest) = &mut channel.newest
            && publication.offset != u64::MAX
        {
            newest.delivered = publication.offset;
        }
        let Some(channel) = self.hub.channel(id) else {
            return;
        };
        let mut due = Vec::with_capacity(channel.subscribers.len());
        let mut passed_over = Vec::new();
        let mut seen = Wants::default();
        for subscriber in &channel.subscribers {
            let Some(connection) = self.connections.at_mut(subscriber.connection) else {
                continue;
            };
            seen.add(connection.format.into());
            let standing = connection.standing(subscriber.subscription as usize);
            if standing.is_some_and(|each| each.traits.has(Traits::DELTA)) {
                seen.add(Wants::DELTA);
            }
            if subscriber.after_offset >= publication.offset {
                continue;
            }
            let Some(frame) = frame_for(connection, subscriber, publication) else {
                passed_over.push(subscriber.connection);
                continue;
            };
            let frame = match connection.format {
                Format::UniSse => {
                    with_id(&frame, &connection.subscriptions, &self.hub, &self.settings)
                }
                _ => frame,
            };
            due.push((subscriber.connection, frame));
        }
        if let Some(channel) = self.hub.channel_mut(id) {
            channel.correct(seen);
        }
        self.metrics.add(Count::Deliveries, due.len());
        self.enqueue_all(due);
        for place in passed_over {
            self.changed(place);
        }
    }

    /// Tells those who want to know that somebody has joined or left.
    pub(super) fn deliver_event(&mut self, id: ChannelId, forms: &Forms) {
        let Some(channel) = self.hub.channel_mut(id) else {
            return;
        };
        let mut due = Vec::new();
        let mut has_listeners = false;
        for subscriber in &channel.subscribers {
            let Some(connection) = self.connections.at_mut(subscriber.connection) else {
                continue;
            };
            let standing = connection.standing(subscriber.subscription as usize);
            if !standing.is_some_and(|each| each.traits.has(Traits::JOIN_LEAVE)) {
                continue;
            }
            has_listeners = true;
            let frame = &forms[connection.format as usize];
            due.extend(
                frame
                    .iter()
                    .map(|frame| (subscriber.connection, Rc::clone(frame))),
            );
        }
        if !has_listeners {
            channel.wants = channel.wants.without(Wants::EVENTS);
        }
        self.metrics.add(Count::JoinsAndLeaves, due.len());
        self.enqueue_all(due);
    }

    fn enqueue_all(&mut self, due: Vec<(u32, Rc<Frame>)>) {
        for (place, frame) in due {
            if let Some(token) = self.connections.token(place) {
                self.enqueue(token, frame);
            }
        }
    }

    /// `event`, for a client that says when it comes back which was the last one that it saw: with
    /// its position in all of its channels as they are after it.
    pub(super) fn with_positions(&mut self, token: Token, event: &[u8]) -> Rc<Frame> {
        let frame = Frame::new(event);
        match self.connections.get_mut(token) {
            Some(connection) => {
                with_id(&frame, &connection.subscriptions, &self.hub, &self.settings)
            }
            None => frame,
        }
    }
}

/// What one subscriber gets of a publication; what that makes of it is noted.
fn frame_for(
    connection: &mut Connection,
    subscriber: &Subscriber,
    publication: &Publication,
) -> Option<Rc<Frame>> {
    let format = connection.format as usize;
    let is_sender = publication.except == Some(connection.client);
    let forms = match connection.standing_mut(subscriber.subscription as usize) {
        Some(standing) if standing.traits.has(Traits::DELTA) => {
            let is_based = standing.traits.has(Traits::BASED);
            standing.traits.set(Traits::BASED, !is_sender);
            match &publication.delta {
                Some(DeltaForms {
                    difference: Some(difference),
                    ..
                }) if is_based => difference,
                Some(DeltaForms { whole, .. }) => whole,
                None => &publication.forms,
            }
        }
        _ => &publication.forms,
    };
    forms[format].clone().filter(|_| !is_sender)
}

fn with_id(
    event: &Frame,
    subscriptions: &Subscriptions,
    hub: &Hub,
    settings: &Settings,
) -> Rc<Frame> {
    let positions = subscriptions.as_slice().iter().filter_map(|each| {
        let channel = hub.channel(each.channel)?;
        let subscriber = channel.subscribers.get(each.subscriber as usize)?;
        let delivered = channel
            .newest
            .as_ref()
            .map_or(channel.offset, |newest| newest.delivered);
        Some(sse::Position {
            channel: &channel.name,
            epoch: channel.epoch,
            offset: delivered.max(subscriber.after_offset),
        })
    });
    // The other headers of a browser's request are a few hundred bytes.
    let id_bytes_max = settings.header_bytes_max / 2;
    Frame::new(sse::with_id(&event.bytes, positions, id_bytes_max))
}
