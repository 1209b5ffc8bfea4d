"""Stages: chained they are the whole model, bit for bit; each reads its own tensors and no others."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, make_model
from safetensors.torch import load_file, save_file

from launcher import logs
from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.errors import PreflightError, WeightsError
from launcher.job.spec import ModelSpec
from launcher.model.direct import load
from launcher.model.runner import StageRunner
from launcher.model.sampling import draw
from launcher.model.stage import load_stage
from launcher.model.step import Step
from launcher.model.weights import Loading
from launcher.plan.plan import Batch
from launcher.records import Request, Sampling

LAYERS = 6
NEW = 12
LENGTHS = (1, 2, 5, 8, 13, 24, 40)
SPLITS = ((3, 3), (1, 5), (2, 1, 1, 2))  # layers per stage
BATCH = Batch(groups=2, slots=3, max_length=80, prefill_chunk=7)


class Chain:
    """A StepModel that runs every stage in this process; keeps the logits of all its steps."""

    depth = 1

    def __init__(self, models: list[Any], batch: Batch, pack: int = 10) -> None:
        ends = [(n == 0, n == len(models) - 1) for n in range(len(models))]
        self.runners = [
            StageRunner(model, batch, first, last, pack)
            for model, (first, last) in zip(models, ends, strict=True)
        ]
        self.logits: list[torch.Tensor] = []
        self.shapes: list[tuple[int, torch.Size]] = []
        self.finished: deque[torch.Tensor] = deque()

    def launch(self, step: Step) -> None:
        hidden = None
        for runner in self.runners:
            hidden = runner.run(step, hidden)
            self.shapes.append((int(step.counts.sum()), hidden.shape))
        assert hidden is not None
        self.logits.append(hidden)
        self.finished.append(draw(hidden, step.sampling))

    def collect(self) -> torch.Tensor:
        return self.finished.popleft()

    def close(self) -> None:
        pass


class Case:
    """A model's directory, the logits of all steps of the whole model, and what generate says."""

    def __init__(self, path: Path, attention: str = "sdpa") -> None:
        torch.set_num_threads(1)
        self.spec = ModelSpec(path=str(path), dtype="float32", attention=attention)
        self.whole = load(self.spec, Loading("float32"))
        self.text = Text.load(self.spec, max_length=80)
        letters = random.Random(0)
        prompts = ["".join(letters.choices("QWZXJK", k=n - 1)) for n in LENGTHS]
        self.rows = [
            Request(index, f"row-{index}", Sampling(max_new_tokens=NEW), prompt)
            for index, prompt in enumerate(prompts)
        ]
        self.logits, self.texts = self.run(Chain([self.whole], BATCH))

    def run(self, chain: Chain) -> tuple[list[torch.Tensor], list[str]]:
        rows, found = iter(self.rows), {}
        Engine(chain, self.text, BATCH).run(
            lambda: next(rows, None), lambda row: found.update({row.id: row})
        )
        return chain.logits, [found[row.id].text for row in self.rows]

    def generated(self) -> list[str]:
        texts = []
        for row in self.rows:
            tokens = torch.tensor([self.text.encode(row)])
            made = self.whole.generate(tokens, max_new_tokens=NEW, do_sample=False)
            texts.append(self.text.decode(made[0, tokens.shape[1] :].tolist()))
        return texts

    def stages(self, split: tuple[int, ...]) -> list[Any]:
        ends = torch.tensor(split).cumsum(0).tolist()
        return [
            load_stage(self.spec, "float32", (end - size, end - 1), sum(split))
            for size, end in zip(split, ends, strict=True)
        ]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("model")
    return Case(make_model(path, request.param, num_hidden_layers=LAYERS))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The program's log, also where an earlier test keeps it from going up to pytest's."""
    logs.get_logger().addHandler(caplog.handler)
    yield caplog
    logs.get_logger().removeHandler(caplog.handler)


def test_the_whole_model_says_what_generate_says(case: Case) -> None:
    assert case.texts == case.generated()
    assert len(set(case.texts)) == len(LENGTHS)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_stages_in_a_chain_are_the_whole_model(case: Case, split: tuple[int, ...]) -> None:
    chain = Chain(case.stages(split), BATCH)
    logits, texts = case.run(chain)
    assert texts == case.texts
    assert len(logits) == len(case.logits)
    assert all(map(torch.equal, logits, case.logits))
    width = case.whole.config.hidden_size
    inner = [shape == (tokens, width) for tokens, shape in chain.shapes]
    assert inner == ([True] * (len(split) - 1) + [False]) * len(logits)


def test_each_weight_is_in_one_stage(case: Case, said: pytest.LogCaptureFixture) -> None:
    stages = case.stages((2, 1, 3))
    assert "left out" not in said.text  # nothing is said of what other stages have
    sizes = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    assert sum(sizes) == sum(p.numel() for p in case.whole.parameters())
    assert not any(p.is_meta for stage in stages for p in stage.parameters())
    assert [stage.config.num_hidden_layers for stage in stages] == [2, 1, 3]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
def test_tied_embeddings(architecture: str, tmp_path: Path) -> None:
    changes = {"num_hidden_layers": LAYERS, "tie_word_embeddings": True}
    case = Case(make_model(tmp_path, architecture, **changes))
    stages = case.stages((2, 3, 1))
    logits, texts = case.run(Chain(stages, BATCH))
    assert texts == case.texts == case.generated()
    assert all(map(torch.equal, logits, case.logits))
    table = case.whole.get_input_embeddings().weight
    held = [[p.shape for p in stage.parameters()].count(table.shape) for stage in stages]
    assert held == [1, 0, 1]
    last = stages[-1]
    assert last.get_output_embeddings().weight is last.get_input_embeddings().weight


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_eager_attention(architecture: str, tmp_path: Path) -> None:
    path = make_model(tmp_path, architecture, num_hidden_layers=LAYERS)
    case = Case(path, attention="eager")
    logits, _ = case.run(Chain(case.stages((1, 4, 1)), BATCH))
    assert all(map(torch.equal, logits, case.logits))


def test_slots_of_a_step_in_any_order(tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "gemma3_text", num_hidden_layers=LAYERS))
    generator = torch.Generator().manual_seed(0)

    def steps(chain: Chain) -> list[torch.Tensor]:
        generator.manual_seed(0)
        lengths = [0] * 5
        batch = [([4, 0, 2], 9), ([2, 4], 1), ([1, 3], 12), ([3, 0, 1, 4, 2], 1), ([0, 3], 1)]
        for slots, most in batch:
            counts = [max(1, most - row) for row in range(len(slots))]
            tokens = torch.randint(2, 400, (len(slots), most), generator=generator)
            starts = torch.tensor([lengths[slot] for slot in slots])
            kind = "decode" if most == 1 else "prefill"
            chain.launch(Step(0, kind, torch.tensor(slots), tokens, starts, torch.tensor(counts)))
            for slot, count in zip(slots, counts, strict=True):
                lengths[slot] += count
        return chain.logits

    batch = Batch(groups=1, slots=5, max_length=80, prefill_chunk=16)
    whole = steps(Chain([case.whole], batch))
    split = steps(Chain(case.stages((2, 2, 2)), batch))
    assert all(map(torch.equal, whole, split))


def test_a_checkpoint_of_the_base_model_alone(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    changes = {"num_hidden_layers": LAYERS, "tie_word_embeddings": True}
    case = Case(make_model(tmp_path, "llama", **changes))
    weights = load_file(tmp_path / "model.safetensors")
    plain = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    logits, _ = case.run(Chain(case.stages((4, 2)), BATCH))
    assert all(map(torch.equal, logits, case.logits))
    assert "left out" not in said.text


def test_a_weight_that_the_stage_would_leave_out(tmp_path: Path) -> None:
    make_model(tmp_path, "olmo2", num_hidden_layers=LAYERS)  # of no family that plan knows
    weights = load_file(tmp_path / "model.safetensors")
    extra = {"model.layers.4.self_attn.q_proj.bias": torch.ones(64)}
    save_file(weights | extra, tmp_path / "model.safetensors", {"format": "pt"})
    spec = ModelSpec(path=str(tmp_path), dtype="float32")
    with pytest.raises(WeightsError, match=r"layers\.4\.self_attn\.q_proj\.bias"):
        load_stage(spec, "float32", (3, 5), LAYERS)
    load_stage(spec, "float32", (0, 2), LAYERS)


def test_a_weight_of_the_stage_that_is_missing(tmp_path: Path) -> None:
    make_model(tmp_path, "olmo2", num_hidden_layers=LAYERS)  # of no family that plan knows
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.4.self_attn.q_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    spec = ModelSpec(path=str(tmp_path), dtype="float32")
    with pytest.raises(WeightsError, match=r"layers\.4\.self_attn\.q_norm"):
        load_stage(spec, "float32", (3, 5), LAYERS)


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("gpt2", {}, "adds positions"),
        ("granite", {"embedding_multiplier": 2.0}, "embedding_multiplier"),
        ("nanochat", {}, "outside of its layers"),
        ("ctrl", {"dff": 96, "n_embd": 64}, "outside of its layers"),
        ("modernbert-decoder", {}, "which of its modules"),
    ],
)
def test_models_that_cannot_be_split_are_refused(
    architecture: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    make_model(tmp_path, architecture, **changes)
    with pytest.raises(PreflightError, match=reason):
        load_stage(ModelSpec(path=str(tmp_path), dtype="float32"), "float32", (2, 3), 4)


@pytest.mark.parametrize("layers", [(-1, 2), (3, 2), (2, 4)])
def test_layers_that_are_not_there(layers: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in a model of 4"):
        load_stage(ModelSpec(path=str(tmp_path)), "float32", layers, 4)


LOAD = """
import json, sys, torch
from pathlib import Path
from transformers import LlamaForCausalLM
from launcher.job.spec import ModelSpec
from launcher.model.stage import load_stage

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark anew
before = kilobytes("VmRSS")
stage = load_stage(ModelSpec(path=sys.argv[1]), "bfloat16", (4, 5), 8)
weights = sum(p.numel() * p.element_size() for p in stage.parameters())
print(json.dumps([weights, 1024 * (kilobytes("VmHWM") - before)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_stages_own_bytes(tmp_path: Path) -> None:
    make_model(tmp_path, "llama", num_hidden_layers=8, hidden_size=512, intermediate_size=2048)
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, peak = json.loads(done.stdout.splitlines()[-1])
    # The file is fp32 and mapped, so what is read of it counts as well: two bytes there for one here.
    assert peak < 1.1 * 3 * weights + 2**24
    assert (tmp_path / "model.safetensors").stat().st_size > 7 * weights
