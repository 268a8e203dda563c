"""`tidegate bench`: runs benchmarks, shows and keeps what they found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.command import Count, ends_well, json_option
from ops.output import Exit, Output

if TYPE_CHECKING:
    from ops.bench.result import Result

BENCHMARKS = (
    *("ring", "fanout", "connect", "session", "unicast", "mixed", "storm"),
    *("api", "produce", "presence", "idle", "servers", "reload", "peers"),
)
"""What `all` runs, in the order of the README's table."""
PEERS = ("session", "storm", "api", "servers", "peers")
"""Those that compare with other servers, as far as these are installed."""
MILLION = "million"
"""Takes a quarter of an hour and most of the machine: only by its name."""
CONNECTIONS_MAX = 2_000_000


@click.command()
@click.argument("benchmark", type=click.Choice([*BENCHMARKS, MILLION, "all"]), required=False)
@click.option(
    "--peers", is_flag=True, help=f"Those that compare with other servers: {', '.join(PEERS)}."
)
@click.option("--quick", is_flag=True, help="Small and short: shows that it works, not how fast.")
@click.option("--save", is_flag=True, help="Keep the results and renew the README's table.")
@click.option(
    "-n", "--connections", type=Count(100, CONNECTIONS_MAX), help="For million: another number."
)
@click.option("--workers", type=Count(1, 128), help="For million: not as many as descriptors ask.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw the distribution of a benchmark of latencies.",
)
@json_option
@ends_well
def bench(
    output: Output,
    benchmark: str | None,
    peers: bool,
    quick: bool,
    save: bool,
    connections: int | None,
    workers: int | None,
    plot: Path | None,
) -> Exit:
    """Measure this machine, against gateways of the benchmarks' own.

    \b
    Examples:
      tidegate bench fanout
      tidegate bench all --save
      tidegate bench --peers
      tidegate bench unicast --plot unicast.png
      tidegate bench million --connections 100000

    In a checkout, with a Rust toolchain. `million` sets what the kernel needs for so many, as root,
    and sets it back. Exit status: 1 when a goal is missed, 2 when a benchmark fails.
    """
    from ops.bench import plot as plots
    from ops.bench import report
    from ops.bench.endings import endings_raised
    from ops.bench.result import RESULTS

    if bool(benchmark) == peers:
        raise click.UsageError("name one benchmark, or all, or give --peers")
    names = PEERS if peers else BENCHMARKS if benchmark == "all" else (str(benchmark),)
    if quick and save:
        raise click.UsageError("--quick measures too little to be kept: leave out --save")
    if plot is not None and len(names) > 1:
        raise click.UsageError(f"--plot draws one benchmark, not {len(names)}")
    if (connections or workers) and benchmark != MILLION:
        raise click.UsageError(f"--connections and --workers are for {MILLION}")
    results = []
    for name in names:
        output.note(name)
        with endings_raised():
            result = measure(
                name,
                quick=quick,
                connections=connections or 0,
                workers=workers or 0,
                say=lambda text: output.note(f"  {text}"),
            )
        results.append(result)
        if not output.as_json:
            output.show(report.terminal_table(result), *plots.bars(result.curves))
        if save:
            result.save(RESULTS / f"{name}.json")
            report.renew_readme()
    if output.as_json:
        import msgspec

        output.data({"results": msgspec.to_builtins(results)})
    if plot is not None:
        plots.draw(results[0], plot)
    missed = any(each.met is False for result in results for each in result.measures)
    return Exit.NO if missed and not quick else Exit.OK


def measure(
    name: str, *, quick: bool, connections: int, workers: int, say: Callable[[str], None]
) -> Result:
    """Run one benchmark, the module of that name: its `run` with its `Size`, or its `QUICK` one.

    Raises TidegateError when it cannot be run to its end.
    """
    import importlib

    module = importlib.import_module(f"ops.bench.{name}")
    size = module.QUICK if quick else module.Size()
    wanted = {"connections": connections, "workers": workers}
    given = {key: value for key, value in wanted.items() if value}
    result: Result = module.run(replace(size, **given), say)
    return result


COMMANDS = [bench]
