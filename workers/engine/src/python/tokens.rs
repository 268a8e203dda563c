//! Tokens as the engine judges them, for the configuration's check and for operators.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::auth::{TokenError, Verifier};
use crate::settings::{Settings, Tokens};

#[pyclass(module = "workers._engine")]
pub struct TokenVerifier(Verifier);

#[pymethods]
impl TokenVerifier {
    #[new]
    #[pyo3(signature = (tokens, subscription_tokens = None))]
    fn new(tokens: &str, subscription_tokens: Option<&str>) -> PyResult<Self> {
        let settings = Settings {
            tokens: parsed(tokens)?,
            subscription_tokens: subscription_tokens.map(parsed).transpose()?,
            ..Settings::default()
        };
        Verifier::new(&settings)
            .map(Self)
            .map_err(|error| PyValueError::new_err((error.key, error.reason)))
    }

    fn take_keys(&mut self, keys: &[u8], now_s: u64) -> bool {
        self.0.take_keys(keys, now_s)
    }

    fn check_connection(&self, token: &str, now_s: u64) -> Option<&'static str> {
        self.0.connection(token, now_s).err().map(reason)
    }

    fn check_subscription(&self, token: &str, now_s: u64) -> Option<&'static str> {
        self.0.subscription(token, now_s).err().map(reason)
    }
}

fn parsed(tokens: &str) -> PyResult<Tokens> {
    serde_json::from_str(tokens).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Whether a channel may be asked to match `pattern`.
#[pyfunction]
pub fn check_pattern(pattern: &str) -> PyResult<()> {
    let parsed = regex::Regex::new(pattern);
    parsed.map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(())
}

fn reason(error: TokenError) -> &'static str {
    match error {
        TokenError::Expired => "expired, or not valid yet",
        TokenError::Invalid(reason) => reason,
        TokenError::UnknownKey => "signed with a key that is not known",
    }
}
