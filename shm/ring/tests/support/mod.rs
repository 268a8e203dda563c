//! What the integration tests share.

#![allow(dead_code, reason = "each test binary uses a part")]

#[cfg(not(loom))]
pub mod publisher;
#[cfg(not(loom))]
pub mod victim;

use tidegate_ring::channels::ChannelKey;
use tidegate_ring::layout::{HEADER_BYTES, Owner};
use tidegate_ring::log;
use tidegate_ring::publication::{NO_PREVIOUS, PublicationView, Source, Version};
use tidegate_ring::region::{Region, WORD};
use tidegate_ring::uplink;

pub const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};

/// Positions at which a narrower counter would wrap, and at which ours does.
pub const STARTS: [u64; 4] = [0, (1 << 32) - 64, (1 << 63) - 64, 0u64.wrapping_sub(64)];

/// Rows of interest: few, so that topics meet in them.
pub const TOPICS: u64 = 4;

/// A log in private memory.
pub fn heap_log(capacity: u64, readers: u32, start: u64) -> Region {
    let region = Region::heap(log::segment_bytes(capacity, readers, TOPICS));
    log::format(&region, capacity, readers, TOPICS, start, OWNER).unwrap();
    region
}

/// A publication of no particular place.
pub fn publication<'a>(channel: &'a str, data: &'a [u8]) -> PublicationView<'a> {
    PublicationView {
        key: ChannelKey([1, 1]),
        epoch: 1,
        offset: 1,
        previous: NO_PREVIOUS,
        time_ms: 1,
        source: Source {
            uplink: 1,
            generation: 7,
            position: 0,
        },
        idempotency: None,
        version: Version::NONE,
        except: None,
        channel,
        json: true,
        delta: false,
        kept: false,
        tags: b"",
        info: b"",
        data,
    }
}

/// An uplink in private memory.
pub fn heap_uplink(capacity: u64, start: u64) -> Region {
    let region = Region::heap(uplink::segment_bytes(capacity));
    uplink::format(&region, capacity, start, OWNER).unwrap();
    region
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to choose operations.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.word() as u8).collect()
    }
}

/// Writes nonsense to some words behind the header.
pub fn scribble(region: &Region, random: &mut Random) {
    let words = (region.len() - HEADER_BYTES) / WORD;
    for _ in 0..1 + random.below(8) {
        let offset = HEADER_BYTES + random.below(words) * WORD;
        let value = match random.below(4) {
            0 => random.word(),
            1 => random.word() % 4096,
            2 => 0,
            _ => region.load(offset) ^ 1 << random.below(64),
        };
        region.store(offset, value);
    }
}
