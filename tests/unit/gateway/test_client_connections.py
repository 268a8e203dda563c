"""Both clients over real sockets, against a server's end that each test plays by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import pytest

from gateway.client import AsyncClient, Backoff, Client, Gap, Message, Position
from gateway.client.frames import Kind
from gateway.client.payloads import (
    Connect,
    Connected,
    Delivery,
    Failure,
    Goodbye,
    Publish,
    Published,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from gateway.errors import Disconnected, PublishError, SubscribeError, Unreachable
from tests.support.waiting import wait_for
from tests.support.wire import CONNECTED, TIMEOUT_S, RawWire

T = TypeVar("T")

ALIAS = 70_000


class Peer(RawWire):
    """The server's end of one connection."""

    def greet(self, connected: Connected = CONNECTED) -> Connect:
        connect = Connect.parse(self.expect(Kind.CONNECT).payload)
        self.send(Kind.CONNECTED, connected.encode())
        return connect

    def answer_subscribe(
        self, top: Position, *, recovered: bool = False, alias: int = ALIAS
    ) -> Subscribe:
        asked = Subscribe.parse(self.expect(Kind.SUBSCRIBE).payload)
        answer = Subscribed(asked.request, alias, True, recovered, top)
        self.send(Kind.SUBSCRIBED, answer.encode())
        return asked

    def deliver(self, *offsets: int, alias: int = ALIAS, size: int = 0) -> None:
        for offset in offsets:
            value = json.dumps("x" * size or offset).encode()
            self.send(Kind.DATA, b"\0" + Delivery(alias, offset, value).encode())

    def say_goodbye(self, code: int, reason: str) -> None:
        """CLOSE, and wait for the client's."""
        self.send(Kind.CLOSE, Goodbye(code, reason).encode())
        while frame := self.receive():
            if frame.kind is Kind.CLOSE:
                assert Goodbye.parse(frame.payload).code == code
        self.close()


class Server:
    """A listening socket; `play` runs the client's side while the test plays the server's."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        # Bound to the end: what nobody has is soon another process's, who would be knocked at.
        port = stack.enter_context(socket.socket())
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind(("127.0.0.1", 0))
        self._listener = stack.enter_context(
            socket.create_server(port.getsockname(), reuse_port=True)
        )
        self._listener.settimeout(TIMEOUT_S)
        self._executor = stack.enter_context(ThreadPoolExecutor(4))
        self.address = f"127.0.0.1:{port.getsockname()[1]}"

    def accept(self) -> Peer:
        peer, _ = self._listener.accept()
        self._stack.enter_context(peer)
        return Peer(peer)

    def stop_listening(self) -> None:
        self._listener.close()

    def play(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        return self._executor.submit(call, *args, **kwargs)

    def client(self, greeting: Connected = CONNECTED, **kwargs: Any) -> tuple[Client, Peer]:
        """A client that has connected, and the server's end of its connection."""
        client = Client(self.address, backoff=Backoff(0.01, 0.05), **kwargs)
        # Before `accept`: it is closed after the server's end, and need not wait for its goodbye.
        self._stack.callback(client.close)
        connecting = self.play(client.connect)
        peer = self.accept()
        peer.greet(greeting)
        connecting.result(TIMEOUT_S)
        return client, peer


@pytest.fixture
def server() -> Iterator[Server]:
    with ExitStack() as stack:
        yield Server(stack)


def offsets(subscription: Any, count: int) -> list[int]:
    events = [subscription.receive(TIMEOUT_S) for _ in range(count)]
    assert all(isinstance(event, Message) for event in events), events
    return [event.offset for event in events]


def test_a_subscription_yields_messages_and_ends_with_close(server: Server) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 4))
    peer.deliver(5, 6)
    subscription = subscribing.result(TIMEOUT_S)
    assert subscription.position == Position("e", 4)
    assert offsets(subscription, 2) == [5, 6]
    assert subscription.position == Position("e", 6)
    closing = server.play(client.close)
    assert peer.goodbye().code == 1000
    peer.close()
    closing.result(TIMEOUT_S)
    assert list(subscription) == []


def test_the_asyncio_client_iterates_and_publishes(server: Server) -> None:
    async def use() -> tuple[list[int], Position]:
        async with AsyncClient(server.address, name="async") as client:
            subscription = await client.subscribe("news")
            seen = []
            async for event in subscription:
                assert isinstance(event, Message)
                seen.append(event.value)
                if len(seen) == 3:
                    await subscription.unsubscribe()
            return seen, await client.publish("news", {"a": 1}, tags={"k": "v"})

    using = server.play(asyncio.run, use())
    peer = server.accept()
    assert peer.greet().name == "async"
    peer.answer_subscribe(Position("e", 0))
    peer.deliver(1, 2, 3)
    unsubscribe = Unsubscribe.parse(peer.expect(Kind.UNSUBSCRIBE).payload)
    assert unsubscribe.alias == ALIAS
    answer = Unsubscribed(unsubscribe.request, ALIAS, 0, "unsubscribed")
    peer.send(Kind.UNSUBSCRIBED, answer.encode())
    publish = Publish.parse(peer.expect(Kind.PUBLISH).payload[1:])
    assert (publish.data, publish.tags) == (b'{"a":1}', '{"k":"v"}')
    peer.send(Kind.PUBLISHED, Published(publish.request, Position("e", 4)).encode())
    assert peer.goodbye().code == 1000
    peer.close()
    assert using.result(TIMEOUT_S) == ([1, 2, 3], Position("e", 4))


def test_a_lost_connection_is_made_again_and_recovers_without_repeats(server: Server) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 0))
    subscription = subscribing.result(TIMEOUT_S)
    peer.deliver(1, 2)
    assert offsets(subscription, 2) == [1, 2]
    peer.close()

    peer = server.accept()
    peer.greet()
    asked = peer.answer_subscribe(Position("e", 4), recovered=True, alias=5)
    assert asked.since == Position("e", 2)
    peer.deliver(2, 3, 4, 5, alias=5)
    assert offsets(subscription, 3) == [3, 4, 5]


def test_an_unrecoverable_gap_is_an_event_of_its_own(server: Server) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news", since=Position("old", 9))
    assert peer.answer_subscribe(Position("new", 3)).since == Position("old", 9)
    peer.deliver(4)
    subscription = subscribing.result(TIMEOUT_S)
    assert subscription.receive(TIMEOUT_S) == Gap("news", Position("old", 9), Position("new", 3))
    assert offsets(subscription, 1) == [4]


def test_a_server_that_skips_a_publication_is_asked_again(server: Server) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 0))
    subscription = subscribing.result(TIMEOUT_S)
    peer.deliver(1, 3)
    assert peer.goodbye().code == 3010
    peer.close()
    peer = server.accept()
    peer.greet()
    assert peer.answer_subscribe(Position("e", 3), recovered=True).since == Position("e", 1)
    peer.deliver(2, 3)
    assert offsets(subscription, 3) == [1, 2, 3]


@pytest.mark.parametrize(("code", "back"), [(3001, True), (3008, True), (3503, False)])
def test_the_close_code_says_whether_the_client_comes_back(
    server: Server, code: int, back: bool
) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 0))
    subscription = subscribing.result(TIMEOUT_S)
    peer.say_goodbye(code, "because")
    if back:
        server.accept().greet()
        return
    with pytest.raises(Disconnected) as caught:
        subscription.receive(TIMEOUT_S)
    assert caught.value.close_code == code
    with pytest.raises(Disconnected):
        client.publish("news", 1)


def test_a_refused_connect_is_told_and_can_be_tried_again(server: Server) -> None:
    client = Client(server.address)
    connecting = server.play(client.connect)
    peer = server.accept()
    peer.expect(Kind.CONNECT)
    peer.say_goodbye(3500, "invalid token")
    with pytest.raises(Disconnected, match="3500 invalid token"):
        connecting.result(TIMEOUT_S)
    again = server.play(client.connect)
    peer = server.accept()
    peer.greet()
    again.result(TIMEOUT_S)
    closing = server.play(client.close)
    peer.goodbye()
    peer.close()
    closing.result(TIMEOUT_S)


def test_nobody_there_is_unreachable(server: Server) -> None:
    server.stop_listening()
    with pytest.raises(Unreachable, match=server.address):
        Client(server.address).connect()


def test_a_refused_subscription_is_told_and_can_be_tried_again(server: Server) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "secret")
    asked = Subscribe.parse(peer.expect(Kind.SUBSCRIBE).payload)
    peer.send(Kind.ERROR, Failure(asked.request, 103, False, "permission denied").encode())
    with pytest.raises(SubscribeError, match="permission denied") as caught:
        subscribing.result(TIMEOUT_S)
    assert caught.value.status == 103
    again = server.play(client.subscribe, "secret")
    peer.answer_subscribe(Position("e", 0))
    again.result(TIMEOUT_S)
    with pytest.raises(SubscribeError, match="already"):
        client.subscribe("secret")


@pytest.mark.parametrize(("code", "again"), [(2500, True), (2000, False)])
def test_the_server_may_end_a_subscription(server: Server, code: int, again: bool) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 7))
    subscription = subscribing.result(TIMEOUT_S)
    peer.send(Kind.UNSUBSCRIBED, Unsubscribed(0, ALIAS, code, "because").encode())
    if again:
        assert peer.answer_subscribe(Position("e", 7), recovered=True).since == Position("e", 7)
        peer.deliver(8)
        assert offsets(subscription, 1) == [8]
    else:
        with pytest.raises(SubscribeError, match="because") as caught:
            subscription.receive(TIMEOUT_S)
        assert caught.value.status == 2000


def test_an_invalidated_state_is_a_gap(server: Server) -> None:
    client, peer = server.client()
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 7))
    subscription = subscribing.result(TIMEOUT_S)
    peer.send(Kind.UNSUBSCRIBED, Unsubscribed(0, ALIAS, 2502, "state invalidated").encode())
    nowhere = peer.answer_subscribe(Position("e", 7)).since
    assert nowhere is not None and nowhere.epoch != "e"
    assert subscription.receive(TIMEOUT_S) == Gap("news", nowhere, Position("e", 7))
    peer.say_goodbye(3014, "state invalidated")
    peer = server.accept()
    peer.greet()
    assert peer.answer_subscribe(Position("e", 9)).since == nowhere
    assert subscription.receive(TIMEOUT_S) == Gap("news", nowhere, Position("e", 9))


def test_a_subscribe_that_is_given_up_leaves_nothing_behind(server: Server) -> None:
    unsubscribed = threading.Event()

    async def use() -> None:
        async with AsyncClient(server.address) as client:
            asking = asyncio.create_task(client.subscribe("news"))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.to_thread(unsubscribed.wait, TIMEOUT_S)

    using = server.play(asyncio.run, use())
    peer = server.accept()
    peer.greet()
    peer.answer_subscribe(Position("e", 0))
    assert Unsubscribe.parse(peer.expect(Kind.UNSUBSCRIBE).payload).alias == ALIAS
    unsubscribed.set()
    peer.goodbye()
    peer.close()
    using.result(TIMEOUT_S)


@pytest.mark.parametrize("address", ["", "8001", "host:", "host:port"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(Unreachable, match="host:port"):
        Client(address)


def test_a_publish_is_answered_with_its_place_or_its_error(server: Server) -> None:
    client, peer = server.client()
    publishing = server.play(client.publish, "news", b"\x00\xff")
    publish = Publish.parse(peer.expect(Kind.PUBLISH).payload[1:])
    assert publish.binary and publish.data == b"\x00\xff"
    peer.send(Kind.PUBLISHED, Published(publish.request, Position("e", 1)).encode())
    assert publishing.result(TIMEOUT_S) == Position("e", 1)
    publishing = server.play(client.publish, "news", 1)
    request = Publish.parse(peer.expect(Kind.PUBLISH).payload[1:]).request
    peer.send(Kind.ERROR, Failure(request, 103, False, "permission denied").encode())
    with pytest.raises(PublishError, match="permission denied") as caught:
        publishing.result(TIMEOUT_S)
    assert caught.value.status == 103


def test_a_publish_whose_answer_is_lost_is_unknown_unless_it_has_a_key(server: Server) -> None:
    client, peer = server.client()
    unknown = server.play(client.publish, "news", 1)
    keyed = server.play(client.publish, "news", 2, idempotency_key="k")
    peer.expect(Kind.PUBLISH)
    peer.expect(Kind.PUBLISH)
    peer.close()
    with pytest.raises(PublishError) as caught:
        unknown.result(TIMEOUT_S)
    assert caught.value.code == "publish.unknown"
    peer = server.accept()
    peer.greet()
    publish = Publish.parse(peer.expect(Kind.PUBLISH).payload[1:])
    assert (publish.data, publish.idempotency_key) == (b"2", "k")
    peer.send(Kind.PUBLISHED, Published(publish.request, Position("e", 9)).encode())
    assert keyed.result(TIMEOUT_S) == Position("e", 9)


def test_the_window_closes_on_an_application_that_does_not_consume(server: Server) -> None:
    client, peer = server.client(window_bytes=4000)
    subscribing = server.play(client.subscribe, "news")
    peer.answer_subscribe(Position("e", 0))
    subscription = subscribing.result(TIMEOUT_S)
    # Deliver until the window that the client tells is closed.
    offset = 0
    while True:
        peer.deliver(offset + 1, offset + 2, offset + 3, size=700)
        offset += 3
        ack = peer.receive()
        assert ack is not None
        if ack.window_size < 1000:
            break
    assert offset == 6
    assert offsets(subscription, offset) == list(range(1, offset + 1))
    assert peer.expect(Kind.WINDOW_UPDATE).window_size >= 1000


def test_heartbeats_go_out_while_the_application_is_idle(server: Server) -> None:
    _, peer = server.client(dataclasses.replace(CONNECTED, heartbeat_interval_ms=50))
    for _ in range(3):
        frame = peer.receive()
        assert frame is not None and frame.kind is Kind.HEARTBEAT


def test_a_silent_server_is_left_with_3012_and_tried_again(server: Server) -> None:
    impatient = dataclasses.replace(CONNECTED, heartbeat_interval_ms=100, heartbeat_timeout_ms=1000)
    _, peer = server.client(impatient)
    assert peer.goodbye().code == 3012
    server.accept().greet()


def test_closing_while_the_server_is_away_does_not_wait_for_it(server: Server) -> None:
    client, peer = server.client()
    server.stop_listening()
    peer.close()
    wait_for(lambda: client._client._wire is None, "the loss is noticed")
    server.play(client.close).result(TIMEOUT_S)
