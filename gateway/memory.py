"""What the processes share: the log, the channel table, the statistics, seats and rows in them.

row 0          the supervisor, and the sums of the departed
row 1          the publisher
row 2 + seat   the worker that reads the log from that seat
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from gateway.api import metrics as api
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

T = TypeVar("T")


class Memory:
    """The segments of one instance, made by the supervisor and removed by it."""

    def __init__(self, config: Config, owner: Owner, seats: int) -> None:
        """Makes and reserves all of it. Raises InstanceError; nothing is left behind then.

        `seats` bounds the workers, predecessors and successors together, for the instance's life.
        """
        name, log = config.gateway.name, config.log
        identity = (1, owner.pid, owner.start)
        rows = FIRST_WORKER_ROW + seats
        metrics = [*METRICS, *api.METRICS, *_ring.METRICS, *_engine.METRICS]
        self.swept = _told(lambda: segment.sweep(name))
        """Names of what a dead instance had left."""
        self._segments: list[Segment] = []
        self._free_seats = sorted(range(seats), reverse=True)
        self._free_api_banks = [FIRST_API_ROW + API_ROWS, FIRST_API_ROW]

        def make(part: str, size: int, fill: Callable[[int], None], key: str) -> Segment:
            made = _told(lambda: segment.create(segment_name(name, part), size, fill, key=key))
            self._segments.append(made)
            return made

        try:
            self.log = make(
                "log",
                _ring.log_size(log.capacity_bytes, seats),
                lambda fd: _ring.format_log(fd, log.capacity_bytes, seats, identity),
                "log.capacity_bytes",
            )
            self.channels = make(
                "channels",
                _ring.channels_size(log.channels_max),
                lambda fd: _ring.format_channels(fd, log.channels_max, identity),
                "log.channels_max",
            )
            self.stats = make(
                "stats",
                _ring.stats_size(metrics, rows),
                lambda fd: _ring.format_stats(fd, metrics, rows, identity),
                "workers.count",
            )
            self.reader = _ring.Stats(self.stats.fd)
            self._schema = self.reader.schema()
            self.row = _ring.StatsRow(self.stats.fd, SUPERVISOR_ROW, _ring.ROLE_SUPERVISOR, 0, 1)
        except BaseException:
            self.close()
            raise
        # Written by everyone who has something for the publisher, when it says that it sleeps.
        self.publisher_wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

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
        self._segments.clear()


def _told(step: Callable[[], T]) -> T:
    """Segment errors in the words of the one error tree."""
    try:
        return step()
    except SegmentError as error:
        raise InstanceError(error.message, remedy=error.remedy, code=error.code) from error


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
