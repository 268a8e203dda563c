//! Requests of the client port: they mean the same however they arrive; their answers are whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::http::{
    HttpLimits, HttpReject, Opening, Refused, Rules, parse_opening, passed_on,
};
use tidegate_engine::settings::Transport;
use tidegate_fuzz::parameters;

/// Small, so that the limits are met often.
const LIMITS: HttpLimits = HttpLimits {
    header_bytes_max: 500,
    headers_max: 10,
};
const BODY_BYTES_MAX: usize = 100;

const TRANSPORTS: [Transport; 6] = [
    Transport::Websocket,
    Transport::Sse,
    Transport::HttpStream,
    Transport::UniWebsocket,
    Transport::UniSse,
    Transport::UniHttpStream,
];

fn check(opening: &Opening) {
    let (response, status, is_open) = match opening {
        Opening::WebSocket { response, .. } => (response.clone(), "101", true),
        Opening::Stream { response, .. } => (response.clone(), "200", true),
        Opening::Emulation { cors, body, .. } => {
            assert!(body.len() <= BODY_BYTES_MAX);
            (passed_on(cors), "204", false)
        }
        Opening::Answered { response } => (response.clone(), "20", false),
    };
    let after = check_response(&response, status);
    assert!(!is_open || after.is_empty() || after == "\r\n");
}

/// A whole response; returns what follows its head.
fn check_response(response: &[u8], status: &str) -> String {
    let text = String::from_utf8_lossy(response);
    assert!(text.starts_with(&format!("HTTP/1.1 {status}")));
    let (head, after) = text.split_once("\r\n\r\n").expect("a head ends");
    // What a request says must not end up as a line of the answer.
    assert!(head.split("\r\n").skip(1).all(|line| line.contains(": ")));
    after.to_owned()
}

/// Everything that a request comes to; `None` while it is incomplete.
fn outcome(bytes: &[u8]) -> Option<Result<(String, usize), HttpReject>> {
    let rules = Rules {
        limits: LIMITS,
        body_bytes_max: BODY_BYTES_MAX,
        origins_allowed: &["https://*.tide.example".to_owned(), "*null*".to_owned()],
        transports: &TRANSPORTS,
        compression: true,
    };
    match parse_opening(bytes, &rules) {
        Ok(Parsed::Incomplete) => {
            assert!(bytes.len() < LIMITS.header_bytes_max + BODY_BYTES_MAX);
            None
        }
        Ok(Parsed::Complete { value, consumed }) => {
            assert!(consumed <= bytes.len());
            check(&value);
            Some(Ok((format!("{value:?}"), consumed)))
        }
        Err(Refused { reject, cors }) => {
            check_response(&reject.response(&cors), reject.status());
            Some(Err(reject))
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, _, bytes)) = parameters(input) else {
        return;
    };
    let whole = outcome(bytes);
    let mut lengths = (0..bytes.len()).step_by(piece).chain([bytes.len()]);
    assert_eq!(lengths.find_map(|length| outcome(&bytes[..length])), whole);
});
