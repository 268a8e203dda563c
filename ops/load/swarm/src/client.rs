//! One client: its connection, and what it remembers when the connection ends.

use std::io;
use std::os::fd::OwnedFd;

use crate::plan::Plan;
use crate::role::{GARBAGE, Misdeed, Role};
use crate::session::{Event, Failure, Introduction, Moment, Position, Session};
use crate::sys;
use crate::tally::Tally;

/// Where a client is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In the queue for a handshake.
    Queued,
    /// The TCP connect is under way.
    Connecting,
    /// Connected, the subscriptions not yet granted.
    Opening,
    Open,
    /// Waiting before the next attempt.
    BackingOff,
    /// It has left, and comes back when it is told to.
    Away,
    /// Ended for good.
    Done,
}

/// A channel and the last position that this client was given in it.
pub struct Subscription {
    pub channel: Box<str>,
    pub position: Option<Position>,
    /// When its last publication came, CLOCK_MONOTONIC; 0: none yet.
    delivered_ns: u64,
}

pub struct Client {
    pub role: Role,
    pub phase: Phase,
    /// Bumped when a running timer of this client loses its meaning.
    pub generation: u32,
    /// Attempts since it was last open.
    pub attempts: u32,
    /// It has been open, or has ended before: it is no longer waited for at the start.
    pub settled: bool,
    /// It was told to leave, and nothing has kept it from coming back yet.
    pub told_to_leave: bool,
    pub subscriptions: Box<[Subscription]>,
    /// When its last attempt to connect began, CLOCK_MONOTONIC.
    pub attempted_ns: u64,
    /// The id of the last event that it has seen, in dialects that have such.
    last_id: String,
    socket: Option<OwnedFd>,
    session: Option<Session>,
    /// Received bytes that are not a whole frame yet. Empty, without memory, most of the time.
    partial: Vec<u8>,
    /// Bytes that the socket had no room for. Likewise.
    unsent: Vec<u8>,
}

/// How a connection ended: the reason to count, and whether the client may come back.
pub struct Ended {
    pub reason: String,
    pub may_reconnect: bool,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended {
            reason: failure.to_string(),
            may_reconnect: failure.may_reconnect(),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended {
            reason: error.kind().to_string(),
            may_reconnect: true,
        }
    }
}

impl Client {
    pub fn new(plan: &Plan, index: u32) -> Client {
        let subscriptions = plan
            .channels_of(index)
            .into_iter()
            .map(|channel| Subscription {
                channel: channel.into(),
                position: None,
                delivered_ns: 0,
            })
            .collect();
        Client {
            role: Role::of(plan, plan.first + index),
            phase: Phase::Queued,
            generation: 0,
            attempts: 0,
            settled: false,
            told_to_leave: false,
            subscriptions,
            attempted_ns: 0,
            last_id: String::new(),
            socket: None,
            session: None,
            partial: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// Starts an attempt and gives its socket, to be watched for both readiness kinds.
    pub fn connect(&mut self, plan: &Plan, index: u32) -> Result<&OwnedFd, Ended> {
        self.phase = Phase::Connecting;
        self.attempts += 1;
        self.attempted_ns = sys::monotonic_ns();
        let narrow = self.role == Role::Stalled;
        let socket = sys::connect(plan.address, plan.source_of(index), narrow)?;
        Ok(self.socket.insert(socket))
    }

    /// The TCP connect is decided: sends the conversation's first bytes.
    pub fn connected(&mut self, plan: &Plan, index: u32, moment: Moment) -> Result<(), Ended> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        sys::connect_result(socket)?;
        self.phase = Phase::Opening;
        let subscriptions = self.subscriptions.iter();
        let wanted = subscriptions.map(|each| (&*each.channel, each.position.as_ref()));
        let introduction = Introduction {
            token: &plan.token_of(index),
            id: &self.last_id,
        };
        let begun = Session::begin(plan, introduction, wanted, moment, &mut self.unsent);
        self.session = Some(begun);
        match self.role {
            Role::Hostile(Misdeed::Silence) => self.unsent.clear(),
            Role::Hostile(Misdeed::HalfRequest) => self.unsent.truncate(self.unsent.len() / 2),
            Role::Hostile(Misdeed::Garbage) => self.unsent = GARBAGE.into(),
            _ => {}
        }
        self.flush()
    }

    /// What an open client that misbehaves does now.
    pub fn offend(&mut self) -> Result<(), Ended> {
        match (self.role, &self.socket) {
            (Role::Hostile(Misdeed::Reset), Some(socket)) => {
                sys::reset_on_close(socket)?;
                Err(io::Error::from(io::ErrorKind::ConnectionAborted).into())
            }
            (Role::Hostile(_), _) => {
                self.unsent.extend_from_slice(&GARBAGE);
                self.flush()
            }
            _ => Ok(()),
        }
    }

    /// Reads once, and handles what is complete.
    pub fn receive(
        &mut self,
        buffer: &mut [u8],
        moment: Moment,
        tally: &mut Tally,
    ) -> Result<(), Ended> {
        let (Some(socket), Some(session)) = (&self.socket, &mut self.session) else {
            return Ok(());
        };
        let count = match sys::receive(socket, buffer) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        tally.bytes_received += count as u64;
        let now_ns = sys::monotonic_ns();
        let moment = Moment { now_ns, ..moment };
        let Client {
            role,
            subscriptions,
            last_id,
            unsent,
            phase,
            ..
        } = self;
        let faithful = *role == Role::Faithful;
        let mut each = |event: Event<'_>| match event {
            Event::Opened => *phase = Phase::Open,
            Event::Id(id) => {
                last_id.clear();
                last_id.push_str(id);
            }
            // What others see proves nothing about the gateway.
            _ if faithful => observe(subscriptions, event, now_ns, tally),
            _ => {}
        };
        let result = if self.partial.is_empty() {
            let fresh = &buffer[..count];
            let result = session.receive(fresh, moment, unsent, &mut each);
            if let Ok(taken) = result {
                self.partial.extend_from_slice(&fresh[taken..]);
            }
            result
        } else {
            self.partial.extend_from_slice(&buffer[..count]);
            let result = session.receive(&self.partial, moment, unsent, &mut each);
            if let Ok(taken) = result {
                self.partial.drain(..taken);
            }
            if self.partial.is_empty() {
                self.partial = Vec::new();
            }
            result
        };
        let flushed = self.flush();
        result?;
        flushed
    }

    /// Sends what is waiting, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), Ended> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        while !self.unsent.is_empty() {
            match sys::send(socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.unsent = Vec::new();
        Ok(())
    }

    pub fn hostile(&self) -> bool {
        matches!(self.role, Role::Hostile(_))
    }

    /// Whether bytes wait for the socket to become writable.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Says good-bye, if the conversation is that far, and closes.
    pub fn leave(&mut self, moment: Moment, phase: Phase) {
        if let (Phase::Open, Some(session), true) =
            (self.phase, &self.session, self.unsent.is_empty())
        {
            session.end(moment, &mut self.unsent);
            // The connection ends either way; a full socket only misses the good-bye.
            let _ = self.flush();
        }
        self.told_to_leave = true;
        self.disconnect(phase);
    }

    /// Cuts the connection without a word, as a network does.
    pub fn drop_off(&mut self) -> io::Result<()> {
        if let Some(socket) = &self.socket {
            sys::reset_on_close(socket)?;
        }
        self.told_to_leave = true;
        self.disconnect(Phase::Away);
        Ok(())
    }

    /// Closes the socket and forgets all but where it stands.
    pub fn disconnect(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
        self.socket = None;
        self.session = None;
        self.partial = Vec::new();
        self.unsent = Vec::new();
    }
}

/// Checks one event against what the client remembers, and counts it.
fn observe(subscriptions: &mut [Subscription], event: Event<'_>, now_ns: u64, tally: &mut Tally) {
    match event {
        Event::Opened | Event::Id(_) => {}
        Event::Ping => tally.pings += 1,
        Event::Subscribed {
            channel,
            epoch,
            offset,
            recovered,
        } => {
            let Some(subscription) = find(subscriptions, channel) else {
                tally.foreign += 1;
                return;
            };
            // A known position was asked for: either it is gone on from, or lost.
            if subscription.position.is_some() && !recovered {
                tally.unrecovered += 1;
                subscription.position = None;
            }
            if subscription.position.is_none() && !epoch.is_empty() {
                subscription.position = Some(Position {
                    epoch: epoch.into(),
                    offset,
                });
            }
        }
        Event::Publication {
            channel,
            offset,
            sent_ns,
            recovered,
        } => {
            let Some(subscription) = find(subscriptions, channel) else {
                tally.foreign += 1;
                return;
            };
            if let Some(position) = &mut subscription.position {
                let expected = position.offset + 1;
                if offset < expected {
                    tally.repeats += 1;
                    return;
                }
                tally.gaps += offset - expected;
                position.offset = offset;
            } else if offset > 0 {
                let epoch = "".into();
                subscription.position = Some(Position { epoch, offset });
            }
            tally.delivered(sent_ns, now_ns, recovered);
            tally.paused(subscription.delivered_ns, now_ns);
            subscription.delivered_ns = now_ns;
        }
    }
}

fn find<'a>(subscriptions: &'a mut [Subscription], channel: &str) -> Option<&'a mut Subscription> {
    subscriptions
        .iter_mut()
        .find(|subscription| &*subscription.channel == channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(offset: Option<u64>) -> Vec<Subscription> {
        let position = offset.map(|offset| Position {
            epoch: "e".into(),
            offset,
        });
        vec![Subscription {
            channel: "a".into(),
            position,
            delivered_ns: 0,
        }]
    }

    fn publication(offset: u64) -> Event<'static> {
        Event::Publication {
            channel: "a",
            offset,
            sent_ns: Some(1),
            recovered: false,
        }
    }

    #[test]
    fn skipped_and_repeated_offsets_are_counted() {
        let (mut subscriptions, mut tally) = (subscription(Some(4)), Tally::new());
        for offset in [5, 6, 6, 9, 3, 10] {
            observe(&mut subscriptions, publication(offset), 2, &mut tally);
        }
        assert_eq!((tally.deliveries, tally.repeats, tally.gaps), (4, 2, 2));
    }

    #[test]
    fn where_nobody_says_how_a_channel_stands_its_first_publication_does() {
        let (mut subscriptions, mut tally) = (subscription(None), Tally::new());
        for offset in [7, 8, 8, 10] {
            let event = publication(offset);
            observe(&mut subscriptions, event, 2, &mut tally);
        }
        assert_eq!((tally.deliveries, tally.repeats, tally.gaps), (3, 1, 1));
    }

    #[test]
    fn a_publication_of_another_channel_is_foreign() {
        let mut tally = Tally::new();
        observe(&mut [], publication(1), 2, &mut tally);
        assert_eq!((tally.deliveries, tally.foreign), (0, 1));
    }

    #[test]
    fn a_position_that_cannot_be_recovered_is_counted_and_replaced() {
        let (mut subscriptions, mut tally) = (subscription(Some(4)), Tally::new());
        let event = Event::Subscribed {
            channel: "a",
            epoch: "f",
            offset: 9,
            recovered: false,
        };
        observe(&mut subscriptions, event, 2, &mut tally);
        observe(&mut subscriptions, publication(10), 2, &mut tally);
        assert_eq!((tally.unrecovered, tally.gaps, tally.deliveries), (1, 0, 1));
    }

    #[test]
    fn a_recovered_subscription_goes_on_from_the_clients_own_position() {
        let (mut subscriptions, mut tally) = (subscription(Some(4)), Tally::new());
        let event = Event::Subscribed {
            channel: "a",
            epoch: "e",
            offset: 4,
            recovered: true,
        };
        observe(&mut subscriptions, event, 2, &mut tally);
        observe(&mut subscriptions, publication(5), 2, &mut tally);
        assert_eq!(
            (
                tally.unrecovered,
                tally.gaps,
                tally.repeats,
                tally.deliveries
            ),
            (0, 0, 0, 1)
        );
    }
}
