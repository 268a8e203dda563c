//! The WebSocket side of the client port, from the HTTP upgrade to the JSON in its frames.

mod client;
mod frames;
mod handshake;
mod peer;
mod properties;
mod uni;
