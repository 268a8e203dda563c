"""Listening sockets: a pair (http, tcp) for each slot, held by the supervisor for the slot's life.

Closing a SO_REUSEPORT listener resets the connections in its accept queue (unless
net.ipv4.tcp_migrate_req is 1), so a listener outlives every worker that accepts from it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from gateway.carrying import Keep, Take
from gateway.errors import InstanceError


class Port:
    """One address and port that all slots share; port 0 becomes a real one here, and stays.

    A bound socket that never listens holds the port while no slot exists, so that a gateway that
    was drained finds its port again.
    """

    def __init__(
        self, address: str, port: int, key: str, reservation: socket.socket | None = None
    ) -> None:
        """Raises InstanceError where another process has the port (`key` is the one to change).

        Not where the port is ours already, by a `reservation` that goes on.
        """
        self.address = address
        self._family = _family(address)
        if port and reservation is None:
            self._refuse_if_taken(port, key)
        self._reservation = reservation or self._bound(port, key)
        self.port: int = self._reservation.getsockname()[1]

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {"address": self.address, "reservation": keep(self._reservation.fileno())}

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take) -> Port:
        return cls(state["address"], 0, "", socket.socket(fileno=take(state["reservation"])))

    def listen(self, backlog: int) -> socket.socket:
        """A further listener on the port; the kernel spreads new connections over all of them."""
        listener = self._bound(self.port, "")
        listener.listen(backlog)
        listener.setblocking(False)
        return listener

    def __str__(self) -> str:
        host = f"[{self.address}]" if self._family == socket.AF_INET6 else self.address
        return f"{host}:{self.port}"

    def close(self) -> None:
        self._reservation.close()

    def _bound(self, port: int, key: str) -> socket.socket:
        bound = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Connections begin with the options of their listener: no call for each of them.
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound.bind((self.address, port))
        except OSError as error:
            bound.close()
            raise _refused(self.address, port, key, error) from error
        return bound

    def _refuse_if_taken(self, port: int, key: str) -> None:
        """With SO_REUSEPORT a bind succeeds beside another gateway of the same user.

        It would then get a share of our clients. SO_REUSEADDR alone passes over connections in
        TIME_WAIT, yet not over a listener (socket(7)).
        """
        with socket.socket(self._family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.address, port))
            except OSError as error:
                raise _refused(self.address, port, key, error) from error


def listen_unix(path: Path, mode: int, backlog: int) -> socket.socket:
    """A listening Unix socket at `path`. Raises InstanceError; replaces a socket nobody serves."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        # Between bind and chmod the socket must not be wider open than wanted.
        umask = os.umask(0o777 & ~mode)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(umask)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InstanceError(
            f"cannot listen at {path} ({error.strerror or error})",
            remedy="choose a path in a directory that this user may write",
            code="socket_path",
        ) from error
    except InstanceError:
        listener.close()
        raise
    return listener


def _remove_dead_socket(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InstanceError(
                f"{path} exists and is no socket", remedy="remove it, or choose another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except OSError:
                pass
        raise InstanceError(
            f"another process listens at {path}",
            remedy="stop it, or choose another path",
            code="socket_taken",
        )


def _family(address: str) -> socket.AddressFamily:
    version = ipaddress.ip_address(address).version
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _refused(address: str, port: int, key: str, error: OSError) -> InstanceError:
    if error.errno == errno.EADDRINUSE:
        return InstanceError(
            f"{key} = {port}: {address}:{port} is used by {_holder(port)}",
            remedy="stop it, or choose another port (0 takes any free one)",
            code="port_taken",
        )
    if error.errno == errno.EACCES:
        return InstanceError(
            f"{key} = {port}: this user may not use a port below 1024",
            remedy="choose a higher one, or grant CAP_NET_BIND_SERVICE",
            code="port_forbidden",
        )
    return InstanceError(
        f"cannot listen at {address}:{port} ({error.strerror})",
        remedy="give an address of this machine",
        code="address",
    )


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may know: of a family, the eldest."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if _listens(connection, port) and connection.pid:
                process = psutil.Process(connection.pid)
                # A child has the listener from its parent, and is replaced when it is stopped.
                while (parent := process.parent()) and any(
                    _listens(each, port) for each in parent.net_connections("tcp")
                ):
                    process = parent
                return f"process {process.pid} ({process.name()})"
    return "another process"


def _listens(connection: Any, port: int) -> bool:
    listening = connection.status == psutil.CONN_LISTEN
    return bool(listening and connection.laddr and connection.laddr.port == port)
