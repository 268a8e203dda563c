"""What to do about findings: as a line of text, as a shell script, or at once."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.errors import TidegateError
from gateway.host.checks import Status
from gateway.host.examine import Finding
from gateway.host.load import Load

SYSCTL = "proc/sys/"
SYSCTL_FILE = "/etc/sysctl.d/99-tidegate-doctor.conf"

COLUMNS = 96
"""Of the script's comments."""

HEAD = """\
#!/bin/sh
# What `tidegate doctor` found lacking for {connections:,} connections in {workers} workers.
# Read it, then run it as root. It raises values and lowers none; what fails says so itself, and the
# rest goes on.
"""


class NotRoot(TidegateError):
    """Settings of the kernel are root's."""

    code = "not_root"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one finding; `after` is as the kernel says it, `reason` why it was left."""

    name: str
    before: str
    after: str
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name}: left at {self.before}; {self.reason}"
        return f"{self.name}: {self.before} -> {self.after}"

    def as_map(self) -> dict[str, Any]:
        return asdict(self)


def remedy(finding: Finding) -> str:
    """What to do, in one line; empty where nothing is to be done."""
    if finding.seen is None or finding.status is Status.OK:
        return ""
    return finding.advice or f"`{_command(finding)}`"


def script(load: Load, findings: Sequence[Finding]) -> str:
    """A shell script for root. What a script cannot do, or need not, stands in it as a comment."""
    parts = [HEAD.format(connections=load.connections, workers=load.workers)]
    kept = []
    for finding in findings:
        if finding.seen is None or finding.status is Status.OK:
            continue
        lines = [f"{finding.check.name} ({finding.status.name.lower()}): {finding.check.why}"]
        lines.append(f"now {finding.seen.now}, wanted {finding.seen.wanted}")
        if finding.seen.holds is not None:
            lines[-1] += f"; suffices for {finding.seen.holds:,} connections"
        command = _command(finding)
        if not command:
            lines.append(f"by hand: {finding.advice}")
        elif finding.status is Status.NOTE:
            lines.append(f"if you want it: {command}")
        parts += [f"# {part}" for line in lines for part in textwrap.wrap(line, COLUMNS)]
        if command and finding.status is not Status.NOTE:
            parts.append(command)
            if finding.check.setting.startswith(SYSCTL):
                kept.append(f"{finding.check.name} = {finding.seen.wanted}")
        parts.append("")
    if kept:
        # Behind what a script before this one has kept: of two lines the last counts.
        parts += ["# The same after a restart.", f"cat >> {SYSCTL_FILE} <<'END'", *kept, "END"]
    return "\n".join(parts).rstrip()


def apply(findings: Sequence[Finding], root: Path) -> list[Outcome]:
    """Writes what can be written at run time, and lowers nothing.

    Raises NotRoot where the kernel's own settings (`root` is /) are asked of anybody else.
    """
    if root == Path("/") and os.geteuid() != 0:
        raise NotRoot(
            "--apply needs root",
            remedy="run it with sudo, or read what it would do with --fix-script",
        )
    return [
        _set(finding, root)
        for finding in findings
        if finding.seen is not None and finding.status >= Status.WARNING
    ]


def _set(finding: Finding, root: Path) -> Outcome:
    name, setting = finding.check.name, finding.check.setting
    assert finding.seen is not None
    before, wanted = str(finding.seen.now), str(finding.seen.wanted)
    if not setting:
        return Outcome(name, before, before, f"not at run time: {finding.advice}")
    path = root / setting
    try:
        # Not what the check saw: somebody may have raised it since.
        if _lowers(current := _read(path), wanted):
            return Outcome(name, before, current, f"{wanted} would lower it")
        path.write_text(wanted)
        return Outcome(name, before, _read(path))
    except OSError as error:
        return Outcome(name, before, before, f"{path} cannot be written ({error.strerror})")


def _read(path: Path) -> str:
    """The setting's value; of words to choose from the chosen one."""
    text = path.read_text()
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else " ".join(text.split())


def _lowers(before: str, after: str) -> bool:
    """Whether any of the numbers gets smaller; words such as "madvise" have no order."""
    pairs = zip(before.split(), after.split(), strict=False)
    return any(int(a) > int(b) for a, b in pairs if a.isdigit() and b.isdigit())


def _command(finding: Finding) -> str:
    setting = finding.check.setting
    if not setting or finding.seen is None:
        return ""
    value = shlex.quote(str(finding.seen.wanted))
    if setting.startswith(SYSCTL):
        return f"sysctl -w {finding.check.name}={value}"
    return f"echo {value} > /{setting}"
