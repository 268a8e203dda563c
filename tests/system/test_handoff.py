"""Connections outlive processes: what clients see of a reload, a rescale and a rebalance."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.client import Client, frames
from gateway.client.frames import Kind
from gateway.client.payloads import Publish, Published
from gateway.control.client import ControlClient
from gateway.producer import Producer
from tests.support import raw_websocket
from tests.support.crowd import Crowd
from tests.support.gateway import Gateway
from tests.support.publishing import Publishing
from tests.support.raw_websocket import FIN, PING, PONG, TEXT, RawWebSocket, frame, head
from tests.support.waiting import PATIENCE_S, wait_for
from tests.support.wire import raw_wire

Start = Callable[..., Gateway]

CHANNEL = "public:handoff"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def one_worker(start_gateway: Start) -> Gateway:
    return start_gateway({"workers": {"count": 1}})


# ---- nobody notices


@pytest.mark.sending
def test_no_client_notices_a_reload_under_full_load(start_gateway: Start) -> None:
    gateway = start_gateway()
    with (
        Crowd(gateway, CHANNEL, each=25) as crowd,
        Producer(gateway.control_path) as producer,
        Publishing(producer, CHANNEL, pause_s=0, position=crowd.position) as sent,
    ):
        for _ in range(3):
            before = gateway.worker_pids()
            result = gateway.control("reload")
            assert not set(before) & set(gateway.worker_pids())
            assert sum(slot["moved"] for slot in result["slots"]) == 100
            assert {slot["closed"] + slot["lost"] for slot in result["slots"]} == {0}
        assert gateway.ends() == {}
        top = len(sent)
        wait_for(lambda: len(sent) > top, "one more message")
        crowd.assert_undisturbed(sent[-1])


def test_a_reload_tells_what_it_moved_and_how_long_it_took(one_worker: Gateway) -> None:
    with Crowd(one_worker, CHANNEL, each=10) as crowd:
        heard: list[dict[str, Any]] = []
        with ControlClient(one_worker.control_path, timeout_s=PATIENCE_S) as control:
            result = control.call("reload", on_progress=heard.append)
        (slot,) = result["slots"]
        assert {key: slot[key] for key in ("slot", "moved", "kept", "closed", "lost")} == {
            "slot": 0,
            "moved": 40,
            "kept": 0,
            "closed": 0,
            "lost": 0,
        }
        pause = slot["pause_us"]
        assert 0 < pause["p50"] <= pause["p99"] <= pause["max"]
        last = [each for each in heard if each["phase"] == "slot 0"][-1]
        assert (last["moved"], last["remaining"]) == (40, 0)
        crowd.assert_undisturbed(one_worker.publish(CHANNEL, 1)["offset"])


@pytest.mark.timeout(900)
def test_ten_reloads_leave_nothing_behind(start_gateway: Start) -> None:
    gateway = start_gateway()
    supervisor = psutil.Process(gateway.pid)

    def footprint() -> tuple[int, int, list[str]]:
        publisher = psutil.Process(gateway.status()["publisher"]["pid"])
        segments = [each.name for each in Path("/dev/shm").glob(f"tidegate-{gateway.name}-*")]
        kinds = sorted(name.rstrip("0123456789") for name in segments)
        return supervisor.num_fds(), publisher.num_fds(), kinds

    with Crowd(gateway, CHANNEL, each=10) as crowd:
        for _ in range(2):
            gateway.control("reload")
        # The descriptors of the API before go when its workers have let go of their uplinks.
        wait_for(lambda: len(footprint()[2]) == 5 + 2 * 2 + 2, "the end of what was replaced")
        before, memory_before = footprint(), supervisor.memory_info().rss
        for _ in range(10):
            result = gateway.control("reload")
            assert sum(slot["moved"] for slot in result["slots"]) == 40
        wait_for(lambda: footprint() == before, f"{footprint()} to be {before}")
        assert supervisor.memory_info().rss - memory_before < 2 << 20
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])


@pytest.mark.sending
def test_half_a_frame_is_completed_by_the_rest_at_the_next_worker(one_worker: Gateway) -> None:
    ping = frame(FIN | PING, b"are you there?")
    with ExitStack() as stack:
        halves = []
        for cut in range(1, len(ping)):
            socket = stack.enter_context(RawWebSocket(one_worker.http_port))
            socket.connect(CHANNEL)
            socket.send(ping[:cut])
            halves.append((socket, ping[cut:]))
        result = one_worker.control("reload")
        assert result["slots"][0]["moved"] == len(halves)
        for socket, rest in halves:
            socket.send(rest)
            assert socket.read_frame() == (PONG, b"are you there?")


def test_half_a_handshake_is_completed_at_the_next_worker(one_worker: Gateway) -> None:
    query = "?cf_connect=" + json.dumps({"subs": {CHANNEL: {}}}, separators=(",", ":"))
    request = head(f"GET {raw_websocket.PATH}{query} HTTP/1.1", raw_websocket.HANDSHAKE)
    with ExitStack() as stack:
        halves = []
        for cut in range(0, len(request), 16):
            socket = stack.enter_context(RawWebSocket(one_worker.http_port))
            socket.send(request[:cut])
            halves.append((socket, request[cut:]))
        wait_for(lambda: one_worker.connections() == [len(halves)], "everybody to be accepted")
        assert one_worker.control("reload")["slots"][0]["closed"] == 0
        for socket, rest in halves:
            socket.send(rest)
            status, _, _ = socket.read_response()
            assert status == 101
            assert "connect" in socket.read_push()


@pytest.mark.sending
def test_a_client_that_reads_later_gets_what_waited_for_it(one_worker: Gateway) -> None:
    data = "x" * 8000
    with RawWebSocket(one_worker.http_port) as socket:
        socket.connect(CHANNEL)
        queued, before = 0, -1
        # More than kernel buffers hold, so that a part of a frame is on its way. The same twice:
        # until then the kernel may be making room; it does once more at the next send.
        while queued < 500_000 or queued != before:
            if queued < 500_000:
                for _ in range(10):
                    top = one_worker.publish(CHANNEL, data)["offset"]
            else:
                threading.Event().wait(0.2)
            queued, before = one_worker.totals()["queued_bytes"], queued
            assert top < 5000, f"the kernel takes everything: {one_worker.ends()}"
        one_worker.control("reload")
        assert one_worker.totals()["queued_bytes"] >= 100_000
        top = one_worker.publish(CHANNEL, "last")["offset"]
        assert [socket.read_push()["pub"]["offset"] for _ in range(top)] == list(range(1, top + 1))


@pytest.mark.sending
def test_the_binary_protocol_goes_on_with_its_numbers(one_worker: Gateway) -> None:
    with raw_wire(one_worker.tcp_port) as wire:
        wire.connect(crc=True)
        for number in range(1, 4):
            publish = b"\0" + Publish(number, CHANNEL, b'"cut in two"').encode()
            wire.seq += 1
            whole = frames.encode(
                Kind.PUBLISH, wire.seq, wire.received_seq, wire.window_size, publish, crc=True
            )
            wire.peer.sendall(whole[:30])
            one_worker.control("reload")
            wire.peer.sendall(whole[30:])
            answer = Published.parse(wire.expect(Kind.PUBLISHED).payload)
            assert (answer.request, answer.position.offset) == (number, number)


@pytest.mark.sending
def test_publishes_of_clients_are_answered_once_over_reloads(one_worker: Gateway) -> None:
    stopping = threading.Event()
    with Client(f"127.0.0.1:{one_worker.tcp_port}") as client:
        server = client.server
        offsets: list[int] = []

        def publish() -> None:
            while not stopping.is_set():
                offsets.append(client.publish(CHANNEL, len(offsets)).offset)

        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publish)
            for _ in range(3):
                one_worker.control("reload")
            stopping.set()
            publishing.result(60)
        assert offsets == list(range(1, len(offsets) + 1))
        assert client.server is server, "one connection for all"


def connect_until_done(gateway: Gateway, meanwhile: Callable[[], Any], per_s: int) -> list[str]:
    """New clients at a steady rate while something is done; returns what became of each."""
    port = gateway.http_port
    outcomes: list[str] = []
    connect = frame(FIN | TEXT, json.dumps({"subs": {CHANNEL: {}}}).encode())
    request = head(f"GET {raw_websocket.PATH} HTTP/1.1", raw_websocket.HANDSHAKE)

    async def one_client() -> None:
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request + connect)
                response = await reader.readuntil(b"\r\n\r\n")
                assert response.startswith(b"HTTP/1.1 101 ")
                reply = await reader.readexactly(2)
                assert reply[0] == FIN | TEXT
                writer.close()
        except (OSError, EOFError, AssertionError) as error:
            outcomes.append(repr(error))
        else:
            outcomes.append("served")

    async def clients(done: Future[Any]) -> None:
        began, started = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not done.done():
                group.create_task(one_client())
                started += 1
                await asyncio.sleep(max(0.0, began + started / per_s - time.monotonic()))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(meanwhile)
        asyncio.run(clients(done))
        done.result()
    return outcomes


def test_no_new_client_is_refused_or_reset_during_reloads(start_gateway: Start) -> None:
    gateway = start_gateway()
    reload = [lambda: gateway.control("reload")] * 3
    outcomes = connect_until_done(gateway, lambda: [each() for each in reload], per_s=500)
    assert len(outcomes) > 100
    assert set(outcomes) == {"served"}


def test_no_new_client_is_refused_or_reset_while_workers_leave(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 4}})
    outcomes = connect_until_done(gateway, lambda: gateway.control("scale", count=1), per_s=500)
    assert len(outcomes) > 100
    assert set(outcomes) == {"served"}
    # The kernel spreads new ones over all slots again.
    gateway.control("scale", count=2)
    with Crowd(gateway, CHANNEL, each=40, makers=("raw",)):
        wait_for(lambda: sum(gateway.connections()) == 40, "everybody")
        assert min(gateway.connections()) > 0


# ---- scale and rebalance


@pytest.mark.sending
def test_scaling_down_drops_nobody(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 3}})
    with (
        Crowd(gateway, CHANNEL, each=15) as crowd,
        Producer(gateway.control_path) as producer,
        Publishing(producer, CHANNEL, position=crowd.position) as sent,
    ):
        leaving = sum(gateway.connections()[1:])
        result = gateway.control("scale", count=1)
        assert [slot["slot"] for slot in result["slots"]] == [2, 1]
        assert sum(slot["moved"] for slot in result["slots"]) >= leaving
        assert {slot["closed"] + slot["lost"] for slot in result["slots"]} == {0}
        wait_for(lambda: gateway.connections() == [60], "sixty connections on the one worker")
        assert gateway.ends() == {}
        crowd.assert_undisturbed(sent[-1])


def test_a_leaving_worker_shares_its_connections_out_evenly(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 3}})
    with Crowd(gateway, CHANNEL, each=60, makers=("raw",)) as crowd:
        gateway.control("scale", count=2)
        wait_for(lambda: sum(gateway.connections()) == 60, "sixty connections on two workers")
        before = gateway.connections()
        assert max(before) - min(before) <= 1 or max(before) > 30
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])


def test_a_rebalance_moves_connections_to_the_workers_that_came_later(
    start_gateway: Start,
) -> None:
    gateway = start_gateway({"workers": {"count": 1}})
    with (
        Crowd(gateway, CHANNEL, each=15) as crowd,
        Producer(gateway.control_path) as producer,
        Publishing(producer, CHANNEL, position=crowd.position) as sent,
    ):
        gateway.control("scale", count=3)
        assert gateway.connections() == [60, 0, 0]
        result = gateway.control("rebalance")
        assert result["before"] == {"connections": [60, 0, 0], "skew_percent": 100.0}
        assert result["after"] == {"connections": [20, 20, 20], "skew_percent": 0.0}
        assert result["moved"] == 40
        wait_for(lambda: gateway.connections() == [20, 20, 20], "twenty connections each")
        assert gateway.control("rebalance")["moved"] == 0
        crowd.assert_undisturbed(sent[-1])


def test_skew_is_mended_unasked_if_configured(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"count": 1, "rebalance_above_percent": 20}})
    with Crowd(gateway, CHANNEL, each=200, makers=("raw",)) as crowd:
        gateway.control("scale", count=2)
        wait_for(lambda: gateway.connections() == [100, 100], "a hundred connections each")
        crowd.assert_undisturbed(gateway.publish(CHANNEL, 1)["offset"])
