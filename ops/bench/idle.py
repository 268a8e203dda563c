"""Connections that do nothing: what each costs its worker in memory, and all of them in CPU time.

Every run has a gateway of its own with one worker: an allocator keeps what it once had, so that a
second crowd on the same worker would look cheaper than it is. Pings and pongs are all that a larger
crowd on several workers has to do afterwards; a bare loop does the same.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds, own_bytes, settled, slab_bytes
from ops.load.crowd import Crowd
from ops.load.programs import Bare, Swarm

CHANNEL = "public:idle"
RUN_S_MAX = 600.0
PONG_SHARE = 0.32
"""Of the time between two pings, until a pong is due: of the default 25 s, the default 8 s."""
CONNECT_TIMEOUT_S = 300.0
QUEUE_SOFT_BYTES = 16_384
UNEVEN_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 18_000
    runs: int = 5
    resting: int = 100_000
    """Connections that are pinged."""
    resting_workers: int = 6
    ping_interval_s: float = 25.0
    """The gateway's default."""
    rest_s: float = 75.0
    """Three intervals."""
    settle_s: float = 5.0
    """From the last connect, or the bare loop's start, to the measurement."""


QUICK = Size(
    connections=2_000,
    runs=1,
    resting=1_000,
    resting_workers=2,
    ping_interval_s=2.0,
    rest_s=4.0,
    settle_s=1.0,
)


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


@dataclass(frozen=True, slots=True)
class Rest:
    """CPU time of connections that are pinged, as a share of one CPU."""

    gateway: float
    """All its processes."""
    workers: float
    without: float
    """All its processes, before anybody connected."""
    bare: float


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
    rest = _rest(size, say)
    return Result(
        benchmark="idle",
        parameters={
            "connections": size.connections,
            "workers": 1,
            "subscriptions": 1,
            "resting": size.resting,
            "resting_workers": size.resting_workers,
            "ping_interval_s": size.ping_interval_s,
        },
        measures=(*_memory(shared, own, size), *_cpu(rest, size)),
        note=(
            "Memory of a worker is what it alone has: not its view of tables that the instance "
            "reserves in full when it starts. On loopback, the CPU time of a send includes what "
            "the receiving end's network card would do elsewhere; the bare loop pays it too."
        ),
    )


def _memory(shared: Sequence[Cost], own: Sequence[Cost], size: Size) -> tuple[Measure, ...]:
    return (
        Measure(
            f"Worker memory per idle WebSocket connection, at {size.connections:,}",
            "bytes",
            tuple(cost.idle for cost in shared),
            Goal("at most", 350),
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
            Goal("at most", 600),
        ),
        Measure(
            "— kernel slab, both ends of the connection",
            "bytes",
            tuple(cost.kernel for cost in shared),
        ),
        Measure("Worker without connections", "MiB", tuple(cost.alone / 2**20 for cost in shared)),
    )


def _cpu(rest: Rest, size: Size) -> tuple[Measure, ...]:
    def share(what: str, part: float, goal: Goal | None = None) -> Measure:
        return Measure(what, "% of a CPU", (100 * part,), goal)

    return (
        share(
            f"CPU of {size.resting:,} connections on {size.resting_workers} workers, a ping each "
            f"{size.ping_interval_s:g} s",
            rest.gateway - rest.without,
            Goal("at most", 2),
        ),
        share("— a bare loop that pings as many", rest.bare),
        Measure("— against the bare loop", "x", ((rest.gateway - rest.without) / rest.bare,)),
        share("— workers alone", rest.workers),
        share("The gateway without connections", rest.without),
    )


def _run_once(size: Size, subscribe: str) -> Cost:
    with Subject(workers=1) as subject, Producer(subject.control_path) as producer:
        (worker,) = subject.worker_pids

        def memory() -> int:
            return own_bytes(worker, "-keep-")

        alone = settled(memory)
        kernel_alone = slab_bytes()
        with Swarm(
            address=subject.address,
            connections=size.connections,
            run_s_max=RUN_S_MAX,
            channel=CHANNEL,
            subscribe=subscribe,
        ) as swarm:
            swarm.wait_ready()
            idle = settled(memory)
            kernel_idle = slab_bytes()
            if subscribe == "all":
                swarm.announce()
                producer.publish(CHANNEL, b"{}")
                swarm.wait_delivered()
            after_message = settled(memory)
            swarm.flawless_report()
    return Cost(
        alone=alone,
        idle=(idle - alone) / size.connections,
        after_message=(after_message - alone) / size.connections,
        kernel=(kernel_idle - kernel_alone) / size.connections,
    )


def _rest(size: Size, say: Callable[[str], None]) -> Rest:
    """The gateway first, then the bare loop, each with the same crowd."""
    settings = {
        "websocket.ping_interval_s": size.ping_interval_s,
        "websocket.pong_timeout_s": size.ping_interval_s * PONG_SHARE,
        # Of one worker, which the kernel's hash may give some more than its share.
        "limits.connections_max": size.resting // size.resting_workers + UNEVEN_MAX,
        # So many queues might be full to here at one time, as far as the gateway knows.
        "limits.queue_soft_bytes": QUEUE_SOFT_BYTES,
    }
    with Subject(workers=size.resting_workers, settings=settings) as subject:
        pids, workers = subject.pids, subject.worker_pids
        pause = threading.Event()
        pause.wait(size.settle_s)
        without = _share(pids, size.rest_s / 3)
        with _crowd(subject.address, size):
            pause.wait(size.settle_s)
            before = cpu_seconds(workers)
            gateway = _share(pids, size.rest_s)
            of_workers = (cpu_seconds(workers) - before) / size.rest_s
    say(f"{size.resting:,} resting: gateway {gateway:.2%} of a CPU, without them {without:.2%}")
    with (
        contextlib.closing(Bare(processes=size.resting_workers, connections=size.resting)) as loop,
        _crowd(loop.address, size),
    ):
        loop.wait_ready()
        lasts_s = size.settle_s + size.rest_s + 1
        loop.begin_pings(interval_s=size.ping_interval_s, for_s=lasts_s)
        pause.wait(size.settle_s)
        bare = _share(loop.pids, size.rest_s)
        loop.wait_pinged(lasts_s)
    say(f"{size.resting:,} resting: bare loop {bare:.2%} of a CPU")
    return Rest(gateway, of_workers, without, bare)


@contextlib.contextmanager
def _crowd(address: str, size: Size) -> Iterator[None]:
    """A crowd that is connected; raises TidegateError if one of it was not until the end."""
    with Crowd(address=address, connections=size.resting, channel=CHANNEL) as crowd:
        crowd.wait_settled(CONNECT_TIMEOUT_S, lambda _: None)
        yield
        seen = crowd.seen()
        if seen.faults or seen.sums["connected"] != size.resting or not seen.sums["pings"]:
            raise TidegateError(
                f"of {size.resting:,} clients {seen.sums['connected']:,} are connected, after "
                f"{seen.sums['pings']:,} pings: {seen.faults}",
                code="bench",
            )


def _share(pids: Sequence[int], for_s: float) -> float:
    """CPU time that these processes take in the time that comes, as a share of one CPU."""
    before, began_s = cpu_seconds(pids), time.monotonic()
    threading.Event().wait(for_s)
    return (cpu_seconds(pids) - before) / (time.monotonic() - began_s)
