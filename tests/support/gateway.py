"""A real gateway in a process of its own, on free ports, in a run directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from gateway.control.client import ControlClient
from shm import segment
from tests.support.waiting import PATIENCE_S, wait_for

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0

# Small and quick, so that a laptop can run several at once; a test overrides what it is about.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gateway": {"log_format": "text"},
    "workers": {"count": 2, "pin": "none"},
    "client": {"http_port": 0, "tcp_port": 0},
    "api": {"port": 0, "key": "test-key", "workers": 2, "threads": 4},
    "log": {"capacity_bytes": 4 << 20, "channels_max": 4096},
    "reload": {"spread_s": 0.2, "start_timeout_s": 60},
    "stop": {"spread_s": 0.1, "timeout_s": 10},
    # Clients that answer no ping, or stop in the middle of a handshake, wait for reloads and deaths
    # that may take long.
    "limits": {"handshake_timeout_s": 60},
    "websocket": {"ping_interval_s": 120, "pong_timeout_s": 60},
}


def to_toml(sections: dict[str, dict[str, Any]]) -> str:
    """Write the subset of TOML that configurations here need: tables of scalars and lists."""
    lines: list[str] = []
    for name, keys in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(
            value, ensure_ascii=False
        )  # TOML's basic strings have the escapes of JSON's
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return str(value)


class Gateway:
    """One running gateway. `sections` overrides single keys of `DEFAULTS`."""

    def __init__(
        self,
        directory: Path,
        sections: dict[str, dict[str, Any]] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.environment = environment or {}
        self.name = f"t{uuid.uuid4().hex[:10]}"
        self.directory = directory
        self.config_path = directory / "tidegate.toml"
        self.log_path = directory / "gateway.log"
        merged = {name: dict(keys) for name, keys in DEFAULTS.items()}
        merged["gateway"] |= {"name": self.name, "run_dir": str(directory / "run")}
        for section, keys in (sections or {}).items():
            merged.setdefault(section, {}).update(keys)
        self.sections = merged
        self.write_config()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self) -> None:
        self.config_path.write_text(to_toml(self.sections))

    # ---- life

    def start(self, *, wait: bool = True, within: Sequence[str] = ()) -> Gateway:
        """Start the supervisor, by the command `within` if there is one; with `wait`, return when
        it has told systemd READY=1."""
        notify = {"NOTIFY_SOCKET": str(self.directory / "notify")}
        environment = os.environ | notify | self.environment
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-P", "-m", "ops.cli", "run", "-c", self.config_path],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_notified("READY=1")
        return self

    def wait_notified(self, line: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until a notification has `line` among its lines; fail early if the process ends."""
        self._notify.settimeout(0.2)

        def seen() -> bool:
            # Asked first: what it said before its end is there to be read after it.
            has_ended = self.process is None or self.process.poll() is not None
            try:
                return line in self._notify.recv(4096).decode().splitlines()
            except TimeoutError:
                assert not has_ended, f"the gateway ended before {line}"
                return False

        try:
            wait_for(seen, f"notification {line}", timeout_s)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.log()}") from None

    def forget_notifications(self) -> None:
        """Make room for those to come: the kernel keeps few, and the gateway drops the rest."""
        self._notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notify.recv(4096)

    def stop(self) -> int:
        """Stop gracefully, then by force; leave nothing behind. Returns the exit status."""
        if self.process is None:
            return 0
        family = self._family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            self.process.wait()
            raise AssertionError(f"the gateway did not stop:\n{self.log()}") from None
        self.process = None
        return status

    def _family(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            parent = psutil.Process(self.process.pid)
            return [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self._notify.close()
            # A gateway that a test killed had no time to do it.
            segment.sweep(self.name)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    # ---- reaching it

    @property
    def control_path(self) -> Path:
        return self.directory / "run" / self.name / "control.sock"

    def control(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """One verb on a control connection of its own."""
        with ControlClient(self.control_path, timeout_s=PATIENCE_S) as client:
            return client.call(verb, **arguments)

    def status(self) -> dict[str, Any]:
        return self.control("status")

    def totals(self) -> dict[str, int]:
        return dict(self.status()["totals"])

    def _port(self, endpoint: str) -> int:
        return int(str(self.status()["endpoints"][endpoint]).rpartition(":")[2])

    @property
    def http_port(self) -> int:
        return self._port("http")

    @property
    def tcp_port(self) -> int:
        return self._port("tcp")

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self._port('api')}/api"

    @property
    def api_key(self) -> str:
        return str(self.sections["api"]["key"])

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.http_port}/connection/uni_websocket"

    def publish(self, channel: str, data: Any) -> dict[str, Any]:
        """Publish through the control socket; returns `{epoch, offset}`."""
        return self.control("publish", channel=channel, data=data)

    def connections(self) -> list[int]:
        """How many each worker has."""
        return [int(worker["connections"]) for worker in self.status()["workers"]]

    def ends(self) -> dict[str, int]:
        """Connections closed or lost so far, by the name of what counted them."""
        counters = ("closes_total", "connections_lost_total")
        return {k: v for k, v in self.totals().items() if k.startswith(counters) and v}

    def worker_pids(self) -> list[int]:
        """Of the workers that live; one that was killed has none until it is replaced."""
        workers = self.status()["workers"]
        return [int(worker["pid"]) for worker in workers if worker["pid"] is not None]


@contextlib.contextmanager
def running_gateway(
    sections: dict[str, dict[str, Any]] | None = None, environment: dict[str, str] | None = None
) -> Iterator[Gateway]:
    """A gateway for the length of a `with` block, with some variables in its environment."""
    # Not pytest's tmp_path: a Unix socket's path must stay under 108 bytes (unix(7)).
    with tempfile.TemporaryDirectory(prefix="tidegate-") as directory:
        gateway = Gateway(Path(directory), sections, environment)
        try:
            yield gateway.start()
        finally:
            gateway.close()
