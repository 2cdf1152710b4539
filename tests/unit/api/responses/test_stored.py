"""What a stored response was asked, and its deletion, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.support.serving import serving
from tests.support.waiting import wait_until_async

IMAGE = "data:image/png;base64,AAAA"


class Client:
    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def ask(self, method: str, path: str, status: int = 200, **kwargs: Any) -> dict[str, Any]:
        answer = await self.http.request(method, path, **kwargs)
        assert answer.status_code == status, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def create(self, **body: Any) -> dict[str, Any]:
        return await self.ask("POST", "/v1/responses", json={"input": "hi", "max_output_tokens": 4, **body})

    async def items(self, response_id: str, query: str = "") -> dict[str, Any]:
        return await self.ask("GET", f"/v1/responses/{response_id}/input_items{query}")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        yield Client(http)


async def test_a_deleted_response_is_gone(client: Client) -> None:
    made = await client.create()
    path = f"/v1/responses/{made['id']}"
    deleted = await client.ask("DELETE", path)
    assert deleted == {"id": made["id"], "object": "response", "deleted": True}
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        assert (await client.ask(method, where, 404))["error"]["param"] == "response_id"
    await client.ask("GET", f"/v1/requests/{made['id'].removeprefix('resp_')}", 404)
    assert (await client.ask("GET", "/v1/requests"))["data"] == []
    refused = await client.ask(
        "POST", "/v1/responses", 404, json={"input": "x", "previous_response_id": made["id"], "max_output_tokens": 1}
    )
    assert refused["error"]["param"] == "previous_response_id"


async def test_a_running_response_is_cancelled_and_deleted(client: Client) -> None:
    made = await client.create(background=True, max_output_tokens=100_000, model="mock")
    path = f"/v1/responses/{made['id']}"

    async def is_deleted() -> bool:  # 503 while its worker has not ended it
        answer = await client.http.delete(path)
        return answer.status_code == 200

    await wait_until_async(is_deleted, "it is deleted")
    await client.ask("GET", path, 404)


async def test_only_a_response_that_is_stored_can_be_deleted(client: Client) -> None:
    made = await client.create(store=False)
    generated = await client.ask("POST", "/v1/generate", json={"prompt": "x", "max_tokens": 1})
    for response_id in (made["id"], f"resp_{generated['request_id']}", "resp_g1.none", "nothing"):
        await client.ask("DELETE", f"/v1/responses/{response_id}", 404)


async def test_the_same_key_asks_anew_after_a_deletion(client: Client) -> None:
    key = {"idempotency-key": "k"}
    body = {"input": "hi", "max_output_tokens": 4}
    first = await client.ask("POST", "/v1/responses", json=body, headers=key)
    assert await client.ask("POST", "/v1/responses", json=body, headers=key) == first
    await client.ask("DELETE", f"/v1/responses/{first['id']}")
    again = await client.ask("POST", "/v1/responses", json=body, headers=key)
    assert again["id"] != first["id"]


async def test_the_items_of_an_input(client: Client) -> None:
    content = [{"type": "input_text", "text": "see"}, {"type": "input_text", "text": "this"}]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "sun"}
    made = await client.create(
        input=[{"role": "developer", "content": content}, {"role": "user", "content": "weather?"}, call, output],
        instructions="be brief",
    )
    listed = await client.items(made["id"], "?order=asc")
    request_id = made["id"].removeprefix("resp_")
    assert listed == {
        "object": "list",
        "data": [
            {"id": f"msg_{request_id}_i0", "status": "completed", "type": "message", "role": "developer",
             "content": [{"type": "input_text", "text": "see\nthis"}]},
            {"id": f"msg_{request_id}_i1", "status": "completed", "type": "message", "role": "user",
             "content": [{"type": "input_text", "text": "weather?"}]},
            {"id": f"fc_{request_id}_i2", "status": "completed", **call},
            {"id": f"fco_{request_id}_i3", "status": "completed", **output},
        ],
        "first_id": f"msg_{request_id}_i0",
        "last_id": f"fco_{request_id}_i3",
        "has_more": False,
    }  # fmt: skip
    newest_first = await client.items(made["id"])
    assert newest_first["data"] == listed["data"][::-1]
    page = await client.items(made["id"], f"?limit=2&after={newest_first['first_id']}")
    assert page["data"] == newest_first["data"][1:3]
    assert page["has_more"]


async def test_the_items_of_a_conversation_begin_with_its_earlier_responses(client: Client) -> None:
    """Also where these hold what is not stored again."""
    first = await client.create(input="long " * 5000)
    second = await client.create(input="and?", previous_response_id=first["id"])
    third = await client.create(input="so?", previous_response_id=second["id"])
    (one,), (two,) = first["output"], second["output"]
    texts = ["long " * 5000, one["content"][0]["text"], "and?", two["content"][0]["text"], "so?"]
    listed = await client.items(third["id"], "?order=asc")
    assert [item["content"][0]["text"] for item in listed["data"]] == texts
    assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("after=msg_x", "after"),
        ("before=msg_x", "before"),
        ("include[]=everything", "include"),
    ],
)
async def test_a_query_for_items_is_strict(client: Client, query: str, param: str) -> None:
    made = await client.create()
    refused = await client.ask("GET", f"/v1/responses/{made['id']}/input_items?{query}", 400)
    assert refused["error"]["param"] == param
    await client.items(made["id"], "?include[]=message.input_image.image_url&include=reasoning.encrypted_content")
