"""The application's say: whoever answers what the engine asks, and the thread they answer in.

A question is JSON, as is its answer: `{"result": {...}}`, `{"error": {"code", "message"}}` or
`{"disconnect": {"code", "reason"}}`. A Python class (`hooks.app`) and an HTTP back end
(`hooks.*_url`, see `workers.proxy`) are two ways to give the same answers.

The class is made once in each worker, without arguments. Each of its methods that is named as a
kind of question is asked those, with the question as a dict, and returns the answer as one; None
is `{"result": {}}`. A coroutine runs in the hooks' event loop and must not block it; any other
method runs in one of `hooks.threads_max` threads.

What hangs, raises or returns something else is a failure: the client gets the fall-back answer.
The engine keeps time by itself, and decides when to ask no more (`engine/src/asks.rs`).
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from workers._engine import Questions
    from workers.settings import WorkerSettings

__all__ = ["KINDS", "Application", "HookError", "Hooks", "Refused", "check_application"]

logger = logging.getLogger(__name__)

KINDS = (
    *("connect", "subscribe", "publish", "rpc", "message"),
    *("refresh", "sub_refresh", "disconnect"),
)
"""What an application may be asked or, of "disconnect", told."""

# A class that takes longer to import is not going to start in time after a crash either.
CHECK_TIMEOUT_S = 30.0
# A hook that fails fails often: one line says so for all that follow within this.
COMPLAINT_INTERVAL_S = 10.0


class HookError(ValueError):
    """The application cannot be used."""

    def __init__(self, spec: str, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy or "correct the class, or leave hooks.app empty"
        super().__init__(f'hooks.app = "{spec}": {self.reason}; {self.remedy}')


class Refused(Exception):
    """There is no answer, for a reason that needs no traceback."""


class Source(Protocol):
    """Whoever answers questions."""

    @property
    def kinds(self) -> Collection[str]:
        """What it answers."""

    async def ask(self, kind: str, body: bytes) -> bytes:
        """The answer to `body`, both JSON. Raises what it likes: there is no answer then."""

    async def close(self) -> None:
        """Let go of what it holds."""


class Application:
    """The class that `hooks.app` names."""

    def __init__(self, spec: str, *, threads_max: int, waiting_max: int) -> None:
        """Imports and makes it. Raises HookError."""
        self._methods = _methods(_make(spec), spec)
        self._threads = _Threads(threads_max, waiting_max)

    @property
    def kinds(self) -> Collection[str]:
        return self._methods.keys()

    async def ask(self, kind: str, body: bytes) -> bytes:
        method, request = self._methods[kind], json.loads(body)
        if inspect.iscoroutinefunction(method):
            answer = await method(request)
        else:
            answer = await self._threads.run(lambda: method(request))
            if inspect.isawaitable(answer):
                # A decorator may hide that there is a coroutine behind it.
                answer = await answer
        return json.dumps({"result": {}} if answer is None else answer).encode()

    async def close(self) -> None:
        """Nothing to do: its threads end with the process."""


class Hooks:
    """All that a worker asks outside of its engine: one thread with an event loop in it.

    `start` once, `stop` once, both by the thread that runs the engine.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Loads the application. Raises HookError where that cannot be."""
        hooks = settings.hooks
        self._limits = hooks
        self._sources: dict[str, Source] = {}
        self._background: list[Callable[[Questions], Coroutine[Any, Any, None]]] = []
        if hooks.app:
            self._answered_by(
                Application(
                    hooks.app, threads_max=hooks.threads_max, waiting_max=hooks.in_flight_max
                )
            )
        tokens = [each for each in (settings.tokens, settings.subscription_tokens) if each]
        jwks = {each.jwks_url: each.jwks_ttl_s for each in tokens if each.jwks_url}
        if hooks.urls or jwks:
            # Only here: the HTTP client is larger than all else in a worker.
            from workers import proxy

            if hooks.urls:
                self._answered_by(proxy.Backend(hooks))
            if jwks:
                keys = proxy.PublishedKeys(jwks)
                self._answered_by(keys)
                self._background.append(keys.keep_fresh)

    @property
    def kinds(self) -> list[str]:
        """What there is somebody to ask about."""
        return list(self._sources)

    def start(self, questions: Questions) -> None:
        """Answer `questions` from now on, in a thread of its own."""
        limits = self._limits
        self._desk = _Desk(questions, self._sources, limits.timeout_s, limits.in_flight_max)
        # A daemon: an application that never returns must not keep a worker from ending.
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._desk.serve(self._background)),
            name="hooks",
            daemon=True,
        )
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        """Answer what has been asked, for `patience_s` at most, and end."""
        deadline = time.monotonic() + patience_s
        self._desk.finish(patience_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning(
                "hooks are left behind unfinished", extra={"calls": self._desk.calls_under_way()}
            )

    def _answered_by(self, source: Source) -> None:
        self._sources |= dict.fromkeys(source.kinds, source)


class _Desk:
    """Takes the engine's questions to their sources, a bounded number at a time."""

    def __init__(
        self,
        questions: Questions,
        sources: dict[str, Source],
        timeout_s: float,
        calls_max: int,
    ) -> None:
        self._questions = questions
        self._sources = sources
        self._timeout_s = timeout_s
        self._calls_max = calls_max
        self._calls: set[asyncio.Future[Any]] = set()
        self._complaints = _Complaints()
        self._ready = threading.Event()
        self._finish: asyncio.Event

    async def serve(
        self, background: Collection[Callable[[Questions], Coroutine[Any, Any, None]]]
    ) -> None:
        """Answer until `finish`."""
        self._loop = asyncio.get_running_loop()
        self._finish = asyncio.Event()
        self._ready.set()
        self._loop.add_reader(self._questions.fileno(), self._take)
        beside = [self._loop.create_task(each(self._questions)) for each in background]
        await self._finish.wait()
        for task in beside:
            task.cancel()
        self._take()
        # `finish` waits no longer than it said it would, so that this has no time limit.
        while self._calls:
            await asyncio.wait(self._calls)
        self._loop.remove_reader(self._questions.fileno())
        for source in set(self._sources.values()):
            await source.close()

    def finish(self, patience_s: float) -> None:
        """Have `serve` end when all is answered. Any thread may call this."""
        if self._ready.wait(patience_s):
            self._loop.call_soon_threadsafe(self._finish.set)

    def calls_under_way(self) -> int:
        return len(self._calls)

    def _take(self) -> None:
        # For a moment, a call that is given up counts twice.
        room = max(0, self._calls_max - len(self._calls))
        for number, kind, body in self._questions.take(room):
            if kind in ("opened", "closed", "log"):
                _log(kind, body.decode())
            else:
                self._keep(self._loop.create_task(self._answer(number, kind, body)))

    def _keep(self, call: asyncio.Future[Any]) -> None:
        self._calls.add(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        # Questions may have waited for this room.
        self._take()

    async def _answer(self, number: int, kind: str, body: bytes) -> None:
        call = asyncio.ensure_future(_outcome(self._sources[kind].ask(kind, body)))
        done, _ = await asyncio.wait({call}, timeout=self._timeout_s)
        if not done:
            call.cancel()
            # Who ignores that keeps its place, so that there are never more of them than places.
            self._keep(call)
            self._complaints.about(kind, f"no answer within {self._timeout_s} s")
            self._questions.fail(number, kind, "timeout")
            return
        answer = call.result()
        try:
            if isinstance(answer, bytes):
                self._questions.answer(number, kind, answer)
                return
        except ValueError as error:
            answer = Refused(f"this is no answer: {error}")
        self._complaints.about(kind, answer)
        self._questions.fail(number, kind, "failed")


async def _outcome(asked: Coroutine[Any, Any, bytes]) -> bytes | BaseException:
    """What came of it, even SystemExit: no method of an application ends a worker."""
    try:
        return await asked
    except BaseException as error:
        return error


class _Threads:
    """Runs calls in threads, which are made when needed and end with the process.

    In place of an executor, which waits for its threads when the interpreter ends: there may be one
    among them that never comes back.
    """

    def __init__(self, threads_max: int, waiting_max: int) -> None:
        self._threads_max = threads_max
        self._threads = 0
        self._calls: queue.Queue[tuple[Callable[[], Any], asyncio.Future[Any]]]
        self._calls = queue.Queue(waiting_max)

    async def run(self, call: Callable[[], Any]) -> Any:
        """The result of `call`. Raises Refused when too many calls wait for a thread."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        try:
            self._calls.put_nowait((call, future))
        except queue.Full:
            raise Refused("all threads of the application hang") from None
        if self._threads < self._threads_max:
            self._threads += 1
            threading.Thread(
                target=self._work, args=(loop,), name=f"hooks-{self._threads}", daemon=True
            ).start()
        return await future

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            call, future = self._calls.get()
            if future.cancelled():
                continue
            result: Any
            try:
                result, error = call(), None
            except BaseException as raised:
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits for anything any more.
                return


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        # Which a future cannot carry.
        future.set_exception(RuntimeError("the application raised StopIteration"))
    else:
        future.set_exception(error)


class _Complaints:
    """Failures in the log: the first of a kind at once, then at most one line an interval."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._withheld: dict[str, int] = {}

    def about(self, kind: str, why: str | BaseException) -> None:
        now = time.monotonic()
        if now - self._logged.get(kind, -COMPLAINT_INTERVAL_S) < COMPLAINT_INTERVAL_S:
            self._withheld[kind] = self._withheld.get(kind, 0) + 1
            return
        self._logged[kind] = now
        # What the application raises is for its developer, who wants to know where.
        raised = why if isinstance(why, BaseException) and not isinstance(why, Refused) else None
        logger.warning(
            "a hook failed",
            extra={
                "hook": kind,
                "reason": why if raised is None else f"{type(why).__name__}: {why}",
                "failures_not_logged": self._withheld.pop(kind, 0),
            },
            exc_info=raised,
        )


def _log(kind: str, text: str) -> None:
    match kind:
        case "opened":
            logger.error(
                "a hook failed too often and is not asked for a while", extra={"hook": text}
            )
        case "closed":
            logger.info("a hook answers again", extra={"hook": text})
        case "log":
            logger.warning(text)


def _make(spec: str) -> object:
    """An instance of the class that `spec` (`package.module:Class`) names. Raises HookError."""
    module_name, _, class_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or " "):
            remedy = "install it, or put its folder on PYTHONPATH"
            raise HookError(spec, str(error), remedy) from error
        raise HookError(spec, f"importing {module_name} failed: {_plain(error)}") from error
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind):
        raise HookError(spec, f"{module_name} has no class {class_name}")
    try:
        return kind()
    except BaseException as error:
        raise HookError(spec, f"{class_name}() failed: {_plain(error)}") from error


def _methods(application: object, spec: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """The application's methods by the kind of question. Raises HookError."""
    methods = {kind: getattr(application, kind) for kind in KINDS if hasattr(application, kind)}
    for kind, method in methods.items():
        try:
            inspect.signature(method).bind({})
        except (TypeError, ValueError) as error:
            reason = f"its {kind} cannot be called with one request: {error}"
            raise HookError(spec, reason, f"write def {kind}(self, request)") from error
    if not methods:
        raise HookError(spec, f"it has no method named {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return methods


def _plain(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_application(spec: str) -> None:
    """Raise HookError if a worker could not use `spec`.

    It is tried in an interpreter of its own, as workers do: what is imported stays in a process.
    """
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-m", "workers.hooks", spec],
            capture_output=True,
            text=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HookError(spec, f"not imported within {CHECK_TIMEOUT_S:.0f} s") from None
    if tried.returncode != 0:
        lines = tried.stderr.strip().splitlines()
        try:
            reason, remedy = json.loads(lines[-1])
        except (IndexError, ValueError):
            reason, remedy = f"its import ended the process ({tried.returncode})", ""
        raise HookError(spec, reason, remedy)


def _try(spec: str) -> int:
    try:
        _methods(_make(spec), spec)
    except HookError as error:
        print(json.dumps([error.reason, error.remedy]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_try(sys.argv[1]))
