"""The server API towards clients: `cent`, unmodified, does to them all that it has a method for."""

from __future__ import annotations

import asyncio
import base64
import http.client
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import cent
import pytest

from tests.support.commands import CommandClient
from tests.support.gateway import Gateway, running_gateway
from tests.support.tokens import SECRET, connection_token
from tests.support.waiting import wait_for

Connect = Callable[..., CommandClient]

CONFIG: dict[str, dict[str, Any]] = {
    "tokens": {"hmac_secret": SECRET},
    "channel": {
        "namespaces": [
            {
                "name": "room",
                "allow_subscribe_for_client": True,
                "presence": True,
                "join_leave": True,
                "history_size": 20,
                "history_ttl_s": 300,
            },
            {"name": "plain", "allow_subscribe_for_client": True},
        ]
    },
}

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(CONFIG) as running:
        yield running


@pytest.fixture
def api(gateway: Gateway) -> cent.Client:
    return cent.Client(gateway.api_url, api_key=gateway.api_key, timeout=60)


@pytest.fixture
def user() -> str:
    return f"user{next(numbers)}"


@pytest.fixture
def room() -> str:
    return f"room:{next(numbers)}"


@pytest.fixture
def connect(gateway: Gateway) -> Iterator[Connect]:
    """Connects clients: `connect(user, channel)`; its `id` is the client's."""
    with ExitStack() as stack:

        def connected(user: str, *channels: str, **claims: Any) -> CommandClient:
            client = stack.enter_context(CommandClient(gateway.http_port))
            result = client.call("connect", token=connection_token(user, **claims))
            client.id = result["client"]
            for channel in channels:
                client.call("subscribe", channel=channel)
            return client

        yield connected


def raw(gateway: Gateway, method: str, mode: str = "", **body: Any) -> tuple[int, Any]:
    """One bare HTTP request: the status, and the answer's JSON."""
    url = urlsplit(gateway.api_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    try:
        headers = {"X-API-Key": gateway.api_key, "X-Centrifugo-Error-Mode": mode}
        connection.request("POST", f"/api/{method}", json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def publish(api: cent.Client, channel: str, *data: Any) -> list[cent.PublishResult]:
    return [api.publish(cent.PublishRequest(channel=channel, data=each)) for each in data]


def read(api: cent.Client, channel: str, **options: Any) -> cent.HistoryResult:
    return api.history(cent.HistoryRequest(channel=channel, **options))


def data_of(history: cent.HistoryResult) -> list[Any]:
    return [each.data for each in history.publications]


# ---- publishing


def test_a_publication_reaches_subscribers_with_its_tags(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, room)
    api.publish(cent.PublishRequest(channel=room, data={"a": 1}, tags={"k": "v"}))
    assert client.push() == {
        "channel": room,
        "pub": {"data": {"a": 1}, "offset": 1, "tags": {"k": "v"}},
    }


def test_a_publication_that_skips_history_has_no_place_in_it(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, room)
    request = cent.PublishRequest(channel=room, data="fleeting", skip_history=True)
    published = api.publish(request)
    assert (published.offset, published.epoch) == (0, "")
    assert client.push() == {"channel": room, "pub": {"data": "fleeting"}}
    publish(api, room, "kept")
    assert client.push()["pub"] == {"data": "kept", "offset": 1}
    assert data_of(read(api, room, limit=-1)) == ["kept"]


def test_a_publication_of_an_older_version_is_answered_and_goes_nowhere(
    gateway: Gateway, api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, room)
    for version, data in ((5, "five"), (4, "four"), (5, "again"), (6, "six")):
        status, answer = raw(gateway, "publish", channel=room, data=data, version=version)
        assert (status, "result" in answer) == (200, True)
    assert [client.push()["pub"]["data"] for _ in range(2)] == ["five", "six"]
    assert data_of(read(api, room, limit=-1)) == ["five", "six"]


def test_versions_of_another_epoch_are_another_count(
    gateway: Gateway, api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, room)

    def publish_version(version: int, epoch: str, data: str) -> int:
        body = {"channel": room, "data": data, "version": version, "version_epoch": epoch}
        status, answer = raw(gateway, "publish", **body)
        assert status == 200
        return int(answer["result"]["offset"])

    assert publish_version(5, "a", "five of a") == 1
    assert publish_version(5, "a", "five of a again") == 1
    assert publish_version(4, "", "four of any") == 1
    # The publisher that knew of it is not there any more: its successor does.
    publisher = gateway.status()["publisher"]["pid"]
    os.kill(publisher, signal.SIGKILL)
    wait_for(lambda: gateway.status()["publisher"]["pid"] not in (publisher, None), "its successor")
    wait_for(lambda: gateway.status()["state"] == "serving", "it to serve")
    assert publish_version(4, "a", "four of a") == 1
    assert publish_version(1, "b", "one of b") == 2
    assert publish_version(1, "b", "one of b again") == 2
    assert publish_version(2, "b", "two of b") == 3
    batch = {"publish": {"channel": room, "data": "x", "version": 2, "version_epoch": "b"}}
    assert raw(gateway, "batch", commands=[batch])[1]["replies"][0]["publish"]["offset"] == 3
    broadcast = {"channels": [room], "data": "three of b", "version": 3, "version_epoch": "b"}
    raw(gateway, "broadcast", **broadcast)
    heard = [client.push()["pub"]["data"] for _ in range(4)]
    assert heard == ["five of a", "one of b", "two of b", "three of b"]
    assert data_of(read(api, room, limit=-1)) == heard


def test_base64_data_is_json_for_who_speaks_json(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, room)
    encoded = base64.b64encode(b'{"in": "base64"}').decode()
    api.publish(cent.PublishRequest(channel=room, data=None, b64data=encoded))
    assert client.push()["pub"]["data"] == {"in": "base64"}


def test_a_broadcast_reaches_each_channel(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    channels = [f"{room}-{number}" for number in range(3)]
    client = connect(user, *channels)
    result = api.broadcast(cent.BroadcastRequest(channels=channels, data="all"))
    assert [each.result.offset for each in result.responses if each.result] == [1, 1, 1]
    assert {client.push()["channel"] for _ in channels} == set(channels)


# ---- history


def test_history_is_read_by_limit_position_and_direction(api: cent.Client, room: str) -> None:
    [first, *_] = publish(api, room, *range(1, 6))
    top = read(api, room)
    assert (top.offset, top.epoch, top.publications) == (5, first.epoch, [])
    assert data_of(read(api, room, limit=-1)) == [1, 2, 3, 4, 5]
    assert data_of(read(api, room, limit=2)) == [1, 2]
    assert data_of(read(api, room, limit=2, reverse=True)) == [5, 4]
    since = cent.StreamPosition(offset=3, epoch=first.epoch)
    assert data_of(read(api, room, limit=-1, since=since)) == [4, 5]
    assert data_of(read(api, room, limit=-1, since=since, reverse=True)) == [2, 1]
    assert [each.offset for each in read(api, room, limit=-1).publications] == [1, 2, 3, 4, 5]


def test_history_keeps_as_much_as_its_namespace_says(api: cent.Client, room: str) -> None:
    publish(api, room, *range(30))
    assert data_of(read(api, room, limit=-1)) == list(range(10, 30))


def test_a_removed_history_is_empty_and_goes_on_where_it_was(api: cent.Client, room: str) -> None:
    [first, _] = publish(api, room, 1, 2)
    api.history_remove(cent.HistoryRemoveRequest(channel=room))
    top = read(api, room, limit=-1)
    assert (top.publications, top.offset, top.epoch) == ([], 2, first.epoch)
    publish(api, room, 3)
    assert [each.offset for each in read(api, room, limit=-1).publications] == [3]


def test_a_client_cannot_recover_what_was_removed(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    [first, *_] = publish(api, room, 1, 2, 3)
    api.history_remove(cent.HistoryRemoveRequest(channel=room))
    position = {"recover": True, "offset": 1, "epoch": first.epoch}
    result = connect(user).call("subscribe", channel=room, recoverable=True, **position)
    assert "recovered" not in result and result["was_recovering"]
    assert result["offset"] == 3


@pytest.mark.parametrize(
    ("options", "code", "status"),
    [
        ({"since": {"offset": 1, "epoch": "other"}, "limit": 1}, 112, 416),
        ({"since": {"offset": 0, "epoch": ""}, "limit": 1, "reverse": True}, 107, 400),
    ],
)
def test_a_position_that_cannot_be_is_refused_by_number(
    gateway: Gateway, api: cent.Client, room: str, options: Any, code: int, status: int
) -> None:
    publish(api, room, 1)
    assert raw(gateway, "history", channel=room, **options)[1]["error"]["code"] == code
    transport = raw(gateway, "history", "transport", channel=room, **options)
    assert (transport[0], transport[1]["code"]) == (status, code)


@pytest.mark.parametrize("method", ["history", "history_remove", "presence", "presence_stats"])
def test_what_a_namespace_does_not_have_is_not_available(gateway: Gateway, method: str) -> None:
    assert raw(gateway, method, channel="plain:a")[1]["error"]["code"] == 108
    assert raw(gateway, method, channel="nowhere:a")[1]["error"]["code"] == 102
    assert raw(gateway, method)[1]["error"]["code"] == 107


# ---- who is there


def test_presence_tells_clients_and_their_users_over_all_workers(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    clients = [connect(f"{user}-{n % 3}", room, info={"n": n % 3}) for n in range(6)]
    everybody = {client.id for client in clients}

    def present() -> dict[str, cent.ClientInfo]:
        return api.presence(cent.PresenceRequest(channel=room)).presence

    # A subscription is answered before the publisher has heard who came.
    wait_for(lambda: present().keys() == everybody, "six clients")
    first = present()[clients[0].id]
    assert (first.user, first.client, first.conn_info) == (f"{user}-0", clients[0].id, {"n": 0})
    stats = api.presence_stats(cent.PresenceStatsRequest(channel=room))
    assert (stats.num_clients, stats.num_users) == (6, 3)
    for client in clients[:4]:
        client.close()
    wait_for(
        lambda: api.presence_stats(cent.PresenceStatsRequest(channel=room)).num_clients == 2,
        "four goodbyes",
    )


def test_channels_are_those_with_subscribers_in_any_worker(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    clients = [connect(user, f"{room}-a") for _ in range(5)]
    clients[0].call("subscribe", channel=f"{room}-b")

    def channels(pattern: str | None) -> dict[str, int]:
        result = api.channels(cent.ChannelsRequest(pattern=pattern)).channels
        return {name: each.num_clients for name, each in result.items() if name.startswith(room)}

    both = {f"{room}-a": 5, f"{room}-b": 1}
    assert channels(None) == channels("room:*") == channels(f"{room}-{{a,b}}") == both
    assert channels(f"{room}-b") == {f"{room}-b": 1}
    assert channels("plain:*") == {}


def test_info_counts_what_there_is(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    connect(user, room)

    def counted() -> bool:
        [node] = api.info(cent.InfoRequest()).nodes
        return min(node.num_clients, node.num_users, node.num_subs, node.num_channels) >= 1

    wait_for(counted, "the client in the statistics")


# ---- what is done to clients


def test_a_subscription_made_by_the_backend_has_what_it_was_given(
    api: cent.Client, connect: Connect, user: str
) -> None:
    [first] = publish(api, f"room:{user}", "missed")
    client = connect(user)
    api.subscribe(
        cent.SubscribeRequest(
            user=user,
            channel=f"room:{user}",
            info={"seat": 4},
            data={"hello": "there"},
            recover_since=cent.StreamPosition(offset=0, epoch=first.epoch),
            override=cent.ChannelOptionsOverride(force_recovery=cent.BoolValue(value=True)),
        )
    )
    told = client.push()
    assert told["channel"] == f"room:{user}"
    assert told["subscribe"]["data"] == {"hello": "there"}
    assert told["subscribe"]["recoverable"]
    assert client.push()["pub"]["data"] == "missed"
    present = wait_for(
        lambda: api.presence(cent.PresenceRequest(channel=f"room:{user}")).presence,
        "the client's presence",
    )
    assert present[client.id].chan_info == {"seat": 4}


def test_one_client_of_a_user_may_be_meant(
    api: cent.Client, connect: Connect, user: str, room: str
) -> None:
    meant, other = connect(user), connect(user)
    api.subscribe(cent.SubscribeRequest(user=user, channel=room, client=meant.id))
    assert "subscribe" in meant.push()
    api.disconnect(cent.DisconnectRequest(user=user, whitelist=[other.id]))
    assert meant.closed() == (3503, "force disconnect")
    assert other.call("subscribe", channel=room)


def test_an_unsubscribe_without_a_channel_is_for_all_of_them(
    gateway: Gateway, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, f"{room}-a", f"{room}-b")
    assert raw(gateway, "unsubscribe", user=user) == (200, {"result": {}})
    pushes = [client.push() for _ in range(2)]
    assert {push["channel"] for push in pushes} == {f"{room}-a", f"{room}-b"}
    assert {push["unsubscribe"]["code"] for push in pushes} == {2000}


def test_a_disconnect_has_the_code_and_reason_that_it_was_given(
    api: cent.Client, connect: Connect, user: str
) -> None:
    client = connect(user)
    ending = cent.Disconnect(code=4242, reason="for a reason")
    api.disconnect(cent.DisconnectRequest(user=user, disconnect=ending))
    assert client.closed() == (4242, "for a reason")


def test_a_refresh_moves_the_end_of_a_connection(
    api: cent.Client, connect: Connect, user: str
) -> None:
    client = connect(user)
    api.refresh(cent.RefreshRequest(user=user, expired=True))
    assert client.closed()[0] == 3005


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe", "disconnect", "refresh"])
def test_an_order_for_nobody_who_is_there_is_done(gateway: Gateway, method: str) -> None:
    answer = raw(gateway, method, user="nobody", channel="room:a")
    assert answer == (200, {"result": {}})
    assert raw(gateway, method, channel="room:a")[1]["error"]["code"] == 107


# ---- as it is on the wire


def test_fields_that_clients_count_on_are_there_also_when_empty(
    gateway: Gateway, room: str
) -> None:
    assert raw(gateway, "presence", channel=room)[1] == {"result": {"presence": {}}}
    assert raw(gateway, "presence_stats", channel=room)[1] == {
        "result": {"num_clients": 0, "num_users": 0}
    }
    history = raw(gateway, "history", channel=room)[1]["result"]
    assert history.keys() == {"publications", "epoch", "offset"}
    assert raw(gateway, "channels", pattern="nothing")[1] == {"result": {"channels": {}}}
    [node] = raw(gateway, "info")[1]["result"]["nodes"]
    assert {"uid", "name", "version", "num_clients", "num_users"} <= node.keys()


def test_commands_that_name_their_method_are_answered_a_line_each(
    gateway: Gateway, connect: Connect, user: str, room: str
) -> None:
    client = connect(user, room)
    commands: list[dict[str, Any]] = [
        {"method": "publish", "params": {"channel": room, "data": 1}},
        {"id": 7, "method": "publish", "params": {"channel": "nowhere:a", "data": 1}},
        {"id": 8, "method": "presence_stats", "params": {"channel": room}},
        {"method": "info"},
        {"method": "unheard_of", "params": {}},
    ]
    status, lines = post_commands(gateway, "\n".join(json.dumps(each) for each in commands))
    answers = [json.loads(line) for line in lines.splitlines()]
    assert status == 200 and len(answers) == len(commands)
    assert answers[0]["result"]["offset"] == 1 and "id" not in answers[0]
    assert (answers[1]["id"], answers[1]["error"]["code"]) == (7, 102)
    assert answers[2] == {"id": 8, "result": {"num_clients": 1, "num_users": 1}}
    assert answers[3]["result"]["nodes"] and answers[4]["error"]["code"] == 104
    assert client.push()["pub"]["data"] == 1


def test_a_line_with_bad_params_is_answered_in_its_place_and_stops_no_other(
    gateway: Gateway, room: str
) -> None:
    good = json.dumps({"method": "publish", "params": {"channel": room, "data": 1}}).encode()
    bad = b'{"id": 7, "method": "publish", "params": {"channel": "\xff", "data": 1}}'
    status, lines = post_commands(gateway, b"\n".join([good, bad, good]))
    first, refused, last = (json.loads(line) for line in lines.splitlines())
    assert status == 200
    assert (first["result"]["offset"], last["result"]["offset"]) == (1, 2)
    assert (refused["id"], refused["error"]["code"]) == (7, 107)


def test_a_command_of_a_batch_with_bad_text_is_answered_in_its_place(
    gateway: Gateway, room: str
) -> None:
    good = json.dumps({"publish": {"channel": room, "data": 1}}).encode()
    batch = b'{"commands": [%s, {"publish": {"channel": "\xff", "data": 1}}]}' % good
    line = b'{"method": "batch", "params": %s}' % batch
    status, answer = post_commands(gateway, line)
    done, refused = json.loads(answer)["result"]["replies"]
    assert status == 200
    assert (done["publish"]["offset"], refused["error"]["code"]) == (1, 107)


@pytest.mark.parametrize(
    ("body", "status"), [("nonsense", 400), ('{"params": {}}', 400), ("[]", 400), ("", 200)]
)
def test_lines_that_are_no_commands_are_not_done(gateway: Gateway, body: str, status: int) -> None:
    assert post_commands(gateway, body)[0] == status
    assert post_commands(gateway, body, key="wrong")[0] == 401


def post_commands(gateway: Gateway, body: str | bytes, key: str | None = None) -> tuple[int, str]:
    url = urlsplit(gateway.api_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    try:
        connection.request("POST", "/api", body, {"X-API-Key": key or gateway.api_key})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("parallel", [False, True])
def test_a_batch_holds_any_method(
    api: cent.Client, connect: Connect, user: str, room: str, parallel: bool
) -> None:
    client = connect(user, room)
    requests = [
        cent.PublishRequest(channel=room, data=1),
        cent.BroadcastRequest(channels=[room], data=2),
        cent.PresenceRequest(channel=room),
        cent.PresenceStatsRequest(channel=room),
        cent.HistoryRequest(channel=room, limit=-1),
        cent.ChannelsRequest(pattern=room),
        cent.RefreshRequest(user=user),
        cent.SubscribeRequest(user=user, channel=f"{room}-more"),
        cent.UnsubscribeRequest(user=user, channel=room),
        cent.HistoryRemoveRequest(channel=room),
        cent.InfoRequest(),
        cent.DisconnectRequest(user="nobody"),
    ]
    replies = api.batch(cent.BatchRequest(requests=requests, parallel=parallel)).replies
    assert [type(each) for each in replies] == [each.__returning__ for each in requests]
    assert client.push()["pub"]["data"] in (1, 2)


def test_a_parallel_batch_publishes_everything(api: cent.Client, room: str) -> None:
    requests = [cent.PublishRequest(channel=f"{room}-{n % 7}", data=n) for n in range(500)]
    replies = api.batch(cent.BatchRequest(requests=requests, parallel=True)).replies
    assert len(replies) == 500
    tops = [read(api, f"{room}-{number}").offset for number in range(7)]
    assert sum(tops) == 500


def test_the_asynchronous_client_has_every_method(gateway: Gateway, user: str, room: str) -> None:
    async def talk() -> list[Any]:
        api = cent.AsyncClient(gateway.api_url, api_key=gateway.api_key, timeout=60)
        try:
            return [
                await api.publish(cent.PublishRequest(channel=room, data=1)),
                await api.broadcast(cent.BroadcastRequest(channels=[room], data=1)),
                await api.subscribe(cent.SubscribeRequest(user=user, channel=room)),
                await api.unsubscribe(cent.UnsubscribeRequest(user=user, channel=room)),
                await api.disconnect(cent.DisconnectRequest(user=user)),
                await api.refresh(cent.RefreshRequest(user=user)),
                await api.presence(cent.PresenceRequest(channel=room)),
                await api.presence_stats(cent.PresenceStatsRequest(channel=room)),
                await api.history(cent.HistoryRequest(channel=room, limit=-1)),
                await api.history_remove(cent.HistoryRemoveRequest(channel=room)),
                await api.channels(cent.ChannelsRequest()),
                await api.info(cent.InfoRequest()),
                await api.batch(cent.BatchRequest(requests=[cent.InfoRequest()])),
            ]
        finally:
            await api.close()

    answers = asyncio.run(talk())
    assert answers[0].offset == 1
    assert [each.data for each in answers[8].publications] == [1, 1]
