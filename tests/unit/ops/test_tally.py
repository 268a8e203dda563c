"""The judge of what is lost or repeated must itself be right."""

from __future__ import annotations

import time

import pytest

from ops.demo.tally import Latencies, Subscription, Tally


def test_publications_in_order_are_all_new_and_nothing_is_missing() -> None:
    place = Subscription("a")
    place.subscribed("e", 10, recovered=False)
    assert [place.received(offset) for offset in (11, 12, 13)] == [True] * 3
    assert place.missing(13) == 0
    assert place.expected(13) == 3


def test_a_gap_counts_as_missing_even_if_later_publications_come() -> None:
    place = Subscription("a")
    place.subscribed("e", 0, recovered=False)
    place.received(1)
    place.received(5)
    assert place.missing(5) == 3
    assert place.missing(7) == 5


def test_a_repeat_and_a_late_one_are_not_new() -> None:
    place = Subscription("a")
    place.subscribed("e", 0, recovered=False)
    assert [place.received(offset) for offset in (1, 3, 3, 2)] == [True, True, False, False]


def test_a_recovered_subscription_goes_on_where_it_left_off() -> None:
    place = Subscription("a")
    place.subscribed("e", 0, recovered=False)
    place.received(1)
    assert place.subscribed("e", 1, recovered=True) == 0
    place.received(2)
    assert place.missing(2) == 0


def test_a_subscription_that_was_not_recovered_has_lost_what_it_skips() -> None:
    place = Subscription("a")
    place.subscribed("e", 0, recovered=False)
    place.received(1)
    assert place.subscribed("e", 5, recovered=False) == 4
    place.received(6)
    assert place.missing(6) == 4
    assert place.expected(6) == 6


def test_a_subscription_that_never_began_misses_everything() -> None:
    place = Subscription("a")
    assert place.missing(7) == place.expected(7) == 7


def test_a_tally_counts_each_publication_as_delivered_or_repeated() -> None:
    tally = Tally()
    place = tally.subscribe(["a"])["a"]
    place.subscribed("e", 0, recovered=False)
    for offset in (1, 2, 2):
        tally.received(place, offset, time.monotonic_ns())
    report = tally.report({"a": 3})
    assert (report["counts"]["delivered"], report["counts"]["repeated"]) == (2, 1)
    assert (report["expected"], report["lost"]) == (3, 1)


def test_percentiles_are_right_within_the_histograms_resolution() -> None:
    latencies, others = Latencies(), Latencies()
    for microseconds in range(1, 5001):
        latencies.record(microseconds)
        others.record(microseconds + 5000)
    latencies.add(Latencies(others.as_map()))
    assert latencies.percentile_ms(50) == pytest.approx(5.0, rel=0.03)
    assert latencies.percentile_ms(99) == pytest.approx(9.9, rel=0.03)
    assert Latencies().percentile_ms(50) == 0
