"""Tokens as a back end makes them, with a library that is not ours."""

from __future__ import annotations

import time
from typing import Any

import jwt

SECRET = "a secret that only the tests and their gateways know"


def connection_token(user: str, *, expires_s: float = 600, **claims: Any) -> str:
    return signed({"sub": user, "exp": int(time.time() + expires_s), **claims})


def subscription_token(user: str, channel: str, *, expires_s: float = 600, **claims: Any) -> str:
    times = {"exp": int(time.time() + expires_s)}
    return signed({"sub": user, "channel": channel, **times, **claims})


def signed(claims: dict[str, Any], key: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, key, algorithm)
