"""Sums over the rows of all processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shm import _ring
from shm.stats import family_total, totals
from tests.support.ring import Memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


def test_processes_and_labels_are_summed(memory: Memory) -> None:
    for number in range(2):
        row = _ring.StatsRow(memory.stats, number, _ring.ROLE_WORKER, number, 1)
        row.add('publishes_total{outcome="accepted"}', 10)
        row.add('publishes_total{outcome="duplicate"}')
        row.record("log_batch_publications", 5)
    stats = _ring.Stats(memory.stats)
    sums = totals(stats)
    assert sums['publishes_total{outcome="accepted"}'] == 20
    assert (sums["log_batch_publications_sum"], sums["log_batch_publications_count"]) == (10, 2)
    assert family_total(stats, "publishes_total") == 22
    assert family_total(stats, "publishes") == 0
