//! What follows the log: the tables that tell where channels stand, what they keep, who is in them.
//!
//! Each is brought up to date from the records of a prepared batch, by the publisher that wrote
//! them or, if that was killed, by the next: to follow a record twice changes nothing.

use super::Segments;
use crate::channels::{ChannelKey, ChannelWriter, Horizon, Place, Top};
use crate::entry::Entry;
use crate::error::SegmentError;
use crate::history::{HistoryRule, HistoryWriter};
use crate::log::{LogWriter, Prepared};
use crate::presence::PresenceWriter;
use crate::publication::Version;
use crate::ring::Record;

#[derive(Debug)]
pub(super) struct Tables {
    pub channels: ChannelWriter,
    pub history: HistoryWriter,
    pub presence: PresenceWriter,
}

impl Tables {
    /// # Errors
    /// [`SegmentError`] where a segment is not what it should be.
    pub fn open(segments: &Segments, rules: Vec<HistoryRule>) -> Result<Self, SegmentError> {
        Ok(Self {
            channels: ChannelWriter::open(segments.channels.clone())?,
            history: HistoryWriter::open(segments.history.clone(), rules)?,
            presence: PresenceWriter::open(segments.presence.clone())?,
        })
    }

    /// Makes a prepared batch visible. `followed` says whether it holds anything for history or
    /// presence: they have it before the channel table speaks of it.
    pub fn commit(&mut self, prepared: Prepared<'_>, followed: bool, wake: impl FnMut(u32)) {
        if followed {
            // What was just written is there.
            let _ = prepared.records(|record| self.follow(&record));
        }
        self.channels.store();
        prepared.commit(wake);
    }

    /// Commits the batch that a killed publisher had prepared; returns the number of its records,
    /// and of those that made no sense.
    pub fn redo(&mut self, log: &mut LogWriter) -> (u64, u64) {
        let horizon = Horizon::of(log.view());
        let Some(prepared) = log.redo() else {
            return (0, 0);
        };
        let (mut redone, mut senseless) = (0, 0);
        let walked = prepared.records(|record| {
            self.follow(&record);
            match Entry::parse(record.kind, record.payload) {
                Some(entry) => self.restore(&entry, record.position, horizon),
                None => senseless += 1,
            }
            redone += 1;
        });
        self.channels.store();
        // Readers are woken when they are attached.
        prepared.commit(|_| ());
        (redone, senseless + u64::from(walked.is_err()))
    }

    /// The place of a channel's next publication, see [`ChannelWriter::place`]. What the history
    /// store holds would be lost with its channel's epoch: such a channel is never forgotten.
    pub fn place(&mut self, key: ChannelKey, horizon: Horizon) -> Option<Place> {
        let history = &self.history;
        self.channels.place(key, horizon, |key| history.has(key))
    }

    /// Brings the channel table up to date.
    fn restore(&mut self, entry: &Entry<'_>, position: u64, horizon: Horizon) {
        let Entry::Publication(publication) = entry else {
            return;
        };
        let (key, version) = (publication.key, publication.version);
        if publication.idempotency.is_some() {
            self.channels.set_keyed_last(position);
        }
        if publication.offset > 0 {
            let top = Top {
                epoch: publication.epoch,
                offset: publication.offset,
                last_position: position,
            };
            let spared = |key| self.history.has(key);
            self.channels.restore(key, top, version, horizon, spared);
        } else if version != Version::NONE
            && let Some(mut place) = self.place(key, horizon)
        {
            place.version = version;
            self.channels.note(place, position);
        }
    }

    /// Brings history and presence up to date.
    fn follow(&mut self, record: &Record<'_>) {
        match Entry::parse(record.kind, record.payload) {
            Some(Entry::Publication(publication)) if publication.kept => {
                self.history.append(&publication, record.payload);
            }
            Some(Entry::Event(event) | Entry::Presence(event)) => {
                // There is room: it was looked for before the event was logged.
                self.presence.apply(&event);
            }
            Some(Entry::Removal(removal)) => self.history.remove(removal.key),
            _ => (),
        }
    }
}
