"""A guard ends a canary by itself when its workers fare clearly worse than those beside them.

What is counted, for each side and over a sliding window: unclean closes and failures
(`figures.py`), for each connection that the side served. A worker that dies has failed once, and
once more for each connection that it had, saved or not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.figures import Figures

SAMPLE_INTERVAL_S = 1.0
"""The grain of the window: how often a guard is to look."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a canary is worse: `[reload] guard_...`."""

    factor: float
    events_min: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Tally:
    """One side within the window."""

    connections: float = 0.0
    """That it served: those there on average, and those that came."""
    unclean_closes: float = 0.0
    failures: float = 0.0


def excess(new: Tally, others: Tally, limits: Limits) -> str:
    """Why the new side is to be taken back; empty: it is not.

    One event more than the others had is taken for possible: where they had none, there is still
    something to multiply, and it weighs the more the fewer connections they have. With nobody to
    compare with, one event is what is usual for the new side itself.
    """
    served = max(1.0, new.connections)
    for what in ("unclean_closes", "failures"):
        events, others_events = getattr(new, what), getattr(others, what)
        usual = (others_events + 1) / others.connections if others.connections >= 1 else 1 / served
        if events >= limits.events_min and events / served > limits.factor * usual:
            return (
                f"{events:g} {what.replace('_', ' ')} of {served:.0f} connections within "
                f"{limits.window_s:g} s, of the others {others_events:.3g} of "
                f"{others.connections:.0f}: over {limits.factor:g} times as many for each"
            )
    return ""


def usual_before(life: Iterable[tuple[Figures, float]], window_s: float) -> Tally:
    """What a window of the predecessors was like, of each one's figures and its age in seconds."""
    connections = closes = failures = 0.0
    for figures, lived_s in life:
        share = min(1.0, window_s / max(lived_s, SAMPLE_INTERVAL_S))
        connections += figures.connections + figures.accepts * share
        closes += figures.unclean_closes * share
        failures += figures.failures * share
    return Tally(connections, closes, failures)


class Guard:
    """Takes a sample every SAMPLE_INTERVAL_S, and judges those of the window."""

    def __init__(self, limits: Limits, before: Tally, figures: dict[int, Figures]) -> None:
        """`before` stands in for the others while they have no connections.

        `figures`, here and later, are those of all living workers by pid.
        """
        self._limits = limits
        self._before = before
        self._last = figures
        self._new: set[int] = set()
        self._others: set[int] = set()
        length = max(1, math.ceil(limits.window_s / SAMPLE_INTERVAL_S))
        self._samples: deque[tuple[Figures, Figures]] = deque(maxlen=length)

    def take(self, figures: dict[int, Figures], new: set[int], others: set[int]) -> None:
        """`new` and `others` are the pids of the workers that serve on either side."""
        self._samples.append(
            (self._side(figures, new, self._new), self._side(figures, others, self._others))
        )
        self._last, self._new, self._others = figures, new, others

    def _side(self, figures: dict[int, Figures], pids: set[int], pids_before: set[int]) -> Figures:
        counted = [figures[pid].since(self._last.get(pid)) for pid in pids]
        died = [self._last[pid] for pid in pids_before if pid not in figures]
        lost = (Figures(each.connections, failures=1 + each.connections) for each in died)
        return Figures.sum([*counted, *lost])

    def verdict(self) -> str:
        """Why the canary is to be rolled back; empty: it is not."""
        if not self._samples:
            return ""
        new, others = (self._tally([sample[side] for sample in self._samples]) for side in (0, 1))
        if reason := excess(new, others if others.connections >= 1 else self._before, self._limits):
            return reason
        return "" if self._new else "no worker on probation is left"

    @staticmethod
    def _tally(samples: list[Figures]) -> Tally:
        total = Figures.sum(samples)
        return Tally(
            total.connections / len(samples) + total.accepts, total.unclean_closes, total.failures
        )
