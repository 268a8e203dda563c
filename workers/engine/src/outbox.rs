//! What is on its way to one client: shared frames in order, and how much of the first is sent.
//!
//! An idle connection's outbox holds no memory beside itself, and neither does one with a single
//! frame, which is the whole of a fan-out in most turns.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use tidegate_ring::keep::FrameRef;

use crate::hub::ChannelId;
use crate::sending::Offer;

/// Bytes for clients, encoded once and shared by every connection that gets them.
#[derive(Debug)]
pub struct Frame {
    /// The channel that it was published to, for frames of the TCP dialect: who unsubscribes gets
    /// no more of them.
    pub channel: Option<ChannelId>,
    pub bytes: Box<[u8]>,
    /// Publications, or other things to say, that are in it.
    pub messages: u32,
    /// Where the keep has it, if it does.
    pub kept: Cell<FrameRef>,
}

impl Frame {
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Rc<Self> {
        Self::with(None, bytes.into(), 1)
    }

    pub fn of_channel(channel: ChannelId, bytes: impl Into<Box<[u8]>>) -> Rc<Self> {
        Self::with(Some(channel), bytes.into(), 1)
    }

    /// Several in one, for who gets them all: of a dialect whose frames just follow each other.
    pub fn joined(frames: &[&Rc<Self>]) -> Rc<Self> {
        if let [only] = frames {
            return Rc::clone(only);
        }
        let bytes: Vec<&[u8]> = frames.iter().map(|frame| &frame.bytes[..]).collect();
        let messages = frames.iter().map(|frame| frame.messages).sum();
        Self::with(None, bytes.concat().into(), messages)
    }

    fn with(channel: Option<ChannelId>, bytes: Box<[u8]>, messages: u32) -> Rc<Self> {
        Rc::new(Self {
            channel,
            bytes,
            messages,
            kept: Cell::default(),
        })
    }
}

/// What a queued frame costs beside its bytes (slot, reference count, allocation), rounded up: so
/// that a queue of many tiny frames is bounded in memory as well.
const FRAME_OVERHEAD_BYTES: usize = 32;

/// A bounded queue of frames; the bounds are its owner's, see [`Outbox::queued_bytes`].
#[derive(Default)]
pub struct Outbox {
    head: Option<Rc<Frame>>,
    /// Frames after `head`; allocated for the second one and freed with the last.
    #[expect(
        clippy::box_collection,
        reason = "one word in a million idle connections, not four"
    )]
    rest: Option<Box<VecDeque<Rc<Frame>>>>,
    queued_bytes: u32,
    head_sent: u32,
}

fn cost(frame: &Frame) -> u32 {
    u32::try_from(frame.bytes.len() + FRAME_OVERHEAD_BYTES).expect("frames are below 4 GiB")
}

fn messages(frame: &Rc<Frame>) -> usize {
    frame.messages as usize
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// What the queue holds, a fixed overhead per frame included; frames leave it whole.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes as usize
    }

    /// The first frame and how many of its bytes were sent.
    pub fn head(&self) -> Option<(&Rc<Frame>, usize)> {
        self.head
            .as_ref()
            .map(|frame| (frame, self.head_sent as usize))
    }

    #[inline]
    pub fn push(&mut self, frame: Rc<Frame>) {
        self.queued_bytes += cost(&frame);
        match (&self.head, &mut self.rest) {
            (None, _) => self.head = Some(frame),
            (Some(_), Some(rest)) => rest.push_back(frame),
            (Some(_), None) => self.rest = Some(Box::new(VecDeque::from([frame]))),
        }
    }

    /// Every frame in order; of the first, a part may be sent.
    pub fn frames(&self) -> impl Iterator<Item = &Rc<Frame>> {
        self.head
            .iter()
            .chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    /// Ends the queue: `socket` gets what it takes at once, above all the answer to an upgrade that
    /// came in the same turn, and the rest is forgotten. Returns how many messages were dropped,
    /// and how many bytes sent. What is wrong with the socket shows at the next flush.
    pub fn cut(&mut self, socket: BorrowedFd<'_>) -> (usize, usize) {
        let mut sent = 0;
        if !self.is_empty() {
            sent = self.offer().send_now(socket).unwrap_or(0);
            self.advance(sent);
        }
        (self.drop_unsent(), sent)
    }

    /// Forgets all that the peer has seen nothing of. A frame half sent stays: what follows it
    /// must begin at a frame's end. Returns how many messages were dropped.
    pub fn drop_unsent(&mut self) -> usize {
        let rest = self.rest.take();
        let dropped = rest.iter().flat_map(|rest| rest.iter()).map(messages).sum();
        if self.head_sent > 0 {
            self.queued_bytes = self.head.as_deref().map_or(0, cost);
            return dropped;
        }
        self.queued_bytes = 0;
        dropped + self.head.take().as_ref().map_or(0, messages)
    }

    /// Forgets the frames of `channel` that the peer has seen nothing of. Returns how many.
    pub fn drop_channel(&mut self, channel: ChannelId) -> usize {
        let mut frames: Vec<_> = self.head.take().into_iter().collect();
        frames.extend(self.rest.take().into_iter().flat_map(|rest| *rest));
        let before = frames.len();
        let begun = usize::from(self.head_sent > 0);
        let mut place = 0;
        frames.retain(|frame| {
            place += 1;
            place <= begun || frame.channel != Some(channel)
        });
        let dropped = before - frames.len();
        self.queued_bytes = 0;
        for frame in frames {
            self.push(frame);
        }
        dropped
    }

    /// Forgets everything, also a message of which a part was sent: for dialects that may stop
    /// between the fragments of a message. Returns how many messages were dropped.
    pub fn clear(&mut self) -> usize {
        let dropped = self.frames().map(messages).sum();
        *self = Self::default();
        dropped
    }

    /// Counts `bytes` of the queue as sent: whole frames go, in order.
    pub fn advance(&mut self, bytes: usize) {
        let mut sent = self.head_sent as usize + bytes;
        while let Some(head) = &self.head {
            if sent < head.bytes.len() {
                break;
            }
            sent -= head.bytes.len();
            self.queued_bytes -= cost(head);
            self.head = self.rest.as_mut().and_then(|rest| rest.pop_front());
        }
        if self.rest.as_ref().is_some_and(|rest| rest.is_empty()) {
            self.rest = None;
        }
        self.head_sent = u32::try_from(sent).expect("frames are below 4 GiB");
    }

    /// All that waits, from where the first frame was left.
    pub fn offer(&self) -> Offer<'_> {
        let first = self.head.as_ref();
        let first = first.map_or(&[][..], |head| &head.bytes[self.head_sent as usize..]);
        Offer::new(first, self.rest.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sending::SLICES_MAX;
    use std::io::{self, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn channel(number: u64) -> ChannelId {
        ChannelId::from_bits(number)
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    /// One attempt: how many bytes were offered, and how many the socket took.
    fn flush(outbox: &mut Outbox, socket: &UnixStream) -> (usize, usize) {
        let offer = outbox.offer();
        let offered = offer.bytes();
        let sent = match offer.send_now(socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other.unwrap(),
        };
        outbox.advance(sent);
        (offered, sent)
    }

    fn drain(socket: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        match socket.read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn frames_leave_in_order_and_the_queue_is_empty_again() {
        let (ours, mut theirs) = pair();
        let mut outbox = Outbox::default();
        for text in ["one ", "two ", "three"] {
            outbox.push(Frame::new(text.as_bytes()));
        }
        assert_eq!(outbox.queued_bytes(), 13 + 3 * FRAME_OVERHEAD_BYTES);
        assert_eq!(flush(&mut outbox, &ours), (13, 13));
        assert_eq!(drain(&mut theirs), b"one two three");
        assert!(outbox.is_empty() && outbox.rest.is_none());
        assert_eq!(outbox.queued_bytes(), 0);
    }

    #[test]
    fn a_partial_write_goes_on_where_it_stopped() {
        let (ours, mut theirs) = pair();
        let mut outbox = Outbox::default();
        let long: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
        outbox.push(Frame::new(&long[..1_500_000]));
        outbox.push(Frame::new(&long[1_500_000..]));
        let mut received = Vec::new();
        let mut blocked = 0;
        while !outbox.is_empty() {
            let (offered, sent) = flush(&mut outbox, &ours);
            received.extend(drain(&mut theirs));
            blocked += usize::from(sent < offered);
        }
        assert!(blocked > 1);
        assert_eq!(received, long);
    }

    #[test]
    fn more_frames_than_one_call_takes_are_left_for_the_next() {
        let (ours, mut theirs) = pair();
        let mut outbox = Outbox::default();
        let frame = Frame::new(&b"x"[..]);
        for _ in 0..SLICES_MAX + 5 {
            outbox.push(Rc::clone(&frame));
        }
        assert_eq!(flush(&mut outbox, &ours), (SLICES_MAX, SLICES_MAX));
        assert_eq!(flush(&mut outbox, &ours), (5, 5));
        assert_eq!(drain(&mut theirs).len(), SLICES_MAX + 5);
        assert_eq!(Rc::strong_count(&frame), 1);
    }

    #[test]
    fn a_frame_half_sent_stays_when_the_rest_is_dropped() {
        let mut outbox = Outbox::default();
        outbox.push(Frame::new(&b"begun"[..]));
        outbox.push(Frame::new(&b"never"[..]));
        outbox.advance(2);
        assert_eq!(outbox.drop_unsent(), 1);
        outbox.push(Frame::new(&b"close"[..]));
        let (ours, mut theirs) = pair();
        flush(&mut outbox, &ours);
        assert_eq!(drain(&mut theirs), b"gunclose");
        outbox.push(Frame::new(&b"never"[..]));
        assert_eq!(outbox.drop_unsent(), 1);
        assert!(outbox.is_empty());
        assert_eq!(outbox.queued_bytes(), 0);
    }

    #[test]
    fn frames_of_a_channel_are_dropped_save_the_one_begun() {
        let mut outbox = Outbox::default();
        for (number, bytes) in [(7, "a1"), (7, "a2"), (8, "b1"), (7, "a3")] {
            outbox.push(Frame::of_channel(channel(number), bytes.as_bytes()));
        }
        outbox.advance(1);
        assert_eq!(outbox.drop_channel(channel(7)), 2);
        assert_eq!(outbox.queued_bytes(), 4 + 2 * FRAME_OVERHEAD_BYTES);
        let (ours, mut theirs) = pair();
        flush(&mut outbox, &ours);
        assert_eq!(drain(&mut theirs), b"1b1");
        outbox.push(Frame::of_channel(channel(7), &b"a"[..]));
        assert_eq!(outbox.clear(), 1);
        assert!(outbox.is_empty());
    }

    #[test]
    fn an_outbox_is_small() {
        assert_eq!(size_of::<Outbox>(), 24);
    }
}
