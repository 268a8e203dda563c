//! The messages of the unidirectional transports: one JSON connect request, then JSON pushes. Text
//! in, values out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::centrifuge::Coded;
use crate::session::Position;

/// What clients call themselves.
pub const NAME: &str = "tidegate-swarm";

#[derive(Serialize)]
struct ConnectRequest<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    token: &'a str,
    name: &'static str,
    subs: BTreeMap<&'a str, Since<'a>>,
}

/// Recovery is asked for by the three fields together; an empty object asks for what comes.
#[derive(Default, Serialize)]
pub struct Since<'a> {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    recover: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<&'a str>,
}

impl<'a> Since<'a> {
    pub fn of(position: Option<&'a Position>) -> Since<'a> {
        position.map_or_else(Since::default, |Position { epoch, offset }| Since {
            recover: true,
            offset: Some(*offset),
            epoch: Some(epoch),
        })
    }
}

/// The connect request: each channel with the position to recover from, if there is one. An empty
/// token is none.
pub fn connect_request<'a>(
    token: &str,
    subscriptions: impl Iterator<Item = (&'a str, Option<&'a Position>)>,
) -> String {
    let subs = subscriptions
        .map(|(channel, position)| (channel, Since::of(position)))
        .collect();
    let name = NAME;
    serde_json::to_string(&ConnectRequest { token, name, subs })
        .expect("a map of strings and numbers is always JSON")
}

/// A push. None of the fields: a ping.
#[derive(Debug, Deserialize)]
pub struct Push<'a> {
    #[serde(borrow, default)]
    pub channel: Cow<'a, str>,
    #[serde(borrow, rename = "pub")]
    pub publication: Option<Publication<'a>>,
    #[serde(borrow)]
    pub connect: Option<Connect<'a>>,
    pub disconnect: Option<Coded>,
}

#[derive(Debug, Deserialize)]
pub struct Publication<'a> {
    #[serde(borrow)]
    pub data: &'a RawValue,
    /// Omitted where it is 0: the channel keeps no history.
    #[serde(default)]
    pub offset: u64,
}

#[derive(Debug, Deserialize)]
pub struct Connect<'a> {
    #[serde(borrow, default)]
    pub subs: BTreeMap<Cow<'a, str>, Subscribed<'a>>,
}

/// How one subscription of the connect request was answered.
#[derive(Debug, Deserialize)]
pub struct Subscribed<'a> {
    /// Empty for a channel without history.
    #[serde(default)]
    pub epoch: Box<str>,
    /// The channel's top, or the requested offset where recovery succeeded.
    #[serde(default)]
    pub offset: u64,
    #[serde(default)]
    pub recovered: bool,
    #[serde(borrow, default)]
    pub publications: Vec<Publication<'a>>,
}

/// # Errors
/// serde's, when the text is no push.
pub fn push(text: &[u8]) -> Result<Push<'_>, serde_json::Error> {
    serde_json::from_slice(text)
}

/// The characters that RFC 3986 §2.3 allows bare in a query; all others are percent-encoded.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte as char);
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_request_asks_to_recover_only_where_a_position_is_known() {
        let position = Position {
            epoch: "0a".into(),
            offset: 5,
        };
        let request = connect_request("", [("a", None), ("b", Some(&position))].into_iter());
        let subs = r#""subs":{"a":{},"b":{"recover":true,"offset":5,"epoch":"0a"}}"#;
        assert_eq!(request, format!(r#"{{"name":"tidegate-swarm",{subs}}}"#));
        let request = connect_request("a.b.c", std::iter::empty());
        assert!(request.starts_with(r#"{"token":"a.b.c","name":"#));
    }

    #[test]
    fn every_kind_of_push_is_told_apart() {
        let ping = push(b"{}").unwrap();
        assert!(ping.publication.is_none() && ping.connect.is_none() && ping.disconnect.is_none());
        let live =
            push(br#"{"channel":"a\u0041","pub":{"data":{"sent_ns":7},"offset":3}}"#).unwrap();
        let publication = live.publication.unwrap();
        assert_eq!((&*live.channel, publication.offset), ("aA", 3));
        assert_eq!(publication.data.get(), r#"{"sent_ns":7}"#);
        let text =
            br#"{"connect":{"client":"c","subs":{"a":{"epoch":"e","offset":2,"recovered":true,
            "publications":[{"data":1,"offset":3}]}},"ping":25}}"#;
        let connect = push(text).unwrap().connect.unwrap();
        assert_eq!(connect.subs["a"].publications[0].offset, 3);
        let end = push(br#"{"disconnect":{"code":3001,"reason":"shutdown"}}"#).unwrap();
        assert_eq!(end.disconnect.unwrap().code, 3001);
        assert!(push(b"[]x").is_err());
    }

    #[test]
    fn a_query_value_is_percent_encoded() {
        assert_eq!(percent_encode(r#"{"a":1}~"#), "%7B%22a%22%3A1%7D~");
    }
}
