"""Latencies of several swarms, added up."""

from __future__ import annotations

import random
from typing import Any

from ops.load.crowd import Seen, split
from ops.load.latencies import Latencies


def report(counts: list[tuple[int, int]]) -> dict[str, Any]:
    return {"counts": counts}


def test_the_sum_of_two_swarms_has_the_percentiles_of_all_their_values() -> None:
    draw = random.Random(7)
    values = [draw.randrange(1, 50) * 1000 for _ in range(1000)]
    halves = [values[:300], values[300:]]
    reports = [report([(value, half.count(value)) for value in set(half)]) for half in halves]
    latencies = Latencies(reports)
    ordered = sorted(values)
    assert latencies.count == 1000
    for percent, rank in [(0, 1), (50, 500), (99, 990), (100, 1000)]:
        assert latencies.percentile_us(percent) == ordered[rank - 1] / 1e3, percent


def test_nothing_received_has_no_percentile() -> None:
    assert Latencies().as_map() == dict.fromkeys(("min", "p50", "p90", "p99", "p999", "max"))


def test_every_client_has_its_place_and_no_swarm_is_empty() -> None:
    for connections, processes in [(10, 3), (2, 5), (1_000_000, 54)]:
        shares = split(connections, processes)
        assert sum(shares) == connections
        assert max(shares) - min(shares) <= 1
        assert min(shares) > 0


def swarm_report(**counts: Any) -> dict[str, Any]:
    names = (
        *("connected", "pending", "absent", "deliveries", "recovered", "repeats", "gaps"),
        *("unrecovered", "foreign", "undated", "pings", "reconnects", "churned", "bytes_received"),
    )
    empty: dict[str, Any] = dict.fromkeys(names, 0)
    empty |= {name: {} for name in ("closes", "failures", "misdeeds")}
    latencies = ("latency_live", "latency_recovered", "latency_returned")
    empty |= {name: report([]) for name in latencies}
    return empty | counts


def test_a_fault_of_one_swarm_is_a_fault_of_the_crowd() -> None:
    seen = Seen.of(
        [
            swarm_report(connected=5, closes={"3008": 1}),
            swarm_report(connected=4, gaps=2, closes={"3008": 2, "3001": 1}),
        ]
    )
    assert seen.sums["connected"] == 9
    assert seen.faults == {"gaps": 2, "closes": {"3008": 3, "3001": 1}}


def test_what_misbehaving_clients_meet_is_no_fault() -> None:
    assert Seen.of([swarm_report(misdeeds={"garbage: http 400": 9})]).faults == {}
