"""Flame graphs of a running process: recorded by whichever profiler is at hand, drawn by ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gateway.errors import TidegateError
from ops import programs

FREQUENCY_HZ = 199
"""Samples a second of CPU time. A prime: no clock of the process is in step with it."""
STACK_BYTES = 16_384
"""Copied with each sample and unwound later: the engine's stack, with 4 KiB of buffers for writev,
above that of the interpreter."""
GRACE_S = 60.0
"""What a profiler may take beyond the time it samples for: to attach, and to write."""
FOLD_TIMEOUT_S = 600.0
"""To unwind and name the stacks of five minutes of one CPU, on a machine that is busy."""
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")

INSTALL_REMEDY = (
    "install perf (package linux-perf, linux-tools or perf), or `pip install 'tidegate[profile]'`"
)
ALLOW_REMEDY = (
    "run this as root, or allow it: `sysctl kernel.perf_event_paranoid=1` for perf, "
    "`sysctl kernel.yama.ptrace_scope=0` for py-spy"
)


class NoFlame(TidegateError):
    """There is no flame graph: no profiler is there, none may look, or it saw nothing."""

    code = "no_flame"


@dataclass(frozen=True, slots=True)
class Recording:
    """Stacks that a profiler saw, folded: frames from the root to the leaf, and how often."""

    tool: str
    folded: str
    is_stale: bool
    """Whether files of the code that runs have been replaced since: then names are missing."""

    @property
    def samples(self) -> int:
        return sum(int(line.rpartition(" ")[2]) for line in self.folded.splitlines())

    @property
    def has_kernel(self) -> bool:
        """Whether the kernel's part of the stacks was seen, too."""
        return "_[k]" in self.folded

    def draw(self, title: str, subtitle: str) -> str:
        """As one SVG. Raises NoFlame where there is no stack, TidegateError."""
        if not self.samples:
            raise NoFlame(
                f"{self.tool} saw nothing: the process used too little CPU meanwhile",
                remedy="put load on it (`tidegate load`), or profile for longer",
                code="no_samples",
            )
        return _flame("draw", title, subtitle, text=self.folded)


def record(pid: int, seconds: float) -> Recording:
    """Samples a process for so long, by the first profiler that can. Raises NoFlame.

    Returns early only where none can.
    """
    failures = []
    for tool, find, run in PROFILERS:
        if (program := find()) is None:
            failures.append(f"{tool} is not installed")
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="tidegate-profile-") as directory:
                folded = run(program, pid, seconds, Path(directory))
                return Recording(tool, folded, _is_stale(pid))
        except _Failed as failure:
            failures.append(f"{tool} failed: {failure}")
    is_refused = any("failed" in failure for failure in failures)
    raise NoFlame(
        f"no profiler can sample process {pid} ({'; '.join(failures)})",
        remedy=ALLOW_REMEDY if is_refused else INSTALL_REMEDY,
    )


class _Failed(Exception):
    """A profiler did not do what it should, and what it said."""


def _perf(program: str, pid: int, seconds: float, directory: Path) -> str:
    """perf(1): whole stacks, the kernel's part included where that is allowed.

    It unwinds by the tables that release builds have (.eh_frame), not by frame pointers, which
    libraries lack.
    """
    data = directory / "perf.data"
    _run(
        *(program, "record", "--quiet", "--no-buildid-cache", "--output", str(data)),
        *("--pid", str(pid), "--freq", str(FREQUENCY_HZ)),
        *("--call-graph", f"dwarf,{STACK_BYTES}"),
        # It ends with this one, also if we should be killed.
        *("--", "sleep", f"{seconds:g}"),
        timeout_s=seconds + GRACE_S,
    )
    # To look inlined functions up takes some 6.x versions a process for each.
    fields = "comm,pid,tid,time,event,ip,sym,dso"
    told = _run(
        *(program, "script", "--input", str(data), "--no-inline", "--fields", fields),
        timeout_s=FOLD_TIMEOUT_S,
    )
    return _flame("fold", text=told)


def _py_spy(program: str, pid: int, seconds: float, directory: Path) -> str:
    """py-spy: functions of Python and of extension modules, less of how they were called."""
    folded = directory / "folded"
    _run(
        *(program, "record", "--native", "--format", "raw", "--output", str(folded)),
        *("--pid", str(pid), "--rate", str(FREQUENCY_HZ), "--duration", str(round(seconds) or 1)),
        timeout_s=seconds + GRACE_S,
    )
    return folded.read_text(errors="replace") if folded.exists() else ""


def _installed_py_spy() -> str | None:
    """On the path, or beside the interpreter, as `pip install` puts it."""
    beside = Path(sys.executable).parent
    return shutil.which("py-spy") or shutil.which("py-spy", path=str(beside))


Find = Callable[[], str | None]
Run = Callable[[str, int, float, Path], str]

PROFILERS: list[tuple[str, Find, Run]] = [
    ("perf", lambda: shutil.which("perf"), _perf),
    ("py-spy", _installed_py_spy, _py_spy),
]


def _run(*command: str, timeout_s: float) -> str:
    """Runs a profiler. Raises _Failed with the most telling line of what it said."""
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            # Whatever this user likes perf to do otherwise.
            env=os.environ | {"PERF_CONFIG": os.devnull},
            check=False,
        )
    except OSError as error:
        raise _Failed(f"it cannot be run ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"it did not end within {timeout_s:g} s") from error
    if ran.returncode != 0:
        raise _Failed(_reason(ran.stderr) or f"status {ran.returncode}")
    return ran.stdout


def _reason(said: str) -> str:
    """Where the kernel refuses, that; otherwise the first line of what a profiler said."""
    lowered = said.lower()
    if "perf_event_paranoid" in lowered and PARANOID.exists():
        return f"not permitted (kernel.perf_event_paranoid is {PARANOID.read_text().strip()})"
    if "permission denied" in lowered or "operation not permitted" in lowered:
        return "not permitted"
    lines = (line.strip() for line in said.splitlines())
    return next((line for line in lines if line.strip("-=: ")), "")[:200]


def _is_stale(pid: int) -> bool:
    """Whether a file that it executes from is not there any more (proc(5), `maps`)."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return False
    mappings = (line.split(maxsplit=5) for line in maps.splitlines())
    files = (mapping[-1] for mapping in mappings if "x" in mapping[1])
    # What never had a name (memfd_create(2)) is shown in the same way.
    return any(each.endswith(" (deleted)") and not each.startswith("/memfd:") for each in files)


@cache
def _program() -> Path:
    return programs.directory("tidegate-flame", "tidegate-flame") / "tidegate-flame"


def _flame(*arguments: str, text: str) -> str:
    """Runs our own program. Raises TidegateError."""
    ran = subprocess.run(
        [_program(), *arguments], input=text, capture_output=True, text=True, errors="replace"
    )
    if ran.returncode != 0:
        said = ran.stderr.strip()
        raise TidegateError(f"the flame graph could not be made ({said})", code="flame")
    return ran.stdout
