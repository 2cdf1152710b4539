"""The tokenizers of engines: the requests that each gets, and what is made of their recorded answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.openai.engines import ENGINES, EngineName
from penstock.backends.openai.failures import UpstreamError
from penstock.backends.openai.steps import Ask, Steps
from penstock.backends.openai.tokenizer import FORMS, Prompt
from penstock.errors import UnsupportedTask
from penstock.job import Job, Message, Sampling
from penstock.tasks import TASKS, Tokenized
from tests.support.asking import TALK, Watch, ask, claim, done_of, failed_of, running
from tests.support.upstream import Upstream

TURNS = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def _prompt(**fields: Any) -> Prompt:
    given = {"text": "Hi there", "conversation": {}, "add_special": None, "with_strs": False} | fields
    return Prompt("up", **given)


def _talk(**fields: Any) -> Prompt:
    return _prompt(text=None, conversation={"messages": TURNS} | fields)


def drive(steps: Steps[Any], *answers: Any) -> tuple[list[Ask], Any]:
    """The requests, and the result of answering them so; a text is a body as it came."""
    asked = []
    try:
        asked.append(next(steps))
        for answer in answers:
            asked.append(steps.send(answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()))
    except StopIteration as end:
        return asked, end.value
    raise AssertionError(f"it asks for more: {asked[-1]}")


VLLM = '{"count":2,"max_model_len":32768,"tokens":[13048,1052],"token_strs":null}'
VLLM_STRS = '{"count":2,"max_model_len":32768,"tokens":[13048,1052],"token_strs":["Hi","\\u0120there"]}'
SGLANG = '{"tokens":[13048,1052],"count":2,"max_model_len":131072}'
LLAMA = '{"tokens":[13048,1052]}'
LLAMA_PIECES = '{"tokens":[{"id":198,"piece":[195]},{"id":164,"piece":" there"}]}'
TGI = '[{"id":13048,"text":"Hi","start":0,"stop":2},{"id":1052,"text":" there","start":2,"stop":8}]'
TGI_CHAT = '{"tokenize_response":' + TGI + ',"templated_text":"<|user|>Hi"}'
BOTH = Tokenized((13048, 1052))


@pytest.mark.parametrize(
    ("engine", "prompt", "answers", "asked", "result"),
    [
        ("vllm", _prompt(), [VLLM], [("/tokenize", {"model": "up", "prompt": "Hi there"})],
         Tokenized((13048, 1052), None, 32768)),
        ("vllm", _prompt(add_special=False, with_strs=True), [VLLM_STRS],
         [("/tokenize", {"model": "up", "prompt": "Hi there", "add_special_tokens": False, "return_token_strs": True})],
         Tokenized((13048, 1052), ("Hi", "Ġthere"), 32768)),
        ("vllm", _talk(tools=[TOOL]), [VLLM], [("/tokenize", {"model": "up", "messages": TURNS, "tools": [TOOL]})],
         Tokenized((13048, 1052), None, 32768)),
        ("sglang", _prompt(add_special=False), [SGLANG],
         [("/tokenize", {"model": "up", "prompt": "Hi there", "add_special_tokens": False})],
         Tokenized((13048, 1052), None, 131072)),
        ("llamacpp", _prompt(), [LLAMA],
         [("/tokenize", {"content": "Hi there", "add_special": True, "with_pieces": False})], BOTH),
        ("llamacpp", _prompt(add_special=False, with_strs=True), [LLAMA_PIECES],
         [("/tokenize", {"content": "Hi there", "add_special": False, "with_pieces": True})],
         Tokenized((198, 164), ("\N{REPLACEMENT CHARACTER}", " there"))),
        ("llamacpp", _talk(tools=[TOOL]), [{"prompt": "<|user|>Hi"}, LLAMA],
         [("/apply-template", {"messages": TURNS, "tools": [TOOL]}),
          ("/tokenize", {"content": "<|user|>Hi", "add_special": True, "with_pieces": False})], BOTH),
        ("tgi", _prompt(with_strs=True), [TGI], [("/tokenize", {"inputs": "Hi there"})],
         Tokenized((13048, 1052), ("Hi", " there"))),
        ("tgi", _talk(), [TGI_CHAT], [("/chat_tokenize", {"model": "up", "messages": TURNS})], BOTH),
    ],
)  # fmt: skip
def test_each_engine_is_asked_in_its_own_form(
    engine: EngineName, prompt: Prompt, answers: list[Any], asked: list[tuple[str, Any]], result: Tokenized
) -> None:
    requests, found = drive(FORMS[ENGINES[engine].tokenizer].tokenize(prompt), *answers)
    assert [(one.path, one.body) for one in requests] == asked
    assert all(one.at_root and one.method == "POST" for one in requests)
    assert found == result


@pytest.mark.parametrize(
    ("engine", "answer", "body"),
    [
        ("vllm", {"prompt": "Hi there"}, {"model": "up", "tokens": [1, 2]}),
        ("sglang", {"text": "Hi there"}, {"model": "up", "tokens": [1, 2], "skip_special_tokens": False}),
        ("llamacpp", {"content": "Hi there"}, {"tokens": [1, 2]}),
    ],
)
def test_token_ids_become_text_again(engine: EngineName, answer: Any, body: Any) -> None:
    requests, text = drive(FORMS[ENGINES[engine].tokenizer].detokenize("up", (1, 2)), answer)
    assert (requests[0].path, requests[0].body, text) == ("/detokenize", body, "Hi there")


def test_the_tokenizer_itself() -> None:
    requests, found = drive(FORMS["vllm"].info(), {"tokenizer_class": "T"})
    assert (requests[0].path, requests[0].method, found) == ("/tokenizer_info", "GET", {"tokenizer_class": "T"})


def test_a_form_raises_for_every_task_that_it_does_not_have() -> None:
    for form in FORMS.values():
        calls = {
            "count": lambda form=form: form.tokenize(_talk()),
            "tokenize": lambda form=form: form.tokenize(_prompt()),
            "detokenize": lambda form=form: form.detokenize("up", (1,)),
            "tokenizer_info": lambda form=form: form.info(),
        }
        assert set(form.tasks) <= set(TASKS)
        for task in set(calls) - set(form.tasks):
            with pytest.raises(UnsupportedTask):
                drive(calls[task]())
        for task in set(calls) & set(form.tasks):
            assert isinstance(next(calls[task]()), Ask)


@pytest.mark.parametrize("engine", ["llamacpp", "tgi"])
def test_an_engine_that_leaves_out_images_does_not_count_them(engine: EngineName) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    with pytest.raises(UnsupportedTask, match="images"):
        drive(FORMS[ENGINES[engine].tokenizer].tokenize(_talk(messages=[image])))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["tokens", "token_strs", "id", "piece", "text", "prompt"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(["vllm", "sglang", "llamacpp", "tgi"]), st.booleans(), json_values | st.just("{"))
def test_any_answer_is_tokens_or_malformed(name: Any, with_strs: bool, answer: Any) -> None:
    try:
        _, found = drive(FORMS[name].tokenize(_prompt(with_strs=with_strs)), answer)
    except UpstreamError as failure:
        reason = failure.reason
    else:
        reason = "malformed"
        assert all(type(one) is int and one >= 0 for one in found.ids)
        assert found.strs is None or len(found.strs) == len(found.ids)
    assert reason == "malformed"


# ── through the backend ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_task_is_asked_next_to_the_api_and_tried_elsewhere() -> None:
    watch = Watch()
    async with (
        Upstream("status=503") as bad,
        Upstream(key="k") as good,
        running(f"{bad.url}+{good.url}", watch, engine="vllm") as backend,
    ):
        bad.key = good.key = ""
        said = await ask(backend, claim(task="count"))
        assert said.tokens == ("3",)
        assert done_of(said).usage.total_tokens == 0
        assert good.seen[0].path == "/tokenize"
        assert good.seen[0].body == {"model": "m", "prompt": "one two three"}
        talked = await ask(backend, claim(task="count", messages=TALK))
        assert talked.tokens == ("2",)
    assert watch.outcomes()[:2] == ["server_error", "ok"]


async def test_what_changes_the_template_is_counted_too() -> None:
    """As in a chat: tools, and the extras that the template reads."""
    extras = {"enable_thinking": False, "ignore_eos": True}
    async with Upstream() as up, running(up.url, engine="vllm") as backend:
        await ask(backend, claim(task="count", messages=TALK, tools=(TOOL,), extras=extras))
        assert up.seen[0].body == {
            "model": "m",
            "messages": TURNS,
            "tools": [TOOL],
            "chat_template_kwargs": {"enable_thinking": False},
        }
        failed = failed_of(await ask(backend, claim(task="count", messages=TALK, extras={"documents": []})))
        assert failed.code == "unsupported_parameter"


async def test_the_path_of_a_proxy_stays_in_front_of_a_task() -> None:
    async with Upstream("status=404") as up, running(f"{up.url[:-3]}/proxy/v1", engine="vllm") as backend:
        failed = failed_of(await ask(backend, claim(task="count")))
        assert up.seen[0].path == "/proxy/tokenize"
    assert failed.code == "unsupported_task"
    assert "/tokenize" in failed.message


async def test_what_only_one_engine_of_a_model_has_is_not_a_task_of_the_model() -> None:
    two = {"upstreams.2.url": "http://127.0.0.1:1", "upstreams.2.engine": "sglang"}
    async with running("http://127.0.0.1:1", engine="vllm", **two) as backend:
        assert backend.capabilities.tasks == ("tokenize", "detokenize")
    async with running("http://127.0.0.1:1", engine="vllm", tokenizer="none") as backend:
        assert backend.capabilities.tasks == ()
    async with running("http://127.0.0.1:1", engine="llamacpp", task="score") as backend:
        assert backend.capabilities.tasks == ("count", "tokenize", "detokenize", "score")
        assert not backend.capabilities.generates


async def test_a_conversation_at_an_engine_for_prompts_is_not_a_failure_of_the_engine() -> None:
    watch = Watch()
    async with Upstream() as up, running(up.url, watch, engine="sglang") as backend:
        failed = failed_of(await ask(backend, claim(task="tokenize", messages=TALK)))
        assert failed.code == "unsupported_task"
        assert up.seen == []
    assert watch.outcomes() == ["invalid"]


def test_a_prompt_has_what_the_job_asks_for() -> None:
    job = Job(
        id="g.1",
        model="m",
        messages=(Message("user", "Hi"),),
        sampling=Sampling(add_special_tokens=True, return_token_strs=True),
        task="tokenize",
    )
    assert Prompt.of(job, "up", {"messages": TURNS}) == Prompt("up", None, {"messages": TURNS}, True, True)
