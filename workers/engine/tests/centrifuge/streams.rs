//! Clients that listen on a stream and speak by requests of their own, and those that only listen.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use tidegate_engine::settings::Settings;

use crate::client::{settings, token_of};
use crate::house::{House, connect, read_until};

/// A stream of server-sent events, or of lines.
pub struct Stream {
    socket: TcpStream,
    marker: &'static str,
}

impl Stream {
    fn open(http: SocketAddr, request: &str, marker: &'static str) -> Stream {
        let mut socket = connect(http);
        socket.write_all(request.as_bytes()).unwrap();
        let head = read_until(&mut socket, b"\r\n\r\n");
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("no-store"), "{head}");
        Stream { socket, marker }
    }

    fn sse(http: SocketAddr, path: &str, request: &Value, headers: &str) -> Stream {
        let query: String = request
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let request = format!("GET {path}?cf_connect={query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let mut stream = Stream::open(http, &request, "data: ");
        assert_eq!(read_until(&mut stream.socket, b"\n"), b"\r\n");
        stream
    }

    pub fn lines(http: SocketAddr, path: &str, request: &Value) -> Stream {
        let body = request.to_string();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\
             Content-Type: application/json\r\n\r\n{body}"
        );
        Stream::open(http, &request, "")
    }

    /// The next message, and the id of its event.
    fn next(&mut self) -> (Value, String) {
        let mut id = String::new();
        loop {
            let line = read_until(&mut self.socket, b"\n");
            let line = String::from_utf8(line).unwrap();
            let line = line.trim_end();
            if let Some(found) = line.strip_prefix("id: ") {
                id = found.to_string();
            } else if let Some(data) = line.strip_prefix(self.marker)
                && !data.is_empty()
            {
                return (serde_json::from_str(data).unwrap(), id);
            }
        }
    }

    pub fn message(&mut self) -> Value {
        self.next().0
    }

    fn ends(mut self) {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).unwrap();
        assert!(rest.iter().all(u8::is_ascii_whitespace), "{rest:?}");
    }
}

fn post(house: &House, body: &Value) -> String {
    let body = body.to_string();
    let mut socket = connect(house.http);
    let length = body.len();
    write!(
        socket,
        "POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    response.lines().next().unwrap_or_default().to_string()
}

/// Says commands for the session that a connect result tells of.
fn emulate(house: &House, connected: &Value, commands: &[Value]) {
    let commands: Vec<String> = commands.iter().map(Value::to_string).collect();
    let body = json!({
        "session": connected["session"], "node": connected["node"],
        "data": commands.join("\n"),
    });
    assert_eq!(post(house, &body), "HTTP/1.1 204 No Content");
}

#[test]
fn a_client_listens_on_a_stream_and_speaks_beside_it() {
    let mut house = House::with(settings());
    let connect = json!({"id": 1, "connect": {"token": token_of("ann")}});
    for is_sse in [true, false] {
        let mut stream = match is_sse {
            true => Stream::sse(house.http, "/connection/sse", &connect, ""),
            false => Stream::lines(house.http, "/connection/http_stream", &connect),
        };
        let connected = stream.message()["connect"].take();
        assert_eq!(connected["pong"], true);
        assert_ne!(
            connected["session"], connected["client"],
            "others know the client"
        );
        let subscribe = json!({"id": 2, "subscribe": {"channel": "chat:a"}});
        let publish = json!({"id": 3, "publish": {"channel": "chat:a", "data": "x"}});
        emulate(&house, &connected, &[subscribe, publish]);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            seen.push(stream.message());
        }
        assert!(
            seen.iter()
                .any(|each| each["id"] == 2 && each.get("subscribe").is_some())
        );
        assert!(
            seen.iter()
                .any(|each| each["id"] == 3 && each.get("publish").is_some())
        );
        assert!(seen.iter().any(|each| each["push"]["pub"]["data"] == "x"));
        house.wait_for_count(r#"connections{transport="stream"}"#, 1);
        drop(stream);
        house.publish("chat:a", "1");
        house.wait_for_count(r#"connections{transport="stream"}"#, 0);
    }
}

#[test]
fn last_words_come_on_the_stream_and_then_its_end() {
    let house = House::with(settings());
    let connect = json!({"id": 1, "connect": {"token": "nonsense"}});
    let mut stream = Stream::sse(house.http, "/connection/sse", &connect, "");
    assert_eq!(stream.message()["push"]["disconnect"]["code"], 3500);
    stream.ends();
    let connect = json!({"id": 1, "connect": {"token": token_of("ann")}});
    let mut stream = Stream::lines(house.http, "/connection/http_stream", &connect);
    let connected = stream.message()["connect"].take();
    emulate(&house, &connected, &[json!({"id": 2, "connect": {}})]);
    assert_eq!(stream.message()["push"]["disconnect"]["code"], 3501);
    stream.ends();
}

#[test]
fn a_request_for_a_session_of_nobody_is_taken_and_one_for_another_gateway_is_not() {
    let house = House::with(settings());
    let node = Settings::default().node;
    let nobody = "00000000-0000-4000-8000-000000000000";
    let body = json!({"session": nobody, "node": node, "data": "{}"});
    assert_eq!(post(&house, &body), "HTTP/1.1 204 No Content");
    let body = json!({"session": nobody, "node": "elsewhere", "data": "{}"});
    assert_eq!(post(&house, &body), "HTTP/1.1 404 Not Found");
    assert_eq!(post(&house, &json!([])), "HTTP/1.1 400 Bad Request");
    let data = "x".repeat(settings().message_bytes_max);
    let body = json!({"session": nobody, "node": node, "data": data});
    assert_eq!(post(&house, &body), "HTTP/1.1 413 Content Too Large");
}

#[test]
fn whoever_only_listens_comes_back_to_where_it_was_in_every_channel() {
    let mut house = House::with(settings());
    let request = json!({"subs": {"open:a": {}, "open:b": {}}});
    let mut stream = Stream::sse(house.http, "/connection/uni_sse", &request, "");
    let connected = stream.message();
    assert!(
        connected["connect"]["subs"]["open:a"].is_object(),
        "{connected}"
    );
    house.publish("open:a", "1");
    house.publish("open:b", "2");
    assert_eq!(stream.message()["pub"]["data"], 1);
    let (second, id) = stream.next();
    assert_eq!(second["pub"]["data"], 2);
    drop(stream);
    house.publish("open:a", "3");
    house.publish("open:b", "4");
    let header = format!("Last-Event-ID: {id}\r\n");
    let mut stream = Stream::sse(house.http, "/connection/uni_sse", &request, &header);
    let subs = stream.message()["connect"]["subs"].take();
    for (channel, data) in [("open:a", 3), ("open:b", 4)] {
        assert_eq!(subs[channel]["recovered"], true, "{subs}");
        assert_eq!(
            subs[channel]["publications"],
            json!([{"data": data, "offset": 2}])
        );
    }
}

#[test]
fn one_way_streams_of_lines_need_no_more_than_curl() {
    let mut house = House::with(settings());
    let request = json!({"token": token_of("ann"), "subs": {"chat:a": {}, "closed:a": {}}});
    let mut stream = Stream::lines(house.http, "/connection/uni_http_stream", &request);
    let connected = stream.message()["connect"].take();
    let subs = connected["subs"].as_object().unwrap();
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["chat:a"]);
    assert_eq!(connected.get("pong"), None);
    house.publish("chat:a", "1");
    assert_eq!(stream.message()["pub"]["data"], 1);
}
