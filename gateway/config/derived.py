"""What other processes are told of the configuration, in the shapes of their settings."""

from __future__ import annotations

import msgspec

from gateway.config.schema import (
    ChannelRules,
    ChannelSection,
    Config,
    HooksSection,
    TokensSection,
)
from shm import _ring
from workers.settings import HookSettings, NamespaceSettings, TokenSettings

HOOK_KINDS = (
    *("connect", "subscribe", "publish", "rpc", "message"),
    *("refresh", "sub_refresh", "disconnect"),
)
"""What an application can be asked, or told."""


def namespaces(channel: ChannelSection) -> tuple[NamespaceSettings, ...]:
    """The rules of every channel there may be; first those of channels without a namespace."""
    return (_rules("", channel), *(_rules(each.name, each) for each in channel.namespaces))


def history_rules(channel: ChannelSection) -> tuple[_ring.HistoryRule, ...]:
    """What the publisher keeps: name of a namespace, publications of a channel, seconds."""
    return tuple(
        (each.name, each.history_size, each.history_ttl_s)
        for each in namespaces(channel)
        if each.history_size > 0
    )


def tokens(section: TokensSection) -> TokenSettings:
    return TokenSettings(**msgspec.structs.asdict(section))


def token_rules(config: Config) -> tuple[str, str | None]:
    """All rules of tokens, and those of subscription tokens where they are others, as JSON."""
    subscription = config.subscription_tokens
    return (
        msgspec.json.encode(config.tokens).decode(),
        msgspec.json.encode(subscription).decode() if subscription.has_keys else None,
    )


def hooks(section: HooksSection) -> HookSettings:
    urls = {kind: getattr(section, f"{kind}_url") for kind in HOOK_KINDS}
    return HookSettings(
        app=section.app,
        urls={kind: url for kind, url in urls.items() if url},
        headers=tuple(name.lower() for name in section.headers),
        timeout_s=section.timeout_s,
        in_flight_max=section.in_flight_max,
        threads_max=section.threads_max,
        breaker_calls=section.breaker_calls,
        breaker_failures_percent=section.breaker_failures_percent,
        breaker_open_s=section.breaker_open_s,
    )


def _rules(name: str, rules: ChannelRules) -> NamespaceSettings:
    options = {
        field.name: getattr(rules, field.name) for field in msgspec.structs.fields(ChannelRules)
    }
    options["allowed_delta_types"] = tuple(rules.allowed_delta_types)
    return NamespaceSettings(name=name, **options)
