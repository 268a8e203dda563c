"""A peer: a Centrifugo server of version 5, with all in memory and everybody let in."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ops.bench.daemon import free_port, serving

PROGRAM = "centrifugo"
VERSION = "5."
"""Others have other configurations."""
PUBLISH_TIMEOUT_S = 30.0
CONFIGURATION = {
    "address": "127.0.0.1",
    "allow_anonymous_connect_without_token": True,
    "api_insecure": True,
    "health": True,
    "log_level": "error",
    "namespaces": [
        {
            "name": "public",
            "allow_subscribe_for_client": True,
            "allow_subscribe_for_anonymous": True,
        }
    ],
}


def find() -> str | None:
    """The server's program, None where it is missing or of another version."""
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    said = subprocess.run([program, "version"], capture_output=True, text=True).stdout
    return program if f" v{VERSION}" in said else None


@dataclass(frozen=True, slots=True)
class Centrifugo:
    """A server that runs."""

    pid: int
    address: str
    """`host:port` of everything."""

    def publish(self, channel: str, messages: list[bytes]) -> None:
        """Send all by one request. Raises OSError, http.client.HTTPException."""
        commands = [
            {"publish": {"channel": channel, "data": json.loads(each)}} for each in messages
        ]
        with contextlib.closing(
            http.client.HTTPConnection(self.address, timeout=PUBLISH_TIMEOUT_S)
        ) as connection:
            connection.request("POST", "/api/batch", json.dumps({"commands": commands}))
            replies = json.load(connection.getresponse())["replies"]
        if any("error" in reply for reply in replies):
            raise OSError(f"{PROGRAM} answers {replies}")


@contextlib.contextmanager
def centrifugo(program: str) -> Iterator[Centrifugo]:
    """A server for the length of a `with` block. Raises TidegateError where it does not start."""
    with tempfile.TemporaryDirectory(prefix="centrifugo-") as directory:
        configuration, log = Path(directory, "config.json"), Path(directory, "log")
        port = free_port()
        configuration.write_text(json.dumps(CONFIGURATION | {"port": port, "log_file": str(log)}))
        address = f"127.0.0.1:{port}"
        with serving([program, "-c", str(configuration)], log, lambda: _is_well(address)) as it:
            yield Centrifugo(it[0], address)


def _is_well(address: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=1)) as connection:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
