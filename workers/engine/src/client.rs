//! Who a client is, and how it stands in its channels: kept for those of which anything is known,
//! not for the many that only listen.

use std::collections::VecDeque;
use std::time::Duration;

use crate::protocol::centrifuge::Command;

/// What is known of a client beside its connection.
#[derive(Debug, Default)]
pub struct Client {
    /// As the application knows it; empty: anonymous.
    pub user: Box<str>,
    /// JSON that other clients may see (`conn_info`); empty: none.
    pub info: Box<[u8]>,
    /// JSON that only the application sees; empty: none.
    pub meta: Box<[u8]>,
    /// JSON object of the request's headers that the application wants to see; empty: none.
    pub headers: Box<[u8]>,
    /// Names the connection to those who may act for it: unlike its UUID, no other client sees it.
    pub session: [u8; 16],
    pub expiry: Expiry,
    /// Of each of the connection's subscriptions, in the same order.
    pub standings: Vec<Standing>,
    /// Requests that the publisher or the application has not answered.
    pub unanswered: u32,
    /// Commands that came while one before them waits for the application.
    pub backlog: VecDeque<Command>,
}

/// When something ends unless it is refreshed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Seconds since 1970; 0: never.
    pub at_s: u64,
    /// The application is asked when the time has come; else the client is to bring a new token.
    pub by_hook: bool,
}

impl Expiry {
    pub const NEVER: Self = Self {
        at_s: 0,
        by_hook: false,
    };

    /// When something is to be done about it.
    pub fn acts_at_s(self, delay: Duration) -> Option<u64> {
        let delay_s = if self.by_hook { 0 } else { delay.as_secs() };
        (self.at_s != 0).then(|| self.at_s + delay_s)
    }

    /// Seconds that are left, as the client is told if it is to refresh in time: 0 if it is not.
    pub fn ttl_s(self, now_s: u64) -> u32 {
        if self.at_s == 0 || self.by_hook {
            return 0;
        }
        let left_s = self.at_s.saturating_sub(now_s).clamp(1, TTL_MAX_S);
        left_s as u32
    }
}

/// The longest time that clients are told: their timers take no more than 2^31 ms, and ask again.
const TTL_MAX_S: u64 = 365 * 24 * 3600;

/// How a client stands in one channel.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Standing {
    pub traits: Traits,
    pub expiry: Expiry,
    /// JSON that other clients may see (`chan_info`); empty: none.
    pub info: Box<[u8]>,
}

impl Standing {
    /// As every client stands of which nothing is known.
    pub fn anonymous() -> Self {
        Self {
            traits: Traits(Traits::SERVER_SIDE),
            ..Self::default()
        }
    }

    /// Whether more has to be remembered than of anonymous clients.
    pub fn is_particular(&self) -> bool {
        let particular = Traits::JOIN_LEAVE | Traits::DELTA | Traits::PRESENT | Traits::ANNOUNCED;
        self.traits.has(particular) || self.expiry != Expiry::NEVER || !self.info.is_empty()
    }
}

/// Facts about a subscription that are either true or not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traits(u16);

impl Traits {
    /// The client was told its position in the channel.
    pub const POSITIONED: u16 = 1;
    /// It may ask for what it missed.
    pub const RECOVERABLE: u16 = 1 << 1;
    /// It is told who joins and who leaves.
    pub const JOIN_LEAVE: u16 = 1 << 2;
    /// It takes publications as differences to the one before.
    pub const DELTA: u16 = 1 << 3;
    /// It has the publication before the next one, to take that as a difference.
    pub const BASED: u16 = 1 << 4;
    /// Made by the application, not asked for: the client does not make it again by itself.
    pub const SERVER_SIDE: u16 = 1 << 5;
    /// It has an entry among the channel's presence.
    pub const PRESENT: u16 = 1 << 6;
    /// The others are told that it joined, and will be told that it left.
    pub const ANNOUNCED: u16 = 1 << 7;
    /// It came with the connection's token, and holds as long as the token names it.
    pub const BY_TOKEN: u16 = 1 << 8;

    const KNOWN: u16 = (1 << 9) - 1;

    /// `None`: there are bits that stand for nothing.
    pub fn from_bits(bits: u16) -> Option<Self> {
        (bits & !Self::KNOWN == 0).then_some(Self(bits))
    }

    pub fn bits(self) -> u16 {
        self.0
    }

    pub fn has(self, one: u16) -> bool {
        self.0 & one != 0
    }

    pub fn set(&mut self, one: u16, on: bool) {
        if on { self.0 |= one } else { self.0 &= !one }
    }

    #[must_use]
    pub fn with(mut self, one: u16, on: bool) -> Self {
        self.set(one, on);
        self
    }
}

impl Client {
    /// The earliest time at which something is to be done because it expires, in seconds since
    /// 1970; a client is waited for a `delay` longer to bring a new token.
    pub fn acts_first_s(&self, delay: Duration) -> Option<u64> {
        let standings = self.standings.iter().map(|each| each.expiry);
        let all = standings.chain([self.expiry]);
        all.filter_map(|expiry| expiry.acts_at_s(delay)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_must_refresh_by_itself_is_told_when() {
        let expiry = Expiry {
            at_s: 1000,
            by_hook: false,
        };
        assert_eq!(expiry.ttl_s(940), 60);
        assert_eq!(expiry.ttl_s(2000), 1, "late, but not for ever");
        let by_hook = Expiry {
            by_hook: true,
            ..expiry
        };
        assert_eq!((by_hook.ttl_s(940), Expiry::NEVER.ttl_s(940)), (0, 0));
    }

    #[test]
    fn the_first_of_all_expiries_counts() {
        let standing = |at_s| Standing {
            expiry: Expiry {
                at_s,
                by_hook: false,
            },
            ..Standing::default()
        };
        let delay = Duration::from_secs(25);
        let mut client = Client::default();
        assert_eq!(client.acts_first_s(delay), None);
        client.standings = vec![standing(0), standing(70), standing(50)];
        assert_eq!(client.acts_first_s(delay), Some(75));
        client.standings[1].expiry.by_hook = true;
        assert_eq!(
            client.acts_first_s(delay),
            Some(70),
            "the application is asked at once"
        );
    }

    #[test]
    fn a_client_of_one_channel_takes_some_three_hundred_bytes() {
        assert!(size_of::<Client>() <= 160, "{}", size_of::<Client>());
        assert!(size_of::<Standing>() <= 40, "{}", size_of::<Standing>());
    }
}
