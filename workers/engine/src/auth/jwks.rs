//! Keys that are published at a URL (JSON Web Key Sets, RFC 7517; Ed25519 as RFC 8037 §2 says).

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::TokenError;
use super::jws::{Algorithm, Parsed};
use super::keys::{Curve, PublicKey};

/// Keys of one set; what comes beyond is ignored. Providers publish two or three.
const KEYS_MAX: usize = 64;
/// After a fetch, a key that is not in the set is not asked for again for so long: tokens with
/// made-up ids must not have us fetch without end.
const REFETCH_AFTER_S: u64 = 10;
/// So many lifetimes of a set its keys count on, where no newer set can be had.
const STALE_FACTOR: u64 = 10;

/// The set of one URL, as it was when last fetched.
pub(super) struct Jwks {
    url: String,
    ttl_s: u64,
    keys: HashMap<String, Key>,
    fetched_s: Option<u64>,
}

struct Key {
    /// The only algorithm that it is for; `None`: any of its kind.
    algorithm: Option<Algorithm>,
    public: PublicKey,
}

impl Jwks {
    pub fn new(url: String, ttl: Duration) -> Self {
        Self {
            url,
            ttl_s: ttl.as_secs().max(1),
            keys: HashMap::new(),
            fetched_s: None,
        }
    }

    pub fn verify(&self, parsed: &Parsed<'_>, now_s: u64) -> Result<(), TokenError> {
        let Some(fetched_s) = self.fetched_s else {
            return Err(TokenError::UnknownKey);
        };
        let age_s = now_s.saturating_sub(fetched_s);
        let is_stale = age_s >= self.ttl_s.saturating_mul(STALE_FACTOR);
        let key = parsed.key_id.as_ref().and_then(|id| self.keys.get(id));
        match key {
            Some(key) if !is_stale => key.verify(parsed).map_err(TokenError::Invalid),
            _ if is_stale || age_s >= REFETCH_AFTER_S => Err(TokenError::UnknownKey),
            _ => Err(TokenError::Invalid("no key has its id")),
        }
    }

    /// Takes the set of our URL from a JSON object of sets; returns whether there was one.
    pub fn take(&mut self, body: &[u8], now_s: u64) -> bool {
        let Ok(mut sets) = serde_json::from_slice::<HashMap<String, KeySet>>(body) else {
            return false;
        };
        let Some(set) = sets.remove(&self.url) else {
            return false;
        };
        let keys = set.keys.iter().take(KEYS_MAX).filter_map(|raw| {
            // A key of a kind that we do not know is not ours to complain of (RFC 7517 §5).
            let jwk: Jwk = serde_json::from_str(raw.get()).ok()?;
            let key = Key {
                algorithm: jwk.alg,
                public: jwk.public_key()?,
            };
            Some((jwk.kid?, key))
        });
        self.keys = keys.collect();
        self.fetched_s = Some(now_s);
        true
    }
}

impl Key {
    fn verify(&self, parsed: &Parsed<'_>) -> Result<(), &'static str> {
        if self.algorithm.is_some_and(|only| only != parsed.algorithm) {
            return Err("its key is for another algorithm");
        }
        self.public.verify(parsed)
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    /// Keys for what is not ours (RSA-OAEP, PS256) do not even read.
    alg: Option<Algorithm>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    /// `None`: of a kind that we do not take, or broken.
    fn public_key(&self) -> Option<PublicKey> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => self.rsa(),
            ("EC", Some("P-256")) => PublicKey::on(Curve::P256, &self.point(32)?),
            ("EC", Some("P-384")) => PublicKey::on(Curve::P384, &self.point(48)?),
            ("EC", Some("P-521")) => PublicKey::on(Curve::P521, &self.point(66)?),
            ("OKP", Some("Ed25519")) => {
                let bytes: [u8; 32] = decode(self.x.as_deref()?)?.try_into().ok()?;
                PublicKey::on(Curve::Ed25519, &bytes)
            }
            _ => None,
        }
    }

    fn rsa(&self) -> Option<PublicKey> {
        let [n, e] = [&self.n, &self.e].map(|number| decode(number.as_deref()?));
        PublicKey::rsa(&n?, &e?).ok()
    }

    /// The point as SEC 1 §2.3.3 writes it uncompressed.
    fn point(&self, coordinate_bytes: usize) -> Option<Vec<u8>> {
        let mut point = vec![4];
        for coordinate in [&self.x, &self.y] {
            let coordinate = decode(coordinate.as_deref()?)?;
            if coordinate.len() != coordinate_bytes {
                return None;
            }
            point.extend(coordinate);
        }
        Some(point)
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
