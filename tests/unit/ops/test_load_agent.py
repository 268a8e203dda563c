"""An agent and whoever comes to it: each ends alone, and is told why where it can be."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.errors import TidegateError
from ops.load import agent, crowd
from ops.load.agent import Agent, AgentServer, parse_address

KEY = "agents-of-this-test"


@pytest.fixture
def server() -> Iterator[AgentServer]:
    server = AgentServer("127.0.0.1:0", KEY)
    yield server
    server.close()


def answer(server: AgentServer, said: bytes) -> dict[str, Any]:
    """What the agent says to it; empty where it just hangs up."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with ours:
            server._welcome(ours)
        text = theirs.makefile().readline()
    return dict(json.loads(text)) if text else {}


@pytest.mark.parametrize(
    "said", [b"", b"\n", b"\xff\n", b"[" * 1000 + b"\n", b'{"key":[]}\n', b"x" * 1025]
)
def test_who_is_no_conductor_is_hung_up_on(server: AgentServer, said: bytes) -> None:
    assert answer(server, said) == {}


@pytest.mark.parametrize(
    ("key", "clients", "code"),
    [("x", 1, "agent_key"), ("\ud800", 1, "agent_key"), (KEY, 1 << 40, "agent_limit")],
)
def test_a_refusal_has_its_code(server: AgentServer, key: str, clients: int, code: str) -> None:
    said = json.dumps({"key": key, "clients": clients}).encode() + b"\n"
    assert answer(server, said)["error"]["code"] == code


def test_a_key_may_be_any_bytes_of_a_command_line(server: AgentServer) -> None:
    server.key = "\udcff"
    assert answer(server, b'{"key":"\\udcff","clients":1}\n') == {"agent": agent.VERSION}


class Dripping:
    """A socket that gives a byte each second, and the clock that shows it."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def settimeout(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def recv(self, size: int) -> bytes:
        self.now_s += min(1.0, self._timeout_s)
        if self._timeout_s < 1.0:
            raise TimeoutError
        return b"{"


def test_a_greeting_has_one_deadline(server: AgentServer, monkeypatch: pytest.MonkeyPatch) -> None:
    peer: Any = Dripping()
    monkeypatch.setattr(agent, "time", peer)
    server._welcome(peer)
    assert peer.now_s == agent.GREETING_TIMEOUT_S


def test_swarms_of_agents_are_not_sized_by_the_conductors_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert crowd._processes(54_000, agents=3) == 3
    assert crowd._processes(9_600, agents=0) == 10


@pytest.mark.parametrize("address", ["nowhere", "a..b:1", ":1", "a:65536", "a:-1"])
def test_what_is_no_address_is_told_so(address: str) -> None:
    with pytest.raises(TidegateError, match="is no address"):
        parse_address(address)
    with pytest.raises(TidegateError, match="is no address"):
        Agent(address, KEY)
