"""What a worker's turns took, from two looks at its counters."""

from __future__ import annotations

from typing import Any

import pytest

from ops.profile.turns import PHASES, TurnProfile
from shm._ring import HISTOGRAM_BOUNDS
from workers._engine import METRICS

Counted = dict[str, Any]


def histogram(**counts: int) -> Any:
    """With so many values in the bucket of that bound: `histogram(at_7=3)`."""
    buckets = [0] * (len(HISTOGRAM_BOUNDS) + 1)
    total = 0
    for name, count in counts.items():
        bound = int(name.removeprefix("at_"))
        buckets[HISTOGRAM_BOUNDS.index(bound)] = count
        total += bound * count
    return {"buckets": buckets, "sum": total, "count": sum(buckets)}


def counted(scale: int = 0) -> Counted:
    """What was counted when the worker has done everything `scale` times."""
    phases = {f'turn_phase_ns_total{{phase="{name}"}}': 10_000 * scale for name in PHASES}
    phases['turn_phase_ns_total{phase="flush"}'] = 30_000 * scale
    longest: Counted = {'turn_phase_longest_ns{phase="flush"}': 25_000 * scale}
    return {
        **phases,
        **longest,
        "turn_us": histogram(at_7=90 * scale, at_31=10 * scale),
        "turn_events": histogram(at_1=100 * scale),
        "drain_records": histogram(at_3=5 * scale),
        "flush_deliveries": histogram(),
        "sends_total": 50 * scale,
        "sent_bytes_total": 6400 * scale,
    }


def between(before: int, after: int) -> TurnProfile:
    profile = TurnProfile.between(counted(before), counted(after))
    assert profile is not None
    return profile


def test_every_phase_of_the_engine_is_one_of_the_profile_and_no_other() -> None:
    names = [name for _, name, _ in METRICS if name.startswith("turn_phase_ns_total")]
    assert names == [f'turn_phase_ns_total{{phase="{phase}"}}' for phase in PHASES]


def test_metrics_that_a_profile_reads_are_ones_of_the_engine() -> None:
    assert set(counted()) <= {name for _, name, _ in METRICS}


def test_only_what_was_counted_between_both_looks_is_told() -> None:
    profile = between(1, 3)
    assert profile.turns == 200
    assert profile.time_s == pytest.approx(2 * (7 * 10_000 + 30_000) / 1e9)
    assert profile.as_map() == between(4, 6).as_map() | {"phases": profile.as_map()["phases"]}


def test_shares_of_all_phases_are_the_whole() -> None:
    phases = {phase.name: phase for phase in between(0, 1).phases}
    assert list(phases) == list(PHASES)
    assert sum(phase.share_percent for phase in phases.values()) == pytest.approx(100)
    assert phases["flush"].share_percent == pytest.approx(30)
    assert phases["flush"].mean_us == pytest.approx(0.3)
    assert phases["flush"].longest_us == 25
    assert phases["wait"].longest_us == 0


def test_sizes_have_mean_percentiles_and_most_where_there_were_any() -> None:
    shown = between(0, 1).as_map()
    assert shown["microseconds_per_turn"] == {
        "mean": 9.4,
        "p50": 7,
        "p90": 7,
        "p99": 31,
        "max": 31,
    }
    assert shown["records_per_drain"]["mean"] == 3
    assert shown["deliveries_per_flush"] is None
    assert shown["bytes_per_send"] == {"mean": 128.0}


def test_a_worker_that_timed_nothing_has_no_profile() -> None:
    assert TurnProfile.between(counted(2), counted(2)) is None
    assert TurnProfile.between({}, {}) is None
