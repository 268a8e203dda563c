"""What follows the death of a worker: its connections go on in another one.

Each rescue is a generator of steps (`steps.py`), as the parts of a verb are, but nobody asked for
it, and it goes on beside whatever else is under way.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING

from gateway.children import State
from gateway.keeper import LOSSES, Keeper
from gateway.processes import Worker
from gateway.steps import Condition

if TYPE_CHECKING:
    from gateway.fleet import Fleet

ELSEWHERE_S = 3.0
"""So long the slot's own next worker is waited for, which is mostly there within half a second."""
PATIENCE_S = 30.0
"""So long any worker is: clients find out by themselves that nobody answers, and come back."""
END_S = 30.0
"""What a keeper may take to look at what it has, which for a million connections are seconds."""

logger = logging.getLogger("tidegate.rescue")


class Rescue:
    """One dead worker's connections."""

    def __init__(self, fleet: Fleet, worker: Worker, connections: int) -> None:
        self.worker = worker
        self._fleet = fleet
        self._connections = connections
        """As its statistics had it; only known better by a keeper."""
        self._moving = fleet.handoffs.given_by(worker)
        """The hand-off in which it was giving when it died."""
        self._rescued = 0
        self._losses: Counter[str] = Counter()
        self._pause_us = 0
        self._receiver: Worker | None = None
        self._steps = self._run()
        self._awaited: Condition = lambda: True
        self.done = False

    def advance(self) -> None:
        """Takes the steps that can be taken now."""
        try:
            while not self.done and self._awaited():
                self._awaited = next(self._steps)
        except StopIteration:
            self.done = True

    def _run(self) -> Generator[Condition, None, None]:
        keeper = self.worker.keeper
        if keeper is not None:
            yield _within(END_S, lambda: keeper.found is not None or not keeper.alive)
        if keeper is None or keeper.found is None:
            # One that ended without a word had a worker that ended in good order.
            if keeper is None or keeper.alive or keeper.failure:
                self._losses["no_keeper"] += self._connections
        else:
            self._losses["unrecorded"] += keeper.found.unrecorded
            yield from self._give(keeper)
            yield from self._count_those_on_their_way(keeper)
        self.worker.leave_channels()
        self._tell()
        if keeper is not None:
            keeper.dismiss()
            yield _within(END_S, lambda: not keeper.alive)
            keeper.kill()
            yield lambda: not keeper.alive

    def _give(self, keeper: Keeper) -> Generator[Condition, None, None]:
        full: set[int] = set()
        began = time.monotonic()
        while keeper.alive and (keeper.connections() or self._damaged(keeper)):
            yield partial(self._is_decided, full, began)
            receiver = self._receiver
            if receiver is None:
                break
            yield from self._give_to(keeper, receiver, full)
        if keeper.alive or keeper.given is None:
            self._losses["no_worker"] += keeper.connections()
            self._losses["partial"] += self._damaged(keeper)

    @staticmethod
    def _damaged(keeper: Keeper) -> int:
        return keeper.found.damaged if keeper.found else 0

    def _give_to(
        self, keeper: Keeper, receiver: Worker, full: set[int]
    ) -> Generator[Condition, None, None]:
        handoffs = self._fleet.handoffs
        before = keeper.connections()
        try:
            handoff = handoffs.begin(keeper, receiver)
        except OSError as error:
            logger.error("the kernel refuses a socket pair", extra={"reason": error})
            full.add(receiver.pid)
            return
        keeper.on_given = handoffs.take
        try:
            yield handoff.settled
        finally:
            handoffs.end(handoff)
        self._pause_us = max(self._pause_us, handoff.pause_us["max"])
        if keeper.given is None:
            # It died in the middle: what the receiver took, goes on.
            moved = int((handoff.adopted or {}).get("count", 0))
            self._rescued += moved
            self._losses["no_keeper"] += max(0, before - moved)
            if keeper.found is not None:
                keeper.found.held = keeper.found.damaged = 0
            return
        self._rescued += int(keeper.given["moved"])
        for reason in LOSSES:
            self._losses[reason] += int(keeper.given.get(reason, 0))
        if keeper.given["kept"]:
            full.add(receiver.pid)

    def _is_decided(self, full: set[int], began: float) -> bool:
        """Whether it is known who takes them: `_receiver`, which may be nobody."""
        fleet, number = self._fleet, self.worker.slot
        self._receiver = None
        slot = next((each for each in fleet.slots if each.number == number), None)
        waited_s = time.monotonic() - began
        if slot is not None:
            if slot.service.stopped or slot.service.crash_looping:
                # Whatever kills one worker after the other shall not be carried to all others.
                return True
            for each in self._able([slot.service.current, slot.service.successor], full):
                self._receiver = each
                return True
        if slot is None or waited_s > ELSEWHERE_S or full:
            loads = fleet.runtime.memory.connections_by_row()
            others = self._able([each.service.current for each in fleet.slots], full)
            others.sort(key=lambda each: loads.get(each.stats_row, 0))
            if others or not fleet.slots:
                self._receiver = others[0] if others else None
                return True
        return waited_s > PATIENCE_S

    def _able(self, children: list[object], full: set[int]) -> list[Worker]:
        giving = self._fleet.handoffs.givers()
        return [
            each
            for each in children
            if isinstance(each, Worker)
            and each.state is State.SERVING
            and each.pid not in full
            and each not in giving
        ]

    def _count_those_on_their_way(self, keeper: Keeper) -> Generator[Condition, None, None]:
        """Of those that it had sent to another worker when it died: who did not arrive."""
        found, moving = keeper.found, self._moving
        if moving is None or found is None:
            return
        yield lambda: moving.adopted is not None or not moving.receiver.alive or moving.over
        arrived = int((moving.adopted or {}).get("count", 0))
        self._losses["in_message"] += max(0, found.acknowledged + found.given - arrived)

    def _tell(self) -> None:
        row = self._fleet.runtime.memory.row
        lost = +self._losses
        self.worker.connections_lost = lost.total()
        row.add("connections_rescued_total", self._rescued)
        for reason, count in lost.items():
            row.add(f'connections_lost_total{{reason="{reason}"}}', count)
        facts = {"child": self.worker.pid, "rescued": self._rescued, **lost}
        if lost:
            logger.error(
                f"{lost.total()} connections were lost with {self.worker.name}", extra=facts
            )
        elif self._rescued:
            logger.warning(
                f"all connections of {self.worker.name} go on",
                extra=facts | {"pause_max_us": self._pause_us},
            )


class Rescues:
    """Those under way."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._under_way: list[Rescue] = []

    def begin(self, worker: Worker, connections: int) -> None:
        """A worker has died with so many connections."""
        self._under_way.append(Rescue(self._fleet, worker, connections))

    def advance(self) -> None:
        """Called once a turn."""
        for rescue in self._under_way:
            rescue.advance()
        self._under_way = [rescue for rescue in self._under_way if not rescue.done]

    @property
    def settled(self) -> bool:
        return not self._under_way

    def known(self, *workers: Worker) -> bool:
        """Whether it is known what became of the connections of those of them that are dead."""
        return not any(rescue.worker in workers for rescue in self._under_way)

    def concern_slot(self, number: int) -> bool:
        """Whether connections of a slot are on their way to its worker."""
        return any(rescue.worker.slot == number for rescue in self._under_way)

    def close(self) -> None:
        """The gateway has ended: nobody is left to take them."""
        for rescue in self._under_way:
            if rescue.worker.keeper is not None:
                rescue.worker.keeper.close()
        self._under_way.clear()


def _within(limit_s: float, condition: Condition) -> Condition:
    deadline = time.monotonic() + limit_s
    return lambda: condition() or time.monotonic() >= deadline
