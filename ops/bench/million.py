"""A million live WebSocket connections on this one machine, clients included, and what they cost.

They connect, rest and answer pings, get messages (all at once; each tenth its own), live through a
rolling reload of every process, and get messages again. The clients check every message: one that
is lost, repeated or out of order fails the benchmark, as does a connection that closes.

Every client is subscribed to one channel, every tenth also to a channel of its own. Clients and
gateway share the processors, so that the times are those of both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gateway.config import load
from gateway.control.client import ControlClient
from gateway.errors import TidegateError
from gateway.host.checks import CHECKS
from gateway.host.examine import examine
from gateway.host.kernel import Kernel
from gateway.host.load import Load
from gateway.producer import Producer
from ops.bench import usage
from ops.bench.million_figures import OWN_EVERY, QUICK, Found, Size, milliseconds, result
from ops.bench.result import Result
from ops.bench.settings import raised
from ops.bench.subject import Subject
from ops.load.crowd import Crowd, Seen
from ops.load.stream import Stream, payload

__all__ = ["QUICK", "Size", "run"]

CHANNEL = "public:million"
SETTINGS = (
    "fs.file-max",
    "fs.epoll.max_user_watches",
    "net.netfilter.nf_conntrack_max",
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
)
"""What is raised for the time, where it does not suffice."""
QUEUE_SOFT_BYTES = 16_384
"""A million queues may be full to here at one time: 16 GB."""
QUEUE_HARD_BYTES = 262_144
"""What a worker puts down of its connections has room for four such queues, 54 times."""
CONNECTION_BYTES = 11 << 10
"""9 KiB of the kernel for both ends, 1 KiB of worker and client, and a message on its way."""
PROCESS_BYTES = 16 << 20
START_TIMEOUT_S = 180.0
PATIENCE = {
    "websocket.pong_timeout_s": 50.0,
    "limits.handshake_timeout_s": 60.0,
    "workers.stall_timeout_s": 60.0,
    "reload.handoff_timeout_s": 60.0,
    "reload.start_timeout_s": START_TIMEOUT_S,
}
"""A hundred processes share the CPUs with their clients: a turn that takes a tenth of a second of
a CPU may last ten."""
HANDSHAKES_MAX = 16_384
"""In flight: each waits for its turn on CPUs that a hundred processes share."""
CONNECT_TIMEOUT_S = 1200.0
DELIVERY_TIMEOUT_S = 300.0
RELOAD_TIMEOUT_S = 180.0
"""Of silence: a slot that is ready is told of."""


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    _refuse_if_short_of_memory(size)
    found = Found()
    settings = {
        **PATIENCE,
        "websocket.ping_interval_s": size.ping_interval_s,
        "limits.connections_max": size.worker_connections,
        "limits.queue_soft_bytes": QUEUE_SOFT_BYTES,
        "limits.queue_hard_bytes": QUEUE_HARD_BYTES,
        "log.channels_max": 2 * size.unicasts + 1024,
    }
    with _kernel(size, settings, say):
        subject = Subject(
            workers=size.worker_count, settings=settings, start_timeout_s=START_TIMEOUT_S
        )
        with subject, Producer(subject.control_path) as producer:
            _look_at_workers(subject, found, say)
            with _crowd(subject, size, found, say) as crowd:
                stage = Stage(size, subject, producer, crowd, found, say)
                stage.hold()
                stage.broadcast()
                stage.unicast()
                stage.reload()
                stage.broadcast_once_more()
                say(f"closing {size.connections:,} connections")
    found.total_s = time.monotonic() - found.began_s
    return result(found, size)


def _refuse_if_short_of_memory(size: Size) -> None:
    wanted = size.connections * CONNECTION_BYTES + 2 * size.worker_count * PROCESS_BYTES
    available = usage.available_bytes()
    if wanted > available:
        raise TidegateError(
            f"{size.connections:,} connections with their clients take {wanted >> 20:,} MiB, "
            f"{available >> 20:,} MiB are available",
            remedy="ask for less with --connections",
            code="memory",
        )


@contextmanager
def _kernel(
    size: Size, settings: Mapping[str, object], say: Callable[[str], None]
) -> Iterator[None]:
    config = load(None, flags={**settings, "workers.count": size.worker_count})
    checks = [check for check in CHECKS if check.name in SETTINGS]
    # The clients are on this machine too.
    findings = examine(Load.of(config, connections=2 * size.connections), Kernel(), checks)
    with raised(findings, say):
        yield


def _look_at_workers(subject: Subject, found: Found, say: Callable[[str], None]) -> None:
    found.start_s = time.monotonic() - found.began_s
    found.worker_alone_bytes = [usage.whole_pss_bytes(pid) for pid in subject.worker_pids]
    say(
        f"{len(found.worker_alone_bytes)} workers serve after {found.start_s:.1f} s, "
        f"{max(found.worker_alone_bytes) / 1e6:.1f} MB each at most"
    )


@contextmanager
def _crowd(
    subject: Subject, size: Size, found: Found, say: Callable[[str], None]
) -> Iterator[Crowd]:
    """All clients, connected; and what they cost."""
    slab, buffers = usage.slab_bytes(), usage.tcp_buffer_bytes()
    workers = _pss(subject.worker_pids)
    last_s = 0.0

    def show(seen: Seen) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= 5.0:
            last_s = time.monotonic()
            say(f"{seen.sums['connected']:,} of {size.connections:,} connected")

    with Crowd(
        address=subject.address,
        connections=size.connections,
        channel=CHANNEL,
        subscribe={"mixed": OWN_EVERY},
        reconnect=True,
        handshakes_max=HANDSHAKES_MAX,
        handshake_timeout_s=60.0,
    ) as crowd:
        seen = crowd.wait_settled(CONNECT_TIMEOUT_S, show)
        found.connect_s = time.monotonic() - crowd.began_s
        found.failures = dict(seen.failures)
        if seen.sums["connected"] != size.connections:
            raise TidegateError(
                f"connected {seen.sums['connected']:,} of {size.connections:,}: {seen.faults}",
                code="bench",
            )
        each = size.connections
        found.slab = (usage.slab_bytes() - slab) / each
        found.buffers = (usage.tcp_buffer_bytes() - buffers) / each
        found.worker = (_pss(subject.worker_pids) - workers) / each
        found.client = _pss(crowd.pids) / each
        found.fullest = max(subject.connections())
        say(
            f"all connected in {found.connect_s:.1f} s; bytes of a connection: {found.worker:.0f} "
            f"of the worker, {found.client:.0f} of the client, {found.slab:.0f} of the kernel's "
            f"slab; failed attempts: {found.failures or 'none'}"
        )
        yield crowd


def _pss(pids: list[int]) -> int:
    return sum(usage.pss_bytes(pid) for pid in pids)


@dataclass(frozen=True, slots=True)
class Stage:
    """The gateway and its crowd; each act fills in what it finds, and raises TidegateError where a
    client saw what must not be."""

    size: Size
    subject: Subject
    producer: Producer
    crowd: Crowd
    found: Found
    say: Callable[[str], None]

    def hold(self) -> None:
        """Nothing but heartbeats."""
        self.crowd.reset()
        gateway, clients = self.subject.pids, self.crowd.pids
        began_s = time.monotonic()
        before = [usage.cpu_seconds(gateway), usage.cpu_seconds(clients), usage.busy_cpu_seconds()]
        threading.Event().wait(self.size.hold_s)
        after = [usage.cpu_seconds(gateway), usage.cpu_seconds(clients), usage.busy_cpu_seconds()]
        lasted_s = time.monotonic() - began_s
        found = self.found
        ours, theirs, all_of_it = (
            (late - early) / lasted_s for early, late in zip(before, after, strict=True)
        )
        found.idle_gateway, found.idle_clients = ours, theirs
        found.idle_others = max(0.0, all_of_it - ours - theirs)
        found.pings = self._flawless(0).sums["pings"]
        self.say(
            f"held for {lasted_s:.0f} s: {found.pings:,} pings, gateway {ours:.2f} CPUs, clients "
            f"{theirs:.2f}, others {found.idle_others:.2f}"
        )

    def broadcast(self) -> None:
        pause = threading.Event()
        for _ in range(self.size.broadcasts):
            pause.wait(self.size.rest_s)
            self.found.broadcasts.append(self._broadcast())

    def broadcast_once_more(self) -> None:
        """Whoever was lost without a word is found now."""
        self._broadcast()

    def _broadcast(self) -> dict[str, float | int | None]:
        self.crowd.reset()
        self.crowd.await_share(
            lambda clients: clients,
            lambda: self.producer.publish(CHANNEL, payload()),
            DELIVERY_TIMEOUT_S,
        )
        latency = self._flawless(self.size.connections).live.as_map()
        self.say(
            f"broadcast: first {milliseconds(latency, 'min')}, median "
            f"{milliseconds(latency, 'p50')}, last {milliseconds(latency, 'max')}"
        )
        return latency

    def unicast(self) -> None:
        """A message to each of those that have a channel of their own, at a steady rate."""
        self.crowd.reset()
        began_s = time.monotonic()
        patience_s = DELIVERY_TIMEOUT_S + self.size.unicasts / self.size.unicasts_per_s
        self.crowd.await_share(_owners, lambda: self._publish_to_owners(began_s), patience_s)
        latency = self._flawless(self.size.unicasts).live.as_map()
        self.found.unicast = latency
        self.say(
            f"{self.size.unicasts:,} unicasts at {self.found.unicasts_per_s:.0f}/s: p50 "
            f"{milliseconds(latency, 'p50')}, p99 {milliseconds(latency, 'p99')}"
        )

    def _publish_to_owners(self, began_s: float) -> None:
        pause = threading.Event()
        for number in range(self.size.unicasts):
            ahead_s = began_s + number / self.size.unicasts_per_s - time.monotonic()
            if ahead_s > 0:
                pause.wait(ahead_s)
            self.producer.publish_nowait(_own_channel(number), payload(number))
        self.found.unicasts_per_s = self.size.unicasts / (time.monotonic() - began_s)

    def reload(self) -> None:
        """Every worker, one after the other, then publisher and API; some unicasts meanwhile."""
        self.crowd.reset()
        channels = [_own_channel(number) for number in range(self.size.unicasts)]
        began_s = time.monotonic()

        def publish(channel: str) -> None:
            self.producer.publish(channel, payload())

        with (
            Stream(publish, channels, self.size.reload_unicasts_per_s) as stream,
            ControlClient(self.subject.control_path, timeout_s=RELOAD_TIMEOUT_S) as control,
        ):
            self.found.slots = control.call("reload", on_progress=self._on_progress)["slots"]
        self.found.reload_s = time.monotonic() - began_s
        seen = self.crowd.wait_delivered(stream.published, RELOAD_TIMEOUT_S)
        self._check(seen, stream.published)
        self.found.reload_latency = seen.live.as_map()
        total = {key: sum(slot[key] for slot in self.found.slots) for key in ("moved", "closed")}
        worst = max(slot["pause_us"]["max"] for slot in self.found.slots)
        self.say(
            f"reloaded in {self.found.reload_s:.1f} s: {total}, pause at most {worst / 1e3:.0f} ms"
        )

    def _on_progress(self, progress: dict[str, Any]) -> None:
        if "moved" not in progress and progress.get("done", 0) % 10 == 0:
            self.say(f"reload: {progress['phase']}")

    def _flawless(self, deliveries: int) -> Seen:
        return self._check(self.crowd.seen(), deliveries)

    def _check(self, seen: Seen, deliveries: int) -> Seen:
        faults = dict(seen.faults)
        for name, wanted in (("deliveries", deliveries), ("connected", self.size.connections)):
            if seen.sums[name] != wanted:
                faults[name] = f"{seen.sums[name]:,} instead of {wanted:,}"
        if faults:
            raise TidegateError(f"clients saw what must not happen: {faults}", code="bench")
        return seen


def _owners(clients: int) -> int:
    """How many of the first so many clients have a channel of their own."""
    return -(-clients // OWN_EVERY)


def _own_channel(number: int) -> str:
    return f"{CHANNEL}-{number * OWN_EVERY}"
