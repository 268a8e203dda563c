"""Messages to ten thousand WebSocket subscribers: what a delivery costs, against bare loops.

Four sides hold their connections from the beginning to the end: two gateways, of which one sends by
epoll and one by io_uring, and two bare loops, by `send()` and by io_uring. They take turns, again
and again: some messages one at a time, the next when all have the last, then some with several in
flight, which the bare loops send together. The gateways' CPU time is that of all their processes,
the bare loops' that of their senders. The yardstick is the bare `send()` loop, one at a time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import TidegateError
from gateway.host.kernel import Kernel
from gateway.producer import Producer
from ops.bench.result import Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.programs import Bare, LoopName, Swarm
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:fanout"
WORKERS = 2
IN_FLIGHT = 16
SINGLE_GOALS = (1.05, 0.75)
"""Of a gateway that sends by epoll, and by io_uring, against the bare `send()` loop."""
FLIGHT_GOAL = 0.1
"""Of either with IN_FLIGHT messages in flight, against the same with one."""
RUN_S_MAX = 1200.0
"""The swarms' own bound, should their conductor die without a word."""
OFFSET_DIGITS_SPREAD = 3
"""Bytes by which the frames of both sides may differ: offsets inside count on from elsewhere."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    messages: int = 40
    """Per side and round, one at a time."""
    rounds: int = 5
    bursts: int = 6
    """Per side and round, of IN_FLIGHT messages each."""


QUICK = Size(connections=500, messages=20, rounds=2, bursts=2)


@dataclass(slots=True)
class Side:
    """One of those that are compared: its subscribers, its processes, its costs per delivery."""

    name: str
    swarm: Swarm
    pids: list[int]
    publish: Callable[[int], None]
    """Sends so many messages, and returns before or after their delivery."""
    single_us: list[float] = field(default_factory=list)
    together_us: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Of the turns with one in flight."""

    def turn(self, rounds: int, *, in_flight: int = 1) -> float:
        """Microseconds of CPU per delivery over so many rounds of `in_flight` messages."""
        self.swarm.reset()
        before_s = cpu_seconds(self.pids)
        for _ in range(rounds):
            self.swarm.announce(in_flight)
            self.publish(in_flight)
            self.swarm.wait_delivered()
        spent_s = cpu_seconds(self.pids) - before_s
        report = self.swarm.flawless_report()
        if in_flight == 1:
            self.reports.append(report)
        return spent_s * 1e6 / (rounds * in_flight * self.swarm.connections)

    def frame_bytes(self) -> float:
        """Average bytes of a delivery in the last turn with one in flight."""
        report = self.reports[-1]
        return float(report["bytes_received"]) / int(report["deliveries"])


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    engines: tuple[str, ...] = ("epoll", "io_uring")
    loops: tuple[LoopName, ...] = ("send", "io_uring")
    if refused := Kernel().io_uring():
        say(f"no rows for io_uring: the kernel refuses it ({os.strerror(refused)})")
        engines, loops = engines[:1], loops[:1]
    with ExitStack() as running:
        subjects = [
            running.enter_context(Subject(workers=WORKERS, settings={"workers.engine": engine}))
            for engine in engines
        ]
        bares = [
            running.enter_context(
                Bare(processes=WORKERS, connections=size.connections, sends_by=loop)
            )
            for loop in loops
        ]
        gateways = [
            Side(
                f"gateway, {engine}",
                running.enter_context(_swarm(subject.address, size)),
                subject.pids,
                _publish(running.enter_context(Producer(subject.control_path))),
            )
            for engine, subject in zip(engines, subjects, strict=True)
        ]
        baselines = [
            Side(
                f"bare loop, {loop}",
                running.enter_context(_swarm(bare.address, size)),
                bare.pids,
                _send(bare),
            )
            for loop, bare in zip(loops, bares, strict=True)
        ]
        sides = [*gateways, *baselines]
        for side in sides:
            side.swarm.wait_ready()
        for bare in bares:
            bare.wait_ready()
        say(f"{size.connections:,} subscribers on each of {len(sides)} sides")
        _measure(sides, size, say)
    return _result(gateways, baselines, size)


def _swarm(address: str, size: Size) -> Swarm:
    return Swarm(
        address=address, connections=size.connections, run_s_max=RUN_S_MAX, channel=CHANNEL
    )


def _publish(producer: Producer) -> Callable[[int], None]:
    def publish(count: int) -> None:
        for _ in range(count):
            producer.publish(CHANNEL, payload())

    return publish


def _send(bare: Bare) -> Callable[[int], None]:
    offsets = itertools.count(1)

    def text() -> str:
        publication = f'"data":{payload().decode()},"offset":{next(offsets)}'
        return f'{{"channel":"{CHANNEL}","pub":{{{publication}}}}}'

    return lambda count: bare.send([text() for _ in range(count)])


def _measure(sides: list[Side], size: Size, say: Callable[[str], None]) -> None:
    """Fill in what each side costs."""
    for side in sides:
        side.turn(max(1, size.messages // 10))  # Caches and allocators warm up.
        side.reports.clear()
    for number in range(size.rounds):
        for side in sides:
            side.single_us.append(side.turn(size.messages))
        for side in sides:
            side.together_us.append(side.turn(size.bursts, in_flight=IN_FLIGHT))
        frames = [side.frame_bytes() for side in sides]
        if max(frames) - min(frames) > OFFSET_DIGITS_SPREAD:
            raise TidegateError(f"the sides sent different frames: {frames}", code="bench")
        costs = (
            f"{each.name} {each.single_us[-1]:.2f}/{each.together_us[-1]:.2f}" for each in sides
        )
        say(f"round {number + 1}: {'; '.join(costs)} µs CPU per delivery")


def _result(gateways: list[Side], baselines: list[Side], size: Size) -> Result:
    yardstick = baselines[0].single_us
    subscribers = f"{size.connections:,} WebSocket subscribers"

    def ratios(costs_us: list[float]) -> tuple[float, ...]:
        return tuple(ours / base for ours, base in zip(costs_us, yardstick, strict=True))

    measures = []
    for side, goal in zip(gateways, SINGLE_GOALS, strict=False):
        what = (
            f"Server CPU per delivery to {subscribers}, against a bare `send()` loop: {side.name}"
        )
        measures.append(Measure(what, "x", ratios(side.single_us), Goal("at most", goal)))
    for side in baselines[1:]:
        measures.append(Measure(f"— {side.name}", "x", ratios(side.single_us)))
    measures.append(Measure(f"— {baselines[0].name}", "µs", tuple(yardstick)))
    for side in gateways:
        what = f"— {IN_FLIGHT} messages in flight: {side.name}"
        measures.append(Measure(what, "x", ratios(side.together_us), Goal("at most", FLIGHT_GOAL)))
    for side in baselines:
        what = f"— {IN_FLIGHT} at once: {side.name}"
        measures.append(Measure(what, "x", ratios(side.together_us)))
    for side in (*gateways, baselines[0]):
        for percentile in ("p50", "p99"):
            latencies_ms = (each["latency_live"][f"{percentile}_us"] / 1e3 for each in side.reports)
            what = f"Publish to receipt, {percentile}: {side.name}"
            measures.append(Measure(what, "ms", tuple(latencies_ms)))
    return Result(
        benchmark="fanout",
        parameters={
            "connections": size.connections,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
            "frame_bytes": round(gateways[0].frame_bytes()),
            "messages_per_run": size.messages,
            "in_flight": IN_FLIGHT,
        },
        measures=tuple(measures),
    )
