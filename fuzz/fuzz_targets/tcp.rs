//! The binary TCP protocol: any split of a stream gives the same frames, payloads and flow, and the
//! server never sends past the client's window.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::close::Close;
use tidegate_engine::protocol::tcp::frame::{
    FRAME_BYTES_MAX, Frame, Header, Kind, checksum, decode,
};
use tidegate_engine::protocol::tcp::payload::{
    Connect, FIELDS_BYTES_MAX, Goodbye, Publish, Reassembly, Subscribe, Unsubscribe,
};
use tidegate_engine::protocol::tcp::{Flow, SERVER_WINDOW};
use tidegate_fuzz::parameters;

/// Small, so that the limit is met often.
const MESSAGE_BYTES_MAX: usize = 300;

/// The input is not a stream but a recipe for one with right headers and checksums.
const SEALED: u8 = 1;
const SEALED_CRC: u8 = 2;

struct Connection {
    flow: Flow,
    reassembly: Reassembly,
    window_scale: u8,
    trace: Vec<String>,
}

impl Connection {
    fn new() -> Self {
        Self {
            flow: Flow::new(SERVER_WINDOW),
            reassembly: Reassembly::default(),
            window_scale: 0,
            trace: Vec::new(),
        }
    }

    fn take(&mut self, frame: &Frame<'_>) -> Result<(), Close> {
        self.flow.receive(frame)?;
        let payload = frame.payload;
        let seen = match frame.header.kind {
            Kind::Connect => {
                let connect = Connect::parse(payload)?;
                self.window_scale = connect.window_scale;
                self.flow.agree(&connect);
                self.flow.frame(Kind::Connected, b"", &mut Vec::new());
                format!("{connect:?}")
            }
            Kind::Subscribe => format!("{:?}", Subscribe::parse(payload)?),
            Kind::Unsubscribe => format!("{:?}", Unsubscribe::parse(payload)?),
            Kind::Publish => match self.reassembly.push(payload, MESSAGE_BYTES_MAX)? {
                Some(message) => {
                    assert!(message.len() <= MESSAGE_BYTES_MAX + FIELDS_BYTES_MAX);
                    format!("{:?}", Publish::parse(&message)?)
                }
                None => "fragment".to_owned(),
            },
            Kind::Close => format!("{:?}", Goodbye::parse(payload)?),
            other => format!("{other:?}"),
        };
        self.trace.push(seen);
        if self.flow.ack_due() {
            self.flow.frame(Kind::Ack, b"", &mut Vec::new());
        }
        self.send(u64::from(frame.header.window_size) << self.window_scale);
        Ok(())
    }

    /// Send what the flow allows of a message, and hold it to the window.
    fn send(&mut self, window_bytes: u64) {
        let piece = self.flow.piece(200);
        if piece > 0 {
            let data = self.flow.data(&[7; 200][..piece], piece < 200);
            assert!(u64::from(self.flow.in_flight_bytes()) <= window_bytes);
            self.trace.push(format!("{data:?}"));
        }
    }
}

fn read(bytes: &[u8], piece: usize) -> (Vec<String>, Option<Close>) {
    let mut connection = Connection::new();
    let mut input = Vec::new();
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let taken = match decode(&input[at..], &connection.flow.agreed()) {
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Complete { value, consumed }) => {
                    assert!(consumed > 0 && consumed <= input.len() - at);
                    at += consumed;
                    connection.take(&value)
                }
                Err(close) => Err(close),
            };
            if let Err(close) = taken {
                return (connection.trace, Some(close));
            }
        }
        input.drain(..at);
        assert!(input.len() < FRAME_BYTES_MAX);
    }
    (connection.trace, None)
}

/// Build a stream of well-formed frames from records of kind, acknowledged count, window size and
/// payload length, one byte each, and the payload.
fn sealed(mut recipe: &[u8], crc: bool) -> Vec<u8> {
    const KINDS: [Kind; 10] = [
        Kind::Connect,
        Kind::Subscribe,
        Kind::Unsubscribe,
        Kind::Publish,
        Kind::Publish,
        Kind::Heartbeat,
        Kind::Ack,
        Kind::WindowUpdate,
        Kind::Close,
        Kind::Skippable,
    ];
    let mut out = Vec::new();
    let (mut seq, mut ack_seq) = (0_u32, 0_u32);
    while let [kind, acknowledged, window, length, rest @ ..] = recipe {
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        recipe = rest;
        seq = seq.wrapping_add(kind.is_sequenced().into());
        ack_seq = ack_seq.wrapping_add((*acknowledged).into());
        let header = Header {
            kind,
            seq,
            ack_seq,
            window_size: u16::from(*window) * 16,
            length: payload.len() as u16,
        };
        let head = header.encode();
        out.extend_from_slice(&head);
        out.extend_from_slice(payload);
        if crc && kind != Kind::Connect {
            out.extend_from_slice(&checksum(&[&head, payload]));
        }
    }
    out
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, flags, bytes)) = parameters(input) else {
        return;
    };
    let stream = if flags & SEALED == 0 {
        bytes.to_vec()
    } else {
        sealed(bytes, flags & SEALED_CRC != 0)
    };
    if !stream.is_empty() {
        assert_eq!(read(&stream, piece), read(&stream, stream.len()));
    }
});
