"""The peer: nginx with nchan as Debian packages it, of its own, on a free port."""

from __future__ import annotations

import contextlib
import grp
import http
import http.client
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from gateway.errors import TidegateError
from ops.bench.daemon import free_port
from ops.bench.usage import alive, family
from ops.load.stream import payload

PACKAGES = "nginx-light libnginx-mod-nchan"
SHUTDOWN_TIMEOUT_S = 5
"""`worker_shutdown_timeout`, as operators set it: a bound for connections that their clients do not
leave. nchan closes its own at once, with code 1001, when their worker is to end."""
BUFFER_MESSAGES = 1_000
"""Kept of each channel for clients that come back: above what flows while a reload lasts."""
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
PUBLISH_TIMEOUT_S = 30.0
PUBLISH_ATTEMPTS_MAX = 5
"""A server that ends closes idle connections, and a request may be on its way just then."""
POLL_S = 0.02
CONNECTIONS_SPARE = 2
"""`worker_connections` to each client: with less than a sixteenth of them free, nginx begins to
close what it holds to be idle, and a crowd that comes back does not get through."""

CONFIGURATION = """\
load_module {module};
user {user} {group};
worker_processes 1;
worker_shutdown_timeout {shutdown_timeout_s}s;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000;
    nchan_shared_memory_size 512M;
    nchan_message_buffer_length {buffer_messages};
    nchan_message_timeout 5m;
    server {{
        listen 127.0.0.1:{port};
        location ~ ^/subscribe/(.+)$ {{
            nchan_subscriber websocket;
            nchan_subscriber_first_message oldest;
            nchan_channel_id $1;
        }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
        }}
    }}
}}
"""
"""One worker, as the gateway has; a client that comes back is given what is kept, and drops what
it has. It could name its last message instead, if an id that is kept no more did not crash the
worker of nchan up to 1.3.6."""


@dataclass(frozen=True, slots=True)
class Program:
    """Where nginx and nchan are."""

    nginx: str
    module: Path


def find() -> Program | None:
    """The programs of PACKAGES, None where one of them is missing."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if nginx is None:
        return None
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    modules = re.search(r"--modules-path=(\S+)", built)
    module = Path(modules[1] if modules else "/usr/lib/nginx/modules") / "ngx_nchan_module.so"
    return Program(nginx, module) if module.exists() else None


class Nginx:
    """A server for the length of a `with` block."""

    def __init__(self, program: Program, *, connections: int) -> None:
        self._program = program
        self._connections = connections
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nginx-")))
            self._directory = directory
            self.port = free_port()
            self._configuration = directory / "nginx.conf"
            self._configuration.write_text(self._configured())
            cleanup.callback(self._stop)
            self._nginx()
            _wait("nginx to serve", lambda: len(self.pids) == 2, START_TIMEOUT_S)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """All its processes: one master and its worker, more while some are being replaced."""
        found: set[int] = set()
        for name in ("nginx.pid", "nginx.pid.oldbin"):
            with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess, ValueError):
                found.update(family(self._pid(name)))
        return sorted(found)

    @property
    def worker_pids(self) -> list[int]:
        """Of the current master."""
        return [each.pid for each in psutil.Process(self._pid()).children()]

    def reload(self) -> None:
        """New workers beside the old ones, which end as SHUTDOWN_TIMEOUT_S has it: nginx(8)."""
        self._nginx("-s", "reload")

    def upgrade(self) -> None:
        """The replacement of a running binary, step by step as nginx's manual has it:
        <https://nginx.org/en/docs/control.html#upgrade>."""
        old = self._pid()
        old_workers = self.worker_pids
        os.kill(old, signal.SIGUSR2)
        _wait("the new nginx", lambda: self._pid() != old and self.worker_pids, START_TIMEOUT_S)
        os.kill(old, signal.SIGWINCH)
        patience_s = SHUTDOWN_TIMEOUT_S + STOP_TIMEOUT_S
        _wait("its old workers to end", lambda: not alive(old_workers), patience_s)
        os.kill(old, signal.SIGQUIT)
        _wait("the old nginx to end", lambda: not alive([old]), STOP_TIMEOUT_S)

    def _nginx(self, *arguments: str) -> None:
        place = ("-p", str(self._directory), "-c", str(self._configuration))
        command = (self._program.nginx, *place, *arguments)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise TidegateError(f"nginx does not start: {done.stderr.strip()}", code="bench")

    def _configured(self) -> str:
        return CONFIGURATION.format(
            module=self._program.module,
            user=pwd.getpwuid(os.getuid()).pw_name,
            group=grp.getgrgid(os.getgid()).gr_name,
            connections=max(512, self._connections * CONNECTIONS_SPARE),
            shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
            directory=self._directory,
            buffer_messages=BUFFER_MESSAGES,
            port=self.port,
        )

    def _pid(self, name: str = "nginx.pid") -> int:
        return int((self._directory / name).read_text())

    def _stop(self) -> None:
        processes = [psutil.Process(pid) for pid in self.pids]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, STOP_TIMEOUT_S)
        for process in alive:
            process.kill()


class Publisher:
    """Sends numbered messages over one connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PUBLISH_TIMEOUT_S)
        self._numbers: dict[str, int] = {}

    def publish(self, channel: str) -> None:
        """Raises TidegateError when the message is not taken."""
        number = self._numbers[channel] = self._numbers.get(channel, 0) + 1
        refusal = ""
        for _ in range(PUBLISH_ATTEMPTS_MAX):
            try:
                status = self._post(channel, number)
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                refusal = str(error)
                continue
            if status in (http.HTTPStatus.CREATED, http.HTTPStatus.ACCEPTED):
                return
            refusal = f"HTTP status {status}"
        raise TidegateError(f"nchan takes no message: {refusal}", code="bench")

    def close(self) -> None:
        self._connection.close()

    def _post(self, channel: str, number: int) -> int:
        self._connection.request("POST", f"/publish/{channel}", payload(number))
        response = self._connection.getresponse()
        response.read()
        return response.status


def _wait(what: str, condition: Callable[[], object], timeout_s: float) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            if condition():
                return
        pause.wait(POLL_S)
    raise TidegateError(f"waited {timeout_s:g} s in vain for {what}", code="bench")
