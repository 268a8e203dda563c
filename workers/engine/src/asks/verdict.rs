//! The answers of the application, of a Python class and of an HTTP back end alike:
//! `{"result": …}`, `{"error": {"code", "message"}}` or `{"disconnect": {"code", "reason"}}`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{AskKind, Fallback};
use crate::auth::claims::{Bytes, Overrides, RawOptions, SubOptions, expiry};

/// What the application decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<T> {
    Result(T),
    /// The client gets this error; the connection stays.
    Error {
        code: u32,
        message: String,
        temporary: bool,
    },
    /// The connection is closed so.
    Disconnect {
        code: u16,
        reason: String,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectResult {
    /// Empty: an anonymous client.
    pub user: String,
    /// Seconds since 1970; `None`: the connection does not expire.
    pub expire_at: Option<u64>,
    /// JSON; empty: none. So are all bytes here.
    pub info: Vec<u8>,
    /// For the connect reply.
    pub data: Vec<u8>,
    /// For the server's eyes only.
    pub meta: Vec<u8>,
    /// Server-side subscriptions.
    pub subs: Vec<(String, SubOptions)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscribeResult {
    pub expire_at: Option<u64>,
    pub info: Vec<u8>,
    pub data: Vec<u8>,
    pub overrides: Overrides,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishResult {
    /// In place of what the client sent; empty: that.
    pub data: Vec<u8>,
    pub skip_history: bool,
    /// The publication does not come back to its sender; `None`: as the namespace says.
    pub except_sender: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpcResult {
    pub data: Vec<u8>,
    /// Only a client with Protobuf can take it; else `data` is JSON.
    pub is_binary: bool,
}

/// Of refresh and sub_refresh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefreshResult {
    /// It is not prolonged, but ends now.
    pub expired: bool,
    pub expire_at: Option<u64>,
    /// Empty: as before.
    pub info: Vec<u8>,
    pub meta: Vec<u8>,
}

/// A kind of result that an answer may have.
pub trait Answered: Sized {
    #[doc(hidden)]
    type Raw: DeserializeOwned + Default;
    #[doc(hidden)]
    fn from_raw(raw: Self::Raw) -> Result<Self, &'static str>;
}

/// Reads the answer to a question that has results of kind `T`.
///
/// # Errors
/// [`Fallback::Failed`]: this is no answer.
pub fn parse<T: Answered>(body: &[u8]) -> Result<Verdict<T>, Fallback> {
    read(body).map_err(|_| Fallback::Failed)
}

/// Whether `body` is an answer to a question of `kind`.
///
/// # Errors
/// Why not, for the log.
pub fn check(kind: AskKind, body: &[u8]) -> Result<(), String> {
    match kind {
        AskKind::Connect => read::<ConnectResult>(body).map(drop),
        AskKind::Subscribe => read::<SubscribeResult>(body).map(drop),
        AskKind::Publish => read::<PublishResult>(body).map(drop),
        AskKind::Rpc => read::<RpcResult>(body).map(drop),
        AskKind::Refresh | AskKind::SubRefresh => read::<RefreshResult>(body).map(drop),
        AskKind::Message | AskKind::Disconnect => read::<()>(body).map(drop),
        // The verifier takes what it can use.
        AskKind::Keys => Ok(()),
    }
}

fn read<T: Answered>(body: &[u8]) -> Result<Verdict<T>, String> {
    let answer: RawAnswer<T::Raw> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    match answer {
        RawAnswer {
            result: raw,
            error: None,
            disconnect: None,
        } => Ok(Verdict::Result(T::from_raw(raw.unwrap_or_default())?)),
        RawAnswer {
            result: None,
            error: Some(error),
            disconnect: None,
        } => error.verdict(),
        RawAnswer {
            result: None,
            error: None,
            disconnect: Some(disconnect),
        } => disconnect.verdict(),
        _ => Err("more than one of result, error and disconnect".to_string()),
    }
}

/// Codes below are the SDKs' own: they would take one for a fault of theirs.
const ERROR_CODE_MIN: u32 = 100;
/// What a close frame may carry, and the clients' rules of reconnection are about.
const DISCONNECT_CODES: RangeInclusive<u16> = 3000..=4999;
/// Of a close frame (RFC 6455 §5.5), less the code.
const REASON_BYTES_MAX: usize = 123;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound = "R: Deserialize<'de>")]
struct RawAnswer<R> {
    #[serde(default = "none")]
    result: Option<R>,
    error: Option<RawError>,
    disconnect: Option<RawDisconnect>,
}

fn none<R>() -> Option<R> {
    None
}

#[derive(Deserialize)]
struct RawError {
    code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    temporary: bool,
}

impl RawError {
    fn verdict<T>(self) -> Result<Verdict<T>, String> {
        if self.code < ERROR_CODE_MIN {
            return Err(format!("an error code below {ERROR_CODE_MIN}"));
        }
        let message = match self.message.is_empty() {
            // The SDKs do not take an error without one.
            true => "application error".to_string(),
            false => self.message,
        };
        Ok(Verdict::Error {
            code: self.code,
            message,
            temporary: self.temporary,
        })
    }
}

#[derive(Deserialize)]
struct RawDisconnect {
    code: u16,
    #[serde(default)]
    reason: String,
}

impl RawDisconnect {
    fn verdict<T>(self) -> Result<Verdict<T>, String> {
        if !DISCONNECT_CODES.contains(&self.code) {
            return Err("a disconnect code that is not within 3000 to 4999".to_string());
        }
        if self.reason.len() > REASON_BYTES_MAX {
            return Err(format!("a reason of more than {REASON_BYTES_MAX} bytes"));
        }
        // centrifuge-js parses the reason for an older form of it, and stays away if it can.
        if serde_json::from_str::<IgnoredAny>(&self.reason).is_ok() {
            return Err("a reason that browsers would take for JSON".to_string());
        }
        Ok(Verdict::Disconnect {
            code: self.code,
            reason: self.reason,
        })
    }
}

/// The members of all results: each kind takes its own.
#[doc(hidden)]
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct RawResult {
    user: String,
    expire_at: Option<i64>,
    expired: bool,
    info: Bytes,
    b64info: String,
    data: Bytes,
    b64data: String,
    meta: Bytes,
    channels: Vec<String>,
    subs: BTreeMap<String, RawOptions>,
    #[serde(rename = "override")]
    overrides: Overrides,
    skip_history: bool,
    except_sender: Option<bool>,
}

impl RawResult {
    fn info(&mut self) -> Result<Vec<u8>, &'static str> {
        std::mem::take(&mut self.info).or_base64(&self.b64info)
    }

    fn data(&mut self) -> Result<Vec<u8>, &'static str> {
        std::mem::take(&mut self.data).or_base64(&self.b64data)
    }
}

impl Answered for ConnectResult {
    type Raw = RawResult;

    fn from_raw(mut raw: RawResult) -> Result<Self, &'static str> {
        Ok(Self {
            expire_at: expiry(raw.expire_at, None)?,
            info: raw.info()?,
            data: raw.data()?,
            meta: raw.meta.into_vec(),
            subs: SubOptions::merged(raw.channels, raw.subs)?,
            user: raw.user,
        })
    }
}

impl Answered for SubscribeResult {
    type Raw = RawResult;

    fn from_raw(mut raw: RawResult) -> Result<Self, &'static str> {
        Ok(Self {
            expire_at: expiry(raw.expire_at, None)?,
            info: raw.info()?,
            data: raw.data()?,
            overrides: raw.overrides,
        })
    }
}

impl Answered for PublishResult {
    type Raw = RawResult;

    fn from_raw(mut raw: RawResult) -> Result<Self, &'static str> {
        Ok(Self {
            data: raw.data()?,
            skip_history: raw.skip_history,
            except_sender: raw.except_sender,
        })
    }
}

impl Answered for RpcResult {
    type Raw = RawResult;

    fn from_raw(raw: RawResult) -> Result<Self, &'static str> {
        let (data, is_binary) = raw.data.or_any_base64(&raw.b64data)?;
        Ok(Self { data, is_binary })
    }
}

impl Answered for RefreshResult {
    type Raw = RawResult;

    fn from_raw(mut raw: RawResult) -> Result<Self, &'static str> {
        Ok(Self {
            expired: raw.expired,
            expire_at: expiry(raw.expire_at, None)?,
            info: raw.info()?,
            meta: raw.meta.into_vec(),
        })
    }
}

/// Of message: the application has nothing to say but an error or a disconnect.
impl Answered for () {
    type Raw = IgnoredAny;

    fn from_raw(_: Self::Raw) -> Result<Self, &'static str> {
        Ok(())
    }
}
