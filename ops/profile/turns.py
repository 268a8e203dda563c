"""What a worker's turns took, phase by phase, from two looks at what it has counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shm import stats

if TYPE_CHECKING:
    from shm.stats import Value

PHASES = {
    "wait": "waits for something to happen",
    "accept": "takes connections from the listeners",
    "read": "reads from clients, and does what they want",
    "drain": "reads the log, and encodes what it brought",
    "fan_out": "puts publications into queues",
    "flush": "sends, and hands connections over",
    "timers": "does what is due by the clock",
    "other": "statistics, and between turns",
}
"""Of a turn, in its order, and what a worker does in each. Their names are labels of metrics."""
PERCENTS = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Some values, as a histogram has them: percentiles are bounds of buckets a quarter wide."""

    count: int
    mean: float
    percentiles: tuple[int, ...]
    """One for each of `PERCENTS`."""
    most: int
    """The bound of the highest bucket that has any."""

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any]) -> Distribution | None:
        """What was added to a histogram; None: nothing."""
        buckets = Counter(dict(enumerate(after["buckets"])))
        buckets.subtract(dict(enumerate(before["buckets"])))
        count = after["count"] - before["count"]
        if count <= 0:
            return None
        bounds = [stats.percentile(buckets, percent) or 0 for percent in (*PERCENTS, 100)]
        mean = (after["sum"] - before["sum"]) / count
        return cls(count, mean, tuple(bounds[:-1]), bounds[-1])

    def as_map(self) -> dict[str, float]:
        percentiles = zip(PERCENTS, self.percentiles, strict=True)
        named = {f"p{percent}": bound for percent, bound in percentiles}
        return {"mean": round(self.mean, 2), **named, "max": self.most}


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    time_s: float
    share_percent: float
    """Of the time of all phases, waiting included."""
    mean_us: float
    """Of a turn."""
    longest_us: float

    def as_map(self) -> dict[str, str | float]:
        return {
            "phase": self.name,
            "time_s": round(self.time_s, 6),
            "share_percent": round(self.share_percent, 2),
            "mean_us": round(self.mean_us, 2),
            "longest_us": round(self.longest_us, 1),
        }


@dataclass(frozen=True, slots=True)
class TurnProfile:
    """Where a worker's time went. None for what did not happen."""

    time_s: float
    """Of all timed phases: about the time between both looks."""
    turns: int
    phases: tuple[Phase, ...]
    busy_us: Distribution | None
    """Of a turn, without its wait."""
    events: Distribution | None
    """Of a turn."""
    records: Distribution | None
    """Of a turn that read the log and found some."""
    deliveries: Distribution | None
    """Of a turn that sent some."""
    bytes_per_send: float | None

    @classmethod
    def between(cls, before: Mapping[str, Value], after: Mapping[str, Value]) -> TurnProfile | None:
        """From two looks; None where the worker timed nothing, for its code is too old for that."""

        def added(name: str) -> int:
            return _number(after, name) - _number(before, name)

        def distribution(name: str) -> Distribution | None:
            return Distribution.between(_histogram(before, name), _histogram(after, name))

        times_ns = {name: added(f'turn_phase_ns_total{{phase="{name}"}}') for name in PHASES}
        total_ns = sum(times_ns.values())
        busy_us = distribution("turn_us")
        if total_ns <= 0:
            return None
        turns = busy_us.count if busy_us else 0
        phases = [
            Phase(
                name=name,
                time_s=time_ns / 1e9,
                share_percent=100 * time_ns / total_ns,
                mean_us=time_ns / 1e3 / turns if turns else 0.0,
                longest_us=_number(after, f'turn_phase_longest_ns{{phase="{name}"}}') / 1e3,
            )
            for name, time_ns in times_ns.items()
        ]
        sends = added("sends_total")
        return cls(
            time_s=total_ns / 1e9,
            turns=turns,
            phases=tuple(phases),
            busy_us=busy_us,
            events=distribution("turn_events"),
            records=distribution("drain_records"),
            deliveries=distribution("flush_deliveries"),
            bytes_per_send=added("sent_bytes_total") / sends if sends else None,
        )

    @property
    def batches(self) -> dict[str, Distribution | None]:
        """Sizes of batches by what they are of."""
        return {
            "microseconds_per_turn": self.busy_us,
            "events_per_turn": self.events,
            "records_per_drain": self.records,
            "deliveries_per_flush": self.deliveries,
        }

    def as_map(self) -> dict[str, Any]:
        sizes = {name: each.as_map() if each else None for name, each in self.batches.items()}
        bytes_per_send = None if self.bytes_per_send is None else round(self.bytes_per_send, 1)
        return {
            "time_s": round(self.time_s, 6),
            "turns": self.turns,
            "turns_per_s": round(self.turns / self.time_s, 1),
            "phases": [phase.as_map() for phase in self.phases],
            **sizes,
            "bytes_per_send": {"mean": bytes_per_send} if bytes_per_send is not None else None,
        }


def _number(counted: Mapping[str, Value], name: str) -> int:
    value = counted.get(name, 0)
    return value if isinstance(value, int) else 0


def _histogram(counted: Mapping[str, Value], name: str) -> Mapping[str, Any]:
    value = counted.get(name)
    return (
        {"buckets": [], "sum": 0, "count": 0} if value is None or isinstance(value, int) else value
    )
