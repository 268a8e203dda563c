//! What an HTTP request opens: the endpoints, who may ask for what there, and the answers.

use super::origin::Cors;
use super::upgrade::{self, Agreed};
use super::{HttpLimits, HttpReject, Refused, Request, parse_request};
use crate::protocol::Parsed;
use crate::protocol::centrifuge::{
    Command, ConnectRequest, Encoding, parse_commands, parse_uni_connect,
};
use crate::protocol::format::Format;
use crate::protocol::sse::LastEventId;
use crate::settings::Transport;

/// What is allowed here.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub limits: HttpLimits,
    /// A longer body is refused with 413.
    pub body_bytes_max: usize,
    pub origins_allowed: &'a [String],
    pub transports: &'a [Transport],
    /// Whether WebSocket messages may be compressed.
    pub compression: bool,
}

/// A request that was granted.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// After `response` the connection speaks WebSocket.
    WebSocket {
        response: Vec<u8>,
        format: Format,
        /// Pings are frames of the WebSocket protocol, which take no pong of the dialect.
        native_pings: bool,
        /// The connect request of a unidirectional client that said it with the handshake.
        connect: Option<String>,
    },
    /// After `response` come messages, and nothing more is read.
    Stream {
        response: Vec<u8>,
        format: Format,
        asked: Asked,
        last_event_id: Option<LastEventId>,
    },
    /// Commands for another connection; [`passed_on`] is the answer if they could be, and the end
    /// of this connection.
    Emulation {
        cors: Cors,
        encoding: Encoding,
        body: Vec<u8>,
    },
    /// `response` is all there is to it, and the end of this connection.
    Answered { response: Vec<u8> },
}

/// What a client of a stream says with its request, once and for all.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Commands(Vec<Command>),
    /// It is unidirectional.
    Connect(ConnectRequest),
}

impl Asked {
    fn parse(text: &[u8], format: Format) -> Result<Self, HttpReject> {
        let asked = match format.is_uni() {
            true => parse_uni_connect(text).map(Self::Connect),
            false => parse_commands(format.encoding(), text).map(Self::Commands),
        };
        asked.or(Err(HttpReject::BadRequest))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    WebSocket {
        is_uni: bool,
    },
    Sse {
        is_uni: bool,
    },
    HttpStream {
        is_uni: bool,
    },
    Emulation,
    /// For load balancers, and for clients that want a connection to exist beforehand.
    Init,
}

/// What is said before a stream: it is for this client, now, and for no cache or buffer on the way.
const STREAM_HEADERS: &str = "Connection: close\r\n\
    X-Accel-Buffering: no\r\n\
    Cache-Control: private, no-cache, no-store, must-revalidate, max-age=0\r\n\
    Pragma: no-cache\r\n\
    Expires: 0\r\n";

/// Parse a whole request, head and body, from the start of `bytes`, and answer it. What is refused
/// is so as soon as its head says it.
pub fn parse_opening(bytes: &[u8], rules: &Rules<'_>) -> Result<Parsed<Opening>, Refused> {
    let Parsed::Complete {
        value: request,
        consumed: head_bytes,
    } = parse_request(bytes, &rules.limits)?
    else {
        return Ok(Parsed::Incomplete);
    };
    let cors = Cors::of(&request, rules.origins_allowed)?;
    let opening = parse_body(bytes, head_bytes, &request, &cors, rules);
    opening.map_err(|reject| Refused { reject, cors })
}

/// The rest, once it is known that who asks may read the answer.
fn parse_body(
    bytes: &[u8],
    head_bytes: usize,
    request: &Request<'_>,
    cors: &Cors,
    rules: &Rules<'_>,
) -> Result<Parsed<Opening>, HttpReject> {
    let endpoint = endpoint(request.path)
        .filter(|endpoint| endpoint.is_served(rules.transports))
        .ok_or(HttpReject::UnknownPath)?;
    let methods = endpoint.methods();
    if request.method == "OPTIONS" && methods.contains("OPTIONS") {
        let response = cors.preflight(request, methods);
        let value = Opening::Answered { response };
        return Ok(Parsed::Complete {
            value,
            consumed: head_bytes,
        });
    }
    if !methods.split(", ").any(|each| each == request.method) {
        return Err(endpoint.wrong_method());
    }
    let consumed = head_bytes + request.body_bytes(rules.body_bytes_max)?;
    let Some(body) = bytes.get(head_bytes..consumed) else {
        return Ok(Parsed::Incomplete);
    };
    let value = open(endpoint, request, cors, body, rules)?;
    Ok(Parsed::Complete { value, consumed })
}

fn endpoint(path: &str) -> Option<Endpoint> {
    Some(match path {
        "/connection/websocket" => Endpoint::WebSocket { is_uni: false },
        "/connection/uni_websocket" => Endpoint::WebSocket { is_uni: true },
        "/connection/sse" => Endpoint::Sse { is_uni: false },
        "/connection/uni_sse" => Endpoint::Sse { is_uni: true },
        "/connection/http_stream" => Endpoint::HttpStream { is_uni: false },
        "/connection/uni_http_stream" => Endpoint::HttpStream { is_uni: true },
        "/emulation" => Endpoint::Emulation,
        "/connection/init" => Endpoint::Init,
        _ => return None,
    })
}

impl Endpoint {
    fn is_served(self, transports: &[Transport]) -> bool {
        let serves = |transport| transports.contains(&transport);
        match self {
            Self::WebSocket { is_uni: false } => serves(Transport::Websocket),
            Self::WebSocket { is_uni: true } => serves(Transport::UniWebsocket),
            Self::Sse { is_uni: false } => serves(Transport::Sse),
            Self::Sse { is_uni: true } => serves(Transport::UniSse),
            Self::HttpStream { is_uni: false } => serves(Transport::HttpStream),
            Self::HttpStream { is_uni: true } => serves(Transport::UniHttpStream),
            Self::Emulation => serves(Transport::Sse) || serves(Transport::HttpStream),
            Self::Init => true,
        }
    }

    fn methods(self) -> &'static str {
        match self {
            Self::WebSocket { .. } | Self::Init => "GET",
            Self::Sse { .. } => "GET, POST, OPTIONS",
            Self::HttpStream { .. } | Self::Emulation => "POST, OPTIONS",
        }
    }

    /// The refusal that names [`Endpoint::methods`].
    fn wrong_method(self) -> HttpReject {
        match self {
            Self::WebSocket { .. } | Self::Init => HttpReject::MethodNotAllowed,
            Self::Sse { .. } => HttpReject::NeitherGetNorPost,
            Self::HttpStream { .. } | Self::Emulation => HttpReject::NotPost,
        }
    }
}

fn open(
    endpoint: Endpoint,
    request: &Request<'_>,
    cors: &Cors,
    body: &[u8],
    rules: &Rules<'_>,
) -> Result<Opening, HttpReject> {
    let encoding = match request.has_content_type("application/octet-stream") {
        true => Encoding::Protobuf,
        false => Encoding::Json,
    };
    match endpoint {
        Endpoint::WebSocket { is_uni } => open_websocket(request, is_uni, rules.compression),
        Endpoint::Sse { is_uni } => open_sse(request, cors, body, is_uni),
        Endpoint::HttpStream { is_uni } => open_http_stream(cors, body, is_uni, encoding),
        Endpoint::Emulation => {
            let (cors, body) = (cors.clone(), body.to_vec());
            Ok(Opening::Emulation {
                cors,
                encoding,
                body,
            })
        }
        Endpoint::Init => {
            let mut response = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length: 2\r\n"
                .to_vec();
            response.extend_from_slice(cors.lines());
            response.extend_from_slice(b"\r\n{}");
            Ok(Opening::Answered { response })
        }
    }
}

fn open_websocket(
    request: &Request<'_>,
    is_uni: bool,
    compression: bool,
) -> Result<Opening, HttpReject> {
    let key = upgrade::check(request)?;
    let mut agreed = Agreed::default();
    if compression {
        agreed.deflate = upgrade::deflate(request);
    }
    let mut native_pings = false;
    let mut connect = None;
    let plain = if is_uni {
        connect = request.query_parameter("cf_connect")?;
        Format::UniWebSocket
    } else {
        agreed.subprotocol = upgrade::subprotocol(request);
        let ping_pong = request.query_parameter("cf_ws_frame_ping_pong")?;
        native_pings = ping_pong.as_deref() == Some("true");
        let by_subprotocol = agreed.subprotocol.map(|(_, encoding)| encoding);
        if by_subprotocol == Some(Encoding::Protobuf) || asks_for_protobuf(request)? {
            Format::ProtobufWebSocket
        } else {
            Format::JsonWebSocket
        }
    };
    let format = match agreed.deflate {
        Some((window, _)) => plain.deflated(window),
        None => plain,
    };
    Ok(Opening::WebSocket {
        response: upgrade::response(key, &agreed),
        format,
        native_pings,
        connect,
    })
}

fn asks_for_protobuf(request: &Request<'_>) -> Result<bool, HttpReject> {
    for name in ["format", "cf_protocol"] {
        if request.query_parameter(name)?.as_deref() == Some("protobuf") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_sse(
    request: &Request<'_>,
    cors: &Cors,
    body: &[u8],
    is_uni: bool,
) -> Result<Opening, HttpReject> {
    let format = match is_uni {
        true => Format::UniSse,
        false => Format::JsonSse,
    };
    let query = request.query_parameter("cf_connect")?.unwrap_or_default();
    let asked = match (request.method, query.as_str()) {
        ("POST", _) => Asked::parse(body, format)?,
        // Who only wants to listen needs no words.
        (_, "") if is_uni => Asked::Connect(ConnectRequest::default()),
        (_, query) => Asked::parse(query.as_bytes(), format)?,
    };
    let mut response = stream_head("text/event-stream; charset=utf-8", cors);
    // Some clients show that the stream is open only after its first bytes.
    response.extend_from_slice(b"\r\n");
    let last_event_id = request.value("last-event-id")?.and_then(LastEventId::parse);
    Ok(Opening::Stream {
        response,
        format,
        asked,
        last_event_id,
    })
}

fn open_http_stream(
    cors: &Cors,
    body: &[u8],
    is_uni: bool,
    encoding: Encoding,
) -> Result<Opening, HttpReject> {
    let (format, content_type) = match (is_uni, encoding) {
        (true, _) => (Format::UniStream, "application/json"),
        (false, Encoding::Json) => (Format::JsonStream, "application/json"),
        (false, Encoding::Protobuf) => (Format::ProtobufStream, "application/octet-stream"),
    };
    Ok(Opening::Stream {
        response: stream_head(content_type, cors),
        format,
        asked: Asked::parse(body, format)?,
        last_event_id: None,
    })
}

/// The body that follows has no length and ends with the connection (RFC 9112 §6.3): the same for
/// HTTP/1.1 and for the HTTP/1.0 that some proxies speak, so that both share their frames.
fn stream_head(content_type: &str, cors: &Cors) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{STREAM_HEADERS}");
    let mut out = head.into_bytes();
    out.extend_from_slice(cors.lines());
    out.extend_from_slice(b"\r\n");
    out
}

/// What says that the commands of an [`Opening::Emulation`] were passed on.
pub fn passed_on(cors: &Cors) -> Vec<u8> {
    let status: &[u8] = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n";
    [status, cors.lines(), b"\r\n"].concat()
}
