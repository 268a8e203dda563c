"""The worker's engine: accepts, parses, subscribes, fans out. No Python object per client.

Descriptors given to this module stay the caller's: what is kept is a mapping or a duplicate.
"""

from collections.abc import Mapping
from typing import Literal, final

from workers.settings import WorkerSettings

__all__ = ["METRICS", "Engine", "EngineFailed", "prefer_memory_node"]

METRICS: list[tuple[Literal["counter", "gauge", "histogram"], str, str]]
"""What a worker counts: kind, name in Prometheus form (labels included), help text."""

class EngineFailed(Exception):
    """The engine cannot begin, or cannot go on."""

    code: str
    """Stable identifier of the kind of error."""

def prefer_memory_node(node: int) -> None:
    """Prefer memory of NUMA node `node` from now on (set_mempolicy(2)). Raises OSError."""

@final
class Engine:
    """A reactor of one thread. It must be used by the thread that made it."""

    def __new__(cls, settings: WorkerSettings, descriptors: Mapping[str, int], link: int) -> Engine:
        """Attach everything; clients are accepted from the first `run` on.

        `descriptors` has the keys http, tcp (listeners), log, channels, stats, uplink (segments),
        wake and publisher_wake (eventfds). From here on a panic ends the process with status 70.
        Raises EngineFailed, OSError, ValueError for settings that cannot be.
        """

    def run(self) -> tuple[Literal["link", "draining", "drained"], int]:
        """Work until `link` is readable or, while draining, there is something to tell.

        Returns ("link", 0), ("draining", connections left) at most five times a second, or
        ("drained", connections closed). Releases the GIL. Raises EngineFailed.
        """

    def drain(self, spread_s: float, code: int, *, accept_first: bool) -> None:
        """Stop accepting and close every connection with `code`, evenly over `spread_s` seconds.

        With `accept_first`, connections that wait in the listeners' queues are accepted before.
        Raises ValueError for a code that the close table does not have.
        """

    def stop(self, patience_s: float) -> int:
        """Close all connections with 3001, work on for `patience_s` seconds at most.

        Returns how many were closed. Raises EngineFailed.
        """
