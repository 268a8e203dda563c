"""The figures of the million: how much is asked for, what is found, and how it is told."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.config.checks import DESCRIPTORS_RESERVED
from ops.bench.result import Goal, Measure, Result
from ops.load.stream import PAYLOAD_BYTES

OWN_EVERY = 10
"""Of so many clients one has a channel of its own."""
FILLING = 0.945
"""Of a worker's room, on average: the kernel spreads by a hash, and the fullest has 3 % more."""
SPARE = 256
"""Connections of a worker, for crowds so small that they spread less evenly."""
TOTAL_S = 900


def _room_max() -> int:
    """Connections of one worker, as the descriptor limit has it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard - DESCRIPTORS_RESERVED


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 1_000_000
    workers: int = 0
    """0: as many as the descriptor limit asks for."""
    ping_interval_s: float = 60.0
    """With the default of 25 s pings and their answers alone take 1.4 CPUs of both sides."""
    hold_s: float = 120.0
    """Connections rest for so long."""
    broadcasts: int = 5
    rest_s: float = 15.0
    """Between two of them, for heartbeats that had to wait: some 17,000 became due each second."""
    unicasts_per_s: float = 1_000.0
    reload_unicasts_per_s: float = 20.0

    @property
    def worker_count(self) -> int:
        return self.workers or -(-self.connections // int(_room_max() * FILLING))

    @property
    def worker_connections(self) -> int:
        """Room of one worker, which memory is planned by."""
        return min(_room_max(), int(self.connections / self.worker_count / FILLING) + SPARE)

    @property
    def unicasts(self) -> int:
        return -(-self.connections // OWN_EVERY)


QUICK = Size(connections=2_000, workers=3, hold_s=1.0, broadcasts=2, rest_s=0.1, unicasts_per_s=500)


@dataclass(slots=True)
class Found:
    """Everything that was measured, in the order of its measuring. Bytes, seconds, microseconds."""

    began_s: float = field(default_factory=time.monotonic)
    worker_alone_bytes: list[int] = field(default_factory=list)
    start_s: float = 0.0
    connect_s: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    slab: float = 0.0
    """Of both ends of a connection; the next three likewise for each connection."""
    buffers: float = 0.0
    worker: float = 0.0
    client: float = 0.0
    fullest: int = 0
    """Connections of the fullest worker."""
    idle_gateway: float = 0.0
    """CPUs that the gateway's processes took on average, and those of the clients."""
    idle_clients: float = 0.0
    idle_others: float = 0.0
    """CPUs that were busy beside the gateway and the clients: other programs, and the kernel."""
    pings: int = 0
    broadcasts: list[dict[str, float | int | None]] = field(default_factory=list)
    unicast: dict[str, float | int | None] = field(default_factory=dict)
    unicasts_per_s: float = 0.0
    reload_s: float = 0.0
    slots: list[dict[str, Any]] = field(default_factory=list)
    reload_latency: dict[str, float | int | None] = field(default_factory=dict)
    total_s: float = 0.0


def milliseconds(latency: dict[str, float | int | None], part: str) -> str:
    """Of a percentile, for a person."""
    return f"{latency_ms(latency, part):,.0f} ms"


def result(found: Found, size: Size) -> Result:
    return Result(
        benchmark="million",
        parameters={
            "connections": size.connections,
            "workers": size.worker_count,
            "payload_bytes": PAYLOAD_BYTES,
            "ping_interval_s": size.ping_interval_s,
            "hold_s": size.hold_s,
            "pings": found.pings,
            "unicasts": size.unicasts,
            "failed_attempts": sum(found.failures.values()),
        },
        measures=(
            *_costs(found, size),
            *_deliveries(found, size),
            *_reload(found),
            _one("— all of it", "s", found.total_s, Goal("at most", TOTAL_S)),
        ),
        note=(
            f"Gateway and clients share {os.cpu_count()} CPUs. Other programs and the kernel's "
            f"own work took {found.idle_others:.2f} CPUs while connections rested."
        ),
    )


def _costs(found: Found, size: Size) -> Iterator[Measure]:
    what = f"{size.connections:,} WebSocket connections: time to connect"
    yield _one(what, "s", found.connect_s)
    yield _one("— connections a second", "/s", size.connections / found.connect_s)
    yield _one("— of the fullest worker", "", found.fullest)
    yield _one(
        f"— each of {size.worker_count} workers before, at most",
        "MB",
        max(found.worker_alone_bytes) / 1e6,
        Goal("at most", 12),
    )
    yield _one("— worker memory per connection", "bytes", found.worker)
    yield _one("— client memory per connection", "bytes", found.client)
    yield _one("— kernel slab, both ends of a connection", "bytes", found.slab)
    yield _one("— kernel TCP buffers, both ends", "bytes", found.buffers)
    resting = f"— resting with a ping each {size.ping_interval_s:g} s: gateway"
    yield _one(resting, "% of a CPU", 100 * found.idle_gateway)
    yield _one("— its clients meanwhile", "% of a CPU", 100 * found.idle_clients)


def _deliveries(found: Found, size: Size) -> Iterator[Measure]:
    for what, part in (
        ("— a broadcast: until the first client has it", "min"),
        ("— until half of them", "p50"),
        ("— until the last", "max"),
    ):
        yield Measure(what, "ms", tuple(latency_ms(each, part) for each in found.broadcasts))
    what = f"— {size.unicasts:,} unicasts: publish to receipt, median"
    yield _one(what, "ms", latency_ms(found.unicast, "p50"))
    yield _one("— 99th percentile", "ms", latency_ms(found.unicast, "p99"))
    yield _one("— sent at", "/s", found.unicasts_per_s)


def _reload(found: Found) -> Iterator[Measure]:
    slots = found.slots
    dropped = sum(slot["closed"] + slot["lost"] + slot["kept"] for slot in slots)
    worst_us = max(slot["pause_us"]["max"] for slot in slots)
    median_us = statistics.median(slot["pause_us"]["p50"] for slot in slots)
    worst_latency_ms = latency_ms(found.reload_latency, "max")
    yield _one("— rolling reload of everything", "s", found.reload_s)
    yield _one("— connections moved", "", sum(slot["moved"] for slot in slots))
    yield _one("— connections dropped, messages lost", "", dropped, Goal("at most", 0))
    yield _one("— pause of a connection, median", "ms", median_us / 1e3)
    yield _one("— pause of a connection, worst", "ms", worst_us / 1e3)
    yield _one("— publish to receipt meanwhile, worst", "ms", worst_latency_ms)


def _one(what: str, unit: str, value: float, goal: Goal | None = None) -> Measure:
    return Measure(what, unit, (float(value),), goal)


def latency_ms(latency: dict[str, float | int | None], part: str) -> float:
    return (latency[part] or 0) / 1e3
