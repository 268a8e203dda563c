"""What a backend may ask, and what is wrong with it where it cannot be done.

Pure: bytes in, typed requests out. Publication data stays the bytes it came as (`msgspec.Raw`); the
uplink checks and compacts it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from gateway.errors import PublishError

# The error numbers that clients of this API know, with their standard texts.
INTERNAL = 100
UNKNOWN_CHANNEL = 102
METHOD_NOT_FOUND = 104
LIMIT_EXCEEDED = 106
BAD_REQUEST = 107
NOT_AVAILABLE = 108
UNRECOVERABLE_POSITION = 112
CONFLICT = 113
ERROR_TEXTS = {
    INTERNAL: "internal server error",
    UNKNOWN_CHANNEL: "unknown channel",
    METHOD_NOT_FOUND: "method not found",
    LIMIT_EXCEEDED: "limit exceeded",
    BAD_REQUEST: "bad request",
    NOT_AVAILABLE: "not available",
    UNRECOVERABLE_POSITION: "unrecoverable position",
    CONFLICT: "conflict",
}

BROADCAST_CHANNELS_MAX = 1024
"""Channels of one broadcast: one request keeps an API thread for at most some 100 ms."""
BATCH_COMMANDS_MAX = 1024
"""Commands of one batch, for the same reason."""
IDEMPOTENCY_KEY_BYTES_MAX = 255
"""The publisher's idempotency table keeps no longer ones."""
PATTERN_CHARACTERS_MAX = 1024
REASON_BYTES_MAX = 123
"""Of a close frame (RFC 6455 §5.5), less its code."""

Seconds = Annotated[int, Meta(ge=0, le=1 << 53)]
"""Since 1970."""


class NotJson(Exception):
    """The body is not JSON at all; the whole HTTP request is answered 400."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the methods are asked."""


class ChannelRequest(Request, frozen=True, kw_only=True):
    """A request about one channel."""

    channel: str | None = None


# ---- publications


class Publication(Request, frozen=True, kw_only=True):
    """What `publish` and `broadcast` share."""

    data: Raw = Raw(b"")
    b64data: str | None = None
    tags: dict[str, str] | None = None
    idempotency_key: str | None = None
    skip_history: bool | None = None
    delta: bool | None = None
    """A hint: to who agreed on deltas, it may go out as the difference to the one before."""
    version: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    """Of what the data describes: an older one than the channel has is not published."""
    version_epoch: str | None = None
    """Names the count that `version` is of; versions of two counts are not compared."""

    def payload(self) -> tuple[bytes, bool]:
        """The data, and whether it is binary. Raises PublishError for what cannot be published."""
        if len((self.idempotency_key or "").encode()) > IDEMPOTENCY_KEY_BYTES_MAX:
            raise refusal(
                BAD_REQUEST, f"idempotency_key: longer than {IDEMPOTENCY_KEY_BYTES_MAX} bytes"
            )
        if self.b64data:
            data = _bytes_of_base64("b64data", self.b64data)
            return data, not _is_json(data)
        data = bytes(self.data)
        if not data:
            raise refusal(BAD_REQUEST, "data: required")
        return data, False


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


# ---- orders: what is done to a user's connections


class Position(msgspec.Struct, frozen=True, kw_only=True):
    offset: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    epoch: str = ""


class BoolValue(msgspec.Struct, frozen=True, kw_only=True):
    value: bool = False


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """Channel options that hold for one subscription whatever the namespace says."""

    presence: BoolValue | None = None
    join_leave: BoolValue | None = None
    force_push_join_leave: BoolValue | None = None
    force_recovery: BoolValue | None = None
    force_positioning: BoolValue | None = None


class Order(Request, frozen=True, kw_only=True):
    """What is done to all connections of a user, or to the one that `client` or `session` names."""

    user: str | None = None
    client: str = ""
    session: str = ""

    def target(self) -> dict[str, str]:
        """Whose connections. Raises PublishError where that would be all anonymous ones."""
        if self.user is None:
            raise refusal(BAD_REQUEST, "user: required")
        if not self.user and not self.client and not self.session:
            raise refusal(BAD_REQUEST, "user: may be empty only beside client or session")
        return {"user": self.user, "client": self.client, "session": self.session}


class Subscribe(Order, frozen=True, kw_only=True):
    channel: str | None = None
    info: Raw | UnsetType = UNSET
    b64info: str | None = None
    data: Raw | UnsetType = UNSET
    b64data: str | None = None
    recover_since: Position | None = None
    expire_at: Seconds | None = None
    override: Override | None = None

    def order(self) -> dict[str, object]:
        """The order, for a channel that was checked. Raises PublishError."""
        order: dict[str, object] = {"op": "subscribe", **self.target(), "channel": self.channel}
        for key, value, encoded in (
            ("info", self.info, self.b64info),
            ("data", self.data, self.b64data),
        ):
            if encoded:
                order[key] = Raw(_json_of_base64(f"b64{key}", encoded))
            elif value is not UNSET:
                order[key] = value
        if self.recover_since is not None:
            order["recover_since"] = self.recover_since
        if self.expire_at:
            order["expire_at"] = self.expire_at
        if self.override is not None:
            for option, value in msgspec.structs.asdict(self.override).items():
                if value is not None:
                    order[option] = value.value
        return order


class Unsubscribe(Order, frozen=True, kw_only=True):
    channel: str = ""
    """Empty: all channels."""

    def order(self) -> dict[str, object]:
        return {"op": "unsubscribe", **self.target(), "channel": self.channel}


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection is to end; codes from 3000 on are an application's to choose."""

    code: int = 0
    reason: str = ""


class Disconnect(Order, frozen=True, kw_only=True):
    whitelist: list[str] = []
    """Clients that stay."""
    disconnect: Ending | None = None

    def order(self) -> dict[str, object]:
        """Raises PublishError."""
        ending = self.disconnect or Ending()
        code = ending.code or 3503
        if not 3000 <= code < 5000:
            raise refusal(BAD_REQUEST, f"disconnect.code: {code}, must be 3000 to 4999")
        reason = ending.reason or ("force disconnect" if code == 3503 else "")
        if len(reason.encode()) > REASON_BYTES_MAX:
            raise refusal(BAD_REQUEST, f"disconnect.reason: longer than {REASON_BYTES_MAX} bytes")
        return {
            "op": "disconnect",
            **self.target(),
            "whitelist": self.whitelist,
            "code": code,
            "reason": reason,
        }


class Refresh(Order, frozen=True, kw_only=True):
    expired: bool = False
    expire_at: Seconds | None = None
    info: Raw | UnsetType = UNSET

    def order(self) -> dict[str, object]:
        order: dict[str, object] = {"op": "refresh", **self.target(), "expired": self.expired}
        if self.expire_at:
            order["expire_at"] = self.expire_at
        if self.info is not UNSET:
            order["info"] = self.info
        return order


# ---- questions


class Presence(ChannelRequest, frozen=True, kw_only=True):
    """Who is subscribed to a channel."""


class PresenceStats(ChannelRequest, frozen=True, kw_only=True):
    """How many are."""


class History(ChannelRequest, frozen=True, kw_only=True):
    limit: int = 0
    """0: the position alone; negative: all that there is."""
    since: Position | None = None
    reverse: bool = False


class HistoryRemove(ChannelRequest, frozen=True, kw_only=True):
    """Forgets a channel's publications; its epoch and offset stay."""


class Channels(Request, frozen=True, kw_only=True):
    pattern: Annotated[str, Meta(max_length=PATTERN_CHARACTERS_MAX)] = ""
    """A glob; empty: every channel that has subscribers."""


class Info(Request, frozen=True):
    """Asks about the gateway itself; no fields."""


class Rpc(Request, frozen=True, kw_only=True):
    """Calls an extension of the server; there are none."""

    method: str = ""


class Batch(Request, frozen=True, kw_only=True):
    """Several requests in one."""

    commands: list[dict[str, Raw]]
    parallel: bool = False
    """The order does not matter: those that only publish are then under way together."""

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


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request that names its method itself; its answer comes back with its id."""

    method: str
    params: Raw = Raw(b"{}")
    id: int = 0


METHODS: dict[str, type[Request]] = {
    "publish": Publish,
    "broadcast": Broadcast,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "disconnect": Disconnect,
    "refresh": Refresh,
    "presence": Presence,
    "presence_stats": PresenceStats,
    "history": History,
    "history_remove": HistoryRemove,
    "channels": Channels,
    "info": Info,
    "rpc": Rpc,
    "batch": Batch,
}

_DECODERS: dict[str, msgspec.json.Decoder[Request]] = {
    method: msgspec.json.Decoder(kind) for method, kind in METHODS.items()
}

_COMMANDS = msgspec.json.Decoder(Command)


def refusal(status: int, reason: str) -> PublishError:
    """The error with the number `status`: its standard text, then what exactly is wrong."""
    return PublishError(f"{ERROR_TEXTS[status]}: {reason}", status=status)


def decode(method: str, body: bytes) -> Request:
    """The request in `body`. Raises NotJson, or PublishError (104 or 107)."""
    decoder = _DECODERS.get(method)
    if decoder is None:
        raise refusal(METHOD_NOT_FOUND, f"there is no method {method}")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise refusal(BAD_REQUEST, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(str(error)) from error


def decode_one_of_several(method: str, body: bytes) -> Request:
    """As `decode`, but raises only PublishError: what is wrong with one must not undo the others.

    Whoever read several has passed their bodies over (`msgspec.Raw`), text that is not UTF-8
    among them.
    """
    try:
        return decode(method, body)
    except NotJson as error:
        raise refusal(BAD_REQUEST, f"not JSON: {error}") from error


def decode_commands(body: bytes) -> list[Command]:
    """The commands in `body`, one a line, their `params` not looked into.

    Raises NotJson, also for more than BATCH_COMMANDS_MAX.
    """
    try:
        commands = _COMMANDS.decode_lines(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(str(error)) from error
    if len(commands) > BATCH_COMMANDS_MAX:
        raise NotJson(f"{len(commands)} commands in one request, at most {BATCH_COMMANDS_MAX}")
    return commands


def _bytes_of_base64(key: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refusal(BAD_REQUEST, f"{key}: not base64 ({error})") from error


def _json_of_base64(key: str, text: str) -> bytes:
    data = _bytes_of_base64(key, text)
    if not _is_json(data):
        raise refusal(BAD_REQUEST, f"{key}: must hold JSON")
    return data


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
