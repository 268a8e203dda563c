"""The three kinds of children: what each is given at its start and gives back at its death."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psutil

from gateway.api.settings import ApiSettings
from gateway.carrying import Keep, Take
from gateway.children import Child, Process
from gateway.config import connections_max, derived
from gateway.keeper import Keeper
from gateway.memory import FIRST_WORKER_ROW, PUBLISHER_ROW, make_keep
from gateway.publisher import PublisherSettings
from gateway.runtime import Runtime
from gateway.service import Service
from gateway.topology import place
from gateway.uplinks import Uplink
from workers.link import Link
from workers.settings import WorkerSettings

logger = logging.getLogger("tidegate.processes")


class Publisher(Child):
    """The publisher, told of every reader and every uplink that lives."""

    stats_row = PUBLISHER_ROW

    def __init__(self, runtime: Runtime, service: Service, process: Process) -> None:
        super().__init__(runtime.loop, process, "publisher", service.message, service.died)
        self._runtime = runtime
        runtime.publisher = self

    @classmethod
    def start(
        cls,
        runtime: Runtime,
        service: Service,
        generation: int,
        readers: Callable[[], list[Worker]],
    ) -> Publisher:
        publisher = cls(runtime, service, Process.start("gateway.publisher", "publisher"))
        publisher._boot(generation, readers())
        return publisher

    @classmethod
    def restore(
        cls, runtime: Runtime, service: Service, state: dict[str, Any], take: Take
    ) -> Publisher:
        publisher = cls(runtime, service, Process.restore(state["process"], take))
        publisher.take_up(state, take)
        runtime.uplinks.publisher_stayed(publisher)
        return publisher

    def _boot(self, generation: int, readers: list[Worker]) -> None:
        runtime = self._runtime
        config, memory = runtime.config, runtime.memory
        settings = PublisherSettings(
            stats_row=PUBLISHER_ROW,
            generation=generation,
            lag_budget_ms=config.log.lag_budget_ms,
            history=derived.history_rules(config.channel),
            log_format=config.gateway.log_format,
            log_level=config.gateway.log_level,
            log_file=config.gateway.log_file,
        )
        fds = {
            "log": memory.log.fd,
            "channels": memory.channels.fd,
            "history": memory.history.fd,
            "presence": memory.presence.fd,
            "stats": memory.stats.fd,
            "wake": memory.publisher_wake,
        }
        # It waits for all of these before it takes from any: see `_ring.Sequencer`.
        uplinks = runtime.uplinks.ids()
        self.send("boot", fds, settings=settings.as_map(), uplinks=uplinks)
        self.kill_after_start(config.reload.start_timeout_s)
        for worker in readers:
            worker.attach_to(self)
        runtime.uplinks.publisher_started(self)

    def reclaim(self) -> None:
        if self._runtime.publisher is self:
            self._runtime.publisher = None
        self._runtime.uplinks.publisher_gone(self)
        self._runtime.memory.row.fold(PUBLISHER_ROW)


class Worker(Child):
    """One generation of a slot's worker: its reader seat, its row, its uplink and its eventfd."""

    def __init__(
        self,
        runtime: Runtime,
        service: Service,
        process: Process,
        slot: int,
        generation: int,
        *,
        seat: int,
        wake: int,
        uplink: Uplink,
        keeper: Keeper | None = None,
    ) -> None:
        name = _name(slot, generation)
        super().__init__(runtime.loop, process, name, service.message, service.died)
        self.slot, self.generation = slot, generation
        self.seat, self._wake, self._uplink = seat, wake, uplink
        self.keeper = keeper
        """Who has its connections if it dies; None: nobody."""
        self.remaining = 0
        """Connections that it has yet to close, while it drains."""
        self.closed = 0
        """Connections that it closed, when it has drained."""
        self.connections_lost = 0
        """Connections that ended with its death; known when a rescue is over."""
        self.connections_at_death = 0
        self.placement = place(slot, runtime.nodes, runtime.config.workers.pin)
        self._runtime = runtime

    @classmethod
    def start(
        cls,
        runtime: Runtime,
        service: Service,
        slot: int,
        generation: int,
        listeners: dict[str, socket.socket],
    ) -> Worker:
        """Raises InstanceError where a seat or memory is short, ChildError, OSError."""
        name = _name(slot, generation)
        with ExitStack() as held:
            seat = runtime.memory.take_seat()
            held.callback(runtime.memory.give_seat, seat)
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            held.callback(os.close, wake)
            # The one eventfd tells it of log records and of replies alike.
            uplink = runtime.uplinks.open(runtime.config, name, wake)
            held.callback(runtime.uplinks.reclaim, uplink)
            keeper, keeping = None, None
            if runtime.config.workers.survive_crashes:
                keeper, keeping = _new_keeper(runtime, name, uplink.id)
                held.callback(keeper.close)
                held.callback(keeping.close)
            process = Process.start("workers", name)
            held.pop_all()
        worker = cls(
            runtime,
            service,
            process,
            slot,
            generation,
            seat=seat,
            wake=wake,
            uplink=uplink,
            keeper=keeper,
        )
        worker._boot(listeners, keeping)
        if keeping is not None:
            keeping.close()
        return worker

    @classmethod
    def restore(
        cls, runtime: Runtime, service: Service, state: dict[str, Any], take: Take
    ) -> Worker:
        worker = cls(
            runtime,
            service,
            Process.restore(state["process"], take),
            state["slot"],
            state["generation"],
            seat=state["seat"],
            wake=take(state["wake"]),
            uplink=runtime.uplinks.named(state["uplink"]),
            # A supervisor of before there were keepers has none for its workers.
            keeper=Keeper.restore(runtime.loop, kept, take)
            if (kept := state.get("keeper"))
            else None,
        )
        worker.take_up(state, take)
        return worker

    def carried(self, keep: Keep) -> dict[str, Any]:
        return super().carried(keep) | {
            "slot": self.slot,
            "generation": self.generation,
            "seat": self.seat,
            "wake": keep(self._wake),
            "uplink": self._uplink.id,
            "keeper": self.keeper.carried(keep) if self.keeper and self.keeper.alive else None,
        }

    def _boot(self, listeners: dict[str, socket.socket], keeping: socket.socket | None) -> None:
        runtime = self._runtime
        if runtime.publisher is not None:
            self.attach_to(runtime.publisher)
        fds = {name: listener.fileno() for name, listener in listeners.items()}
        fds |= {
            "log": runtime.memory.log.fd,
            "channels": runtime.memory.channels.fd,
            "history": runtime.memory.history.fd,
            "presence": runtime.memory.presence.fd,
            "stats": runtime.memory.stats.fd,
            "uplink": self._uplink.segment.fd,
            "wake": self._wake,
            "publisher_wake": runtime.memory.publisher_wake,
        }
        if self.keeper is not None and keeping is not None:
            fds |= {"keep": self.keeper.segment.fd, "keeper": keeping.fileno()}
        self._pin()
        self.send("boot", fds, settings=self._settings().as_map())
        self.kill_after_start(runtime.config.reload.start_timeout_s)

    def _pin(self) -> None:
        """Before it boots, so that its engine allocates where it runs.

        From outside, for psutil is 5 MiB that no worker needs. A kernel that refuses (a CPU that
        was taken offline) costs speed, not service: it is logged, and the worker runs where it may.
        """
        if not self.placement.cpus:
            return
        try:
            psutil.Process(self.pid).cpu_affinity(list(self.placement.cpus))
        except (OSError, ValueError, psutil.Error) as error:
            logger.warning("not pinned", extra={"process": self.name, "reason": error})

    @property
    def stats_row(self) -> int:
        return FIRST_WORKER_ROW + self.seat

    def connections(self) -> int:
        """How many it serves, by its statistics."""
        return self._runtime.memory.connections_by_row().get(self.stats_row, 0)

    def heartbeat(self) -> int:
        return self._runtime.memory.reader.heartbeat_ns(self.stats_row)

    def attach_to(self, publisher: Child) -> None:
        """Makes a publisher wait for this reader, and wake it."""
        publisher.send("attach_reader", {"wake": self._wake}, seat=self.seat)

    def reclaim(self) -> None:
        by_row = self._runtime.memory.connections_by_row()
        self.connections_at_death = by_row.get(self.stats_row, 0)
        if self._runtime.publisher is not None:
            self._runtime.publisher.send("detach_reader", seat=self.seat)
        os.close(self._wake)
        self._runtime.memory.give_seat(self.seat)

    def leave_channels(self) -> None:
        """It is dead: its clients leave their channels, but for those that another worker has."""
        self._runtime.uplinks.reclaim(self._uplink)

    def _settings(self) -> WorkerSettings:
        config, runtime = self._runtime.config, self._runtime
        limits, client = config.limits, config.client
        subscription = config.subscription_tokens
        return WorkerSettings(
            instance=config.gateway.name,
            version=runtime.version,
            node=runtime.node,
            slot=self.slot,
            generation=self.generation,
            seat=self.seat,
            stats_row=self.stats_row,
            memory_node=self.placement.memory_node,
            log_format=config.gateway.log_format,
            log_level=config.gateway.log_level,
            log_file=config.gateway.log_file,
            connections_max=connections_max(config, runtime.host),
            user_connections_max=client.user_connections_max,
            message_bytes_max=limits.message_bytes_max,
            queue_hard_bytes=limits.queue_hard_bytes,
            queue_soft_bytes=limits.queue_soft_bytes,
            queue_soft_s=limits.queue_soft_s,
            channels_per_connection_max=limits.channels_per_connection_max,
            handshake_timeout_s=limits.handshake_timeout_s,
            header_bytes_max=limits.header_bytes_max,
            headers_max=limits.headers_max,
            accepts_per_turn_max=limits.accepts_per_turn_max,
            engine=config.workers.engine,
            batch_delay_us=config.workers.batch_delay_us,
            recovery_publications_max=limits.recovery_publications_max,
            history_publications_max=limits.history_publications_max,
            close_timeout_s=limits.close_timeout_s,
            websocket_ping_interval_s=config.websocket.ping_interval_s,
            websocket_pong_timeout_s=config.websocket.pong_timeout_s,
            websocket_compression=config.websocket.compression,
            websocket_compression_bytes_min=config.websocket.compression_bytes_min,
            tcp_heartbeat_interval_s=config.tcp.heartbeat_interval_s,
            tcp_heartbeat_timeout_s=config.tcp.heartbeat_timeout_s,
            transports=tuple(client.transports),
            allowed_origins=tuple(client.allowed_origins),
            allow_anonymous=client.allow_anonymous,
            allow_anonymous_tokens=client.allow_anonymous_tokens,
            expired_close_delay_s=client.expired_close_delay_s,
            personal_channel=client.personal_channel,
            personal_channel_namespace=client.personal_channel_namespace,
            tokens=derived.tokens(config.tokens),
            subscription_tokens=derived.tokens(subscription) if subscription.has_keys else None,
            hooks=derived.hooks(config.hooks),
            namespaces=derived.namespaces(config.channel),
        )


class Api(Child):
    """The HTTP API: gunicorn's master, with the listener that outlives it."""

    def __init__(
        self, runtime: Runtime, service: Service, process: Process, stats_row: int
    ) -> None:
        super().__init__(runtime.loop, process, "api", service.message, service.died)
        self._runtime = runtime
        self.stats_row = stats_row

    @classmethod
    def start(cls, runtime: Runtime, service: Service, listener: socket.socket, key: str) -> Api:
        """Raises InstanceError where two run already, ChildError."""
        with ExitStack() as held:
            stats_row = runtime.memory.take_api_rows()
            held.callback(runtime.memory.give_api_rows, stats_row)
            process = Process.start("gateway.api", "api")
            held.pop_all()
        api = cls(runtime, service, process, stats_row)
        api._boot(listener, key)
        return api

    @classmethod
    def restore(cls, runtime: Runtime, service: Service, state: dict[str, Any], take: Take) -> Api:
        process = Process.restore(state["process"], take)
        api = cls(runtime, service, process, state["stats_row"])
        api.take_up(state, take)
        return api

    def carried(self, keep: Keep) -> dict[str, Any]:
        return super().carried(keep) | {"stats_row": self.stats_row}

    def _boot(self, listener: socket.socket, key: str) -> None:
        runtime, config = self._runtime, self._runtime.config
        settings = ApiSettings(
            instance=config.gateway.name,
            version=runtime.version,
            node=runtime.node,
            started_s=runtime.started,
            control_path=str(runtime.instance.control_path),
            key=key,
            workers=config.api.workers,
            threads=config.api.threads,
            namespaces=derived.namespaces(config.channel),
            message_bytes_max=config.limits.message_bytes_max,
            stats_row=self.stats_row,
            log_format=config.gateway.log_format,
            log_level=config.gateway.log_level,
            log_file=config.gateway.log_file,
        )
        fds = {
            "listener": listener.fileno(),
            "channels": runtime.memory.channels.fd,
            "history": runtime.memory.history.fd,
            "presence": runtime.memory.presence.fd,
            "stats": runtime.memory.stats.fd,
        }
        self.send("boot", fds, settings=settings.as_map())
        self.kill_after_start(config.reload.start_timeout_s)

    def reclaim(self) -> None:
        self._runtime.memory.give_api_rows(self.stats_row)


def _new_keeper(runtime: Runtime, name: str, number: int) -> tuple[Keeper, socket.socket]:
    """A keeper to be made by the worker, and the end of its link for that. Raises InstanceError."""
    config = runtime.config
    segment = make_keep(
        config, runtime.instance.owner, number, connections_max(config, runtime.host)
    )
    link, theirs = Link.pair()
    return Keeper(runtime.loop, name, link, segment), theirs


def _name(slot: int, generation: int) -> str:
    return f"worker {slot}.{generation}"
