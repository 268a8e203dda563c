"""What it costs a server to let a client in: TCP accept, upgrade, one subscription.

The bare loop accepts, reads the request and answers; it parses nothing and subscribes nobody.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.programs import Bare, Swarm

CHANNEL = "public:connect"
WORKERS = 2
RUN_S_MAX = 300.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    pairs: int = 5


QUICK = Size(connections=2_000, pairs=1)


@dataclass(frozen=True, slots=True)
class Crossing:
    """One crowd let in."""

    cost_us: float
    """Of the server's CPU, for each connection."""
    per_s: float


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    gateway: list[Crossing] = []
    bare: list[Crossing] = []
    with Subject(workers=WORKERS) as subject:
        let_in(subject.address, subject.pids, size.connections)  # Caches and allocators warm up.
        for pair in range(size.pairs):
            gateway.append(let_in(subject.address, subject.pids, size.connections))
            with contextlib.closing(Bare(processes=WORKERS, connections=size.connections)) as loop:
                bare.append(let_in(loop.address, loop.pids, size.connections))
            say(
                f"pair {pair + 1}: gateway {gateway[-1].cost_us:.1f}, bare "
                f"{bare[-1].cost_us:.1f} µs CPU per connection"
            )
    ratios = tuple(ours.cost_us / base.cost_us for ours, base in zip(gateway, bare, strict=True))
    return Result(
        benchmark="connect",
        parameters={"connections": size.connections, "workers": WORKERS, "subscriptions": 1},
        measures=(
            Measure(
                "Server CPU per connect with handshake and one subscription, against a bare loop",
                "x",
                ratios,
                Goal("at most", 1.3),
            ),
            Measure("— gateway, all its processes", "µs", tuple(each.cost_us for each in gateway)),
            Measure("— bare loop", "µs", tuple(each.cost_us for each in bare)),
            Measure("— gateway, connections a second", "/s", tuple(each.per_s for each in gateway)),
            Measure("— bare loop", "/s", tuple(each.per_s for each in bare)),
        ),
    )


def let_in(address: str, pids: list[int], connections: int, **plan: Any) -> Crossing:
    """What it took to get so many clients connected and subscribed; `plan` as swarms take it."""
    before_s, began_s = cpu_seconds(pids), time.monotonic()
    with Swarm(
        address=address, connections=connections, run_s_max=RUN_S_MAX, channel=CHANNEL, **plan
    ) as swarm:
        swarm.wait_ready()
        spent_s, lasted_s = cpu_seconds(pids) - before_s, time.monotonic() - began_s
    return Crossing(spent_s * 1e6 / connections, connections / lasted_s)
