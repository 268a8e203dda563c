"""A canary: some slots run new code on probation, beside others that run the old.

The predecessors of those slots stand by without clients: they are the old code, which nothing else
can bring back, for what is installed is the new. A rollback hands the clients back to them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.config import Config
from gateway.processes import Worker

if TYPE_CHECKING:
    from gateway.fleet import Fleet
    from gateway.slot import Slot

COUNTED = {
    "closes": "closes_total",
    "errors": "subscribe_errors_total",
    "deliveries": "deliveries_total",
}
"""What is compared: the key, and the family of counters that it sums."""
LATENCY = "publish_to_flush_ms"


@dataclass(slots=True)
class Canary:
    """Which workers are on probation, and what there was before them."""

    config_before: Config
    generation_before: int
    workers: list[Worker] = field(default_factory=list)
    figures_before: dict[int, dict[str, int]] = field(default_factory=dict)
    """Of the workers that were there already, by pid: what they had counted by then."""
    began: float = field(default_factory=time.monotonic)

    def on_probation(self, slot: Slot) -> bool:
        return slot.service.current in self.workers

    def describe(self, fleet: Fleet) -> dict[str, Any]:
        """Both sides since the canary began, as `status` shows them."""
        sides: dict[str, list[Worker]] = {"new": [], "old": []}
        for slot in fleet.slots:
            if isinstance(worker := slot.service.current, Worker):
                sides["new" if self.on_probation(slot) else "old"].append(worker)
        figures = figures_by_pid(fleet)
        return {
            "slots": [slot.number for slot in fleet.slots if self.on_probation(slot)],
            "elapsed_s": round(time.monotonic() - self.began, 3),
            **{side: self._side(workers, figures) for side, workers in sides.items()},
        }

    def _side(self, workers: list[Worker], figures: dict[int, dict[str, int]]) -> dict[str, Any]:
        sums = dict.fromkeys(("connections", *COUNTED, "latency_sum", "latency_count"), 0)
        for worker in workers:
            before = self.figures_before.get(worker.pid, {})
            for key, value in figures.get(worker.pid, {}).items():
                # Connections are a state; all else is counted from the beginning of the canary.
                sums[key] += value - (0 if key == "connections" else before.get(key, 0))
        latency_sum, count = sums.pop("latency_sum"), sums.pop("latency_count")
        mean = round(latency_sum / count, 2) if count else None
        return {"workers": len(workers), **sums, "publish_to_flush_ms_mean": mean}


def figures_by_pid(fleet: Fleet) -> dict[int, dict[str, int]]:
    """What each worker has counted so far of what is compared."""
    return {worker.pid: _figures(fleet, worker) for slot in fleet.slots for worker in slot.workers}


def _figures(fleet: Fleet, worker: Worker) -> dict[str, int]:
    by_name = fleet.runtime.memory.figures(worker.stats_row)

    def total(family: str) -> int:
        return sum(value for name, value in by_name.items() if name.partition("{")[0] == family)

    return {
        "connections": total("connections"),
        **{key: total(family) for key, family in COUNTED.items()},
        "latency_sum": total(f"{LATENCY}_sum"),
        "latency_count": total(f"{LATENCY}_count"),
    }
