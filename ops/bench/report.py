"""Results as tables: for the terminal, and as the Markdown that the README shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from ops.bench.command import BENCHMARKS, MILLION
from ops.bench.result import RESULTS, Machine, Measure, Result

ORDER = (*BENCHMARKS, MILLION)
"""Of the README's tables."""
README = Path(__file__).resolve().parents[2] / "README.md"
HEADINGS = ("Measured", "Median", "Range", "Goal")
MISSED = "**not met**"
FIRST_LINE = "<!-- measured:begin -->"
LAST_LINE = "<!-- measured:end -->"


def saved_results() -> list[Result]:
    """The results that were kept, in the README's order."""
    paths = (RESULTS / f"{name}.json" for name in ORDER)
    return [Result.load(path) for path in paths if path.exists()]


def terminal_table(result: Result) -> Table:
    table = Table(title=result.benchmark, caption=result.note or None, caption_justify="left")
    headings, *rows = comparison(result) or (HEADINGS, *map(cells, result.measures))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*row, style="red" if row[-1].endswith(MISSED) else None)
    return table


def comparison(result: Result) -> list[tuple[str, ...]]:
    """Heading and rows where several subjects are compared, a column for each; else nothing."""
    subjects = list(dict.fromkeys(each.subject for each in result.measures if each.subject))
    if not subjects:
        return []
    rows = {each.what: dict.fromkeys(subjects, "") for each in result.measures}
    for measure in result.measures:
        _, median, spread, _ = cells(measure)
        varies = min(measure.runs) != max(measure.runs)
        rows[measure.what][measure.subject] = f"{median} ({spread})" if varies else median
    heading = ("Side by side", *subjects)
    return [heading, *((what, *figures.values()) for what, figures in rows.items())]


def markdown(results: Iterable[Result]) -> str:
    """One table of all results, one for each comparison, and below them where and when they were
    measured; "" without any."""
    rows: list[tuple[str, ...]] = []
    comparisons = []
    origins: dict[Machine, list[str]] = {}
    for result in results:
        compared = comparison(result)
        if compared:
            comparisons.append(f"{_table(compared)}\n\n{result.note}".rstrip())
        else:
            rows += [cells(measure) for measure in result.measures]
        done = f"`{result.benchmark}` {result.date} at {result.commit}, {_shown(result)}"
        origins.setdefault(result.machine, []).append(done)
    if not origins:
        return ""
    tables = [_table([HEADINGS, *rows])] if rows else []
    notes = "\n".join(f"{'; '.join(done)}: on {place(where)}." for where, done in origins.items())
    return "\n\n".join([*tables, *comparisons, notes]) + "\n"


def _shown(result: Result) -> str:
    counts = sorted({len(measure.runs) for measure in result.measures}, reverse=True)
    words = ["one run" if count == 1 else f"medians of {count}" for count in counts]
    return " and ".join(words)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    heading, *others = rows
    rule = ("---", *["---:"] * (len(heading) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *others))


def place(machine: Machine) -> str:
    return (
        f"{machine.cpus} CPUs ({machine.cpu}), {machine.memory_gib} GiB, Linux {machine.kernel}, "
        f"Python {machine.python}, rustc {machine.rustc}"
    )


def cells(measure: Measure) -> tuple[str, str, str, str]:
    """A row: what, median, range, goal with whether it is met."""
    low, high = min(measure.runs), max(measure.runs)
    goal = ""
    if measure.goal is not None:
        verdict = "met" if measure.met else MISSED
        goal = f"{measure.goal.sense} {quantity(measure.goal.bound, measure.unit)}: {verdict}"
    spread = f"{number(low)} to {number(high)}"
    return measure.what, quantity(measure.median, measure.unit), spread, goal


def quantity(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three significant digits, which is more than such figures repeat to."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_table(readme: str, results: Sequence[Result]) -> str:
    """The README's text with its table renewed. Raises ValueError without the two marking lines."""
    before, first, rest = readme.partition(FIRST_LINE)
    _, last, after = rest.partition(LAST_LINE)
    if not (first and last):
        raise ValueError(f"the lines {FIRST_LINE} and {LAST_LINE} are not there")
    return f"{before}{first}\n{markdown(results)}{last}{after}"


def renew_readme() -> None:
    README.write_text(with_table(README.read_text(), saved_results()))
