"""One message to ten thousand WebSocket subscribers: what a delivery costs, against a bare loop.

Both sides hold their connections from the beginning to the end, and take turns: some messages
through the gateway, the same number out of the bare loop, again and again. The gateway's CPU time
is that of all its processes, the bare loop's that of its senders; both are read in the same way.
One message is in flight at a time: the next one is published when all have the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.programs import Bare, Swarm
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:fanout"
WORKERS = 2
RUN_S_MAX = 1200.0
"""The swarms' own bound, should their conductor die without a word."""
OFFSET_DIGITS_SPREAD = 3
"""Bytes by which the frames of both sides may differ: offsets inside count on from elsewhere."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    messages: int = 100
    """Per side and pair."""
    pairs: int = 5
    burst_messages: int = 32
    bursts: int = 4


QUICK = Size(connections=500, messages=20, pairs=2, bursts=2)


@dataclass(slots=True)
class Side:
    """One of the two that are compared: its subscribers, its processes, its costs per delivery."""

    swarm: Swarm
    pids: list[int]
    publish: Callable[[], None]
    """Sends one message, and returns before or after its delivery."""
    cost_us: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def turn(self, messages: int, *, in_flight: int = 1) -> float:
        """Microseconds of CPU per delivery over so many messages, `in_flight` at a time."""
        self.swarm.reset()
        before_s = cpu_seconds(self.pids)
        for _ in range(messages // in_flight):
            self.swarm.announce(in_flight)
            for _ in range(in_flight):
                self.publish()
            self.swarm.wait_delivered()
        spent_s = cpu_seconds(self.pids) - before_s
        self.reports.append(self.swarm.flawless_report())
        return spent_s * 1e6 / (messages * self.swarm.connections)

    def frame_bytes(self) -> float:
        """Average bytes of a delivery in the last turn."""
        report = self.reports[-1]
        return float(report["bytes_received"]) / int(report["deliveries"])


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    with (
        Subject(workers=WORKERS) as subject,
        Producer(subject.control_path) as producer,
        Bare(processes=WORKERS, connections=size.connections) as bare,
        _swarm(subject.address, size) as gateway_swarm,
        _swarm(bare.address, size) as bare_swarm,
    ):
        for waiting in (gateway_swarm, bare_swarm, bare):
            waiting.wait_ready()
        say(f"{size.connections:,} subscribers on either side")
        offset = 0

        def publish() -> None:
            producer.publish(CHANNEL, payload())

        def send() -> None:
            nonlocal offset
            offset += 1
            bare.send(
                f'{{"channel":"{CHANNEL}","pub":{{"data":{payload().decode()},"offset":{offset}}}}}'
            )

        gateway_side = Side(gateway_swarm, subject.pids, publish)
        bare_side = Side(bare_swarm, bare.pids, send)
        burst_us = _measure(gateway_side, bare_side, size, say)
    return _result(gateway_side, bare_side, burst_us, size)


def _swarm(address: str, size: Size) -> Swarm:
    return Swarm(
        address=address, connections=size.connections, run_s_max=RUN_S_MAX, channel=CHANNEL
    )


def _measure(gateway: Side, bare: Side, size: Size, say: Callable[[str], None]) -> list[float]:
    """Fill in both sides' costs; returns those of bursts through the gateway."""
    for side in (gateway, bare):
        side.turn(max(1, size.messages // 10))  # Caches and allocators warm up.
        side.reports.clear()
    burst_us = []
    for pair in range(size.pairs):
        gateway.cost_us.append(gateway.turn(size.messages))
        bare.cost_us.append(bare.turn(size.messages))
        if abs(gateway.frame_bytes() - bare.frame_bytes()) > OFFSET_DIGITS_SPREAD:
            raise TidegateError(
                f"the two sides sent different frames: {gateway.frame_bytes():.1f} "
                f"and {bare.frame_bytes():.1f} bytes a delivery",
                code="bench",
            )
        messages = size.burst_messages * size.bursts
        burst_us.append(gateway.turn(messages, in_flight=size.burst_messages))
        gateway.reports.pop()
        say(
            f"pair {pair + 1}: gateway {gateway.cost_us[-1]:.2f}, bare {bare.cost_us[-1]:.2f}, "
            f"gateway in bursts {burst_us[-1]:.2f} µs CPU per delivery"
        )
    return burst_us


def _result(gateway: Side, bare: Side, burst_us: list[float], size: Size) -> Result:
    ratios = [ours / base for ours, base in zip(gateway.cost_us, bare.cost_us, strict=True)]
    subscribers = f"{size.connections:,} WebSocket subscribers"

    def latency_ms(side: Side, percentile: str) -> tuple[float, ...]:
        return tuple(report["latency_live"][percentile] / 1e3 for report in side.reports)

    return Result(
        benchmark="fanout",
        parameters={
            "connections": size.connections,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
            "frame_bytes": round(gateway.frame_bytes()),
            "messages_per_run": size.messages,
            "burst_messages": size.burst_messages,
        },
        measures=(
            Measure(
                f"Server CPU per delivery to {subscribers}, against a bare `send()` loop",
                "x",
                tuple(ratios),
                Goal("at most", 1.3),
            ),
            Measure("— through the gateway, all its processes", "µs", tuple(gateway.cost_us)),
            Measure("— bare loop, same frames, same kind of sockets", "µs", tuple(bare.cost_us)),
            Measure(
                f"— through the gateway, {size.burst_messages} messages in flight",
                "µs",
                tuple(burst_us),
            ),
            Measure(
                f"Publish to receipt by {subscribers}, median", "ms", latency_ms(gateway, "p50_us")
            ),
            Measure("— bare loop", "ms", latency_ms(bare, "p50_us")),
            Measure("— gateway, 99th percentile", "ms", latency_ms(gateway, "p99_us")),
            Measure("— bare loop, 99th percentile", "ms", latency_ms(bare, "p99_us")),
        ),
    )
