"""Who is in a channel, when those who are there end without a word."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import cent

from tests.support.gateway import Gateway
from tests.support.raw_websocket import RawWebSocket
from tests.support.waiting import wait_for, wait_until_equal

CHANNEL = "room:1"
DOOMED_MIN = 3
CLIENTS_MAX = 100

SECTIONS: dict[str, dict[str, Any]] = {
    "workers": {"survive_crashes": False},
    "channel": {
        "namespaces": [
            {
                "name": "room",
                "allow_subscribe_for_client": True,
                "allow_subscribe_for_anonymous": True,
                "presence": True,
                "join_leave": True,
                "force_push_join_leave": True,
            }
        ]
    },
}


def read_until_left(watcher: RawWebSocket, count: int) -> list[str]:
    """The clients that the next leave events name."""
    gone: list[str] = []
    while len(gone) < count:
        push = watcher.read_push()
        if "leave" in push:
            assert push["channel"] == CHANNEL
            gone.append(push["leave"]["info"]["client"])
    return gone


def read_publication(client: RawWebSocket) -> Any:
    while "pub" not in (push := client.read_push()):
        pass
    return push["pub"]["data"]


def test_clients_that_end_with_their_worker_leave_their_channels(
    start_gateway: Callable[..., Gateway],
) -> None:
    gateway = start_gateway(SECTIONS)
    api = cent.Client(gateway.api_url, api_key=gateway.api_key, timeout=60)

    def present() -> set[str]:
        return set(api.presence(cent.PresenceRequest(channel=CHANNEL)).presence)

    # None of them comes back by itself.
    clients: dict[str, RawWebSocket] = {}
    with ExitStack() as stack:

        def enter() -> RawWebSocket:
            client = stack.enter_context(RawWebSocket(gateway.http_port))
            clients[client.connect(CHANNEL)["client"]] = client
            wait_for(lambda: sum(gateway.connections()) == len(clients), "the accept")
            return client

        watcher = enter()
        doomed = gateway.connections().index(0)
        while gateway.connections()[doomed] < DOOMED_MIN:
            assert len(clients) < CLIENTS_MAX, "one worker gets all connections"
            enter()
        wait_until_equal(present, set(clients), "everybody to be present")
        count = gateway.connections()[doomed]
        os.kill(gateway.status()["workers"][doomed]["pid"], signal.SIGKILL)

        gone = read_until_left(watcher, count)
        assert len(set(gone)) == count
        left = clients.keys() - set(gone)
        assert present() == left
        stats = api.presence_stats(cent.PresenceStatsRequest(channel=CHANNEL))
        assert stats.num_clients == len(left)
        leaves = 'presence_leaves_total{cause="worker_gone"}'
        wait_for(lambda: gateway.totals()[leaves] == count, "the leaves to be counted")
        gateway.publish(CHANNEL, "still here")
        assert {read_publication(clients[each]) for each in left} == {"still here"}
