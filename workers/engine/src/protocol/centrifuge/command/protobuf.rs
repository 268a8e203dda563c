//! Commands in Protobuf; the numbers are those of `client.proto` of centrifugal/protocol.

use std::collections::BTreeMap;

use super::json::FLAG_REJECT_UNRECOVERED;
use super::{Command, ConnectRequest, EmulationRequest, HistoryRequest, Request};
use super::{Since, SubscribeRequest};
use crate::protocol::protobuf::{Malformed, Value, fields, take_delimited};

pub(super) fn commands(mut message: &[u8]) -> Result<Vec<Command>, Malformed> {
    let mut commands = Vec::with_capacity(1);
    while !message.is_empty() {
        commands.push(command(take_delimited(&mut message)?)?);
    }
    Ok(commands)
}

/// Where a method stands in the order in which the protocol looks for them; the numbers ascend in
/// that order but for the ping.
fn rank(field: u32) -> u32 {
    const CONNECT: u32 = 4;
    const PING: u32 = 11;
    match field {
        CONNECT => 0,
        PING => 1,
        other => other,
    }
}

fn command(message: &[u8]) -> Result<Command, Malformed> {
    let mut id = 0;
    let mut has_send = false;
    let mut first: Option<(u32, &[u8])> = None;
    for field in fields(message) {
        match field? {
            (1, value) => id = value.number()? as u32,
            (number @ 4..=15, value) => {
                let body = value.bytes()?;
                has_send |= number == 12;
                if first.is_none_or(|(found, _)| rank(number) <= rank(found)) {
                    first = Some((number, body));
                }
            }
            _ => {}
        }
    }
    let request = match first {
        _ if id == 0 && !has_send => Request::Pong,
        Some((number, body)) => request(number, body)?,
        None => return Err(Malformed),
    };
    Ok(Command { id, request })
}

fn request(number: u32, body: &[u8]) -> Result<Request, Malformed> {
    Ok(match number {
        4 => Request::Connect(connect(body)?),
        5 => Request::Subscribe(subscribe(body)?),
        6 => Request::Unsubscribe {
            channel: channel(body)?,
        },
        7 => {
            let (channel, data) = text_and_bytes(body, 1, 2)?;
            Request::Publish { channel, data }
        }
        8 => Request::Presence {
            channel: channel(body)?,
        },
        9 => Request::PresenceStats {
            channel: channel(body)?,
        },
        10 => Request::History(history(body)?),
        12 => {
            let (_, data) = text_and_bytes(body, 0, 1)?;
            Request::Send { data }
        }
        13 => {
            let (method, data) = text_and_bytes(body, 2, 1)?;
            Request::Rpc { method, data }
        }
        14 => {
            let (token, _) = text_and_bytes(body, 1, 0)?;
            Request::Refresh { token }
        }
        15 => {
            let (channel, token) = two_texts(body)?;
            Request::SubRefresh { channel, token }
        }
        // A ping: no client sends one.
        _ => return Err(Malformed),
    })
}

fn text(value: Value<'_>) -> Result<String, Malformed> {
    value.text().map(str::to_owned)
}

fn channel(message: &[u8]) -> Result<String, Malformed> {
    text_and_bytes(message, 1, 0).map(|(channel, _)| channel)
}

/// Two fields, by their numbers; 0 stands for one that is not there.
fn text_and_bytes(
    message: &[u8],
    text_field: u32,
    bytes_field: u32,
) -> Result<(String, Vec<u8>), Malformed> {
    let (mut found, mut bytes) = (String::new(), Vec::new());
    for field in fields(message) {
        match field? {
            (number, value) if number == text_field => found = text(value)?,
            (number, value) if number == bytes_field => bytes = value.bytes()?.to_vec(),
            _ => {}
        }
    }
    Ok((found, bytes))
}

/// The fields 1 and 2, as they are in the entries of maps too.
fn two_texts(message: &[u8]) -> Result<(String, String), Malformed> {
    let (first, second) = text_and_bytes(message, 1, 2)?;
    Ok((first, String::from_utf8(second).or(Err(Malformed))?))
}

fn connect(message: &[u8]) -> Result<ConnectRequest, Malformed> {
    let mut request = ConnectRequest::default();
    // Of a channel named twice the last counts, as in every map of Protobuf.
    let mut subs = BTreeMap::new();
    for field in fields(message) {
        match field? {
            (1, value) => request.token = text(value)?,
            (2, value) => request.data = value.bytes()?.to_vec(),
            (3, value) => {
                let (channel, sub) = text_and_bytes(value.bytes()?, 1, 2)?;
                subs.insert(channel, subscribe(&sub)?);
            }
            (4, value) => request.name = text(value)?,
            (5, value) => request.version = text(value)?,
            (6, value) => request.headers.push(two_texts(value.bytes()?)?),
            _ => {}
        }
    }
    let named = |(channel, sub)| SubscribeRequest { channel, ..sub };
    request.subs = subs.into_iter().map(named).collect();
    Ok(request)
}

fn subscribe(message: &[u8]) -> Result<SubscribeRequest, Malformed> {
    let mut request = SubscribeRequest::default();
    let mut since = Since::default();
    let mut recover = false;
    for field in fields(message) {
        match field? {
            (1, value) => request.channel = text(value)?,
            (2, value) => request.token = text(value)?,
            (3, value) => recover = value.flag()?,
            (6, value) => since.epoch = text(value)?,
            (7, value) => since.offset = value.number()?,
            (8, value) => request.data = value.bytes()?.to_vec(),
            (9, value) => request.positioned = value.flag()?,
            (10, value) => request.recoverable = value.flag()?,
            (11, value) => request.join_leave = value.flag()?,
            (12, value) => request.delta = text(value)?,
            (13, value) => request.has_filter = value.bytes().is_ok(),
            (14, value) => {
                let flags = value.number()?.cast_signed();
                request.rejects_unrecovered = flags & FLAG_REJECT_UNRECOVERED != 0;
            }
            (15, value) => request.kind = value.number()? as i32,
            _ => {}
        }
    }
    request.recover = recover.then_some(since);
    Ok(request)
}

fn history(message: &[u8]) -> Result<HistoryRequest, Malformed> {
    let mut request = HistoryRequest::default();
    for field in fields(message) {
        match field? {
            (1, value) => request.channel = text(value)?,
            (7, value) => request.limit = value.number()? as i32,
            (8, value) => request.since = Some(position(value.bytes()?)?),
            (9, value) => request.reverse = value.flag()?,
            _ => {}
        }
    }
    Ok(request)
}

fn position(message: &[u8]) -> Result<Since, Malformed> {
    let mut since = Since::default();
    for field in fields(message) {
        match field? {
            (1, value) => since.offset = value.number()?,
            (2, value) => since.epoch = text(value)?,
            _ => {}
        }
    }
    Ok(since)
}

pub(super) fn emulation(message: &[u8]) -> Result<EmulationRequest, Malformed> {
    let mut request = EmulationRequest::default();
    for field in fields(message) {
        match field? {
            (1, value) => request.node = text(value)?,
            (2, value) => request.session = text(value)?,
            (3, value) => request.data = value.bytes()?.to_vec(),
            _ => {}
        }
    }
    Ok(request)
}
