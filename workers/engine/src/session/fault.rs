//! Errors that answer a request and leave the connection as it is: those of the client API.

use std::borrow::Cow;

use super::permission::NameError;
use super::subscribe::SubscribeError;

/// An error of the client API: number, and whether the same request may succeed later. Those of
/// applications have numbers from 400 on.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub code: u32,
    pub temporary: bool,
    pub message: Cow<'static, str>,
}

const fn fault(code: u32, temporary: bool, message: &'static str) -> Fault {
    Fault {
        code,
        temporary,
        message: Cow::Borrowed(message),
    }
}

pub(super) const INTERNAL: Fault = fault(100, true, "internal server error");
pub(super) const UNKNOWN_CHANNEL: Fault = fault(102, false, "unknown channel");
pub(super) const DENIED: Fault = fault(103, false, "permission denied");
pub(super) const ALREADY: Fault = fault(105, false, "already subscribed");
pub(super) const LIMIT: Fault = fault(106, false, "limit exceeded");
pub(super) const BAD_REQUEST: Fault = fault(107, false, "bad request");
pub(super) const NOT_AVAILABLE: Fault = fault(108, false, "not available");
pub(super) const TOKEN_EXPIRED: Fault = fault(109, false, "token expired");
pub(super) const BUSY: Fault = fault(111, true, "too many requests");
pub(super) const UNRECOVERABLE: Fault = fault(112, false, "unrecoverable position");

impl Fault {
    /// The one that the publisher meant by a number.
    pub(super) fn of_code(code: u16) -> Self {
        match code {
            106 => LIMIT,
            107 => BAD_REQUEST,
            111 => BUSY,
            _ => INTERNAL,
        }
    }
}

impl From<SubscribeError> for Fault {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::BadName => BAD_REQUEST,
            SubscribeError::Unknown => UNKNOWN_CHANNEL,
            SubscribeError::Denied(_) => DENIED,
            SubscribeError::Already => ALREADY,
            SubscribeError::Limit => LIMIT,
            SubscribeError::Unrecoverable => UNRECOVERABLE,
            SubscribeError::Busy => BUSY,
        }
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Bad => BAD_REQUEST,
            NameError::Unknown => UNKNOWN_CHANNEL,
        }
    }
}
