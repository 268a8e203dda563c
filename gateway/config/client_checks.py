"""Rules about clients: what they may come in by, what they show, and what channels allow them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.config import derived
from gateway.config.schema import ChannelRules, Config, TokensSection
from gateway.errors import Problem
from workers import _engine

NAMESPACES_MAX = 256
ORIGINS_MAX = 64
ORIGIN_CHARACTERS_MAX = 255
HEADERS_MAX = 32
"""All of them travel to a worker in one message of its link, whose size is bounded."""
SHOWN_CHARACTERS_MAX = 40
"""Of a key that is wrong."""


def check_clients(config: Config) -> Iterator[Problem]:
    """Every combination about clients in `config` that cannot hold."""
    yield from _counts(config)
    yield from _tokens("tokens", config.tokens)
    yield from _tokens("subscription_tokens", config.subscription_tokens)
    yield from _verifier(config)
    yield from _subscription_tokens(config)
    yield from _personal_channel(config)
    yield from _rules("channel", config.channel, config)
    seen: set[str] = set()
    for index, namespace in enumerate(config.channel.namespaces):
        prefix = f"channel.namespaces[{index}]"
        if namespace.name in seen:
            yield Problem(
                f"{prefix}.name",
                f'"{namespace.name}"',
                "is there twice",
                "give each namespace once",
            )
        seen.add(namespace.name)
        yield from _rules(prefix, namespace, config)


def _counts(config: Config) -> Iterator[Problem]:
    for name, count, count_max in (
        ("channel.namespaces", len(config.channel.namespaces), NAMESPACES_MAX),
        ("client.allowed_origins", len(config.client.allowed_origins), ORIGINS_MAX),
        ("hooks.headers", len(config.hooks.headers), HEADERS_MAX),
    ):
        if count > count_max:
            yield Problem(
                name, f"({count} of them)", f"at most {count_max} are possible", "merge some"
            )
    for origin in config.client.allowed_origins:
        if len(origin) > ORIGIN_CHARACTERS_MAX:
            yield Problem(
                "client.allowed_origins",
                f'"{origin[:40]}..."',
                f"an origin has at most {ORIGIN_CHARACTERS_MAX} characters",
                "write scheme, host and port alone",
            )


def _tokens(name: str, tokens: TokensSection) -> Iterator[Problem]:
    if tokens.hmac_previous_secret and not tokens.hmac_secret:
        yield Problem(
            f"{name}.hmac_previous_secret",
            "(hidden)",
            f"is set without {name}.hmac_secret",
            "give the secret that is in force now, too",
        )
    for claim in ("audience", "issuer"):
        if getattr(tokens, claim) and getattr(tokens, f"{claim}_regex"):
            yield Problem(
                f"{name}.{claim}",
                f'"{getattr(tokens, claim)}"',
                f"{name}.{claim}_regex is set, too",
                "keep one of the two",
            )


def _verifier(config: Config) -> Iterator[Problem]:
    """What the engine, which is to use them, says of keys and expressions."""
    try:
        _engine.TokenVerifier(*derived.token_rules(config))
    except ValueError as error:
        key, reason = error.args
        section, _, option = key.partition(".")
        value = str(getattr(getattr(config, section), option))
        shown = (
            value if len(value) <= SHOWN_CHARACTERS_MAX else f"{value[:SHOWN_CHARACTERS_MAX]}..."
        )
        yield Problem(
            key,
            f'"{shown}"',
            reason,
            'write the whole text, from "-----BEGIN PUBLIC KEY-----" on, between triple quotes'
            if option.endswith("_key")
            else "correct or remove it",
        )


def _subscription_tokens(config: Config) -> Iterator[Problem]:
    tokens = config.subscription_tokens
    if not tokens.has_keys and (tokens.audience or tokens.issuer or tokens.user_id_claim):
        yield Problem(
            "subscription_tokens",
            "",
            "has rules, but no key that a token could be checked with",
            "give a key here, or leave the section out: [tokens] then holds for all tokens",
        )


def _personal_channel(config: Config) -> Iterator[Problem]:
    name = config.client.personal_channel_namespace
    if name and all(each.name != name for each in config.channel.namespaces):
        yield Problem(
            "client.personal_channel_namespace",
            f'"{name}"',
            "is not in channel.namespaces",
            "add the namespace",
        )


def _rules(name: str, rules: ChannelRules, config: Config) -> Iterator[Problem]:
    yield from _pattern(f"{name}.channel_regex", rules.channel_regex)
    if bool(rules.history_size) != bool(rules.history_ttl_s):
        unset = "history_ttl_s" if rules.history_size else "history_size"
        yield Problem(f"{name}.{unset}", "0", "is not set, but the other is", "set both, or none")
    for option, needed in (
        ("force_recovery", "recovery"),
        ("force_push_join_leave", "join_leave"),
        ("delta_publish", "allowed_delta_types"),
    ):
        if getattr(rules, option) and not getattr(rules, needed):
            yield Problem(f"{name}.{option}", "true", f"needs {needed}", f"set {needed}, too")
    if rules.recovery_mode == "cache" and not rules.recovery:
        yield Problem(f"{name}.recovery_mode", '"cache"', "needs recovery", "set recovery = true")
    if rules.auto_cache_recover and rules.recovery_mode != "cache":
        yield Problem(
            f"{name}.auto_cache_recover", "true", "is for the cache", 'set recovery_mode = "cache"'
        )
    for kind in ("subscribe", "publish", "sub_refresh"):
        asked = config.hooks.app or getattr(config.hooks, f"{kind}_url")
        if getattr(rules, f"{kind}_hook") and not asked:
            yield Problem(
                f"{name}.{kind}_hook",
                "true",
                "but there is nobody to ask",
                f"set hooks.app or hooks.{kind}_url",
            )


def _pattern(name: str, pattern: str) -> Iterator[Problem]:
    try:
        _engine.check_pattern(pattern)
        # The API applies it, too.
        re.compile(pattern)
    except (ValueError, re.error) as error:
        yield Problem(
            name, f'"{pattern}"', f"not a regular expression ({error})", "correct or remove it"
        )
