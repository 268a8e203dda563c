"""gunicorn as a child of the supervisor: told what to do by its link, never by a signal of others.

The master holds the listener and the link; its workers, forked, each have an uplink, a view of the
statistics and a row there.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from gateway.api import app, methods, survey
from gateway.api.readiness import Readiness
from gateway.api.settings import ApiSettings
from gateway.api.shared import SharedState
from gateway.channels import Namespaces
from gateway.producer import Producer
from shm._ring import ROLE_API, Stats, StatsRow
from workers import child, log
from workers.link import Link, LinkClosed, LinkError

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30
"""A worker whose main loop is silent for so long is killed and replaced."""
GRACEFUL_TIMEOUT_S = 5
"""For requests that run when the API is told to stop; below the default of stop.timeout_s."""
KEEPALIVE_S = 75
"""An idle connection of a backend is kept this long: longer than proxies' 60 s, so that the proxy,
which knows whether it is sending, closes first."""
HEADERS_MAX = 64
HEADER_BYTES_MAX = 8190

SIGNALS_OF_MESSAGES = {"stop": signal.SIGTERM, "reopen_logs": signal.SIGUSR1}
"""What the supervisor says by the link, in the words that gunicorn knows; its master passes the
second one on to its workers."""


class ApiServer(BaseApplication):
    """Serves until told to stop. The descriptors are the server's from here on."""

    def __init__(self, link: Link, settings: ApiSettings, descriptors: Mapping[str, int]) -> None:
        self._link = link
        self._settings = settings
        self._fds = descriptors
        self._own_row = StatsRow(descriptors["stats"], settings.stats_row, ROLE_API, 0, 0)
        # Which row each worker writes, by the worker's age, which gunicorn gives once only.
        self._rows: dict[int, int] = {}
        self._ready_read, self._ready_write = os.pipe()
        super().__init__()

    # ---- the master

    def run(self) -> None:
        self._own_row.heartbeat()
        threading.Thread(target=self._obey_link, name="link", daemon=True).start()
        SupervisedArbiter(self, self._own_row.heartbeat).run()

    def load_config(self) -> None:
        settings: dict[str, Any] = {
            "bind": f"fd://{self._fds['listener']}",
            "workers": self._settings.workers,
            "threads": self._settings.threads,
            "worker_class": "gthread",
            "worker_tmp_dir": "/dev/shm",
            "timeout": REQUEST_TIMEOUT_S,
            "graceful_timeout": GRACEFUL_TIMEOUT_S,
            "keepalive": KEEPALIVE_S,
            "limit_request_fields": HEADERS_MAX,
            "limit_request_field_size": HEADER_BYTES_MAX,
            "logger_class": GatewayLogger,
            "loglevel": self._settings.log_level,
            "control_socket_disable": True,
            "proc_name": f"tidegate-{self._settings.instance}-api",
            "when_ready": lambda arbiter: _leave_signals_to_the_supervisor(),
            "pre_fork": self._assign_row,
            "post_fork": self._become_worker,
            "post_worker_init": self._tell_that_it_serves,
            "child_exit": self._release_row,
        }
        for key, value in settings.items():
            self.cfg.set(key, value)

    def _obey_link(self) -> None:
        """Follows the link; a thread, since gunicorn's loop waits for nothing but signals."""
        try:
            self._follow_link()
        except (LinkClosed, LinkError):
            # The supervisor is gone. The kernel ends the workers with this process.
            os._exit(1)

    def _follow_link(self) -> None:
        serving = 0
        while True:
            ready, _, _ = select.select([self._link.fileno(), self._ready_read], [], [])
            if self._ready_read in ready:
                serving += len(os.read(self._ready_read, 64))
                if serving == self._settings.workers:
                    self._link.send({"type": "ready"})
            if self._link.fileno() in ready:
                message, _ = self._link.recv()
                if (number := SIGNALS_OF_MESSAGES.get(message["type"])) is not None:
                    os.kill(os.getpid(), number)

    def _assign_row(self, arbiter: Arbiter, worker: Worker) -> None:
        first = self._settings.stats_row + 1
        taken = set(self._rows.values())
        # Bounded: gunicorn never has more workers than it was told, as this server never reloads.
        self._rows[worker.age] = next(
            row for row in range(first, first + self._settings.workers) if row not in taken
        )

    def _release_row(self, arbiter: Arbiter, worker: Worker) -> None:
        row = self._rows.pop(worker.age)
        # What it counted lives on in the master's row, so that sums never fall.
        self._own_row.fold(row)

    # ---- a worker

    def _become_worker(self, arbiter: Arbiter, worker: Worker) -> None:
        child.die_with_the_parent(worker.ppid)
        self._link.close()
        self._worker_row = self._rows[worker.age]

    def load(self) -> Any:
        """The application; gunicorn calls it in each worker."""
        settings, stats_fd = self._settings, self._fds["stats"]
        row = StatsRow(
            stats_fd, self._worker_row, ROLE_API, self._worker_row - settings.stats_row, 0
        )
        readiness = Readiness(Stats(stats_fd), settings)
        served = methods.Methods(
            Producer(settings.control_path),
            SharedState(self._fds["channels"], self._fds["history"], self._fds["presence"]),
            Namespaces(settings.namespaces),
            settings.message_bytes_max,
            readiness.nodes,
            functools.partial(survey.subscribers, settings.control_path),
            row,
        )
        return app.build(settings.key, served, row, readiness.problem)

    def _tell_that_it_serves(self, worker: Worker) -> None:
        _leave_signals_to_the_supervisor()
        os.write(self._ready_write, b"+")


class SupervisedArbiter(Arbiter):
    """gunicorn's master, with a listener that is not its own and a heart that somebody watches."""

    def __init__(self, server: ApiServer, beat: Callable[[], None]) -> None:
        super().__init__(server)
        self._beat = beat

    def murder_workers(self) -> None:
        # Part of each turn of its loop, which is one a second or more.
        self._beat()
        super().murder_workers()

    def stop(self, graceful: bool = True) -> None:
        # It unlinks a Unix listener's path at its end, unless systemd holds the listener; here the
        # supervisor does, and the next API serves on it.
        self.systemd = True
        super().stop(graceful)


class GatewayLogger(Logger):
    """gunicorn's events as lines of the gateway's own log; no line per request."""

    def setup(self, cfg: Config) -> None:
        self.cfg = cfg
        self.error_log.propagate = True
        # At info it tells of every start and signal, which the supervisor's own lines tell already.
        self.error_log.setLevel(logging.DEBUG if cfg.loglevel == "debug" else logging.WARNING)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Requests are counted, not logged: a backend sends thousands a second."""

    def reopen_files(self) -> None:
        log.reopen()

    def close_on_exec(self) -> None:
        """Nothing of this process is ever exec'ed."""


def _leave_signals_to_the_supervisor() -> None:
    """Takes back what gunicorn took for itself, but for what this server sends (see above)."""
    for number in set(child.SIGNALS_FOR_THE_SUPERVISOR) - set(SIGNALS_OF_MESSAGES.values()):
        signal.signal(number, signal.SIG_IGN)
