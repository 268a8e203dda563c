//! The request that opens a connection of the client port (RFC 9112), and its answer.
//!
//! One request is served per connection: it becomes a WebSocket or a stream, is answered, or is
//! refused with a status and closed. Bytes after a WebSocket's request head stay with the caller;
//! they are the first frames of a client that did not wait.
//!
//! - [`opening`]: endpoints and what they answer.
//! - `upgrade`: the WebSocket handshake. `origin`: who may come from where.

mod opening;
mod origin;
mod upgrade;

use super::Parsed;

pub use opening::{Asked, Opening, Rules, parse_opening, passed_on};
pub use origin::Cors;

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
    is_http_1_0: bool,
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
    /// The body is not what the endpoint takes, or not there.
    BadRequest = "400 Bad Request", "bad_request",
        "this request has no body, or none that is understood here";
    OriginRefused = "403 Forbidden", "origin_refused",
        "this origin may not connect: it is not in the gateway's client.allowed_origins";
    UnknownPath = "404 Not Found", "unknown_path",
        "nothing here: connect to /connection/websocket";
    /// The emulation endpoint was told a session of another gateway, or of one before this.
    UnknownNode = "404 Not Found", "unknown_node",
        "this session is not of this gateway: connect anew";
    MethodNotAllowed = "405 Method Not Allowed", "method_not_allowed",
        "this takes a GET request";
    NotPost = "405 Method Not Allowed", "not_post",
        "this takes a POST request";
    NeitherGetNorPost = "405 Method Not Allowed", "neither_get_nor_post",
        "this takes a GET or a POST request";
    /// The head did not arrive within `limits.handshake_timeout_s`.
    Timeout = "408 Request Timeout", "timeout",
        "the request did not arrive in time";
    LengthRequired = "411 Length Required", "length_required",
        "the body needs a Content-Length: it is not taken in chunks";
    /// Over `limits.message_bytes_max`.
    BodyTooLarge = "413 Content Too Large", "body_too_large",
        "the body is larger than the gateway takes";
    ExpectationFailed = "417 Expectation Failed", "expectation_failed",
        "send the body without waiting";
    WebSocketVersion = "426 Upgrade Required", "websocket_version",
        "only WebSocket version 13 is spoken here";
    HeadersTooLarge = "431 Request Header Fields Too Large", "headers_too_large",
        "too many or too long headers";
    /// `limits.connections_max` is reached.
    Full = "503 Service Unavailable", "full",
        "no room for another connection: try again later";
    HttpVersion = "505 HTTP Version Not Supported", "http_version",
        "only HTTP/1.1 is spoken here, and HTTP/1.0 where no upgrade is asked for";
}

/// A request that was refused, as its client is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reject: HttpReject,
    pub cors: Cors,
}

impl From<HttpReject> for Refused {
    /// Of a client that is no page, or of which it is not known.
    fn from(reject: HttpReject) -> Self {
        Self {
            reject,
            cors: Cors::default(),
        }
    }
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
    pub fn response(self, cors: &Cors) -> Vec<u8> {
        let headers = match self {
            Self::MethodNotAllowed => "Allow: GET\r\n",
            Self::NotPost => "Allow: POST, OPTIONS\r\n",
            Self::NeitherGetNorPost => "Allow: GET, POST, OPTIONS\r\n",
            // RFC 6455 §4.4 wants the version, RFC 9110 §15.5.22 the upgrade.
            Self::WebSocketVersion => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        };
        let body = TABLE[self.index()].remedy;
        let head = format!(
            "HTTP/1.1 {}\r\nConnection: close\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n{headers}",
            self.status(),
            body.len() + 1,
        );
        let body = format!("\r\n{body}\n");
        [head.as_bytes(), cors.lines(), body.as_bytes()].concat()
    }
}

/// Requests with more headers are parsed twice: room for as many as may be is slow to get.
const HEADERS_FEW: usize = 32;

/// Parse a request head from the start of `bytes`. A head that is longer than the limit is refused
/// before its end was seen, so the caller never has to keep more than `header_bytes_max` bytes.
pub fn parse_request<'a>(
    bytes: &'a [u8],
    limits: &HttpLimits,
) -> Result<Parsed<Request<'a>>, HttpReject> {
    let head = &bytes[..bytes.len().min(limits.header_bytes_max)];
    let mut few = [httparse::EMPTY_HEADER; HEADERS_FEW];
    let few = &mut few[..limits.headers_max.min(HEADERS_FEW)];
    let is_limited = few.len() == limits.headers_max;
    let mut many = Vec::new();
    let mut parsed = httparse::Request::new(few);
    let mut status = parsed.parse(head);
    if status == Err(httparse::Error::TooManyHeaders) && !is_limited {
        many.resize(limits.headers_max, httparse::EMPTY_HEADER);
        parsed = httparse::Request::new(&mut many);
        status = parsed.parse(head);
    }
    let consumed = match status {
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
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HttpReject::BadHandshake);
    };
    let headers = parsed.headers.to_vec();
    let (path, query) = split_target(target);
    let request = Request {
        method,
        path,
        query,
        is_http_1_0: version == 0,
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

    /// The headers of `names` that there are, several of one name as the list that they stand for
    /// (RFC 9110 §5.3). What is not UTF-8 is left out.
    pub fn named(&self, names: &[String]) -> Vec<(String, String)> {
        let named = names.iter().filter_map(|name| {
            let values: Vec<&str> = self
                .values(name)
                .filter_map(|value| std::str::from_utf8(value).ok())
                .collect();
            (!values.is_empty()).then(|| (name.clone(), values.join(", ")))
        });
        named.collect()
    }

    /// The value of a header that may occur at most once.
    fn value(&self, name: &str) -> Result<Option<&'a [u8]>, HttpReject> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(<[u8]>::trim_ascii)),
            _ => Err(HttpReject::BadHandshake),
        }
    }

    /// The items of a comma-separated list, over all headers of that name.
    fn list(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.values(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
    }

    /// Whether such a list holds `token` in any case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name)
            .any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether the body is of that type, whatever its parameters.
    fn has_content_type(&self, wanted: &str) -> bool {
        let essence = |value: &'a [u8]| value.split(|&byte| byte == b';').next();
        self.values("content-type")
            .filter_map(essence)
            .any(|found| found.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
    }

    /// How long the body is (RFC 9112 §6.3).
    fn body_bytes(&self, bytes_max: usize) -> Result<usize, HttpReject> {
        let length = self
            .value("content-length")
            .or(Err(HttpReject::BadRequest))?;
        if self.values("transfer-encoding").next().is_some() {
            // Both together are how requests are smuggled (RFC 9112 §11.2).
            return Err(match length {
                Some(_) => HttpReject::BadRequest,
                None => HttpReject::LengthRequired,
            });
        }
        let Some(digits) = length else {
            return Ok(0);
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(HttpReject::BadRequest);
        }
        let length = std::str::from_utf8(digits)
            .ok()
            .and_then(|text| text.parse().ok());
        match length {
            Some(0) => Ok(0),
            Some(_) if self.method == "GET" => Err(HttpReject::BadRequest),
            Some(_) if self.has_token("expect", "100-continue") => {
                Err(HttpReject::ExpectationFailed)
            }
            Some(length) if length <= bytes_max => Ok(length),
            // Also what no integer holds.
            _ => Err(HttpReject::BodyTooLarge),
        }
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
