//! A client of the JSON dialect over a WebSocket library that we did not write, and its tokens.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tidegate_engine::settings::{DeltaType, Namespace, RecoveryMode, Settings, Tokens};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use crate::house::{self, connect, read_until};

const SECRET: &str = "secret";

/// As other tests have them, with keys for tokens and namespaces for what is tested here.
pub fn settings() -> Settings {
    let kept = |name: &str| Namespace {
        name: name.to_string(),
        allow_subscribe_for_client: true,
        history_size: 10,
        history_ttl: Duration::from_secs(300),
        recovery: true,
        ..Namespace::default()
    };
    let namespaces = vec![
        Namespace {
            allow_publish_for_subscriber: true,
            allow_presence_for_subscriber: true,
            allow_history_for_subscriber: true,
            presence: true,
            join_leave: true,
            ..kept("chat")
        },
        Namespace {
            recovery_mode: RecoveryMode::Cache,
            ..kept("cache")
        },
        Namespace {
            allowed_delta_types: vec![DeltaType::Fossil],
            delta_publish: true,
            ..kept("delta")
        },
        Namespace {
            allow_user_limited_channels: true,
            ..Namespace {
                name: "users".to_string(),
                ..Namespace::default()
            }
        },
        Namespace {
            allow_subscribe_for_anonymous: true,
            ..kept("open")
        },
        Namespace {
            allow_publish_for_client: true,
            publish_except_sender: true,
            ..kept("echoless")
        },
        Namespace {
            name: "closed".to_string(),
            ..Namespace::default()
        },
        Namespace::default(),
    ];
    Settings {
        tokens: Tokens {
            hmac_secret: SECRET.to_string(),
            ..Tokens::default()
        },
        namespaces,
        ..house::settings()
    }
}

pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A token with these claims (RFC 7515, HS256).
pub fn token(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "HS256"})), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A token that makes its bearer `user`.
pub fn token_of(user: &str) -> String {
    token(&json!({ "sub": user }))
}

/// A subscription token of `user` for `channel`, with more claims.
pub fn channel_token(user: &str, channel: &str, more: Value) -> String {
    let mut claims = json!({"sub": user, "channel": channel});
    let all = claims.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    token(&claims)
}

/// A client that keeps what was pushed until it is asked for.
pub struct Client {
    pub socket: WebSocket<TcpStream>,
    last_id: u32,
    pushes: VecDeque<Value>,
    pub pings: usize,
}

impl Client {
    /// A connection that has said nothing yet.
    pub fn upgraded(http: SocketAddr, query: &str) -> Client {
        let mut stream = connect(http);
        write!(
            stream,
            "GET /connection/websocket{query} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let response = read_until(&mut stream, b"\r\n\r\n");
        assert!(response.starts_with(b"HTTP/1.1 101 "));
        Client {
            socket: WebSocket::from_raw_socket(stream, Role::Client, None),
            last_id: 0,
            pushes: VecDeque::new(),
            pings: 0,
        }
    }

    /// Connects with a token; returns the connect result too.
    pub fn connect(http: SocketAddr, token: &str) -> (Client, Value) {
        let mut client = Client::upgraded(http, "");
        let result = client.ask("connect", json!({ "token": token }));
        (client, result)
    }

    /// Connects as a user.
    pub fn of(http: SocketAddr, user: &str) -> Client {
        Client::connect(http, &token_of(user)).0
    }

    pub fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Says a command and returns its id.
    pub fn command(&mut self, method: &str, request: Value) -> u32 {
        self.last_id += 1;
        let command = json!({"id": self.last_id, method: request});
        self.say(&command.to_string());
        self.last_id
    }

    /// Says a command and waits for its result.
    pub fn ask(&mut self, method: &str, request: Value) -> Value {
        let reply = self.reply(method, request);
        let result = reply.get(method);
        result.unwrap_or_else(|| panic!("{reply}")).clone()
    }

    /// Says a command and waits for the number of the error that answers it.
    pub fn fails(&mut self, method: &str, request: Value) -> u64 {
        let reply = self.reply(method, request);
        let code = reply["error"]["code"].as_u64();
        code.unwrap_or_else(|| panic!("{reply}"))
    }

    pub fn reply(&mut self, method: &str, request: Value) -> Value {
        let id = self.command(method, request);
        self.reply_to(id)
    }

    pub fn reply_to(&mut self, id: u32) -> Value {
        loop {
            let message = self.next();
            if message["id"] == id {
                return message;
            }
            self.pushes.push_back(message);
        }
    }

    pub fn subscribe(&mut self, channel: &str) -> Value {
        self.ask("subscribe", json!({ "channel": channel }))
    }

    /// The next push: channel, and what it holds.
    pub fn push(&mut self) -> (String, Value) {
        let message = self.pushes.pop_front();
        let mut message = message.unwrap_or_else(|| self.next());
        let mut push = message["push"].take();
        let channel = push["channel"].as_str().unwrap_or_default().to_string();
        if let Some(all) = push.as_object_mut() {
            all.remove("channel");
        }
        (channel, push)
    }

    /// The data of the next push, which must be a publication.
    pub fn publication(&mut self) -> Value {
        let (channel, push) = self.push();
        let publication = push.get("pub");
        publication
            .unwrap_or_else(|| panic!("{channel}: {push}"))
            .clone()
    }

    /// The next message that is no ping; each ping is answered.
    fn next(&mut self) -> Value {
        loop {
            if let Some(text) = self.text() {
                return serde_json::from_str(&text).unwrap();
            }
            self.say("{}");
        }
    }

    /// The next message; `None`: a ping.
    pub fn text(&mut self) -> Option<String> {
        loop {
            match self.socket.read().unwrap() {
                Message::Text(text) if text.as_str() == "{}" => {
                    self.pings += 1;
                    return None;
                }
                Message::Text(text) => return Some(text.to_string()),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads on to the close frame: its code.
    pub fn end(mut self) -> u16 {
        loop {
            match self.socket.read().unwrap() {
                Message::Close(frame) => return frame.unwrap().code.into(),
                Message::Text(text) => assert!(!text.contains("disconnect"), "{text}"),
                _ => {}
            }
        }
    }
}
