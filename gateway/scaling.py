"""`scale`, `rebalance` and `drain`: how many workers there are, and how many clients each has."""

from __future__ import annotations

from collections.abc import Generator

from gateway.balance import next_move, skew_percent
from gateway.errors import ChildError, ControlError
from gateway.fleet import Fleet
from gateway.moves import (
    Moved,
    Progress,
    hand_over,
    out_of_slot,
    serving_loads,
    serving_workers,
)
from gateway.replacing import start_slot
from gateway.steps import Condition, Report, Steps

HANDSHAKE_S = 1.0
"""What TCP's handshake takes at most, but for lost packets: a round trip to the farthest client."""


def scale(fleet: Fleet, report: Report, count: int, slots_max: int) -> Steps:
    """Makes the number of slots `count`; the workers of those that go give up their connections."""
    if not 1 <= count <= slots_max:
        raise ControlError(
            f"scale to {count}: the number of workers is 1 to {slots_max}",
            remedy="for more, set workers.count and restart: the log's seats are made at start",
            code="out_of_range",
        )
    if fleet.canary is not None:
        raise ControlError(
            "a canary is under way",
            remedy="end it first: `tidegate reload --promote` or `tidegate reload --rollback`",
            code="canary",
        )
    before = {"workers": len(fleet.slots)}
    steps = abs(count - len(fleet.slots))
    fleet.wanted = count
    done = 0
    left: list[Moved] = []
    while len(fleet.slots) < count:
        report({"phase": f"slot {len(fleet.slots)}", "done": done, "total": steps})
        yield from start_slot(fleet)
        done += 1
    if len(fleet.slots) > count:
        yield from _lead_newcomers_away(fleet, count)
    try:
        while len(fleet.slots) > count:
            phase = {"phase": f"slot {len(fleet.slots) - 1}", "done": done, "total": steps}
            report(phase)
            spread_s = fleet.runtime.config.reload.spread_s
            slot = fleet.take_out_slot()
            left.append((yield from out_of_slot(fleet, slot, spread_s, report, phase)))
            done += 1
    finally:
        fleet.steer()
    report({"phase": "done", "done": done, "total": steps})
    return {
        "before": before,
        "after": {"workers": len(fleet.slots)},
        "slots": [each.as_map() for each in left],
    }


def _lead_newcomers_away(fleet: Fleet, count: int) -> Generator[Condition, None, None]:
    """Handshakes begin only with the slots that stay; those that began with others may end.

    A listener that closes resets what is in its queue, and whoever is half-way there.
    """
    fleet.steer(count)
    settled: list[bool] = []
    fleet.runtime.loop.after(HANDSHAKE_S, lambda: settled.append(True))
    try:
        yield lambda: bool(settled)
    except GeneratorExit:
        fleet.steer()
        raise


def drain(fleet: Fleet, report: Report, spread_s: float | None = None) -> Steps:
    """Ends every client connection, paced, and refuses new ones; the gateway itself goes on.

    For taking a host out of rotation. A reload or a scale makes it serve clients again.
    """
    spread = fleet.runtime.config.stop.spread_s if spread_s is None else spread_s
    connections = fleet.connections()
    before = {"workers": len(fleet.slots), "connections": connections}
    fleet.canary = None
    services = [fleet.remove_slot(spread).service for _ in list(fleet.slots)]

    def progress() -> bool:
        left = fleet.connections()
        if left != progress_seen[0]:
            progress_seen[0] = left
            done = max(0, connections - left)
            report({"phase": "connections", "done": done, "total": connections})
        return not any(service.children for service in services)

    progress_seen = [-1]
    yield progress
    return {"before": before, "after": {"workers": 0, "connections": fleet.connections()}}


def rebalance(fleet: Fleet, report: Report) -> Steps:
    """Moves connections until the fullest and the emptiest worker differ by 5 % at most.

    Raises ChildError where one dies or refuses; what was moved by then stays where it is.
    """
    workers = serving_workers(fleet)
    # Counted on from here: gauges are shown once a turn, and may be behind a move.
    loads = serving_loads(fleet)
    before = list(loads)
    moved, pause_us = 0, 0
    for done in range(len(workers)):
        move = next_move(loads)
        if move is None:
            break
        giver, receiver, count = move
        phase = {
            "phase": f"slot {workers[giver].slot} to slot {workers[receiver].slot}",
            "done": done,
            "total": len(workers),
        }
        handoff = yield from hand_over(
            fleet,
            workers[giver],
            workers[receiver],
            Progress(report, phase),
            count=count,
            keep_accepting=True,
        )
        moved += handoff.moved
        pause_us = max(pause_us, handoff.pause_us["max"])
        if handoff.problem:
            raise ChildError(
                f"rebalance: {handoff.problem}, after {moved} connections had moved",
                remedy="see the log; every connection that is left is served",
                code="handoff_failed",
            )
        if not handoff.moved:
            break
        loads[giver] -= handoff.moved
        loads[receiver] += handoff.moved
    return {
        "before": {"connections": before, "skew_percent": round(skew_percent(before), 1)},
        "after": {"connections": loads, "skew_percent": round(skew_percent(loads), 1)},
        "moved": moved,
        "pause_max_us": pause_us,
    }
