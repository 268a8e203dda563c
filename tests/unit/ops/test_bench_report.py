"""The tables that the benchmarks' results become, the README's among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ops.bench import report
from ops.bench.result import Goal, Machine, Measure, Result

MACHINE = Machine(cpu="Z80", cpus=2, memory_gib=24, kernel="6.18", python="3.11.7", rustc="1.95.0")


def result(*measures: Measure) -> Result:
    return Result(
        benchmark="ring",
        parameters={"records": 8},
        measures=measures,
        machine=MACHINE,
        commit="abc1234",
        date="2026-11-20 07:00 UTC",
    )


def measure(*runs: float, goal: Goal | None = None) -> Measure:
    return Measure("Cost", "x", runs, goal)


def test_the_median_decides_whether_a_goal_is_met() -> None:
    assert measure(9.0, 1.0, 1.2, goal=Goal("at most", 1.3)).met is True
    assert measure(1.0, 1.4, 1.4, goal=Goal("at most", 1.3)).met is False
    assert measure(0.9, 1.0, 0.1, goal=Goal("at least", 0.9)).met is True
    assert measure(1.0).met is None


def test_a_row_shows_median_range_and_verdict() -> None:
    row = report.cells(measure(1.251, 1.1, 1.5, goal=Goal("at most", 1.3)))
    assert row == ("Cost", "1.25 x", "1.1 to 1.5", "at most 1.3 x: met")
    missed = report.cells(measure(2.0, goal=Goal("at most", 1.3)))
    assert missed[3] == "at most 1.3 x: **not met**"


def test_a_missed_goal_stands_out_in_the_terminal() -> None:
    table = report.terminal_table(result(measure(2.0, goal=Goal("at most", 1.3)), measure(1.0)))
    assert [row.style for row in table.rows] == ["red", None]


def test_what_is_compared_stands_side_by_side() -> None:
    sides = {"ours": (0.0, 0.0), "theirs": (500.0, 400.0)}
    measures = [Measure("Closed", "", runs, subject=name) for name, runs in sides.items()]
    compared = replace(result(*measures), note="Under load.")
    assert report.comparison(compared) == [
        ("Side by side", "ours", "theirs"),
        ("Closed", "0", "450 (400 to 500)"),
    ]
    text = report.markdown([result(measure(1.0)), compared])
    assert "| Cost | 1 x |" in text
    assert "| Closed | 0 | 450 (400 to 500) |\n\nUnder load.\n" in text
    assert report.terminal_table(compared).row_count == 1


def test_numbers_have_three_digits() -> None:
    assert [report.number(value) for value in (0.98765, 5.4321, 567.8, 12345.6)] == [
        "0.988",
        "5.43",
        "568",
        "12,346",
    ]


def test_a_result_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = result(measure(1.0, 2.0, goal=Goal("at most", 1.3)), measure(3.0))
    saved.save(tmp_path / "results" / "ring.json")
    assert Result.load(tmp_path / "results" / "ring.json") == saved


def test_the_table_says_where_and_when_it_was_measured() -> None:
    text = report.markdown([result(measure(1.0))])
    assert "`ring` 2026-11-20 07:00 UTC at abc1234, one run: on 2 CPUs (Z80), 24 GiB" in text
    text = report.markdown([result(measure(1.0, 2.0, 3.0))])
    assert "at abc1234, medians of 3: on" in text


def test_renewing_a_table_leaves_the_rest_of_the_readme_alone() -> None:
    readme = f"before\n{report.FIRST_LINE}\nold\n{report.LAST_LINE}\nafter\n"
    renewed = report.with_table(readme, [result(measure(1.0))])
    assert renewed.startswith("before\n") and renewed.endswith(f"{report.LAST_LINE}\nafter\n")
    assert "old" not in renewed and "| Cost |" in renewed
    assert report.with_table(renewed, [result(measure(1.0))]) == renewed


def test_a_readme_without_the_marking_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="measured:begin"):
        report.with_table("no table here", [])


def test_the_readme_shows_the_saved_results() -> None:
    readme = report.README.read_text()
    assert report.with_table(readme, report.saved_results()) == readme
