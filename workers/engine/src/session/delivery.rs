//! From the log to the queues: publications are read, encoded once per format, and shared.

use std::rc::Rc;

use tidegate_ring::channels::Top;
use tidegate_ring::host;
use tidegate_ring::publication::{PublicationView, RECORD_KIND};

use super::queues::{Pressure, pressure};
use super::{Sessions, tcp, websocket};
use crate::connection::Flags;
use crate::hub::{ChannelId, Format, Hub};
use crate::metrics::{Count, Histogram, Metrics};
use crate::outbox::Frame;
use crate::protocol::close::Close;

/// Records read at once between two looks at the budget of a turn.
const RECORDS_PER_READ: usize = 32;
/// Records read in one turn: clients and timers wait for as long as these take.
const RECORDS_PER_TURN_MAX: usize = 1024;
/// Queue entries made in one turn: some ten milliseconds of work.
const DELIVERIES_PER_TURN_MAX: usize = 65_536;

/// What is due to the subscribers of a channel.
enum Event {
    /// A publication, encoded in each [`Format`] that somebody wants.
    Publication {
        offset: u64,
        frames: [Option<Rc<Frame>>; 2],
    },
    /// They missed some, and it cannot be made good.
    Lost,
    /// A publication came that the WebSocket dialect cannot say.
    Unfit(Close),
}

pub(super) struct Delivery {
    channel: ChannelId,
    event: Event,
}

/// Publications of this turn, encoded, on their way to the queues.
#[derive(Default)]
pub(super) struct Deliveries {
    pending: Vec<Delivery>,
    /// When each was published (ms since 1970), for the histogram.
    published_ms: Vec<u64>,
    /// Records read in this turn, and queue entries that they make.
    records: usize,
    wanted: usize,
}

impl Deliveries {
    /// Takes a publication, if somebody here is subscribed and has not got it yet. Returns how
    /// many subscribers its channel has.
    fn take(&mut self, view: &PublicationView<'_>, hub: &mut Hub) -> usize {
        let Some(id) = hub.find(&view.key) else {
            return 0;
        };
        let Some(channel) = hub.channel_mut(id) else {
            return 0;
        };
        let is_first = channel.offset == 0 && view.offset == 1;
        if view.epoch == channel.epoch && view.offset <= channel.offset {
            return 0;
        }
        // A channel that was never published to has no epoch of its own: the first one counts.
        let is_next = view.epoch == channel.epoch && view.offset == channel.offset + 1;
        channel.epoch = view.epoch;
        channel.offset = view.offset;
        if !is_first && !is_next {
            self.pending.push(Delivery {
                channel: id,
                event: Event::Lost,
            });
            return 0;
        }
        let wanted = |format| channel.is_wanted_in(format);
        let websocket = wanted(Format::WebSocket).then(|| websocket::publication_frame(view));
        if let Some(Err(close)) = websocket {
            self.pending.push(Delivery {
                channel: id,
                event: Event::Unfit(close),
            });
        }
        let tcp = wanted(Format::Tcp).then(|| tcp::publication_frame(id, view));
        let frames = [websocket.and_then(Result::ok), tcp];
        let event = Event::Publication {
            offset: view.offset,
            frames,
        };
        self.pending.push(Delivery { channel: id, event });
        self.published_ms.push(view.time_ms);
        channel.subscribers.len()
    }

    fn take_record(&mut self, payload: &[u8], hub: &mut Hub, metrics: &mut Metrics) -> usize {
        metrics.add(Count::Publications, 1);
        match PublicationView::parse(payload) {
            Some(view) => self.take(&view, hub),
            None => {
                metrics.add(Count::PublicationsInvalid, 1);
                0
            }
        }
    }
}

impl Sessions {
    /// Reads the log, as far as a turn's budget goes; returns whether there is more to read now.
    pub fn drain_log(&mut self) -> bool {
        self.deliveries.records = 0;
        self.deliveries.wanted = 0;
        self.read_log()
    }

    /// Fans out what has come since [`Sessions::drain_log`], as far as the turn's budget still
    /// goes; returns as that does.
    pub fn read_on(&mut self) -> bool {
        if self.reader.position() == self.reader.tail() {
            return false;
        }
        let has_more = self.read_log();
        self.fan_out();
        // What clients learn by the flush, the statistics have said before.
        self.show_metrics();
        has_more
    }

    fn read_log(&mut self) -> bool {
        while self.deliveries.records < RECORDS_PER_TURN_MAX
            && self.deliveries.wanted < DELIVERIES_PER_TURN_MAX
        {
            let Self {
                reader,
                deliveries,
                hub,
                metrics,
                ..
            } = self;
            let read = reader.read(RECORDS_PER_READ, |record| {
                if record.kind == RECORD_KIND {
                    deliveries.wanted += deliveries.take_record(record.payload, hub, metrics);
                }
            });
            match read {
                Ok(0) => return false,
                Ok(count) => self.deliveries.records += count,
                Err(_) => {
                    self.resync();
                    return true;
                }
            }
        }
        true
    }

    /// After a lap: begins anew at the log's tail, and makes every channel whole from history.
    fn resync(&mut self) {
        self.metrics.add(Count::Laps, 1);
        self.reader.rejoin();
        for id in self.hub.ids() {
            let Some(channel) = self.hub.channel(id) else {
                continue;
            };
            let (key, epoch, offset) = (channel.key, channel.epoch, channel.offset);
            let missed = match self.table.top(key) {
                Some(top) if top.epoch == epoch && top.offset == offset => continue,
                Some(top) if top.epoch == epoch => {
                    self.missed(id, offset, top, self.settings.queue_soft_bytes)
                }
                // Another life of the channel has begun: of the one before, more may be missing.
                Some(_) => None,
                // Never published to, and nothing was forgotten meanwhile.
                None if offset == 0 && self.table.epoch_now() == epoch => continue,
                None => None,
            };
            let Some(missed) = missed else {
                self.deliveries.pending.push(Delivery {
                    channel: id,
                    event: Event::Lost,
                });
                continue;
            };
            self.metrics.add(Count::ResyncsRecovered, 1);
            for payload in &missed {
                self.deliveries
                    .take_record(payload, &mut self.hub, &mut self.metrics);
            }
        }
    }

    /// Puts this turn's publications into the queues of their subscribers.
    pub fn fan_out(&mut self) {
        let mut pending = std::mem::take(&mut self.deliveries.pending);
        for Delivery { channel, event } in pending.drain(..) {
            match event {
                Event::Publication { offset, frames } => self.deliver(channel, offset, &frames),
                Event::Lost => self.lose(channel),
                Event::Unfit(close) => {
                    self.condemn_subscribers(channel, Some(Format::WebSocket), close);
                }
            }
        }
        self.deliveries.pending = pending;
    }

    /// The hot path: one list entry, one connection and one shared frame for each subscriber.
    fn deliver(&mut self, id: ChannelId, offset: u64, frames: &[Option<Rc<Frame>>; 2]) {
        let Some(channel) = self.hub.channel(id) else {
            return;
        };
        let (mut delivered, mut queued) = (0, 0);
        let mut over_bounds = Vec::new();
        for subscriber in &channel.subscribers {
            if subscriber.after_offset >= offset {
                continue;
            }
            let index = subscriber.connection;
            let Some(connection) = self.connections.at_mut(index) else {
                continue;
            };
            let Some(frame) = &frames[connection.format() as usize] else {
                continue;
            };
            let before = connection.outbox.queued_bytes();
            connection.outbox.push(Rc::clone(frame));
            queued += connection.outbox.queued_bytes() - before;
            delivered += 1;
            if connection.flags.raise(Flags::TO_FLUSH) {
                self.to_flush.push(index);
            }
            if pressure(connection, &self.settings) != Pressure::None {
                over_bounds.push(index);
            }
        }
        self.queued_bytes += queued;
        self.metrics.add(Count::Deliveries, delivered);
        for index in over_bounds {
            if let Some(token) = self.connections.token(index) {
                self.after_enqueue(token);
            }
        }
    }

    /// Publications whose latency is not recorded yet.
    pub fn latencies(&self) -> usize {
        self.deliveries.published_ms.len()
    }

    /// All that could be sent of the first `count` publications is sent.
    pub fn record_latency(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now_ms = host::wall_clock_ms();
        for published_ms in self.deliveries.published_ms.drain(..count) {
            let latency_ms = now_ms.saturating_sub(published_ms);
            self.metrics.record(Histogram::PublishToFlushMs, latency_ms);
        }
    }

    /// Publications are lost to the subscribers of a channel: each is told, and comes back.
    pub(super) fn lose(&mut self, id: ChannelId) {
        self.metrics.add(Count::ResyncsLost, 1);
        self.condemn_subscribers(id, None, Close::InsufficientState);
    }

    /// Ends the connections that are subscribed to a channel, of one format if one is named.
    fn condemn_subscribers(&mut self, id: ChannelId, format: Option<Format>, close: Close) {
        let Some(channel) = self.hub.channel(id) else {
            return;
        };
        let places: Vec<u32> = channel
            .subscribers
            .iter()
            .map(|each| each.connection)
            .collect();
        for place in places {
            let Some(token) = self.connections.token(place) else {
                continue;
            };
            let found = self.connections.get_mut(token).map(|each| each.format());
            if format.is_none() || format == found {
                self.condemn(token, close);
            }
        }
    }

    /// Where a channel stands by the table; one that was never published to is at its beginning.
    pub(super) fn top(&self, key: tidegate_ring::channels::ChannelKey) -> Top {
        self.table.top(key).unwrap_or(Top {
            epoch: self.table.epoch_now(),
            offset: 0,
            last_position: u64::MAX,
        })
    }
}
