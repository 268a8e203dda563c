"""Messages for one client each: how long they take, at a steady rate through shared memory.

Every client of the gateway has a channel of its own. The bare loop's senders are fed by a pipe, and
send each message to their next client. One loop in this process publishes to the one and writes to
the other, so that its own delays, which sleeping at 20,000 a second has, are both sides'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.producer import Producer
from ops.bench.result import Curve, Goal, Measure, Result
from ops.bench.subject import Subject
from ops.load.latencies import Latencies
from ops.load.programs import Bare, Swarm
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:unicast"
WORKERS = 2
RUN_S_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    messages_per_s: int = 20_000
    messages: int = 100_000
    pairs: int = 5


QUICK = Size(connections=200, messages_per_s=1_000, messages=400, pairs=1)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared."""

    swarm: Swarm
    send: Callable[[], float]
    """Sends all messages, and returns how many a second it were."""

    def turn(self, size: Size) -> tuple[Latencies, float]:
        self.swarm.reset()
        self.swarm.announce_deliveries(size.messages)
        per_s = self.send()
        self.swarm.wait_delivered()
        report: dict[str, Any] = self.swarm.flawless_report()
        return Latencies([report["latency_live"]]), per_s


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    with (
        Subject(workers=WORKERS) as subject,
        Producer(subject.control_path) as producer,
        Bare(processes=WORKERS, connections=size.connections, fed=True) as bare,
        _swarm(subject.address, size, "own") as gateway_swarm,
        _swarm(bare.address, size, "all") as bare_swarm,
    ):

        def publish(number: int, data: bytes) -> None:
            producer.publish_nowait(f"{CHANNEL}-{number % size.connections}", data)

        def feed(number: int, data: bytes) -> None:
            bare.feed(number, _push(data))

        for waiting in (gateway_swarm, bare_swarm, bare):
            waiting.wait_ready()
        sides = (
            Side(gateway_swarm, lambda: _send(size, publish)),
            Side(bare_swarm, lambda: _send(size, feed)),
        )
        turns: list[list[tuple[Latencies, float]]] = []
        for pair in range(size.pairs):
            turns.append([side.turn(size) for side in sides])
            p99_ms = [(each.percentile_us(99) or 0.0) / 1e3 for each, _ in turns[-1]]
            say(f"pair {pair + 1}: p99 gateway {p99_ms[0]:.2f}, bare {p99_ms[1]:.2f} ms")
    return _result(turns, size)


def _swarm(address: str, size: Size, subscribe: str) -> Swarm:
    return Swarm(
        address=address,
        connections=size.connections,
        run_s_max=RUN_S_MAX,
        channel=CHANNEL,
        subscribe=subscribe,
    )


def _send(size: Size, send: Callable[[int, bytes], object]) -> float:
    """Calls `send` with each number and its payload when it is due; returns how many a second."""
    pause = threading.Event()
    began_s = time.monotonic()
    for number in range(size.messages):
        ahead_s = began_s + number / size.messages_per_s - time.monotonic()
        if ahead_s > 0:
            pause.wait(ahead_s)
        send(number, payload())
    return size.messages / (time.monotonic() - began_s)


def _push(data: bytes) -> bytes:
    """What the gateway makes of a publication, of a channel without history: nobody counts what a
    connection of the bare loop was sent."""
    return b'{"channel":"%b","pub":{"data":%b},"offset":0}' % (CHANNEL.encode(), data)


def _result(turns: list[list[tuple[Latencies, float]]], size: Size) -> Result:
    def ms(side: int, percent: float) -> tuple[float, ...]:
        return tuple((turn[side][0].percentile_us(percent) or 0.0) / 1e3 for turn in turns)

    ours, base = ms(0, 99), ms(1, 99)
    rate = f"{size.messages_per_s:,} messages/s to {size.connections:,} clients one by one"
    return Result(
        benchmark="unicast",
        parameters={
            "connections": size.connections,
            "messages_per_s": size.messages_per_s,
            "messages": size.messages,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
        },
        measures=(
            Measure(
                f"{rate}: 99th percentile of publish to receipt, against a bare loop fed by a pipe",
                "x",
                tuple(our / other for our, other in zip(ours, base, strict=True)),
                Goal("at most", 1.5),
            ),
            Measure("— gateway, 99th percentile", "ms", ours),
            Measure("— bare loop, 99th percentile", "ms", base),
            Measure("— gateway, median", "ms", ms(0, 50)),
            Measure("— bare loop, median", "ms", ms(1, 50)),
            Measure("— gateway, sent at", "/s", tuple(turn[0][1] for turn in turns)),
            Measure("— bare loop, sent at", "/s", tuple(turn[1][1] for turn in turns)),
        ),
        curves=(
            Curve.of("gateway", [turn[0][0] for turn in turns]),
            Curve.of("bare loop", [turn[1][0] for turn in turns]),
        ),
    )
