"""Connections that do nothing: what each costs its worker in memory.

Every run has a gateway of its own with one worker: an allocator keeps what it once had, so that a
second crowd on the same worker would look cheaper than it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.producer import Producer
from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import pss_bytes, settled, slab_bytes
from ops.load.programs import Swarm

CHANNEL = "public:idle"
RUN_S_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 18_000
    runs: int = 5


QUICK = Size(connections=2_000, runs=1)


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes per connection, but for `alone`."""

    alone: int
    """The worker's bytes without connections."""
    idle: float
    after_message: float
    """Idle again, after each has received one: what buffers leave behind."""
    kernel: float
    """Slab of both ends, for the clients are on this machine too, and of whatever else changed."""


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    shared: list[Cost] = []
    own: list[Cost] = []
    for number in range(size.runs):
        shared.append(_run_once(size, "all"))
        own.append(_run_once(size, "own"))
        say(
            f"run {number + 1}: {shared[-1].idle:.0f} bytes of the worker per connection on a "
            f"shared channel, {shared[-1].after_message:.0f} after a message, "
            f"{own[-1].idle:.0f} on a channel of its own, kernel {shared[-1].kernel:.0f}"
        )
    return _result(shared, own, size)


def _result(shared: list[Cost], own: list[Cost], size: Size) -> Result:
    return Result(
        benchmark="idle",
        parameters={"connections": size.connections, "workers": 1, "subscriptions": 1},
        measures=(
            Measure(
                f"Worker memory per idle WebSocket connection, at {size.connections:,}",
                "bytes",
                tuple(cost.idle for cost in shared),
                Goal("at most", 600),
            ),
            Measure(
                "— idle again, after each has received a message",
                "bytes",
                tuple(cost.after_message for cost in shared),
            ),
            Measure(
                "— each subscribed to a channel of its own",
                "bytes",
                tuple(cost.idle for cost in own),
            ),
            Measure(
                "— kernel slab, both ends of the connection",
                "bytes",
                tuple(cost.kernel for cost in shared),
            ),
            Measure(
                "Worker without connections", "MiB", tuple(cost.alone / 2**20 for cost in shared)
            ),
        ),
    )


def _run_once(size: Size, subscribe: str) -> Cost:
    with Subject(workers=1) as subject, Producer(subject.control_path) as producer:
        (worker,) = subject.worker_pids
        alone = settled(lambda: pss_bytes(worker))
        kernel_alone = slab_bytes()
        with Swarm(
            address=subject.address,
            connections=size.connections,
            run_s_max=RUN_S_MAX,
            channel=CHANNEL,
            subscribe=subscribe,
        ) as swarm:
            swarm.wait_ready()
            idle = settled(lambda: pss_bytes(worker))
            kernel_idle = slab_bytes()
            if subscribe == "all":
                swarm.announce()
                producer.publish(CHANNEL, b"{}")
                swarm.wait_delivered()
            after_message = settled(lambda: pss_bytes(worker))
            swarm.flawless_report()
    return Cost(
        alone=alone,
        idle=(idle - alone) / size.connections,
        after_message=(after_message - alone) / size.connections,
        kernel=(kernel_idle - kernel_alone) / size.connections,
    )
