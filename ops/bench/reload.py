"""Reloads under load: what clients see when the process behind their connection is replaced.

Every client is subscribed to one of ten channels, to which messages come all the while. The pause
of a connection is the worker's own measure, from the last moment that the predecessor would have
served it to the first that the successor would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from gateway.control.client import ControlClient
from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import shared_memory_bytes
from ops.load.programs import Swarm
from ops.load.stream import Stream, payload

CHANNEL = "public:reload"
CHANNELS = 10
CHANNEL_NAMES = tuple(f"{CHANNEL}-{number}" for number in range(CHANNELS))
RUN_S_MAX = 900.0
LEAD_S = 1.0
"""Messages flow for so long before a reload and after it."""
RELOAD_TIMEOUT_S = 120.0
NEWCOMERS_PER_S = 500.0
NEWCOMERS_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 18_000
    runs: int = 5
    messages_per_s: int = 200
    """Each goes to a tenth of the clients."""
    row_connections: int = 10_000
    row_reloads: int = 10
    row_messages_per_s: int = 20
    newcomers: int = 5_000


QUICK = Size(connections=1_000, runs=1, row_connections=500, row_reloads=3, newcomers=1_000)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reload was like."""

    slot: dict[str, Any]
    """The gateway's account of its one slot."""
    report: dict[str, Any]
    """The clients' account."""
    published_per_s: float


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    seen = _reloads(size, say)
    row = _row_of_reloads(size, say)
    reloads = _reloads_while_clients_come(size, say)
    return _result(seen, row, reloads, size)


def _reloads(size: Size, say: Callable[[str], None]) -> list[Seen]:
    seen = []
    with _stage(size.connections) as stage:
        for number in range(size.runs):
            seen.append(stage.reload(size.messages_per_s))
            slot, latency = seen[-1].slot, seen[-1].report["latency_live"]
            say(
                f"reload {number + 1}: {slot['moved']:,} moved at "
                f"{seen[-1].published_per_s:.0f} messages/s, pause median "
                f"{slot['pause_us']['p50'] / 1e3:.1f} ms, worst {slot['pause_us']['max'] / 1e3:.1f}"
                f" ms; publish to receipt p50 {latency['p50_us'] / 1e3:.1f}, worst "
                f"{latency['max_us'] / 1e3:.0f} ms"
            )
    return seen


def _row_of_reloads(size: Size, say: Callable[[str], None]) -> dict[str, int]:
    """What the supervisor holds after a row of reloads beyond what it held after the first."""
    with _stage(size.row_connections) as stage:
        stage.reload(size.row_messages_per_s)
        before = stage.footprint()
        for _ in range(size.row_reloads):
            stage.reload(size.row_messages_per_s)
        grown = {key: value - before[key] for key, value in stage.footprint().items()}
    say(f"{size.row_reloads} reloads in a row at {size.row_connections:,} clients: {grown}")
    return grown


def _reloads_while_clients_come(size: Size, say: Callable[[str], None]) -> int:
    """How many there were, one after the other. Raises TidegateError if one client was not let in
    at its first attempt."""
    reloads = 0
    with (
        Subject(workers=NEWCOMERS_WORKERS) as subject,
        Swarm(
            address=subject.address,
            connections=size.newcomers,
            connects_per_s=NEWCOMERS_PER_S,
            run_s_max=RUN_S_MAX,
            channel=CHANNEL,
        ) as swarm,
        ThreadPoolExecutor(1) as pool,
    ):
        all_in = pool.submit(swarm.wait_ready)
        while not all_in.done():
            with ControlClient(subject.control_path, timeout_s=RELOAD_TIMEOUT_S) as control:
                control.call("reload")
            reloads += 1
        all_in.result()
        swarm.flawless_report()
    say(f"{size.newcomers:,} clients came at {NEWCOMERS_PER_S:g} a second over {reloads} reloads")
    return reloads


@contextmanager
def _stage(connections: int) -> Iterator[_Stage]:
    """A gateway with one worker, and its crowd."""
    with (
        Subject(workers=1) as subject,
        Producer(subject.control_path) as producer,
        Swarm(
            address=subject.address,
            connections=connections,
            run_s_max=RUN_S_MAX,
            channel=CHANNEL,
            subscribe={"shard": CHANNELS},
        ) as swarm,
    ):
        swarm.wait_ready()
        yield _Stage(subject, producer, swarm)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where reloads are watched."""

    subject: Subject
    producer: Producer
    swarm: Swarm

    def reload(self, messages_per_s: int) -> Seen:
        """One reload in the middle of a stream. Raises TidegateError if any client noticed."""
        self.swarm.reset()
        pause = threading.Event()
        with Stream(self.publish, CHANNEL_NAMES, messages_per_s, whole_rounds=True) as stream:
            pause.wait(LEAD_S)
            with ControlClient(self.subject.control_path, timeout_s=RELOAD_TIMEOUT_S) as control:
                (slot,) = control.call("reload")["slots"]
            pause.wait(LEAD_S)
        self.swarm.announce_deliveries(stream.published * self.swarm.connections // CHANNELS)
        self.swarm.wait_delivered()
        if slot["moved"] != self.swarm.connections:
            raise TidegateError(f"not every connection was moved: {slot}", code="bench")
        return Seen(slot, self.swarm.flawless_report(), stream.published / stream.lasted_s)

    def publish(self, channel: str) -> None:
        self.producer.publish(channel, payload())

    def footprint(self) -> dict[str, int]:
        """Of the supervisor: descriptors and bytes; of the instance: bytes of shared memory."""
        supervisor = psutil.Process(self.subject.pid)
        return {
            "descriptors": supervisor.num_fds(),
            "memory_bytes": supervisor.memory_info().rss,
            "shared_bytes": shared_memory_bytes(self.subject.name),
        }


def _result(seen: list[Seen], grown: dict[str, int], reloads: int, size: Size) -> Result:
    crowd = f"{size.connections:,} WebSocket subscribers of one worker"

    def pause_ms(part: str) -> tuple[float, ...]:
        return tuple(each.slot["pause_us"][part] / 1e3 for each in seen)

    def latency_ms(part: str) -> tuple[float, ...]:
        return tuple(each.report["latency_live"][part] / 1e3 for each in seen)

    nobody = Goal("at most", 0)
    row = f"{size.row_reloads} reloads in a row at {size.row_connections:,} clients: supervisor's"
    return Result(
        benchmark="reload",
        parameters={
            "connections": size.connections,
            "messages_per_s": size.messages_per_s,
            "deliveries_per_message": size.connections // CHANNELS,
            "row_connections": size.row_connections,
            "row_reloads": size.row_reloads,
        },
        measures=(
            # flawless_report has raised an error otherwise.
            Measure(
                f"Reload with {crowd}: closed, lost or repeated", "", (0.0,) * len(seen), nobody
            ),
            Measure("— pause of a connection, median", "ms", pause_ms("p50"), Goal("at most", 50)),
            Measure("— pause of a connection, worst", "ms", pause_ms("max"), Goal("at most", 150)),
            Measure(
                "— messages published meanwhile, each to a tenth",
                "/s",
                tuple(each.published_per_s for each in seen),
            ),
            Measure("— publish to receipt, median", "ms", latency_ms("p50_us")),
            Measure("— publish to receipt, worst", "ms", latency_ms("max_us")),
            Measure(f"{row} descriptors gained", "", (float(grown["descriptors"]),), nobody),
            Measure("— its memory gained", "KiB", (grown["memory_bytes"] / 1024,)),
            Measure("— shared memory gained", "bytes", (float(grown["shared_bytes"]),), nobody),
            # As above.
            Measure(
                f"{size.newcomers:,} clients that come at {NEWCOMERS_PER_S:g} a second while "
                f"{NEWCOMERS_WORKERS} workers are reloaded over and over: refused or reset",
                "",
                (0.0,),
                nobody,
            ),
            Measure("— reloads meanwhile", "", (float(reloads),)),
        ),
    )
