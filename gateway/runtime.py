"""What every part of a running gateway is built on: made once by the supervisor, passed around."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from importlib import metadata

from gateway.children import Child
from gateway.config import Config, Host
from gateway.instance import Instance
from gateway.listeners import Port
from gateway.loop import Loop
from gateway.memory import Memory
from gateway.restarts import RestartPolicy
from gateway.topology import Node
from gateway.uplinks import Uplinks


def _version() -> str:
    try:
        return metadata.version("tidegate")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed


@dataclass(slots=True)
class Runtime:
    """The running instance. `config` is replaced by a reload; the rest stays for its life."""

    config: Config
    host: Host
    instance: Instance
    loop: Loop
    memory: Memory
    uplinks: Uplinks
    http: Port
    tcp: Port
    nodes: list[Node]
    publisher: Child | None = None
    """The living publisher, if there is one: told of readers as they come and go."""
    version: str = field(default_factory=_version)
    node: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.monotonic)
    generation: int = 1
    """Counts the configurations that took effect: one, and one more for each reload."""

    @property
    def restart_policy(self) -> RestartPolicy:
        workers = self.config.workers
        return RestartPolicy(
            delay_min_s=workers.restart_delay_min_s,
            delay_max_s=workers.restart_delay_max_s,
            stable_s=workers.stable_s,
            crash_loop_deaths=workers.crash_loop_deaths,
            crash_loop_window_s=workers.crash_loop_window_s,
        )
