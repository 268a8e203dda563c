//! The configured keys, and how each kind of key checks a signature.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::jws::{Algorithm, Parsed};
use crate::settings::Tokens;

/// RFC 7518 §3.3: a key of 2048 bits or larger must be used.
const RSA_BITS_MIN: usize = 2048;
/// A check takes time with the square of this.
const RSA_BITS_MAX: usize = 8192;

const WRONG_SIGNATURE: &str = "its signature is wrong";
const WRONG_ALGORITHM: &str = "its key is for another algorithm";

/// A key that anybody may know, as it is for each algorithm that it is good for.
pub(super) struct PublicKey(Vec<(Algorithm, ParsedPublicKey)>);

/// What a key can be whose only algorithm is told by its curve.
#[derive(Clone, Copy)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
    Ed25519,
}

impl PublicKey {
    /// A key by its modulus and exponent, both big-endian.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        let trimmed = |number: &[u8]| {
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            number[zeros..].to_vec()
        };
        let (n, e) = (trimmed(modulus), trimmed(exponent));
        let bits = n.len() * 8;
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(format!(
                "an RSA key of {bits} bits; it takes {RSA_BITS_MIN} at least, and at most \
                 {RSA_BITS_MAX}"
            ));
        }
        let components = RsaPublicKeyComponents { n, e };
        let keys = [
            (Algorithm::Rs256, &RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::Rs384, &RSA_PKCS1_2048_8192_SHA384),
            (Algorithm::Rs512, &RSA_PKCS1_2048_8192_SHA512),
        ]
        .map(|(algorithm, parameters)| {
            let key = components.to_parsed_public_key(parameters);
            key.map(|key| (algorithm, key))
        });
        let keys = keys.into_iter().collect::<Result<_, _>>();
        keys.map(Self)
            .map_err(|error| format!("no RSA key: {error}"))
    }

    /// A key by its point, as SEC 1 §2.3.3 or RFC 8032 §5.1.2 writes it, or its whole
    /// SubjectPublicKeyInfo (RFC 5280 §4.1.2.7). `None`: it is none on this curve.
    pub fn on(curve: Curve, bytes: &[u8]) -> Option<Self> {
        let (algorithm, verification): (_, &'static dyn VerificationAlgorithm) = match curve {
            Curve::P256 => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED),
            Curve::P384 => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED),
            Curve::P521 => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED),
            Curve::Ed25519 => (Algorithm::EdDsa, &ED25519),
        };
        let key = ParsedPublicKey::new(verification, bytes).ok()?;
        Some(Self(vec![(algorithm, key)]))
    }

    /// Whether `parsed` is signed with this key, by an algorithm that it is good for.
    pub fn verify(&self, parsed: &Parsed<'_>) -> Result<(), &'static str> {
        let mut keys = self.0.iter();
        let (_, key) = keys
            .find(|(algorithm, _)| *algorithm == parsed.algorithm)
            .ok_or(WRONG_ALGORITHM)?;
        key.verify_sig(parsed.signed, &parsed.signature)
            .or(Err(WRONG_SIGNATURE))
    }
}

/// A secret that signs and checks.
struct Secret {
    keys: [(Algorithm, hmac::Key); 3],
    /// In seconds since 1970, from when on it is no more good.
    until_s: u64,
}

impl Secret {
    fn new(secret: &str, until_s: u64) -> Self {
        let key = |algorithm| hmac::Key::new(algorithm, secret.as_bytes());
        Self {
            keys: [
                (Algorithm::Hs256, key(hmac::HMAC_SHA256)),
                (Algorithm::Hs384, key(hmac::HMAC_SHA384)),
                (Algorithm::Hs512, key(hmac::HMAC_SHA512)),
            ],
            until_s,
        }
    }

    /// In constant time.
    fn verify(&self, parsed: &Parsed<'_>) -> bool {
        let mut keys = self.keys.iter();
        let key = keys.find(|(algorithm, _)| *algorithm == parsed.algorithm);
        key.is_some_and(|(_, key)| hmac::verify(key, parsed.signed, &parsed.signature).is_ok())
    }
}

/// The keys of the configuration.
pub(super) struct Keys {
    hmac: Vec<Secret>,
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
            hmac.push(Secret::new(&tokens.hmac_secret, u64::MAX));
        }
        if !tokens.hmac_previous_secret.is_empty() {
            let until_s = match tokens.hmac_previous_until_s {
                0 => u64::MAX,
                until_s => until_s,
            };
            hmac.push(Secret::new(&tokens.hmac_previous_secret, until_s));
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
        let mut secrets = self.hmac.iter().filter(|secret| now_s < secret.until_s);
        let is_right = secrets.any(|secret| secret.verify(parsed));
        is_right.then_some(()).ok_or(WRONG_SIGNATURE)
    }
}

/// What stands in a PEM of a public key (RFC 7468 §13; PKCS #1 has a label of its own).
fn der(pem: &str) -> Option<Vec<u8>> {
    let labels = ["PUBLIC KEY", "RSA PUBLIC KEY"];
    let body = labels.iter().find_map(|label| {
        pem.strip_prefix(&format!("-----BEGIN {label}-----"))?
            .strip_suffix(&format!("-----END {label}-----"))
    })?;
    let base64: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(base64).ok()
}

fn rsa_from_pem(pem: &str) -> Result<PublicKey, String> {
    let key = der(pem).and_then(|der| rsa::PublicKey::from_der(&der).ok());
    let key = key.ok_or("not an RSA public key in PEM")?;
    PublicKey::rsa(
        key.modulus().big_endian_without_leading_zero(),
        key.exponent().big_endian_without_leading_zero(),
    )
}

fn ecdsa_from_pem(pem: &str) -> Result<PublicKey, String> {
    let curves = [Curve::P256, Curve::P384, Curve::P521];
    let key = der(pem).and_then(|der| curves.iter().find_map(|it| PublicKey::on(*it, &der)));
    Ok(key.ok_or("not a public key in PEM on the curve P-256, P-384 or P-521")?)
}

fn ed25519_from_pem(pem: &str) -> Result<PublicKey, String> {
    let key = der(pem).and_then(|der| PublicKey::on(Curve::Ed25519, &der));
    Ok(key.ok_or("not an Ed25519 public key in PEM")?)
}
