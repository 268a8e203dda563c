//! What was published lately with an idempotency key: a repeat gets the first one's answer.

use std::collections::{HashMap, VecDeque};

use super::Answer;
use crate::channels::ChannelWriter;
use crate::log::LogView;
use crate::publication::{Idempotency, PublicationView};

/// How long a key is remembered. Backends repeat a publish within seconds, or not at all.
pub const WINDOW_MS: u64 = 300_000;

/// Most keys remembered, the oldest is dropped for a new one: about 12 MiB of memory.
pub const KEYS_MAX: usize = 131_072;

/// The keys of the last [`WINDOW_MS`], with what their first publish was answered.
#[derive(Debug, Default)]
pub struct Keys {
    answers: HashMap<u128, Known>,
    /// In the order of time; an entry that was replaced by a later one of its hash stays here.
    ages: VecDeque<(u64, u128)>,
    dropped: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    answer: Answer,
    time_ms: u64,
}

impl Keys {
    /// Learns again, from the log, what was published with a key since `now_ms` - [`WINDOW_MS`].
    #[must_use]
    pub fn from_log(log: &LogView, channels: &ChannelWriter, now_ms: u64) -> Self {
        let (mut found, mut payload) = (Vec::new(), Vec::new());
        let mut position = channels.keyed_last();
        while found.len() < KEYS_MAX && log.read_at(position, &mut payload).is_some() {
            let Some(publication) = PublicationView::parse(&payload) else {
                break;
            };
            let Some(Idempotency { hash, previous }) = publication.idempotency else {
                break;
            };
            if expired(publication.time_ms, now_ms) {
                break;
            }
            let answer = Answer::placed(publication.epoch, publication.offset);
            found.push((
                hash,
                Known {
                    answer,
                    time_ms: publication.time_ms,
                },
            ));
            position = previous;
        }
        let mut keys = Self::default();
        for (hash, Known { answer, time_ms }) in found.into_iter().rev() {
            keys.insert(hash, answer, time_ms);
        }
        keys
    }

    /// What the first publish with this key was answered.
    #[must_use]
    pub fn get(&self, hash: u128, now_ms: u64) -> Option<Answer> {
        let known = self.answers.get(&hash)?;
        (!expired(known.time_ms, now_ms)).then_some(known.answer)
    }

    /// Remembers a key, and forgets those whose time is over.
    pub fn insert(&mut self, hash: u128, answer: Answer, now_ms: u64) {
        while let Some(&(time_ms, _)) = self.ages.front() {
            let full = self.ages.len() >= KEYS_MAX;
            let over = expired(time_ms, now_ms);
            if !full && !over {
                break;
            }
            self.dropped += u64::from(!over);
            self.forget_oldest();
        }
        self.answers.insert(
            hash,
            Known {
                answer,
                time_ms: now_ms,
            },
        );
        self.ages.push_back((now_ms, hash));
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Keys forgotten before their time, for want of room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn forget_oldest(&mut self) {
        let Some((time_ms, hash)) = self.ages.pop_front() else {
            return;
        };
        if self
            .answers
            .get(&hash)
            .is_some_and(|known| known.time_ms == time_ms)
        {
            self.answers.remove(&hash);
        }
    }
}

/// The wall clock may be set back: what seems to come from the future is not over.
fn expired(time_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(time_ms) > WINDOW_MS
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_for_its_window_and_then_forgotten() {
        let mut keys = Keys::default();
        let (first, second) = (Answer::placed(1, 1), Answer::placed(1, 2));
        keys.insert(7, first, 1_000);
        assert_eq!(keys.get(7, 1_000 + WINDOW_MS), Some(first));
        assert_eq!(keys.get(7, 1_001 + WINDOW_MS), None);
        assert_eq!(keys.get(8, 1_000), None);
        keys.insert(7, second, 1_001 + WINDOW_MS);
        assert_eq!(keys.get(7, 1_002 + WINDOW_MS), Some(second));
        assert_eq!((keys.len(), keys.dropped()), (1, 0));
    }

    #[test]
    fn the_oldest_key_makes_room_and_is_counted() {
        let mut keys = Keys::default();
        for hash in 0..KEYS_MAX as u128 + 3 {
            keys.insert(hash, Answer::placed(1, 1), 5);
        }
        assert_eq!((keys.len(), keys.dropped()), (KEYS_MAX, 3));
        assert_eq!(keys.get(2, 5), None);
        assert!(keys.get(3, 5).is_some());
    }
}
