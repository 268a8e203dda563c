//! Headers of a client's request that go along with every question to the application about it.

use std::collections::BTreeMap;

use super::Sessions;
use crate::protocol::Parsed;
use crate::protocol::http::{HttpLimits, parse_request};
use crate::slab::Token;

impl Sessions {
    /// Keeps the headers that the application wants to see of a request, whose whole head is at the
    /// start of `bytes`.
    pub(super) fn keep_headers(&mut self, token: Token, bytes: &[u8], limits: &HttpLimits) {
        let names = &self.settings.hooks.headers;
        if names.is_empty() {
            return;
        }
        if let Ok(Parsed::Complete { value, .. }) = parse_request(bytes, limits) {
            let headers = value.named(names);
            self.add_headers(token, headers);
        }
    }

    /// Keeps the headers that a client says in its connect request because it could not send them,
    /// as scripts in browsers cannot. They never take the place of those that it did send: a proxy
    /// in between may have set them.
    pub(super) fn keep_emulated_headers(&mut self, token: Token, headers: &[(String, String)]) {
        let names = &self.settings.hooks.headers;
        let lower_case = headers.iter().map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            (name, value.clone())
        });
        let wanted = lower_case
            .filter(|(name, _)| names.contains(name))
            .collect();
        self.add_headers(token, wanted);
    }

    fn add_headers(&mut self, token: Token, headers: Vec<(String, String)>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if headers.is_empty() {
            return;
        }
        let client = connection.identity.get_or_insert_default();
        let mut kept: BTreeMap<String, String> =
            serde_json::from_slice(&client.headers).unwrap_or_default();
        for (name, value) in headers {
            kept.entry(name).or_insert(value);
        }
        let json = serde_json::to_vec(&kept).expect("text always has a JSON form");
        client.headers = json.into();
    }
}
