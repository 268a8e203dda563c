"""The Python face of the ring: typed errors for every misuse, and statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from shm import _ring
from tests.support.ring import Memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


@pytest.mark.parametrize(
    "attach",
    [
        _ring.inspect,
        _ring.LogTail,
        _ring.Channels,
        _ring.Stats,
        lambda fd: _ring.Producer(fd, fd, fd),
        lambda fd: _ring.History(fd, fd),
        lambda fd: _ring.Presence(fd, fd),
        lambda fd: _ring.StatsRow(fd, 0, _ring.ROLE_API, 0, 0),
        lambda fd: _ring.format_log(fd, 65536, 1, 1, (1, 1, 1)),
        lambda fd: _ring.format_history(fd, 65536, (1, 1, 1)),
    ],
)
def test_descriptors_that_are_no_segments_raise_typed_errors(
    attach: Callable[[int], object], memory: Memory
) -> None:
    read_end, write_end = os.pipe()
    noise = os.memfd_create("noise")
    os.write(noise, os.urandom(8192))
    try:
        pipes = [] if attach is _ring.inspect else [read_end]  # It has no size, like a new segment.
        for fd in (-1, 1 << 20, *pipes):
            with pytest.raises((OSError, _ring.FormatError)):
                attach(fd)
        with pytest.raises(_ring.FormatError) as caught:
            attach(noise)
        assert caught.value.code.startswith("segment_")
        assert caught.value.message and caught.value.remedy
    finally:
        for fd in (read_end, write_end, noise):
            os.close(fd)


def test_a_segment_of_another_kind_is_refused_by_name(memory: Memory) -> None:
    with pytest.raises(_ring.FormatError, match="a log, not a channel table") as caught:
        _ring.Channels(memory.log)
    assert caught.value.code == "segment_kind"


def test_impossible_sizes_are_refused(memory: Memory) -> None:
    for refused in (
        lambda: _ring.log_size(1 << 63, 1, 1),
        lambda: _ring.uplink_size(1 << 63),
        lambda: _ring.channels_size(0),
        lambda: _ring.stats_size(_ring.METRICS, 1 << 40),
        lambda: _ring.format_log(memory.stats, 1000, 1, 1, (1, 1, 1)),
        lambda: _ring.format_channels(memory.log, 5, (1, 1, 1)),
    ):
        with pytest.raises(_ring.FormatError):
            refused()


def test_a_malformed_publish_is_refused_before_it_is_sent(memory: Memory) -> None:
    producer = _ring.Producer(memory.uplink(1), memory.eventfd(), memory.eventfd())
    for channel, data, tags in (
        ("", "1", None),
        ("x" * 256, "1", None),
        ("ü", "1", None),
        ("news", "{", None),
        ("news", b"\xff", None),
        ("news", "1 2", None),
        ("news", "1", "[]"),
        ("news", "1", '{"a":'),
        ("news", "1", '{"a":"' + "x" * 70_000 + '"}'),
    ):
        with pytest.raises(_ring.BadRequest):
            producer.publish(channel, data, tags=tags)
    with pytest.raises(_ring.TooLarge):
        producer.publish("news", '"' + "x" * 100_000 + '"')
    assert producer.publish("x" * 255, "1") == 1


def test_a_full_uplink_says_so_and_waits_for_nobody(memory: Memory) -> None:
    producer = _ring.Producer(memory.uplink(1, 4096), memory.eventfd(), memory.eventfd())
    with pytest.raises(_ring.Full) as caught:
        for _ in range(1000):
            producer.publish("news", "1", want_reply=False)
    assert "log.uplink_bytes" in caught.value.remedy
    assert producer.replies(0.01) == []


def test_a_row_is_written_by_its_process_and_read_by_all(memory: Memory) -> None:
    counter, histogram = "log_stalls_total", "log_batch_microseconds"
    row = _ring.StatsRow(memory.stats, 2, _ring.ROLE_WORKER, 5, 3)
    row.add(counter)
    row.add(counter, 4)
    row.record(histogram, 100)
    row.heartbeat()
    stats = _ring.Stats(memory.stats)
    assert stats.schema() == _ring.METRICS
    [found] = stats.rows()
    assert (found["row"], found["role"], found["slot"], found["generation"]) == (2, 3, 5, 3)
    assert found["pid"] == os.getpid()
    assert found["heartbeat_ns"] == stats.heartbeat_ns(2) > 0
    values = dict(zip([name for _, name, _ in _ring.METRICS], found["values"], strict=True))
    assert values[counter] == 5
    counted = values[histogram]
    assert isinstance(counted, dict)
    assert (counted["sum"], counted["count"], sum(counted["buckets"])) == (100, 1, 1)
    bucket = counted["buckets"].index(1)
    assert _ring.HISTOGRAM_BOUNDS[bucket - 1] < 100 <= _ring.HISTOGRAM_BOUNDS[bucket]


def test_a_metric_is_counted_only_as_what_it_is(memory: Memory) -> None:
    row = _ring.StatsRow(memory.stats, 0, _ring.ROLE_SUPERVISOR, 0, 1)
    with pytest.raises(KeyError, match="nothing_total"):
        row.add("nothing_total")
    with pytest.raises(KeyError, match="log_batch_microseconds"):
        row.add("log_batch_microseconds")
    with pytest.raises(KeyError, match="log_stalls_total"):
        row.record("log_stalls_total", 1)
    with pytest.raises(_ring.FormatError):
        row.fold(0)


def test_counts_of_the_dead_are_kept_by_the_supervisor(memory: Memory) -> None:
    supervisor = _ring.StatsRow(memory.stats, 0, _ring.ROLE_SUPERVISOR, 0, 1)
    row = _ring.StatsRow(memory.stats, 1, _ring.ROLE_PUBLISHER, 0, 1)
    row.add("log_stalls_total", 3)
    row.set("log_readers", 2)
    del row
    supervisor.fold(1)
    [left] = _ring.Stats(memory.stats).rows()
    values = dict(zip([name for _, name, _ in _ring.METRICS], left["values"], strict=True))
    assert (left["role"], values["log_stalls_total"], values["log_readers"]) == (1, 3, 0)


def test_metric_names_are_unique_and_have_units() -> None:
    names = [name for _, name, _ in _ring.METRICS]
    assert len(names) == len(set(names))
    for kind, name, help_text in _ring.METRICS:
        assert help_text.endswith(".")
        if kind == "counter":
            assert name.partition("{")[0].endswith("_total"), name


def test_a_tail_without_a_seat_follows_the_log_and_counts_laps(memory: Memory) -> None:
    sequencer = sequencer_of(memory)
    uplink, reply_wake = memory.uplink(1), memory.eventfd()
    sequencer.attach_uplink(1, uplink, reply_wake)
    producer = _ring.Producer(uplink, memory.eventfd(), reply_wake)
    tail = _ring.LogTail(memory.log)
    for number in range(100):
        producer.publish("news", str(number))
    sequencer.drain()
    assert [p["offset"] for p in tail.read(60)] == list(range(1, 61))
    assert [p["offset"] for p in tail.read()] == list(range(61, 101))
    for _ in range(50):
        producer.replies(0.0)
        producer.publish("news", '"' + "x" * 30_000 + '"')
        sequencer.drain()
    assert (tail.read(), tail.lapped) == ([], 1)
    producer.publish("news", "1")
    sequencer.drain()
    assert [p["offset"] for p in tail.read()] == [151]


class Settings:
    stats_row = 1
    generation = 1
    lag_budget_ms = 10
    history: tuple[_ring.HistoryRule, ...] = (("kept", 3, 60.0),)


def sequencer_of(memory: Memory) -> _ring.Sequencer:
    tables = (memory.log, memory.channels, memory.history, memory.presence)
    return _ring.Sequencer(*tables, memory.stats, memory.eventfd(), Settings())


def test_a_log_has_one_publisher_in_a_process(memory: Memory) -> None:
    first = sequencer_of(memory)
    with pytest.raises(_ring.FormatError) as caught:
        sequencer_of(memory)
    assert caught.value.code == "segment_claimed"
    del first
    sequencer_of(memory)
