"""Publishing at a rate, and over HTTP: what ends it, and what it refuses."""

from __future__ import annotations

import threading

import pytest

from gateway.errors import TidegateError
from ops.load.stream import HttpPublisher, Stream
from tests.support.waiting import PATIENCE_S


def test_a_stream_is_no_faster_than_its_rate_and_goes_through_the_channels_in_turn() -> None:
    published: list[str] = []
    enough = threading.Event()

    def publish(channel: str) -> None:
        published.append(channel)
        if len(published) == 30:
            enough.set()

    with Stream(publish, ["a", "b"], 1000.0) as stream:
        assert enough.wait(PATIENCE_S)
    # The first is due at once.
    assert stream.published - 1 <= 1000.0 * stream.lasted_s
    assert published[:4] == ["a", "b", "a", "b"]
    assert stream.published_to.total() == stream.published == len(published)


@pytest.mark.parametrize("failure", [TidegateError("refused"), ValueError("a mistake of ours")])
def test_whatever_ends_a_stream_is_raised_at_its_end(failure: Exception) -> None:
    tried = threading.Event()

    def publish(channel: str) -> None:
        tried.set()
        raise failure

    with pytest.raises(type(failure), match=str(failure)), Stream(publish, ["a"], 1.0):
        assert tried.wait(PATIENCE_S)


@pytest.mark.parametrize("key", ["abc\r\nX: y", "abc\n", "schlüssel", "ключ", "\udcff"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(TidegateError, match="--api-key"):
        HttpPublisher("http://127.0.0.1:8002/api", key)


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://[::1:8002/api", "http://a..b/api", "http://a:x", "http://a/ü"],
)
def test_what_is_no_address_of_an_api_is_refused(url: str) -> None:
    with pytest.raises(TidegateError, match="is no address of an API"):
        HttpPublisher(url, "key")
