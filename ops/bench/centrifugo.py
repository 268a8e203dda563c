"""A peer: a Centrifugo server of version 5, with all in memory and everybody let in."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import TidegateError
from ops.bench.daemon import free_port, serving

PROGRAM = "centrifugo"
VERSION = "5."
"""Others have other configurations."""
ANSWER_TIMEOUT_S = 30.0
CONFIGURATION = {
    "address": "127.0.0.1",
    "allow_anonymous_connect_without_token": True,
    "health": True,
    "log_level": "error",
}
NAMESPACE = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "history_size": 100,
    "history_ttl": "600s",
    "force_recovery": True,
}
"""Channels that can be recovered, as those of the gateway's namespace `public`."""


def find(say: Callable[[str], None]) -> str | None:
    """The server's program; None where it is missing or of another version, which is told."""
    if program := shutil.which(PROGRAM):
        told = subprocess.run([program, "version"], capture_output=True, text=True).stdout
        if f" v{VERSION}" in told:
            return program
    say(f"Centrifugo {VERSION}x is not here: {PROGRAM} is not in PATH, or of another version")
    return None


@dataclass(frozen=True, slots=True)
class Centrifugo:
    """A server that runs."""

    pid: int
    address: str
    """`host:port` of everything."""
    api_key: str

    def publish(self, channel: str, messages: Iterable[bytes]) -> None:
        """Send all by one request. Raises TidegateError."""
        data = (json.loads(each) for each in messages)
        commands = [{"publish": {"channel": channel, "data": each}} for each in data]
        replies = self._ask("batch", {"commands": commands})["replies"]
        if any("error" in reply for reply in replies):
            raise TidegateError(f"{PROGRAM} answers {replies}", code="bench")

    def connections(self) -> int:
        """How many clients it had at most 3 s ago. Raises TidegateError."""
        return int(self._ask("info", {})["result"]["nodes"][0]["num_clients"])

    def _ask(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"X-API-Key": self.api_key}
        try:
            with contextlib.closing(
                http.client.HTTPConnection(self.address, timeout=ANSWER_TIMEOUT_S)
            ) as connection:
                connection.request("POST", f"/api/{method}", json.dumps(body), headers)
                answer: dict[str, Any] = json.load(connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TidegateError(f"{PROGRAM} does not answer: {error}", code="bench") from error
        if "error" in answer:
            raise TidegateError(f"{PROGRAM} answers {answer['error']}", code="bench")
        return answer


@contextlib.contextmanager
def centrifugo(
    program: str, namespace: Mapping[str, object], **options: object
) -> Iterator[Centrifugo]:
    """A server for the length of a `with` block; in its one namespace everybody may subscribe.
    `options` are others of its configuration. Raises TidegateError where it does not start.
    """
    key, port = secrets.token_hex(16), free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="centrifugo-") as directory:
        configuration, log = Path(directory, "config.json"), Path(directory, "log")
        places = {"port": port, "log_file": str(log), "api_key": key}
        namespaces = {"namespaces": [{**NAMESPACE, **namespace}]}
        configuration.write_text(json.dumps({**CONFIGURATION, **places, **namespaces, **options}))
        with serving([program, "-c", str(configuration)], log, lambda: _is_well(address)) as it:
            yield Centrifugo(it[0], address, key)


def _is_well(address: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=1)) as connection:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
