//! Bytes as records.

use super::{
    CHANNEL_BYTES_MAX, DEAF, FLAGS_KNOWN, HANG_UP, Identity, MAGIC, NATIVE_PINGS, PINGED, Position,
    Queued, Record, RecordError, Speech, TURNED_AWAY, Timers, VERSION, VERSION_OLDEST,
};
use crate::client::{Expiry, Standing, Traits};
use crate::connection::Phase;
use crate::protocol::format::Format;
use crate::protocol::tcp::{FlowState, Window, flow::IN_FLIGHT_FRAMES_MAX};
use crate::protocol::websocket::Fragments;

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
