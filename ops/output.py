"""How a command speaks: data to stdout, messages to stderr; tables for people, JSON for programs.

With `--json` stdout carries JSON and nothing else: the result, or `{"error": {code, message,
remedy}}`. Without a terminal there is no colour, no cursor movement, and nothing is cut to a width.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import TidegateError, Unreachable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 250
"""Columns for a pipe or a file: nothing that a table here holds is wider."""


class Exit(IntEnum):
    """What a command's exit status means; the same for every command."""

    OK = 0
    NO = 1
    """The answer is no, or there is something to look at."""
    ERROR = 2
    UNREACHABLE = 3
    INTERRUPTED = 130
    """By convention of shells: 128 and the number of SIGINT."""


class OutputLost(TidegateError):
    """Standard output takes nothing more, as on a full disk."""

    code = "output"


class Meter(Protocol):
    """A bar that shows how far a long verb is."""

    def __call__(self, label: str, done: float, total: float, detail: str = "") -> None: ...


class Output:
    """One command's way to speak. rich is imported when there is something to draw."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    # ---- data

    def data(self, value: Any) -> None:
        """One JSON document on a line of its own."""
        self.line(json.dumps(value, ensure_ascii=False, default=str))

    def line(self, text: str) -> None:
        # What came as bytes that are no UTF-8 (PEP 383) is shown with the escapes of JSON.
        with _written():
            print(text.encode("utf-8", "backslashreplace").decode(), flush=True)

    def show(self, *parts: Table | str) -> None:
        with _written():
            for part in parts:
                self._stdout.print(part, markup=False, highlight=False)

    @contextmanager
    def live(self) -> Iterator[Any]:
        """Yields a function that shows parts in place of those shown before (on a terminal)."""
        from rich.console import Group
        from rich.live import Live

        if not self._stdout.is_terminal:
            yield self.show
            return
        with Live(console=self._stdout, auto_refresh=False) as display:
            yield lambda *parts: display.update(Group(*parts), refresh=True)

    # ---- messages

    def note(self, text: str) -> None:
        """Something for a person to know; not shown to programs."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)

    def error(self, error: TidegateError) -> Exit:
        """Tells what went wrong and what to do; returns the exit status for it."""
        if self.as_json and not isinstance(error, OutputLost):
            self.data({"error": error.as_map()})
        else:
            print(f"tidegate: {error.message}", file=sys.stderr)
            if error.remedy:
                print(f"  {error.remedy}", file=sys.stderr, flush=True)
        return Exit.UNREACHABLE if isinstance(error, Unreachable) else Exit.ERROR

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        """A progress bar on stderr; without a terminal one line for each new label."""
        if self.as_json:
            yield lambda label, done, total, detail="": None
        elif self._stderr.is_terminal:
            yield from self._bar()
        else:
            yield self._plain_meter()

    def _bar(self) -> Iterator[Meter]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._stderr, transient=True) as progress:
            task = progress.add_task("", total=None)
            yield lambda label, done, total, detail="": progress.update(
                task,
                description=f"{label}: {detail}" if detail else label,
                completed=done,
                total=total,
            )

    def _plain_meter(self) -> Meter:
        last = ""

        def tell(label: str, done: float, total: float, detail: str = "") -> None:
            nonlocal last
            if label != last and done < total:
                last = label
                self.note(f"{label} ({done:g} of {total:g} done)")

        return tell

    # ---- consoles

    @property
    def _stdout(self) -> Console:
        return _console(stderr=False)

    @property
    def _stderr(self) -> Console:
        return _console(stderr=True)


@contextmanager
def _written() -> Iterator[None]:
    """Writing that may fail. A reader that went away is left to click, which ends quietly."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputLost(f"standard output cannot be written ({error.strerror})") from error


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, soft_wrap=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    return console


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table without rules, so that it can be cut with awk; numbers stand at the right."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    return drawn


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def duration(seconds: float) -> str:
    """Two units are enough for a person: `3d 4h`, `2m 5s`, `1.4s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    first = next(index for index, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number}{unit}" for number, unit in parts[first : first + 2])
