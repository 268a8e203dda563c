//! The wire format of Protocol Buffers (protobuf.dev/programming-guides/encoding): fields in,
//! fields out. Which number means what, the messages know.

/// A varint of 64 bits takes at most this many bytes.
const VARINT_BYTES_MAX: usize = 10;

const WIRE_VARINT: u64 = 0;
const WIRE_FIXED64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_FIXED32: u64 = 5;

/// Something that no well-formed message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What stands in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of fixed width; no message of ours has such a field.
    Fixed,
}

impl<'a> Value<'a> {
    pub fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => Err(Malformed),
        }
    }

    pub fn flag(self) -> Result<bool, Malformed> {
        Ok(self.number()? != 0)
    }

    /// Text, or the body of a message within.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    pub fn text(self) -> Result<&'a str, Malformed> {
        simdutf8::basic::from_utf8(self.bytes()?).or(Err(Malformed))
    }
}

/// Takes a varint off the start of `bytes`.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        // Of the tenth byte, one bit is left.
        if index + 1 == VARINT_BYTES_MAX && byte > 1 {
            return Err(Malformed);
        }
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// Takes what a varint gives the length of: a string, a message, or one of several messages.
pub fn take_delimited<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(take_varint(bytes)?).or(Err(Malformed))?;
    take(bytes, length)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

/// The fields of a message, in the order in which they stand.
pub fn fields(mut message: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>), Malformed>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = take_field(&mut message);
        if field.is_err() {
            message = &[];
        }
        Some(field)
    })
}

fn take_field<'a>(message: &mut &'a [u8]) -> Result<(u32, Value<'a>), Malformed> {
    let tag = take_varint(message)?;
    let number = u32::try_from(tag >> 3).or(Err(Malformed))?;
    let value = match tag & 7 {
        _ if number == 0 => return Err(Malformed),
        WIRE_VARINT => Value::Varint(take_varint(message)?),
        WIRE_BYTES => Value::Bytes(take_delimited(message)?),
        WIRE_FIXED64 => take(message, 8).map(|_| Value::Fixed)?,
        WIRE_FIXED32 => take(message, 4).map(|_| Value::Fixed)?,
        // Groups are of proto2 and deprecated.
        _ => return Err(Malformed),
    };
    Ok((number, value))
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field with a number, also where it is zero.
pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3 | WIRE_VARINT);
    put_varint(out, value);
}

/// A field with text, bytes or a whole message, also where it is empty.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_varint(out, u64::from(field) << 3 | WIRE_BYTES);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// The key of a field with a message; its body and [`end_message`] follow.
pub fn begin_message(out: &mut Vec<u8>, field: u32) -> usize {
    put_varint(out, u64::from(field) << 3 | WIRE_BYTES);
    out.len()
}

/// Puts the length of all that was written since `start` in front of it.
pub fn end_message(out: &mut Vec<u8>, start: usize) {
    // It is known last and stands first: its bytes are turned from the end to the front.
    let end = out.len();
    put_varint(out, (end - start) as u64);
    let length_bytes = out.len() - end;
    out[start..].rotate_right(length_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_varint_is_read_as_it_was_written(
            value: u64,
            rest in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert!(bytes.len() <= VARINT_BYTES_MAX);
            bytes.extend(&rest);
            let mut bytes = bytes.as_slice();
            prop_assert_eq!(take_varint(&mut bytes), Ok(value));
            prop_assert_eq!(bytes, rest);
        }

        #[test]
        fn fields_are_read_as_they_were_written(
            number in 1_u32..1 << 29,
            value: u64,
            text in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut message = Vec::new();
            put_number(&mut message, number, value);
            let start = begin_message(&mut message, number);
            message.extend(&text);
            end_message(&mut message, start);
            put_bytes(&mut message, number, &text);
            let fields: Vec<_> = fields(&message).collect();
            let bytes = Ok((number, Value::Bytes(&text)));
            prop_assert_eq!(fields, [Ok((number, Value::Varint(value))), bytes, bytes]);
        }

        #[test]
        fn arbitrary_bytes_are_fields_or_malformed(
            message in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let all: Vec<_> = fields(&message).collect();
            prop_assert!(all.iter().rev().skip(1).all(Result::is_ok));
        }
    }

    #[test]
    fn fields_of_fixed_width_are_passed_over_and_groups_are_malformed() {
        let message = [0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x15, 1, 2, 3, 4, 0x18, 7];
        let read: Result<Vec<_>, _> = fields(&message).collect();
        let expected = [(1, Value::Fixed), (2, Value::Fixed), (3, Value::Varint(7))];
        assert_eq!(read.unwrap(), expected);
        for malformed in [&[0x0B][..], &[0x00, 0x01], &[0x0A, 0x02, 0x01], &[0x80]] {
            assert_eq!(fields(malformed).next(), Some(Err(Malformed)));
        }
    }

    #[test]
    fn a_varint_over_64_bits_is_malformed() {
        let mut most = [0xFF; VARINT_BYTES_MAX];
        most[VARINT_BYTES_MAX - 1] = 1;
        assert_eq!(take_varint(&mut &most[..]), Ok(u64::MAX));
        most[VARINT_BYTES_MAX - 1] = 2;
        assert_eq!(take_varint(&mut &most[..]), Err(Malformed));
    }
}
