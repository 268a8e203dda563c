"""`reload`, `scale`, `rebalance`, `stop`, `drain`: verbs that change a gateway, and tell how."""

from __future__ import annotations

from typing import Any

import click

from ops.command import LONG_TIMEOUT_S, Connect, instance_options
from ops.output import Output, duration, table


@click.command()
@click.option("--canary", type=click.IntRange(min=1), metavar="K", help="Only K slots, for now.")
@click.option("--guard", is_flag=True, help="Roll the canary back where it fares worse.")
@click.option("--promote", is_flag=True, help="End the canary: replace all other processes too.")
@click.option("--rollback", is_flag=True, help="End the canary: go back to the old workers.")
@instance_options(timeout_s=LONG_TIMEOUT_S)
def reload(
    connect: Connect,
    output: Output,
    canary: int | None,
    guard: bool,
    promote: bool,
    rollback: bool,
) -> None:
    """Replace all workers by new ones, and keep their connections.

    \b
    Examples:
      tidegate reload
      tidegate reload --canary 1     replace one worker, and compare in `tidegate status`
      tidegate reload --canary 1 --guard     ... and go back by itself if it fares worse
      tidegate reload --promote      ... then all others
      tidegate reload --rollback     ... or none: the clients go back to the old worker

    Reads the configuration again, then replaces one slot after the other by a process of the code
    that is installed now, which takes the connections over; no client can tell, save by a pause. A
    configuration that cannot be used changes nothing; its problems are told. A successor that fails
    ends the reload: its predecessor serves on, and the exit status is 2.
    """
    if (canary is not None) + promote + rollback > 1:
        raise click.UsageError("give one of --canary, --promote and --rollback")
    if guard and canary is None:
        raise click.UsageError("--guard goes with --canary K")
    if promote or rollback:
        _carry_out(connect, output, "reload", end="promote" if promote else "rollback")
    else:
        arguments = {"canary": canary, "guard": guard} if canary else {}
        _carry_out(connect, output, "reload", **arguments)


@click.command()
@click.argument("count", type=click.IntRange(min=1), metavar="N")
@instance_options(timeout_s=LONG_TIMEOUT_S)
def scale(connect: Connect, output: Output, count: int) -> None:
    """Run N workers.

    \b
    Example:
      tidegate scale 4

    Returns when that many serve. Workers that leave hand their connections to those that stay; new
    ones get theirs as clients come, or from `tidegate rebalance`.
    """
    _carry_out(connect, output, "scale", count=count)


@click.command()
@instance_options(timeout_s=LONG_TIMEOUT_S)
def rebalance(connect: Connect, output: Output) -> None:
    """Move connections from the fullest workers to the emptiest.

    \b
    Example:
      tidegate rebalance

    Returns when their numbers of connections differ by at most 5 percent. No client can tell.
    """
    _carry_out(connect, output, "rebalance")


@click.command()
@instance_options(timeout_s=LONG_TIMEOUT_S)
def upgrade(connect: Connect, output: Output) -> None:
    """Replace the supervisor by new code, then all others, and keep every connection.

    \b
    Example:
      tidegate upgrade

    Tries the code that is installed now first: if it cannot take over, nothing changes, and the
    exit status is 2. The supervisor's process stays the same one; all others are replaced as by
    `tidegate reload`.
    """
    _carry_out(connect, output, "upgrade")


@click.command()
@instance_options(timeout_s=LONG_TIMEOUT_S)
def stop(connect: Connect, output: Output) -> None:
    """Stop the gateway gracefully.

    \b
    Example:
      tidegate stop

    Connections are closed over stop.spread_s seconds, with a code that makes clients reconnect.
    """
    _carry_out(connect, output, "stop")


@click.command()
@instance_options(timeout_s=LONG_TIMEOUT_S)
def drain(connect: Connect, output: Output) -> None:
    """Close all connections and take no new ones.

    \b
    Example:
      tidegate drain

    Paced over stop.spread_s seconds; the gateway itself goes on. For taking a host out of rotation;
    `tidegate reload` makes it serve again.
    """
    _carry_out(connect, output, "drain")


def _carry_out(connect: Connect, output: Output, verb: str, **arguments: Any) -> None:
    with connect() as control, output.meter() as meter:
        result = control.call(
            verb,
            on_progress=lambda progress: meter(
                progress["phase"],
                progress.get("done", 0),
                progress.get("total", 0),
                _moving(progress),
            ),
            **arguments,
        )
    if output.as_json:
        output.data(result)
        return
    before, after = result["before"], result["after"]
    rows = [(key, _shown(before[key]), _shown(after.get(key, ""))) for key in before]
    output.show(table((verb.upper(), "BEFORE", "AFTER"), rows))
    if result.get("slots"):
        output.show("", _moved_table(result["slots"]))
    if "duration_s" in result:
        output.note(f"done in {duration(result['duration_s'])}")


def _moving(progress: dict[str, Any]) -> str:
    """How far a hand-off within a phase is; empty while there is none."""
    if "moved" not in progress:
        return ""
    text = f"{progress['moved']:,} connections moved, {progress['remaining']:,} to go"
    if "pause_max_us" in progress:
        text += f", pause at most {progress['pause_max_us'] / 1e3:.1f} ms"
    return text


def _moved_table(slots: list[dict[str, Any]]) -> Any:
    """What became of each slot's connections; pauses are in milliseconds."""
    pauses = ("p50", "p99", "max")
    columns = ("SLOT", "MOVED", "KEPT", "CLOSED", "LOST", *(f"PAUSE {p.upper()}" for p in pauses))
    rows = [
        (
            *(slot[key] for key in ("slot", "moved", "kept", "closed", "lost")),
            *(f"{slot['pause_us'][part] / 1e3:.1f} ms" for part in pauses),
        )
        for slot in slots
    ]
    return table(columns, rows)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


COMMANDS = [reload, scale, rebalance, upgrade, stop, drain]
