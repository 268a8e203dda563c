//! Two workers and a publisher. The publisher has a thread; the workers turn only when told to, so
//! that a test can stop them at any step of a hand-off, or drop one as if it had been killed.

#[path = "../support/engine.rs"]
pub mod engine;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_engine::handoff::{Adopted, HandedOver, Order, Report};
use tidegate_engine::metrics;
use tidegate_engine::reactor::{Descriptors, Reactor, Regions};
use tidegate_engine::settings::{Namespace, Settings};
use tidegate_ring::channels::ChannelTable;
use tidegate_ring::layout::Owner;
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::{self, Sequencer};
use tidegate_ring::stats::{SchemaLine, Stats, Value};
use tidegate_ring::uplink::{Request, UplinkProducer};
use tidegate_ring::wake::Bell;
use tidegate_ring::{channels, history, log, presence, stats, uplink};

/// No wait of a test is longer: what should happen in milliseconds has failed by then.
pub const PATIENCE: Duration = Duration::from_secs(60);

const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};
const LOG_BYTES: u64 = 1 << 23;
const UPLINK_BYTES: u64 = 1 << 20;
const STORE_BYTES: u64 = 1 << 20;
/// Names of the hand-offs of a test.
const ID: u64 = 7;

/// What clients see: both workers behind one pair of listeners.
#[derive(Clone, Copy)]
pub struct House {
    pub http: SocketAddr,
    pub tcp: SocketAddr,
}

/// Publishes from any thread.
pub struct Source {
    producer: UplinkProducer,
    publisher: Bell,
    last_id: u64,
}

pub struct Pair {
    pub house: House,
    /// `None`: killed.
    pub workers: [Option<Reactor>; 2],
    pub source: Option<Source>,
    pub table: ChannelTable,
    stats: Stats,
    links: Vec<UnixStream>,
    publisher_link: UnixStream,
    sequencing: Option<JoinHandle<()>>,
}

pub fn settings(slot: u32) -> Settings {
    let namespace = |name: &str| Namespace {
        name: name.to_string(),
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        recovery: true,
        ..Namespace::default()
    };
    // Longer than the slowest host takes for a test: no ping comes between.
    let long = Duration::from_secs(600);
    Settings {
        version: "0.1.0".to_string(),
        slot,
        generation: 1,
        seat: slot,
        stats_row: 1 + slot,
        connections_max: 20_000,
        message_bytes_max: 65_536,
        queue_hard_bytes: 16 << 20,
        queue_soft_bytes: 8 << 20,
        queue_soft: long,
        channels_per_connection_max: 8,
        handshake_timeout: long,
        header_bytes_max: 4096,
        headers_max: 32,
        accepts_per_turn_max: 64,
        engine: engine::engine(),
        recovery_publications_max: 100,
        close_timeout: long,
        websocket_ping_interval: long,
        websocket_pong_timeout: Duration::from_secs(8),
        tcp_heartbeat_interval: long,
        tcp_heartbeat_timeout: long * 3,
        namespaces: vec![namespace("public")],
        ..Settings::default()
    }
}

struct Segments {
    shared: sequencer::Segments,
    own_uplink: Region,
    worker_uplinks: [Region; 2],
}

fn segments() -> Segments {
    let region = |bytes| Region::heap(bytes);
    let log = region(log::segment_bytes(LOG_BYTES, 2, 256));
    log::format(&log, LOG_BYTES, 2, 256, u64::MAX - 4095, OWNER).unwrap();
    let channels = region(channels::segment_bytes(256).unwrap());
    channels::format(&channels, 256, OWNER).unwrap();
    let history = region(history::segment_bytes(STORE_BYTES).unwrap());
    history::format(&history, STORE_BYTES, OWNER).unwrap();
    let presence = region(presence::segment_bytes(STORE_BYTES).unwrap());
    presence::format(&presence, STORE_BYTES, OWNER).unwrap();
    let schema: Vec<SchemaLine> = sequencer::METRICS
        .iter()
        .map(SchemaLine::from)
        .chain(metrics::schema())
        .collect();
    let stats = region(stats::segment_bytes(&schema, 3).unwrap());
    stats::format(&stats, &schema, 3, OWNER).unwrap();
    let uplink = || {
        let uplink = region(uplink::segment_bytes(UPLINK_BYTES));
        uplink::format(&uplink, UPLINK_BYTES, 0, OWNER).unwrap();
        uplink
    };
    Segments {
        shared: sequencer::Segments {
            log,
            channels,
            history,
            presence,
            stats,
        },
        own_uplink: uplink(),
        worker_uplinks: [uplink(), uplink()],
    }
}

fn duplicate(bell: &Bell) -> OwnedFd {
    // SAFETY: the bell is open while it is borrowed here.
    let fd = unsafe { BorrowedFd::borrow_raw(bell.as_raw_fd()) };
    fd.try_clone_to_owned().unwrap()
}

/// One connected pair of the sockets that hand-offs use.
pub fn channel() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors into `fds`.
    let result = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(result, 0);
    // SAFETY: the call above made both and nobody else has them.
    fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into()
}

/// The publisher, on a thread until its link ends.
fn sequence(
    segments: &Segments,
    wake: Bell,
    bells: &[Bell; 2],
    link: UnixStream,
    rules: Vec<history::HistoryRule>,
) -> JoinHandle<()> {
    let shared = segments.shared.clone();
    let ours = segments.own_uplink.clone();
    let theirs = segments.worker_uplinks.clone();
    let readers = bells.each_ref().map(|bell| Bell::from(duplicate(bell)));
    let repliers = bells.each_ref().map(|bell| Bell::from(duplicate(bell)));
    std::thread::spawn(move || {
        let settings = sequencer::Settings {
            stats_row: 0,
            generation: 1,
            lag_budget: Duration::from_secs(10),
            history: rules,
        };
        let mut sequencer = Sequencer::open(shared, wake, settings, []).unwrap();
        for (seat, bell) in readers.into_iter().enumerate() {
            sequencer.attach_reader(seat as u32, bell).unwrap();
        }
        sequencer
            .attach_uplink(1, ours, Bell::new().unwrap())
            .unwrap();
        for (place, (uplink, bell)) in theirs.into_iter().zip(repliers).enumerate() {
            sequencer
                .attach_uplink(2 + place as u32, uplink, bell)
                .unwrap();
        }
        sequencer.run(link.as_fd()).unwrap();
    })
}

impl Pair {
    pub fn open() -> Pair {
        Pair::with(settings)
    }

    pub fn with(settings: impl Fn(u32) -> Settings) -> Pair {
        let segments = segments();
        let publisher_bell = Bell::new().unwrap();
        let bells = [Bell::new().unwrap(), Bell::new().unwrap()];
        let publisher = duplicate(&publisher_bell);
        let (publisher_link, their_link) = UnixStream::pair().unwrap();
        let namespaces = settings(0).namespaces;
        let kept = namespaces.iter().filter(|each| each.history_size > 0);
        let rules = kept.map(|each| history::HistoryRule {
            namespace: each.name.clone(),
            size: each.history_size as u64,
            ttl: each.history_ttl,
        });
        let sequencing = sequence(
            &segments,
            publisher_bell,
            &bells,
            their_link,
            rules.collect(),
        );
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [http, tcp] = listeners.each_ref().map(|each| each.local_addr().unwrap());
        let mut links = Vec::new();
        let mut slot = 0;
        let workers = bells.map(|bell| {
            let (mut link, their_link) = UnixStream::pair().unwrap();
            // A link that stays readable: the worker never sleeps in a turn.
            link.write_all(b"!").unwrap();
            links.push(link);
            let [http, tcp] = listeners
                .each_ref()
                .map(|each| each.try_clone().unwrap().into());
            let descriptors = Descriptors {
                http,
                tcp,
                wake: duplicate(&bell),
                publisher_wake: publisher.try_clone().unwrap(),
                link: their_link.into(),
            };
            let regions = Regions {
                log: segments.shared.log.clone(),
                channels: segments.shared.channels.clone(),
                history: segments.shared.history.clone(),
                presence: segments.shared.presence.clone(),
                stats: segments.shared.stats.clone(),
                uplink: segments.worker_uplinks[slot as usize].clone(),
            };
            slot += 1;
            Some(Reactor::new(settings(slot - 1), regions, descriptors).unwrap())
        });
        Pair {
            house: House { http, tcp },
            workers,
            source: Some(Source {
                producer: UplinkProducer::attach(segments.own_uplink).unwrap(),
                publisher: Bell::from(publisher),
                last_id: 0,
            }),
            table: ChannelTable::attach(segments.shared.channels).unwrap(),
            stats: Stats::attach(segments.shared.stats).unwrap(),
            links,
            publisher_link,
            sequencing: Some(sequencing),
        }
        .with_one_door()
    }

    /// Only the first worker accepts, as before a reload.
    fn with_one_door(mut self) -> Pair {
        let (ours, theirs) = channel();
        let nobody = Order {
            id: 0,
            count: Some(0),
        };
        drop(theirs);
        self.worker(1).hand_over(ours, nobody, false, false);
        while self.worker(1).handoff_report().is_none() {
            self.worker(1).turn().unwrap();
        }
        self
    }

    pub fn worker(&mut self, slot: usize) -> &mut Reactor {
        self.workers[slot].as_mut().expect("it was not killed")
    }

    /// The kernel takes back all that a worker has, and it says nothing.
    pub fn kill(&mut self, slot: usize) {
        self.workers[slot] = None;
    }

    pub fn turn(&mut self) {
        for worker in self.workers.iter_mut().flatten() {
            worker.turn().unwrap();
        }
    }

    /// Turns both workers until `work`, on a thread of its own, is done.
    pub fn serve<T: Send>(&mut self, work: impl FnOnce(House) -> T + Send) -> T {
        let house = self.house;
        std::thread::scope(|scope| {
            let working = scope.spawn(move || work(house));
            while !working.is_finished() {
                self.turn();
                std::thread::yield_now();
            }
            working
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn turn_until(&mut self, what: &str, mut condition: impl FnMut(&mut Pair) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            self.turn();
        }
    }

    /// Orders both to move `count` connections from `from` to the other one.
    pub fn begin_move(&mut self, from: usize, count: Option<usize>) {
        let (ours, theirs) = channel();
        self.worker(1 - from).adopt(theirs, ID);
        self.give(from, ours, count);
    }

    pub fn give(&mut self, from: usize, socket: OwnedFd, count: Option<usize>) {
        let order = Order { id: ID, count };
        self.worker(from).hand_over(socket, order, true, false);
    }

    /// Moves all connections from `from` to the other one.
    pub fn move_all(&mut self, from: usize) -> (HandedOver, Adopted) {
        self.begin_move(from, None);
        self.finish_move(from)
    }

    pub fn finish_move(&mut self, from: usize) -> (HandedOver, Adopted) {
        let (mut over, mut adopted) = (None, None);
        self.turn_until("the end of a hand-off", |pair| {
            over = over.or(pair.handed_over(from));
            adopted = adopted.or(pair.adopted(1 - from));
            over.is_some() && adopted.is_some()
        });
        (over.unwrap(), adopted.unwrap())
    }

    pub fn handed_over(&mut self, slot: usize) -> Option<HandedOver> {
        while let Some(report) = self.worker(slot).handoff_report() {
            match report {
                Report::HandedOver(over) => return Some(over),
                Report::Moving { .. } => {}
                Report::Adopted(_) => panic!("{report:?}"),
            }
        }
        None
    }

    pub fn adopted(&mut self, slot: usize) -> Option<Adopted> {
        self.worker(slot)
            .handoff_report()
            .map(|report| match report {
                Report::Adopted(adopted) => adopted,
                _ => panic!("{report:?}"),
            })
    }

    /// A worker's value of a metric.
    pub fn count(&self, slot: usize, name: &str) -> u64 {
        let mut lines = self.stats.schema().iter();
        let place = lines.position(|line| line.name == name);
        let place = place.unwrap_or_else(|| panic!("no metric {name}"));
        let rows = self.stats.rows();
        let row = rows.iter().find(|row| row.row == 1 + slot).unwrap();
        match row.values[place] {
            Value::Number(number) => number,
            ref other => panic!("{name} is {other:?}"),
        }
    }

    pub fn websockets(&self, slot: usize) -> u64 {
        self.count(slot, r#"connections{transport="websocket"}"#)
    }

    pub fn publish(&mut self, channel: &str, data: &str) -> u64 {
        self.source.as_mut().unwrap().publish(channel, data)
    }
}

impl Source {
    /// Publishes JSON, waits for the answer, and returns the offset.
    pub fn publish(&mut self, channel: &str, data: &str) -> u64 {
        self.request(Request {
            json: true,
            channel,
            data: data.as_bytes(),
            ..Request::default()
        })
    }

    /// Has the publisher do something, waits for the answer, and returns its offset.
    pub fn request(&mut self, request: Request<'_>) -> u64 {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            want_reply: true,
            ..request
        };
        if self.producer.publish(&request).unwrap() {
            self.publisher.ring();
        }
        let deadline = Instant::now() + PATIENCE;
        let mut answer = None;
        while answer.is_none() {
            assert!(Instant::now() < deadline, "the publisher does not answer");
            self.producer.replies(|reply| answer = Some(reply)).unwrap();
            std::thread::yield_now();
        }
        let answer = answer.unwrap();
        assert_eq!(answer.status, 0);
        answer.offset
    }
}

impl House {
    /// A WebSocket client's connection, upgraded by hand.
    pub fn websocket(&self) -> TcpStream {
        let mut stream = connect(self.http);
        stream.write_all(UPGRADE).unwrap();
        let response = read_until(&mut stream, b"\r\n\r\n");
        assert!(response.starts_with(b"HTTP/1.1 101 "));
        stream
    }
}

pub const UPGRADE: &[u8] = b"GET /connection/uni_websocket HTTP/1.1\r\nHost: here\r\n\
    Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

impl Drop for Pair {
    fn drop(&mut self) {
        self.links.clear();
        let _ = self.publisher_link.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.sequencing.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the publisher has panicked");
        }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads byte by byte up to `end`, included.
pub fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "ended after {bytes:?}");
        bytes.push(byte[0]);
    }
    bytes
}
