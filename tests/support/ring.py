"""Shared memory and a publisher of a test's own: the test stands in for the supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from gateway.publisher import PublisherSettings
from shm import _ring
from shm.segment import Owner
from workers.link import Link

CAPACITY_BYTES = 1 << 20
READERS = 4
CHANNELS_MAX = 1000
STORE_BYTES = 1 << 18
UPLINK_BYTES = 1 << 18
ROWS = 4
PUBLISHER_ROW = 1
LAG_BUDGET_MS = 5_000
"""No test but one is about readers that are too slow, and this process may be kept from reading."""
START_TIMEOUT_S = 60.0


class Memory:
    """What the processes share, in anonymous memory: nothing is left behind."""

    def __init__(
        self,
        capacity_bytes: int = CAPACITY_BYTES,
        channels_max: int = CHANNELS_MAX,
        store_bytes: int = STORE_BYTES,
        metrics: list[_ring.Metric] = _ring.METRICS,
    ) -> None:
        self._owner = Owner.this_process()
        self._fds: list[int] = []
        self.log = self._make(_ring.log_size(capacity_bytes, READERS, channels_max))
        _ring.format_log(self.log, capacity_bytes, READERS, channels_max, self.identity(1))
        self.channels = self._make(_ring.channels_size(channels_max))
        _ring.format_channels(self.channels, channels_max, self.identity(1))
        self.history = self._make(_ring.heap_size(store_bytes))
        _ring.format_history(self.history, store_bytes, self.identity(1))
        self.presence = self._make(_ring.heap_size(store_bytes))
        _ring.format_presence(self.presence, store_bytes, self.identity(1))
        self.stats = self._make(_ring.stats_size(metrics, ROWS))
        _ring.format_stats(self.stats, metrics, ROWS, self.identity(1))

    def uplink(self, generation: int, capacity_bytes: int = UPLINK_BYTES) -> int:
        fd = self._make(_ring.uplink_size(capacity_bytes))
        _ring.format_uplink(fd, capacity_bytes, self.identity(generation))
        return fd

    def eventfd(self) -> int:
        self._fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self._fds[-1]

    def identity(self, generation: int) -> tuple[int, int, int]:
        return generation, self._owner.pid, self._owner.start

    def totals(self, row_number: int = PUBLISHER_ROW) -> dict[str, Any]:
        """A process's counters and gauges by name; the publisher's unless another row is named."""
        stats = _ring.Stats(self.stats)
        names = [name for _, name, _ in stats.schema()]
        values = [row["values"] for row in stats.rows() if row["row"] == row_number]
        return dict(zip(names, values[0], strict=True)) if values else {}

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def _make(self, size_bytes: int) -> int:
        fd = os.memfd_create("tidegate-test", os.MFD_CLOEXEC)
        os.truncate(fd, size_bytes)
        self._fds.append(fd)
        return fd


class PublisherProcess:
    """A publisher over some memory, with every reader and uplink that a test made."""

    def __init__(
        self,
        memory: Memory,
        lag_budget_ms: int = LAG_BUDGET_MS,
        history: Sequence[_ring.HistoryRule] = (),
    ) -> None:
        self.memory = memory
        self._history = history
        self.wake = memory.eventfd()
        self._lag_budget_ms = lag_budget_ms
        self._generation = 0
        self._readers: dict[int, int] = {}
        self._uplinks: dict[int, tuple[int, int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.link: Link | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start a publisher, as the supervisor does after the last one died."""
        self.spawn()
        assert self.receive()["type"] == "ready"

    def spawn(self) -> None:
        self._generation += 1
        settings = PublisherSettings(
            stats_row=PUBLISHER_ROW,
            generation=self._generation,
            lag_budget_ms=self._lag_budget_ms,
            history=self._history,
            log_format="text",
            log_level="warning",
            log_file="",
        )
        self.link, theirs = Link.pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gateway.publisher", "--link", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        memory = self.memory
        boot = {
            "type": "boot",
            "settings": settings.as_map(),
            "fds": ["log", "channels", "history", "presence", "stats", "wake"],
            "uplinks": list(self._uplinks),
        }
        tables = [memory.log, memory.channels, memory.history, memory.presence]
        self.link.send(boot, [*tables, memory.stats, self.wake])
        for seat, wake in self._readers.items():
            self._attach_reader(seat, wake)
        for uplink, fds in self._uplinks.items():
            self._attach_uplink(uplink, fds)

    def kill(self) -> None:
        assert self._process is not None and self.link is not None
        self._process.kill()
        self._process.wait()
        self.link.close()

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        assert self._process is not None
        return self._process.wait(START_TIMEOUT_S)

    def reader(self, seat: int) -> _ring.LogTail:
        tail = _ring.LogTail(self.memory.log, seat)
        self._readers[seat] = self.memory.eventfd()
        self._attach_reader(seat, self._readers[seat])
        return tail

    def detach_reader(self, seat: int) -> None:
        assert self.link is not None
        del self._readers[seat]
        self.link.send({"type": "detach_reader", "seat": seat})

    def attach_worker(self, seat: int, wake: int) -> int:
        """Attach a worker's seat and a new uplink, both with its wake; returns the uplink."""
        self._readers[seat] = wake
        self._attach_reader(seat, wake)
        uplink = len(self._uplinks) + 1
        self._uplinks[uplink] = (self.memory.uplink(uplink), wake)
        self._attach_uplink(uplink, self._uplinks[uplink])
        return self._uplinks[uplink][0]

    def uplink(self) -> int:
        """A new, attached uplink's descriptor, for tests that write into it by hand."""
        uplink = len(self._uplinks) + 1
        self._uplinks[uplink] = (self.memory.uplink(uplink), self.memory.eventfd())
        self._attach_uplink(uplink, self._uplinks[uplink])
        return self._uplinks[uplink][0]

    def producer(self) -> _ring.Producer:
        self.uplink()
        fd, reply_wake = self._uplinks[len(self._uplinks)]
        return _ring.Producer(fd, self.wake, reply_wake)

    def detach_uplink(self, uplink: int) -> None:
        """Take an uplink back, as after its producer's death; waits until the publisher let go."""
        assert self.link is not None
        del self._uplinks[uplink]
        self.link.send({"type": "detach_uplink", "id": uplink})
        assert self.receive() == {"type": "uplink_detached", "id": uplink}

    def receive(self) -> dict[str, Any]:
        assert self.link is not None
        self.link.settimeout(START_TIMEOUT_S)
        return self.link.recv()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self.link is not None:
            self.link.close()

    def _attach_reader(self, seat: int, wake: int) -> None:
        assert self.link is not None
        self.link.send({"type": "attach_reader", "seat": seat, "fds": ["wake"]}, [wake])

    def _attach_uplink(self, uplink: int, fds: tuple[int, int]) -> None:
        assert self.link is not None
        message = {"type": "attach_uplink", "id": uplink, "fds": ["uplink", "reply_wake"]}
        self.link.send(message, fds)


@contextmanager
def running_publisher(
    capacity_bytes: int = CAPACITY_BYTES,
    channels_max: int = CHANNELS_MAX,
    lag_budget_ms: int = LAG_BUDGET_MS,
    history: Sequence[_ring.HistoryRule] = (),
) -> Iterator[PublisherProcess]:
    memory = Memory(capacity_bytes, channels_max)
    try:
        with PublisherProcess(memory, lag_budget_ms, history) as publisher:
            yield publisher
    finally:
        memory.close()
