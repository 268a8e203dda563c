"""The publisher as a process: order, answers, deaths, hostile neighbours."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from shm import _ring
from tests.support.ring import PublisherProcess, running_publisher
from tests.support.waiting import wait_for

LIMIT_EXCEEDED = 106


@pytest.fixture
def publisher() -> Iterator[PublisherProcess]:
    with running_publisher() as running:
        yield running


def replies_to(producer: _ring.Producer, count: int) -> list[_ring.Reply]:
    found: list[_ring.Reply] = []

    def enough() -> bool:
        found.extend(producer.replies(0.2))
        return len(found) >= count

    wait_for(enough, f"{count} replies")
    return found


def read_all(tail: _ring.LogTail, count: int) -> list[_ring.Publication]:
    found: list[_ring.Publication] = []

    def enough() -> bool:
        found.extend(tail.read())
        return len(found) >= count

    wait_for(enough, f"{count} publications")
    return found


def test_a_publish_is_answered_with_its_place_and_read_from_the_log(
    publisher: PublisherProcess,
) -> None:
    tail, producer = publisher.reader(0), publisher.producer()
    first = producer.publish("news", ' {"a": 1} ', tags='{"k": "v"}')
    second = producer.publish("news", b"\xff\x00", binary=True)
    third = producer.publish("other", "3")
    replies = replies_to(producer, 3)
    assert [(number, status, offset) for number, status, _, offset in replies] == [
        (first, 0, 1),
        (second, 0, 2),
        (third, 0, 1),
    ]
    publications = read_all(tail, 3)
    assert [(p["channel"], p["offset"], p["data"]) for p in publications] == [
        ("news", 1, b'{"a":1}'),
        ("news", 2, b"\xff\x00"),
        ("other", 1, b"3"),
    ]
    assert [p["binary"] for p in publications] == [False, True, False]
    assert publications[0]["tags"] == b'{"k":"v"}'
    assert {p["epoch"] for p in publications} == {epoch for _, _, epoch, _ in replies}
    channels = _ring.Channels(publisher.memory.channels)
    assert channels.top("news") == (replies[0][2], 2)
    assert channels.top("silent") == (replies[0][2], 0)


def test_a_repeated_publish_gets_the_first_answer_even_from_the_next_publisher(
    publisher: PublisherProcess,
) -> None:
    tail, producer = publisher.reader(0), publisher.producer()
    for key in ("a", "b", "a", "a"):
        producer.publish("orders", json.dumps(key), idempotency_key=key)
    producer.publish("bills", '"a"', idempotency_key="a")
    offsets = [offset for _, _, _, offset in replies_to(producer, 5)]
    assert offsets == [1, 2, 1, 1, 1]
    assert publisher.memory.totals()['publishes_total{outcome="duplicate"}'] == 2
    publisher.kill()
    publisher.start()
    for key in ("b", "c"):
        producer.publish("orders", json.dumps(key), idempotency_key=key)
    assert [offset for _, _, _, offset in replies_to(producer, 2)] == [2, 3]
    assert [p["data"] for p in read_all(tail, 4)] == [b'"a"', b'"b"', b'"a"', b'"c"']


@dataclass
class Load:
    """Publishes numbered messages to some channels, as fast as the uplink takes them."""

    producer: _ring.Producer
    name: str
    asked: dict[int, tuple[str, str]] = field(default_factory=dict)
    answered: dict[int, tuple[str, int]] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.publish_burst()
            self.collect(0.01)

    def publish_burst(self) -> None:
        for _ in range(50):
            channel = f"{self.name}:{len(self.asked) % 7}"
            data = f'"{self.name}-{len(self.asked)}"'
            try:
                number = self.producer.publish(channel, data)
            except _ring.Full:
                return
            self.asked[number] = (channel, data)

    def is_answered(self) -> bool:
        self.collect(0.1)
        return len(self.answered) == len(self.asked)

    def collect(self, timeout_s: float) -> None:
        for number, status, epoch, offset in self.producer.replies(timeout_s):
            assert status == 0
            if number in self.answered:
                self.repeated.append(number)
            self.answered[number] = (epoch, offset)


def wait_until_longer(log: list[_ring.Publication], length: int) -> None:
    wait_for(lambda: len(log) >= length, f"{length} publications in the log")


def drain_into(tail: _ring.LogTail, found: list[_ring.Publication], stop: threading.Event) -> None:
    while not stop.is_set():
        if not (publications := tail.read()):
            stop.wait(0.001)
        found += publications


def test_a_killed_publisher_loses_and_repeats_nothing(publisher: PublisherProcess) -> None:
    chance = random.Random(20)
    tail = publisher.reader(0)
    loads = [Load(publisher.producer(), name) for name in ("red", "green", "blue")]
    stopping, reading = threading.Event(), threading.Event()
    log: list[_ring.Publication] = []
    threads = [threading.Thread(target=load.run, args=[stopping]) for load in loads]
    threads.append(threading.Thread(target=drain_into, args=[tail, log, reading]))
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            wait_until_longer(log, len(log) + chance.randrange(1, 3000))
            publisher.kill()
            publisher.start()
    finally:
        stopping.set()
        for thread in threads[:-1]:
            thread.join()
    for load in loads:
        wait_for(load.is_answered, f"answers to all of {load.name}")
    wait_until_longer(log, sum(len(load.asked) for load in loads))
    reading.set()
    threads[-1].join()
    assert tail.lapped == 0
    check_history(log, loads)


def check_history(log: list[_ring.Publication], loads: list[Load]) -> None:
    by_channel: dict[str, list[_ring.Publication]] = defaultdict(list)
    for publication in log:
        by_channel[publication["channel"]].append(publication)
    for channel, publications in by_channel.items():
        offsets = [publication["offset"] for publication in publications]
        assert offsets == list(range(1, len(offsets) + 1)), channel
    assert len({publication["epoch"] for publication in log}) == 1
    placed = {(p["channel"], p["offset"]): p["data"].decode() for p in log}
    assert len(placed) == sum(len(load.asked) for load in loads), "each was published once"
    for load in loads:
        assert not load.repeated
        for number, (channel, data) in load.asked.items():
            _, offset = load.answered[number]
            assert placed[channel, offset] == data


def test_a_publisher_killed_while_nobody_looks_wakes_its_readers_when_it_is_back(
    publisher: PublisherProcess,
) -> None:
    producer = publisher.producer()
    publisher.kill()
    for number in range(100):
        producer.publish("news", str(number))
    publisher.start()
    replies = replies_to(producer, 100)
    assert [offset for _, _, _, offset in replies] == list(range(1, 101))


def test_a_stopped_reader_is_evicted_and_the_others_go_on() -> None:
    with running_publisher(lag_budget_ms=1_500) as publisher:
        moving, stuck, producer = publisher.reader(0), publisher.reader(1), publisher.producer()
        data = json.dumps("x" * 10_000)
        count = 300  # Three times what the log holds.
        found: list[_ring.Publication] = []
        for _ in range(count):
            producer.publish("news", data)
            while not producer.replies(0.01):
                found += moving.read()
            # Always up to date: only the other is ever waited for.
            found += moving.read()
        assert [p["offset"] for p in found] == list(range(1, count + 1))
        assert publisher.memory.totals()["log_reader_evictions_total"] == 1
        assert stuck.read() == []
        assert stuck.lapped == 1
        producer.publish("news", "1")
        assert [p["offset"] for p in read_all(stuck, 1)] == [count + 1]


def test_a_detached_reader_is_not_waited_for(publisher: PublisherProcess) -> None:
    publisher.reader(0)
    producer = publisher.producer()
    publisher.detach_reader(0)
    for _ in range(300):
        producer.publish("news", json.dumps("x" * 10_000))
        replies_to(producer, 1)
    totals = publisher.memory.totals()
    assert (totals["log_reader_evictions_total"], totals["log_stalls_total"]) == (0, 0)


def test_what_a_dead_producer_committed_is_published_before_its_uplink_goes(
    publisher: PublisherProcess,
) -> None:
    tail, doomed, other = publisher.reader(0), publisher.producer(), publisher.producer()
    os.kill(publisher.pid, signal.SIGSTOP)
    try:
        for number in range(2000):
            doomed.publish("last", str(number), want_reply=False)
        del doomed
    finally:
        os.kill(publisher.pid, signal.SIGCONT)
    publisher.detach_uplink(1)
    assert [p["data"] for p in read_all(tail, 2000)] == [b"%d" % n for n in range(2000)]
    other.publish("next", "1")
    replies_to(other, 1)
    assert publisher.memory.totals()["uplinks_attached"] == 1


def test_a_flood_through_one_uplink_delays_the_others_by_a_batch_only(
    publisher: PublisherProcess,
) -> None:
    tail, flood, drop = publisher.reader(0), publisher.producer(), publisher.producer()
    os.kill(publisher.pid, signal.SIGSTOP)
    try:
        for number in range(2000):
            flood.publish("flood", str(number), want_reply=False)
        drop.publish("drop", "1")
    finally:
        os.kill(publisher.pid, signal.SIGCONT)
    channels = [p["channel"] for p in read_all(tail, 2001)]
    assert channels.index("drop") <= 512


def test_garbage_in_an_uplink_ends_that_uplink_and_no_other(publisher: PublisherProcess) -> None:
    honest = publisher.producer()
    for seed in range(20):
        hostile, chance = publisher.uplink(), random.Random(seed)
        words = memoryview(bytearray(os.pread(hostile, os.fstat(hostile).st_size, 0))).cast("Q")
        # The producer's tail word, then noise over its whole ring.
        os.pwrite(hostile, chance.randbytes(words.nbytes - 8192), 8192)
        tail = words[4096 // 8] + 16 * chance.randrange(1, 2000)
        os.pwrite(hostile, tail.to_bytes(8, "little"), 4096)
        os.eventfd_write(publisher.wake, 1)
        assert publisher.receive() == {"type": "uplink_detached", "id": seed + 2}
    honest.publish("news", "1")
    assert replies_to(honest, 1)[0][1] == 0
    totals = publisher.memory.totals()
    assert (totals["uplinks_corrupt_total"], totals["uplinks_attached"]) == (20, 1)


def test_an_uplink_that_cannot_be_attached_does_not_hold_up_the_others(
    publisher: PublisherProcess,
) -> None:
    producer, damaged = publisher.producer(), publisher.uplink()
    publisher.kill()
    os.truncate(damaged, 0)
    publisher.start()
    assert publisher.receive() == {"type": "uplink_detached", "id": 2}
    producer.publish("news", "1")
    assert [status for _, status, _, _ in replies_to(producer, 1)] == [0]


def test_a_full_channel_table_refuses_new_channels_and_serves_the_old_ones() -> None:
    with running_publisher(channels_max=1) as publisher:
        producer = publisher.producer()
        for number in range(200):
            producer.publish(f"channel-{number}", "1")
        statuses = [status for _, status, _, _ in replies_to(producer, 200)]
        assert set(statuses) == {0, LIMIT_EXCEEDED}
        held = statuses.index(0)
        producer.publish(f"channel-{held}", "2")
        assert replies_to(producer, 1)[0][1:] == (0, *top(publisher, f"channel-{held}"))
        refused = publisher.memory.totals()['publishes_total{outcome="channels_max"}']
        assert refused == statuses.count(LIMIT_EXCEEDED)


def top(publisher: PublisherProcess, channel: str) -> tuple[str, int]:
    return _ring.Channels(publisher.memory.channels).top(channel)


def test_a_publish_longer_than_the_log_allows_is_refused() -> None:
    with running_publisher(capacity_bytes=1 << 16) as publisher:
        producer = publisher.producer()
        producer.publish("news", json.dumps("x" * 9000))
        producer.publish("news", "1")
        replies = replies_to(producer, 2)
        assert [(status, offset) for _, status, _, offset in replies] == [
            (LIMIT_EXCEEDED, 0),
            (0, 1),
        ]


def test_stop_publishes_what_was_handed_over_and_exits_cleanly(
    publisher: PublisherProcess,
) -> None:
    tail, producer = publisher.reader(0), publisher.producer()
    os.kill(publisher.pid, signal.SIGSTOP)
    for number in range(1000):
        producer.publish("news", str(number), want_reply=False)
    assert publisher.link is not None
    publisher.link.send({"type": "stop"})
    os.kill(publisher.pid, signal.SIGCONT)
    assert publisher.wait() == 0
    assert len(read_all(tail, 1000)) == 1000


def test_a_publisher_ends_when_its_supervisor_lets_the_link_go(
    publisher: PublisherProcess,
) -> None:
    assert publisher.link is not None
    publisher.link.close()
    assert publisher.wait() == 1
    publisher.link = None


def test_a_publisher_with_a_wrong_segment_says_so_and_ends(publisher: PublisherProcess) -> None:
    publisher.kill()
    publisher.memory.log = publisher.memory.channels
    publisher.spawn()
    failed = publisher.receive()
    assert (failed["type"], failed["code"]) == ("failed", "segment_kind")
    assert "a channel table, not a log" in failed["message"]
    assert publisher.wait() == 1


def test_no_wakeup_is_missed_and_an_idle_publisher_sleeps(publisher: PublisherProcess) -> None:
    producer = publisher.producer()
    for _ in range(10):
        producer.publish("news", "1")
        replies_to(producer, 1)
        wait_for_sleep(publisher, publisher.memory.totals()["publisher_sleeps_total"])
    assert publisher.memory.totals()['missed_wakeups_total{process="publisher"}'] == 0


def wait_for_sleep(publisher: PublisherProcess, sleeps: int) -> None:
    totals = publisher.memory.totals
    wait_for(lambda: totals()["publisher_sleeps_total"] > sleeps, "another sleep")
