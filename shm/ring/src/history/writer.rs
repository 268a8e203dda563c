//! The publisher's side of the history store.

use std::collections::HashMap;

use super::{HEAD_WORDS, HistoryRule, PREVIOUS, SEQUENCE};
use crate::channels::ChannelKey;
use crate::error::SegmentError;
use crate::heap::writer::{HeapWriter, Left, Recovery};
use crate::heap::{CELL_BYTES, KIND_ENTRY, Link, cells_for, cells_for_channel};
use crate::layout::Kind;
use crate::publication::{CHANNEL_BYTES_MAX, PublicationView, namespace_of};
use crate::region::Region;

/// A publication that would take more than this part of the store is not kept: it would push out
/// everything else.
const PUBLICATION_SHARE: usize = 8;

/// Entries that are let go in one call because they are too old: some 100 µs of work.
const EXPIRED_PER_CALL_MAX: usize = 1024;

/// No entry.
const NOBODY: usize = usize::MAX;

/// What the store counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Publications that it holds, and of how many channels.
    pub entries: u64,
    pub channels: u64,
    pub bytes: u64,
    /// Let go for want of memory.
    pub evicted: u64,
    /// Let go because they were too old.
    pub expired: u64,
    /// Never taken: too large for the store.
    pub too_large: u64,
}

#[derive(Debug)]
struct Channel {
    link: Link,
    /// Index of its rule.
    rule: usize,
    epoch: u32,
    newest_offset: u64,
    newest: usize,
    oldest: usize,
    /// Never 0: a channel without entries is not there.
    entries: u64,
}

/// An entry, as this writer knows it.
#[derive(Clone, Copy, Debug)]
struct Node {
    link: Link,
    key: ChannelKey,
    time_ms: u64,
    sequence: u64,
    /// The next newer entry of its channel.
    newer: usize,
    /// Neighbours by age, among all entries under the same rule.
    before: usize,
    after: usize,
}

/// Entries under one rule, by age. The oldest of all is also the oldest of its channel.
#[derive(Clone, Copy, Debug)]
struct Ages {
    oldest: usize,
    newest: usize,
}

/// The only writer of a history store.
#[derive(Debug)]
pub struct HistoryWriter {
    heap: HeapWriter,
    rules: Vec<HistoryRule>,
    by_namespace: HashMap<String, usize>,
    /// By rule.
    ages: Vec<Ages>,
    channels: HashMap<ChannelKey, Channel>,
    nodes: Vec<Node>,
    free_nodes: Vec<usize>,
    sequence: u64,
    figures: Figures,
}

/// An entry as an earlier publisher left it.
struct Found {
    channel: usize,
    link: Link,
    sequence: u64,
    epoch: u32,
    offset: u64,
    time_ms: u64,
}

impl HistoryWriter {
    /// Takes the store over as an earlier publisher left it. What the rules do not keep goes.
    ///
    /// # Errors
    /// [`SegmentError`] where the region holds no history store; [`SegmentError::Claimed`] for a
    /// second writer of this process.
    pub fn open(region: Region, rules: Vec<HistoryRule>) -> Result<Self, SegmentError> {
        let mut recovery = Recovery::open(region, Kind::History)?;
        let left = recovery.channels();
        let mut found = Vec::new();
        for (channel, Left { first, .. }) in left.iter().enumerate() {
            let mut link = *first;
            while let Some((cell, payload)) = recovery.keep(link, KIND_ENTRY, HEAD_WORDS) {
                let Some(view) = PublicationView::parse(&payload) else {
                    break;
                };
                found.push(Found {
                    channel,
                    link,
                    sequence: cell.head(SEQUENCE),
                    epoch: view.epoch,
                    offset: view.offset,
                    time_ms: view.time_ms,
                });
                link = Link(cell.head(PREVIOUS));
            }
        }
        let nobody = Ages {
            oldest: NOBODY,
            newest: NOBODY,
        };
        let names = rules.iter().map(|rule| rule.namespace.clone());
        let mut writer = Self {
            heap: recovery.finish(),
            by_namespace: names.zip(0..).collect(),
            ages: vec![nobody; rules.len()],
            rules,
            channels: HashMap::new(),
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            sequence: 0,
            figures: Figures::default(),
        };
        writer.take_over(&left, found);
        Ok(writer)
    }

    fn take_over(&mut self, left: &[Left], mut found: Vec<Found>) {
        found.sort_by_key(|entry| entry.sequence);
        for entry in found {
            let Left {
                key, link, name, ..
            } = &left[entry.channel];
            match self.rule_of(name) {
                Some(rule) => {
                    let channel = self.channels.get(key).map_or(*link, |channel| channel.link);
                    self.enter(channel, *key, rule, &entry);
                }
                None => self.heap.free(entry.link),
            }
        }
        for Left { key, link, .. } in left {
            match self.channels.get(key) {
                Some(_) => self.trim(*key),
                None => self.heap.remove_channel(*link, *key),
            }
        }
    }

    /// Whether there is any rule: else nothing is ever kept.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Whether the store has anything of a channel.
    #[must_use]
    pub fn has(&self, key: ChannelKey) -> bool {
        self.channels.contains_key(&key)
    }

    /// Whether a publication to `channel` whose record has so many bytes is kept.
    pub fn keeps(&mut self, channel: &str, payload_bytes: usize) -> bool {
        if self.rules.is_empty() || self.rule_of(channel).is_none() {
            return false;
        }
        let cells = cells_for(HEAD_WORDS, payload_bytes) + cells_for_channel(CHANNEL_BYTES_MAX);
        let fits = cells <= self.heap.heap().cells() / PUBLICATION_SHARE;
        self.figures.too_large += u64::from(!fits);
        fits
    }

    /// Keeps a publication, `payload` being its record. What is kept already is not kept again.
    pub fn append(&mut self, view: &PublicationView<'_>, payload: &[u8]) {
        let Some(rule) = self.rule_of(view.channel) else {
            return;
        };
        if let Some(channel) = self.channels.get(&view.key) {
            if channel.epoch != view.epoch {
                self.remove(view.key);
            } else if channel.newest_offset >= view.offset {
                return;
            }
        }
        let cells = cells_for(HEAD_WORDS, payload.len()) + cells_for_channel(view.channel.len());
        self.make_room(cells, view.key);
        self.sequence += 1;
        let channel = self.channels.get(&view.key).map(|channel| channel.link);
        let previous = channel.map_or(Link::NONE, |channel| self.heap.first(channel));
        let head = [
            previous.0,
            self.sequence,
            view.offset,
            u64::from(view.epoch),
        ];
        let channel = channel.or_else(|| self.heap.add_channel(view.key, view.channel));
        let (Some(channel), Some(link)) = (channel, self.heap.write(KIND_ENTRY, &head, payload))
        else {
            return;
        };
        let entry = Found {
            channel: NOBODY,
            link,
            sequence: self.sequence,
            epoch: view.epoch,
            offset: view.offset,
            time_ms: view.time_ms,
        };
        self.enter(channel, view.key, rule, &entry);
        self.heap.set_first(channel, link);
        self.trim(view.key);
    }

    /// Lets go of all that a channel has.
    pub fn remove(&mut self, key: ChannelKey) {
        while self.channels.contains_key(&key) {
            self.drop_oldest(key);
        }
    }

    /// Lets go of what is too old, of a bounded number at once.
    pub fn expire(&mut self, now_ms: u64) {
        let mut left = EXPIRED_PER_CALL_MAX;
        for rule in 0..self.rules.len() {
            let ttl_ms = self.rules[rule].ttl.as_millis() as u64;
            while left > 0 {
                let Some(node) = self.nodes.get(self.ages[rule].oldest) else {
                    break;
                };
                // The wall clock may be set back: what seems to come from the future is not old.
                if now_ms.saturating_sub(node.time_ms) <= ttl_ms {
                    break;
                }
                self.drop_oldest(node.key);
                self.figures.expired += 1;
                left -= 1;
            }
        }
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            entries: (self.nodes.len() - self.free_nodes.len()) as u64,
            channels: self.channels.len() as u64,
            bytes: (self.heap.used() * CELL_BYTES) as u64,
            ..self.figures
        }
    }

    fn rule_of(&self, channel: &str) -> Option<usize> {
        self.by_namespace.get(namespace_of(channel)).copied()
    }

    /// Lets go of entries until so many cells are free: of this channel's own where the next one
    /// would push them out anyway, else of the oldest of all.
    fn make_room(&mut self, cells: usize, key: ChannelKey) {
        while self.heap.room() < cells {
            let is_full = |channel: &&Channel| channel.entries >= self.rules[channel.rule].size;
            if self.channels.get(&key).filter(is_full).is_some() {
                self.drop_oldest(key);
                continue;
            }
            let oldest = self
                .ages
                .iter()
                .filter_map(|ages| self.nodes.get(ages.oldest));
            let Some(oldest) = oldest.min_by_key(|node| node.sequence) else {
                return;
            };
            self.drop_oldest(oldest.key);
            self.figures.evicted += 1;
        }
    }

    fn trim(&mut self, key: ChannelKey) {
        while let Some(channel) = self.channels.get(&key)
            && channel.entries > self.rules[channel.rule].size
        {
            self.drop_oldest(key);
        }
    }

    /// Makes an entry known: the newest of its channel and of all.
    fn enter(&mut self, channel: Link, key: ChannelKey, rule: usize, entry: &Found) {
        self.sequence = self.sequence.max(entry.sequence);
        let ages = self.ages[rule];
        let node = Node {
            link: entry.link,
            key,
            time_ms: entry.time_ms,
            sequence: entry.sequence,
            newer: NOBODY,
            before: ages.newest,
            after: NOBODY,
        };
        let index = self.free_nodes.pop().unwrap_or(self.nodes.len());
        match self.nodes.get_mut(index) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        match self.nodes.get_mut(ages.newest) {
            Some(before) => before.after = index,
            None => self.ages[rule].oldest = index,
        }
        self.ages[rule].newest = index;
        let known = self.channels.entry(key).or_insert(Channel {
            link: channel,
            rule,
            epoch: entry.epoch,
            newest_offset: 0,
            newest: NOBODY,
            oldest: index,
            entries: 0,
        });
        known.entries += 1;
        known.newest_offset = entry.offset;
        known.epoch = entry.epoch;
        let newest = std::mem::replace(&mut known.newest, index);
        if let Some(before) = self.nodes.get_mut(newest) {
            before.newer = index;
        }
    }

    fn drop_oldest(&mut self, key: ChannelKey) {
        let Some(channel) = self.channels.get_mut(&key) else {
            return;
        };
        let (index, rule, link) = (channel.oldest, channel.rule, channel.link);
        let node = self.nodes[index];
        channel.oldest = node.newer;
        channel.entries -= 1;
        if channel.entries == 0 {
            // The way to the entry ends before the entry.
            self.heap.remove_channel(link, key);
            self.channels.remove(&key);
        }
        self.heap.free(node.link);
        match self.nodes.get_mut(node.before) {
            Some(before) => before.after = node.after,
            None => self.ages[rule].oldest = node.after,
        }
        match self.nodes.get_mut(node.after) {
            Some(after) => after.before = node.before,
            None => self.ages[rule].newest = node.before,
        }
        self.free_nodes.push(index);
    }
}
