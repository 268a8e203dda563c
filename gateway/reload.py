"""`reload`: every process replaced by one of the code and configuration that are there now."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from gateway.canary import Canary
from gateway.config import Config, differing_keys, reread
from gateway.errors import ConfigError, ControlError, TidegateError
from gateway.figures import figures_by_pid
from gateway.fleet import Fleet, RolledBack
from gateway.moves import Moved
from gateway.processes import Worker
from gateway.replacing import replace, replace_publisher, replace_worker, start_slot
from gateway.steps import Condition, Report, Steps

FIXED_KEYS = frozenset(
    {
        "gateway.name",
        "gateway.run_dir",
        "client.address",
        "client.http_port",
        "client.tcp_port",
        "log.capacity_bytes",
        "log.channels_max",
        "api.address",
        "api.port",
        "api.socket",
        "workers.count",
    }
)
"""What listeners and segments were made with: a reload keeps both."""


def reload(
    fleet: Fleet,
    report: Report,
    spread_s: float | None = None,
    canary: int | None = None,
    *,
    guard: bool = False,
) -> Steps:
    """Replaces every process by one of the code and configuration that are there now.

    Workers first, one slot at a time: if the first successor cannot start, nothing has changed.
    Then the publisher, whose rings wait for it; then the API, whose predecessor serves meanwhile.

    With `canary`, only the workers of so many slots, until `promote` or `roll_back`; with `guard`
    the supervisor rolls back by itself.
    """
    check_canary(fleet, canary)
    before = fleet.pids()
    probation = Canary(fleet.runtime.config, fleet.runtime.generation)
    changed = _take_new_config(fleet)
    fleet.rolled_back = None
    if canary is None:
        moved = yield from _replace_all(fleet, report, spread_s, probation)
        return _result(fleet, before, moved, changed)
    if not fleet.runtime.config.reload.handoff:
        fleet.go_back_to(probation.config_before, probation.generation_before)
        raise ControlError(
            "a canary needs reload.handoff = true: a rollback moves its clients back",
            remedy="allow it and reload again, or reload without --canary",
            code="canary",
        )
    moved = yield from _begin_canary(fleet, report, probation, canary)
    if guard:
        probation.begin_guard(fleet)
    return _result(fleet, before, moved, changed)


def promote(fleet: Fleet, report: Report, spread_s: float | None = None) -> Steps:
    """Ends the probation: the slots on it are right, and all other processes are replaced too.

    By what is installed now: what has changed since the canary began comes into force unseen.
    """
    canary, before = _canary(fleet), fleet.pids()
    changed = differing_keys(canary.config_before, fleet.runtime.config)
    moved = yield from _replace_all(fleet, report, spread_s, canary)
    return _result(fleet, before, moved, changed)


def roll_back(fleet: Fleet, report: Report) -> Steps:
    """Ends the probation: the predecessors of the slots on it get their clients back.

    Raises ChildError where one of them is dead; the slots that are left stay on probation.
    """
    canary, before = _canary(fleet), fleet.pids()
    changed = differing_keys(fleet.runtime.config, canary.config_before)
    slots = [slot for slot in fleet.slots if canary.on_probation(slot)]
    moved: list[Moved] = []
    for index, slot in enumerate(slots):
        phase = {"phase": f"slot {slot.number} back", "done": index, "total": len(slots)}
        moved.append((yield from replace_worker(fleet, slot, 0.0, report, phase, recall=True)))
    fleet.canary = None
    fleet.go_back_to(canary.config_before, canary.generation_before)
    if canary.reason:
        numbers = [worker.slot for worker in canary.workers]
        fleet.rolled_back = RolledBack(numbers, canary.reason, time.monotonic())
    return _result(fleet, before, moved, changed)


def _begin_canary(
    fleet: Fleet, report: Report, probation: Canary, count: int
) -> Generator[Condition, None, list[Moved]]:
    probation.figures_before = figures_by_pid(fleet)
    fleet.canary = probation
    moved: list[Moved] = []
    try:
        for index, slot in enumerate(fleet.slots[:count]):
            phase = {"phase": f"slot {slot.number}", "done": index, "total": count}
            moved.append((yield from replace_worker(fleet, slot, 0.0, report, phase, keep=True)))
            if isinstance(worker := slot.service.current, Worker):
                probation.workers.append(worker)
    except TidegateError:
        if probation.workers:
            yield from roll_back(fleet, report)
        fleet.canary = None
        fleet.go_back_to(probation.config_before, probation.generation_before)
        raise
    return moved


def _replace_all(
    fleet: Fleet, report: Report, spread_s: float | None, probation: Canary
) -> Generator[Condition, None, list[Moved]]:
    """Replaces whatever is not on probation, which ends; goes back to what was where that fails."""
    spread = fleet.runtime.config.reload.spread_s if spread_s is None else spread_s
    total = max(len(fleet.slots), fleet.wanted) + 2
    moved: list[Moved] = []
    fleet.canary = None
    try:
        for index, slot in enumerate(list(fleet.slots)):
            phase = {"phase": f"slot {slot.number}", "done": index, "total": total}
            if not probation.on_probation(slot):
                moved.append((yield from replace_worker(fleet, slot, spread, report, phase)))
            elif (standby := slot.service.dismiss()) is not None:
                fleet.retire_worker(standby, spread)
        for number in range(len(fleet.slots), fleet.wanted):
            report({"phase": f"slot {number}", "done": number, "total": total})
            yield from start_slot(fleet)
        report({"phase": "publisher", "done": total - 2, "total": total})
        yield from replace_publisher(fleet)
        report({"phase": "api", "done": total - 1, "total": total})
        timeout_s = fleet.runtime.config.stop.timeout_s
        yield from replace(fleet.api, lambda api: fleet.tell_to_stop(api, timeout_s), "the API")
    except TidegateError as error:
        # Who starts from now on, after a death, starts as those that are still there did.
        fleet.go_back_to(probation.config_before, probation.generation_before)
        if moved:
            replaced = ", ".join(f"slot {each.slot}" for each in moved)
            error.message += f" (replaced before that: {replaced})"
        raise
    report({"phase": "done", "done": total, "total": total})
    return moved


def _result(
    fleet: Fleet, before: dict[str, Any], moved: list[Moved], changed: list[str]
) -> dict[str, Any]:
    return {
        "before": before,
        "after": fleet.pids(),
        "changed": changed,
        "slots": [each.as_map() for each in moved],
    }


def check_canary(fleet: Fleet, count: int | None = None) -> None:
    """Raises ControlError while a canary is under way, or where one of `count` slots cannot be."""
    if fleet.canary is not None:
        numbers = fleet.canary.slots(fleet)
        raise ControlError(
            f"a canary is under way (slots {', '.join(map(str, numbers)) or 'none any more'})",
            remedy="end it first: `tidegate reload --promote` or `tidegate reload --rollback`",
            code="canary",
        )
    if count is not None and not 1 <= count <= len(fleet.slots):
        raise ControlError(
            f"a canary of {count}: there are {len(fleet.slots)} slots",
            remedy="give a number of slots from 1 on",
            code="out_of_range",
        )


def _canary(fleet: Fleet) -> Canary:
    if fleet.canary is None:
        raise ControlError(
            "no canary is under way",
            remedy="`tidegate reload --canary K` begins one",
            code="canary",
        )
    return fleet.canary


def new_config(current: Config) -> tuple[Config, list[str]]:
    """The configuration as it is now, and the keys that differ. Raises ControlError."""
    try:
        config = reread(current)
    except ConfigError as error:
        raise ControlError(
            f"the configuration was not taken, the old one stays\n{error.message}",
            remedy="correct it and reload again (`tidegate check-config` shows the same)",
            code="config",
        ) from error
    changed = differing_keys(current, config)
    if fixed := [key for key in changed if key in FIXED_KEYS]:
        raise ControlError(
            f"a reload cannot change {', '.join(fixed)}",
            remedy="restart the gateway for that, take it back, or use `tidegate scale` for "
            "workers.count",
            code="restart_needed",
        )
    return config, changed


def _take_new_config(fleet: Fleet) -> list[str]:
    """Reads the configuration again; returns the keys that changed. The old one stays on errors."""
    config, changed = new_config(fleet.runtime.config)
    try:
        fleet.use_config(config)
    except OSError as error:
        raise ControlError(
            f"gateway.log_file = {config.gateway.log_file}: {error.strerror}; the old "
            "configuration stays",
            remedy="name a file that this user may write",
            code="config",
        ) from error
    fleet.runtime.generation += 1
    return changed
