"""One load test: a crowd connects, messages are published, and it is seen who got what."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import Unreachable
from ops.load.crowd import FAULTS, Crowd, Late, Seen
from ops.load.latencies import Latencies
from ops.load.stream import Stream
from ops.output import Meter

CONNECT_TIMEOUT_S = 60.0
"""Beside what the wanted rate takes, or a thousand a second where none is wanted."""
CONNECTS_PER_S_MIN = 1_000.0
DELIVERY_TIMEOUT_S = 10.0
"""From the last publish: what has not been received by then is lost."""
SLACK_S = 600.0
"""Of a test, beside what it may take by these: for swarms that start or answer slowly."""
PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """What is to be done once the crowd is made."""

    connections: int
    connects_per_s: float
    duration_s: float
    publish_per_s: float
    """0: publish nothing."""
    channels: Sequence[str]
    """To publish to, in turn."""

    @property
    def connect_timeout_s(self) -> float:
        return CONNECT_TIMEOUT_S + self.connections / (self.connects_per_s or CONNECTS_PER_S_MIN)

    @property
    def run_s_max(self) -> float:
        """How long swarms and tokens have to last."""
        return self.connect_timeout_s + self.duration_s + DELIVERY_TIMEOUT_S + SLACK_S


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it."""

    wanted: int
    """Clients."""
    connect_s: float = 0.0
    connecting: Seen
    """What clients saw until all were connected and counted from zero."""
    published: int = 0
    published_s: float = 0.0
    expected: int = 0
    """Deliveries that the published messages come to."""
    seen: Seen = field(init=False)
    """What clients saw from then on, and what was wrong before."""

    @property
    def connected(self) -> int:
        return self.seen.sums["connected"]

    @property
    def lost(self) -> int:
        """Deliveries that did not come; those of unrecovered subscriptions too."""
        return max(0, self.expected - self.seen.sums["deliveries"])

    @property
    def faults(self) -> dict[str, Any]:
        """Everything that should not have been, by name, from the first attempt to connect on."""
        return {**self.seen.faults, **({"lost": self.lost} if self.lost else {})}

    def as_map(self) -> dict[str, Any]:
        """The JSON document. Times in the unit of their name; null where nothing was measured."""
        seen = self.seen
        return {
            "connections": {
                "wanted": self.wanted,
                "connected": self.connected,
                "seconds": round(self.connect_s, 3),
                "per_s": round(self.connecting.sums["connected"] / max(self.connect_s, 1e-3), 1),
            },
            "published": self.published,
            "published_per_s": round(self.published / self.published_s, 1)
            if self.published_s
            else None,
            "expected": self.expected,
            "delivered": seen.sums["deliveries"],
            "recovered": seen.sums["recovered"],
            "lost": self.lost,
            **{name: seen.sums[name] for name in (*FAULTS, "absent")},
            "closes": dict(seen.closes),
            "failures": dict(seen.failures),
            "misdeeds": dict(seen.misdeeds),
            "reconnects": seen.sums["reconnects"],
            "churned": seen.sums["churned"],
            "pings": seen.sums["pings"],
            "bytes_received": seen.sums["bytes_received"],
            "latency_us": _latency(seen.live),
            "latency_recovered_us": _latency(seen.recovered),
            "latency_returned_us": _latency(seen.returned),
        }


def run(crowd: Crowd, test: Test, publish: Callable[[str], object] | None, meter: Meter) -> Outcome:
    """Carry it out. Once all are connected, an interrupt ends it early, with what was seen until
    then; another one ends the wait for what is under way.

    Raises Unreachable when nobody can connect, TidegateError when a swarm or a publish fails.
    """
    outcome = _connect(crowd, test, meter)
    with _interrupts() as interrupts:
        subscribers = crowd.subscribers()
        outcome.connecting = crowd.reset()
        if publish is None:
            _wait(crowd, test.duration_s, meter, interrupts)
        else:
            with Stream(publish, test.channels, test.publish_per_s) as stream:
                _wait(crowd, test.duration_s, meter, interrupts, stream)
            outcome.published, outcome.published_s = stream.published, stream.lasted_s
            outcome.expected = sum(
                count * subscribers[channel] for channel, count in stream.published_to.items()
            )
        seen = _wait_delivered(crowd, outcome.expected, meter, interrupts)
    outcome.seen = seen.with_faults_of(outcome.connecting)
    return outcome


def _connect(crowd: Crowd, test: Test, meter: Meter) -> Outcome:
    def show(seen: Seen) -> None:
        meter("connecting", seen.sums["connected"], crowd.connections)

    seen = crowd.wait_settled(test.connect_timeout_s, show)
    if not seen.sums["connected"] and seen.failures:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in seen.failures.items())
        raise Unreachable(
            f"no client could connect: {reasons}",
            remedy="give the gateway's client port with --address; for 3501 and 3500, --tokens",
        )
    return Outcome(
        wanted=crowd.connections, connect_s=time.monotonic() - crowd.began_s, connecting=seen
    )


def _wait(
    crowd: Crowd,
    duration_s: float,
    meter: Meter,
    interrupts: list[int],
    stream: Stream | None = None,
) -> None:
    """Lets it run, and shows how it does."""
    pause = threading.Event()
    began = time.monotonic()
    while (passed_s := time.monotonic() - began) < duration_s:
        if interrupts or (stream and stream.failed):
            return
        seen = crowd.seen()
        detail = f"{seen.sums['connected']:,} connected, {seen.sums['deliveries']:,} delivered"
        p99_us = seen.live.percentile_us(99)
        if p99_us is not None:
            detail += f", p99 {p99_us / 1e3:.1f} ms"
        if faults := seen.faults:
            detail += f", {', '.join(faults)}"
        meter("running", round(passed_s), round(duration_s), detail)
        pause.wait(min(PROGRESS_S, duration_s - passed_s))


def _wait_delivered(crowd: Crowd, expected: int, meter: Meter, interrupts: list[int]) -> Seen:
    earlier = min(len(interrupts), 1)

    def show(seen: Seen) -> None:
        meter("receiving", seen.sums["deliveries"], expected)
        if len(interrupts) > earlier:
            raise Late("the wait was interrupted")

    return crowd.wait_delivered(expected, DELIVERY_TIMEOUT_S, show)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Those that came. They are not raised, lest a swarm's answer is left half read; but who sends
    a third one does not want the answer.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def _latency(latencies: Latencies) -> dict[str, float | int | None]:
    return {"count": latencies.count, **latencies.as_map()}
