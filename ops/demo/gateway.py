"""The demonstration's own gateway: `tidegate run` with a temporary configuration, on free ports.

As a program (`python -m ops.demo.gateway PID FILE`) it is that gateway: told to stop when the
demonstration, process PID, ends in whatever way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.control.client import ControlClient
from gateway.errors import TidegateError
from shm import segment
from workers import child

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.1
LOG_LINES_SHOWN = 30
"""Of the gateway's log, when it did not do what it should."""

CONFIGURATION = """\
[gateway]
name = "{name}"
run_dir = "{directory}"

[workers]
count = 2

[client]
http_port = 0
tcp_port = 0

[api]
port = 0
key = "{key}"

[reload]
spread_s = 2

[[channel.namespaces]]
name = "airport"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true

[[channel.namespaces]]
name = "carrier"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that serves."""

    control_path: Path
    http: str
    """host:port, as are the two below."""
    tcp: str
    api: str
    api_key: str

    async def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """One verb on the control socket, off the event loop."""
        return await asyncio.to_thread(self._call, verb, arguments)

    def _call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with ControlClient(self.control_path, timeout_s=START_TIMEOUT_S) as control:
            return control.call(verb, **arguments)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Gateway]:
    """A gateway for the length of the block; it is gone afterwards, whatever happened."""
    # A short path: a Unix socket's is at most 107 bytes (unix(7)).
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as place:
        directory = Path(place)
        # Its shared memory is named after it, and another demonstration may run on this host.
        name = f"demo-{os.getpid()}"
        key = secrets.token_urlsafe(16)
        configuration = directory / "tidegate.toml"
        configuration.write_text(CONFIGURATION.format(name=name, directory=directory, key=key))
        log_path = directory / "log"
        with log_path.open("wb") as log:
            # A process group of its own: ^C is for the demonstration, which then stops it.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ops.demo.gateway", str(os.getpid()), str(configuration)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        try:
            yield await _serving(process, directory / name / "control.sock", key)
        except TidegateError as error:
            lines = log_path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            error.remedy = "\n".join([error.remedy, "the gateway's last words:", *lines])
            raise
        finally:
            await _end(process)
            # It does this itself, unless somebody killed it.
            segment.sweep(name)


async def _serving(process: asyncio.subprocess.Process, control_path: Path, key: str) -> Gateway:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while process.returncode is None:
                with contextlib.suppress(TidegateError):
                    status = await asyncio.to_thread(_status, control_path)
                    if status["state"] == "serving":
                        at = {name: str(url) for name, url in status["endpoints"].items()}
                        return Gateway(control_path, at["http"], at["tcp"], at["api"], key)
                await asyncio.sleep(POLL_INTERVAL_S)
    except TimeoutError:
        raise TidegateError(
            f"the gateway did not serve within {START_TIMEOUT_S:g} s", code="no_start"
        ) from None
    raise TidegateError(f"the gateway ended with status {process.returncode}", code="no_start")


def _status(control_path: Path) -> dict[str, Any]:
    with ControlClient(control_path) as control:
        return control.call("status")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        # Its children die with it (PR_SET_PDEATHSIG).
        process.kill()
        await process.wait()


def main() -> None:
    parent, configuration = sys.argv[1:]
    child.die_with_the_parent(int(parent), signal.SIGTERM)
    from ops.cli import tidegate

    tidegate(["run", "-c", configuration], prog_name="tidegate")


if __name__ == "__main__":
    main()
