"""When a guard takes new code back: the comparison, the window, and what is counted."""

from __future__ import annotations

import pytest

from gateway.figures import CLEAN_CLOSES, FAILURES, LATENCY, Figures
from gateway.guard import Guard, Limits, Tally, excess, usual_before
from gateway.memory import metrics_of_all

LIMITS = Limits(factor=3.0, events_min=10, window_s=3.0)
NOBODY = Tally()


def closes(count: float, connections: float) -> Tally:
    return Tally(connections, unclean_closes=count)


@pytest.mark.parametrize(
    ("new", "others", "worse"),
    [
        pytest.param(closes(0, 500), closes(0, 500), False, id="nothing happens"),
        pytest.param(closes(40, 500), closes(40, 500), False, id="alike"),
        pytest.param(closes(120, 500), closes(39, 500), False, id="three times as many"),
        pytest.param(closes(121, 500), closes(39, 500), True, id="more than that"),
        pytest.param(closes(121, 500), closes(399, 5000), True, id="for each connection"),
        pytest.param(closes(121, 5000), closes(39, 500), False, id="many have more"),
        pytest.param(closes(9, 500), closes(0, 500), False, id="too few"),
        pytest.param(closes(10, 500), closes(0, 500), True, id="zero on the other side"),
        pytest.param(closes(10, 5000), closes(0, 100), False, id="zero of few proves little"),
        pytest.param(closes(10, 500), NOBODY, True, id="nobody to compare with"),
        pytest.param(closes(9, 500), NOBODY, False, id="nobody, and too few"),
        pytest.param(closes(10, 0), closes(0, 500), True, id="none stayed"),
        pytest.param(closes(1000, 1), closes(1, 0.5), True, id="less than one connection"),
    ],
)
def test_more_events_for_each_connection_than_the_factor_allows_are_too_many(
    new: Tally, others: Tally, worse: bool
) -> None:
    assert bool(excess(new, others, LIMITS)) is worse


def test_failures_are_compared_apart_from_closes() -> None:
    others = Tally(100, unclean_closes=100)
    assert not excess(Tally(100, unclean_closes=100), others, LIMITS)
    reason = excess(Tally(100, unclean_closes=100, failures=20), others, LIMITS)
    assert reason == (
        "20 failures of 100 connections within 3 s, of the others 0 of 100: "
        "over 3 times as many for each"
    )


def test_a_minimum_of_one_and_a_factor_of_one_allow_what_the_others_have_and_one_more() -> None:
    strict = Limits(factor=1.0, events_min=1, window_s=1.0)
    assert not excess(closes(1, 10), closes(0, 10), strict)
    assert excess(closes(2, 10), closes(0, 10), strict)


def test_a_life_before_is_told_for_the_length_of_a_window() -> None:
    long_life = Figures(connections=50, accepts=300, unclean_closes=600, failures=60)
    usual = usual_before([(long_life, 60.0)], window_s=6.0)
    assert usual == Tally(connections=80.0, unclean_closes=60.0, failures=6.0)
    young = Figures(connections=50, unclean_closes=2)
    assert usual_before([(young, 3.0)], window_s=6.0) == Tally(50.0, 2.0, 0.0)


NEW, OLD, STANDBY = 1, 2, 3


def figures(closed: int = 0, *, old: int = 0, connections: int = 100) -> dict[int, Figures]:
    return {
        NEW: Figures(connections, unclean_closes=closed),
        OLD: Figures(connections, unclean_closes=old),
        STANDBY: Figures(0, unclean_closes=1_000),
    }


def test_only_what_is_within_the_window_counts() -> None:
    guard = Guard(LIMITS, NOBODY, figures(500))
    assert guard.verdict() == ""
    for total in (503, 506, 509, 512, 515):  # at most nine in three samples
        guard.take(figures(total), {NEW}, {OLD})
        assert guard.verdict() == ""
    guard.take(figures(519), {NEW}, {OLD})
    assert guard.verdict().startswith("10 unclean closes of 100 connections")


def test_one_who_stood_by_and_serves_again_is_not_charged_with_its_past() -> None:
    guard = Guard(LIMITS, NOBODY, figures())
    guard.take(figures(), {NEW}, {OLD})
    guard.take(figures(20), {NEW}, {OLD, STANDBY})
    assert guard.verdict(), "the past of the other side would have covered it"


def test_a_death_is_a_failure_and_so_is_each_connection_lost_with_it() -> None:
    guard = Guard(LIMITS, NOBODY, figures())
    before = figures() | {4: Figures(connections=9)}
    guard.take(before, {NEW, 4}, {OLD})
    guard.take(figures(), {NEW}, {OLD})
    assert guard.verdict().startswith("10 failures")


def test_a_death_on_both_sides_is_no_difference() -> None:
    guard = Guard(LIMITS, NOBODY, figures())
    guard.take(figures() | {4: Figures(50), 5: Figures(50)}, {NEW, 4}, {OLD, 5})
    guard.take(figures(), {NEW}, {OLD})
    assert guard.verdict() == ""


def test_a_canary_of_which_nobody_is_left_is_over() -> None:
    guard = Guard(LIMITS, NOBODY, figures())
    guard.take(figures(connections=0), {NEW}, {OLD})
    left = figures(connections=0)
    del left[NEW]
    guard.take(left, set(), {OLD, STANDBY})
    assert guard.verdict() == "no worker on probation is left"


def test_the_predecessors_stand_in_where_every_slot_is_new() -> None:
    usual = closes(40, 100)
    guard = Guard(LIMITS, usual, figures())
    guard.take(figures(100), {NEW}, set())
    assert guard.verdict() == ""
    guard.take(figures(200), {NEW}, set())
    assert "of the others 40 of 100" in guard.verdict()


def test_every_name_that_is_counted_is_one_of_a_metric() -> None:
    names = {name for _, name, _ in metrics_of_all()}
    families = {name.partition("{")[0] for name in names}
    assert names | families >= {*FAILURES, LATENCY}
    assert names >= {f'closes_total{{reason="{reason}"}}' for reason in CLEAN_CLOSES}


def test_a_row_of_the_statistics_becomes_figures() -> None:
    latencies = [0] * 64
    latencies[2], latencies[20] = 98, 2
    read = Figures.of_row(
        {
            'connections{transport="websocket"}': 3,
            'connections{transport="tcp"}': 4,
            'accepts_total{transport="tcp"}': 9,
            'closes_total{reason="normal"}': 5,
            'closes_total{reason="slow"}': 2,
            'http_rejects_total{reason="full"}': 6,
            'client_publishes_total{result="accepted"}': 100,
            'client_publishes_total{result="denied"}': 1,
            "deliveries_total": 11,
            "publish_to_flush_ms": {"buckets": latencies, "sum": 300, "count": 100},
            "turn_us": {"buckets": latencies, "sum": 1, "count": 100},
        }
    )
    assert (read.connections, read.accepts, read.closes, read.unclean_closes) == (7, 9, 7, 2)
    assert (read.failures, read.deliveries) == (7, 11)
    assert (read.latency_mean_ms, read.latency_p99_ms) == (3.0, 79)  # 64 to 79 is bucket 20
    assert Figures().latency_p99_ms is None
    assert read.since(read) == Figures(connections=7)
