//! The client's side of RFC 6455: upgrade, frames. Bytes in, values out.

use std::ops::Range;

use crate::session::Failure;

/// The sample nonce of RFC 6455 §1.3 and the answer that the RFC computes for it. A constant key is
/// allowed for a client that talks to no cache, and checking the answer then needs no SHA-1.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An answer's head is small; a longer one is not from a gateway.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// A connect push may carry 300 recovered publications of 64 KiB each.
const PAYLOAD_BYTES_MAX: u64 = 32 << 20;

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// The GET request of the opening handshake (RFC 6455 §4.1).
pub fn upgrade_request(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// Reads the server's answer: the bytes of its head, or `None` while it is incomplete.
///
/// # Errors
/// `Failure::Refused` with the HTTP status, `Failure::Protocol` for anything else than a 101 with
/// the right accept key.
pub fn upgrade_answer(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let protocol = Failure::Protocol("the answer's head is too long");
        return if bytes.len() > HEAD_BYTES_MAX {
            Err(protocol)
        } else {
            Ok(None)
        };
    };
    let head =
        std::str::from_utf8(&bytes[..end]).map_err(|_| Failure::Protocol("head is no UTF-8"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or_default();
    match status.parse() {
        Ok(101) => {}
        Ok(status) => return Err(Failure::Refused(status)),
        Err(_) => return Err(Failure::Protocol("no HTTP status")),
    }
    let accepted = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| {
            name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT
        });
    if accepted {
        Ok(Some(end + 4))
    } else {
        Err(Failure::Protocol("wrong accept key"))
    }
}

/// One frame from a server. `payload` is its place in the bytes that were given.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Range<usize>,
}

/// Reads the frame at the beginning of `bytes`, `None` while it is incomplete.
///
/// # Errors
/// `Failure::Protocol` for what a server must not send (RFC 6455 §5.1, §5.2), and for a fragmented
/// message: the gateway sends each message in one frame.
pub fn frame(bytes: &[u8]) -> Result<Option<Frame>, Failure> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(Failure::Protocol("reserved bits without an extension"));
    }
    if second & 0x80 != 0 {
        return Err(Failure::Protocol("a masked frame from the server"));
    }
    if first & 0x80 == 0 || first & 0x0F == 0 {
        return Err(Failure::Protocol("a fragmented message"));
    }
    let (header, length) = match second {
        126 => match rest.first_chunk() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        length => (2, u64::from(length)),
    };
    if length > PAYLOAD_BYTES_MAX {
        return Err(Failure::Protocol("a frame over the bound"));
    }
    let payload = header..header + length as usize;
    Ok((bytes.len() >= payload.end).then_some(Frame {
        opcode: first & 0x0F,
        payload,
    }))
}

/// Appends an unmasked frame, as a server sends it.
pub fn encode_from_server(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    encode_header(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

/// Appends a masked frame, as a client sends it. `mask` should be drawn at random (§5.3).
pub fn encode_from_client(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: [u8; 4]) {
    encode_header(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
}

fn encode_header(out: &mut Vec<u8>, opcode: u8, length: usize, mask_bit: u8) {
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(mask_bit | length as u8),
        126..=65_535 => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_form_are_read_back() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let mut bytes = Vec::new();
            encode_from_server(&mut bytes, TEXT, &payload);
            assert_eq!(
                frame(&bytes[..bytes.len() - 1]).unwrap(),
                None,
                "length {length}"
            );
            let read = frame(&bytes).unwrap().unwrap();
            assert_eq!((read.opcode, &bytes[read.payload]), (TEXT, &payload[..]));
        }
    }

    #[test]
    fn a_client_frame_is_masked_as_the_rfc_shows() {
        let mut bytes = Vec::new();
        encode_from_client(&mut bytes, TEXT, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        // RFC 6455 §5.7, "a single-frame masked text message".
        assert_eq!(
            bytes,
            [
                0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58
            ]
        );
    }

    #[test]
    fn what_a_server_must_not_send_is_a_failure() {
        for bytes in [[0x81, 0x85], [0xC1, 0x00], [0x01, 0x00], [0x80, 0x00]] {
            assert!(
                matches!(frame(&bytes), Err(Failure::Protocol(_))),
                "{bytes:x?}"
            );
        }
        let huge = [0x82, 127, 0xFF, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(frame(&huge), Err(Failure::Protocol(_))));
    }

    #[test]
    fn an_upgrade_answer_needs_the_right_status_and_key() {
        let answer = format!("HTTP/1.1 101 X\r\nSEC-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        assert_eq!(upgrade_answer(answer.as_bytes()), Ok(Some(answer.len())));
        assert_eq!(upgrade_answer(&answer.as_bytes()[..20]), Ok(None));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\n\r\n";
        assert_eq!(upgrade_answer(refused), Err(Failure::Refused(503)));
        let keyless = b"HTTP/1.1 101 X\r\n\r\n";
        assert!(matches!(upgrade_answer(keyless), Err(Failure::Protocol(_))));
    }
}
