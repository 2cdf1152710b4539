"""lm-eval scores the model on a task whose data is written here: by its answers, and by the likelihood of answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.clients.program import Program, run

PROGRAM = Program("lm-eval", python=("lm-eval",))
GENERATION = """
task: words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
output_type: generate_until
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16}}
metric_list: [{{metric: exact_match}}]
"""
CHOICE = """
task: words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: ["yes", "no"]
output_type: multiple_choice
metric_list: [{{metric: acc}}]
"""


def _scores(folder: Path, task: str, model: str, url: str, *more: str) -> None:
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"Q{number}?", "answer": "yes"}) + "\n" for number in range(3)))
    (folder / "words.yaml").write_text(task.format(data=data))
    run(
        Path(sys.executable).with_name("lm_eval"), "run", "--model", model, "--tasks", "words", "--include_path",
        str(folder), "--model_args", f"model=mock,base_url={url},tokenizer_backend=None", "--output_path",
        str(folder / "out"), *more,
    )  # fmt: skip
    (made,) = folder.glob("out/**/results_*.json")
    assert json.loads(made.read_text())["n-samples"]["words"]["effective"] == 3


def test_answers_of_chat(url: str, tmp_path: Path) -> None:
    _scores(tmp_path, GENERATION, "local-chat-completions", f"{url}/v1/chat/completions", "--apply_chat_template")


def test_answers_of_completions(url: str, tmp_path: Path) -> None:
    _scores(tmp_path, GENERATION, "local-completions", f"{url}/v1/completions")


@pytest.mark.cannot("multiple choice without the package transformers, whose tokenizers it needs for it")
def test_likelihood(url: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Tokenizer is required"):
        _scores(tmp_path, CHOICE, "local-completions", f"{url}/v1/completions")
