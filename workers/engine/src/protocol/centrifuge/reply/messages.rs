//! Each message, field by field: its name in JSON, its number in Protobuf (`client.proto` of
//! centrifugal/protocol). Values that are zero or empty are left out, but for a few that clients of
//! the JSON dialect read unasked.

use super::writer::{Field, Writer};
use super::{ClientInfo, ConnectResult, Data, Publication, Push, Reply, SubscribeResult, Written};

pub(super) fn write_reply<W: Writer>(w: &mut W, id: u32, reply: &Reply<'_>) -> Written {
    w.number(("id", 1), id.into());
    match reply {
        Reply::Error {
            code,
            message,
            temporary,
        } => w.message(("error", 2), |w| {
            w.number(("code", 1), (*code).into());
            w.text(("message", 2), message);
            w.flag(("temporary", 3), *temporary);
            Ok(())
        }),
        Reply::Connect(result) => w.message(("connect", 5), |w| write_connect(w, result)),
        Reply::Subscribe(result) => w.message(("subscribe", 6), |w| write_subscribe(w, result)),
        Reply::Unsubscribe => w.message(("unsubscribe", 7), |_| Ok(())),
        Reply::Publish => w.message(("publish", 8), |_| Ok(())),
        Reply::Presence { members } => w.message(("presence", 9), |w| {
            let known = members.iter().filter_map(|info| ClientInfo::parse(info));
            w.map(
                ("presence", 1),
                known.map(|info| (info.client, info)),
                |w, info| write_info(w, &info),
            )
        }),
        Reply::PresenceStats { clients, users } => w.message(("presence_stats", 10), |w| {
            w.number_always(("num_clients", 1), (*clients).into());
            w.number_always(("num_users", 2), (*users).into());
            Ok(())
        }),
        Reply::History {
            publications,
            epoch,
            offset,
        } => w.message(("history", 11), |w| {
            w.list(("publications", 1), publications, write_publication)?;
            w.text_always(("epoch", 2), epoch);
            w.number_always(("offset", 3), *offset);
            Ok(())
        }),
        Reply::Rpc { data } => w.message(("rpc", 13), |w| w.raw(("data", 1), data)),
        Reply::Refresh { expires, ttl } => w.message(("refresh", 14), |w| {
            w.flag(("expires", 3), *expires);
            w.number(("ttl", 4), (*ttl).into());
            Ok(())
        }),
        Reply::SubRefresh { expires, ttl } => w.message(("sub_refresh", 15), |w| {
            w.flag(("expires", 1), *expires);
            w.number(("ttl", 2), (*ttl).into());
            Ok(())
        }),
    }
}

pub(super) fn write_push<W: Writer>(w: &mut W, channel: &str, push: &Push<'_>) -> Written {
    w.text(("channel", 2), channel);
    match push {
        Push::Publication(publication) => {
            w.message(("pub", 4), |w| write_publication(w, publication))
        }
        Push::Join(info) => w.message(("join", 5), |w| write_encoded_info(w, ("info", 1), info)),
        Push::Leave(info) => w.message(("leave", 6), |w| write_encoded_info(w, ("info", 1), info)),
        Push::Unsubscribe { code, reason } => w.message(("unsubscribe", 7), |w| {
            w.number_always(("code", 2), (*code).into());
            w.text_always(("reason", 3), reason);
            Ok(())
        }),
        Push::Message { data } => w.message(("message", 8), |w| w.raw(("data", 1), data)),
        Push::Subscribe {
            recoverable,
            positioned,
            epoch,
            offset,
            data,
        } => w.message(("subscribe", 9), |w| {
            w.flag(("recoverable", 1), *recoverable);
            w.text(("epoch", 4), epoch);
            w.number(("offset", 5), *offset);
            w.flag(("positioned", 6), *positioned);
            w.raw(("data", 7), data)
        }),
        Push::Connect(result) => w.message(("connect", 10), |w| write_connect(w, result)),
        Push::Disconnect { code, reason } => w.message(("disconnect", 11), |w| {
            w.number_always(("code", 1), (*code).into());
            w.text_always(("reason", 2), reason);
            Ok(())
        }),
        Push::Refresh { expires, ttl } => w.message(("refresh", 12), |w| {
            w.flag(("expires", 1), *expires);
            w.number(("ttl", 2), (*ttl).into());
            Ok(())
        }),
    }
}

fn write_connect<W: Writer>(w: &mut W, result: &ConnectResult<'_>) -> Written {
    w.text(("client", 1), result.client);
    w.text(("version", 2), result.version);
    w.flag(("expires", 3), result.expires);
    w.number(("ttl", 4), result.ttl.into());
    w.raw(("data", 5), result.data)?;
    if !result.subs.is_empty() {
        let subs = result.subs.iter().map(|(channel, sub)| (*channel, sub));
        w.map(("subs", 6), subs, write_subscribe)?;
    }
    w.number(("ping", 7), result.ping.into());
    w.flag(("pong", 8), result.pong);
    w.text(("session", 9), result.session);
    w.text(("node", 10), result.node);
    w.number(("time", 11), result.time.cast_unsigned());
    Ok(())
}

fn write_subscribe<W: Writer>(w: &mut W, result: &SubscribeResult<'_>) -> Written {
    w.flag(("expires", 1), result.expires);
    w.number(("ttl", 2), result.ttl.into());
    w.flag(("recoverable", 3), result.recoverable);
    w.text(("epoch", 6), result.epoch);
    if !result.publications.is_empty() {
        w.list(("publications", 7), result.publications, write_publication)?;
    }
    w.flag(("recovered", 8), result.recovered);
    w.number(("offset", 9), result.offset);
    w.flag(("positioned", 10), result.positioned);
    w.raw(("data", 11), result.data)?;
    w.flag(("was_recovering", 12), result.was_recovering);
    w.flag(("delta", 13), result.delta);
    Ok(())
}

fn write_publication<W: Writer>(w: &mut W, publication: &Publication<'_>) -> Written {
    w.data(("data", 4), publication.data, publication.json)?;
    if !publication.info.is_empty() {
        write_encoded_info(w, ("info", 5), publication.info)?;
    }
    w.number(("offset", 6), publication.offset);
    w.tags(("tags", 7), publication.tags);
    w.flag(("delta", 8), matches!(publication.data, Data::Delta(_)));
    Ok(())
}

/// A [`ClientInfo`] that is encoded already; if it is broken, it says nothing of anybody.
fn write_encoded_info<W: Writer>(w: &mut W, field: Field, info: &[u8]) -> Written {
    let info = ClientInfo::parse(info).unwrap_or_default();
    w.message(field, |w| write_info(w, &info))
}

pub(super) fn write_info<W: Writer>(w: &mut W, info: &ClientInfo<'_>) -> Written {
    w.text_always(("user", 1), info.user);
    w.text_always(("client", 2), info.client);
    w.raw(("conn_info", 3), info.conn_info)?;
    w.raw(("chan_info", 4), info.chan_info)
}
