//! Shared memory that somebody scribbled into: typed errors, never a panic, never a read outside.
#![cfg(not(loom))]

mod support;

use std::ops::ControlFlow;
use std::time::Duration;

use support::{Random, STARTS, heap_log, heap_uplink, scribble};
use tidegate_ring::error::{LapCause, UplinkError};
use tidegate_ring::log::{LogReader, LogView, LogWriter};
use tidegate_ring::uplink::{Request, UplinkConsumer, UplinkProducer};

const LOG_CAPACITY: u64 = 1024;
const UPLINK_CAPACITY: u64 = 1024;

fn request<'a>(id: u64, data: &'a [u8]) -> Request<'a> {
    let (want_reply, json, idempotency, channel, tags) = (false, true, 0, "news", &b"{}"[..]);
    Request {
        id,
        want_reply,
        json,
        idempotency,
        channel,
        tags,
        data,
        ..Request::default()
    }
}

#[test]
fn a_producer_that_scribbles_is_found_out_and_harms_nobody() {
    let mut found = 0;
    for seed in 0..4000 {
        let mut random = Random(seed);
        let region = heap_uplink(UPLINK_CAPACITY, STARTS[seed as usize % STARTS.len()]);
        let mut producer = UplinkProducer::attach(region.clone()).unwrap();
        let mut consumer = UplinkConsumer::attach(region.clone()).unwrap();
        for id in 0..40 {
            let bytes = random.below(60);
            // The producer may find itself corrupt too: it reads what it scribbled.
            let _ = producer.publish(&request(id, &random.bytes(bytes)));
            if random.below(4) == 0 {
                scribble(&region, &mut random);
            }
            match consumer.read(random.below(5), |_, _| ControlFlow::Continue(())) {
                Ok(_) => consumer.release(consumer.position()),
                Err(error) => {
                    assert!(matches!(error, UplinkError::Corrupt { .. }));
                    found += 1;
                    break;
                }
            }
            let _ = producer.replies(|_| ());
        }
    }
    assert!(found > 500, "only {found} times found out");
}

#[test]
fn a_request_with_a_length_beyond_the_ring_is_corrupt_after_the_good_ones() {
    let region = heap_uplink(UPLINK_CAPACITY, 0);
    let mut producer = UplinkProducer::attach(region.clone()).unwrap();
    let mut consumer = UplinkConsumer::attach(region.clone()).unwrap();
    producer.publish(&request(1, b"1")).unwrap();
    producer.publish(&request(2, b"2")).unwrap();
    let ring_at = region.len() - (UPLINK_CAPACITY + UPLINK_CAPACITY / 4) as usize;
    let second_at = ring_at + 96;
    assert_eq!(
        region.load(second_at),
        region.load(ring_at),
        "the head of the second request"
    );
    region.store(second_at, 1 << 32 | u64::from(u32::MAX));
    let mut ids = Vec::new();
    let mut read = || {
        consumer.read(9, |request, _| {
            ids.push(request.id);
            ControlFlow::Continue(())
        })
    };
    assert_eq!(read(), Ok(1));
    assert_eq!(read(), Err(UplinkError::Corrupt { position: 96 }));
    assert_eq!(ids, [1]);
}

#[test]
fn a_damaged_log_is_reported_and_the_reader_goes_on_behind_it() {
    let (mut laps, mut refused) = (0, 0);
    for seed in 0..4000 {
        let mut random = Random(seed);
        let region = heap_log(LOG_CAPACITY, 1, STARTS[seed as usize % STARTS.len()]);
        let mut reader = LogReader::join(region.clone(), 0).unwrap();
        let mut writer = LogWriter::open(region.clone(), Duration::ZERO).unwrap();
        writer.attach_reader(0).unwrap();
        for _ in 0..20 {
            let mut batch = writer.batch().unwrap();
            let bytes = random.below(100);
            batch.push(1, &[&random.bytes(bytes)]).unwrap();
            batch.prepare().commit(|_| ());
            if random.below(4) == 0 {
                scribble(&region, &mut random);
            }
            if reader.read(random.below(5), |_| ()).is_err() {
                reader.rejoin();
                laps += 1;
            }
            let view = LogView::attach(&region).unwrap();
            let _ = view.read_at(random.word(), &mut Vec::new());
            let _ = view.read_at(view.tail().wrapping_sub(16), &mut Vec::new());
            let _ = writer.unanswered(|_| ());
        }
        drop(writer);
        refused += u32::from(LogWriter::open(region, Duration::ZERO).is_err());
    }
    assert!(
        laps > 200 && refused > 10,
        "{laps} laps, {refused} refusals"
    );
}

#[test]
fn a_length_beyond_the_ring_is_called_damage() {
    let region = heap_log(LOG_CAPACITY, 1, 0);
    let mut reader = LogReader::join(region.clone(), 0).unwrap();
    let mut writer = LogWriter::open(region.clone(), Duration::ZERO).unwrap();
    let mut batch = writer.batch().unwrap();
    batch.push(1, &[b"record"]).unwrap();
    batch.prepare().commit(|_| ());
    region.store(region.len() - LOG_CAPACITY as usize, 1 << 32 | 5000);
    let lapped = reader.read(1, |_| panic!("nothing to show")).unwrap_err();
    assert_eq!((lapped.cause, lapped.position), (LapCause::Corrupt, 0));
}
