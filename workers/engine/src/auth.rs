//! Who a client is, and what it may subscribe to, by JSON Web Tokens (RFC 7519) that the back end
//! signed (JWS compact serialisation, RFC 7515).
//!
//! Pure: tokens in, claims out; time and fetched keys come from the caller. A key has one algorithm
//! family of its own, and a token chooses among keys of the family that it names: no token can have
//! a public key taken for an HMAC secret, and there is no way to say "none".

pub mod claims;
mod jwks;
mod jws;
mod keys;

use regex::Regex;

use self::claims::Payload;
pub use self::claims::{ConnectionClaims, Overrides, SubOptions, SubscriptionClaims};
use self::jwks::Jwks;
use self::keys::Keys;
use crate::settings::{Settings, Tokens};

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Its time is over, or has not come: error 109, the client fetches a new one.
    Expired,
    /// It is none of ours, for a reason that is for the log alone.
    Invalid(&'static str),
    /// Its key is not known, but may be by now: ask [`crate::asks::AskKind::Keys`], then verify
    /// again. After the answer the same token is at most `Invalid`.
    UnknownKey,
}

/// What is wrong with the configured keys and rules.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct TokenSettingsError {
    /// The key of the configuration, such as `tokens.rsa_public_key`.
    pub key: String,
    pub reason: String,
}

/// Checks tokens by the configured keys and rules.
pub struct Verifier {
    connection: Rules,
    /// `None`: those of `connection`.
    subscription: Option<Rules>,
}

struct Rules {
    keys: Keys,
    jwks: Option<Jwks>,
    audience: Expected,
    issuer: Expected,
    /// Empty: `sub`.
    user_id_claim: String,
}

/// What a claim has to be.
enum Expected {
    Anything,
    Exactly(String),
    /// Somewhere in the text, as in the configuration files of others: anchor it.
    Matching(Regex),
}

impl Verifier {
    /// # Errors
    /// A key or a regular expression that cannot be used, by its name in the configuration.
    pub fn new(settings: &Settings) -> Result<Self, TokenSettingsError> {
        let subscription = settings.subscription_tokens.as_ref();
        Ok(Self {
            connection: Rules::new(&settings.tokens, "tokens")?,
            subscription: subscription
                .map(|tokens| Rules::new(tokens, "subscription_tokens"))
                .transpose()?,
        })
    }

    /// The claims of a connection token; `now_s` in seconds since 1970.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn connection(&self, token: &str, now_s: u64) -> Result<ConnectionClaims, TokenError> {
        let payload = self.connection.verified(token, now_s)?;
        payload.connection(&self.connection.user_id_claim)
    }

    /// The claims of a subscription token. That channel, user and client are the connection's, the
    /// caller has to see to.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn subscription(&self, token: &str, now_s: u64) -> Result<SubscriptionClaims, TokenError> {
        let rules = self.subscription.as_ref().unwrap_or(&self.connection);
        let payload = rules.verified(token, now_s)?;
        payload.subscription(&rules.user_id_claim)
    }

    /// Takes the keys that were fetched: a JSON object from URL to JSON Web Key Set (RFC 7517 §5).
    /// A set that cannot be used leaves the one before in force. Returns whether any could.
    pub fn take_keys(&mut self, body: &[u8], now_s: u64) -> bool {
        let rules = [Some(&mut self.connection), self.subscription.as_mut()];
        let mut taken = false;
        for jwks in rules
            .into_iter()
            .flatten()
            .filter_map(|rules| rules.jwks.as_mut())
        {
            taken |= jwks.take(body, now_s);
        }
        taken
    }
}

impl Rules {
    fn new(tokens: &Tokens, table: &str) -> Result<Self, TokenSettingsError> {
        let expected = |name: &str, exact: &str, regex: &str| {
            Expected::new(exact, regex).map_err(|reason| TokenSettingsError {
                key: format!("{table}.{name}_regex"),
                reason: reason.to_string(),
            })
        };
        Ok(Self {
            keys: Keys::new(tokens).map_err(|(name, reason)| TokenSettingsError {
                key: format!("{table}.{name}"),
                reason,
            })?,
            jwks: (!tokens.jwks_url.is_empty())
                .then(|| Jwks::new(tokens.jwks_url.clone(), tokens.jwks_ttl)),
            audience: expected("audience", &tokens.audience, &tokens.audience_regex)?,
            issuer: expected("issuer", &tokens.issuer, &tokens.issuer_regex)?,
            user_id_claim: tokens.user_id_claim.clone(),
        })
    }

    /// The payload of a token whose signature, times, audience and issuer are right.
    fn verified(&self, token: &str, now_s: u64) -> Result<Payload, TokenError> {
        let parsed = jws::parse(token).map_err(TokenError::Invalid)?;
        match &self.jwks {
            Some(jwks) if !parsed.algorithm.is_hmac() && parsed.key_id.is_some() => {
                jwks.verify(&parsed, now_s)?;
            }
            _ => self
                .keys
                .verify(&parsed, now_s)
                .map_err(TokenError::Invalid)?,
        }
        let payload = Payload::parse(&parsed.payload).map_err(TokenError::Invalid)?;
        payload.check_times(now_s)?;
        if !self.audience.admits(payload.audiences()) {
            return Err(TokenError::Invalid("the audience is another"));
        }
        if !self.issuer.admits(payload.issuer()) {
            return Err(TokenError::Invalid("the issuer is another"));
        }
        Ok(payload)
    }
}

impl Expected {
    fn new(exact: &str, regex: &str) -> Result<Self, regex::Error> {
        if !exact.is_empty() {
            return Ok(Self::Exactly(exact.to_string()));
        }
        if regex.is_empty() {
            return Ok(Self::Anything);
        }
        Regex::new(regex).map(Self::Matching)
    }

    fn admits<'a>(&self, claims: impl IntoIterator<Item = &'a String>) -> bool {
        let mut claims = claims.into_iter();
        match self {
            Self::Anything => true,
            Self::Exactly(text) => claims.any(|claim| claim == text),
            Self::Matching(regex) => claims.any(|claim| regex.is_match(claim)),
        }
    }
}

#[cfg(test)]
mod tests;
