//! WebSocket frames: any split of a stream gives the same events, within the limits; texts go on to
//! the parser of connect requests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::close::Close;
use tidegate_engine::protocol::uni::parse_connect;
use tidegate_engine::protocol::websocket::{Event, HEADER_BYTES_MAX, Inbound};
use tidegate_fuzz::parameters;

/// Small, so that the limit is met often.
const MESSAGE_BYTES_MAX: usize = 300;

fn describe(event: Event<'_>) -> String {
    match &event {
        Event::Text(text) => {
            assert!(text.len() <= MESSAGE_BYTES_MAX);
            return format!("{event:?} {:?}", parse_connect(text));
        }
        Event::Binary(data) => assert!(data.len() <= MESSAGE_BYTES_MAX),
        Event::Ping(payload) | Event::Pong(payload) => assert!(payload.len() <= 125),
        Event::Close { reason, .. } => assert!(reason.len() <= 123),
        Event::Fragment => {}
    }
    format!("{event:?}")
}

/// Read `bytes` in pieces; give the events and, if it came to that, the close.
fn read(bytes: &[u8], piece: usize) -> (Vec<String>, Option<Close>) {
    let mut inbound = Inbound::default();
    let mut input = Vec::new();
    let mut events = Vec::new();
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match inbound.decode(&mut input[at..], MESSAGE_BYTES_MAX) {
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

fuzz_target!(|input: &[u8]| {
    let Some((piece, _, bytes)) = parameters(input) else {
        return;
    };
    assert_eq!(read(bytes, piece), read(bytes, bytes.len()));
});
