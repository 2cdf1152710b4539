"""A body of each API to the drafts that it makes, as its route does it."""

from __future__ import annotations

from typing import Any

from penstock.api.anthropic import body as messages
from penstock.api.hints import Api, taken
from penstock.api.intake import Draft
from penstock.api.native import GenerateBody, without_several
from penstock.api.native import draft_of as native_draft_of
from penstock.api.ollama import body as ollama
from penstock.api.openai import chat, completions
from penstock.api.responses import body as responses
from penstock.http.body_json import validate


def drafts_of(api: Api, data: dict[str, Any]) -> list[Draft]:
    """Raises `InvalidRequest`. `data` is changed, as `taken` does."""
    match api:
        case "native":
            return [native_draft_of(validate(GenerateBody, without_several(data)))]
        case "chat":
            return chat.drafts_of(validate(chat.ChatBody, taken(data, api, chat.REFUSED)))
        case "completions":
            kind = completions.CompletionBody
            return completions.drafts_of(validate(kind, taken(data, api, completions.REFUSED)))
        case "responses":
            return [responses.draft_of(validate(responses.ResponseBody, taken(data, api, responses.REFUSED)))]
        case "ollama":
            if "messages" in data:
                talk = validate(ollama.OllamaChatBody, taken(data, api, ollama.REFUSED))
                return [ollama.chat_draft_of(talk)]
            text = validate(ollama.OllamaGenerateBody, taken(data, api, ollama.REFUSED))
            return [ollama.generate_draft_of(text)]
        case "ollama-embed":
            return [validate(ollama.OllamaEmbedBody, taken(data, api)).draft()]
        case "messages":
            return [messages.draft_of(validate(messages.MessagesBody, taken(data, api, messages.REFUSED)))]
