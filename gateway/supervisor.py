"""The supervisor: starts everything, watches everything, and obeys signals and the control socket.

One thread, one loop (`loop.py`): signals, deaths, links, control connections, timers, and then the
operation under way takes its next steps. It never touches a client's bytes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from enum import Enum
from typing import Any

from gateway import upgrade
from gateway.assembly import Assembly
from gateway.balance import skew_percent
from gateway.carrying import Keep, Take
from gateway.config import Config
from gateway.control.connection import Request
from gateway.control.server import ControlServer
from gateway.control.verbs import LEVELS, ReloadArguments, Verbs
from gateway.errors import ChildError, TidegateError
from gateway.guard import SAMPLE_INTERVAL_S
from gateway.instance import Instance
from gateway.loop import Phase
from gateway.moves import serving_loads
from gateway.operations import Operations
from gateway.reload import check_canary, reload
from gateway.shutdown import fast_stop, graceful_stop
from gateway.steps import Condition, Report, Steps
from workers import log

EXIT_OK = 0
EXIT_FORCED = 2
"""A second INT: everything was killed in the middle of its work."""

HOUSEKEEPING_INTERVAL_S = 1.0
REBALANCE_CONNECTIONS_MIN = 100
"""Below so many between the fullest and the emptiest worker, nothing is moved unasked."""
REBALANCE_INTERVAL_S = 10.0

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


class Supervisor:
    """The running gateway. What it takes is given back through `held`."""

    def __init__(self, parts: Assembly, held: ExitStack) -> None:
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
        self._upgraded: dict[str, Any] | None = None
        """What there was before, if this code has taken over and is yet to replace the others."""
        self._parts = parts
        self._signals, self._manager = parts.signals, parts.manager
        self._runtime, self._fleet = parts.runtime, parts.fleet
        self._operations = Operations(self._tell_status)
        self._verbs = Verbs(
            self._runtime,
            self._fleet,
            self._operations,
            slots_max=parts.slots_max,
            status=self.status,
            stop=self._stop_for,
            upgrade=self._upgrade,
        )
        self._control = ControlServer(
            self._runtime.loop,
            self._runtime.memory,
            lambda: self._runtime.config,
            {
                "instance": self._runtime.instance.name,
                "version": self._runtime.version,
                "pid": self._runtime.instance.owner.pid,
            },
            LEVELS,
            self._verbs.carry_out,
        )
        held.callback(self._control.close)

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `restore` needs, while nothing is under way but an upgrade."""
        return {
            "verbs": self._verbs.carried(),
            "parts": self._parts.carried(keep),
            "control": self._control.carried(keep),
            "state": self._state.value,
            "reload_asked": self._reload_asked,
            "reloading": self._reloading,
            "before": self._identity(),
            "requester": operation.requester if (operation := self._operations.current) else "",
        }

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take, held: ExitStack) -> Supervisor:
        """A supervisor that goes on with the upgrade when it runs. Raises as the assembly does."""
        supervisor = cls(Assembly.restore(state["parts"], take, held), held)
        connections = supervisor._control.take_up(state["control"], take)
        supervisor._verbs.take_up(state["verbs"], connections)
        supervisor._state = State(state["state"])
        supervisor._reload_asked = state["reload_asked"]
        supervisor._reloading = state["reloading"]
        supervisor._upgraded = state["before"] | {"requester": state["requester"]}
        supervisor._operations.closed = ""
        return supervisor

    @property
    def config(self) -> Config:
        return self._runtime.config

    def run(self) -> int:
        """Starts every process, or goes on with those there are; serves until all are gone."""
        runtime = self._runtime
        runtime.loop.watch(self._signals.fileno(), Phase.SIGNALS, self._obey_signals)
        try:
            if self._upgraded is None:
                self._control.listen(runtime.instance.control_path)
                self._fleet.start()
            else:
                runtime.memory.add_metrics()
                requests = [each for each in self._control.requests if each.verb == "upgrade"]
                requester = self._upgraded.pop("requester")
                self._verbs.upgrade(requester, requests[0] if requests else None)
            self._fleet.watch_pulses()
            self._keep_house()
            self._runtime.loop.after(REBALANCE_INTERVAL_S, self._rebalance_if_skewed)
            self._runtime.loop.after(SAMPLE_INTERVAL_S, self._watch_canary)
            self._feed_watchdog()
            while not self._finished:
                runtime.loop.turn()
                self._fleet.rescues.advance()
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

    def _identity(self) -> dict[str, Any]:
        """What `before` and `after` of an upgrade tell."""
        owner = self._runtime.instance.owner
        return {"version": self._runtime.version, "pid": owner.pid, **self._fleet.pids()}

    def _endpoints(self) -> dict[str, str]:
        return {
            "http": str(self._runtime.http),
            "tcp": str(self._runtime.tcp),
            "api": self._fleet.api_endpoint,
            "control": str(self._runtime.instance.control_path),
        }

    # ---- new code

    def _upgrade(self, report: Report) -> Steps:
        """The verb: up to the exec in the old code, and from there in the new."""
        row = self._runtime.memory.row
        before, self._upgraded = self._upgraded, None
        try:
            if before is None:
                yield from self._execute_new_code(report)
            result = yield from reload(self._fleet, report)
        except TidegateError:
            row.add('upgrades_total{result="failed"}')
            raise
        row.add('upgrades_total{result="done"}')
        return {**result, "before": before, "after": self._identity()}

    def _execute_new_code(self, report: Report) -> Generator[Condition, None, None]:
        """Ends with an exec, or raises ControlError; then nothing has changed."""
        check_canary(self._fleet)
        report({"phase": "processes that end", "done": 0, "total": 1})
        yield lambda: self._fleet.settled
        report({"phase": "check of the new code", "done": 0, "total": 1})
        timeout_s = self.config.reload.start_timeout_s
        yield from upgrade.try_out(self.carried, self._runtime.loop, timeout_s)
        report({"phase": "supervisor", "done": 0, "total": 1})
        self._control.pause()
        try:
            yield self._can_execute
            self._verbs.end_publishing()
            self._signals.hold()
            upgrade.execute(self.carried)
        finally:
            self._signals.let_go()
            self._control.resume()

    def _can_execute(self) -> bool:
        """Whether no request is to be answered by this code but that for the upgrade."""
        others = [each for each in self._control.requests if each.verb != "upgrade"]
        return self._fleet.settled and not others and not self._verbs.publishing

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
        elif number == signal.SIGUSR2:
            self._verbs.upgrade(requester, None)

    def _reload_if_asked(self) -> None:
        if self._reload_asked and not self._operations.closed and not self._operations.current:
            self._reload_asked = False
            self._verbs.reload("signal SIGHUP", None)

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
        reloading = operation is not None and operation.name in ("reload", "upgrade")
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

    def _rebalance_if_skewed(self) -> None:
        self._runtime.loop.after(REBALANCE_INTERVAL_S, self._rebalance_if_skewed)
        bound = self._runtime.config.workers.rebalance_above_percent
        if not bound or self._operations.closed or self._operations.current:
            return
        loads = serving_loads(self._fleet)
        if skew_percent(loads) > bound and max(loads) - min(loads) >= REBALANCE_CONNECTIONS_MIN:
            self._verbs.rebalance("workers.rebalance_above_percent", None)

    def _watch_canary(self) -> None:
        self._runtime.loop.after(SAMPLE_INTERVAL_S, self._watch_canary)
        canary = self._fleet.canary
        if canary is None:
            return
        canary.watch(self._fleet)
        busy = bool(self._operations.closed or self._operations.current)
        if not busy and canary.trips():
            logger.error(f"the canary is rolled back: {canary.reason}")
            self._runtime.memory.row.add("guard_rollbacks_total")
            self._verbs.reload("reload --guard", None, ReloadArguments(end="rollback"))

    def _tell_status(self) -> None:
        if self._state is State.STOPPING:
            return
        connections = self._fleet.connections()
        text = f"{self._state.value}: {connections} connections, {len(self._fleet.slots)} workers"
        if looping := self._fleet.crash_loops():
            text += f"; crash loop, waiting: {', '.join(looping)}"
        if rolled_back := self._fleet.rolled_back:
            text += f"; the canary was rolled back: {rolled_back.reason}"
        if operation := self._operations.describe():
            text += f"; {operation['name']}: {operation['phase']}"
            if "moved" in operation:
                text += f", {operation['moved']} moved, {operation['remaining']} to go"
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
        text = "\n".join([*where, ""]).encode()
        # Whoever reads it may be gone, or its disk full: no reason to end what serves now. Past the
        # buffer, in which it would wait for the end of this process and spoil its exit status.
        with suppress(OSError):
            os.write(sys.stdout.fileno(), text)


def _key_place(config: Config, instance: Instance) -> str:
    """Where the key is, never the key itself."""
    if config.api.key:
        return f"as configured ({config.origins.get('api.key', 'default')})"
    return f"in {instance.directory / 'api.key'}"
