//! From a connect request, of whatever dialect, to an open connection: who the client is, what it
//! is subscribed to, and what it is told.

use super::Sessions;
use super::asking::Then;
use super::clock::now_s;
use super::fault::{Fault, INTERNAL, TOKEN_EXPIRED};
use super::permission::{self, Entrance};
use super::recovery::epoch_text;
use super::subscribe::{Asked, SubscribeError, Terms, terms};
use super::welcome::Made;
use crate::asks::AskKind;
use crate::asks::verdict::ConnectResult as Admitted;
use crate::asks::{Fallback, verdict::Verdict};
use crate::auth::{Overrides, SubOptions, TokenError};
use crate::client::{Client, Expiry, Traits};
use crate::connection::Flags;
use crate::protocol::centrifuge::{ConnectRequest, Since};
use crate::protocol::close::{Close, Farewell};
use crate::protocol::sse::LastEventId;
use crate::slab::Token;

/// How a connect request came, and how it is answered.
pub(super) enum How {
    /// A command, with its id.
    Command(u32),
    /// With what the client brings back from a connection before this one.
    Unidirectional(Option<LastEventId>),
    /// A frame of the binary protocol.
    Frame { crc: bool, window_scale: u8 },
}

/// A connect request on its way.
pub(super) struct Connecting {
    pub token: Token,
    pub how: How,
    pub request: ConnectRequest,
    /// The keys that tokens are checked with were fetched for it.
    pub has_new_keys: bool,
}

/// Why a connection does not come about.
enum Refusal {
    /// It may try again, with something else.
    Fault(Fault),
    Farewell(Farewell),
}

impl From<Close> for Refusal {
    fn from(close: Close) -> Self {
        Self::Farewell(close.into())
    }
}

/// A subscription that is made with the connection.
struct Wanted {
    channel: String,
    terms: Terms,
    since: Option<Since>,
    data: Vec<u8>,
}

impl Sessions {
    /// Decides about a connect request, or asks those who can.
    pub(super) fn connect(&mut self, connecting: Connecting) {
        let token = connecting.token;
        self.draw_uuid(token);
        self.keep_emulated_headers(token, &connecting.request.headers);
        if !connecting.request.token.is_empty() {
            return self.connect_by_token(connecting);
        }
        if self.asks.is_on(AskKind::Connect) {
            return self.ask_to_connect(connecting);
        }
        let is_command = matches!(connecting.how, How::Command(_));
        if is_command && !self.settings.allow_anonymous {
            self.notice(|| {
                "a client without a token is refused: client.allow_anonymous would let it in".into()
            });
            return self.refuse(&connecting, Close::BadRequest.into());
        }
        self.admit(connecting, Admitted::default());
    }

    fn connect_by_token(&mut self, connecting: Connecting) {
        let now_s = now_s();
        match self.verifier.connection(&connecting.request.token, now_s) {
            Ok(claims) if claims.user.is_empty() && !self.settings.allow_anonymous_tokens => {
                self.notice(|| {
                    "a token without a user is refused: client.allow_anonymous_tokens would let \
                     it in"
                        .into()
                });
                self.refuse(&connecting, Close::PermissionDenied.into());
            }
            Ok(claims) => {
                let admitted = Admitted {
                    user: claims.user,
                    expire_at: claims.expire_at,
                    info: claims.info,
                    meta: claims.meta,
                    subs: claims.subs,
                    data: Vec::new(),
                };
                self.admit(connecting, admitted);
            }
            Err(TokenError::Expired) => {
                self.refuse(&connecting, Refusal::Fault(TOKEN_EXPIRED));
            }
            Err(TokenError::UnknownKey) if !connecting.has_new_keys => {
                let token = connecting.token;
                self.ask_for_keys(token, Then::ConnectByToken(Box::new(connecting)));
            }
            // The keys cannot be had: that passes, unlike a bad token.
            Err(TokenError::UnknownKey) => self.refuse(&connecting, Refusal::Fault(INTERNAL)),
            Err(TokenError::Invalid(why)) => {
                self.notice(|| format!("a connection token is refused: {why}"));
                self.refuse(&connecting, Close::InvalidToken.into());
            }
        }
    }

    fn ask_to_connect(&mut self, connecting: Connecting) {
        let (token, request) = (connecting.token, &connecting.request);
        let Some(body) = self.body(token) else {
            return;
        };
        let mut body = body.with_data(&request.data);
        body.name = &request.name;
        body.version = &request.version;
        let body = body.encode();
        self.ask(
            token,
            AskKind::Connect,
            body,
            Then::Connect(Box::new(connecting)),
        );
    }

    /// The application's answer to a connect request.
    pub(super) fn connect_answered(
        &mut self,
        connecting: Connecting,
        answer: Result<Verdict<Admitted>, Fallback>,
    ) {
        match answer {
            Ok(Verdict::Result(admitted)) => self.admit(connecting, admitted),
            Ok(Verdict::Error {
                code,
                message,
                temporary,
            }) => {
                let message = message.into();
                let fault = Fault {
                    code,
                    temporary,
                    message,
                };
                self.refuse(&connecting, Refusal::Fault(fault));
            }
            Ok(Verdict::Disconnect { code, reason }) => {
                let farewell = Farewell::of_application(code, &reason);
                self.refuse(&connecting, Refusal::Farewell(farewell));
            }
            Err(_) => self.refuse(&connecting, Refusal::Fault(INTERNAL)),
        }
    }

    /// Turns a client away. Only commands can be answered with an error; to others it is an end.
    fn refuse(&mut self, connecting: &Connecting, refusal: Refusal) {
        let token = connecting.token;
        match (refusal, &connecting.how) {
            (Refusal::Farewell(farewell), _) => self.condemn(token, farewell),
            (Refusal::Fault(fault), How::Command(id)) => {
                if let Some(connection) = self.connections.get_mut(token) {
                    connection.flags.set(Flags::TURNED_AWAY, true);
                }
                self.fail(token, *id, &fault);
            }
            (Refusal::Fault(fault), _) => {
                let close = match fault.code {
                    109 | 110 => Close::ConnectionExpired,
                    111 => Close::TooManyRequests,
                    103 => Close::PermissionDenied,
                    _ => Close::InternalError,
                };
                self.condemn(token, close);
            }
        }
    }

    /// Opens the connection of a client that is who it says.
    fn admit(&mut self, connecting: Connecting, mut admitted: Admitted) {
        let token = connecting.token;
        let data = std::mem::take(&mut admitted.data);
        let subs = std::mem::take(&mut admitted.subs);
        let made = self
            .may_open(&admitted.user)
            .map_err(Refusal::from)
            .map(|()| self.identify(&connecting, admitted))
            .and_then(|()| self.wanted(&connecting, subs))
            .and_then(|wanted| {
                self.opened(token);
                self.list(token);
                self.make(token, wanted)
            });
        match made {
            Ok(made) => self.welcome(&connecting, &made, &data),
            Err(refusal) => self.refuse(&connecting, refusal),
        }
    }

    fn may_open(&mut self, user: &str) -> Result<(), Close> {
        let max = self.settings.user_connections_max;
        if max > 0 && !user.is_empty() && self.connections_of(user).len() >= max {
            return Err(Close::ConnectionLimit);
        }
        Ok(())
    }

    /// Remembers who a client is. Of an anonymous one that only listens there is nothing to
    /// remember.
    fn identify(&mut self, connecting: &Connecting, admitted: Admitted) {
        let is_command = matches!(connecting.how, How::Command(_));
        let Admitted {
            user,
            expire_at,
            info,
            meta,
            ..
        } = admitted;
        let is_nobody = user.is_empty() && expire_at.is_none() && info.is_empty();
        let session = self.new_uuid();
        let by_hook = self.asks.is_on(AskKind::Refresh);
        let Some(connection) = self.connections.get_mut(connecting.token) else {
            return;
        };
        if is_nobody && meta.is_empty() && !is_command && connection.identity.is_none() {
            return;
        }
        // A unidirectional client has no way to bring a new token: when its time is over, it comes
        // back with one.
        let before = connection.identity.take().unwrap_or_default();
        connection.identity = Some(Box::new(Client {
            backlog: before.backlog,
            headers: before.headers,
            user: user.into(),
            info: info.into(),
            meta: meta.into(),
            session,
            expiry: Expiry {
                at_s: expire_at.unwrap_or(0),
                by_hook: by_hook && expire_at.is_some(),
            },
            ..Client::default()
        }));
    }

    /// What the connection is to be subscribed to at once: by token or application, by its user,
    /// and, of a unidirectional client, by its own wish.
    fn wanted(
        &mut self,
        connecting: &Connecting,
        subs: Vec<(String, SubOptions)>,
    ) -> Result<Vec<Wanted>, Refusal> {
        let user = self
            .connections
            .get_mut(connecting.token)
            .map_or_else(String::new, |each| each.user().to_string());
        let mut wanted: Vec<Wanted> = Vec::new();
        if matches!(connecting.how, How::Frame { .. }) {
            // The binary protocol has no words for what its client did not ask for.
            return Ok(wanted);
        }
        let by_token = !connecting.request.token.is_empty();
        for (channel, options) in subs {
            let mut granted = self.granted_by_others(connecting, &user, channel, options)?;
            granted
                .terms
                .standing
                .traits
                .set(Traits::BY_TOKEN, by_token);
            wanted.push(granted);
        }
        if self.settings.personal_channel && !user.is_empty() {
            let channel = match self.settings.personal_channel_namespace.as_str() {
                "" => format!("#{user}"),
                namespace => format!("{namespace}:#{user}"),
            };
            if wanted.iter().all(|each| each.channel != channel) {
                let options = SubOptions::default();
                wanted.push(self.granted_by_others(connecting, &user, channel, options)?);
            }
        }
        if matches!(connecting.how, How::Unidirectional(_)) {
            for sub in &connecting.request.subs {
                if wanted.iter().all(|each| each.channel != sub.channel) {
                    wanted.extend(self.wished(connecting, &user, &sub.channel)?);
                }
            }
        }
        if wanted.len() > self.settings.channels_per_connection_max {
            self.subscribe_refused(connecting.token, "", SubscribeError::Limit);
            return Err(Close::ChannelLimit.into());
        }
        Ok(wanted)
    }

    fn granted_by_others(
        &mut self,
        connecting: &Connecting,
        user: &str,
        channel: String,
        options: SubOptions,
    ) -> Result<Wanted, Refusal> {
        let namespace = self.names.namespace(&self.settings, &channel);
        let namespace = namespace.map_err(|error| Refusal::Fault(error.into()))?;
        let asked = Asked {
            recoverable: true,
            positioned: true,
            join_leave: false,
            delta: false,
        };
        let mut terms = terms(namespace, user, asked, &options.overrides);
        terms.standing.traits.set(Traits::SERVER_SIDE, true);
        terms.standing.info = options.info.into();
        Ok(Wanted {
            since: since(connecting, &channel),
            channel,
            terms,
            data: options.data,
        })
    }

    /// A channel that a unidirectional client names. `None`: it may not have it, which it sees by
    /// what the reply lacks.
    fn wished(
        &mut self,
        connecting: &Connecting,
        user: &str,
        channel: &str,
    ) -> Result<Option<Wanted>, Refusal> {
        let token = connecting.token;
        let namespace = match self.names.namespace(&self.settings, channel) {
            Ok(namespace) => namespace,
            Err(error) => {
                self.subscribe_refused(token, channel, error.into());
                return Err(Close::BadRequest.into());
            }
        };
        let asked = Asked {
            recoverable: true,
            ..Asked::default()
        };
        let entrance = permission::entrance(namespace, channel, user, false);
        let mut terms = terms(namespace, user, asked, &Overrides::default());
        if let Entrance::Closed(closed) = entrance {
            self.subscribe_refused(token, channel, SubscribeError::Denied(closed));
            return Ok(None);
        }
        terms.standing.traits.set(Traits::SERVER_SIDE, true);
        Ok(Some(Wanted {
            since: since(connecting, channel),
            channel: channel.to_string(),
            terms,
            data: Vec::new(),
        }))
    }

    fn make(&mut self, token: Token, wanted: Vec<Wanted>) -> Result<Vec<Made>, Refusal> {
        let mut made = Vec::with_capacity(wanted.len());
        // One reply carries what was missed of all channels.
        let mut bytes_max = self.recovery_bytes_max(token);
        for each in wanted {
            let since = each.since.as_ref();
            let since = since.map(|since| (since.epoch.as_str(), since.offset));
            let granted = self.enter(token, &each.channel, each.terms, since, bytes_max);
            bytes_max = bytes_max.saturating_sub(granted.missed_bytes());
            made.push(Made {
                channel: each.channel,
                epoch: epoch_text(granted.epoch),
                granted,
                was_recovering: since.is_some(),
                data: each.data,
            });
        }
        Ok(made)
    }
}

/// Where a client left off in a channel, by its own words or by the last event that it saw.
fn since(connecting: &Connecting, channel: &str) -> Option<Since> {
    // A browser that comes back asks with the same address as at first: what it saw last is newer.
    if let How::Unidirectional(Some(last_event_id)) = &connecting.how
        && let Some((epoch, offset)) = last_event_id.position(channel)
    {
        return Some(Since {
            epoch: epoch_text(epoch),
            offset,
        });
    }
    let mut subs = connecting.request.subs.iter();
    let named = subs.find(|each| each.channel == channel);
    named.and_then(|each| each.recover.clone())
}
