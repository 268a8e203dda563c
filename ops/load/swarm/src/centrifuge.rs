//! The messages of the Centrifuge protocol, version 2, in JSON: commands as a client says them, and
//! the replies and pushes of a server. Text in, values out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::session::Position;
use crate::uni::{NAME, Publication, Since, Subscribed};

/// The id of the connect command. Subscriptions have those that follow.
pub const CONNECT_ID: u32 = 1;

/// What answers a ping.
pub const PONG: &[u8] = b"{}";

#[derive(Serialize)]
struct ConnectCommand<'a> {
    id: u32,
    connect: ConnectRequest<'a>,
}

#[derive(Serialize)]
struct ConnectRequest<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    token: &'a str,
    name: &'static str,
}

#[derive(Serialize)]
struct SubscribeCommand<'a> {
    id: u32,
    subscribe: SubscribeRequest<'a>,
}

#[derive(Serialize)]
struct SubscribeRequest<'a> {
    channel: &'a str,
    recoverable: bool,
    positioned: bool,
    #[serde(flatten)]
    since: Since<'a>,
}

/// The connect command; an empty token is none.
pub fn connect(token: &str) -> String {
    let connect = ConnectRequest { token, name: NAME };
    let id = CONNECT_ID;
    to_json(&ConnectCommand { id, connect })
}

/// The subscribe command for a channel, with the position to recover from, if there is one.
pub fn subscribe(id: u32, channel: &str, position: Option<&Position>) -> String {
    let subscribe = SubscribeRequest {
        channel,
        recoverable: true,
        positioned: true,
        since: Since::of(position),
    };
    to_json(&SubscribeCommand { id, subscribe })
}

fn to_json(command: &impl Serialize) -> String {
    serde_json::to_string(command).expect("strings and numbers are always JSON")
}

/// A reply to the command of that id, or a push. Neither: a ping.
#[derive(Debug, Deserialize)]
pub struct Reply<'a> {
    #[serde(default)]
    pub id: u32,
    pub error: Option<Coded>,
    pub connect: Option<Connected>,
    #[serde(borrow)]
    pub subscribe: Option<Subscribed<'a>>,
    #[serde(borrow)]
    pub push: Option<Push<'a>>,
}

/// Of an error, or of an end.
#[derive(Debug, Deserialize)]
pub struct Coded {
    pub code: u16,
}

#[derive(Debug, Deserialize)]
pub struct Connected {
    /// Whether pings are to be answered.
    #[serde(default)]
    pub pong: bool,
}

/// A push about a channel. Those of other kinds (joins, messages …) have neither.
#[derive(Debug, Deserialize)]
pub struct Push<'a> {
    #[serde(borrow, default)]
    pub channel: Cow<'a, str>,
    #[serde(borrow, rename = "pub")]
    pub publication: Option<Publication<'a>>,
    pub unsubscribe: Option<Coded>,
}

/// # Errors
/// serde's, when the text is no reply.
pub fn reply(text: &[u8]) -> Result<Reply<'_>, serde_json::Error> {
    serde_json::from_slice(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_named_only_where_there_is_one() {
        let bare = r#"{"id":1,"connect":{"name":"tidegate-swarm"}}"#;
        assert_eq!(connect(""), bare);
        assert!(connect("a.b.c").contains(r#""connect":{"token":"a.b.c","#));
    }

    #[test]
    fn recovery_is_asked_for_where_a_position_is_known() {
        let asked = r#""subscribe":{"channel":"a","recoverable":true,"positioned":true"#;
        assert_eq!(subscribe(2, "a", None), format!(r#"{{"id":2,{asked}}}}}"#));
        let position = Position {
            epoch: "e".into(),
            offset: 5,
        };
        let since = r#""recover":true,"offset":5,"epoch":"e""#;
        let text = subscribe(3, "a", Some(&position));
        assert_eq!(text, format!(r#"{{"id":3,{asked},{since}}}}}"#));
    }

    #[test]
    fn every_kind_of_reply_is_told_apart() {
        let text = br#"{"id":1,"connect":{"client":"c","version":"1","ping":25,"pong":true}}"#;
        assert!(reply(text).unwrap().connect.unwrap().pong);
        let text = br#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#;
        let refused = reply(text).unwrap();
        assert_eq!((refused.id, refused.error.unwrap().code), (2, 103));
        let text = br#"{"id":2,"subscribe":{"recoverable":true,"epoch":"e","offset":2,
            "recovered":true,"publications":[{"data":1,"offset":3}]}}"#;
        let granted = reply(text).unwrap().subscribe.unwrap();
        assert!(granted.recovered && granted.publications[0].offset == 3);
        let text = br#"{"push":{"channel":"a","pub":{"data":{},"offset":4}}}"#;
        let push = reply(text).unwrap().push.unwrap();
        assert_eq!((&*push.channel, push.publication.unwrap().offset), ("a", 4));
        let text = br#"{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":"x"}}}"#;
        assert_eq!(
            reply(text).unwrap().push.unwrap().unsubscribe.unwrap().code,
            2500
        );
        let text = br#"{"push":{"channel":"a","join":{"info":{"user":"","client":"c"}}}}"#;
        assert!(reply(text).unwrap().push.unwrap().publication.is_none());
        let ping = reply(b"{}").unwrap();
        assert!(ping.id == 0 && ping.push.is_none());
    }
}
