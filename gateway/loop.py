"""The supervisor's loop: one thread, one epoll, phases in a fixed order, then timers.

A death is handled before what others say in the same turn, and both before any request that asks
about them: no answer tells of a state that the turn already knows to be over.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from enum import IntEnum

EVENTS_PER_TURN_MAX = 256
"""More ready descriptors wait for the next turn, so that signals and deaths stay prompt."""
TURN_S_MAX = 1.0
"""The longest wait of a turn: also the grain of what is checked once a turn."""


class Phase(IntEnum):
    """Who is served first within a turn."""

    SIGNALS = 0
    DEATHS = 1
    LINKS = 2
    CONTROL = 3


class Timer:
    """A call to come; `cancel` may be called at any time, also twice or too late."""

    __slots__ = ("cancelled", "run")

    def __init__(self, run: Callable[[], None]) -> None:
        self.run = run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Descriptors with their handlers by phase, and timers by CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Phase, Callable[[int], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def watch(
        self, fd: int, phase: Phase, handler: Callable[[int], None], events: int = select.EPOLLIN
    ) -> None:
        """Calls `handler(events)` whenever `fd` is ready; level-triggered."""
        self._epoll.register(fd, events)
        self._handlers[fd] = (phase, handler)

    def rewatch(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Must come before the descriptor is closed: its number may be given out again."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, delay_s: float, run: Callable[[], None]) -> Timer:
        timer = Timer(run)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def turn(self) -> None:
        """Waits for something to do, at most TURN_S_MAX, and does it in the order of the phases."""
        events = self._epoll.poll(self._wait_s(), EVENTS_PER_TURN_MAX)
        ready = [(self._handlers[fd], fd, mask) for fd, mask in events if fd in self._handlers]
        ready.sort(key=lambda each: each[0][0])
        for handler, fd, mask in ready:
            # An earlier handler of this turn may have closed it, and another may have its number.
            if self._handlers.get(fd) is handler:
                handler[1](mask)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.run()

    def close(self) -> None:
        self._epoll.close()

    def _wait_s(self) -> float:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return TURN_S_MAX
        return min(TURN_S_MAX, max(0.0, self._timers[0][0] - time.monotonic()))
