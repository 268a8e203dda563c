//! The numbers of one connection: sequence, acknowledgement, window. The server's half.
//!
//! Facts that shape it: a million connections hold one [`Flow`] each, so it is 64 bytes and owns
//! no heap while nothing is in flight; headers are built in the order in which frames are written
//! to the socket, because they carry the newest acknowledgement and the peer refuses older ones.

use std::collections::VecDeque;

use super::Window;
use super::frame::{Agreed, CHECKSUM_BYTES, Frame, HEADER_BYTES, Header, Kind};
use super::frame::{PAYLOAD_BYTES_MAX, checksum};
use super::payload::{Connect, MARKER_LAST, MARKER_MORE};
use crate::protocol::close::Close;

/// DATA frames that may be unacknowledged at once, whatever the window: two bytes of memory each.
/// A client acknowledges every [`ACK_FRAMES_MAX`] at the latest, so an honest one never meets it.
pub const IN_FLIGHT_FRAMES_MAX: usize = 8_192;
/// A receiver acknowledges when this many frames, or half of its window, are unacknowledged.
pub const ACK_FRAMES_MAX: u32 = 1_024;

const _: () = assert!(size_of::<Flow>() <= 64);
const _: () = assert!(ACK_FRAMES_MAX as usize * 2 <= IN_FLIGHT_FRAMES_MAX);

/// What surrounds a piece of a shared message on one connection: `head`, the piece, `trailer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFrame {
    /// Header and marker byte.
    pub head: [u8; HEADER_BYTES + 1],
    /// The checksum, when agreed.
    pub trailer: Option<[u8; CHECKSUM_BYTES]>,
}

#[derive(Clone, Debug)]
pub struct Flow {
    /// Payload lengths of the DATA frames in flight, oldest first; empty and unallocated when idle.
    in_flight: VecDeque<u16>,
    /// Bytes of those frames, headers and checksums included.
    in_flight_bytes: u32,
    sent_seq: u32,
    received_seq: u32,
    /// `ack_seq` of the last frame built.
    told_seq: u32,
    /// Bytes of PUBLISH frames received since then.
    received_unacked_bytes: u32,
    own: Window,
    peer: Window,
    connected: bool,
    /// The CONNECTED frame has been built: checksums begin with the next frame.
    greeted: bool,
    crc: bool,
}

/// A [`Flow`] as plain values, to go on in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowState {
    /// Payload lengths of the DATA frames in flight, oldest first.
    pub in_flight: Vec<u16>,
    pub sent_seq: u32,
    pub received_seq: u32,
    pub told_seq: u32,
    pub received_unacked_bytes: u32,
    pub own: Window,
    pub peer: Window,
    pub connected: bool,
    pub greeted: bool,
    pub crc: bool,
}

impl From<Flow> for FlowState {
    fn from(flow: Flow) -> Self {
        Self {
            in_flight: flow.in_flight.into(),
            sent_seq: flow.sent_seq,
            received_seq: flow.received_seq,
            told_seq: flow.told_seq,
            received_unacked_bytes: flow.received_unacked_bytes,
            own: flow.own,
            peer: flow.peer,
            connected: flow.connected,
            greeted: flow.greeted,
            crc: flow.crc,
        }
    }
}

impl From<FlowState> for Flow {
    fn from(state: FlowState) -> Self {
        let mut flow = Flow {
            in_flight: state.in_flight.into(),
            in_flight_bytes: 0,
            sent_seq: state.sent_seq,
            received_seq: state.received_seq,
            told_seq: state.told_seq,
            received_unacked_bytes: state.received_unacked_bytes,
            own: state.own,
            peer: state.peer,
            connected: state.connected,
            greeted: state.greeted,
            crc: state.crc,
        };
        // Nothing is sequenced before the greeting, so that all of these have the same overhead.
        let overhead = flow.outgoing().overhead() as u32;
        let bytes = |length: &u16| u32::from(*length) + overhead;
        flow.in_flight_bytes = flow.in_flight.iter().map(bytes).sum();
        flow
    }
}

impl Flow {
    /// A connection that has said nothing yet, with the window that this side keeps open.
    pub fn new(own: Window) -> Flow {
        Flow::numbered_from(own, 0)
    }

    /// As [`Flow::new`], with the last sequence number of both directions, for tests of the wrap.
    pub(super) fn numbered_from(own: Window, last_seq: u32) -> Flow {
        Flow {
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            sent_seq: last_seq,
            received_seq: last_seq,
            told_seq: last_seq,
            received_unacked_bytes: 0,
            own,
            peer: Window { size: 0, scale: 0 },
            connected: false,
            greeted: false,
            crc: false,
        }
    }

    /// What [`super::decode`] has to expect of the next frame.
    pub fn agreed(&self) -> Agreed {
        Agreed { crc: self.crc }
    }

    /// Takes the header of a received frame: call it for every frame, before looking inside.
    ///
    /// Errors: [`Close::UnexpectedFrame`], [`Close::BadSequence`], [`Close::BadAcknowledgement`],
    /// [`Close::WindowOverrun`].
    pub fn receive(&mut self, frame: &Frame<'_>) -> Result<(), Close> {
        let header = &frame.header;
        let first = header.kind == Kind::Connect;
        if first == self.connected || !header.kind.is_from_client() {
            return Err(Close::UnexpectedFrame);
        }
        let sequenced = header.kind.is_sequenced();
        let expected = self.received_seq.wrapping_add(u32::from(sequenced));
        if header.seq != expected {
            return Err(Close::BadSequence);
        }
        self.acknowledge(header.ack_seq)?;
        self.peer.size = header.window_size;
        if sequenced {
            self.received_seq = expected;
            let frame_bytes = frame.payload.len() + self.agreed().overhead();
            self.received_unacked_bytes += frame_bytes as u32;
            if self.received_unacked_bytes > self.own.bytes() {
                return Err(Close::WindowOverrun);
            }
        }
        Ok(())
    }

    /// Settles what CONNECT asked for. Every checksum wish is granted.
    pub fn agree(&mut self, connect: &Connect<'_>) {
        self.peer.scale = connect.window_scale;
        self.crc = connect.crc;
        self.connected = true;
    }

    fn acknowledge(&mut self, ack_seq: u32) -> Result<(), Close> {
        let acked_seq = self.sent_seq.wrapping_sub(self.in_flight.len() as u32);
        let newly = ack_seq.wrapping_sub(acked_seq) as usize;
        if newly > self.in_flight.len() {
            return Err(Close::BadAcknowledgement);
        }
        let overhead = self.outgoing().overhead() as u32;
        for length in self.in_flight.drain(..newly) {
            self.in_flight_bytes -= u32::from(length) + overhead;
        }
        if self.in_flight.is_empty() {
            self.in_flight = VecDeque::new();
        }
        Ok(())
    }

    /// Whether a frame should be sent for the acknowledgement's sake. Every frame carries it, so
    /// ask after the answers of a turn were built.
    pub fn ack_due(&self) -> bool {
        self.received_unacked_bytes >= self.own.bytes() / 2
            || self.received_seq.wrapping_sub(self.told_seq) >= ACK_FRAMES_MAX
    }

    /// How many of the `left` bytes of a message may go into the next DATA frame; 0: wait for an
    /// acknowledgement or a wider window.
    ///
    /// A message that does not fit is cut only if half of the window is free, lest a nearly closed
    /// window be filled with crumbs. The peer acknowledges at half its window, so this ends.
    pub fn piece(&self, left: usize) -> usize {
        let window = self.peer.bytes();
        let free = window.saturating_sub(self.in_flight_bytes) as usize;
        let room = free.saturating_sub(self.outgoing().overhead() + 1);
        let piece = left.min(room).min(PAYLOAD_BYTES_MAX - 1);
        let crumb = piece == room && piece < left && free * 2 < window as usize;
        if crumb || self.in_flight.len() == IN_FLIGHT_FRAMES_MAX {
            0
        } else {
            piece
        }
    }

    /// Numbers and counts a DATA frame with `piece`, of at most [`Flow::piece`] bytes; `more`: the
    /// message goes on after it. Build it when it is written, not before.
    pub fn data(&mut self, piece: &[u8], more: bool) -> DataFrame {
        debug_assert!(!piece.is_empty() && piece.len() <= self.piece(piece.len()));
        let mut head = [0; HEADER_BYTES + 1];
        head[..HEADER_BYTES].copy_from_slice(&self.head(Kind::Data, piece.len() + 1));
        head[HEADER_BYTES] = if more { MARKER_MORE } else { MARKER_LAST };
        let trailer = self.outgoing().crc.then(|| checksum(&[&head, piece]));
        DataFrame { head, trailer }
    }

    /// Appends a whole frame of a type that is not sequenced. Build it when it is written.
    ///
    /// # Panics
    /// If the payload is longer than a frame holds: ours are bounded by the names within.
    pub fn frame(&mut self, kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert!(!kind.is_sequenced());
        let agreed = self.outgoing();
        let head = self.head(kind, payload.len());
        out.extend_from_slice(&head);
        out.extend_from_slice(payload);
        if agreed.crc {
            out.extend_from_slice(&checksum(&[&head, payload]));
        }
        self.greeted |= kind == Kind::Connected;
    }

    /// Bytes of DATA frames sent and not acknowledged.
    pub fn in_flight_bytes(&self) -> u32 {
        self.in_flight_bytes
    }

    fn outgoing(&self) -> Agreed {
        Agreed {
            crc: self.crc && self.greeted,
        }
    }

    fn head(&mut self, kind: Kind, payload_bytes: usize) -> [u8; HEADER_BYTES] {
        let length = u16::try_from(payload_bytes).expect("a payload fits the length field");
        if kind.is_sequenced() {
            self.sent_seq = self.sent_seq.wrapping_add(1);
            self.in_flight.push_back(length);
            self.in_flight_bytes += u32::from(length) + self.outgoing().overhead() as u32;
        }
        self.told_seq = self.received_seq;
        self.received_unacked_bytes = 0;
        Header {
            kind,
            seq: self.sent_seq,
            ack_seq: self.received_seq,
            window_size: self.own.size,
            length,
        }
        .encode()
    }
}
