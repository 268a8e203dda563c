"""Answers over HTTP, of a back end that does anything but what it should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from tests.support.backend import Backend, running_backend
from tests.support.engine import AskingEngine
from tests.support.ports import deaf_port
from tests.support.waiting import wait_for
from tests.support.worker import SETTINGS
from workers import proxy
from workers.hooks import Hooks
from workers.settings import HookSettings, TokenSettings

Start = Callable[..., AskingEngine]
Answer = Callable[[str, Any], web.StreamResponse | Awaitable[web.StreamResponse]]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as running:
        yield running


@pytest.fixture
def start(backend: Backend) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(jwks: str = "", ttl_s: float = 3600.0, **limits: Any) -> AskingEngine:
            urls = {} if jwks else {kind: f"{backend.url}/{kind}" for kind in ("rpc", "connect")}
            values = {"urls": urls, "timeout_s": 2.0, **limits}
            tokens = TokenSettings(jwks_url=jwks, jwks_ttl_s=ttl_s)
            hooks = Hooks(replace(SETTINGS, hooks=HookSettings(**values), tokens=tokens))
            engine = AskingEngine()
            hooks.start(engine)  # type: ignore[arg-type]
            stack.callback(engine.close)
            stack.callback(hooks.stop, 2.0)
            return engine

        yield started


def test_each_question_goes_to_the_endpoint_of_its_kind(start: Start, backend: Backend) -> None:
    engine = start()
    backend.answer = lambda path, question: web.json_response({"result": {"path": path}})
    assert engine.call("rpc", {"method": "m"}) == {"result": {"path": "/rpc"}}
    assert engine.call("connect", {"client": "c"}) == {"result": {"path": "/connect"}}
    assert backend.questions("/rpc") == [{"method": "m"}]
    assert backend.questions("/connect") == [{"client": "c"}]


def test_headers_of_the_client_travel_as_headers(start: Start, backend: Backend) -> None:
    headers = {
        "authorization": "Bearer x",
        "x-forwarded-for": "192.0.2.1",
        # They would be about another connection, or another body.
        "host": "elsewhere",
        "content-length": "7",
        "transfer-encoding": "chunked",
        "connection": "close",
    }
    start().call("connect", {"client": "c", "headers": headers})
    _, sent, question = backend.asked[0]
    assert question == {"client": "c"}
    assert sent["authorization"] == "Bearer x"
    assert sent["x-forwarded-for"] == "192.0.2.1"
    assert sent["host"] != "elsewhere"
    assert sent["content-type"] == "application/json"


async def slow(path: str, question: Any) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.json_response({})


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (lambda path, question: web.json_response({}, status=500), "failed"),
        (lambda path, question: web.json_response({}, status=404), "failed"),
        (lambda path, question: web.HTTPFound("/rpc"), "failed"),
        (lambda path, question: web.Response(text="<html>"), "failed"),
        (lambda path, question: web.Response(body=b""), "failed"),
        (lambda path, question: web.json_response([1]), "failed"),
        (lambda path, question: web.Response(body=b" " * (proxy.ANSWER_BYTES_MAX + 1)), "failed"),
        (slow, "timeout"),
    ],
)
def test_what_is_no_answer_fails_that_question_alone(
    start: Start, backend: Backend, answer: Answer, outcome: str
) -> None:
    engine = start()
    well = backend.answer
    backend.answer = answer
    assert engine.call("rpc") == outcome
    backend.answer = well
    assert engine.call("rpc") == {"result": {}}


def test_a_header_that_cannot_be_sent_fails_that_question_alone(start: Start) -> None:
    engine = start()
    assert engine.call("rpc", {"headers": {"x-a": "b\r\nx-c: d"}}) == "failed"
    assert engine.call("rpc") == {"result": {}}


def test_a_back_end_that_is_not_there_fails_the_question(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with deaf_port() as port:
        engine = start(urls={"rpc": f"http://127.0.0.1:{port}/rpc"})
        assert engine.call("rpc") == "failed"
    failure = next(record for record in caplog.records if record.message == "a hook failed")
    assert f"127.0.0.1:{port}/rpc" in str(vars(failure)["reason"])
    assert failure.exc_info is None, "a traceback would say nothing more"


def test_an_endpoint_is_asked_in_place_of_the_class(start: Start, backend: Backend) -> None:
    engine = start(app="tests.unit.workers.test_hooks:App")
    assert engine.call("rpc", {"do": "x"}) == {"result": {}}
    assert engine.call("publish") == {"result": {}}
    assert [path for path, _, _ in backend.asked] == ["/rpc"]


def key_set(kid: str) -> dict[str, Any]:
    return {"keys": [{"kty": "EC", "kid": kid}]}


def serve_keys(backend: Backend, kid: str) -> None:
    backend.answer = lambda path, question: web.json_response(key_set(kid))


def test_keys_are_fetched_at_once_and_handed_to_the_engine(start: Start, backend: Backend) -> None:
    serve_keys(backend, "a")
    url = f"{backend.url}/keys"
    engine = start(jwks=url)
    wait_for(lambda: engine.told == [("keys", {url: key_set("a")})], "the keys")


def test_keys_are_fetched_again_when_their_time_is_over(start: Start, backend: Backend) -> None:
    serve_keys(backend, "a")
    url = f"{backend.url}/keys"
    engine = start(jwks=url, ttl_s=0.1)
    wait_for(lambda: engine.told, "the keys")
    serve_keys(backend, "b")
    wait_for(lambda: ("keys", {url: key_set("b")}) in engine.told, "the new keys")


def test_many_who_ask_for_keys_at_once_cause_one_fetch(start: Start, backend: Backend) -> None:
    serve_keys(backend, "a")
    url = f"{backend.url}/keys"
    engine = start(jwks=url)
    wait_for(lambda: engine.told, "the keys")
    gate = asyncio.Event()
    loops = []

    async def held(path: str, question: Any) -> web.StreamResponse:
        loops.append(asyncio.get_running_loop())
        await gate.wait()
        return web.json_response(key_set("b"))

    backend.answer = held
    asked = [engine.ask("keys") for _ in range(50)]
    wait_for(lambda: loops and not engine.waiting, "the fetch, and that everybody waits for it")
    loops[0].call_soon_threadsafe(gate.set)
    answers = [engine.answer_to(number) for number in asked]
    assert answers == [{url: key_set("b")}] * 50
    assert len(backend.asked) == 2


def test_keys_are_tried_again_after_an_outage(
    start: Start, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.answer = lambda path, question: web.json_response({}, status=503)
    engine = start(jwks=f"{backend.url}/keys")
    wait_for(lambda: "keys of tokens cannot be fetched" in caplog.text, "the failure")
    assert engine.call("keys") == "failed"
    serve_keys(backend, "a")
    wait_for(lambda: engine.told, "the keys")
    assert json.dumps(engine.told).count('"a"') >= 1
