"""`status`, `slots` and `config`: what the gateway is, asked without changing anything."""

from __future__ import annotations

import threading
from typing import Any

import click

from ops.command import Connect, Seconds, instance_options
from ops.output import Exit, Output, duration, table
from ops.start import show_config

WATCH_INTERVAL_S = 1.0
BAR_COLUMNS = 20
"""Of the fullest slot."""
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@click.command()
@click.option("--watch", is_flag=True, help="Go on showing it until interrupted.")
@click.option(
    "--interval",
    type=Seconds(0.1),
    default=WATCH_INTERVAL_S,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks of --watch.",
)
@instance_options()
def status(connect: Connect, output: Output, watch: bool, interval: float) -> Exit:
    """Show processes, endpoints and counts.

    \b
    Examples:
      tidegate status
      tidegate status --watch --interval 5
      tidegate status --json | jq .totals

    The exit status is 1 while not every worker serves.
    """
    with connect() as control:
        if not watch:
            return _show_status(output, control.call("status"))
        with output.live() as show:
            while True:
                found = control.call("status")
                output.data(found) if output.as_json else show(*_status_parts(found))
                threading.Event().wait(interval)


@click.command()
@instance_options()
def slots(connect: Connect, output: Output) -> None:
    """Show every worker slot, and how evenly connections lie.

    \b
    Examples:
      tidegate slots
      tidegate slots --json | jq '.slots[] | select(.restarts > 0)'
      tidegate slots --json | jq .spread.skew_percent

    The skew is by how much of the fullest worker's connections the emptiest is behind: `tidegate
    rebalance` evens it out.
    """
    with connect() as control:
        found = control.call("slots")
    loads = [int(slot["connections"]) for slot in found["slots"]]
    spread = _spread(loads)
    if output.as_json:
        output.data(found | {"spread": spread})
        return
    bars = [_bar(load, max(loads)) for load in loads]
    output.show(
        _workers_table(found["slots"], bars),
        "",
        f"{spread['connections']:,} connections: {spread['fullest']:,} in the fullest slot, "
        f"{spread['emptiest']:,} in the emptiest, {spread['mean']:,.1f} on average; skew "
        f"{spread['skew_percent']:.1f} %",
    )


@click.command()
@click.option("--changed", is_flag=True, help="Only keys that differ from their default.")
@instance_options()
def config(connect: Connect, output: Output, changed: bool) -> None:
    """Show the configuration in effect.

    \b
    Examples:
      tidegate config
      tidegate config --changed

    Each value comes with its origin: default, file, environment or flag.
    """
    with connect() as control:
        values = control.call("config")["config"]
    if changed:
        values = {key: each for key, each in values.items() if each["origin"] != "default"}
    if output.as_json:
        output.data({"config": values})
    else:
        show_config(output, values)


def _show_status(output: Output, found: dict[str, Any]) -> Exit:
    if output.as_json:
        output.data(found)
    else:
        output.show(*_status_parts(found))
    return Exit.OK if found["state"] == "serving" else Exit.NO


def _status_parts(found: dict[str, Any]) -> list[Any]:
    head = (
        f"{found['instance']}  {found['state']}  pid {found['pid']}  up"
        f" {duration(found['uptime_s'])}  generation {found['generation']}"
        f"  version {found['version']}"
    )
    endpoints = table(("ENDPOINT", "AT"), list(found["endpoints"].items()))
    totals = {name: value for name, value in found["totals"].items() if value}
    counted = table(("COUNTED", "TOTAL"), list(totals.items()))
    parts = [head, "", endpoints, "", _workers_table(found["workers"]), "", counted]
    if canary := found["canary"]:
        parts[1:1] = ["", _canary_table(canary), *_guard_lines(canary)]
    elif rolled_back := found["rolled_back"]:
        slots = ", ".join(map(str, rolled_back["slots"]))
        ago = duration(rolled_back["ago_s"])
        parts[1:1] = [f"canary rolled back {ago} ago (slots {slots}): {rolled_back['reason']}"]
    return parts


def _canary_table(canary: dict[str, Any]) -> Any:
    """Both sides since the canary began."""
    columns = ("workers", "connections", "closes", "unclean_closes", "failures", "deliveries")
    rows = []
    for side in ("new", "old"):
        figures = canary[side]
        latencies = (figures[f"publish_to_flush_ms_{part}"] for part in ("mean", "p99"))
        shown = ("-" if latency is None else f"{latency:g} ms" for latency in latencies)
        rows.append((side, *(figures[column] for column in columns), *shown))
    heads = (column.upper().replace("_", " ") for column in columns)
    return table(("CANARY", *heads, "MEAN LATENCY", "P99"), rows)


def _guard_lines(canary: dict[str, Any]) -> list[str]:
    if canary["guarded"]:
        return ["guarded: rolled back by itself where it fares worse"]
    return [f"to be rolled back: {canary['reason']}"] if canary["reason"] else []


def _spread(loads: list[int]) -> dict[str, float]:
    """How evenly connections lie over slots."""
    from gateway.balance import skew_percent

    return {
        "connections": sum(loads),
        "fullest": max(loads, default=0),
        "emptiest": min(loads, default=0),
        "mean": round(sum(loads) / len(loads), 1) if loads else 0.0,
        "skew_percent": round(skew_percent(loads), 1),
    }


def _bar(value: int, fullest: int) -> str:
    """A bar as long as the value's share of the fullest, to an eighth of a column."""
    eighths = round(8 * BAR_COLUMNS * value / fullest) if fullest else 0
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8]


def _workers_table(workers: list[dict[str, Any]], bars: list[str] | None = None) -> Any:
    """The slots; with `bars`, one for each, in a column of their own."""
    columns = ("SLOT", "PID", "STATE", "GENERATION", "CONNECTIONS", "CPUS", "NODE")
    rows: list[tuple[object, ...]] = [
        (
            worker["slot"],
            str(worker["pid"] or "-"),
            worker["state"],
            worker["generation"],
            worker["connections"],
            ranges(worker["cpus"]),
            "-" if worker["node"] < 0 else str(worker["node"]),
            worker["restarts"],
            duration(worker["uptime_s"]),
        )
        for worker in workers
    ]
    if bars is None:
        return table((*columns, "RESTARTS", "UP"), rows)
    rows = [(*row, bar) for row, bar in zip(rows, bars, strict=True)]
    return table((*columns, "RESTARTS", "UP", "LOAD"), rows)


def ranges(numbers: list[int]) -> str:
    """`0-3,8` for 0, 1, 2, 3 and 8; `any` for none."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts) or "any"


COMMANDS = [status, slots, config]
