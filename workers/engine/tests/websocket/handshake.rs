//! The upgrade: who gets in, and what the others are told.

use std::collections::HashSet;

use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::http::{
    Cors, HttpReject, Opening, REJECTS, Request, Rules, parse_opening, parse_request,
};

use crate::peer::{HTTP_LIMITS as LIMITS, RULES};

const LINE: &str = "GET /connection/uni_websocket HTTP/1.1";
const HEADERS: [&str; 5] = [
    "Host: server.example.com",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
];

fn head(line: &str, headers: &[&str]) -> String {
    format!("{line}\r\n{}\r\n\r\n", headers.join("\r\n"))
}

/// The good handshake with the header of that name replaced, or left out if `with` is empty.
fn head_but(name: &str, with: &str) -> String {
    let kept = HEADERS
        .iter()
        .filter(|header| !header.starts_with(name))
        .copied();
    head(
        LINE,
        &kept
            .chain(Some(with).filter(|with| !with.is_empty()))
            .collect::<Vec<_>>(),
    )
}

fn parsed(head: &str) -> Result<Request<'_>, HttpReject> {
    match parse_request(head.as_bytes(), &LIMITS)? {
        Parsed::Complete { value, .. } => Ok(value),
        Parsed::Incomplete => panic!("incomplete: {head:?}"),
    }
}

fn accepted(head: &str, origins_allowed: &[&str]) -> Result<String, HttpReject> {
    let origins: Vec<String> = origins_allowed
        .iter()
        .map(|&pattern| pattern.into())
        .collect();
    let rules = Rules {
        origins_allowed: &origins,
        ..RULES
    };
    match parse_opening(head.as_bytes(), &rules).map_err(|refused| refused.reject)? {
        Parsed::Complete {
            value: Opening::WebSocket { response, .. },
            ..
        } => Ok(String::from_utf8(response).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(head: &str, with: HttpReject) {
    assert_eq!(accepted(head, &[]), Err(with), "{head:?}");
}

#[test]
fn the_handshake_of_rfc_6455_is_accepted() {
    assert_eq!(
        accepted(&head(LINE, &HEADERS), &[]).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
}

#[test]
fn header_names_and_tokens_are_read_in_any_case_and_as_lists() {
    let mixed = head(
        LINE,
        &[
            "HOST:x",
            "uPgRaDe: h2c, WebSocket",
            "connection: keep-alive",
            "CONNECTION:  close ,upgrade",
            "sec-websocket-key:dGhlIHNhbXBsZSBub25jZQ== ",
            "Sec-Websocket-Version: 13",
        ],
    );
    assert!(accepted(&mixed, &[]).is_ok());
    refused(
        &head_but("Connection", "Connection: not-upgrade"),
        HttpReject::BadHandshake,
    );
    refused(
        &head_but("Upgrade", "Upgrade: websockets"),
        HttpReject::BadHandshake,
    );
}

#[test]
fn a_unidirectional_client_is_promised_no_subprotocol() {
    let asking = [
        &HEADERS[..],
        &["Sec-WebSocket-Protocol: centrifuge-json, chat"],
    ]
    .concat();
    let response = accepted(&head(LINE, &asking), &[]).unwrap();
    assert!(
        !response
            .to_ascii_lowercase()
            .contains("sec-websocket-protocol")
    );
}

#[test]
fn what_is_missing_or_doubled_is_a_bad_handshake() {
    for name in ["Host", "Upgrade", "Connection", "Sec-WebSocket-Key"] {
        refused(&head_but(name, ""), HttpReject::BadHandshake);
    }
    for doubled in ["Host: b", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="] {
        refused(
            &head(LINE, &[&HEADERS[..], &[doubled]].concat()),
            HttpReject::BadHandshake,
        );
    }
    refused("GET\r\n\r\n", HttpReject::BadHandshake);
    refused(&head(LINE, &["Host : spaced"]), HttpReject::BadHandshake);
    refused(
        &head(LINE, &["Host: folded\r\n line"]),
        HttpReject::BadHandshake,
    );
}

#[test]
fn the_key_is_sixteen_bytes_in_base64() {
    for key in [
        "",
        "c2hvcnQ=",
        "dGhlIHNhbXBsZSBub25jZSB0b28gbG9uZw==",
        "!!!!!!!!!!!!!!!!!!!!!!==",
    ] {
        refused(
            &head_but("Sec-WebSocket-Key", &format!("Sec-WebSocket-Key: {key}")),
            HttpReject::BadHandshake,
        );
    }
    // The last character's unused bits are nobody's business.
    let trailing = head_but(
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==",
    );
    assert!(accepted(&trailing, &[]).is_ok());
}

#[test]
fn another_websocket_version_is_told_ours() {
    for version in [
        "",
        "Sec-WebSocket-Version: 8",
        "Sec-WebSocket-Version: 13, 8",
    ] {
        refused(
            &head_but("Sec-WebSocket-Version", version),
            HttpReject::WebSocketVersion,
        );
    }
    let response =
        String::from_utf8(HttpReject::WebSocketVersion.response(&Cors::default())).unwrap();
    assert!(response.starts_with("HTTP/1.1 426 ") && response.contains("Upgrade: websocket\r\n"));
    assert!(response.contains("Sec-WebSocket-Version: 13\r\n"));
}

#[test]
fn path_method_and_http_version_are_checked() {
    refused(
        &head("GET /connection/nowhere HTTP/1.1", &HEADERS),
        HttpReject::UnknownPath,
    );
    refused(
        &head("GET /connection/uni_websocket/ HTTP/1.1", &HEADERS),
        HttpReject::UnknownPath,
    );
    for method in ["POST", "HEAD", "get", "OPTIONS"] {
        let line = format!("{method} /connection/uni_websocket HTTP/1.1");
        refused(&head(&line, &HEADERS), HttpReject::MethodNotAllowed);
    }
    let response =
        String::from_utf8(HttpReject::MethodNotAllowed.response(&Cors::default())).unwrap();
    assert!(response.contains("\r\nAllow: GET\r\n"));
    refused(
        &head("GET /connection/uni_websocket HTTP/1.0", &HEADERS),
        HttpReject::HttpVersion,
    );
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HttpReject::HttpVersion);
    let absolute = "GET http://server.example.com:8000/connection/uni_websocket?x=1 HTTP/1.1";
    assert!(accepted(&head(absolute, &HEADERS), &[]).is_ok());
}

#[test]
fn an_origin_must_match_a_pattern_and_no_origin_needs_none() {
    let from = |origin: &str| {
        head(
            LINE,
            &[&HEADERS[..], &[format!("Origin: {origin}").as_str()]].concat(),
        )
    };
    let refused_by = |origin: &str, patterns: &[&str]| {
        assert_eq!(
            accepted(&from(origin), patterns),
            Err(HttpReject::OriginRefused),
            "{origin}"
        );
    };
    assert!(accepted(&head(LINE, &HEADERS), &["https://a.example"]).is_ok());
    refused_by("https://a.example", &[]);
    refused_by("null", &[]);
    assert!(accepted(&from("https://anything.at.all"), &["*"]).is_ok());
    assert!(
        accepted(
            &from("HTTPS://A.example"),
            &["https://b.example", "https://a.example"]
        )
        .is_ok()
    );
    refused_by("https://a.example.evil", &["https://a.example"]);
    assert!(accepted(&from("https://x.y.example"), &["https://*.example"]).is_ok());
    assert!(accepted(&from("https://a.example:8443"), &["http*://a.example:*"]).is_ok());
    refused_by("https://example", &["https://*.example"]);
    refused_by("https://a.example/", &["https://*.example"]);
    // A pattern that would explode a naive matcher.
    refused_by(&"a".repeat(4000), &[&format!("{}b", "*a".repeat(30))]);
}

#[test]
fn the_query_is_percent_decoded() {
    let target = |query: &str| head(&format!("GET /?{query} HTTP/1.1"), &["Host: x"]);
    let value = |query: &str| {
        parsed(&target(query))
            .unwrap()
            .query_parameter("cf_connect")
    };
    assert_eq!(value(""), Ok(None));
    assert_eq!(value("cf_connector=1&other=2"), Ok(None));
    assert_eq!(value("cf_connect"), Ok(Some(String::new())));
    assert_eq!(
        value("a=b&cf_connect=%7B%22subs%22%3a%7B%22t+%2b%C3%A9%22:%7B%7D%7D%7D&cf_connect=2"),
        Ok(Some(r#"{"subs":{"t +é":{}}}"#.to_owned()))
    );
    for broken in [
        "cf_connect=%",
        "cf_connect=%4",
        "cf_connect=%zz",
        "cf_connect=%C3%28",
    ] {
        assert_eq!(value(broken), Err(HttpReject::BadHandshake), "{broken}");
    }
}

#[test]
fn bytes_after_the_head_are_left_for_the_frames() {
    let pipelined = head(LINE, &HEADERS) + "\u{1}frames";
    let head_bytes = pipelined.len() - "\u{1}frames".len();
    match parse_request(pipelined.as_bytes(), &LIMITS) {
        Ok(Parsed::Complete { consumed, .. }) => assert_eq!(consumed, head_bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_head_that_has_not_ended_is_incomplete_until_it_is_too_large() {
    let whole = head(LINE, &HEADERS);
    for length in 0..whole.len() {
        let part = parse_request(&whole.as_bytes()[..length], &LIMITS);
        assert!(matches!(part, Ok(Parsed::Incomplete)), "{length}");
    }
    let endless = format!("{LINE}\r\nCookie: {}", "x".repeat(LIMITS.header_bytes_max));
    let limit = LIMITS.header_bytes_max;
    let refusal = |bytes: &[u8]| parse_request(bytes, &LIMITS).map(|_| ());
    assert_eq!(refusal(&endless.as_bytes()[..limit - 1]), Ok(()));
    assert_eq!(
        refusal(&endless.as_bytes()[..limit]),
        Err(HttpReject::HeadersTooLarge)
    );
    // Whole, but over the limit: the same answer as if it had come slowly.
    let too_long = format!("{endless}\r\n\r\n");
    assert_eq!(
        refusal(too_long.as_bytes()),
        Err(HttpReject::HeadersTooLarge)
    );
}

#[test]
fn a_flood_of_headers_is_refused() {
    let exactly = vec!["A: b"; LIMITS.headers_max];
    assert!(parsed(&head(LINE, &exactly)).is_ok());
    let one_more = vec!["A: b"; LIMITS.headers_max + 1];
    assert!(matches!(
        parsed(&head(LINE, &one_more)),
        Err(HttpReject::HeadersTooLarge)
    ));
}

#[test]
fn who_asks_for_nothing_that_is_here_is_told_what_is() {
    let response = String::from_utf8(HttpReject::UnknownPath.response(&Cors::default())).unwrap();
    assert!(
        response
            .trim_end()
            .ends_with("connect to /connection/websocket")
    );
}

#[test]
fn every_refusal_is_a_whole_response_under_a_name_of_its_own() {
    let names: HashSet<_> = REJECTS.iter().map(|reject| reject.name()).collect();
    assert_eq!(names.len(), REJECTS.len());
    for (index, reject) in REJECTS.iter().enumerate() {
        assert_eq!(reject.index(), index);
        let response = String::from_utf8(reject.response(&Cors::default())).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        assert_eq!(
            lines.next().unwrap(),
            format!("HTTP/1.1 {}", reject.status())
        );
        let headers: Vec<_> = lines.collect();
        assert!(headers.contains(&"Connection: close"));
        assert!(headers.contains(&format!("Content-Length: {}", body.len()).as_str()));
        assert!(body.ends_with('\n') && body.len() > 1);
    }
}
