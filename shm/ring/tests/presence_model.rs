//! The presence table against a plain map: who joined and did not leave is there, counted by
//! client and by user, and nothing leaks, however often a publisher takes over.
#![cfg(not(loom))]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{OWNER, Random};
use tidegate_ring::channels::ChannelKey;
use tidegate_ring::entry::EventView;
use tidegate_ring::presence::{self, ClientInfo, Member, PresenceTable, PresenceWriter};
use tidegate_ring::publication::Source;
use tidegate_ring::region::Region;

const CHANNELS: u64 = 8;
const CLIENTS: usize = 40;

type Place = (u64, [u8; 16]);

fn table(memory_bytes: u64) -> Region {
    let region = Region::heap(presence::segment_bytes(memory_bytes).unwrap());
    presence::format(&region, memory_bytes, OWNER).unwrap();
    region
}

fn key(channel: u64) -> ChannelKey {
    // All in two buckets: chains of four.
    ChannelKey([(channel % 2) << 1 | 1, channel << 1 | 1])
}

fn uuid(client: usize) -> [u8; 16] {
    let mut uuid = [3; 16];
    uuid[0] = client as u8;
    uuid
}

/// A Protobuf ClientInfo: four users, and something that may be long.
fn info(client: usize, about: &[u8]) -> Vec<u8> {
    let mut info = vec![
        0x0a,
        2,
        b'u',
        b'0' + (client % 4) as u8,
        0x12,
        1,
        client as u8,
        0x1a,
    ];
    assert!(about.len() < 1 << 14);
    info.extend([about.len() as u8 & 0x7f | 0x80, (about.len() >> 7) as u8]);
    info.extend(about);
    info
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    member: Member,
    info: Vec<u8>,
}

fn compare(table: &PresenceTable, model: &BTreeMap<Place, Entry>) {
    for channel in 0..CHANNELS {
        let here = model.iter().filter(|(place, _)| place.0 == channel);
        let shown: BTreeSet<Vec<u8>> = here
            .filter(|(_, entry)| entry.member.presence)
            .map(|(_, entry)| entry.info.clone())
            .collect();
        let users: BTreeSet<&[u8]> = shown
            .iter()
            .map(|info| ClientInfo::parse(info).user)
            .collect();
        let found = table.members(key(channel), usize::MAX);
        assert_eq!(found.len(), shown.len(), "channel {channel}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), shown);
        let counts = (shown.len() as u32, users.len() as u32);
        assert_eq!(table.stats(key(channel)), counts, "channel {channel}");
        assert_eq!(table.members(key(channel), 3).len(), shown.len().min(3));
    }
}

/// Applies an event to both.
fn apply(
    writer: &mut PresenceWriter,
    model: &mut BTreeMap<Place, Entry>,
    place: Place,
    joined: bool,
    entry: Entry,
) {
    let event = EventView {
        source: Source {
            uplink: entry.member.owner,
            generation: 1,
            position: 0,
        },
        key: key(place.0),
        channel: &format!("channel:{}", place.0),
        client: place.1,
        joined,
        presence: entry.member.presence,
        announce: entry.member.announce,
        info: &entry.info,
    };
    assert!(writer.apply(&event), "there is room");
    if joined {
        model.insert(place, entry);
    } else if model
        .get(&place)
        .is_some_and(|known| known.member.owner == entry.member.owner)
    {
        model.remove(&place);
    }
}

#[test]
fn who_joined_and_did_not_leave_is_there() {
    for seed in 0..8 {
        let mut random = Random(seed);
        let region = table(1 << 17);
        let reader = PresenceTable::attach(region.clone()).unwrap();
        let mut writer = PresenceWriter::open(region.clone()).unwrap();
        let mut model = BTreeMap::new();
        for _ in 0..600 {
            let (channel, client) = (
                random.below(CHANNELS as usize) as u64,
                random.below(CLIENTS),
            );
            let place = (channel, uuid(client));
            let about = vec![b'x'; [0, 20, 60, 400][random.below(4)]];
            let entry = Entry {
                member: Member {
                    owner: 1 + random.below(3) as u32,
                    presence: random.below(5) > 0,
                    announce: random.below(2) > 0,
                },
                info: info(client, &about),
            };
            match random.below(20) {
                0 => {
                    drop(writer);
                    writer = PresenceWriter::open(region.clone()).unwrap();
                }
                1 => {
                    let owner = 1 + random.below(3) as u32;
                    while let [left, ..] = &writer.owned_by(owner, 5)[..] {
                        let number = left.channel.strip_prefix("channel:").unwrap();
                        let place = (number.parse().unwrap(), left.client);
                        let entry = Entry {
                            member: left.member,
                            info: left.info.clone(),
                        };
                        assert_eq!(model.get(&place), Some(&entry));
                        apply(&mut writer, &mut model, place, false, entry);
                    }
                    assert!(model.values().all(|entry| entry.member.owner != owner));
                }
                step => apply(&mut writer, &mut model, place, step < 13, entry),
            }
            compare(&reader, &model);
            assert_eq!(writer.entries(), model.len() as u64);
        }
        for (place, entry) in model.clone() {
            assert!(
                writer.member(key(place.0), place.1, &entry.info) == Some((entry.member, true))
            );
            apply(&mut writer, &mut model, place, false, entry);
        }
        assert_eq!(
            (writer.entries(), writer.channels(), writer.bytes()),
            (0, 0, 0),
            "a leak"
        );
    }
}

#[test]
fn a_move_to_another_owner_needs_no_room() {
    let region = table(1 << 12);
    let mut writer = PresenceWriter::open(region).unwrap();
    let event = |client, owner| EventView {
        source: Source {
            uplink: owner,
            generation: 1,
            position: 0,
        },
        key: key(1),
        channel: "a",
        client: uuid(client),
        joined: true,
        presence: true,
        announce: true,
        info: b"\x0a\x01u",
    };
    let held = (0..CLIENTS)
        .take_while(|client| writer.apply(&event(*client, 1)))
        .count();
    assert!(
        held > 20 && writer.room() < writer.cells_for("b", b""),
        "{held} clients"
    );
    for client in 0..held {
        assert!(writer.apply(&event(client, 2)));
    }
    assert_eq!(writer.owned_by(1, 1), []);
    assert_eq!(writer.owned_by(2, usize::MAX).len(), held);
}
