"""What the API reads, and what it says of what it cannot do."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from gateway.api import requests
from gateway.channels import Namespaces, glob
from gateway.errors import PublishError
from workers.settings import NamespaceSettings

NAMESPACES = Namespaces(
    [
        NamespaceSettings(name=""),
        NamespaceSettings(name="public", presence=True),
        NamespaceSettings(name="news", channel_regex="^[a-z0-9]+$"),
    ]
)


def published(**fields: Any) -> requests.Publish:
    request = requests.decode("publish", json.dumps(fields).encode())
    assert isinstance(request, requests.Publish)
    return request


def refused(call: Any, *arguments: Any) -> PublishError:
    with pytest.raises(PublishError) as caught:
        call(*arguments)
    return caught.value


def test_data_stays_the_bytes_that_came() -> None:
    body = b'{"channel": "public:a", "data": {"pi":3.141592653589793238462643,  "n": 1e400}}'
    request = requests.decode("publish", body)
    assert isinstance(request, requests.Publish)
    assert request.payload() == (b'{"pi":3.141592653589793238462643,  "n": 1e400}', False)


@pytest.mark.parametrize("data", [None, 0, False, "", [], {}])
def test_every_json_value_is_data_also_the_empty_ones(data: object) -> None:
    assert json.loads(published(channel="a", data=data).payload()[0]) == data


def test_a_publish_without_data_is_a_bad_request_that_names_the_field() -> None:
    error = refused(published(channel="a").payload)
    assert (error.status, str(error)) == (107, "bad request: data: required")


def test_b64data_is_published_as_the_json_that_it_holds() -> None:
    encoded = base64.b64encode(b'{"a":1}').decode()
    assert published(channel="a", b64data=encoded).payload() == (b'{"a":1}', False)


def test_b64data_that_holds_no_json_is_binary() -> None:
    encoded = base64.b64encode(b"\x00\xff").decode()
    assert published(channel="a", b64data=encoded).payload() == (b"\x00\xff", True)


@pytest.mark.parametrize("b64data", ["!!!", "YQ", "\u00e9"])
def test_b64data_that_is_no_base64_is_a_bad_request(b64data: str) -> None:
    error = refused(published(channel="a", b64data=b64data).payload)
    assert error.status == 107
    assert "b64data" in str(error)


def test_options_at_their_defaults_and_unknown_fields_change_nothing() -> None:
    request = published(
        channel="a", data=1, skip_history=False, version=0, delta=True, tags=None, future="x"
    )
    assert request.payload() == (b"1", False)


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b'{"channel": "a"', b"\xff\xfe", b'{"data": ' + b"[" * 100_000]
)
def test_what_is_not_json_is_no_request(body: bytes) -> None:
    with pytest.raises(requests.NotJson):
        requests.decode("publish", body)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"channel": 1}', "$.channel"),
        (b'{"channel": "a", "tags": {"k": 1}}', "$.tags"),
        (b"[]", "object"),
        (b'{"channel": "a", "version": -1.5}', "$.version"),
    ],
)
def test_a_field_of_the_wrong_type_is_a_bad_request_that_names_it(body: bytes, names: str) -> None:
    error = refused(requests.decode, "publish", body)
    assert error.status == 107
    assert names in str(error)


def test_a_method_that_there_is_not_is_told_by_number() -> None:
    assert refused(requests.decode, "levitate", b"{}").status == 104


def order(method: str, **fields: Any) -> Any:
    request = requests.decode(method, json.dumps(fields).encode())
    assert isinstance(
        request,
        requests.Subscribe | requests.Unsubscribe | requests.Disconnect | requests.Refresh,
    )
    return json.loads(msgspec.json.encode(request.order()))


TARGET = {"user": "7", "client": "", "session": ""}


def test_an_order_says_all_that_was_asked_and_nothing_else() -> None:
    override = {"presence": {"value": True}, "force_recovery": {"value": False}}
    since = {"offset": 3, "epoch": "x"}
    more = {"user": "7", "channel": "a", "info": {"n": 1}, "data": [1], "expire_at": 9}
    assert order("subscribe", **more, override=override, recover_since=since) == {
        "op": "subscribe",
        **TARGET,
        **more,
        "recover_since": since,
        "presence": True,
        "force_recovery": False,
    }
    assert order("unsubscribe", user="7") == {"op": "unsubscribe", **TARGET, "channel": ""}
    assert order("refresh", user="7", expired=True) == {"op": "refresh", **TARGET, "expired": True}


def test_info_and_data_of_a_subscription_may_come_in_base64() -> None:
    encoded = base64.b64encode(b'{"n":1}').decode()
    told = order("subscribe", user="7", channel="a", b64info=encoded, b64data=encoded)
    assert (told["info"], told["data"]) == ({"n": 1}, {"n": 1})


def test_a_disconnect_without_a_code_is_the_standard_one() -> None:
    told = order("disconnect", user="7", whitelist=["c"])
    assert (told["code"], told["reason"], told["whitelist"]) == (3503, "force disconnect", ["c"])
    told = order("disconnect", user="7", disconnect={"code": 4000, "reason": "later"})
    assert (told["code"], told["reason"]) == (4000, "later")


@pytest.mark.parametrize(
    ("method", "fields", "names"),
    [
        ("disconnect", {"user": "7", "disconnect": {"code": 1000}}, "disconnect.code"),
        ("disconnect", {"user": "7", "disconnect": {"code": 4000, "reason": "x" * 124}}, "reason"),
        ("disconnect", {}, "user"),
        ("unsubscribe", {"user": ""}, "user"),
        ("subscribe", {"user": "7", "channel": "a", "b64info": "AP8="}, "b64info"),
        ("refresh", {"user": "7", "expire_at": -1}, "expire_at"),
    ],
)
def test_an_order_that_cannot_be_is_a_bad_request(
    method: str, fields: dict[str, Any], names: str
) -> None:
    error = refused(lambda: order(method, **fields))
    assert error.status == 107
    assert names in str(error)


def test_an_order_for_clients_without_a_user_names_one_of_them() -> None:
    assert order("disconnect", user="", client="c")["client"] == "c"


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["a", "room:a:b"], []),
        ("room:*", ["room:a"], ["a", "rooms:a"]),
        ("room:?", ["room:a"], ["room:ab"]),
        ("{room,hall}:[ab]", ["room:a", "hall:b"], ["room:c", "{room"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_globs_match_whole_names(pattern: str, matching: list[str], others: list[str]) -> None:
    matches = glob(pattern).match
    assert [name for name in [*matching, *others] if matches(name)] == matching


def test_braces_that_stand_for_too_much_are_refused() -> None:
    assert refused(glob, "{a,b}" * 20).status == 107


@pytest.mark.parametrize(
    ("channel", "status"),
    [
        (None, 107),
        ("", 107),
        ("a" * 256, 107),
        ("public:\u00e9", 107),
        ("nowhere:a", 102),
        ("$nowhere:a", 102),
        (":a", 102),
        ("news:A", 107),
    ],
)
def test_a_channel_that_cannot_be_published_to_is_refused(channel: str | None, status: int) -> None:
    assert refused(NAMESPACES.rules, channel).status == status


@pytest.mark.parametrize("channel", ["a", "a" * 255, "public:a", "$news:a", "public:a:b", "#42"])
def test_a_channel_of_a_known_namespace_or_of_none_is_accepted(channel: str) -> None:
    NAMESPACES.rules(channel)


def test_the_rules_of_a_channel_are_those_of_its_namespace() -> None:
    assert NAMESPACES.rules("$public:a").presence
    assert not NAMESPACES.rules("public").presence


def test_a_broadcast_has_between_one_and_the_maximum_of_channels() -> None:
    def broadcast(count: int) -> requests.Broadcast:
        body = json.dumps({"channels": ["a"] * count, "data": 1}).encode()
        request = requests.decode("broadcast", body)
        assert isinstance(request, requests.Broadcast)
        return request

    assert len(broadcast(1024).checked_channels()) == 1024
    assert refused(broadcast(0).checked_channels).status == 107
    assert "1025" in str(refused(broadcast(1025).checked_channels))


def test_a_batch_command_has_exactly_one_method() -> None:
    request = requests.decode("batch", b'{"commands": [{"info": {}}, {"publish": {}, "info": {}}]}')
    assert isinstance(request, requests.Batch)
    assert "commands[1]" in str(refused(request.checked_commands))
