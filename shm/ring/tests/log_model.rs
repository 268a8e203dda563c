//! The log against a plain list: random operations, every answer compared.
#![cfg(not(loom))]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::{Random, STARTS, heap_log};
use tidegate_ring::error::{LapCause, LogError};
use tidegate_ring::log::{LogReader, LogView, LogWriter};
use tidegate_ring::region::Region;

const CAPACITY: u64 = 1024;
const SEATS: u32 = 3;
const SEEDS: u64 = 40;
const STEPS: usize = 3000;

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    kind: u32,
    payload: Vec<u8>,
}

/// A reader and what the model knows of it.
struct Seat {
    reader: LogReader,
    /// Number of the next record it has to see.
    next: usize,
    evicted: bool,
}

struct Model {
    region: Region,
    writer: Option<LogWriter>,
    /// Every committed record, in order, and where it is.
    records: Vec<(u64, Entry)>,
    numbers: BTreeMap<u64, usize>,
    seats: Vec<Option<Seat>>,
    laps: u64,
    random: Random,
}

impl Model {
    fn new(seed: u64, start: u64) -> Model {
        let region = heap_log(CAPACITY, SEATS, start);
        let mut model = Model {
            writer: None,
            records: Vec::new(),
            numbers: BTreeMap::new(),
            seats: (0..SEATS).map(|_| None).collect(),
            laps: 0,
            random: Random(seed),
            region,
        };
        model.reopen();
        model
    }

    fn writer(&mut self) -> &mut LogWriter {
        self.writer.as_mut().unwrap()
    }

    /// Another writer takes over; no batch is prepared.
    fn reopen(&mut self) {
        drop(self.writer.take());
        let mut writer = LogWriter::open(self.region.clone(), Duration::ZERO).unwrap();
        assert!(writer.redo().is_none());
        for (seat, _) in self.taken_seats() {
            writer.attach_reader(seat).unwrap();
        }
        self.writer = Some(writer);
    }

    fn taken_seats(&self) -> Vec<(u32, usize)> {
        let seats = (0..).zip(&self.seats);
        seats
            .filter_map(|(number, seat)| Some((number, seat.as_ref()?.next)))
            .collect()
    }

    fn some_entry(&mut self) -> Entry {
        let longest = self.writer().view().payload_bytes_max();
        let bytes = self.random.below(longest + 1);
        Entry {
            kind: 1 + self.random.below(5) as u32,
            payload: self.random.bytes(bytes),
        }
    }

    /// Appends a batch; sometimes drops it half-way, or prepares it for a successor to redo.
    fn append(&mut self) {
        let entries: Vec<Entry> = (0..self.random.below(6))
            .map(|_| self.some_entry())
            .collect();
        let fate = self.random.below(10);
        let cut = self.random.below(4);
        let writer = self.writer.as_mut().unwrap();
        let mut batch = writer.batch().unwrap();
        let mut pushed = Vec::new();
        for entry in entries {
            let middle = entry.payload.len() * cut / 4;
            let (first, last) = entry.payload.split_at(middle);
            match batch.push(entry.kind, &[first, &[], last]) {
                Ok(position) => pushed.push((position, entry)),
                Err(error) => {
                    assert_eq!(error, LogError::BatchFull);
                    break;
                }
            }
        }
        if fate == 0 {
            let _abandoned = batch;
            self.note_overrun();
            return;
        }
        let prepared = batch.prepare();
        if fate == 1 && !pushed.is_empty() {
            let _uncommitted = prepared;
            assert_eq!(writer.batch().unwrap_err(), LogError::Uncommitted);
            drop(self.writer.take());
            let mut writer = LogWriter::open(self.region.clone(), Duration::ZERO).unwrap();
            let redo = writer.redo().expect("the batch was prepared");
            let mut found = Vec::new();
            let count = redo.records(|record| {
                let payload = record.payload.to_vec();
                found.push((
                    record.position,
                    Entry {
                        kind: record.kind,
                        payload,
                    },
                ));
            });
            assert_eq!(count, Ok(pushed.len()));
            assert_eq!(found, pushed);
            redo.commit(|_| ());
            self.writer = Some(writer);
            self.commit(pushed);
            self.note_overrun();
            self.reopen();
            return;
        }
        prepared.commit(|_| panic!("nobody sleeps"));
        self.commit(pushed);
        self.note_overrun();
    }

    fn commit(&mut self, pushed: Vec<(u64, Entry)>) {
        for (position, entry) in pushed {
            self.numbers.insert(position, self.records.len());
            self.records.push((position, entry));
        }
    }

    /// Marks the readers whose next record is not safe any more.
    fn note_overrun(&mut self) {
        let view = self.writer().view().clone();
        for seat in self.seats.iter_mut().flatten() {
            seat.evicted |= view.has_left(seat.reader.position());
        }
    }

    fn join(&mut self, seat: u32) {
        if self.seats[seat as usize].is_some() {
            return;
        }
        let reader = LogReader::join(self.region.clone(), seat).unwrap();
        assert!(
            LogReader::join(self.region.clone(), seat).is_err(),
            "one reader on a seat"
        );
        self.writer().attach_reader(seat).unwrap();
        let next = self.records.len();
        self.seats[seat as usize] = Some(Seat {
            reader,
            next,
            evicted: false,
        });
    }

    fn leave(&mut self, seat: u32) {
        let Some(taken) = self.seats[seat as usize].take() else {
            return;
        };
        if self.random.below(2) == 0 {
            taken.reader.leave();
        } else {
            // As a crash would have it; its owner tells.
            drop(taken.reader);
            self.writer().detach_reader(seat).unwrap();
        }
    }

    fn read(&mut self, seat: u32) {
        let records_max = 1 + self.random.below(6);
        let count = self.records.len();
        let Some(taken) = self.seats[seat as usize].as_mut() else {
            return;
        };
        let mut found = Vec::new();
        let result = taken.reader.read(records_max, |record| {
            let payload = record.payload.to_vec();
            found.push((
                record.position,
                Entry {
                    kind: record.kind,
                    payload,
                },
            ));
        });
        assert_eq!(found, self.records[taken.next..taken.next + found.len()]);
        taken.next += found.len();
        match result {
            Ok(shown) => {
                assert_eq!(shown, found.len());
                assert_eq!(shown, records_max.min(count - taken.next + shown));
                assert!(!taken.evicted || taken.next == count);
            }
            Err(lapped) => {
                // Waited for to the last: only a batch that needs the room takes it.
                assert_eq!(lapped.cause, LapCause::Evicted);
                let lag = taken.reader.tail().wrapping_sub(lapped.position);
                assert!(
                    lag > CAPACITY - CAPACITY / 4,
                    "evicted {lag} bytes behind the tail"
                );
                self.laps += 1;
                taken.reader.rejoin();
                assert_eq!(taken.reader.position(), taken.reader.tail());
                taken.next = count;
                taken.evicted = false;
            }
        }
    }

    /// History: a record is there, whole, until it has left.
    fn look_back(&mut self) {
        if self.records.is_empty() {
            return;
        }
        let view = LogView::attach(&self.region).unwrap();
        let number = self.records.len() - 1 - self.random.below(self.records.len().min(80));
        let (position, entry) = &self.records[number];
        let mut payload = Vec::new();
        match view.read_at(*position, &mut payload) {
            Some(kind) => assert_eq!(Entry { kind, payload }, *entry),
            None => assert!(view.has_left(*position)),
        }
        let newest = self.records.last().unwrap().0;
        assert!(!view.has_left(newest) && view.read_at(newest, &mut Vec::new()).is_some());
        assert_eq!(view.read_at(view.tail(), &mut Vec::new()), None);
        assert_eq!(
            view.read_at(position.wrapping_add(8), &mut Vec::new()),
            None
        );
        assert_eq!(
            view.read_at(position.wrapping_add(1 << 40), &mut Vec::new()),
            None
        );
    }

    fn step(&mut self) {
        let seat = self.random.below(SEATS as usize) as u32;
        match self.random.below(100) {
            0..45 => self.append(),
            45..85 => self.read(seat),
            85..91 => self.join(seat),
            91..93 => self.leave(seat),
            93..94 => self.reopen(),
            _ => self.look_back(),
        }
    }
}

#[test]
fn the_log_behaves_as_a_list_does() {
    let (mut records, mut laps) = (0, 0);
    for seed in 0..SEEDS {
        let start = STARTS[seed as usize % STARTS.len()];
        let mut model = Model::new(seed, start);
        for _ in 0..STEPS {
            model.step();
        }
        records += model.records.len();
        laps += model.laps;
    }
    assert!(
        records > 50_000,
        "{records} records are too few to mean something"
    );
    assert!(laps > 100, "{laps} laps are too few to mean something");
}
