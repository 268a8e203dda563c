//! Records as bytes.

use super::{
    DEAF, HANG_UP, Identity, MAGIC, NATIVE_PINGS, PINGED, Record, Speech, TURNED_AWAY, VERSION,
};
use crate::client::Expiry;
use crate::connection::Phase;

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
