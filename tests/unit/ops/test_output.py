"""What people read: durations, ranges, tables without a terminal."""

from __future__ import annotations

import json

import pytest

from gateway.errors import ControlError, Unreachable
from ops.observe import ranges
from ops.output import Exit, Output, duration, table


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0s"), (59.94, "59.9s"), (60, "1m 0s"), (3725, "1h 2m"), (273_600, "3d 4h")],
)
def test_a_duration_has_at_most_two_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("numbers", "shown"), [([], "any"), ([3], "3"), ([0, 1, 2, 3, 8, 10, 11], "0-3,8,10-11")]
)
def test_cpus_are_shown_as_ranges(numbers: list[int], shown: str) -> None:
    assert ranges(numbers) == shown


def test_a_table_without_a_terminal_is_plain_text_that_is_never_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "/a/rather/long/path/" + "x" * 150
    Output(as_json=False).show(table(("NAME", "COUNT", "PATH"), [("one", 1234, path)]))
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "COUNT", "PATH"]
    assert row.split() == ["one", "1,234", path]


def test_an_error_is_one_json_document_for_programs_and_two_lines_for_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ControlError("it is so", remedy="do this", code="so")
    assert Output(as_json=True).error(error) == Exit.ERROR
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"error": {"code": "so", "message": "it is so", "remedy": "do this"}}
    assert Output(as_json=False).error(Unreachable("nobody", remedy="start")) == Exit.UNREACHABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["tidegate: nobody", "  start"]
