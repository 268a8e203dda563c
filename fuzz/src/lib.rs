//! What the targets share.

/// Take a target's parameters off the start of its input. Returns a piece length of 1 to 64 bytes,
/// a byte of flags, and the rest; `None` if there is nothing to work on.
pub fn parameters(input: &[u8]) -> Option<(usize, u8, &[u8])> {
    match input {
        [piece, flags, rest @ ..] if !rest.is_empty() => {
            Some((usize::from(piece % 64) + 1, *flags, rest))
        }
        _ => None,
    }
}
