"""History longer than its memory: the oldest of all goes, and nobody is left in the dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cent
import pytest

from gateway.producer import Producer
from tests.support.gateway import Gateway
from tests.support.relay import relay_to
from tests.support.sdk import KINDS, SdkClient, sdk_clients
from tests.support.tokens import SECRET, connection_token

CONFIG: dict[str, dict[str, Any]] = {
    "tokens": {"hmac_secret": SECRET},
    "history": {"memory_bytes": 1 << 20},
    "channel": {
        "namespaces": [
            {
                "name": "room",
                "allow_subscribe_for_client": True,
                "history_size": 1000,
                "history_ttl_s": 300,
            }
        ]
    },
}
DROPPED = 'history_dropped_total{reason="memory"}'


@pytest.fixture(params=KINDS)
def clients(request: pytest.FixtureRequest) -> Iterator[Callable[..., SdkClient]]:
    with sdk_clients(request.param) as make:
        yield make


def test_what_has_no_room_is_counted_and_who_missed_it_is_told(
    start_gateway: Callable[..., Gateway], clients: Callable[..., SdkClient]
) -> None:
    gateway = start_gateway(CONFIG)
    api = cent.Client(gateway.api_url, api_key=gateway.api_key, timeout=60)
    count = 200
    with relay_to(gateway.http_port) as relay, Producer(gateway.control_path) as producer:
        client = clients(relay.port, token=connection_token("ann"))
        client.connect()
        client.subscribe("room:old", recoverable=True)
        client.subscribe("room:new", recoverable=True)
        producer.publish("room:old", "first")
        assert client.data("room:old", 1) == ["first"]
        assert gateway.totals()[DROPPED] == 0
        relay.down()
        producer.publish("room:old", "missed")
        for _ in range(count):
            # More than a mebibyte of it.
            producer.publish("room:flood", "x" * 8000)
        producer.publish("room:new", "kept")
        relay.up()
        old = client.wait("subscribed", channel="room:old", was_recovering=True)
        new = client.wait("subscribed", channel="room:new", was_recovering=True)
        assert (old["recovered"], new["recovered"]) == (False, True)
        assert client.data("room:new", 1) == ["kept"]
        producer.publish("room:old", "after")
        assert client.data("room:old", 1) == ["after"]
    flood = api.history(cent.HistoryRequest(channel="room:flood", limit=-1))
    kept = len(flood.publications)
    assert flood.offset == count and 50 < kept < count
    assert [each.offset for each in flood.publications] == list(range(count - kept + 1, count + 1))
    # All that was published and is not there: of the old channel two, of the other the rest.
    assert gateway.totals()[DROPPED] == 2 + count - kept
