"""What an upstream of the tests answers on the routes of its tokenizer and its scores, in the forms of the engines.

A body's own fields show which engine is meant. A token is a word; a score is the place among the inputs.
"""

from __future__ import annotations

import json
from typing import Any

from penstock.backends.mock.tasks import id_of, word_of

INFO = {"tokenizer_class": "Words", "chat_template": "{{ messages }}"}
CONTEXT = 4096


def result_of(path: str, body: dict[str, Any]) -> Any:
    """The JSON of an answer; None for a path that is not one of these routes."""
    if path == "/tokenize":
        return _tokenized(body)
    if path == "/apply-template":  # llama.cpp's
        return {"prompt": _rendered(body)}
    if path == "/chat_tokenize":  # TGI's
        return {"tokenize_response": _rows(_rendered(body)), "templated_text": _rendered(body)}
    if path == "/detokenize":
        text = " ".join(map(word_of, body["tokens"]))
        return {"text": text} if "skip_special_tokens" in body else {"prompt": text, "content": text}
    if path == "/tokenizer_info":
        return INFO
    if path == "/v1/score":
        return {"data": [{"index": place, "score": place / 8} for place in reversed(range(len(body["text_2"])))]}
    if path == "/v1/rerank":
        rows = [{"index": place, "relevance_score": place / 8} for place in reversed(range(len(body["documents"])))]
        return {"results": rows, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    return None


def _tokenized(body: dict[str, Any]) -> Any:
    if "inputs" in body:  # TGI's
        return _rows(body["inputs"])
    if "content" in body:  # llama.cpp's
        rows = _rows(body["content"])
        if not body["with_pieces"]:
            return {"tokens": [row["id"] for row in rows]}
        return {"tokens": [{"id": row["id"], "piece": list(row["text"].encode())} for row in rows]}
    words = (body["prompt"] if "prompt" in body else _rendered(body)).split()
    strs = words if body.get("return_token_strs") else None
    return {"count": len(words), "max_model_len": CONTEXT, "tokens": list(map(id_of, words)), "token_strs": strs}


def _rendered(body: dict[str, Any]) -> str:
    tools = f" {json.dumps(body['tools'])}" if "tools" in body else ""
    return " ".join(f"{turn['role']}: {turn['content']}" for turn in body["messages"]) + tools


def _rows(text: str) -> list[dict[str, Any]]:
    return [{"id": id_of(word), "text": word, "start": 0, "stop": 1} for word in text.split()]
