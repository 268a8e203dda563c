//! A connection as bytes: everything that another process needs to go on with it.
//!
//! `workers/HANDOFF.md` §4 has the layout. Numbers are little-endian, lengths are u32. A reader of
//! version n reads n - 1 too; what a record means never changes within a version.

use std::fmt;

use crate::client::{Expiry, Standing, Traits};
use crate::connection::Phase;
use crate::protocol::format::Format;
use crate::protocol::tcp::{FlowState, Window, flow::IN_FLIGHT_FRAMES_MAX};
use crate::protocol::websocket::Fragments;

/// What this build writes.
pub const VERSION: u16 = 2;
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

/// Puts records together, one after the other, as the memory of a batch holds them.
pub struct Writer(Vec<u8>);

impl Default for Writer {
    fn default() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        Self(bytes)
    }
}

impl Writer {
    pub fn push(&mut self, record: &Record) {
        let start = self.0.len();
        put_u32(&mut self.0, 0);
        encode(record, &mut self.0);
        let length = self.0.len() - start - size_of::<u32>();
        self.0[start..start + size_of::<u32>()].copy_from_slice(&length_bytes(length));
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The records of a batch.
///
/// # Errors
/// [`RecordError`]: none of it can be used.
pub fn read(bytes: &[u8]) -> Result<Vec<Record>, RecordError> {
    let mut fields = Fields(bytes);
    if fields.array::<4>()? != MAGIC {
        return Err(RecordError::Magic);
    }
    let version = u16::from_le_bytes(fields.array()?);
    if !(VERSION_OLDEST..=VERSION).contains(&version) {
        return Err(RecordError::Version(version));
    }
    let mut records = Vec::new();
    while !fields.0.is_empty() {
        let mut record = Fields(fields.bytes()?);
        records.push(record.record(version)?);
        if !record.0.is_empty() {
            return Err(RecordError::Surplus);
        }
    }
    Ok(records)
}

/// One record, without anything around it.
///
/// # Errors
/// [`RecordError`]; what follows the record is returned.
pub fn decode(bytes: &[u8]) -> Result<(Record, &[u8]), RecordError> {
    let mut fields = Fields(bytes);
    let record = fields.record(VERSION)?;
    Ok((record, fields.0))
}

/// Appends one record, without anything around it.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    out.push(match record.phase {
        Phase::Connecting => 0,
        Phase::Open => 1,
        Phase::Closing => 2,
    });
    let bit = |on: bool, flag: u8| if on { flag } else { 0 };
    out.push(
        bit(record.pinged, PINGED)
            | bit(record.deaf, DEAF)
            | bit(record.hang_up, HANG_UP)
            | bit(record.turned_away, TURNED_AWAY)
            | bit(record.native_pings, NATIVE_PINGS),
    );
    out.extend_from_slice(&record.client);
    put_u64(out, record.connected_ms);
    put_u64(out, record.detached_ns);
    put_u32(out, record.timers.due_ms);
    put_u32(out, record.timers.probe_ms);
    put_u32(out, record.timers.probe_interval_ms);
    put_u32(out, record.timers.silence_max_ms);
    put_u32(out, record.timers.heard_ms);
    put_optional(out, record.timers.soft_ms);
    put_length(out, record.subscriptions.len());
    for position in &record.subscriptions {
        put_bytes(out, position.channel.as_bytes());
        put_u32(out, position.epoch);
        put_u64(out, position.offset);
    }
    put_length(out, record.queue.len());
    for queued in &record.queue {
        put_optional(out, queued.subscription);
        put_bytes(out, &queued.bytes);
    }
    put_u32(out, record.head_sent_bytes);
    put_bytes(out, &record.input);
    encode_speech(&record.speech, out);
    out.push(record.format as u8);
    out.push(u8::from(record.log_position.is_some()));
    if let Some(position) = record.log_position {
        put_u64(out, position);
    }
    out.push(u8::from(record.identity.is_some()));
    if let Some(identity) = &record.identity {
        encode_identity(identity, out);
    }
}

fn encode_identity(identity: &Identity, out: &mut Vec<u8>) {
    put_bytes(out, identity.user.as_bytes());
    put_bytes(out, &identity.info);
    put_bytes(out, &identity.meta);
    put_bytes(out, &identity.headers);
    out.extend_from_slice(&identity.session);
    encode_expiry(identity.expiry, out);
    put_length(out, identity.standings.len());
    for standing in &identity.standings {
        out.extend_from_slice(&standing.traits.bits().to_le_bytes());
        encode_expiry(standing.expiry, out);
        put_bytes(out, &standing.info);
    }
}

fn encode_expiry(expiry: Expiry, out: &mut Vec<u8>) {
    put_u64(out, expiry.at_s);
    out.push(u8::from(expiry.by_hook));
}

fn encode_speech(speech: &Speech, out: &mut Vec<u8>) {
    match speech {
        Speech::Http => out.push(0),
        Speech::WebSocket(None) => out.extend([1, 0]),
        Speech::WebSocket(Some(fragments)) => {
            let kind = u8::from(fragments.is_text) | u8::from(fragments.is_compressed) << 1;
            out.extend([1, 1, kind]);
            put_length(out, fragments.valid_bytes);
            put_bytes(out, &fragments.payload);
        }
        Speech::Stream => out.push(3),
        Speech::Tcp { flow, pieces, wire } => {
            out.push(2);
            for flag in [flow.connected, flow.greeted, flow.crc] {
                out.push(u8::from(flag));
            }
            for window in [flow.own, flow.peer] {
                out.extend_from_slice(&window.size.to_le_bytes());
                out.push(window.scale);
            }
            put_u32(out, flow.sent_seq);
            put_u32(out, flow.received_seq);
            put_u32(out, flow.told_seq);
            put_u32(out, flow.received_unacked_bytes);
            put_length(out, flow.in_flight.len());
            for length in &flow.in_flight {
                out.extend_from_slice(&length.to_le_bytes());
            }
            put_bytes(out, pieces);
            put_bytes(out, wire);
        }
    }
}

fn length_bytes(length: usize) -> [u8; 4] {
    let length = u32::try_from(length).expect("a connection holds far less than 4 GiB");
    length.to_le_bytes()
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&length_bytes(length));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_optional(out: &mut Vec<u8>, value: Option<u32>) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put_u32(out, value);
    }
}

/// What is left of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(RecordError::CutOff)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordError::Value(name)),
        }
    }

    fn optional(&mut self, name: &'static str) -> Result<Option<u32>, RecordError> {
        Ok(if self.flag(name)? {
            Some(self.u32()?)
        } else {
            None
        })
    }

    fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(RecordError::CutOff)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// As many as announced; no more room is made beforehand than bytes are there.
    fn list<T>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Vec<T>, RecordError> {
        let count = self.u32()?;
        (0..count).map(|_| each(self)).collect()
    }

    fn record(&mut self, version: u16) -> Result<Record, RecordError> {
        let phase = match self.u8()? {
            0 => Phase::Connecting,
            1 => Phase::Open,
            2 => Phase::Closing,
            _ => return Err(RecordError::Value("phase")),
        };
        let flags = self.u8()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(RecordError::Value("flag"));
        }
        let mut record = Record {
            phase,
            pinged: flags & PINGED != 0,
            deaf: flags & DEAF != 0,
            hang_up: flags & HANG_UP != 0,
            turned_away: flags & TURNED_AWAY != 0,
            native_pings: flags & NATIVE_PINGS != 0,
            client: self.array()?,
            connected_ms: self.u64()?,
            detached_ns: self.u64()?,
            timers: Timers {
                due_ms: self.u32()?,
                probe_ms: self.u32()?,
                probe_interval_ms: self.u32()?,
                silence_max_ms: self.u32()?,
                heard_ms: self.u32()?,
                soft_ms: self.optional("soft_ms")?,
            },
            subscriptions: self.list(Self::position)?,
            queue: self.list(Self::queued)?,
            head_sent_bytes: self.u32()?,
            input: self.bytes()?.to_vec(),
            speech: self.speech()?,
            format: Format::UniWebSocket,
            log_position: None,
            identity: None,
        };
        if version == 1 {
            // Clients had one dialect a port, and no names.
            if let Speech::Tcp { .. } = record.speech {
                record.format = Format::Tcp;
            }
        } else {
            record.format = Format::from_number(self.u8()?).ok_or(RecordError::Value("format"))?;
            record.log_position = match self.flag("log_position")? {
                true => Some(self.u64()?),
                false => None,
            };
            record.identity = match self.flag("identity")? {
                true => Some(self.identity()?),
                false => None,
            };
        }
        check(&record)?;
        Ok(record)
    }

    fn position(&mut self) -> Result<Position, RecordError> {
        let channel = self.text("channel")?;
        if channel.is_empty() || channel.len() > CHANNEL_BYTES_MAX {
            return Err(RecordError::Value("channel"));
        }
        Ok(Position {
            channel,
            epoch: self.u32()?,
            offset: self.u64()?,
        })
    }

    fn queued(&mut self) -> Result<Queued, RecordError> {
        let subscription = self.optional("subscription")?;
        let bytes = self.bytes()?.to_vec();
        Ok(Queued {
            subscription,
            bytes,
        })
    }

    fn identity(&mut self) -> Result<Identity, RecordError> {
        Ok(Identity {
            user: self.text("user")?,
            info: self.bytes()?.to_vec(),
            meta: self.bytes()?.to_vec(),
            headers: self.bytes()?.to_vec(),
            session: self.array()?,
            expiry: self.expiry()?,
            standings: self.list(Self::standing)?,
        })
    }

    fn text(&mut self, name: &'static str) -> Result<String, RecordError> {
        let text = std::str::from_utf8(self.bytes()?);
        Ok(text.map_err(|_| RecordError::Value(name))?.to_string())
    }

    fn expiry(&mut self) -> Result<Expiry, RecordError> {
        Ok(Expiry {
            at_s: self.u64()?,
            by_hook: self.flag("by_hook")?,
        })
    }

    fn standing(&mut self) -> Result<Standing, RecordError> {
        Ok(Standing {
            traits: Traits::from_bits(self.u16()?).ok_or(RecordError::Value("traits"))?,
            expiry: self.expiry()?,
            info: self.bytes()?.into(),
        })
    }

    fn speech(&mut self) -> Result<Speech, RecordError> {
        match self.u8()? {
            0 => Ok(Speech::Http),
            1 => Ok(Speech::WebSocket(if self.flag("fragments")? {
                let kind = self.u8()?;
                if kind > 3 {
                    return Err(RecordError::Value("fragments"));
                }
                Some(Fragments {
                    is_text: kind & 1 != 0,
                    is_compressed: kind & 2 != 0,
                    valid_bytes: self.u32()? as usize,
                    payload: self.bytes()?.to_vec(),
                })
            } else {
                None
            })),
            2 => Ok(Speech::Tcp {
                flow: self.flow()?,
                pieces: self.bytes()?.to_vec(),
                wire: self.bytes()?.to_vec(),
            }),
            3 => Ok(Speech::Stream),
            _ => Err(RecordError::Value("dialect")),
        }
    }

    fn flow(&mut self) -> Result<FlowState, RecordError> {
        let (connected, greeted) = (self.flag("connected")?, self.flag("greeted")?);
        let crc = self.flag("crc")?;
        let (own, peer) = (self.window()?, self.window()?);
        Ok(FlowState {
            connected,
            greeted,
            crc,
            own,
            peer,
            sent_seq: self.u32()?,
            received_seq: self.u32()?,
            told_seq: self.u32()?,
            received_unacked_bytes: self.u32()?,
            in_flight: self.list(Self::u16)?,
        })
    }

    fn window(&mut self) -> Result<Window, RecordError> {
        let window = Window {
            size: self.u16()?,
            scale: self.u8()?,
        };
        if window.scale > Window::SCALE_MAX {
            return Err(RecordError::Value("scale"));
        }
        Ok(window)
    }
}

/// What the fields mean together.
fn check(record: &Record) -> Result<(), RecordError> {
    let head_bytes = record.queue.first().map_or(1, |head| head.bytes.len());
    if record.head_sent_bytes as usize >= head_bytes {
        return Err(RecordError::Value("head_sent_bytes"));
    }
    let subscriptions = record.subscriptions.len() as u32;
    for queued in &record.queue {
        if queued.bytes.is_empty() || queued.subscription.is_some_and(|at| at >= subscriptions) {
            return Err(RecordError::Value("queue"));
        }
    }
    let standings = record.identity.as_ref().map(|each| each.standings.len());
    if standings.is_some_and(|count| count != record.subscriptions.len()) {
        return Err(RecordError::Value("standings"));
    }
    let is_fit = match record.speech {
        Speech::Http => true,
        Speech::WebSocket(_) => record.format.is_websocket(),
        Speech::Stream => !record.format.is_websocket() && record.format != Format::Tcp,
        Speech::Tcp { .. } => record.format == Format::Tcp,
    };
    if !is_fit {
        return Err(RecordError::Value("format"));
    }
    match &record.speech {
        Speech::WebSocket(Some(each)) if each.valid_bytes > each.payload.len() => {
            Err(RecordError::Value("valid_bytes"))
        }
        Speech::Tcp { flow, .. } if flow.in_flight.len() > IN_FLIGHT_FRAMES_MAX => {
            Err(RecordError::Value("in_flight"))
        }
        _ => Ok(()),
    }
}
