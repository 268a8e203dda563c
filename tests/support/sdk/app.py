"""An application as its developer writes it: what the gateway asks it, and what it answers."""

from __future__ import annotations

from typing import Any


class App:
    """Named in the configuration as `app`; methods may be `async` or not."""

    def __init__(self) -> None:
        self._heard: dict[str, list[Any]] = {}

    def message(self, request: dict[str, Any]) -> None:
        self._heard.setdefault(request["user"], []).append(request["data"])

    async def rpc(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["method"] == "add":
            return {"result": {"data": {"sum": sum(request["data"])}}}
        if request["method"] == "heard":
            return {"result": {"data": self._heard.get(request["user"], [])}}
        if request["method"] == "who":
            return {"result": {"data": {"user": request["user"]}}}
        return {"error": {"code": 404, "message": "no such method"}}

    def publish(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["data"] == "rude":
            return {"error": {"code": 451, "message": "say it otherwise"}}
        return {"result": {"data": {"said": request["data"]}}}

    def subscribe(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["user"] == "banned":
            return {"error": {"code": 403, "message": "you know why"}}
        return {"result": {"info": {"role": "guest"}}}
