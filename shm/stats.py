"""Statistics of all processes, summed: what `status` shows and what the API tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shm._ring import HISTOGRAM_BOUNDS, Stats

if TYPE_CHECKING:
    from shm._ring import Histogram

    Value = int | Histogram


def by_row(stats: Stats) -> dict[int, dict[str, Value]]:
    """What each process counts, by its row and the name of the metric, labels included."""
    names = [name for _, name, _ in stats.schema()]
    return {row["row"]: dict(zip(names, row["values"], strict=True)) for row in stats.rows()}


def percentile(buckets: Mapping[int, int], percent: float) -> int | None:
    """The bound of the histogram's bucket that holds it; None where nothing was counted.

    Of the last bucket, which has no bound, that of the one before.
    """
    remaining = sum(buckets.values()) * percent / 100
    for bucket, count in sorted(buckets.items()):
        remaining -= count
        if count and remaining <= 0:
            return HISTOGRAM_BOUNDS[min(bucket, len(HISTOGRAM_BOUNDS) - 1)]
    return None


def totals(stats: Stats) -> dict[str, int]:
    """Every metric by its name, labels included; a histogram as `<name>_sum` and `<name>_count`."""
    sums: dict[str, int] = {}
    for values in by_row(stats).values():
        for name, value in values.items():
            if isinstance(value, int):
                sums[name] = sums.get(name, 0) + value
                continue
            family, brace, labels = name.partition("{")
            for part, amount in (("sum", value["sum"]), ("count", value["count"])):
                full = f"{family}_{part}{brace}{labels}"
                sums[full] = sums.get(full, 0) + amount
    return sums


def family_total(stats: Stats, family: str) -> int:
    """A counter or gauge summed over all processes and all its labels."""
    return sum(amount for name, amount in totals(stats).items() if name.partition("{")[0] == family)
