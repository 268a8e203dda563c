"""Signals that end a benchmark as its errors do: with everything that it began cleaned up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from gateway.errors import TidegateError

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Ask a process to end, and by default end it at once; an interrupt is an exception already."""


class Ended(TidegateError):
    """The process was asked to end."""

    code = "ended"


@contextlib.contextmanager
def endings_raised() -> Iterator[None]:
    """For the length of the block, these signals raise Ended in the main thread."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(f"ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
