"""Runs long verbs: one at a time, each as its steps (`steps.py`), and tells of its progress.

What they do is in `reload.py` and `scaling.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from gateway.errors import ControlError, TidegateError
from gateway.steps import Condition, Report, Steps

logger = logging.getLogger("tidegate.operations")

PROGRESS_INTERVAL_S = 1.0
"""Progress comes at least so often, so that a client can tell a long verb from a lost one."""


class Operation:
    """A long verb under way. `on_end(result, None)` or `on_end(None, error)` is called once."""

    def __init__(
        self,
        name: str,
        requester: str,
        steps: Callable[[Report], Steps],
        on_progress: Report,
        on_end: Callable[[dict[str, Any] | None, TidegateError | None], None],
    ) -> None:
        self.name = name
        self.requester = requester
        self.started = time.monotonic()
        self.done = False
        self._on_progress = on_progress
        self._on_end = on_end
        self._last_progress: dict[str, Any] = {"phase": name}
        self._reported_at = self.started
        self._steps = steps(self._report)
        self._awaited: Condition | None = None
        logger.info(f"{name} begins", extra={"requester": requester})

    def advance(self) -> None:
        """Takes the steps that can be taken now; cheap when there is none."""
        if self.done:
            return
        try:
            while self._awaited is None or self._awaited():
                self._awaited = next(self._steps)
        except StopIteration as end:
            self._finish({**end.value, "duration_s": round(self._elapsed_s, 3)}, None)
        except TidegateError as error:
            self._finish(None, error)
        except Exception:
            # A defect in one operation is no reason to end everybody's connections.
            logger.exception(f"{self.name} failed")
            remedy = "see the gateway's log"
            self._finish(None, ControlError(f"{self.name} failed", remedy=remedy))
        else:
            if time.monotonic() - self._reported_at >= PROGRESS_INTERVAL_S:
                self._report(self._last_progress)

    def cancel(self, reason: str) -> None:
        """Ends it where it is: what was replaced stays, what was not stays too."""
        if not self.done:
            self._steps.close()
            self._finish(None, ControlError(f"{self.name} was given up: {reason}", code="aborted"))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "requester": self.requester,
            "elapsed_s": round(self._elapsed_s, 3),
            **self._last_progress,
        }

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def _report(self, progress: dict[str, Any]) -> None:
        self._last_progress = progress
        self._reported_at = time.monotonic()
        self._on_progress({**progress, "elapsed_s": round(self._elapsed_s, 3)})

    def _finish(self, result: dict[str, Any] | None, error: TidegateError | None) -> None:
        self.done = True
        extra = {"requester": self.requester, "duration_s": round(self._elapsed_s, 3)}
        if error is not None:
            logger.error(f"{self.name} failed: {error}", extra=extra)
        else:
            logger.info(f"{self.name} is done", extra=extra)
        self._on_end(result, error)


class Operations:
    """Runs one operation at a time; a second is refused, neither queued nor piled on the first."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        """`on_progress` is called whenever `describe` has something new to tell."""
        self._tell = on_progress
        self.current: Operation | None = None
        self.closed = "the gateway is starting"
        """Why none may begin now; empty: one may."""

    def begin(
        self,
        name: str,
        requester: str,
        steps: Callable[[Report], Steps],
        on_progress: Report,
        on_end: Callable[[dict[str, Any] | None, TidegateError | None], None],
    ) -> None:
        """Starts an operation. Raises ControlError, naming the one that is under way."""
        if self.closed:
            raise ControlError(
                f"{name} is refused: {self.closed}",
                remedy="try again when it serves (`tidegate status`)",
                code="busy",
            )
        if self.current is not None:
            since = time.monotonic() - self.current.started
            raise ControlError(
                f"{name} is refused: {self.current.requester} began {self.current.name} "
                f"{since:.1f} s ago, and it is not done",
                remedy="wait for it (`tidegate status` tells how far it is)",
                code="busy",
            )

        def progress(values: dict[str, Any]) -> None:
            on_progress(values)
            self._tell()

        self.current = Operation(name, requester, steps, progress, on_end)
        self.advance()

    def advance(self) -> None:
        """Called once a turn."""
        if self.current is not None:
            self.current.advance()
            if self.current.done:
                self.current = None

    def close(self, reason: str) -> None:
        """Gives up the one under way; none begins any more."""
        self.closed = reason
        if self.current is not None:
            self.current.cancel(reason)
            self.current = None

    def describe(self) -> dict[str, Any] | None:
        """What is under way, for `status`."""
        return None if self.current is None else self.current.describe()
