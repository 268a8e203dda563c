"""What a host is asked to hold, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.config import WORKERS_MAX, Config, Host, connections_max, worker_count
from gateway.config.checks import DESCRIPTORS_RESERVED
from gateway.config.schema import KIB, MIB
from gateway.memory import keep_dimensions
from shm import _ring

CONNECTION_KERNEL_BYTES = 3 * KIB
"""A quiet TCP connection with its file and its epoll watch: a million loopback connections, which
are two million sockets, take 6 GB."""
CONNECTION_WORKER_BYTES = 1 * KIB
"""A quiet connection with its subscriptions in the worker."""
PROCESS_BYTES = 20 * MIB
"""An interpreter with its modules (10 to 18 MiB), and in a worker an engine without connections."""
KEEPER_BYTES = 4 * MIB
"""What a worker's keeper has of its own: memory of the interpreter that it was made of."""
CONNECTION_KEEP_BYTES = 192
"""What a worker puts down of a quiet connection, so that it survives the worker."""
STATISTICS_BYTES = 2 * MIB
"""The segment of statistics, with rows for 128 workers and their successors."""
THREADS_PER_PROCESS = 4
"""More than any process but the API has; that one says how many in `api.threads`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the host is asked to hold."""

    connections: int
    workers: int
    possible: int
    """What memory allows where limits.connections_max is automatic, else `connections`."""
    backlog: int
    segments_bytes: int
    others: int
    """Processes that are no workers: supervisor, publisher, API."""
    keepers: int
    tasks: int
    """Processes and threads, of predecessors and successors at a reload."""
    instance: str

    @classmethod
    def of(cls, config: Config, host: Host | None = None, *, connections: int = 0) -> Load:
        """Of a configuration: all workers at their limit, or so many `connections` in all."""
        host = host or Host.here()
        workers, log, api = worker_count(config, host), config.log, config.api
        total = connections or workers * connections_max(config, host)
        # Descriptors can be granted, memory cannot: without them, what would be possible?
        granted = replace(host, descriptors_max=1 << 62)
        others = 3 + api.workers
        segments = (
            _ring.log_size(log.capacity_bytes, 2 * WORKERS_MAX, log.channels_max)
            + _ring.channels_size(log.channels_max)
            + _ring.heap_size(config.history.memory_bytes)
            + _ring.heap_size(config.presence.memory_bytes)
            + (log.uplinks_max + 2 * workers) * _ring.uplink_size(log.uplink_bytes)
            + STATISTICS_BYTES
        )
        keepers = workers if config.workers.survive_crashes else 0
        if keepers:
            dimensions = keep_dimensions(config, connections_max(config, host))
            reserved = _ring.keep_size(*dimensions)[1]
            segments += 2 * keepers * reserved + total * CONNECTION_KEEP_BYTES
        return cls(
            connections=total,
            workers=workers,
            possible=total if connections else workers * connections_max(config, granted),
            backlog=config.client.backlog,
            segments_bytes=segments,
            others=others,
            keepers=keepers,
            tasks=2
            * ((workers + others) * THREADS_PER_PROCESS + keepers + api.workers * api.threads),
            instance=config.gateway.name,
        )

    @property
    def descriptors(self) -> int:
        """Of each worker, with an even share of what could be."""
        return -(-max(self.connections, self.possible) // self.workers) + DESCRIPTORS_RESERVED

    @property
    def base_bytes(self) -> int:
        """Memory before the first connection."""
        processes = (self.workers + self.others) * PROCESS_BYTES
        return processes + self.keepers * KEEPER_BYTES + self.segments_bytes
