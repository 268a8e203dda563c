"""Fan-out and idle connections of other WebSocket servers, as far as they are installed.

Each has one process to serve the same clients on one channel. All hold their connections from the
beginning to the end and take turns, so that all meet the same weather. What stands beside a bare
`send()` loop, which does nothing else, is CPU time of all processes of a side.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway.errors import TidegateError
from gateway.producer import Producer
from ops.bench import centrifugo, nats, nginx
from ops.bench.result import Measure, Result
from ops.bench.subject import Subject
from ops.bench.usage import cpu_seconds, pss_bytes, settled
from ops.load.programs import Bare, Swarm
from ops.load.stream import PAYLOAD_BYTES, payload

CHANNEL = "public:servers"
RUN_S_MAX = 600.0
BARE = "bare `send()` loop"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: the whole, or enough to see that it works."""

    connections: int = 10_000
    messages: int = 12
    runs: int = 3
    burst_messages: int = 16
    bursts: int = 1


QUICK = Size(connections=500, messages=40, runs=1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is, and how it is made to send."""

    address: str
    pids: list[int]
    publish: Callable[[int], object]
    """Sends so many messages, as close to one another as it can be told to."""
    transport: str
    wait_ready: Callable[[], object] = bool
    """Returns when it has noticed all its clients."""


@dataclass(slots=True)
class Server:
    """One of those that are compared."""

    name: str
    place: Place
    swarm: Swarm
    idle_bytes: float
    """Of its processes' memory, for each connection before the first message."""
    cost_us: list[float] = field(default_factory=list)
    burst_us: list[float] = field(default_factory=list)

    def turn(self, times: int, *, in_flight: int = 1) -> float:
        """Microseconds of CPU per delivery, `in_flight` messages at a time."""
        self.swarm.reset()
        before_s = cpu_seconds(self.place.pids)
        for _ in range(times):
            self.swarm.announce(in_flight)
            try:
                self.place.publish(in_flight)
            except (OSError, http.client.HTTPException) as error:
                raise TidegateError(
                    f"{self.name} takes no message: {error}", code="bench"
                ) from error
            self.swarm.wait_delivered()
        spent_s = cpu_seconds(self.place.pids) - before_s
        deliveries = int(self.swarm.flawless_report()["deliveries"])
        return spent_s * 1e6 / deliveries


def run(size: Size, say: Callable[[str], None]) -> Result:
    """Measure; `say` gets a line of progress now and then. Raises TidegateError."""
    with contextlib.ExitStack() as stack:
        servers = []
        for name, place in _places(size, say).items():
            servers.append(_joined(stack, name, stack.enter_context(place), size))
            say(f"{name}: {servers[-1].idle_bytes:,.0f} bytes a connection")
        for number in range(size.runs):
            for server in servers:
                server.cost_us.append(server.turn(size.messages))
                burst_us = server.turn(size.bursts, in_flight=size.burst_messages)
                server.burst_us.append(burst_us)
            shown = (f"{each.name} {each.cost_us[-1]:.2f}" for each in servers)
            say(f"run {number + 1}: {', '.join(shown)} µs CPU per delivery")
    return _result(servers, size)


def _places(
    size: Size, say: Callable[[str], None]
) -> dict[str, contextlib.AbstractContextManager[Place]]:
    """What there is here; `say` is told what is not."""
    places: dict[str, contextlib.AbstractContextManager[Place]] = {
        "Tidegate": _gateway(),
        BARE: _bare(size),
    }
    if not _is_importable("socketify"):
        say("uWebSockets is not here: pip install socketify, and on Debian apt-get install libuv1")
    else:
        places["uWebSockets"] = _uwebsockets()
    program = nginx.find()
    if program is None:
        say(f"nginx with nchan is not here: on Debian, apt-get install {nginx.PACKAGES}")
    else:
        places["nchan"] = _nchan(program, size)
    server = nats.find()
    if server is None:
        say(f"NATS is not here: on Debian, apt-get install {nats.PROGRAM}")
    else:
        places["NATS"] = _nats(server)
    if server := centrifugo.find(say):
        places["Centrifugo"] = _centrifugo(server)
    if not _is_importable("websockets"):
        say("Python's websockets is not here: pip install websockets")
    else:
        places["Python `websockets`"] = _websockets()
    return places


def _is_importable(module: str) -> bool:
    """Tried where it does no harm: libraries that a module needs may be missing, too."""
    tried = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True)
    return tried.returncode == 0


def _joined(stack: contextlib.ExitStack, name: str, place: Place, size: Size) -> Server:
    """The server with all its clients, and after a first message to them."""

    def memory() -> int:
        return sum(pss_bytes(pid) for pid in place.pids)

    alone = settled(memory)
    swarm = Swarm(
        address=place.address,
        connections=size.connections,
        run_s_max=RUN_S_MAX,
        transport=place.transport,
        channel=CHANNEL,
    )
    stack.enter_context(swarm)
    swarm.wait_ready()
    place.wait_ready()
    idle_bytes = (settled(memory) - alone) / size.connections
    server = Server(name, place, swarm, idle_bytes)
    server.turn(2)  # Caches and allocators warm up.
    return server


@contextmanager
def _gateway() -> Iterator[Place]:
    with Subject(workers=1) as subject, Producer(subject.control_path) as producer:

        def publish(messages: int) -> None:
            for _ in range(messages):
                producer.publish_nowait(CHANNEL, payload())

        yield Place(subject.address, subject.pids, publish, "websocket")


@contextmanager
def _bare(size: Size) -> Iterator[Place]:
    offset = 0

    def send(messages: int) -> None:
        nonlocal offset
        for _ in range(messages):
            offset += 1
            publication = f'{{"data":{payload().decode()},"offset":{offset}}}'
            bare.send([f'{{"channel":"{CHANNEL}","pub":{publication}}}'])

    with Bare(processes=1, connections=size.connections) as bare:
        yield Place(bare.address, bare.pids, send, "websocket", bare.wait_ready)


@contextmanager
def _nchan(program: nginx.Program, size: Size) -> Iterator[Place]:
    with (
        nginx.Nginx(program, connections=size.connections) as server,
        contextlib.closing(nginx.Publisher(server.port)) as publisher,
    ):

        def publish(messages: int) -> None:
            for _ in range(messages):
                publisher.publish(CHANNEL)

        yield Place(server.address, server.pids, publish, "nchan")


@contextmanager
def _nats(program: str) -> Iterator[Place]:
    messages = _Messages()
    with nats.nats(program) as server:

        def publish(count: int) -> None:
            server.publish(CHANNEL, messages.next(count))

        yield Place(server.address, [server.pid], publish, "nats")


@contextmanager
def _centrifugo(program: str) -> Iterator[Place]:
    messages = _Messages()
    with centrifugo.centrifugo(program, {"name": CHANNEL.partition(":")[0]}) as server:

        def publish(count: int) -> None:
            server.publish(CHANNEL, messages.next(count))

        yield Place(server.address, [server.pid], publish, "centrifuge")


@contextmanager
def _uwebsockets() -> Iterator[Place]:
    messages = _Messages()

    def post(count: int) -> None:
        # It closes connections that are idle for a while, so each is for one request.
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("POST", "/publish/all", b"\n".join(messages.next(count)))
            connection.getresponse().read()

    with _program("ops.bench.peer_uwebsockets") as (process, port):
        yield Place(f"127.0.0.1:{port}", [process.pid], post, "nchan")


@contextmanager
def _websockets() -> Iterator[Place]:
    messages = _Messages()

    def send(count: int) -> None:
        assert process.stdin is not None
        process.stdin.writelines(message + b"\n" for message in messages.next(count))
        process.stdin.flush()

    with _program("ops.bench.peer_websockets") as (process, port):
        yield Place(f"127.0.0.1:{port}", [process.pid], send, "nchan")


class _Messages:
    """Numbered, as the swarm's dialects for other servers read them."""

    def __init__(self) -> None:
        self._number = 0

    def next(self, count: int) -> list[bytes]:
        first = self._number + 1
        self._number += count
        return [payload(first + rank) for rank in range(count)]


@contextmanager
def _program(module: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A peer of ours in a process of its own, and its port."""
    with subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                raise TidegateError(f"{module} does not start", code="bench")
            yield process, int(json.loads(said)["port"])
        finally:
            process.kill()


def _result(servers: list[Server], size: Size) -> Result:
    (bare,) = (each for each in servers if each.name == BARE)
    subscribers = f"{size.connections:,} WebSocket subscribers"
    measures = []
    for server in servers:
        ratios = (ours / base for ours, base in zip(server.cost_us, bare.cost_us, strict=True))
        bursts = (ours / base for ours, base in zip(server.burst_us, bare.cost_us, strict=True))
        rows = [
            (f"CPU per delivery to {subscribers}", "µs", server.cost_us),
            (f"— against the {BARE}", "x", list(ratios)),
            (f"— {size.burst_messages} messages in flight", "µs", server.burst_us),
            ("— against the loop, one in flight", "x", list(bursts)),
        ]
        if server is not bare:
            rows.append(("Memory of an idle connection", "bytes", [server.idle_bytes]))
        measures += [
            Measure(what, unit, tuple(runs), subject=server.name) for what, unit, runs in rows
        ]
    return Result(
        benchmark="servers",
        parameters={
            "connections": size.connections,
            "workers": 1,
            "payload_bytes": PAYLOAD_BYTES,
            "messages_per_run": size.messages,
            "burst_messages": size.burst_messages,
        },
        measures=tuple(measures),
        note=(
            f"One serving process each, {PAYLOAD_BYTES} bytes a message. Tidegate, Centrifugo and "
            "the loop send channel and offset with it, the others the message alone. nchan is told "
            "one message at a time, the loop coalesces nothing. CPU and memory are those of all "
            "processes of a side, but for the kernel's memory. uWebSockets is that of PyPI's "
            "`socketify`, and delivers without Python."
        ),
    )
