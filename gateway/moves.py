"""Steps by which connections move: into a successor, and out of a slot that goes.

Each is a part of a verb (`reload.py`, `scaling.py`) and tells what became of the connections. No
client can tell that its connection was moved, save by a pause.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gateway.balance import shares
from gateway.children import State
from gateway.errors import ChildError
from gateway.fleet import Fleet
from gateway.handoff import ALL, Handoff
from gateway.processes import Worker
from gateway.slot import Slot
from gateway.steps import Condition, Report


@dataclass(slots=True)
class Moved:
    """What became of the connections of one slot's worker; the pause is the worst of its moves."""

    slot: int
    moved: int = 0
    kept: int = 0
    """Could not be moved: they were served on where they were, and then closed with it."""
    closed: int = 0
    """Closed, with a code that lets their clients come back."""
    lost: int = 0
    """Ended without a word."""
    pause_us: dict[str, int] = field(default_factory=lambda: {"p50": 0, "p99": 0, "max": 0})

    def count(self, handoff: Handoff) -> None:
        self.moved += handoff.moved
        self.kept = handoff.kept
        self.lost += handoff.lost
        for part, pause in handoff.pause_us.items():
            self.pause_us[part] = max(self.pause_us[part], pause)

    def as_map(self) -> dict[str, Any]:
        return {
            "slot": self.slot,
            "moved": self.moved,
            "kept": self.kept,
            "closed": self.closed,
            "lost": self.lost,
            "pause_us": self.pause_us,
        }


class Progress:
    """Tells of a hand-off within a phase of a verb, when there is something new to tell."""

    def __init__(self, report: Report, phase: dict[str, Any]) -> None:
        self._report = report
        self._phase = phase
        self._told = -1

    def tell(self, handoff: Handoff) -> None:
        if handoff.moved != self._told:
            self._told = handoff.moved
            figures = {"moved": handoff.moved, "remaining": handoff.remaining}
            if handoff.pause_us["max"]:
                figures["pause_max_us"] = handoff.pause_us["max"]
            self._report({**self._phase, **figures})


def hand_over(
    fleet: Fleet,
    giver: Worker,
    receiver: Worker,
    progress: Progress,
    *,
    count: int = ALL,
    keep_accepting: bool = False,
    drain_queue: bool = False,
) -> Generator[Condition, None, Handoff]:
    """One hand-off, to its good or bad end (`problem`)."""
    handoff = fleet.handoffs.begin(
        giver, receiver, count=count, keep_accepting=keep_accepting, drain_queue=drain_queue
    )

    def settled() -> bool:
        progress.tell(handoff)
        return handoff.settled()

    try:
        yield settled
        progress.tell(handoff)
        return handoff
    finally:
        fleet.handoffs.end(handoff)


def into_successor(
    fleet: Fleet, slot: Slot, moved: Moved, progress: Progress
) -> Generator[Condition, None, None]:
    """All connections of a slot's worker go to the successor, which serves already.

    Raises ChildError where that fails. The slot then has a worker that serves on, also what the
    one that died had: the predecessor, or, if that is the one, the successor.
    """
    predecessor, successor = slot.service.current, slot.service.successor
    if not isinstance(predecessor, Worker) or not isinstance(successor, Worker):
        return
    if predecessor.state is not State.SERVING:
        return
    try:
        handoff = yield from hand_over(fleet, predecessor, successor, progress)
    except GeneratorExit:
        # Both have clients now, and each ends as it is told.
        if successor is slot.service.successor:
            slot.service.promote()
            fleet.retire_worker(predecessor, 0.0)
        raise
    moved.count(handoff)
    problem = handoff.problem
    if not problem:
        return
    if predecessor.alive:
        yield from _call_off(fleet, slot, predecessor, handoff, progress)
    if predecessor.alive:
        ending = f"{predecessor.name} serves on"
    elif successor.alive:
        ending = f"{successor.name} serves on"
    else:
        ending = "both are dead; the slot starts anew"
    yield lambda: fleet.rescues.known(predecessor, successor)
    lost = predecessor.connections_lost + successor.connections_lost
    moved.lost += lost
    ending += f", {lost} connections are lost" if lost else ", no connection is lost"
    raise ChildError(
        f"{slot.service.name}, hand-off: {problem}, after {handoff.moved} connections had "
        f"moved and with {handoff.remaining} to go; {ending}",
        remedy="see the log",
        code="handoff_failed",
    )


def _call_off(
    fleet: Fleet, slot: Slot, predecessor: Worker, handoff: Handoff, progress: Progress
) -> Generator[Condition, None, None]:
    """The predecessor is the slot's worker again, and has what the successor can give back."""
    successor = handoff.receiver
    predecessor.send("resume")
    try:
        if successor.state is State.SERVING and handoff.moved:
            yield from hand_over(fleet, successor, predecessor, progress)
    finally:
        slot.service.discard_successor()
    if successor is slot.service.current:
        # The predecessor died on the way back: who was to end has the slot now.
        successor.send("resume")
    yield lambda: successor not in slot.service.retiring


def out_of_slot(
    fleet: Fleet, slot: Slot, spread_s: float, report: Report, phase: dict[str, Any]
) -> Generator[Condition, None, Moved]:
    """Empties a slot that is taken out already into the other ones, which end as even as can be.

    What those do not take is closed over `spread_s`. The slot's worker is dead afterwards.
    """
    moved = Moved(slot.number)
    worker = slot.service.retire()
    if not isinstance(worker, Worker):
        return moved
    try:
        if worker.state is State.SERVING and fleet.runtime.config.reload.handoff:
            yield from _share_out(fleet, worker, moved, Progress(report, phase))
    finally:
        fleet.retire_worker(worker, spread_s, "leave")
    yield lambda: not worker.alive and fleet.rescues.known(worker)
    moved.closed += worker.closed
    moved.lost += worker.connections_lost
    return moved


def _share_out(
    fleet: Fleet, worker: Worker, moved: Moved, progress: Progress
) -> Generator[Condition, None, None]:
    receivers = serving_workers(fleet)
    own = fleet.runtime.memory.connections_by_row().get(worker.stats_row, 0)
    parts = shares(own, serving_loads(fleet))
    # The last one gets what is left, and with it whoever came meanwhile.
    parts[-1:] = [ALL] * len(parts[-1:])
    for receiver, count in zip(receivers, parts, strict=True):
        if not worker.alive:
            return
        if count and receiver.state is State.SERVING:
            handoff = yield from hand_over(
                fleet, worker, receiver, progress, count=count, drain_queue=True
            )
            moved.count(handoff)
            if not receiver.alive:
                yield partial(fleet.rescues.known, receiver)
                moved.lost += receiver.connections_lost


def serving_workers(fleet: Fleet) -> list[Worker]:
    """The worker of each slot that has one which serves."""
    current = (slot.service.current for slot in fleet.slots)
    return [each for each in current if isinstance(each, Worker) and each.state is State.SERVING]


def serving_loads(fleet: Fleet) -> list[int]:
    """Connections of each of the serving workers."""
    by_row = fleet.runtime.memory.connections_by_row()
    return [by_row.get(worker.stats_row, 0) for worker in serving_workers(fleet)]
