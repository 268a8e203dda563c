"""The loop's order within a turn, its timers, and descriptors that end in the middle of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gateway.loop import Loop, Phase
from gateway.signals import SignalQueue


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def ready_fd() -> int:
    """A descriptor that is readable until it is closed."""
    return os.eventfd(1, os.EFD_CLOEXEC)


def test_phases_are_served_in_their_order_however_they_were_added(loop: Loop) -> None:
    seen: list[Phase] = []
    fds = {phase: ready_fd() for phase in reversed(Phase)}
    for phase, fd in fds.items():
        loop.watch(fd, phase, lambda events, phase=phase: seen.append(phase))
    loop.turn()
    assert seen == [Phase.SIGNALS, Phase.DEATHS, Phase.LINKS, Phase.CONTROL]
    for fd in fds.values():
        loop.unwatch(fd)
        os.close(fd)


def test_a_descriptor_that_an_earlier_phase_closed_is_not_served(loop: Loop) -> None:
    seen: list[str] = []
    first, second = ready_fd(), ready_fd()

    def close_second(events: int) -> None:
        loop.unwatch(second)
        os.close(second)
        # The kernel gives the number out again at once: it is another descriptor now.
        third = ready_fd()
        assert third == second
        loop.watch(third, Phase.CONTROL, lambda events: seen.append("third"))
        loop.unwatch(first)

    loop.watch(first, Phase.DEATHS, close_second)
    loop.watch(second, Phase.CONTROL, lambda events: seen.append("second"))
    loop.turn()
    assert seen == []
    loop.turn()
    assert seen == ["third"]
    loop.unwatch(second)
    os.close(first)
    os.close(second)


def test_timers_run_in_the_order_of_their_time_and_not_when_cancelled(loop: Loop) -> None:
    seen: list[str] = []
    loop.after(0.02, lambda: seen.append("late"))
    loop.after(0.0, lambda: seen.append("early"))
    loop.after(0.01, lambda: seen.append("cancelled")).cancel()
    while len(seen) < 2:
        loop.turn()
    assert seen == ["early", "late"]


def test_a_timer_that_sets_itself_again_does_not_hold_up_the_turn(loop: Loop) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(1)
        if len(seen) < 3:
            loop.after(0.0, again)

    again()
    while len(seen) < 3:
        loop.turn()
    assert len(seen) == 3


def test_signals_arrive_in_the_loop_in_their_order(loop: Loop) -> None:
    queue = SignalQueue()
    try:
        received: list[signal.Signals] = []
        loop.watch(queue.fileno(), Phase.SIGNALS, lambda events: received.extend(queue.read()))
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
            signal.raise_signal(number)
        loop.turn()
        assert received == [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2]
        assert queue.read() == []
        loop.unwatch(queue.fileno())
    finally:
        queue.close()


def test_after_closing_the_queue_signals_mean_what_they_meant() -> None:
    before = signal.getsignal(signal.SIGHUP)
    SignalQueue().close()
    assert signal.getsignal(signal.SIGHUP) == before
