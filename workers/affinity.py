"""Where a worker's memory comes from. Its CPUs are set from outside, by the supervisor."""

import logging

from workers import _engine
from workers.settings import WorkerSettings

logger = logging.getLogger(__name__)


def settle(settings: WorkerSettings) -> None:
    """Prefer memory of the node that `settings` name. Call it before the engine allocates.

    A kernel that refuses (a container's seccomp filter) costs speed, not service: it is logged.
    """
    if settings.memory_node >= 0:
        try:
            _engine.prefer_memory_node(settings.memory_node)
        except OSError as error:
            logger.warning(
                "no memory policy", extra={"node": settings.memory_node, "reason": error}
            )
