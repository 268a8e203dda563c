"""The application's say: what it answers, and what becomes of all that it may do wrong."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import AskingEngine
from tests.support.waiting import wait_for
from tests.support.worker import SETTINGS
from workers.hooks import HookError, Hooks, check_application
from workers.settings import HookSettings

TIMEOUT_S = 1.0

release = threading.Event()


def hidden(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: method(*arguments)


class App:
    """Whatever an application may do; `request["do"]` says what."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def connect(self, request: dict[str, Any]) -> Any:
        return {"result": {"user": request["user"]}}

    def publish(self, request: dict[str, Any]) -> Any:
        match request.get("do"):
            case "hang":
                release.wait(30)
            case "thread":
                return {"result": {"data": threading.current_thread().name}}
            case "raise":
                raise KeyError("of the application")
            case "exit":
                sys.exit(3)
            case "stop":
                raise StopIteration
        return None

    @hidden
    async def subscribe(self, request: dict[str, Any]) -> Any:
        return {"result": {"info": threading.current_thread().name}}

    async def rpc(self, request: dict[str, Any]) -> Any:
        match request["do"]:
            case "raise":
                raise KeyError("of the application")
            case "exit":
                raise SystemExit(3)
            case "time out":
                raise TimeoutError("of its own")
            case "cancel":
                raise asyncio.CancelledError
            case "hang":
                await asyncio.Event().wait()
            case "never end":
                while not release.is_set():
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.01)
            case "block":
                release.wait(0.5)
            case "list":
                return [1]
            case "unserialisable":
                return {"result": {"data": object()}}
        return {"result": {"data": request["do"]}}

    def disconnect(self, request: dict[str, Any]) -> None:
        self.told.append(request)


NOT_AN_INSTANCE = 1


class NoMethods:
    pass


class WrongArguments:
    def connect(self) -> None:
        pass


class NotMade:
    def __init__(self) -> None:
        raise OSError("no database")


Start = Callable[..., AskingEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts hooks of this module's App, with other limits if so told."""
    with ExitStack() as stack:

        def started(**limits: Any) -> AskingEngine:
            values = {"app": f"{__name__}:App", "timeout_s": TIMEOUT_S, **limits}
            hooks = Hooks(replace(SETTINGS, hooks=HookSettings(**values)))
            engine = AskingEngine()
            hooks.start(engine)  # type: ignore[arg-type]
            stack.callback(engine.close)
            stack.callback(hooks.stop, 2.0)
            stack.callback(release.set)
            return engine

        release.clear()
        yield started


@pytest.mark.parametrize("do", ["anything", "block"])
def test_a_coroutine_answers(start: Start, do: str) -> None:
    assert start(timeout_s=5).call("rpc", {"do": do}) == {"result": {"data": do}}


def test_a_plain_method_answers_from_a_thread_of_its_own(start: Start) -> None:
    answer = start().call("publish", {"do": "thread"})
    assert answer["result"]["data"].startswith("hooks-")


def test_a_coroutine_behind_a_decorator_runs_in_the_loop(start: Start) -> None:
    assert start().call("subscribe") == {"result": {"info": "hooks"}}


def test_none_is_an_empty_result(start: Start) -> None:
    assert start().call("publish") == {"result": {}}


def test_the_class_is_asked_what_it_has_methods_for() -> None:
    hooks = Hooks(replace(SETTINGS, hooks=HookSettings(app=f"{__name__}:App")))
    assert set(hooks.kinds) == {"connect", "subscribe", "publish", "rpc", "disconnect"}


@pytest.mark.parametrize(
    ("kind", "do"),
    [
        *(("rpc", do) for do in ("raise", "exit", "time out", "cancel", "list", "unserialisable")),
        *(("publish", do) for do in ("raise", "exit", "stop")),
    ],
)
def test_what_an_application_does_wrong_fails_that_question_alone(
    start: Start, kind: str, do: str
) -> None:
    engine = start()
    assert engine.call(kind, {"do": do}) == "failed"
    assert engine.call("rpc", {"do": "well"}) == {"result": {"data": "well"}}


@pytest.mark.parametrize(("kind", "do"), [("rpc", "hang"), ("publish", "hang")])
def test_what_hangs_is_given_up_after_the_timeout(start: Start, kind: str, do: str) -> None:
    engine = start()
    assert engine.call(kind, {"do": do}) == "timeout"
    assert engine.call("connect", {"user": "42"}) == {"result": {"user": "42"}}


def test_a_coroutine_that_cannot_be_cancelled_keeps_its_place(start: Start) -> None:
    engine = start(in_flight_max=2)
    assert engine.call("rpc", {"do": "never end"}) == "timeout"
    assert engine.call("rpc", {"do": "one place is left"})["result"]
    assert engine.call("rpc", {"do": "never end"}) == "timeout"
    waiting = engine.ask("connect", {"user": "42"})
    assert waiting not in engine.answers
    release.set()
    assert engine.answer_to(waiting) == {"result": {"user": "42"}}


def hook_threads() -> set[threading.Thread]:
    """Those in which methods run; the loop's own is `hooks`."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("hooks-")}


def test_threads_that_hang_are_bounded_and_so_is_what_waits_for_them(start: Start) -> None:
    others = hook_threads()
    engine = start(threads_max=2, in_flight_max=3)
    outcomes = [engine.call("publish", {"do": "hang"}) for _ in range(7)]
    assert outcomes[:5] == ["timeout"] * 5
    assert outcomes[5:] == ["failed"] * 2, "three wait for a thread already"
    assert len(hook_threads() - others) == 2
    release.set()
    wait_for(lambda: engine.call("publish") == {"result": {}}, "a thread that works again")


def test_no_more_is_taken_than_may_be_under_way(start: Start) -> None:
    engine = start(in_flight_max=2, timeout_s=5, threads_max=2)
    hanging = [engine.ask("publish", {"do": "hang"}) for _ in range(2)]
    later = engine.ask("connect", {"user": "42"})
    assert not engine.answers
    release.set()
    assert engine.answer_to(later) == {"result": {"user": "42"}}
    assert [engine.answer_to(each) for each in hanging] == [{"result": {}}] * 2


def test_disconnects_are_told_and_confirmed(start: Start) -> None:
    engine = start()
    engine.tell("disconnect", b'{"client": "c", "code": 3000}')
    wait_for(lambda: engine.told == [("disconnect", {"result": {}})], "the disconnect")


def test_what_was_told_before_the_end_is_done() -> None:
    hooks = Hooks(replace(SETTINGS, hooks=HookSettings(app=f"{__name__}:App", in_flight_max=2)))
    engine = AskingEngine()
    hooks.start(engine)  # type: ignore[arg-type]
    for _ in range(100):
        engine.tell("disconnect")
    hooks.stop(10.0)
    assert len(engine.told) == 100
    engine.close()


def test_the_end_waits_no_longer_than_it_is_told(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    release.clear()
    hooks = Hooks(
        replace(SETTINGS, hooks=HookSettings(app=f"{__name__}:App", timeout_s=60, threads_max=1))
    )
    engine = AskingEngine()
    hooks.start(engine)  # type: ignore[arg-type]
    engine.ask("publish", {"do": "hang"})
    hooks.stop(0.2)
    assert "hooks are left behind" in caplog.text
    release.set()


def test_failures_are_logged_once_and_counted_after(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    for _ in range(5):
        engine.call("rpc", {"do": "raise"})
    engine.call("publish", {"do": "hang"})
    logged = [record for record in caplog.records if record.message == "a hook failed"]
    assert [vars(record)["hook"] for record in logged] == ["rpc", "publish"]
    assert vars(logged[0])["reason"] == "KeyError: 'of the application'"
    assert logged[0].exc_info is not None, "its developer wants to know where"
    assert vars(logged[1])["reason"] == f"no answer within {TIMEOUT_S} s"


def test_the_log_tells_when_a_hook_is_asked_no_more_and_again(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = start()
    engine.tell("opened", b"rpc")
    engine.tell("closed", b"rpc")
    engine.tell("log", b"what the engine says")
    wait_for(lambda: "what the engine says" in caplog.text, "the engine's line")
    wait_for(lambda: "a hook answers again" in caplog.text, "the log line")
    assert "a hook failed too often" in caplog.text


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("no.such.module:App", "No module named 'no'"),
        ("tests.no_such:App", "No module named 'tests.no_such'"),
        (f"{__name__}:Missing", "has no class Missing"),
        (f"{__name__}:NOT_AN_INSTANCE", "has no class NOT_AN_INSTANCE"),
        (f"{__name__}:NoMethods", "no method named connect, subscribe"),
        (f"{__name__}:WrongArguments", "its connect cannot be called with one request"),
        (f"{__name__}:NotMade", "NotMade() failed: OSError: no database"),
    ],
)
def test_a_class_that_cannot_be_used_is_named_with_the_reason(spec: str, reason: str) -> None:
    with pytest.raises(HookError) as refused:
        Hooks(replace(SETTINGS, hooks=HookSettings(app=spec)))
    assert reason in str(refused.value)
    assert str(refused.value).startswith(f'hooks.app = "{spec}": ')


@pytest.mark.parametrize(
    ("source", "reason", "remedy"),
    [
        ("class App:\n    def rpc(self, request): ...\n", None, None),
        ("import no_such_thing\n", "No module named 'no_such_thing'", "correct"),
        ("class App(:\n", "SyntaxError", "correct"),
        ("import os; os._exit(9)\n", "its import ended the process (9)", "correct"),
        ("raise SystemExit('odd')\n", "SystemExit: odd", "correct"),
        (None, "No module named 'tried'", "PYTHONPATH"),
    ],
)
def test_a_class_is_tried_in_an_interpreter_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str | None,
    reason: str | None,
    remedy: str,
) -> None:
    if source is not None:
        (tmp_path / "tried.py").write_text(source)
    root = str(Path(__file__).resolve().parents[3])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    if reason is None:
        check_application("tried:App")
        return
    with pytest.raises(HookError) as refused:
        check_application("tried:App")
    assert reason in refused.value.reason
    assert remedy in refused.value.remedy
    assert "tried" not in sys.modules


def test_a_worker_without_anybody_to_ask_imports_none_of_it() -> None:
    code = (
        "import sys, workers.__main__; "
        "print([name for name in ('asyncio', 'aiohttp', 'workers.hooks') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
