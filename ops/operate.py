"""`reload`, `scale`, `stop`, `drain`: verbs that change a gateway, wait, and tell what changed."""

from __future__ import annotations

from typing import Any

import click

from ops.command import LONG_TIMEOUT_S, Connect, instance_options
from ops.output import Output, duration, table


@click.command()
@instance_options(timeout_s=LONG_TIMEOUT_S)
def reload(connect: Connect, output: Output) -> None:
    """Replace all workers by new ones.

    \b
    Example:
      tidegate reload

    Reads the configuration again, then replaces one slot after the other; returns when all
    successors serve. A configuration that cannot be used changes nothing; its problems are told.
    """
    _carry_out(connect, output, "reload")


@click.command()
@click.argument("count", type=click.IntRange(min=1), metavar="N")
@instance_options(timeout_s=LONG_TIMEOUT_S)
def scale(connect: Connect, output: Output, count: int) -> None:
    """Run N workers.

    \b
    Example:
      tidegate scale 4

    Returns when that many serve, and the connections of those that left are closed.
    """
    _carry_out(connect, output, "scale", count=count)


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
                progress["phase"], progress.get("done", 0), progress.get("total", 0)
            ),
            **arguments,
        )
    if output.as_json:
        output.data(result)
        return
    before, after = result["before"], result["after"]
    rows = [(key, _shown(before[key]), _shown(after.get(key, ""))) for key in before]
    output.show(table((verb.upper(), "BEFORE", "AFTER"), rows))
    if "duration_s" in result:
        output.note(f"done in {duration(result['duration_s'])}")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


COMMANDS = [reload, scale, stop, drain]
