"""Tools that only the provider of an API can run: they are left out of a body, as an answer without them is one.

Pure. The table is in docs/api.md, among the hints.
"""

from __future__ import annotations

from typing import Any

from penstock.errors import UnsupportedParameter
from penstock.http.sifted import sifted

# Beginnings of the types of tools that only the provider of an API can run, or that no engine knows. Not `mcp` and
# `file_search`: they name the caller's own servers and files, without which the answer would be another one.
PROVIDER_TOOLS = (
    "web_search",
    "web_fetch",
    "code_interpreter",
    "code_execution",
    "image_generation",
    "local_shell",
    "namespace",
    "tool_search",
)


def leave_out_tools(data: dict[str, Any], *, is_function: bool) -> None:
    """Takes them out of `tools`, in place. `is_function`: in this API a tool of type `custom` is a function.

    Raises `UnsupportedParameter` where `tool_choice` demands one of those that are left out."""
    tools = data.get("tools")
    if not isinstance(tools, list):
        return
    left_out = [tool for tool in tools if _is_provider_tool(tool, is_function=is_function)]
    if not left_out:
        return
    data["tools"] = sifted(tools, lambda tool: not _is_provider_tool(tool, is_function=is_function))
    choice = data.get("tool_choice")
    names = [tool.get("name", tool["type"]) for tool in left_out]
    is_demanded = isinstance(choice, dict) and choice.get("type") != "auto" and choice.get("name") in names
    if is_demanded or (not data["tools"] and choice in ("required", {"type": "any"})):
        raise UnsupportedParameter("'tool_choice' demands a tool that Penstock does not run.", param="tool_choice")


def _is_provider_tool(tool: Any, *, is_function: bool) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        return False
    return kind.startswith(PROVIDER_TOOLS) or (kind == "custom" and not is_function)
