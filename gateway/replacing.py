"""Steps by which one process replaces another, or comes to be: parts of a reload and a scale."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from gateway.children import Child, State
from gateway.errors import ChildError, TidegateError
from gateway.fleet import GRACE_S, Fleet
from gateway.moves import Moved, Progress, into_successor
from gateway.processes import Worker
from gateway.service import Service
from gateway.slot import Slot
from gateway.steps import Condition, Report


def replace_worker(
    fleet: Fleet,
    slot: Slot,
    spread_s: float,
    report: Report,
    phase: dict[str, Any],
    *,
    keep: bool = False,
    recall: bool = False,
) -> Generator[Condition, None, Moved]:
    """A slot's successor takes the connections over; what cannot move is closed over `spread_s`.

    With `keep` the predecessor stands by; with `recall` the one that does is the successor.
    """
    report(phase)
    moved = Moved(slot.number)
    # Who is still on the way to the predecessor would be left behind.
    yield lambda: not fleet.rescues.concern_slot(slot.number)
    predecessor = slot.service.current

    def retire(worker: Child) -> None:
        if keep:
            slot.service.keep(worker)
        else:
            fleet.retire_worker(worker, spread_s)

    handoff = fleet.runtime.config.reload.handoff
    yield from replace(
        slot.service,
        retire,
        slot.service.name,
        move=into_successor(fleet, slot, moved, Progress(report, phase)) if handoff else None,
        start=slot.service.recall if recall else slot.service.start_successor,
    )
    if isinstance(predecessor, Worker):
        yield partial(fleet.rescues.known, predecessor)
        moved.closed, moved.lost = predecessor.closed, moved.lost + predecessor.connections_lost
    return moved


def replace(
    service: Service,
    retire: Callable[[Child], None],
    what: str,
    *,
    move: Generator[Condition, None, None] | None = None,
    start: Callable[[], Child] | None = None,
) -> Generator[Condition, None, None]:
    """Starts a successor, waits until it serves, and only then retires its predecessor.

    `move` comes in between, while both serve. `start` brings another successor than a new process.
    """
    with _named(what):
        successor = (start or service.start_successor)()
    try:
        yield lambda: successor.state is not State.STARTING
    except GeneratorExit:
        service.discard_successor()
        raise
    if successor.state is not State.SERVING:
        raise ChildError(
            f"{what}: the successor {successor.how_it_ended()}; the predecessor serves on",
            remedy="see the log for the successor's last words",
            code="successor_failed",
        )
    if move is not None and successor is service.successor:
        yield from move
    if successor is service.successor:
        predecessor = service.promote()
        if predecessor is not None:
            retire(predecessor)
            yield lambda: predecessor not in service.retiring


def replace_publisher(fleet: Fleet) -> Generator[Condition, None, None]:
    """There is one writer: the next starts when the last is dead; the rings keep what comes."""
    service = fleet.publisher
    predecessor = service.vacate()
    if predecessor is not None:
        fleet.tell_to_stop(predecessor, GRACE_S)
        yield lambda: not predecessor.alive
    service.start()
    yield from _serving(fleet, service, "the publisher")


def start_slot(fleet: Fleet) -> Generator[Condition, None, None]:
    slot = fleet.add_slot()
    try:
        yield from _serving(fleet, slot.service, slot.service.name)
    except (ChildError, GeneratorExit):
        fleet.remove_slot(0.0)
        raise


def _serving(fleet: Fleet, service: Service, what: str) -> Generator[Condition, None, None]:
    """Waits for a service to serve; its own first death is the end of the patience."""
    deaths = service.restarts.total
    yield lambda: service.serving or service.restarts.total > deaths
    if not service.serving:
        raise ChildError(f"{what}: it {service.failure}", remedy="see the log", code="start_failed")


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Names the service in an error about starting it."""
    try:
        yield
    except (TidegateError, OSError) as error:
        raise ChildError(
            f"{what}: no successor could be started ({error})",
            remedy="the predecessor serves on; see the log",
            code="successor_failed",
        ) from error
