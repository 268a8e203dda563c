//! The configured keys, and how each kind of key checks a signature.

use hmac::{Hmac, Mac};
use p256::pkcs8::DecodePublicKey;
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::traits::PublicKeyParts;
use rsa::{Pkcs1v15Sign, RsaPublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512};
use signature::Verifier as _;

use super::jws::{Algorithm, Parsed};
use crate::settings::Tokens;

/// RFC 7518 §3.3: a key of 2048 bits or larger must be used.
const RSA_BITS_MIN: usize = 2048;
/// A check takes time with the cube of this.
pub(super) const RSA_BITS_MAX: usize = 8192;

const WRONG_SIGNATURE: &str = "its signature is wrong";

/// A key that anybody may know. The type decides which algorithms it is good for.
pub(super) enum PublicKey {
    Rsa(RsaPublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
    Ed25519(ed25519_dalek::VerifyingKey),
}

impl PublicKey {
    /// # Errors
    /// What is wrong with a key of such a size.
    pub fn rsa(key: RsaPublicKey) -> Result<Self, String> {
        let bits = key.size() * 8;
        if bits < RSA_BITS_MIN {
            return Err(format!(
                "an RSA key of {bits} bits; it takes {RSA_BITS_MIN} at least"
            ));
        }
        Ok(Self::Rsa(key))
    }

    /// Whether `parsed` is signed with this key, by an algorithm that it is good for.
    pub fn verify(&self, parsed: &Parsed<'_>) -> Result<(), &'static str> {
        let (signed, signature) = (parsed.signed, &parsed.signature[..]);
        let is_right = match (self, parsed.algorithm) {
            (Self::Rsa(key), Algorithm::Rs256) => rsa_verify::<Sha256>(key, signed, signature),
            (Self::Rsa(key), Algorithm::Rs384) => rsa_verify::<Sha384>(key, signed, signature),
            (Self::Rsa(key), Algorithm::Rs512) => rsa_verify::<Sha512>(key, signed, signature),
            (Self::P256(key), Algorithm::Es256) => {
                let signature = p256::ecdsa::Signature::from_slice(signature);
                signature.and_then(|it| key.verify(signed, &it)).is_ok()
            }
            (Self::P384(key), Algorithm::Es384) => {
                let signature = p384::ecdsa::Signature::from_slice(signature);
                signature.and_then(|it| key.verify(signed, &it)).is_ok()
            }
            (Self::P521(key), Algorithm::Es512) => {
                let signature = p521::ecdsa::Signature::from_slice(signature);
                signature.and_then(|it| key.verify(signed, &it)).is_ok()
            }
            (Self::Ed25519(key), Algorithm::EdDsa) => {
                let signature = ed25519_dalek::Signature::from_slice(signature);
                signature
                    .and_then(|it| key.verify_strict(signed, &it))
                    .is_ok()
            }
            _ => return Err("its key is for another algorithm"),
        };
        is_right.then_some(()).ok_or(WRONG_SIGNATURE)
    }
}

fn rsa_verify<D: Digest + rsa::pkcs8::AssociatedOid>(
    key: &RsaPublicKey,
    signed: &[u8],
    signature: &[u8],
) -> bool {
    let digest = D::digest(signed);
    key.verify(Pkcs1v15Sign::new::<D>(), &digest, signature)
        .is_ok()
}

/// The keys of the configuration.
pub(super) struct Keys {
    /// Secrets, each with the time in seconds since 1970 from which it is no more good.
    hmac: Vec<(Vec<u8>, u64)>,
    rsa: Option<PublicKey>,
    ecdsa: Option<PublicKey>,
    ed25519: Option<PublicKey>,
}

impl Keys {
    /// # Errors
    /// The name of the setting that cannot be used, and why.
    pub fn new(tokens: &Tokens) -> Result<Self, (&'static str, String)> {
        let mut hmac = Vec::new();
        if !tokens.hmac_secret.is_empty() {
            hmac.push((tokens.hmac_secret.clone().into_bytes(), u64::MAX));
        }
        if !tokens.hmac_previous_secret.is_empty() {
            let until_s = match tokens.hmac_previous_until_s {
                0 => u64::MAX,
                until_s => until_s,
            };
            hmac.push((tokens.hmac_previous_secret.clone().into_bytes(), until_s));
        }
        let read = |name, pem: &str, read: fn(&str) -> Result<PublicKey, String>| {
            let pem = pem.trim();
            let key = (!pem.is_empty()).then(|| read(pem)).transpose();
            key.map_err(|reason| (name, reason))
        };
        Ok(Self {
            hmac,
            rsa: read("rsa_public_key", &tokens.rsa_public_key, rsa_from_pem)?,
            ecdsa: read("ecdsa_public_key", &tokens.ecdsa_public_key, ecdsa_from_pem)?,
            ed25519: read(
                "ed25519_public_key",
                &tokens.ed25519_public_key,
                ed25519_from_pem,
            )?,
        })
    }

    pub fn verify(&self, parsed: &Parsed<'_>, now_s: u64) -> Result<(), &'static str> {
        let key = match parsed.algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                return self.verify_hmac(parsed, now_s);
            }
            Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => &self.rsa,
            Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => &self.ecdsa,
            Algorithm::EdDsa => &self.ed25519,
        };
        key.as_ref()
            .ok_or("no key for its algorithm is configured")?
            .verify(parsed)
    }

    fn verify_hmac(&self, parsed: &Parsed<'_>, now_s: u64) -> Result<(), &'static str> {
        let mut secrets = self.hmac.iter().filter(|(_, until_s)| now_s < *until_s);
        let is_right = secrets.any(|(secret, _)| match parsed.algorithm {
            Algorithm::Hs384 => hmac_verify!(Sha384, secret, parsed),
            Algorithm::Hs512 => hmac_verify!(Sha512, secret, parsed),
            _ => hmac_verify!(Sha256, secret, parsed),
        });
        is_right.then_some(()).ok_or(WRONG_SIGNATURE)
    }
}

/// In constant time, as `verify_slice` says.
macro_rules! hmac_verify {
    ($digest:ty, $secret:expr, $parsed:expr) => {
        Hmac::<$digest>::new_from_slice($secret).is_ok_and(|mac| {
            mac.chain_update($parsed.signed)
                .verify_slice(&$parsed.signature)
                .is_ok()
        })
    };
}
use hmac_verify;

fn rsa_from_pem(pem: &str) -> Result<PublicKey, String> {
    let key = RsaPublicKey::from_public_key_pem(pem)
        .or_else(|_| RsaPublicKey::from_pkcs1_pem(pem))
        .map_err(|_| "not an RSA public key in PEM".to_string())?;
    PublicKey::rsa(key)
}

fn ecdsa_from_pem(pem: &str) -> Result<PublicKey, String> {
    let p256 = || p256::ecdsa::VerifyingKey::from_public_key_pem(pem).map(PublicKey::P256);
    let p384 = || p384::ecdsa::VerifyingKey::from_public_key_pem(pem).map(PublicKey::P384);
    let p521 = || {
        p521::PublicKey::from_public_key_pem(pem).map(|key| {
            PublicKey::P521(
                p521::ecdsa::VerifyingKey::from_affine(*key.as_affine()).expect("a key"),
            )
        })
    };
    p256()
        .or_else(|_| p384())
        .or_else(|_| p521())
        .map_err(|_| "not a public key in PEM on the curve P-256, P-384 or P-521".to_string())
}

fn ed25519_from_pem(pem: &str) -> Result<PublicKey, String> {
    ed25519_dalek::VerifyingKey::from_public_key_pem(pem)
        .map(PublicKey::Ed25519)
        .map_err(|_| "not an Ed25519 public key in PEM".to_string())
}
