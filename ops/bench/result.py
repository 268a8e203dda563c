"""What a benchmark found, in a form that stays: every run's value, and where it was measured."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from ops.load.latencies import Latencies

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Goal:
    """What the project holds itself to."""

    sense: Literal["at most", "at least"]
    bound: float


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure, measured several times. The unit of a ratio is "x"."""

    what: str
    unit: str
    runs: tuple[float, ...]
    goal: Goal | None = None
    subject: str = ""
    """Whose figure it is, where several are compared."""

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def met(self) -> bool | None:
        """Whether the median is what the goal asks for; None without a goal."""
        if self.goal is None:
            return None
        if self.goal.sense == "at most":
            return self.median <= self.goal.bound
        return self.median >= self.goal.bound


PERCENTS = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
"""Where a curve has its points."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A distribution of times: pairs of a percentage and the milliseconds that it stays within."""

    label: str
    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, label: str, runs: Iterable[Latencies]) -> Curve:
        """Of all runs together."""
        whole = Latencies.sum(runs)
        times_us = ((percent, whole.percentile_us(percent)) for percent in PERCENTS)
        return cls(label, tuple((p, us / 1e3) for p, us in times_us if us is not None))


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on beside our code."""

    cpu: str
    cpus: int
    memory_gib: int
    kernel: str
    python: str
    rustc: str

    @classmethod
    def here(cls) -> Machine:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
        return cls(
            cpu=model[1] if model else platform.machine(),
            cpus=psutil.cpu_count() or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30),
            kernel=platform.release(),
            python=platform.python_version(),
            rustc=(_said_by("rustc", "--version") or "rustc unknown").split()[1],
        )


def _said_by(*command: str) -> str | None:
    """`None` where nothing can be learnt so: no reason to lose what was measured."""
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _commit() -> str:
    """What is measured; marked where the tree has other changes than saved results are."""
    saved = (":(top,exclude)README.md", f":(top,exclude)ops/bench/{RESULTS.name}")
    changes = _said_by("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", *saved)
    commit = _said_by("git", "describe", "--always") or "an unknown commit"
    return commit + ("-dirty" if changes else "")


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's outcome. `parameters` says what was done, by name and value; `note` says in
    words what a reader of the figures must know beside; `curves` are for a plot."""

    benchmark: str
    parameters: dict[str, int | float | str]
    measures: tuple[Measure, ...]
    note: str = ""
    curves: tuple[Curve, ...] = ()
    machine: Machine = field(default_factory=Machine.here)
    commit: str = field(default_factory=_commit)
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def save(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        return msgspec.json.decode(path.read_bytes(), type=cls)
