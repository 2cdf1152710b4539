"""What changes no answer is taken by every API, and the request is the same as without it; the table in `hints`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.api.hints import ALL, HINTS, INCLUDES, NOTHING, TOOLED, Api
from penstock.api.intake import Draft, job_of
from penstock.api.provider_tools import PROVIDER_TOOLS
from penstock.errors import InvalidRequest
from penstock.fleet import Capabilities, Pool, WorkerInfo
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.job import Job, Message
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from tests.support.drafts import drafts_of

TEXT = {"type": "text", "text": "x"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURNS = [
    {"role": "user", "content": [TEXT]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "sun"},
]
BASES: dict[Api, dict[str, Any]] = {
    "native": {"messages": TURNS, "tools": [FUNCTION]},
    "chat": {"messages": TURNS, "tools": [FUNCTION]},
    "completions": {"prompt": "x"},
    "responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sun"}]},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    },
    "messages": {
        "max_tokens": 9,
        "system": [TEXT],
        "messages": [
            {"role": "user", "content": [TEXT]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [TEXT]}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    },
}
BASES["ollama"] = {
    "messages": [{"role": "user", "content": "x"}],
    "tools": [FUNCTION],
    "options": {"temperature": 0.5},
}
BASES["ollama-embed"] = {"input": "x"}
NATIVE_AND_CHAT: tuple[Api, ...] = ("native", "chat")
ANY: tuple[Any, ...] = ("x", {"type": "ephemeral"}, True)


def _base(api: Api) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(BASES[api]))
    return copied


def _put(here: Any, path: list[str], value: Any) -> int:
    """Puts the value at each place of the path; the number of places."""
    name, *rest = path
    if name == "*":
        return sum(_put(item, rest, value) for item in here) if isinstance(here, list) else 0
    if not rest:
        here[name] = value
        return 1
    if rest[0] != "*":
        here.setdefault(name, {})
    return _put(here[name], rest, value) if name in here else 0


@pytest.mark.parametrize(
    ("api", "path", "value"),
    [(api, row.path, value) for row in HINTS + NOTHING for api in row.apis for value in row.values or ANY],
)
def test_what_changes_no_answer_makes_the_same_request(api: Api, path: str, value: Any) -> None:
    data = _base(api)
    plain = _base(api)
    if path == "tools":
        del data["tools"], plain["tools"]
    assert _put(data, path.split("."), value) > 0
    assert drafts_of(api, data) == drafts_of(api, plain)


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        *((api, {"tool_choice": {"type": choice} if api == "messages" else choice}) for api in TOOLED
          for choice in ("auto", "none")),
        *((api, {"parallel_tool_calls": value}) for api in TOOLED if api != "messages" for value in (True, False)),
    ],
)  # fmt: skip
def test_a_choice_that_demands_no_tool_needs_none(api: Api, fields: dict[str, Any]) -> None:
    plain = {name: value for name, value in _base(api).items() if name != "tools"}
    assert drafts_of(api, plain | fields) == drafts_of(api, plain)


@pytest.mark.parametrize("api", ALL)
def test_a_number_is_not_taken_for_true_nor_a_value_beside_the_default_for_none(api: Api) -> None:
    with pytest.raises(InvalidRequest) as refused:
        drafts_of(api, _base(api) | {"top_k": -2})
    assert refused.value.param == "top_k"
    if api in ("native", "chat", "responses"):
        with pytest.raises(InvalidRequest) as refused:
            drafts_of(api, _base(api) | {"parallel_tool_calls": 1})
        assert refused.value.param == "parallel_tool_calls"


def _confused(value: Any) -> list[Any]:
    """What Python takes for equal to the value and JSON does not: true for 1, 1.0 for 1, 0 for false."""
    if isinstance(value, dict):
        return [value | {name: other} for name, item in value.items() for other in _confused(item)]
    others = (bool(value), int(value), float(value)) if isinstance(value, int) else ()
    return [other for other in others if other == value and type(other) is not type(value)]


@pytest.mark.parametrize(
    ("api", "path", "value"),
    [(api, row.path, other) for row in NOTHING for api in row.apis for value in row.values or ()
     for other in _confused(value) if type(other) not in map(type, row.values or ())],
)  # fmt: skip
def test_a_value_of_another_type_than_the_one_that_asks_for_nothing_is_refused(api: Api, path: str, value: Any) -> None:
    data = _base(api) | {"stream": True}
    assert _put(data, path.split("."), value) > 0
    with pytest.raises(InvalidRequest) as refused:
        drafts_of(api, data)
    assert (refused.value.param or "").startswith(path)


def test_the_error_of_a_field_with_one_value_names_that_value() -> None:
    for value in (True, 1.0, 0, "1"):
        with pytest.raises(InvalidRequest, match=r"^'n' must be 1\.$"):
            drafts_of("native", {"prompt": "x", "n": value})
    with pytest.raises(InvalidRequest, match=r"^'stream_options.include_obfuscation' must be false\.$"):
        drafts_of("chat", _base("chat") | {"stream_options": {"include_obfuscation": 0}})


@pytest.mark.parametrize("api", TOOLED)
@pytest.mark.parametrize("kind", PROVIDER_TOOLS)
def test_a_tool_of_the_provider_is_left_out_and_refused_where_it_is_demanded(api: Api, kind: str) -> None:
    data = _base(api)
    data["tools"] = [{"type": kind, "name": kind, "more": []}, *data["tools"]]
    assert drafts_of(api, data) == drafts_of(api, _base(api))
    alone = _base(api) | {"tools": [{"type": kind, "name": kind}]}
    demands: list[Any] = [{"type": "any"}, {"type": "tool", "name": kind}] if api == "messages" else ["required"]
    for demand in demands:
        with pytest.raises(InvalidRequest) as refused:
            drafts_of(api, json.loads(json.dumps(alone)) | {"tool_choice": demand})
        assert refused.value.param == "tool_choice"


@pytest.mark.parametrize("api", TOOLED)
def test_an_error_names_the_place_of_a_tool_among_all_that_the_client_wrote(api: Api) -> None:
    wrong: dict[str, Any] = {"name": 5, "input_schema": {}} if api == "messages" else {"type": "odd"}
    provided = {"type": "web_search", "name": "w"}
    data = _base(api)
    data["tools"] = [provided, *data["tools"], provided, wrong]
    with pytest.raises(InvalidRequest) as refused:
        drafts_of(api, data)
    assert (refused.value.param or "").startswith("tools.3.")
    assert "'tools.3." in refused.value.message


def test_an_error_names_the_place_of_an_include_among_all_that_the_client_wrote() -> None:
    with pytest.raises(InvalidRequest) as refused:
        drafts_of("responses", {"input": "x", "include": ["reasoning.encrypted_content", "file_search_call.results"]})
    assert refused.value.param == "include.1"


@pytest.mark.parametrize("name", INCLUDES)
def test_what_a_tool_that_is_left_out_would_answer_is_not_included(name: str) -> None:
    assert drafts_of("responses", _base("responses") | {"include": [name]}) == drafts_of(
        "responses", _base("responses")
    )


@pytest.mark.parametrize(("api", "name"), [("messages", "mcp_servers"), ("chat", "functions")])
def test_a_list_of_nothing_asks_for_nothing(api: Api, name: str) -> None:
    assert drafts_of(api, _base(api) | {name: []}) == drafts_of(api, _base(api))
    with pytest.raises(InvalidRequest) as refused:
        drafts_of(api, _base(api) | {name: [{"name": "x"}]})
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": "Well.", "refusal": "No."}, "Well.\nNo."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"content": None}, ""),
        ({}, ""),
    ],
)
def test_a_refusal_or_an_empty_answer_that_is_given_back_is_text(message: dict[str, Any], text: str) -> None:
    for api in NATIVE_AND_CHAT:
        (draft,) = drafts_of(api, {"messages": [{"role": "assistant"} | message, {"role": "user", "content": "x"}]})
        assert (draft.messages or ())[0] == Message("assistant", text)
        with pytest.raises(InvalidRequest):
            drafts_of(api, {"messages": [{"role": "user"} | message]})


def test_a_tool_of_a_misspelt_type_is_refused_and_so_is_one_with_the_callers_own_servers() -> None:
    for kind in ("fonction", "mcp", "file_search"):
        with pytest.raises(InvalidRequest) as refused:
            drafts_of("responses", {"input": "x", "tools": [{"type": kind}]})
        assert refused.value.param == "tools.0.type"


@pytest.mark.parametrize("api", ["native", "chat", "messages"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_content_of_no_parts_is_an_empty_text(api: Api, role: Any) -> None:
    turns = [{"role": role, "content": []}, {"role": "user", "content": "x"}]
    (draft,) = drafts_of(api, {"messages": turns} | ({"max_tokens": 9} if api == "messages" else {}))
    assert draft.messages == (Message(role, ""), Message("user", "x"))


def test_content_of_no_parts_is_an_empty_text_in_responses() -> None:
    (draft,) = drafts_of("responses", {"input": [{"role": "user", "content": []}]})
    assert draft.messages == (Message("user", ""),)


# ── Messages: wishes, schemas, and a system message in the middle ────────────────────────────────────────────────


def _job(draft: Draft, *accepts: str) -> Job:
    gateway = Gateway(Settings(), MemoryTransport(), Metrics())
    worker = WorkerInfo(id="w", models={"m": Capabilities(accepts=accepts)}, num_slots=1, num_free=1)
    gateway.pool.look(Pool(depth=0, workers=(worker,)))
    return job_of(gateway, Caller("", ""), draft, "g.1")


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"output_config": {"effort": "high"}}, "high"),
        ({"output_config": {"effort": "max"}}, "max"),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 31_999}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, "high"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "disabled"}}, None),
    ],
)
def test_an_effort_counts_where_the_model_has_it(fields: dict[str, Any], effort: str | None) -> None:
    (draft,) = drafts_of("messages", _base("messages") | fields)
    assert _job(draft, "tools", "reasoning_effort").sampling.reasoning_effort == effort
    assert _job(draft, "tools").sampling.reasoning_effort is None


def test_a_schema_in_messages_is_that_of_chat_and_refused_where_a_model_has_none() -> None:
    config = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    (draft,) = drafts_of("messages", _base("messages") | {"output_config": config})
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    wanted = {"type": "json_schema", "json_schema": schema}
    assert _job(draft, "tools", "response_format").sampling.response_format == wanted
    with pytest.raises(InvalidRequest) as refused:
        _job(draft, "tools")
    assert refused.value.param == "output_config.format"


def test_a_system_message_may_be_in_the_middle_of_messages() -> None:
    turns = [
        {"role": "user", "content": "x"},
        {"role": "system", "content": [TEXT]},
        {"role": "system", "content": "y"},
    ]
    (draft,) = drafts_of("messages", {"max_tokens": 9, "messages": turns})
    assert draft.messages == (Message("user", "x"), Message("system", "x"), Message("system", "y"))


# ── the first requests of two agents, with every kind of field that they send ────────────────────────────────────


def test_the_first_request_of_codex_is_taken() -> None:
    function = {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}}
    namespace = {"type": "namespace", "name": "n", "tools": [function]}
    body = {
        "model": "m",
        "instructions": "be brief",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}],
        "tools": [function, namespace, {"type": "custom", "name": "apply_patch"}, {"type": "web_search"}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "text": {"verbosity": "low"},
        "client_metadata": {"installation": "i"},
    }
    (draft,) = drafts_of("responses", body)
    job = _job(draft, "tools")
    assert [tool["function"]["name"] for tool in job.sampling.tools] == ["shell"]
    assert job.sampling.named() == ["tools"]


def test_the_first_request_of_claude_code_is_taken() -> None:
    cached = TEXT | {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
    body = {
        "model": "m",
        "max_tokens": 32_000,
        "messages": [{"role": "user", "content": [cached]}, {"role": "system", "content": [cached]}],
        "system": [TEXT, cached],
        "tools": [{"name": "Bash", "input_schema": {"type": "object"}, "eager_input_streaming": True}],
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "metadata": {"user_id": "u"},
        "stream": True,
    }
    (draft,) = drafts_of("messages", body)
    assert _job(draft, "tools").sampling.named() == ["tools"]
