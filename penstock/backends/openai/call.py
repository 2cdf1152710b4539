"""One request at one replica: HTTP over pooled connections, its stream read with a limit on everything.

Whatever goes wrong is `Trouble`. Leaving the generator, by cancellation too, closes the connection at once. Knows
nothing of other replicas and of what is tried next.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import httpx2

from penstock import __version__
from penstock.backends.openai.chunks import Chunks
from penstock.backends.openai.replicas import Replica, Tier
from penstock.backends.openai.trouble import Trouble, cut, malformed, of_status, timeout, unreachable
from penstock.backends.streams import Finish
from penstock.piece import Token
from penstock.sse import Decoder, SSEError

MAX_EVENT_BYTES = 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_BYTES = 32 * 1024 * 1024
ERROR_S = 5.0  # for the body of an error
LINGER_S = 0.5  # for usage, `[DONE]` and the end of the body, once the answer has ended
CHECK_S = 5.0
# Below uvicorn's 5 s, which most engines run under: else a request meets a connection that is just being closed.
KEEPALIVE_S = 4.0
# A pool looks at each of its connections whenever a request begins or ends, at some with a system call: with 256
# streams in one that took a quarter of a worker's time.
NUM_POOLS, POOL_SIZE = 32, 8


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. `first_token_s` runs from the sending of the request, `idle_s` between two chunks after that."""

    connect_s: float = 5.0
    first_token_s: float = 60.0
    idle_s: float = 30.0


@dataclass(slots=True)
class _Pool:
    client: httpx2.AsyncClient
    num_open: int = 0


class Caller:
    """The connections to all replicas of one model. Open it in the loop that uses it."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._pools: list[_Pool] = []

    def open(self) -> None:
        tls = httpx2.create_ssl_context()  # once: it takes a while
        self._pools = [_Pool(self._make_client(tls)) for _ in range(NUM_POOLS)]

    def _make_client(self, tls: ssl.SSLContext) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            verify=tls,
            headers={"user-agent": f"penstock/{__version__}", "accept-encoding": "identity"},
            auth=_as_it_is,
            timeout=httpx2.Timeout(None, connect=self._times.connect_s),
            # As many as the worker has slots; only idle ones need a bound of their own.
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=POOL_SIZE, keepalive_expiry=KEEPALIVE_S
            ),
        )

    async def close(self) -> None:
        for pool in self._pools:
            await pool.client.aclose()

    async def ask(
        self, tier: Tier, replica: Replica, model: str, path: str, body: bytes
    ) -> AsyncGenerator[Token | Finish, None]:
        """Yield the answer's tokens, and a `Finish` at last."""
        until = time.monotonic() + self._times.first_token_s
        with self._pool() as client:
            async with aclosing(self._asked(client, tier, replica, model, path, body, until)) as answer:
                async for token in answer:
                    yield token

    async def _asked(
        self,
        client: httpx2.AsyncClient,
        tier: Tier,
        replica: Replica,
        model: str,
        path: str,
        body: bytes,
        until: float,
    ) -> AsyncGenerator[Token | Finish, None]:
        response = await self._send(client, tier, replica, path, body, until)
        try:
            if response.status_code != 200:
                raise await _refusal(response, model, tier.key)
            kind = response.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                raise malformed(f"{kind[:80]!r} instead of an event stream")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise malformed("a compressed stream, though none was asked for")
            async with aclosing(self._answer(response, Chunks(model, tier.key), until)) as answer:
                async for token in answer:
                    yield token
        except SSEError as error:
            raise malformed(str(error)) from None
        finally:
            await response.aclose()

    async def post(self, tier: Tier, replica: Replica, model: str, path: str, body: bytes) -> bytes:
        """A whole answer of status 200, within `first_token_s`."""
        until = time.monotonic() + self._times.first_token_s
        with self._pool() as client:
            return await self._posted(client, tier, replica, model, path, body, until)

    async def _posted(
        self,
        client: httpx2.AsyncClient,
        tier: Tier,
        replica: Replica,
        model: str,
        path: str,
        body: bytes,
        until: float,
    ) -> bytes:
        response = await self._send(client, tier, replica, path, body, until, accept="application/json")
        try:
            if response.status_code != 200:
                raise await _refusal(response, model, tier.key)
            data = bytearray()
            async with asyncio.timeout(until - time.monotonic()):
                async for part in response.aiter_raw():
                    data += part
                    if len(data) > MAX_WHOLE_BYTES:
                        raise malformed(f"an answer of more than {MAX_WHOLE_BYTES} bytes")
            return bytes(data)
        except TimeoutError:
            raise timeout(f"gave no whole answer within {self._times.first_token_s:g} s") from None
        except httpx2.HTTPError as error:
            raise cut(type(error).__name__) from None
        finally:
            await response.aclose()

    async def is_well(self, tier: Tier, replica: Replica, path: str) -> bool:
        """Whether a health check at the server's root answers 2xx in time."""
        try:
            async with asyncio.timeout(CHECK_S):
                url = httpx2.URL(replica.url).join(path)
                with self._pool() as client:
                    async with client.stream("GET", url, headers=_key(tier)) as response:
                        return response.is_success
        except (httpx2.HTTPError, TimeoutError):
            return False

    @contextmanager
    def _pool(self) -> Iterator[httpx2.AsyncClient]:
        """The first pool with room, so that connections are used again; of full ones the least loaded."""
        if not self._pools:
            raise RuntimeError("this backend was not started")
        pool = next((one for one in self._pools if one.num_open < POOL_SIZE), None)
        pool = pool or min(self._pools, key=lambda one: one.num_open)
        pool.num_open += 1
        try:
            yield pool.client
        finally:
            pool.num_open -= 1

    async def _send(
        self,
        client: httpx2.AsyncClient,
        tier: Tier,
        replica: Replica,
        path: str,
        body: bytes,
        until: float,
        accept: str = "text/event-stream",
    ) -> httpx2.Response:
        url = httpx2.URL(replica.url)
        request = client.build_request(
            "POST",
            url.copy_with(path=url.path.rstrip("/") + path),
            content=body,
            headers={"content-type": "application/json", "accept": accept, **_key(tier)},
        )
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await client.send(request, stream=True)
        except TimeoutError:
            raise timeout(f"gave no answer within {self._times.first_token_s:g} s") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise unreachable(type(error).__name__) from None
        except httpx2.HTTPError as error:
            raise cut(type(error).__name__) from None

    async def _answer(
        self, response: httpx2.Response, chunks: Chunks, until: float
    ) -> AsyncGenerator[Token | Finish, None]:
        decoder = Decoder(MAX_EVENT_BYTES)
        has_begun = False
        async with aclosing(response.aiter_raw()) as raw:
            while True:
                data = await self._read(raw, chunks, until, has_begun=has_begun)
                # A last event may lack its blank line.
                for event in decoder.feed(data or b"\n\n"):
                    token = chunks.feed(event)
                    has_begun = has_begun or token is not None
                    # Only chunks are life: comments may come from a proxy before an engine that hangs.
                    if has_begun:
                        until = time.monotonic() + self._times.idle_s
                    if token is not None:
                        yield token
                if not data:
                    yield chunks.finish()
                    return
                if chunks.has_ended or chunks.is_over:
                    until = min(until, time.monotonic() + LINGER_S)

    async def _read(self, raw: AsyncIterator[bytes], chunks: Chunks, until: float, *, has_begun: bool) -> bytes:
        """Some more bytes; none at the end of the stream. The end of the body is read too: it frees the connection."""
        try:
            async with asyncio.timeout(until - time.monotonic()):
                while not (data := await anext(raw, None)):
                    if data is None:
                        return b""
                return data
        except TimeoutError:
            if has_begun:
                trouble = timeout(f"fell silent for {self._times.idle_s:g} s")
            else:
                trouble = timeout(f"gave no token within {self._times.first_token_s:g} s")
        except httpx2.HTTPError as error:
            trouble = cut(type(error).__name__)
        if chunks.has_ended or chunks.is_over:
            return b""  # all that counts was said
        raise trouble


async def _refusal(response: httpx2.Response, model: str, key: str) -> Trouble:
    """The trouble that a status other than 200 is. Of its body only so much is read, and only for so long."""
    body = bytearray()
    try:
        async with asyncio.timeout(ERROR_S):
            async for data in response.aiter_raw():
                body += data
                if len(body) > MAX_ERROR_BYTES:
                    break
    except (httpx2.HTTPError, TimeoutError):
        body.clear()  # half an error says nothing; its status still does
    return of_status(response.status_code, response.headers.get("retry-after"), bytes(body), model, key)


def _key(tier: Tier) -> dict[str, str]:
    return {"authorization": f"Bearer {tier.key}"} if tier.key else {}


def _as_it_is(request: httpx2.Request) -> httpx2.Request:
    """Given as `auth` so that no `.netrc` in a home directory replaces the key."""
    return request
