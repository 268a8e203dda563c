//! The HTTP/1.1 request that opens a WebSocket (RFC 6455 §4.2, RFC 9112) and its answer.
//!
//! One request is served per connection: it becomes a WebSocket or is refused with a status and
//! closed. Bytes after the request head stay with the caller; they are the first frames of a
//! client that did not wait.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

use super::Parsed;

/// Where unidirectional WebSocket clients connect.
pub const UNI_WEBSOCKET_PATH: &str = "/connection/uni_websocket";

/// Appended to the client's key before hashing (RFC 6455 §1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A nonce of 16 bytes, whatever the unused bits of its last character: Go clients leave them set.
const KEY_BYTES: usize = 16;
const KEY_CODEC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// What a request head may cost before it is refused with 431.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Request line, headers and the empty line, in bytes.
    pub header_bytes_max: usize,
    pub headers_max: usize,
}

/// A request head, borrowed from the input.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Without scheme, authority and query; not percent-decoded.
    pub path: &'a str,
    /// Without the question mark; not percent-decoded.
    pub query: &'a str,
    headers: Vec<httparse::Header<'a>>,
}

struct Row {
    status: &'static str,
    name: &'static str,
    remedy: &'static str,
}

macro_rules! rejects {
    ($($(#[$doc:meta])* $reject:ident = $status:literal, $name:literal, $remedy:literal;)*) => {
        /// Why an HTTP request did not become a connection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum HttpReject {
            $($(#[$doc])* $reject,)*
        }

        /// Every refusal there is, in the order of [`HttpReject::index`].
        pub const REJECTS: &[HttpReject] = &[$(HttpReject::$reject,)*];

        const TABLE: &[Row] =
            &[$(Row { status: $status, name: $name, remedy: $remedy },)*];
    };
}

rejects! {
    BadHandshake = "400 Bad Request", "bad_handshake",
        "not a WebSocket handshake (RFC 6455): use a WebSocket client";
    OriginRefused = "403 Forbidden", "origin_refused",
        "this origin may not connect: it is not in the gateway's client.allowed_origins";
    UnknownPath = "404 Not Found", "unknown_path",
        "nothing here: connect to /connection/uni_websocket";
    MethodNotAllowed = "405 Method Not Allowed", "method_not_allowed",
        "a WebSocket handshake is a GET request";
    /// The head did not arrive within `limits.handshake_timeout_s`.
    Timeout = "408 Request Timeout", "timeout",
        "the request did not arrive in time";
    WebSocketVersion = "426 Upgrade Required", "websocket_version",
        "only WebSocket version 13 is spoken here";
    HeadersTooLarge = "431 Request Header Fields Too Large", "headers_too_large",
        "too many or too long headers";
    /// `limits.connections_max` is reached.
    Full = "503 Service Unavailable", "full",
        "no room for another connection: try again later";
    HttpVersion = "505 HTTP Version Not Supported", "http_version",
        "only HTTP/1.1 is spoken here";
}

impl HttpReject {
    /// Status code and reason phrase, as in the status line.
    pub fn status(self) -> &'static str {
        TABLE[self.index()].status
    }

    /// Stable snake_case name, the label of `http_rejects_total`.
    pub fn name(self) -> &'static str {
        TABLE[self.index()].name
    }

    /// Position in [`REJECTS`], for tables of one counter each.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The whole HTTP response; the connection is to be closed after it.
    pub fn response(self) -> Vec<u8> {
        let headers = match self {
            Self::MethodNotAllowed => "Allow: GET\r\n",
            // RFC 6455 §4.4 wants the version, RFC 9110 §15.5.22 the upgrade.
            Self::WebSocketVersion => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        };
        let body = TABLE[self.index()].remedy;
        format!(
            "HTTP/1.1 {}\r\nConnection: close\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n{headers}\r\n{body}\n",
            self.status(),
            body.len() + 1,
        )
        .into_bytes()
    }
}

/// Parse a request head from the start of `bytes`. A head that is longer than the limit is refused
/// before its end was seen, so the caller never has to keep more than `header_bytes_max` bytes.
pub fn parse_request<'a>(
    bytes: &'a [u8],
    limits: &HttpLimits,
) -> Result<Parsed<Request<'a>>, HttpReject> {
    let head = &bytes[..bytes.len().min(limits.header_bytes_max)];
    let mut headers = vec![httparse::EMPTY_HEADER; limits.headers_max];
    let mut parsed = httparse::Request::new(&mut headers);
    let consumed = match parsed.parse(head) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if bytes.len() < limits.header_bytes_max => {
            return Ok(Parsed::Incomplete);
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(HttpReject::HeadersTooLarge);
        }
        Err(httparse::Error::Version) => return Err(HttpReject::HttpVersion),
        Err(_) => return Err(HttpReject::BadHandshake),
    };
    // HTTP/1.0 has neither Upgrade nor, in proxies, connections that live.
    if parsed.version != Some(1) {
        return Err(HttpReject::HttpVersion);
    }
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(HttpReject::BadHandshake);
    };
    let header_count = parsed.headers.len();
    headers.truncate(header_count);
    let (path, query) = split_target(target);
    let request = Request {
        method,
        path,
        query,
        headers,
    };
    Ok(Parsed::Complete {
        value: request,
        consumed,
    })
}

/// Path and query of a request target in origin form or in the absolute form that proxies send
/// (RFC 9112 §3.2).
fn split_target(target: &str) -> (&str, &str) {
    let after_scheme = target
        .strip_prefix("http://")
        .or_else(|| target.strip_prefix("https://"));
    let origin_form = match after_scheme {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    origin_form.split_once('?').unwrap_or((origin_form, ""))
}

impl<'a> Request<'a> {
    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// The value of a header that may occur at most once.
    fn value(&self, name: &str) -> Result<Option<&'a [u8]>, HttpReject> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(<[u8]>::trim_ascii)),
            _ => Err(HttpReject::BadHandshake),
        }
    }

    /// Whether a comma-separated list, over all headers of that name, holds `token` in any case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// A query parameter, percent-decoded; the first of its name. An encoding that is broken or
    /// not UTF-8 is a bad handshake.
    pub fn query_parameter(&self, name: &str) -> Result<Option<String>, HttpReject> {
        for pair in self.query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if key == name {
                return percent_decode(value)
                    .map(Some)
                    .ok_or(HttpReject::BadHandshake);
            }
        }
        Ok(None)
    }
}

/// Decode `%XX` and, as forms write it, `+` for a space (WHATWG URL §5.1).
fn percent_decode(text: &str) -> Option<String> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => u8::try_from(digit(bytes.next())? << 4 | digit(bytes.next())?).ok()?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

/// Check the handshake (RFC 6455 §4.2.1) and give the 101 response. No extension and no subprotocol
/// is agreed to, which by RFC 6455 §4.2.2 is said by not mentioning it.
pub fn websocket_accept(
    request: &Request<'_>,
    origins_allowed: &[String],
) -> Result<Vec<u8>, HttpReject> {
    if request.path != UNI_WEBSOCKET_PATH {
        return Err(HttpReject::UnknownPath);
    }
    if request.method != "GET" {
        return Err(HttpReject::MethodNotAllowed);
    }
    if request.value("host")?.is_none()
        || !request.has_token("upgrade", "websocket")
        || !request.has_token("connection", "upgrade")
    {
        return Err(HttpReject::BadHandshake);
    }
    if request.value("sec-websocket-version")? != Some(b"13") {
        return Err(HttpReject::WebSocketVersion);
    }
    let key = request
        .value("sec-websocket-key")?
        .ok_or(HttpReject::BadHandshake)?;
    if !KEY_CODEC
        .decode(key)
        .is_ok_and(|nonce| nonce.len() == KEY_BYTES)
    {
        return Err(HttpReject::BadHandshake);
    }
    if !origin_allowed(request.value("origin")?, origins_allowed) {
        return Err(HttpReject::OriginRefused);
    }
    let mut response = Vec::with_capacity(160);
    response.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    response.extend_from_slice(accept_key(key).as_bytes());
    response.extend_from_slice(b"\r\n\r\n");
    Ok(response)
}

fn accept_key(key: &[u8]) -> String {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key);
    hash.update(WEBSOCKET_GUID);
    STANDARD.encode(hash.digest().bytes())
}

/// Browsers always name their origin, other clients never do: without one a request passes, with
/// one it must match a pattern, in any case; `*` stands for any run of characters.
fn origin_allowed(origin: Option<&[u8]>, patterns: &[String]) -> bool {
    origin.is_none_or(|origin| {
        patterns
            .iter()
            .any(|pattern| matches_pattern(pattern.as_bytes(), origin))
    })
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
