"""A page in a real headless Chromium, with the SDK and with what browsers have by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cent
import pytest

from tests.support.gateway import Gateway, running_gateway
from tests.support.relay import relay_to
from tests.support.sdk import BROWSER, SdkClient, sdk_clients
from tests.support.tokens import SECRET, connection_token
from tests.support.waiting import wait_for

Clients = Callable[..., SdkClient]

CONFIG: dict[str, dict[str, Any]] = {
    "client": {"allowed_origins": ["http://127.0.0.1:*"]},
    "tokens": {"hmac_secret": SECRET},
    "channel": {
        "namespaces": [
            {
                "name": "news",
                "allow_subscribe_for_client": True,
                "allow_subscribe_for_anonymous": True,
                "history_size": 100,
                "history_ttl_s": 300,
            }
        ]
    },
}
EVENT_SOURCES = ("browser-eventsource", "js-eventsource")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(CONFIG) as running:
        yield running


@pytest.fixture
def clients(request: pytest.FixtureRequest) -> Iterator[Clients]:
    with sdk_clients(request.param) as make:
        yield make


def publish(gateway: Gateway, channel: str, *data: Any) -> None:
    api = cent.Client(gateway.api_url, api_key=gateway.api_key, timeout=60)
    for each in data:
        api.publish(cent.PublishRequest(channel=channel, data=each))


@pytest.mark.parametrize("clients", BROWSER, indirect=True)
def test_a_page_hears_and_gets_what_it_missed(
    gateway: Gateway, clients: Clients, request: pytest.FixtureRequest
) -> None:
    channel = f"news:{request.node.callspec.id}"
    with relay_to(gateway.http_port) as relay:
        page = clients(relay.port, token=connection_token("7"))
        page.connect()
        page.subscribe(channel, recoverable=True)
        publish(gateway, channel, {"text": "\u00e4\U0001f30a"}, 2)
        assert page.data(channel, 2) == [{"text": "\u00e4\U0001f30a"}, 2]
        relay.down()
        publish(gateway, channel, 3, 4)
        relay.up()
        assert page.wait("subscribed", channel=channel)["recovered"]
        publish(gateway, channel, 5)
        assert page.data(channel, 3) == [3, 4, 5]


@pytest.mark.parametrize("clients", EVENT_SOURCES, indirect=True)
def test_a_plain_event_source_resumes_where_it_was_cut_off(
    gateway: Gateway, clients: Clients, request: pytest.FixtureRequest
) -> None:
    channel = f"news:{request.node.callspec.id}"
    path = f'/connection/uni_sse?cf_connect={{"subs":{{"{channel}":{{}}}}}}'

    def heard(count: int) -> list[Any]:
        data: list[Any] = []
        while len(data) < count:
            push = source.wait("message")["data"]
            if "connect" in push:
                publications = push["connect"]["subs"][channel].get("publications", [])
                data += [each["data"] for each in publications]
            elif "pub" in push:
                data.append(push["pub"]["data"])
        return data

    with relay_to(gateway.http_port) as relay:
        source = clients(relay.port, data={"path": path})
        source.wait("open")
        assert "connect" in source.wait("message")["data"]
        publish(gateway, channel, 1, 2)
        assert heard(2) == [1, 2]
        relay.down()
        publish(gateway, channel, 3, 4)
        source.wait("lost")
        relay.up()
        assert heard(2) == [3, 4]
        publish(gateway, channel, 5)
        assert heard(1) == [5]


@pytest.mark.parametrize("clients", ["browser-websocket"], indirect=True)
def test_a_page_of_another_origin_is_refused(clients: Clients) -> None:
    with running_gateway({"client": {"allowed_origins": ["https://example.com"]}}) as strict:
        page = clients(strict.http_port)
        page.call("connect")
        page.wait("error", type="transport")
        assert not page.seen("connected")
        refused = 'http_rejects_total{reason="origin_refused"}'
        wait_for(lambda: strict.totals()[refused] >= 1, "the refusal to be counted")


def test_a_browser_that_cannot_start_skips_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/bin/false")
    with (
        sdk_clients("browser-websocket") as make,
        pytest.raises(pytest.skip.Exception, match="Chromium does not start here"),
    ):
        make(1)
