//! WebSocket frames: any split of a stream gives the same events, within the limits, compressed
//! messages included.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::close::Close;
use tidegate_engine::protocol::websocket::{Event, HEADER_BYTES_MAX, Inbound, Limits};
use tidegate_fuzz::parameters;

/// Small, so that the limit is met often.
const MESSAGE_BYTES_MAX: usize = 300;

/// The input is not a stream but a text, to be sent in fragments.
const IS_TEXT: u8 = 1;
/// permessage-deflate was agreed to.
const DEFLATE: u8 = 2;

fn describe(event: Event<'_>) -> String {
    match &event {
        Event::Text(text) => assert!(text.len() <= MESSAGE_BYTES_MAX),
        Event::Binary(data) => assert!(data.len() <= MESSAGE_BYTES_MAX),
        Event::Ping(payload) | Event::Pong(payload) => assert!(payload.len() <= 125),
        Event::Close { reason, .. } => assert!(reason.len() <= 123),
        Event::Fragment => {}
    }
    format!("{event:?}")
}

/// Read `bytes` in pieces; give the events and, if it came to that, the close.
fn read(bytes: &[u8], piece: usize, deflate: bool) -> (Vec<String>, Option<Close>) {
    let limits = Limits {
        message_bytes_max: MESSAGE_BYTES_MAX,
        deflate,
    };
    let mut inbound = Inbound::default();
    let mut input = Vec::new();
    let mut events = Vec::new();
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match inbound.decode(&mut input[at..], &limits) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Complete { value, consumed }) => {
                    events.push(describe(value));
                    assert!(consumed > 0);
                    at += consumed;
                }
                Err(close) => return (events, Some(close)),
            }
        }
        input.drain(..at);
        assert!(input.len() < MESSAGE_BYTES_MAX + HEADER_BYTES_MAX);
    }
    (events, None)
}

/// One text message, fragmented every `piece` bytes, with a ping after each fragment but the last.
fn fragmented(text: &[u8], piece: usize) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    const PING: [u8; 6] = [0x89, 0x80, 1, 2, 3, 4];
    let mut out = Vec::new();
    let mut fragments = text.chunks(piece).peekable();
    let mut opcode = 1;
    while let Some(fragment) = fragments.next() {
        let is_last = fragments.peek().is_none();
        out.extend([
            if is_last { 0x80 } else { 0 } | opcode,
            0x80 | fragment.len() as u8,
        ]);
        out.extend(MASK);
        out.extend(
            fragment
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
        if !is_last {
            out.extend(PING);
        }
        opcode = 0;
    }
    out
}

/// Hold the reading of a fragmented text to the standard library's idea of UTF-8.
fn check_text(bytes: &[u8], piece: usize) {
    let stream = fragmented(bytes, piece);
    let (events, close) = read(&stream, stream.len(), false);
    match std::str::from_utf8(bytes) {
        Ok(_) if bytes.len() > MESSAGE_BYTES_MAX => assert_eq!(close, Some(Close::MessageTooBig)),
        Ok(text) => {
            assert_eq!(close, None);
            assert_eq!(events.last(), Some(&describe(Event::Text(text.into()))));
        }
        Err(_) if bytes.len() > MESSAGE_BYTES_MAX => assert!(close.is_some()),
        Err(_) => assert_eq!(close, Some(Close::InvalidText)),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, flags, bytes)) = parameters(input) else {
        return;
    };
    if flags & IS_TEXT == 0 {
        let deflate = flags & DEFLATE != 0;
        let whole = read(bytes, bytes.len(), deflate);
        assert_eq!(read(bytes, piece, deflate), whole);
    } else {
        check_text(bytes, piece);
    }
});
