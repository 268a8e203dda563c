"""An application that does what its clients tell it, good or bad."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

# As long as something takes that is to be seen as too long; more than `hooks.timeout_s` of the
# tests and what the engine waits beyond it.
TOO_LONG_S = 12.0


class App:
    def __init__(self) -> None:
        self._diary = Path(os.environ["HOOK_DIARY"])

    async def connect(self, request: dict[str, Any]) -> Any:
        self._note("connect", request)
        match request.get("data"):
            case {"refuse": code}:
                return {"error": {"code": code, "message": "not you"}}
            case {"disconnect": code}:
                return {"disconnect": {"code": code, "reason": "go away"}}
            case {"user": user}:
                result = {"user": user, "info": {"name": user.title()}, "data": {"welcome": user}}
                if user.startswith("refresh"):
                    result["expire_at"] = soon()
                return {"result": result | {"channels": ["room:all"], "meta": {"plan": "free"}}}
            case data:
                return await misbehave(data)

    def subscribe(self, request: dict[str, Any]) -> Any:
        if request["user"] == "banned":
            return {"error": {"code": 403, "message": "you know why"}}
        if request["channel"] == "asked:never":
            return {"error": {"code": 451, "message": f"not over {request['transport']}"}}
        result: dict[str, Any] = {"data": {"topic": request["channel"]}}
        if request["channel"].startswith("asked:refresh"):
            result["expire_at"] = soon()
        return {"result": result}

    def refresh(self, request: dict[str, Any]) -> Any:
        self._note("refresh", request)
        return refreshed(request["user"])

    def sub_refresh(self, request: dict[str, Any]) -> Any:
        self._note("sub_refresh", request)
        return refreshed(request["channel"])

    async def publish(self, request: dict[str, Any]) -> Any:
        match request["data"]:
            case "quietly":
                return {"result": {"except_sender": True}}
            case "shout":
                return {"result": {"data": "SHOUT"}}
            case "swear":
                return {"error": {"code": 451, "message": "mind your language"}}
            case data:
                return await misbehave(data)

    async def rpc(self, request: dict[str, Any]) -> Any:
        if request.get("method") == "who":
            return {"result": {"data": {key: request.get(key) for key in ("user", "meta")}}}
        return await misbehave(request.get("data"))

    def message(self, request: dict[str, Any]) -> None:
        self._note("message", request)

    def disconnect(self, request: dict[str, Any]) -> None:
        self._note("disconnect", request)

    def _note(self, kind: str, request: dict[str, Any]) -> None:
        with self._diary.open("a") as diary:
            diary.write(json.dumps({"kind": kind} | request) + "\n")


def soon() -> int:
    return int(time.time()) + 1


def refreshed(name: str) -> Any:
    if name.endswith("over"):
        return {"result": {"expired": True}}
    if name.endswith("failing"):
        raise RuntimeError("of the application")
    return {"result": {"expire_at": int(time.time()) + 3600}}


async def misbehave(data: Any) -> Any:
    match data:
        case "raise":
            raise RuntimeError("of the application")
        case "exit":
            raise SystemExit(3)
        case "hang":
            await asyncio.Event().wait()
        case "rubbish":
            return {"reslt": {}}
        case "not json":
            return {"result": {"data": {1, 2}}}
        case "block the loop":
            threading.Event().wait(TOO_LONG_S)
        case "block the interpreter":
            # PyDLL keeps the interpreter's lock, as a badly written extension module does.
            ctypes.PyDLL(None).usleep(int(TOO_LONG_S * 1e6))
    return {"result": {"data": data}}
