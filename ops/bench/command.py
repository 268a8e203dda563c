"""`tidegate bench`: runs benchmarks, shows and keeps what they found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ops.command import Count, ends_well, json_option
from ops.output import Exit, Output

if TYPE_CHECKING:
    from ops.bench.result import Result

BENCHMARKS = ("ring", "fanout", "idle", "reload", "peers")
"""What `all` runs, in the order of the README's table."""
MILLION = "million"
"""Takes a quarter of an hour and most of the machine: only by its name."""
CONNECTIONS_MAX = 2_000_000


@click.command()
@click.argument("benchmark", type=click.Choice([*BENCHMARKS, MILLION, "all"]))
@click.option("--quick", is_flag=True, help="Small and short: shows that it works, not how fast.")
@click.option("--save", is_flag=True, help="Keep the results and renew the README's table.")
@click.option(
    "-n", "--connections", type=Count(100, CONNECTIONS_MAX), help="For million: another number."
)
@click.option("--workers", type=Count(1, 128), help="For million: not as many as descriptors ask.")
@json_option
@ends_well
def bench(
    output: Output,
    benchmark: str,
    quick: bool,
    save: bool,
    connections: int | None,
    workers: int | None,
) -> Exit:
    """Measure this machine, against gateways of the benchmarks' own.

    \b
    Examples:
      tidegate bench fanout
      tidegate bench all --save
      tidegate bench million --connections 100000

    In a checkout, with a Rust toolchain. `million` sets what the kernel needs for so many, as root,
    and sets it back. Exit status: 1 when a goal is missed, 2 when a benchmark fails.
    """
    from ops.bench import report
    from ops.bench.result import RESULTS

    if quick and save:
        raise click.UsageError("--quick measures too little to be kept: leave out --save")
    if (connections or workers) and benchmark != MILLION:
        raise click.UsageError(f"--connections and --workers are for {MILLION}")
    results = []
    for name in BENCHMARKS if benchmark == "all" else (benchmark,):
        output.note(name)
        result = measure(
            name,
            quick=quick,
            connections=connections or 0,
            workers=workers or 0,
            say=lambda text: output.note(f"  {text}"),
        )
        results.append(result)
        if not output.as_json:
            output.show(report.terminal_table(result))
        if save:
            result.save(RESULTS / f"{name}.json")
            report.renew_readme()
    if output.as_json:
        import msgspec

        output.data({"results": msgspec.to_builtins(results)})
    missed = any(each.met is False for result in results for each in result.measures)
    return Exit.NO if missed and not quick else Exit.OK


def measure(
    name: str, *, quick: bool, connections: int, workers: int, say: Callable[[str], None]
) -> Result:
    """Run one benchmark. Raises TidegateError when it cannot be run to its end."""
    from ops.bench import fanout, idle, million, peers, reload, ring

    match name:
        case "ring":
            return ring.run(ring.QUICK if quick else ring.Size(), say)
        case "fanout":
            return fanout.run(fanout.QUICK if quick else fanout.Size(), say)
        case "reload":
            return reload.run(reload.QUICK if quick else reload.Size(), say)
        case "peers":
            return peers.run(peers.QUICK if quick else peers.Size(), say)
        case "million":
            size = million.QUICK if quick else million.Size()
            wanted = {"connections": connections, "workers": workers}
            given = {key: value for key, value in wanted.items() if value}
            return million.run(replace(size, **given), say)
        case _:
            return idle.run(idle.QUICK if quick else idle.Size(), say)


COMMANDS = [bench]
