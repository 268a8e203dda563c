"""What subscribers check and count: order, gaps and repeats by offset, and latency."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

BUCKETS_PER_DOUBLING = 32
"""Resolution of the latency histogram: 2.2 %."""


class Latencies:
    """A histogram of microseconds; processes make their own, and the parent adds them up."""

    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self._buckets = Counter(buckets or {})

    def record(self, microseconds: float) -> None:
        self._buckets[round(math.log2(max(microseconds, 1.0)) * BUCKETS_PER_DOUBLING)] += 1

    def add(self, other: Latencies) -> None:
        self._buckets += other._buckets

    def percentile_ms(self, percent: float) -> float:
        """The value that `percent` of all do not exceed; 0 without any."""
        remaining = self._buckets.total() * percent / 100
        for bucket, count in sorted(self._buckets.items()):
            remaining -= count
            if remaining <= 0:
                return float(2 ** (bucket / BUCKETS_PER_DOUBLING)) / 1000
        return 0.0

    def as_map(self) -> dict[int, int]:
        return dict(self._buckets)


@dataclass(slots=True)
class Counts:
    """Sums over the subscribers of one process; plain, to be sent as JSON and added up."""

    subscribers: int = 0
    connected: int = 0
    reconnects: int = 0
    """Of WebSocket subscribers, as is `recovered`: the TCP client does both out of sight."""
    delivered: int = 0
    """Publications that came for the first time."""
    repeated: int = 0
    """Publications that came again, or after a later one."""
    unrecovered: int = 0
    """Publications that the gateway said it could not give again."""
    recovered: int = 0
    """Publications that came by recovery; delivered includes them."""

    def add(self, other: Counts) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_map(self) -> dict[str, int]:
        return asdict(self)


@dataclass(slots=True)
class Subscription:
    """One subscriber's place in one channel: the only judge of what is lost or repeated."""

    channel: str
    epoch: str = ""
    start: int = -1
    """Newest offset when first subscribed; -1 before that."""
    offset: int = 0
    """Newest offset received."""
    missed: int = 0

    @property
    def joined(self) -> bool:
        return self.start >= 0

    def subscribed(self, epoch: str, top: int, *, recovered: bool) -> int:
        """Takes the answer to a subscription; returns how many publications it declares lost.

        `top` is the channel's newest offset, unless the subscription was `recovered`: then
        everything since `offset` follows.
        """
        if not self.joined:
            self.epoch, self.start, self.offset = epoch, top, top
            return 0
        if recovered:
            return 0
        missed = max(top - self.offset, 1)
        self.epoch, self.offset = epoch, top
        self.missed += missed
        return missed

    def received(self, offset: int) -> bool:
        """Takes a publication; returns whether it is new. A gap before it counts as missed."""
        if offset <= self.offset:
            return False
        self.missed += offset - self.offset - 1
        self.offset = offset
        return True

    def missing(self, top: int) -> int:
        """How many of the publications up to `top` did not come."""
        return self.missed + max(top - self.offset, 0)

    def expected(self, top: int) -> int:
        return top - self.start if self.joined else top


@dataclass(slots=True)
class Tally:
    """All that one process's subscribers saw."""

    counts: Counts = field(default_factory=Counts)
    latencies: Latencies = field(default_factory=Latencies)
    subscriptions: list[Subscription] = field(default_factory=list)

    def subscribe(self, channels: Iterable[str]) -> dict[str, Subscription]:
        """The places of one new subscriber, by channel."""
        mine = {channel: Subscription(channel) for channel in channels}
        self.subscriptions += mine.values()
        self.counts.subscribers += 1
        return mine

    def received(self, place: Subscription, offset: int, sent_ns: int) -> None:
        if place.received(offset):
            self.counts.delivered += 1
            self.latencies.record((time.monotonic_ns() - sent_ns) / 1000)
        else:
            self.counts.repeated += 1

    def missing(self, tops: Mapping[str, int]) -> int:
        return sum(place.missing(tops.get(place.channel, 0)) for place in self.subscriptions)

    def report(self, tops: Mapping[str, int]) -> dict[str, Any]:
        """The final account, against the newest offset of each channel."""
        return {
            "counts": self.counts.as_map(),
            "expected": sum(
                place.expected(tops.get(place.channel, 0)) for place in self.subscriptions
            ),
            "lost": self.missing(tops),
            "latencies": self.latencies.as_map(),
        }
