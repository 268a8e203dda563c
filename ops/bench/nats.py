"""A peer: a NATS server with its WebSocket port, of its own, on free ports."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ops.bench.daemon import serving

PROGRAM = "nats-server"
PUBLISH_TIMEOUT_S = 30.0
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


@dataclass(frozen=True, slots=True)
class Nats:
    """A server that runs."""

    pid: int
    address: str
    """Of the WebSocket port, `host:port`."""
    native_address: str

    def publish(self, channel: str, messages: list[bytes]) -> None:
        """Send all at once; returns when the server has them. Raises OSError."""
        name = channel.encode()
        lines = (b"PUB %s %d\r\n%s\r\n" % (name, len(each), each) for each in messages)
        said = b'CONNECT {"verbose":false}\r\n' + b"".join(lines) + b"PING\r\n"
        host, _, port = self.native_address.rpartition(":")
        with socket.create_connection((host, int(port)), PUBLISH_TIMEOUT_S) as connection:
            connection.sendall(said)
            answer = b""
            while b"PONG\r\n" not in answer:
                piece = connection.recv(READ_BYTES)
                answer += piece
                if not piece or b"-ERR" in answer:
                    raise OSError(answer.decode(errors="replace")[-200:])


@contextlib.contextmanager
def nats(program: str) -> Iterator[Nats]:
    """A server for the length of a `with` block. Raises TidegateError where it does not start."""
    with tempfile.TemporaryDirectory(prefix="nats-") as name:
        directory = Path(name)
        configuration, log = directory / "nats.conf", directory / "nats.log"
        configuration.write_text(CONFIGURATION.format(directory=directory))

        def ports() -> dict[str, list[str]] | None:
            """URLs by kind."""
            for path in directory.glob("*.ports"):
                found: dict[str, list[str]] = json.loads(path.read_text())
                return found
            return None

        with serving([program, "-c", str(configuration), "-l", str(log)], log, ports) as started:
            pid, urls = started
            yield Nats(pid, _address(urls["websocket"][0]), _address(urls["nats"][0]))


def _address(url: str) -> str:
    return url.rpartition("//")[2]
