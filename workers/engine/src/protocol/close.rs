//! Why a connection ended: one table for the client, the log and the counters.
//!
//! Codes below 3000 are those of RFC 6455 §7.4.1, 30xx and 35xx those that Centrifuge clients know,
//! 45xx ours for violations of the binary TCP protocol. Clients derive from the code alone whether
//! to come back (see [`reconnects`]), so a new row has to be put into the range that says so.

use std::borrow::Cow;

/// Longest reason a close frame can hold: 125 bytes of a control frame less the code (RFC 6455
/// §5.5).
pub const REASON_BYTES_MAX: usize = 123;

struct Row {
    code: u16,
    name: &'static str,
    reason: &'static str,
}

macro_rules! closes {
    ($($(#[$doc:meta])* $close:ident = $code:literal, $name:literal, $reason:literal;)*) => {
        /// The reason for which a connection ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Close {
            $($(#[$doc])* $close,)*
        }

        /// Every close there is, in the order of [`Close::index`].
        pub const ALL: &[Close] = &[$(Close::$close,)*];

        const TABLE: &[Row] = &[$(Row { code: $code, name: $name, reason: $reason },)*];
    };
}

closes! {
    /// The client said goodbye, with any code of its own or none.
    Normal = 1000, "normal", "bye";
    /// A frame that RFC 6455 forbids: unmasked, reserved bits, broken fragmentation.
    ProtocolError = 1002, "protocol_error", "protocol error";
    /// A text message or close reason that is not UTF-8.
    InvalidText = 1007, "invalid_text", "invalid utf-8";
    /// Over `limits.message_bytes_max`.
    MessageTooBig = 1009, "message_too_big", "message size limit exceeded";

    /// The client vanished: end of file or a reset without goodbye. Never sent.
    ConnectionClosed = 3000, "connection_closed", "connection closed";
    /// The gateway, or the worker that serves this connection, goes away.
    Shutdown = 3001, "shutdown", "shutdown";
    InternalError = 3004, "internal_error", "internal server error";
    ConnectionExpired = 3005, "connection_expired", "connection expired";
    SubscriptionExpired = 3006, "subscription_expired", "subscription expired";
    /// Its queue passed the hard limit, or stayed over the soft one for too long.
    Slow = 3008, "slow", "slow";
    WriteError = 3009, "write_error", "write error";
    /// Publications were missed that history no longer holds.
    InsufficientState = 3010, "insufficient_state", "insufficient state";
    ForceReconnect = 3011, "force_reconnect", "force reconnect";
    /// Silent for too long: no WebSocket pong, no TCP heartbeat.
    NoPong = 3012, "no_pong", "no pong";
    TooManyRequests = 3013, "too_many_requests", "too many requests";
    StateInvalidated = 3014, "state_invalidated", "state invalidated";

    InvalidToken = 3500, "invalid_token", "invalid token";
    BadRequest = 3501, "bad_request", "bad request";
    /// Did not finish connecting within `limits.handshake_timeout_s`.
    Stale = 3502, "stale", "stale";
    ForceDisconnect = 3503, "force_disconnect", "force disconnect";
    ConnectionLimit = 3504, "connection_limit", "connection limit";
    ChannelLimit = 3505, "channel_limit", "channel limit";
    /// Data that is not JSON, in a channel of a client whose dialect is.
    InappropriateProtocol = 3506, "inappropriate_protocol", "inappropriate protocol";
    PermissionDenied = 3507, "permission_denied", "permission denied";
    NotAvailable = 3508, "not_available", "not available";
    TooManyErrors = 3509, "too_many_errors", "too many errors";

    /// By the application, with a code and a reason of its own.
    Application = 4000, "application", "disconnected by the application";

    BadMagic = 4501, "bad_magic", "bad magic";
    BadVersion = 4502, "bad_version", "protocol version not supported";
    BadType = 4503, "bad_type", "unknown frame type";
    /// A length over the limit, or one that the frame's type does not allow.
    BadLength = 4504, "bad_length", "bad length";
    BadChecksum = 4505, "bad_checksum", "bad checksum";
    BadSequence = 4506, "bad_sequence", "sequence number out of order";
    /// Acknowledges what was never sent, or goes back.
    BadAcknowledgement = 4507, "bad_acknowledgement", "bad acknowledgement";
    /// More bytes in flight than the receiver's window.
    WindowOverrun = 4508, "window_overrun", "window overrun";
    BadFragment = 4509, "bad_fragment", "bad fragment";
    /// A payload that its type's layout does not explain.
    BadPayload = 4510, "bad_payload", "bad payload";
    /// A known frame type that this state of the connection does not allow.
    UnexpectedFrame = 4511, "unexpected_frame", "frame not expected now";
    /// A varint that is cut off, over 64 bits, or not in its shortest form.
    BadVarint = 4512, "bad_varint", "bad varint";
    BadText = 4513, "bad_text", "text is not utf-8";
}

impl Close {
    /// Number on the wire: WebSocket close code, or code of the disconnect push or frame.
    pub fn code(self) -> u16 {
        TABLE[self.index()].code
    }

    /// Stable snake_case name, the label of `closes_total` and the word in the log.
    pub fn name(self) -> &'static str {
        TABLE[self.index()].name
    }

    /// Text for the client. Never valid JSON: centrifuge-js would read advice out of it.
    pub fn reason(self) -> &'static str {
        TABLE[self.index()].reason
    }

    /// Position in [`ALL`], for tables of one counter each.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether the client may come back by itself.
    pub fn reconnects(self) -> bool {
        reconnects(self.code())
    }
}

/// What a client is told at the end: the code and reason of a [`Close`], or the application's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// What it is counted as.
    pub close: Close,
    pub code: u16,
    pub reason: Cow<'static, str>,
}

impl From<Close> for Farewell {
    fn from(close: Close) -> Self {
        Self {
            close,
            code: close.code(),
            reason: Cow::Borrowed(close.reason()),
        }
    }
}

impl Farewell {
    /// What an application says. A code that is not for applications or the client protocol says
    /// no more than that it was one; a reason that clients would misread is left out.
    pub fn of_application(code: u16, reason: &str) -> Self {
        let close = ALL.iter().find(|close| close.code() == code);
        let close = *close.unwrap_or(&Close::Application);
        if !(3000..=4999).contains(&code) {
            return Self::from(Close::Application);
        }
        let is_fit = !reason.is_empty()
            && reason.len() <= REASON_BYTES_MAX
            && serde_json::from_str::<serde::de::IgnoredAny>(reason).is_err();
        let reason = match is_fit {
            true => Cow::Owned(reason.to_string()),
            false => Cow::Borrowed(close.reason()),
        };
        Self {
            close,
            code,
            reason,
        }
    }
}

/// Why a subscription ended that its client did not end itself. From 2500 on clients make it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// By the application.
    Server,
    /// Publications were missed that history no longer holds.
    InsufficientState,
    Expired,
}

impl Unsubscribed {
    pub fn code(self) -> u32 {
        match self {
            Self::Server => 2000,
            Self::InsufficientState => 2500,
            Self::Expired => 2501,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::Server => "server unsubscribe",
            Self::InsufficientState => "insufficient state",
            Self::Expired => "subscription expired",
        }
    }
}

/// The rule that Centrifuge clients apply to a close code: 3500..=3999 and 4500..=4999 are final.
/// Codes below 3000 are the transport's business and reconnect, save 1009: the same client would
/// send the same message again.
pub fn reconnects(code: u16) -> bool {
    !matches!(code, 1009 | 3500..=3999 | 4500..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_and_names_are_unique_and_ascending() {
        let names: HashSet<_> = ALL.iter().map(|close| close.name()).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        assert_eq!(ALL.len(), TABLE.len());
        for (index, close) in ALL.iter().enumerate() {
            assert_eq!(close.index(), index);
        }
    }

    #[test]
    fn names_are_metric_labels() {
        for close in ALL {
            let letters = |b: u8| b.is_ascii_lowercase() || b == b'_';
            assert!(close.name().bytes().all(letters), "{}", close.name());
        }
    }

    #[test]
    fn reasons_fit_a_close_frame_and_are_never_json() {
        for close in ALL {
            let reason = close.reason();
            assert!(!reason.is_empty() && reason.len() <= REASON_BYTES_MAX);
            assert!(
                serde_json::from_str::<serde_json::Value>(reason).is_err(),
                "{reason}"
            );
        }
    }

    #[test]
    fn an_application_says_what_clients_can_take() {
        let own = Farewell::of_application(4242, "bought elsewhere");
        assert_eq!((own.close, own.code), (Close::Application, 4242));
        assert_eq!(own.reason, "bought elsewhere");
        let known = Farewell::of_application(3503, "");
        assert_eq!(known, Close::ForceDisconnect.into());
        assert_eq!(
            Farewell::of_application(1000, "x"),
            Close::Application.into()
        );
        for misread in ["true", "{\"reconnect\": false}", &"x".repeat(124)] {
            let farewell = Farewell::of_application(4242, misread);
            assert_eq!(farewell.reason, Close::Application.reason());
        }
    }

    #[test]
    fn the_reconnect_rule_follows_the_ranges() {
        for (code, expected) in [
            (1000, true),
            (1002, true),
            (1009, false),
            (3000, true),
            (3499, true),
            (3500, false),
            (3999, false),
            (4000, true),
            (4499, true),
            (4500, false),
            (4999, false),
            (5000, true),
        ] {
            assert_eq!(reconnects(code), expected, "{code}");
        }
        assert!(Close::Shutdown.reconnects() && Close::Slow.reconnects());
        assert!(!Close::BadRequest.reconnects() && !Close::BadMagic.reconnects());
    }
}
