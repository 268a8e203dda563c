"""What the processes share: the log and the tables that follow it, the statistics; seats and rows.

row 0          the supervisor, and the sums of the departed
row 1          the publisher
row 2 + seat   the worker that reads the log from that seat
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from gateway.api import metrics as api
from gateway.carrying import Keep, Take
from gateway.config import Config
from gateway.errors import InstanceError
from gateway.metrics import METRICS
from shm import _ring, segment, stats
from shm.segment import Owner, Segment, SegmentError, segment_name
from workers import _engine

SUPERVISOR_ROW = 0
PUBLISHER_ROW = 1
API_ROWS = 1 + 64
"""64 is the upper bound of api.workers."""
FIRST_API_ROW = PUBLISHER_ROW + 1
FIRST_WORKER_ROW = FIRST_API_ROW + 2 * API_ROWS

KEEP_ARENA_BYTES_MIN = 1024 * 1024
"""Frames wait there until their sockets take them: some thousands of the usual ones."""
KEEP_ARENA_MESSAGES = 16
"""The longest message takes at most an eighth of it, with its frame."""
KEEP_ARENA_QUEUES = 4
"""The longest queue takes at most a quarter of it, up to ..."""
KEEP_ARENA_BYTES_FOR_QUEUES_MAX = 64 * 1024 * 1024
"""... this much; a connection with a longer queue does not survive its worker."""
KEEP_SLOTS_SPARE = 256
"""Connections that are on their way to another worker have their places still."""

T = TypeVar("T")

_Segments = tuple[Segment, Segment, Segment, Segment, Segment]
"""Log, channels, history, presence, statistics."""

logger = logging.getLogger("tidegate.memory")


def metrics_of_all() -> list[_ring.Metric]:
    """What any process of a gateway counts."""
    return [*METRICS, *api.METRICS, *_ring.METRICS, *_engine.METRICS]


class Memory:
    """The segments of one instance, made by the supervisor and removed by it."""

    def __init__(self, segments: _Segments, wake: int, row: _ring.StatsRow) -> None:
        self._segments = segments
        self.log, self.channels, self.history, self.presence, self.stats = segments
        self.publisher_wake = wake
        """Written by everyone who has something for the publisher, when it says that it sleeps."""
        self.row = row
        self.reader = _ring.Stats(self.stats.fd)
        self._schema = self.reader.schema()
        self._free_seats: list[int] = []
        self._free_api_banks = [FIRST_API_ROW + API_ROWS, FIRST_API_ROW]

    @classmethod
    def make(cls, config: Config, owner: Owner, seats: int) -> Memory:
        """Makes and reserves all of it. Raises InstanceError; nothing is left behind then.

        `seats` bounds the workers, predecessors and successors together, for the instance's life.
        """
        name, log = config.gateway.name, config.log
        identity = (1, owner.pid, owner.start)
        rows = FIRST_WORKER_ROW + seats
        metrics = metrics_of_all()
        if swept := _told(lambda: segment.sweep(name)):
            logger.info("removed what a dead instance left", extra={"segments": swept})
        with ExitStack() as undo:

            def make(part: str, size: int, fill: Callable[[int], None], key: str) -> Segment:
                made = _told(lambda: segment.create(segment_name(name, part), size, fill, key=key))
                undo.callback(made.unlink)
                return made

            segments = (
                make(
                    "log",
                    _ring.log_size(log.capacity_bytes, seats, log.channels_max),
                    lambda fd: _ring.format_log(
                        fd, log.capacity_bytes, seats, log.channels_max, identity
                    ),
                    "log.capacity_bytes",
                ),
                make(
                    "channels",
                    _ring.channels_size(log.channels_max),
                    lambda fd: _ring.format_channels(fd, log.channels_max, identity),
                    "log.channels_max",
                ),
                make(
                    "history",
                    _ring.heap_size(config.history.memory_bytes),
                    lambda fd: _ring.format_history(fd, config.history.memory_bytes, identity),
                    "history.memory_bytes",
                ),
                make(
                    "presence",
                    _ring.heap_size(config.presence.memory_bytes),
                    lambda fd: _ring.format_presence(fd, config.presence.memory_bytes, identity),
                    "presence.memory_bytes",
                ),
                make(
                    "stats",
                    _ring.stats_size(metrics, rows),
                    lambda fd: _ring.format_stats(fd, metrics, rows, identity),
                    "workers.count",
                ),
            )
            row = _ring.StatsRow(segments[-1].fd, SUPERVISOR_ROW, _ring.ROLE_SUPERVISOR, 0, 1)
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            memory = cls(segments, wake, row)
            undo.pop_all()
        memory._free_seats = sorted(range(seats), reverse=True)
        return memory

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {
            "segments": [[each.name, keep(each.fd)] for each in self._segments],
            "wake": keep(self.publisher_wake),
            "free_seats": self._free_seats,
            "free_api_banks": self._free_api_banks,
        }

    def add_metrics(self) -> None:
        """Makes places for what this code counts beyond the code that made the statistics.

        Processes that are there already count on in the places that they know.
        """
        _ring.extend_stats(self.stats.fd, metrics_of_all())
        del self.row  # one row has one writer
        self.row = _ring.StatsRow.resume(self.stats.fd, SUPERVISOR_ROW)
        self.reader = _ring.Stats(self.stats.fd)
        self._schema = self.reader.schema()

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take) -> Memory:
        """Raises InstanceError where this code cannot use the segments of the code before it."""
        found = [Segment(name, take(fd)) for name, fd in state["segments"]]
        try:
            for each in found:
                _ring.inspect(each.fd)
            log, channels, history, presence, stats = found
            _ring.extend_stats(stats.fd, metrics_of_all(), only_check=True)
            row = _ring.StatsRow.resume(stats.fd, SUPERVISOR_ROW)
        except _ring.FormatError as error:
            raise InstanceError(
                f"the new code cannot use the shared memory that there is ({error.message})",
                remedy="restart the gateway",
                code="restart_needed",
            ) from error
        memory = cls((log, channels, history, presence, stats), take(state["wake"]), row)
        memory._free_seats, memory._free_api_banks = state["free_seats"], state["free_api_banks"]
        return memory

    def take_seat(self) -> int:
        """A free reader seat. Raises InstanceError where all are taken."""
        if not self._free_seats:
            raise InstanceError("every reader seat of the log is taken", code="no_seat")
        return self._free_seats.pop()

    def give_seat(self, seat: int) -> None:
        """Takes a dead worker's seat back; its counters become those of the departed."""
        self.row.fold(FIRST_WORKER_ROW + seat)
        self._free_seats.append(seat)

    def take_api_rows(self) -> int:
        """The first row of a free bank. Raises InstanceError where a third API would start."""
        if not self._free_api_banks:
            raise InstanceError("two APIs run already", code="no_row")
        return self._free_api_banks.pop()

    def give_api_rows(self, first: int) -> None:
        for row in range(first, first + API_ROWS):
            self.row.fold(row)
        self._free_api_banks.append(first)

    def totals(self) -> dict[str, int]:
        """Counters and gauges of all processes, summed by name; histograms as sum and count."""
        return stats.totals(self.reader)

    def connections_by_row(self) -> dict[int, int]:
        """How many client connections each worker's row shows, over all transports."""
        metrics = enumerate(self._schema)
        places = [i for i, (_, name, _) in metrics if name.startswith("connections{")]
        connections: dict[int, int] = {}
        for row in self.reader.rows():
            values = [row["values"][place] for place in places]
            connections[row["row"]] = sum(value for value in values if isinstance(value, int))
        return connections

    def close(self) -> None:
        """Removes every segment; processes that still map one keep it until they end."""
        for made in self._segments:
            made.unlink()


def _told(step: Callable[[], T]) -> T:
    """Segment errors in the words of the one error tree."""
    try:
        return step()
    except SegmentError as error:
        raise InstanceError(error.message, remedy=error.remedy, code=error.code) from error


def make_keep(config: Config, owner: Owner, number: int, connections_max: int) -> Segment:
    """The segment of one worker's keep. Raises InstanceError where there is no room."""
    slots, arena_bytes = keep_dimensions(config, connections_max)
    size, reserved = _ring.keep_size(slots, arena_bytes)
    return _told(
        lambda: segment.create(
            segment_name(config.gateway.name, f"keep-{number}"),
            size,
            lambda fd: _ring.format_keep(fd, slots, arena_bytes, (number, owner.pid, owner.start)),
            key="workers.survive_crashes",
            reserved_bytes=reserved,
        )
    )


def keep_dimensions(config: Config, connections_max: int) -> tuple[int, int]:
    """Slots of a worker's keep, and bytes of its arena."""
    limits = config.limits
    queues = min(KEEP_ARENA_QUEUES * limits.queue_hard_bytes, KEEP_ARENA_BYTES_FOR_QUEUES_MAX)
    wanted = max(KEEP_ARENA_BYTES_MIN, KEEP_ARENA_MESSAGES * limits.message_bytes_max, queues)
    return connections_max + KEEP_SLOTS_SPARE, 1 << (wanted - 1).bit_length()


def make_uplink(config: Config, owner: Owner, uplink: int) -> Segment:
    """The segment of one uplink. Raises InstanceError where there is no room."""
    size = _ring.uplink_size(config.log.uplink_bytes)
    return _told(
        lambda: segment.create(
            segment_name(config.gateway.name, f"uplink-{uplink}"),
            size,
            # Ids are never given out twice in an instance, so the id is its own generation.
            lambda fd: _ring.format_uplink(
                fd, config.log.uplink_bytes, (uplink, owner.pid, owner.start)
            ),
            key="log.uplink_bytes",
        )
    )
