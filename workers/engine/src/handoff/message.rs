//! What giver and receiver say to each other: `workers/HANDOFF.md` §3. Numbers are little-endian.

use super::record::{VERSION, VERSION_OLDEST};

/// The longest message: an acknowledgement that refuses each connection of a batch for itself.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// What a greeting begins with, in all versions.
const MAGIC: [u8; 4] = *b"TGHO";

/// Why connections are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// `connections_max` is reached.
    Full = 1,
    /// The kernel had no descriptors left for all that came: none of the batch is taken.
    Descriptors = 2,
    /// The batch is not what it says: none of it is taken.
    Malformed = 3,
}

impl Refusal {
    fn from_wire(number: u8) -> Option<Self> {
        [Self::Full, Self::Descriptors, Self::Malformed]
            .into_iter()
            .find(|each| *each as u8 == number)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The first message of both sides.
    Hello {
        /// Version of the records that the sender writes.
        version: u16,
        /// Oldest version that it reads.
        oldest: u16,
        /// How many connections it has room for; of no meaning from the giver.
        room: u32,
    },
    /// From the giver, with descriptors: the memory of the records, then a socket for each.
    Batch { number: u32, count: u32 },
    /// From the receiver: all of the batch are its own now, save those it refuses, by their places.
    Ack {
        number: u32,
        refused: Vec<(u16, Refusal)>,
    },
    /// From the giver: it has given what it wanted to. Its end of the stream follows.
    Fin,
}

impl Message {
    pub fn hello(room: usize) -> Self {
        Self::Hello {
            version: VERSION,
            oldest: VERSION_OLDEST,
            room: u32::try_from(room).unwrap_or(u32::MAX),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello {
                version,
                oldest,
                room,
            } => {
                out.push(1);
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(&oldest.to_le_bytes());
                out.extend_from_slice(&room.to_le_bytes());
            }
            Self::Batch { number, count } => {
                out.push(2);
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
            }
            Self::Ack { number, refused } => {
                out.push(3);
                out.extend_from_slice(&number.to_le_bytes());
                for (place, refusal) in refused {
                    out.extend_from_slice(&place.to_le_bytes());
                    out.push(*refusal as u8);
                }
            }
            Self::Fin => out.push(4),
        }
        out
    }

    /// `None`: these bytes are no message of this version.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            1 => {
                let rest = rest.strip_prefix(&MAGIC)?;
                let (version, rest) = rest.split_first_chunk()?;
                let (oldest, rest) = rest.split_first_chunk()?;
                // A later version may say more.
                let (room, _) = rest.split_first_chunk()?;
                Some(Self::Hello {
                    version: u16::from_le_bytes(*version),
                    oldest: u16::from_le_bytes(*oldest),
                    room: u32::from_le_bytes(*room),
                })
            }
            2 => {
                let (number, rest) = rest.split_first_chunk()?;
                Some(Self::Batch {
                    number: u32::from_le_bytes(*number),
                    count: u32::from_le_bytes(rest.try_into().ok()?),
                })
            }
            3 => {
                let (number, rest) = rest.split_first_chunk()?;
                let (refused, []) = rest.as_chunks::<3>() else {
                    return None;
                };
                let refused = refused.iter().map(|[low, high, refusal]| {
                    let place = u16::from_le_bytes([*low, *high]);
                    Some((place, Refusal::from_wire(*refusal)?))
                });
                Some(Self::Ack {
                    number: u32::from_le_bytes(*number),
                    refused: refused.collect::<Option<_>>()?,
                })
            }
            4 => rest.is_empty().then_some(Self::Fin),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let messages = [
            Message::hello(7),
            Message::Batch {
                number: 3,
                count: 240,
            },
            Message::Ack {
                number: 3,
                refused: vec![(0, Refusal::Full), (239, Refusal::Descriptors)],
            },
            Message::Fin,
        ];
        for message in messages {
            let bytes = message.encode();
            assert_eq!(Message::parse(&bytes), Some(message));
            for cut in 0..bytes.len() {
                // An acknowledgement that is cut between two refusals is a shorter one.
                assert!(Message::parse(&bytes[..cut]).is_none() || bytes[0] == 3);
            }
        }
    }

    #[test]
    fn the_longest_message_fits_the_buffer() {
        let refused = (0..super::super::BATCH_CONNECTIONS_MAX as u16)
            .map(|place| (place, Refusal::Malformed))
            .collect();
        let ack = Message::Ack { number: 1, refused };
        assert!(ack.encode().len() <= MESSAGE_BYTES_MAX);
    }
}
