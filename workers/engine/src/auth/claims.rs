//! What tokens say once they are believed.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tidegate_ring::json;

use super::TokenError;

/// What a connection token grants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionClaims {
    /// Empty: an anonymous client.
    pub user: String,
    /// When the connection expires, in seconds since 1970; `None`: never.
    pub expire_at: Option<u64>,
    /// JSON for others to see; empty: none.
    pub info: Vec<u8>,
    /// JSON for the server's eyes only; empty: none.
    pub meta: Vec<u8>,
    /// Server-side subscriptions: those of the claim `channels`, unless `subs` has them too.
    pub subs: Vec<(String, SubOptions)>,
}

/// What a subscription token grants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionClaims {
    /// Has to be the connection's.
    pub user: String,
    /// Has to be the requested one.
    pub channel: String,
    /// Has to be the connection's UUID; empty: any.
    pub client: String,
    /// When the subscription expires, in seconds since 1970; `None`: never.
    pub expire_at: Option<u64>,
    /// JSON for others to see; empty: none.
    pub info: Vec<u8>,
    /// JSON for the subscribe reply; empty: none.
    pub data: Vec<u8>,
    pub overrides: Overrides,
}

/// How one subscription differs from what its namespace says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubOptions {
    /// JSON for others to see; empty: none.
    pub info: Vec<u8>,
    /// JSON for the subscriber; empty: none.
    pub data: Vec<u8>,
    pub overrides: Overrides,
}

/// Options of the namespace that are otherwise here; `None`: as the namespace says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Overrides {
    #[serde(deserialize_with = "flag")]
    pub presence: Option<bool>,
    #[serde(deserialize_with = "flag")]
    pub join_leave: Option<bool>,
    #[serde(deserialize_with = "flag")]
    pub force_push_join_leave: Option<bool>,
    #[serde(deserialize_with = "flag")]
    pub force_recovery: Option<bool>,
    #[serde(deserialize_with = "flag")]
    pub force_positioning: Option<bool>,
}

/// `{"value": bool}`, so that an absent option and a false one differ in every language.
fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    struct Flag {
        value: bool,
    }
    Ok(Option::<Flag>::deserialize(from)?.map(|flag| flag.value))
}

/// JSON kept as it is, made compact: no line break of it may end a line of ours. Empty: absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        if raw.get() == "null" {
            return Ok(Self::default());
        }
        Self::compact(raw.get().as_bytes()).map_err(serde::de::Error::custom)
    }
}

impl Bytes {
    fn compact(text: &[u8]) -> Result<Self, serde_json::Error> {
        let mut compacted = Vec::with_capacity(text.len());
        json::compact(text, &mut compacted)?;
        Ok(Self(compacted))
    }

    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }

    /// What `base64` holds in place of this one, if it holds anything: JSON too, because
    /// connections with JSON see it whatever its owner speaks.
    pub fn or_base64(self, base64: &str) -> Result<Vec<u8>, &'static str> {
        match self.or_any_base64(base64)? {
            (json, false) => Ok(json),
            (_, true) => Err("base64 of what is not JSON"),
        }
    }

    /// The same of any bytes, with whether they are something else than JSON.
    pub fn or_any_base64(self, base64: &str) -> Result<(Vec<u8>, bool), &'static str> {
        if base64.is_empty() {
            return Ok((self.0, false));
        }
        let decoded = STANDARD.decode(base64).map_err(|_| "bad base64")?;
        match Self::compact(&decoded) {
            Ok(json) => Ok((json.0, false)),
            Err(_) => Ok((decoded, true)),
        }
    }
}

/// [`SubOptions`] as they are written in tokens and answers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RawOptions {
    info: Bytes,
    b64info: String,
    data: Bytes,
    b64data: String,
    #[serde(rename = "override", deserialize_with = "null_as_default")]
    overrides: Overrides,
}

impl SubOptions {
    /// Options by channel: none for each of `channels`, unless `subs` has it too.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn merged(
        channels: Vec<String>,
        subs: BTreeMap<String, RawOptions>,
    ) -> Result<Vec<(String, Self)>, &'static str> {
        let mut merged: BTreeMap<String, Self> = channels
            .into_iter()
            .map(|channel| (channel, Self::default()))
            .collect();
        for (channel, raw) in subs {
            let options = Self {
                info: raw.info.or_base64(&raw.b64info)?,
                data: raw.data.or_base64(&raw.b64data)?,
                overrides: raw.overrides,
            };
            merged.insert(channel, options);
        }
        Ok(merged.into_iter().collect())
    }
}

/// When something expires: by `expire_at`, where 0 says never, else by `expires_at` (`exp`).
///
/// # Errors
/// A time before 1970.
pub fn expiry(expire_at: Option<i64>, exp: Option<u64>) -> Result<Option<u64>, &'static str> {
    match expire_at {
        None => Ok(exp),
        Some(0) => Ok(None),
        Some(at) => u64::try_from(at)
            .map(Some)
            .map_err(|_| "expire_at is negative"),
    }
}

/// A NumericDate (RFC 7519 §2): seconds since 1970, maybe with a fraction. Beyond what 64 bits hold
/// it is as good as for ever.
#[derive(Debug, Clone, Copy, Deserialize)]
struct NumericDate(f64);

impl NumericDate {
    fn seconds(self) -> u64 {
        self.0 as u64
    }
}

/// `aud` (RFC 7519 §4.1.3): one or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

fn null_as_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// All claims that any token may have. A claim that is there twice is refused (RFC 7519 §4).
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "null_as_default")]
    sub: String,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    aud: Option<Audience>,
    iss: Option<String>,
    expire_at: Option<i64>,
    #[serde(default)]
    info: Bytes,
    #[serde(default, deserialize_with = "null_as_default")]
    b64info: String,
    #[serde(default)]
    data: Bytes,
    #[serde(default, deserialize_with = "null_as_default")]
    b64data: String,
    #[serde(default)]
    meta: Bytes,
    #[serde(default, deserialize_with = "null_as_default")]
    channels: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    subs: BTreeMap<String, RawOptions>,
    #[serde(default, deserialize_with = "null_as_default")]
    channel: String,
    #[serde(default, deserialize_with = "null_as_default")]
    client: String,
    #[serde(default, rename = "override", deserialize_with = "null_as_default")]
    overrides: Overrides,
}

/// The payload of a token whose signature is right.
pub(super) struct Payload {
    claims: Claims,
    text: Vec<u8>,
}

impl Payload {
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        Ok(Self {
            claims: serde_json::from_slice(text).map_err(|_| "the claims are malformed")?,
            text: text.to_vec(),
        })
    }

    pub fn check_times(&self, now_s: u64) -> Result<(), TokenError> {
        let is_over = self.claims.exp.is_some_and(|exp| exp.seconds() <= now_s);
        let is_early = self.claims.nbf.is_some_and(|nbf| nbf.seconds() > now_s);
        if is_over || is_early {
            return Err(TokenError::Expired);
        }
        Ok(())
    }

    pub fn audiences(&self) -> &[String] {
        match &self.claims.aud {
            None => &[],
            Some(Audience::One(one)) => std::slice::from_ref(one),
            Some(Audience::Several(several)) => several,
        }
    }

    pub fn issuer(&self) -> Option<&String> {
        self.claims.iss.as_ref()
    }

    pub fn connection(self, user_id_claim: &str) -> Result<ConnectionClaims, TokenError> {
        let user = self.user(user_id_claim).map_err(TokenError::Invalid)?;
        let claims = self.claims;
        if !claims.channel.is_empty() {
            return Err(TokenError::Invalid("it is a subscription token"));
        }
        let read = || {
            Ok(ConnectionClaims {
                user,
                expire_at: expiry(claims.expire_at, claims.exp.map(NumericDate::seconds))?,
                info: claims.info.or_base64(&claims.b64info)?,
                meta: claims.meta.into_vec(),
                subs: SubOptions::merged(claims.channels, claims.subs)?,
            })
        };
        read().map_err(TokenError::Invalid)
    }

    pub fn subscription(self, user_id_claim: &str) -> Result<SubscriptionClaims, TokenError> {
        let user = self.user(user_id_claim).map_err(TokenError::Invalid)?;
        let claims = self.claims;
        if claims.channel.is_empty() {
            return Err(TokenError::Invalid("it names no channel"));
        }
        let read = || {
            Ok(SubscriptionClaims {
                user,
                channel: claims.channel,
                client: claims.client,
                expire_at: expiry(claims.expire_at, claims.exp.map(NumericDate::seconds))?,
                info: claims.info.or_base64(&claims.b64info)?,
                data: claims.data.or_base64(&claims.b64data)?,
                overrides: claims.overrides,
            })
        };
        read().map_err(TokenError::Invalid)
    }

    fn user(&self, user_id_claim: &str) -> Result<String, &'static str> {
        if matches!(user_id_claim, "" | "sub") {
            return Ok(self.claims.sub.clone());
        }
        let all: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&self.text).map_err(|_| "the claims are malformed")?;
        let user = all.get(user_id_claim).and_then(|value| value.as_str());
        Ok(user
            .ok_or("the claim of the user's id is absent or no text")?
            .to_string())
    }
}
