"""When a dead child may start again: back-off, and the brake on a crash loop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


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
        self._policy = policy
        self._delay_s = 0.0
        # Only so many are ever compared.
        self._deaths: deque[float] = deque(maxlen=policy.crash_loop_deaths)
        self.total = 0

    def after_death(self, now: float, lived_s: float) -> float:
        """Notes a death and gives the delay until the next start, in seconds.

        The first death after a stable life is answered at once; the next waits the shortest delay,
        and each further one twice as long, up to the longest. In a crash loop it is the longest.
        """
        self.total += 1
        self._deaths.append(now)
        if lived_s >= self._policy.stable_s:
            self._delay_s = 0.0
        delay_s = self._delay_s
        doubled = max(self._policy.delay_min_s, self._delay_s * 2)
        self._delay_s = min(self._policy.delay_max_s, doubled)
        return self._policy.delay_max_s if self.in_crash_loop(now) else delay_s

    def in_crash_loop(self, now: float) -> bool:
        """Whether so many deaths came within the window that the brake is on."""
        return (
            len(self._deaths) == self._policy.crash_loop_deaths
            and now - self._deaths[0] <= self._policy.crash_loop_window_s
        )
