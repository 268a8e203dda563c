"""`doctor`: whether this host can hold the connections, and what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.command import Count, ends_well, json_option
from ops.output import Exit, Output, table
from ops.start import config_option, parse_overrides, set_option

if TYPE_CHECKING:
    from gateway.host.examine import Finding
    from gateway.host.kernel import Kernel
    from gateway.host.load import Load
    from ops.tune import Outcome

SCHEMA = 1
"""Of the JSON; it grows by keys, and a key that changes its meaning raises the number."""
CONNECTIONS_MAX = 1_000_000_000
"""Of `--connections`: more than any machine's memory holds."""
EXITS = {"ok": Exit.OK, "warning": Exit.NO, "cannot": Exit.ERROR}
UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@click.command()
@config_option
@set_option
@click.option(
    "--connections",
    type=Count(1, CONNECTIONS_MAX),
    metavar="N",
    help="In all, such as 1e6; without it what the configuration comes to, of all workers.",
)
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    help="Judge by the limits and cgroups of this process, such as a running supervisor; without "
    "it by those of this shell.",
)
@click.option("--fix-script", is_flag=True, help="Print what to do as a shell script.")
@click.option("--apply", is_flag=True, help="Raise what can be raised at run time; needs root.")
@json_option
@ends_well
def doctor(
    output: Output,
    path: Path | None,
    overrides: tuple[str, ...],
    connections: int | None,
    pid: int | None,
    fix_script: bool,
    apply: bool,
) -> Exit:
    """Check whether this host can hold N connections.

    \b
    Examples:
      tidegate doctor --connections 1e6
      tidegate doctor -c /etc/tidegate/tidegate.toml --pid $(systemctl show -P MainPID tidegate)
      tidegate doctor --connections 1e6 --fix-script > fix.sh

    Reads only, unless told to --apply, which never lowers a value. Exit status: 0 all good, 1 there
    are warnings, 2 this host cannot hold so many.
    """
    from gateway.host.examine import examine
    from gateway.host.kernel import Kernel
    from ops import tune

    if fix_script and (apply or output.as_json):
        raise click.UsageError("--fix-script prints a script: leave out --apply and --json")
    kernel = Kernel(process=str(pid or "self"))
    load = _load(kernel, path, overrides, connections or 0)
    findings = examine(load, kernel)
    if fix_script:
        output.line(tune.script(load, findings))
        return _exit(findings)
    outcomes = None
    if apply:
        outcomes = tune.apply(findings, kernel.root)
        findings = examine(load, kernel)
    if output.as_json:
        output.data(as_map(load, findings, outcomes))
    else:
        _show(output, load, findings, outcomes or [])
    return _exit(findings)


def as_map(
    load: Load, findings: Sequence[Finding], outcomes: Sequence[Outcome] | None = None
) -> dict[str, Any]:
    """The JSON document; `now`, `wanted` and `holds` are null where nothing is to be said."""
    from gateway.host.examine import holds, verdict
    from ops.tune import remedy

    applied = {} if outcomes is None else {"applied": [outcome.as_map() for outcome in outcomes]}
    return {
        "schema": SCHEMA,
        "connections": load.connections,
        "workers": load.workers,
        "verdict": verdict(findings).name.lower(),
        "holds": holds(findings),
        "checks": [
            {
                "name": finding.check.name,
                "status": finding.status.name.lower(),
                "now": finding.seen.now if finding.seen else None,
                "wanted": finding.seen.wanted if finding.seen else None,
                "unit": finding.check.unit,
                "holds": finding.seen.holds if finding.seen else None,
                "why": finding.check.why,
                "remedy": remedy(finding),
            }
            for finding in findings
        ],
        **applied,
    }


def _exit(findings: Sequence[Finding]) -> Exit:
    from gateway.host.examine import verdict

    return EXITS[verdict(findings).name.lower()]


def _load(kernel: Kernel, path: Path | None, overrides: tuple[str, ...], connections: int) -> Load:
    from gateway.config import Host, load
    from gateway.errors import InstanceError
    from gateway.host.load import Load

    descriptors = kernel.limit("Max open files")
    if descriptors is None and kernel.process != "self":
        raise InstanceError(
            f"--pid {kernel.process}: there is no such process, or it belongs to another user",
            remedy="give the pid that `tidegate status` shows, as its user or as root",
            code="pid",
        )
    here = Host.here()
    # What the machine lacks is for us to show, and no reason to refuse the configuration.
    boundless = replace(here, memory_bytes=1 << 62, descriptors_max=1 << 62)
    config = load(path, flags=parse_overrides(overrides), host=boundless)
    if descriptors is not None:
        here = replace(here, descriptors_max=descriptors)
    return Load.of(config, here, connections=connections)


def _show(
    output: Output, load: Load, findings: Sequence[Finding], outcomes: Sequence[Outcome]
) -> None:
    from gateway.host.checks import Status
    from gateway.host.examine import verdict
    from ops.tune import remedy

    rows = [_row(finding) for finding in findings]
    drawn = table(("CHECK", "STATUS", "NOW", "WANTED", "HOLDS", "WHY"), rows)
    drawn.columns[-1].no_wrap = False
    output.show(drawn)
    lacking = [finding for finding in findings if finding.status is not Status.OK]
    advice = [f"  {finding.check.name}: {remedy(finding)}" for finding in lacking if finding.seen]
    if outcomes:
        output.show("", *(f"  {outcome}" for outcome in outcomes))
    if advice:
        output.show("", "What to do (or see --fix-script and --apply):", *advice)
    told = {
        Status.OK: "this host holds",
        Status.WARNING: "with the warnings above, this host holds",
        Status.CANNOT: "this host CANNOT hold",
    }[verdict(findings)]
    workers = "worker" if load.workers == 1 else "workers"
    output.show("", f"{told} {load.connections:,} connections in {load.workers} {workers}")


def _row(finding: Finding) -> tuple[str, ...]:
    check, seen = finding.check, finding.seen
    status = finding.status.name.lower()
    if seen is None:
        return (check.name, status, check.absent or "not shown here", "", "", check.why)
    held = "any" if seen.holds is None else f"{seen.holds:,}"
    now, wanted = (_amount(value, check.unit) for value in (seen.now, seen.wanted))
    return (check.name, status, now, wanted, held, check.why)


def _amount(value: float | str, unit: str) -> str:
    if isinstance(value, str):
        return value
    if unit == "bytes":
        size, name = next((u for u in UNITS if value >= u[0]), (1, "B"))
        return f"{value / size:.4g} {name}"
    return "unlimited" if value >= 1 << 60 else f"{value:,}"


COMMANDS = [doctor]
