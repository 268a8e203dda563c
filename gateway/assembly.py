"""The parts of a gateway, put together: made anew, or taken over from the code that ran before."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.carrying import Keep, Take
from gateway.config import WORKERS_MAX, Config, Host, worker_count
from gateway.errors import ControlError
from gateway.fleet import Fleet, listen_for_api
from gateway.instance import Instance
from gateway.listeners import Port
from gateway.loop import Loop
from gateway.memory import Memory
from gateway.notify import ServiceManager
from gateway.runtime import Runtime
from gateway.signals import SignalQueue
from gateway.topology import read_nodes
from gateway.uplinks import Uplinks

SLOTS_PER_CPU = 4
SLOTS_AT_LEAST = 16
"""`scale` can go up to so many: reader seats, 128 bytes each, are made at start."""


@dataclass(slots=True)
class Assembly:
    """What a supervisor is made of."""

    signals: SignalQueue
    manager: ServiceManager
    runtime: Runtime
    fleet: Fleet
    slots_max: int

    @classmethod
    def make(cls, config: Config, held: ExitStack) -> Assembly:
        """All of it, for a gateway that starts; `held` gives back what is taken.

        Raises TidegateError.
        """
        host = Host.here()
        loop = Loop()
        held.callback(loop.close)
        signals = SignalQueue()
        held.callback(signals.close)
        manager = ServiceManager()
        held.callback(manager.close)
        instance = Instance.take(config)
        held.callback(instance.release)
        http = Port(config.client.address, config.client.http_port, "client.http_port")
        held.callback(http.close)
        tcp = Port(config.client.address, config.client.tcp_port, "client.tcp_port")
        held.callback(tcp.close)
        wished = max(worker_count(config, host), SLOTS_PER_CPU * host.cpus, SLOTS_AT_LEAST)
        slots_max = min(wished, WORKERS_MAX)
        # Two seats a slot: a worker and its successor.
        memory = Memory.make(config, instance.owner, seats=2 * slots_max)
        held.callback(memory.close)
        uplinks = Uplinks(memory, instance.owner)
        held.callback(uplinks.close)
        runtime = Runtime(config, host, instance, loop, memory, uplinks, http, tcp, read_nodes())
        fleet = Fleet(runtime, listen_for_api(config))
        held.callback(fleet.close)
        return cls(signals, manager, runtime, fleet, slots_max)

    def carried(self, keep: Keep) -> dict[str, Any]:
        """What `restore` needs, of a fleet that is settled."""
        runtime = self.runtime
        return {
            "config": msgspec.to_builtins(runtime.config),
            "node": runtime.node,
            "started": runtime.started,
            "generation": runtime.generation,
            "slots_max": self.slots_max,
            "manager": self.manager.carried(),
            "instance": runtime.instance.carried(keep),
            "http": runtime.http.carried(keep),
            "tcp": runtime.tcp.carried(keep),
            "memory": runtime.memory.carried(keep),
            "uplinks": runtime.uplinks.carried(keep),
            "fleet": self.fleet.carried(keep),
            "signals": self.signals.carried(),
        }

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take, held: ExitStack) -> Assembly:
        """The same, for a gateway that goes on; `held` gives back what is taken.

        What needs another comes after it: memory before uplinks, these before the processes that
        use them. Signals are last, for they wait as long. Raises TidegateError where this code
        cannot go on with what there is; KeyError, TypeError or ValueError for a damaged state.
        """
        config = _config(state["config"])
        loop = Loop()
        manager = ServiceManager.restore(state["manager"])
        instance = Instance.restore(state["instance"], take)
        http, tcp = Port.restore(state["http"], take), Port.restore(state["tcp"], take)
        memory = Memory.restore(state["memory"], take)
        uplinks = Uplinks.restore(state["uplinks"], take, memory, instance.owner)
        runtime = Runtime(
            config,
            Host.here(),
            instance,
            loop,
            memory,
            uplinks,
            http,
            tcp,
            read_nodes(),
            node=state["node"],
            started=state["started"],
            generation=state["generation"],
        )
        fleet = Fleet.restore(state["fleet"], take, runtime)
        signals = SignalQueue.restore(state["signals"])
        for give_back in (
            loop.close,
            signals.close,
            manager.close,
            instance.release,
            http.close,
            tcp.close,
            memory.close,
            uplinks.close,
            fleet.close,
        ):
            held.callback(give_back)
        return cls(signals, manager, runtime, fleet, state["slots_max"])


def _config(values: dict[str, Any]) -> Config:
    """The configuration in force, as this code has it: keys that it does not know are left out."""
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"the configuration that is in force is not one for the new code ({error})",
            remedy="change it and reload before the upgrade, or restart the gateway",
            code="config",
        ) from error
