//! Round trips with a WebSocket client that we did not write.

use std::io::{self, Cursor, Read, Write};

use crate::peer::{RULES, Reader, Seen, seen_in};
use tidegate_engine::protocol::Parsed;
use tidegate_engine::protocol::close::{ALL, Close};
use tidegate_engine::protocol::http::{Opening, parse_opening};
use tidegate_engine::protocol::websocket::{Opcode, encode_close, encode_frame};
use tungstenite::handshake::client::generate_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{HandshakeError, Message, WebSocket};

/// A socket in memory: what the server sent, what the client wrote.
struct Pipe {
    from_server: Cursor<Vec<u8>>,
    to_server: Vec<u8>,
}

impl Pipe {
    fn new(from_server: Vec<u8>) -> Self {
        Self {
            from_server: Cursor::new(from_server),
            to_server: Vec::new(),
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from_server.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to_server.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn client(from_server: Vec<u8>) -> WebSocket<Pipe> {
    WebSocket::from_raw_socket(Pipe::new(from_server), Role::Client, None)
}

const LENGTHS: [usize; 12] = [0, 1, 3, 4, 7, 8, 125, 126, 127, 65535, 65536, 1000];

#[test]
fn the_client_reads_what_we_write() {
    let texts: Vec<String> = LENGTHS.iter().map(|&length| "~".repeat(length)).collect();
    let mut stream = Vec::new();
    for text in &texts {
        encode_frame(&mut stream, Opcode::Text, text.as_bytes());
        encode_frame(&mut stream, Opcode::Binary, text.as_bytes());
    }
    let mut client = client(stream);
    for text in &texts {
        assert_eq!(client.read().unwrap(), Message::text(text));
        assert_eq!(
            client.read().unwrap(),
            Message::binary(text.clone().into_bytes())
        );
    }
}

#[test]
fn we_read_what_the_client_writes() {
    let mut client = client(Vec::new());
    let mut expected = Vec::new();
    for length in LENGTHS {
        let text = "é".repeat(length / 2);
        let data: Vec<u8> = (0..length).map(|index| index as u8).collect();
        client.send(Message::text(&text)).unwrap();
        client.send(Message::binary(data.clone())).unwrap();
        expected.extend([Seen::Text(text), Seen::Binary(data)]);
    }
    client.send(Message::Ping("there?".into())).unwrap();
    expected.push(Seen::Ping(b"there?".to_vec()));
    let farewell = CloseFrame {
        code: CloseCode::Away,
        reason: "tab closed".into(),
    };
    client.close(Some(farewell)).unwrap();
    expected.push(Seen::Close(Some(1001), "tab closed".to_owned()));

    let written = &client.get_ref().to_server;
    assert_eq!(seen_in(written), expected);
    let mut reader = Reader::default();
    written.chunks(1000).for_each(|chunk| reader.feed(chunk));
    assert_eq!(reader.seen, expected);
}

#[test]
fn the_client_answers_our_ping_and_our_close() {
    for &close in ALL
        .iter()
        .filter(|&&close| close != Close::ConnectionClosed)
    {
        let mut stream = Vec::new();
        encode_frame(&mut stream, Opcode::Ping, b"tide");
        encode_close(&mut stream, &close.into());
        let mut client = client(stream);
        assert_eq!(client.read().unwrap(), Message::Ping("tide".into()));
        let Message::Close(Some(frame)) = client.read().unwrap() else {
            panic!("no close frame");
        };
        assert_eq!(
            (frame.code.into(), frame.reason.as_str()),
            (close.code(), close.reason())
        );
        client.flush().unwrap();
        let answers = seen_in(&client.get_ref().to_server);
        assert_eq!(answers[0], Seen::Pong(b"tide".to_vec()));
        assert!(matches!(answers[1], Seen::Close(Some(code), _) if code == close.code()));
    }
}

#[test]
fn the_client_takes_our_handshake() {
    let url = "ws://tide.example/connection/uni_websocket?cf_connect=%7B%7D";
    let request = tungstenite::http::Request::builder()
        .uri(url)
        .header("Host", "tide.example")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .body(())
        .unwrap();
    let started = tungstenite::client::client_with_config(
        request,
        Pipe::new(Vec::new()),
        None::<WebSocketConfig>,
    );
    let Err(HandshakeError::Interrupted(mut waiting)) = started else {
        panic!("the client must wait for an answer");
    };
    let pipe = waiting.get_mut().get_mut();
    let Ok(Parsed::Complete {
        value:
            Opening::WebSocket {
                response: mut answer,
                connect,
                ..
            },
        consumed,
    }) = parse_opening(&pipe.to_server, &RULES)
    else {
        panic!("the request must be whole");
    };
    assert_eq!(consumed, pipe.to_server.len());
    assert_eq!(connect.as_deref(), Some("{}"));
    encode_frame(&mut answer, Opcode::Text, b"first");
    pipe.from_server = Cursor::new(answer);
    let (mut client, _) = waiting.handshake().expect("the client accepts");
    assert_eq!(client.read().unwrap(), Message::text("first"));
}
