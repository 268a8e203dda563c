"""Statistics of all processes, summed: what `status` shows and what the API tells."""

from __future__ import annotations

from shm._ring import Stats


def totals(stats: Stats, only_row: int | None = None) -> dict[str, int]:
    """Every metric by its name, labels included; a histogram as `<name>_sum` and `<name>_count`.

    Over all processes, or of the one with that row.
    """
    sums: dict[str, int] = {}
    schema = stats.schema()
    for row in stats.rows():
        if only_row not in (None, row["row"]):
            continue
        for (_, name, _), value in zip(schema, row["values"], strict=True):
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
