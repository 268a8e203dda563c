"""How connections are spread over workers: arithmetic only, on counts.

SO_REUSEPORT chooses a listener by a hash of the addresses, which is not fair; nor is a worker that
came later. Connections are moved instead.
"""

from __future__ import annotations

from collections.abc import Sequence

BALANCED_PERCENT = 5.0
"""Fullest and emptiest may differ by so much of the fullest: moving more would be for nobody."""


def skew_percent(loads: Sequence[int]) -> float:
    """By how much of the fullest the emptiest is behind; one connection more is no skew."""
    if not loads or max(loads) - min(loads) <= 1:
        return 0.0
    return 100.0 * (max(loads) - min(loads)) / max(loads)


def shares(total: int, loads: Sequence[int]) -> list[int]:
    """Parts of `total` for those who have `loads`, such that they end as even as can be."""
    order = sorted(range(len(loads)), key=lambda each: loads[each])
    filled, below = 0, total
    for filled in range(1, len(order) + 1):
        below += loads[order[filled - 1]]
        if filled == len(order) or below <= filled * loads[order[filled]]:
            break
    level, over = divmod(below, filled) if filled else (0, 0)
    parts = [0] * len(loads)
    for rank, each in enumerate(order[:filled]):
        parts[each] = level - loads[each] + (1 if rank < over else 0)
    return parts


def next_move(loads: Sequence[int]) -> tuple[int, int, int] | None:
    """The move (from, to, connections) that brings most; None: balanced.

    After each move one of the two has the mean, so that there are fewer moves than workers.
    """
    if skew_percent(loads) <= BALANCED_PERCENT:
        return None
    fullest = max(range(len(loads)), key=lambda each: loads[each])
    emptiest = min(range(len(loads)), key=lambda each: loads[each])
    mean = sum(loads) // len(loads)
    count = min(loads[fullest] - mean, mean - loads[emptiest])
    return fullest, emptiest, max(1, count)
