"""The same replacement of processes under the same load, beside nginx with nchan.

Each side has one worker, the same clients on the same channels and the same messages at the same
rate. Its clients come back when their connection ends, by the back-off of the public clients. What
they missed they ask the gateway for by their offset; nchan gives them all that it has kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from gateway.control.client import ControlClient
from gateway.producer import Producer
from ops.bench import nginx
from ops.bench.reload import (
    CHANNEL,
    CHANNEL_NAMES,
    CHANNELS,
    LEAD_S,
    RELOAD_TIMEOUT_S,
    RUN_S_MAX,
)
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import alive
from ops.load.programs import Swarm
from ops.load.stream import Stream, payload

OFFERED_PER_S = 200
"""How many messages come through at most, up to this, is measured apart: see `Size`."""
REST_TIMEOUT_S = 60.0
"""From the command until no old process is left and all clients are back."""
LATENCIES = ("latency_live", "latency_recovered")
SETTLE_S = 2.0
"""What has not been delivered after so long without any delivery is lost."""
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 18_000
    runs: int = 3
    messages_per_s: int = 10
    """Each goes to a tenth of the clients. Half of what one worker of nginx holds, so that the
    sides have the same load, and nginx some room to recover."""
    offer_s: float = 3.0
    marks_s: tuple[float, float] = (1.0, 10.0)
    """Closed connections are counted so long after the command, processes left over at the last."""


QUICK = Size(connections=500, runs=1, messages_per_s=20, offer_s=0.5, marks_s=(1.0, 2.0))


@dataclass(frozen=True, slots=True)
class Seen:
    """What one replacement was like, for the clients and in the process table."""

    closed: int
    closed_by_mark: tuple[int, ...]
    reconnects: int
    failed: int
    """Attempts to come back that did not get through, for instance within 10 s."""
    not_back: int
    back_s: float
    lost: float
    """Messages per client, as `repeated`."""
    repeated: float
    delay_ms: float
    """From publish to receipt, at worst."""
    pause_ms: float
    old_left: int
    old_gone_s: float
    published_per_s: float
    most_per_s: float


@dataclass(frozen=True, slots=True)
class Side:
    """A server with its crowd, and how its processes are replaced."""

    name: str
    swarm: Swarm
    publish: Callable[[str], object]
    replace: Callable[[], object]
    replaced_pids: Callable[[], list[int]]
    """The processes that a replacement would replace."""

    def watch(self, size: Size) -> Seen:
        """One replacement in the middle of a stream."""
        most_per_s = self._most_per_s(size.offer_s)
        self._warm_up()
        with (
            ThreadPoolExecutor(1) as aside,
            Stream(self.publish, CHANNEL_NAMES, size.messages_per_s, whole_rounds=True) as stream,
        ):
            threading.Event().wait(LEAD_S)
            old = self.replaced_pids()
            course = _Course(self.swarm, old, aside.submit(self.replace))
            course.follow(size.marks_s)
            threading.Event().wait(LEAD_S)
        owed = stream.published * self.swarm.connections // CHANNELS
        report = _settled(self.swarm, owed)
        return Seen(
            closed=_closed(report),
            closed_by_mark=tuple(course.closed_by_mark),
            reconnects=report["reconnects"],
            failed=sum(report["failures"].values()),
            not_back=self.swarm.connections - report["connected"],
            back_s=course.back_s,
            lost=(owed - report["deliveries"]) / self.swarm.connections,
            repeated=report["repeats"] / self.swarm.connections,
            delay_ms=max(report[kind]["max_us"] for kind in LATENCIES) / 1e3,
            pause_ms=report["pause_us_max"] / 1e3,
            old_left=course.old_left,
            old_gone_s=course.old_gone_s or REST_TIMEOUT_S,
            published_per_s=stream.published / stream.lasted_s,
            most_per_s=most_per_s,
        )

    def _most_per_s(self, offer_s: float) -> float:
        """Messages that reach all their subscribers in a second, of OFFERED_PER_S."""
        self._warm_up()
        began = time.monotonic()
        with Stream(self.publish, CHANNEL_NAMES, OFFERED_PER_S, whole_rounds=True) as stream:
            threading.Event().wait(offer_s)
        self.swarm.announce_deliveries(stream.published * self.swarm.connections // CHANNELS)
        self.swarm.wait_delivered()
        return stream.published / (time.monotonic() - began)

    def _warm_up(self) -> None:
        """A message to everybody, so that all know where they stand; then count from zero."""
        self.swarm.reset()
        for channel in CHANNEL_NAMES:
            self.publish(channel)
        self.swarm.announce()
        self.swarm.wait_delivered()
        self.swarm.reset()


class _Course:
    """Follows clients and processes from the command until both are as they shall stay."""

    def __init__(self, swarm: Swarm, old: list[int], replacing: Future[object]) -> None:
        self._swarm = swarm
        self._old = old
        self._replacing = replacing
        self._began = time.monotonic()
        self.closed_by_mark: list[int] = []
        self.old_left = 0
        self.old_gone_s: float | None = None
        self.back_s = 0.0

    def follow(self, marks_s: Sequence[float]) -> None:
        pause = threading.Event()
        marks = list(marks_s)
        while marks or not self._over():
            pause.wait(POLL_S)
            elapsed_s = time.monotonic() - self._began
            report = self._swarm.report()
            left = alive(self._old)
            if self.old_gone_s is None and not left:
                self.old_gone_s = elapsed_s
            if report["connected"] < self._swarm.connections:
                self.back_s = elapsed_s
            if marks and elapsed_s >= marks[0]:
                marks.pop(0)
                self.closed_by_mark.append(_closed(report))
                self.old_left = len(left)
        self._replacing.result()

    def _over(self) -> bool:
        elapsed_s = time.monotonic() - self._began
        gone = self._replacing.done() and self.old_gone_s is not None
        return (gone and elapsed_s - self.back_s >= LEAD_S) or elapsed_s >= REST_TIMEOUT_S


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    stages = [_gateway(size)]
    program = nginx.find()
    if program is None:
        say(f"nginx with nchan is not here: on Debian, apt-get install {nginx.PACKAGES}")
    else:
        stages += [_peer(program, size, upgrade=upgrade) for upgrade in (False, True)]
    seen: dict[str, list[Seen]] = {}
    for stage in stages:
        with stage as side:
            for number in range(size.runs):
                each = side.watch(size)
                seen.setdefault(side.name, []).append(each)
                say(f"{side.name} {number + 1}: {_sentence(each, size)}")
    return _result(seen, size)


def _swarm(address: str, size: Size, transport: str) -> Swarm:
    return Swarm(
        address=address,
        connections=size.connections,
        run_s_max=RUN_S_MAX,
        transport=transport,
        channel=CHANNEL,
        subscribe={"shard": CHANNELS},
        reconnect=True,
    )


@contextmanager
def _gateway(size: Size) -> Iterator[Side]:
    with (
        Subject(workers=1) as subject,
        Producer(subject.control_path) as producer,
        _swarm(subject.address, size, "websocket") as swarm,
    ):
        swarm.wait_ready()

        def call(method: str) -> dict[str, Any]:
            with ControlClient(subject.control_path, timeout_s=RELOAD_TIMEOUT_S) as control:
                return control.call(method)

        yield Side(
            name="`tidegate reload`",
            swarm=swarm,
            publish=lambda channel: producer.publish(channel, payload()),
            replace=lambda: call("reload"),
            replaced_pids=lambda: [int(worker["pid"]) for worker in call("status")["workers"]],
        )


@contextmanager
def _peer(program: nginx.Program, size: Size, *, upgrade: bool) -> Iterator[Side]:
    with (
        nginx.Nginx(program, connections=size.connections) as server,
        closing(nginx.Publisher(server.port)) as publisher,
        _swarm(server.address, size, "nchan") as swarm,
    ):
        swarm.wait_ready()
        yield Side(
            name="nginx + nchan, binary upgrade" if upgrade else "nginx + nchan, `nginx -s reload`",
            swarm=swarm,
            publish=publisher.publish,
            replace=server.upgrade if upgrade else server.reload,
            replaced_pids=lambda: server.pids if upgrade else server.worker_pids,
        )


def _sentence(seen: Seen, size: Size) -> str:
    marks = ", ".join(
        f"{closed:,} within {mark_s:g} s"
        for closed, mark_s in zip(seen.closed_by_mark, size.marks_s, strict=True)
    )
    return (
        f"{seen.closed:,} closed ({marks}), "
        f"{seen.reconnects:,} reconnects ({seen.failed:,} attempts failed), "
        f"all back after {seen.back_s:.1f} s ({seen.not_back:,} not); {seen.lost:.2f} lost and "
        f"{seen.repeated:.2f} repeated per client, publish to receipt at worst "
        f"{seen.delay_ms:,.0f} ms, longest pause {seen.pause_ms:,.0f} ms; "
        f"{seen.old_left} old processes left, gone after {seen.old_gone_s:.1f} s; "
        f"{seen.published_per_s:.0f} messages/s"
    )


def _result(seen: dict[str, list[Seen]], size: Size) -> Result:
    usual_ms = 1e3 * CHANNELS / size.messages_per_s
    first_s, last_s = size.marks_s
    rows: tuple[tuple[str, str, Callable[[Seen], float]], ...] = (
        ("Connections closed", "", lambda each: each.closed),
        (f"— within {first_s:g} s of the command", "", lambda each: each.closed_by_mark[0]),
        (f"— within {last_s:g} s", "", lambda each: each.closed_by_mark[1]),
        ("Reconnects that clients needed", "", lambda each: each.reconnects),
        ("— attempts that failed", "", lambda each: each.failed),
        ("Until all clients were back", "s", lambda each: each.back_s),
        ("Clients that were not back in the end", "", lambda each: each.not_back),
        ("Messages lost, per client", "", lambda each: each.lost),
        ("Messages repeated, per client", "", lambda each: each.repeated),
        ("Longest from publish to receipt", "ms", lambda each: each.delay_ms),
        (
            f"Longest pause between a client's messages, usually {usual_ms:.0f} ms apart",
            "ms",
            lambda each: each.pause_ms,
        ),
        ("Until the last old process had gone", "s", lambda each: each.old_gone_s),
        (f"Old processes left after {last_s:g} s", "", lambda each: each.old_left),
        ("Messages published meanwhile", "/s", lambda each: each.published_per_s),
        (
            f"Messages delivered to all of {OFFERED_PER_S}/s offered, nothing replaced",
            "/s",
            lambda each: each.most_per_s,
        ),
    )
    return Result(
        benchmark="peers",
        parameters={
            "connections": size.connections,
            "messages_per_s": size.messages_per_s,
            "deliveries_per_message": size.connections // CHANNELS,
            "worker_shutdown_timeout_s": nginx.SHUTDOWN_TIMEOUT_S,
            "nchan_message_buffer_length": nginx.BUFFER_MESSAGES,
        },
        measures=tuple(
            Measure(what, unit, tuple(float(value(each)) for each in runs), subject=name)
            for what, unit, value in rows
            for name, runs in seen.items()
        ),
        note=(
            f"{size.connections:,} WebSocket subscribers of one worker, {size.messages_per_s} "
            "messages/s to a tenth of them each. nginx has worker_shutdown_timeout "
            f"{nginx.SHUTDOWN_TIMEOUT_S} s; nchan keeps {nginx.BUFFER_MESSAGES:,} messages a "
            "channel and gives a client that comes back all that the new worker has kept "
            "(nchan_subscriber_first_message oldest): naming the last message's id instead "
            "crashes the worker of nchan up to 1.3.6 when the old worker had that message."
        ),
    )


def _closed(report: dict[str, Any]) -> int:
    return sum(report["closes"].values())


def _settled(swarm: Swarm, owed: int) -> dict[str, Any]:
    """The clients' account once they have what they are owed, or nothing has come for a while."""
    pause = threading.Event()
    report = swarm.report()
    since = time.monotonic()
    while report["deliveries"] < owed and time.monotonic() - since < SETTLE_S:
        pause.wait(POLL_S)
        previous, report = report, swarm.report()
        if report["deliveries"] != previous["deliveries"]:
            since = time.monotonic()
    return report
