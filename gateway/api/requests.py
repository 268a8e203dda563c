"""What a backend may ask, and what is wrong with it where it cannot be done.

Pure: bytes in, typed requests out. Publication data stays the bytes it came as (`msgspec.Raw`); the
uplink checks and compacts it.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from gateway.errors import PublishError

# The error numbers that clients of this API know, with their standard texts.
INTERNAL = 100
UNKNOWN_CHANNEL = 102
METHOD_NOT_FOUND = 104
LIMIT_EXCEEDED = 106
BAD_REQUEST = 107
NOT_AVAILABLE = 108
ERROR_TEXTS = {
    INTERNAL: "internal server error",
    UNKNOWN_CHANNEL: "unknown channel",
    METHOD_NOT_FOUND: "method not found",
    LIMIT_EXCEEDED: "limit exceeded",
    BAD_REQUEST: "bad request",
    NOT_AVAILABLE: "not available",
}

BROADCAST_CHANNELS_MAX = 1024
"""Channels of one broadcast: one request keeps an API thread for at most some 100 ms."""
BATCH_COMMANDS_MAX = 1024
"""Commands of one batch, for the same reason."""
IDEMPOTENCY_KEY_BYTES_MAX = 255

_NO_DATA = msgspec.Raw(b"")


class NotJson(Exception):
    """The body is no JSON at all: answered as plain HTTP, since no request was read."""


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What publish and broadcast have in common. JSON null is the same as an absent field."""

    data: msgspec.Raw = _NO_DATA
    b64data: str | None = None
    tags: dict[str, str] | None = None
    idempotency_key: str | None = None
    skip_history: bool | None = None
    # A hint: publications go out whole to everybody who did not agree on deltas, and no client
    # transport here agrees on them. So it holds as it stands, whatever its value.
    delta: bool | None = None
    version: int | None = None
    version_epoch: str | None = None

    def payload(self) -> bytes:
        """The publication's JSON. Raises PublishError for what cannot be published as asked."""
        if self.skip_history:
            raise refusal(NOT_AVAILABLE, "skip_history: every publication has an offset here")
        if self.version or self.version_epoch:
            raise refusal(NOT_AVAILABLE, "version: publications are not dropped by version here")
        if len((self.idempotency_key or "").encode()) > IDEMPOTENCY_KEY_BYTES_MAX:
            raise refusal(
                BAD_REQUEST, f"idempotency_key: longer than {IDEMPOTENCY_KEY_BYTES_MAX} bytes"
            )
        if self.b64data:
            return _json_of_base64(self.b64data)
        data = bytes(self.data)
        if not data:
            raise refusal(BAD_REQUEST, "data: required")
        return data


class Publish(Publication, frozen=True, kw_only=True):
    channel: str | None = None


class Broadcast(Publication, frozen=True, kw_only=True):
    channels: list[str] | None = None

    def checked_channels(self) -> list[str]:
        """The channels, at least one and at most BROADCAST_CHANNELS_MAX. Raises PublishError."""
        if not self.channels:
            raise refusal(BAD_REQUEST, "channels: at least one is required")
        if len(self.channels) > BROADCAST_CHANNELS_MAX:
            raise refusal(
                BAD_REQUEST,
                f"channels: {len(self.channels)} in one broadcast, at most"
                f" {BROADCAST_CHANNELS_MAX}; send several",
            )
        return self.channels


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Several requests in one. They are done in their order, which also satisfies `parallel`."""

    commands: list[dict[str, msgspec.Raw]]

    def checked_commands(self) -> list[tuple[str, bytes]]:
        """(method, body) of each command. Raises PublishError where that is not what they are."""
        if len(self.commands) > BATCH_COMMANDS_MAX:
            raise refusal(
                BAD_REQUEST,
                f"commands: {len(self.commands)} in one batch, at most {BATCH_COMMANDS_MAX}",
            )
        checked = []
        for number, command in enumerate(self.commands):
            if len(command) != 1:
                raise refusal(BAD_REQUEST, f"commands[{number}]: must have exactly one method")
            [(method, body)] = command.items()
            checked.append((method, bytes(body)))
        return checked


class Info(msgspec.Struct, frozen=True):
    """Asks about the gateway itself; no fields."""


Request = Publish | Broadcast | Batch | Info

_DECODERS: dict[str, msgspec.json.Decoder[Request]] = {
    "publish": msgspec.json.Decoder(Publish),
    "broadcast": msgspec.json.Decoder(Broadcast),
    "batch": msgspec.json.Decoder(Batch),
    "info": msgspec.json.Decoder(Info),
}

# Methods of the same API elsewhere: known, but not to be had here.
_NOT_SERVED = frozenset(
    {
        *("subscribe", "unsubscribe", "disconnect", "refresh", "rpc", "channels"),
        *("presence", "presence_stats", "history", "history_remove"),
    }
)


def refusal(status: int, reason: str) -> PublishError:
    """The error with the number `status`: its standard text, then what exactly is wrong."""
    return PublishError(f"{ERROR_TEXTS[status]}: {reason}", status=status)


def decode(method: str, body: bytes) -> Request:
    """The request in `body`. Raises NotJson, or PublishError (104, 107 or 108)."""
    decoder = _DECODERS.get(method)
    if decoder is None:
        if method in _NOT_SERVED:
            raise refusal(NOT_AVAILABLE, f"the method {method} is not served here")
        raise refusal(METHOD_NOT_FOUND, f"there is no method {method}")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise refusal(BAD_REQUEST, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(str(error)) from error


def _json_of_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
        msgspec.json.decode(data, type=msgspec.Raw)
    except binascii.Error as error:
        raise refusal(BAD_REQUEST, f"b64data: not base64 ({error})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refusal(
            BAD_REQUEST, f"b64data: must hold JSON, as every channel's data here ({error})"
        ) from error
    return data
