//! Who waits for whom: the writer for its readers, within its budget.
#![cfg(not(loom))]

mod support;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use support::{OWNER, heap_log};
use tidegate_ring::error::{LapCause, LogError};
use tidegate_ring::log::{self, LogReader, LogWriter};
use tidegate_ring::region::Region;
use tidegate_ring::wake::{Bell, wait_readable};

const CAPACITY: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

fn append(writer: &mut LogWriter, payload: &[u8]) -> Vec<u32> {
    let mut batch = writer.batch().unwrap();
    batch.push(1, &[payload]).unwrap();
    let mut woken = Vec::new();
    batch.prepare().commit(|seat| woken.push(seat));
    woken
}

#[test]
fn the_writer_waits_for_a_slow_reader_within_its_budget() {
    let region = heap_log(CAPACITY, 1, 0);
    let mut reader = LogReader::join(region.clone(), 0).unwrap();
    let mut writer = LogWriter::open(region, PATIENCE).unwrap();
    writer.attach_reader(0).unwrap();
    let reading = std::thread::spawn(move || {
        let mut count = 0u32;
        while count < 500 {
            let shown = reader.read(1, |record| {
                assert_eq!(record.payload[..4], count.to_ne_bytes());
                count += 1;
            });
            shown.expect("never lapped");
            std::thread::yield_now();
        }
    });
    for number in 0..500u32 {
        append(&mut writer, &[number.to_ne_bytes(); 25].concat());
    }
    reading.join().unwrap();
    assert_eq!(writer.evictions(), 0);
}

#[test]
fn a_reader_that_does_not_move_is_evicted_after_the_budget_and_only_it() {
    let budget = Duration::from_millis(30);
    let region = heap_log(CAPACITY, 3, 0);
    let mut stuck = LogReader::join(region.clone(), 0).unwrap();
    let mut quick = LogReader::join(region.clone(), 2).unwrap();
    let mut writer = LogWriter::open(region, budget).unwrap();
    for seat in 0..3 {
        writer.attach_reader(seat).unwrap();
    }
    let began = Instant::now();
    for _ in 0..200 {
        append(&mut writer, &[7; 100]);
        assert_eq!(quick.read(9, |_| ()), Ok(1));
    }
    assert!(began.elapsed() >= budget);
    assert_eq!(writer.evictions(), 1);
    let lapped = stuck.read(9, |_| panic!("overwritten")).unwrap_err();
    assert_eq!((lapped.position, lapped.cause), (0, LapCause::Evicted));
    stuck.rejoin();
    append(&mut writer, &[8; 100]);
    assert_eq!(
        stuck.read(9, |record| assert_eq!(record.payload, [8; 100])),
        Ok(1)
    );
}

#[test]
fn a_reader_that_only_crawls_is_evicted_too() {
    let region = heap_log(CAPACITY, 1, 0);
    let mut crawler = LogReader::join(region.clone(), 0).unwrap();
    let mut writer = LogWriter::open(region, Duration::from_millis(20)).unwrap();
    writer.attach_reader(0).unwrap();
    let crawling = std::thread::spawn(move || {
        // One record in each of the writer's waits: always moving, always a lap behind.
        while crawler.read(1, |_| ()).is_ok() {
            let until = Instant::now() + Duration::from_millis(3);
            while Instant::now() < until {
                std::thread::yield_now();
            }
        }
    });
    let began = Instant::now();
    while writer.evictions() == 0 {
        append(&mut writer, &[7; 100]);
        assert!(began.elapsed() < PATIENCE, "it is waited for for ever");
    }
    crawling.join().unwrap();
}

#[test]
fn a_sleeper_is_woken_once_for_each_sleep() {
    let region = heap_log(CAPACITY, 2, 0);
    let mut reader = LogReader::join(region.clone(), 1).unwrap();
    let mut writer = LogWriter::open(region, PATIENCE).unwrap();
    writer.attach_reader(1).unwrap();
    assert!(append(&mut writer, b"awake").is_empty());
    assert!(!reader.may_sleep(), "there is something to read");
    assert_eq!(reader.read(9, |_| ()), Ok(1));
    for _ in 0..3 {
        assert!(reader.may_sleep());
        assert_eq!(append(&mut writer, b"asleep"), [1]);
        assert!(append(&mut writer, b"woken already").is_empty());
        reader.awake();
        assert_eq!(reader.read(9, |_| ()), Ok(2));
    }
}

#[test]
fn a_bell_that_rang_is_heard_later_and_then_silent() {
    let (bell, other) = (Bell::new().unwrap(), Bell::new().unwrap());
    assert!(!bell.wait(Duration::ZERO));
    bell.ring();
    bell.ring();
    let fds = [bell.as_raw_fd(), other.as_raw_fd()];
    assert_eq!(wait_readable(fds, PATIENCE).unwrap(), [true, false]);
    assert!(bell.wait(PATIENCE) && !bell.silence());
}

#[test]
fn what_does_not_fit_is_refused_and_says_so() {
    let region = heap_log(CAPACITY, 1, 0);
    let mut writer = LogWriter::open(region.clone(), PATIENCE).unwrap();
    let bytes_max = writer.view().payload_bytes_max();
    assert_eq!(bytes_max, CAPACITY as usize / 8 - 8);
    let mut batch = writer.batch().unwrap();
    let error = LogError::TooLarge {
        bytes: bytes_max + 1,
        bytes_max,
    };
    assert_eq!(batch.push(1, &[&vec![0; bytes_max], &[0]]), Err(error));
    batch.push(1, &[&vec![0; bytes_max]]).unwrap();
    batch.push(1, &[&vec![0; bytes_max]]).unwrap();
    assert_eq!(batch.push(1, &[&[]]), Err(LogError::BatchFull));
    let code = |error: tidegate_ring::error::SegmentError| error.code();
    assert_eq!(
        LogWriter::open(region.clone(), PATIENCE)
            .map_err(code)
            .unwrap_err(),
        "segment_claimed"
    );
    assert_eq!(
        LogReader::join(region.clone(), 1)
            .map_err(code)
            .unwrap_err(),
        "segment_parameter"
    );
    for (capacity, readers, topics, start) in [
        (1000, 1, 1, 0),
        (64, 1, 1, 0),
        (4096, 0, 1, 0),
        (4096, 257, 1, 0),
        (4096, 1, 0, 0),
        (4096, 1, (1 << 26) + 1, 0),
        (4096, 1, 1, 8),
        (8192, 1, 1, 0),
    ] {
        let region = Region::heap(log::segment_bytes(4096, 1, 1));
        let error = log::format(&region, capacity, readers, topics, start, OWNER).unwrap_err();
        assert_eq!(
            error.code(),
            "segment_parameter",
            "{capacity} {readers} {topics} {start}"
        );
    }
}
