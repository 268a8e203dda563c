"""The supervisor: starts everything, watches everything, and obeys signals and the control socket.

One thread, one loop (`loop.py`): signals, deaths, links, control connections, timers, and then the
operation under way takes its next steps. It never touches a client's bytes.
"""

from __future__ import annotations

import logging
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from enum import Enum
from typing import Any

from gateway.config import WORKERS_MAX, Config, Host, worker_count
from gateway.control.server import ControlServer, Request
from gateway.control.verbs import LEVELS, Verbs
from gateway.errors import ChildError, InstanceError, TidegateError
from gateway.fleet import Fleet
from gateway.host.examine import warning_at_start
from gateway.instance import Instance
from gateway.listeners import Port
from gateway.loop import Loop, Phase
from gateway.memory import Memory
from gateway.notify import ServiceManager
from gateway.operations import Operations
from gateway.runtime import Runtime
from gateway.shutdown import fast_stop, graceful_stop
from gateway.signals import SignalQueue
from gateway.topology import read_nodes
from gateway.uplinks import Uplinks
from workers import log

EXIT_OK = 0
EXIT_FORCED = 2
"""A second INT: everything was killed in the middle of its work."""

DESCRIPTORS_WANTED_MAX = 1 << 21
"""Some systems set the hard limit to a thousand million, for which tools allocate tables."""
HOUSEKEEPING_INTERVAL_S = 1.0
SLOTS_PER_CPU = 4
SLOTS_AT_LEAST = 16
"""`scale` can go up to so many: reader seats, 128 bytes each, are made at start."""

logger = logging.getLogger("tidegate.supervisor")


class State(Enum):
    """Where the gateway is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DEGRADED = "degraded"
    """Some process does not serve, and is being replaced."""
    DRAINED = "drained"
    """No worker is wanted until the next reload or scale."""
    STOPPING = "stopping"


def run(config: Config) -> int:
    """Runs a gateway in this process until it is told to stop; returns the exit status.

    Raises TidegateError where it cannot start: nothing is left behind then.
    """
    gateway = config.gateway
    try:
        log.configure(
            "supervisor", form=gateway.log_format, level=gateway.log_level, path=gateway.log_file
        )
    except OSError as error:
        raise InstanceError(
            f"gateway.log_file = {gateway.log_file}: {error.strerror}",
            remedy="name a file that this user may write, or none for standard error",
            code="log_file",
        ) from error
    _raise_descriptor_limit()
    if warning := warning_at_start(config):
        logger.warning(warning)
    with ExitStack() as held:
        supervisor = Supervisor(config, held)
        return supervisor.run()


class Supervisor:
    """The running gateway, put together. What is taken is given back through `held`."""

    def __init__(self, config: Config, held: ExitStack) -> None:
        self._state = State.STARTING
        self._stop: Iterator[None] | None = None
        self._stop_requests: list[Request] = []
        self._stopped_in = State.STARTING
        """The state in which the stop began."""
        self._interrupts = 0
        self._forced = False
        self._start_error: TidegateError | None = None
        self._reloading = False
        self._reload_asked = False
        """A HUP is kept while an operation is under way: nobody would hear that it was refused."""
        host = Host.here()
        loop = Loop()
        held.callback(loop.close)
        self._signals = SignalQueue()
        held.callback(self._signals.close)
        self._manager = ServiceManager()
        held.callback(self._manager.close)
        instance = Instance.take(config)
        held.callback(instance.release)
        http = Port(config.client.address, config.client.http_port, "client.http_port")
        held.callback(http.close)
        tcp = Port(config.client.address, config.client.tcp_port, "client.tcp_port")
        held.callback(tcp.close)
        wished = max(worker_count(config, host), SLOTS_PER_CPU * host.cpus, SLOTS_AT_LEAST)
        slots_max = min(wished, WORKERS_MAX)
        # Two seats a slot: a worker and its successor.
        memory = Memory(config, instance.owner, seats=2 * slots_max)
        held.callback(memory.close)
        if memory.swept:
            logger.info("removed what a dead instance left", extra={"segments": memory.swept})
        uplinks = Uplinks(memory, instance.owner)
        held.callback(uplinks.close)
        self._runtime = Runtime(
            config, host, instance, loop, memory, uplinks, http, tcp, read_nodes()
        )
        self._fleet = Fleet(self._runtime)
        held.callback(self._fleet.close)
        self._operations = Operations()
        self._verbs = Verbs(
            self._runtime,
            self._fleet,
            self._operations,
            slots_max=slots_max,
            status=self.status,
            stop=self._stop_for,
        )
        self._control = ControlServer(
            loop,
            memory,
            lambda: self._runtime.config,
            {
                "instance": config.gateway.name,
                "version": self._runtime.version,
                "pid": instance.owner.pid,
            },
            LEVELS,
            self._verbs.carry_out,
        )
        held.callback(self._control.close)

    def run(self) -> int:
        """Starts every process and serves until all of them are gone again."""
        runtime = self._runtime
        runtime.loop.watch(self._signals.fileno(), Phase.SIGNALS, self._obey_signals)
        self._control.listen(runtime.instance.control_path)
        try:
            self._fleet.start()
            self._keep_house()
            self._feed_watchdog()
            while not self._finished:
                runtime.loop.turn()
                self._operations.advance()
                self._reload_if_asked()
                self._advance_stop()
                self._note_state()
        finally:
            # Whatever happened here: no orphans.
            for child in self._fleet.children:
                child.kill()
        self._answer_stop_requests()
        if self._start_error is not None:
            raise self._start_error
        return EXIT_FORCED if self._forced else EXIT_OK

    def status(self) -> dict[str, Any]:
        """The result of the verb `status`."""
        runtime = self._runtime
        return {
            "instance": runtime.config.gateway.name,
            "version": runtime.version,
            "pid": runtime.instance.owner.pid,
            "node": runtime.node,
            "uptime_s": round(time.monotonic() - runtime.started, 3),
            "generation": runtime.generation,
            "state": self._state.value,
            "operation": self._operations.describe(),
            "endpoints": self._endpoints(),
            **self._fleet.describe(),
            "totals": runtime.memory.totals(),
        }

    def _endpoints(self) -> dict[str, str]:
        return {
            "http": str(self._runtime.http),
            "tcp": str(self._runtime.tcp),
            "api": self._fleet.api_endpoint,
            "control": str(self._runtime.instance.control_path),
        }

    # ---- signals

    def _obey_signals(self, events: int) -> None:
        for number in self._signals.read():
            logger.info("signal received", extra={"signal": number.name})
            try:
                self._obey(number)
            except TidegateError as error:
                logger.error(f"{number.name} is not obeyed: {error}")

    def _obey(self, number: signal.Signals) -> None:
        requester = f"signal {number.name}"
        if number == signal.SIGTERM:
            self._begin_stop(fast=False)
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self._interrupts += 1
            if self._interrupts > 1:
                self._force()
            else:
                self._begin_stop(fast=True)
        elif number == signal.SIGHUP:
            self._reload_asked = True
        elif number == signal.SIGUSR1:
            self._reopen_logs()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            step = 1 if number == signal.SIGTTIN else -1
            self._verbs.scale(requester, None, self._fleet.wanted + step)
        else:
            logger.warning("USR2 is reserved for upgrades of the supervisor: not supported yet")

    def _reload_if_asked(self) -> None:
        if self._reload_asked and not self._operations.closed and not self._operations.current:
            self._reload_asked = False
            self._verbs.reload("signal SIGHUP", None, None)

    def _reopen_logs(self) -> None:
        try:
            log.reopen()
        except OSError as error:
            logger.error("cannot reopen the log file", extra={"reason": error})
        for child in self._fleet.children:
            child.send("reopen_logs")

    # ---- the end

    def _stop_for(self, request: Request) -> None:
        self._stop_requests.append(request)
        self._begin_stop(fast=False)

    def _begin_stop(self, *, fast: bool) -> None:
        if self._stop is not None and not fast:
            return
        self._operations.close("the gateway is stopping")
        if self._state is not State.STOPPING:
            self._stopped_in = self._state
            self._become(State.STOPPING)
            self._manager.stopping()
        steps = fast_stop if fast else graceful_stop
        self._stop = steps(self._fleet, self._tell_progress)
        self._advance_stop()

    def _advance_stop(self) -> None:
        if self._stop is not None:
            next(self._stop, None)

    def _tell_progress(self, phase: str, done: int, total: int, remaining_s: float) -> None:
        self._manager.extend_timeout(remaining_s)
        self._manager.status(f"stopping: {phase}, {total - done} left")
        for request in self._stop_requests:
            request.progress({"phase": phase, "done": done, "total": total})

    def _force(self) -> None:
        logger.warning("second interrupt: every process is killed")
        self._forced = True
        for child in self._fleet.children:
            child.kill()

    @property
    def _finished(self) -> bool:
        return self._state is State.STOPPING and not self._fleet.children

    def _answer_stop_requests(self) -> None:
        for request in self._stop_requests:
            before = {"state": self._stopped_in.value, "pid": self._runtime.instance.owner.pid}
            request.reply({"before": before, "after": {"state": "stopped", "pid": None}})

    # ---- what comes again and again

    def _note_state(self) -> None:
        """Follows the processes: tells systemd and people of each change."""
        if self._state is State.STARTING:
            self._give_up_if_it_cannot_start()
        if self._state is State.STOPPING:
            return
        operation = self._operations.current
        reloading = operation is not None and operation.name == "reload"
        if reloading != self._reloading:
            self._reloading = reloading
            if reloading:
                self._manager.reloading()
            else:
                self._manager.ready()
        if not self._fleet.slots:
            self._become(State.DRAINED)
        elif self._fleet.serving:
            first = self._state is State.STARTING
            self._become(State.SERVING)
            if first:
                self._operations.closed = ""
                self._manager.ready()
                self._say_where()
        elif self._state is not State.STARTING and operation is None:
            self._become(State.DEGRADED)

    def _become(self, state: State) -> None:
        if state is not self._state:
            before, self._state = self._state, state
            logger.info(f"the gateway is {state.value}", extra={"before": before.value})
            self._tell_status()

    def _give_up_if_it_cannot_start(self) -> None:
        """A gateway that never served does not go into a crash loop: its start has failed."""
        for service in self._fleet.services:
            if service.cannot_start or service.crash_looping:
                self._start_error = ChildError(
                    f"{service.name} cannot start: it {service.failure}",
                    remedy="see the lines above; `tidegate check-config` checks the configuration",
                    code="start_failed",
                )
                self._begin_stop(fast=True)
                return

    def _keep_house(self) -> None:
        self._runtime.memory.row.heartbeat()
        if self._state is not State.STOPPING:
            self._tell_status()
        self._runtime.loop.after(HOUSEKEEPING_INTERVAL_S, self._keep_house)

    def _tell_status(self) -> None:
        if self._state is State.STOPPING:
            return
        connections = self._fleet.connections()
        text = f"{self._state.value}: {connections} connections, {len(self._fleet.slots)} workers"
        if looping := self._fleet.crash_loops():
            text += f"; crash loop, waiting: {', '.join(looping)}"
        self._manager.status(text)

    def _feed_watchdog(self) -> None:
        if self._manager.watchdog_interval_s:
            self._manager.watchdog()
            self._runtime.loop.after(self._manager.watchdog_interval_s, self._feed_watchdog)

    def _say_where(self) -> None:
        """A few lines for whoever started it in a terminal; the log has the events."""
        config, endpoints = self._runtime.config, self._endpoints()
        api = endpoints["api"]
        where = [
            f'tidegate {self._runtime.version} "{config.gateway.name}" serves, '
            f"pid {self._runtime.instance.owner.pid}, {len(self._fleet.slots)} workers",
            f"  WebSocket  ws://{endpoints['http']}/connection/uni_websocket",
            f"  TCP        {endpoints['tcp']}",
            f"  API        {api if api.startswith('unix:') else f'http://{api}/api'}",
            f"  API key    {_key_place(config, self._runtime.instance)}",
            f"  control    {endpoints['control']}",
        ]
        # Whoever reads it may be gone, or its disk full: no reason to end what serves now.
        with suppress(OSError):
            print("\n".join(where), flush=True)


def _key_place(config: Config, instance: Instance) -> str:
    """Where the key is, never the key itself."""
    if config.api.key:
        return f"as configured ({config.origins.get('api.key', 'default')})"
    return f"in {instance.directory / 'api.key'}"


def _raise_descriptor_limit() -> None:
    """The soft limit is a default for programs that use select(2); we do not (children inherit)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, DESCRIPTORS_WANTED_MAX) if hard != resource.RLIM_INFINITY else soft
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
