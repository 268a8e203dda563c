"""The frames that specification, Rust and Python agree on, byte by byte."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.client import frames, payloads
from gateway.client.crc32c import crc32c
from gateway.client.flow import Flow
from gateway.client.frames import Kind, Violation
from gateway.client.payloads import Fields, Position
from gateway.client.protocol import Protocol, Settings
from tests.support.wire import CONNECTED, server_frame

ROOT = Path(__file__).resolve().parents[3]
VECTORS: dict[str, list[dict[str, Any]]] = json.loads((ROOT / "tests/vectors/tcp.json").read_text())
SPECIFICATION = (ROOT / "workers/WIRE_PROTOCOL.md").read_text()

PAYLOADS: dict[Kind, Any] = {
    Kind.CONNECT: payloads.Connect,
    Kind.CONNECTED: payloads.Connected,
    Kind.SUBSCRIBE: payloads.Subscribe,
    Kind.SUBSCRIBED: payloads.Subscribed,
    Kind.UNSUBSCRIBE: payloads.Unsubscribe,
    Kind.UNSUBSCRIBED: payloads.Unsubscribed,
    Kind.PUBLISHED: payloads.Published,
    Kind.ERROR: payloads.Failure,
    Kind.CLOSE: payloads.Goodbye,
    Kind.PUBLISH: payloads.Publish,
    Kind.DATA: payloads.Delivery,
}


def name_of(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def bytes_of(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex("".join(piece for piece, _ in vector["bytes"]))


def fields_of(kind: Kind, fields: dict[str, Any]) -> Any:
    """The vector's fields as the payload class that has them."""
    known = dict(fields)
    known.pop("marker", None)
    for name, value in known.items():
        if name == "data":
            known[name] = bytes.fromhex(value)
        elif isinstance(value, dict):
            known[name] = Position(**value)
    return PAYLOADS[kind](**known)


def shown(value: Any) -> dict[str, Any]:
    """All fields that are compared."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}


@pytest.mark.parametrize("vector", VECTORS["crc32c"], ids=lambda v: str(v["hex"])[:16])
def test_checksums_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    assert f"{crc32c(bytes.fromhex(vector['hex'])):08x}" == vector["crc"]


def test_varints_are_those_of_the_vectors() -> None:
    for vector in VECTORS["varints"]:
        encoded = bytes.fromhex(vector["hex"])
        assert payloads.varint(vector["value"]) == encoded
        assert Fields(encoded).varint() == vector["value"]


@pytest.mark.parametrize("vector", VECTORS["bad_varints"], ids=lambda v: str(v["why"]))
def test_a_bad_varint_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(Violation) as caught:
        Fields(bytes.fromhex(vector["hex"])).varint()
    assert caught.value.code == 4512


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=name_of)
def test_headers_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    raw, header, crc = bytes_of(vector), vector["header"], bool(vector["crc"])
    frame = frames.decode(raw, 0, crc=crc)
    assert frame is not None and frame.wire_bytes == len(raw)
    assert frame.kind == (header["type"] if header["type"] < 128 else None)
    numbers = frame.seq, frame.ack_seq, frame.window_size
    assert numbers == (header["seq"], header["ack_seq"], header["window_size"])
    assert frames.encode(header["type"], *numbers, frame.payload, crc=crc) == raw
    for cut in range(len(raw)):
        assert frames.decode(raw[:cut], 0, crc=crc) is None


def test_payloads_are_those_of_the_vectors() -> None:
    reassembly = payloads.Reassembly()
    checked = set()
    for vector in VECTORS["frames"]:
        frame = frames.decode(bytes_of(vector), 0, crc=vector["crc"])
        assert frame is not None
        if frame.kind is None or not frame.payload:
            continue
        whole = frame.payload
        if frame.kind in frames.SEQUENCED:
            message = reassembly.push(frame.payload, frame.wire_bytes, 1000)
            if message is None:
                continue
            whole = message[0]
        expected = fields_of(frame.kind, vector["fields"])
        assert shown(PAYLOADS[frame.kind].parse(whole)) == shown(expected)
        assert expected.encode() == whole
        checked.add(frame.kind)
    assert checked == set(PAYLOADS)


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS["violations"] if v["from"] != "client"], ids=name_of
)
def test_each_violation_of_the_server_ends_the_connection_with_its_code(
    vector: dict[str, Any],
) -> None:
    protocol = Protocol(Settings(crc=vector["crc"]), 0.0)
    if vector["connected"]:
        answer = dataclasses.replace(CONNECTED, crc=vector["crc"]).encode()
        protocol.receive(server_frame(Kind.CONNECTED, answer), 0.0)
    events = protocol.receive(bytes.fromhex(vector["hex"]), 0.0)
    assert [event.code for event in events if isinstance(event, payloads.Goodbye)] == [
        vector["close"]
    ]


def listing(vector: dict[str, Any]) -> str:
    """A frame as the specification shows it: eight bytes a line, and what they are."""
    lines = []
    for piece, what in vector["bytes"]:
        pairs = [piece[at : at + 2] for at in range(0, len(piece), 2)]
        for at in range(0, len(pairs), 8):
            line = f"{' '.join(pairs[at : at + 8]):<24}  {what if at == 0 else ''}"
            lines.append(line.rstrip())
    return "\n".join(lines)


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=name_of)
def test_the_specification_shows_the_vectors(vector: dict[str, Any]) -> None:
    heading = f"**{vector['name']}** (from the {vector['from']})"
    assert f"{heading}\n\n```\n{listing(vector)}\n```\n" in SPECIFICATION


def test_every_close_of_the_vectors_is_in_the_specification() -> None:
    for vector in VECTORS["violations"]:
        assert f"| **{vector['close']}** |" in SPECIFICATION


def test_sequence_numbers_wrap() -> None:
    flow = Flow(1000, last_seq=0xFFFFFFFE)
    for seq in (0xFFFFFFFF, 0, 1):
        frame = frames.decode(flow.frame(Kind.PUBLISH, b"\0x"), 0, crc=False)
        assert frame is not None and frame.seq == seq
        data = frames.encode(Kind.DATA, seq, seq, 1000, b"\0x")
        received = frames.decode(data, 0, crc=False)
        assert received is not None
        flow.receive(received)
    assert flow.room() == 1000 - frames.HEADER.size, "everything is acknowledged"
