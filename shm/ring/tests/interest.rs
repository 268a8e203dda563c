//! Who is woken for what: readers asleep, and records that concern them or not.
#![cfg(not(loom))]

mod support;

use std::time::Duration;

use support::{Random, STARTS, TOPICS, heap_log};
use tidegate_ring::log::{Audience, Interest, LogReader, LogWriter, Topic};
use tidegate_ring::region::Region;

const CAPACITY: u64 = 1 << 16;
/// More than a word of a row has bits.
const SEATS: u32 = 70;
/// A reader that is let sleep is woken after a quarter of the log.
const SPARED_BYTES_MAX: u64 = CAPACITY / 4;

const NOBODY: [u32; 0] = [];

/// A topic for each row, and one that meets it there.
fn topic(row: u64) -> Topic {
    Topic::of(row * (u64::MAX / TOPICS + 1))
}

fn companion(row: u64) -> Topic {
    Topic::of(row * (u64::MAX / TOPICS + 1) + 12_345)
}

struct House {
    region: Region,
    writer: LogWriter,
}

impl House {
    fn new() -> House {
        House::at(0)
    }

    fn at(start: u64) -> House {
        let region = heap_log(CAPACITY, SEATS, start);
        let writer = LogWriter::open(region.clone(), Duration::ZERO).unwrap();
        House { region, writer }
    }

    fn join(&mut self, seat: u32) -> LogReader {
        let reader = LogReader::join(self.region.clone(), seat).unwrap();
        self.writer.attach_reader(seat).unwrap();
        reader
    }

    /// A reader in `seat` that is woken for what is in these rows.
    fn join_for(&mut self, seat: u32, rows: &[u64]) -> (LogReader, Interest) {
        let reader = self.join(seat);
        let mut interest = reader.interest().unwrap();
        rows.iter().for_each(|row| interest.add(topic(*row)));
        (reader, interest)
    }

    /// Commits one batch; returns the seats that are woken.
    fn commit(&mut self, audiences: &[Audience]) -> Vec<u32> {
        let mut batch = self.writer.batch().unwrap();
        for audience in audiences {
            batch.push_for(*audience, 1, &[&[7; 100]]).unwrap();
        }
        let mut woken = Vec::new();
        batch.prepare().commit(|seat| woken.push(seat));
        woken
    }

    fn publish(&mut self, row: u64) -> Vec<u32> {
        self.commit(&[Audience::Interested(topic(row))])
    }
}

fn drain(reader: &mut LogReader) {
    reader.read(usize::MAX, |_| ()).unwrap();
}

fn sleep(reader: &mut LogReader) {
    reader.awake();
    drain(reader);
    assert!(reader.may_sleep());
}

#[test]
fn who_is_asleep_is_woken_for_what_it_is_interested_in_alone() {
    let mut house = House::new();
    let (mut ann, _anns) = house.join_for(0, &[0, 1]);
    let (mut bob, _bobs) = house.join_for(69, &[1, 2]);
    sleep(&mut ann);
    sleep(&mut bob);
    assert_eq!(house.publish(3), NOBODY);
    assert_eq!(house.publish(0), [0]);
    // Ann was rung already.
    assert_eq!(house.publish(1), [69]);
    assert_eq!(house.publish(2), NOBODY);
    sleep(&mut ann);
    assert_eq!(house.publish(1), [0]);
}

#[test]
fn a_batch_wakes_all_whom_one_of_its_records_concerns() {
    let mut house = House::new();
    let mut readers: Vec<_> = (0..4)
        .map(|seat| house.join_for(seat, &[u64::from(seat)]))
        .collect();
    readers.iter_mut().for_each(|(reader, _)| sleep(reader));
    let [one, two] = [1, 2].map(|row| Audience::Interested(topic(row)));
    assert_eq!(house.commit(&[two, one, two, Audience::Nobody]), [1, 2]);
    assert_eq!(house.commit(&[Audience::Nobody]), NOBODY);
    assert_eq!(house.commit(&[one, Audience::Everybody]), [0, 3]);
}

#[test]
fn a_batch_that_was_given_up_wakes_nobody_later() {
    let mut house = House::new();
    let (mut ann, _anns) = house.join_for(0, &[0]);
    sleep(&mut ann);
    let mut batch = house.writer.batch().unwrap();
    let audience = Audience::Interested(topic(0));
    batch.push_for(audience, 1, &[b"never seen"]).unwrap();
    drop(batch);
    assert_eq!(house.publish(1), NOBODY);
}

#[test]
fn a_batch_that_is_redone_wakes_everybody() {
    let mut house = House::new();
    let (mut ann, _anns) = house.join_for(0, &[0]);
    let mut batch = house.writer.batch().unwrap();
    let audience = Audience::Interested(topic(1));
    batch.push_for(audience, 1, &[b"prepared"]).unwrap();
    drop(batch.prepare());
    sleep(&mut ann);
    let mut woken = Vec::new();
    house.writer.redo().unwrap().commit(|seat| woken.push(seat));
    assert_eq!(woken, [0]);
}

#[test]
fn who_shows_no_interest_is_woken_for_everything() {
    let mut house = House::new();
    let mut ann = house.join(0);
    sleep(&mut ann);
    assert_eq!(house.publish(3), [0]);
}

#[test]
fn topics_that_meet_in_a_row_are_told_apart_when_one_is_removed() {
    let mut house = House::new();
    let (mut ann, mut interest) = house.join_for(0, &[0, 0]);
    interest.add(companion(0));
    for left in [2, 1] {
        interest.remove(topic(0));
        sleep(&mut ann);
        assert_eq!(house.publish(0), [0], "{left} are left");
    }
    interest.remove(companion(0));
    sleep(&mut ann);
    assert_eq!(house.publish(0), NOBODY);
}

#[test]
fn what_the_dead_were_interested_in_wakes_nobody_who_takes_their_seat() {
    let mut house = House::new();
    drop(house.join_for(5, &[0, 1, 2, 3]));
    house.writer.detach_reader(5).unwrap();
    let (mut next, _interest) = house.join_for(5, &[2]);
    sleep(&mut next);
    assert_eq!(house.publish(0), NOBODY);
    assert_eq!(house.publish(2), [5]);
    drop((next, _interest));
    // Nor is a reader spared that wants all, though the one before it did not.
    let mut last = house.join(5);
    sleep(&mut last);
    assert_eq!(house.publish(0), [5]);
}

#[test]
fn a_seat_has_one_interest() {
    let mut house = House::new();
    let (reader, interest) = house.join_for(0, &[]);
    assert_eq!(reader.interest().unwrap_err().code(), "segment_claimed");
    drop(interest);
    assert!(reader.interest().is_ok());
}

#[test]
fn who_is_let_sleep_is_woken_before_the_log_comes_round() {
    let mut house = House::new();
    let (mut ann, _anns) = house.join_for(0, &[0]);
    for sleeps in 1..=20 {
        sleep(&mut ann);
        let asleep_at = ann.position();
        while house.publish(1) != [0] {
            let behind = house.writer.view().tail() - asleep_at;
            assert!(behind <= SPARED_BYTES_MAX, "{behind} bytes behind");
        }
        assert_eq!(house.writer.lag_wakes(), sleeps);
        ann.awake();
        drain(&mut ann);
    }
    assert_eq!((house.writer.stalls(), house.writer.evictions()), (0, 0));
}

/// Readers come, go, sleep, change their minds; each commit must wake exactly those that a plain
/// model says, but for those who fall behind.
#[test]
fn wake_ups_agree_with_a_plain_model_whatever_the_order() {
    for (seed, start) in (0..24).zip(STARTS.into_iter().cycle()) {
        Model::new(seed, start).run(2_000);
    }
}

struct Sitting {
    reader: LogReader,
    /// What it takes part with, and how often it has each topic; companions are the odd ones.
    interest: Option<(Interest, [u32; 2 * TOPICS as usize])>,
    asleep_since: Option<u64>,
}

struct Model {
    house: House,
    seats: Vec<Option<Sitting>>,
    random: Random,
    woken: usize,
    spared: usize,
}

impl Model {
    fn new(seed: u64, start: u64) -> Model {
        Model {
            house: House::at(start),
            seats: (0..SEATS).map(|_| None).collect(),
            random: Random(seed),
            woken: 0,
            spared: 0,
        }
    }

    fn run(mut self, steps: usize) {
        for _ in 0..steps {
            // A few seats, in both words of a row.
            let seat = [0, 1, 63, 64, 69][self.random.below(5)];
            match self.random.below(8) {
                0 => self.come_or_go(seat),
                1..=2 => self.change_mind(seat),
                3..=4 => self.go_to_sleep(seat),
                _ => self.commit(),
            }
        }
        assert!(self.woken > 20 && self.spared > 20, "nothing was tried");
        assert_eq!(self.house.writer.evictions(), 0);
    }

    fn come_or_go(&mut self, seat: u32) {
        if let Some(sitting) = self.seats[seat as usize].take() {
            // Killed: nothing is taken back.
            drop(sitting);
            return self.house.writer.detach_reader(seat).unwrap();
        }
        let reader = self.house.join(seat);
        let takes_part = self.random.below(4) > 0;
        let interest = takes_part.then(|| (reader.interest().unwrap(), [0; 2 * TOPICS as usize]));
        self.seats[seat as usize] = Some(Sitting {
            reader,
            interest,
            asleep_since: None,
        });
    }

    fn change_mind(&mut self, seat: u32) {
        let which = self.random.below(2 * TOPICS as usize);
        let adds = self.random.below(2) == 0;
        let Some(sitting) = &mut self.seats[seat as usize] else {
            return;
        };
        let Some((interest, held)) = &mut sitting.interest else {
            return;
        };
        let row = which as u64 / 2;
        let topic = [topic(row), companion(row)][which % 2];
        if adds {
            interest.add(topic);
            held[which] += 1;
        } else if held[which] > 0 {
            interest.remove(topic);
            held[which] -= 1;
        }
        // Who changes its mind is awake.
        sitting.reader.awake();
        sitting.asleep_since = None;
    }

    fn go_to_sleep(&mut self, seat: u32) {
        if let Some(sitting) = &mut self.seats[seat as usize] {
            sleep(&mut sitting.reader);
            sitting.asleep_since = Some(sitting.reader.position());
        }
    }

    fn commit(&mut self) {
        let audiences: Vec<Audience> = (0..1 + self.random.below(5))
            .map(|_| match self.random.below(12) {
                0 => Audience::Everybody,
                1 => Audience::Nobody,
                _ => Audience::Interested(topic(self.random.below(TOPICS as usize) as u64)),
            })
            .collect();
        let woken = self.house.commit(&audiences);
        let tail = self.house.writer.view().tail();
        for (seat, sitting) in (0..).zip(&mut self.seats) {
            let is_woken = woken.contains(&seat);
            let Some(Sitting {
                reader,
                interest,
                asleep_since,
            }) = sitting
            else {
                assert!(!is_woken, "nobody sits there");
                continue;
            };
            let Some(since) = *asleep_since else {
                assert!(!is_woken, "it is awake");
                // Whoever is awake reads.
                drain(reader);
                continue;
            };
            let concerns = |audience: &Audience| match (audience, &interest) {
                (Audience::Everybody, _) | (_, None) => true,
                (Audience::Nobody, _) => false,
                (Audience::Interested(wanted), Some((_, held))) => (0..TOPICS).any(|row| {
                    let holds = held[2 * row as usize] + held[2 * row as usize + 1] > 0;
                    topic(row) == *wanted && holds
                }),
            };
            let behind = tail.wrapping_sub(since);
            let is_concerned = audiences.iter().any(concerns);
            assert_eq!(is_woken, is_concerned || behind > SPARED_BYTES_MAX);
            if is_woken {
                reader.awake();
                drain(reader);
                *asleep_since = None;
                self.woken += 1;
            } else {
                self.spared += 1;
            }
        }
    }
}
