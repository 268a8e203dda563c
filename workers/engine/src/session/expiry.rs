//! What ends by itself: connections and subscriptions whose time is over, and how it is prolonged.

use super::Sessions;
use super::asking::Then;
use super::clock::now_s;
use super::fault::{BAD_REQUEST, DENIED, Fault, INTERNAL};
use super::subscriptions::TokenRefusal;
use crate::asks::verdict::{RefreshResult, Verdict};
use crate::asks::{AskKind, Fallback};
use crate::auth::{SubOptions, TokenError};
use crate::client::{Expiry, Traits};
use crate::connection::Phase;
use crate::hub::ChannelId;
use crate::protocol::centrifuge::{Command, Push, Reply, Request, SubscribeRequest};
use crate::protocol::close::{Close, Unsubscribed};
use crate::slab::Token;

impl Sessions {
    /// Does what is due because time is over; false: the connection has ended with that.
    pub(super) fn expire(&mut self, token: Token) -> bool {
        let delay = self.settings.expired_close_delay;
        let now_s = now_s();
        let is_over = |expiry: Expiry| expiry.acts_at_s(delay).is_some_and(|at_s| now_s >= at_s);
        let Some(connection) = self.connections.get_mut(token) else {
            return false;
        };
        let Some(client) = &mut connection.identity else {
            return true;
        };
        if is_over(client.expiry) {
            if !client.expiry.by_hook {
                self.condemn(token, Close::ConnectionExpired);
                return false;
            }
            client.expiry.by_hook = false;
            self.ask_to_refresh(token);
        }
        for id in self.channels_of(token) {
            let Some(expiry) = self.expiry_of(token, id).filter(|each| is_over(**each)) else {
                continue;
            };
            if expiry.by_hook {
                // If no answer comes in time, it has expired.
                expiry.by_hook = false;
                self.ask_to_sub_refresh(token, id);
            } else {
                let end = Close::SubscriptionExpired;
                self.end_subscription(token, id, Unsubscribed::Expired, end);
            }
        }
        let connection = self.connections.get_mut(token);
        connection.is_some_and(|each| each.phase != Phase::Closing)
    }

    fn expiry_of(&mut self, token: Token, id: ChannelId) -> Option<&mut Expiry> {
        let place = self.place_of(token, id)?;
        let connection = self.connections.get_mut(token)?;
        Some(&mut connection.standing_mut(place)?.expiry)
    }

    fn ask_to_refresh(&mut self, token: Token) {
        if let Some(body) = self.body(token) {
            self.await_answer(token);
            self.ask(token, AskKind::Refresh, body.encode(), Then::Refresh);
        }
    }

    fn ask_to_sub_refresh(&mut self, token: Token, id: ChannelId) {
        let Some(name) = self.hub.channel(id).map(|channel| channel.name.clone()) else {
            return;
        };
        if let Some(mut body) = self.body(token) {
            body.channel = &name;
            let body = body.encode();
            self.await_answer(token);
            self.ask(
                token,
                AskKind::SubRefresh,
                body,
                Then::SubRefresh { channel: id },
            );
        }
    }

    /// A connection that the application is asked about stays here until it has answered.
    fn await_answer(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(token) {
            connection.answer_awaited();
            self.changed(token.index);
        }
    }

    pub(super) fn refresh_answered(
        &mut self,
        token: Token,
        answer: Result<Verdict<RefreshResult>, Fallback>,
    ) {
        let expiry = match self.decided(token, answer) {
            Ok(None) => return,
            Ok(Some(result)) if !result.expired => {
                if let Some(connection) = self.connections.get_mut(token)
                    && let Some(client) = &mut connection.identity
                {
                    replace_unless_empty(&mut client.info, result.info);
                    replace_unless_empty(&mut client.meta, result.meta);
                }
                Expiry {
                    at_s: result.expire_at.unwrap_or(0),
                    by_hook: result.expire_at.is_some(),
                }
            }
            Ok(Some(_)) => return self.condemn(token, Close::ConnectionExpired),
            // As much time again as a client has to bring a new token, and then once more.
            Err(_) => self.later(),
        };
        if let Some(connection) = self.connections.get_mut(token)
            && let Some(client) = &mut connection.identity
        {
            client.expiry = expiry;
        }
        self.schedule_next(token);
    }

    pub(super) fn sub_refresh_answered(
        &mut self,
        token: Token,
        channel: ChannelId,
        answer: Result<Verdict<RefreshResult>, Fallback>,
    ) {
        let expiry = match self.decided(token, answer) {
            Ok(None) => return,
            Ok(Some(result)) if !result.expired => Expiry {
                at_s: result.expire_at.unwrap_or(0),
                by_hook: result.expire_at.is_some(),
            },
            Ok(Some(_)) => {
                let end = Close::SubscriptionExpired;
                return self.end_subscription(token, channel, Unsubscribed::Expired, end);
            }
            Err(_) => self.later(),
        };
        if let Some(held) = self.expiry_of(token, channel) {
            *held = expiry;
        }
        self.schedule_next(token);
    }

    fn later(&self) -> Expiry {
        Expiry {
            at_s: now_s() + self.settings.expired_close_delay.as_secs().max(1),
            by_hook: true,
        }
    }

    /// A client brings a new token for its connection.
    pub(super) fn refresh_command(
        &mut self,
        token: Token,
        id: u32,
        connection_token: String,
        has_new_keys: bool,
    ) {
        if connection_token.is_empty() || self.asks.is_on(AskKind::Refresh) {
            return self.condemn(token, Close::BadRequest);
        }
        let claims = match self.verifier.connection(&connection_token, now_s()) {
            Ok(claims) => claims,
            Err(TokenError::UnknownKey) if !has_new_keys => {
                let request = Request::Refresh {
                    token: connection_token,
                };
                return self.ask_for_keys(token, Then::Again(Command { id, request }));
            }
            Err(TokenError::UnknownKey) => return self.condemn(token, Close::InternalError),
            Err(TokenError::Expired) => return self.condemn(token, Close::ConnectionExpired),
            Err(_) => return self.condemn(token, Close::InvalidToken),
        };
        let user = self.connections.get_mut(token).map(|each| each.user());
        if user != Some(&*claims.user) {
            return self.condemn(token, Close::InvalidToken);
        }
        if self.has_other_channels(token, &claims.subs) {
            // Channels of a token come and go with a connection.
            return self.condemn(token, Close::InsufficientState);
        }
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let Some(client) = &mut connection.identity else {
            return;
        };
        client.info = claims.info.into();
        replace_unless_empty(&mut client.meta, claims.meta);
        client.expiry = Expiry {
            at_s: claims.expire_at.unwrap_or(0),
            by_hook: false,
        };
        let ttl = client.expiry.ttl_s(now_s());
        self.schedule_next(token);
        let expires = ttl > 0;
        self.reply(token, id, &Reply::Refresh { expires, ttl });
    }

    /// Whether a new token names a channel that the connection is not in, or does not name one
    /// that it got by the token before.
    fn has_other_channels(&mut self, token: Token, subs: &[(String, SubOptions)]) -> bool {
        let mut named = subs.iter().map(|(channel, _)| channel);
        if named.any(|channel| !self.is_subscribed_to(token, channel)) {
            return true;
        }
        let Some(connection) = self.connections.get_mut(token) else {
            return false;
        };
        let mut held = connection.subscriptions.as_slice().iter().enumerate();
        held.any(|(place, subscription)| {
            let standing = connection.standing(place);
            let is_by_token = standing.is_some_and(|each| each.traits.has(Traits::BY_TOKEN));
            let channel = self.hub.channel(subscription.channel);
            is_by_token && channel.is_some_and(|it| subs.iter().all(|(name, _)| **name != *it.name))
        })
    }

    /// A client brings a new token for a subscription.
    pub(super) fn sub_refresh_command(
        &mut self,
        token: Token,
        id: u32,
        channel: String,
        subscription_token: String,
        has_new_keys: bool,
    ) -> Result<(), Fault> {
        if channel.is_empty() {
            self.condemn(token, Close::BadRequest);
            return Ok(());
        }
        let found = self.hub.find(&self.table.key(&channel));
        let found = found.filter(|id| self.place_of(token, *id).is_some());
        let found = found.ok_or(DENIED)?;
        if subscription_token.is_empty() {
            return Err(BAD_REQUEST);
        }
        let request = SubscribeRequest {
            channel,
            token: subscription_token,
            ..SubscribeRequest::default()
        };
        let admitted = match self.check_subscription_token(token, &request) {
            Ok(admitted) => admitted,
            Err(TokenRefusal::UnknownKey) if !has_new_keys => {
                let request = Request::SubRefresh {
                    channel: request.channel,
                    token: request.token,
                };
                self.ask_for_keys(token, Then::Again(Command { id, request }));
                return Ok(());
            }
            Err(TokenRefusal::UnknownKey) => return Err(INTERNAL),
            Err(TokenRefusal::Expired) => {
                self.condemn(token, Close::SubscriptionExpired);
                return Ok(());
            }
            Err(_) => {
                self.condemn(token, Close::InvalidToken);
                return Ok(());
            }
        };
        let expiry = Expiry {
            at_s: admitted.expire_at.unwrap_or(0),
            by_hook: false,
        };
        if let Some(held) = self.expiry_of(token, found) {
            *held = expiry;
        }
        self.schedule_next(token);
        let ttl = expiry.ttl_s(now_s());
        let expires = ttl > 0;
        self.reply(token, id, &Reply::SubRefresh { expires, ttl });
        Ok(())
    }

    /// A back end has prolonged a connection, or cut it short; its client is told.
    pub(super) fn refreshed(&mut self, token: Token, expire_at: u64, info: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        if let Some(client) = &mut connection.identity {
            replace_unless_empty(&mut client.info, info);
            client.expiry.at_s = expire_at;
            let ttl = client.expiry.ttl_s(now_s());
            self.changed(token.index);
            self.schedule_next(token);
            let expires = ttl > 0;
            self.push(token, "", &Push::Refresh { expires, ttl });
        }
    }
}

fn replace_unless_empty(held: &mut Box<[u8]>, new: Vec<u8>) {
    if !new.is_empty() {
        *held = new.into();
    }
}
