"""The README's examples, as they stand there but for the addresses of the test's own gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, running_gateway
from tests.support.tokens import SECRET, connection_token
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


def example(words: str) -> str:
    """The Python program in which `words` stand."""
    text = (ROOT / "README.md").read_text()
    [found] = [
        each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if words in each
    ]
    return str(found)


def replaced(text: str, before: str, after: str) -> str:
    assert before in text
    return text.replace(before, after)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway({"tokens": {"hmac_secret": SECRET}}) as running:
        yield running


def subscriber(gateway: Gateway, name: str) -> str:
    """The program of a subscriber, by what its import names."""
    if name == "centrifuge":
        text = replaced(example("from centrifuge import"), ":8000", f":{gateway.http_port}")
        return replaced(text, "TOKEN", repr(connection_token("42")))
    return replaced(example("from gateway.client import"), ":8001", f":{gateway.tcp_port}")


def publisher(gateway: Gateway, name: str) -> str:
    if name == "cent":
        text = replaced(example("import cent"), "http://127.0.0.1:8002/api", gateway.api_url)
        return replaced(text, "KEY", repr(gateway.api_key))
    path = repr(str(gateway.control_path))
    return replaced(example("from gateway.producer import"), "Producer()", f"Producer({path})")


@pytest.mark.parametrize("name", ["centrifuge", "tidegate"])
def test_the_python_examples_publish_and_receive(gateway: Gateway, name: str) -> None:
    wait_for(lambda: gateway.totals()["subscriptions"] == 0, "the end of who was there before")
    subscribed = subprocess.Popen(
        [sys.executable, "-u", "-c", subscriber(gateway, name)], stdout=subprocess.PIPE, text=True
    )
    assert subscribed.stdout is not None
    try:
        wait_for(lambda: gateway.totals()["subscriptions"] == 1, "the subscription")
        published = run(publisher(gateway, "producer"))
        offset = re.search(r"offset=(\d+)", published)
        assert offset
        assert subscribed.stdout.readline() == f"{offset[1]} {{'hello': 'ring'}}\n"
        assert "public:news" in run(publisher(gateway, "cent"))
    finally:
        subscribed.kill()
        subscribed.communicate()


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_the_module_names_of_the_reading_order_exist() -> None:
    order = (ROOT / "README.md").read_text().partition("## In what order to read")[2]
    known = [
        path.as_posix()
        for package in ("shm", "workers", "gateway")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".rs")
    ]
    for name in re.findall(r"`([\w/.]+\.(?:py|rs))`", order):
        assert any(path.endswith(f"/{name}") for path in known), name
