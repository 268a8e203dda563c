"""What the engine reads and writes, judged by a client library: recorded bytes, which the engine's
own tests hold it to."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from centrifuge.fossil import apply_delta
from centrifuge.protocol.client_pb2 import Command, Reply
from google.protobuf.json_format import MessageToDict, ParseDict

VECTORS = Path(__file__).parents[2] / "vectors"

# Values of the application's own: JSON text in bytes, and in JSON the value itself.
RAW = {"data", "conn_info", "chan_info"}


def vectors(name: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((VECTORS / name).read_text())
    assert found
    return found


def in_base64(value: object) -> str:
    """A value as `ParseDict` takes it for a field of bytes."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def as_fields(message: Any) -> Any:
    """A message in JSON as protobuf's own mapping has it."""
    if isinstance(message, list):
        return [as_fields(item) for item in message]
    if not isinstance(message, dict):
        return message
    return {
        key: in_base64(value) if key in RAW else as_fields(value) for key, value in message.items()
    }


def with_values(fields: Any) -> Any:
    """The reverse, after protobuf: the application's values are values again."""
    if isinstance(fields, list):
        return [with_values(item) for item in fields]
    if not isinstance(fields, dict):
        return fields
    return {
        key: json.loads(base64.b64decode(value)) if key in RAW else with_values(value)
        for key, value in fields.items()
    }


def meaning(message: Any) -> Any:
    return with_values(MessageToDict(message, preserving_proto_field_name=True))


@pytest.mark.parametrize("vector", vectors("centrifuge-commands.json"), ids=lambda v: v["json"])
def test_a_recorded_command_is_what_the_library_sends(vector: dict[str, str]) -> None:
    command = ParseDict(as_fields(json.loads(vector["json"])), Command())
    recorded = Command.FromString(bytes.fromhex(vector["protobuf"]))
    assert meaning(recorded) == meaning(command)


@pytest.mark.parametrize("vector", vectors("centrifuge-replies.json"), ids=lambda v: v["json"][:60])
def test_the_library_reads_the_same_out_of_both_encodings(vector: dict[str, str]) -> None:
    in_json = ParseDict(as_fields(json.loads(vector["json"])), Reply())
    in_protobuf = Reply.FromString(bytes.fromhex(vector["protobuf"]))
    assert meaning(in_protobuf) == meaning(in_json)


def test_the_library_applies_our_deltas() -> None:
    for vector in vectors("fossil-delta.json"):
        base, delta = vector["base"].encode(), vector["delta"].encode()
        assert apply_delta(base, delta).decode() == vector["target"]
