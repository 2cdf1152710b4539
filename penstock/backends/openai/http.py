"""One request at one replica: HTTP over pooled connections, its stream read with a limit on everything.

Every failure raises `UpstreamError`. Leaving the generator, by cancellation too, closes the connection at once. Knows
nothing of other replicas and of what is tried next.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache

import httpx2
import msgspec

from penstock.backends.base import Finish
from penstock.backends.openai.chunks import Chunks
from penstock.backends.openai.failures import MAX_REST_S, UpstreamError, cut, malformed, of_status, timeout, unreachable
from penstock.backends.openai.first_token import FirstToken, Patience
from penstock.backends.openai.replicas import Replica, Tier
from penstock.backends.openai.steps import Ask
from penstock.rich_token import Token
from penstock.sse import Decoder, SSEError
from penstock.version import __version__

MAX_EVENT_BYTES = 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_BYTES = 32 * 1024 * 1024
ERROR_S = 5.0  # for the body of an error
LINGER_S = 0.5  # for usage, `[DONE]` and the end of the body, once the answer has ended
CHECK_S = 5.0
VISION_S = 2.0
# Below uvicorn's 5 s, which most engines run under: else a request is sent on a connection that is just being closed.
KEEPALIVE_S = 4.0
# A pool looks at every connection whenever a request begins or ends (and polls the idle ones), so one pool for 256
# streams costs more than all else: there are several small ones, and the first with room is used.
POOL_SIZE = 16


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. `first_token_s` runs from the sending of the request (see `FirstToken`), `idle_s` between two chunks
    after that. A `Retry-After` counts up to `max_rest_s`.
    """

    connect_s: float = 5.0
    first_token_s: float = 60.0
    idle_s: float = 30.0
    max_rest_s: float = MAX_REST_S


class _Properties(msgspec.Struct):
    modalities: dict[str, object]


@dataclass(slots=True, eq=False)
class _Pool:
    client: httpx2.AsyncClient
    num_open: int = 0


class UpstreamHttp:
    """The connections to all replicas of one model; as many as the worker runs requests. Use it in one loop."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._pools: list[_Pool] = []
        self._tls: ssl.SSLContext | None = None

    async def close(self) -> None:
        for pool in self._pools:
            await pool.client.aclose()
        self._pools.clear()

    @contextmanager
    def _client(self) -> Iterator[httpx2.AsyncClient]:
        """A client for one request."""
        pool = next((pool for pool in self._pools if pool.num_open < POOL_SIZE), None)
        if pool is None:
            pool = _Pool(self._new_client())
            self._pools.append(pool)
        pool.num_open += 1
        try:
            yield pool.client
        finally:
            pool.num_open -= 1

    def _new_client(self) -> httpx2.AsyncClient:
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()  # once, as it reads all certificates of the system
        return httpx2.AsyncClient(
            headers={"user-agent": f"penstock/{__version__}", "accept-encoding": "identity"},
            auth=_as_it_is,
            verify=self._tls,
            timeout=httpx2.Timeout(None, connect=self._times.connect_s),
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=POOL_SIZE, keepalive_expiry=KEEPALIVE_S
            ),
        )

    async def ask(
        self, tier: Tier, replica: Replica, model: str, path: str, body: bytes, patience: Patience, request_id: str = ""
    ) -> AsyncGenerator[Token | Finish, None]:
        """Yield the answer's tokens, and a `Finish` at last."""
        head = {"content-type": "application/json", "accept": "text/event-stream", **_key(tier)}
        with self._client() as client, closing(FirstToken(self._times.first_token_s, patience)) as limit:
            request = client.build_request("POST", _url(replica.url, path), content=body, headers=head)
            response = await self._send(client, request, limit)
            try:
                if response.status_code != 200:
                    raise await _refusal(response, model, tier.key, self._times.max_rest_s)
                chunks = Chunks(model, tier.key, request_id)
                if _is_whole(response):
                    whole = chunks.feed_whole((await self._body(response, limit)).decode("utf-8", "replace"))
                    if whole is not None:
                        yield whole
                    yield chunks.finish()
                    return
                async with aclosing(self._answer(response, chunks, limit)) as answer:
                    async for token in answer:
                        yield token
            except SSEError as error:
                raise malformed(str(error)) from None
            finally:
                await response.aclose()

    async def whole(self, tier: Tier, replica: Replica, model: str, ask: Ask, patience: Patience) -> bytes:
        """A whole answer of status 200."""
        url = _root_url(replica.url, ask.path) if ask.at_root else _url(replica.url, ask.path)
        head = {"content-type": "application/json", "accept": "application/json", **_key(tier)}
        body = None if ask.method == "GET" else msgspec.json.encode(ask.body)
        with self._client() as client, closing(FirstToken(self._times.first_token_s, patience)) as limit:
            request = client.build_request(ask.method, url, content=body, headers=head)
            response = await self._send(client, request, limit)
            try:
                if response.status_code != 200:
                    raise await _refusal(response, model, tier.key, self._times.max_rest_s)
                return await self._body(response, limit)
            finally:
                await response.aclose()

    async def _body(self, response: httpx2.Response, limit: FirstToken) -> bytes:
        data = bytearray()
        try:
            with limit:
                async for part in response.aiter_raw():
                    data += part
                    if len(data) > MAX_WHOLE_BYTES:
                        raise malformed(f"an answer of more than {MAX_WHOLE_BYTES} bytes")
        except TimeoutError:
            raise timeout(f"sent no complete answer within {limit}") from None
        except httpx2.HTTPError as error:
            raise cut(type(error).__name__) from None
        return bytes(data)

    async def is_well(self, tier: Tier, replica: Replica, path: str) -> bool:
        """Whether a health check at the server's root answers 2xx in time."""
        url = httpx2.URL(replica.url).join(path)
        try:
            with self._client() as client:
                async with asyncio.timeout(CHECK_S), client.stream("GET", url, headers=_key(tier)) as response:
                    return response.is_success
        except (httpx2.HTTPError, TimeoutError):
            return False

    async def has_vision(self, tier: Tier, replica: Replica) -> bool:
        """Whether the engine reports that its model takes images; False if it does not answer in time."""
        url = httpx2.URL(replica.url).join(tier.engine.vision)
        try:
            with self._client() as client:
                async with asyncio.timeout(VISION_S):
                    found = msgspec.json.decode((await client.get(url, headers=_key(tier))).content, type=_Properties)
        except (httpx2.HTTPError, TimeoutError, msgspec.MsgspecError, UnicodeDecodeError):
            return False
        return found.modalities.get("vision") is True

    async def _send(self, client: httpx2.AsyncClient, request: httpx2.Request, limit: FirstToken) -> httpx2.Response:
        try:
            with limit:
                return await client.send(request, stream=True)
        except TimeoutError:
            raise timeout(f"did not answer within {limit}") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise unreachable(type(error).__name__) from None
        except httpx2.HTTPError as error:
            raise cut(type(error).__name__) from None

    async def _answer(
        self, response: httpx2.Response, chunks: Chunks, limit: FirstToken
    ) -> AsyncGenerator[Token | Finish, None]:
        decoder = Decoder(MAX_EVENT_BYTES)
        async with aclosing(response.aiter_raw()) as raw:
            while True:
                data = await self._read(raw, chunks, limit)
                # A last event may lack its blank line.
                events = decoder.feed(data or b"\n\n")
                for event in events:
                    token = chunks.feed(event)
                    if token is not None:
                        limit.has_begun = True
                        yield token
                # Only chunks count: a proxy in front of an engine that hangs may send comments. The clock starts
                # after the last token was taken: a pause of the consumer is not the upstream's silence.
                if limit.has_begun and events:
                    limit.until = time.monotonic() + self._times.idle_s
                if not data:
                    yield chunks.finish()
                    return
                if chunks.has_ended or chunks.is_over:
                    limit.has_begun = True
                    limit.until = min(limit.until, time.monotonic() + LINGER_S)

    async def _read(self, raw: AsyncIterator[bytes], chunks: Chunks, limit: FirstToken) -> bytes:
        """The next bytes; b"" at the end of the stream. The end of the body is read too: it frees the connection."""
        try:
            with limit:
                while not (data := await anext(raw, None)):
                    if data is None:
                        return b""
                return data
        except TimeoutError:
            if limit.has_begun:
                failure = timeout(f"sent nothing for {self._times.idle_s:g} s (idle_s)")
            else:
                failure = timeout(f"sent no token within {limit}")
        except httpx2.HTTPError as error:
            failure = cut(type(error).__name__)
        if chunks.has_ended or chunks.is_over:
            return b""  # the answer had ended
        raise failure


@lru_cache(maxsize=1024)
def _url(base: str, path: str) -> httpx2.URL:
    """A route of the API below `base`, whose query stays. Cached: parsing one costs a tenth of a request."""
    url = httpx2.URL(base)
    return url.copy_with(path=url.path.rstrip("/") + path)


def _root_url(base: str, path: str) -> httpx2.URL:
    """A route next to the API: `/tokenize` where the API is at `/v1`."""
    url = httpx2.URL(base)
    return url.copy_with(path=url.path.rstrip("/").rpartition("/")[0] + path)


def _is_whole(response: httpx2.Response) -> bool:
    """Whether it is a whole answer though a stream was asked for: some servers do not stream tool calls. Raises
    `UpstreamError` for what is neither.
    """
    if response.headers.get("content-encoding", "identity") != "identity":
        raise malformed("a compressed answer, which was not requested")
    kind = response.headers.get("content-type", "")
    if kind.lower().startswith("text/event-stream"):
        return False
    if kind.lower().startswith("application/json"):
        return True
    raise malformed(f"{kind[:80]!r} instead of an event stream")


async def _refusal(response: httpx2.Response, model: str, key: str, max_rest_s: float) -> UpstreamError:
    """The error for a status other than 200. Size of and time for its body are limited."""
    body = bytearray()
    try:
        async with asyncio.timeout(ERROR_S):
            async for data in response.aiter_raw():
                body += data
                if len(body) > MAX_ERROR_BYTES:
                    break
    except (httpx2.HTTPError, TimeoutError):
        body.clear()  # half an error cannot be read; the status alone counts
    retry_after = response.headers.get("retry-after")
    if in_ms := response.headers.get("retry-after-ms"):  # OpenAI's and Azure's, more exact
        retry_after = f"{in_ms}ms"
    return of_status(response.status_code, retry_after, bytes(body), model, key, max_rest_s)


def _key(tier: Tier) -> dict[str, str]:
    return {"authorization": f"Bearer {tier.key}"} if tier.key else {}


def _as_it_is(request: httpx2.Request) -> httpx2.Request:
    """Given as `auth` so that no `.netrc` in a home directory replaces the key."""
    return request
