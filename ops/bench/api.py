"""Publishing through the HTTP API: one message a request, and a hundred.

There are no subscribers: what is measured is the way into the log. The caller is one process on the
same machine, whose CPU is not counted, but has to come from somewhere. Beside Centrifugo, where
that is installed.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ops.bench import centrifugo
from ops.bench.caller import Caller
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:api"
WORKERS = 2
CONNECTIONS = 8
"""Of the caller: a request under way in each thread of a process of the API's default."""
BATCH = 100
"""Publishes of one request."""
KINDS = SINGLE, IN_TURN, PARALLEL = "single", "batch in turn", "parallel batch"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    requests: int = 4_000
    batches: int = 200
    runs: int = 5


QUICK = Size(requests=300, batches=20, runs=1)


@dataclass(frozen=True, slots=True)
class Round:
    """Many requests of one kind."""

    per_s: float
    cost_us: float
    """Of the gateway's CPU, for each request."""


@dataclass(slots=True)
class Server:
    """One that is published through."""

    name: str
    pids: list[int]
    caller: Caller
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    """By the kind of their requests."""


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    key = secrets.token_hex(16)
    program = centrifugo.find(say)
    with ExitStack() as stack:
        subject = stack.enter_context(Subject(workers=WORKERS, settings={"api.key": key}))
        caller = stack.enter_context(Caller(subject.api_address, key, CONNECTIONS))
        servers = [Server("gateway", subject.pids, caller)]
        if program:
            namespace = {"name": CHANNEL.partition(":")[0]}
            peer = stack.enter_context(centrifugo.centrifugo(program, namespace))
            caller = stack.enter_context(Caller(peer.address, peer.api_key, CONNECTIONS))
            servers.append(Server("Centrifugo", [peer.pid], caller))
        for server in servers:  # Threads and allocators warm up.
            _round(server, SINGLE, size.requests // 4)
        for number in range(size.runs):
            for server in servers:
                for kind in KINDS:
                    count = size.requests if kind == SINGLE else size.batches
                    server.rounds.setdefault(kind, []).append(_round(server, kind, count))
                shown = (
                    f"{kind}: {done[-1].per_s:,.0f} requests/s at {done[-1].cost_us:,.0f} µs CPU"
                    for kind, done in server.rounds.items()
                )
                say(f"run {number + 1}, {server.name}: {'; '.join(shown)}")
    gateway, *peers = servers
    return _result(gateway.rounds, peers, size)


def _request(caller: Caller, kind: str) -> bytes:
    publish = {"channel": CHANNEL, "data": json.loads(payload())}
    if kind == SINGLE:
        return caller.request("publish", _json(publish))
    batch = {"commands": [{"publish": publish}] * BATCH, "parallel": kind == PARALLEL}
    return caller.request("batch", _json(batch))


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def _round(server: Server, kind: str, count: int) -> Round:
    request = _request(server.caller, kind)
    before_s, began_s = cpu_seconds(server.pids), time.monotonic()
    server.caller.call(request, count)
    lasted_s, spent_s = time.monotonic() - began_s, cpu_seconds(server.pids) - before_s
    return Round(count / lasted_s, spent_s * 1e6 / count)


def _result(rounds: dict[str, list[Round]], peers: list[Server], size: Size) -> Result:
    single = rounds[SINGLE]
    return Result(
        benchmark="api",
        parameters={
            "requests": size.requests,
            "batches": size.batches,
            "publishes_per_batch": BATCH,
            "connections": CONNECTIONS,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
        },
        measures=(
            Measure(
                f"Publishes through the HTTP API, one a request, {CONNECTIONS} at a time over "
                "connections that are kept",
                "/s",
                tuple(each.per_s for each in single),
            ),
            Measure(
                "— CPU per request, all processes of the gateway",
                "µs",
                tuple(each.cost_us for each in single),
            ),
            *_batches("—", rounds[IN_TURN], "one after the other"),
            *_batches("—", rounds[PARALLEL], "`parallel`"),
            *chain(*map(_of_peer, peers)),
        ),
    )


def _batches(whose: str, done: list[Round], how: str) -> Iterator[Measure]:
    what = f"{whose} in batches of {BATCH}, {how}, publishes"
    yield Measure(what, "/s", tuple(each.per_s * BATCH for each in done))
    yield Measure("— CPU per publish", "µs", tuple(each.cost_us / BATCH for each in done))


def _of_peer(peer: Server) -> Iterator[Measure]:
    single = peer.rounds[SINGLE]
    yield Measure(f"— {peer.name}, one a request", "/s", tuple(each.per_s for each in single))
    yield Measure("— CPU per request", "µs", tuple(each.cost_us for each in single))
    yield from _batches(f"— {peer.name},", peer.rounds[IN_TURN], "one after the other")
    yield from _batches(f"— {peer.name},", peer.rounds[PARALLEL], "`parallel`")
