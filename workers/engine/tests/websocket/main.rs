//! The client port: HTTP requests and what they open, and the frames of WebSockets.

mod client;
mod frames;
mod handshake;
mod openings;
mod peer;
mod properties;
