//! Where browsers may come from, and what they are told of it (WHATWG Fetch §3.2, CORS).

use super::{HttpReject, Request};

/// Header lines that let the page which asked read the answer; none where no page did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors(Vec<u8>);

/// How long a browser may remember the answer to a preflight, in seconds.
const PREFLIGHT_MAX_AGE_S: u32 = 300;

impl Cors {
    /// Browsers always name their origin, other clients never do: without one a request passes,
    /// with one it must match a pattern, in any case; `*` stands for any run of characters.
    pub(super) fn of(request: &Request<'_>, patterns: &[String]) -> Result<Self, HttpReject> {
        let Some(origin) = request.value("origin")? else {
            return Ok(Self::default());
        };
        let mut patterns = patterns.iter();
        if !patterns.any(|pattern| matches_pattern(pattern.as_bytes(), origin)) {
            return Err(HttpReject::OriginRefused);
        }
        let mut lines = b"Vary: Origin\r\nAccess-Control-Allow-Origin: ".to_vec();
        lines.extend_from_slice(origin);
        lines.extend_from_slice(b"\r\nAccess-Control-Allow-Credentials: true\r\n");
        Ok(Self(lines))
    }

    pub(super) fn lines(&self) -> &[u8] {
        &self.0
    }

    /// The answer to a preflight: the request may come, with the headers that it asks for.
    pub(super) fn preflight(&self, request: &Request<'_>, methods: &str) -> Vec<u8> {
        let mut out = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n".to_vec();
        out.extend_from_slice(&self.0);
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
