"""A conversation in a row: its messages, the calls of tools in them, and the tools that the model may call."""

from __future__ import annotations

import json
from typing import Any

from launcher.input.codes import RowError, quote


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """The messages, each with its content as one text. Raises RowError."""
    if not isinstance(value, list) or not value:
        raise RowError("bad_messages", "messages must be a list with at least one message")
    return [_message(number, message) for number, message in enumerate(value)]


def parse_tools(tools: Any, messages: Any) -> list[dict[str, Any]] | None:
    """The tools, or None if there are none. Raises RowError."""
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        raise RowError("bad_tools", f"tools must be a list, not {quote(tools)}")
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            what = f'tools[{number}] must be {{"type": "function", "function": {{"name": ...}}}}'
            raise RowError("bad_tools", f"{what}, not {quote(tool)}")
    if messages is None:
        raise RowError("bad_tools", "tools need messages: a chat template shows them to the model")
    return tools


def _message(number: int, message: Any) -> dict[str, Any]:
    """Other keys than role and content are the chat template's."""
    if not isinstance(message, dict):
        raise RowError(
            "bad_messages", f"messages[{number}] must be an object, not {quote(message)}"
        )
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise RowError("bad_messages", f"messages[{number}].role must be text, not {quote(role)}")
    if isinstance(content, list):
        content = "\n".join(_part(number, part) for part in content)
    if message.get("tool_calls") is not None:
        message = {**message, "tool_calls": _calls(number, message["tool_calls"])}
        content = content or ""  # a call needs no words
    if not isinstance(content, str):
        raise RowError(
            "bad_messages", f"messages[{number}].content must be text, not {quote(content)}"
        )
    return {**message, "content": content}


def _part(number: int, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RowError(
        "bad_messages", f"messages[{number}].content has a part that is not text: {quote(part)}"
    )


def _calls(number: int, calls: Any) -> list[dict[str, Any]]:
    """OpenAI writes a call's arguments as JSON in a text, chat templates take the object."""
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    ):
        raise RowError(
            "bad_messages", f"messages[{number}].tool_calls must be a list of function calls"
        )
    return [{**call, "function": _arguments(call["function"])} for call in calls]


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    given = function.get("arguments")
    try:
        found = json.loads(given) if isinstance(given, str) else None
    except ValueError:  # the model that wrote it was cut short: shown as it is
        found = None
    return {**function, "arguments": found} if isinstance(found, dict) else function
