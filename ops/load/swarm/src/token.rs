//! The tokens (JWT, RFC 7519) that clients show: one for each, signed here, for there may be
//! millions.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::Sha256;

/// `{"alg":"HS256"}` (RFC 7518 §3.2), encoded.
const HEADER: &str = "eyJhbGciOiJIUzI1NiJ9";

/// With what tokens are signed, and what they say.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// The gateway's HMAC secret.
    pub secret: String,
    /// The claim with the user's id.
    pub user_claim: String,
    /// What all of them say beside the user: audience, issuer, expiry and so on.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

impl Tokens {
    /// The token of the client of that number, the user `load-<number>`.
    pub fn sign(&self, number: u32) -> String {
        let mut claims = self.claims.clone();
        claims.insert(self.user_claim.clone(), format!("load-{number}").into());
        let claims = Value::Object(claims).to_string();
        let mut token = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes())
            .expect("a key of any length is one for HMAC (RFC 2104 §3)");
        mac.update(token.as_bytes());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()));
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_a_library_that_is_not_ours_makes_of_it() {
        let text = r#"{"secret":"secret","user_claim":"sub","claims":{"exp":1,"iss":"load"}}"#;
        let tokens: Tokens = serde_json::from_str(text).unwrap();
        // PyJWT: encode({"exp": 1, "iss": "load", "sub": "load-7"}, "secret", {"typ": None})
        let token = concat!(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjEsImlzcyI6ImxvYWQiLCJzdWIiOiJsb2FkLTcifQ",
            ".2aIEV1ePpJ-il7xCL3Fz5sl-p1ERofnKFj18sMtjSdA"
        );
        assert_eq!(tokens.sign(7), token);
    }
}
