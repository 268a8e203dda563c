"""What a benchmark says when the server it measures is gone or does not come up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from gateway.errors import TidegateError
from ops.bench.caller import Caller
from ops.bench.command import bench
from ops.bench.nats import nats


@pytest.mark.parametrize(
    "asked",
    [
        lambda caller, request: caller.ask(request),
        lambda caller, request: caller.call(request, 1),
    ],
    ids=["ask", "call"],
)
def test_a_closed_api_connection_is_an_error_with_a_name(
    asked: Callable[[Caller, bytes], object],
) -> None:
    def hang_up() -> None:
        connection, _ = listener.accept()
        with connection:
            # Read whole, or the end would be a reset instead.
            assert connection.recv(1 << 16).endswith(b"{}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with (
            Caller(f"127.0.0.1:{listener.getsockname()[1]}", "key", 1) as caller,
            pytest.raises(TidegateError, match="closed the connection"),
        ):
            asked(caller, caller.request("info", b"{}"))
        thread.join(timeout=10)


def test_a_nats_server_that_ends_before_its_log_does_not_start() -> None:
    with pytest.raises(TidegateError, match="false does not start"), nats("/bin/false"):
        pass


@pytest.mark.parametrize("arguments", [(), ("fanout", "--peers")])
def test_benchmarks_are_named_or_those_beside_peers_are_meant(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(bench, arguments)
    assert result.exit_code == 2
    assert "name one benchmark, or all, or give --peers" in result.output
