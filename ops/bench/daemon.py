"""A server of somebody else, in a process of its own, for the length of a `with` block."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from gateway.errors import TidegateError

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
SAID_CHARACTERS = 500

T = TypeVar("T")


@contextlib.contextmanager
def serving(
    command: Sequence[str], log: Path, ready: Callable[[], T | None]
) -> Iterator[tuple[int, T]]:
    """The process ID, and what `ready` returned when that was true at last; an OSError or a
    ValueError of it means not yet. Raises TidegateError, with the end of the server's log, where
    it never is.
    """
    process = subprocess.Popen([*_dying_with_the_parent(), *command])
    try:
        yield process.pid, _started(command[0], process, log, ready)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(
    program: str, process: subprocess.Popen[bytes], log: Path, ready: Callable[[], T | None]
) -> T:
    pause = threading.Event()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if found := ready():
                return found
        pause.wait(POLL_S)
    said = "it wrote no log"
    with contextlib.suppress(FileNotFoundError):
        said = log.read_text(errors="replace")[-SAID_CHARACTERS:]
    raise TidegateError(f"{Path(program).name} does not start: {said}", code="bench")


def _dying_with_the_parent() -> list[str]:
    """What to put before a command so that it does not outlive a killed benchmark, where there is
    setpriv(1) for it. It becomes the command, whose process ID is therefore the same."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "KILL", "--"] if program else []
