"""Waiting for a condition, with a deadline and a message that says what did not happen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02
PATIENCE_S = 60.0
"""Many times what anything takes: a machine may be slow, or busy with other tests."""


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Return the first truthy value of `condition`; fail naming `what` after `timeout_s`."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: did not happen within {timeout_s:g} s")
        pause.wait(POLL_S)


def wait_until_equal(
    read: Callable[[], T], expected: T, what: str, timeout_s: float = PATIENCE_S
) -> None:
    """Return when `read()` gives `expected`; fail naming `what` and what it gave last."""
    last: list[T] = []

    def is_equal() -> bool:
        last[:] = [read()]
        return last == [expected]

    try:
        wait_for(is_equal, what, timeout_s)
    except AssertionError as failure:
        raise AssertionError(f"{failure}; last: {last[0]}, wanted: {expected}") from None
