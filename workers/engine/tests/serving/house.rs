//! A worker and a publisher for tests: the real ones, on threads, over heap memory and loopback.

#[path = "../support/engine.rs"]
pub mod engine;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_engine::metrics;
use tidegate_engine::reactor::{Descriptors, Reactor, Regions, Report};
use tidegate_engine::settings::{Namespace, Settings};
use tidegate_ring::layout::Owner;
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::{self, Sequencer};
use tidegate_ring::stats::{SchemaLine, Stats, Value};
use tidegate_ring::uplink::{Reply, Request, UplinkProducer};
use tidegate_ring::wake::Bell;
use tidegate_ring::{channels, history, log, presence, stats, uplink};

/// No wait of a test is longer: what should happen in milliseconds has failed by then.
pub const PATIENCE: Duration = Duration::from_secs(60);

const OWNER: Owner = Owner {
    generation: 1,
    pid: 1,
    start: 1,
};
const LOG_BYTES: u64 = 1 << 18;
const UPLINK_BYTES: u64 = 1 << 18;
const STORE_BYTES: u64 = 1 << 20;

type Order = Box<dyn FnOnce(&mut Reactor) + Send>;

pub struct House {
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    orders: Sender<Order>,
    link: UnixStream,
    reports: Receiver<Report>,
    notices: Arc<Mutex<Vec<String>>>,
    publisher_link: UnixStream,
    threads: Vec<JoinHandle<()>>,
    stats: Stats,
    producer: UplinkProducer,
    publisher: Bell,
    last_id: u64,
}

/// Short times, small bounds: what a test does not change.
pub fn settings() -> Settings {
    let namespace = |name: &str, allow, recovery| Namespace {
        name: name.to_string(),
        allow_subscribe_for_client: allow,
        allow_subscribe_for_anonymous: allow,
        allow_publish_for_client: allow,
        allow_publish_for_anonymous: allow,
        recovery,
        ..Namespace::default()
    };
    let long = Duration::from_secs(60);
    Settings {
        version: "0.1.0".to_string(),
        slot: 0,
        generation: 1,
        seat: 0,
        stats_row: 1,
        connections_max: 1000,
        message_bytes_max: 16_384,
        queue_hard_bytes: 1_048_576,
        queue_soft_bytes: 262_144,
        queue_soft: long,
        channels_per_connection_max: 4,
        handshake_timeout: long,
        header_bytes_max: 4096,
        headers_max: 32,
        accepts_per_turn_max: 16,
        engine: engine::engine(),
        recovery_publications_max: 100,
        close_timeout: Duration::from_millis(500),
        websocket_ping_interval: long,
        websocket_pong_timeout: Duration::from_secs(8),
        tcp_heartbeat_interval: long,
        tcp_heartbeat_timeout: long * 3,
        namespaces: vec![
            namespace("public", true, true),
            namespace("live", true, false),
            namespace("", false, true),
        ],
        ..Settings::default()
    }
}

fn segments() -> (sequencer::Segments, Region, Region) {
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
    (
        sequencer::Segments {
            log,
            channels,
            history,
            presence,
            stats,
        },
        uplink(),
        uplink(),
    )
}

/// The memory of a worker.
fn regions(segments: sequencer::Segments, uplink: Region) -> Regions {
    let sequencer::Segments {
        log,
        channels,
        history,
        presence,
        stats,
    } = segments;
    Regions {
        log,
        channels,
        history,
        presence,
        stats,
        uplink,
    }
}

/// What the publisher is told of namespaces that keep a history.
fn history_rules(settings: &Settings) -> Vec<history::HistoryRule> {
    let kept = settings
        .namespaces
        .iter()
        .filter(|each| each.history_size > 0);
    kept.map(|each| history::HistoryRule {
        namespace: each.name.clone(),
        size: each.history_size as u64,
        ttl: each.history_ttl,
    })
    .collect()
}

fn bell() -> (Bell, OwnedFd) {
    let bell = Bell::new().unwrap();
    let copy = duplicate(&bell);
    (bell, copy)
}

/// A second descriptor of a bell.
fn duplicate(bell: &Bell) -> OwnedFd {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the bell is open while it is borrowed here.
    let fd = unsafe { BorrowedFd::borrow_raw(bell.as_raw_fd()) };
    fd.try_clone_to_owned().unwrap()
}

impl House {
    pub fn open() -> House {
        House::with(settings())
    }

    pub fn with(settings: Settings) -> House {
        let (segments, own_uplink, worker_uplink) = segments();
        let (worker_wake, worker_bell) = bell();
        let (publisher_wake, publisher_bell) = bell();
        let publisher_for_worker = duplicate(&publisher_wake);
        let publisher = Bell::from(duplicate(&publisher_wake));
        let (publisher_link, their_link) = UnixStream::pair().unwrap();
        let (shared, ours) = (segments.clone(), own_uplink.clone());
        let (worker_reply_bell, theirs) = (worker_bell.try_clone().unwrap(), worker_uplink.clone());
        let rules = history_rules(&settings);
        let sequencing = std::thread::spawn(move || {
            let settings = sequencer::Settings {
                stats_row: 0,
                generation: 1,
                lag_budget: Duration::from_secs(1),
                history: rules,
            };
            let wake = Bell::from(publisher_bell);
            let mut sequencer = Sequencer::open(shared, wake, settings, []).unwrap();
            sequencer.attach_reader(0, Bell::from(worker_bell)).unwrap();
            sequencer
                .attach_uplink(1, ours, Bell::new().unwrap())
                .unwrap();
            sequencer
                .attach_uplink(2, theirs, Bell::from(worker_reply_bell))
                .unwrap();
            sequencer.run(their_link.as_fd()).unwrap();
        });
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = (http.local_addr().unwrap(), tcp.local_addr().unwrap());
        let (link, their_link) = UnixStream::pair().unwrap();
        let ((orders, taken), (told, reports)) = (channel(), channel());
        let stats = Stats::attach(segments.stats.clone()).unwrap();
        let notices = Arc::new(Mutex::new(Vec::new()));
        let noticed = notices.clone();
        let serving = std::thread::spawn(move || {
            let mut link = their_link.try_clone().unwrap();
            let wake = duplicate(&worker_wake);
            let descriptors = Descriptors {
                http: http.into(),
                tcp: tcp.into(),
                wake,
                publisher_wake: publisher_for_worker,
                link: their_link.into(),
            };
            let regions = regions(segments, worker_uplink);
            let mut reactor = Reactor::new(settings, regions, descriptors).unwrap();
            serve(&mut reactor, &mut link, &taken, &told, &noticed);
        });
        House {
            http: addresses.0,
            tcp: addresses.1,
            orders,
            link,
            reports,
            notices,
            publisher_link,
            threads: vec![serving, sequencing],
            stats,
            producer: UplinkProducer::attach(own_uplink).unwrap(),
            publisher,
            last_id: 0,
        }
    }

    /// Has the worker's thread do something between two turns.
    pub fn order(&mut self, order: impl FnOnce(&mut Reactor) + Send + 'static) {
        self.orders.send(Box::new(order)).unwrap();
        self.link.write_all(b"!").unwrap();
    }

    /// The worker's next report that is not about the link.
    pub fn report(&self) -> Report {
        self.reports.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits for a line in the worker's log that has all of these words.
    pub fn wait_for_notice(&self, words: &[&str]) {
        wait_for(&format!("a line with {words:?}"), || {
            let lines = self.notices.lock().unwrap();
            lines
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// Publishes JSON, waits for the answer, and returns epoch and offset.
    pub fn publish(&mut self, channel: &str, data: &str) -> (String, u64) {
        let reply = self.publish_request(channel, data.as_bytes(), true);
        assert_eq!(reply.status, 0);
        (format!("{:08x}", reply.epoch), reply.offset)
    }

    pub fn publish_request(&mut self, channel: &str, data: &[u8], json: bool) -> Reply {
        self.request(Request {
            json,
            channel,
            data,
            ..Request::default()
        })
    }

    /// Has the publisher do something, and waits for its answer.
    pub fn request(&mut self, request: Request<'_>) -> Reply {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            want_reply: true,
            ..request
        };
        if self.producer.publish(&request).unwrap() {
            self.publisher.ring();
        }
        let mut answer = None;
        wait_for("the publisher's answer", || {
            self.producer.replies(|reply| answer = Some(reply)).unwrap();
            answer.is_some()
        });
        answer.unwrap()
    }

    /// The worker's value of a metric.
    pub fn count(&self, name: &str) -> u64 {
        self.value(1, name)
    }

    /// The publisher's value of a metric.
    pub fn publisher_count(&self, name: &str) -> u64 {
        self.value(0, name)
    }

    /// What the worker's row has of a metric of any kind.
    pub fn measured(&self, name: &str) -> Value {
        self.metric(1, name)
            .unwrap_or_else(|| panic!("no row has {name}"))
    }

    fn value(&self, number: usize, name: &str) -> u64 {
        match self.metric(number, name) {
            Some(Value::Number(number)) => number,
            other => panic!("{name} is {other:?}"),
        }
    }

    fn metric(&self, number: usize, name: &str) -> Option<Value> {
        let place = self
            .stats
            .schema()
            .iter()
            .position(|line| line.name == name);
        let place = place.unwrap_or_else(|| panic!("no metric {name}"));
        let row = self.stats.rows().into_iter().find(|row| row.row == number);
        row.map(|row| row.values[place].clone())
    }

    pub fn wait_for_count(&self, name: &str, expected: u64) {
        wait_for(&format!("{name} = {expected}"), || {
            self.count(name) == expected
        });
    }

    /// A WebSocket client's connection, upgraded by hand.
    pub fn websocket(&self) -> TcpStream {
        let mut stream = connect(self.http);
        stream
            .write_all(
                b"GET /connection/uni_websocket HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .unwrap();
        let response = read_until(&mut stream, b"\r\n\r\n");
        assert!(
            response.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&response)
        );
        stream
    }
}

fn serve(
    reactor: &mut Reactor,
    link: &mut UnixStream,
    orders: &Receiver<Order>,
    reports: &Sender<Report>,
    notices: &Mutex<Vec<String>>,
) {
    loop {
        match reactor.run().unwrap() {
            Report::Link => {
                if link.read(&mut [0]).unwrap() == 0 {
                    return;
                }
                orders.recv().unwrap()(reactor);
            }
            Report::Notices => notices.lock().unwrap().extend(reactor.take_notices()),
            report => drop(reports.send(report)),
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for link in [&self.link, &self.publisher_link] {
            let _ = link.shutdown(std::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the house has panicked");
            }
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

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
