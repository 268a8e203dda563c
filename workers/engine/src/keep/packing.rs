//! Records with their zeros left out: half of what a record says is zero, and a worker puts one
//! down for each of its connections.
//!
//! As Cap'n Proto packs its messages (<https://capnproto.org/encoding.html#packing>): of each word
//! of eight bytes a tag says by its bits which are not zero, and those follow. After a tag without
//! bits come as many words of zeros as one more byte says; after one with all bits, as many words
//! as they are, so that text grows by little. The last word is filled up with zeros.

const WORD: usize = 8;
/// Most words that a byte can count.
const RUN_MAX: usize = u8::MAX as usize;
/// From so many zeros on, a word is shorter packed than as it is.
const ZEROS_MIN: usize = 2;

/// Appends `bytes`, packed.
pub fn pack(bytes: &[u8], out: &mut Vec<u8>) {
    let (words, rest) = bytes.as_chunks::<WORD>();
    let mut last = [0; WORD];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain((!rest.is_empty()).then_some(&last));
    let mut words = words.copied().peekable();
    while let Some(word) = words.next() {
        let tag_at = out.len();
        out.push(0);
        let mut tag = 0;
        for (place, byte) in word.into_iter().enumerate() {
            if byte != 0 {
                tag |= 1 << place;
                out.push(byte);
            }
        }
        out[tag_at] = tag;
        let goes_on = match tag {
            0 => |word: &[u8; WORD]| *word == [0; WORD],
            0xFF => |word: &[u8; WORD]| word.iter().filter(|byte| **byte == 0).count() < ZEROS_MIN,
            _ => continue,
        };
        let run_at = out.len();
        out.push(0);
        let mut run = 0;
        while run < RUN_MAX
            && let Some(word) = words.next_if(goes_on)
        {
            run += 1;
            if tag != 0 {
                out.extend_from_slice(&word);
            }
        }
        out[run_at] = run as u8;
    }
}

/// What was packed, with the zeros that its last word was filled up with. `None`: nothing was.
pub fn unpack(mut packed: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2 * packed.len());
    while let Some(tag) = packed.split_off_first() {
        for place in 0..WORD {
            bytes.push(match tag & 1 << place {
                0 => 0,
                _ => *packed.split_off_first()?,
            });
        }
        match tag {
            0 => {
                let run = usize::from(*packed.split_off_first()?);
                bytes.resize(bytes.len() + run * WORD, 0);
            }
            0xFF => {
                let run = usize::from(*packed.split_off_first()?);
                bytes.extend_from_slice(packed.split_off(..run * WORD)?);
            }
            _ => {}
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_packed_as_the_format_says() {
        let mut packed = Vec::new();
        pack(
            &[8, 0, 0, 0, 3, 0, 2, 0, 0x19, 0, 0, 0, 0xAA, 1],
            &mut packed,
        );
        assert_eq!(packed, [0x51, 8, 3, 2, 0x31, 0x19, 0xAA, 1]);
        packed.clear();
        pack(&[0; 32], &mut packed);
        assert_eq!(packed, [0, 3]);
        packed.clear();
        pack(&[7; 24], &mut packed);
        assert_eq!(packed[..9], [0xFF, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!((packed[9], packed.len()), (2, 10 + 16));
    }

    #[test]
    fn runs_are_longer_than_a_byte_can_count() {
        for byte in [0, 7] {
            let bytes = [byte; 60_000];
            let mut packed = Vec::new();
            pack(&bytes, &mut packed);
            assert!(packed.len() < 60_000 + 400);
            assert_eq!(unpack(&packed).unwrap(), bytes);
        }
    }

    #[test]
    fn what_was_never_packed_is_none() {
        for bytes in [
            &[1][..],
            &[0],
            &[0xFF, 1, 2, 3],
            &[0xFF, 1, 2, 3, 4, 5, 6, 7, 8, 1],
        ] {
            assert_eq!(unpack(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_packed_is_unpacked_and_zeros_follow(
            bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..400),
        ) {
            let mut packed = vec![1, 2, 3];
            pack(&bytes, &mut packed);
            let unpacked = unpack(&packed[3..]).unwrap();
            prop_assert_eq!(&unpacked[..bytes.len()], &bytes[..]);
            prop_assert!(unpacked.len() < bytes.len() + WORD);
            prop_assert!(unpacked[bytes.len()..].iter().all(|byte| *byte == 0));
        }

        #[test]
        fn text_grows_by_little(bytes in prop::collection::vec(1u8.., 0..400)) {
            let mut packed = Vec::new();
            pack(&bytes, &mut packed);
            prop_assert!(packed.len() <= bytes.len() + 12);
        }
    }
}
