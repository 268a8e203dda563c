//! The publisher's side of the presence table.

use std::collections::HashMap;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::{CLIENT, ClientInfo, FLAG_ANNOUNCE, FLAG_SHOWN, HEAD_WORDS, NEXT, OWNER};
use crate::channels::ChannelKey;
use crate::entry::EventView;
use crate::error::SegmentError;
use crate::heap::writer::{HeapWriter, Recovery};
use crate::heap::{CELL_BYTES, KIND_ENTRY, Link, cells_for, cells_for_channel};
use crate::host;
use crate::layout::Kind;
use crate::region::Region;

/// No entry.
const NOBODY: usize = usize::MAX;

type Client = [u8; 16];

/// A client in a channel, as far as plans need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Uplink of the worker that serves it.
    pub owner: u32,
    pub presence: bool,
    pub announce: bool,
}

/// A client that goes with its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub key: ChannelKey,
    pub channel: String,
    pub client: Client,
    pub member: Member,
    /// Protobuf of the ClientInfo.
    pub info: Vec<u8>,
}

#[derive(Debug)]
struct Channel {
    link: Link,
    name: String,
    /// The entry that came last; a channel without entries is not there.
    newest: usize,
    clients: u32,
    users: u32,
}

/// An entry, as this writer knows it.
#[derive(Clone, Copy, Debug)]
struct Node {
    link: Link,
    key: ChannelKey,
    client: Client,
    member: Member,
    user: u128,
    /// Neighbours in its channel.
    newer: usize,
    older: usize,
}

/// The only writer of a presence table.
#[derive(Debug)]
pub struct PresenceWriter {
    heap: HeapWriter,
    channels: HashMap<ChannelKey, Channel>,
    nodes: Vec<Option<Node>>,
    free_nodes: Vec<usize>,
    by_client: HashMap<(ChannelKey, Client), usize>,
    /// How many clients of a channel that are shown have this user.
    users: HashMap<(ChannelKey, u128), u32>,
    /// Users are known by a keyed hash, so that nobody can choose two of one.
    hash_key: [u64; 2],
}

impl PresenceWriter {
    /// Takes the table over as an earlier publisher left it.
    ///
    /// # Errors
    /// [`SegmentError`] where the region holds no presence table; [`SegmentError::Claimed`] for a
    /// second writer of this process.
    pub fn open(region: Region) -> Result<Self, SegmentError> {
        let mut recovery = Recovery::open(region, Kind::Presence)?;
        let channels = recovery.channels();
        let mut found = Vec::new();
        for channel in &channels {
            let (mut link, mut entries) = (channel.first, Vec::new());
            while let Some((cell, info)) = recovery.keep(link, KIND_ENTRY, HEAD_WORDS) {
                entries.push((link, cell, info));
                link = Link(cell.head(NEXT));
            }
            found.push(entries);
        }
        let mut writer = Self {
            heap: recovery.finish(),
            channels: HashMap::new(),
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            by_client: HashMap::new(),
            users: HashMap::new(),
            hash_key: [host::random()?, host::random()?],
        };
        for (channel, entries) in channels.into_iter().zip(found) {
            let (key, link) = (channel.key, channel.link);
            let mut next = Link::NONE;
            let mut twice = Vec::new();
            // From the oldest on, so that each is the newest when it is entered.
            for (entry, cell, info) in entries.into_iter().rev() {
                writer.heap.set_head(entry, NEXT, next.0);
                next = entry;
                let mut client = [0; 16];
                client[..8].copy_from_slice(&cell.head(CLIENT).to_le_bytes());
                client[8..].copy_from_slice(&cell.head(CLIENT + 1).to_le_bytes());
                let member = member_of(cell.head(OWNER));
                if let Some(older) = writer.by_client.remove(&(key, client)) {
                    // Its replacement is there, and its publisher died before it was taken out.
                    twice.push(older);
                }
                writer.enter(link, key, &channel.name, (entry, client, member, &info));
            }
            writer.heap.set_first(link, next);
            for older in twice {
                writer.take_out(older);
            }
            match writer.channels.get(&key) {
                Some(_) => writer.store_count(key),
                None => writer.heap.remove_channel(link, key),
            }
        }
        Ok(writer)
    }

    /// A client in a channel, and whether it is described by `info`.
    #[must_use]
    pub fn member(&self, key: ChannelKey, client: Client, info: &[u8]) -> Option<(Member, bool)> {
        let node = self.node(*self.by_client.get(&(key, client))?)?;
        Some((node.member, self.info(node.link) == info))
    }

    /// The Protobuf of the ClientInfo of a client in a channel.
    #[must_use]
    pub fn info_of(&self, key: ChannelKey, client: Client) -> Vec<u8> {
        let node = self.by_client.get(&(key, client));
        let node = node.and_then(|index| self.node(*index));
        node.map_or_else(Vec::new, |node| self.info(node.link))
    }

    /// Cells that a join takes at most.
    #[must_use]
    pub fn cells_for(&self, channel: &str, info: &[u8]) -> usize {
        cells_for(HEAD_WORDS, info.len()) + cells_for_channel(channel.len())
    }

    /// Cells that can be written.
    #[must_use]
    pub fn room(&self) -> usize {
        self.heap.room()
    }

    /// Does what a record of the log says. False: there is no room.
    pub fn apply(&mut self, event: &EventView<'_>) -> bool {
        let place = (event.key, event.client);
        let known = self.by_client.get(&place).copied();
        let known = known.and_then(|index| Some((index, *self.node(index)?)));
        if !event.joined {
            if let Some((index, node)) = known
                && node.member.owner == event.source.uplink
            {
                self.by_client.remove(&place);
                self.take_out(index);
                self.store_count(event.key);
            }
            return true;
        }
        let member = Member {
            owner: event.source.uplink,
            presence: event.presence,
            announce: event.announce,
        };
        if let Some((index, node)) = known
            && node.member.presence == member.presence
            && self.info(node.link) == event.info
        {
            self.heap.set_head(node.link, OWNER, owner_word(member));
            if let Some(Some(node)) = self.nodes.get_mut(index) {
                node.member = member;
            }
            return true;
        }
        let is_written = self.add(event, member);
        if is_written && let Some((older, _)) = known {
            self.take_out(older);
        }
        self.store_count(event.key);
        is_written
    }

    /// Those that are served through an uplink, at most `max`.
    #[must_use]
    pub fn owned_by(&self, uplink: u32, max: usize) -> Vec<Left> {
        let nodes = self.nodes.iter().flatten();
        nodes
            .filter(|node| node.member.owner == uplink)
            .take(max)
            .map(|node| Left {
                key: node.key,
                channel: self.channels[&node.key].name.clone(),
                client: node.client,
                member: node.member,
                info: self.info(node.link),
            })
            .collect()
    }

    /// Clients in channels.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.by_client.len() as u64
    }

    /// Channels with clients.
    #[must_use]
    pub fn channels(&self) -> u64 {
        self.channels.len() as u64
    }

    /// Memory in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.heap.used() * CELL_BYTES) as u64
    }

    fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)?.as_ref()
    }

    fn info(&self, link: Link) -> Vec<u8> {
        let heap = self.heap.heap();
        let cell = heap.cell(link, KIND_ENTRY);
        cell.and_then(|cell| heap.payload(&cell, HEAD_WORDS))
            .unwrap_or_default()
    }

    /// A new entry, before all others of its channel.
    fn add(&mut self, event: &EventView<'_>, member: Member) -> bool {
        if self.room() < self.cells_for(event.channel, event.info) {
            return false;
        }
        let channel = self.channels.get(&event.key).map(|channel| channel.link);
        let channel = channel.or_else(|| self.heap.add_channel(event.key, event.channel));
        let Some(channel) = channel else { return false };
        let next = self.heap.first(channel);
        let (low, high) = event.client.split_at(8);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let head = [next.0, owner_word(member), word(low), word(high)];
        let Some(entry) = self.heap.write(KIND_ENTRY, &head, event.info) else {
            return false;
        };
        self.heap.set_first(channel, entry);
        let described = (entry, event.client, member, event.info);
        self.enter(channel, event.key, event.channel, described);
        true
    }

    /// Makes an entry known: the newest of its channel.
    fn enter(
        &mut self,
        link: Link,
        key: ChannelKey,
        name: &str,
        (entry, client, member, info): (Link, Client, Member, &[u8]),
    ) {
        let user = self.user_hash(info);
        let index = self.free_nodes.pop().unwrap_or(self.nodes.len());
        let channel = self.channels.entry(key).or_insert_with(|| Channel {
            link,
            name: name.to_owned(),
            newest: NOBODY,
            clients: 0,
            users: 0,
        });
        let node = Node {
            link: entry,
            key,
            client,
            member,
            user,
            newer: NOBODY,
            older: std::mem::replace(&mut channel.newest, index),
        };
        if member.presence {
            channel.clients += 1;
            let same = self.users.entry((key, user)).or_default();
            *same += 1;
            channel.users += u32::from(*same == 1);
        }
        if let Some(Some(older)) = self.nodes.get_mut(node.older) {
            older.newer = index;
        }
        match self.nodes.get_mut(index) {
            Some(place) => *place = Some(node),
            None => self.nodes.push(Some(node)),
        }
        self.by_client.insert((key, client), index);
    }

    /// Takes an entry out of its channel, and the channel out of the directory with its last.
    fn take_out(&mut self, index: usize) {
        let Some(node) = self.nodes.get_mut(index).and_then(Option::take) else {
            return;
        };
        self.free_nodes.push(index);
        let Some(channel) = self.channels.get_mut(&node.key) else {
            return;
        };
        if node.member.presence {
            channel.clients -= 1;
            if let Some(same) = self.users.get_mut(&(node.key, node.user)) {
                *same -= 1;
                if *same == 0 {
                    self.users.remove(&(node.key, node.user));
                    channel.users -= 1;
                }
            }
        }
        if let Some(Some(older)) = self.nodes.get_mut(node.older) {
            older.newer = node.newer;
        }
        let next = self.heap.head(node.link, NEXT);
        match self.nodes.get_mut(node.newer) {
            Some(Some(newer)) => {
                newer.older = node.older;
                self.heap.set_head(newer.link, NEXT, next);
            }
            _ => {
                channel.newest = node.older;
                self.heap.set_first(channel.link, Link(next));
            }
        }
        if channel.newest == NOBODY {
            self.heap.remove_channel(channel.link, node.key);
            self.channels.remove(&node.key);
        }
        self.heap.free(node.link);
    }

    fn store_count(&self, key: ChannelKey) {
        if let Some(channel) = self.channels.get(&key) {
            let count = u64::from(channel.clients) << 32 | u64::from(channel.users);
            self.heap.set_count(channel.link, count);
        }
    }

    fn user_hash(&self, info: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key[0], self.hash_key[1]);
        hasher.write(ClientInfo::parse(info).user);
        hasher.finish128().as_u128()
    }
}

fn owner_word(member: Member) -> u64 {
    let shown = u64::from(member.presence) * FLAG_SHOWN;
    let announce = u64::from(member.announce) * FLAG_ANNOUNCE;
    u64::from(member.owner) << 32 | shown | announce
}

fn member_of(word: u64) -> Member {
    Member {
        owner: (word >> 32) as u32,
        presence: word & FLAG_SHOWN != 0,
        announce: word & FLAG_ANNOUNCE != 0,
    }
}
