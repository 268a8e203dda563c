//! Questions of clients about a channel: who is there, and what was published.

use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::fault::{BAD_REQUEST, DENIED, Fault, LIMIT, NOT_AVAILABLE, UNRECOVERABLE};
use super::permission::{self, Act};
use super::recovery::epoch_text;
use crate::protocol::centrifuge::{HistoryRequest, Publication, Reply};
use crate::settings::Namespace;
use crate::slab::Token;

/// Most members that one reply tells of: some MiB. Of larger crowds clients ask for the numbers.
const PRESENCE_MEMBERS_MAX: usize = 10_000;

impl Sessions {
    /// Whether a client may ask this about a channel whose namespace has it.
    fn may_ask(
        &mut self,
        token: Token,
        channel: &str,
        act: Act,
        is_on: impl Fn(&Namespace) -> bool,
    ) -> Result<(), Fault> {
        let is_subscribed = self.is_subscribed_to(token, channel);
        let namespace = self.names.namespace(&self.settings, channel)?;
        let user = self
            .connections
            .get_mut(token)
            .map_or("", |each| each.user());
        let may = permission::may(act, namespace, user, is_subscribed);
        if !is_on(namespace) {
            return Err(NOT_AVAILABLE);
        }
        may.map_err(|closed| {
            let name = match act {
                Act::Publish => "publish to",
                Act::Presence => "see the presence of",
                Act::History => "read the history of",
            };
            self.notice_refusal(token, name, channel, closed);
            DENIED
        })
    }

    pub(super) fn presence_command(
        &mut self,
        token: Token,
        id: u32,
        channel: &str,
    ) -> Result<(), Fault> {
        self.may_ask(token, channel, Act::Presence, |namespace| {
            namespace.presence
        })?;
        let key = self.table.key(channel);
        if self.presence.stats(key).0 as usize > PRESENCE_MEMBERS_MAX {
            return Err(LIMIT);
        }
        let members = self.presence.members(key, PRESENCE_MEMBERS_MAX);
        self.reply(token, id, &Reply::Presence { members: &members });
        Ok(())
    }

    pub(super) fn stats_command(
        &mut self,
        token: Token,
        id: u32,
        channel: &str,
    ) -> Result<(), Fault> {
        self.may_ask(token, channel, Act::Presence, |namespace| {
            namespace.presence
        })?;
        let (clients, users) = self.presence.stats(self.table.key(channel));
        self.reply(token, id, &Reply::PresenceStats { clients, users });
        Ok(())
    }

    pub(super) fn history_command(
        &mut self,
        token: Token,
        id: u32,
        request: &HistoryRequest,
    ) -> Result<(), Fault> {
        self.may_ask(token, &request.channel, Act::History, |namespace| {
            namespace.history_size > 0 && !namespace.history_ttl.is_zero()
        })?;
        let key = self.table.key(&request.channel);
        let top = self.top(key);
        let epoch = epoch_text(top.epoch);
        let since = request.since.as_ref();
        if request.reverse && since.is_some_and(|since| since.offset == 0) {
            return Err(BAD_REQUEST);
        }
        if since.is_some_and(|since| !since.epoch.is_empty() && since.epoch != epoch) {
            return Err(UNRECOVERABLE);
        }
        let count_max = self.settings.history_publications_max;
        let limit = usize::try_from(request.limit).map_or(count_max, |limit| limit.min(count_max));
        let since = since.map(|since| since.offset);
        let bytes_max = self.recovery_bytes_max(token);
        let payloads = match limit {
            0 => Vec::new(),
            _ => self
                .history
                .read(key, top, since, limit, request.reverse, bytes_max)
                .map_or_else(Vec::new, |stretch| stretch.payloads),
        };
        let views: Vec<PublicationView<'_>> = payloads
            .iter()
            .filter_map(|payload| PublicationView::parse(payload))
            .collect();
        let publications: Vec<Publication<'_>> = views.iter().map(Into::into).collect();
        let reply = Reply::History {
            publications: &publications,
            epoch: &epoch,
            offset: top.offset,
        };
        self.reply(token, id, &reply);
        Ok(())
    }
}
