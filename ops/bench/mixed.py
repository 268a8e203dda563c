"""A day of a gateway in a minute: messages to all and to one, clients that come and go, a reload.

Clients check order and completeness throughout: a gap, a repeat or a close fails the benchmark.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from gateway.control.client import ControlClient
from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench.result import Curve, Goal, Measure, Result
from ops.bench.subject import Subject
from ops.load.crowd import Crowd, Seen
from ops.load.stream import PAYLOAD_BYTES, Stream, payload

CHANNEL = "public:mixed"
OWN_EVERY = 10
"""Of so many clients one has a channel of its own beside the common one."""
WORKERS = 2
CONNECT_TIMEOUT_S = 120.0
DELIVERY_TIMEOUT_S = 60.0
RELOAD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    runs: int = 3
    broadcasts_per_s: float = 1.0
    unicasts_per_s: float = 1_000.0
    churn_percent: float = 100.0
    """Of the clients, each minute."""
    lead_s: float = 8.0
    """Before the reload, and after it."""


QUICK = Size(connections=500, runs=1, unicasts_per_s=100, lead_s=1.0)


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    runs: list[Seen] = []
    with (
        Subject(workers=WORKERS) as subject,
        Producer(subject.control_path) as producer,
        Crowd(
            address=subject.address,
            connections=size.connections,
            channel=CHANNEL,
            subscribe={"mixed": OWN_EVERY},
            reconnect=True,
            churn_percent=size.churn_percent,
        ) as crowd,
    ):
        crowd.wait_settled(CONNECT_TIMEOUT_S, lambda _: None)
        for number in range(size.runs):
            runs.append(_once(subject, producer, crowd, size))
            live, recovered = runs[-1].live.as_map(), runs[-1].recovered.as_map()
            say(
                f"run {number + 1}: live p99 {_ms(live['p99']):.1f} ms, caught up p99 "
                f"{_ms(recovered['p99']):.1f} ms, {runs[-1].sums['churned']:,} left and came back"
            )
    return _result(runs, size)


def _once(subject: Subject, producer: Producer, crowd: Crowd, size: Size) -> Seen:
    crowd.reset()
    pause = threading.Event()
    owners = range(0, size.connections, OWN_EVERY)
    own = [f"{CHANNEL}-{number}" for number in owners]

    def publish(channel: str) -> None:
        producer.publish_nowait(channel, payload())

    with (
        Stream(publish, [CHANNEL], size.broadcasts_per_s) as broadcasts,
        Stream(publish, own, size.unicasts_per_s) as unicasts,
    ):
        pause.wait(size.lead_s)
        with ControlClient(subject.control_path, timeout_s=RELOAD_TIMEOUT_S) as control:
            control.call("reload")
        pause.wait(size.lead_s)
    owed = broadcasts.published * size.connections + unicasts.published
    seen = crowd.wait_delivered(owed, DELIVERY_TIMEOUT_S)
    faults = dict(seen.faults)
    if seen.sums["deliveries"] != owed:
        faults["deliveries"] = f"{seen.sums['deliveries']:,} instead of {owed:,}"
    if faults:
        raise TidegateError(f"clients saw what must not happen: {faults}", code="bench")
    return seen


def _ms(latency_us: float | int | None) -> float:
    return (latency_us or 0.0) / 1e3


def _result(runs: list[Seen], size: Size) -> Result:
    def ms(part: str) -> tuple[float, ...]:
        return tuple(_ms(seen.live.as_map()[part]) for seen in runs)

    return Result(
        benchmark="mixed",
        parameters={
            "connections": size.connections,
            "broadcasts_per_s": size.broadcasts_per_s,
            "unicasts_per_s": size.unicasts_per_s,
            "churn_percent_per_minute": size.churn_percent,
            "workers": WORKERS,
            "payload_bytes": PAYLOAD_BYTES,
        },
        measures=(
            # Any other number has raised an error.
            Measure(
                f"{size.connections:,} clients with messages to all and to one, churn and a "
                "reload: lost, repeated, closed",
                "",
                (0.0,) * len(runs),
                Goal("at most", 0),
            ),
            Measure("— publish to receipt, median", "ms", ms("p50")),
            Measure("— 99th percentile", "ms", ms("p99")),
            Measure("— worst", "ms", ms("max")),
            Measure(
                "— clients that left and came back",
                "",
                tuple(float(seen.sums["churned"]) for seen in runs),
            ),
            Measure(
                "— messages that these were caught up with",
                "",
                tuple(float(seen.sums["recovered"]) for seen in runs),
            ),
        ),
        curves=(
            Curve.of("live", [seen.live for seen in runs]),
            Curve.of("caught up after a reconnect", [seen.recovered for seen in runs]),
        ),
    )
