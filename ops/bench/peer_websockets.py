"""A peer in a process of its own: PyPI's `websockets`, with its own broadcast.

    python -m ops.bench.peer_websockets

It says its port. Who opens a WebSocket gets each line that comes in on standard input; at its end
the server ends.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

BACKLOG = 4096
"""As the gateway's default."""


async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections: set[ServerConnection] = set()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )

    async def subscribe(connection: ServerConnection) -> None:
        connections.add(connection)
        try:
            await connection.wait_closed()
        finally:
            connections.discard(connection)

    async with serve(subscribe, "127.0.0.1", 0, backlog=BACKLOG) as server:
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        while line := await lines.readline():
            broadcast(connections, line.decode().rstrip("\n"))


if __name__ == "__main__":
    asyncio.run(main())
