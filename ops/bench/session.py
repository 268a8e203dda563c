"""What it costs a server to let an SDK's client in, with a token and without.

Both are the same but for that: upgrade, connect and one subscription that can be recovered, as the
SDKs say it. Each client has a token of its own (HS256), which is checked. Beside Centrifugo, where
that is installed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ops.bench import centrifugo
from ops.bench.connect import CHANNEL, Crossing, let_in
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject

NAMESPACE = CHANNEL.partition(":")[0]
WORKERS = 2
TOKEN_EXPIRES_S = 3600


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    pairs: int = 5


QUICK = Size(connections=2_000, pairs=1)


@dataclass(slots=True)
class Server:
    """One that lets clients in."""

    name: str
    address: str
    pids: list[int]
    shown: list[Crossing] = field(default_factory=list)
    """Of clients with a token."""
    bare: list[Crossing] = field(default_factory=list)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    secret = secrets.token_hex(32)
    settings = {"client.allow_anonymous": "true", "tokens.hmac_secret": secret}
    claims = {"exp": int(time.time()) + TOKEN_EXPIRES_S}
    tokens = {"secret": secret, "user_claim": "sub", "claims": claims}
    program = centrifugo.find(say)
    with ExitStack() as stack:
        subject = stack.enter_context(Subject(workers=WORKERS, settings=settings))
        servers = [Server("gateway", subject.address, subject.pids)]
        if program:
            peer = stack.enter_context(
                centrifugo.centrifugo(program, {"name": NAMESPACE}, token_hmac_secret_key=secret)
            )
            servers.append(Server("Centrifugo", peer.address, [peer.pid]))
        for server in servers:  # Caches and allocators warm up.
            _let_in(server, size, tokens=tokens)
        for pair in range(size.pairs):
            for server in servers:
                server.shown.append(_let_in(server, size, tokens=tokens))
                server.bare.append(_let_in(server, size))
            costs = (f"{it.name} {it.shown[-1].cost_us:.1f}" for it in servers)
            without = (f"{it.bare[-1].cost_us:.1f}" for it in servers)
            say(
                f"pair {pair + 1}: {', '.join(costs)} µs CPU per client with a token, "
                f"{', '.join(without)} without"
            )
    return Result(
        benchmark="session",
        parameters={"connections": size.connections, "workers": WORKERS, "subscriptions": 1},
        measures=(*_of_gateway(servers[0], size), *chain(*map(_of_peer, servers[1:]))),
    )


def _let_in(server: Server, size: Size, **plan: Any) -> Crossing:
    return let_in(server.address, server.pids, size.connections, transport="centrifuge", **plan)


def _of_gateway(gateway: Server, size: Size) -> Iterator[Measure]:
    shown, bare = gateway.shown, gateway.bare
    yield Measure(
        f"{size.connections:,} SDK clients connect and subscribe (JSON), a token each: "
        "CPU per client, all processes of the gateway",
        "µs",
        tuple(each.cost_us for each in shown),
    )
    yield Measure("— without tokens", "µs", tuple(each.cost_us for each in bare))
    ratios = (one.cost_us / other.cost_us for one, other in zip(shown, bare, strict=True))
    yield Measure("— with tokens, against without", "x", tuple(ratios))
    yield Measure("— clients a second, with tokens", "/s", tuple(each.per_s for each in shown))
    yield Measure("— without", "/s", tuple(each.per_s for each in bare))


def _of_peer(peer: Server) -> Iterator[Measure]:
    costs = tuple(each.cost_us for each in peer.shown)
    yield Measure(f"— {peer.name}, with tokens: CPU per client", "µs", costs)
    costs = tuple(each.cost_us for each in peer.bare)
    yield Measure(f"— {peer.name}, without: CPU per client", "µs", costs)
    rates = tuple(each.per_s for each in peer.shown)
    yield Measure(f"— {peer.name}, with tokens: clients a second", "/s", rates)
