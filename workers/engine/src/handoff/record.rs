//! A connection as bytes: everything that another process needs to go on with it.
//!
//! `workers/HANDOFF.md` §4 has the layout. Numbers are little-endian, lengths are u32. A reader of
//! version n reads n - 1 too; what a record means never changes within a version.

mod reading;
mod writing;

use std::fmt;

pub use reading::{decode, read};
pub use writing::{Writer, encode};

use crate::client::{Expiry, Standing};
use crate::connection::Phase;
use crate::protocol::format::Format;
use crate::protocol::tcp::FlowState;
use crate::protocol::websocket::Fragments;

/// What this build writes.
pub const VERSION: u16 = 3;
/// The oldest that it reads.
pub const VERSION_OLDEST: u16 = 1;

/// What the memory of a batch begins with: the records follow.
const MAGIC: [u8; 4] = *b"TGHR";
const CHANNEL_BYTES_MAX: usize = 255;

const PINGED: u8 = 1;
const DEAF: u8 = 1 << 1;
const HANG_UP: u8 = 1 << 2;
const TURNED_AWAY: u8 = 1 << 3;
const NATIVE_PINGS: u8 = 1 << 4;
const FLAGS_KNOWN: u8 = PINGED | DEAF | HANG_UP | TURNED_AWAY | NATIVE_PINGS;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub phase: Phase,
    /// Pinged, and not heard of since.
    pub pinged: bool,
    /// Nothing that the peer says matters any more.
    pub deaf: bool,
    /// To be hung up on as soon as all is sent.
    pub hang_up: bool,
    /// Its connect was answered with an error.
    pub turned_away: bool,
    /// Pinged by frames of the WebSocket protocol alone.
    pub native_pings: bool,
    pub client: [u8; 16],
    /// When it was accepted, ms since 1970.
    pub connected_ms: u64,
    /// When its last owner let go of it, CLOCK_MONOTONIC: the beginning of its pause.
    pub detached_ns: u64,
    pub timers: Timers,
    pub subscriptions: Vec<Position>,
    /// Frames for the client, in order.
    pub queue: Vec<Queued>,
    /// How much of the first one is sent.
    pub head_sent_bytes: u32,
    /// Start of a request, frame or message whose end has not arrived.
    pub input: Vec<u8>,
    pub speech: Speech,
    /// What publications look like there.
    pub format: Format,
    /// Up to where its last owner has read the log; `None`: it did not say.
    pub log_position: Option<u64>,
    pub identity: Option<Identity>,
}

/// Who the client is, where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    /// JSON, or empty; so is `meta`.
    pub info: Vec<u8>,
    pub meta: Vec<u8>,
    /// JSON object, or empty.
    pub headers: Vec<u8>,
    pub session: [u8; 16],
    pub expiry: Expiry,
    /// Of each of [`Record::subscriptions`].
    pub standings: Vec<Standing>,
}

/// Times of a connection, seen from the moment of the hand-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Until its deadline of whatever kind.
    pub due_ms: u32,
    /// Until the next probe.
    pub probe_ms: u32,
    /// Between two probes, as the client was told.
    pub probe_interval_ms: u32,
    /// How long it may owe a pong, or be silent; as told.
    pub silence_max_ms: u32,
    /// Since it was last heard of.
    pub heard_ms: u32,
    /// Since its queue is over the soft limit.
    pub soft_ms: Option<u32>,
}

/// How far a subscription has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub channel: String,
    pub epoch: u32,
    /// The client has everything up to here, or it is in the queue.
    pub offset: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Place in [`Record::subscriptions`] of the channel that it was published to, where that
    /// matters (see [`crate::outbox::Frame::channel`]).
    pub subscription: Option<u32>,
    pub bytes: Vec<u8>,
}

/// What the connection speaks, with the state of its parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    Http,
    WebSocket(Option<Fragments>),
    /// A response in HTTP that does not end.
    Stream,
    Tcp {
        flow: FlowState,
        /// Pieces of a message that is not whole yet.
        pieces: Vec<u8>,
        /// Whole frames, numbered, that the socket did not take yet.
        wire: Vec<u8>,
    },
}

/// Why bytes are not records. The one who wrote them is of another make, or has a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// They do not begin as records do.
    Magic,
    /// They are of a version that this build does not read.
    Version(u16),
    /// They end before their time.
    CutOff,
    /// There is something after the last record.
    Surplus,
    /// A value that cannot be.
    Value(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(out, "these are no records"),
            Self::Version(found) => write!(
                out,
                "records of version {found}; this build reads {VERSION_OLDEST} to {VERSION}"
            ),
            Self::CutOff => write!(out, "the records are cut off"),
            Self::Surplus => write!(out, "there is more than the records"),
            Self::Value(name) => write!(out, "a record has an impossible {name}"),
        }
    }
}

impl std::error::Error for RecordError {}
