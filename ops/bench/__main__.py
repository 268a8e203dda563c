"""`python -m ops.bench`: runs benchmarks, shows and keeps what they found."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console

from gateway.errors import TidegateError
from ops.bench import fanout, idle, peers, reload, report, ring
from ops.bench.result import RESULTS, Result


@click.command()
@click.argument("benchmark", type=click.Choice([*report.BENCHMARKS, "all"]))
@click.option("--quick", is_flag=True, help="Small and short: shows that it works, not how fast.")
@click.option("--save", is_flag=True, help="Keep the results and renew the README's table.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), metavar="FILE", help="Write results there."
)
def main(benchmark: str, quick: bool, save: bool, path: Path | None) -> None:
    """Measure this machine: exit status 1 when a goal is missed, 2 when a benchmark fails."""
    if quick and save:
        raise click.UsageError("--quick measures too little to be kept: leave out --save")
    console = Console(stderr=True)
    names = report.BENCHMARKS if benchmark == "all" else (benchmark,)
    results = []
    for name in names:
        console.print(f"[bold]{name}[/]")
        try:
            result = measure(name, quick=quick, console=console)
        except TidegateError as error:
            console.print(f"{name}: {error}", style="red", markup=False)
            raise SystemExit(2) from None
        results.append(result)
        Console().print(report.terminal_table(result))
        if save:
            result.save(RESULTS / f"{name}.json")
            report.renew_readme()
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    missed = any(each.met is False for result in results for each in result.measures)
    raise SystemExit(1 if missed and not quick else 0)


def measure(name: str, *, quick: bool, console: Console) -> Result:
    """Run one benchmark. Raises TidegateError when it cannot be run to its end."""

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim", highlight=False, markup=False)

    match name:
        case "ring":
            return ring.run(ring.QUICK if quick else ring.Size(), say)
        case "fanout":
            return fanout.run(fanout.QUICK if quick else fanout.Size(), say)
        case "reload":
            return reload.run(reload.QUICK if quick else reload.Size(), say)
        case "peers":
            return peers.run(peers.QUICK if quick else peers.Size(), say)
        case _:
            return idle.run(idle.QUICK if quick else idle.Size(), say)


if __name__ == "__main__":
    main()
