"""`tidegate token`: what it makes, the gateway takes; what it says, the gateway does."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.commands import CommandClient
from tests.support.gateway import running_gateway
from tests.support.tokens import SECRET, signed
from tests.support.waiting import wait_for

TIMEOUT_S = 60.0


def tidegate(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "ops.cli", "token", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    assert SECRET not in ran.stdout + ran.stderr, "a secret is never shown"
    return ran


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tidegate.toml"
    path.write_text(
        f'[tokens]\nhmac_secret = "{SECRET}"\naudience = "chat"\nissuer = "backend"\n'
        "[subscription_tokens]\nhmac_secret = 'another secret, for subscriptions alone'\n"
    )
    return str(path)


def mint(*arguments: str) -> str:
    ran = tidegate("mint", *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def check(config: str, token: str) -> tuple[int, dict[str, Any]]:
    ran = tidegate("check", "-c", config, "--json", token)
    return ran.returncode, json.loads(ran.stdout)


def test_a_minted_token_says_what_was_asked_and_is_valid(config: str) -> None:
    token = mint("-c", config, "--user", "42", "--info", '{"n": 1}', "--subs", "a", "--subs", "b")
    claims = jwt.decode(token, SECRET, ["HS256"], audience="chat", issuer="backend")
    assert (claims["sub"], claims["info"], claims["channels"]) == ("42", {"n": 1}, ["a", "b"])
    assert 3500 < claims["exp"] - time.time() <= 3600
    status, told = check(config, token)
    assert (status, told["valid"], told["kind"]) == (0, True, "connection")


def test_a_subscription_token_is_signed_with_the_key_for_subscriptions(config: str) -> None:
    token = mint("-c", config, "--user", "42", "--channel", "$a", "--expires", "10m")
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, SECRET, ["HS256"])
    status, told = check(config, token)
    assert (status, told["kind"], told["claims"]["channel"]) == (0, "subscription", "$a")


@pytest.mark.parametrize(
    ("claims", "key", "reason"),
    [
        ({"sub": "1", "aud": "chat", "iss": "backend", "exp": 1000}, SECRET, "expired"),
        ({"sub": "1", "aud": "chat", "iss": "backend"}, "x" * 40, "signature"),
        ({"sub": "1", "aud": "other", "iss": "backend"}, SECRET, "audience"),
        ({"sub": "1", "aud": "chat"}, SECRET, "issuer"),
    ],
)
def test_a_token_that_is_not_taken_is_told_why(
    config: str, claims: dict[str, Any], key: str, reason: str
) -> None:
    ran = tidegate("check", "-c", config, "-", text=signed(claims, key) + "\n")
    assert ran.returncode == 1
    assert reason in ran.stdout.splitlines()[0]


def test_what_is_no_token_is_told_so(config: str) -> None:
    status, told = check(config, "no.token")
    assert (status, told["valid"]) == (1, False)


def test_without_anything_to_sign_with_nothing_is_made() -> None:
    ran = tidegate("mint", "--user", "42")
    assert ran.returncode == 2
    assert "tokens.hmac_secret" in ran.stderr and "--private-key" in ran.stderr


KEYS = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_private_keys_sign_what_public_keys_check(kind: str, tmp_path: Path) -> None:
    private, public = pair(kind)
    (tmp_path / "key.pem").write_bytes(private)
    toml = tmp_path / "tidegate.toml"
    toml.write_text(f'[tokens]\n{kind}_public_key = """{public.decode()}"""\n')
    token = mint("-c", str(toml), "--user", "7", "--private-key", str(tmp_path / "key.pem"))
    assert check(str(toml), token)[1]["valid"]
    with (
        running_gateway({"tokens": {f"{kind}_public_key": public.decode()}}) as gateway,
        CommandClient(gateway.http_port) as client,
    ):
        assert client.call("connect", token=token)["client"]


@pytest.fixture
def jwks(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a key set, and the file with its private key."""
    private, public = pair("rsa")
    path = tmp_path / "key.pem"
    path.write_bytes(private)
    key = jwt.algorithms.RSAAlgorithm.to_jwk(
        serialization.load_pem_public_key(public), as_dict=True
    )
    document = json.dumps({"keys": [key | {"kid": "first", "alg": "RS256", "use": "sig"}]})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(document.encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys", path
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_keys_are_fetched_from_where_they_are_published(
    jwks: tuple[str, Path], tmp_path: Path
) -> None:
    url, private = jwks
    toml = tmp_path / "tidegate.toml"
    toml.write_text(f'[tokens]\njwks_url = "{url}"\n')
    signing = ("-c", str(toml), "--user", "7", "--private-key", str(private))
    known, unknown = (mint(*signing, "--key-id", name) for name in ("first", "second"))
    assert check(str(toml), known)[1]["valid"]
    assert not check(str(toml), unknown)[1]["valid"]
    with running_gateway({"tokens": {"jwks_url": url}}) as gateway:

        def accepted() -> bool:
            with CommandClient(gateway.http_port) as client:
                return "connect" in client.reply_to(client.send("connect", token=known))

        # Who comes before the keys is told to try again.
        wait_for(accepted, "the keys")
        with CommandClient(gateway.http_port) as client:
            client.send("connect", token=unknown)
            assert client.closed()[0] == 3500


def pair(kind: str) -> tuple[bytes, bytes]:
    """A private and its public key, in PEM."""
    key = KEYS[kind]()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public
