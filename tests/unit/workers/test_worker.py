"""The worker's process: what the supervisor says to it, and what it answers."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count, islice
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.waiting import wait_for
from tests.support.worker import SETTINGS, WorkerProcess, started_worker

Subscribe = Callable[[], ClientConnection]


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with started_worker() as started:
        yield started


@pytest.fixture
def subscribe(worker: WorkerProcess) -> Iterator[Subscribe]:
    """Connects a WebSocket client to the worker and subscribes it to `public:a`."""
    with ExitStack() as stack:

        def subscribed() -> ClientConnection:
            client = stack.enter_context(connect(worker.websocket_url))
            client.send(json.dumps({"subs": {"public:a": {}}}))
            assert "connect" in json.loads(client.recv(timeout=10))
            return client

        yield subscribed


def close_code(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            client.recv(timeout=10)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def test_a_booted_worker_serves(worker: WorkerProcess, subscribe: Subscribe) -> None:
    assert worker.boot() == {"type": "ready"}
    client = subscribe()
    worker.publisher.producer().publish("public:a", '{"n": 1}')
    assert json.loads(client.recv(timeout=10)) == {
        "channel": "public:a",
        "pub": {"data": {"n": 1}, "offset": 1},
    }
    client.close()
    wait_for(lambda: worker.totals()['closes_total{reason="normal"}'] == 1, "the goodbye")


def test_a_drain_closes_everyone_with_its_code_and_ends_the_worker(
    worker: WorkerProcess, subscribe: Subscribe
) -> None:
    worker.boot()
    clients = [subscribe() for _ in range(5)]
    worker.link.send({"type": "drain", "spread_s": 0.3, "code": 3011})
    assert [close_code(client) for client in clients] == [3011] * 5
    messages = []
    while not messages or messages[-1]["type"] != "drained":
        messages.append(worker.link.recv()[0])
    assert messages[-1] == {"type": "drained", "closed": 5}
    assert all(message["type"] == "draining" for message in messages[:-1])
    assert worker.end()[0] == 0


def test_a_leaving_worker_first_takes_who_waits(worker: WorkerProcess) -> None:
    worker.boot()
    process = psutil.Process(worker.process.pid)
    process.suspend()
    with closing(socket.create_connection(("127.0.0.1", worker.port(1)), 10)) as late:
        worker.link.send({"type": "leave", "spread_s": 0, "code": 3001})
        process.resume()
        assert late.recv(4) == b"MB\x01\x0d", "a CLOSE frame"
        late.shutdown(socket.SHUT_RDWR)
    while worker.link.recv()[0]["type"] != "drained":
        pass
    assert worker.end()[0] == 0


def test_a_stop_closes_everyone_at_once(worker: WorkerProcess, subscribe: Subscribe) -> None:
    worker.boot()
    client = subscribe()
    worker.link.send({"type": "stop"})
    assert close_code(client) == 3001
    status, logged = worker.end()
    assert status == 0
    assert "stopped closed=1" in logged


def test_a_worker_without_a_supervisor_ends_at_once(
    worker: WorkerProcess, subscribe: Subscribe
) -> None:
    worker.boot()
    subscribe()
    worker.link.close()
    assert worker.end()[0] == 1


def test_settings_of_another_version_are_refused_by_name(worker: WorkerProcess) -> None:
    answer = worker.boot({**SETTINGS.as_map(), "colour": "green"})
    assert (answer["type"], answer["code"]) == ("failed", "worker_boot")
    assert "colour" in answer["message"]
    status, logged = worker.end()
    assert status == 1
    assert "Traceback" not in logged


def test_a_segment_of_another_kind_is_refused_by_name(worker: WorkerProcess) -> None:
    worker.memory.log = worker.memory.channels
    answer = worker.boot()
    assert (answer["type"], answer["code"]) == ("failed", "segment_kind")
    assert "log" in answer["message"]
    assert worker.end()[0] == 1


def test_unknown_messages_are_logged_and_change_nothing(
    worker: WorkerProcess, subscribe: Subscribe
) -> None:
    worker.boot()
    worker.link.send({"type": "dance"})
    worker.link.send({"type": "reopen_logs"})
    subscribe().close()
    worker.link.send({"type": "stop"})
    status, logged = worker.end()
    assert status == 0
    assert "type=dance" in logged


def test_without_descriptors_left_clients_are_refused_and_later_ones_served(
    worker: WorkerProcess, subscribe: Subscribe
) -> None:
    worker.boot()
    # The limit is one of numbers: below it, four are to be free.
    used = {int(path.name) for path in Path(f"/proc/{worker.process.pid}/fd").iterdir()}
    limit = next(islice((above for above in count(1) if above - 1 not in used), 3, None))
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (limit, 4096))
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(
                closing(socket.create_connection(("127.0.0.1", worker.port(0)), 10))
            )
        refused = 'refusals_total{reason="descriptors"}'
        wait_for(lambda: worker.totals()[refused] >= 1, "a refusal")
        wait_for(
            lambda: (
                worker.totals()['connections{transport="websocket"}'] + worker.totals()[refused]
                == 10
            ),
            "everyone taken or refused",
        )
    wait_for(lambda: worker.totals()['connections{transport="websocket"}'] == 0, "everyone gone")
    subscribe().close()


def test_an_idle_worker_is_small(worker: WorkerProcess, subscribe: Subscribe) -> None:
    worker.boot()
    subscribe().close()
    memory = psutil.Process(worker.process.pid).memory_full_info()
    # What is its own: the interpreter's and the engine's code are shared by all workers.
    assert memory.uss < 16 << 20
