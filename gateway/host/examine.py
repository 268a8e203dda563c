"""Goes through the checks: for `tidegate doctor`, and for one line at start.

findings = examine(Load.of(config, connections=1_000_000), Kernel())
verdict(findings)     # the worst status
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.config import Config
from gateway.host.checks import CHECKS, Check, Status
from gateway.host.kernel import Kernel
from gateway.host.load import Load
from gateway.host.looks import Seen


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found here; `seen` is None where there was nothing to see."""

    check: Check
    status: Status
    seen: Seen | None

    @property
    def advice(self) -> str:
        """What to do where the kernel takes no write for it; empty where it does."""
        if self.seen is None or not self.check.advice:
            return ""
        advice = self.check.advice.format(wanted=self.seen.wanted)
        return f"{advice}; or {self.seen.otherwise}" if self.seen.otherwise else advice


def examine(load: Load, kernel: Kernel, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What each check finds."""
    findings = []
    for check in checks:
        seen = check.look(kernel, load)
        findings.append(Finding(check, _status(check, load, seen), seen))
    return findings


def verdict(findings: Sequence[Finding]) -> Status:
    """The worst of them; notes do not count."""
    worst = max((finding.status for finding in findings), default=Status.OK)
    return Status.OK if worst is Status.NOTE else worst


def holds(findings: Sequence[Finding]) -> int | None:
    """Connections that this host can hold, by its checks that decide it; None: no check knows."""
    known = [
        finding.seen.holds
        for finding in findings
        if finding.check.lacking is Status.CANNOT and finding.seen is not None
    ]
    return min((number for number in known if number is not None), default=None)


def warning_at_start(config: Config, kernel: Kernel | None = None) -> str:
    """One line if this host keeps the workers from reaching their limits, else nothing.

    Where the limit is automatic, also if descriptors decide it and not memory.
    """
    load = Load.of(config)
    decisive = [check for check in CHECKS if check.lacking is Status.CANNOT]
    lacking = [
        finding
        for finding in examine(load, kernel or Kernel(), decisive)
        if finding.status >= Status.WARNING
    ]
    if not lacking:
        return ""
    reasons = ", ".join(
        f"{finding.check.name} is {finding.seen.now}, wanted {finding.seen.wanted}"
        for finding in lacking
        if finding.seen is not None
    )
    reached = f"this host holds {holds(lacking) or 0:,}"
    if load.possible > load.connections:
        reached += f" connections, its memory would allow {load.possible:,}"
    else:
        reached += f" of {load.connections:,} configured connections"
    return f"{reached}: {reasons}; `tidegate doctor` tells what to do"


def _status(check: Check, load: Load, seen: Seen | None) -> Status:
    if seen is None:
        return Status.OK if check.absent else Status.NOTE
    if not seen.enough or (seen.holds is not None and seen.holds < load.connections):
        return check.lacking
    return Status.WARNING if seen.limiting else Status.OK
