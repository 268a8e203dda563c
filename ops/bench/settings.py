"""Settings of the kernel that a benchmark needs, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.errors import TidegateError
from gateway.host.examine import Finding
from ops import tune

ROOT = Path("/")


@contextlib.contextmanager
def raised(
    findings: Sequence[Finding], say: Callable[[str], None], root: Path = ROOT
) -> Iterator[None]:
    """Raises what the findings want, and sets it back at the end, however the block ends.

    Also by a signal, if signals are exceptions (`endings.py`): only SIGKILL leaves them raised, and
    a restart of the machine undoes that. Raises TidegateError where one cannot be raised; nothing
    stays changed then.
    """
    with contextlib.ExitStack() as undo:
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
