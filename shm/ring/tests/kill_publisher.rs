//! Publishers killed with SIGKILL at random points while they keep histories and presence: whoever
//! comes after finds the tables as the answered requests say, and every client is told to come and
//! go in turns.
#![cfg(not(loom))]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;

use support::Random;
use support::publisher::{attach, new_uplink_in, presence_request, segments_in, settings};
use support::victim::{PATIENCE, Role, Victim, memory, until};
use tidegate_ring::channels::{ChannelTable, Top};
use tidegate_ring::entry::Entry;
use tidegate_ring::error::UplinkError;
use tidegate_ring::history::{HistoryStore, HistoryWriter};
use tidegate_ring::log::LogReader;
use tidegate_ring::presence::{ClientInfo, PresenceTable, PresenceWriter};
use tidegate_ring::publication::PublicationView;
use tidegate_ring::region::Region;
use tidegate_ring::sequencer::{Segments, Sequencer, Settings};
use tidegate_ring::uplink::{Request, RequestKind, UplinkProducer};
use tidegate_ring::wake::Bell;

const DEATHS: usize = 80;
const DROPS: usize = 12;
const UPLINKS: u32 = 2;
const CLIENTS: u8 = 120;
const BACKLOG: usize = 400;
/// Some milliseconds: as long as a backlog takes.
const LOOKS_MAX: usize = 100;
const CHANNELS: [&str; 4] = ["kept:a", "kept:b", "kept:c", "free"];

/// As the rules of `support::publisher` have it.
const KEPT: u64 = 3;

/// Not a test: what a child process does, for ever.
#[test]
fn child_role() {
    let Some(role) = Role::of_this_process() else {
        return;
    };
    let mut sequencer = take_over(&role.regions);
    match role.name.as_str() {
        "publisher" => {
            // Before it works: it would wait for the reader, which waits for this.
            role.ready.ring();
            loop {
                sequencer.drain().unwrap();
            }
        }
        "dropper" => {
            sequencer.detach_uplink(role.argument as u32).unwrap();
            loop {
                role.ready.ring();
                std::thread::park();
            }
        }
        name => panic!("no such role: {name}"),
    }
}

/// A publisher over the segments and uplinks in the order in which [`Memory`] has them.
fn take_over(regions: &[Region]) -> Sequencer {
    let [log, channels, history, presence, stats, uplinks @ ..] = regions else {
        panic!("five segments, and uplinks");
    };
    let segments = Segments {
        log: log.clone(),
        channels: channels.clone(),
        history: history.clone(),
        presence: presence.clone(),
        stats: stats.clone(),
    };
    let settings = Settings {
        lag_budget: PATIENCE,
        ..settings()
    };
    let bell = Bell::new().unwrap();
    let mut sequencer = Sequencer::open(segments, bell, settings, 1..=UPLINKS).unwrap();
    sequencer.attach_reader(0, Bell::new().unwrap()).unwrap();
    for (id, uplink) in (1..).zip(uplinks) {
        attach(&mut sequencer, id, uplink);
    }
    sequencer
}

struct Memory {
    fds: Vec<OwnedFd>,
    regions: Vec<Region>,
}

impl Memory {
    fn new() -> Memory {
        let (mut fds, mut regions) = (Vec::new(), Vec::new());
        let mut region = |bytes: usize| {
            let (fd, region) = memory(bytes.next_multiple_of(4096));
            fds.push(fd);
            regions.push(region.clone());
            region
        };
        segments_in(&mut region);
        for id in 1..=UPLINKS {
            new_uplink_in(u64::from(id), &mut region);
        }
        Memory { fds, regions }
    }

    fn victim(&self, role: &str, argument: u64) -> Victim {
        Victim::start(role, &self.fds.iter().collect::<Vec<_>>(), argument)
    }
}

/// What a producer waits to hear of.
enum Asked {
    Publish {
        channel: usize,
        data: Vec<u8>,
    },
    Join {
        client: u8,
        owner: u32,
        info: Vec<u8>,
    },
    Leave {
        client: u8,
        owner: u32,
    },
}

/// The other processes of a gateway: workers that ask, and one that reads.
struct World {
    memory: Memory,
    producers: Vec<UplinkProducer>,
    reader: LogReader,
    channels: ChannelTable,
    history: HistoryStore,
    presence: PresenceTable,
    random: Random,
    last_id: u64,
    asked: HashMap<u64, Asked>,
    busy: BTreeSet<u8>,
    /// By channel: what was published at which offset.
    published: Vec<BTreeMap<u64, Vec<u8>>>,
    /// Who is there, by owner, as it describes itself.
    there: BTreeMap<u8, (u32, Vec<u8>)>,
    /// Who is there, as subscribers were told.
    told: BTreeSet<u8>,
}

impl World {
    fn new() -> World {
        let memory = Memory::new();
        let producer = |region: &Region| UplinkProducer::attach(region.clone()).unwrap();
        let [log, channels, history, presence, _, uplinks @ ..] = &memory.regions[..] else {
            panic!("five segments, and uplinks");
        };
        World {
            producers: uplinks.iter().map(producer).collect(),
            reader: LogReader::join(log.clone(), 0).unwrap(),
            channels: ChannelTable::attach(channels.clone()).unwrap(),
            history: HistoryStore::attach(history.clone()).unwrap(),
            presence: PresenceTable::attach(presence.clone()).unwrap(),
            memory,
            random: Random(11),
            last_id: 0,
            asked: HashMap::new(),
            busy: BTreeSet::new(),
            published: CHANNELS.map(|_| BTreeMap::new()).to_vec(),
            there: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    fn ask_at_random(&mut self) {
        let uplink = 1 + self.random.below(UPLINKS as usize) as u32;
        if self.random.below(2) == 0 {
            self.publish(uplink);
        } else {
            self.change_presence(uplink);
        }
    }

    fn publish(&mut self, uplink: u32) {
        let channel = self.random.below(CHANNELS.len());
        let bytes = self.random.below(700);
        let data = [&self.last_id.to_le_bytes()[..], &self.random.bytes(bytes)].concat();
        let request = Request {
            channel: CHANNELS[channel],
            data: &data,
            ..Request::default()
        };
        if let Some(id) = self.ask(uplink, &request) {
            self.asked.insert(id, Asked::Publish { channel, data });
        }
    }

    fn change_presence(&mut self, uplink: u32) {
        let client = self.random.below(CLIENTS.into()) as u8;
        if self.busy.contains(&client) {
            return;
        }
        let known = self.there.get(&client).cloned();
        let is_move = known.as_ref().is_some_and(|(owner, _)| *owner != uplink);
        let asked = match &known {
            Some((_, info)) if is_move => Asked::Join {
                client,
                owner: uplink,
                info: info.clone(),
            },
            Some((owner, _)) => Asked::Leave {
                client,
                owner: *owner,
            },
            None => {
                let bytes = self.random.below(300);
                Asked::Join {
                    client,
                    owner: uplink,
                    info: info(client, bytes),
                }
            }
        };
        let join = |info| presence_request(RequestKind::Join, 0, "room", client, info);
        let id = match &asked {
            Asked::Join { info, .. } => self.ask(
                uplink,
                &Request {
                    quiet: is_move,
                    ..join(info)
                },
            ),
            _ => {
                let leave = presence_request(RequestKind::Leave, 0, "room", client, b"");
                self.ask(uplink, &leave)
            }
        };
        if let Some(id) = id {
            self.busy.insert(client);
            self.asked.insert(id, asked);
        }
    }

    fn ask(&mut self, uplink: u32, request: &Request<'_>) -> Option<u64> {
        let id = self.last_id + 1;
        let request = Request {
            id,
            want_reply: true,
            ..*request
        };
        match self.producers[uplink as usize - 1].publish(&request) {
            Ok(_) => {
                self.last_id = id;
                Some(id)
            }
            Err(UplinkError::Full) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn hear(&mut self) {
        let mut heard = Vec::new();
        for producer in &mut self.producers {
            producer.replies(|reply| heard.push(reply)).unwrap();
        }
        for reply in heard {
            assert_eq!(reply.status, 0);
            match self.asked.remove(&reply.id).expect("asked once") {
                Asked::Publish { channel, data } => {
                    let before = self.published[channel].insert(reply.offset, data);
                    assert_eq!(before, None, "an offset for two");
                }
                Asked::Join {
                    client,
                    owner,
                    info,
                } => {
                    self.busy.remove(&client);
                    self.there.insert(client, (owner, info));
                }
                Asked::Leave { client, owner } => {
                    self.busy.remove(&client);
                    let left = self.there.remove(&client);
                    assert!(left.is_some_and(|(served_by, _)| served_by == owner));
                }
            }
        }
    }

    fn read_log(&mut self) {
        let told = &mut self.told;
        let read = self.reader.read(usize::MAX, |record| {
            let entry = Entry::parse(record.kind, record.payload).expect("a sound record");
            let Entry::Event(event) = entry else { return };
            let is_news = match event.joined {
                true => told.insert(event.client[0]),
                false => told.remove(&event.client[0]),
            };
            assert!(is_news, "client {} was told twice", event.client[0]);
        });
        read.expect("the publisher waits for this reader");
    }

    /// Whatever is being written: what is read is sound.
    fn look(&self) {
        for channel in CHANNELS {
            for payload in self.kept(channel) {
                let view = PublicationView::parse(&payload).expect("a sound publication");
                assert_eq!(view.channel, channel);
            }
        }
        let members = self.members();
        for payload in &members {
            let client = ClientInfo::parse(payload).client;
            assert_eq!(
                *payload,
                info(client[0], payload.len() - info(client[0], 0).len())
            );
        }
        let clients: BTreeSet<_> = members
            .iter()
            .map(|info| ClientInfo::parse(info).client)
            .collect();
        assert_eq!(clients.len(), members.len(), "a client is there twice");
    }

    fn kept(&self, channel: &str) -> Vec<Vec<u8>> {
        let key = self.channels.key(channel);
        let Some(Top { epoch, .. }) = self.channels.top(key) else {
            return Vec::new();
        };
        // Whatever is there by now.
        let top = Top {
            epoch,
            offset: u64::MAX,
            last_position: 0,
        };
        let found = self
            .history
            .read(key, top, None, usize::MAX, false, usize::MAX);
        found.map_or_else(Vec::new, |stretch| stretch.payloads)
    }

    fn members(&self) -> Vec<Vec<u8>> {
        self.presence.members(self.channels.key("room"), usize::MAX)
    }

    /// A publisher that is not killed before it has answered all.
    fn settle(&mut self) {
        let victim = self.memory.victim("publisher", 0);
        victim.await_ready();
        until("all answers", || {
            self.hear();
            self.read_log();
            self.asked.is_empty()
        });
        drop(victim);
        self.read_log();
        self.compare();
    }

    /// Everything is as the answers said.
    fn compare(&self) {
        for (channel, published) in CHANNELS.iter().zip(&self.published) {
            let all: Vec<u64> = published.keys().copied().collect();
            assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>(), "{channel}");
            let kept = if channel.starts_with("kept:") {
                KEPT
            } else {
                0
            };
            let expected = all.len() - all.len().min(kept as usize);
            let found = self.kept(channel);
            let views = found
                .iter()
                .map(|payload| PublicationView::parse(payload).unwrap());
            let found: Vec<_> = views
                .map(|view| (view.offset, view.data.to_vec()))
                .collect();
            let expected: Vec<_> = published
                .iter()
                .skip(expected)
                .map(|(offset, data)| (*offset, data.clone()))
                .collect();
            assert_eq!(found, expected, "{channel}");
        }
        let members: BTreeSet<_> = self.members().into_iter().collect();
        let there: BTreeSet<_> = self.there.values().map(|(_, info)| info.clone()).collect();
        assert_eq!(members, there);
        let users: BTreeSet<_> = there
            .iter()
            .map(|info| ClientInfo::parse(info).user)
            .collect();
        let counts = (there.len() as u32, users.len() as u32);
        assert_eq!(self.presence.stats(self.channels.key("room")), counts);
        assert_eq!(self.told, self.there.keys().copied().collect());
    }

    /// Nothing is held that nobody can reach.
    fn count_memory(&self) {
        let presence = PresenceWriter::open(self.memory.regions[3].clone()).unwrap();
        assert_eq!(presence.entries(), self.there.len() as u64);
        drop(presence);
        let mut history = HistoryWriter::open(self.memory.regions[2].clone(), Vec::new()).unwrap();
        history.expire(0);
        assert_eq!(history.figures().bytes, 0, "without rules nothing is kept");
    }
}

/// A Protobuf ClientInfo of a client, longer by so many bytes.
fn info(client: u8, bytes: usize) -> Vec<u8> {
    let length = [bytes as u8 & 0x7f | 0x80, (bytes >> 7) as u8];
    let mut info = vec![0x0a, 1, b'a' + client % 5, 0x12, 1, client, 0x1a];
    info.extend(length);
    info.extend((0..bytes).map(|at| client ^ at as u8));
    info
}

#[test]
fn a_publisher_killed_anywhere_leaves_tables_that_its_successor_completes() {
    let mut world = World::new();
    let mut moments = Random(12);
    for death in 0..DEATHS {
        // It has enough to do to be killed in the middle of it.
        for _ in 0..BACKLOG {
            world.ask_at_random();
        }
        let victim = world.memory.victim("publisher", 0);
        victim.await_ready();
        for _ in 0..moments.below(LOOKS_MAX) {
            world.read_log();
            world.look();
        }
        drop(victim);
        world.hear();
        if death % 10 == 9 {
            world.settle();
        }
    }
    world.settle();
    world.count_memory();
}

#[test]
fn a_publisher_killed_while_a_worker_is_dropped_is_followed_by_one_that_ends_it() {
    let mut world = World::new();
    let mut moments = Random(13);
    for _ in 0..DROPS {
        // Everybody is there, served through one of the two.
        for client in 0..CLIENTS {
            if !world.there.contains_key(&client) {
                let uplink = 1 + u32::from(client % 2);
                let info = info(client, 60);
                let join = presence_request(RequestKind::Join, 0, "room", client, &info);
                let id = world.ask(uplink, &join).expect("room");
                world.asked.insert(
                    id,
                    Asked::Join {
                        client,
                        owner: uplink,
                        info,
                    },
                );
            }
        }
        world.settle();
        // Publishers are killed until one has done it.
        loop {
            let victim = world.memory.victim("dropper", 2);
            let is_done = {
                let looks = 1 + moments.below(200_000);
                (0..looks).any(|_| {
                    world.read_log();
                    victim.is_ready()
                })
            };
            drop(victim);
            world.look();
            if is_done {
                break;
            }
        }
        world.there.retain(|_, (owner, _)| *owner == 1);
        world.settle();
    }
    world.count_memory();
}
