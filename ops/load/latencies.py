"""Latencies of many swarms, added up: counts of the same steps that every swarm rounds to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


class Latencies:
    """How often each latency occurred, in nanoseconds, to one part in a hundred.

    `reports` are what swarms say of their latencies (`Latency` in `swarm/src/tally.rs`).
    """

    def __init__(self, reports: Iterable[dict[str, Any]] = ()) -> None:
        self._counts: Counter[int] = Counter()
        for report in reports:
            for latency_ns, count in report["counts"]:
                self._counts[latency_ns] += count

    @classmethod
    def sum(cls, several: Iterable[Latencies]) -> Latencies:
        whole = cls()
        for each in several:
            whole._counts.update(each._counts)
        return whole

    @property
    def count(self) -> int:
        return self._counts.total()

    def percentile_us(self, percent: float) -> float | None:
        """The least latency that so many percent do not exceed; None without any.

        0 is the shortest, 100 the longest.
        """
        wanted = max(1.0, self.count * percent / 100)
        seen = 0
        for latency_ns, count in sorted(self._counts.items()):
            seen += count
            if seen >= wanted:
                return latency_ns / 1e3
        return None

    def as_map(self) -> dict[str, float | int | None]:
        """Microseconds by percentile, null where nothing was received."""
        parts = {"min": 0.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
        return {name: self.percentile_us(percent) for name, percent in parts.items()}
