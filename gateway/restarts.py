"""When a dead child may start again: back-off, and the brake on a crash loop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

DEATHS_REMEMBERED_MAX = 1000
"""The upper bound of workers.crash_loop_deaths."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The bounds, in seconds and deaths; see [workers] in the configuration."""

    delay_min_s: float
    delay_max_s: float
    stable_s: float
    crash_loop_deaths: int
    crash_loop_window_s: float


class Restarts:
    """The memory of one child's deaths. All times are CLOCK_MONOTONIC seconds."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.policy = policy
        """May be exchanged at any time, by a reload."""
        self._delay_s = 0.0
        self._deaths: deque[float] = deque(maxlen=DEATHS_REMEMBERED_MAX)
        self.total = 0

    def carried(self) -> dict[str, Any]:
        return {"delay_s": self._delay_s, "deaths": list(self._deaths), "total": self.total}

    @classmethod
    def restore(cls, state: dict[str, Any], policy: RestartPolicy) -> Restarts:
        restarts = cls(policy)
        restarts._delay_s, restarts.total = state["delay_s"], state["total"]
        restarts._deaths.extend(state["deaths"])
        return restarts

    def after_death(self, now: float, lived_s: float) -> float:
        """Notes a death and gives the delay until the next start, in seconds.

        The first death after a stable life is answered at once; the next waits the shortest delay,
        and each further one twice as long, up to the longest. In a crash loop it is the longest.
        """
        self.total += 1
        self._deaths.append(now)
        if lived_s >= self.policy.stable_s:
            self._delay_s = 0.0
        delay_s = self._delay_s
        doubled = max(self.policy.delay_min_s, self._delay_s * 2)
        self._delay_s = min(self.policy.delay_max_s, doubled)
        return self.policy.delay_max_s if self.in_crash_loop(now) else delay_s

    def in_crash_loop(self, now: float) -> bool:
        """Whether so many deaths came within the window that the brake is on."""
        deaths = self.policy.crash_loop_deaths
        return (
            len(self._deaths) >= deaths
            and now - self._deaths[-deaths] <= self.policy.crash_loop_window_s
        )
