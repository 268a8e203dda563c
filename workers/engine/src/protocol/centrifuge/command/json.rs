//! Commands in JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Command, ConnectRequest, EmulationRequest, HistoryRequest, Request};
use super::{Since, SubscribeRequest};

/// Bit of a subscribe request's `flag`.
pub(super) const FLAG_REJECT_UNRECOVERED: i64 = 2;

#[derive(Deserialize)]
struct CommandFields {
    #[serde(default, deserialize_with = "null_as_default")]
    id: u32,
    connect: Option<ConnectFields>,
    ping: Option<Empty>,
    subscribe: Option<SubscribeFields>,
    unsubscribe: Option<ChannelFields>,
    publish: Option<PublishFields>,
    presence: Option<ChannelFields>,
    presence_stats: Option<ChannelFields>,
    history: Option<HistoryFields>,
    rpc: Option<RpcFields>,
    send: Option<SendFields>,
    refresh: Option<RefreshFields>,
    sub_refresh: Option<SubRefreshFields>,
}

#[derive(Deserialize)]
struct Empty {}

macro_rules! fields {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {$(
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct $name {
            $(#[serde(deserialize_with = "null_as_default")] $field: $type,)*
        }
    )*};
}

/// The application's own JSON, untouched.
type Raw = Option<Box<RawValue>>;

fields! {
    ConnectFields {
        token: String,
        data: Raw,
        subs: BTreeMap<String, Option<SubscribeFields>>,
        name: String,
        version: String,
        headers: BTreeMap<String, String>,
    }
    SubscribeFields {
        channel: String,
        token: String,
        recover: bool,
        epoch: String,
        offset: u64,
        data: Raw,
        positioned: bool,
        recoverable: bool,
        join_leave: bool,
        delta: String,
        tf: Raw,
        flag: i64,
        r#type: i32,
    }
    ChannelFields { channel: String, }
    PublishFields { channel: String, data: Raw, }
    HistoryFields { channel: String, limit: i32, since: Option<SinceFields>, reverse: bool, }
    SinceFields { offset: u64, epoch: String, }
    RpcFields { method: String, data: Raw, }
    SendFields { data: Raw, }
    RefreshFields { token: String, }
    SubRefreshFields { channel: String, token: String, }
    EmulationFields { node: String, session: String, data: String, }
}

/// JSON's `null` is protobuf's zero value.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<T> {
    // Serde would also take an array of the fields in their order.
    if !text.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice(text).ok()
}

fn bytes(raw: Raw) -> Vec<u8> {
    raw.map_or_else(Vec::new, |raw| Box::<str>::from(raw).into_string().into())
}

pub(super) fn commands(message: &[u8]) -> Option<Vec<Command>> {
    let message = message.strip_suffix(b"\n").unwrap_or(message);
    message.split(|&byte| byte == b'\n').map(command).collect()
}

fn command(line: &[u8]) -> Option<Command> {
    let fields: CommandFields = object(line)?;
    let id = fields.id;
    let request = if id == 0 && fields.send.is_none() {
        Request::Pong
    } else {
        fields.request()?
    };
    Some(Command { id, request })
}

pub(super) fn connect(text: &[u8]) -> Option<ConnectRequest> {
    object::<ConnectFields>(text).map(Into::into)
}

pub(super) fn emulation(body: &[u8]) -> Option<EmulationRequest> {
    let EmulationFields {
        node,
        session,
        data,
    } = object(body)?;
    Some(EmulationRequest {
        node,
        session,
        data: data.into_bytes(),
    })
}

impl CommandFields {
    /// The first method there is, in the order in which the protocol looks for them.
    fn request(self) -> Option<Request> {
        Some(if let Some(connect) = self.connect {
            Request::Connect(connect.into())
        } else if self.ping.is_some() {
            return None;
        } else if let Some(subscribe) = self.subscribe {
            Request::Subscribe(subscribe.into())
        } else if let Some(ChannelFields { channel }) = self.unsubscribe {
            Request::Unsubscribe { channel }
        } else if let Some(PublishFields { channel, data }) = self.publish {
            let data = bytes(data);
            Request::Publish { channel, data }
        } else if let Some(ChannelFields { channel }) = self.presence {
            Request::Presence { channel }
        } else if let Some(ChannelFields { channel }) = self.presence_stats {
            Request::PresenceStats { channel }
        } else if let Some(history) = self.history {
            Request::History(history.into())
        } else if let Some(RpcFields { method, data }) = self.rpc {
            let data = bytes(data);
            Request::Rpc { method, data }
        } else if let Some(SendFields { data }) = self.send {
            Request::Send { data: bytes(data) }
        } else if let Some(RefreshFields { token }) = self.refresh {
            Request::Refresh { token }
        } else {
            let SubRefreshFields { channel, token } = self.sub_refresh?;
            Request::SubRefresh { channel, token }
        })
    }
}

impl From<ConnectFields> for ConnectRequest {
    fn from(fields: ConnectFields) -> Self {
        let named = |(channel, sub): (String, Option<SubscribeFields>)| SubscribeRequest {
            channel,
            ..sub.unwrap_or_default().into()
        };
        Self {
            token: fields.token,
            data: bytes(fields.data),
            subs: fields.subs.into_iter().map(named).collect(),
            name: fields.name,
            version: fields.version,
            headers: fields.headers.into_iter().collect(),
        }
    }
}

impl From<SubscribeFields> for SubscribeRequest {
    fn from(fields: SubscribeFields) -> Self {
        let since = Since {
            offset: fields.offset,
            epoch: fields.epoch,
        };
        Self {
            channel: fields.channel,
            token: fields.token,
            recover: fields.recover.then_some(since),
            data: bytes(fields.data),
            positioned: fields.positioned,
            recoverable: fields.recoverable,
            join_leave: fields.join_leave,
            delta: fields.delta,
            rejects_unrecovered: fields.flag & FLAG_REJECT_UNRECOVERED != 0,
            has_filter: fields.tf.is_some(),
            kind: fields.r#type,
        }
    }
}

impl From<HistoryFields> for HistoryRequest {
    fn from(fields: HistoryFields) -> Self {
        Self {
            channel: fields.channel,
            limit: fields.limit,
            since: fields.since.map(|since| Since {
                offset: since.offset,
                epoch: since.epoch,
            }),
            reverse: fields.reverse,
        }
    }
}
