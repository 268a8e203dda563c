"""`tidegate profile`: where a process's time goes, without restarting it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from gateway.errors import ControlError, TidegateError
from ops.command import Connect, Seconds, instance_options
from ops.output import Exit, Output, table

if TYPE_CHECKING:
    from ops.profile.recording import Recording
    from ops.profile.turns import TurnProfile

SECONDS_MAX = 300.0
"""perf keeps at most a gigabyte of stacks for that."""
MARGIN_S = 5.0
"""So much longer a worker times its turns than it is looked at: we may be late, on a busy host."""


@dataclass(frozen=True, slots=True)
class Target:
    """The process that is looked at."""

    name: str
    pid: int


@click.command()
@click.option("--slot", type=click.IntRange(min=0), metavar="N", help="The worker of this slot.")
@click.option(
    "--pid", type=click.IntRange(min=1), metavar="PID", help="Any process of the gateway."
)
@click.option("--publisher", is_flag=True, help="The publisher.")
@click.option(
    "--seconds",
    type=Seconds(0.1, SECONDS_MAX),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help=f"For how long; at most {SECONDS_MAX:g}.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Where the flame graph goes; without it tidegate-<process>.svg, here.",
)
@instance_options()
def profile(
    connect: Connect,
    output: Output,
    slot: int | None,
    pid: int | None,
    publisher: bool,
    seconds: float,
    out: Path | None,
) -> Exit:
    """Show where a worker's time goes: a flame graph, and a profile of its turns.

    \b
    Examples:
      tidegate profile --seconds 10                the worker with most connections
      tidegate profile --slot 2 --out busy.svg     open it in a browser: it zooms and searches
      tidegate profile --json | jq '.turns.phases[] | {phase, share_percent}'
      tidegate profile --publisher

    Nothing is restarted. The flame graph takes perf, or else py-spy (`pip install
    'tidegate[profile]'`), which stops the process for each sample and sees less of a stack, and
    nothing of the kernel. It takes the right to look, too: be root, or the user that runs the
    gateway. Frames of the kernel are in it where kernel.perf_event_paranoid allows them.

    A worker works in turns: it waits, accepts, reads, drains the log, fans out, flushes and looks
    at its timers. It counts the time of each phase and the sizes of batches itself, for as long as
    this takes and no longer: that needs nothing installed. Percentiles are bounds of buckets a
    quarter wide.

    Exit status: 0 done, 1 something is missing (no profiler, no sample, no turn), 2 error.
    """
    if (slot is not None) + (pid is not None) + publisher > 1:
        raise click.UsageError("give one of --slot, --pid and --publisher")
    with connect() as control:
        target = _target(control.call("status"), slot, pid, publisher)
    out = out or Path(f"tidegate-{target.name.replace(' ', '-')}.svg")
    _check_writable(out)
    output.note(f"profiling {target.name} (pid {target.pid}) for {seconds:g} s")
    before = _look(connect, target, seconds + MARGIN_S)
    with ThreadPoolExecutor(1) as recorder:
        recording = recorder.submit(_record, target, seconds)
        # The turns are timed for just as long, whatever a profiler takes to begin and to end.
        Event().wait(seconds)
        turns = _turns(connect, target, before)
        flame = _draw(recording.result(), target, seconds, out)
    profiled = Profiled(target, seconds, out, flame, turns)
    if output.as_json:
        output.data(profiled.as_map())
    else:
        _show(output, profiled)
    return Exit.OK if profiled.is_whole else Exit.NO


@dataclass(frozen=True, slots=True)
class Profiled:
    """What was found, or why it was not."""

    target: Target
    seconds: float
    out: Path
    flame: Recording | TidegateError
    """A recording is drawn, and in `out`."""
    turns: TurnProfile | TidegateError | None
    """None: it is no worker."""

    @property
    def is_whole(self) -> bool:
        return not any(isinstance(part, TidegateError) for part in (self.flame, self.turns))

    def as_map(self) -> dict[str, Any]:
        flame: dict[str, Any]
        if isinstance(self.flame, TidegateError):
            flame = {"error": self.flame.as_map()}
        else:
            flame = {
                "file": str(self.out),
                "tool": self.flame.tool,
                "samples": self.flame.samples,
                "kernel": self.flame.has_kernel,
                "stale": self.flame.is_stale,
            }
        turns: dict[str, Any] | None = None
        if isinstance(self.turns, TidegateError):
            turns = {"error": self.turns.as_map()}
        elif self.turns is not None:
            turns = self.turns.as_map()
        return {
            "process": self.target.name,
            "pid": self.target.pid,
            "seconds": self.seconds,
            "flame": flame,
            "turns": turns,
        }


# ---- whom


def _target(status: dict[str, Any], slot: int | None, pid: int | None, publisher: bool) -> Target:
    """The process that is meant. Raises TidegateError where there is none."""
    named = {worker["pid"]: f"worker {worker['slot']}" for worker in status["workers"]}
    named |= {status["publisher"]["pid"]: "publisher", status["api"]["pid"]: "api"}
    named[status["pid"]] = "supervisor"
    if publisher:
        pid, what = status["publisher"]["pid"], "publisher"
    elif pid is not None:
        if pid not in named and not _is_child(pid, status["pid"]):
            raise TidegateError(
                f"process {pid} is none of this gateway",
                remedy="`tidegate status` shows those that are",
                code="no_process",
            )
        return Target(named.get(pid, f"process {pid}"), pid)
    elif slot is not None:
        pid, what = _pid_of(status["workers"], slot), f"worker of slot {slot}"
    else:
        fullest = max(status["workers"], key=lambda each: each["connections"], default=None)
        pid, what = (fullest["pid"] if fullest else None), "worker"
    if pid is None:
        raise TidegateError(
            f"no {what} runs now", remedy="see `tidegate status`", code="no_process"
        )
    return Target(named[pid], pid)


def _pid_of(workers: list[dict[str, Any]], slot: int) -> int | None:
    for worker in workers:
        if worker["slot"] == slot:
            pid: int | None = worker["pid"]
            return pid
    raise TidegateError(
        f"there is no slot {slot}", remedy="`tidegate slots` shows them", code="no_slot"
    )


def _is_child(pid: int, supervisor: int) -> bool:
    import psutil

    try:
        return any(each.pid == supervisor for each in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def _check_writable(out: Path) -> None:
    """Before the time is spent. Raises TidegateError."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise TidegateError(
            f"{out} cannot be written: {out.parent} is no directory that this user may write to",
            remedy="name another file with --out",
            code="out",
        )


# ---- its turns


def _look(connect: Connect, target: Target, duration_s: float) -> dict[str, Any] | None:
    """What a worker has counted until now; it times its turns for so long. None: no worker."""
    with connect() as control:
        try:
            found = control.call("profile", pid=target.pid, duration_s=duration_s)
        except ControlError as error:
            if error.code == "no_worker":
                return None
            raise
    counted: dict[str, Any] = found["counted"]
    return counted


def _turns(
    connect: Connect, target: Target, before: dict[str, Any] | None
) -> TurnProfile | TidegateError | None:
    from ops.profile.turns import TurnProfile

    if before is None:
        return None
    try:
        after = _look(connect, target, 0)
    except TidegateError as error:
        return error
    if after is None:
        return TidegateError(
            f"{target.name} (pid {target.pid}) ended before it could be asked for its turns",
            remedy="profile the one that replaces it",
            code="no_worker",
        )
    return TurnProfile.between(before, after) or TidegateError(
        f"{target.name} (pid {target.pid}) has timed no turn",
        remedy="`tidegate reload` gives it the code that can, or see whether it hangs",
        code="no_turns",
    )


# ---- its stacks


def _record(target: Target, seconds: float) -> Recording | TidegateError:
    from ops.profile.recording import record

    try:
        return record(target.pid, seconds)
    except TidegateError as error:
        return error


def _draw(
    recording: Recording | TidegateError, target: Target, seconds: float, out: Path
) -> Recording | TidegateError:
    """The recording, drawn to `out`; or why not."""
    if isinstance(recording, TidegateError):
        return recording
    subtitle = f"{seconds:g} s, {recording.samples:,} samples by {recording.tool}"
    try:
        svg = recording.draw(f"Tidegate {target.name}, pid {target.pid}", subtitle)
        out.write_text(svg)
    except TidegateError as error:
        return error
    except OSError as error:
        return TidegateError(
            f"{out} cannot be written ({error.strerror})",
            remedy="name another file with --out",
            code="out",
        )
    return recording


# ---- what people see


def _show(output: Output, profiled: Profiled) -> None:
    turns, flame = profiled.turns, profiled.flame
    if isinstance(turns, TidegateError):
        output.error(turns)
    elif turns is not None:
        output.show(*_turn_tables(turns))
    if isinstance(flame, TidegateError):
        output.error(flame)
        return
    kernel = "kernel included" if flame.has_kernel else "without the kernel's part"
    said = f"flame graph of {flame.samples:,} samples by {flame.tool}, {kernel}: {profiled.out}"
    output.show(*([""] if turns is not None else []), said)
    if flame.is_stale:
        output.note(
            f"{profiled.target.name} runs code that has been replaced, so names are missing in the "
            "graph: `tidegate reload`, and profile again"
        )


def _turn_tables(turns: TurnProfile) -> list[Any]:
    from ops.profile.turns import PERCENTS, PHASES

    phases = [
        (
            phase.name.replace("_", " "),
            f"{phase.share_percent:.1f} %",
            f"{phase.time_s:.3f} s",
            f"{phase.mean_us:.1f} µs",
            f"{phase.longest_us / 1e3:.2f} ms",
            PHASES[phase.name],
        )
        for phase in turns.phases
    ]
    sizes: list[tuple[object, ...]] = [
        (
            name.replace("_", " "),
            f"{each.mean:,.1f}",
            *each.percentiles,
            each.most,
        )
        for name, each in turns.batches.items()
        if each is not None
    ]
    if turns.bytes_per_send is not None:
        blank = ("",) * (len(PERCENTS) + 1)
        sizes.append(("bytes per send", f"{turns.bytes_per_send:,.1f}", *blank))
    percentiles = [f"P{percent}" for percent in PERCENTS]
    return [
        table(("PHASE", "SHARE", "TIME", "PER TURN", "LONGEST", "WHAT IT DOES"), phases),
        "",
        table(("SIZES", "MEAN", *percentiles, "MOST"), sizes),
        "",
        f"{turns.turns:,} turns, {turns.turns / turns.time_s:,.1f} a second",
    ]


COMMANDS = [profile]
