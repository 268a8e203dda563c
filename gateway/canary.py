"""A canary: some slots run new code on probation, beside others that run the old.

The predecessors of those slots stand by without clients: they are the old code, which nothing else
can bring back, for what is installed is the new. A rollback hands the clients back to them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.config import Config
from gateway.figures import Figures, figures_by_pid
from gateway.guard import Guard, Limits, usual_before
from gateway.processes import Worker

if TYPE_CHECKING:
    from gateway.fleet import Fleet
    from gateway.slot import Slot


@dataclass(slots=True)
class Canary:
    """Which workers are on probation, and what there was before them."""

    config_before: Config
    generation_before: int
    workers: list[Worker] = field(default_factory=list)
    figures_before: dict[int, Figures] = field(default_factory=dict)
    """Of the workers that were there already, by pid: what they had counted by then."""
    guard: Guard | None = None
    reason: str = ""
    """Why the guard would have it rolled back; it guards no longer then."""
    began: float = field(default_factory=time.monotonic)

    def on_probation(self, slot: Slot) -> bool:
        return slot.service.current in self.workers

    def slots(self, fleet: Fleet) -> list[int]:
        """Numbers of the slots that are on probation still."""
        return [slot.number for slot in fleet.slots if self.on_probation(slot)]

    def begin_guard(self, fleet: Fleet) -> None:
        """From now on `trips` may be true. The predecessors stand by already."""
        config = fleet.runtime.config.reload
        limits = Limits(config.guard_factor, config.guard_events_min, config.guard_window_s)
        predecessors = [slot.service.standby for slot in fleet.slots if self.on_probation(slot)]
        life = [
            (self.figures_before[each.pid], each.lived_s)
            for each in predecessors
            if each is not None and each.pid in self.figures_before
        ]
        self.guard = Guard(limits, usual_before(life, limits.window_s), figures_by_pid(fleet))
        # So that it knows who is on which side, whoever dies first.
        self.watch(fleet)

    def watch(self, fleet: Fleet) -> None:
        """Lets the guard take a sample."""
        if self.guard is not None:
            new, old = ({worker.pid for worker in side} for side in self._sides(fleet))
            self.guard.take(figures_by_pid(fleet), new, old)

    def trips(self) -> bool:
        """Whether the guard finds that the canary is to be rolled back; true once."""
        if self.guard is not None and (reason := self.guard.verdict()):
            self.guard, self.reason = None, reason
            return True
        return False

    def describe(self, fleet: Fleet) -> dict[str, Any]:
        """Both sides since the canary began, as `status` shows them."""
        figures = figures_by_pid(fleet)
        new, old = (self._describe_side(side, figures) for side in self._sides(fleet))
        return {
            "slots": self.slots(fleet),
            "elapsed_s": round(time.monotonic() - self.began, 3),
            "guarded": self.guard is not None,
            "reason": self.reason,
            "new": new,
            "old": old,
        }

    def _sides(self, fleet: Fleet) -> tuple[list[Worker], list[Worker]]:
        """The workers that serve: those on probation, and all others."""
        serving = [each for slot in fleet.slots if isinstance(each := slot.service.current, Worker)]
        new = [worker for worker in serving if worker in self.workers]
        return new, [worker for worker in serving if worker not in self.workers]

    def _describe_side(self, workers: list[Worker], figures: dict[int, Figures]) -> dict[str, Any]:
        before = self.figures_before
        side = Figures.sum(figures[each.pid].since(before.get(each.pid)) for each in workers)
        return {
            "workers": len(workers),
            "connections": side.connections,
            "closes": side.closes,
            "unclean_closes": side.unclean_closes,
            "failures": side.failures,
            "deliveries": side.deliveries,
            "publish_to_flush_ms_mean": side.latency_mean_ms,
            "publish_to_flush_ms_p99": side.latency_p99_ms,
        }
