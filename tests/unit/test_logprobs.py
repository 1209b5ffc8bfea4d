"""Log-probabilities of generated tokens: those of the model, whatever the batch, in OpenAI's shapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from models import make_model

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.engine.told import LEAST, describe
from launcher.input.results import decode_line, encode_line, result_row
from launcher.input.rows import parse_row
from launcher.job.spec import GenerationSpec, ModelSpec
from launcher.ledger.table import write_table
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.message import Form, Message, answer, answered
from launcher.model.sampling import outcome
from launcher.model.step import Step
from launcher.model.weights import Loading, load_model
from launcher.plan.plan import Batch
from launcher.records import Generation, Request, Sampling

NEW = 6
ENTRY: dict[str, Any] = {
    "token": "é",
    "logprob": -0.5,
    "bytes": [195, 169],
    "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
}
FACTS: dict[str, Any] = {"model": "m", "created": 1}


def asked(index: int, prompt: str, tops: int | None, **more: Any) -> Request:
    return Request(index, str(index), Sampling(NEW, logprobs=tops, **more), prompt)


def test_they_are_those_of_the_model_and_rows_that_do_not_ask_have_none(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = ModelSpec(path=str(make_model(tmp_path, "llama")), dtype="float32")
    model, text = load_model(spec, Loading("float32")), Text.load(spec, max_length=60)
    rows = [
        asked(0, "QWZ", 3),
        asked(1, "XXJ", None),
        asked(2, "ZQ", 0, temperature=1.5, seed=4),
        asked(3, "J", 5),
    ]
    pulled, found = iter(rows), {}
    batch = Batch(groups=2, slots=2, max_length=60, prefill_chunk=3)

    def emit(row: Any) -> None:
        found[row.index] = row

    engine = Engine(LocalStepModel(model, batch, NullRecorder()), text, batch)
    engine.run(lambda: next(pulled, None), emit)
    assert found[1].logprobs is None
    for row in (rows[0], rows[2], rows[3]):
        told = found[row.index].logprobs
        assert len(told) == NEW
        tokens = text.encode(row)
        for entry in told:
            with torch.inference_mode():
                logs = model(torch.tensor([tokens])).logits[0, -1].log_softmax(dim=-1)
            best = logs.topk(row.sampling.logprobs)
            assert [each["logprob"] for each in entry["top_logprobs"]] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )
            names = [text.piece(tokens[-1:], token) for token in best.indices.tolist()]
            assert [each["token"] for each in entry["top_logprobs"]] == names
            drawn = int((logs - entry["logprob"]).abs().argmin())
            assert float(logs[drawn]) == pytest.approx(entry["logprob"], abs=1e-4)
            if row.sampling.temperature == 0:
                assert drawn == int(logs.argmax())
            tokens.append(drawn)
        assert text.decode(tokens[-NEW:]) == found[row.index].text


def test_a_vocabulary_of_fewer_tokens_than_are_asked_for() -> None:
    logits, ones = torch.tensor([[0.0, 2.0, 1.0]]), torch.ones(1, dtype=torch.int64)
    step = Step(0, "decode", ones, ones[:, None], ones, ones, tops=20)
    found = outcome(logits, step)
    assert found.numel() == step.answers
    token, *told = found[0].tolist()
    text = cast(Text, SimpleNamespace(piece=lambda before, token: "abc"[token]))
    (entry,) = describe(text, [int(token)], [told], 20)
    assert [each["token"] for each in entry["top_logprobs"]] == ["b", "c", "a"]


def test_they_travel_between_stages() -> None:
    ones = torch.ones(2, dtype=torch.int64)
    step = Step(0, "decode", torch.arange(2), ones[:, None], ones, ones, tops=1)
    form = Form(2, torch.float32)
    message = form.unpack(form.pack(Message(step, 0, torch.ones(2, 2))))
    assert message is not None
    assert message.step.tops == 1
    found = torch.tensor([[7.0, -0.25, 7.0, -0.25], [2.0, -3.0, 9.0, -0.125]], dtype=torch.float64)
    data = answer(message, found)
    assert len(data) == 3 + step.answers
    assert torch.equal(answered(data, step), found)


@pytest.mark.parametrize(
    ("url", "options", "tops"),
    [
        ("/v1/chat/completions", {}, None),
        ("/v1/chat/completions", {"logprobs": False, "top_logprobs": 0}, None),
        ("/v1/chat/completions", {"logprobs": True}, 0),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 20}, 20),
        ("/v1/completions", {"logprobs": 0}, 0),
        ("/v1/completions", {"logprobs": 5, "echo": False}, 5),
    ],
)
def test_what_a_row_asks_for(url: str, options: dict[str, Any], tops: int | None) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    body = {**(chat if "chat" in url else {"prompt": "x"}), **options}
    row = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    found = parse_row(json.dumps(row).encode(), "openai", 0, GenerationSpec())
    assert isinstance(found, Request), found
    assert found.sampling.logprobs == tops


def test_a_jsonl_row_keeps_such_a_key_to_itself() -> None:
    found = parse_row(b'{"prompt": "x", "logprobs": 3}', "jsonl", 0, GenerationSpec())
    assert isinstance(found, Request)
    assert found.sampling.logprobs is None


def test_official_shapes() -> None:
    plain = Generation(0, "a", "éx", "stop", 1, 2)
    assert b"logprobs" not in encode_line(plain)
    other = {**ENTRY, "token": "x", "bytes": [120], "top_logprobs": []}
    record = Generation(0, "a", "éx", "stop", 1, 2, [ENTRY, other])
    line = encode_line(record)
    assert decode_line(line) == record

    def choice(chat: bool) -> Any:
        row = json.loads(result_row(line, record, "openai", {**FACTS, "chat": chat}))
        return row["response"]["body"]["choices"][0]["logprobs"]

    assert choice(chat=True) == {"content": [ENTRY, other], "refusal": None}
    assert choice(chat=False) == {
        "tokens": ["é", "x"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"é": -0.5}, {}],
        "text_offset": [0, 1],
    }


def test_of_tokens_with_one_text_the_likeliest_is_told() -> None:
    halves = [{**ENTRY, "token": "\ufffd", "logprob": value} for value in (-0.1, -0.9, -3.0)]
    record = Generation(0, "a", "é", "stop", 1, 1, [{**ENTRY, "top_logprobs": halves}])
    row = json.loads(result_row(encode_line(record), record, "openai", {**FACTS, "chat": False}))
    told = row["response"]["body"]["choices"][0]["logprobs"]
    assert told["top_logprobs"] == [{"\ufffd": -0.1}]


def test_a_table_has_them_as_a_column(tmp_path: Path) -> None:
    told = Generation(0, "a", "é", "stop", 1, 1, [ENTRY, {**ENTRY, "bytes": None}])
    rows = [
        json.loads(result_row(encode_line(row), row, "jsonl", {}))
        for row in (told, Generation(1, "b", "x", "stop", 1, 1))
    ]
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_table(tmp_path / "outputs.jsonl", tmp_path / "outputs.parquet")
    found = pq.read_table(tmp_path / "outputs.parquet").to_pylist()
    none = {"logprobs": None, "choices": None}
    assert found == [{**none, **row} for row in rows]


def test_tokens_behind_a_stop_string_are_not_told(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = ModelSpec(path=str(make_model(tmp_path, "llama")), dtype="float32")
    model, text = load_model(spec, Loading("float32")), Text.load(spec, max_length=60)
    batch = Batch(groups=1, slots=1, max_length=60, prefill_chunk=8)

    def run(request: Request) -> Generation:
        pulled, found = iter([request]), []
        engine = Engine(LocalStepModel(model, batch, NullRecorder()), text, batch)
        engine.run(lambda: next(pulled, None), found.append)
        return found[0]

    whole = run(asked(0, "QWZ", 0))
    assert whole.logprobs is not None
    stop = whole.logprobs[3]["token"]
    place = whole.text.find(stop)
    cut = run(asked(0, "QWZ", 0, stop=(stop,)))
    assert cut.text == whole.text[:place]
    assert cut.logprobs is not None
    assert len(cut.logprobs) <= 3
    assert "".join(entry["token"] for entry in cut.logprobs) == cut.text


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_what_json_can_not_hold_is_told_as_the_least(value: float) -> None:
    text = cast(Text, SimpleNamespace(piece=lambda before, token: "a"))
    (entry,) = describe(text, [1], [[value, 1.0, value]], 1)
    assert [entry["logprob"], entry["top_logprobs"][0]["logprob"]] == [LEAST, LEAST]
