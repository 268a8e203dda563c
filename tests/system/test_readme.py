"""The README's examples, as they stand there but for the addresses of the test's own gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def replaced(text: str, before: str, after: str) -> str:
    assert before in text
    return text.replace(before, after)


def test_the_python_examples_publish_and_receive(gateway: Gateway) -> None:
    subscriber, producer = examples("python")
    subscriber = replaced(subscriber, "127.0.0.1:8001", f"127.0.0.1:{gateway.tcp_port}")
    producer = replaced(producer, "Producer()", f"Producer({str(gateway.control_path)!r})")
    subscriptions = gateway.totals()["subscriptions"]
    subscribed = subprocess.Popen(
        [sys.executable, "-u", "-c", subscriber], stdout=subprocess.PIPE, text=True
    )
    assert subscribed.stdout is not None
    try:
        wait_for(lambda: gateway.totals()["subscriptions"] > subscriptions, "the subscription")
        published = subprocess.run(
            [sys.executable, "-c", producer], capture_output=True, text=True, check=True
        )
        offset = re.search(r"offset=(\d+)", published.stdout)
        assert offset
        assert subscribed.stdout.readline() == f"{offset[1]} {{'hello': 'ring'}}\n"
    finally:
        subscribed.kill()
        subscribed.communicate()


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
