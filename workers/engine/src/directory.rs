//! Finds connections by who they are: the users of orders, and the sessions of those who speak by
//! one connection and listen on another.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// Places of connections in the slab: most users have one.
#[derive(Debug, PartialEq, Eq)]
enum Places {
    One(u32),
    Many(Vec<u32>),
}

impl Places {
    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// By a hash that nobody can choose collisions for; two users may share one all the same.
#[derive(Default)]
pub struct Directory {
    hasher: RandomState,
    users: HashMap<u64, Places, BuildHasherDefault<KeyHasher>>,
    sessions: HashMap<[u8; 16], u32, BuildHasherDefault<KeyHasher>>,
}

impl Directory {
    pub fn add_user(&mut self, user: &str, place: u32) {
        match self.users.entry(self.hasher.hash_one(user)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Places::One(place));
            }
            Entry::Occupied(mut held) => match held.get_mut() {
                Places::One(one) => {
                    let both = vec![*one, place];
                    held.insert(Places::Many(both));
                }
                Places::Many(many) => many.push(place),
            },
        }
    }

    pub fn remove_user(&mut self, user: &str, place: u32) {
        let Entry::Occupied(mut held) = self.users.entry(self.hasher.hash_one(user)) else {
            return;
        };
        if let Places::Many(many) = held.get_mut() {
            many.retain(|each| *each != place);
            if let [one] = many[..] {
                held.insert(Places::One(one));
            }
        } else {
            held.remove();
        }
    }

    /// Places of the connections of `user`, and perhaps of others: who asks has to look.
    pub fn user(&self, user: &str) -> &[u32] {
        let held = self.users.get(&self.hasher.hash_one(user));
        held.map_or(&[], Places::as_slice)
    }

    /// How many users have connections here.
    pub fn user_count(&self) -> usize {
        self.users.len()
    }

    /// Whether it is new.
    pub fn add_session(&mut self, session: [u8; 16], place: u32) -> bool {
        self.sessions.insert(session, place).is_none()
    }

    /// Whether there was one.
    pub fn remove_session(&mut self, session: &[u8; 16]) -> bool {
        self.sessions.remove(session).is_some()
    }

    pub fn session(&self, session: &[u8; 16]) -> Option<u32> {
        self.sessions.get(session).copied()
    }
}

/// What is looked up here is random already: hashes, and UUIDs.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = self.0.rotate_left(32) ^ word;
    }

    /// The length of an array says nothing about this key.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_all_its_connections_and_by_none_that_left() {
        let mut directory = Directory::default();
        for place in [3, 5, 8] {
            directory.add_user("ann", place);
        }
        assert_eq!(directory.user("ann"), [3, 5, 8]);
        directory.remove_user("ann", 5);
        directory.remove_user("ann", 3);
        assert_eq!(directory.user("ann"), [8]);
        directory.remove_user("ann", 8);
        assert!(directory.user("ann").is_empty());
        assert_eq!(directory.user_count(), 0);
    }

    #[test]
    fn a_session_is_found_until_it_ends() {
        let mut directory = Directory::default();
        assert!(directory.add_session([7; 16], 2) && !directory.add_session([7; 16], 2));
        assert_eq!(directory.session(&[7; 16]), Some(2));
        assert!(directory.remove_session(&[7; 16]) && !directory.remove_session(&[7; 16]));
        assert_eq!(directory.session(&[7; 16]), None);
    }
}
