"""Clients that are slow, silent, flooding or broken: each has a bound, and nobody else notices."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import psutil
import pytest

from gateway.errors import TidegateError
from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_for, wait_until_equal

Start = Callable[..., Gateway]

UPGRADE = (
    "GET /connection/uni_websocket?cf_connect=%7B%22subs%22:%7B%22{channel}%22:%7B%7D%7D%7D "
    "HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

HOSTILE_BYTES_SEED = 20260


@pytest.fixture
def sockets() -> Iterator[Callable[[int], socket.socket]]:
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(
            closing(socket.create_connection(("127.0.0.1", port), 60))
        )


def total(gateway: Gateway, name: str) -> int:
    return gateway.totals().get(name, 0)


def resident_bytes(gateway: Gateway) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in gateway.worker_pids())


def connections(gateway: Gateway) -> int:
    return sum(int(worker["connections"]) for worker in gateway.status()["workers"])


def stalled_subscriber(
    gateway: Gateway, channel: str, sockets: Callable[[int], socket.socket]
) -> socket.socket:
    """Upgrades, subscribes, reads the answer and nothing more, behind a small receive buffer."""
    client = sockets(gateway.http_port)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(UPGRADE.format(channel=channel).encode())
    assert client.recv(12) == b"HTTP/1.1 101"
    return client


@pytest.mark.sending
def test_a_client_over_the_hard_limit_is_closed_as_slow_and_the_others_get_everything(
    start_gateway: Start, sockets: Callable[[int], socket.socket]
) -> None:
    gateway = start_gateway({"limits": {"queue_hard_bytes": 262144, "queue_soft_bytes": 131072}})
    stalled_subscriber(gateway, "public:hard", sockets)
    with (
        Subscriber(gateway.websocket_url, "public:hard") as reader,
        Producer(gateway.control_path) as producer,
    ):
        wait_for(lambda: connections(gateway) == 2, "both clients")
        # More than the kernel's buffers of both ends hold, which is some megabytes at most.
        for number in range(400):
            last = producer.publish("public:hard", "x" * 30_000)
            if number % 8 == 7:
                # The bound holds for the reader too: it has to keep up on a busy machine.
                reader.wait_for_offset("public:hard", last.offset)
        wait_for(lambda: total(gateway, 'closes_total{reason="slow"}') == 1, "a slow close")
        reader.wait_for_offset("public:hard", last.offset)
        reader.assert_contiguous("public:hard")
        assert len(reader.connects) == 1


@pytest.mark.sending
def test_a_client_over_the_soft_limit_for_too_long_is_closed_as_slow(
    start_gateway: Start, sockets: Callable[[int], socket.socket]
) -> None:
    gateway = start_gateway(
        {
            "limits": {
                "queue_hard_bytes": 64 << 20,
                "queue_soft_bytes": 131072,
                "queue_soft_s": 1,
                "connections_max": 100,
            }
        }
    )
    stalled_subscriber(gateway, "public:soft", sockets)
    wait_for(lambda: connections(gateway) == 1, "the client")
    with Producer(gateway.control_path) as producer:
        for _ in range(400):
            producer.publish("public:soft", "x" * 30_000)
    wait_for(lambda: total(gateway, 'closes_total{reason="slow"}') == 1, "a slow close")


def test_a_request_that_trickles_is_given_up_and_counted(
    start_gateway: Start, sockets: Callable[[int], socket.socket]
) -> None:
    gateway = start_gateway({"limits": {"handshake_timeout_s": 5}})
    client = sockets(gateway.http_port)
    client.sendall(b"GET /connection/uni_websocket HTTP/1.1\r\nX-Slow: ")
    wait_for(lambda: connections(gateway) == 1, "the connection to be taken")

    def given_up() -> bool:
        try:
            client.sendall(b"z")
        except OSError:
            return True
        return connections(gateway) == 0

    wait_for(given_up, "the end of the trickling request")
    wait_for(lambda: total(gateway, 'http_rejects_total{reason="timeout"}') == 1, "the counter")


def test_a_flood_of_headers_is_answered_and_counted(
    gateway: Gateway, sockets: Callable[[int], socket.socket]
) -> None:
    client = sockets(gateway.http_port)
    flood = "".join(f"X-Flood-{number}: {'y' * 100}\r\n" for number in range(200))
    client.sendall(f"GET /connection/uni_websocket HTTP/1.1\r\n{flood}".encode())
    assert client.recv(12) == b"HTTP/1.1 431"


@pytest.mark.sending
def test_connections_over_the_limit_are_told_so(
    start_gateway: Start, sockets: Callable[[int], socket.socket]
) -> None:
    gateway = start_gateway({"workers": {"count": 1}, "limits": {"connections_max": 3}})
    kept = [Subscriber(gateway.websocket_url, "public:full") for _ in range(3)]
    with ExitStack() as stack:
        for subscriber in kept:
            stack.enter_context(subscriber)
        refused = sockets(gateway.http_port)
        refused.sendall(UPGRADE.format(channel="public:full").encode())
        assert refused.recv(12) == b"HTTP/1.1 503"
        refusals = 'refusals_total{reason="connections_max"}'
        wait_for(lambda: total(gateway, refusals) == 1, "the refusal to be counted")
        gateway.publish("public:full", 1)
        for subscriber in kept:
            subscriber.wait_for_offset("public:full", 1)


@pytest.mark.sending
def test_garbage_of_every_kind_neither_ends_a_worker_nor_stays_in_its_memory(
    start_gateway: Start,
) -> None:
    gateway = start_gateway()
    before = gateway.worker_pids()
    bad = random.Random(HOSTILE_BYTES_SEED)
    ports = [gateway.http_port, gateway.tcp_port]

    def storm(rounds: int) -> None:
        for _ in range(rounds):
            with closing(socket.create_connection(("127.0.0.1", bad.choice(ports)), 60)) as client:
                client.sendall(garbage(bad))

    def ends() -> int:
        families = ("closes_total", "http_rejects")
        return sum(v for name, v in gateway.totals().items() if name.startswith(families))

    storm(500)
    wait_until_equal(ends, 500, "every end to be counted under a reason")
    warm = resident_bytes(gateway)
    storm(4000)
    wait_until_equal(ends, 4500, "every end to be counted under a reason")
    assert connections(gateway) == 0
    assert gateway.worker_pids() == before
    # 4,000 inputs of up to 70 kB: had a hundredth of them stayed, it would show.
    assert resident_bytes(gateway) - warm < 2 << 20


def garbage(bad: random.Random) -> bytes:
    noise = bad.randbytes(bad.choice([0, 1, 15, 16, 17, 300, 70_000]))
    upgrade = UPGRADE.format(channel="public:garbage").encode()
    return bad.choice(
        [
            noise,
            upgrade + noise,
            upgrade[: bad.randrange(len(upgrade))],
            upgrade + b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff" + noise,
            upgrade + b"\x01\x80abcd" * 3 + noise,
            b"\x4d\x42\x01" + noise,
            b"\x4d\x42\x01\x04" + bytes(10) + b"\xff\xff" + noise[:1000],
        ]
    )


def test_many_half_open_frames_hold_no_more_than_their_bound(start_gateway: Start) -> None:
    gateway = start_gateway({"limits": {"message_bytes_max": 16384}})
    warm = resident_bytes(gateway)
    halves: list[socket.socket] = []
    lock = threading.Lock()

    def open_some() -> None:
        for _ in range(100):
            client = socket.create_connection(("127.0.0.1", gateway.http_port), 60)
            client.sendall(UPGRADE.format(channel="public:half").encode())
            assert client.recv(12) == b"HTTP/1.1 101"
            # Announces 16 KiB and sends all but the last byte.
            client.sendall(b"\x81\xfe\x40\x00abcd" + bytes(16383))
            with lock:
                halves.append(client)

    threads = [threading.Thread(target=open_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(halves) == 400
    grown = resident_bytes(gateway) - warm
    for client in halves:
        client.close()
    # Twice what was sent, and some for the allocator: growth by doubling has such a bound.
    assert grown < 2 * 400 * 16384 + (8 << 20)
    wait_for(lambda: connections(gateway) == 0, "an empty house")


@pytest.mark.parametrize("channel", ["public:ü", "$public:secret", "x" * 256, "nowhere:a"])
def test_a_channel_that_is_none_for_a_client_is_refused_by_every_entrance(
    gateway: Gateway, channel: str
) -> None:
    subscriber = Subscriber(gateway.websocket_url, channel)
    wait_for(lambda: subscriber.connects or subscriber.close_codes, "an answer")
    # Not allowed: left out of the answer. Impossible, or in no namespace: 3501.
    if channel.startswith("$"):
        assert not subscriber.connects[0].get("subs")
    else:
        wait_for(lambda: subscriber.close_codes == [3501], "a bad request")
        with pytest.raises(TidegateError):
            gateway.publish(channel, 1)
    subscriber.__exit__()
