"""New code comes, on trial and for good, while clients of the official SDK are connected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.control.client import ControlClient
from gateway.producer import Producer
from tests.support.gateway import Gateway, running_gateway
from tests.support.publishing import Publishing
from tests.support.sdk import PYTHON, SdkClient, sdk_clients
from tests.support.tokens import SECRET, connection_token
from tests.support.waiting import wait_for

CLIENTS_OF_EACH_KIND = 3
UPGRADE_TIMEOUT_S = 60.0
PAUSE_S = 0.02
CHANNEL = "room:all"

CONFIG: dict[str, dict[str, Any]] = {
    "tokens": {"hmac_secret": SECRET},
    "channel": {
        "namespaces": [
            {
                "name": "room",
                "allow_subscribe_for_client": True,
                "allow_publish_for_subscriber": True,
                "allow_presence_for_subscriber": True,
                "presence": True,
                "join_leave": True,
                "history_size": 1000,
                "history_ttl_s": 300,
            }
        ]
    },
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(CONFIG) as running:
        yield running


def upgrade(gateway: Gateway) -> None:
    with ControlClient(gateway.control_path, timeout_s=UPGRADE_TIMEOUT_S) as control:
        control.call("upgrade")


def promote_a_canary(gateway: Gateway) -> None:
    gateway.control("reload", canary=1)
    gateway.control("reload", end="promote")


def roll_a_canary_back(gateway: Gateway) -> None:
    gateway.control("reload", canary=1)
    gateway.control("reload", end="rollback")


@pytest.mark.parametrize("bring", [upgrade, promote_a_canary, roll_a_canary_back])
def test_no_client_of_the_sdk_notices(gateway: Gateway, bring: Callable[[Gateway], None]) -> None:
    ends = gateway.ends()
    with contextlib.ExitStack() as stack:
        crowd: dict[str, SdkClient] = {}
        for kind in PYTHON:
            make = stack.enter_context(sdk_clients(kind))
            for number in range(CLIENTS_OF_EACH_KIND):
                user = f"{kind}-{number}"
                client = make(gateway.http_port, token=connection_token(user))
                crowd[client.connect()["client"]] = client
                client.subscribe(CHANNEL, recoverable=True, join_leave=True)
        for client in crowd.values():
            wait_for(lambda c=client: c.seen("join"), "the first to be announced")
        present = next(iter(crowd.values())).call("presence", channel=CHANNEL)
        assert present.keys() == crowd.keys()

        with (
            Producer(gateway.control_path) as producer,
            Publishing(producer, CHANNEL, PAUSE_S) as offsets,
        ):
            wait_for(lambda: offsets, "the first message")
            bring(gateway)
            reached = len(offsets)
            wait_for(lambda: len(offsets) > reached + 10, "publishing to go on")
        for identity, client in crowd.items():
            client.call("publish", channel=CHANNEL, data={"from": identity})
        for identity, client in crowd.items():
            heard = [client.wait("publication") for _ in range(len(offsets) + len(crowd))]
            assert [each["offset"] for each in heard] == list(
                range(offsets[0], offsets[0] + len(heard))
            )
            told = heard[-len(crowd) :]
            assert [each["data"]["from"] for each in told] == list(crowd)
            assert [each["info"]["client"] for each in told] == list(crowd)
            assert client.call("presence", channel=CHANNEL).keys() == crowd.keys(), identity
            assert len(client.seen("connecting")) == len(client.seen("subscribing")) == 1
            for event in ("disconnected", "unsubscribed", "leave", "error", "publication"):
                assert client.seen(event) == []
        assert gateway.ends() == ends
