//! An uplink against two plain queues: random operations, every answer compared.
#![cfg(not(loom))]

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;

use support::{Random, STARTS, heap_uplink};
use tidegate_ring::error::UplinkError;
use tidegate_ring::publication::Version;
use tidegate_ring::region::Region;
use tidegate_ring::uplink::{Reply, Request, RequestKind, UplinkConsumer, UplinkProducer};

const CAPACITY: u64 = 2048;
const SEEDS: u64 = 40;
const STEPS: usize = 4000;

#[derive(Clone, Debug, PartialEq)]
struct Sent {
    id: u64,
    want_reply: bool,
    json: bool,
    idempotency: u128,
    channel: String,
    tags: Vec<u8>,
    info: Vec<u8>,
    kind: RequestKind,
    flags: [bool; 5],
    version: Version,
    client: Option<[u8; 16]>,
    data: Vec<u8>,
}

impl Sent {
    fn request(&self) -> Request<'_> {
        let [skip_history, delta, presence, announce, quiet] = self.flags;
        Request {
            id: self.id,
            want_reply: self.want_reply,
            json: self.json,
            idempotency: self.idempotency,
            channel: &self.channel,
            tags: &self.tags,
            info: &self.info,
            kind: self.kind,
            skip_history,
            delta,
            presence,
            announce,
            quiet,
            version: self.version,
            client: self.client,
            data: &self.data,
        }
    }
}

struct Model {
    region: Region,
    producer: UplinkProducer,
    consumer: Option<UplinkConsumer>,
    /// Handed over and not released, oldest first; the first `taken` were shown.
    requests: VecDeque<Sent>,
    /// Positions after the requests that were shown and not released.
    taken: VecDeque<u64>,
    /// Ids of the requests that want a reply and got none.
    waiting: BTreeSet<u64>,
    /// Pushed and not read by the producer.
    replies: VecDeque<Reply>,
    /// Consumers that died between replies and release since the producer last read replies.
    deaths: usize,
    sent: u64,
    fulls: u64,
    random: Random,
}

impl Model {
    fn new(seed: u64, start: u64) -> Model {
        let region = heap_uplink(CAPACITY, start);
        Model {
            producer: UplinkProducer::attach(region.clone()).unwrap(),
            consumer: Some(UplinkConsumer::attach(region.clone()).unwrap()),
            region,
            requests: VecDeque::new(),
            taken: VecDeque::new(),
            waiting: BTreeSet::new(),
            replies: VecDeque::new(),
            deaths: 0,
            sent: 0,
            fulls: 0,
            random: Random(seed),
        }
    }

    fn consumer(&mut self) -> &mut UplinkConsumer {
        self.consumer.as_mut().unwrap()
    }

    fn publish(&mut self) {
        let random = &mut self.random;
        let most = self.producer.request_bytes_max();
        let channel = "k".repeat(random.below(most / 4));
        let tags_bytes = random.below(most / 4);
        let tags = random.bytes(tags_bytes);
        let info_bytes = random.below(most / 4);
        let info = random.bytes(info_bytes);
        let data_bytes = random.below(most - channel.len() - tags.len() - info.len() + 1);
        let kinds = [
            RequestKind::Publish,
            RequestKind::Join,
            RequestKind::HistoryRemove,
        ];
        let sent = Sent {
            id: self.sent,
            want_reply: random.below(2) == 0,
            json: random.below(2) == 0,
            idempotency: u128::from(random.word()) << 64 | u128::from(random.word()),
            channel,
            tags,
            info,
            kind: kinds[random.below(kinds.len())],
            flags: std::array::from_fn(|_| random.below(2) == 0),
            version: Version {
                number: random.word(),
                epoch: random.word(),
            },
            client: (random.below(2) == 0).then(|| [random.word() as u8; 16]),
            data: random.bytes(data_bytes),
        };
        match self.producer.publish(&sent.request()) {
            Ok(wake) => {
                assert!(!wake, "the consumer does not sleep");
                if sent.want_reply {
                    self.waiting.insert(sent.id);
                }
                self.requests.push_back(sent);
                self.sent += 1;
            }
            Err(error) => {
                assert_eq!(error, UplinkError::Full);
                assert!(!self.requests.is_empty() || self.producer.waiting() > 0);
                self.fulls += 1;
            }
        }
    }

    fn refuse_too_large(&mut self) {
        let bytes_max = self.producer.request_bytes_max();
        let data = vec![0; bytes_max];
        let (id, want_reply, json, idempotency, tags) = (u64::MAX, true, true, 0, &[][..]);
        let channel = "k";
        let data = &data[..];
        let request = Request {
            id,
            want_reply,
            json,
            idempotency,
            channel,
            tags,
            data,
            ..Request::default()
        };
        let error = self.producer.publish(&request).unwrap_err();
        assert!(matches!(
            error,
            UplinkError::TooLarge { .. } | UplinkError::Full
        ));
    }

    /// The consumer takes requests, and breaks off before one that it has no room for.
    fn take(&mut self) {
        let (requests_max, breaks_after) = (1 + self.random.below(8), self.random.below(12));
        let expected: Vec<Sent> = self
            .requests
            .iter()
            .skip(self.taken.len())
            .cloned()
            .collect();
        let mut found = 0;
        let taken = &mut self.taken;
        let count = self
            .consumer
            .as_mut()
            .unwrap()
            .read(requests_max, |request, position| {
                assert_eq!(request, expected[found].request());
                if found == breaks_after {
                    return ControlFlow::Break(());
                }
                found += 1;
                taken.push_back(position);
                ControlFlow::Continue(())
            });
        assert_eq!(count, Ok(found));
        assert_eq!(found, expected.len().min(requests_max).min(breaks_after));
    }

    /// Replies to what was taken and releases it; or dies before that, and its successor does it
    /// all once more.
    fn answer(&mut self) {
        let answered = self.random.below(self.taken.len() + 1);
        let wanting: Vec<Reply> = self
            .requests
            .iter()
            .take(answered)
            .filter(|sent| sent.want_reply)
            .map(|sent| Reply {
                id: sent.id,
                status: 7,
                epoch: 9,
                offset: sent.id * 3,
            })
            .collect();
        let dies = self.random.below(8) == 0 && self.deaths == 0;
        for reply in &wanting {
            self.consumer()
                .reply(reply)
                .expect("there is always room for replies");
        }
        assert!(!self.consumer().flush());
        if dies {
            self.deaths += 1;
            self.expect(wanting);
            // What is pushed again is dropped by the producer.
            self.succeed();
            return;
        }
        if answered > 0 {
            let position = self.taken[answered - 1];
            self.consumer().release(position);
            assert_eq!(self.consumer().head(), position);
        }
        self.expect(wanting);
        self.requests.drain(..answered);
        self.taken.drain(..answered);
    }

    /// The producer shows each reply once, however often it was pushed.
    fn expect(&mut self, replies: Vec<Reply>) {
        for reply in replies {
            if self.waiting.remove(&reply.id) {
                self.replies.push_back(reply);
            }
        }
    }

    /// Another consumer takes over: it is shown again what was not released.
    fn succeed(&mut self) {
        drop(self.consumer.take());
        self.consumer = Some(UplinkConsumer::attach(self.region.clone()).unwrap());
        assert!(
            UplinkConsumer::attach(self.region.clone()).is_err(),
            "one consumer"
        );
        assert!(
            UplinkProducer::attach(self.region.clone()).is_err(),
            "one producer"
        );
        self.taken.clear();
    }

    fn collect(&mut self) {
        let mut found = VecDeque::new();
        let count = self.producer.replies(|reply| found.push_back(reply));
        assert_eq!(count, Ok(found.len()));
        assert_eq!(found, self.replies);
        self.replies.clear();
        self.deaths = 0;
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..40 => self.publish(),
            40..65 => self.take(),
            65..85 => self.answer(),
            85..97 => self.collect(),
            97..99 => self.refuse_too_large(),
            _ => self.succeed(),
        }
    }
}

#[test]
fn an_uplink_behaves_as_two_queues_do() {
    let (mut sent, mut fulls) = (0, 0);
    for seed in 0..SEEDS {
        let mut model = Model::new(seed, STARTS[seed as usize % STARTS.len()]);
        for _ in 0..STEPS {
            model.step();
        }
        sent += model.sent;
        fulls += model.fulls;
    }
    assert!(
        sent > 20_000,
        "{sent} requests are too few to mean something"
    );
    assert!(
        fulls > 1000,
        "{fulls} full uplinks are too few to mean something"
    );
}
