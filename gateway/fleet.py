"""All processes of the gateway: the slots, the publisher, the API, and how they fare."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import steering
from gateway.canary import Canary
from gateway.carrying import Keep, Take
from gateway.children import Child, State
from gateway.config import Config, worker_count
from gateway.handoff import Handoffs
from gateway.listeners import Port, listen_unix
from gateway.processes import Api, Publisher, Worker
from gateway.rescue import Rescues
from gateway.runtime import Runtime
from gateway.service import Service
from gateway.slot import Slot
from gateway.survey import Surveys
from gateway.topology import place
from workers import log

RECONNECT_CODE = 3001
"""Close code of a planned end: clients may connect again at once, which finds another worker."""
GRACE_S = 5.0
"""What a process may take beyond the time that it was given, before it is killed."""
STALL_CHECKS = 10
"""A heartbeat must stand still at so many checks in a row. Checks, not seconds: if the whole group
was frozen (cgroup freezer, a paused container), we did not check either."""
API_STALL_S_MIN = 10.0
"""gunicorn's master has one heartbeat a second, and the API serves on while it hangs: no hurry."""
API_SOCKET_MODE = 0o666
"""The API authenticates each request by its key; who reaches the directory may ask."""

logger = logging.getLogger("tidegate.fleet")


@dataclass(slots=True)
class Pulse:
    """One process's heartbeat as we saw it last, and how many checks ago it moved."""

    value: int = 0
    still: int = 0


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a guard has done: to which slots, why, and when (CLOCK_MONOTONIC)."""

    slots: list[int]
    reason: str
    at: float

    def describe(self) -> dict[str, Any]:
        ago_s = round(time.monotonic() - self.at, 3)
        return {"slots": self.slots, "reason": self.reason, "ago_s": ago_s}


class Fleet:
    """Starts, counts and describes the processes. What verbs do to them is in `reload.py`
    and `scaling.py`.
    """

    def __init__(self, runtime: Runtime, api_listener: socket.socket) -> None:
        self.runtime = runtime
        self.slots: list[Slot] = []
        self.wanted = worker_count(runtime.config, runtime.host)
        """How many slots there are to be, also while they are drained."""
        self.handoffs = Handoffs(runtime)
        self.rescues = Rescues(self)
        self.surveys = Surveys(runtime.loop)
        self.canary: Canary | None = None
        """Slots on probation, if there are any."""
        self.rolled_back: RolledBack | None = None
        """The last canary, if its guard ended it, until the next reload."""
        self._leaving: list[Slot] = []
        self._publisher_generation = 0
        self._pulses: dict[int, Pulse] = {}
        self._api_listener = api_listener
        self.api_key = runtime.instance.api_key(runtime.config.api.key)
        self.publisher = self._service("publisher", self._new_publisher)
        self.api = self._service("api", self._new_api)

    def start(self) -> None:
        """Execs every process; they say `ready` one by one."""
        self.publisher.start()
        for _ in range(self.wanted):
            self.add_slot()
        self.api.start()

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `restore` needs, of a fleet that is `settled`."""
        return {
            "wanted": self.wanted,
            "publisher_generation": self._publisher_generation,
            "publisher": self.publisher.carried(keep),
            "slots": [slot.carried(keep) for slot in self.slots],
            "api": self.api.carried(keep),
            "api_listener": keep(self._api_listener.fileno()),
        }

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take, runtime: Runtime) -> Fleet:
        """The same processes, instead of `start`."""
        fleet = cls(runtime, socket.socket(fileno=take(state["api_listener"])))
        fleet.wanted = state["wanted"]
        fleet._publisher_generation = state["publisher_generation"]
        fleet.publisher.take_up(
            state["publisher"],
            lambda service, child: Publisher.restore(runtime, service, child, take),
        )
        for slot in state["slots"]:
            fleet.slots.append(Slot.restore(slot, take, runtime, fleet._message, fleet._died))
        fleet.api.take_up(
            state["api"], lambda service, child: Api.restore(runtime, service, child, take)
        )
        return fleet

    @property
    def settled(self) -> bool:
        """Whether no process replaces another, none has yet to end, and no connections to move."""
        left = any(slot.service.children for slot in self._leaving)
        is_settled = not left and all(service.settled for service in self.services)
        return is_settled and self.rescues.settled

    def add_slot(self) -> Slot:
        """Makes the next slot and starts its worker. Raises InstanceError for want of a seat."""
        slot = Slot(self.runtime, len(self.slots), self._message, self._died)
        self.slots.append(slot)
        slot.service.start()
        self.steer()
        return slot

    def steer(self, count: int | None = None) -> None:
        """New connections go to all slots, or only to the first `count`, as `workers.steer` says.

        A kernel that refuses costs evenness, and at a scale perhaps a handshake: it is logged.
        """
        if not self.slots:
            return
        workers, nodes = self.runtime.config.workers, self.runtime.nodes
        admitted = len(self.slots) if count is None else count
        program = None if count is None else steering.at_random(count)
        try:
            if workers.steer == "cpu":
                placements = [place(slot, nodes, workers.pin) for slot in range(admitted)]
                program = steering.by_cpu([placement.cpus for placement in placements])
            self.slots[0].steer(program)
        except (OSError, ValueError) as error:
            logger.warning("the kernel spreads new connections by a hash", extra={"reason": error})

    def take_out_slot(self) -> Slot:
        """Takes the last slot out: connections to it are refused now, its worker is yet to end."""
        slot = self.slots.pop()
        self._leaving.append(slot)
        slot.close_listeners()
        return slot

    def remove_slot(self, spread_s: float) -> Slot:
        """Takes the last slot out and retires its worker, which closes its connections."""
        slot = self.take_out_slot()
        if slot.service.standby is not None:
            self.retire_worker(slot.service.standby, spread_s)
        if (worker := slot.service.retire()) is not None:
            self.retire_worker(worker, spread_s, "leave")
        return slot

    @property
    def services(self) -> list[Service]:
        return [self.publisher, *(slot.service for slot in self.slots), self.api]

    @property
    def children(self) -> list[Child]:
        """Every living process of the gateway but this one."""
        services = [*self.services, *(slot.service for slot in self._leaving)]
        return [child for service in services for child in service.children]

    @property
    def serving(self) -> bool:
        """Whether every worker, the publisher and the API serve."""
        return bool(self.slots) and all(service.serving for service in self.services)

    def retire_worker(self, child: Child, spread_s: float, order: str = "drain") -> None:
        """Tells a worker to close its connections over `spread_s`, and then to end."""
        if child.state is State.STARTING:
            child.kill()
            return
        child.become(State.DRAINING)
        child.send(order, spread_s=spread_s, code=RECONNECT_CODE)
        limit_s = spread_s + self.runtime.config.limits.close_timeout_s + GRACE_S
        child.kill_after(limit_s, f"did not drain within {limit_s:g} s")

    def tell_to_stop(self, child: Child, timeout_s: float) -> None:
        """Tells any process to finish what it has in hand and to end."""
        if child.state is State.STARTING and not isinstance(child, Publisher):
            # It has nothing in hand yet. A publisher has: what is in its rings.
            child.kill()
            return
        if child.state is not State.KILLED:
            child.become(State.DRAINING)
        child.send("stop")
        child.kill_after(timeout_s, f"did not stop within {timeout_s:g} s")

    @property
    def api_endpoint(self) -> str:
        if self.runtime.config.api.socket:
            return f"unix:{self.runtime.config.api.socket}"
        host, port = self._api_listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Everything is dead: lets go of the listeners."""
        self.rescues.close()
        for worker in self.workers():
            if worker.keeper is not None:
                worker.keeper.close()
        for slot in self.slots:
            slot.close_listeners()
        self._api_listener.close()
        if self.runtime.config.api.socket:
            Path(self.runtime.config.api.socket).unlink(missing_ok=True)

    def use_config(self, config: Config) -> None:
        """From now on this process, and whatever it starts, follows `config`.

        Raises OSError where the log file cannot be opened; nothing has changed then.
        """
        gateway = config.gateway
        log.configure(
            "supervisor", form=gateway.log_format, level=gateway.log_level, path=gateway.log_file
        )
        self.runtime.config = config
        self.runtime.instance.admit(config)
        self.api_key = self.runtime.instance.api_key(config.api.key)
        self.steer()
        for service in self.services:
            service.restarts.policy = self.runtime.restart_policy

    def go_back_to(self, config: Config, generation: int) -> None:
        """Takes back a configuration that did not come into force everywhere."""
        self.runtime.generation = generation
        self.use_config(config)

    # ---- how they fare

    def describe(self) -> dict[str, Any]:
        """Workers, publisher and API as `status` shows them."""
        connections = self.runtime.memory.connections_by_row()
        return {
            "workers": [slot.describe(connections) for slot in self.slots],
            "publisher": _describe(self.publisher),
            "api": _describe(self.api),
            "canary": self.canary.describe(self) if self.canary else None,
            "rolled_back": self.rolled_back.describe() if self.rolled_back else None,
        }

    def pids(self) -> dict[str, Any]:
        """What `before` and `after` of an operation tell."""
        return {
            "generation": self.runtime.generation,
            "workers": [slot.service.current.pid for slot in self.slots if slot.service.current],
            "publisher": self.publisher.current.pid if self.publisher.current else None,
            "api": self.api.current.pid if self.api.current else None,
        }

    def connections(self) -> int:
        return sum(self.runtime.memory.connections_by_row().values())

    def crash_loops(self) -> list[str]:
        """Names of the services that the crash-loop brake holds back."""
        return [service.name for service in self.services if service.crash_looping]

    def watch_pulses(self) -> None:
        """From now on, kills whatever has no heartbeat."""
        for child in self.children:
            if isinstance(child, Publisher | Worker | Api) and child.state is not State.STARTING:
                self._check_pulse(child)
        alive = {child.pid for child in self.children}
        self._pulses = {pid: pulse for pid, pulse in self._pulses.items() if pid in alive}
        interval_s = self.runtime.config.workers.stall_timeout_s / STALL_CHECKS
        self.runtime.loop.after(interval_s, self.watch_pulses)

    def _check_pulse(self, child: Publisher | Worker | Api) -> None:
        value = self.runtime.memory.reader.heartbeat_ns(child.stats_row)
        if isinstance(child, Api) and not value:
            return  # of an earlier version, that has none
        pulse = self._pulses.setdefault(child.pid, Pulse(value, 0))
        if value != pulse.value:
            self._pulses[child.pid] = Pulse(value, 0)
            return
        pulse.still += 1
        timeout_s = self.runtime.config.workers.stall_timeout_s
        stall_s = max(timeout_s, API_STALL_S_MIN) if isinstance(child, Api) else timeout_s
        is_still = pulse.still > STALL_CHECKS * stall_s / timeout_s
        if is_still and child.state is not State.KILLED:
            child.failure = {
                "code": "stalled",
                "message": f"made no progress for {stall_s:g} s and was killed",
            }
            self.runtime.memory.row.add("processes_stalled_total")
            child.kill()

    # ---- what services need

    def _service(self, name: str, new_child: Any) -> Service:
        return Service(
            self.runtime.loop,
            name,
            new_child,
            policy=self.runtime.restart_policy,
            on_message=self._message,
            on_death=self._died,
        )

    def _new_publisher(self, service: Service) -> Publisher:
        self._publisher_generation += 1
        return Publisher.start(self.runtime, service, self._publisher_generation, self.workers)

    def workers(self) -> list[Worker]:
        """Every living worker, also those that leave."""
        slots = [*self.slots, *self._leaving]
        return [worker for slot in slots for worker in slot.workers]

    def _new_api(self, service: Service) -> Api:
        self._api_listener.listen(self.runtime.config.client.backlog)
        return Api.start(self.runtime, service, self._api_listener, self.api_key)

    def _message(self, child: Child, type_: str, message: dict[str, Any]) -> None:
        if type_ == "uplink_detached":
            self.runtime.uplinks.detached(int(message["id"]))
        elif type_ == "draining" and isinstance(child, Worker):
            child.remaining = int(message["remaining"])
        elif type_ == "drained" and isinstance(child, Worker):
            child.remaining, child.closed = 0, int(message["closed"])
        elif type_ in ("moving", "handed_over", "adopted") and isinstance(child, Worker):
            self.handoffs.take(child, type_, message)
        elif type_ == "surveyed" and isinstance(child, Worker):
            self.surveys.take(child, int(message["id"]))
        elif type_ not in ("ready", "failed"):
            logger.warning(f"{child.name} sent an unknown message", extra={"type": type_})

    def _died(self, child: Child, asked: bool) -> None:
        if not asked:
            kind = type(child).__name__.lower()
            self.runtime.memory.row.add(f'process_deaths_total{{process="{kind}"}}')
        if isinstance(child, Worker):
            self.surveys.forget(child)
            self.rescues.begin(child, child.connections_at_death)
        self._leaving = [slot for slot in self._leaving if slot.service.children]


def _describe(service: Service) -> dict[str, Any]:
    child = service.current
    return {
        "pid": child.pid if child else None,
        "state": service.state,
        "restarts": service.restarts.total,
        "uptime_s": round(child.lived_s, 3) if child else 0.0,
        "last_failure": service.failure,
        "crash_loop": service.crash_looping,
    }


def listen_for_api(config: Config) -> socket.socket:
    """The API's listener. Raises InstanceError."""
    api, backlog = config.api, config.client.backlog
    if api.socket:
        return listen_unix(Path(api.socket), API_SOCKET_MODE, backlog)
    port = Port(api.address, api.port, "api.port")
    try:
        return port.listen(backlog)
    finally:
        port.close()
