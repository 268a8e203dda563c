//! Deltas make their target again, and those of texts are text; what is compressed is expanded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::deflate::{Window, compress, expand};
use tidegate_engine::protocol::delta::create;
use tidegate_fuzz::parameters;

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/// A number and the byte after it.
fn take_number(delta: &mut &[u8]) -> (usize, u8) {
    let mut number = 0;
    loop {
        let (&byte, rest) = delta.split_first().expect("a delta ends with its checksum");
        *delta = rest;
        match DIGITS.iter().position(|digit| *digit == byte) {
            Some(digit) => number = number << 6 | digit,
            None => return (number, byte),
        }
    }
}

fn apply(base: &[u8], mut delta: &[u8]) -> Vec<u8> {
    let (size, end) = take_number(&mut delta);
    assert_eq!(end, b'\n');
    let mut target = Vec::new();
    loop {
        match take_number(&mut delta) {
            (length, b':') => {
                let (piece, rest) = delta.split_at(length);
                target.extend_from_slice(piece);
                delta = rest;
            }
            (length, b'@') => {
                let (at, end) = take_number(&mut delta);
                assert_eq!(end, b',');
                target.extend_from_slice(&base[at..at + length]);
            }
            (_, command) => {
                assert_eq!(command, b';');
                assert!(delta.is_empty() && target.len() == size);
                return target;
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, flags, bytes)) = parameters(input) else {
        return;
    };
    let (base, target) = bytes.split_at(bytes.len() * piece / 64);
    let delta = create(base, target);
    assert_eq!(apply(base, &delta), target);
    if std::str::from_utf8(target).is_ok() {
        assert!(std::str::from_utf8(&delta).is_ok());
    }
    for window in [Window::Full, Window::Narrow] {
        if let Some(compressed) = compress(bytes, window) {
            assert_eq!(expand(&compressed, bytes.len()).as_deref(), Ok(bytes));
        }
    }
    // Neither is anything but its own bytes safe to expand, nor unbounded.
    if let Ok(expanded) = expand(bytes, usize::from(flags)) {
        assert!(expanded.len() <= usize::from(flags));
    }
});
