"""The programs of `swarm/`, conducted by JSON lines: the swarm of subscribers, the bare loop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from gateway.errors import TidegateError
from ops import programs

LoopName = Literal["send", "io_uring"]

ROOT = Path(__file__).resolve().parents[2]

STOP_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 120.0
"""For all clients of one swarm: 20,000 need a few seconds on an idle machine."""
DELIVERY_TIMEOUT_S = 60.0
"""For one message, or one burst, to all clients."""
SEND_TIMEOUT_S = 30.0
"""Of a line to a program, which reads whenever it is not busy with its clients."""
READ_BYTES = 65536
FEED_BYTES = 1 << 20
"""As much as anybody may have (/proc/sys/fs/pipe-max-size)."""
DESCRIPTORS_BESIDE = 64
"""Of a swarm, beside its clients' sockets."""


@cache
def build() -> Path:
    """The directory of the programs. Raises TidegateError where they are neither there nor can be
    compiled.
    """
    return programs.directory("tidegate-load", "tidegate-swarm")


def clients_max() -> int:
    """Of a swarm on this machine, as far as descriptors go."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, hard - DESCRIPTORS_BESIDE)


def spawn(
    name: str, connection: socket.socket, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Starts a program that is conducted over the other end of this stream socket.

    In a process group of its own: an interrupt at the terminal is for its conductor alone.
    """
    end = connection.fileno()
    return subprocess.Popen(
        [build() / name], stdin=end, stdout=end, process_group=0, pass_fds=inherited
    )


class Program:
    """A process that reads a plan and commands and says events, one JSON line each.

    A child of this process, with the descriptors that it inherits; or, where there is a
    `connection`, one at the other end of that.
    """

    name: str

    def __init__(
        self,
        plan: dict[str, Any],
        connection: socket.socket | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if connection is None:
            connection, theirs = socket.socketpair()
            with theirs:
                self._process = spawn(self.name, theirs, inherited)
        self._connection = connection
        self._connection.settimeout(SEND_TIMEOUT_S)
        self._pending = b""
        self._send(plan)

    @property
    def pid(self) -> int:
        """Of a child; 0 for one that is somewhere else."""
        return self._process.pid if self._process else 0

    def command(self, cmd: str, **arguments: Any) -> None:
        self._send({"cmd": cmd, **arguments})

    def expect(self, event: str, timeout_s: float) -> dict[str, Any]:
        """The next event, which must be that one. Raises TidegateError for another, or none."""
        heard = self.hear(event, time.monotonic() + timeout_s)
        if heard["event"] != event:
            raise self._failure(f"said {heard!r} instead of {event!r}")
        return heard

    def hear(self, event: str, deadline: float) -> dict[str, Any]:
        """Whatever it says next; raises TidegateError where that, `event`, does not come."""
        line = self._read_line(deadline)
        if line is None:
            raise self._failure(f"did not say {event!r} in time")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def end(self) -> None:
        """Tell it to end: by its input's end."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End it, by force if it does not listen."""
        self.end()
        if self._process is not None:
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._connection.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self._failure("ended") from None

    def _read_line(self, deadline: float) -> bytes | None:
        while b"\n" not in self._pending:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not select.select([self._connection], [], [], remaining_s)[0]:
                return None
            try:
                chunk = self._connection.recv(READ_BYTES)
            except OSError:
                chunk = b""
            if not chunk:
                raise self._failure("ended")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _failure(self, what: str) -> TidegateError:
        return TidegateError(f"{self.name} {what}", code="load")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Swarm(Program):
    """Subscribers in one process. The plan's keys are those of `ops/load/swarm/src/plan.rs`."""

    name = "tidegate-swarm"

    def __init__(
        self,
        *,
        address: str,
        connections: int,
        run_s_max: float,
        at: socket.socket | None = None,
        **plan: Any,
    ) -> None:
        """`at`: where a swarm of another machine is conducted."""
        self.connections = connections
        self._delivered = 0
        self._ready: dict[str, Any] | None = None
        super().__init__(
            {"address": address, "connections": connections, "run_s_max": run_s_max, **plan}, at
        )

    def expect(self, event: str, timeout_s: float) -> dict[str, Any]:
        """As any program; that it is ready is said unasked, and may come before any answer."""
        if event == "ready" and self._ready is not None:
            return self._ready
        deadline = time.monotonic() + timeout_s
        while True:
            heard = self.hear(event, deadline)
            if heard["event"] == "ready":
                self._ready = heard
            if heard["event"] == event:
                return heard
            if heard["event"] != "ready":
                raise self._failure(f"said {heard!r} instead of {event!r}")

    def wait_ready(self) -> None:
        """Return when every client is connected; raises TidegateError when some are not."""
        ready = self.expect("ready", CONNECT_TIMEOUT_S)
        if ready["connected"] != self.connections:
            failures = self.report()["failures"]
            raise self._failure(f"connected {ready['connected']} of {self.connections}: {failures}")

    def reset(self) -> dict[str, Any]:
        """Count from zero; returns when that is so, with the last report before."""
        self.begin_reset()
        return self.expect("report", STOP_TIMEOUT_S)

    def begin_reset(self) -> None:
        """Tell it to count from zero: from its answer on, a report."""
        self.command("reset")
        self._delivered = 0

    def announce(self, messages: int = 1) -> None:
        """Say that this many messages will be published to all of its clients."""
        self.announce_deliveries(messages * self.connections)

    def announce_deliveries(self, deliveries: int, timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        """Say that its clients together will have received so many messages more."""
        self._delivered += deliveries
        self.command("await", deliveries=self._delivered, timeout_s=timeout_s)

    def wait_delivered(self, timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        """Return when everybody has received what was announced."""
        # Longer than the swarm's own patience, so that it can say how far it came.
        self.expect("reached", timeout_s + 5)

    def drop_off(self) -> None:
        """Cut all connections, as a network does; the clients stay away."""
        self.command("drop_off")

    def come_back(self) -> None:
        """Let those that are away come back, at once."""
        self.command("come_back")

    def report(self) -> dict[str, Any]:
        self.command("report")
        return self.expect("report", STOP_TIMEOUT_S)

    def flawless_report(self) -> dict[str, Any]:
        """A report; raises TidegateError unless each client got each message once, in order."""
        report = self.report()
        faults = {
            key: report[key]
            for key in ("repeats", "gaps", "unrecovered", "foreign", "closes", "failures")
            if report[key]
        }
        if report["deliveries"] != self._delivered:
            faults["deliveries"] = f"{report['deliveries']} instead of {self._delivered}"
        if faults:
            raise self._failure(f"saw what must not happen: {faults}")
        return report


class Bare(Program):
    """The baseline server: as many sending processes as the gateway has workers."""

    name = "tidegate-bare"

    def __init__(
        self,
        *,
        processes: int,
        connections: int,
        sends_by: LoopName = "send",
        fed: bool = False,
    ) -> None:
        """`fed`: its processes also send what `feed` gives them."""
        pipes = [_packet_pipe() for _ in range(processes if fed else 0)]
        feeds = [theirs for theirs, _ in pipes]
        self._feeds = [ours for _, ours in pipes]
        plan = {"processes": processes, "connections": connections, "sends_by": sends_by}
        try:
            super().__init__({**plan, "feeds": feeds}, inherited=feeds)
            listening = self.expect("listening", CONNECT_TIMEOUT_S)
        except BaseException:
            self._end_feeds()
            raise
        finally:
            for feed in feeds:
                os.close(feed)
        self.address = f"127.0.0.1:{listening['port']}"
        self.pids: list[int] = listening["pids"]
        """Of the sending processes, not of their conductor."""

    def wait_ready(self) -> None:
        self.expect("ready", CONNECT_TIMEOUT_S)

    def send(self, texts: Sequence[str]) -> None:
        """Send a text frame of each, all at once, to every client. Raises TidegateError if a socket
        had no room."""
        self.command("send", texts=texts)
        self._expect_sent(DELIVERY_TIMEOUT_S)

    def feed(self, number: int, text: bytes) -> None:
        """Hand a text frame, of 126 bytes at least, to one process after the other, by `number`;
        each sends it to the next of its clients. Waits while the pipe is full. Raises TidegateError
        where the process has ended."""
        # FIN and text, and a length of 16 bits (RFC 6455 section 5.2).
        frame = struct.pack(">BBH", 0x81, 126, len(text)) + text
        try:
            os.write(self._feeds[number % len(self._feeds)], frame)
        except BrokenPipeError:
            raise self._failure("ended") from None

    def close(self) -> None:
        self._end_feeds()
        super().close()

    def _end_feeds(self) -> None:
        while self._feeds:
            os.close(self._feeds.pop())

    def begin_pings(self, *, interval_s: float, for_s: float) -> None:
        """Ping every client once in an interval, and read the pongs, from now on for so long."""
        self.command("ping", interval_s=interval_s, for_s=for_s)

    def wait_pinged(self, for_s: float) -> None:
        """Return when that is over. Raises TidegateError if a socket had no room."""
        self._expect_sent(DELIVERY_TIMEOUT_S + for_s)

    def _expect_sent(self, timeout_s: float) -> None:
        sent = self.expect("sent", timeout_s)
        if sent["refused"]:
            raise self._failure(f"could not send to {sent['refused']} sockets")


def _packet_pipe() -> tuple[int, int]:
    """To read from and to write to: a packet that is written is one that is read."""
    ends = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    # Each packet takes a page (pipe(2)), and 16 are the default: one waits soon.
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, FEED_BYTES)
    return ends
