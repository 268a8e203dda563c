//! Many connections, moved back and forth while everybody talks.

use std::io::Write;
use std::time::Duration;

use tidegate_engine::protocol::tcp::Kind;
use tidegate_ring::sync::{AtomicU64, Ordering};
use tungstenite::Message;

use crate::clients::{Binary, Uni};
use crate::house::{House, Pair, Source};

const CLIENTS: usize = 1000;
const CHANNELS: usize = 8;
const MOVES: u64 = 10;
const PUBLICATIONS_PER_MOVE: u64 = 100;
/// Nobody reads before the end: on a slow machine more would wait for a client than it may have
/// waiting (`queue_soft_bytes`).
const PUBLICATIONS_PER_MOVE_MAX: u64 = 2 * PUBLICATIONS_PER_MOVE;

enum Client {
    Uni { client: Box<Uni>, pings: u32 },
    Binary(Binary),
}

/// xorshift64 (Marsaglia 2003), from a fixed seed so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % bound
    }
}

fn channel_of(client: usize) -> String {
    format!("public:{}", client % CHANNELS)
}

fn connect(house: &House, number: usize) -> Client {
    let channel = channel_of(number);
    if number.is_multiple_of(4) {
        let mut client = Binary::connect(house, u16::MAX, number.is_multiple_of(8));
        client.subscribe(&channel);
        return Client::Binary(client);
    }
    let (client, _) = Uni::connect(house, &format!(r#"{{"{channel}":{{}}}}"#));
    Client::Uni {
        client: Box::new(client),
        pings: 0,
    }
}

fn text(channel: usize, number: u64) -> String {
    // Some fit many to a packet, some fill several.
    let length = [10, 100, 3000][number as usize % 3];
    format!(r#""{channel}/{number}/{}""#, "y".repeat(length))
}

/// Publishes up to `allowed` until told to stop; how many in each channel, and meanwhile in all of
/// them.
fn publish(
    source: &mut Source,
    stop: &AtomicU64,
    allowed: &AtomicU64,
    total: &AtomicU64,
) -> [u64; CHANNELS] {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut published = [0; CHANNELS];
    while stop.load(Ordering::Relaxed) == 0 {
        if total.load(Ordering::Relaxed) >= allowed.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_micros(500));
            continue;
        }
        let channel = random.below(CHANNELS);
        published[channel] += 1;
        let data = text(channel, published[channel]);
        let offset = source.publish(&format!("public:{channel}"), &data);
        assert_eq!(offset, published[channel]);
        total.fetch_add(1, Ordering::Relaxed);
        std::thread::park_timeout(Duration::from_micros(500));
    }
    published
}

/// Says things in pieces of any length, until told to stop.
fn chatter(clients: &mut [Client], stop: &AtomicU64) {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let mut said = Vec::new();
    while stop.load(Ordering::Relaxed) == 0 {
        let place = random.below(clients.len());
        let is_talking = said.iter().any(|(talker, _)| *talker == place);
        if !is_talking && let Client::Uni { client, pings } = &mut clients[place] {
            *pings += 1;
            let payload = pings.to_be_bytes();
            let ping = [&[0x89, 0x84, 0, 0, 0, 0], &payload[..]].concat();
            let cut = 1 + random.below(ping.len() - 1);
            client.0.get_mut().write_all(&ping[..cut]).unwrap();
            said.push((place, ping[cut..].to_vec()));
        }
        if said.len() > 20 || stop.load(Ordering::Relaxed) != 0 {
            for (place, rest) in said.drain(..) {
                finish(&mut clients[place], &rest);
            }
        }
        std::thread::park_timeout(Duration::from_micros(200));
    }
    for (place, rest) in said {
        finish(&mut clients[place], &rest);
    }
}

fn finish(client: &mut Client, rest: &[u8]) {
    if let Client::Uni { client, .. } = client {
        client.0.get_mut().write_all(rest).unwrap();
    }
}

/// Reads a client's stream to its last publication: nothing missing, twice or out of order.
fn check(client: &mut Client, channel: usize, published: u64) {
    match client {
        Client::Uni { client, pings } => {
            let (mut offset, mut ponged) = (0, 0);
            while offset < published || ponged < *pings {
                match client.0.read().unwrap() {
                    Message::Text(push) => {
                        let push: serde_json::Value = serde_json::from_str(&push).unwrap();
                        offset += 1;
                        assert_eq!(push["pub"]["offset"], offset, "{push}");
                        let expected: serde_json::Value =
                            serde_json::from_str(&text(channel, offset)).unwrap();
                        assert_eq!(push["pub"]["data"], expected);
                    }
                    Message::Pong(payload) => {
                        ponged += 1;
                        assert_eq!(payload[..], ponged.to_be_bytes());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        Client::Binary(client) => {
            for offset in 1..=published {
                let (kind, payload) = client.next();
                assert_eq!(kind, Kind::Data);
                assert!(payload.ends_with(text(channel, offset).as_bytes()));
                if offset % 4 == 0 {
                    client.send(Kind::Ack, &[]);
                }
            }
        }
    }
}

/// Ends the threads that look at it when it goes.
struct Stopping<'a>(&'a AtomicU64);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(1, Ordering::Relaxed);
    }
}

#[test]
fn nothing_is_lost_repeated_or_torn_when_all_are_moved_back_and_forth() {
    let mut pair = Pair::open();
    let mut clients: Vec<Client> =
        pair.serve(|house| (0..CLIENTS).map(|number| connect(&house, number)).collect());
    let mut source = pair.source.take().unwrap();
    let [stop, allowed, total] = [0; 3].map(AtomicU64::new);
    let published = std::thread::scope(|scope| {
        // The scope waits for its threads: whatever fails below must end them too.
        let stopping = Stopping(&stop);
        let publishing = scope.spawn(|| publish(&mut source, &stop, &allowed, &total));
        let talking = scope.spawn(|| chatter(&mut clients, &stop));
        for number in 0..MOVES {
            allowed.store((number + 1) * PUBLICATIONS_PER_MOVE_MAX, Ordering::Relaxed);
            let (over, adopted) = pair.move_all(number as usize % 2);
            assert_eq!((over.moved, over.lost, over.reason), (CLIENTS, 0, "done"));
            assert_eq!(adopted.count, CLIENTS);
            pair.turn_until("publications", |_| {
                total.load(Ordering::Relaxed) >= (number + 1) * PUBLICATIONS_PER_MOVE
            });
        }
        drop(stopping);
        while !talking.is_finished() {
            pair.turn();
        }
        publishing.join().unwrap()
    });
    assert!(published.iter().all(|count| *count > 0));
    pair.serve(|_| {
        for (number, client) in clients.iter_mut().enumerate() {
            let channel = number % CHANNELS;
            check(client, channel, published[channel]);
        }
    });
}
