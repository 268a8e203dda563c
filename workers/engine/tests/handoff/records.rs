//! The record of a connection: written, read, kept readable.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tidegate_engine::client::{Expiry, Standing, Traits};
use tidegate_engine::connection::Phase;
use tidegate_engine::handoff::record::{
    Identity, Position, Queued, Record, RecordError, Speech, Timers, VERSION, Writer, read,
};
use tidegate_engine::protocol::format::{self, Format};
use tidegate_engine::protocol::tcp::{FlowState, Window};
use tidegate_engine::protocol::websocket::Fragments;

const SAMPLE_1: &[u8] = include_bytes!("../../../../tests/vectors/handoff-v1.bin");
const SAMPLE_2: &[u8] = include_bytes!("../../../../tests/vectors/handoff-v2.bin");
const SAMPLE_3: &[u8] = include_bytes!("../../../../tests/vectors/handoff-v3.bin");

/// What the sample of version 1 was written from.
fn sample_1() -> Vec<Record> {
    vec![idle(), busy(), binary(), request()]
}

/// What the sample of version 2 was written from.
fn sample_2() -> Vec<Record> {
    vec![
        idle(),
        busy(),
        binary(),
        request(),
        known(),
        streaming(),
        turned_away(),
    ]
}

/// What the sample of version 3 was written from.
fn sample_3() -> Vec<Record> {
    let mut records = sample_2();
    records.push(by_token());
    records
}

fn idle() -> Record {
    Record {
        phase: Phase::Open,
        pinged: true,
        deaf: false,
        hang_up: false,
        turned_away: false,
        native_pings: false,
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
        format: Format::UniWebSocket,
        log_position: None,
        identity: None,
    }
}

/// A client that is known, with a private channel and one that it takes differences of.
fn known() -> Record {
    let standing = |traits, at_s, info: &[u8]| Standing {
        traits: Traits::default().with(traits, true),
        expiry: Expiry {
            at_s,
            by_hook: at_s > 0,
        },
        info: info.into(),
    };
    Record {
        subscriptions: vec![
            idle().subscriptions.remove(0),
            Position {
                channel: "$chat:a#42".to_string(),
                epoch: 7,
                offset: 0,
            },
        ],
        native_pings: true,
        format: Format::ProtobufWebSocketDeflate,
        log_position: Some(u64::MAX - 4095),
        identity: Some(Identity {
            user: "42".to_string(),
            info: b"{\"name\":\"Ann\"}".to_vec(),
            meta: b"[1]".to_vec(),
            headers: b"{\"x-real-ip\":\"192.0.2.7\"}".to_vec(),
            session: *b"fedcba9876543210",
            expiry: Expiry {
                at_s: 1_795_003_600,
                by_hook: false,
            },
            standings: vec![
                standing(Traits::DELTA | Traits::BASED | Traits::POSITIONED, 0, b""),
                standing(
                    Traits::PRESENT | Traits::ANNOUNCED | Traits::JOIN_LEAVE,
                    1_795_000_060,
                    b"{}",
                ),
            ],
        }),
        ..idle()
    }
}

/// A client with little room, in channels that its token named.
fn by_token() -> Record {
    let mut record = known();
    record.format = Format::ProtobufWebSocketNarrow;
    if let Some(identity) = &mut record.identity {
        identity.standings[0].traits.set(Traits::BY_TOKEN, true);
    }
    record
}

fn streaming() -> Record {
    Record {
        deaf: true,
        speech: Speech::Stream,
        format: Format::JsonSse,
        native_pings: false,
        ..known()
    }
}

fn turned_away() -> Record {
    Record {
        phase: Phase::Connecting,
        turned_away: true,
        subscriptions: Vec::new(),
        format: Format::JsonWebSocket,
        ..idle()
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
        format: Format::Tcp,
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
fn records_of_the_version_before_are_read_too() {
    assert_eq!(read(SAMPLE_1), Ok(sample_1()));
    assert_eq!(read(SAMPLE_2), Ok(sample_2()));
    assert_eq!(read(SAMPLE_3), Ok(sample_3()));
}

#[test]
fn the_sample_is_what_this_version_writes() {
    if VERSION == 3 {
        let bytes = written(&sample_3());
        if let Some(path) = std::env::var_os("WRITE_HANDOFF_SAMPLE") {
            std::fs::write(path, &bytes).unwrap();
        }
        assert_eq!(bytes, SAMPLE_3);
    }
}

#[test]
fn what_is_no_record_is_refused_by_name() {
    assert_eq!(read(b"").unwrap_err(), RecordError::CutOff);
    assert_eq!(read(b"no record").unwrap_err(), RecordError::Magic);
    assert_eq!(read(b"TGHR\x04\0").unwrap_err(), RecordError::Version(4));
    assert_eq!(
        read(b"TGHR\x01\0\x01\0\0\0\x03").unwrap_err(),
        RecordError::Value("phase")
    );
    for (sample, count) in [(SAMPLE_1, 4), (SAMPLE_2, 7), (SAMPLE_3, 8)] {
        for cut in 7..sample.len() {
            let whole = read(&sample[..cut]);
            assert!(whole.map_or(true, |records| records.len() < count));
        }
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
        ("format", {
            let mut record = known();
            record.format = Format::JsonSse;
            record
        }),
        ("standings", {
            let mut record = known();
            record.subscriptions.pop();
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
        Just(Speech::Stream),
        (flow, bytes(), bytes()).prop_map(|(flow, pieces, wire)| Speech::Tcp {
            flow,
            pieces,
            wire
        }),
    ]
}

/// One of the formats that go with a way of speaking.
fn format(speech: &Speech, number: usize) -> Format {
    let fits = |format: &Format| match speech {
        Speech::Http => true,
        Speech::WebSocket(_) => format.is_websocket(),
        Speech::Stream => !format.is_websocket() && *format != Format::Tcp,
        Speech::Tcp { .. } => *format == Format::Tcp,
    };
    let fitting: Vec<Format> = format::ALL.into_iter().filter(fits).collect();
    fitting[number % fitting.len()]
}

fn expiry() -> impl Strategy<Value = Expiry> {
    any::<(u64, bool)>().prop_map(|(at_s, by_hook)| Expiry { at_s, by_hook })
}

fn standing() -> impl Strategy<Value = Standing> {
    (0..512u16, expiry(), bytes()).prop_map(|(traits, expiry, info)| Standing {
        traits: Traits::from_bits(traits).unwrap(),
        expiry,
        info: info.into(),
    })
}

prop_compose! {
    fn identity()(
        user in "[a-zäß]{0,20}",
        info in bytes(),
        meta in bytes(),
        headers in bytes(),
        session in any::<[u8; 16]>(),
        expiry in expiry(),
        standings in vec(standing(), 5),
    ) -> Identity {
        Identity { user, info, meta, headers, session, expiry, standings }
    }
}

prop_compose! {
    fn record()(
        phase in prop_oneof![Just(Phase::Connecting), Just(Phase::Open), Just(Phase::Closing)],
        flags in any::<[bool; 5]>(),
        client in any::<[u8; 16]>(),
        times in any::<[u64; 2]>(),
        timers in any::<[u32; 5]>(),
        soft_ms in option::of(any::<u32>()),
        subscriptions in vec(("[a-zäß:]{1,60}", any::<u32>(), any::<u64>()), 0..5),
        queue in vec((option::of(any::<u32>()), vec(any::<u8>(), 1..200)), 0..5),
        sent in any::<u32>(),
        input in bytes(),
        speech in speech(),
        number in any::<usize>(),
        log_position in option::of(any::<u64>()),
        identity in option::of(identity()),
    ) -> Record {
        let identity = identity.map(|identity| Identity {
            standings: identity.standings[..subscriptions.len()].to_vec(),
            ..identity
        });
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
            turned_away: flags[3],
            native_pings: flags[4],
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
            format: format(&speech, number),
            speech,
            log_position,
            identity,
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
        let _ = read(&[b"TGHR\x02\0", &bytes[..]].concat());
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
