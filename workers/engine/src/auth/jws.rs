//! The envelope: `header.payload.signature`, each in base64url without padding (RFC 7515 §7.1).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// What a token may be signed with (RFC 7518 §3.1, RFC 8037 §3.1). "none" is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Algorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "HS384")]
    Hs384,
    #[serde(rename = "HS512")]
    Hs512,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "RS384")]
    Rs384,
    #[serde(rename = "RS512")]
    Rs512,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "ES384")]
    Es384,
    #[serde(rename = "ES512")]
    Es512,
    /// RFC 9864 gave it a name of its own besides.
    #[serde(rename = "EdDSA", alias = "Ed25519")]
    EdDsa,
}

impl Algorithm {
    pub fn is_hmac(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }
}

/// A token that has the right form. Nothing in it is to be believed yet.
pub(super) struct Parsed<'a> {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    /// What the signature is of.
    pub signed: &'a [u8],
    pub signature: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Keys that a token brings along (`jwk`, `jku`, `x5c`) are not looked at.
#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 §4.1.11): we know none.
    crit: Option<IgnoredAny>,
}

pub(super) fn parse(token: &str) -> Result<Parsed<'_>, &'static str> {
    let (signed, signature) = token.rsplit_once('.').ok_or("it is no token")?;
    let (header, payload) = signed.split_once('.').ok_or("it is no token")?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part);
    let header = decode(header).map_err(|_| "its header is malformed")?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|_| "its header is malformed, or its algorithm none of ours")?;
    if header.crit.is_some() {
        return Err("it has critical extensions");
    }
    Ok(Parsed {
        algorithm: header.alg,
        key_id: header.kid,
        signed: signed.as_bytes(),
        signature: decode(signature).map_err(|_| "its signature is malformed")?,
        payload: decode(payload).map_err(|_| "its claims are malformed")?,
    })
}
