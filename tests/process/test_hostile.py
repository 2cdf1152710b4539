"""Malformed and hostile input against a real server: always one clear 4xx, never a 5xx, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from tests.support import reading
from tests.support.hostile import CORPUS, Case
from tests.support.programs import Site, site
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Site]:
    with site() as built:
        limits = "--header-timeout-s", "1", "--body-timeout-s", "1", "--max-connections", "200"
        built.serve(*limits, "--max-tokens-limit", "60000")
        yield built


@pytest.fixture(scope="module")
def url(fleet: Site) -> str:
    return fleet.gateways[0]


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_the_corpus(url: str, case: Case) -> None:
    answer = httpx2.post(f"{url}/v1/generate", content=case.body, headers=case.headers, timeout=10.0)
    assert answer.status_code == case.status
    if case.status >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "code", "param"}
        assert error["message"]
        if case.param is not None:
            assert error["param"] == case.param
    assert "set-cookie" not in answer.headers


async def _raw(url: str, data: bytes, timeout_s: float = 8.0) -> bytes:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    finally:
        writer.close()


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_slow_headers_are_cut(url: str) -> None:
    answer = await _raw(url, b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-ty")
    assert _status(answer) == 408
    assert b"\r\nx-content-type-options: nosniff\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


async def test_a_slow_body_is_cut(url: str) -> None:
    head = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
    answer = await _raw(url, head + b'{"prompt"')
    assert _status(answer) == 408
    assert b"connection: close" in answer.lower()


async def test_an_endless_head_is_refused(url: str) -> None:
    answer = await _raw(url, b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 20_000)
    assert _status(answer) == 400


async def test_nonsense_is_refused_in_the_envelope(url: str) -> None:
    answer = await _raw(url, b"\x16\x03\x01 not http at all\r\n\r\n")
    assert _status(answer) == 400
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"


async def test_a_body_without_a_length_is_counted(url: str) -> None:
    head = (
        b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    answer = await _raw(url, head + chunk * 20)
    assert _status(answer) == 413


async def test_requests_in_one_piece_are_answered_one_after_the_other(url: str) -> None:
    requests = []
    for number, connection in enumerate((b"keep-alive", b"keep-alive", b"close")):
        body = json.dumps({"prompt": f"number {number}", "max_tokens": 3, "stream": number == 1}).encode()
        head = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: %b\r\n"
        requests.append(head % connection + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    answer = await _raw(url, b"".join(requests))
    heads = answer.split(b"HTTP/1.1 ")[1:]
    assert [head[:3] for head in heads] == [b"200"] * 3
    assert [b"event: done" in head for head in heads] == [False, True, False]
    assert [b'"completion_tokens":3' in head for head in heads] == [True] * 3


async def test_a_client_that_reads_late_reads_everything(url: str) -> None:
    """More than all buffers hold: the server waits for the client, and goes on when it reads again."""
    parts = urlsplit(url)
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel would read it all for us
    small.connect((parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=small, limit=1024)
    body = json.dumps({"prompt": "x", "max_tokens": 60_000, "stream": True}).encode()
    head = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    try:
        writer.write(head % len(body) + body)
        answer = [await reader.readuntil(b"\r\n\r\n")]
        request_id = answer[0].partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()

        async with reading.client() as http:

            async def is_made() -> bool:
                return bool((await http.get(f"{url}/v1/requests/{request_id}")).json()["state"] == "completed")

            await wait_until_async(is_made, "the answer is made", 60.0)
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)  # from now on it is to be read quickly
        while not answer[-1].endswith(b"0\r\n\r\n"):
            answer.append(await reader.read(1 << 20))
            assert answer[-1]
    finally:
        writer.close()
    indices = re.findall(rb'"index":(\d+)', b"".join(answer))
    assert indices == [b"%d" % index for index in range(60_000)]
    assert b"event: done" in b"".join(answer[-3:])


async def test_ids_of_clients_never_become_ours(url: str) -> None:
    async with reading.client() as http:
        for given in ("mine-1", "a" * 65, "b c", "ü"):
            answer = await http.post(
                f"{url}/v1/generate", json={"prompt": "x", "max_tokens": 1}, headers=[(b"x-request-id", given.encode())]
            )
            assert answer.status_code == 200
            assert answer.headers["x-request-id"].startswith("g")


async def test_prompts_are_never_logged(fleet: Site, url: str) -> None:
    secret = "the-prompt-that-no-log-shows"
    answer = httpx2.post(f"{url}/v1/generate", json={"prompt": secret, "max_tokens": 2})
    assert answer.status_code == 200
    assert httpx2.post(f"{url}/v1/generate", json={"prompt": secret, "max_tokens": 0}).status_code == 400

    def lines() -> dict[str, Any]:
        """What gateway and worker logged of the request, by logger."""
        found = [json.loads(line) for line in fleet.programs[0].output().splitlines() if line.startswith("{")]
        ours = [line for line in found if line.get("request_id") == answer.headers["x-request-id"]]
        return {line["logger"]: line for line in ours if "completion_tokens" in line}

    both = {"penstock.access", "penstock.worker"}
    await wait_until(lambda: both <= lines().keys(), "the thread that writes the log has written both lines")
    assert [lines()[name]["completion_tokens"] for name in sorted(both)] == [2, 2]
    assert lines()["penstock.access"]["outcome"] == "ok"
    assert secret not in fleet.programs[0].output()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_schemathesis_finds_only_documented_answers(url: str, mode: GenerationMode) -> None:
    """The whole document, with valid and with invalid data: every answer is documented, and of its schema."""
    num_examples = settings().max_examples // 4  # of each operation; more with --hypothesis-profile=deep
    statuses: set[int] = set()
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (len(operation.body) or len(operation.query)):
            continue  # it takes no input that could be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(case: schemathesis.Case[Any]) -> None:
            answer = case.call(timeout=60.0)
            statuses.add(answer.status_code)
            checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
            case.validate_response(answer, checks=checks)

        check()
    assert not {status for status in statuses if status >= 500} - {503, 504}
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses
