//! An uplink: requests of one producer to the publisher, and its replies, in a segment of their
//! own.
//!
//! ```text
//! request   id u64, idempotency u128, flags u24, kind u8, channel bytes u32, tags bytes u32,
//!           info bytes u32, version u64 x 2 (number, epoch), UUID 16 bytes,
//!           channel (UTF-8), tags (a JSON object, or nothing), info, data
//! reply     id u64, status u32, epoch u32, offset u64
//! ```
//!
//! The consumer (publisher) reads requests, pushes replies and only then releases the requests: if
//! it dies in between, its successor finds them again, and a reply may come twice. The producer
//! drops the second. It never has more requests waiting for replies than half the reply ring holds,
//! so that both find room.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use crate::error::{SegmentError, UplinkError};
use crate::lane::{LANE_BYTES, Lane, LaneConsumer, LaneProducer};
use crate::layout::{self, HEADER_BYTES, Kind, Owner};
use crate::publication::Version;
use crate::region::Region;
use crate::ring::{RECORD_SHARE, Ring};

/// The reply ring is so small a part of the request ring: the shortest request takes as much room
/// as two replies.
const REPLY_SHARE: u64 = 4;

/// Kind of the records of both rings.
const RECORD: u32 = 1;

const REQUEST_HEAD_BYTES: usize = 72;
const REPLY_BYTES: usize = 24;

const FLAG_WANT_REPLY: u32 = 1;
const FLAG_JSON: u32 = 2;
const FLAG_SKIP_HISTORY: u32 = 4;
const FLAG_DELTA: u32 = 8;
const FLAG_PRESENCE: u32 = 16;
const FLAG_ANNOUNCE: u32 = 32;
const FLAG_QUIET: u32 = 64;
const FLAG_UUID: u32 = 128;

/// The kind of a request travels above its flags.
const KIND_SHIFT: u32 = 24;

const REQUESTS_AT: usize = HEADER_BYTES;
const REPLIES_AT: usize = REQUESTS_AT + LANE_BYTES;
const RINGS_AT: usize = layout::whole_pages(REPLIES_AT + LANE_BYTES);

const CAPACITY_PARAMETER: usize = 0;

/// The smallest request ring: its reply ring can just hold a reply (see [`RECORD_SHARE`]).
const CAPACITY_MIN: u64 = REPLY_SHARE * (RECORD_SHARE * Ring::record_bytes(REPLY_BYTES)) as u64;
const _: () = assert!(CAPACITY_MIN == 1024);

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestKind {
    /// Publish `data` to `channel`.
    #[default]
    Publish = 0,
    /// `client` is in `channel` from now on, as `info` describes it; its connection is served by
    /// whoever asks.
    Join = 1,
    /// `client` is not in `channel` any more, if it is served by whoever asks.
    Leave = 2,
    /// Let all workers have an order: `data` is its JSON text.
    Order = 3,
    /// Let the owner of session `client` have the commands in `data`.
    Emulate = 4,
    /// Forget what was published to `channel`; epoch and offsets go on.
    HistoryRemove = 5,
}

impl RequestKind {
    const ALL: [RequestKind; 6] = [
        RequestKind::Publish,
        RequestKind::Join,
        RequestKind::Leave,
        RequestKind::Order,
        RequestKind::Emulate,
        RequestKind::HistoryRemove,
    ];
}

/// What a producer asks for. What a kind does not speak of is left at its default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Comes back in the reply. Unique among the requests that wait for one.
    pub id: u64,
    pub kind: RequestKind,
    pub want_reply: bool,
    /// Whether `data` is JSON text; else it is any bytes. Of an emulation: whether its session
    /// speaks JSON; else Protobuf.
    pub json: bool,
    /// Publish: only to those who are there now. It gets no offset.
    pub skip_history: bool,
    /// Publish: subscribers that asked for it get the difference to the one before.
    pub delta: bool,
    /// Join: shown and counted by the presence table.
    pub presence: bool,
    /// Join: its subscribers are told, of this and of the end of it.
    pub announce: bool,
    /// Join: nobody is told; an old connection has moved to whoever asks.
    pub quiet: bool,
    /// Publish: where it is superseded by that of the channel, it is only answered.
    pub version: Version,
    /// Publish: keyed hash of the idempotency key. 0: none.
    pub idempotency: u128,
    /// UUID. Publish: the client that must not get it. Join, Leave: the client. Emulate: the
    /// session.
    pub client: Option<[u8; 16]>,
    pub channel: &'a str,
    /// Text of a JSON object, or empty.
    pub tags: &'a [u8],
    /// Protobuf of the ClientInfo of the client that publishes or joins, or empty.
    pub info: &'a [u8],
    pub data: &'a [u8],
}

impl Request<'_> {
    fn flags(&self) -> u32 {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        flag(self.want_reply, FLAG_WANT_REPLY)
            | flag(self.json, FLAG_JSON)
            | flag(self.skip_history, FLAG_SKIP_HISTORY)
            | flag(self.delta, FLAG_DELTA)
            | flag(self.presence, FLAG_PRESENCE)
            | flag(self.announce, FLAG_ANNOUNCE)
            | flag(self.quiet, FLAG_QUIET)
            | flag(self.client.is_some(), FLAG_UUID)
    }

    fn head(&self) -> [u8; REQUEST_HEAD_BYTES] {
        let flags = self.flags() | (self.kind as u32) << KIND_SHIFT;
        let mut head = [0; REQUEST_HEAD_BYTES];
        head[0..8].copy_from_slice(&self.id.to_le_bytes());
        head[8..24].copy_from_slice(&self.idempotency.to_le_bytes());
        head[24..28].copy_from_slice(&flags.to_le_bytes());
        // Longer parts than u32::MAX do not fit the ring, the record's length tells so.
        head[28..32].copy_from_slice(&(self.channel.len() as u32).to_le_bytes());
        head[32..36].copy_from_slice(&(self.tags.len() as u32).to_le_bytes());
        head[36..40].copy_from_slice(&(self.info.len() as u32).to_le_bytes());
        head[40..48].copy_from_slice(&self.version.number.to_le_bytes());
        head[48..56].copy_from_slice(&self.version.epoch.to_le_bytes());
        head[56..72].copy_from_slice(&self.client.unwrap_or_default());
        head
    }

    #[inline]
    fn parse(payload: &[u8]) -> Option<Request<'_>> {
        let (head, rest) = payload.split_first_chunk::<REQUEST_HEAD_BYTES>()?;
        let flags = u32_at(head, 24);
        let has = |flag| flags & flag != 0;
        let kind = *RequestKind::ALL.get((flags >> KIND_SHIFT) as usize)?;
        let (channel, rest) = rest.split_at_checked(u32_at(head, 28) as usize)?;
        let (tags, rest) = rest.split_at_checked(u32_at(head, 32) as usize)?;
        let (info, data) = rest.split_at_checked(u32_at(head, 36) as usize)?;
        Some(Request {
            id: u64_at(head, 0),
            kind,
            want_reply: has(FLAG_WANT_REPLY),
            json: has(FLAG_JSON),
            skip_history: has(FLAG_SKIP_HISTORY),
            delta: has(FLAG_DELTA),
            presence: has(FLAG_PRESENCE),
            announce: has(FLAG_ANNOUNCE),
            quiet: has(FLAG_QUIET),
            version: Version {
                number: u64_at(head, 40),
                epoch: u64_at(head, 48),
            },
            idempotency: u128::from(u64_at(head, 16)) << 64 | u128::from(u64_at(head, 8)),
            client: has(FLAG_UUID).then(|| *head.last_chunk().expect("sixteen bytes")),
            channel: std::str::from_utf8(channel).ok()?,
            tags,
            info,
            data,
        })
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    pub id: u64,
    /// 0, or the number of an error.
    pub status: u32,
    pub epoch: u32,
    pub offset: u64,
}

impl Reply {
    fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut bytes = [0; REPLY_BYTES];
        bytes[0..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.status.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    fn parse(payload: &[u8]) -> Option<Reply> {
        let bytes: &[u8; REPLY_BYTES] = payload.try_into().ok()?;
        Some(Reply {
            id: u64_at(bytes, 0),
            status: u32_at(bytes, 8),
            epoch: u32_at(bytes, 12),
            offset: u64_at(bytes, 16),
        })
    }
}

/// Bytes of a segment that holds an uplink with a request ring of `capacity` bytes.
pub const fn segment_bytes(capacity: u64) -> usize {
    RINGS_AT + (capacity + capacity / REPLY_SHARE) as usize
}

/// Makes a zeroed region of at least [`segment_bytes`] bytes an empty uplink whose request ring has
/// `capacity` bytes (a power of two), its first request to be at position `start`.
///
/// # Errors
/// [`SegmentError::Parameter`] if the parameters or the size of the region are not possible.
pub fn format(
    region: &Region,
    capacity: u64,
    start: u64,
    owner: Owner,
) -> Result<(), SegmentError> {
    if !start.is_multiple_of(crate::ring::ALIGN as u64) {
        let rule = "a multiple of 16";
        return Err(SegmentError::Parameter {
            name: "start",
            value: start,
            rule,
        });
    }
    lanes(region, capacity)?;
    layout::format(region, Kind::Uplink, owner, &[capacity], |region| {
        Lane::format(region, REQUESTS_AT, start);
        Lane::format(region, REPLIES_AT, start);
    });
    Ok(())
}

/// The lanes of a region: requests, replies.
fn lanes(region: &Region, capacity: u64) -> Result<(Lane, Lane), SegmentError> {
    if capacity < CAPACITY_MIN {
        let rule = "a power of two, at least 1024 bytes";
        return Err(SegmentError::Parameter {
            name: "capacity",
            value: capacity,
            rule,
        });
    }
    let requests = Ring::new(region, RINGS_AT, capacity)?;
    let replies = Ring::new(region, RINGS_AT + capacity as usize, capacity / REPLY_SHARE)?;
    Ok((
        Lane {
            ring: requests,
            words_at: REQUESTS_AT,
        },
        Lane {
            ring: replies,
            words_at: REPLIES_AT,
        },
    ))
}

fn attach(region: &Region) -> Result<(Lane, Lane), SegmentError> {
    let header = layout::attach(region, Kind::Uplink)?;
    lanes(region, header.parameters[CAPACITY_PARAMETER])
}

/// The producer's end of an uplink.
#[derive(Debug)]
pub struct UplinkProducer {
    requests: LaneProducer,
    replies: LaneConsumer,
    /// Ids of the requests that wait for a reply, in order.
    waiting: VecDeque<u64>,
    waiting_max: usize,
}

impl UplinkProducer {
    /// # Errors
    /// A [`SegmentError`] if the region is no uplink or has a producer in this process already.
    pub fn attach(region: Region) -> Result<UplinkProducer, SegmentError> {
        let (requests, replies) = attach(&region)?;
        let replies_max = replies.ring.capacity() as usize / Ring::record_bytes(REPLY_BYTES);
        Ok(UplinkProducer {
            requests: LaneProducer::open(requests)?,
            replies: LaneConsumer::open(replies)?,
            waiting: VecDeque::new(),
            waiting_max: replies_max / 2,
        })
    }

    /// Longest channel, tags, info and data together.
    pub fn request_bytes_max(&self) -> usize {
        self.requests.payload_bytes_max() - REQUEST_HEAD_BYTES
    }

    /// Hands a request over. True if the consumer sleeps and has to be woken.
    ///
    /// # Errors
    /// [`UplinkError::Full`], also if too many requests wait for their replies (read those);
    /// [`UplinkError::TooLarge`]; [`UplinkError::Corrupt`] if the consumer damaged the uplink.
    pub fn publish(&mut self, request: &Request<'_>) -> Result<bool, UplinkError> {
        if request.want_reply && self.waiting.len() >= self.waiting_max {
            return Err(UplinkError::Full);
        }
        let head = request.head();
        let parts = [
            &head,
            request.channel.as_bytes(),
            request.tags,
            request.info,
            request.data,
        ];
        self.requests.push(RECORD, &parts)?;
        if request.want_reply {
            self.waiting.push_back(request.id);
        }
        Ok(self.requests.publish())
    }

    /// Shows the replies that have come, each once, in the order of their requests; returns their
    /// number.
    ///
    /// # Errors
    /// [`UplinkError::Corrupt`] if the consumer damaged the uplink.
    pub fn replies(&mut self, mut each: impl FnMut(Reply)) -> Result<usize, UplinkError> {
        let (waiting, mut shown, mut damage) = (&mut self.waiting, 0, None);
        self.replies.read(usize::MAX, |record| {
            let Some(reply) = Reply::parse(record.payload) else {
                damage = Some(record.position);
                return ControlFlow::Break(());
            };
            // Unknown: said again by a publisher that took over from a dead one.
            if let Some(index) = waiting.iter().position(|id| *id == reply.id) {
                waiting.drain(..=index);
                shown += 1;
                each(reply);
            }
            ControlFlow::Continue(())
        })?;
        if let Some(position) = damage {
            return Err(UplinkError::Corrupt { position });
        }
        self.replies.release(self.replies.position());
        Ok(shown)
    }

    /// Requests that wait for a reply.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Announces a sleep. If true, the caller may block until its bell rings; if false, there are
    /// replies to read.
    pub fn may_sleep(&self) -> bool {
        self.replies.may_sleep()
    }

    /// Ends the announcement of [`UplinkProducer::may_sleep`].
    pub fn awake(&self) {
        self.replies.awake();
    }
}

/// The publisher's end of an uplink.
#[derive(Debug)]
pub struct UplinkConsumer {
    requests: LaneConsumer,
    replies: LaneProducer,
}

impl UplinkConsumer {
    /// Goes on where the consumer before last released.
    ///
    /// # Errors
    /// A [`SegmentError`] if the region is no uplink or has a consumer in this process already.
    pub fn attach(region: Region) -> Result<UplinkConsumer, SegmentError> {
        let (requests, replies) = attach(&region)?;
        Ok(UplinkConsumer {
            requests: LaneConsumer::open(requests)?,
            replies: LaneProducer::open(replies)?,
        })
    }

    /// Shows at most `requests_max` requests, each with the position after it, until `each` breaks
    /// (that request counts as not taken and is shown again). Returns the number taken. Their room
    /// is not free before [`UplinkConsumer::release`].
    ///
    /// # Errors
    /// [`UplinkError::Corrupt`] if what the producer wrote makes no sense: let go of this uplink.
    pub fn read(
        &mut self,
        requests_max: usize,
        mut each: impl FnMut(Request<'_>, u64) -> ControlFlow<()>,
    ) -> Result<usize, UplinkError> {
        let mut damage = None;
        let taken = self.requests.read(requests_max, |record| {
            match Request::parse(record.payload) {
                Some(request) => each(request, record.end),
                None => {
                    damage = Some(record.position);
                    ControlFlow::Break(())
                }
            }
        })?;
        match damage {
            // What came before the damage counts; the next call says what is wrong.
            Some(position) if taken == 0 => Err(UplinkError::Corrupt { position }),
            _ => Ok(taken),
        }
    }

    /// Position after the last request taken.
    pub fn position(&self) -> u64 {
        self.requests.position()
    }

    /// Position up to which requests are done with, also by a consumer that died since.
    pub fn head(&self) -> u64 {
        self.requests.head()
    }

    /// Is done with the requests before `position`; those not shown yet are skipped.
    pub fn release(&mut self, position: u64) {
        self.requests.release(position);
    }

    /// Writes a reply; [`UplinkConsumer::flush`] makes it visible.
    ///
    /// # Errors
    /// [`UplinkError::Full`]: only a producer that breaks the rule of this module gets there.
    pub fn reply(&mut self, reply: &Reply) -> Result<(), UplinkError> {
        self.replies.push(RECORD, &[&reply.encode()]).map(drop)
    }

    /// Lets the producer have the replies. True if it sleeps and has to be woken.
    pub fn flush(&mut self) -> bool {
        self.replies.publish()
    }

    /// Position after the last request that is there now.
    pub fn end(&self) -> u64 {
        self.requests.end()
    }

    /// Whether there are no requests to read.
    pub fn is_idle(&self) -> bool {
        self.requests.is_idle()
    }

    /// Announces a sleep. If true, the caller may block until its bell rings; if false, there are
    /// requests to read.
    pub fn may_sleep(&self) -> bool {
        self.requests.may_sleep()
    }

    /// Ends the announcement of [`UplinkConsumer::may_sleep`].
    pub fn awake(&self) {
        self.requests.awake();
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
