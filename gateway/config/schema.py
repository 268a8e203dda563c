"""The configuration's shape: one struct a section, one field a key, with type, range and default.

`deploy/tidegate.toml` explains each key and the decision to take; the tests hold the two together.
Rules that join several keys, or a key and the machine, are in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

WORKERS_MAX = 128
"""The log has at most 256 reader seats: one for each worker, and one for its successor."""

Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$",
        description="1 to 32 of a-z, 0-9 and -",
    ),
]
NamespaceName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="1 to 64 of letters, digits, _, . and -",
    ),
]
Pattern = Annotated[str, Meta(max_length=100)]
PublicKey = Annotated[str, Meta(max_length=4096)]
"""PEM. RSA of 4,096 bits takes 800 characters."""
Url = Annotated[
    str,
    Meta(pattern=r"^(https?://\S+)?$", max_length=512, description="an http:// or https:// URL"),
]
Bytes = Annotated[int, Meta(ge=0, le=16 * MIB)]
Port = Annotated[int, Meta(ge=0, le=65535)]
# A year is as good as never and keeps every sum of times far from overflow.
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
SomeSeconds = Annotated[float, Meta(ge=0.01, le=31_536_000)]
Secret = Annotated[str, Meta(max_length=1024)]
Claim = Annotated[str, Meta(max_length=255)]
HeaderName = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9-]{1,64}$", description="names of HTTP headers"),
]
Transport = Literal[
    "websocket", "sse", "http_stream", "uni_websocket", "uni_sse", "uni_http_stream"
]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the sections: immutable values, made whole or not at all."""


class GatewaySection(Section, frozen=True, kw_only=True):
    name: Name = "default"
    run_dir: str = ""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: str = ""


class WorkersSection(Section, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=0, le=WORKERS_MAX)] = 0
    pin: Literal["node", "cpu", "none"] = "node"
    steer: Literal["hash", "cpu"] = "hash"
    engine: Literal["auto", "epoll", "io_uring"] = "auto"
    # A worker does nothing else meanwhile: longer would be felt by all of its clients.
    batch_delay_us: Annotated[int, Meta(ge=0, le=10_000)] = 0
    # An idle worker shows a sign of life every half second.
    stall_timeout_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 10.0
    restart_delay_min_s: SomeSeconds = 0.1
    restart_delay_max_s: SomeSeconds = 30.0
    stable_s: SomeSeconds = 30.0
    crash_loop_deaths: Annotated[int, Meta(ge=2, le=1000)] = 5
    crash_loop_window_s: SomeSeconds = 60.0
    rebalance_above_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    survive_crashes: bool = True


class ClientSection(Section, frozen=True, kw_only=True):
    address: str = "127.0.0.1"
    http_port: Port = 8000
    tcp_port: Port = 8001
    backlog: Annotated[int, Meta(ge=1, le=65535)] = 4096
    allowed_origins: list[str] = msgspec.field(default_factory=list)
    transports: list[Transport] = msgspec.field(default_factory=lambda: list(TRANSPORTS))
    allow_anonymous: bool = False
    allow_anonymous_tokens: bool = True
    user_connections_max: Annotated[int, Meta(ge=0, le=16_000_000)] = 0
    expired_close_delay_s: Seconds = 25.0
    personal_channel: bool = False
    personal_channel_namespace: str = ""


class TokensSection(Section, frozen=True, kw_only=True):
    hmac_secret: Secret = ""
    hmac_previous_secret: Secret = ""
    hmac_previous_until_s: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    rsa_public_key: PublicKey = ""
    ecdsa_public_key: PublicKey = ""
    ed25519_public_key: PublicKey = ""
    jwks_url: Url = ""
    jwks_ttl_s: SomeSeconds = 3600.0
    audience: Claim = ""
    audience_regex: Pattern = ""
    issuer: Claim = ""
    issuer_regex: Pattern = ""
    user_id_claim: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z_][A-Za-z0-9_.-]{0,63})?$", description="the name of a token's claim"
        ),
    ] = ""

    @property
    def has_keys(self) -> bool:
        """Whether any token can be checked with these."""
        return bool(
            self.hmac_secret
            or self.rsa_public_key
            or self.ecdsa_public_key
            or self.ed25519_public_key
            or self.jwks_url
        )


class SubscriptionTokensSection(TokensSection, frozen=True, kw_only=True):
    """The same, for tokens of subscriptions."""


class HooksSection(Section, frozen=True, kw_only=True):
    app: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z_][\w.]{0,200}:[A-Za-z_]\w{0,100})?$",
            description="package.module:Class",
        ),
    ] = ""
    connect_url: Url = ""
    subscribe_url: Url = ""
    publish_url: Url = ""
    rpc_url: Url = ""
    message_url: Url = ""
    refresh_url: Url = ""
    sub_refresh_url: Url = ""
    disconnect_url: Url = ""
    headers: list[HeaderName] = msgspec.field(default_factory=list)
    timeout_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0
    in_flight_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    threads_max: Annotated[int, Meta(ge=1, le=256)] = 8
    breaker_calls: Annotated[int, Meta(ge=1, le=10_000)] = 20
    breaker_failures_percent: Annotated[int, Meta(ge=1, le=100)] = 50
    breaker_open_s: SomeSeconds = 5.0


class HistorySection(Section, frozen=True, kw_only=True):
    memory_bytes: Annotated[int, Meta(ge=1 * MIB, le=256 * GIB)] = 64 * MIB


class PresenceSection(Section, frozen=True, kw_only=True):
    memory_bytes: Annotated[int, Meta(ge=1 * MIB, le=64 * GIB)] = 32 * MIB


class LimitsSection(Section, frozen=True, kw_only=True):
    connections_max: Annotated[int, Meta(ge=0, le=16_000_000)] = 0
    message_bytes_max: Annotated[int, Meta(ge=128, le=16 * MIB)] = 64 * KIB
    queue_hard_bytes: Annotated[int, Meta(ge=1 * KIB, le=1 * GIB)] = 1 * MIB
    queue_soft_bytes: Annotated[int, Meta(ge=1 * KIB, le=1 * GIB)] = 256 * KIB
    queue_soft_s: Seconds = 10.0
    channels_per_connection_max: Annotated[int, Meta(ge=1, le=65535)] = 128
    handshake_timeout_s: SomeSeconds = 10.0
    header_bytes_max: Annotated[int, Meta(ge=1 * KIB, le=1 * MIB)] = 8 * KIB
    headers_max: Annotated[int, Meta(ge=8, le=1024)] = 64
    accepts_per_turn_max: Annotated[int, Meta(ge=1, le=4096)] = 64
    recovery_publications_max: Annotated[int, Meta(ge=0, le=100_000)] = 300
    history_publications_max: Annotated[int, Meta(ge=1, le=100_000)] = 300
    close_timeout_s: SomeSeconds = 5.0


class WebsocketSection(Section, frozen=True, kw_only=True):
    ping_interval_s: SomeSeconds = 25.0
    pong_timeout_s: SomeSeconds = 8.0
    compression: bool = False
    compression_bytes_min: Bytes = 256


class TcpSection(Section, frozen=True, kw_only=True):
    heartbeat_interval_s: SomeSeconds = 30.0
    heartbeat_timeout_s: SomeSeconds = 90.0


class LogSection(Section, frozen=True, kw_only=True):
    capacity_bytes: Annotated[int, Meta(ge=64 * KIB, le=256 * GIB)] = 32 * MIB
    channels_max: Annotated[int, Meta(ge=16, le=1 << 26)] = 65536
    lag_budget_ms: Annotated[int, Meta(ge=1, le=60_000)] = 200
    uplink_bytes: Annotated[int, Meta(ge=8 * KIB, le=1 * GIB)] = 1 * MIB
    uplinks_max: Annotated[int, Meta(ge=1, le=4096)] = 64


class ApiSection(Section, frozen=True, kw_only=True):
    address: str = "127.0.0.1"
    port: Port = 8002
    socket: str = ""
    key: str = ""
    workers: Annotated[int, Meta(ge=1, le=64)] = 2
    threads: Annotated[int, Meta(ge=1, le=256)] = 8


class ControlSection(Section, frozen=True, kw_only=True):
    operators: list[str] = msgspec.field(default_factory=list)
    observers: list[str] = msgspec.field(default_factory=list)


class ReloadSection(Section, frozen=True, kw_only=True):
    handoff: bool = True
    handoff_timeout_s: SomeSeconds = 10.0
    spread_s: Seconds = 5.0
    start_timeout_s: SomeSeconds = 30.0
    guard_factor: Annotated[float, Meta(ge=1, le=1000)] = 3.0
    guard_events_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    # A guard looks once a second; an hour of that is as much as it should keep.
    guard_window_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0


class StopSection(Section, frozen=True, kw_only=True):
    spread_s: Seconds = 1.0
    timeout_s: SomeSeconds = 10.0


class ChannelRules(Section, frozen=True, kw_only=True):
    """What may be done with the channels of one namespace; closed unless opened."""

    allow_subscribe_for_client: bool = False
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
    channel_regex: Pattern = ""
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
    history_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    history_ttl_s: Seconds = 0.0
    recovery: bool = True
    force_recovery: bool = False
    allow_positioning: bool = False
    force_positioning: bool = False
    recovery_mode: Literal["stream", "cache"] = "stream"
    auto_cache_recover: bool = False
    allowed_delta_types: list[Literal["fossil"]] = msgspec.field(default_factory=list)
    delta_publish: bool = False
    subscribe_hook: bool = False
    publish_hook: bool = False
    sub_refresh_hook: bool = False
    publish_except_sender: bool = False


class Namespace(ChannelRules, frozen=True, kw_only=True, omit_defaults=True):
    """The rules of the channels named `<name>:…`; only what is not as by default is shown."""

    name: NamespaceName


def _public() -> list[Namespace]:
    return [
        Namespace(
            name="public",
            allow_subscribe_for_client=True,
            allow_subscribe_for_anonymous=True,
            allow_publish_for_client=True,
            allow_publish_for_anonymous=True,
        )
    ]


class ChannelSection(ChannelRules, frozen=True, kw_only=True):
    """The rules of channels without a namespace, and the namespaces."""

    namespaces: list[Namespace] = msgspec.field(default_factory=_public)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration, whole and checked. `origins` tells where each key's value came from.

    Keys of `origins` are `section.key`; its values are `default`, `file <path>`,
    `environment <VARIABLE>` or `flag`.
    """

    gateway: GatewaySection = GatewaySection()
    workers: WorkersSection = WorkersSection()
    client: ClientSection = ClientSection()
    tokens: TokensSection = TokensSection()
    subscription_tokens: SubscriptionTokensSection = SubscriptionTokensSection()
    hooks: HooksSection = HooksSection()
    limits: LimitsSection = LimitsSection()
    websocket: WebsocketSection = WebsocketSection()
    tcp: TcpSection = TcpSection()
    log: LogSection = LogSection()
    history: HistorySection = HistorySection()
    presence: PresenceSection = PresenceSection()
    api: ApiSection = ApiSection()
    control: ControlSection = ControlSection()
    reload: ReloadSection = ReloadSection()
    stop: StopSection = StopSection()
    channel: ChannelSection = ChannelSection()
    origins: dict[str, str] = msgspec.field(default_factory=dict)
    path: str = ""
    """The file it was read from; empty: none. With `flags` it is what a reload reads again."""
    flags: dict[str, Any] = msgspec.field(default_factory=dict)


SECTIONS: dict[str, type[Section]] = {
    "gateway": GatewaySection,
    "workers": WorkersSection,
    "client": ClientSection,
    "tokens": TokensSection,
    "subscription_tokens": SubscriptionTokensSection,
    "hooks": HooksSection,
    "limits": LimitsSection,
    "websocket": WebsocketSection,
    "tcp": TcpSection,
    "log": LogSection,
    "history": HistorySection,
    "presence": PresenceSection,
    "api": ApiSection,
    "control": ControlSection,
    "reload": ReloadSection,
    "stop": StopSection,
    "channel": ChannelSection,
}

SECRETS = frozenset(
    {
        "api.key",
        "tokens.hmac_secret",
        "tokens.hmac_previous_secret",
        "subscription_tokens.hmac_secret",
        "subscription_tokens.hmac_previous_secret",
    }
)
"""Keys whose values no status, log or report may show."""
