"""How connections are to be spread: always all of them, always evenly, in few moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balance import BALANCED_PERCENT, next_move, shares, skew_percent

LOADS = st.lists(st.integers(0, 100_000), min_size=1, max_size=32)


@given(st.integers(0, 1_000_000), LOADS)
def test_shares_give_everything_away_and_fill_the_emptiest_first(
    total: int, loads: list[int]
) -> None:
    parts = shares(total, loads)
    assert sum(parts) == total
    assert min(parts) >= 0
    filled = [load + part for load, part in zip(loads, parts, strict=True) if part]
    if filled:
        assert max(filled) - min(filled) <= 1
        # Who got nothing had as many already.
        left = [load for load, part in zip(loads, parts, strict=True) if not part]
        assert all(load >= min(filled) - 1 for load in left)


def test_shares_among_nobody_are_none() -> None:
    assert shares(10, []) == []


@given(LOADS)
def test_moves_end_balanced_before_there_are_as_many_as_workers(loads: list[int]) -> None:
    everything = sum(loads)
    moves = 0
    while (move := next_move(loads)) is not None:
        giver, receiver, count = move
        assert 0 < count <= loads[giver]
        loads[giver] -= count
        loads[receiver] += count
        moves += 1
        assert moves < max(2, len(loads))
    assert sum(loads) == everything
    assert skew_percent(loads) <= BALANCED_PERCENT


@pytest.mark.parametrize(
    ("loads", "skew"),
    [([], 0), ([7], 0), ([0, 0], 0), ([1, 0], 0), ([100, 0], 100), ([100, 95], 5), ([50, 100], 50)],
)
def test_skew_is_what_the_emptiest_lacks_of_the_fullest(loads: list[int], skew: float) -> None:
    assert skew_percent(loads) == skew
