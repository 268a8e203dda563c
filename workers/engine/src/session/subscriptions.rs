//! Subscriptions of the bidirectional dialect: asked for with or without a token, granted by the
//! namespace or the application, and ended by either side.

use super::Sessions;
use super::asking::Then;
use super::clock::now_s;
use super::fault::{Fault, INTERNAL, NOT_AVAILABLE, TOKEN_EXPIRED};
use super::permission::{Closed, Entrance, NameError};
use super::recovery::epoch_text;
use super::subscribe::{Asked, Granted, SubscribeError, Terms, terms};
use super::tcp;
use crate::asks::verdict::{SubscribeResult as Admitted, Verdict};
use crate::asks::{AskKind, Fallback};
use crate::auth::TokenError;
use crate::client::{Expiry, Traits};
use crate::connection::uuid_text;
use crate::hub::ChannelId;
use crate::metrics::Count;
use crate::outbox::Frame;
use crate::protocol::centrifuge::{
    Data, Publication, Push, Reply, SubscribeRequest, SubscribeResult,
};
use crate::protocol::close::{Close, Unsubscribed};
use crate::protocol::delta;
use crate::protocol::tcp::payload;
use crate::slab::Token;

/// What clients call the only kind of difference that there is.
const FOSSIL: &str = "fossil";

/// A subscribe command on its way.
pub(super) struct Subscribing {
    pub token: Token,
    pub id: u32,
    pub request: SubscribeRequest,
    /// The keys that tokens are checked with were fetched for it.
    pub has_new_keys: bool,
}

/// Why there is no subscription yet, or never.
enum Refusal {
    Subscribe(SubscribeError),
    Fault(Fault),
    Close(Close),
    /// It is decided elsewhere, later.
    Later,
}

impl From<SubscribeError> for Refusal {
    fn from(error: SubscribeError) -> Self {
        Self::Subscribe(error)
    }
}

impl Sessions {
    /// Decides about a subscribe command, or asks those who can.
    pub(super) fn subscribe_command(&mut self, subscribing: Subscribing) {
        let (token, id) = (subscribing.token, subscribing.id);
        let channel = subscribing.request.channel.clone();
        match self.try_subscribe(subscribing) {
            Ok(()) | Err(Refusal::Later) => {}
            Err(Refusal::Subscribe(error)) => {
                self.subscribe_refused(token, &channel, error);
                self.fail(token, id, &error.into());
            }
            Err(Refusal::Fault(fault)) => self.fail(token, id, &fault),
            Err(Refusal::Close(close)) => self.condemn(token, close),
        }
    }

    fn try_subscribe(&mut self, subscribing: Subscribing) -> Result<(), Refusal> {
        let token = subscribing.token;
        let request = &subscribing.request;
        // Maps, polls and filters are not spoken here.
        if request.kind != 0 || request.has_filter {
            return Err(Refusal::Fault(NOT_AVAILABLE));
        }
        self.admissible(token, &request.channel)?;
        if !request.token.is_empty() {
            let admitted = match self.check_subscription_token(token, request) {
                Err(TokenRefusal::UnknownKey) if !subscribing.has_new_keys => {
                    let then = Then::SubscribeByToken(Box::new(subscribing));
                    self.ask_for_keys(token, then);
                    return Err(Refusal::Later);
                }
                result => result.map_err(TokenRefusal::into_refusal)?,
            };
            return self.admit_subscription(&subscribing, admitted, false);
        }
        let entrance = self.entrance(token, &request.channel);
        match entrance.map_err(SubscribeError::from)? {
            Entrance::Open => self.admit_subscription(&subscribing, Admitted::default(), false),
            Entrance::Closed(closed) => Err(SubscribeError::Denied(closed).into()),
            Entrance::Hook => {
                self.ask_to_subscribe(subscribing);
                Err(Refusal::Later)
            }
        }
    }

    fn ask_to_subscribe(&mut self, subscribing: Subscribing) {
        let token = subscribing.token;
        let Some(body) = self.body(token) else {
            return;
        };
        let mut body = body.with_data(&subscribing.request.data);
        body.channel = &subscribing.request.channel;
        let body = body.encode();
        self.ask(
            token,
            AskKind::Subscribe,
            body,
            Then::Subscribe(Box::new(subscribing)),
        );
    }

    /// The application's answer to a subscribe command.
    pub(super) fn subscribe_answered(
        &mut self,
        subscribing: Subscribing,
        answer: Result<Verdict<Admitted>, Fallback>,
    ) {
        let (token, id) = (subscribing.token, subscribing.id);
        let result = match self.decided(token, answer) {
            Ok(None) => return,
            // It may have been made meanwhile, by an order.
            Ok(Some(admitted)) => self
                .admissible(token, &subscribing.request.channel)
                .map_err(Refusal::from)
                .and_then(|()| self.admit_subscription(&subscribing, admitted, true)),
            Err(fault) => Err(Refusal::Fault(fault)),
        };
        match result {
            Ok(()) | Err(Refusal::Later) => {}
            Err(Refusal::Subscribe(error)) => self.fail(token, id, &error.into()),
            Err(Refusal::Fault(fault)) => self.fail(token, id, &fault),
            Err(Refusal::Close(close)) => self.condemn(token, close),
        }
    }

    /// What a subscription token grants to a connection in a channel.
    pub(super) fn check_subscription_token(
        &mut self,
        token: Token,
        request: &SubscribeRequest,
    ) -> Result<Admitted, TokenRefusal> {
        let claims = self.verifier.subscription(&request.token, now_s())?;
        let Some(connection) = self.connections.get_mut(token) else {
            return Err(TokenRefusal::Foreign);
        };
        let is_own = claims.user == connection.user()
            && claims.channel == request.channel
            && (claims.client.is_empty() || claims.client == uuid_text(&connection.client));
        if !is_own {
            self.notice(|| "a subscription token is of another client or channel".to_string());
            return Err(TokenRefusal::Foreign);
        }
        Ok(Admitted {
            expire_at: claims.expire_at,
            info: claims.info,
            data: claims.data,
            overrides: claims.overrides,
        })
    }

    /// Makes a subscription and answers the command. `is_by_hook`: the application granted it.
    fn admit_subscription(
        &mut self,
        subscribing: &Subscribing,
        admitted: Admitted,
        is_by_hook: bool,
    ) -> Result<(), Refusal> {
        let Subscribing {
            token, id, request, ..
        } = subscribing;
        let token = *token;
        let asked = Asked {
            positioned: request.positioned,
            recoverable: request.recoverable,
            join_leave: request.join_leave,
            delta: request.delta == FOSSIL,
        };
        let terms = self.granted_terms(token, &request.channel, asked, &admitted, is_by_hook);
        let terms = terms.map_err(SubscribeError::from)?;
        let since = request.recover.as_ref();
        let since = since.map(|since| (since.epoch.as_str(), since.offset));
        let bytes_max = self.recovery_bytes_max(token);
        let past = self.look_back(&request.channel, &terms, since, bytes_max);
        if request.rejects_unrecovered && since.is_some() && !past.is_recovered() {
            return Err(SubscribeError::Unrecoverable.into());
        }
        let granted = self.settle(token, &request.channel, terms, past);
        self.subscribed(token, *id, &granted, since.is_some(), &admitted.data);
        Ok(())
    }

    /// What a subscription that was granted may have of what is asked for. `is_by_hook`: the
    /// application granted it.
    pub(super) fn granted_terms(
        &mut self,
        token: Token,
        channel: &str,
        asked: Asked,
        admitted: &Admitted,
        is_by_hook: bool,
    ) -> Result<Terms, NameError> {
        let namespace = self.names.namespace(&self.settings, channel)?;
        let connection = self.connections.get_mut(token);
        let user = connection.map_or("", |each| each.user());
        let mut terms = terms(namespace, user, asked, &admitted.overrides);
        let refreshes = namespace.sub_refresh_hook && self.asks.is_on(AskKind::SubRefresh);
        terms.standing.info = admitted.info.as_slice().into();
        terms.standing.expiry = Expiry {
            at_s: admitted.expire_at.unwrap_or(0),
            by_hook: refreshes && is_by_hook && admitted.expire_at.is_some(),
        };
        Ok(terms)
    }

    fn subscribed(
        &mut self,
        token: Token,
        id: u32,
        granted: &Granted,
        was_recovering: bool,
        data: &[u8],
    ) {
        let takes_delta = granted.traits.has(Traits::DELTA);
        let views: Vec<_> = granted.missed().collect();
        let differences = match takes_delta {
            true => differences(views.iter().map(|view| (view.data, view.delta))),
            false => Vec::new(),
        };
        let publications: Vec<Publication<'_>> = views
            .iter()
            .enumerate()
            .map(|(place, view)| Publication {
                data: match differences.get(place) {
                    Some(Some(difference)) => Data::Delta(difference),
                    Some(None) => Data::Whole(view.data),
                    None => Data::Plain(view.data),
                },
                ..view.into()
            })
            .collect();
        let ttl = granted.expiry.ttl_s(now_s());
        let is_positioned = granted.traits.has(Traits::POSITIONED);
        let epoch = epoch_text(granted.epoch);
        let result = SubscribeResult {
            expires: ttl > 0,
            ttl,
            recoverable: granted.recoverable(),
            positioned: is_positioned,
            epoch: &epoch,
            offset: granted.reported_offset(),
            recovered: granted.recovered.is_some(),
            publications: &publications,
            data,
            was_recovering,
            delta: takes_delta,
        };
        self.reply(token, id, &Reply::Subscribe(&result));
    }

    /// Ends a subscription for a reason of ours. Its maker makes it again where it may: the client,
    /// if it was the client; else, as it came with the connection, that has to come back.
    pub(super) fn end_subscription(
        &mut self,
        token: Token,
        id: ChannelId,
        why: Unsubscribed,
        otherwise: Close,
    ) {
        let Some(place) = self.place_of(token, id) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let standing = connection.standing(place);
        let is_server_side = standing.is_none_or(|each| each.traits.has(Traits::SERVER_SIDE));
        if is_server_side {
            return self.condemn(token, otherwise);
        }
        self.push_unsubscribed(token, id, why.code(), why.reason());
    }

    /// Takes a connection out of a channel, and tells its client so.
    pub(super) fn push_unsubscribed(
        &mut self,
        token: Token,
        id: ChannelId,
        code: u32,
        reason: &str,
    ) {
        let Some(channel) = self.hub.channel(id) else {
            return;
        };
        let (name, alias) = (channel.name.clone(), tcp::alias(channel.key));
        self.unsubscribe(token, id);
        self.metrics.add(Count::Unsubscribed, 1);
        let connection = self.connections.get_mut(token);
        if connection.is_some_and(|each| each.is_tcp()) {
            let news = payload::Unsubscribed {
                request: 0,
                alias,
                code: code.try_into().unwrap_or(u16::MAX),
                reason,
            };
            return self.tcp_unsubscribed(token, id, &news);
        }
        self.push(token, &name, &Push::Unsubscribe { code, reason });
    }

    /// Tells a client something that it did not ask for.
    pub(super) fn push(&mut self, token: Token, channel: &str, push: &Push<'_>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        // The binary protocol has words for the end of a subscription only.
        if connection.is_tcp() {
            return;
        }
        let frame = connection.format.push(channel, push).map(Frame::new);
        self.say(token, frame);
    }
}

/// Why a subscription token does not let a client in.
pub(super) enum TokenRefusal {
    Expired,
    Invalid(&'static str),
    UnknownKey,
    /// It is good, but for another client or channel.
    Foreign,
}

impl From<TokenError> for TokenRefusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Expired => Self::Expired,
            TokenError::Invalid(why) => Self::Invalid(why),
            TokenError::UnknownKey => Self::UnknownKey,
        }
    }
}

impl TokenRefusal {
    fn into_refusal(self) -> Refusal {
        let denied = |why| SubscribeError::Denied(Closed::Token(why)).into();
        match self {
            Self::Expired => Refusal::Fault(TOKEN_EXPIRED),
            Self::Invalid(why) => denied(why),
            // The keys cannot be had: that passes, unlike a bad token.
            Self::UnknownKey => Refusal::Fault(INTERNAL),
            Self::Foreign => Refusal::Close(Close::InvalidToken),
        }
    }
}

/// Of publications that follow each other, with whether each may be told as a difference: the
/// differences, where they are shorter.
fn differences<'a>(publications: impl Iterator<Item = (&'a [u8], bool)>) -> Vec<Option<Vec<u8>>> {
    let mut before: Option<&[u8]> = None;
    publications
        .map(|(data, may_differ)| {
            let base = before.replace(data).filter(|_| may_differ)?;
            Some(delta::create(base, data)).filter(|delta| delta.len() < data.len())
        })
        .collect()
}
