"""The programs of `ops/load`, conducted by JSON lines: the swarm of subscribers, the bare loop."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from gateway.errors import TidegateError

LoopName = Literal["send", "io_uring"]

ROOT = Path(__file__).resolve().parents[2]

STOP_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 120.0
"""For all clients of one swarm: 20,000 need a few seconds on an idle machine."""
DELIVERY_TIMEOUT_S = 60.0
"""For one message, or one burst, to all clients."""
READ_BYTES = 65536


@cache
def build() -> Path:
    """Compile the programs, if they are not up to date, and return their directory."""
    try:
        subprocess.run(
            ["cargo", "build", "--release", "--locked", "--quiet", "--package", "tidegate-load"],
            cwd=ROOT,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise TidegateError(
            f"the load programs cannot be built ({error})",
            remedy="run this in a checkout, with a Rust toolchain",
            code="bench",
        ) from error
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return ROOT / target / "release"


class Program:
    """A child process that reads a plan and commands and says events, one JSON line each."""

    name: str

    def __init__(self, plan: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [build() / self.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._pending = b""
        self._send(plan)

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self, cmd: str, **arguments: Any) -> None:
        self._send({"cmd": cmd, **arguments})

    def expect(self, event: str, timeout_s: float) -> dict[str, Any]:
        """The next event, which must be that one. Raises TidegateError for another, or none."""
        line = self._read_line(time.monotonic() + timeout_s)
        if line is None:
            raise self._failure(f"did not say {event!r} within {timeout_s:g} s")
        heard: dict[str, Any] = json.loads(line)
        if heard["event"] != event:
            raise self._failure(f"said {heard!r} instead of {event!r}")
        return heard

    def close(self) -> None:
        """End it: by its input's end, by force if it does not listen."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended") from None

    def _read_line(self, deadline: float) -> bytes | None:
        assert self._process.stdout
        output = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not select.select([output], [], [], remaining_s)[0]:
                return None
            chunk = os.read(output, READ_BYTES)
            if not chunk:
                raise self._failure("ended")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _failure(self, what: str) -> TidegateError:
        return TidegateError(f"{self.name} {what}", code="bench")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Swarm(Program):
    """Subscribers in one process. The plan's keys are those of `ops/load/src/plan.rs`."""

    name = "tidegate-swarm"

    def __init__(self, *, address: str, connections: int, run_s_max: float, **plan: Any) -> None:
        self.connections = connections
        self._delivered = 0
        super().__init__(
            {"address": address, "connections": connections, "run_s_max": run_s_max, **plan}
        )

    def wait_ready(self) -> None:
        """Return when every client is connected; raises TidegateError when some are not."""
        ready = self.expect("ready", CONNECT_TIMEOUT_S)
        if ready["connected"] != self.connections:
            failures = self.report()["failures"]
            raise self._failure(f"connected {ready['connected']} of {self.connections}: {failures}")

    def reset(self) -> None:
        """Count from zero; returns when that is so, lest what is published next is forgotten."""
        self.command("reset")
        self._delivered = 0
        # Commands are obeyed in order: an answer to the next one means that this one was.
        self.report()

    def announce(self, messages: int = 1) -> None:
        """Say that this many messages will be published to all of its clients."""
        self.announce_deliveries(messages * self.connections)

    def announce_deliveries(self, deliveries: int) -> None:
        """Say that its clients together will have received so many messages more."""
        self._delivered += deliveries
        self.command("await", deliveries=self._delivered, timeout_s=DELIVERY_TIMEOUT_S)

    def wait_delivered(self) -> None:
        """Return when everybody has received what was announced."""
        # Longer than the swarm's own patience, so that it can say how far it came.
        self.expect("reached", DELIVERY_TIMEOUT_S + 5)

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
    ) -> None:
        super().__init__({"processes": processes, "connections": connections, "sends_by": sends_by})
        listening = self.expect("listening", CONNECT_TIMEOUT_S)
        self.address = f"127.0.0.1:{listening['port']}"
        self.pids: list[int] = listening["pids"]
        """Of the sending processes, not of their conductor."""

    def wait_ready(self) -> None:
        self.expect("ready", CONNECT_TIMEOUT_S)

    def send(self, texts: Sequence[str]) -> None:
        """Send a text frame of each, all at once, to every client. Raises TidegateError if a socket
        had no room."""
        self.command("send", texts=texts)
        sent = self.expect("sent", DELIVERY_TIMEOUT_S)
        if sent["refused"]:
            raise self._failure(f"could not send to {sent['refused']} sockets")
