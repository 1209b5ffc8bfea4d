"""One input row: from the bytes of a line to a Request, or to the Failure that says what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from launcher.input import openai, questions
from launcher.input.codes import RowError, quote
from launcher.input.messages import parse_messages, parse_tools
from launcher.job.spec import GenerationSpec
from launcher.records import Failure, Request, Sampling

KEYS = GenerationSpec.model_fields.keys()
# By task: what a row has one of, and all of its keys that mean something. A table's other columns are not even read.
PROMPT_KEYS = {"generate": ("prompt", "messages"), "score": questions.GIVEN}
ROW_KEYS = {
    "generate": ("id", *PROMPT_KEYS["generate"], "tools", "echo", *KEYS),
    "score": ("id", *PROMPT_KEYS["score"], "tools", *questions.ASKED),
}
MAX_ID = 1024


def parse_row(
    data: bytes, form: str, index: int, defaults: GenerationSpec, task: str = "generate"
) -> Request | Failure:
    """The request in a line of a file of format ``form`` (jsonl, openai, text) for ``task``; never raises."""
    row_id = str(index)
    try:
        text = _decode(data)
        row: dict[str, Any] = {"prompt": text} if form == "text" else _load(text)
        given = _row_id(row, "custom_id" if form == "openai" else "id", row_id)
        escapes = "\\u" in text  # they can spell what UTF-8 can't hold
        if escapes:
            _check_characters(given)
        row_id = given
        if form == "openai":
            row = openai.request_of(row)
        request = (_question if task == "score" else _request)(row, index, row_id, defaults)
        if form == "openai" and row["logprobs"] is not None:
            told = replace(request.sampling, logprobs=row["logprobs"])
            request = replace(request, sampling=told)
        if escapes:
            own = [request.prompt, request.messages, request.tools]
            _check_characters([own, request.sampling.stop, request.continuations])
        return request
    except RowError as error:
        return Failure(index, row_id, error.code, str(error))
    except RecursionError:
        return Failure(index, row_id, "not_json", "nested too deeply")


def _request(row: dict[str, Any], index: int, row_id: str, defaults: GenerationSpec) -> Request:
    prompt, messages = _prompt(row)
    sampling = _sampling(row, defaults, index)
    tools, echo = parse_tools(row.get("tools"), messages), _echo(row, prompt)
    return Request(index, row_id, sampling, prompt, messages, tools, echo)


def _question(row: dict[str, Any], index: int, row_id: str, _: GenerationSpec) -> Request:
    prompt, given = questions.parse_given(row)
    messages = None if given is None else parse_messages(given)
    tools = parse_tools(row.get("tools"), messages)
    asked = questions.parse_continuations(row)
    return Request(index, row_id, Sampling(), prompt, messages, tools, continuations=asked)


def _decode(data: bytes) -> str:
    if b"\0" in data:
        raise RowError("nul", f"a NUL byte at byte {data.index(0)} of the line")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RowError("bad_utf8", f"byte {error.start} of the line is not UTF-8") from None


def _load(text: str) -> dict[str, Any]:
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError("not_json", f"{error.msg} at character {error.pos}") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise RowError("not_json", str(error).split(":", maxsplit=1)[0]) from None
    if not isinstance(row, dict):
        raise RowError("not_an_object", f"a row is an object, this is {quote(row)}")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        for key, _ in pairs:
            if key not in value:
                raise RowError("not_json", f"the key {quote(key)} is there twice")
            del value[key]
    return value


def _constant(name: str) -> None:
    raise RowError("not_json", f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _row_id(row: dict[str, Any], key: str, default: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise RowError("bad_id", f"{key} must be text or a whole number, not {quote(value)}")
    text = str(value)
    if len(text) > MAX_ID:
        raise RowError("bad_id", f"{key} has {len(text)} characters, the most are {MAX_ID}")
    return text


def _prompt(row: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]] | None]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is not None and messages is not None:
        raise RowError("two_prompts", "a row has a prompt or messages, not both")
    if messages is not None:
        return None, parse_messages(messages)
    if prompt is None or prompt == "":
        raise RowError(
            "no_prompt", "the prompt is empty" if prompt == "" else "no prompt and no messages"
        )
    if not isinstance(prompt, str):
        raise RowError("bad_prompt", f"prompt must be text, not {quote(prompt)}")
    return prompt, None


def _echo(row: dict[str, Any], prompt: str | None) -> bool:
    echo = row.get("echo") or False
    if not isinstance(echo, bool):
        raise RowError("bad_echo", f"echo must be true or false, not {quote(echo)}")
    if echo and prompt is None:
        raise RowError("bad_echo", "echo needs a prompt: messages are not the beginning of a text")
    return echo


def _sampling(row: dict[str, Any], defaults: GenerationSpec, index: int) -> Sampling:
    own = {key: row[key] for key in KEYS & row.keys() if row[key] is not None}
    spec = _validated(own, defaults) if own else defaults
    # Rows without a seed of their own draw differently from each other, each the same in every run.
    seed = spec.seed if "seed" in own else (spec.seed + index) % 2**63
    told = {key: getattr(spec, key) for key in KEYS}
    told |= {"seed": seed, "stop": tuple(spec.stop), "logit_bias": (*spec.logit_bias.items(),)}
    return Sampling(**told)


def _validated(own: dict[str, Any], defaults: GenerationSpec) -> GenerationSpec:
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    for key, value in own.items():
        if isinstance(value, (bool, str)):  # pydantic would take true for 1 and "2" for 2
            raise RowError("bad_sampling", f"{key} can't be {quote(value)}")
    try:
        spec = GenerationSpec.model_validate(vars(defaults) | own)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        *place, last = map(str, first["loc"])
        given = quote(first["input"])
        if last == "[key]":
            raise RowError("bad_sampling", f"{place[0]}: {given} is not a token's number") from None
        where = ".".join([*place, last])
        raise RowError("bad_sampling", f"{where}: {first['msg']}, not {given}") from None
    if "" in spec.stop:
        raise RowError("bad_sampling", "stop: an empty text ends every generation at once")
    if spec.max_new_tokens > openai.MAX_NEW_TOKENS:
        raise RowError("bad_sampling", f"max_new_tokens: the most are {openai.MAX_NEW_TOKENS}")
    return spec


def _check_characters(value: Any) -> None:
    """Refuse what only an escape can spell: half characters, and the NUL that C libraries trip over."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise RowError("bad_unicode", "half of a surrogate pair, such as \\ud800 alone") from None
    if "\\u0000" in text and "\0" in "".join(_strings(value)):
        raise RowError("nul", "a NUL character, written as \\u0000")


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _strings(part)]
    return []
