//! The dialects clients speak. Every module here is pure: bytes in, values out, no sockets.

pub mod centrifuge;
pub mod close;
pub mod deflate;
pub mod delta;
pub mod format;
pub mod http;
pub mod protobuf;
pub mod sse;
pub mod tcp;
pub mod websocket;

/// What a parser made of the bytes at hand. Too few bytes is a value, not an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// More bytes are needed; nothing was consumed.
    Incomplete,
    /// One whole item, and how many bytes it took.
    Complete { value: T, consumed: usize },
}
