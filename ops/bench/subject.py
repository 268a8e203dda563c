"""The gateway that is measured: a real one, of its own, on free ports."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from gateway.control.client import ControlClient
from gateway.errors import TidegateError, Unreachable
from ops.bench import usage

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
RUN = (sys.executable, "-m", "ops.cli", "run")

CONFIGURATION = """\
[gateway]
name = "{name}"
run_dir = "{directory}"
[workers]
count = {workers}
[client]
http_port = 0
tcp_port = 0
[api]
port = 0
[stop]
spread_s = 0.1
"""
"""All else has its default: what is measured is what users get."""

_numbers = itertools.count(1)
"""Of the gateways of this process, of which several may run at a time."""


class Subject:
    """A gateway for the length of a `with` block; `settings` are further keys and their values."""

    def __init__(
        self,
        *,
        workers: int,
        settings: Mapping[str, object] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._workers = workers
        self._settings = settings or {}
        self._start_timeout_s = start_timeout_s
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-")))
            name = f"bench-{os.getpid()}-{next(_numbers)}"
            config = directory / "tidegate.toml"
            config.write_text(
                CONFIGURATION.format(name=name, directory=directory, workers=self._workers)
            )
            self._log_path = directory / "gateway.log"
            self.control_path = directory / name / "control.sock"
            with self._log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [*RUN, "-c", config, *(f"--set={k}={v}" for k, v in self._settings.items())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            cleanup.callback(self._stop)
            self.status = self._wait_serving()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def address(self) -> str:
        """Of the WebSocket port, `host:port`."""
        return str(self.status["endpoints"]["http"]).rpartition("//")[2]

    @property
    def api_address(self) -> str:
        """Of the server API, `host:port`."""
        return str(self.status["endpoints"]["api"]).rpartition("//")[2]

    @property
    def name(self) -> str:
        """Of the instance."""
        return str(self.status["instance"])

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """All its processes: supervisor, publisher, workers, API."""
        return usage.family(self._process.pid)

    @property
    def worker_pids(self) -> list[int]:
        return [int(worker["pid"]) for worker in self.status["workers"]]

    def connections(self) -> list[int]:
        """How many each worker has."""
        with ControlClient(self.control_path) as control:
            return [int(worker["connections"]) for worker in control.call("status")["workers"]]

    def _wait_serving(self) -> dict[str, Any]:
        pause = threading.Event()
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(Unreachable), ControlClient(self.control_path) as control:
                status = control.call("status")
                if status["state"] == "serving":
                    return status
            pause.wait(POLL_S)
        raise TidegateError(
            f"the gateway to measure does not serve:\n{self._log_path.read_text(errors='replace')}",
            code="bench",
        )

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # Its children follow: the kernel kills them when their parent ends.
            self._process.kill()
            self._process.wait()
