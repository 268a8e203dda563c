//! Where browsers may come from, and what they are told of it (WHATWG Fetch §3.2, CORS).

use super::{HttpReject, Request};

/// The origin of a request that passed.
pub(super) struct Origin<'a>(Option<&'a [u8]>);

/// How long a browser may remember the answer to a preflight, in seconds.
const PREFLIGHT_MAX_AGE_S: u32 = 300;

impl<'a> Origin<'a> {
    /// Browsers always name their origin, other clients never do: without one a request passes,
    /// with one it must match a pattern, in any case; `*` stands for any run of characters.
    pub(super) fn check(request: &Request<'a>, patterns: &[String]) -> Result<Self, HttpReject> {
        let origin = request.value("origin")?;
        let passes = origin.is_none_or(|origin| {
            patterns
                .iter()
                .any(|pattern| matches_pattern(pattern.as_bytes(), origin))
        });
        passes
            .then_some(Self(origin))
            .ok_or(HttpReject::OriginRefused)
    }

    /// Append what lets the page read the response.
    pub(super) fn write_headers(&self, out: &mut Vec<u8>) {
        if let Some(origin) = self.0 {
            out.extend_from_slice(b"Vary: Origin\r\nAccess-Control-Allow-Origin: ");
            out.extend_from_slice(origin);
            out.extend_from_slice(b"\r\nAccess-Control-Allow-Credentials: true\r\n");
        }
    }

    /// The answer to a preflight: the request may come, with the headers that it asks for.
    pub(super) fn preflight(&self, request: &Request<'_>, methods: &str) -> Vec<u8> {
        let mut out = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n".to_vec();
        self.write_headers(&mut out);
        let age = format!("Access-Control-Max-Age: {PREFLIGHT_MAX_AGE_S}\r\n");
        out.extend_from_slice(age.as_bytes());
        out.extend_from_slice(format!("Access-Control-Allow-Methods: {methods}\r\n").as_bytes());
        for headers in request.values("access-control-request-headers") {
            out.extend_from_slice(b"Access-Control-Allow-Headers: ");
            out.extend_from_slice(headers);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// Greedy match that returns to the last `*` only: O(pattern × text), whatever the pattern.
fn matches_pattern(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if byte.eq_ignore_ascii_case(&text[seen]) => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star_at, star_seen)) = star else {
                    return false;
                };
                star = Some((star_at, star_seen + 1));
                at = star_at + 1;
                seen = star_seen + 1;
            }
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}
