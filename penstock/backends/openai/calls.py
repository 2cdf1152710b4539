"""From an engine's parts of tool calls to ours: which part belongs to which call, its id, its arguments. Pure.

Engines number calls from 0, from 1, all with 0, or not at all; repeat id and name in every part, or send no id; send
arguments as text, as an object, as null. Here calls are numbered from 0 without a gap. The first part of a call has its
id and name, and each further part only more arguments, so that a client that joins what it gets is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.backends.openai.failures import malformed
from penstock.rich_token import ToolCall, call_id_of

MAX_CALLS = 1024
MAX_INDEX = 1023


class _Call:
    """`engine_id`: as the engine wrote it, "" if it did not. `is_out`: its first part has been returned."""

    __slots__ = ("engine_id", "index", "is_out", "name", "texts")

    def __init__(self, index: int) -> None:
        self.index = index
        self.engine_id = self.name = ""
        self.texts: list[str] = []
        self.is_out = False

    @property
    def arguments(self) -> str:
        return "".join(self.texts)

    @property
    def is_whole(self) -> bool:
        return is_object(self.arguments)

    @property
    def is_blank(self) -> bool:
        return self.arguments.strip() in ("", "null")


class CallReader:
    """The calls of one answer. `request_id`: from which ids are made where the engine gives none, so that another
    attempt makes the same ones.
    """

    __slots__ = ("_by_index", "_calls", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    @property
    def has_whole(self) -> bool:
        """Whether the model has called a tool: its name is known, and its arguments are an object, or none at all."""
        return any(call.is_out and (call.is_blank or call.is_whole) for call in self._calls)

    def feed(self, parts: Any) -> Iterator[ToolCall]:
        """`tool_calls` of one delta. Raises `UpstreamError`."""
        if not isinstance(parts, list):
            parts = [parts]
        for part in parts:
            if not isinstance(part, dict):
                raise malformed("a tool call is not an object")
            function = part.get("function")
            if function is None and ("function" in part or part.get("id")):  # some engines send the id ahead
                function = {}
            if not isinstance(function, dict):
                raise malformed("a tool call without a function")
            call_id, name = _text(part, "id"), _text(function, "name")
            arguments = _arguments(function.get("arguments"))
            index = part.get("index")
            if type(index) is not int:
                index = None
            elif not 0 <= index <= MAX_INDEX:
                raise malformed("a tool call's index is out of range")
            yield from self._add(index, call_id, name, arguments)

    def finish(self, *, is_complete: bool) -> Iterator[ToolCall]:
        """The last parts. A call without arguments gets `{}` if the model ended its answer by itself: every client
        reads arguments as JSON.
        """
        for call in self._calls:
            if not call.is_out and not call.is_blank:
                raise malformed("a tool call without a name")
            if call.is_out and is_complete and not call.arguments.strip():
                call.texts.append("{}")
                yield ToolCall(call.index, arguments="{}")

    def _add(self, index: int | None, call_id: str, name: str, arguments: str) -> Iterator[ToolCall]:
        call = self._call(index, call_id, name, arguments)
        if call is None:
            return
        if call.is_out and name and call_id == call.engine_id and call.arguments == arguments and call.is_whole:
            return  # some engines send a whole call once more at its end
        call.engine_id = call.engine_id or call_id
        piece = "" if name and name == call.name else name
        if call.is_out and piece and not call.texts:
            call.name += piece  # a name in several parts
        elif not call.is_out:
            call.name += piece
            piece = call.name
        else:
            piece = ""
        if arguments == "null" and not call.texts:
            arguments = ""
        if arguments:
            call.texts.append(arguments)
        if not call.name:
            return  # the name is in a later part
        if call.is_out:
            if piece or arguments:
                yield ToolCall(call.index, name=piece, arguments=arguments)
            return
        call.is_out = True
        yield ToolCall(call.index, self._id(call), piece, call.arguments)

    def _call(self, index: int | None, call_id: str, name: str, arguments: str) -> _Call | None:
        """The call that a part belongs to; None for a part of nothing."""
        known = next((call for call in self._calls if call_id and call.engine_id == call_id), None)
        if index is not None:
            call = self._by_index.get(index)
            if call is None:
                if known is not None and not name:
                    return known
                if not (call_id or name or arguments):
                    return None
                return self._new(index)
            if call_id and call_id != call.engine_id and call.engine_id and known is not None:
                call = known
        else:
            call = known or (self._calls[-1] if self._calls else None)
            if call is None:
                return self._new(None) if call_id or name or arguments else None
        return self._new(index) if _begins(call, index, call_id, name, arguments) else call

    def _new(self, index: int | None) -> _Call:
        if len(self._calls) >= MAX_CALLS:
            raise malformed("too many tool calls")
        call = _Call(len(self._calls))
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call

    def _id(self, call: _Call) -> str:
        """The engine's own id, unless it has none or gave it to an earlier call too."""
        if call.engine_id and all(one.engine_id != call.engine_id for one in self._calls[: call.index]):
            return call.engine_id
        return call_id_of(self._request_id, call.index)


def _begins(call: _Call, index: int | None, call_id: str, name: str, arguments: str) -> bool:
    """Whether a part begins a call, though there is a `call` at its place."""
    is_other = bool(call_id and call.engine_id and call_id != call.engine_id)
    if name and not call.name:
        return is_other and index is None
    if is_other:
        # Old versions of vLLM send a new id with each part of the arguments, but a name with the first part only.
        return bool(name) or index is None or (call.is_whole and arguments.lstrip()[:1] == "{")
    if not name:
        return False
    if call_id:  # the same id: the engine repeats both, until another whole object comes
        return call.is_whole and is_object(arguments) and arguments != call.arguments
    if not call.texts:  # with an index, the name repeated or in parts; an engine without one sends whole names
        return index is None and not (name == call.name and arguments)
    return name != call.name or (call.is_whole and bool(arguments.strip()))


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _arguments(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise malformed("a tool call's arguments are not JSON") from None


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if name == "id" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise malformed(f"{name} is not text")
    return value
