"""What the API reads, and what it says of what it cannot do."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.api import requests
from gateway.channels import check_channel
from gateway.errors import PublishError

NAMESPACES = frozenset({"public", "news"})


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
    assert request.payload() == b'{"pi":3.141592653589793238462643,  "n": 1e400}'


@pytest.mark.parametrize("data", [None, 0, False, "", [], {}])
def test_every_json_value_is_data_also_the_empty_ones(data: object) -> None:
    assert json.loads(published(channel="a", data=data).payload()) == data


def test_a_publish_without_data_is_a_bad_request_that_names_the_field() -> None:
    error = refused(published(channel="a").payload)
    assert (error.status, str(error)) == (107, "bad request: data: required")


def test_b64data_is_published_as_the_json_that_it_holds() -> None:
    encoded = base64.b64encode(b'{"a":1}').decode()
    assert published(channel="a", b64data=encoded).payload() == b'{"a":1}'


@pytest.mark.parametrize("b64data", ["!!!", "YQ", base64.b64encode(b"\x00\xff").decode()])
def test_b64data_that_holds_no_json_is_a_bad_request(b64data: str) -> None:
    error = refused(published(channel="a", b64data=b64data).payload)
    assert error.status == 107
    assert "b64data" in str(error)


@pytest.mark.parametrize("fields", [{"skip_history": True}, {"version": 3}, {"version_epoch": "x"}])
def test_what_would_be_silently_wrong_is_refused_as_not_available(fields: dict[str, Any]) -> None:
    error = refused(published(channel="a", data=1, **fields).payload)
    assert error.status == 108
    assert next(iter(fields)).partition("_epoch")[0] in str(error)


def test_options_at_their_defaults_and_unknown_fields_change_nothing() -> None:
    request = published(
        channel="a", data=1, skip_history=False, version=0, delta=True, tags=None, future="x"
    )
    assert request.payload() == b"1"


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


def test_methods_are_told_apart_from_those_that_are_served_elsewhere() -> None:
    assert refused(requests.decode, "presence", b"{}").status == 108
    assert refused(requests.decode, "levitate", b"{}").status == 104


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
    ],
)
def test_a_channel_that_cannot_be_published_to_is_refused(channel: str | None, status: int) -> None:
    assert refused(check_channel, channel, NAMESPACES).status == status


@pytest.mark.parametrize("channel", ["a", "a" * 255, "public:a", "$news:a", "public:a:b", "#42"])
def test_a_channel_of_a_known_namespace_or_of_none_is_accepted(channel: str) -> None:
    assert check_channel(channel, NAMESPACES) == channel


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
