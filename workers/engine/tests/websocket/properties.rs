//! Properties of the WebSocket and HTTP parsers over generated streams.

use crate::peer::{BINARY, CONTINUATION, FIN, PING, RULES, Reader, Seen, TEXT, frame, seen_in};
use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::http::{HttpLimits, Rules, parse_opening};

/// Feed `bytes` in pieces of the given lengths, repeated, and give what was seen.
fn seen_in_pieces(bytes: &[u8], pieces: &[usize]) -> Vec<Seen> {
    let mut reader = Reader::default();
    let mut rest = bytes;
    for &piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(piece.min(rest.len()));
        reader.feed(now);
        rest = later;
    }
    reader.seen
}

/// Frames that are mostly right: any flags and opcode, any payload.
fn some_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![
            TEXT, FIN | TEXT, BINARY, FIN | BINARY, CONTINUATION, FIN | CONTINUATION, FIN | PING,
        ]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => ".{0,40}".prop_map(String::into_bytes),
        2 => vec(any::<u8>(), 0..200),
        1 => vec(Just(b'x'), 65530..65540),
    ];
    (first, payload).prop_map(|(first, payload)| frame(first, &payload))
}

fn some_request() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "GET /connection/uni_websocket?cf_connect=%7B%7D HTTP/1.1\r\n",
        "GET http://tide.example/connection/websocket?format=protobuf HTTP/1.1\r\n",
        "GET /connection/uni_sse HTTP/1.0\r\n",
        "POST /connection/sse HTTP/1.1\r\n",
        "POST /connection/http_stream HTTP/1.1\r\n",
        "POST /emulation HTTP/1.1\r\n",
        "OPTIONS /emulation HTTP/1.1\r\n",
        "GET /connection/init HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "PRI * HTTP/2.0\r\n",
        "GET \r\n",
    ]);
    let header = prop_oneof![
        4 => prop::sample::select(vec![
            "Host: tide.example\r\n",
            "Upgrade: websocket\r\n",
            "Connection: keep-alive, Upgrade\r\n",
            "Sec-WebSocket-Version: 13\r\n",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "Origin: https://tide.example\r\n",
            "Content-Length: 9\r\n",
            "Content-Length: 40\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Content-Type: application/octet-stream\r\n",
            "Sec-WebSocket-Extensions: permessage-deflate\r\n",
            "Access-Control-Request-Headers: X-A\r\n",
            "Last-Event-ID: AAAA\r\n",
        ]).prop_map(|header| header.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..80),
    ];
    let end = prop_oneof![3 => Just("\r\n"), 1 => Just("")];
    (line, vec(header, 0..12), end, vec(any::<u8>(), 0..20)).prop_map(
        |(line, headers, end, after)| {
            [
                line.as_bytes().to_vec(),
                headers.concat(),
                end.as_bytes().to_vec(),
                after,
            ]
            .concat()
        },
    )
}

/// What a request opens, as a value that outlives the input.
fn outcome(bytes: &[u8]) -> Option<(String, usize)> {
    let origins = ["https://tide.*".to_owned()];
    let rules = Rules {
        limits: HttpLimits {
            header_bytes_max: 400,
            headers_max: 8,
        },
        body_bytes_max: 30,
        origins_allowed: &origins,
        ..RULES
    };
    match parse_opening(bytes, &rules) {
        Ok(Parsed::Incomplete) => {
            assert!(bytes.len() < 430);
            None
        }
        Ok(Parsed::Complete { value, consumed }) => Some((format!("{value:?}"), consumed)),
        Err(refused) => Some((format!("{refused:?}"), 0)),
    }
}

proptest! {
    #[test]
    fn any_split_of_a_stream_gives_the_same_events(
        frames in vec(some_frame(), 1..8),
        pieces in vec(1..300_usize, 1..20),
    ) {
        let stream = frames.concat();
        prop_assert_eq!(seen_in_pieces(&stream, &pieces), seen_in(&stream));
    }

    #[test]
    fn any_split_of_noise_gives_the_same_events(
        noise in vec(any::<u8>(), 0..600),
        pieces in vec(1..20_usize, 1..20),
    ) {
        prop_assert_eq!(seen_in_pieces(&noise, &pieces), seen_in(&noise));
    }

    #[test]
    fn a_text_cut_anywhere_is_joined_again(
        text in "\\PC{0,200}",
        cuts in vec(0.0..1.0_f64, 0..6),
    ) {
        let mut cuts: Vec<usize> =
            cuts.iter().map(|cut| (cut * text.len() as f64) as usize).collect();
        cuts.sort_unstable();
        cuts.push(text.len());
        let mut stream = Vec::new();
        let mut from = 0;
        for (index, &to) in cuts.iter().enumerate() {
            let opcode = if index == 0 { TEXT } else { CONTINUATION };
            let fin = if index + 1 == cuts.len() { FIN } else { 0 };
            stream.extend(frame(fin | opcode, &text.as_bytes()[from..to]));
            from = to;
        }
        let seen = seen_in(&stream);
        prop_assert_eq!(seen.len(), cuts.len());
        prop_assert_eq!(seen.last(), Some(&Seen::Text(text)));
    }

    #[test]
    fn a_request_head_means_the_same_however_it_arrives(request in some_request()) {
        let whole = outcome(&request);
        let by_bytes = (0..=request.len()).find_map(|length| outcome(&request[..length]));
        prop_assert_eq!(by_bytes, whole);
    }
}
