"""Ports and Unix sockets: shared among slots, refused to and by strangers."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import InstanceError
from gateway.listeners import Port, listen_unix


def test_port_zero_becomes_one_port_for_all_slots() -> None:
    port = Port("127.0.0.1", 0, "client.http_port")
    listeners = [port.listen(16) for _ in range(3)]
    assert {listener.getsockname() for listener in listeners} == {("127.0.0.1", port.port)}
    assert str(port) == f"127.0.0.1:{port.port}"
    for listener in (*listeners, port):
        listener.close()


def test_the_kernel_spreads_connections_over_the_listeners() -> None:
    port = Port("127.0.0.1", 0, "client.http_port")
    listeners = [port.listen(128) for _ in range(2)]
    clients = [socket.create_connection(("127.0.0.1", port.port)) for _ in range(64)]
    accepted: list[int] = []
    for listener in listeners:
        count = 0
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        accepted.append(count)
    assert sum(accepted) == 64
    assert min(accepted) > 0
    for each in (*clients, *listeners, port):
        each.close()


def test_a_port_is_kept_while_no_slot_listens() -> None:
    port = Port("127.0.0.1", 0, "client.http_port")
    port.listen(16).close()
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", port.port))
    port.listen(16).close()
    port.close()


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_of_another_process_is_refused_even_if_it_would_share(shares: bool) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        with pytest.raises(InstanceError) as caught:
            Port("127.0.0.1", taken, "client.http_port")
        assert caught.value.code == "port_taken"
        assert f"client.http_port = {taken}" in caught.value.message
        assert f"process {os.getpid()}" in caught.value.message


def test_of_a_family_that_shares_a_listener_the_eldest_is_named() -> None:
    """Stopping a worker of another gateway would not free the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = "import signal; print(flush=True); signal.pause()"
        child = subprocess.Popen(
            [sys.executable, "-c", program], pass_fds=[listener.fileno()], stdout=subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            child.stdout.readline()
            with pytest.raises(InstanceError) as caught:
                Port("127.0.0.1", listener.getsockname()[1], "client.http_port")
        finally:
            child.kill()
            child.communicate()
    assert f"process {os.getpid()} " in caught.value.message


def port_in_time_wait() -> int:
    first = Port("127.0.0.1", 0, "client.http_port")
    listener = first.listen(16)
    client = socket.create_connection(("127.0.0.1", first.port))
    listener.setblocking(True)
    server, _ = listener.accept()
    # Who closes first is left in TIME_WAIT: the server, as after a stop.
    server.close()
    client.close()
    listener.close()
    first.close()
    return first.port


def test_a_port_with_connections_in_time_wait_is_free() -> None:
    def is_free(number: int) -> bool:
        with contextlib.suppress(InstanceError):
            Port("127.0.0.1", number, "client.http_port").close()
            return True
        return False

    # Another process may take one of them in between.
    assert any(is_free(port_in_time_wait()) for _ in range(5))


def test_an_address_of_another_machine_is_a_clear_error() -> None:
    with pytest.raises(InstanceError) as caught:
        Port("192.0.2.1", 0, "client.http_port")
    assert caught.value.code == "address"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv6_addresses_are_written_in_brackets() -> None:
    port = Port("::1", 0, "client.http_port")
    assert str(port) == f"[::1]:{port.port}"
    port.close()


def test_a_unix_socket_has_its_mode_from_the_first_moment(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        listener = listen_unix(tmp_path / "s", 0o600, 16)
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        listener.close()
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(umask)


def test_a_dead_unix_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    listen_unix(tmp_path / "s", 0o600, 16).close()
    living = listen_unix(tmp_path / "s", 0o600, 16)
    with pytest.raises(InstanceError) as caught:
        listen_unix(tmp_path / "s", 0o600, 16)
    assert caught.value.code == "socket_taken"
    living.close()


def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(InstanceError, match="is no socket"):
        listen_unix(tmp_path / "s", 0o600, 16)
    assert (tmp_path / "s").read_text() == "mine"
