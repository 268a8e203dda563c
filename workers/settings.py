"""What one worker is told at its start: plain values only, so that they travel over the link.

`gateway` derives these from the configuration; the engine reads their JSON once, by name
(`workers/engine/src/settings.rs`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, Literal

from workers import log

__all__ = [
    "HookSettings",
    "NamespaceSettings",
    "TokenSettings",
    "WorkerSettings",
    "namespaces_of",
    "rows_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSettings:
    """The rules of the channels whose name begins with `<name>:`.

    What is allowed `for_client` is so for clients with a user id; those without one need
    `for_anonymous` besides. `for_subscriber`: for who is subscribed to the channel.
    """

    name: str
    """Text before the first colon; empty: the rules of channels without a namespace."""
    allow_subscribe_for_client: bool = False
    """Whether a client may subscribe without a token."""
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_subscriber: bool = False
    allow_publish_for_anonymous: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_subscriber: bool = False
    allow_presence_for_anonymous: bool = False
    allow_history_for_client: bool = False
    allow_history_for_subscriber: bool = False
    allow_history_for_anonymous: bool = False
    allow_user_limited_channels: bool = False
    """Whether the part of a name after its last `#` lists the users who may subscribe."""
    channel_regex: str = ""
    """What the name after the namespace must match; empty: any ASCII."""
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
    history_size: int = 0
    """Publications kept for each channel."""
    history_ttl_s: float = 0.0
    recovery: bool = True
    """Whether a subscription may ask for what it missed."""
    force_recovery: bool = False
    allow_positioning: bool = False
    force_positioning: bool = False
    recovery_mode: Literal["stream", "cache"] = "stream"
    auto_cache_recover: bool = False
    allowed_delta_types: tuple[Literal["fossil"], ...] = ()
    delta_publish: bool = False
    subscribe_hook: bool = False
    publish_hook: bool = False
    sub_refresh_hook: bool = False
    publish_except_sender: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """With what the tokens of clients are checked. Empty text: not configured."""

    hmac_secret: str = field(default="", repr=False)
    hmac_previous_secret: str = field(default="", repr=False)
    hmac_previous_until_s: int = 0
    """Until when the previous secret is taken, in seconds since 1970; 0: for ever."""
    rsa_public_key: str = ""
    """PEM, as are the next two."""
    ecdsa_public_key: str = ""
    ed25519_public_key: str = ""
    jwks_url: str = ""
    jwks_ttl_s: float = 3600.0
    audience: str = ""
    audience_regex: str = ""
    issuer: str = ""
    issuer_regex: str = ""
    user_id_claim: str = ""
    """The claim that has the user's id; empty: `sub`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSettings:
    """Whom the application's questions go to, and what they may take."""

    app: str = ""
    """`package.module:Class`; empty: no Python application."""
    urls: Mapping[str, str] = field(default_factory=dict)
    """Endpoint by kind of question; it is asked instead of the application's method."""
    headers: tuple[str, ...] = ()
    """Headers of the client's request that go along, in lower case."""
    timeout_s: float = 1.0
    in_flight_max: int = 1000
    threads_max: int = 8
    """For methods that are not coroutines."""
    breaker_calls: int = 20
    breaker_failures_percent: int = 50
    breaker_open_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Everything a worker needs to know besides its descriptors."""

    # Who this worker is.
    instance: str
    version: str
    node: str
    """UUID of the gateway, as clients see it."""
    slot: int
    generation: int
    seat: int
    """Reader seat in the log."""
    stats_row: int
    """Row in the statistics segment."""
    memory_node: int
    """NUMA node that memory is preferred from; -1: no preference."""

    log_format: log.Format
    log_level: str
    log_file: str
    """Path, or "" for standard error."""

    # What clients may take. Bounds, each with its unit.
    connections_max: int
    user_connections_max: int
    """Of one user in this worker; 0: any number."""
    message_bytes_max: int
    queue_hard_bytes: int
    queue_soft_bytes: int
    queue_soft_s: float
    channels_per_connection_max: int
    handshake_timeout_s: float
    header_bytes_max: int
    headers_max: int
    accepts_per_turn_max: int
    engine: Literal["auto", "epoll", "io_uring"]
    """What sends to clients: io_uring for many at once, where it can be; or a call for each."""
    batch_delay_us: int
    """How long publications wait for more of them, to leave together."""
    recovery_publications_max: int
    history_publications_max: int
    close_timeout_s: float

    # Life signs.
    websocket_ping_interval_s: float
    websocket_pong_timeout_s: float
    websocket_compression: bool
    websocket_compression_bytes_min: int
    tcp_heartbeat_interval_s: float
    tcp_heartbeat_timeout_s: float

    # Who may do what.
    transports: tuple[str, ...]
    """Which endpoints of the HTTP port answer; names as in `client.transports`."""
    allowed_origins: tuple[str, ...]
    """Origins that browsers may come from; empty: only requests without Origin; `*`: all."""
    allow_anonymous: bool
    """Whether the bidirectional dialects let in who shows no token."""
    allow_anonymous_tokens: bool
    """Whether a connection token may be of nobody: without a user, or with an empty one."""
    expired_close_delay_s: float
    personal_channel: bool
    """Whether each user is subscribed to a channel of its own at connecting."""
    personal_channel_namespace: str
    tokens: TokenSettings
    subscription_tokens: TokenSettings | None
    """None: those of `tokens`."""
    hooks: HookSettings
    namespaces: tuple[NamespaceSettings, ...]

    def as_json(self) -> str:
        """The settings as the engine reads them."""
        return json.dumps(asdict(self))

    def as_map(self) -> dict[str, Any]:
        """The settings as a map of plain values, for the link."""
        return asdict(self) | {"namespaces": rows_of(self.namespaces)}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> WorkerSettings:
        """The settings of a map that `as_map` made, perhaps after a way through msgpack.

        Raises TypeError naming the keys when one is unknown or missing: supervisor and worker are
        then not of the same version.
        """
        _same_keys("worker", cls, values)
        tokens, subscription_tokens = values["tokens"], values["subscription_tokens"]
        return cls(
            **{
                **values,
                "transports": tuple(values["transports"]),
                "allowed_origins": tuple(values["allowed_origins"]),
                "tokens": TokenSettings(**tokens),
                "subscription_tokens": subscription_tokens and TokenSettings(**subscription_tokens),
                "hooks": HookSettings(
                    **{**values["hooks"], "headers": tuple(values["hooks"]["headers"])}
                ),
                "namespaces": namespaces_of(values["namespaces"]),
            }
        )


def rows_of(namespaces: Iterable[NamespaceSettings]) -> list[list[Any]]:
    """The names of the options first, then a row of values for each namespace.

    There may be hundreds, and a message of the link is short.
    """
    options = [option.name for option in fields(NamespaceSettings)]
    return [options, *(list(astuple(each)) for each in namespaces)]


def namespaces_of(rows: Iterable[Sequence[Any]]) -> tuple[NamespaceSettings, ...]:
    """The namespaces of rows that `rows_of` made, perhaps after a way through msgpack.

    Raises TypeError naming the options when one is unknown or missing.
    """
    options, *values = rows
    _same_keys("namespace", NamespaceSettings, options)
    named = (dict(zip(options, each, strict=True)) for each in values)
    return tuple(
        NamespaceSettings(**each | {"allowed_delta_types": tuple(each["allowed_delta_types"])})
        for each in named
    )


def _same_keys(what: str, kind: type[Any], keys: Iterable[str]) -> None:
    if odd := {known.name for known in fields(kind)}.symmetric_difference(keys):
        raise TypeError(f"{what} settings of another version: {', '.join(sorted(odd))}")
