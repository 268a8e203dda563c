//! The history store against a plain map: what rules keep is there, what memory cannot hold went
//! oldest first, and nothing leaks, however often a publisher takes over.
#![cfg(not(loom))]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::{OWNER, Random, publication};
use tidegate_ring::channels::{ChannelKey, Top};
use tidegate_ring::history::{self, HistoryRule, HistoryStore, HistoryWriter};
use tidegate_ring::publication::PublicationView;
use tidegate_ring::region::Region;

const EPOCH: u32 = 7;

/// Namespace, publications, seconds.
const RULES: [(&str, u64, u64); 3] = [("one", 1, 1_000), ("few", 5, 20), ("many", 40, 100)];

fn rules() -> Vec<HistoryRule> {
    let rule = |(namespace, size, ttl_s): (&str, u64, u64)| HistoryRule {
        namespace: namespace.to_owned(),
        size,
        ttl: Duration::from_secs(ttl_s),
    };
    RULES.map(rule).to_vec()
}

fn store(memory_bytes: u64) -> Region {
    let region = Region::heap(history::segment_bytes(memory_bytes).unwrap());
    history::format(&region, memory_bytes, OWNER).unwrap();
    region
}

struct Kept {
    time_ms: u64,
    sequence: u64,
    payload: Vec<u8>,
}

/// What was published and, as far as rules go, is to be there.
#[derive(Default)]
struct Model {
    channels: BTreeMap<String, Vec<Kept>>,
    tops: BTreeMap<String, u64>,
    published: u64,
    now_ms: u64,
}

impl Model {
    fn rule(channel: &str) -> Option<(&'static str, u64, u64)> {
        let namespace = channel.split(':').next().unwrap();
        RULES.into_iter().find(|rule| rule.0 == namespace)
    }

    fn publish(&mut self, channel: &str, data: &[u8]) -> Vec<u8> {
        let top = self.tops.entry(channel.to_owned()).or_default();
        *top += 1;
        self.published += 1;
        let view = PublicationView {
            key: key(channel),
            epoch: EPOCH,
            offset: *top,
            time_ms: self.now_ms,
            kept: true,
            ..publication(channel, data)
        };
        let payload = view.encode();
        if let Some((_, size, _)) = Self::rule(channel) {
            let kept = self.channels.entry(channel.to_owned()).or_default();
            kept.push(Kept {
                time_ms: self.now_ms,
                sequence: self.published,
                payload: payload.clone(),
            });
            if kept.len() as u64 > size {
                kept.remove(0);
            }
        }
        payload
    }

    fn expire(&mut self) {
        let now_ms = self.now_ms;
        for (channel, kept) in &mut self.channels {
            let (_, _, ttl_s) = Self::rule(channel).unwrap();
            kept.retain(|entry| now_ms - entry.time_ms <= ttl_s * 1_000);
        }
    }
}

fn key(channel: &str) -> ChannelKey {
    // Few buckets' worth of keys, so that channels share chains.
    let sum = channel
        .bytes()
        .fold(0_u64, |sum, byte| sum * 31 + u64::from(byte));
    ChannelKey([(sum % 40) << 1 | 1, sum << 1 | 1])
}

fn top(model: &Model, channel: &str) -> Top {
    Top {
        epoch: EPOCH,
        offset: model.tops.get(channel).copied().unwrap_or(0),
        last_position: 0,
    }
}

fn read(store: &HistoryStore, model: &Model, channel: &str) -> Vec<Vec<u8>> {
    let top = top(model, channel);
    let found = store.read(key(channel), top, None, usize::MAX, false, usize::MAX);
    found.map_or_else(Vec::new, |stretch| stretch.payloads)
}

/// The store has a tail of what the rules keep; returns how many entries it lacks, for want of
/// memory, the newest sequence among those, and the oldest among those that are there.
fn compare(store: &HistoryStore, model: &Model) -> (u64, u64, u64) {
    let (mut lacking, mut newest_gone, mut oldest_there) = (0, 0, u64::MAX);
    for (channel, kept) in &model.channels {
        let found = read(store, model, channel);
        assert!(
            found.len() <= kept.len(),
            "{channel} has more than it keeps"
        );
        let gone = kept.len() - found.len();
        let expected: Vec<_> = kept[gone..].iter().map(|entry| &entry.payload).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{channel}");
        lacking += gone as u64;
        newest_gone = kept[..gone]
            .iter()
            .map(|entry| entry.sequence)
            .fold(newest_gone, u64::max);
        oldest_there = kept[gone..]
            .iter()
            .map(|entry| entry.sequence)
            .fold(oldest_there, u64::min);
    }
    (lacking, newest_gone, oldest_there)
}

/// Publishes, expires, removes and takes over at random; `check` sees the store after each step.
fn live(
    seed: u64,
    memory_bytes: u64,
    steps: usize,
    mut check: impl FnMut(&HistoryStore, &Model, &HistoryWriter),
) {
    let (mut random, mut model) = (Random(seed), Model::default());
    let region = store(memory_bytes);
    let reader = HistoryStore::attach(region.clone()).unwrap();
    let mut writer = HistoryWriter::open(region.clone(), rules()).unwrap();
    for _ in 0..steps {
        let namespace = ["one", "few", "many", "none"][random.below(4)];
        let channel = format!("{namespace}:{}", random.below(6));
        model.now_ms += random.below(500) as u64;
        match random.below(40) {
            0 => {
                drop(writer);
                writer = HistoryWriter::open(region.clone(), rules()).unwrap();
            }
            1 => {
                writer.remove(key(&channel));
                model.channels.remove(&channel);
            }
            2 | 3 => {
                // A bounded number at once.
                for _ in 0..4 {
                    writer.expire(model.now_ms);
                }
                model.expire();
            }
            _ => {
                let bytes = [3, 50, 300, 900][random.below(4)];
                let payload = model.publish(&channel, &random.bytes(bytes));
                let view = PublicationView::parse(&payload).unwrap();
                writer.append(&view, &payload);
                // A batch that is done again changes nothing.
                if random.below(10) == 0 {
                    writer.append(&view, &payload);
                }
            }
        }
        check(&reader, &model, &writer);
    }
    let channels: Vec<String> = model.channels.keys().cloned().collect();
    for channel in channels {
        writer.remove(key(&channel));
    }
    let figures = writer.figures();
    assert_eq!(
        (figures.entries, figures.channels, figures.bytes),
        (0, 0, 0),
        "a leak"
    );
}

#[test]
fn with_room_enough_the_rules_alone_say_what_is_kept() {
    for seed in 0..4 {
        live(seed, 1 << 18, 800, |store, model, writer| {
            assert_eq!(compare(store, model).0, 0);
            assert_eq!(writer.figures().evicted, 0);
            let entries: usize = model.channels.values().map(Vec::len).sum();
            assert_eq!(writer.figures().entries, entries as u64);
        });
    }
}

#[test]
fn without_room_the_oldest_of_all_channels_go_first() {
    let mut evicted = 0;
    for seed in 0..6 {
        live(seed, 16 * 1024, 500, |store, model, writer| {
            let (_, newest_gone, oldest_there) = compare(store, model);
            assert!(
                newest_gone < oldest_there,
                "{newest_gone} went before {oldest_there}"
            );
            evicted += writer.figures().evicted;
        });
    }
    assert!(evicted > 1_000, "memory was never short");
}

#[test]
fn any_stretch_can_be_asked_for_in_both_directions() {
    let mut random = Random(5);
    live(3, 1 << 18, 400, |store, model, _| {
        let channel = format!("many:{}", random.below(6));
        let all = read(store, model, &channel);
        let offset = |payload: &Vec<u8>| PublicationView::parse(payload).unwrap().offset;
        let (since, limit) = (random.below(60) as u64, random.below(20));
        let bytes_max = [usize::MAX, 2_000][random.below(2)];
        let ask = |since, reverse| {
            let top = top(model, &channel);
            let found = store.read(key(&channel), top, since, limit, reverse, bytes_max);
            found.map_or_else(Vec::new, |stretch| stretch.payloads)
        };
        let within = |wanted: Vec<Vec<u8>>| {
            let mut left = bytes_max;
            let fits = |payload: &Vec<u8>| match left.checked_sub(payload.len()) {
                Some(less) => {
                    left = less;
                    true
                }
                None => false,
            };
            wanted
                .into_iter()
                .take(limit)
                .take_while(fits)
                .collect::<Vec<_>>()
        };
        let after: Vec<_> = all
            .iter()
            .filter(|each| offset(each) > since)
            .cloned()
            .collect();
        let before = all.iter().rev().filter(|each| offset(each) < since);
        assert_eq!(ask(Some(since), false), within(after));
        assert_eq!(ask(Some(since), true), within(before.cloned().collect()));
        assert_eq!(ask(None, true), within(all.iter().rev().cloned().collect()));
        assert_eq!(ask(None, false), within(all));
    });
}

#[test]
fn other_rules_after_a_reload_hold_for_what_is_there() {
    let region = store(1 << 20);
    let reader = HistoryStore::attach(region.clone()).unwrap();
    let mut model = Model::default();
    let mut writer = HistoryWriter::open(region.clone(), rules()).unwrap();
    for number in 0..30_u8 {
        for channel in ["few:a", "many:a"] {
            let payload = model.publish(channel, &[number]);
            writer.append(&PublicationView::parse(&payload).unwrap(), &payload);
        }
    }
    drop(writer);
    let fewer = HistoryRule {
        namespace: "many".to_owned(),
        size: 2,
        ttl: Duration::from_secs(1),
    };
    let mut writer = HistoryWriter::open(region, vec![fewer]).unwrap();
    assert_eq!(read(&reader, &model, "few:a").len(), 0);
    assert_eq!(read(&reader, &model, "many:a").len(), 2);
    writer.expire(model.now_ms + 1_000);
    assert_eq!(read(&reader, &model, "many:a").len(), 2);
    writer.expire(model.now_ms + 1_001);
    assert_eq!((writer.figures().expired, writer.figures().bytes), (2, 0));
}

#[test]
fn a_channel_of_a_new_epoch_has_nothing_of_the_old_one() {
    let region = store(1 << 20);
    let reader = HistoryStore::attach(region.clone()).unwrap();
    let mut writer = HistoryWriter::open(region, rules()).unwrap();
    let mut publish = |epoch, offset| {
        let view = PublicationView {
            key: key("few:a"),
            epoch,
            offset,
            kept: true,
            ..publication("few:a", b"1")
        };
        writer.append(&view, &view.encode());
    };
    (1..4).for_each(|offset| publish(1, offset));
    publish(2, 1);
    let count = |epoch, offset| {
        let top = Top {
            epoch,
            offset,
            last_position: 0,
        };
        let found = reader.read(key("few:a"), top, None, usize::MAX, false, usize::MAX);
        found.map(|stretch| (stretch.payloads.len(), stretch.complete))
    };
    assert_eq!(
        (count(1, 3), count(2, 1)),
        (Some((0, false)), Some((1, true)))
    );
}
