"""A gateway in this process: its log, its limits, and its supervisor, from start to exit status."""

from __future__ import annotations

import errno
import logging
import resource
from contextlib import ExitStack
from typing import Any

import msgspec

from gateway.assembly import Assembly
from gateway.config import Config
from gateway.errors import InstanceError
from gateway.host.examine import warning_at_start
from gateway.host.kernel import Kernel
from gateway.supervisor import Supervisor
from workers import log

DESCRIPTORS_WANTED_MAX = 1 << 21
"""Some systems set the hard limit to a thousand million, for which tools allocate tables."""

logger = logging.getLogger("tidegate.supervisor")


def run(config: Config) -> int:
    """Runs a gateway in this process until it is told to stop; returns the exit status.

    Raises TidegateError where it cannot start: nothing is left behind then.
    """
    configure_log(msgspec.structs.asdict(config.gateway))
    _raise_descriptor_limit()
    if warning := warning_at_start(config):
        logger.warning(warning)
    if config.workers.engine == "auto" and (refused := Kernel().io_uring()):
        reason = errno.errorcode.get(refused, str(refused))
        logger.info(f"io_uring is refused ({reason}): workers send by epoll and a call for each")
    with ExitStack() as held:
        return Supervisor(Assembly.make(config, held), held).run()


def configure_log(gateway: dict[str, Any]) -> None:
    """Logs as the section [gateway] says. Raises InstanceError."""
    form, level, path = (gateway[f"log_{key}"] for key in ("format", "level", "file"))
    try:
        log.configure("supervisor", form=form, level=level, path=path)
    except OSError as error:
        raise InstanceError(
            f"gateway.log_file = {path}: {error.strerror}",
            remedy="name a file that this user may write, or none for standard error",
            code="log_file",
        ) from error


def _raise_descriptor_limit() -> None:
    """The soft limit is a default for programs that use select(2); we do not (children inherit)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, DESCRIPTORS_WANTED_MAX) if hard != resource.RLIM_INFINITY else soft
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
