"""A back end without Python decides over HTTP, and an identity provider publishes its keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_websocket

from tests.support.backend import Backend, running_backend
from tests.support.commands import CommandClient
from tests.support.gateway import Gateway, running_gateway
from tests.support.waiting import wait_for

REFETCH_AFTER_S = 10.0
"""So old must keys be to be asked for again because of a token that names another one."""
ROOM = {"name": "room", "allow_subscribe_for_client": True, "publish_hook": True}


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as running:
        yield running


@pytest.fixture
def gateway(backend: Backend) -> Iterator[Gateway]:
    kinds = ("connect", "subscribe", "publish", "rpc", "disconnect")
    hooks: dict[str, Any] = {f"{kind}_url": f"{backend.url}/{kind}" for kind in kinds}
    hooks |= {"headers": ["Authorization", "X-Real-IP"], "timeout_s": 20.0}
    asked = {"name": "asked", "subscribe_hook": True}
    sections = {"workers": {"count": 1}, "hooks": hooks, "channel": {"namespaces": [ROOM, asked]}}
    with running_gateway(sections) as running:
        yield running


def decide(path: str, question: dict[str, Any]) -> web.Response:
    """What a back end would answer to each question."""
    answers: dict[str, Any] = {
        "/connect": {"result": {"user": "42", "data": {"hello": True}, "channels": ["room:a"]}},
        "/subscribe": {"error": {"code": 403, "message": "not there"}},
        "/publish": {"result": {"data": {"checked": question.get("data")}}},
        "/rpc": {"result": {"data": question.get("method")}},
        "/disconnect": {},
    }
    return web.json_response(answers[path])


def test_a_back_end_decides_everything_over_http(gateway: Gateway, backend: Backend) -> None:
    backend.answer = decide
    with CommandClient(gateway.http_port) as client:
        connected = client.call("connect", data={"a": 1}, name="test", version="7")
        assert connected["data"] == {"hello": True} and "room:a" in connected["subs"]
        assert client.error("subscribe", channel="asked:b")["code"] == 403
        client.call("publish", channel="room:a", data="x")
        assert client.push()["pub"]["data"] == {"checked": "x"}
        assert client.call("rpc", method="m", data=None)["data"] == "m"
    gone = wait_for(lambda: backend.questions("/disconnect"), "the disconnect")
    question = backend.questions("/connect")[0]
    assert question == {
        "client": connected["client"],
        "transport": "websocket",
        "protocol": "json",
        "encoding": "json",
        "name": "test",
        "version": "7",
        "data": {"a": 1},
    }
    assert gone[0]["user"] == "42" and gone[0]["code"] == 1000
    assert backend.questions("/publish")[0]["channel"] == "room:a"


def test_headers_of_the_client_reach_the_back_end_with_every_question(
    gateway: Gateway, backend: Backend
) -> None:
    backend.answer = decide
    headers = {"Authorization": "Bearer x", "X-Real-IP": "192.0.2.1", "X-Other": "stays"}
    with CommandClient(gateway.http_port, headers=headers) as client:
        # What it could send itself it cannot say otherwise.
        emulated = {"x-real-ip": "198.51.100.1", "x-other": "stays"}
        client.call("connect", headers=emulated)
        gateway.control("reload")
        client.call("rpc", method="m")
    assert [path for path, _, _ in backend.asked[:2]] == ["/connect", "/rpc"]
    for _, sent, question in backend.asked[:2]:
        assert sent["authorization"] == "Bearer x"
        assert sent["x-real-ip"] == "192.0.2.1"
        assert "x-other" not in sent
        assert "headers" not in question


def test_a_browser_says_headers_in_its_connect_request(gateway: Gateway, backend: Backend) -> None:
    backend.answer = decide
    with CommandClient(gateway.http_port) as client:
        client.call("connect", headers={"Authorization": "Bearer y", "X-Other": "stays"})
    _, sent, _ = backend.asked[0]
    assert sent["authorization"] == "Bearer y"
    assert "x-other" not in sent


def test_a_back_end_that_fails_lets_nobody_in_and_ends_nobody(
    gateway: Gateway, backend: Backend
) -> None:
    backend.answer = decide
    with CommandClient(gateway.http_port) as client:
        client.call("connect")
        backend.answer = lambda path, question: web.json_response({}, status=502)
        assert client.error("rpc", method="m")["code"] == 100
        with CommandClient(gateway.http_port) as other:
            error = other.error("connect")
            assert error["code"] == 100 and error["temporary"]
        backend.answer = decide
        assert client.call("rpc", method="m")["data"] == "m"
    wait_for(lambda: "/rpc: HTTP status 502" in gateway.log(), "the line in the log")


def test_unidirectional_clients_are_asked_about_too(gateway: Gateway, backend: Backend) -> None:
    backend.answer = decide
    with connect_websocket(gateway.websocket_url) as client:
        client.send(json.dumps({"data": {"uni": True}}))
        connected = json.loads(client.recv(timeout=60))["connect"]
    assert "room:a" in connected["subs"]
    question = backend.questions("/connect")[0]
    assert (question["transport"], question["data"]) == ("uni_websocket", {"uni": True})


# ---- published keys


class Provider:
    """An identity provider: signs tokens, and publishes the keys that it signed with."""

    def __init__(self, backend: Backend) -> None:
        self._keys = {}
        self.is_down = False
        backend.answer = self._answer

    def token(self, kid: str, **claims: Any) -> str:
        key = self._keys.setdefault(kid, generate_private_key(SECP256R1()))
        claims = {"sub": "42", "exp": int(time.time()) + 600, **claims}
        return jwt.encode(claims, key, "ES256", headers={"kid": kid})

    def _answer(self, path: str, question: Any) -> web.Response:
        if self.is_down:
            return web.Response(status=503)
        es256 = jwt.get_algorithm_by_name("ES256")
        keys = [
            {**es256.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
            for kid, key in self._keys.items()
        ]
        return web.json_response({"keys": keys})


def keys_gateway(backend: Backend) -> dict[str, dict[str, Any]]:
    return {"workers": {"count": 1}, "tokens": {"jwks_url": f"{backend.url}/keys"}}


def test_tokens_are_checked_with_published_keys_and_new_ones_are_fetched(
    backend: Backend,
) -> None:
    provider = Provider(backend)
    first = provider.token("first")
    began = time.monotonic()
    with running_gateway(keys_gateway(backend)) as gateway:

        def accepted(token: str) -> bool:
            with CommandClient(gateway.http_port) as client:
                try:
                    return "connect" in client.reply_to(client.send("connect", token=token))
                except ConnectionClosed:
                    return False

        # Who comes before the keys is told to try again.
        wait_for(lambda: accepted(first), "the keys")
        fetches = len(backend.asked)
        # So soon after a fetch, an unknown key is taken for an invention.
        invented = jwt.encode(
            {"sub": "root"}, generate_private_key(SECP256R1()), "ES256", headers={"kid": "x"}
        )
        with CommandClient(gateway.http_port) as client:
            client.send("connect", token=invented)
            assert client.closed()[0] == 3500
        if time.monotonic() - began < REFETCH_AFTER_S:
            assert len(backend.asked) == fetches
        fetches = len(backend.asked)
        second = provider.token("second")
        wait_for(lambda: accepted(second), "the new key")
        assert len(backend.asked) == fetches + 1


def test_while_keys_cannot_be_fetched_clients_may_try_again(backend: Backend) -> None:
    provider = Provider(backend)
    token = provider.token("first")
    provider.is_down = True
    with running_gateway(keys_gateway(backend)) as gateway:
        with CommandClient(gateway.http_port) as client:
            error = client.error("connect", token=token)
            assert error["code"] == 100 and error["temporary"]
        wait_for(lambda: "keys of tokens cannot be fetched" in gateway.log(), "the line in the log")
        provider.is_down = False

        def accepted() -> bool:
            with CommandClient(gateway.http_port) as client:
                return "connect" in client.reply_to(client.send("connect", token=token))

        wait_for(accepted, "the keys")
