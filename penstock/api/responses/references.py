"""`item_reference`: an item of an earlier response, named by its id, in place of the item itself.

An id names the request that has the item (`events.py` and `listing.py` make them), so any gateway finds it. Only items
of the caller's own stored responses are found, as long as these are kept.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from pydantic import TypeAdapter

from penstock.api.responses.body import PREFIX
from penstock.api.responses.chain import MAX_LINKS, asked
from penstock.api.responses.events import present
from penstock.api.responses.items import Item, ItemReference
from penstock.api.responses.listing import listed
from penstock.api.responses.stored import find_stored
from penstock.errors import InvalidRequest, RequestNotFound
from penstock.event import fold
from penstock.gateway.admission import Caller
from penstock.gateway.gateway import Gateway
from penstock.job import JOB_ID

_ID = re.compile(rf"[a-z]{{2,3}}_({JOB_ID.pattern})_(i?)\d{{1,9}}")
_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


async def resolved(gateway: Gateway, caller: Caller, input_: str | list[Item]) -> str | list[Item]:
    """The input with the items that are named in it. Raises `RequestNotFound` and `InvalidRequest`."""
    if isinstance(input_, str) or not any(isinstance(item, ItemReference) for item in input_):
        return input_
    known = _Known(gateway, caller)
    return [
        await known.item(f"input.{index}.id", item.id) if isinstance(item, ItemReference) else item
        for index, item in enumerate(input_)
    ]


class _Known:
    """The responses that one input refers to, each read once."""

    def __init__(self, gateway: Gateway, caller: Caller) -> None:
        self._gateway = gateway
        self._caller = caller
        self._items: dict[tuple[str, bool], dict[str, dict[str, Any]]] = {}
        self._num_bytes = 0

    async def item(self, name: str, item_id: str) -> Item:
        """The item of this id; `name`: of the field that has it."""
        match = _ID.fullmatch(item_id)
        found = None if match is None else (await self._items_of(match[1], bool(match[2]), name)).get(item_id)
        if found is None:
            raise _missing(name)
        limit = self._gateway.settings.max_body_bytes
        self._num_bytes += len(msgspec.json.encode(found))
        if self._num_bytes > limit:
            raise InvalidRequest(f"The items that 'input' refers to are larger than {limit} bytes.", param="input")
        return _ITEM.validate_python(found)

    async def _items_of(self, request_id: str, is_input: bool, name: str) -> dict[str, dict[str, Any]]:
        """The items of the response's input, or of its output, by id."""
        key = request_id, is_input
        if key not in self._items:
            if len(self._items) == MAX_LINKS:
                raise InvalidRequest(f"'input' refers to more than {MAX_LINKS} responses.", param="input")
            self._items[key] = {item["id"]: item for item in await self._read(request_id, is_input, name)}
        return self._items[key]

    async def _read(self, request_id: str, is_input: bool, name: str) -> list[dict[str, Any]]:
        try:
            record = await find_stored(self._gateway, self._caller, PREFIX + request_id, name)
            if record.job.caller != self._caller.id:  # an administrator may look at it, and not go on from it
                return []
            if is_input:
                return listed(request_id, await asked(self._gateway, self._caller, record))
        except RequestNotFound:
            raise _missing(name) from None
        folded = fold(record.events)
        shown = present(record.job, folded.tokens, folded.end, is_queued=False)
        output: list[dict[str, Any]] = shown["output"]
        return output


def _missing(name: str) -> RequestNotFound:
    return RequestNotFound(
        f"'{name}' is not the id of an item of a stored response of yours; it may have expired. Send the item itself "
        "(with 'store': false most clients do), or have responses kept for longer (PENSTOCK_RETENTION_S).",
        param=name,
    )
