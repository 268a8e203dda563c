//! Compression of WebSocket messages: permessage-deflate (RFC 7692), each message by itself.
//!
//! Neither side keeps a window between two messages, so what is kept here belongs to the thread,
//! not to a connection, and a message for many is compressed once: for all that have room for a
//! whole window, and for all that have less.

use std::cell::{Cell, RefCell};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::close::Close;

/// What a flushed block ends with; it is left out on the wire (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// What DEFLATE adds to bytes that do not shrink: 5 bytes a block of 64 KiB, and the flush.
fn bound(bytes: usize) -> usize {
    bytes + bytes / 8192 + 16
}

/// How far back a compressed message may refer: what its reader has to keep of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    Full,
    /// The least that the library can do.
    Narrow,
}

impl Window {
    /// Base-2 logarithm of its bytes, as RFC 7692 §7.1.2 names it.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Full => 15,
            Self::Narrow => 9,
        }
    }
}

thread_local! {
    static BYTES_MIN: Cell<usize> = const { Cell::new(0) };
    static COMPRESSIONS: Cell<usize> = const { Cell::new(0) };
    /// Some 300 KiB each, made when the first message is compressed.
    static DEFLATERS: RefCell<[Option<Compress>; 2]> = const { RefCell::new([None, None]) };
    /// Some 40 KiB.
    static INFLATER: RefCell<Option<Decompress>> = const { RefCell::new(None) };
}

/// From now on this thread compresses no message that is shorter.
pub fn set_bytes_min(bytes_min: usize) {
    BYTES_MIN.set(bytes_min);
}

/// How many messages this thread has compressed since it was last asked.
pub fn take_compressions() -> usize {
    COMPRESSIONS.take()
}

/// Compress a message's payload (RFC 7692 §7.2.1); `None` if that would not make it smaller.
pub fn compress(payload: &[u8], window: Window) -> Option<Vec<u8>> {
    if payload.len() < BYTES_MIN.get() {
        return None;
    }
    COMPRESSIONS.set(COMPRESSIONS.get() + 1);
    let mut out = Vec::with_capacity(bound(payload.len()));
    DEFLATERS.with_borrow_mut(|deflaters| {
        // The fastest level: what goes to many is small, and its delay is everybody's.
        let new = || Compress::new_with_window_bits(Compression::fast(), false, window.bits());
        let deflater = deflaters[window as usize].get_or_insert_with(new);
        deflater.reset();
        deflater
            .compress_vec(payload, &mut out, FlushCompress::Sync)
            .is_ok_and(|_| deflater.total_in() == payload.len() as u64)
            .then_some(())
    })?;
    let body = out.strip_suffix(&TAIL)?.len();
    out.truncate(body);
    (body < payload.len()).then_some(out)
}

/// Expand what [`compress`] or a client's library made (RFC 7692 §7.2.2).
///
/// Errors: `MessageTooBig` if it holds more than `bytes_max`, of which no more than that is ever
/// expanded; `ProtocolError` if it is not compressed data.
pub fn expand(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Close> {
    INFLATER.with_borrow_mut(|inflater| {
        let inflater = inflater.get_or_insert_with(|| Decompress::new(false));
        inflater.reset(false);
        // Text shrinks to a third or so; what shrinks more grows in steps.
        let mut out = Vec::with_capacity(bytes_max.min(payload.len().saturating_mul(4)) + 1);
        for part in [payload, &TAIL] {
            if expand_part(inflater, part, &mut out, bytes_max)? == Status::StreamEnd {
                break;
            }
        }
        Ok(out)
    })
}

fn expand_part(
    inflater: &mut Decompress,
    mut part: &[u8],
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<Status, Close> {
    loop {
        let (read, written) = (inflater.total_in(), out.len());
        let status = inflater
            .decompress_vec(part, out, FlushDecompress::Sync)
            .or(Err(Close::ProtocolError))?;
        let read = (inflater.total_in() - read) as usize;
        part = &part[read..];
        if out.len() > bytes_max {
            return Err(Close::MessageTooBig);
        }
        match status {
            // A last block may be padded to a whole byte sequence (RFC 7692 §7.2.3.4).
            Status::StreamEnd if matches!(part, [] | [0]) => return Ok(status),
            Status::StreamEnd => return Err(Close::ProtocolError),
            _ if out.len() == out.capacity() => {
                let room = bytes_max + 1 - out.len();
                out.reserve_exact(room.min(out.len().max(1024)));
            }
            _ if part.is_empty() => return Ok(status),
            _ if read == 0 && out.len() == written => return Err(Close::ProtocolError),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES_MAX: usize = 1 << 20;

    proptest! {
        #[test]
        fn what_is_compressed_is_what_is_expanded(
            words in prop::collection::vec("[a-d]{1,4}|\\PC{3}", 0..100),
        ) {
            let payload = words.concat().into_bytes();
            for window in [Window::Full, Window::Narrow] {
                if let Some(compressed) = compress(&payload, window) {
                    prop_assert!(compressed.len() < payload.len());
                    let expanded = expand(&compressed, payload.len());
                    prop_assert_eq!(expanded.as_deref(), Ok(&payload[..]));
                }
            }
        }

        #[test]
        fn arbitrary_bytes_expand_to_no_more_than_the_bound_or_are_refused(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            bytes_max in 0_usize..2000,
        ) {
            if let Ok(expanded) = expand(&payload, bytes_max) {
                prop_assert!(expanded.len() <= bytes_max);
            }
        }
    }

    #[test]
    fn the_examples_of_rfc_7692_are_read() {
        let examples: [&[u8]; 4] = [
            &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
            // Without compression.
            &[
                0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00,
            ],
            // In a last block.
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
            // In two blocks.
            &[
                0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00,
            ],
        ];
        for example in examples {
            assert_eq!(expand(example, 5), Ok(b"Hello".to_vec()), "{example:02x?}");
            assert_eq!(expand(example, 4), Err(Close::MessageTooBig));
        }
        assert_eq!(expand(&[0x00], BYTES_MAX), Ok(Vec::new()));
    }

    #[test]
    fn a_bomb_is_refused_at_the_bound() {
        let bomb = compress(&vec![b'x'; 2 * BYTES_MAX], Window::Full).unwrap();
        assert!(bomb.len() < BYTES_MAX);
        assert_eq!(expand(&bomb, BYTES_MAX), Err(Close::MessageTooBig));
        assert_eq!(
            expand(&bomb, 2 * BYTES_MAX).map(|all| all.len()),
            Ok(2 * BYTES_MAX)
        );
    }

    #[test]
    fn what_does_not_shrink_or_is_too_short_is_left_as_it_is() {
        assert_eq!(compress(b"ab", Window::Full), None);
        let text = [b'a'; 100];
        assert!(compress(&text, Window::Full).is_some());
        take_compressions();
        set_bytes_min(101);
        assert_eq!(compress(&text, Window::Full), None);
        set_bytes_min(0);
        assert_eq!(take_compressions(), 0);
    }

    #[test]
    fn who_has_little_room_can_read_what_refers_back_little() {
        // What is repeated is further back than a narrow window reaches, and nothing else is.
        let words: Vec<String> = (0..400)
            .map(|number| format!("{:x}", number * 7919))
            .collect();
        let text = words.concat().repeat(2).into_bytes();
        let read_narrowly = |window| {
            let compressed = compress(&text, window).unwrap();
            let mut narrow = Decompress::new_with_window_bits(false, Window::Narrow.bits());
            // Its window is as long as told, and not what comes to lie in one buffer by chance.
            let mut out = Vec::new();
            let mut input = [&compressed[..], &TAIL].concat();
            while !input.is_empty() {
                let before = narrow.total_in();
                let mut piece = Vec::with_capacity(100);
                narrow
                    .decompress_vec(&input, &mut piece, FlushDecompress::Sync)
                    .ok()?;
                input.drain(..(narrow.total_in() - before) as usize);
                out.extend(piece);
            }
            Some(out)
        };
        assert_eq!(read_narrowly(Window::Narrow).as_ref(), Some(&text));
        assert_eq!(read_narrowly(Window::Full), None);
    }

    #[test]
    fn data_after_the_end_is_refused() {
        let padded = [0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00, 0x41];
        assert_eq!(expand(&padded, BYTES_MAX), Err(Close::ProtocolError));
    }
}
