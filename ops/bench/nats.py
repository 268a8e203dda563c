"""A peer: a NATS server with its WebSocket port, of its own, on free ports."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from gateway.errors import TidegateError

PROGRAM = "nats-server"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
PUBLISH_TIMEOUT_S = 30.0
POLL_S = 0.02
READ_BYTES = 4096

CONFIGURATION = """\
listen: "127.0.0.1:-1"
ports_file_dir: "{directory}"
max_connections: 1000000
websocket {{ listen: "127.0.0.1:-1", no_tls: true }}
"""
"""-1 is any free port; the server writes those that it got into a file."""


def find() -> str | None:
    """The server's program, None where it is missing."""
    return shutil.which(PROGRAM)


class Nats:
    """A server for the length of a `with` block."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nats-")))
            configuration = directory / "nats.conf"
            configuration.write_text(CONFIGURATION.format(directory=directory))
            self._process = subprocess.Popen(
                [
                    *_dying_with_the_parent(),
                    *(self._program, "-c", str(configuration)),
                    *("-l", str(directory / "nats.log")),
                ]
            )
            cleanup.callback(self._stop)
            ports = self._ports(directory)
            self.address = _address(ports["websocket"][0])
            """Of the WebSocket port, `host:port`."""
            self._address = _address(ports["nats"][0])
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def publish(self, channel: str, messages: list[bytes]) -> None:
        """Send all at once; returns when the server has them. Raises OSError."""
        name = channel.encode()
        lines = (b"PUB %s %d\r\n%s\r\n" % (name, len(each), each) for each in messages)
        said = b'CONNECT {"verbose":false}\r\n' + b"".join(lines) + b"PING\r\n"
        host, _, port = self._address.rpartition(":")
        with socket.create_connection((host, int(port)), PUBLISH_TIMEOUT_S) as connection:
            connection.sendall(said)
            answer = b""
            while b"PONG\r\n" not in answer:
                piece = connection.recv(READ_BYTES)
                answer += piece
                if not piece or b"-ERR" in answer:
                    raise OSError(answer.decode(errors="replace")[-200:])

    def _ports(self, directory: Path) -> dict[str, list[str]]:
        """URLs by kind. Raises TidegateError where the server does not start."""
        path = directory / f"{PROGRAM}_{self.pid}.ports"
        pause = threading.Event()
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ValueError):
                ports: dict[str, list[str]] = json.loads(path.read_text())
                return ports
            pause.wait(POLL_S)
        said = "it wrote no log"
        with contextlib.suppress(FileNotFoundError):
            said = (directory / "nats.log").read_text(errors="replace")[-500:]
        raise TidegateError(f"{PROGRAM} does not start: {said}", code="bench")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _dying_with_the_parent() -> list[str]:
    """What to put before a command so that it does not outlive a killed benchmark, where there is
    setpriv(1) for it. It becomes the command, whose process ID is therefore the same."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "KILL", "--"] if program else []


def _address(url: str) -> str:
    return url.rpartition("//")[2]
