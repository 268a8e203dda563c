//! The HTTP upgrade: a request head means the same however it arrives, and its answer is whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::http::{
    HttpLimits, HttpReject, Request, parse_request, websocket_accept,
};
use tidegate_fuzz::parameters;

/// Small, so that the limits are met often.
const LIMITS: HttpLimits = HttpLimits {
    header_bytes_max: 500,
    headers_max: 10,
};

fn answer(request: &Request<'_>) -> String {
    let origins = ["https://*.tide.example".to_owned(), "*null*".to_owned()];
    let accepted = websocket_accept(request, &origins);
    if let Ok(response) = &accepted {
        assert!(response.starts_with(b"HTTP/1.1 101 ") && response.ends_with(b"\r\n\r\n"));
    }
    let connect = request.query_parameter("cf_connect");
    format!(
        "{} {} {} {accepted:?} {connect:?}",
        request.method, request.path, request.query
    )
}

/// Everything that a request head comes to; `None` while it is incomplete.
fn outcome(bytes: &[u8]) -> Option<Result<(String, usize), HttpReject>> {
    match parse_request(bytes, &LIMITS) {
        Ok(Parsed::Incomplete) => {
            assert!(bytes.len() < LIMITS.header_bytes_max);
            None
        }
        Ok(Parsed::Complete { value, consumed }) => {
            assert!(consumed <= bytes.len() && consumed <= LIMITS.header_bytes_max);
            assert_eq!(bytes[consumed - 1], b'\n');
            Some(Ok((answer(&value), consumed)))
        }
        Err(reject) => Some(Err(reject)),
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
