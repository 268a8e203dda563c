"""An agent lends its machine to crowds that are conducted elsewhere: a swarm for each connection.

The conductor shows the agent's key and is answered; from then on the connection is the swarm's,
which is conducted over it as over a pipe, and ends with it.

    -> {"key": "...", "clients": 18000}
    <- {"agent": 1}    or {"error": {code, message, remedy}}, and the end
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import subprocess
import time
from typing import Any

from gateway.errors import ProtocolError, TidegateError, Unreachable
from ops.load.programs import build, clients_max, spawn

VERSION = 1
GREETING_TIMEOUT_S = 5.0
"""Of a whole greeting: others wait meanwhile."""
ANSWER_TIMEOUT_S = 30.0
"""Of an agent, which may have to hear out some slow ones first."""
GREETING_BYTES_MAX = 1024
SWARMS_MAX = 128
"""Of one agent at a time: some millions of clients, which no machine of ours holds."""
BACKLOG = 128


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`. Raises TidegateError."""
    host, _, port = text.rpartition(":")
    try:
        host.encode("idna")  # As sockets do with a name: what this refuses is no OSError there.
    except UnicodeError:
        host = ""
    if not host or not port.isdecimal() or int(port) > 65535:
        raise TidegateError(f"{text} is no address", remedy="write HOST:PORT", code="bad_request")
    return host.strip("[]"), int(port)


class Agent:
    """An agent, seen from the conductor."""

    def __init__(self, address: str, key: str) -> None:
        self._address = parse_address(address)
        self._name = address
        self._key = key

    def connect(self, clients: int) -> socket.socket:
        """A connection to a new swarm that is to have so many clients, ready for its plan. Raises
        Unreachable, TidegateError.
        """
        try:
            connection = socket.create_connection(self._address, GREETING_TIMEOUT_S)
        except OSError as error:
            raise Unreachable(
                f"no agent answers at {self._name} ({error})",
                remedy="start one there: `tidegate load --agent HOST:PORT`",
            ) from error
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greeting = {"key": self._key, "clients": clients}
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            answer = _read_greeting(connection, ANSWER_TIMEOUT_S)
            if "error" in answer:
                refusal = answer["error"]
                raise TidegateError(
                    f"the agent at {self._name} refused: {refusal['message']}",
                    remedy=refusal["remedy"],
                    code=refusal["code"],
                )
            if answer.get("agent") != VERSION:
                raise ProtocolError(
                    f"{self._name} is no agent of this release",
                    remedy="install the same release on both machines",
                )
        except OSError as error:
            connection.close()
            raise Unreachable(f"the agent at {self._name} does not answer ({error})") from error
        except BaseException:
            connection.close()
            raise
        return connection


class AgentServer:
    """The agent itself: serves until it is interrupted, then ends its swarms."""

    def __init__(self, address: str, key: str = "") -> None:
        """Listens. `key`: empty for one that is drawn. Raises TidegateError."""
        host, port = parse_address(address)
        build()
        self.key = key or secrets.token_urlsafe(16)
        try:
            self._listener = socket.create_server((host, port), backlog=BACKLOG)
        except OSError as error:
            raise TidegateError(
                f"cannot listen at {address} ({error.strerror or error})",
                remedy="give an address of this machine and a free port",
                code="address",
            ) from error
        self._swarms: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def serve(self) -> None:
        """Give each conductor that knows the key its swarm. Returns only by KeyboardInterrupt."""
        while True:
            connection, _ = self._listener.accept()
            with connection:
                self._welcome(connection)

    def close(self) -> None:
        self._listener.close()
        for swarm in self._swarms:
            swarm.terminate()
        for swarm in self._swarms:
            swarm.wait()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            greeting = _read_greeting(connection, GREETING_TIMEOUT_S)
            refusal = self._refusal(greeting.get("key"), greeting.get("clients"))
            answer = {"error": refusal.as_map()} if refusal else {"agent": VERSION}
            connection.sendall(json.dumps(answer).encode() + b"\n")
            if refusal is None:
                # A swarm waits for what it reads and writes.
                connection.setblocking(True)
                self._swarms.append(spawn("tidegate-swarm", connection))
        except (OSError, ProtocolError):
            return  # Whoever that was, it is gone or no conductor.

    def _refusal(self, key: object, clients: object) -> TidegateError | None:
        self._swarms = [swarm for swarm in self._swarms if swarm.poll() is None]
        if not isinstance(key, str) or not isinstance(clients, int):
            raise ProtocolError("a conductor tells its key and how many clients it wants")
        # Surrogates: as JSON can spell them, and as bytes of a command line that are no UTF-8.
        shown, ours = (each.encode(errors="surrogatepass") for each in (key, self.key))
        if not hmac.compare_digest(shown, ours):
            return TidegateError(
                "the key is another one",
                remedy="give --agent-key (or TIDEGATE_LOAD_KEY) as the agent shows it",
                code="agent_key",
            )
        if len(self._swarms) >= SWARMS_MAX:
            return TidegateError(
                f"it has {SWARMS_MAX} swarms already",
                remedy="end other tests, or use more agents",
                code="agent_full",
            )
        if clients > clients_max():
            return TidegateError(
                f"its RLIMIT_NOFILE allows a swarm {clients_max():,} clients, not {clients:,}",
                remedy="raise the hard limit where the agent is started, or give more --processes",
                code="agent_limit",
            )
        return None


def _read_greeting(connection: socket.socket, timeout_s: float) -> dict[str, Any]:
    """One line, after which the other side waits for ours. Raises OSError, ProtocolError."""
    deadline = time.monotonic() + timeout_s
    text = b""
    while not text.endswith(b"\n"):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(remaining_s)
        chunk = connection.recv(GREETING_BYTES_MAX)
        text += chunk
        if not chunk or len(text) > GREETING_BYTES_MAX:
            raise ProtocolError("the other side does not greet as agents do")
    try:
        greeting = json.loads(text)
    except (ValueError, RecursionError):
        greeting = None
    if not isinstance(greeting, dict):
        raise ProtocolError("the other side does not greet as agents do")
    return greeting
