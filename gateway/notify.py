"""What systemd is told (sd_notify(3)): datagrams of `NAME=value` lines to $NOTIFY_SOCKET.

Nothing here may block or fail the gateway: a service manager that does not read loses a message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Any

WATCHDOG_FRACTION = 0.4
"""sd_watchdog_enabled(3) advises half of the interval; a bit less leaves room for one slow turn."""


class ServiceManager:
    """The service manager's end; without one, every call does nothing."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Takes the variables out of `environment` (default: ours): they are not our children's."""
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", "")
        watchdog_us = variables.pop("WATCHDOG_USEC", "")
        watchdog_pid = variables.pop("WATCHDOG_PID", "")
        # "@" stands for the NUL that begins an abstract address, which has no file (unix(7)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "\0")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self.watchdog_interval_s = 0.0
        """How often `watchdog` has to be called; 0 for never."""
        if watchdog_us.isdigit() and watchdog_pid in ("", str(os.getpid())):
            self.watchdog_interval_s = int(watchdog_us) / 1e6 * WATCHDOG_FRACTION
        self._status = ""

    def carried(self) -> dict[str, Any]:
        """What `restore` needs: the variables are in no environment any more."""
        return {"address": self._address, "watchdog_interval_s": self.watchdog_interval_s}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> ServiceManager:
        manager = cls({"NOTIFY_SOCKET": state["address"]})
        manager.watchdog_interval_s = state["watchdog_interval_s"]
        return manager

    def ready(self) -> None:
        self._send("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """Type=notify-reload wants the time, so that it can tell this READY=1 from the last one."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it differs from the last."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Asks for so much more time to start or stop, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)
