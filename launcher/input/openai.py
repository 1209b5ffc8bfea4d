"""OpenAI batch files: a row of the request file in, a row of the result file out."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from launcher.input.codes import RowError, quote
from launcher.records import Failure, Generation

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PENALTIES = ("presence_penalty", "frequency_penalty")
SAMPLING = ("temperature", "top_p", "top_k", "seed", "stop", "n", *PENALTIES, "logit_bias")
MOST_TOPS = 20  # likeliest tokens that are told beside each
MAX_NEW_TOKENS = 1 << 20  # one row must not ask for a plan that nothing fits
# The spec's model answers whatever model is named; the others say nothing about the text.
IGNORED = {
    "model",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}
# Options with the one value that asks for nothing beyond what is done anyway.
NEUTRAL: dict[str, Any] = {
    "stream": False,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "functions": [],
    "suffix": "",
    "modalities": ["text"],
    "response_format": {"type": "text"},
}


def request_of(row: dict[str, Any]) -> dict[str, Any]:
    """A batch row as a row of format jsonl. Raises RowError."""
    if row.get("custom_id") is None:
        raise RowError("bad_batch_row", "no custom_id")
    if row.get("method") != "POST":
        raise RowError("bad_batch_row", f"method must be POST, not {quote(row.get('method'))}")
    url, body = row.get("url"), row.get("body")
    if url not in (CHAT, COMPLETIONS):
        raise RowError("unsupported_url", f"url must be {CHAT} or {COMPLETIONS}, not {quote(url)}")
    if not isinstance(body, dict):
        raise RowError("bad_batch_row", f"body must be an object, not {quote(body)}")
    fields = {key: body.get(key) for key in SAMPLING}
    fields["max_new_tokens"] = _max_tokens(body)
    asked = "messages" if url == CHAT else "prompt"
    fields[asked] = _only(body.get(asked)) if asked == "prompt" else body.get(asked)
    own = ("tools", "tool_choice") if url == CHAT else ("echo",)
    fields |= {key: body.get(key) for key in own}
    fields["logprobs"] = _tops(body, chat=url == CHAT)
    if _choice_of_tools(fields.pop("tool_choice", None)) == "none":
        fields["tools"] = None
    known = {*SAMPLING, *IGNORED, *own, asked, "max_tokens", "max_completion_tokens"}
    known |= {"logprobs", "best_of"}
    if url == CHAT:
        known.add("top_logprobs")
    for key in body.keys() - known:
        _check_neutral(key, body[key])
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise RowError("unsupported_option", "best_of is not supported: n gives all answers")
    return fields


def _only(prompt: Any) -> Any:
    """The text of a list of one text; several prompts or token ids are refused further on."""
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


def _choice_of_tools(choice: Any) -> str:
    """``auto`` or ``none``: nothing here can force the model to call a tool."""
    if choice not in (None, "auto", "none"):
        raise RowError("unsupported_option", f"tool_choice = {quote(choice)} is not supported")
    return choice or "auto"


def _max_tokens(body: dict[str, Any]) -> Any:
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise RowError(
            "bad_sampling", f"max_tokens is {quote(old)} and max_completion_tokens {quote(new)}"
        )
    key, asked = ("max_tokens", old) if new is None else ("max_completion_tokens", new)
    known = isinstance(asked, int) and not isinstance(asked, bool)
    if asked is not None and not (known and 1 <= asked <= MAX_NEW_TOKENS):
        raise RowError("bad_sampling", f"{key} must be 1 to {MAX_NEW_TOKENS}, not {quote(asked)}")
    return asked


def _tops(body: dict[str, Any], *, chat: bool) -> int | None:
    """How many of the likeliest tokens are told beside each; None where no log-probabilities are asked for."""
    asked, tops = body.get("logprobs"), body.get("top_logprobs")
    if asked is None or asked is False:
        if chat and tops:
            raise RowError("bad_sampling", "top_logprobs needs logprobs: true")
        return None
    key = "top_logprobs" if chat else "logprobs"
    if chat and asked is not True:
        raise RowError("bad_sampling", f"logprobs must be true or false, not {quote(asked)}")
    found = (tops or 0) if chat else asked
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MOST_TOPS:
        raise RowError("bad_sampling", f"{key} must be 0 to {MOST_TOPS}, not {quote(found)}")
    if body.get("echo"):
        raise RowError(
            "unsupported_option",
            "logprobs with echo are not supported: task score tells those of a text",
        )
    return found


def _check_neutral(key: str, value: Any) -> None:
    neutral = NEUTRAL.get(key)
    same = value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
    if value is not None and not (key in NEUTRAL and same):
        raise RowError("unsupported_option", f"{key} = {quote(value)} is not supported")


def result_of(
    record: Generation | Failure, *, chat: bool, model: str, created: int
) -> dict[str, Any]:
    """The row of the result file; its ``id`` ends with the row's index. ``created``: seconds since the epoch."""
    result: dict[str, Any] = {"id": f"batch_req_{record.index}", "custom_id": record.id}
    if isinstance(record, Failure):
        return {**result, **_refused(record)}
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{record.index}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [
            {"index": number, **_choice(choice, chat)}
            for number, choice in enumerate(record.choices or [vars(record)])
        ],
        "usage": {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "total_tokens": record.prompt_tokens + record.completion_tokens,
        },
    }
    response = {"status_code": 200, "request_id": f"req_{record.index}", "body": body}
    return {**result, "response": response, "error": None}


def _refused(failure: Failure) -> dict[str, Any]:
    """As the API's error files have it: the status and, in the body, the error. ``error``, which the API fills in
    where no request was made, says the same, for programs that look only there."""
    ours = failure.code == "not_a_number"
    error = {"code": failure.code, "message": failure.message}
    kind = "server_error" if ours else "invalid_request_error"
    body = {"error": {**error, "type": kind, "param": None}}
    response = {"status_code": 500 if ours else 400, "request_id": f"req_{failure.index}"}
    return {"response": {**response, "body": body}, "error": error}


def _choice(choice: dict[str, Any], chat: bool) -> dict[str, Any]:
    text = choice["text"]
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text, "refusal": None}}
        if chat
        else {"text": text}
    )
    told = _told(choice.get("logprobs"), chat)
    return {**said, "logprobs": told, "finish_reason": choice["finish_reason"]}


def _by_text(likeliest: list[dict[str, Any]]) -> dict[str, float]:
    """Of several tokens with one text, such as parts of a character, the likeliest, which comes first."""
    found: dict[str, float] = {}
    for each in likeliest:
        found.setdefault(each["token"], each["logprob"])
    return found


def _told(entries: list[dict[str, Any]] | None, chat: bool) -> dict[str, Any] | None:
    if entries is None:
        return None
    if chat:
        return {"content": entries, "refusal": None}
    tokens = [entry["token"] for entry in entries]
    offsets = [0, *accumulate(map(len, tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [_by_text(entry["top_logprobs"]) for entry in entries],
        "text_offset": offsets[: len(tokens)],
    }
