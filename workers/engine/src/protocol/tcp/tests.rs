//! Rules one by one, and properties: any split of a stream gives the same, any bytes give a
//! numbered close or nothing, the window is never exceeded and never starves.

mod vectors;

use std::collections::VecDeque;

use proptest::prelude::*;

use super::flow::{ACK_FRAMES_MAX, IN_FLIGHT_FRAMES_MAX};
use super::frame::{FRAME_BYTES_MAX, HEADER_BYTES};
use super::payload::*;
use super::*;
use crate::protocol::Parsed;
use crate::protocol::close::Close;

const MESSAGE_BYTES_MAX: usize = 65_536;

fn whole<'a>(bytes: &'a [u8], agreed: &Agreed) -> Frame<'a> {
    match decode(bytes, agreed) {
        Ok(Parsed::Complete { value, consumed }) if consumed == bytes.len() => value,
        other => panic!("{other:?}"),
    }
}

/// A client's frame, built without the code under test.
fn client_frame(
    kind: u8,
    seq: u32,
    ack_seq: u32,
    window: u16,
    payload: &[u8],
    crc: bool,
) -> Vec<u8> {
    let mut frame = vec![0x4D, 0x42, 1, kind];
    frame.extend(seq.to_be_bytes());
    frame.extend(ack_seq.to_be_bytes());
    frame.extend(window.to_be_bytes());
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend(payload);
    if crc {
        frame.extend(crc32c::crc32c(&frame).to_be_bytes());
    }
    frame
}

/// What a worker does with the bytes of one connection, less the answers.
struct Server {
    flow: Flow,
    reassembly: Reassembly,
    received: Vec<u8>,
    /// What was understood, in a form to compare.
    seen: Vec<String>,
}

impl Server {
    fn new() -> Self {
        let flow = Flow::new(SERVER_WINDOW);
        Self {
            flow,
            reassembly: Reassembly::default(),
            received: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn connected(crc: bool) -> Self {
        let mut server = Self::new();
        server
            .feed(&client_frame(
                4,
                0,
                0,
                65_535,
                &[u8::from(crc), 0, 0, 0],
                false,
            ))
            .unwrap();
        server.flow.frame(Kind::Connected, b"", &mut Vec::new());
        server.seen.clear();
        server
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Close> {
        let mut received = std::mem::take(&mut self.received);
        received.extend(bytes);
        let mut start = 0;
        while let Parsed::Complete { value, consumed } =
            decode(&received[start..], &self.flow.agreed())?
        {
            self.flow.receive(&value)?;
            self.understand(&value)?;
            start += consumed;
        }
        self.received = received.split_off(start);
        assert!(self.received.len() < FRAME_BYTES_MAX);
        Ok(())
    }

    fn understand(&mut self, frame: &Frame<'_>) -> Result<(), Close> {
        let payload = frame.payload;
        self.seen.push(match frame.header.kind {
            Kind::Connect => {
                let connect = Connect::parse(payload)?;
                self.flow.agree(&connect);
                format!("{connect:?}")
            }
            Kind::Subscribe => format!("{:?}", Subscribe::parse(payload)?),
            Kind::Unsubscribe => format!("{:?}", Unsubscribe::parse(payload)?),
            Kind::Close => format!("{:?}", Goodbye::parse(payload)?),
            Kind::Publish => match self.reassembly.push(payload, MESSAGE_BYTES_MAX)? {
                Some(message) => format!("{:?}", Publish::parse(&message)?),
                None => "piece".into(),
            },
            kind => format!("{kind:?}"),
        });
        if self.flow.ack_due() {
            self.flow.frame(Kind::Ack, b"", &mut Vec::new());
        }
        Ok(())
    }
}

#[test]
fn fields_that_a_later_version_appends_are_ignored() {
    let later = [&[0, 0, 1, b'x', 0], &b"more"[..]].concat();
    assert_eq!(Connect::parse(&later).unwrap().name, "x");
    assert_eq!(
        Unsubscribe::parse(&[1, 2, 99]),
        Ok(Unsubscribe {
            request: 1,
            alias: 2
        })
    );
}

#[test]
fn checksums_begin_after_connect_and_after_connected() {
    let mut server = Server::new();
    server
        .feed(&client_frame(4, 0, 0, 100, &[1, 0, 0, 0], false))
        .unwrap();
    let mut out = Vec::new();
    let mut refused = server.flow.clone();
    for _ in 0..2 {
        refused.frame(Kind::Close, b"", &mut out);
    }
    assert_eq!(out.len(), 2 * HEADER_BYTES, "in place of CONNECTED");
    out.clear();
    server.flow.frame(Kind::Connected, b"", &mut out);
    assert_eq!(out.len(), HEADER_BYTES);
    server.feed(&client_frame(1, 0, 0, 100, b"", true)).unwrap();
    out.clear();
    server.flow.frame(Kind::Heartbeat, b"", &mut out);
    assert_eq!(out, client_frame(1, 0, 0, SERVER_WINDOW.size, b"", true));
    assert_eq!(server.feed(&client_frame(2, 0, 0, 100, b"", false)), Ok(()));
    assert_eq!(server.feed(&[0; 4]), Err(Close::BadChecksum));
}

#[test]
fn a_data_frame_is_its_head_the_piece_and_the_trailer() {
    let mut server = Server::connected(true);
    assert_eq!(server.flow.piece(5), 5);
    let frame = server.flow.data(b"piece", true);
    let bytes = [&frame.head, &b"piece"[..], &frame.trailer.unwrap()].concat();
    assert_eq!(
        bytes,
        client_frame(0, 1, 0, SERVER_WINDOW.size, b"\x01piece", true)
    );
    assert_eq!(server.flow.in_flight_bytes() as usize, bytes.len());
}

#[test]
fn sequence_numbers_wrap() {
    let mut flow = Flow::numbered_from(SERVER_WINDOW, u32::MAX - 1);
    let receive = |flow: &mut Flow, bytes: &[u8]| flow.receive(&whole(bytes, &flow.agreed()));
    let last = u32::MAX - 1;
    receive(
        &mut flow,
        &client_frame(4, last, last, 65_535, &[0; 4], false),
    )
    .unwrap();
    flow.agree(&Connect {
        crc: false,
        window_scale: 0,
        name: "",
        token: "",
    });
    for (seq, acked) in [(u32::MAX, last), (0, last), (1, 0), (2, 1)] {
        let head = flow.data(b"x", false).head;
        assert_eq!(head[4..8], seq.to_be_bytes());
        let publish = client_frame(10, seq, acked, 65_535, b"\0x", false);
        receive(&mut flow, &publish).unwrap();
    }
    assert_eq!(flow.in_flight_bytes(), 18);
    let back = client_frame(2, 2, u32::MAX, 65_535, b"", false);
    assert_eq!(
        receive(&mut flow.clone(), &back),
        Err(Close::BadAcknowledgement)
    );
    let unsent = client_frame(2, 2, 3, 65_535, b"", false);
    assert_eq!(
        receive(&mut flow.clone(), &unsent),
        Err(Close::BadAcknowledgement)
    );
    receive(&mut flow, &client_frame(2, 2, 2, 65_535, b"", false)).unwrap();
    assert_eq!(flow.in_flight_bytes(), 0);
}

#[test]
fn a_window_stops_and_an_update_goes_on() {
    let mut server = Server::connected(false);
    server.feed(&client_frame(3, 0, 0, 0, b"", false)).unwrap();
    assert_eq!(server.flow.piece(1), 0);
    server
        .feed(&client_frame(3, 0, 0, HEADER_BYTES as u16 + 1, b"", false))
        .unwrap();
    assert_eq!(server.flow.piece(1), 0, "no room for a byte of the message");
    server
        .feed(&client_frame(3, 0, 0, 100, b"", false))
        .unwrap();
    assert_eq!(
        server.flow.piece(1_000),
        83,
        "the whole window is free: cut to fit"
    );
    server.flow.data(&[0; 40], true);
    assert_eq!(server.flow.piece(960), 0, "57 of 100 in flight: no crumbs");
    assert_eq!(server.flow.piece(20), 20, "what fits whole goes");
    server
        .feed(&client_frame(2, 0, 1, 100, b"", false))
        .unwrap();
    assert_eq!(server.flow.piece(960), 83);
}

#[test]
fn frames_in_flight_are_bounded_in_number_too() {
    let mut server = Server::connected(false);
    let connect = Connect {
        crc: false,
        window_scale: 14,
        name: "",
        token: "",
    };
    server.flow.agree(&connect);
    for _ in 0..IN_FLIGHT_FRAMES_MAX {
        assert_eq!(server.flow.piece(1), 1);
        server.flow.data(b"x", false);
    }
    assert_eq!(server.flow.piece(1), 0);
    server
        .feed(&client_frame(2, 0, 1, 65_535, b"", false))
        .unwrap();
    assert_eq!(server.flow.piece(1), 1);
}

#[test]
fn more_than_the_servers_window_is_an_overrun() {
    let mut flow = Flow::new(SERVER_WINDOW);
    flow.agree(&Connect {
        crc: false,
        window_scale: 0,
        name: "",
        token: "",
    });
    let payload = [0; 65_000];
    let publish = |seq| client_frame(10, seq, 0, 9, &payload, false);
    let agreed = flow.agreed();
    assert_eq!(flow.receive(&whole(&publish(1), &agreed)), Ok(()));
    assert!(!flow.ack_due());
    assert_eq!(flow.receive(&whole(&publish(2), &agreed)), Ok(()));
    assert!(flow.ack_due());
    assert_eq!(
        flow.clone().receive(&whole(&publish(3), &agreed)),
        Err(Close::WindowOverrun)
    );
    flow.frame(Kind::Ack, b"", &mut Vec::new());
    assert_eq!(flow.receive(&whole(&publish(3), &agreed)), Ok(()));
}

#[test]
fn many_small_publishes_are_acknowledged_before_half_of_the_window() {
    let mut flow = Flow::new(SERVER_WINDOW);
    flow.agree(&Connect {
        crc: false,
        window_scale: 0,
        name: "",
        token: "",
    });
    let agreed = flow.agreed();
    for seq in 1..=2 * ACK_FRAMES_MAX {
        assert!(!flow.ack_due(), "{seq}");
        let publish = client_frame(10, seq, 0, 9, b"\0x", false);
        flow.receive(&whole(&publish, &agreed)).unwrap();
        if seq % ACK_FRAMES_MAX == 0 {
            assert!(flow.ack_due(), "{seq}");
            flow.frame(Kind::Ack, b"", &mut Vec::new());
        }
    }
}

#[test]
fn messages_are_bounded_while_they_are_put_together() {
    let mut reassembly = Reassembly::default();
    let bound = 1_000 + FIELDS_BYTES_MAX;
    let piece = [&[MARKER_MORE][..], &[7; 1_024]].concat();
    for _ in 0..bound / 1_024 {
        assert_eq!(reassembly.push(&piece, 1_000), Ok(None));
    }
    assert_eq!(reassembly.push(&piece, 1_000), Err(Close::MessageTooBig));
    let rest = [&[MARKER_LAST][..], &vec![7; bound % 1_024]].concat();
    let message = reassembly.push(&rest, 1_000).unwrap().unwrap();
    assert_eq!(message.len(), bound);
    assert_eq!(
        reassembly.push(&[MARKER_LAST, 9], 1_000).unwrap().unwrap()[..],
        [9]
    );
}

/// A client's half, from the specification alone: takes frames, acknowledges when it must.
struct Client {
    window: u16,
    received_seq: u32,
    unacked_bytes: usize,
    unacked_frames: u32,
    message: Vec<u8>,
    messages: Vec<Vec<u8>>,
}

impl Client {
    fn take(&mut self, frame: &DataFrame, piece: &[u8], crc: bool) {
        self.received_seq = self.received_seq.wrapping_add(1);
        assert_eq!(frame.head[4..8], self.received_seq.to_be_bytes());
        self.unacked_bytes += frame.head.len() + piece.len() + if crc { 4 } else { 0 };
        self.unacked_frames += 1;
        assert!(
            self.unacked_bytes <= usize::from(self.window),
            "window exceeded"
        );
        self.message.extend(piece);
        if frame.head[HEADER_BYTES] == MARKER_LAST {
            self.messages.push(std::mem::take(&mut self.message));
        }
    }

    fn acknowledge(&mut self, crc: bool) -> Option<Vec<u8>> {
        let due = self.unacked_bytes * 2 >= usize::from(self.window)
            || self.unacked_frames >= ACK_FRAMES_MAX;
        due.then(|| {
            (self.unacked_bytes, self.unacked_frames) = (0, 0);
            client_frame(2, 0, self.received_seq, self.window, b"", crc)
        })
    }
}

fn client_bytes() -> impl Strategy<Value = Vec<u8>> {
    let frames: Vec<Vec<u8>> = vec![
        client_frame(1, 0, 0, 500, b"", false),
        client_frame(6, 0, 0, 500, &[1, 0, 2, b'c', b'h'], false),
        client_frame(6, 0, 0, 500, &[2, 1, 1, b'c', 1, b'e', 0x80, 1], false),
        client_frame(8, 0, 0, 0, &[3, 9], false),
        client_frame(10, 1, 0, 500, &[0, 1, 0, 1, b'c', b'1'], false),
        client_frame(10, 1, 0, 500, &[1, 1, 0, 1, b'c', b'1'], false),
        client_frame(200, 0, 0, 500, b"later", false),
        client_frame(13, 0, 0, 0, &[0xE8, 7, 0], false),
    ];
    let mutation = proptest::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (
        proptest::collection::vec(proptest::sample::select(frames), 0..8),
        mutation,
    )
        .prop_map(|(frames, mutation)| {
            let mut bytes = frames.concat();
            if let (Some((at, byte)), false) = (mutation, bytes.is_empty()) {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    #[test]
    fn any_split_of_a_stream_gives_the_same(
        bytes in client_bytes(),
        cuts in proptest::collection::vec(1_usize..40, 0..64),
    ) {
        let mut at_once = Server::connected(false);
        let expected = at_once.feed(&bytes);
        let mut split = Server::connected(false);
        let mut rest = &bytes[..];
        let mut outcome = Ok(());
        for cut in cuts.into_iter().chain([bytes.len().max(1)]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            outcome = outcome.and_then(|()| split.feed(now));
            rest = later;
        }
        prop_assert_eq!(outcome, expected);
        prop_assert_eq!(split.seen, at_once.seen);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), crc: bool) {
        let _ = decode(&bytes, &Agreed { crc });
        let _ = Connect::parse(&bytes);
        let _ = Subscribe::parse(&bytes);
        let _ = Unsubscribe::parse(&bytes);
        let _ = Publish::parse(&bytes);
        let _ = Goodbye::parse(&bytes);
        let _ = Reassembly::default().push(&bytes, 10);
        let _ = Server::new().feed(&[&[0x4D, 0x42, 1, 4][..], &bytes].concat());
        let _ = Server::connected(crc).feed(&[&[0x4D, 0x42, 1][..], &bytes].concat());
    }

    #[test]
    fn the_window_is_never_exceeded_and_never_starves(
        lengths in proptest::collection::vec(1_usize..3_000, 1..60),
        windows in proptest::collection::vec(22_u16..4_000, 1..8),
        crc: bool,
    ) {
        let mut server = Server::connected(crc);
        let mut client = Client {
            window: windows[0], received_seq: 0, unacked_bytes: 0, unacked_frames: 0,
            message: Vec::new(), messages: Vec::new(),
        };
        server.feed(&client_frame(3, 0, 0, client.window, b"", crc)).unwrap();
        let messages: Vec<Vec<u8>> = lengths.iter().map(|&n| vec![n as u8; n]).collect();
        let mut queue: VecDeque<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let mut windows = windows.into_iter().cycle();
        while let Some(left) = queue.front_mut() {
            let piece = server.flow.piece(left.len());
            if piece == 0 {
                // The client must be at its half, or nothing would ever move again. A new window
                // is safe to announce with everything acknowledged.
                let ack = client.acknowledge(crc).expect("progress");
                server.feed(&ack).unwrap();
                prop_assert_eq!(server.flow.in_flight_bytes(), 0);
                client.window = windows.next().unwrap();
                server.feed(&client_frame(3, 0, client.received_seq, client.window, b"", crc))
                    .unwrap();
                continue;
            }
            let (now, later) = left.split_at(piece);
            let frame = server.flow.data(now, !later.is_empty());
            client.take(&frame, now, crc);
            *left = later;
            if later.is_empty() {
                queue.pop_front();
            }
        }
        prop_assert_eq!(client.messages, messages);
    }
}
