"""Where the JavaScript clients are installed: once, beside the other things that are built."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = HERE.parents[3] / "target" / "javascript"
INSTALL_TIMEOUT_S = 90
"""Twice as long is less than what a test may take: another process may be at it before."""


def require(part: str) -> None:
    """Installs the packages of `part` ("node" or "browser"). Skips the test where that fails."""
    if problem := _install(part):
        pytest.skip(problem)


def command(part: str) -> list[str]:
    """The command line of the driver."""
    return ["node", str(_folder(part) / "driver.mjs")]


def _folder(part: str) -> Path:
    """A folder of its own for each state of what is installed there."""
    text = b"".join(path.read_bytes() for path in _files(part))
    return CACHE / f"{part}-{hashlib.sha256(text).hexdigest()[:16]}"


def _files(part: str) -> list[Path]:
    return sorted([*HERE.glob("*.mjs"), *(HERE / part).iterdir()])


@functools.cache
def _install(part: str) -> str:
    """Why it cannot be installed; empty: it is."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "Node.js with npm is not installed here"
    folder = _folder(part)
    folder.mkdir(parents=True, exist_ok=True)
    # Tests run in several processes, and npm begins by taking away what is there.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return "" if (folder / "done").exists() else _fill(folder, part)


def _fill(folder: Path, part: str) -> str:
    for path in _files(part):
        shutil.copy(path, folder)
    try:
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        return f"npm could not install the clients: {error.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        return f"npm did not install the clients within {INSTALL_TIMEOUT_S} s"
    (folder / "done").touch()
    return ""
