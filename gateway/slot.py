"""A worker slot: a number, two listeners for its whole life, and the service of its workers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from gateway import steering
from gateway.carrying import Keep, Take
from gateway.children import Child
from gateway.processes import Worker
from gateway.runtime import Runtime
from gateway.service import Service


class Slot:
    """One of the N places that serve clients.

    Every generation of its worker accepts from the same two listeners, so a handshake that the
    kernel queued for one is answered by the next.
    """

    def __init__(
        self,
        runtime: Runtime,
        number: int,
        on_message: Callable[[Child, str, dict[str, Any]], None],
        on_death: Callable[[Child, bool], None],
        listeners: dict[str, socket.socket] | None = None,
    ) -> None:
        """Listens, unless it is given the two `listeners` of a slot that goes on."""
        self.number = number
        self.generation = 0
        self._runtime = runtime
        backlog = runtime.config.client.backlog
        self._listeners = listeners or {
            "http": runtime.http.listen(backlog),
            "tcp": runtime.tcp.listen(backlog),
        }
        self.service = Service(
            runtime.loop,
            f"slot {number}",
            self._new_worker,
            policy=runtime.restart_policy,
            on_message=on_message,
            on_death=on_death,
        )

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {
            "number": self.number,
            "generation": self.generation,
            "listeners": {name: keep(each.fileno()) for name, each in self._listeners.items()},
            "service": self.service.carried(keep),
        }

    @classmethod
    def restore(
        cls,
        state: dict[str, Any],
        take: Take,
        runtime: Runtime,
        on_message: Callable[[Child, str, dict[str, Any]], None],
        on_death: Callable[[Child, bool], None],
    ) -> Slot:
        listeners = {
            name: socket.socket(fileno=take(fd)) for name, fd in state["listeners"].items()
        }
        slot = cls(runtime, state["number"], on_message, on_death, listeners)
        slot.generation = state["generation"]
        slot.service.take_up(
            state["service"], lambda service, worker: Worker.restore(runtime, service, worker, take)
        )
        return slot

    def _new_worker(self, service: Service) -> Worker:
        self.generation += 1
        for listener in self._listeners.values():
            # A reload may have changed it; a listener takes the newest (listen(2)).
            listener.listen(self._runtime.config.client.backlog)
        return Worker.start(self._runtime, service, self.number, self.generation, self._listeners)

    @property
    def workers(self) -> list[Worker]:
        """Its living workers: mostly one, two while one replaces the other."""
        return [child for child in self.service.children if isinstance(child, Worker)]

    def steer(self, program: Sequence[steering.Instruction] | None) -> None:
        """New connections to any slot go where the program says; None: by the kernel's hash.

        Raises OSError.
        """
        for listener in self._listeners.values():
            if program is None:
                steering.detach(listener)
            else:
                steering.attach(listener, program)

    def close_listeners(self) -> None:
        """Our copies only: the kernel closes a listener with the last copy, its worker's.

        Called before that worker is told to leave, so that between its last accept and its close
        there is no time for a connection to be queued, and reset.
        """
        listener: socket.socket
        for listener in self._listeners.values():
            listener.close()

    def describe(self, connections: dict[int, int]) -> dict[str, Any]:
        """The slot as `status` and `slots` show it; `connections` is by row."""
        worker = self.service.current
        if not isinstance(worker, Worker):
            worker = self.workers[0] if self.workers else None
        retiring = [child for child in self.service.retiring if isinstance(child, Worker)]
        return {
            "slot": self.number,
            "pid": worker.pid if worker else None,
            "generation": self.generation,
            "state": self.service.state,
            "connections": sum(connections.get(each.stats_row, 0) for each in self.workers),
            "cpus": list(worker.placement.cpus) if worker else [],
            "node": worker.placement.memory_node if worker else -1,
            "restarts": self.service.restarts.total,
            "uptime_s": round(worker.lived_s, 3) if worker else 0.0,
            "last_failure": self.service.failure,
            "crash_loop": self.service.crash_looping,
            "draining": [{"pid": each.pid, "remaining": each.remaining} for each in retiring],
        }
