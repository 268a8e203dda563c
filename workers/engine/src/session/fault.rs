//! Errors that answer a request and leave the connection as it is: those of the client API.

use super::subscribe::SubscribeError;

/// An error of the client API: number, and whether the same request may succeed later.
pub(super) struct Fault {
    pub code: u16,
    pub temporary: bool,
    pub message: &'static str,
}

const fn fault(code: u16, temporary: bool, message: &'static str) -> Fault {
    Fault {
        code,
        temporary,
        message,
    }
}

pub(super) const INTERNAL: Fault = fault(100, true, "internal server error");
pub(super) const UNKNOWN_CHANNEL: Fault = fault(102, false, "unknown channel");
pub(super) const DENIED: Fault = fault(103, false, "permission denied");
pub(super) const ALREADY: Fault = fault(105, false, "already subscribed");
pub(super) const LIMIT: Fault = fault(106, false, "limit exceeded");
pub(super) const BAD_REQUEST: Fault = fault(107, false, "bad request");
pub(super) const NOT_AVAILABLE: Fault = fault(108, false, "not available");
pub(super) const BUSY: Fault = fault(111, true, "too many requests");

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
            SubscribeError::Denied => DENIED,
            SubscribeError::Already => ALREADY,
            SubscribeError::Limit => LIMIT,
        }
    }
}
