"""A worker of a test's own, over anonymous memory: the test stands in for the supervisor."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shm import _ring
from tests.support.ring import Memory, PublisherProcess
from workers import _engine
from workers.link import Link
from workers.settings import HookSettings, NamespaceSettings, TokenSettings, WorkerSettings

ANSWER_TIMEOUT_S = 60.0
SEAT = 0
WORKER_ROW = 2
DESCRIPTORS = [
    *("http", "tcp", "log", "channels", "history", "presence", "stats"),
    *("uplink", "wake", "publisher_wake"),
]

SETTINGS = WorkerSettings(
    instance="test",
    version="0.1.0",
    node="8d7c1a52-7f0e-4d0b-9a60-0a2f4f6a7a11",
    slot=0,
    generation=1,
    seat=SEAT,
    stats_row=WORKER_ROW,
    memory_node=-1,
    log_format="text",
    log_level="info",
    log_file="",
    connections_max=100,
    user_connections_max=0,
    message_bytes_max=65536,
    queue_hard_bytes=1048576,
    queue_soft_bytes=262144,
    queue_soft_s=10.0,
    channels_per_connection_max=8,
    handshake_timeout_s=10.0,
    header_bytes_max=8192,
    headers_max=64,
    accepts_per_turn_max=64,
    engine="auto",
    batch_delay_us=0,
    recovery_publications_max=300,
    history_publications_max=300,
    close_timeout_s=1.0,
    websocket_ping_interval_s=25.0,
    websocket_pong_timeout_s=8.0,
    websocket_compression=False,
    websocket_compression_bytes_min=256,
    tcp_heartbeat_interval_s=30.0,
    tcp_heartbeat_timeout_s=90.0,
    transports=("websocket", "uni_websocket"),
    allowed_origins=(),
    allow_anonymous=False,
    allow_anonymous_tokens=True,
    expired_close_delay_s=25.0,
    personal_channel=False,
    personal_channel_namespace="",
    tokens=TokenSettings(hmac_secret="a secret of tests"),
    subscription_tokens=None,
    hooks=HookSettings(),
    namespaces=(
        NamespaceSettings(
            name="public",
            allow_subscribe_for_client=True,
            allow_subscribe_for_anonymous=True,
            allow_publish_for_client=True,
            allow_publish_for_anonymous=True,
        ),
    ),
)


class WorkerProcess:
    """A worker that was started, but not yet told anything: see `boot`."""

    def __init__(self, publisher: PublisherProcess) -> None:
        self.publisher = publisher
        self.memory = publisher.memory
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.link, theirs = Link.pair()
        self.link.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers", "--link", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port(0)}/connection/uni_websocket"

    def port(self, listener: int) -> int:
        return int(self.listeners[listener].getsockname()[1])

    def boot(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Tell it its settings and descriptors; returns its answer."""
        memory, wake = self.memory, self.memory.eventfd()
        uplink = self.publisher.attach_worker(SEAT, wake)
        fds = [each.fileno() for each in self.listeners]
        fds += [memory.log, memory.channels, memory.history, memory.presence, memory.stats]
        fds += [uplink, wake, self.publisher.wake]
        values = SETTINGS.as_map() if settings is None else settings
        self.link.send({"type": "boot", "settings": values, "fds": DESCRIPTORS}, fds)
        return self.link.recv()[0]

    def totals(self) -> dict[str, Any]:
        return self.memory.totals(WORKER_ROW)

    def end(self) -> tuple[int, str]:
        """Wait for its end; returns its exit status and what it logged."""
        _, errors = self.process.communicate(timeout=ANSWER_TIMEOUT_S)
        return self.process.returncode, errors.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.link.close()
        for listener in self.listeners:
            listener.close()


@contextmanager
def started_worker() -> Iterator[WorkerProcess]:
    """A worker with a real publisher behind it, both gone at the end."""
    memory = Memory(metrics=[*_ring.METRICS, *_engine.METRICS])
    try:
        with PublisherProcess(memory) as publisher:
            worker = WorkerProcess(publisher)
            try:
                yield worker
            finally:
                worker.close()
    finally:
        memory.close()
