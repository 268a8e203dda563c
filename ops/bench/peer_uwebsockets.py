"""A peer in a process of its own: uWebSockets, as PyPI's `socketify` has it.

    python -m ops.bench.peer_uwebsockets

It says its port; at the end of its standard input it ends. Who opens a WebSocket to `/subscribe/…`
gets each line that is posted to `/publish/…`, all alike: there is one channel. Python sees a client
only when it comes; deliveries are uWebSockets' own, and so is the loop, in which nothing but the
kernel is waited for.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from typing import Any

from socketify import App, AppListenOptions, OpCode

CHANNEL = "all"
IDLE_TIMEOUT_S = 960
"""As long as uWebSockets allows: the pings of a benchmark are its own matter."""


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    app = App()
    subscribing = {
        "open": lambda socket: socket.subscribe(CHANNEL),
        "idle_timeout": IDLE_TIMEOUT_S,
    }
    app.ws("/subscribe/*", subscribing)
    app.post("/publish/*", lambda response, _: _publish(app, response))
    listening = AppListenOptions(port=0, host="127.0.0.1")
    app.listen(listening, lambda config: print(json.dumps({"port": config.port}), flush=True))
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    # Not `app.run`, which looks for work again and again so that coroutines come to theirs.
    app.loop.uv_loop.run()


def _end_with_the_input() -> None:
    """So that this does not outlive its benchmark. Waits, so it is for a thread of its own."""
    sys.stdin.buffer.read()
    os._exit(0)


def _publish(app: Any, response: Any) -> None:
    messages = bytearray()

    def take(response: Any, piece: bytes | None, is_last: bool, *_: Any) -> None:
        messages.extend(piece or b"")
        if is_last:
            for line in messages.splitlines():
                app.publish(CHANNEL, bytes(line), OpCode.TEXT)
            response.write_status("202 Accepted").end("")

    response.on_data(take)


if __name__ == "__main__":
    main()
