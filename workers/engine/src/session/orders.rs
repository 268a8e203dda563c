//! Orders of back ends to the connections of a user: they come by the log, so that every worker has
//! each, and does it to the connections that it serves.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Sessions;
use super::recovery::epoch_text;
use super::subscribe::{Asked, terms};
use crate::auth::Overrides;
use crate::client::{Expiry, Traits};
use crate::connection::{Phase, parse_uuid};
use crate::metrics::Count;
use crate::protocol::centrifuge::Push;
use crate::protocol::close::{Close, Farewell, Unsubscribed};
use crate::slab::Token;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    Subscribe,
    Unsubscribe,
    Disconnect,
    Refresh,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Since {
    offset: u64,
    epoch: String,
}

/// What is ordered, and to whom: all connections of `user`, of these the one that `client` or
/// `session` names.
#[derive(Debug, Deserialize)]
struct Order {
    op: Act,
    #[serde(default)]
    user: String,
    #[serde(default)]
    client: String,
    #[serde(default)]
    session: String,
    /// Empty, of an unsubscribe: all.
    #[serde(default)]
    channel: String,
    #[serde(default)]
    info: Option<Box<RawValue>>,
    #[serde(default)]
    data: Option<Box<RawValue>>,
    #[serde(default)]
    recover_since: Option<Since>,
    #[serde(default)]
    expire_at: Option<u64>,
    #[serde(default)]
    expired: bool,
    #[serde(default)]
    presence: Option<bool>,
    #[serde(default)]
    join_leave: Option<bool>,
    #[serde(default)]
    force_push_join_leave: Option<bool>,
    #[serde(default)]
    force_recovery: Option<bool>,
    #[serde(default)]
    force_positioning: Option<bool>,
    /// Clients that are not to be disconnected.
    #[serde(default)]
    whitelist: Vec<String>,
    #[serde(default)]
    code: u32,
    #[serde(default)]
    reason: String,
}

fn bytes(json: Option<&RawValue>) -> Vec<u8> {
    json.map_or_else(Vec::new, |json| json.get().as_bytes().to_vec())
}

impl Sessions {
    /// Does what a back end has ordered; with `among`, to these connections alone.
    pub(super) fn ordered(&mut self, json: &[u8], among: Option<&[Token]>) {
        let Ok(order) = serde_json::from_slice::<Order>(json) else {
            // Of a later release, or of nobody that keeps to the rules.
            self.metrics.add(Count::OrdersInvalid, 1);
            return;
        };
        for token in self.meant(&order) {
            if among.is_some_and(|among| !among.contains(&token)) {
                continue;
            }
            self.metrics.add(Count::Orders, 1);
            match order.op {
                Act::Subscribe => self.order_subscribe(token, &order),
                Act::Unsubscribe => self.order_unsubscribe(token, &order),
                Act::Disconnect => {
                    let code = u16::try_from(order.code).unwrap_or(0);
                    let farewell = match code {
                        0 => Close::ForceDisconnect.into(),
                        _ => Farewell::of_application(code, &order.reason),
                    };
                    self.condemn(token, farewell);
                }
                Act::Refresh if order.expired => self.condemn(token, Close::ConnectionExpired),
                Act::Refresh => {
                    let expire_at = order.expire_at.unwrap_or(0);
                    self.refreshed(token, expire_at, bytes(order.info.as_deref()));
                }
            }
        }
    }

    /// The connections that an order is for.
    fn meant(&mut self, order: &Order) -> Vec<Token> {
        let client = parse_uuid(&order.client);
        let session = parse_uuid(&order.session);
        let names_one = !order.client.is_empty() || !order.session.is_empty();
        let all = match order.user.as_str() {
            "" if !names_one => return Vec::new(),
            "" => self.connections.tokens().collect(),
            user => self.connections_of(user),
        };
        let spared: Vec<_> = order
            .whitelist
            .iter()
            .filter_map(|id| parse_uuid(id))
            .collect();
        let is_meant = |token: &Token| {
            let connection = self.connections.get_mut(*token)?;
            let identity = connection.identity.as_ref();
            // Whoever knows of no session of its own was told its client's id as one.
            let own = identity.map_or(connection.client, |client| client.session);
            let is_it = connection.phase == Phase::Open
                && (order.client.is_empty() || client == Some(connection.client))
                && (order.session.is_empty() || session == Some(own))
                && !spared.contains(&connection.client);
            is_it.then_some(())
        };
        let mut is_meant = is_meant;
        all.into_iter()
            .filter(|token| is_meant(token).is_some())
            .collect()
    }

    pub(super) fn connections_of(&mut self, user: &str) -> Vec<Token> {
        let places = self.directory.user(user).to_vec();
        let tokens = places
            .into_iter()
            .filter_map(|place| self.connections.token(place));
        let tokens: Vec<Token> = tokens.collect();
        tokens
            .into_iter()
            .filter(|token| {
                let connection = self.connections.get_mut(*token);
                connection.is_some_and(|each| each.user() == user)
            })
            .collect()
    }

    fn order_subscribe(&mut self, token: Token, order: &Order) {
        if self.admissible(token, &order.channel).is_err() {
            return;
        }
        let connection = self.connections.get_mut(token);
        if connection.is_none_or(|each| each.is_tcp()) {
            return;
        }
        let Ok(namespace) = self.names.namespace(&self.settings, &order.channel) else {
            return;
        };
        let overrides = Overrides {
            presence: order.presence,
            join_leave: order.join_leave,
            force_push_join_leave: order.force_push_join_leave,
            force_recovery: order.force_recovery,
            force_positioning: order.force_positioning,
        };
        let asked = Asked {
            positioned: true,
            recoverable: true,
            join_leave: false,
            delta: false,
        };
        let mut terms = terms(namespace, &order.user, asked, &overrides);
        terms.standing.traits.set(Traits::SERVER_SIDE, true);
        terms.standing.info = bytes(order.info.as_deref()).into();
        terms.standing.expiry = Expiry {
            at_s: order.expire_at.unwrap_or(0),
            by_hook: false,
        };
        let since = order.recover_since.as_ref();
        let since = since.map(|since| (since.epoch.as_str(), since.offset));
        let bytes_max = self.recovery_bytes_max(token);
        let granted = self.enter(token, &order.channel, terms, since, bytes_max);
        let push = Push::Subscribe {
            recoverable: granted.recoverable(),
            positioned: granted.traits.has(Traits::POSITIONED),
            epoch: &epoch_text(granted.epoch),
            offset: granted.reported_offset(),
            data: &bytes(order.data.as_deref()),
        };
        self.push(token, &order.channel, &push);
        for view in granted.missed() {
            self.push(token, &order.channel, &Push::Publication(&(&view).into()));
        }
    }

    fn order_unsubscribe(&mut self, token: Token, order: &Order) {
        let why = Unsubscribed::Server;
        let (code, reason) = match order.code {
            0 => (why.code(), why.reason()),
            code => (code, order.reason.as_str()),
        };
        let ids = match order.channel.as_str() {
            "" => self.channels_of(token),
            channel => self
                .hub
                .find(&self.table.key(channel))
                .into_iter()
                .collect(),
        };
        for id in ids {
            if self.place_of(token, id).is_some() {
                self.push_unsubscribed(token, id, code, reason);
            }
        }
    }
}
