//! From the log to the queues: records are read, encoded once per format, and shared.

use std::rc::Rc;

use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::entry::{EmulationView, Entry, EventView};
use tidegate_ring::host;
use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::forms::{self, Forms};
use super::queues::{Pressure, pressure};
use crate::connection::Flags;
use crate::directory::Directory;
use crate::hub::{Channel, ChannelId, Hub, Wants};
use crate::metrics::{Count, Histogram, Metrics};
use crate::outbox::Frame;
use crate::protocol::centrifuge::Encoding;
use crate::protocol::close::{Close, Unsubscribed};
use crate::protocol::format;
use crate::slab::Token;

/// Records read at once between two looks at the budget of a turn.
const RECORDS_PER_READ: usize = 32;
/// Records read in one turn: clients and timers wait for as long as these take.
const RECORDS_PER_TURN_MAX: usize = 1024;
/// Queue entries made in one turn: some ten milliseconds of work.
const DELIVERIES_PER_TURN_MAX: usize = 65_536;

/// What is due to the subscribers of a channel.
enum Event {
    Publication(Box<Publication>),
    /// Somebody has joined or left.
    JoinLeave(Forms),
    /// They missed some, and it cannot be made good.
    Lost,
    /// A publication came that those who want these formats cannot be told.
    Unfit(Wants, Close),
}

pub(super) struct Publication {
    /// Who has everything up to here has it. The highest number where it has no offset.
    pub offset: u64,
    /// The client that must not get it.
    pub except: Option<[u8; 16]>,
    pub forms: Forms,
    /// Where somebody wants differences: the forms for those.
    pub delta: Option<DeltaForms>,
}

pub(super) struct DeltaForms {
    /// For who lacks the publication before.
    pub whole: Forms,
    /// `None`: there is no difference, or it is no shorter.
    pub difference: Option<Forms>,
}

/// What the log brings, in its order.
enum Due {
    Channel(ChannelId, Event),
    /// Text of an order of a back end, see [`super::orders`].
    Order(Vec<u8>),
    /// What a client said on another connection than the one it listens on.
    Emulation {
        session: [u8; 16],
        encoding: Encoding,
        data: Vec<u8>,
    },
}

/// Publications of this turn, encoded, on their way to the queues.
#[derive(Default)]
pub(super) struct Deliveries {
    pending: Vec<Due>,
    /// When each was published (ms since 1970), for the histogram.
    published_ms: Vec<u64>,
    /// The bell should have rung, and did not, if a record before this position matters here.
    unrung: Option<u64>,
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
        let is_positioned = view.offset > 0;
        if is_positioned && !self.follows(view, id, channel) {
            return 0;
        }
        let delta = match &mut channel.newest {
            Some(newest) if channel.wants.has(Wants::DELTA) => {
                // One without offset is no base: who comes back does not have it.
                let next = is_positioned.then(|| view.data.to_vec());
                let base = std::mem::replace(&mut newest.data, next);
                let base = base.filter(|_| view.delta && is_positioned);
                let (whole, difference) = forms::deltas(channel.wants, view, base.as_deref());
                Some(DeltaForms { whole, difference })
            }
            _ => None,
        };
        let (forms, unfit) = forms::publication(channel.wants, id, view);
        if let Some((unfit, close)) = unfit {
            self.push(id, Event::Unfit(unfit, close));
        }
        let publication = Publication {
            offset: if is_positioned { view.offset } else { u64::MAX },
            except: view.except,
            forms,
            delta,
        };
        self.push(id, Event::Publication(Box::new(publication)));
        self.published_ms.push(view.time_ms);
        channel.subscribers.len()
    }

    /// Whether a publication is the next one of its channel, which is noted; if some before it are
    /// missing, that is what is due to the subscribers.
    fn follows(
        &mut self,
        view: &PublicationView<'_>,
        id: ChannelId,
        channel: &mut Channel,
    ) -> bool {
        let is_first = channel.offset == 0 && view.offset == 1;
        if view.epoch == channel.epoch && view.offset <= channel.offset {
            return false;
        }
        // A channel that was never published to has no epoch of its own: the first one counts.
        let is_next = view.epoch == channel.epoch && view.offset == channel.offset + 1;
        channel.epoch = view.epoch;
        channel.offset = view.offset;
        if is_first || is_next {
            return true;
        }
        if let Some(newest) = &mut channel.newest {
            newest.data = None;
        }
        self.push(id, Event::Lost);
        false
    }

    /// Whether the record that ends at `end`, and made more due than `due`, should have rung the
    /// bell. One that was missed is enough to know.
    fn was_missed(&mut self, end: u64, due: usize) -> bool {
        let is_old = |tail: u64| tail.wrapping_sub(end).cast_signed() >= 0;
        let is_old = self.unrung.is_some_and(is_old);
        let was_missed = is_old && self.pending.len() > due;
        if was_missed || !is_old {
            self.unrung = None;
        }
        was_missed
    }

    fn push(&mut self, channel: ChannelId, event: Event) {
        self.pending.push(Due::Channel(channel, event));
    }

    /// Takes a record; returns how many subscribers it is for.
    fn take_record(&mut self, kind: u32, payload: &[u8], house: &mut House<'_>) -> usize {
        let House {
            hub,
            directory,
            metrics,
        } = house;
        metrics.add(Count::Records, 1);
        match Entry::parse(kind, payload) {
            Some(Entry::Publication(view)) => {
                metrics.add(Count::Publications, 1);
                self.take(&view, hub)
            }
            Some(Entry::Event(view)) => self.take_event(&view, hub),
            Some(Entry::Order(view)) => {
                self.pending.push(Due::Order(view.json.to_vec()));
                0
            }
            Some(Entry::Emulation(view)) => {
                if directory.session(&view.session).is_some() {
                    self.pending.push(emulation(&view));
                }
                0
            }
            // The tables follow from them, and nobody is told.
            Some(Entry::Presence(_) | Entry::Removal(_)) => 0,
            None => {
                metrics.add(Count::RecordsInvalid, 1);
                0
            }
        }
    }

    /// Takes the news that somebody has joined or left, if somebody here wants to know.
    fn take_event(&mut self, view: &EventView<'_>, hub: &mut Hub) -> usize {
        let Some(id) = hub.find(&view.key) else {
            return 0;
        };
        let Some(channel) = hub.channel(id) else {
            return 0;
        };
        if !channel.wants.has(Wants::EVENTS) {
            return 0;
        }
        self.push(id, Event::JoinLeave(forms::join_leave(channel.wants, view)));
        channel.subscribers.len()
    }
}

/// What records are held against.
struct House<'a> {
    hub: &'a mut Hub,
    directory: &'a Directory,
    metrics: &'a mut Metrics,
}

fn emulation(view: &EmulationView<'_>) -> Due {
    Due::Emulation {
        session: view.session,
        encoding: match view.protobuf {
            true => Encoding::Protobuf,
            false => Encoding::Json,
        },
        data: view.data.to_vec(),
    }
}

impl Sessions {
    /// The log has had `tail` for some time, and the bell was silent: what is before it concerns
    /// others, or a wake-up was missed.
    pub fn suspect(&mut self, tail: u64) {
        self.deliveries.unrung = Some(tail);
    }

    /// Reads the log, as far as a turn's budget goes; returns whether there is more to read now.
    pub fn drain_log(&mut self) -> bool {
        self.deliveries.records = 0;
        self.deliveries.wanted = 0;
        self.read_log()
    }

    /// Fans out what has come since [`Sessions::drain_log`], as far as the turn's budget still
    /// goes; returns as that does.
    pub fn read_on(&mut self) -> bool {
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
                directory,
                hub,
                metrics,
                ..
            } = self;
            let mut house = House {
                hub,
                directory,
                metrics,
            };
            let read = reader.read(RECORDS_PER_READ, |record| {
                let due = deliveries.pending.len();
                deliveries.wanted +=
                    deliveries.take_record(record.kind, record.payload, &mut house);
                if deliveries.unrung.is_some() && deliveries.was_missed(record.end, due) {
                    house.metrics.add(Count::MissedWakeups, 1);
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
        self.all_changed();
        for id in self.hub.ids() {
            let Some(channel) = self.hub.channel(id) else {
                continue;
            };
            let (key, epoch, offset) = (channel.key, channel.epoch, channel.offset);
            let missed = match self.table.top(key) {
                Some(top) if top.epoch == epoch && top.offset == offset => continue,
                Some(top) if top.epoch == epoch => {
                    self.missed(key, offset, top, self.settings.queue_soft_bytes)
                }
                // Another life of the channel has begun: of the one before, more may be missing.
                Some(_) => None,
                // Never published to, and nothing was forgotten meanwhile.
                None if offset == 0 && self.table.epoch_now() == epoch => continue,
                None => None,
            };
            let Some(missed) = missed else {
                self.deliveries.push(id, Event::Lost);
                continue;
            };
            self.metrics.add(Count::ResyncsRecovered, 1);
            for payload in &missed {
                if let Some(view) = PublicationView::parse(payload) {
                    self.deliveries.take(&view, &mut self.hub);
                }
            }
        }
    }

    /// Does what the log has brought in this turn: above all, puts publications into the queues of
    /// their subscribers, those together that come one after the other in a channel.
    pub fn fan_out(&mut self) {
        let mut pending = std::mem::take(&mut self.deliveries.pending);
        let mut run = Vec::new();
        let mut dues = pending.drain(..).peekable();
        while let Some(due) = dues.next() {
            match due {
                Due::Channel(channel, Event::Publication(publication)) => {
                    run.push(publication);
                    let goes_on = matches!(
                        dues.peek(),
                        Some(Due::Channel(next, Event::Publication(_))) if *next == channel
                    );
                    if !goes_on {
                        self.published(channel, &run);
                        run.clear();
                    }
                }
                Due::Channel(channel, event) => self.happened(channel, event),
                Due::Order(json) => self.ordered(&json, None),
                Due::Emulation {
                    session,
                    encoding,
                    data,
                } => self.emulated(&session, encoding, &data),
            }
        }
        drop(dues);
        self.deliveries.pending = pending;
    }

    fn published(&mut self, channel: ChannelId, run: &[Box<Publication>]) {
        if run.iter().all(|each| self.is_alike_to_all(channel, each)) {
            return self.deliver(channel, run);
        }
        for publication in run {
            if self.is_alike_to_all(channel, publication) {
                self.deliver(channel, std::slice::from_ref(publication));
            } else {
                self.deliver_with_care(channel, publication);
            }
        }
    }

    fn happened(&mut self, channel: ChannelId, event: Event) {
        match event {
            Event::Publication(publication) => self.published(channel, &[publication]),
            Event::JoinLeave(forms) => self.deliver_event(channel, &forms),
            Event::Lost => self.lose(channel),
            Event::Unfit(unfit, close) => self.condemn_subscribers(channel, unfit, close),
        }
    }

    /// The hot path: one list entry, one connection and few shared frames for each subscriber.
    fn deliver(&mut self, id: ChannelId, run: &[Box<Publication>]) {
        let Some(channel) = self.hub.channel_mut(id) else {
            return;
        };
        let offsets = run.iter().map(|each| each.offset);
        let (first, last) = (offsets.clone().min(), offsets.max());
        let joined =
            format::ALL.map(|format| forms::joined(format, run.iter().map(|each| &each.forms)));
        let (mut delivered, mut queued) = (0, 0);
        let mut over_bounds = Vec::new();
        let mut seen = Wants::default();
        for subscriber in &channel.subscribers {
            let has = Some(subscriber.after_offset);
            if has >= last {
                seen.add(channel.wants);
                continue;
            }
            let index = subscriber.connection;
            let Some(connection) = self.connections.at_mut(index) else {
                continue;
            };
            seen.add(connection.format.into());
            let format = connection.format as usize;
            let before = connection.outbox.queued_bytes();
            let mut push = |frame: &Rc<Frame>| {
                connection.outbox.push(Rc::clone(frame));
                delivered += frame.messages as usize;
            };
            if has < first {
                joined[format].iter().for_each(&mut push);
            } else {
                let missed = run.iter().filter(|each| Some(each.offset) > has);
                missed
                    .filter_map(|each| each.forms[format].as_ref())
                    .for_each(&mut push);
            }
            if connection.outbox.queued_bytes() == before {
                continue;
            }
            queued += connection.outbox.queued_bytes() - before;
            if connection.flags.raise(Flags::TO_FLUSH) {
                self.to_flush.push_back(index);
            }
            connection.flags.set(Flags::UNKEPT, true);
            if pressure(connection, &self.settings) != Pressure::None {
                over_bounds.push(index);
            }
        }
        channel.correct(seen);
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
        for token in self.subscribers(id) {
            let end = Unsubscribed::InsufficientState;
            self.end_subscription(token, id, end, Close::InsufficientState);
        }
    }

    /// Ends the connections that are subscribed to a channel and want any of these formats.
    fn condemn_subscribers(&mut self, id: ChannelId, formats: Wants, close: Close) {
        for token in self.subscribers(id) {
            let found = self.connections.get_mut(token).map(|each| each.format);
            if found.is_some_and(|format| formats.has(format.into())) {
                self.condemn(token, close);
            }
        }
    }

    /// The subscribers of a channel at this moment.
    fn subscribers(&self, id: ChannelId) -> Vec<Token> {
        let subscribers = self
            .hub
            .channel(id)
            .map_or(&[][..], |channel| &channel.subscribers);
        let places = subscribers.iter().map(|each| each.connection);
        places
            .filter_map(|place| self.connections.token(place))
            .collect()
    }

    /// Where a channel stands by the table; one that was never published to is at its beginning.
    pub(super) fn top(&self, key: ChannelKey) -> Top {
        self.table.top(key).unwrap_or(Top {
            epoch: self.table.epoch_now(),
            offset: 0,
            last_position: u64::MAX,
        })
    }
}
