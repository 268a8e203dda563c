"""Everybody is cut off, misses some messages, and comes back at once: how soon all are up to date.

The clients say what the SDKs say, and share channels with a history. What each was given is
checked: a gap, a repeat or a subscription that could not be recovered fails the benchmark.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench.result import Curve, Goal, Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds
from ops.load.latencies import Latencies
from ops.load.programs import Swarm
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "storm:channel"
NAMESPACE = {
    "name": "storm",
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "history_size": 100,
    "history_ttl_s": 600.0,
}
WORKERS = 2
RUN_S_MAX = 600.0
GONE_TIMEOUT_S = 30.0
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


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    settings = {
        "client.allow_anonymous": "true",
        "channel.namespaces": json.dumps([NAMESPACE]),
    }
    returns: list[Return] = []
    with (
        Subject(workers=WORKERS, settings=settings) as subject,
        Producer(subject.control_path) as producer,
        Swarm(
            address=subject.address,
            connections=size.connections,
            run_s_max=RUN_S_MAX,
            transport="centrifuge",
            channel=CHANNEL,
            subscribe={"shard": size.channels},
            # At once: no more than the backlogs of the workers hold, all the same.
            handshakes_max=size.connections,
        ) as swarm,
    ):
        swarm.wait_ready()
        for number in range(size.runs):
            returns.append(_storm(subject, producer, swarm, size))
            this = returns[-1]
            say(
                f"storm {number + 1}: all up to date after {this.whole_s:.2f} s, a client after "
                f"{_ms(this, 50):.0f} ms (p99 {_ms(this, 99):.0f}), {this.cost_us:.0f} µs CPU each"
            )
    return _result(returns, size)


def _storm(subject: Subject, producer: Producer, swarm: Swarm, size: Size) -> Return:
    swarm.drop_off()
    _wait_until_nobody_is_there(subject)
    for number in range(size.channels * size.missed):
        channel = f"{CHANNEL}-{number % size.channels}"
        # An answer to the last ones means that all are in the history.
        is_last = number >= size.channels * (size.missed - 1)
        publish = producer.publish if is_last else producer.publish_nowait
        publish(channel, payload(number))
    swarm.reset()
    missed = size.missed * size.connections
    swarm.announce_deliveries(missed)
    before_s, began_s = cpu_seconds(subject.pids), time.monotonic()
    swarm.come_back()
    swarm.wait_delivered()
    whole_s, spent_s = time.monotonic() - began_s, cpu_seconds(subject.pids) - before_s
    report = swarm.flawless_report()
    if report["recovered"] != missed or report["reconnects"] != size.connections:
        raise TidegateError(
            f"{report['recovered']:,} messages recovered by {report['reconnects']:,} clients "
            f"instead of {missed:,} by {size.connections:,}",
            code="bench",
        )
    return Return(
        whole_s, Latencies([report["latency_returned"]]), spent_s * 1e6 / size.connections
    )


def _wait_until_nobody_is_there(subject: Subject) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(subject.connections()):
        if time.monotonic() > deadline:
            raise TidegateError("the gateway does not see that its clients are gone", code="bench")
        pause.wait(POLL_S)


def _ms(storm: Return, percent: float) -> float:
    return (storm.each.percentile_us(percent) or 0.0) / 1e3


def _result(returns: list[Return], size: Size) -> Result:
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
        ),
        curves=(Curve.of("up to date after", [each.each for each in returns]),),
    )
