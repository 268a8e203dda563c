//! A hashed timing wheel: one deadline per connection, set, moved and cancelled in constant time.
//!
//! Slot `tick % SLOTS` holds a doubly linked list of the connections due at that tick or whole
//! rounds later (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987, scheme 6).

use std::time::Duration;

/// Time in units of [`TICK`] since the wheel's start. 2^32 of them are 6.8 years.
pub type Tick = u32;

/// Resolution of all timers: far below any timeout of a client, and cheap when the worker idles.
pub const TICK: Duration = Duration::from_millis(50);

/// One round is 204 s, longer than the usual heartbeat timeout, so that few entries wait for a
/// second round.
const SLOTS: usize = 4096;

const NONE: u32 = u32::MAX;
/// In place of the previous node: this one is in no list.
const UNLINKED: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Node {
    previous: u32,
    next: u32,
    /// Says the slot too. Meaningful while the node is in a list.
    due: Tick,
}

impl Node {
    const FREE: Self = Self {
        previous: UNLINKED,
        next: NONE,
        due: 0,
    };

    fn is_linked(&self) -> bool {
        self.previous != UNLINKED
    }
}

// One for each connection.
const _: () = assert!(size_of::<Node>() == 12);

fn slot_of(due: Tick) -> usize {
    due as usize % SLOTS
}

pub struct Wheel {
    /// First entry of each slot's list.
    heads: Vec<u32>,
    /// Bit per slot: its list has entries.
    occupied: [u64; SLOTS / 64],
    /// By entry number, which is the connection's number in its slab.
    nodes: Vec<Node>,
    /// All ticks up to this one have been looked at.
    now: Tick,
}

impl Wheel {
    /// A wheel for entries below `entries_max`; memory is touched as entries come into use.
    pub fn new(entries_max: usize) -> Self {
        Self {
            heads: vec![NONE; SLOTS],
            occupied: [0; SLOTS / 64],
            nodes: Vec::with_capacity(entries_max),
            now: 0,
        }
    }

    /// Makes `entry` due at `due` (the next tick at the earliest), in place of what it had.
    pub fn schedule(&mut self, entry: u32, due: Tick) {
        if self.nodes.len() <= entry as usize {
            self.nodes.resize(entry as usize + 1, Node::FREE);
        }
        self.cancel(entry);
        let due = due.max(self.now + 1);
        let slot = slot_of(due);
        let next = std::mem::replace(&mut self.heads[slot], entry);
        if next != NONE {
            self.nodes[next as usize].previous = entry;
        }
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.nodes[entry as usize] = Node {
            previous: NONE,
            next,
            due,
        };
    }

    /// As [`Self::schedule`], unless `entry` is due earlier already.
    pub fn schedule_by(&mut self, entry: u32, due: Tick) {
        if self.due(entry).is_none_or(|already| due < already) {
            self.schedule(entry, due);
        }
    }

    /// Forgets `entry`'s deadline, if it has one.
    pub fn cancel(&mut self, entry: u32) {
        let node = self.nodes.get_mut(entry as usize);
        let Some(node) = node.filter(|node| node.is_linked()) else {
            return;
        };
        let Node {
            previous,
            next,
            due,
        } = std::mem::replace(node, Node::FREE);
        let slot = slot_of(due);
        match previous {
            NONE => self.heads[slot] = next,
            _ => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// When `entry` is due.
    pub fn due(&self, entry: u32) -> Option<Tick> {
        self.nodes
            .get(entry as usize)
            .filter(|node| node.is_linked())
            .map(|node| node.due)
    }

    /// Moves on to `now`, taking out what is due by then: appended to `expired`.
    pub fn advance(&mut self, now: Tick, expired: &mut Vec<u32>) {
        let ticks = now.saturating_sub(self.now).min(SLOTS as Tick);
        let first = now + 1 - ticks;
        for tick in first..=now {
            let slot = slot_of(tick);
            if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
                continue;
            }
            let mut entry = self.heads[slot];
            while entry != NONE {
                let node = self.nodes[entry as usize];
                if node.due <= now {
                    self.cancel(entry);
                    expired.push(entry);
                }
                entry = node.next;
            }
        }
        self.now = self.now.max(now);
    }

    /// A tick at which something may be due, not later than the earliest deadline of this round;
    /// `None`: the wheel is empty.
    pub fn next(&self) -> Option<Tick> {
        let start = (self.now + 1) as usize;
        let mut ahead = 0;
        while ahead < SLOTS {
            let slot = (start + ahead) % SLOTS;
            let word = self.occupied[slot / 64] >> (slot % 64);
            if word != 0 {
                return Some((start + ahead) as Tick + word.trailing_zeros());
            }
            ahead += 64 - slot % 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const NOBODY: [u32; 0] = [];

    fn advance(wheel: &mut Wheel, now: Tick) -> Vec<u32> {
        let mut expired = Vec::new();
        wheel.advance(now, &mut expired);
        expired.sort_unstable();
        expired
    }

    #[test]
    fn an_entry_expires_at_its_tick_and_once() {
        let mut wheel = Wheel::new(8);
        wheel.schedule(3, 10);
        assert_eq!(advance(&mut wheel, 9), NOBODY);
        assert_eq!(advance(&mut wheel, 10), [3]);
        assert_eq!(advance(&mut wheel, 10_000), NOBODY);
    }

    #[test]
    fn a_deadline_a_whole_round_ahead_waits_for_its_round() {
        let mut wheel = Wheel::new(8);
        let due = SLOTS as Tick + 7;
        wheel.schedule(0, due);
        assert_eq!(advance(&mut wheel, 7), NOBODY);
        assert_eq!(advance(&mut wheel, due - 1), NOBODY);
        assert_eq!(advance(&mut wheel, due), [0]);
    }

    #[test]
    fn a_past_deadline_is_due_at_the_next_tick() {
        let mut wheel = Wheel::new(8);
        assert_eq!(advance(&mut wheel, 100), NOBODY);
        wheel.schedule(1, 5);
        assert_eq!(wheel.next(), Some(101));
        assert_eq!(advance(&mut wheel, 101), [1]);
    }

    #[test]
    fn a_sooner_deadline_wins_and_a_later_one_does_not() {
        let mut wheel = Wheel::new(8);
        wheel.schedule_by(1, 50);
        wheel.schedule_by(1, 90);
        assert_eq!(wheel.due(1), Some(50));
        wheel.schedule_by(1, 20);
        assert_eq!(wheel.due(1), Some(20));
    }

    /// Against a plain map, with a fixed generator so that a failure repeats.
    #[test]
    fn the_wheel_agrees_with_a_sorted_map() {
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut wheel = Wheel::new(64);
        let mut model: BTreeMap<u32, Tick> = BTreeMap::new();
        let mut now = 0;
        for _ in 0..20_000 {
            let entry = random(64) as u32;
            match random(4) {
                0 | 1 => {
                    let due = now + 1 + random(3 * SLOTS as u64) as Tick;
                    wheel.schedule(entry, due);
                    model.insert(entry, due);
                }
                2 => {
                    wheel.cancel(entry);
                    model.remove(&entry);
                }
                _ => {
                    let earliest = model.values().min().copied();
                    assert_eq!(wheel.next().is_some(), earliest.is_some());
                    if let (Some(next), Some(earliest)) = (wheel.next(), earliest) {
                        assert!(now < next && next <= earliest);
                    }
                    now += 1 + random(2000) as Tick;
                    let due: Vec<u32> = model
                        .iter()
                        .filter(|(_, due)| **due <= now)
                        .map(|(id, _)| *id)
                        .collect();
                    model.retain(|_, due| *due > now);
                    assert_eq!(advance(&mut wheel, now), due);
                }
            }
        }
    }
}
