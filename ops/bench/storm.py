"""Everybody is cut off, misses some messages, and comes back at once: how soon all are up to date.

The clients say what the SDKs say, and share channels with a history. What each was given is
checked: a gap, a repeat or a subscription that could not be recovered fails the benchmark. Beside
Centrifugo, where that is installed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench import centrifugo
from ops.bench.result import Curve, Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.latencies import Latencies
from ops.load.programs import Swarm
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "storm:channel"
NAMESPACE: dict[str, Any] = {
    "name": "storm",
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "history_size": 100,
    "history_ttl_s": 600.0,
}
WORKERS = 2
RUN_S_MAX = 600.0
NOTICE_TIMEOUT_S = 30.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    channels: int = 200
    missed: int = 10
    """Messages of each channel."""
    runs: int = 5


QUICK = Size(connections=1_000, channels=20, runs=1)


@dataclass(frozen=True, slots=True)
class Return:
    """One storm."""

    whole_s: float
    """From the word to come back until the last client has the last message."""
    each: Latencies
    """From a client's connect() until it has all that it missed."""
    cost_us: float
    """Of the gateway's CPU, per client."""


@dataclass(slots=True)
class Server:
    """One that all its clients come back to."""

    name: str
    address: str
    pids: list[int]
    connections: Callable[[], int]
    publish: Callable[[str, list[bytes]], object]
    """To a channel; returns when all are in its history."""
    swarm: Swarm
    returns: list[Return] = field(default_factory=list)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    program = centrifugo.find(say)
    with ExitStack() as stack:
        servers = [_gateway(stack, size)]
        if program:
            servers.append(_centrifugo(stack, program, size))
        for server in servers:
            server.swarm.wait_ready()
        for number in range(size.runs):
            for server in servers:
                this = _storm(server, size)
                server.returns.append(this)
                say(
                    f"storm {number + 1}, {server.name}: all up to date after {this.whole_s:.2f} "
                    f"s, a client after {_ms(this, 50):.0f} ms (p99 {_ms(this, 99):.0f}), "
                    f"{this.cost_us:.0f} µs CPU each"
                )
    return _result(servers, size)


def _gateway(stack: ExitStack, size: Size) -> Server:
    settings = {
        "client.allow_anonymous": "true",
        "channel.namespaces": json.dumps([NAMESPACE]),
    }
    subject = stack.enter_context(Subject(workers=WORKERS, settings=settings))
    producer = stack.enter_context(Producer(subject.control_path))

    def publish(channel: str, messages: list[bytes]) -> None:
        for answer in [producer.begin(channel, each) for each in messages]:
            answer.result()

    return Server(
        "gateway",
        subject.address,
        subject.pids,
        lambda: sum(subject.connections()),
        publish,
        stack.enter_context(_swarm(subject.address, size)),
    )


def _centrifugo(stack: ExitStack, program: str, size: Size) -> Server:
    peer = stack.enter_context(centrifugo.centrifugo(program, {"name": NAMESPACE["name"]}))
    return Server(
        "Centrifugo",
        peer.address,
        [peer.pid],
        peer.connections,
        peer.publish,
        stack.enter_context(_swarm(peer.address, size)),
    )


def _swarm(address: str, size: Size) -> Swarm:
    return Swarm(
        address=address,
        connections=size.connections,
        run_s_max=RUN_S_MAX,
        transport="centrifuge",
        channel=CHANNEL,
        subscribe={"shard": size.channels},
        # At once: no more than the backlogs of the workers hold, all the same.
        handshakes_max=size.connections,
    )


def _storm(server: Server, size: Size) -> Return:
    swarm = server.swarm
    # What is told may be seconds old: of nobody only after it was of everybody.
    _wait_until_there_are(server, size.connections)
    swarm.drop_off()
    _wait_until_there_are(server, 0)
    for number in range(size.channels):
        server.publish(f"{CHANNEL}-{number}", [payload(each) for each in range(size.missed)])
    swarm.reset()
    missed = size.missed * size.connections
    swarm.announce_deliveries(missed)
    before_s, began_s = cpu_seconds(server.pids), time.monotonic()
    swarm.come_back()
    swarm.wait_delivered()
    whole_s, spent_s = time.monotonic() - began_s, cpu_seconds(server.pids) - before_s
    report = swarm.flawless_report()
    if report["recovered"] != missed or report["reconnects"] != size.connections:
        raise TidegateError(
            f"{server.name}: {report['recovered']:,} messages recovered by "
            f"{report['reconnects']:,} clients instead of {missed:,} by {size.connections:,}",
            code="bench",
        )
    return Return(
        whole_s, Latencies([report["latency_returned"]]), spent_s * 1e6 / size.connections
    )


def _wait_until_there_are(server: Server, connections: int) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + NOTICE_TIMEOUT_S
    while (told := server.connections()) != connections:
        if time.monotonic() > deadline:
            raise TidegateError(
                f"{server.name} tells of {told:,} clients instead of {connections:,}", code="bench"
            )
        pause.wait(POLL_S)


def _ms(storm: Return, percent: float) -> float:
    return (storm.each.percentile_us(percent) or 0.0) / 1e3


def _result(servers: list[Server], size: Size) -> Result:
    gateway, *peers = servers
    returns = gateway.returns
    return Result(
        benchmark="storm",
        parameters={
            "connections": size.connections,
            "channels": size.channels,
            "missed_messages": size.missed,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
        },
        measures=(
            Measure(
                f"{size.connections:,} SDK clients come back at once, {size.missed} missed "
                "messages each: until all are up to date",
                "s",
                tuple(each.whole_s for each in returns),
            ),
            Measure(
                "— a client, from connecting to being up to date, median",
                "ms",
                tuple(_ms(each, 50) for each in returns),
            ),
            Measure("— 99th percentile", "ms", tuple(_ms(each, 99) for each in returns)),
            Measure(
                "— CPU per client, all processes of the gateway",
                "µs",
                tuple(each.cost_us for each in returns),
            ),
            # Any other number has raised an error.
            Measure(
                "— lost, repeated, or not recovered", "", (0.0,) * len(returns), Goal("at most", 0)
            ),
            *chain(*map(_of_peer, peers)),
        ),
        curves=(Curve.of("up to date after", [each.each for each in returns]),),
    )


def _of_peer(peer: Server) -> Iterator[Measure]:
    returns = peer.returns
    yield Measure(f"— {peer.name}: until all are", "s", tuple(each.whole_s for each in returns))
    p99_ms = tuple(_ms(each, 99) for each in returns)
    yield Measure(f"— {peer.name}: a client, 99th percentile", "ms", p99_ms)
    yield Measure(f"— {peer.name}: CPU per client", "µs", tuple(each.cost_us for each in returns))
