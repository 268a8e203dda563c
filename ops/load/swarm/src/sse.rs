//! The client's side of server-sent events (WHATWG HTML §9.2): request, answer, events. Bytes in,
//! values out.

use crate::session::Failure;

/// An answer's head is small; a longer one is not from a gateway.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// As of a WebSocket frame: a connect push with all that was missed.
const EVENT_BYTES_MAX: usize = 32 << 20;
/// A longer query might not fit a server's limit of the head: what it says is the body then.
const QUERY_BYTES_MAX: usize = 2 << 10;

/// The request of a browser's `EventSource`: a GET of `path`, whose one query parameter is
/// `cf_connect` with that value, which is percent-encoded already. With the id of the last event
/// that was seen, where there is one. A value that is too long for a query makes it a POST of
/// `body`, as libraries send it that are made for that.
pub fn request(host: &str, path: &str, query: &str, body: &str, last_event_id: &str) -> Vec<u8> {
    let mut head = if query.len() <= QUERY_BYTES_MAX {
        format!("GET {path}?cf_connect={query} HTTP/1.1\r\nHost: {host}\r\n")
    } else {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n")
    };
    head.push_str("Accept: text/event-stream\r\nCache-Control: no-cache\r\n");
    if !last_event_id.is_empty() {
        head.push_str(&format!("Last-Event-ID: {last_event_id}\r\n"));
    }
    head.push_str("\r\n");
    if query.len() > QUERY_BYTES_MAX {
        head.push_str(body);
    }
    head.into_bytes()
}

/// Reads the server's answer: the bytes of its head, or `None` while it is incomplete.
///
/// # Errors
/// `Failure::Refused` with the HTTP status, `Failure::Protocol` for what is no event stream, or one
/// in chunks, which a gateway never sends.
pub fn answer(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX {
            Err(Failure::Protocol("the answer's head is too long"))
        } else {
            Ok(None)
        };
    };
    let head =
        std::str::from_utf8(&bytes[..end]).map_err(|_| Failure::Protocol("head is no UTF-8"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    match status.and_then(|status| status.parse().ok()) {
        Some(200) => {}
        Some(status) => return Err(Failure::Refused(status)),
        None => return Err(Failure::Protocol("no HTTP status")),
    }
    let mut is_stream = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Failure::Protocol("a stream in chunks"));
        }
        let of_events = value.trim_start().starts_with("text/event-stream");
        is_stream |= name.eq_ignore_ascii_case("content-type") && of_events;
    }
    match is_stream {
        true => Ok(Some(end + 4)),
        false => Err(Failure::Protocol("an answer that is no event stream")),
    }
}

/// One event with the bytes that it took, its end included.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    pub bytes: usize,
    /// `None`: nothing is to be dispatched.
    pub data: Option<&'a [u8]>,
    pub id: Option<&'a str>,
}

/// Reads the event at the beginning of `bytes`, `None` while it is incomplete.
///
/// # Errors
/// `Failure::Protocol` for an event over the bound, and for one with several lines of data: the
/// gateway's have one each.
pub fn event(bytes: &[u8]) -> Result<Option<Event<'_>>, Failure> {
    let mut event = Event::default();
    while let Some((line, line_bytes)) = line(&bytes[event.bytes..]) {
        event.bytes += line_bytes;
        if line.is_empty() {
            return Ok(Some(event));
        }
        let (name, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" if event.data.is_some() => {
                return Err(Failure::Protocol("an event with several lines of data"));
            }
            b"data" => event.data = Some(value),
            b"id" => {
                let no_text = Failure::Protocol("an event's id that is no UTF-8");
                event.id = Some(std::str::from_utf8(value).map_err(|_| no_text)?);
            }
            _ => {} // Comments, and what a listener need not know: `event`, `retry`.
        }
    }
    match bytes.len() > EVENT_BYTES_MAX {
        true => Err(Failure::Protocol("an event over the bound")),
        false => Ok(None),
    }
}

/// The first line, and how long it is with its end: LF, CR LF, or CR. A CR is an end only once it
/// is seen that no LF follows.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes
        .iter()
        .position(|&byte| matches!(byte, b'\n' | b'\r'))?;
    let end_bytes = match bytes[end..] {
        [b'\n', ..] => 1,
        [b'\r', b'\n', ..] => 2,
        [b'\r', _, ..] => 1,
        _ => return None,
    };
    Some((&bytes[..end], end + end_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_was_seen_last() {
        let text = String::from_utf8(request("host", "/p", "%7B%7D", "{}", "abc")).unwrap();
        assert!(text.starts_with("GET /p?cf_connect=%7B%7D HTTP/1.1\r\nHost: host\r\n"));
        assert!(text.ends_with("\r\nLast-Event-ID: abc\r\n\r\n"));
        let first = request("host", "/p", "", "{}", "");
        assert!(!String::from_utf8(first).unwrap().contains("Last-Event-ID"));
    }

    #[test]
    fn what_is_too_long_for_a_query_is_the_body() {
        let query = "x".repeat(QUERY_BYTES_MAX + 1);
        let text = String::from_utf8(request("host", "/p", &query, "body", "")).unwrap();
        assert!(text.starts_with("POST /p HTTP/1.1\r\n"));
        assert!(text.contains("\r\nContent-Length: 4\r\n") && text.ends_with("\r\n\r\nbody"));
    }

    #[test]
    fn an_answer_is_an_event_stream_or_refused() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
        assert_eq!(answer(head), Ok(Some(head.len())));
        assert_eq!(answer(&head[..30]), Ok(None));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\n\r\n";
        assert_eq!(answer(refused), Err(Failure::Refused(503)));
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "what\r\n\r\n",
        ] {
            let result = answer(head.as_bytes());
            assert!(matches!(result, Err(Failure::Protocol(_))), "{head}");
        }
    }

    #[test]
    fn an_event_is_read_whatever_ends_its_lines() {
        for text in [
            "id: 7\ndata: {}\n\n",
            "id:7\r\ndata:{}\r\n\r\n",
            "id: 7\rdata: {}\r\r.",
            ": comment\nevent: x\nretry: 5\nid: 7\ndata: {}\n\n",
        ] {
            let read = event(text.as_bytes()).unwrap().unwrap();
            let bytes = text.trim_end_matches('.').len();
            let (data, id) = (Some(&b"{}"[..]), Some("7"));
            assert_eq!(read, Event { bytes, data, id }, "{text:?}");
            for length in 0..bytes {
                assert_eq!(event(&text.as_bytes()[..length]), Ok(None), "{text:?}");
            }
        }
    }

    #[test]
    fn a_lone_line_end_dispatches_nothing() {
        let read = event(b"\r\ndata: {}\n\n").unwrap().unwrap();
        assert_eq!((read.bytes, read.data), (2, None));
    }

    #[test]
    fn several_lines_of_data_are_not_the_gateways() {
        let result = event(b"data: 1\ndata: 2\n\n");
        assert!(matches!(result, Err(Failure::Protocol(_))));
    }
}
