"""Clients without WebSockets: server-sent events and HTTP streams, one-way or with requests of
their own to say something, as plain as curl and `EventSource` are."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from centrifuge.codecs import _ProtobufCodec
from centrifuge.protocol.client_pb2 import EmulationRequest, Reply
from google.protobuf.json_format import MessageToDict

from tests.support.gateway import Gateway, running_gateway
from tests.support.streams import Curl, EventSource, Stream, request, with_query
from tests.support.waiting import wait_for

ORIGIN = "https://app.example"
SECTIONS: dict[str, dict[str, Any]] = {
    "client": {"allow_anonymous": True, "allowed_origins": [ORIGIN]},
}
CHANNEL = "public:streams"
SUBS = {"subs": {CHANNEL: {}}}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(SECTIONS) as running:
        yield running


# ---- one way


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["/connection/uni_sse", "/connection/uni_http_stream"])
def test_whoever_can_read_lines_can_listen(gateway: Gateway, path: str, version: str) -> None:
    is_sse = path.endswith("sse")
    method, body = ("GET", b"") if is_sse else ("POST", json.dumps(SUBS).encode())
    target = with_query(path, SUBS) if is_sse else path
    with request(gateway.http_port, target, method=method, body=body, version=version) as stream:
        assert stream.status == 200
        kind = "text/event-stream; charset=utf-8" if is_sse else "application/json"
        assert stream.headers["content-type"] == kind
        assert stream.headers["x-accel-buffering"] == "no"
        assert "transfer-encoding" not in stream.headers

        def next_message() -> dict[str, Any]:
            while is_sse:
                line = stream._file.readline()
                if line.startswith(b"data: {") and line != b"data: {}\n":
                    message: dict[str, Any] = json.loads(line[6:])
                    return message
            return stream.read_line()

        assert CHANNEL in next_message()["connect"]["subs"]
        gateway.publish(CHANNEL, {"text": "κόσμε\n🌊"})
        assert next_message()["pub"]["data"] == {"text": "κόσμε\n🌊"}


@pytest.mark.parametrize("path", ["/connection/uni_sse", "/connection/uni_http_stream"])
def test_curl_listens_and_notices_no_reload(
    start_gateway: Callable[..., Gateway], path: str
) -> None:
    gateway = start_gateway(SECTIONS | {"workers": {"count": 1}})
    url = f"http://127.0.0.1:{gateway.http_port}"
    is_sse = path.endswith("sse")
    options = [] if is_sse else ["-d", json.dumps(SUBS)]
    with Curl(url + (with_query(path, SUBS) if is_sse else path), *options) as curl:
        assert CHANNEL in curl.read()["connect"]["subs"]
        gateway.publish(CHANNEL, 1)
        assert curl.read()["pub"]["data"] == 1
        moved = gateway.control("reload")
        assert sum(slot["moved"] for slot in moved["slots"]) == 1
        gateway.publish(CHANNEL, 2)
        assert curl.read()["pub"]["data"] == 2
        assert gateway.stop() == 0
        assert curl.read() == {"disconnect": {"code": 3001, "reason": "shutdown"}}
        assert curl.end() == 0


def test_a_one_way_client_is_told_why_it_ends(gateway: Gateway) -> None:
    asking = {"subs": {"nowhere:a": {}}}
    with EventSource(gateway.http_port, with_query("/connection/uni_sse", asking)) as source:
        assert source.read().data == {"disconnect": {"code": 3501, "reason": "bad request"}}
        assert source.stream.read() == b""


def test_a_stream_that_is_hung_up_on_is_let_go(gateway: Gateway) -> None:
    def connections() -> int:
        return sum(worker["connections"] for worker in gateway.status()["workers"])

    wait_for(lambda: connections() == 0, "the clients of other tests are gone")
    with EventSource(gateway.http_port, with_query("/connection/uni_sse", SUBS)) as source:
        source.read()
        wait_for(lambda: connections() == 1, "it is counted")
    wait_for(lambda: connections() == 0, "it is gone")


# ---- coming back


def test_an_event_source_goes_on_after_the_last_event_that_it_saw(gateway: Gateway) -> None:
    channels = [f"public:resume-{number}" for number in range(3)]
    target = with_query("/connection/uni_sse", {"subs": {channel: {} for channel in channels}})
    with EventSource(gateway.http_port, target) as source:
        source.read()
        for number in range(6):
            gateway.publish(channels[number % 3], number)
        seen = [source.read() for _ in range(6)]
    assert [event.data["pub"]["data"] for event in seen] == list(range(6))
    # As if each of them had been the last.
    for number, event in enumerate(seen):
        with EventSource(gateway.http_port, target, event.last_event_id) as source:
            subs = source.read().data["connect"]["subs"]
        missed = [
            publication["data"]
            for channel in channels
            for publication in subs[channel].get("publications", [])
        ]
        assert sorted(missed) == list(range(number + 1, 6))
        assert all(subs[channel]["recovered"] for channel in channels)


def test_an_event_source_that_saw_nothing_but_the_beginning_goes_on_from_there(
    gateway: Gateway,
) -> None:
    channel = "public:quiet"
    target = with_query("/connection/uni_sse", {"subs": {channel: {}}})
    with EventSource(gateway.http_port, target) as source:
        connected = source.read()
    gateway.publish(channel, "meanwhile")
    with EventSource(gateway.http_port, target, connected.last_event_id) as source:
        sub = source.read().data["connect"]["subs"][channel]
    assert [publication["data"] for publication in sub["publications"]] == ["meanwhile"]


def test_what_an_event_source_saw_last_counts_more_than_what_its_address_says(
    gateway: Gateway,
) -> None:
    channel = "public:addressed"
    epoch = gateway.publish(channel, 1)["epoch"]
    since = {"recover": True, "offset": 0, "epoch": epoch}
    target = with_query("/connection/uni_sse", {"subs": {channel: since}})
    with EventSource(gateway.http_port, target) as source:
        connected = source.read()
    gateway.publish(channel, 2)
    with EventSource(gateway.http_port, target, connected.last_event_id) as source:
        again = source.read()
    for event, missed in [(connected, [1]), (again, [2])]:
        sub = event.data["connect"]["subs"][channel]
        assert [publication["data"] for publication in sub["publications"]] == missed


def test_an_event_source_of_very_many_channels_is_told_which_it_cannot_go_on_with(
    start_gateway: Callable[..., Gateway],
) -> None:
    # Their names would not fit into an address: this is a POST, as no browser makes it.
    gateway = start_gateway(SECTIONS | {"limits": {"header_bytes_max": 1024}})
    channels = [f"public:many-{number}" for number in range(100)]
    body = json.dumps({"subs": {channel: {} for channel in channels}}).encode()

    def connect(headers: dict[str, str]) -> tuple[str, dict[str, Any]]:
        with request(
            gateway.http_port, "/connection/uni_sse", method="POST", headers=headers, body=body
        ) as stream:
            lines = [stream._file.readline().decode() for _ in range(3)]
        last_event_id = lines[1].removeprefix("id: ").rstrip("\n")
        subs: dict[str, Any] = json.loads(lines[2].removeprefix("data: "))["connect"]["subs"]
        return last_event_id, subs

    last_event_id, _ = connect({})
    assert len(last_event_id) <= 512
    _, subs = connect({"Last-Event-ID": last_event_id})
    recovered = [channel for channel in channels if subs[channel].get("recovered")]
    assert 20 < len(recovered) < 60
    assert all(sub["was_recovering"] for sub in subs.values())


def test_an_event_source_that_was_away_for_too_long_is_told_so(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway(SECTIONS | {"limits": {"recovery_publications_max": 5}})
    target = with_query("/connection/uni_sse", SUBS)
    with EventSource(gateway.http_port, target) as source:
        connected = source.read()
    for number in range(6):
        gateway.publish(CHANNEL, number)
    with EventSource(gateway.http_port, target, connected.last_event_id) as source:
        sub = source.read().data["connect"]["subs"][CHANNEL]
    assert sub["was_recovering"] and "recovered" not in sub and "publications" not in sub


def test_an_event_source_that_loses_its_connection_again_and_again_misses_and_repeats_nothing(
    gateway: Gateway,
) -> None:
    channels = [f"public:torn-{number}" for number in range(5)]
    count = 400
    target = with_query("/connection/uni_sse", {"subs": {channel: {} for channel in channels}})
    rng = random.Random(20)
    seen: Counter[tuple[str, int]] = Counter()
    last_event_id = ""
    first = EventSource(gateway.http_port, target)
    last_event_id = first.read().last_event_id

    def publish() -> None:
        for number in range(count):
            gateway.publish(channels[number % len(channels)], number)

    publisher = threading.Thread(target=publish)
    publisher.start()
    source = first
    while sum(seen.values()) < count:
        for _ in range(rng.randint(1, 30)):
            event = source.read()
            note(event.data, seen)
            last_event_id = event.last_event_id
            if sum(seen.values()) == count:
                break
        source.__exit__()
        source = EventSource(gateway.http_port, target, last_event_id)
    source.__exit__()
    publisher.join(20)
    assert not publisher.is_alive()
    assert set(seen.values()) == {1}
    assert len(seen) == count


def note(message: dict[str, Any], seen: Counter[tuple[str, int]]) -> None:
    """Count what a message brings, live or missed."""
    if "pub" in message:
        seen[message["channel"], message["pub"]["data"]] += 1
        return
    for channel, sub in message["connect"]["subs"].items():
        assert sub.get("recovered"), sub
        for publication in sub.get("publications", []):
            seen[channel, publication["data"]] += 1


# ---- both ways


CONNECT = {"id": 1, "connect": {}}


def emulate(gateway: Gateway, connected: dict[str, Any], *commands: dict[str, Any]) -> int:
    """Say something by a request of its own; returns the status of the answer."""
    body = {
        "session": connected["session"],
        "node": connected["node"],
        "data": "\n".join(json.dumps(command) for command in commands),
    }
    with request(
        gateway.http_port, "/emulation", method="POST", body=json.dumps(body).encode()
    ) as answer:
        assert answer.read() == b""
        return answer.status


def test_an_event_stream_and_requests_make_a_session(gateway: Gateway) -> None:
    target = with_query("/connection/sse", CONNECT)
    with EventSource(gateway.http_port, target) as source:
        reply = source.read().data
        connected = reply["connect"]
        assert reply["id"] == 1
        assert connected["session"] and connected["node"] and connected["pong"]
        # Any worker takes any of these: some are the stream's, some are not.
        for number in range(2, 12):
            channel = f"{CHANNEL}-{number}"
            assert (
                emulate(gateway, connected, {"id": number, "subscribe": {"channel": channel}})
                == 204
            )
            assert source.read().data["id"] == number
        gateway.publish(f"{CHANNEL}-7", "x")
        assert source.read().data["push"]["channel"] == f"{CHANNEL}-7"
        both = [{"id": 20, "unsubscribe": {"channel": f"{CHANNEL}-7"}}, {"id": 21, "rpc": {}}]
        assert emulate(gateway, connected, *both) == 204
        assert source.read().data == {"id": 20, "unsubscribe": {}}
        assert source.read().data["error"]["code"] == 108


def test_an_http_stream_speaks_protobuf_too(gateway: Gateway) -> None:
    binary = {"Content-Type": "application/octet-stream"}
    with request(
        gateway.http_port,
        "/connection/http_stream",
        method="POST",
        headers=binary,
        body=_ProtobufCodec.encode_commands([CONNECT]),
    ) as stream:
        assert stream.headers["content-type"] == "application/octet-stream"
        connected = read_reply(stream)["connect"]
        subscribe = [{"id": 2, "subscribe": {"channel": CHANNEL}}]
        emulation = EmulationRequest(
            node=connected["node"],
            session=connected["session"],
            data=_ProtobufCodec.encode_commands(subscribe),
        )
        with request(
            gateway.http_port,
            "/emulation",
            method="POST",
            headers=binary,
            body=emulation.SerializeToString(),
        ) as answer:
            assert answer.status == 204
        assert "subscribe" in read_reply(stream)
        gateway.publish(CHANNEL, "x")
        assert read_reply(stream)["push"]["channel"] == CHANNEL


def read_reply(stream: Stream) -> dict[str, Any]:
    reply = Reply.FromString(stream.read_delimited())
    found: dict[str, Any] = MessageToDict(reply, preserving_proto_field_name=True)
    return found


def test_a_json_stream_pipelines_what_comes_with_its_request(gateway: Gateway) -> None:
    commands = [CONNECT, {"id": 2, "subscribe": {"channel": CHANNEL}}]
    body = "\n".join(json.dumps(command) for command in commands).encode()
    with request(gateway.http_port, "/connection/http_stream", method="POST", body=body) as stream:
        assert "connect" in stream.read_line()
        assert "subscribe" in stream.read_line()
        gateway.publish(CHANNEL, {"text": "x"})
        assert stream.read_line()["push"]["pub"]["data"] == {"text": "x"}


def test_a_session_that_says_nonsense_is_ended_with_a_reason(gateway: Gateway) -> None:
    with EventSource(gateway.http_port, with_query("/connection/sse", CONNECT)) as source:
        connected = source.read().data["connect"]
        assert emulate(gateway, connected, {"id": 9, "nonsense": {}}) == 204
        push = source.read().data["push"]
        assert push == {"disconnect": {"code": 3501, "reason": "bad request"}}
        assert source.stream.read() == b""


def test_requests_that_reach_no_session_are_answered(gateway: Gateway) -> None:
    with EventSource(gateway.http_port, with_query("/connection/sse", CONNECT)) as source:
        connected = source.read().data["connect"]
    # Whoever just left may be said something to, for all that anybody knows.
    assert emulate(gateway, connected, {"id": 2, "presence": {"channel": CHANNEL}}) == 204

    def status(body: bytes) -> int:
        with request(gateway.http_port, "/emulation", method="POST", body=body) as answer:
            return answer.status

    elsewhere = connected | {"node": "00000000-0000-4000-8000-000000000000"}
    assert status(json.dumps(elsewhere | {"data": "{}"}).encode()) == 404
    assert status(b"nonsense") == 400
    assert status(b"") == 400
    assert status(b" " * 65537) == 413


# ---- who may ask


@pytest.mark.parametrize(
    ("status", "method", "target", "headers"),
    [
        (400, "GET", "/connection/sse", {}),
        (400, "GET", "/connection/sse?cf_connect=nonsense", {}),
        (400, "GET", "/connection/uni_sse?cf_connect=%ff", {}),
        (400, "POST", "/connection/http_stream", {}),
        (403, "GET", "/connection/uni_sse", {"Origin": "https://elsewhere.example"}),
        (403, "OPTIONS", "/emulation", {"Origin": "https://elsewhere.example"}),
        (404, "GET", "/connection/uni_grpc", {}),
        (405, "PUT", "/connection/sse", {}),
        (405, "GET", "/connection/http_stream", {}),
        (405, "GET", "/emulation", {}),
        (411, "POST", "/emulation", {"Transfer-Encoding": "chunked"}),
        (413, "POST", "/emulation", {"Content-Length": "65537"}),
    ],
)
def test_a_request_that_is_refused_is_told_why(
    gateway: Gateway, status: int, method: str, target: str, headers: dict[str, str]
) -> None:
    if "Transfer-Encoding" in headers:
        sent = f"{method} {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = Stream(gateway.http_port, sent.encode())
    else:
        answer = request(gateway.http_port, target, method=method, headers=headers)
    with answer:
        assert answer.status == status
        body = answer.read()
        assert body and len(body) == int(answer.headers["content-length"])
        assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("status", "method", "target", "body"),
    [
        (400, "GET", "/connection/sse", b""),
        (400, "POST", "/connection/http_stream", b"nonsense"),
        (400, "GET", "/connection/websocket", b""),
        (400, "POST", "/emulation", b"nonsense"),
        (404, "POST", "/emulation", b'{"node":"another","session":"x","data":"{}"}'),
        (404, "GET", "/connection/uni_grpc", b""),
        (405, "GET", "/emulation", b""),
        (413, "POST", "/emulation", b" " * 65537),
    ],
)
def test_a_page_of_an_allowed_origin_may_read_why_it_is_refused(
    gateway: Gateway, status: int, method: str, target: str, body: bytes
) -> None:
    headers = {"Origin": ORIGIN}
    with request(gateway.http_port, target, method=method, headers=headers, body=body) as answer:
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["vary"] == "Origin"
    stranger = {"Origin": "https://elsewhere.example"}
    with request(gateway.http_port, target, method=method, headers=stranger, body=body) as answer:
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_an_allowed_origin_may_listen_and_speak(gateway: Gateway) -> None:
    origin = {"Origin": ORIGIN}
    asked = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    with request(gateway.http_port, "/emulation", method="OPTIONS", headers=asked) as answer:
        assert answer.status == 204
        assert answer.headers["access-control-allow-headers"] == "content-type"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-max-age"] == "300"
    target = with_query("/connection/sse", CONNECT)
    with request(gateway.http_port, target, headers=origin) as stream:
        assert stream.headers["access-control-allow-origin"] == ORIGIN
        assert stream.headers["access-control-allow-credentials"] == "true"


def test_the_init_endpoint_answers(gateway: Gateway) -> None:
    with request(gateway.http_port, "/connection/init") as answer:
        assert (answer.status, answer.read()) == (200, b"{}")


def test_a_transport_that_is_switched_off_is_not_there(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway({"client": {"transports": ["uni_sse"]}, "workers": {"count": 1}})
    with request(gateway.http_port, "/connection/uni_sse") as stream:
        assert stream.status == 200
    for target in ["/connection/sse", "/connection/websocket", "/emulation"]:
        with request(gateway.http_port, target) as answer:
            assert answer.status == 404


# ---- a reload in between


def test_a_reload_in_the_middle_changes_nothing_for_streams(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway(SECTIONS)
    channels = [f"public:moved-{number}" for number in range(3)]
    wanted = {"subs": {channel: {} for channel in channels}}
    binary = {"Content-Type": "application/octet-stream"}
    commands = _ProtobufCodec.encode_commands([CONNECT])
    with (
        EventSource(gateway.http_port, with_query("/connection/uni_sse", wanted)) as listener,
        EventSource(gateway.http_port, with_query("/connection/sse", CONNECT)) as speaker,
        request(
            gateway.http_port,
            "/connection/http_stream",
            method="POST",
            headers=binary,
            body=commands,
        ) as stream,
    ):
        listener.read()
        connected = speaker.read().data["connect"]
        read_reply(stream)
        subscribe = {"id": 2, "subscribe": {"channel": channels[0]}}
        assert emulate(gateway, connected, subscribe) == 204
        assert "subscribe" in speaker.read().data
        for number in range(3):
            gateway.publish(channels[number], number)
        event = [listener.read() for _ in range(3)][-1]
        assert speaker.read().data["push"]["pub"]["data"] == 0

        moved = gateway.control("reload")
        assert sum(slot["closed"] for slot in moved["slots"]) == 0

        for number in range(3):
            gateway.publish(channels[number], number + 3)
        later = [listener.read() for _ in range(3)]
        assert [each.data["pub"]["data"] for each in later] == [3, 4, 5]
        assert speaker.read().data["push"]["pub"]["data"] == 3
        # What an id says, and which session a request is for, other processes know as well.
        assert (
            emulate(gateway, connected, {"id": 3, "unsubscribe": {"channel": channels[0]}}) == 204
        )
        assert speaker.read().data == {"id": 3, "unsubscribe": {}}
        target = with_query("/connection/uni_sse", wanted)
        with EventSource(gateway.http_port, target, event.last_event_id) as back:
            seen: Counter[tuple[str, int]] = Counter()
            note(back.read().data, seen)
        assert sorted(data for _, data in seen) == [3, 4, 5]
