//! Differences between two publications of a channel, in the delta format of Fossil
//! (fossil-scm.org/home/doc/trunk/www/delta_format.wiki).
//!
//! A delta is the target's size, then pieces of it, copied from the base (`size@offset,`) or
//! spelled out (`size:bytes`), then a checksum of the target. What is spelled out never begins or
//! ends within a character: in JSON a delta travels as text.

/// Pieces of the base that are looked for in the target begin at multiples of this and are as long.
const BLOCK_BYTES: usize = 8;

/// Of the pieces that look alike, how many are compared. More make smaller deltas of texts that
/// repeat themselves; each may cost eight comparisons a byte of the target.
const CANDIDATES_MAX: usize = 16;

/// Digits of numbers, six bits each, the highest first.
const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/// The delta that makes `target` of `base`, in time linear in both. It may be longer than `target`.
pub fn create(base: &[u8], target: &[u8]) -> Vec<u8> {
    let mut delta = Delta::begin(target);
    let prefix = common_prefix(base, target);
    delta.copy(0, 0, prefix);
    let (base_rest, target_rest) = (&base[prefix..], &target[prefix..]);
    let suffix = common_suffix(base_rest, target_rest);
    let middle_end = target.len() - suffix;
    let blocks = Blocks::of(base);
    let mut at = delta.done;
    while at + BLOCK_BYTES <= middle_end {
        let find = |at: usize| {
            let (found, after) = blocks.find(base, &target[at..middle_end])?;
            let before = common_suffix(&base[..found], &target[delta.done..at]);
            Some((found - before, at - before, before + after))
        };
        // Where texts repeat themselves, the piece that has the most in common may begin at a block
        // that one of the next places matches.
        let ahead = (at + 1..at + BLOCK_BYTES).take_while(|next| next + BLOCK_BYTES <= middle_end);
        let best = find(at).map(|first| {
            let others = ahead.filter_map(find);
            others.fold(
                first,
                |best, other| if other.2 > best.2 { other } else { best },
            )
        });
        if let Some((base_at, target_at, bytes)) = best {
            delta.copy(base_at, target_at, bytes);
            at = target_at + bytes;
        } else {
            at += 1;
        }
    }
    delta.copy(base.len() - suffix, middle_end, suffix);
    delta.end()
}

fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    let (words, _) = one.as_chunks::<16>();
    let (other_words, _) = other.as_chunks::<16>();
    let pairs = words.iter().zip(other_words);
    let whole = pairs.take_while(|(a, b)| a == b).count() * 16;
    let rest = one[whole..].iter().zip(&other[whole..]);
    whole + rest.take_while(|(a, b)| a == b).count()
}

fn common_suffix(one: &[u8], other: &[u8]) -> usize {
    let pairs = one.iter().rev().zip(other.iter().rev());
    pairs.take_while(|(a, b)| a == b).count()
}

/// Where the blocks of a base stand, by their bytes.
struct Blocks {
    /// Number of the first block with that hash, from 1; 0: none.
    slots: Vec<u32>,
    /// For each block, the next one with the same hash.
    next: Vec<u32>,
}

impl Blocks {
    fn of(base: &[u8]) -> Self {
        let (blocks, _) = base.as_chunks::<BLOCK_BYTES>();
        let mut all = Self {
            slots: vec![0; (blocks.len() * 2).next_power_of_two()],
            next: vec![0; blocks.len()],
        };
        for (index, block) in blocks.iter().enumerate().rev() {
            let slot = all.slot(block);
            all.next[index] = all.slots[slot];
            all.slots[slot] = u32::try_from(index + 1).expect("a publication is below 4 GiB");
        }
        all
    }

    /// Multiplicative hashing (Knuth, TAOCP vol. 3, 6.4).
    fn slot(&self, block: &[u8; BLOCK_BYTES]) -> usize {
        let hash = u64::from_le_bytes(*block).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (hash >> 32) as usize & (self.slots.len() - 1)
    }

    /// Where in `base` a block stands from which on most is as in `wanted`, and how much.
    fn find(&self, base: &[u8], wanted: &[u8]) -> Option<(usize, usize)> {
        let first = self.slots[self.slot(wanted.first_chunk()?)];
        let candidates = std::iter::successors(Some(first), |number| {
            Some(self.next[number.checked_sub(1)? as usize])
        });
        candidates
            .take(CANDIDATES_MAX)
            .filter_map(|number| {
                let at = number.checked_sub(1)? as usize * BLOCK_BYTES;
                let same = common_prefix(&base[at..], wanted);
                (same >= BLOCK_BYTES).then_some((at, same))
            })
            .max_by_key(|(_, same)| *same)
    }
}

struct Delta<'a> {
    target: &'a [u8],
    /// How much of the target the delta makes so far.
    done: usize,
    out: Vec<u8>,
}

impl<'a> Delta<'a> {
    fn begin(target: &'a [u8]) -> Self {
        let mut out = Vec::with_capacity(64);
        put_number(&mut out, target.len());
        out.push(b'\n');
        Self {
            target,
            done: 0,
            out,
        }
    }

    /// Take `bytes` of the target from the base, if that is shorter than to spell them out.
    fn copy(&mut self, base_at: usize, target_at: usize, bytes: usize) {
        let (mut start, mut end) = (target_at, target_at + bytes);
        while start < end && self.is_within_character(start) {
            start += 1;
        }
        while start < end && self.is_within_character(end) {
            end -= 1;
        }
        let mut command = Vec::with_capacity(12);
        put_number(&mut command, end - start);
        command.push(b'@');
        put_number(&mut command, base_at + start - target_at);
        command.push(b',');
        if end - start > command.len() {
            self.spell_out(start);
            self.out.extend_from_slice(&command);
            self.done = end;
        }
    }

    /// Whether a cut here would divide a character of UTF-8.
    fn is_within_character(&self, at: usize) -> bool {
        self.target.get(at).is_some_and(|byte| byte & 0xC0 == 0x80)
    }

    fn spell_out(&mut self, until: usize) {
        let piece = &self.target[self.done..until];
        if !piece.is_empty() {
            put_number(&mut self.out, piece.len());
            self.out.push(b':');
            self.out.extend_from_slice(piece);
            self.done = until;
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.spell_out(self.target.len());
        put_number(&mut self.out, checksum(self.target) as usize);
        self.out.push(b';');
        self.out
    }
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(6).max(1);
    for place in (0..digits).rev() {
        out.push(DIGITS[number >> (6 * place) & 63]);
    }
}

/// The sum of the target's big-endian words, the last one filled up with zeros.
fn checksum(target: &[u8]) -> u32 {
    let (words, rest) = target.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words
        .iter()
        .chain([&last])
        .fold(0, |sum, word| sum.wrapping_add(u32::from_be_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Recorded deltas, which a library that we did not write applies
    /// (`tests/unit/workers/test_centrifuge_codec.py`).
    const VECTORS: &str = include_str!("../../../../tests/vectors/fossil-delta.json");

    fn take_number(delta: &mut &[u8]) -> usize {
        let mut number = 0;
        while let Some(digit) = delta
            .first()
            .and_then(|b| DIGITS.iter().position(|d| d == b))
        {
            number = number << 6 | digit;
            *delta = &delta[1..];
        }
        number
    }

    fn take<'a>(delta: &mut &'a [u8], bytes: usize) -> &'a [u8] {
        let (taken, rest) = delta.split_at(bytes);
        *delta = rest;
        taken
    }

    /// Written from the format's description.
    fn apply(base: &[u8], mut delta: &[u8]) -> Vec<u8> {
        let size = take_number(&mut delta);
        assert_eq!(take(&mut delta, 1), b"\n");
        let mut target = Vec::new();
        loop {
            let number = take_number(&mut delta);
            match take(&mut delta, 1) {
                b":" => {
                    let piece = take(&mut delta, number);
                    target.extend_from_slice(piece);
                }
                b"@" => {
                    let at = take_number(&mut delta);
                    assert_eq!(take(&mut delta, 1), b",");
                    target.extend_from_slice(&base[at..at + number]);
                }
                b";" => {
                    assert_eq!(number, checksum(&target) as usize);
                    assert_eq!((delta.len(), target.len()), (0, size));
                    return target;
                }
                other => panic!("unknown command {other:?}"),
            }
        }
    }

    /// Two texts with much in common: the same words, a few of them other ones.
    fn related() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let words = prop::collection::vec("[a-c]{1,3}|[é漢😀]{1,2}|\"key\": ", 0..60);
        (
            words.clone(),
            words,
            prop::collection::vec(any::<bool>(), 60),
        )
            .prop_map(|(one, other, choice)| {
                let mixed = one.iter().enumerate().map(|(index, word)| {
                    let replaced = other
                        .get(index)
                        .filter(|_| choice[index] && choice[index / 2]);
                    replaced.unwrap_or(word).as_str()
                });
                let target: String = mixed.collect();
                (one.concat().into_bytes(), target.into_bytes())
            })
    }

    proptest! {
        #[test]
        fn a_delta_of_related_texts_makes_the_target_and_is_text((base, target) in related()) {
            let delta = create(&base, &target);
            prop_assert!(std::str::from_utf8(&delta).is_ok());
            prop_assert_eq!(apply(&base, &delta), target);
        }

        #[test]
        fn a_delta_of_any_bytes_makes_the_target(
            base in prop::collection::vec(0_u8..4, 0..300),
            target in prop::collection::vec(0_u8..4, 0..300),
            high: bool,
        ) {
            let lift = |bytes: Vec<u8>| -> Vec<u8> {
                bytes.iter().map(|byte| if high { byte | 0x80 } else { *byte }).collect()
            };
            let (base, target) = (lift(base), lift(target));
            prop_assert_eq!(apply(&base, &create(&base, &target)), target);
        }
    }

    #[test]
    fn a_small_change_in_a_large_text_makes_a_small_delta() {
        let base: String = (0..1000).map(|n| format!("{{\"id\": {n}}},")).collect();
        let target = base.replacen("\"id\": 500", "\"id\": five hundred", 1);
        assert!(create(base.as_bytes(), target.as_bytes()).len() < 40);
        let moved = format!("{}{}", &base[6000..], &base[..6000]);
        assert!(create(base.as_bytes(), moved.as_bytes()).len() < 40);
        assert!(create(base.as_bytes(), base.as_bytes()).len() < 20);
    }

    #[test]
    fn the_recorded_deltas_are_made() {
        #[derive(serde::Deserialize)]
        struct Vector {
            base: String,
            target: String,
            delta: String,
        }

        let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
        assert!(!vectors.is_empty());
        for vector in vectors {
            let (base, target) = (vector.base.as_bytes(), vector.target.as_bytes());
            let delta = create(base, target);
            assert_eq!(String::from_utf8_lossy(&delta), vector.delta);
            assert_eq!(apply(base, &delta), target);
        }
    }
}
