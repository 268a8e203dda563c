//! The publisher's loop: it takes requests from all uplinks, gives each its place in its channel,
//! and is the only one to write the log and the channel table.
//!
//! One turn makes one batch, in this order:
//!
//! 1. take a bounded number of requests from each uplink, in turn, and write them to the log;
//! 2. *prepare* the batch: from here on a crash does not lose it;
//! 3. bring the tables up to date that follow the log: history, presence, channels;
//! 4. *commit*: readers may have it, sleeping ones are woken;
//! 5. answer the producers, then let go of their requests;
//! 6. move the log's *answered* mark.
//!
//! It may be killed after any store. The next publisher redoes 3 and 4 for a prepared batch.
//! Requests that were appended but not let go of come again: what lies behind the answered mark
//! tells which, and they are only answered. So every request is published once.

mod draft;
mod idempotency;
mod meters;
mod tables;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use draft::{Draft, Outcome};
use idempotency::Keys;
use meters::Meters;
use tables::Tables;

use crate::entry::Entry;
use crate::error::{LogError, SegmentError};
use crate::history::HistoryRule;
use crate::host;
use crate::layout;
use crate::log::LogWriter;
use crate::region::Region;
use crate::stats::state;
use crate::uplink::{Reply, UplinkConsumer};
use crate::wake::{self, Bell};

pub use meters::METRICS;

/// Requests of one uplink in one batch: a flood through one uplink delays the others by so much.
const REQUESTS_PER_UPLINK_MAX: usize = 256;

/// The longest sleep. Every request rings, so this only turns a lost wake-up into a counted delay.
const SAFETY_POLL: Duration = Duration::from_millis(100);

/// Looks for requests for so long before it sleeps: to be woken costs both sides about as much.
const IDLE_SPIN_NS: u64 = 20_000;

/// Under load the link is looked at so often.
const LINK_LOOK_NS: u64 = 1_000_000;

/// Batches that emptying an uplink may take: its ring holds fewer requests than these can.
const DRAIN_BATCHES_MAX: usize = 1 << 16;

/// Clients whose owner is gone that leave in one batch; between two, others are served.
const LEAVES_PER_BATCH_MAX: usize = 1024;

/// So often, the history lets go of what is too old: nobody waits for it.
const EXPIRY_NS: u64 = 100_000_000;

/// Generation in the source of records that no request asked for; no uplink has it.
const NO_REQUEST: u64 = u64::MAX;

/// What the loop is told.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The publisher's row in the statistics.
    pub stats_row: u32,
    /// Counts the publishers of an instance.
    pub generation: u64,
    /// How long a batch waits for lagging readers before the slowest is evicted.
    pub lag_budget: Duration,
    /// Channels of other namespaces keep no history but the log's.
    pub history: Vec<HistoryRule>,
}

/// The segments that the publisher writes.
#[derive(Clone, Debug)]
pub struct Segments {
    pub log: Region,
    pub channels: Region,
    pub history: Region,
    pub presence: Region,
    pub stats: Region,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0, or a number of the client API's errors.
    status: u32,
    epoch: u32,
    offset: u64,
}

impl Answer {
    /// Of requests other than publishes.
    const DONE: Self = Self {
        status: 0,
        epoch: 0,
        offset: 0,
    };

    fn placed(epoch: u32, offset: u64) -> Self {
        Self {
            status: 0,
            epoch,
            offset,
        }
    }

    fn refused(status: u32) -> Self {
        Self {
            status,
            epoch: 0,
            offset: 0,
        }
    }
}

/// Answers that a killed publisher may not have given, by the position after the request.
type Unanswered = HashMap<u64, Answer>;

/// An attached uplink.
#[derive(Debug)]
struct Uplink {
    id: u32,
    generation: u64,
    consumer: UplinkConsumer,
    bell: Bell,
    /// Answers of the batch in the making, in the order of the requests.
    replies: Vec<Reply>,
    unanswered: Unanswered,
}

/// See the head of this module.
#[derive(Debug)]
pub struct Sequencer {
    log: LogWriter,
    tables: Tables,
    meters: Meters,
    keys: Keys,
    wake: Bell,
    /// By seat.
    readers: HashMap<u32, Bell>,
    uplinks: Vec<Uplink>,
    /// Where the next turn begins, so that no uplink is always the first.
    first: usize,
    /// Of uplinks that are not attached yet, by id and generation.
    unanswered: HashMap<(u32, u64), Unanswered>,
    /// Uplinks that the supervisor will attach before anything is sequenced.
    awaited: BTreeSet<u32>,
    /// Uplinks that were dropped for what was in them, not told yet.
    broken: Vec<u32>,
}

impl Sequencer {
    /// Takes over from an earlier publisher, if there was one: commits what it had prepared, learns
    /// what it may not have answered. Nothing is sequenced before the uplinks in `awaited` are
    /// attached: while one's last answers are not given, the answered mark must not move.
    ///
    /// # Errors
    /// [`SegmentError`] where a segment is not what it should be.
    pub fn open(
        segments: Segments,
        wake: Bell,
        settings: Settings,
        awaited: impl IntoIterator<Item = u32>,
    ) -> Result<Self, SegmentError> {
        let mut tables = Tables::open(&segments, settings.history)?;
        let meters = Meters::claim(segments.stats, settings.stats_row, settings.generation)?;
        let mut log = LogWriter::open(segments.log, settings.lag_budget)?;
        let (redone, senseless) = tables.redo(&mut log);
        meters.row.add(meters.redone, redone);
        meters.row.add(meters.internal, senseless);
        let unanswered = unanswered(&log);
        let keys = Keys::from_log(log.view(), &tables.channels, host::wall_clock_ms());
        let sequencer = Self {
            log,
            tables,
            meters,
            keys,
            wake,
            readers: HashMap::new(),
            uplinks: Vec::new(),
            first: 0,
            unanswered,
            awaited: awaited.into_iter().collect(),
            broken: Vec::new(),
        };
        sequencer.meters.row.set_state(state::SERVING);
        sequencer.measure();
        Ok(sequencer)
    }

    /// From now on a seat is waited for, and woken by its bell.
    ///
    /// # Errors
    /// [`SegmentError::Parameter`] for a seat that the log does not have.
    pub fn attach_reader(&mut self, seat: u32, bell: Bell) -> Result<(), SegmentError> {
        self.log.attach_reader(seat)?;
        // A publisher that was killed between commit and wake-up may have left this one asleep.
        bell.ring();
        self.readers.insert(seat, bell);
        self.measure();
        Ok(())
    }

    /// The reader of a seat is gone.
    ///
    /// # Errors
    /// As [`Self::attach_reader`].
    pub fn detach_reader(&mut self, seat: u32) -> Result<(), SegmentError> {
        self.log.detach_reader(seat)?;
        self.readers.remove(&seat);
        self.measure();
        Ok(())
    }

    /// From now on requests are taken from this uplink; its producer is woken by its bell.
    ///
    /// # Errors
    /// [`SegmentError`] where the region holds no uplink, or one that is attached already.
    pub fn attach_uplink(
        &mut self,
        id: u32,
        region: Region,
        bell: Bell,
    ) -> Result<(), SegmentError> {
        self.awaited.remove(&id);
        let generation = layout::inspect(&region)?.owner.generation;
        let consumer = UplinkConsumer::attach(region)?;
        let mut unanswered = self
            .unanswered
            .remove(&(id, generation))
            .unwrap_or_default();
        let head = consumer.head();
        unanswered.retain(|position, _| is_after(*position, head));
        // As for readers: replies may have come without a wake-up.
        bell.ring();
        let replies = Vec::new();
        self.uplinks.push(Uplink {
            id,
            generation,
            consumer,
            bell,
            replies,
            unanswered,
        });
        self.measure();
        Ok(())
    }

    /// Takes what the producer committed before it went, then lets go: the clients that it served
    /// are in no channel any more. Unknown ids are ignored.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub fn detach_uplink(&mut self, id: u32) -> Result<(), LogError> {
        self.awaited.remove(&id);
        // Of all: clients that moved are another worker's by now, and it may have said so.
        self.drain()?;
        for _ in 0..DRAIN_BATCHES_MAX {
            let only = self.uplinks.iter().position(|uplink| uplink.id == id);
            let Some(only) = only else { break };
            if self.batch(only..only + 1)? == 0 {
                break;
            }
        }
        self.uplinks.retain(|uplink| uplink.id != id);
        self.leave_behind(id)?;
        self.measure();
        Ok(())
    }

    /// Takes the clients of an uplink that is gone out of their channels, in bounded batches.
    fn leave_behind(&mut self, uplink: u32) -> Result<(), LogError> {
        for _ in 0..DRAIN_BATCHES_MAX {
            let began_ns = host::monotonic_ns();
            let clients = self.tables.presence.owned_by(uplink, LEAVES_PER_BATCH_MAX);
            if clients.is_empty() {
                break;
            }
            let mut draft = Draft::new(&mut self.log, &mut self.tables, &mut self.keys)?;
            draft.leave_behind(uplink, &clients);
            let outcome = draft.finish(wake(&self.readers, &self.meters));
            self.count(&outcome, began_ns);
            self.turn()?;
            self.meters.row.heartbeat();
        }
        Ok(())
    }

    /// Takes what all uplinks hold now. What is handed over meanwhile may come later: under load
    /// there is always more.
    ///
    /// # Errors
    /// [`LogError`] where the log's writer finds its own state contradicted.
    pub fn drain(&mut self) -> Result<(), LogError> {
        let held = self.uplinks.iter();
        let held: HashMap<u32, u64> = held.map(|each| (each.id, each.consumer.end())).collect();
        for _ in 0..DRAIN_BATCHES_MAX {
            let is_behind = self.uplinks.iter().any(|uplink| {
                let end = held.get(&uplink.id);
                end.is_some_and(|end| is_after(*end, uplink.consumer.position()))
            });
            if !is_behind || self.turn()? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Sequences until `link` is readable or an uplink had to be dropped for what was in it.
    /// Returns the ids of dropped uplinks.
    ///
    /// # Errors
    /// What poll(2) says, and as [`Self::drain`].
    pub fn run(&mut self, link: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
        let mut worked_ns = host::monotonic_ns();
        let (mut looked_ns, mut expired_ns) = (0, 0);
        loop {
            let taken = self.turn().map_err(io::Error::other)?;
            if !self.broken.is_empty() {
                let broken = std::mem::take(&mut self.broken);
                for uplink in &broken {
                    self.leave_behind(*uplink).map_err(io::Error::other)?;
                }
                return Ok(broken);
            }
            self.meters.row.heartbeat();
            let now_ns = host::monotonic_ns();
            if now_ns.wrapping_sub(expired_ns) >= EXPIRY_NS {
                expired_ns = now_ns;
                self.expire(host::wall_clock_ms());
            }
            if taken > 0 {
                worked_ns = now_ns;
            }
            if now_ns.wrapping_sub(looked_ns) >= LINK_LOOK_NS {
                looked_ns = now_ns;
                let [readable] = wake::wait_readable([link.as_raw_fd()], Duration::ZERO)?;
                if readable {
                    return Ok(Vec::new());
                }
            }
            if now_ns - worked_ns >= IDLE_SPIN_NS {
                if self.sleep(link)? {
                    return Ok(Vec::new());
                }
                worked_ns = host::monotonic_ns();
            }
        }
    }

    /// Sleeps until a producer rings; true if the link is readable.
    fn sleep(&mut self, link: BorrowedFd<'_>) -> io::Result<bool> {
        let mut announced = self.uplinks.iter();
        // Awaited uplinks come by the link, and nothing is taken from the others until then.
        if self.awaited.is_empty() && !announced.all(|uplink| uplink.consumer.may_sleep()) {
            self.uplinks
                .iter()
                .for_each(|uplink| uplink.consumer.awake());
            return Ok(false);
        }
        self.meters.row.add(self.meters.sleeps, 1);
        let fds = [self.wake.as_raw_fd(), link.as_raw_fd()];
        let [mut rang, mut readable] = wake::wait_readable(fds, SAFETY_POLL)?;
        if !rang && !readable && self.awaited.is_empty() && !self.is_idle() {
            // A producer may be between its store and its ring. If it stays silent, it is a bug.
            [rang, readable] = wake::wait_readable(fds, SAFETY_POLL)?;
            if !rang && !readable {
                self.meters.row.add(self.meters.missed_wakeups, 1);
            }
        }
        self.uplinks
            .iter()
            .for_each(|uplink| uplink.consumer.awake());
        if rang {
            self.wake.silence();
        }
        Ok(readable)
    }

    fn is_idle(&self) -> bool {
        self.uplinks.iter().all(|uplink| uplink.consumer.is_idle())
    }

    /// One batch from all uplinks; returns the number of requests taken.
    fn turn(&mut self) -> Result<usize, LogError> {
        let uplinks = self.uplinks.len();
        if uplinks == 0 || !self.awaited.is_empty() {
            return Ok(0);
        }
        self.first = (self.first + 1) % uplinks;
        let taken = self.batch(self.first..self.first + uplinks)?;
        if !self.broken.is_empty() {
            let broken = &self.broken;
            self.uplinks.retain(|uplink| !broken.contains(&uplink.id));
            self.meters
                .row
                .add(self.meters.uplinks_corrupt, broken.len() as u64);
            self.measure();
        }
        Ok(taken)
    }

    /// One batch from the uplinks at these indices, modulo their number.
    fn batch(&mut self, indices: std::ops::Range<usize>) -> Result<usize, LogError> {
        let began_ns = host::monotonic_ns();
        let mut draft = Draft::new(&mut self.log, &mut self.tables, &mut self.keys)?;
        let mut taken = 0;
        for index in indices {
            let index = index % self.uplinks.len();
            match draft.take_from(&mut self.uplinks[index], REQUESTS_PER_UPLINK_MAX) {
                Ok(requests) => taken += requests,
                Err(_) => self.broken.push(self.uplinks[index].id),
            }
        }
        if taken == 0 {
            return Ok(0);
        }
        let outcome = draft.finish(wake(&self.readers, &self.meters));
        // Who is answered finds itself counted.
        self.count(&outcome, began_ns);
        self.answer();
        Ok(taken)
    }

    /// Lets go of history that is too old, as seen at `now_ms` since 1970.
    pub fn expire(&mut self, now_ms: u64) {
        if self.tables.history.has_rules() {
            self.tables.history.expire(now_ms);
            self.measure_tables();
        }
    }

    /// Gives the answers of the batch, lets go of its requests, moves the answered mark.
    fn answer(&mut self) {
        let meters = &self.meters;
        for uplink in &mut self.uplinks {
            let position = uplink.consumer.position();
            let answered = !uplink.replies.is_empty();
            if position == uplink.consumer.head() && !answered {
                continue;
            }
            for reply in uplink.replies.drain(..) {
                if uplink.consumer.reply(&reply).is_err() {
                    meters.row.add(meters.replies_dropped, 1);
                }
            }
            if answered && uplink.consumer.flush() {
                uplink.bell.ring();
                meters.row.add(meters.reply_wakes, 1);
            }
            uplink.consumer.release(position);
        }
        // What is answered again lies behind the mark; the mark waits until that is done.
        let given = self
            .uplinks
            .iter()
            .all(|uplink| uplink.unanswered.is_empty());
        if given && self.awaited.is_empty() {
            self.log.set_answered();
        }
    }

    fn count(&mut self, outcome: &Outcome, began_ns: u64) {
        let meters = &self.meters;
        let row = &meters.row;
        for (index, amount) in [
            (meters.accepted, outcome.accepted),
            (meters.duplicate, outcome.duplicate),
            (meters.superseded, outcome.superseded),
            (meters.no_channel, outcome.no_channel),
            (meters.too_large, outcome.too_large),
            (meters.bad_request, outcome.bad_request),
            (meters.internal, outcome.internal),
            (meters.joined, outcome.joined),
            (meters.presence_full, outcome.presence_full),
            (meters.left, outcome.left),
            (meters.left_behind, outcome.left_behind),
            (meters.orders, outcome.orders),
            (meters.emulations, outcome.emulations),
            (meters.removals, outcome.removals),
            (meters.answered_again, outcome.answered_again),
            (meters.log_bytes, outcome.payload_bytes),
        ] {
            if amount > 0 {
                row.add(index, amount);
            }
        }
        if outcome.accepted > 0 {
            row.record(meters.batch_publications, outcome.accepted);
        }
        row.record(meters.batch_time, (host::monotonic_ns() - began_ns) / 1_000);
        row.set(meters.lag_wakes, self.log.lag_wakes());
        row.set(meters.stalls, self.log.stalls());
        row.set(
            meters.stall_time,
            self.log.stalled_total().as_micros() as u64,
        );
        row.set(meters.channels, self.tables.channels.channels());
        row.set(meters.channel_evictions, self.tables.channels.evictions());
        row.set(meters.keys, self.keys.len() as u64);
        row.set(meters.keys_dropped, self.keys.dropped());
        row.set(meters.evictions, self.log.evictions());
        if outcome.followed {
            self.measure_tables();
        }
    }

    fn measure_tables(&self) {
        let (meters, row) = (&self.meters, &self.meters.row);
        let history = self.tables.history.figures();
        row.set(meters.history_publications, history.entries);
        row.set(meters.history_channels, history.channels);
        row.set(meters.history_bytes, history.bytes);
        row.set(meters.history_evicted, history.evicted);
        row.set(meters.history_expired, history.expired);
        row.set(meters.history_too_large, history.too_large);
        let presence = &self.tables.presence;
        row.set(meters.presence_clients, presence.entries());
        row.set(meters.presence_channels, presence.channels());
        row.set(meters.presence_bytes, presence.bytes());
    }

    /// Brings the gauges up to date.
    fn measure(&self) {
        let meters = &self.meters;
        meters.row.set(meters.readers, self.readers.len() as u64);
        meters.row.set(meters.uplinks, self.uplinks.len() as u64);
        meters
            .row
            .set(meters.channels, self.tables.channels.channels());
        meters.row.set(meters.keys, self.keys.len() as u64);
        self.measure_tables();
    }
}

/// Rings the bells of sleeping readers.
fn wake(readers: &HashMap<u32, Bell>, meters: &Meters) -> impl FnMut(u32) {
    move |seat| {
        if let Some(bell) = readers.get(&seat) {
            bell.ring();
            meters.row.add(meters.reader_wakes, 1);
        }
    }
}

/// Whether a position lies after another; positions wrap at 2^64.
fn is_after(position: u64, other: u64) -> bool {
    position.wrapping_sub(other).cast_signed() > 0
}

/// What lies behind the answered mark, by uplink.
fn unanswered(log: &LogWriter) -> HashMap<(u32, u64), Unanswered> {
    let mut found: HashMap<(u32, u64), Unanswered> = HashMap::new();
    // Where the mark is damaged, producers wait in vain for an answer; nothing else is lost.
    let _ = log.unanswered(|record| {
        let Some(entry) = Entry::parse(record.kind, record.payload) else {
            return;
        };
        let source = entry.source();
        if source.generation == NO_REQUEST {
            return;
        }
        let answer = match entry {
            Entry::Publication(publication) => {
                Answer::placed(publication.epoch, publication.offset)
            }
            _ => Answer::DONE,
        };
        let answers = found.entry((source.uplink, source.generation)).or_default();
        answers.insert(source.position, answer);
    });
    found
}
