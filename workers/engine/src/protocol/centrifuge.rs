//! The Centrifuge client protocol, version 2: commands in, replies and pushes out, in JSON and in
//! Protobuf.
//!
//! - [`command`]: what clients ask for.
//! - [`reply`]: what they are told, as bodies without framing; [`super::format`] frames them.
//!
//! The application's own values (`data`, `info`) pass through as bytes: on JSON connections they
//! are JSON text, embedded as it is; on Protobuf ones any bytes.

pub mod command;
pub mod reply;
#[cfg(test)]
mod tests;

pub use command::{
    Command, ConnectRequest, EmulationRequest, HistoryRequest, Request, Since, SubscribeRequest,
    parse_commands, parse_emulation, parse_uni_connect,
};
pub use reply::{
    ClientInfo, ConnectResult, Data, Publication, Push, Reply, SubscribeResult, encode_push,
    encode_reply, encode_uni_push,
};

/// How the messages of a connection are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Protobuf,
}
