"""Worker settings cross a process boundary: nothing may be lost or guessed on the way."""

from __future__ import annotations

import msgpack
import pytest

from workers.settings import HookSettings, NamespaceSettings, TokenSettings, WorkerSettings

SETTINGS = WorkerSettings(
    instance="default",
    version="0.1.0",
    node="8d7c1a52-7f0e-4d0b-9a60-0a2f4f6a7a11",
    slot=1,
    generation=7,
    seat=3,
    stats_row=4,
    memory_node=-1,
    log_format="text",
    log_level="info",
    log_file="",
    connections_max=1000,
    user_connections_max=0,
    message_bytes_max=65536,
    queue_hard_bytes=1048576,
    queue_soft_bytes=262144,
    queue_soft_s=10.0,
    channels_per_connection_max=128,
    handshake_timeout_s=10.0,
    header_bytes_max=8192,
    headers_max=64,
    accepts_per_turn_max=64,
    engine="auto",
    batch_delay_us=0,
    recovery_publications_max=300,
    history_publications_max=300,
    close_timeout_s=5.0,
    websocket_ping_interval_s=25.0,
    websocket_pong_timeout_s=8.0,
    websocket_compression=False,
    websocket_compression_bytes_min=256,
    tcp_heartbeat_interval_s=30.0,
    tcp_heartbeat_timeout_s=90.0,
    transports=("websocket", "uni_websocket"),
    allowed_origins=("https://example.org",),
    allow_anonymous=False,
    allow_anonymous_tokens=True,
    expired_close_delay_s=25.0,
    personal_channel=False,
    personal_channel_namespace="",
    tokens=TokenSettings(hmac_secret="a secret of tests"),
    subscription_tokens=None,
    hooks=HookSettings(urls={"rpc": "http://127.0.0.1:9000/rpc"}, headers=("cookie",)),
    namespaces=(
        NamespaceSettings(
            name="public",
            allow_subscribe_for_client=True,
            allow_subscribe_for_anonymous=True,
            allow_publish_for_client=True,
            allow_publish_for_anonymous=True,
            history_size=100,
            allowed_delta_types=("fossil",),
        ),
    ),
)


def test_settings_survive_the_way_through_msgpack() -> None:
    assert WorkerSettings.from_map(msgpack.unpackb(msgpack.packb(SETTINGS.as_map()))) == SETTINGS


def test_settings_never_show_a_secret() -> None:
    assert "a secret of tests" not in repr(SETTINGS)


def test_settings_of_another_version_are_refused_by_key() -> None:
    values = SETTINGS.as_map()
    del values["seat"]
    values["colour"] = "green"
    with pytest.raises(TypeError, match="colour, seat"):
        WorkerSettings.from_map(values)
