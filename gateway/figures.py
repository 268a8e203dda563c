"""What each worker has counted of what a canary compares, read from the statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from shm import stats

if TYPE_CHECKING:
    from gateway.fleet import Fleet

CLEAN_CLOSES = frozenset(
    {
        *("normal", "connection_closed"),
        *("shutdown", "force_reconnect", "force_disconnect"),
        *("connection_expired", "subscription_expired"),
    }
)
"""Reasons that the client, the operator or the clock has. Any other is an unclean close."""
FAILURES = frozenset(
    {
        "http_rejects_total",
        "accept_errors_total",
        'refusals_total{reason="descriptors"}',
        "subscribe_errors_total",
        'client_publishes_total{result="denied"}',
        'client_publishes_total{result="rejected"}',
        "records_invalid_total",
        "orders_invalid_total",
        "command_errors_total",
        "hook_failures_total",
    }
)
"""Families and single counters of what was refused or could not be done. Faults of clients are
among them, for new code may find faults where there are none; they meet both sides alike.
"""
LATENCY = "publish_to_flush_ms"


@dataclass(slots=True)
class Figures:
    """Of one worker, or the sum of several. All but `connections` only grow."""

    connections: int = 0
    accepts: int = 0
    closes: int = 0
    unclean_closes: int = 0
    failures: int = 0
    deliveries: int = 0
    latency_ms: int = 0
    """Sum over all that `latencies` counts."""
    latencies: Counter[int] = field(default_factory=Counter)
    """How many were in each bucket of the histogram."""

    @classmethod
    def of_row(cls, values: Mapping[str, stats.Value]) -> Figures:
        figures = cls()
        for name, value in values.items():
            family, _, labels = name.partition("{")
            if not isinstance(value, int):
                if name == LATENCY:
                    figures.latency_ms = value["sum"]
                    figures.latencies.update(dict(enumerate(value["buckets"])))
                continue
            if name in FAILURES or family in FAILURES:
                figures.failures += value
            match family:
                case "connections":
                    figures.connections += value
                case "accepts_total":
                    figures.accepts += value
                case "deliveries_total":
                    figures.deliveries += value
                case "closes_total":
                    figures.closes += value
                    if labels.split('"')[1] not in CLEAN_CLOSES:
                        figures.unclean_closes += value
        return figures

    def since(self, before: Figures | None) -> Figures:
        """What was counted since `before`, or since the worker began; the connections of now."""
        if before is None:
            return self
        after = Figures(self.connections, latencies=self.latencies - before.latencies)
        for each in COUNTS:
            setattr(after, each, getattr(self, each) - getattr(before, each))
        return after

    @classmethod
    def sum(cls, parts: Iterable[Figures]) -> Figures:
        total = cls()
        for part in parts:
            for each in ("connections", *COUNTS):
                setattr(total, each, getattr(total, each) + getattr(part, each))
            total.latencies.update(part.latencies)
        return total

    @property
    def latency_mean_ms(self) -> float | None:
        count = self.latencies.total()
        return round(self.latency_ms / count, 2) if count else None

    @property
    def latency_p99_ms(self) -> int | None:
        return stats.percentile(self.latencies, 99)


COUNTS = [each.name for each in fields(Figures) if each.name not in ("connections", "latencies")]


def figures_by_pid(fleet: Fleet) -> dict[int, Figures]:
    """Of every living worker; those that stand by too."""
    rows = stats.by_row(fleet.runtime.memory.reader)
    return {
        worker.pid: Figures.of_row(rows.get(worker.stats_row, {}))
        for slot in fleet.slots
        for worker in slot.workers
    }
