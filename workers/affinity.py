"""Where a worker runs: on its CPUs, with memory from its NUMA node."""

import logging

import psutil

from workers import _engine
from workers.settings import WorkerSettings

logger = logging.getLogger(__name__)


def settle(settings: WorkerSettings) -> None:
    """Pin this process as `settings` say. Call it before the engine allocates.

    A kernel that refuses (a container's seccomp filter, a CPU that was taken offline) costs speed,
    not service: it is logged, and the worker runs where it may.
    """
    if settings.cpus:
        try:
            psutil.Process().cpu_affinity(list(settings.cpus))
        except (OSError, ValueError, psutil.Error) as error:
            logger.warning("not pinned", extra={"cpus": settings.cpus, "reason": error})
    if settings.memory_node >= 0:
        try:
            _engine.prefer_memory_node(settings.memory_node)
        except OSError as error:
            logger.warning(
                "no memory policy", extra={"node": settings.memory_node, "reason": error}
            )
