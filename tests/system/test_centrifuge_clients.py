"""Every scenario with every official client that can run here, unmodified, on every transport."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cent
import pytest

from gateway.producer import Producer
from tests.support.gateway import Gateway, running_gateway
from tests.support.relay import relay_to
from tests.support.sdk import JAVASCRIPT, KINDS, SdkClient, SdkError, sdk_clients
from tests.support.tokens import SECRET, connection_token, signed, subscription_token
from tests.support.waiting import wait_for

Clients = Callable[..., SdkClient]

ROOT = str(Path(__file__).resolve().parents[2])

ROOM = {
    "allow_subscribe_for_client": True,
    "allow_publish_for_subscriber": True,
    "allow_presence_for_subscriber": True,
    "allow_history_for_subscriber": True,
    "presence": True,
    "join_leave": True,
    "history_size": 50,
    "history_ttl_s": 300,
}
CONFIG: dict[str, dict[str, Any]] = {
    # The tests kill workers faster than anything that a gateway should go on with.
    "workers": {"crash_loop_deaths": 1000, "restart_delay_max_s": 0.2},
    "client": {"personal_channel": True, "personal_channel_namespace": "personal"},
    "tokens": {"hmac_secret": SECRET},
    "hooks": {"app": "tests.support.sdk.app:App", "timeout_s": 20.0},
    "channel": {
        "namespaces": [
            {"name": "room", **ROOM},
            {"name": "open", "allow_subscribe_for_client": True},
            {"name": "closed", "history_size": 10, "history_ttl_s": 300},
            {"name": "dialog", "allow_user_limited_channels": True},
            {"name": "personal"},
            {"name": "latest", **ROOM, "recovery_mode": "cache", "auto_cache_recover": True}
            | {"force_recovery": True},
            {"name": "delta", **ROOM, "allowed_delta_types": ["fossil"], "delta_publish": True},
            {"name": "asked", "subscribe_hook": True, "publish_hook": True},
            {"name": "placed", "allow_subscribe_for_client": True, "allow_positioning": True}
            | {"recovery": False},
        ]
    },
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(CONFIG, environment={"PYTHONPATH": ROOT}) as running:
        yield running


@pytest.fixture(scope="module")
def frail_gateway() -> Iterator[Gateway]:
    """One whose workers take their connections along when they die."""
    workers = CONFIG["workers"] | {"survive_crashes": False}
    sections = CONFIG | {"workers": workers}
    with running_gateway(sections, environment={"PYTHONPATH": ROOT}) as running:
        yield running


@pytest.fixture(scope="module")
def strict_gateway() -> Iterator[Gateway]:
    """One that wants to know who everybody is."""
    client = CONFIG["client"] | {"allow_anonymous_tokens": False}
    sections = CONFIG | {"client": client, "workers": {"count": 1}}
    with running_gateway(sections, environment={"PYTHONPATH": ROOT}) as running:
        yield running


@pytest.fixture(scope="module")
def compressing_gateway() -> Iterator[Gateway]:
    sections = CONFIG | {"websocket": {"compression": True}}
    with running_gateway(sections, environment={"PYTHONPATH": ROOT}) as running:
        yield running


@pytest.fixture(scope="module")
def small_gateway() -> Iterator[Gateway]:
    """One whose log is lapped by a hundred and thirty messages of 8 kB, with a worker that may
    stand still for long."""
    sections = CONFIG | {
        "workers": {"count": 1, "stall_timeout_s": 60},
        "log": {"capacity_bytes": 1 << 20, "lag_budget_ms": 500},
    }
    with running_gateway(sections, environment={"PYTHONPATH": ROOT}) as running:
        yield running


@pytest.fixture(params=KINDS)
def clients(request: pytest.FixtureRequest) -> Iterator[Clients]:
    with sdk_clients(request.param) as make:
        yield make


@pytest.fixture
def api(gateway: Gateway) -> cent.Client:
    return cent.Client(gateway.api_url, api_key=gateway.api_key, timeout=60)


numbers = itertools.count(1)


@pytest.fixture
def user() -> str:
    """A user of this test alone: the gateway is shared."""
    return f"user{next(numbers)}"


@pytest.fixture
def room() -> str:
    return f"room:{next(numbers)}"


def publish(api: cent.Client, channel: str, *data: Any) -> list[cent.PublishResult]:
    return [api.publish(cent.PublishRequest(channel=channel, data=each)) for each in data]


# ---- connecting


def test_a_client_with_a_token_connects_subscribes_and_hears(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    assert len(client.connect()["client"]) == 36
    client.subscribe(room)
    publish(api, room, {"n": 1}, "two", [3])
    assert client.data(room, 3) == [{"n": 1}, "two", [3]]


def test_a_token_with_a_wrong_signature_ends_the_client_for_good(
    gateway: Gateway, clients: Clients, user: str
) -> None:
    client = clients(gateway.http_port, token=signed({"sub": user}, key="x" * 40))
    client.call("connect")
    assert client.wait("disconnected")["code"] == 3500


def test_a_client_without_a_token_is_refused(gateway: Gateway, clients: Clients) -> None:
    client = clients(gateway.http_port)
    client.call("connect")
    assert client.wait("disconnected")["code"] == 3501


def test_a_client_whose_token_is_of_nobody_is_refused_for_good_where_that_is_forbidden(
    gateway: Gateway, strict_gateway: Gateway, clients: Clients
) -> None:
    clients(gateway.http_port, token=connection_token("")).connect()
    client = clients(strict_gateway.http_port, token=connection_token(""))
    client.call("connect")
    ended = client.wait("disconnected")
    assert (ended["code"], ended["reason"]) == (3507, "permission denied")


def test_an_expired_token_is_renewed_and_the_client_connects(
    gateway: Gateway, clients: Clients, user: str
) -> None:
    client = clients(
        gateway.http_port,
        token=connection_token(user, expires_s=-10),
        tokens=lambda channel: connection_token(user),
    )
    client.connect()


def test_a_connection_is_refreshed_before_its_token_expires(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    asked = []

    def tokens(channel: str) -> str:
        asked.append(channel)
        return connection_token(user, expires_s=5 if len(asked) < 2 else 600)

    client = clients(gateway.http_port, token=connection_token(user, expires_s=5), tokens=tokens)
    client.connect()
    client.subscribe(room)
    wait_for(lambda: len(asked) >= 2, "two refreshes")
    publish(api, room, "still here")
    assert client.data(room, 1) == ["still here"]
    assert not client.seen("disconnected") and len(client.seen("connecting")) == 1


# ---- subscribing


@pytest.mark.parametrize(
    ("channel", "code"), [("closed:a", 103), ("nowhere:a", 102), ("$room:a", 103)]
)
def test_what_is_not_allowed_is_refused_by_number(
    gateway: Gateway, clients: Clients, user: str, channel: str, code: int
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.call("subscribe", channel=channel, options={})
    assert client.wait("unsubscribed", channel=channel)["code"] == code


def test_the_log_tells_the_developer_which_option_opens_a_channel_and_the_client_does_not(
    clients: Clients, user: str
) -> None:
    # Of its own: a log has only so many such lines a second.
    with running_gateway(CONFIG, environment={"PYTHONPATH": ROOT}) as gateway:
        client = clients(gateway.http_port, token=connection_token(user))
        client.connect()
        channel = f"closed:{user}"
        client.call("subscribe", channel=channel, options={})
        told = client.wait("unsubscribed", channel=channel)
        assert (told["code"], told["reason"]) == (103, "permission denied")
        wait_for(
            lambda: (
                f'(user "{user}") may not subscribe "{channel}": its namespace needs '
                "allow_subscribe_for_client = true" in gateway.log()
            ),
            "the line in the log",
        )


def test_a_subscription_token_opens_a_private_channel(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str
) -> None:
    channel = f"$closed:{user}"
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(channel, token=subscription_token(user, channel))
    publish(api, channel, "secret")
    assert client.data(channel, 1) == ["secret"]


def test_a_subscription_is_refreshed_before_its_token_expires(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str
) -> None:
    channel, asked = f"$closed:{user}", []

    def tokens(wanted: str) -> str:
        asked.append(wanted)
        expires_s = 4 if len(asked) < 3 else 600
        return subscription_token(user, channel, expires_s=expires_s)

    client = clients(gateway.http_port, tokens=lambda c: tokens(c) if c else connection_token(user))
    client.connect()
    client.subscribe(channel, asks=True)
    wait_for(lambda: len(asked) >= 3, "three tokens")
    publish(api, channel, "on")
    assert client.data(channel, 1) == ["on"]
    assert not client.seen("unsubscribed") and len(client.seen("subscribing")) == 1


def test_the_users_in_a_channels_name_may_subscribe_and_no_others(
    gateway: Gateway, clients: Clients, user: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(f"dialog:talk#someone,{user}")
    other = f"dialog:talk#someone,{user}0"
    client.call("subscribe", channel=other, options={})
    assert client.wait("unsubscribed", channel=other)["code"] == 103


def test_each_user_has_a_channel_of_its_own(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    channel = f"personal:#{user}"
    client.wait("server_subscribed", channel=channel)
    publish(api, channel, "for you")
    assert client.wait("server_publication", channel=channel)["data"] == "for you"


def test_channels_of_a_token_are_subscribed_at_connecting(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user, channels=[room]))
    client.connect()
    client.wait("server_subscribed", channel=room)
    publish(api, room, 1)
    assert client.wait("server_publication", channel=room)["data"] == 1


def test_a_refresh_by_a_token_with_other_channels_makes_the_client_come_back_with_those(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    kept, gone, new = (f"{room}-{name}" for name in ("kept", "gone", "new"))
    asked = []

    def tokens(channel: str) -> str:
        asked.append(channel)
        if len(asked) == 1:
            return connection_token(user, expires_s=5, channels=[kept, gone])
        return connection_token(user, channels=[kept, new])

    client = clients(gateway.http_port, tokens=tokens)
    client.connect()
    client.wait("connecting")
    client.wait("server_subscribed", channel=gone)
    assert client.wait("connecting")["code"] == 3010
    client.wait("server_subscribed", channel=new)
    client.wait("server_unsubscribed", channel=gone)
    publish(api, gone, "unheard")
    publish(api, kept, "heard")
    assert client.wait("server_publication", channel=kept)["data"] == "heard"
    assert not client.seen("server_publication") and not client.seen("connecting")


# ---- recovery


def test_a_client_that_was_cut_off_gets_what_it_missed_once_and_in_order(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    with relay_to(gateway.http_port) as relay:
        client = clients(relay.port, token=connection_token(user))
        client.connect()
        first = client.subscribe(room, recoverable=True)
        assert first["recoverable"] and first["positioned"] and not first["was_recovering"]
        publish(api, room, 1, 2)
        assert client.data(room, 2) == [1, 2]
        relay.down()
        publish(api, room, 3, 4, 5)
        relay.up()
        again = client.wait("subscribed", channel=room)
        assert again["was_recovering"] and again["recovered"]
        publish(api, room, 6)
        assert client.data(room, 4) == [3, 4, 5, 6]
        assert not client.seen("publication")


def test_a_client_that_missed_more_than_history_has_is_told(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    with relay_to(gateway.http_port) as relay:
        client = clients(relay.port, token=connection_token(user))
        client.connect()
        client.subscribe(room, recoverable=True)
        publish(api, room, 0)
        assert client.data(room, 1) == [0]
        relay.down()
        publish(api, room, *range(ROOM["history_size"] + 5))
        relay.up()
        again = client.wait("subscribed", channel=room)
        assert again["was_recovering"] and not again["recovered"]
        publish(api, room, "after")
        assert client.data(room, 1) == ["after"]


def test_a_client_that_only_wants_to_know_its_place_is_told_when_that_is_lost(
    small_gateway: Gateway, clients: Clients, user: str
) -> None:
    channel = f"placed:{user}"
    client = clients(small_gateway.http_port, token=connection_token(user))
    client.connect()
    first = client.subscribe(channel, positioned=True)
    assert first["positioned"] and not first["recoverable"]
    client.wait("subscribing", channel=channel)
    [worker] = small_gateway.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        with Producer(small_gateway.control_path) as producer:
            for _ in range(400):
                producer.publish(channel, "x" * 8000)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert client.wait("subscribing", channel=channel)["code"] == 2500
    again = client.wait("subscribed", channel=channel)
    assert again["positioned"] and not again["recovered"]
    small_gateway.publish(channel, "after")
    client.wait("publication", channel=channel, data="after")
    assert len(client.seen("connecting")) == 1


def test_the_newest_publication_greets_a_subscriber_of_a_cache(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str
) -> None:
    channel = f"latest:{user}"
    publish(api, channel, "old", "new")
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(channel)
    assert client.data(channel, 1) == ["new"]
    assert not client.seen("publication")


def test_deltas_come_to_the_same_data(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str
) -> None:
    channel = f"delta:{user}"
    text = "a text that is long enough for a difference to be worth its while, number "
    sent = [{"text": f"{text}{number}", "more": list(range(30))} for number in range(6)]
    with relay_to(gateway.http_port) as relay:
        client = clients(relay.port, token=connection_token(user))
        client.connect()
        client.subscribe(channel, recoverable=True, delta="fossil")
        publish(api, channel, *sent[:3])
        assert client.data(channel, 3) == sent[:3]
        relay.down()
        publish(api, channel, *sent[3:5])
        relay.up()
        publish(api, channel, sent[5])
        assert client.data(channel, 3) == sent[3:]


# ---- what clients do


def test_publications_of_a_client_tell_who_published(
    gateway: Gateway, clients: Clients, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user, info={"name": "Ann"}))
    connected = client.connect()
    with pytest.raises(SdkError) as refused:
        client.call("publish", channel=room, data=1)
    assert refused.value.code == 103
    client.subscribe(room)
    client.call("publish", channel=room, data={"text": "hello"})
    heard = client.wait("publication", channel=room)
    assert heard["data"] == {"text": "hello"}
    assert (heard["info"]["user"], heard["info"]["client"]) == (user, connected["client"])
    assert heard["info"]["conn_info"] == {"name": "Ann"}


def test_clients_see_who_is_there_who_comes_and_who_goes(
    gateway: Gateway, clients: Clients, user: str, room: str
) -> None:
    first = clients(gateway.http_port, token=connection_token(user))
    identity = first.connect()["client"]
    first.subscribe(room, join_leave=True)
    assert first.wait("join", channel=room)["info"]["client"] == identity
    second = clients(gateway.http_port, token=connection_token(f"{user}b", info={"n": 2}))
    other = second.connect()["client"]
    second.subscribe(room)
    joined = first.wait("join", channel=room)["info"]
    assert (joined["client"], joined["user"], joined["conn_info"]) == (other, f"{user}b", {"n": 2})
    present = first.call("presence", channel=room)
    assert {each["user"] for each in present.values()} == {user, f"{user}b"}
    assert present.keys() == {identity, other}
    assert first.call("presence_stats", channel=room) == {"num_clients": 2, "num_users": 2}
    second.call("disconnect")
    assert first.wait("leave", channel=room)["info"]["client"] == other
    assert first.call("presence_stats", channel=room) == {"num_clients": 1, "num_users": 1}


def test_history_is_read_forwards_and_backwards(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    published = publish(api, room, *range(1, 6))
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(room)

    def history(**options: Any) -> list[Any]:
        return [
            each["data"] for each in client.call("history", channel=room, **options)["publications"]
        ]

    top = client.call("history", channel=room, limit=0)
    assert (top["offset"], top["epoch"], top["publications"]) == (5, published[0].epoch, [])
    assert history(limit=-1) == [1, 2, 3, 4, 5]
    assert history(limit=2) == [1, 2]
    assert history(limit=2, reverse=True) == [5, 4]
    since = {"offset": 2, "epoch": published[0].epoch}
    assert history(limit=10, since=since) == [3, 4, 5]
    with pytest.raises(SdkError) as refused:
        history(limit=10, since={"offset": 2, "epoch": "other"})
    assert refused.value.code == 112


def test_calls_reach_the_application(gateway: Gateway, clients: Clients, user: str) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    assert client.call("rpc", method="add", data=[1, 2, 3]) == {"sum": 6}
    assert client.call("rpc", method="who", data={}) == {"user": user}
    with pytest.raises(SdkError) as refused:
        client.call("rpc", method="none", data={})
    assert refused.value.code == 404


@pytest.mark.parametrize("clients", JAVASCRIPT, indirect=True)
def test_messages_reach_the_application(gateway: Gateway, clients: Clients, user: str) -> None:
    """Of the two SDKs this one alone can send them."""
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    sent = [{"n": 1}, "two", [3]]
    for data in sent:
        client.call("send", data=data)
    heard: list[Any] = []

    def all_heard() -> bool:
        heard[:] = client.call("rpc", method="heard", data={})
        return len(heard) >= len(sent)

    wait_for(all_heard, "the messages")
    assert heard == sent


def test_the_application_decides_where_it_is_asked(
    gateway: Gateway, clients: Clients, user: str
) -> None:
    channel = f"asked:{user}"
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(channel)
    client.call("publish", channel=channel, data="nice")
    assert client.data(channel, 1) == [{"said": "nice"}]
    with pytest.raises(SdkError) as refused:
        client.call("publish", channel=channel, data="rude")
    assert refused.value.code == 451


# ---- what back ends do to clients


def test_a_backend_subscribes_and_unsubscribes_a_user(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    api.subscribe(cent.SubscribeRequest(user=user, channel=room, data={"why": "because"}))
    told = client.wait("server_subscribed", channel=room)
    assert told["data"] == {"why": "because"}
    publish(api, room, 1)
    assert client.wait("server_publication", channel=room)["data"] == 1
    api.unsubscribe(cent.UnsubscribeRequest(user=user, channel=room))
    client.wait("server_unsubscribed", channel=room)


def test_a_backend_ends_a_subscription_for_good(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(room)
    api.unsubscribe(cent.UnsubscribeRequest(user=user, channel=room))
    assert client.wait("unsubscribed", channel=room)["code"] == 2000


def test_a_backend_disconnects_a_user_for_good(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    api.disconnect(cent.DisconnectRequest(user=user))
    ended = client.wait("disconnected")
    assert (ended["code"], ended["reason"]) == (3503, "force disconnect")


def test_a_backend_sends_a_client_away_for_a_moment(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(room, recoverable=True)
    client.wait("connecting")
    ending = cent.Disconnect(code=4000, reason="come back")
    api.disconnect(cent.DisconnectRequest(user=user, disconnect=ending))
    assert client.wait("connecting")["code"] == 4000
    client.wait("connected")
    assert client.wait("subscribed", channel=room)["recovered"]


# ---- what happens to the gateway


def test_a_reload_is_nothing_that_a_client_could_see(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    client = clients(gateway.http_port, token=connection_token(user))
    identity = client.connect()["client"]
    client.subscribe(room, recoverable=True, join_leave=True)
    publish(api, room, 1)
    gateway.control("reload")
    publish(api, room, 2)
    assert client.data(room, 2) == [1, 2]
    client.call("publish", channel=room, data=3)
    assert client.wait("publication", channel=room)["info"]["client"] == identity
    assert client.call("presence", channel=room).keys() == {identity}
    assert len(client.seen("connecting")) == 1 and not client.seen("leave")


@pytest.mark.parametrize(
    "clients", [kind for kind in KINDS if "websocket" in kind or "python" in kind], indirect=True
)
def test_compressed_messages_arrive_both_ways_and_through_a_reload(
    compressing_gateway: Gateway, clients: Clients, user: str, room: str
) -> None:
    api = cent.Client(compressing_gateway.api_url, api_key=compressing_gateway.api_key, timeout=60)
    client = clients(compressing_gateway.http_port, token=connection_token(user))
    client.connect()
    client.subscribe(room, recoverable=True)

    def exchange(number: int) -> None:
        before = compressing_gateway.totals()["compressions_total"]
        long = {"number": number, "text": "high tide and low tide " * 200}
        publish(api, room, long, "short")
        assert client.data(room, 2) == [long, "short"]
        client.call("publish", channel=room, data=long)
        assert client.data(room, 1) == [long]
        wait_for(
            lambda: compressing_gateway.totals()["compressions_total"] >= before + 2,
            "both long ones to be counted",
        )

    exchange(1)
    compressing_gateway.control("reload")
    exchange(2)
    assert len(client.seen("connecting")) == 1 and not client.seen("error")


@contextlib.contextmanager
def workers_killed(gateway: Gateway) -> Iterator[None]:
    """Ends all of them before the block; after it, it is known what became of their clients."""
    pids = gateway.worker_pids()
    taken_back = gateway.totals()["uplinks_reclaimed_total"]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    yield
    # The last that follows a death: whoever had to leave a channel for it has left.
    wait_for(
        lambda: gateway.totals()["uplinks_reclaimed_total"] >= taken_back + len(pids),
        "the dead workers' clients to be accounted for",
    )


def losses(gateway: Gateway) -> dict[str, int]:
    ends = gateway.ends().items()
    return {name: count for name, count in ends if name.startswith("connections_lost_total")}


def test_a_client_of_a_killed_worker_goes_on_and_nobody_notices(
    gateway: Gateway, clients: Clients, api: cent.Client, user: str, room: str
) -> None:
    both = {}
    for name in (user, f"{user}b"):
        client = clients(gateway.http_port, token=connection_token(name))
        both[client.connect()["client"]] = client
        client.subscribe(room, recoverable=True, join_leave=True)
        client.wait("join", channel=room)
    first, second = both.values()
    first.wait("join", channel=room)
    publish(api, room, 1)
    assert [each.data(room, 1) for each in both.values()] == [[1], [1]]
    rescued, lost = gateway.totals()["connections_rescued_total"], losses(gateway)

    with workers_killed(gateway):
        publish(api, room, 2, 3)
    publish(api, room, 4)
    assert [each.data(room, 3) for each in both.values()] == [[2, 3, 4], [2, 3, 4]]
    for identity, each in both.items():
        each.call("publish", channel=room, data=identity)
        for listener in (first, second):
            heard = listener.wait("publication", channel=room)
            assert (heard["data"], heard["info"]["client"]) == (identity, identity)
        assert each.call("presence", channel=room).keys() == both.keys()
    assert first.call("presence_stats", channel=room) == {"num_clients": 2, "num_users": 2}
    assert gateway.totals()["connections_rescued_total"] >= rescued + 2
    assert losses(gateway) == lost
    for each in both.values():
        assert len(each.seen("connecting")) == len(each.seen("subscribing")) == 1
        for event in ("connected", "subscribed", "publication", "join", "leave", "disconnected"):
            assert each.seen(event) == []

    second.call("disconnect")
    first.wait("leave", channel=room)
    assert first.call("presence_stats", channel=room) == {"num_clients": 1, "num_users": 1}


def test_a_client_that_ends_with_its_worker_comes_back_and_misses_nothing(
    frail_gateway: Gateway, clients: Clients, user: str, room: str
) -> None:
    api = cent.Client(frail_gateway.api_url, api_key=frail_gateway.api_key, timeout=60)
    client = clients(frail_gateway.http_port, token=connection_token(user))
    before = client.connect()["client"]
    client.subscribe(room, recoverable=True)
    publish(api, room, 1)
    assert client.data(room, 1) == [1]
    with workers_killed(frail_gateway):
        publish(api, room, 2, 3)
    assert client.wait("subscribed", channel=room)["recovered"]
    publish(api, room, 4)
    assert client.data(room, 3) == [2, 3, 4]
    # A subscription is answered before the publisher has heard who came.
    present = wait_for(lambda: client.call("presence", channel=room), "the client's presence")
    [(identity, entry)] = present.items()
    assert identity != before and entry["user"] == user
