//! The record of a connection: written, read, kept readable.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tidegate_engine::connection::Phase;
use tidegate_engine::handoff::record::{
    Position, Queued, Record, RecordError, Speech, Timers, VERSION, Writer, read,
};
use tidegate_engine::protocol::tcp::{FlowState, Window};
use tidegate_engine::protocol::websocket::Fragments;

const SAMPLE: &[u8] = include_bytes!("../../../../tests/vectors/handoff-v1.bin");

/// What the sample was written from.
fn sample() -> Vec<Record> {
    vec![idle(), busy(), binary(), request()]
}

fn idle() -> Record {
    Record {
        phase: Phase::Open,
        pinged: true,
        deaf: false,
        hang_up: false,
        client: *b"0123456789abcdef",
        connected_ms: 1_795_000_000_000,
        detached_ns: 123_456_789_000,
        timers: Timers {
            due_ms: 8_000,
            probe_ms: 150,
            probe_interval_ms: 25_000,
            silence_max_ms: 8_000,
            heard_ms: 25_000,
            soft_ms: None,
        },
        subscriptions: vec![Position {
            channel: "public:news".to_string(),
            epoch: 0x5F2A_90C1,
            offset: 303,
        }],
        queue: Vec::new(),
        head_sent_bytes: 0,
        input: Vec::new(),
        speech: Speech::WebSocket(None),
    }
}

fn busy() -> Record {
    Record {
        pinged: false,
        timers: Timers {
            soft_ms: Some(400),
            ..idle().timers
        },
        queue: vec![
            Queued {
                subscription: Some(0),
                bytes: b"begun".to_vec(),
            },
            Queued {
                subscription: None,
                bytes: b"next".to_vec(),
            },
        ],
        head_sent_bytes: 2,
        input: b"half a fr".to_vec(),
        speech: Speech::WebSocket(Some(Fragments {
            is_text: true,
            is_compressed: false,
            payload: b"half a m\xC3".to_vec(),
            valid_bytes: 8,
        })),
        ..idle()
    }
}

fn binary() -> Record {
    Record {
        phase: Phase::Closing,
        deaf: true,
        hang_up: true,
        subscriptions: Vec::new(),
        queue: Vec::new(),
        head_sent_bytes: 0,
        speech: Speech::Tcp {
            flow: FlowState {
                in_flight: vec![30, 65_535],
                sent_seq: u32::MAX,
                received_seq: 4,
                told_seq: 3,
                received_unacked_bytes: 77,
                own: Window {
                    size: 32_768,
                    scale: 2,
                },
                peer: Window {
                    size: 40_000,
                    scale: 3,
                },
                connected: true,
                greeted: true,
                crc: true,
            },
            pieces: b"piece".to_vec(),
            wire: b"wire".to_vec(),
        },
        ..busy()
    }
}

fn request() -> Record {
    Record {
        phase: Phase::Connecting,
        pinged: false,
        queue: Vec::new(),
        subscriptions: Vec::new(),
        head_sent_bytes: 0,
        input: b"GET / HT".to_vec(),
        speech: Speech::Http,
        ..idle()
    }
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::default();
    for record in records {
        writer.push(record);
    }
    writer.bytes().to_vec()
}

#[test]
fn records_of_version_1_are_read_for_ever() {
    assert_eq!(read(SAMPLE), Ok(sample()));
}

#[test]
fn the_sample_is_what_version_1_writes() {
    if VERSION == 1 {
        let bytes = written(&sample());
        if let Some(path) = std::env::var_os("WRITE_HANDOFF_SAMPLE") {
            std::fs::write(path, &bytes).unwrap();
        }
        assert_eq!(bytes, SAMPLE);
    }
}

#[test]
fn what_is_no_record_is_refused_by_name() {
    assert_eq!(read(b"").unwrap_err(), RecordError::CutOff);
    assert_eq!(read(b"no record").unwrap_err(), RecordError::Magic);
    assert_eq!(read(b"TGHR\x02\0").unwrap_err(), RecordError::Version(2));
    assert_eq!(
        read(b"TGHR\x01\0\x01\0\0\0\x03").unwrap_err(),
        RecordError::Value("phase")
    );
    for cut in 7..SAMPLE.len() {
        let whole = read(&SAMPLE[..cut]);
        assert!(whole.map_or(true, |records| records.len() < 4));
    }
    let impossible = [
        ("head_sent_bytes", {
            let mut record = busy();
            record.head_sent_bytes = 5;
            record
        }),
        ("queue", {
            let mut record = busy();
            record.queue[1].subscription = Some(1);
            record
        }),
        ("channel", {
            let mut record = idle();
            record.subscriptions[0].channel.clear();
            record
        }),
        ("valid_bytes", {
            let mut record = busy();
            if let Speech::WebSocket(Some(fragments)) = &mut record.speech {
                fragments.valid_bytes = 10;
            }
            record
        }),
        ("in_flight", {
            let mut record = binary();
            if let Speech::Tcp { flow, .. } = &mut record.speech {
                flow.in_flight = vec![1; 8193];
            }
            record
        }),
        ("scale", {
            let mut record = binary();
            if let Speech::Tcp { flow, .. } = &mut record.speech {
                flow.peer.scale = 15;
            }
            record
        }),
    ];
    for (name, record) in impossible {
        assert_eq!(
            read(&written(&[record])).unwrap_err(),
            RecordError::Value(name)
        );
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

fn window() -> impl Strategy<Value = Window> {
    (any::<u16>(), 0..=14u8).prop_map(|(size, scale)| Window { size, scale })
}

fn speech() -> impl Strategy<Value = Speech> {
    let fragments =
        (any::<[bool; 2]>(), bytes(), any::<usize>()).prop_map(|(kind, payload, valid)| {
            let valid_bytes = valid % (payload.len() + 1);
            let [is_text, is_compressed] = kind;
            Fragments {
                is_text,
                is_compressed,
                payload,
                valid_bytes,
            }
        });
    let flow = (
        vec(any::<u16>(), 0..20),
        any::<[u32; 4]>(),
        (window(), window()),
        any::<[bool; 3]>(),
    )
        .prop_map(|(in_flight, numbers, (own, peer), flags)| FlowState {
            in_flight,
            sent_seq: numbers[0],
            received_seq: numbers[1],
            told_seq: numbers[2],
            received_unacked_bytes: numbers[3],
            own,
            peer,
            connected: flags[0],
            greeted: flags[1],
            crc: flags[2],
        });
    prop_oneof![
        Just(Speech::Http),
        option::of(fragments).prop_map(Speech::WebSocket),
        (flow, bytes(), bytes()).prop_map(|(flow, pieces, wire)| Speech::Tcp {
            flow,
            pieces,
            wire
        }),
    ]
}

prop_compose! {
    fn record()(
        phase in prop_oneof![Just(Phase::Connecting), Just(Phase::Open), Just(Phase::Closing)],
        flags in any::<[bool; 3]>(),
        client in any::<[u8; 16]>(),
        times in any::<[u64; 2]>(),
        timers in any::<[u32; 5]>(),
        soft_ms in option::of(any::<u32>()),
        subscriptions in vec(("[a-zäß:]{1,60}", any::<u32>(), any::<u64>()), 0..5),
        queue in vec((option::of(any::<u32>()), vec(any::<u8>(), 1..200)), 0..5),
        sent in any::<u32>(),
        input in bytes(),
        speech in speech(),
    ) -> Record {
        let places = subscriptions.len() as u32;
        let queue: Vec<Queued> = queue
            .into_iter()
            .map(|(at, bytes)| Queued {
                subscription: at.filter(|_| places > 0).map(|at| at % places),
                bytes,
            })
            .collect();
        Record {
            phase,
            pinged: flags[0],
            deaf: flags[1],
            hang_up: flags[2],
            client,
            connected_ms: times[0],
            detached_ns: times[1],
            timers: Timers {
                due_ms: timers[0],
                probe_ms: timers[1],
                probe_interval_ms: timers[2],
                silence_max_ms: timers[3],
                heard_ms: timers[4],
                soft_ms,
            },
            subscriptions: subscriptions
                .into_iter()
                .map(|(channel, epoch, offset)| Position { channel, epoch, offset })
                .collect(),
            head_sent_bytes: queue.first().map_or(0, |head| sent % head.bytes.len() as u32),
            queue,
            input,
            speech,
        }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(records in vec(record(), 0..6)) {
        prop_assert_eq!(read(&written(&records)), Ok(records));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        let _ = read(&[b"TGHR\x01\0", &bytes[..]].concat());
    }

    #[test]
    fn no_damage_makes_the_reader_panic(
        records in vec(record(), 1..3),
        damage in vec((any::<usize>(), any::<u8>()), 1..8),
        cut in any::<usize>(),
    ) {
        let mut bytes = written(&records);
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = read(&bytes);
        let _ = read(&bytes[..cut % bytes.len()]);
    }
}
