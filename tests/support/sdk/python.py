"""The driver of `centrifuge-python`; the package's docstring has its language."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import fields, is_dataclass
from typing import Any

from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler
from centrifuge.client import DeltaType
from centrifuge.exceptions import CentrifugeError, ReplyError, UnauthorizedError
from centrifuge.types import StreamPosition


def emit(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def plain(value: Any) -> Any:
    """What a callback got, as JSON; Protobuf data comes as bytes of JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, bytes):
        return json.loads(value) if value else None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Exception) else value


def told(name: str, context: Any, channel: str | None) -> None:
    fields = plain(context)
    if name in ("publication", "server_publication"):
        fields |= fields.pop("pub")
    if name in ("error",) and (code := getattr(context.error, "code", None)) is not None:
        fields["server_code"] = code
    emit(name, **fields, **({} if channel is None else {"channel": channel}))


def handler(base: type, prefix: str, names: list[str], channel: str | None) -> Any:
    """An event handler that tells all it hears."""

    def method(name: str) -> Callable[[Any, Any], Awaitable[None]]:
        async def on_event(self: Any, context: Any) -> None:
            told(name, context, None if hasattr(context, "channel") else channel)

        return on_event

    own = ("connecting", "connected", "disconnected", "error")
    methods = {f"on_{n}": method(n if n in own else f"{prefix}{n}") for n in names}
    return type("Handler", (base,), methods)()


class Driver:
    def __init__(self, config: dict[str, Any]) -> None:
        self._protobuf = config["encoding"] == "protobuf"
        self._numbers = itertools.count(1)
        self._tokens: dict[int, asyncio.Future[str | None]] = {}
        names = ["connecting", "connected", "disconnected", "error", "subscribed", "subscribing"]
        names += ["unsubscribed", "publication", "join", "leave"]
        self._client = Client(
            f"ws://127.0.0.1:{config['port']}/connection/websocket",
            events=handler(ClientEventHandler, "server_", names, None),
            token=config["token"],
            get_token=(lambda: self._ask("")) if config["asks"] else None,
            use_protobuf=self._protobuf,
            data=self._encoded(config["data"]),
            timeout=60.0,
            max_reconnect_delay=0.5,
            proxy=None,
        )

    async def _ask(self, channel: str) -> str:
        number = next(self._numbers)
        self._tokens[number] = asyncio.get_running_loop().create_future()
        emit("token", number=number, channel=channel)
        token = await self._tokens[number]
        if token is None:
            raise UnauthorizedError
        return token

    def _encoded(self, data: Any) -> Any:
        return json.dumps(data).encode() if self._protobuf and data is not None else data

    async def obey(self, command: dict[str, Any]) -> None:
        do = command.pop("do")
        if do == "token":
            self._tokens.pop(command["number"]).set_result(command["token"])
            return
        number = command.pop("id")
        try:
            answer: dict[str, Any] = {"result": plain(await getattr(self, do)(**command))}
        except ReplyError as error:
            answer = {"error": {"code": error.code, "message": error.message}}
        except CentrifugeError as error:
            answer = {"error": {"code": 1, "message": repr(error)}}
        print(json.dumps({"id": number, **answer}), flush=True)

    async def connect(self) -> None:
        await self._client.connect()

    async def disconnect(self) -> None:
        await self._client.disconnect()

    async def subscribe(self, channel: str, options: dict[str, Any]) -> None:
        subscription = self._client.get_subscription(channel)
        if subscription is None:
            names = ["subscribing", "subscribed", "unsubscribed", "publication", "join", "leave"]
            options = dict(options)
            if options.pop("asks", False):
                options["get_token"] = self._ask
            if "delta" in options:
                options["delta"] = DeltaType(options["delta"])
            if "data" in options:
                options["data"] = self._encoded(options["data"])
            subscription = self._client.new_subscription(
                channel,
                events=handler(SubscriptionEventHandler, "", [*names, "error"], channel),
                max_resubscribe_delay=0.5,
                **options,
            )
        await subscription.subscribe()

    async def unsubscribe(self, channel: str) -> None:
        subscription = self._client.get_subscription(channel)
        assert subscription is not None
        await subscription.unsubscribe()

    async def publish(self, channel: str, data: Any) -> None:
        await self._client.publish(channel, self._encoded(data))

    async def presence(self, channel: str) -> Any:
        return (await self._client.presence(channel)).clients

    async def presence_stats(self, channel: str) -> Any:
        return await self._client.presence_stats(channel)

    async def history(
        self,
        channel: str,
        limit: int = 0,
        since: dict[str, Any] | None = None,
        reverse: bool = False,
    ) -> Any:
        position = StreamPosition(**since) if since else None
        return await self._client.history(channel, limit, position, reverse)

    async def rpc(self, method: str, data: Any) -> Any:
        return (await self._client.rpc(method, self._encoded(data))).data


async def main() -> None:
    driver = Driver(json.loads(sys.argv[1]))
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    emit("ready")
    while line := await reader.readline():
        task = loop.create_task(driver.obey(json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)
    await driver.disconnect()


if __name__ == "__main__":
    asyncio.run(main())
