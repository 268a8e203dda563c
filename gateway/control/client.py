"""The client of the control socket: blocking, one request at a time, for tools and producers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from gateway.control.wire import PROTOCOL_VERSION, recv_frame, send_frame
from gateway.errors import ControlError, InstanceError, ProtocolError, Unreachable
from gateway.instance import RunningInstance, find_instances
from workers.link import close_all

__all__ = ["ControlClient", "find_instance", "find_instances"]

CONNECT_TIMEOUT_S = 5.0

Progress = Callable[[dict[str, Any]], None]


class ControlClient:
    """A connection to one supervisor. Not for several threads at once.

        with ControlClient() as control:
            print(control.call("status")["state"])

    `timeout_s` bounds the silence between two frames, not the whole of a verb: long verbs stream
    progress. None waits for ever. Raises Unreachable where nobody answers.
    """

    def __init__(
        self, path: Path | str | None = None, *, timeout_s: float | None = CONNECT_TIMEOUT_S
    ) -> None:
        self.path = Path(path) if path is not None else find_instance().control_path
        self._request_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        patience_s = CONNECT_TIMEOUT_S if timeout_s is None else timeout_s
        self._socket.settimeout(min(CONNECT_TIMEOUT_S, patience_s))
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(timeout_s)

    def _connect(self) -> None:
        try:
            self._socket.connect(os.fspath(self.path))
        except PermissionError as error:
            raise Unreachable(
                f"{self.path} does not let this user in",
                remedy="become the user that runs the gateway, or be named in [control]",
                code="not_permitted",
            ) from error
        except OSError as error:
            raise Unreachable(
                f"no gateway answers at {self.path} ({error.strerror or error})",
                remedy="start one (`tidegate run`), or name another with -i or --socket",
            ) from error
        self.greeting, fds = recv_frame(self._socket)
        close_all(fds)
        if "error" in self.greeting:
            raise _error(self.greeting["error"])
        if self.greeting.get("tidegate") != PROTOCOL_VERSION:
            raise ProtocolError(
                f"{self.path} speaks version {self.greeting.get('tidegate')!r} of the control "
                f"protocol, this is version {PROTOCOL_VERSION}",
                remedy="use the command line of the gateway's own installation",
            )

    def call(
        self, verb: str, *, on_progress: Progress | None = None, **args: Any
    ) -> dict[str, Any]:
        """Carries out one verb and returns its result.

        `on_progress` gets each progress map of a long verb. Raises ControlError (with the
        supervisor's code, message and remedy), Unreachable or ProtocolError.
        """
        result, fds = self.call_with_descriptors(verb, on_progress=on_progress, **args)
        close_all(fds)
        return result

    def call_with_descriptors(
        self, verb: str, *, on_progress: Progress | None = None, **args: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """As `call`, with the descriptors that came along; the caller owns them."""
        self._request_id += 1
        try:
            send_frame(self._socket, {"id": self._request_id, "verb": verb, "args": args})
        except Unreachable:
            # Whoever ends a connection says why, before; then the reason is better than the loss.
            self._raise_last_words()
            raise
        while True:
            message, fds = recv_frame(self._socket)
            if message.get("id") != self._request_id:
                close_all(fds)
                if "error" in message:
                    raise _error(message["error"])
                raise ProtocolError(f"an answer to request {message.get('id')!r} was not asked for")
            if "result" in message:
                return message["result"], fds
            close_all(fds)
            if "error" in message:
                raise _error(message["error"])
            if on_progress is not None and "progress" in message:
                on_progress(message["progress"])

    def _raise_last_words(self) -> None:
        with contextlib.suppress(Unreachable, ProtocolError):
            message, fds = recv_frame(self._socket)
            close_all(fds)
            if "error" in message:
                raise _error(message["error"])

    def fileno(self) -> int:
        """For waiting until the supervisor ends the connection."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def find_instance(name: str = "") -> RunningInstance:
    """The one instance that runs here, or the one of that name.

    Raises Unreachable where there is none, InstanceError where there are several: never a guess.
    """
    found = [each for each in find_instances() if name in ("", each.name)]
    if not found:
        what = f'no gateway named "{name}"' if name else "no gateway"
        raise Unreachable(
            f"{what} runs on this host, or none that this user can see",
            remedy="start one (`tidegate run`), or name its control socket with --socket",
            code="no_instance",
        )
    if len(found) > 1:
        listed = ", ".join(f"{each.name} (pid {each.pid}, {each.control_path})" for each in found)
        raise InstanceError(
            f"several gateways run on this host: {listed}",
            remedy="choose one with -i NAME or --socket PATH",
            code="several_instances",
        )
    return found[0]


def _error(error: dict[str, Any]) -> ControlError:
    return ControlError(
        str(error.get("message", "the supervisor refused")),
        remedy=str(error.get("remedy", "")),
        code=str(error.get("code", "")),
    )
