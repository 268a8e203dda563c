//! The WebSocket handshake: RFC 6455 §4.2, its subprotocols, and RFC 7692 §5 and §7.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

use super::{HttpReject, Request};
use crate::protocol::centrifuge::Encoding;
use crate::protocol::deflate::Window;

/// Appended to the client's key before hashing (RFC 6455 §1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A nonce of 16 bytes, whatever the unused bits of its last character: Go clients leave them set.
const KEY_BYTES: usize = 16;
const KEY_CODEC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Subprotocols by which clients choose an encoding.
const SUBPROTOCOLS: [(&str, Encoding); 2] = [
    ("centrifuge-json", Encoding::Json),
    ("centrifuge-protobuf", Encoding::Protobuf),
];

/// Compression of each message by itself: nobody has to keep a window between two of them, and a
/// message for many is compressed once.
const DEFLATE: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// What is said to a client whose handshake is good.
#[derive(Default)]
pub(super) struct Agreed {
    pub subprotocol: Option<(&'static str, Encoding)>,
    /// The window of what it is sent, and the extension as it is answered.
    pub deflate: Option<(Window, String)>,
}

/// Check the handshake (RFC 6455 §4.2.1); returns the client's key.
pub(super) fn check<'a>(request: &Request<'a>) -> Result<&'a [u8], HttpReject> {
    // HTTP/1.0 has no Upgrade.
    if request.is_http_1_0 {
        return Err(HttpReject::HttpVersion);
    }
    if request.value("host")?.is_none()
        || !request.has_token("upgrade", "websocket")
        || !request.has_token("connection", "upgrade")
    {
        return Err(HttpReject::BadHandshake);
    }
    if request.value("sec-websocket-version")? != Some(b"13") {
        return Err(HttpReject::WebSocketVersion);
    }
    request
        .value("sec-websocket-key")?
        .filter(|key| {
            let nonce = KEY_CODEC.decode(key);
            nonce.is_ok_and(|nonce| nonce.len() == KEY_BYTES)
        })
        .ok_or(HttpReject::BadHandshake)
}

/// The first of the client's subprotocols that we know: it names them as it prefers them.
pub(super) fn subprotocol(request: &Request<'_>) -> Option<(&'static str, Encoding)> {
    request.list("sec-websocket-protocol").find_map(|asked| {
        SUBPROTOCOLS
            .into_iter()
            .find(|(name, _)| name.as_bytes() == asked)
    })
}

/// The window of the first offer of permessage-deflate that we can meet, and the answer to it.
pub(super) fn deflate(request: &Request<'_>) -> Option<(Window, String)> {
    request
        .list("sec-websocket-extensions")
        .find_map(accept_offer)
}

/// RFC 7692 §7.1: an offer with a parameter that is unknown, doubled or has a wrong value is
/// declined, and so is one for a window that is narrower than ours can be.
fn accept_offer(offer: &[u8]) -> Option<(Window, String)> {
    let mut parts = std::str::from_utf8(offer).ok()?.split(';').map(str::trim);
    if parts.next()? != "permessage-deflate" {
        return None;
    }
    let mut window = Window::Full;
    let mut answer = DEFLATE.to_owned();
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
            // Whatever the client compresses with, we can read.
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(bits)) if is_window(bits) => {}
            ("server_max_window_bits", Some(bits)) if is_window(bits) && bits != "8" => {
                // What is answered may be less than what was offered (§7.1.2.1).
                if bits != "15" {
                    window = Window::Narrow;
                }
                answer += &format!("; server_max_window_bits={}", window.bits());
            }
            _ => return None,
        }
    }
    Some((window, answer))
}

/// A decimal number without leading zeros from 8 to 15.
fn is_window(bits: &str) -> bool {
    matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")
}

/// The 101 response. What it does not mention is not agreed to (RFC 6455 §4.2.2).
pub(super) fn response(key: &[u8], agreed: &Agreed) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept_key(key).as_bytes());
    if let Some((name, _)) = agreed.subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(name.as_bytes());
    }
    if let Some((_, extension)) = &agreed.deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        out.extend_from_slice(extension.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
    out
}

fn accept_key(key: &[u8]) -> String {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key);
    hash.update(WEBSOCKET_GUID);
    STANDARD.encode(hash.digest().bytes())
}
