"""Answers that are had over HTTP: those of a back end, and the public keys of an identity provider.

Imported only where one of them is configured.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import aiohttp

from workers.hooks import Refused

if TYPE_CHECKING:
    from workers._engine import Questions
    from workers.settings import HookSettings

__all__ = ["Backend", "PublishedKeys"]

logger = logging.getLogger(__name__)

# More than any answer needs: publications, the largest thing in one, are much smaller.
ANSWER_BYTES_MAX = 1 << 20
# A set has a few keys of a few hundred bytes each.
KEYS_BYTES_MAX = 1 << 18
KEYS_TIMEOUT_S = 10.0
# How long after a failure keys are fetched again; doubles up to the second.
KEYS_RETRY_MIN_S = 1.0
KEYS_RETRY_MAX_S = 60.0

# They say something of the client's connection to us, not of ours to the back end (RFC 9110
# §7.6.1), or of a body that is another.
NOT_FORWARDED = frozenset(
    {
        *("connection", "content-length", "content-type", "expect", "host", "keep-alive"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)


class Backend:
    """The back end's endpoints: each question is posted to the one of its kind.

    The headers that the question brings (`headers`) travel as headers.
    """

    def __init__(self, settings: HookSettings) -> None:
        self._urls = settings.urls
        self._calls_max = settings.in_flight_max
        self._session: aiohttp.ClientSession | None = None

    @property
    def kinds(self) -> Collection[str]:
        return self._urls.keys()

    async def ask(self, kind: str, body: bytes) -> bytes:
        """The endpoint's answer. Raises Refused; how long it may take is the caller's to say."""
        if self._session is None:
            self._session = _session(self._calls_max)
        question = json.loads(body)
        headers = {
            name: value
            for name, value in question.pop("headers", {}).items()
            if name.lower() not in NOT_FORWARDED
        }
        headers["Content-Type"] = "application/json"
        try:
            async with self._session.post(
                self._urls[kind],
                data=json.dumps(question).encode(),
                headers=headers,
                allow_redirects=False,
            ) as response:
                return await _content(response, ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Refused(f"{self._urls[kind]}: {_plain(error)}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class PublishedKeys:
    """JSON Web Key Sets by URL, fetched before they are old and when a key is not among them."""

    kinds: Collection[str] = ("keys",)

    def __init__(self, ttls_s: Mapping[str, float]) -> None:
        """`ttls_s`: how long the set of each URL may be used."""
        self._urls = tuple(ttls_s)
        self._ttl_s = min(ttls_s.values())
        self._fetching: asyncio.Task[bytes] | None = None
        self._questions: Questions | None = None
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, kind: str, body: bytes) -> bytes:
        """All sets, as `{url: set}`; one that cannot be had is absent. Raises Refused for none."""
        # Many clients at once have a key that is new: one fetch is for them all.
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.ensure_future(self._fetch())
        return await asyncio.shield(self._fetching)

    async def keep_fresh(self, questions: Questions) -> None:
        """Fetch the sets at once and whenever their time is over, and hand them to the engine."""
        self._questions = questions
        retry_s = KEYS_RETRY_MIN_S
        failing = False
        while True:
            try:
                await self.ask("keys", b"{}")
                if failing:
                    logger.info("keys of tokens are fetched again")
                failing, retry_s, pause_s = False, KEYS_RETRY_MIN_S, self._ttl_s
            except Refused as error:
                if not failing:
                    logger.error("keys of tokens cannot be fetched", extra={"reason": error})
                failing, pause_s = True, retry_s
                retry_s = min(2 * retry_s, KEYS_RETRY_MAX_S)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _fetch(self) -> bytes:
        if self._session is None:
            self._session = _session(len(self._urls))
        sets, faults = {}, []
        for url in self._urls:
            try:
                async with asyncio.timeout(KEYS_TIMEOUT_S), self._session.get(url) as response:
                    sets[url] = json.loads(await _content(response, KEYS_BYTES_MAX))
            except (aiohttp.ClientError, OSError, ValueError, Refused) as error:
                faults.append(f"{url}: {_plain(error)}")
        if not sets:
            raise Refused("; ".join(faults))
        fetched = json.dumps(sets).encode()
        if self._questions is not None:
            # Whoever asked may have given up by now; the next one need not ask.
            self._questions.answer(0, "keys", fetched)
        return fetched


def _session(connections_max: int) -> aiohttp.ClientSession:
    # Cookies of one client's answer must not go along with another client's question.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections_max),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


async def _content(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The body of a 200. Raises Refused for another status, or a body that is too long."""
    if response.status != 200:
        raise Refused(f"{response.url}: HTTP status {response.status}")
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > bytes_max:
            raise Refused(f"{response.url}: an answer of more than {bytes_max} bytes")
    return body


def _plain(error: BaseException) -> str:
    return str(error) or type(error).__name__
