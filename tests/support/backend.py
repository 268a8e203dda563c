"""A back end of the test's own: an HTTP server in a thread, which does what the test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Backend:
    """What was asked of it, and what it answers."""

    url: str = ""
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    """Path, headers (in lower case) and JSON (None: no body) of each request."""
    answer: Callable[[str, Any], web.StreamResponse | Awaitable[web.StreamResponse]] = field(
        default=lambda path, question: web.json_response({"result": {}})
    )
    """What a request to a path with such JSON gets."""

    def questions(self, path: str) -> list[Any]:
        return [question for asked, _, question in self.asked if asked == path]


@contextmanager
def running_backend() -> Iterator[Backend]:
    backend = Backend()
    started, loop = threading.Event(), asyncio.new_event_loop()
    end = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        question = await request.json() if request.can_read_body else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        backend.asked.append((request.path, headers, question))
        answer = backend.answer(request.path, question)
        return await answer if isinstance(answer, Awaitable) else answer

    async def serve() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await end.wait()
        await runner.cleanup()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, name="backend")
    thread.start()
    try:
        assert started.wait(60)
        yield backend
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(60)
