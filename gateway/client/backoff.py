"""When to come back, and after how long: one rule for every client (section 12)."""

from __future__ import annotations

import random

DELAY_MIN_S = 0.5
DELAY_MAX_S = 20.0


def reconnects(code: int) -> bool:
    """Whether a connection that ended with this code may be made again."""
    return not (code == 1009 or 3500 <= code <= 3999 or 4500 <= code <= 4999)


class Backoff:
    """Full jitter: thousands of clients see the same event at the same instant."""

    def __init__(self, delay_min_s: float = DELAY_MIN_S, delay_max_s: float = DELAY_MAX_S) -> None:
        self._delay_min_s = delay_min_s
        self._delay_max_s = delay_max_s
        self._attempt = 0

    def reset(self) -> None:
        """A connection was made: the next failure starts from the shortest delay."""
        self._attempt = 0

    def next_delay_s(self) -> float:
        # 2**16 times any sensible minimum is over the maximum: no need for larger powers.
        ceiling_s = min(self._delay_max_s, self._delay_min_s * 2 ** min(self._attempt, 16))
        self._attempt += 1
        return min(self._delay_max_s, self._delay_min_s + random.uniform(0, ceiling_s))
