"""Why a row can't be answered: every code that errors.jsonl may hold, each with what it means.

The codes are stable: users' programs branch on them. A test holds that no other code is used.
"""

from __future__ import annotations

import json
from typing import Any

CODES = {
    "bad_utf8": "the line is not UTF-8",
    "nul": "the row holds a NUL character",
    "line_too_long": "the line is longer than 16 MiB",
    "not_json": "the line is not JSON, or is nested too deeply, or repeats a key",
    "not_an_object": "the line is JSON, but not an object",
    "no_prompt": "the row has neither a prompt nor messages, or an empty one",
    "two_prompts": "the row has both a prompt and messages",
    "bad_prompt": "the prompt is not text",
    "no_continuations": "a row to score has no continuations, or an empty list of them",
    "bad_continuations": "the continuations are not a list of texts, or one is empty or makes no token of its own",
    "bad_messages": "the messages are not a list of {role, content} with text in them",
    "bad_tools": "the tools are not a list of functions, or the row has no messages to offer them in",
    "bad_echo": "echo is not true or false, or the row has messages, of which no text is the prompt",
    "bad_sampling": "a generation setting has a value that it can't have",
    "bad_id": "the id is neither text nor a whole number, or is longer than 1024 characters",
    "bad_unicode": "the row holds half of a surrogate pair, which is no character",
    "duplicate_id": "an earlier row has the same id",
    "bad_batch_row": "not a row of an OpenAI batch file: custom_id, method, url, body",
    "unsupported_url": "the row asks for an endpoint other than chat completions and completions",
    "unsupported_option": "the body sets an option that has no counterpart here",
    "too_long": "prompt and new tokens are more than the model's context or a slot can hold",
    "unknown_token": "the tokenizer has tokens that the model has no embedding of, and the prompt uses one",
    "bad_template": "the chat template refuses the messages",
    "not_a_number": "the model's logits are NaN: it overflowed, or its weights are broken",
}


class RowError(Exception):
    """Why a row can't be answered; ``code`` is one of CODES."""

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, code
        super().__init__(message)
        self.code = code


def quote(value: Any) -> str:
    """A piece of a user's row for a message: short, and free of control characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
