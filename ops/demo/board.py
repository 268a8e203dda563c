"""The demonstration on the terminal: a departures board and the counts; plain lines without one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ops.demo.flights import DAY_TEXT, Movement, clock
from ops.demo.tally import Counts

ROWS = 14
REFRESHES_PER_S = 4
PLAIN_INTERVAL_S = 5.0


class Board:
    """Shows movements as they are published, and how many reach the subscribers."""

    def __init__(self, carriers: Mapping[str, str], movements_total: int) -> None:
        self._carriers = carriers
        self._total = movements_total
        self._done = 0
        self._minute = 0
        self._latest: deque[Movement] = deque(maxlen=ROWS)
        self._phase = "starting"
        self._counts = Counts()
        self._console = Console()
        self._live = Live(
            get_renderable=self._drawn,
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        )
        self._told = 0.0

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        """Something new happens; on a terminal it stays above the board."""
        self._phase = text
        self._console.print(f"- {text}", highlight=False, markup=False)

    def moved(self, movement: Movement) -> None:
        self._done += 1
        self._minute = movement.minute
        self._latest.appendleft(movement)
        if not self._console.is_terminal and time.monotonic() - self._told > PLAIN_INTERVAL_S:
            self._told = time.monotonic()
            self._console.print(f"  {self._summary()}", highlight=False, soft_wrap=True)

    def counted(self, counts: Counts) -> None:
        self._counts = counts

    def _summary(self) -> str:
        counts = self._counts
        return (
            f"{clock(self._minute)}  {self._done:,}/{self._total:,} movements"
            f"  {counts.connected:,}/{counts.subscribers:,} connected"
            f"  {counts.delivered:,} delivered  {counts.recovered:,} of them by recovery"
        )

    def _drawn(self) -> Group:
        table = Table(title=f"New York, {DAY_TEXT}", title_justify="left", expand=False)
        for column in ("Time", "Flight", "Airline", "From", "To", "Status"):
            table.add_column(column, no_wrap=True)
        for movement in self._latest:
            table.add_row(
                clock(movement.minute),
                movement.flight,
                self._carriers.get(movement.carrier, movement.carrier),
                movement.origin,
                movement.destination,
                _status(movement),
            )
        below = Table.grid()
        below.add_row(ProgressBar(total=self._total, completed=self._done, width=80))
        below.add_row(self._summary())
        below.add_row(Text(self._phase, style="dim"))
        return Group(table, below)


def _status(movement: Movement) -> Text:
    if movement.kind == "cancelled":
        return Text("CANCELLED", style="bold red")
    late = movement.delay_min
    how = "on time" if late == 0 else f"{abs(late)} min {'late' if late > 0 else 'early'}"
    style = "green" if late <= 15 else "yellow" if late <= 60 else "red"
    return Text(f"{movement.kind} {how}", style=style)
