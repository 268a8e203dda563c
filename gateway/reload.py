"""`reload`: every process replaced by one of the code and configuration that are there now."""

from __future__ import annotations

from gateway.config import Config, differing_keys, reread
from gateway.errors import ConfigError, ControlError, TidegateError
from gateway.fleet import Fleet
from gateway.moves import Moved
from gateway.replacing import replace, replace_publisher, replace_worker, start_slot
from gateway.steps import Report, Steps

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


def reload(fleet: Fleet, report: Report, spread_s: float | None = None) -> Steps:
    """Replaces every process by one of the code and configuration that are there now.

    Workers first, one slot at a time: if the first successor cannot start, nothing has changed.
    Then the publisher, whose rings wait for it; then the API, whose predecessor serves meanwhile.
    """
    before = fleet.pids()
    config_before, generation_before = fleet.runtime.config, fleet.runtime.generation
    changed = _take_new_config(fleet)
    spread = fleet.runtime.config.reload.spread_s if spread_s is None else spread_s
    total = max(len(fleet.slots), fleet.wanted) + 2
    slots: list[Moved] = []
    try:
        for index, slot in enumerate(list(fleet.slots)):
            phase = {"phase": f"slot {slot.number}", "done": index, "total": total}
            slots.append((yield from replace_worker(fleet, slot, spread, report, phase)))
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
        fleet.runtime.generation = generation_before
        fleet.use_config(config_before)
        if slots:
            replaced = ", ".join(f"slot {each.slot}" for each in slots)
            error.message += f" (replaced before that: {replaced})"
        raise
    report({"phase": "done", "done": total, "total": total})
    return {
        "before": before,
        "after": fleet.pids(),
        "changed": changed,
        "slots": [each.as_map() for each in slots],
    }


def _take_new_config(fleet: Fleet) -> list[str]:
    """Reads the configuration again; returns the keys that changed. The old one stays on errors."""
    try:
        config: Config = reread(fleet.runtime.config)
    except ConfigError as error:
        raise ControlError(
            f"the configuration was not taken, the old one stays\n{error.message}",
            remedy="correct it and reload again (`tidegate check-config` shows the same)",
            code="config",
        ) from error
    changed = differing_keys(fleet.runtime.config, config)
    if fixed := [key for key in changed if key in FIXED_KEYS]:
        raise ControlError(
            f"a reload cannot change {', '.join(fixed)}",
            remedy="restart the gateway for that, take it back, or use `tidegate scale` for "
            "workers.count",
            code="restart_needed",
        )
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
