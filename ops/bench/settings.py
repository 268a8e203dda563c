"""Settings of the kernel that a benchmark needs, for the length of a block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from gateway.errors import TidegateError
from gateway.host.examine import Finding
from ops import tune

ROOT = Path("/")
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
"""Ask a process to end, and by default end it at once; an interrupt is an exception already."""


@contextlib.contextmanager
def raised(
    findings: Sequence[Finding], say: Callable[[str], None], root: Path = ROOT
) -> Iterator[None]:
    """Raises what the findings want, and sets it back at the end, however the block ends.

    Only SIGKILL leaves the settings raised, and a restart of the machine undoes that. Raises
    TidegateError where one cannot be raised; nothing stays changed then.
    """
    with contextlib.ExitStack() as undo:
        # Before the first write, so that no signal comes between a write and its undoing.
        undo.enter_context(_endings_raised())
        for finding in findings:
            (outcome,) = tune.apply([finding], root) or (None,)
            if outcome is None:
                continue
            if outcome.reason:
                raise TidegateError(
                    str(outcome), remedy="raise it by hand, or ask for less", code="setting"
                )
            undo.callback(_set_back, root / finding.check.setting, outcome, say)
            say(f"raised {outcome}")
        yield


def _set_back(path: Path, outcome: tune.Outcome, say: Callable[[str], None]) -> None:
    # What somebody else has set meanwhile is theirs.
    if " ".join(path.read_text().split()) == outcome.after:
        path.write_text(outcome.before)
        say(f"set back {outcome.name}: {outcome.before}")


class Ended(TidegateError):
    """The process was asked to end."""

    code = "ended"


@contextlib.contextmanager
def _endings_raised() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(f"ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, end) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
