//! What a client is told when its connection opens.

use tidegate_ring::publication::PublicationView;

use super::Sessions;
use super::clock::now_s;
use super::commands::reply_frame;
use super::connect::{Connecting, How};
use super::subscribe::Granted;
use crate::client::{Expiry, Traits};
use crate::connection::{Flags, uuid_text};
use crate::outbox::Frame;
use crate::protocol::centrifuge::{ConnectResult, Publication, Push, Reply, SubscribeResult};
use crate::protocol::format::Format;

/// A subscription that was made with the connection.
pub(super) struct Made {
    pub channel: String,
    pub granted: Granted,
    pub was_recovering: bool,
    pub data: Vec<u8>,
    pub epoch: String,
}

impl Sessions {
    /// Tells a client that its connection is open.
    pub(super) fn welcome(&mut self, connecting: &Connecting, made: &[Made], data: &[u8]) {
        let token = connecting.token;
        if let How::Frame { crc, window_scale } = connecting.how {
            return self.tcp_welcome(token, crc, window_scale);
        }
        let Some(connection) = self.connections.get_mut(token) else {
            return;
        };
        let format = connection.format;
        let has_native_pings = connection.flags.has(Flags::NATIVE_PINGS);
        let client = uuid_text(&connection.client);
        let identity = connection.identity.as_deref();
        let expiry = identity.map_or(Expiry::NEVER, |client| client.expiry);
        let session = match (identity, format.is_uni() || !format.is_websocket()) {
            (Some(identity), true) => uuid_text(&identity.session),
            (None, true) => client.clone(),
            (_, false) => String::new(),
        };
        // Whole seconds on the wire, and 0 means none: round up.
        let ping_s = self.settings.websocket_ping_interval.as_secs_f64().ceil() as u32;
        let is_emulated = !format.is_uni() && !format.is_websocket();
        let missed: Vec<Vec<Publication<'_>>> = made.iter().map(publications).collect();
        let subs: Vec<(&str, SubscribeResult<'_>)> = made
            .iter()
            .zip(&missed)
            .map(|(made, missed)| (made.channel.as_str(), result(made, missed)))
            .collect();
        let ttl = expiry.ttl_s(now_s());
        let connected = ConnectResult {
            client: &client,
            version: &self.settings.version,
            expires: ttl > 0,
            ttl,
            data,
            subs: &subs,
            ping: if has_native_pings { 0 } else { ping_s },
            pong: !format.is_uni() && !has_native_pings,
            session: &session,
            node: if is_emulated { &self.settings.node } else { "" },
            time: 0,
        };
        match connecting.how {
            How::Command(id) => {
                let frame = reply_frame(format, id, &Reply::Connect(&connected));
                self.say(token, frame);
            }
            _ => match format.push("", &Push::Connect(&connected)) {
                Ok(bytes) if format == Format::UniSse => {
                    let frame = self.with_positions(token, &bytes);
                    self.enqueue(token, frame);
                }
                Ok(bytes) => self.enqueue(token, Frame::new(bytes)),
                Err(close) => self.condemn(token, close),
            },
        }
        self.schedule_next(token);
    }
}

fn publications(made: &Made) -> Vec<Publication<'_>> {
    let views = made.granted.missed();
    views
        .map(|view: PublicationView<'_>| (&view).into())
        .collect()
}

fn result<'a>(made: &'a Made, missed: &'a [Publication<'a>]) -> SubscribeResult<'a> {
    let granted = &made.granted;
    SubscribeResult {
        recoverable: granted.recoverable(),
        positioned: granted.traits.has(Traits::POSITIONED),
        epoch: &made.epoch,
        offset: granted.reported_offset(),
        was_recovering: made.was_recovering,
        recovered: granted.recovered.is_some(),
        publications: missed,
        data: &made.data,
        ..SubscribeResult::default()
    }
}
