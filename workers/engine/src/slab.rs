//! Where connections and channels live: one block of memory for each kind, and names for its places
//! that do not outlive them.

/// Names one entry of a [`Slab`], and never a later entry in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub index: u32,
    generation: u32,
}

impl Token {
    /// As the 64 bits that epoll(7) carries for us.
    pub fn bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

enum Place<T> {
    Vacant { next: u32 },
    Taken(T),
}

struct Entry<T> {
    /// Changes each time the place is vacated.
    generation: u32,
    place: Place<T>,
}

const NONE: u32 = u32::MAX;

pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    first_vacant: u32,
    taken: usize,
}

impl<T> Slab<T> {
    /// Room for `entries_max`. The kernel gives the pages as they are used for the first time.
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries_max),
            first_vacant: NONE,
            taken: 0,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.taken
    }

    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    pub fn insert(&mut self, value: T) -> Token {
        self.taken += 1;
        if self.first_vacant == NONE {
            let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 entries");
            self.entries.push(Entry {
                generation: 0,
                place: Place::Taken(value),
            });
            return Token {
                index,
                generation: 0,
            };
        }
        let index = self.first_vacant;
        let entry = &mut self.entries[index as usize];
        match std::mem::replace(&mut entry.place, Place::Taken(value)) {
            Place::Vacant { next } => self.first_vacant = next,
            Place::Taken(_) => unreachable!("the list of vacant places holds vacant ones"),
        }
        Token {
            index,
            generation: entry.generation,
        }
    }

    /// The token of the entry at `index`.
    pub fn token(&self, index: u32) -> Option<Token> {
        let entry = self.entries.get(index as usize)?;
        matches!(entry.place, Place::Taken(_)).then_some(Token {
            index,
            generation: entry.generation,
        })
    }

    /// The entry that `token` names, if it is still there.
    #[inline]
    pub fn get(&self, token: Token) -> Option<&T> {
        let entry = self.entries.get(token.index as usize)?;
        match &entry.place {
            Place::Taken(value) if entry.generation == token.generation => Some(value),
            _ => None,
        }
    }

    /// As [`Self::get`].
    #[inline]
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let entry = self.entries.get_mut(token.index as usize)?;
        match &mut entry.place {
            Place::Taken(value) if entry.generation == token.generation => Some(value),
            _ => None,
        }
    }

    /// The entry at `index`, which lists without stale names may hold (those of the hub).
    #[inline]
    pub fn at(&self, index: u32) -> Option<&T> {
        match &self.entries.get(index as usize)?.place {
            Place::Taken(value) => Some(value),
            Place::Vacant { .. } => None,
        }
    }

    /// As [`Self::at`].
    #[inline]
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        match &mut self.entries.get_mut(index as usize)?.place {
            Place::Taken(value) => Some(value),
            Place::Vacant { .. } => None,
        }
    }

    pub fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let entry = &mut self.entries[token.index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let vacant = Place::Vacant {
            next: self.first_vacant,
        };
        self.first_vacant = token.index;
        self.taken -= 1;
        match std::mem::replace(&mut entry.place, vacant) {
            Place::Taken(value) => Some(value),
            Place::Vacant { .. } => None,
        }
    }

    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        (0..self.entries.len() as u32).filter_map(|index| self.token(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_nothing_in_a_place_taken_again() {
        let mut slab = Slab::new(4);
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(
            slab.get_mut(Token::from_bits(second.bits())),
            Some(&mut "second")
        );
    }

    #[test]
    fn vacant_places_are_used_before_new_ones() {
        let mut slab = Slab::new(4);
        let tokens: Vec<_> = (0..4).map(|n| slab.insert(n)).collect();
        slab.remove(tokens[1]);
        slab.remove(tokens[3]);
        assert_eq!(
            slab.tokens().map(|token| token.index).collect::<Vec<_>>(),
            [0, 2]
        );
        assert_eq!((slab.insert(7).index, slab.insert(8).index), (3, 1));
        assert_eq!(slab.insert(9).index, 4);
        assert_eq!(slab.len(), 5);
    }
}
