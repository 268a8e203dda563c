//! What each endpoint opens, for whom, and what comes back before the first message.

use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::centrifuge::{Command, ConnectRequest, Encoding, Request};
use tidegate_engine::protocol::format::Format;
use tidegate_engine::protocol::http::{
    Asked, HttpReject, Opening, Rules, parse_opening, passed_on,
};
use tidegate_engine::protocol::sse::{LastEventId, Position, with_id};
use tidegate_engine::settings::Transport;

use crate::peer::{MESSAGE_BYTES_MAX, RULES};

const UPGRADE: &str = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\n";

fn request(line: &str, headers: &str, body: &str) -> String {
    format!("{line}\r\n{headers}\r\n{body}")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    let headers = format!("Host: x\r\nContent-Length: {length}\r\n{headers}");
    request(&format!("POST {path} HTTP/1.1"), &headers, body)
}

fn open_by(request: &str, rules: &Rules<'_>) -> Result<Opening, HttpReject> {
    match parse_opening(request.as_bytes(), rules).map_err(|refused| refused.reject)? {
        Parsed::Complete { value, consumed } => {
            assert_eq!(consumed, request.len());
            Ok(value)
        }
        Parsed::Incomplete => panic!("incomplete: {request}"),
    }
}

fn open(request: &str) -> Result<Opening, HttpReject> {
    open_by(request, &RULES)
}

/// The head of a response, in lines; the lines of a stream's head are those of any other.
fn lines(response: &[u8]) -> Vec<&str> {
    let text = std::str::from_utf8(response).unwrap();
    text.split_once("\r\n\r\n")
        .unwrap()
        .0
        .split("\r\n")
        .collect()
}

struct Upgraded {
    head: String,
    format: Format,
    native_pings: bool,
}

fn upgrade(target: &str, headers: &str) -> Upgraded {
    let line = format!("GET {target} HTTP/1.1");
    match open(&request(&line, &format!("{UPGRADE}{headers}"), "")) {
        Ok(Opening::WebSocket {
            response,
            format,
            native_pings,
            ..
        }) => Upgraded {
            head: String::from_utf8(response).unwrap(),
            format,
            native_pings,
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_encoding_is_chosen_by_query_or_subprotocol() {
    let path = "/connection/websocket";
    let chosen = |target: &str, headers: &str| upgrade(target, headers).format;
    assert_eq!(chosen(path, ""), Format::JsonWebSocket);
    let json = "Sec-WebSocket-Protocol: chat, centrifuge-json\r\n";
    assert_eq!(chosen(path, json), Format::JsonWebSocket);
    let protobuf = "Sec-WebSocket-Protocol: centrifuge-protobuf, centrifuge-json\r\n";
    assert_eq!(chosen(path, protobuf), Format::ProtobufWebSocket);
    for query in ["format=protobuf", "a=b&cf_protocol=protobuf"] {
        let target = format!("{path}?{query}");
        assert_eq!(chosen(&target, ""), Format::ProtobufWebSocket);
        assert_eq!(chosen(&target, json), Format::ProtobufWebSocket);
    }
    assert_eq!(
        chosen(&format!("{path}?format=xml"), ""),
        Format::JsonWebSocket
    );
    let uni = "/connection/uni_websocket?format=protobuf";
    assert_eq!(chosen(uni, protobuf), Format::UniWebSocket);
}

#[test]
fn only_a_subprotocol_that_was_asked_for_is_named() {
    let named = |headers: &str| {
        let head = upgrade("/connection/websocket", headers).head;
        let name = head.split("Sec-WebSocket-Protocol: ").nth(1);
        name.map(|rest| rest.split("\r\n").next().unwrap().to_owned())
    };
    assert_eq!(named(""), None);
    assert_eq!(named("Sec-WebSocket-Protocol: chat\r\n"), None);
    let asked = "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: centrifuge-protobuf\r\n";
    assert_eq!(named(asked).as_deref(), Some("centrifuge-protobuf"));
}

#[test]
fn native_pings_are_asked_for_by_the_query() {
    let path = "/connection/websocket";
    assert!(!upgrade(path, "").native_pings);
    assert!(!upgrade(&format!("{path}?cf_ws_frame_ping_pong=1"), "").native_pings);
    assert!(upgrade(&format!("{path}?cf_ws_frame_ping_pong=true"), "").native_pings);
}

#[test]
fn compression_is_agreed_to_where_an_offer_can_be_met() {
    let agreed = |offers: &str| {
        let headers = format!("Sec-WebSocket-Extensions: {offers}\r\n");
        let Upgraded { head, format, .. } = upgrade("/connection/websocket", &headers);
        let extension = head.split("Sec-WebSocket-Extensions: ").nth(1);
        assert_eq!(format.is_deflated(), extension.is_some());
        extension.map(|rest| rest.split("\r\n").next().unwrap().to_owned())
    };
    let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    for offers in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate;client_max_window_bits=9;server_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate; client_no_context_takeover",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
    ] {
        assert_eq!(agreed(offers).as_deref(), Some(plain), "{offers}");
    }
    let windowed = |bits: u8| Some(format!("{plain}; server_max_window_bits={bits}"));
    let offer = "permessage-deflate; server_max_window_bits=\"15\"";
    assert_eq!(agreed(offer), windowed(15));
    for bits in 9..15 {
        let offer = format!("permessage-deflate; server_max_window_bits=\"{bits}\"");
        assert_eq!(agreed(&offer), windowed(9), "{bits}");
    }
    for declined in [
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=08",
        "permessage-deflate; client_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; unheard_of",
        "deflate",
    ] {
        assert_eq!(agreed(declined), None, "{declined}");
    }
    let headers = format!("{UPGRADE}Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let asking = request("GET /connection/websocket HTTP/1.1", &headers, "");
    let without = Rules {
        compression: false,
        ..RULES
    };
    let Ok(Opening::WebSocket { format, .. }) = open_by(&asking, &without) else {
        panic!("refused");
    };
    assert_eq!(format, Format::JsonWebSocket);
}

#[test]
fn an_event_stream_takes_its_commands_from_the_query_or_the_body() {
    let target = "/connection/sse?cf_connect=%7B%7D%0A%7B%7D";
    let asked = request(&format!("GET {target} HTTP/1.1"), "Host: x\r\n", "");
    let posted = post("/connection/sse", "", "{}\n{}");
    for asking in [asked, posted] {
        let Ok(Opening::Stream {
            response,
            format,
            asked,
            ..
        }) = open(&asking)
        else {
            panic!("refused");
        };
        let pong = Command {
            id: 0,
            request: Request::Pong,
        };
        let commands = Asked::Commands(vec![pong.clone(), pong]);
        assert_eq!((format, asked), (Format::JsonSse, commands));
        assert!(response.ends_with(b"\r\n\r\n\r\n"));
        let head = lines(&response);
        assert_eq!(head[0], "HTTP/1.1 200 OK");
        for header in [
            "Content-Type: text/event-stream; charset=utf-8",
            "X-Accel-Buffering: no",
            "Cache-Control: private, no-cache, no-store, must-revalidate, max-age=0",
            "Connection: close",
        ] {
            assert!(head.contains(&header), "{header}");
        }
        // A body without a length ends with the connection.
        let of_length = |line: &&str| line.contains("Length") || line.contains("Transfer");
        assert!(!head.iter().any(of_length));
    }
    let nothing = request("GET /connection/sse HTTP/1.1", "Host: x\r\n", "");
    assert_eq!(open(&nothing), Err(HttpReject::BadRequest));
    assert_eq!(
        open(&post("/connection/sse", "", "")),
        Err(HttpReject::BadRequest)
    );
}

#[test]
fn an_event_source_needs_no_words_and_says_what_it_saw_last() {
    let positions = [Position {
        channel: "public:a",
        epoch: 7,
        offset: 300,
    }];
    let event = with_id(b"data: {}\n\n", positions.into_iter(), 99);
    let id = std::str::from_utf8(&event).unwrap().lines().next().unwrap();
    let header = id.replacen("id: ", "Last-Event-ID: ", 1);
    // nginx speaks HTTP/1.0 to what is behind it, if it is not told otherwise.
    for version in ["1.1", "1.0"] {
        let line = format!("GET /connection/uni_sse HTTP/{version}");
        let Ok(Opening::Stream {
            format,
            asked,
            last_event_id,
            ..
        }) = open(&request(&line, &format!("{header}\r\n"), ""))
        else {
            panic!("refused");
        };
        let nothing = Asked::Connect(ConnectRequest::default());
        assert_eq!((format, asked), (Format::UniSse, nothing));
        assert_eq!(last_event_id.unwrap().position("public:a"), Some((7, 300)));
    }
    let foreign = "Last-Event-ID: 42!\r\n";
    let Ok(Opening::Stream { last_event_id, .. }) =
        open(&request("GET /connection/uni_sse HTTP/1.1", foreign, ""))
    else {
        panic!("refused");
    };
    assert_eq!(last_event_id, None::<LastEventId>);
}

#[test]
fn an_http_stream_takes_its_commands_from_the_body_in_the_encoding_of_the_body() {
    let opened = |path: &str, headers: &str, body: &str| match open(&post(path, headers, body)) {
        Ok(Opening::Stream {
            response, format, ..
        }) => {
            let head = lines(&response).join("\n");
            (format, head.contains("application/octet-stream"))
        }
        other => panic!("{other:?}"),
    };
    let path = "/connection/http_stream";
    let binary = "Content-Type: Application/Octet-Stream; x=y\r\n";
    assert_eq!(opened(path, "", "{}"), (Format::JsonStream, false));
    assert_eq!(
        opened(path, "Content-Type: application/json\r\n", "{}"),
        (Format::JsonStream, false)
    );
    assert_eq!(opened(path, binary, "\0"), (Format::ProtobufStream, true));
    assert_eq!(
        opened("/connection/uni_http_stream", "", "{}"),
        (Format::UniStream, false)
    );
    for (headers, body) in [("", ""), ("", "\0"), (binary, "{}"), ("", "{}\n\n")] {
        assert_eq!(
            open(&post(path, headers, body)),
            Err(HttpReject::BadRequest)
        );
    }
    let uni = post("/connection/uni_http_stream", "", "");
    assert_eq!(open(&uni), Err(HttpReject::BadRequest));
    let asked = request("GET /connection/http_stream HTTP/1.1", "Host: x\r\n", "");
    assert_eq!(open(&asked), Err(HttpReject::NotPost));
}

#[test]
fn emulation_takes_a_body_and_answers_with_nothing() {
    let Ok(Opening::Emulation {
        cors,
        encoding,
        body,
    }) = open(&post("/emulation", "", "{\"session\":\"s\"}"))
    else {
        panic!("refused");
    };
    assert_eq!(
        (encoding, &*body),
        (Encoding::Json, &b"{\"session\":\"s\"}"[..])
    );
    assert_eq!(
        lines(&passed_on(&cors)),
        ["HTTP/1.1 204 No Content", "Connection: close"]
    );
    let binary = post(
        "/emulation",
        "Content-Type: application/octet-stream\r\n",
        "\x0A\x01s",
    );
    assert!(matches!(
        open(&binary),
        Ok(Opening::Emulation {
            encoding: Encoding::Protobuf,
            ..
        })
    ));
}

#[test]
fn the_init_endpoint_is_there_for_load_balancers() {
    let asked = request("GET /connection/init HTTP/1.0", "", "");
    let Ok(Opening::Answered { response }) = open(&asked) else {
        panic!("refused");
    };
    assert_eq!(lines(&response)[0], "HTTP/1.1 200 OK");
    assert!(response.ends_with(b"\r\n\r\n{}"));
}

#[test]
fn a_body_is_waited_for_within_bounds() {
    let whole = post("/emulation", "", "{\"session\":\"s\"}");
    let head_bytes = whole.find("\r\n\r\n").unwrap() + 4;
    for length in head_bytes..whole.len() {
        let part = parse_opening(&whole.as_bytes()[..length], &RULES);
        assert_eq!(part, Ok(Parsed::Incomplete));
    }
    // What is refused is so before the body has come.
    let announced = |headers: &str| {
        let head = request("POST /emulation HTTP/1.1", headers, "");
        let opening = parse_opening(head.as_bytes(), &RULES);
        opening.map(|_| ()).map_err(|refused| refused.reject)
    };
    let length = |bytes: usize| format!("Content-Length: {bytes}\r\n");
    assert_eq!(announced(&length(MESSAGE_BYTES_MAX)), Ok(()));
    let too_large = Err(HttpReject::BodyTooLarge);
    assert_eq!(announced(&length(MESSAGE_BYTES_MAX + 1)), too_large);
    assert_eq!(
        announced("Content-Length: 99999999999999999999999\r\n"),
        too_large
    );
    for wrong in ["-1", "+1", "0x1", "1,1", ""] {
        let header = format!("Content-Length: {wrong}\r\n");
        assert_eq!(announced(&header), Err(HttpReject::BadRequest), "{wrong}");
    }
    let twice = "Content-Length: 1\r\nContent-Length: 1\r\n";
    assert_eq!(announced(twice), Err(HttpReject::BadRequest));
    let chunked = "Transfer-Encoding: chunked\r\n";
    assert_eq!(announced(chunked), Err(HttpReject::LengthRequired));
    let both = format!("{chunked}Content-Length: 1\r\n");
    assert_eq!(announced(&both), Err(HttpReject::BadRequest));
    let waiting = "Content-Length: 1\r\nExpect: 100-continue\r\n";
    assert_eq!(announced(waiting), Err(HttpReject::ExpectationFailed));
    let upgrade = format!("{UPGRADE}Content-Length: 5\r\n");
    let smuggled = request("GET /connection/websocket HTTP/1.1", &upgrade, "frame");
    assert_eq!(open(&smuggled), Err(HttpReject::BadRequest));
}

#[test]
fn an_endpoint_that_is_switched_off_is_not_there() {
    let only_sse = Rules {
        transports: &[Transport::UniSse],
        ..RULES
    };
    let asked = request("GET /connection/uni_sse HTTP/1.1", "", "");
    assert!(open_by(&asked, &only_sse).is_ok());
    let line = "GET /connection/websocket HTTP/1.1";
    for other in [
        request(line, UPGRADE, ""),
        post("/connection/http_stream", "", "{}"),
        post("/emulation", "", "{}"),
    ] {
        assert_eq!(open_by(&other, &only_sse), Err(HttpReject::UnknownPath));
    }
}

#[test]
fn a_page_of_an_allowed_origin_may_ask_and_read() {
    let origins = ["https://app.example".to_owned()];
    let rules = Rules {
        origins_allowed: &origins,
        ..RULES
    };
    let origin = "Origin: https://app.example\r\n";
    let told = [
        "Vary: Origin",
        "Access-Control-Allow-Origin: https://app.example",
        "Access-Control-Allow-Credentials: true",
    ];
    let responses = [
        post("/connection/http_stream", origin, "{}"),
        post("/emulation", origin, "{}"),
        request("GET /connection/uni_sse HTTP/1.1", origin, ""),
        request("GET /connection/init HTTP/1.1", origin, ""),
    ];
    for asking in responses {
        let response = match open_by(&asking, &rules).unwrap() {
            Opening::Stream { response, .. } | Opening::Answered { response } => response,
            Opening::Emulation { cors, .. } => passed_on(&cors),
            Opening::WebSocket { .. } => panic!("{asking}"),
        };
        assert!(
            told.iter().all(|line| lines(&response).contains(line)),
            "{asking}"
        );
        let stranger = asking.replace("app.example", "other.example");
        assert_eq!(open_by(&stranger, &rules), Err(HttpReject::OriginRefused));
    }
}

#[test]
fn a_page_of_an_allowed_origin_may_read_why_it_is_refused() {
    let origins = ["https://app.example".to_owned()];
    let rules = Rules {
        origins_allowed: &origins,
        ..RULES
    };
    let told = "Access-Control-Allow-Origin: https://app.example";
    let refusal = |asking: &str| {
        let refused = parse_opening(asking.as_bytes(), &rules).unwrap_err();
        let response = refused.reject.response(&refused.cors);
        let is_told = lines(&response).contains(&told);
        (refused.reject, is_told)
    };
    let origin = "Origin: https://app.example\r\n";
    let too_long = format!("{origin}Content-Length: {}\r\n", MESSAGE_BYTES_MAX + 1);
    for (asking, reject) in [
        (post("/nowhere", origin, "{}"), HttpReject::UnknownPath),
        (
            request("GET /emulation HTTP/1.1", origin, ""),
            HttpReject::NotPost,
        ),
        (
            request("GET /connection/sse HTTP/1.1", origin, ""),
            HttpReject::BadRequest,
        ),
        (
            request("POST /connection/http_stream HTTP/1.1", &too_long, ""),
            HttpReject::BodyTooLarge,
        ),
        (
            request("GET /connection/websocket HTTP/1.1", origin, ""),
            HttpReject::BadHandshake,
        ),
    ] {
        assert_eq!(refusal(&asking), (reject, true), "{asking}");
        let stranger = asking.replace("app.example", "other.example");
        assert_eq!(refusal(&stranger), (HttpReject::OriginRefused, false));
    }
}

#[test]
fn a_preflight_is_answered_with_what_may_be_asked() {
    let origins = ["*".to_owned()];
    let rules = Rules {
        origins_allowed: &origins,
        ..RULES
    };
    let preflight = |path: &str| {
        let headers = "Origin: null\r\nAccess-Control-Request-Method: POST\r\n\
                       Access-Control-Request-Headers: content-type,x-a\r\n";
        match open_by(
            &request(&format!("OPTIONS {path} HTTP/1.1"), headers, ""),
            &rules,
        ) {
            Ok(Opening::Answered { response }) => Ok(String::from_utf8(response).unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(reject) => Err(reject),
        }
    };
    for path in [
        "/emulation",
        "/connection/http_stream",
        "/connection/uni_sse",
    ] {
        let response = preflight(path).unwrap();
        let head = lines(response.as_bytes());
        assert_eq!(head[0], "HTTP/1.1 204 No Content");
        for header in [
            "Access-Control-Allow-Origin: null",
            "Access-Control-Allow-Headers: content-type,x-a",
            "Access-Control-Max-Age: 300",
        ] {
            assert!(head.contains(&header), "{path} {header}");
        }
        let methods = head
            .iter()
            .find(|line| line.contains("Allow-Methods"))
            .unwrap();
        assert!(methods.contains("POST") && methods.contains("OPTIONS"));
    }
    let refused = Err(HttpReject::MethodNotAllowed);
    assert_eq!(preflight("/connection/websocket"), refused);
    assert_eq!(preflight("/nowhere"), Err(HttpReject::UnknownPath));
}
