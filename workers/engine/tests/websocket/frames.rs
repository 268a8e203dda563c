//! RFC 6455 frame by frame: its own examples, and each of its prohibitions.

use crate::peer::{
    BINARY, CLOSE, CONTINUATION, FIN, LIMITS, MESSAGE_BYTES_MAX, PING, PONG, Seen, TEXT, frame,
    seen_in,
};
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::close::{self, Close};
use tidegate_engine::protocol::websocket::{
    HEADER_BYTES_MAX, Inbound, Opcode, PING_FRAME, encode_close, encode_close_reply, encode_frame,
};

fn text(value: &str) -> Seen {
    Seen::Text(value.to_owned())
}

fn fails(bytes: &[u8], close: Close) {
    assert_eq!(
        seen_in(bytes).last(),
        Some(&Seen::Failed(close)),
        "{bytes:02x?}"
    );
}

fn joined(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

#[test]
fn the_masked_hello_of_section_5_7_is_read() {
    let hello = [
        0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ];
    assert_eq!(seen_in(&hello), [text("Hello")]);
    let pong = [
        0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ];
    assert_eq!(seen_in(&pong), [Seen::Pong(b"Hello".to_vec())]);
}

#[test]
fn the_unmasked_frames_of_section_5_7_are_written() {
    let encoded = |opcode, payload: &[u8]| {
        let mut out = Vec::new();
        encode_frame(&mut out, opcode, payload);
        out
    };
    assert_eq!(encoded(Opcode::Text, b"Hello"), b"\x81\x05Hello");
    assert_eq!(encoded(Opcode::Ping, b"Hello"), b"\x89\x05Hello");
    assert_eq!(encoded(Opcode::Ping, b""), PING_FRAME);
    let medium = encoded(Opcode::Binary, &[7; 256]);
    assert_eq!(
        (&medium[..4], medium.len()),
        (&[0x82, 0x7E, 0x01, 0x00][..], 260)
    );
    let long = encoded(Opcode::Binary, &[7; 65536]);
    assert_eq!(long[..10], [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(long.len(), 10 + 65536);
}

#[test]
fn a_written_length_is_in_its_shortest_form() {
    for (length, header_bytes) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
        let mut out = Vec::new();
        encode_frame(&mut out, Opcode::Binary, &vec![7; length]);
        assert_eq!(out.len(), header_bytes + length);
    }
}

#[test]
fn a_fragmented_message_is_joined_around_control_frames() {
    let stream = joined(&[
        frame(TEXT, b"Hel"),
        frame(FIN | PING, b"are you there"),
        frame(CONTINUATION, b""),
        frame(FIN | PONG, b""),
        frame(FIN | CONTINUATION, b"lo"),
        frame(FIN | TEXT, b"next"),
    ]);
    assert_eq!(
        seen_in(&stream),
        [
            Seen::Fragment,
            Seen::Ping(b"are you there".to_vec()),
            Seen::Fragment,
            Seen::Pong(Vec::new()),
            text("Hello"),
            text("next"),
        ]
    );
}

#[test]
fn an_unmasked_frame_is_refused() {
    fails(b"\x81\x05Hello", Close::ProtocolError);
    fails(b"\x89\x00", Close::ProtocolError);
}

#[test]
fn reserved_bits_and_opcodes_are_refused() {
    for reserved in [0x10, 0x20, 0x40, 0x70] {
        fails(&frame(FIN | reserved | TEXT, b"x"), Close::ProtocolError);
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        fails(&frame(FIN | opcode, b"x"), Close::ProtocolError);
    }
}

#[test]
fn a_wrong_frame_is_refused_at_its_first_wrong_byte() {
    fails(&[0xC1], Close::ProtocolError);
    fails(&[FIN | CONTINUATION], Close::ProtocolError);
    fails(&[FIN | PING, 0x80 | 126], Close::ProtocolError);
    fails(&[FIN | TEXT, 0x05], Close::ProtocolError);
}

#[test]
fn control_frames_are_short_and_whole() {
    assert_eq!(
        seen_in(&frame(FIN | PING, &[1; 125])),
        [Seen::Ping(vec![1; 125])]
    );
    for opcode in [CLOSE, PING, PONG] {
        fails(&frame(FIN | opcode, &[1; 126]), Close::ProtocolError);
        fails(&frame(opcode, b""), Close::ProtocolError);
    }
}

#[test]
fn a_continuation_needs_a_beginning_and_a_beginning_no_other() {
    fails(&frame(FIN | CONTINUATION, b"x"), Close::ProtocolError);
    fails(&frame(CONTINUATION, b"x"), Close::ProtocolError);
    for second in [TEXT, FIN | TEXT, BINARY, FIN | BINARY] {
        fails(
            &joined(&[frame(TEXT, b"a"), frame(second, b"b")]),
            Close::ProtocolError,
        );
    }
    let after_the_end = [
        frame(TEXT, b"a"),
        frame(FIN | CONTINUATION, b"b"),
        frame(FIN | CONTINUATION, b"c"),
    ];
    fails(&joined(&after_the_end), Close::ProtocolError);
}

#[test]
fn a_length_must_be_in_its_shortest_form() {
    for length in [0_u16, 1, 125] {
        let mut bytes = vec![FIN | TEXT, 0x80 | 126];
        bytes.extend_from_slice(&length.to_be_bytes());
        fails(&bytes, Close::ProtocolError);
    }
    for length in [0_u64, 126, 65535, 1 << 63, u64::MAX] {
        let mut bytes = vec![FIN | TEXT, 0x80 | 127];
        bytes.extend_from_slice(&length.to_be_bytes());
        fails(&bytes, Close::ProtocolError);
    }
    for length in [0, 1, 7, 8, 9, 125, 126, 65535, 65536] {
        let payload = vec![b'x'; length];
        assert_eq!(
            seen_in(&frame(FIN | BINARY, &payload)),
            [Seen::Binary(payload)]
        );
    }
}

#[test]
fn a_message_over_the_limit_is_refused_by_its_header() {
    let too_long = vec![b'x'; MESSAGE_BYTES_MAX + 1];
    let header = &frame(FIN | TEXT, &too_long)[..HEADER_BYTES_MAX];
    fails(header, Close::MessageTooBig);

    let mut absurd = vec![FIN | BINARY, 0x80 | 127];
    absurd.extend_from_slice(&(i64::MAX as u64).to_be_bytes());
    absurd.extend_from_slice(&[0; 4]);
    fails(&absurd, Close::MessageTooBig);
}

#[test]
fn fragments_count_together_against_the_limit() {
    let half = vec![b'x'; MESSAGE_BYTES_MAX / 2];
    let fits = [frame(TEXT, &half), frame(FIN | CONTINUATION, &half)];
    assert!(matches!(&seen_in(&joined(&fits))[1], Seen::Text(all) if all.len() == 65536));
    let too_much = [
        frame(TEXT, &half),
        frame(CONTINUATION, &half),
        frame(CONTINUATION, b"x"),
    ];
    fails(&joined(&too_much), Close::MessageTooBig);
    // A control frame between is not part of the message.
    let with_ping = [
        frame(TEXT, &half),
        frame(CONTINUATION, &half),
        frame(FIN | PING, b"x"),
    ];
    assert_eq!(
        seen_in(&joined(&with_ping)).last(),
        Some(&Seen::Ping(b"x".to_vec()))
    );
}

#[test]
fn text_must_be_utf8_in_one_frame_and_over_several() {
    fails(&frame(FIN | TEXT, b"\xC3\x28"), Close::InvalidText);
    fails(&frame(FIN | TEXT, b"\xED\xA0\x80"), Close::InvalidText);
    fails(
        &frame(FIN | TEXT, "€".as_bytes().split_last().unwrap().1),
        Close::InvalidText,
    );
    assert_eq!(
        seen_in(&frame(FIN | BINARY, b"\xC3\x28")),
        [Seen::Binary(b"\xC3\x28".to_vec())]
    );

    let whole = "κόσμε 🌊";
    for cut in 0..=whole.len() {
        let (head, tail) = whole.as_bytes().split_at(cut);
        let stream = joined(&[frame(TEXT, head), frame(FIN | CONTINUATION, tail)]);
        assert_eq!(seen_in(&stream), [Seen::Fragment, text(whole)]);
    }
    // Refused with the fragment that breaks it, not only at the end of the message.
    fails(
        &joined(&[frame(TEXT, b"\xF0\x9F"), frame(CONTINUATION, b"x")]),
        Close::InvalidText,
    );
    let cut_short = [frame(TEXT, b"\xF0\x9F"), frame(FIN | CONTINUATION, b"\x8C")];
    fails(&joined(&cut_short), Close::InvalidText);
}

#[test]
fn a_close_frame_gives_code_and_reason() {
    assert_eq!(
        seen_in(&frame(FIN | CLOSE, b"")),
        [Seen::Close(None, String::new())]
    );
    let going_away = [&1001_u16.to_be_bytes()[..], "auf Wiederhören".as_bytes()].concat();
    assert_eq!(
        seen_in(&frame(FIN | CLOSE, &going_away)),
        [Seen::Close(Some(1001), "auf Wiederhören".to_owned())]
    );
}

#[test]
fn a_close_frame_with_a_wrong_code_or_reason_is_refused() {
    fails(&frame(FIN | CLOSE, b"\x03"), Close::ProtocolError);
    let wrong = [
        0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ];
    for code in wrong {
        fails(
            &frame(FIN | CLOSE, &code.to_be_bytes()),
            Close::ProtocolError,
        );
    }
    for code in [
        1000_u16, 1001, 1002, 1003, 1007, 1008, 1011, 1014, 3000, 3999, 4000, 4999,
    ] {
        assert_eq!(
            seen_in(&frame(FIN | CLOSE, &code.to_be_bytes())),
            [Seen::Close(Some(code), String::new())]
        );
    }
    let bad_reason = [&1000_u16.to_be_bytes()[..], b"\xCE\xBA\xE1"].concat();
    fails(&frame(FIN | CLOSE, &bad_reason), Close::InvalidText);
}

#[test]
fn every_close_of_the_table_fits_a_frame() {
    for &close in close::ALL {
        let mut out = Vec::new();
        encode_close(&mut out, &close.into());
        let (header, payload) = out.split_at(2);
        assert_eq!(header, [FIN | CLOSE, payload.len() as u8]);
        assert!(payload.len() <= 125);
        assert_eq!(payload[..2], close.code().to_be_bytes());
        assert_eq!(&payload[2..], close.reason().as_bytes());
    }
    let mut out = Vec::new();
    encode_close_reply(&mut out, Some(4000));
    encode_close_reply(&mut out, None);
    assert_eq!(out, [0x88, 2, 0x0F, 0xA0, 0x88, 0]);
}

#[test]
fn an_incomplete_frame_is_left_as_it_came() {
    let whole = frame(FIN | TEXT, b"never before the last byte");
    let mut inbound = Inbound::default();
    for length in 0..whole.len() {
        let mut part = whole[..length].to_vec();
        assert_eq!(inbound.decode(&mut part, &LIMITS), Ok(Parsed::Incomplete));
        assert_eq!(part, whole[..length]);
    }
}

#[test]
fn an_idle_reader_is_one_word() {
    assert_eq!(size_of::<Inbound>(), size_of::<usize>());
}

mod compressed {
    use super::*;
    use crate::peer::Reader;
    use tidegate_engine::protocol::deflate::{Window, compress};

    const RSV1: u8 = 0x40;

    fn seen(frames: &[Vec<u8>]) -> Vec<Seen> {
        let mut reader = Reader::of_compressed();
        reader.feed(&joined(frames));
        reader.seen
    }

    fn fails_with(frames: &[Vec<u8>], close: Close) {
        assert_eq!(seen(frames).last(), Some(&Seen::Failed(close)));
    }

    #[test]
    fn messages_are_expanded_alone_and_in_fragments_and_others_are_left() {
        let long = "tide ".repeat(100);
        let payload = compress(long.as_bytes(), Window::Full).unwrap();
        let (one, two) = payload.split_at(payload.len() / 2);
        let frames = [
            frame(FIN | RSV1 | TEXT, &payload),
            frame(FIN | TEXT, b"plain"),
            frame(RSV1 | TEXT, one),
            frame(FIN | PING, b"between"),
            frame(FIN | CONTINUATION, two),
            frame(FIN | RSV1 | BINARY, &payload),
        ];
        let expected = [
            text(&long),
            text("plain"),
            Seen::Fragment,
            Seen::Ping(b"between".to_vec()),
            text(&long),
            Seen::Binary(long.into_bytes()),
        ];
        assert_eq!(seen(&frames), expected);
    }

    #[test]
    fn the_bit_is_wrong_without_agreement_and_anywhere_but_at_a_messages_beginning() {
        fails(&frame(FIN | RSV1 | TEXT, &[0]), Close::ProtocolError);
        fails_with(&[frame(FIN | RSV1 | PING, b"")], Close::ProtocolError);
        fails_with(&[frame(FIN | RSV1 | CLOSE, b"")], Close::ProtocolError);
        let continued = [
            frame(RSV1 | TEXT, &[0]),
            frame(FIN | RSV1 | CONTINUATION, &[]),
        ];
        fails_with(&continued, Close::ProtocolError);
        for reserved in [0x20, 0x10, RSV1 | 0x20] {
            fails_with(&[frame(FIN | reserved | TEXT, b"")], Close::ProtocolError);
        }
    }

    #[test]
    fn what_is_expanded_keeps_to_the_rules_of_any_message() {
        let bomb = compress(&vec![b'x'; MESSAGE_BYTES_MAX + 1], Window::Full).unwrap();
        fails_with(&[frame(FIN | RSV1 | TEXT, &bomb)], Close::MessageTooBig);
        let most = compress(&vec![b'x'; MESSAGE_BYTES_MAX], Window::Full).unwrap();
        assert!(matches!(
            seen(&[frame(FIN | RSV1 | TEXT, &most)])[..],
            [Seen::Text(_)]
        ));
        let not_text = compress(&[0xFF; 100], Window::Full).unwrap();
        fails_with(&[frame(FIN | RSV1 | TEXT, &not_text)], Close::InvalidText);
        fails_with(
            &[frame(FIN | RSV1 | TEXT, b"\xFF\xFF\xFF")],
            Close::ProtocolError,
        );
    }
}
