//! The unidirectional JSON dialect of Centrifuge clients: one connect request in, pushes out.
//!
//! Texts only; `websocket` frames them. As in protobuf's JSON, fields that are zero or empty are
//! left out, and unknown ones are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tidegate_ring::publication::PublicationView;

use super::close::Close;

/// The application's ping; no answer is expected.
pub const PING: &[u8] = b"{}";

/// The client's first text message, or the query parameter `cf_connect`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConnectRequest {
    /// Name and version of the client's application, for people.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub version: String,
    #[serde(deserialize_with = "null_as_default")]
    pub token: String,
    /// The application's own JSON, untouched.
    pub data: Option<Box<RawValue>>,
    #[serde(deserialize_with = "subscribe_requests")]
    pub subs: Vec<SubscribeRequest>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct SubscribeRequest {
    pub channel: String,
    /// Where the client left off, if it wants what it missed.
    pub recover: Option<Since>,
}

/// A position in a channel's history.
#[derive(Debug, PartialEq, Eq)]
pub struct Since {
    /// Of the last publication that was seen.
    pub offset: u64,
    /// As the gateway gave it; empty matches any.
    pub epoch: String,
}

/// The answer to a connect request.
#[derive(Debug)]
pub struct ConnectReply<'a> {
    pub client: &'a str,
    pub version: &'a str,
    pub session: &'a str,
    /// Interval of the pings that follow; 0 for none.
    pub ping_s: u32,
    pub subs: &'a [SubscribeReply<'a>],
}

#[derive(Debug, Default)]
pub struct SubscribeReply<'a> {
    pub channel: &'a str,
    pub recoverable: bool,
    pub positioned: bool,
    pub epoch: &'a str,
    /// Top of the channel or, if recovered, the offset that the client asked from.
    pub offset: u64,
    pub was_recovering: bool,
    pub recovered: bool,
    /// What was missed, ascending.
    pub publications: &'a [PublicationView<'a>],
}

/// Parse a connect request: a bare JSON object. Anything else is a bad request.
pub fn parse_connect(text: &str) -> Result<ConnectRequest, Close> {
    // Serde would also take an array of the fields in their order.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Close::BadRequest);
    }
    serde_json::from_str(text).or(Err(Close::BadRequest))
}

/// JSON's `null` is protobuf's zero value.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The map `{channel: {recover, offset, epoch}}`; of a channel named twice the last counts.
fn subscribe_requests<'de, D>(deserializer: D) -> Result<Vec<SubscribeRequest>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Options {
        #[serde(deserialize_with = "null_as_default")]
        recover: bool,
        #[serde(deserialize_with = "null_as_default")]
        offset: u64,
        #[serde(deserialize_with = "null_as_default")]
        epoch: String,
    }

    let subs: BTreeMap<String, Option<Options>> = null_as_default(deserializer)?;
    let request = |(channel, options): (String, Option<Options>)| {
        let Options {
            recover,
            offset,
            epoch,
        } = options.unwrap_or_default();
        SubscribeRequest {
            channel,
            recover: recover.then_some(Since { offset, epoch }),
        }
    };
    Ok(subs.into_iter().map(request).collect())
}

/// The connect push, always the first message. Fails as [`encode_publication`] does.
pub fn encode_connect(reply: &ConnectReply<'_>) -> Result<Vec<u8>, Close> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"connect\":");
    let mut connect = Object::begin(&mut out);
    connect.text("client", reply.client);
    connect.text("version", reply.version);
    if !reply.subs.is_empty() {
        let mut subs = Object::begin(connect.key("subs"));
        for sub in reply.subs {
            encode_subscribe(subs.key(sub.channel), sub)?;
        }
        subs.end();
    }
    connect.number("ping", reply.ping_s.into());
    connect.text("session", reply.session);
    connect.end();
    out.push(b'}');
    Ok(out)
}

fn encode_subscribe(out: &mut Vec<u8>, sub: &SubscribeReply<'_>) -> Result<(), Close> {
    let mut object = Object::begin(out);
    object.flag("recoverable", sub.recoverable);
    object.text("epoch", sub.epoch);
    if !sub.publications.is_empty() {
        let out = object.key("publications");
        for (index, publication) in sub.publications.iter().enumerate() {
            out.push(if index == 0 { b'[' } else { b',' });
            encode_body(out, publication)?;
        }
        out.push(b']');
    }
    object.flag("recovered", sub.recovered);
    object.number("offset", sub.offset);
    object.flag("positioned", sub.positioned);
    object.flag("was_recovering", sub.was_recovering);
    object.end();
    Ok(())
}

/// The push of one publication of a channel.
///
/// Fails with `InappropriateProtocol` if its data is not JSON: this dialect has no way to say it.
pub fn encode_publication(publication: &PublicationView<'_>) -> Result<Vec<u8>, Close> {
    let PublicationView {
        channel,
        tags,
        data,
        ..
    } = publication;
    // Braces, keys, 20 digits of offset; a channel rarely needs escapes.
    let mut out = Vec::with_capacity(64 + channel.len() + tags.len() + data.len());
    let mut push = Object::begin(&mut out);
    push.text("channel", channel);
    encode_body(push.key("pub"), publication)?;
    push.end();
    Ok(out)
}

fn encode_body(out: &mut Vec<u8>, publication: &PublicationView<'_>) -> Result<(), Close> {
    if !publication.json {
        return Err(Close::InappropriateProtocol);
    }
    let mut object = Object::begin(out);
    object.key("data").extend_from_slice(publication.data);
    object.number("offset", publication.offset);
    if !publication.tags.is_empty() {
        object.key("tags").extend_from_slice(publication.tags);
    }
    object.end();
    Ok(())
}

/// The last push before the close frame.
pub fn encode_disconnect(close: Close) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(b"{\"disconnect\":");
    let mut disconnect = Object::begin(&mut out);
    disconnect.number("code", close.code().into());
    disconnect.text("reason", close.reason());
    disconnect.end();
    out.push(b'}');
    out
}

/// Writes a JSON object member by member, leaving out zero values.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self {
            out,
            is_empty: true,
        }
    }

    /// Write a key; the caller writes its value.
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        json(self.out, key);
        self.out.push(b':');
        self.out
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            json(self.key(key), value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        if value != 0 {
            json(self.key(key), &value);
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.key(key).extend_from_slice(b"true");
        }
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("text and numbers always have a JSON form");
}
