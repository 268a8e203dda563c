"""The HTTP API as backends meet it: their client library, bare HTTP, wrong keys, wrong bodies."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import cent
import psutil
import pytest

from gateway.api.app import BODY_BYTES_MAX
from gateway.api.methods import PUBLISH_TIMEOUT_S
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

Start = Callable[..., Gateway]


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    gateway: Gateway,
    path: str,
    body: bytes | str | dict[str, Any] | None = None,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> Answer:
    """One bare HTTP request; without `headers` it shows the key."""
    api = urlsplit(gateway.api_url)
    connection = http.client.HTTPConnection(api.hostname or "", api.port, timeout=60)
    try:
        data = json.dumps(body) if isinstance(body, dict) else body
        shown = {"X-API-Key": gateway.api_key} if headers is None else headers
        connection.request(method, path, data, shown)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def client(gateway: Gateway) -> cent.Client:
    return cent.Client(gateway.api_url, api_key=gateway.api_key, timeout=60)


# ---- methods


def test_the_synchronous_client_publishes_and_gets_contiguous_offsets(gateway: Gateway) -> None:
    api = client(gateway)
    results = [
        api.publish(cent.PublishRequest(channel="public:sync", data={"n": number}))
        for number in range(5)
    ]
    assert [result.offset for result in results] == [1, 2, 3, 4, 5]
    assert len({result.epoch for result in results}) == 1


def test_the_asynchronous_client_publishes_and_broadcasts(gateway: Gateway) -> None:
    async def talk() -> tuple[cent.PublishResult, cent.BroadcastResult]:
        api = cent.AsyncClient(gateway.api_url, api_key=gateway.api_key, timeout=60)
        try:
            published = await api.publish(cent.PublishRequest(channel="public:async", data=[1]))
            return published, await api.broadcast(
                cent.BroadcastRequest(channels=["public:async", "public:async2"], data="x")
            )
        finally:
            await api.close()

    published, broadcast = asyncio.run(talk())
    assert published.offset == 1
    offsets = [response.result.offset for response in broadcast.responses if response.result]
    assert offsets == [2, 1]


def test_a_broadcast_answers_in_order_and_one_failure_stops_no_other(gateway: Gateway) -> None:
    channels = ["public:b1", "nowhere:b2", "public:b3"]
    result = client(gateway).broadcast(cent.BroadcastRequest(channels=channels, data=1))
    [first, second, third] = result.responses
    assert first.result and third.result
    assert second.error and second.error.code == 102


def test_a_broadcast_to_many_channels_reaches_each_once(gateway: Gateway) -> None:
    channels = [f"public:many{number}" for number in range(1000)]
    result = client(gateway).broadcast(cent.BroadcastRequest(channels=channels, data=1))
    assert [response.result and response.result.offset for response in result.responses] == (
        [1] * len(channels)
    )


def test_a_batch_answers_each_command_by_its_method(gateway: Gateway) -> None:
    result = client(gateway).batch(
        cent.BatchRequest(
            requests=[
                cent.PublishRequest(channel="public:batch", data=1),
                cent.InfoRequest(),
                cent.BroadcastRequest(channels=["public:batch"], data=2),
            ],
            parallel=True,
        )
    )
    published, info, broadcast = result.replies
    assert isinstance(published, cent.PublishResult) and published.offset == 1
    assert isinstance(info, cent.InfoResult) and info.nodes
    assert isinstance(broadcast, cent.BroadcastResult)


def test_a_failed_command_of_a_batch_is_answered_in_its_place(gateway: Gateway) -> None:
    commands = [{"publish": {"channel": "nowhere:x", "data": 1}}, {"info": {}}, {"batch": {}}]
    replies = ask(gateway, "/api/batch", {"commands": commands}).json["replies"]
    assert replies[0]["error"]["code"] == 102
    assert replies[1]["info"]["nodes"]
    assert replies[2]["error"]["code"] == 107


def test_info_describes_this_gateway_as_one_node(gateway: Gateway) -> None:
    [node] = client(gateway).info(cent.InfoRequest()).nodes
    status = gateway.status()
    assert (node.name, node.version) == (status["instance"], status["version"])
    assert len(node.uid) == 36
    assert node.num_clients == sum(worker["connections"] for worker in status["workers"])
    assert 0 <= node.uptime <= status["uptime_s"] + 1


def test_a_repeated_idempotency_key_gets_the_first_result_and_publishes_nothing(
    gateway: Gateway,
) -> None:
    api = client(gateway)
    request = cent.PublishRequest(channel="public:once", data=1, idempotency_key="k-1")
    first, again = api.publish(request), api.publish(request)
    assert (again.offset, again.epoch) == (first.offset, first.epoch)
    other = cent.PublishRequest(channel="public:once", data=1, idempotency_key="k-2")
    assert api.publish(other).offset == first.offset + 1


def test_a_refused_publish_raises_the_clients_own_error_with_code_and_message(
    gateway: Gateway,
) -> None:
    with pytest.raises(cent.CentApiResponseError) as caught:
        client(gateway).publish(cent.PublishRequest(channel="nowhere:a", data=1))
    assert caught.value.code == 102
    assert "nowhere" in caught.value.message


def test_a_message_above_the_limit_is_refused_by_name_of_the_limit(gateway: Gateway) -> None:
    with pytest.raises(cent.CentApiResponseError) as caught:
        client(gateway).publish(cent.PublishRequest(channel="public:big", data="x" * 70_000))
    assert caught.value.code == 107
    assert "limits.message_bytes_max" in caught.value.message


# ---- HTTP


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/info", {"X-API-Key": "test-key"}),
        ("/api/info", {"Authorization": "apikey test-key"}),
        ("/api/info", {"authorization": "APIKey test-key"}),
        ("/api/info?api_key=test-key", {}),
    ],
)
def test_the_key_may_come_by_header_or_by_query(
    gateway: Gateway, path: str, headers: dict[str, str]
) -> None:
    assert ask(gateway, path, {}, headers=headers).status == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/info", {}),
        ("/api/info", {"X-API-Key": ""}),
        ("/api/info", {"X-API-Key": "test-key2"}),
        ("/api/info", {"Authorization": "Bearer test-key"}),
        ("/api/info?api_key=wrong", {}),
        ("/api/levitate", {}),
    ],
)
def test_without_the_key_there_is_a_401_with_an_empty_body(
    gateway: Gateway, path: str, headers: dict[str, str]
) -> None:
    answer = ask(gateway, path, {}, headers=headers)
    assert (answer.status, answer.body) == (401, b"")


def test_the_clients_own_error_tells_of_a_wrong_key(gateway: Gateway) -> None:
    with pytest.raises(cent.CentUnauthorizedError):
        cent.Client(gateway.api_url, api_key="wrong").info(cent.InfoRequest())


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_http_methods_are_answered_405(gateway: Gateway, method: str) -> None:
    assert ask(gateway, "/api/publish", "{}", method=method).status == 405


@pytest.mark.parametrize("body", [None, "", "nonsense", b"\xff", '{"channel": "a"'])
def test_a_body_that_is_not_json_is_answered_400_in_plain_text(
    gateway: Gateway, body: str | bytes | None
) -> None:
    answer = ask(gateway, "/api/publish", body)
    assert answer.status == 400
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"not JSON" in answer.body


def test_an_error_is_http_200_unless_http_errors_are_asked_for(gateway: Gateway) -> None:
    wrong = {"channel": "nowhere:a", "data": 1}
    usual = ask(gateway, "/api/publish", wrong)
    assert usual.status == 200
    assert set(usual.json["error"]) == {"code", "message"}
    headers = {"X-API-Key": gateway.api_key, "X-Centrifugo-Error-Mode": "transport"}
    by_http = ask(gateway, "/api/publish", wrong, headers=headers)
    assert by_http.status == 404
    assert by_http.json["code"] == 102
    missing = ask(gateway, "/api/publish", {"channel": "a"}, headers=headers)
    assert (missing.status, missing.json["code"]) == (400, 107)


def test_a_body_above_the_limit_is_answered_413_before_it_is_read(gateway: Gateway) -> None:
    api = urlsplit(gateway.api_url)
    with socket.create_connection((api.hostname or "", api.port or 0), timeout=60) as raw:
        head = "POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: test-key\r\n"
        raw.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_message_that_the_configuration_allows_fits_into_a_body(start_gateway: Start) -> None:
    message_bytes_max = BODY_BYTES_MAX + 1024
    gateway = start_gateway(
        {
            "workers": {"count": 1},
            "api": {"workers": 1},
            "limits": {"message_bytes_max": message_bytes_max, "queue_hard_bytes": 8 << 20},
            "log": {"capacity_bytes": 64 << 20, "uplink_bytes": 64 << 20, "uplinks_max": 3},
        }
    )
    data = "x" * (message_bytes_max - len('""'))
    answer = ask(gateway, "/api/publish", {"channel": "public:large", "data": data})
    assert answer.status == 200, answer.body
    assert answer.json["result"]["offset"] == 1


def test_a_chunked_body_above_the_limit_is_answered_413(gateway: Gateway) -> None:
    api = urlsplit(gateway.api_url)
    connection = http.client.HTTPConnection(api.hostname or "", api.port, timeout=60)
    try:
        # One byte too many, and none beyond: a client that goes on sending may meet a reset before
        # it reads the answer.
        chunks = (part for part in (b"x" * BODY_BYTES_MAX, b"x"))
        headers = {"X-API-Key": gateway.api_key}
        connection.request("POST", "/api/publish", chunks, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def test_requests_errors_and_rejections_are_counted(gateway: Gateway) -> None:
    before = gateway.totals()
    ask(gateway, "/api/publish", {"channel": "nowhere:a", "data": 1})
    ask(gateway, "/api/levitate", {})
    ask(gateway, "/api/info", {}, headers={})
    after = gateway.totals()
    for name in (
        'api_requests_total{method="publish"}',
        'api_requests_total{method="other"}',
        'api_errors_total{code="102"}',
        'api_errors_total{code="104"}',
        'api_rejections_total{reason="unauthorized"}',
    ):
        assert after[name] == before[name] + 1, name


# ---- health and life


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/health/live"])
def test_a_serving_gateway_is_healthy_for_everybody(gateway: Gateway, path: str) -> None:
    answer = ask(gateway, path, method="GET", headers={})
    assert (answer.status, answer.json) == (200, {})


def test_without_its_publisher_a_gateway_is_alive_but_not_ready(start_gateway: Start) -> None:
    gateway = start_gateway({"workers": {"stall_timeout_s": 60}})
    publisher = gateway.status()["publisher"]["pid"]
    os.kill(publisher, signal.SIGSTOP)
    try:
        answer = wait_for(
            lambda: unhealthy(ask(gateway, "/health", method="GET")), "readiness turns false"
        )
        assert "publisher" in answer.json["problem"]
        assert ask(gateway, "/health/live", method="GET").status == 200
    finally:
        os.kill(publisher, signal.SIGCONT)
    wait_for(lambda: ask(gateway, "/health", method="GET").status == 200, "ready again")


def unhealthy(answer: Answer) -> Answer | None:
    return answer if answer.status == 503 else None


def test_publishes_ride_out_a_killed_publisher(start_gateway: Start) -> None:
    gateway = start_gateway()
    api = client(gateway)
    offsets: list[int] = []

    def publish(number: int) -> int | None:
        began = time.monotonic()
        key = str(number)
        request = cent.PublishRequest(channel="public:ride", data=number, idempotency_key=key)
        try:
            return api.publish(request).offset
        except cent.CentApiResponseError:
            # A new publisher may take longer than the API waits for it, on a busy machine.
            assert time.monotonic() - began >= PUBLISH_TIMEOUT_S, "it gave up too early"
            return None

    for number in range(60):
        if number % 20 == 10:
            os.kill(gateway.status()["publisher"]["pid"], signal.SIGKILL)
        offsets.append(wait_for(lambda number=number: publish(number), "an offset"))
    assert offsets == list(range(1, 61))


def test_a_killed_api_worker_is_replaced_and_the_counts_go_on(start_gateway: Start) -> None:
    gateway = start_gateway({"api": {"workers": 2}})
    name = 'api_requests_total{method="info"}'
    for _ in range(10):
        ask(gateway, "/api/info", {})
    master = psutil.Process(gateway.status()["api"]["pid"])
    before = set(master.children())
    assert len(before) == 2
    for worker in before:
        worker.kill()
    wait_for(lambda: len(set(master.children()) - before) == 2, "two new workers")
    wait_for(lambda: ask(gateway, "/api/info", {}).status == 200, "the API serves again")
    assert gateway.totals()[name] >= 11


def test_the_api_serves_without_a_refused_connection_over_a_reload(start_gateway: Start) -> None:
    gateway = start_gateway()
    over = threading.Event()
    statuses: list[int] = []

    def knock() -> None:
        while not over.is_set():
            statuses.append(ask(gateway, "/api/info", {}).status)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        before = gateway.status()["api"]["pid"]
        gateway.control("reload")
        assert gateway.status()["api"]["pid"] != before
    finally:
        over.set()
        thread.join()
    assert set(statuses) == {200}


def test_no_api_process_survives_the_supervisor(start_gateway: Start) -> None:
    gateway = start_gateway()
    master = psutil.Process(gateway.status()["api"]["pid"])
    family = [master, *master.children()]
    os.kill(gateway.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert gateway.process is not None
    gateway.process.wait()
    # A new instance removes what the dead one left in shared memory.
    gateway.start()


def test_the_api_can_listen_on_a_unix_socket(start_gateway: Start, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("api") / "api.sock"
    gateway = start_gateway({"api": {"socket": str(path)}})

    def health() -> bytes:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(20)
            raw.connect(str(path))
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return raw.makefile("rb").read()

    assert health().startswith(b"HTTP/1.1 200 ")
    gateway.control("reload")
    assert health().startswith(b"HTTP/1.1 200 "), "the path is still there after a restart"
