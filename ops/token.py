"""`tidegate token`: makes tokens for clients and says what the gateway thinks of one."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import click

from gateway.errors import ConfigError, Problem, TidegateError
from ops.command import ends_well, json_option
from ops.output import Exit, Output
from ops.start import config_option, load_config, set_option

ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
FETCH_TIMEOUT_S = 10.0


class Duration(click.ParamType[int]):
    """Seconds, also as `90s`, `15m`, `12h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = re.fullmatch(r"(\d{1,9})([smhd]?)", str(value))
        if parts is None:
            self.fail(f"{value!r}: write seconds, or 90s, 15m, 12h, 7d", param, ctx)
        return int(parts[1]) * UNITS_S[parts[2]]


class Json(click.ParamType[Any]):
    """Any JSON value."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)


@click.group()
def token() -> None:
    """Make and check the tokens that clients show."""


@token.command()
@config_option
@set_option
@click.option("--user", default="", metavar="ID", help="Whose; without it, an anonymous client's.")
@click.option("--channel", default="", metavar="NAME", help="For a subscription to this channel.")
@click.option(
    "--expires",
    "expires_s",
    type=Duration(),
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="From now; 0: never.",
)
@click.option("--info", type=Json(), metavar="JSON", help="What others see of the client.")
@click.option("--data", type=Json(), metavar="JSON", help="What the subscriber gets (--channel).")
@click.option("--meta", type=Json(), metavar="JSON", help="What only the application sees.")
@click.option(
    "--subs",
    multiple=True,
    metavar="CHANNEL",
    help="Subscribe the client at connecting; may be given several times.",
)
@click.option(
    "--private-key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="PEM to sign with, instead of the configured HMAC secret.",
)
@click.option("--algorithm", type=click.Choice(ALGORITHMS), help="Default: as the key suggests.")
@click.option("--key-id", default="", metavar="ID", help='The header "kid", for keys of a JWKS.')
@json_option
@ends_well
def mint(output: Output, path: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Make a token.

    \b
    Examples:
      tidegate token mint -c tidegate.toml --user 42
      tidegate token mint -c tidegate.toml --user 42 --channel '$rooms:7' --expires 10m
      tidegate token mint -c tidegate.toml --user 42 --private-key key.pem --subs news

    Signs with the HMAC secret of the configuration, or with a private key. Audience and issuer are
    those that the configuration wants. Prints the token alone, for `$(...)`.
    """
    config = load_config(path, overrides)
    separate = options["channel"] and config.subscription_tokens.has_keys
    rules, section = (
        (config.subscription_tokens, "subscription_tokens")
        if separate
        else (config.tokens, "tokens")
    )
    claims = _claims(rules, options)
    signed = _signed(claims, rules, section, options)
    if output.as_json:
        output.data({"token": signed, "claims": claims})
    else:
        output.line(signed)


@token.command()
@config_option
@set_option
@click.argument("text", metavar="TOKEN")
@json_option
@ends_well
def check(output: Output, path: Path | None, overrides: tuple[str, ...], text: str) -> Exit:
    """Say whether the gateway would take TOKEN, and why not.

    \b
    Examples:
      tidegate token check -c tidegate.toml eyJhbGciOi...
      tidegate token mint -c tidegate.toml --user 42 | tidegate token check -c tidegate.toml -

    A token with the claim `channel` is one for a subscription. The exit status is 1 for a token
    that is not taken. It is judged by the very code that the workers run.
    """
    config = load_config(path, overrides)
    text = (sys.stdin.readline() if text == "-" else text).strip()
    header, claims = _unverified(text)
    kind = "subscription" if claims.get("channel") else "connection"
    problem = _judge(config, text, kind)
    if output.as_json:
        told = {"valid": not problem, "reason": problem, "kind": kind}
        output.data(told | {"header": header, "claims": claims})
    else:
        output.line(f"{kind} token: {problem or 'valid'}")
        for name, value in claims.items():
            output.line(f"  {name}: {_shown(name, value)}")
    return Exit.NO if problem else Exit.OK


def common_claims(rules: Any, expires_s: int) -> dict[str, Any]:
    """What a token says, whosever it is, by the rules of `[tokens]` or `[subscription_tokens]`.

    `expires_s`: from now; 0: never.
    """
    now_s = int(time.time())
    claims: dict[str, Any] = {"iat": now_s}
    if expires_s:
        claims["exp"] = now_s + expires_s
    for name, value in (("aud", rules.audience), ("iss", rules.issuer)):
        if value:
            claims[name] = value
    return claims


def user_claim(rules: Any) -> str:
    return rules.user_id_claim or "sub"


def hmac_secret(rules: Any, section: str, remedy: str) -> str:
    """Raises ConfigError without one."""
    if not rules.hmac_secret:
        reason = "is not set, so that there is nothing to sign with"
        problem = Problem(f"{section}.hmac_secret", "", reason, remedy)
        raise ConfigError("configuration", [problem])
    return str(rules.hmac_secret)


def _claims(rules: Any, options: dict[str, Any]) -> dict[str, Any]:
    claims = {user_claim(rules): options["user"], **common_claims(rules, options["expires_s"])}
    for name, value in (("channel", options["channel"]), ("channels", list(options["subs"]))):
        if value:
            claims[name] = value
    for name in ("info", "data", "meta"):
        if options[name] is not None:
            claims[name] = options[name]
    return claims


def _signed(claims: dict[str, Any], rules: Any, section: str, options: dict[str, Any]) -> str:
    import jwt

    if options["private_key"] is None:
        key = hmac_secret(rules, section, "set it, or give --private-key")
        algorithm = "HS256"
    else:
        key = options["private_key"].read_text()
        algorithm = _algorithm_of(key)
    headers = {"kid": options["key_id"]} if options["key_id"] else None
    try:
        return jwt.encode(claims, key, options["algorithm"] or algorithm, headers)
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise TidegateError(
            f"cannot sign: {error}", remedy="give a key and an --algorithm that go together"
        ) from error


def _algorithm_of(pem: str) -> str:
    """What a private key is usually used with."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise TidegateError(
            f"not a private key in PEM: {error}", remedy="give one without a password"
        ) from error
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: "ES256", 384: "ES384"}.get(key.curve.key_size, "ES512")
    return "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey) else "RS256"


def _unverified(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, whoever wrote them; empty where it is no token at all."""
    import jwt

    try:
        parts = jwt.decode_complete(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        return {}, {}
    return dict(parts["header"]), dict(parts["payload"])


def _judge(config: Any, text: str, kind: str) -> str:
    """Why the gateway would not take the token; empty: it would."""
    from gateway.config import derived
    from workers._engine import TokenVerifier

    verifier = TokenVerifier(*derived.token_rules(config))
    now_s = int(time.time())
    if keys := _fetched_keys(config):
        verifier.take_keys(keys, now_s)
    check = verifier.check_subscription if kind == "subscription" else verifier.check_connection
    return check(text, now_s) or ""


def _fetched_keys(config: Any) -> bytes:
    """The keys at the configured URLs, as the workers fetch them. Raises TidegateError."""
    from urllib.request import urlopen

    urls = {config.tokens.jwks_url, config.subscription_tokens.jwks_url} - {""}
    keys = {}
    for url in urls:
        try:
            with urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:
                keys[url] = json.load(answer)
        except (OSError, ValueError) as error:
            raise TidegateError(
                f"no keys at {url}: {error}", remedy="see whether the URL is right"
            ) from error
    return json.dumps(keys).encode() if keys else b""


def _shown(name: str, value: Any) -> str:
    if name in ("exp", "iat", "nbf", "expire_at") and isinstance(value, int):
        return f"{value} ({time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(value))})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


COMMANDS = [token]
