"""Specs made to take for ever: each is answered within 50 ms of this process's own time, by a mistake or by a spec."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from specs import MINIMAL

from launcher.errors import LauncherError, SpecError
from launcher.job.load import dump_spec, load_resolved, load_spec
from launcher.job.nodes import MAX_VALUES
from launcher.job.source import MAX_BYTES

# The promise is 50 ms; most take 5 to 30 of this process's own time, and a core that is shared or slow does less in
# it. What is meant to fail here, a search that is quadratic, takes seconds.
MOST_S = 1.0
ROOM = MAX_BYTES - 200


def fill(head: str, piece: str, tail: str = "\n") -> str:
    """``piece`` as often as a spec has room for it."""
    return head + piece * ((ROOM - len(head) - len(tail)) // len(piece)) + tail


SPECS = {
    "alias bomb": MINIMAL
    + "l0: &l0 [x]\n"
    + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 40)),
    "merge bomb": MINIMAL
    + "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 200)),
    "deep lists": fill(MINIMAL + "x: ", "["),
    "deep mappings": fill(MINIMAL + "x: ", "{a: "),
    "deep blocks": MINIMAL + "x:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 600)),
    "deep dashes": fill(MINIMAL + "x:\n", "- "),
    "5,000 digits": MINIMAL + "batch: {slots: " + "9" * 5000 + "}\n",
    "as many digits as there is room": fill(MINIMAL + "batch: {slots: ", "9", "}\n"),
    "digits of a float": fill(MINIMAL + "generation: {temperature: 9.", "1", "}\n"),
    "a long name": fill("model: {path: x}\ninput: {path: y}\nname: ", "a"),
    "a long key": fill(MINIMAL, "a", ": 1\n"),
    "a long value of few": fill(MINIMAL + "parallel: {strategy: ", "a", "}\n"),
    "a long path": fill("name: x\ninput: {path: y}\nmodel: {path: ", "../", "}\n"),
    "a long glob": fill("name: x\nmodel: {path: y}\ninput: {path: '", "*[", "'}\n"),
    "a long time": fill(MINIMAL + "slurm: {time: '", "1:", "'}\n"),
    "keys": MINIMAL + "".join(f"k{n}: v\n" for n in range(20_000)),
    "one key": fill(MINIMAL, "name: x\n", ""),
    "keys that are lists": fill(MINIMAL, "? [a, b]\n: c\n", ""),
    "options": MINIMAL
    + f"parallel: {{options: {{{', '.join(f'k{n}: 1' for n in range(20_000))}}}}}\n",
    "wrong names": MINIMAL + f"slurm: {{env: [{'-x, ' * (MAX_VALUES - 40)}]}}\n",
    "empty texts": MINIMAL + "generation: {stop: [" + "'', " * (MAX_VALUES - 40) + "]}\n",
    "lines of setup": fill(MINIMAL + "slurm:\n  setup: |\n", "    x\n", ""),
    "tags": fill(MINIMAL + "x: [", "!!python/object/apply:os.system [x], ", "]\n"),
    "documents": fill(MINIMAL, "---\n", ""),
    "directives": fill("", "%TAG ! tag:x,2000:\n", MINIMAL),
    "escapes": fill(MINIMAL + 'x: "', "\\u0041", '"\n'),
    "zeros": fill(MINIMAL + 'x: "', "\\0", '"\n'),
    "tokens": fill(MINIMAL + "# ", "hf_aB3dE6gH9jK2mN5pQ8sT "),
    "almost tokens": fill(MINIMAL + "# ", "hf_ "),
    "assignments of nothing": fill(MINIMAL + "# ", "TOKEN= "),
    "urls": fill(MINIMAL + "# ", "://"),
    "a url": fill(MINIMAL + "# ://", ":"),
    "begins of keys": fill(MINIMAL + "# ", "-----BEGIN "),
    "a begin of a key": fill(MINIMAL + "# -----BEGIN ", "A "),
    "words": fill(MINIMAL + "# ", "A" * 63 + " "),
    "larger than a spec may be": MINIMAL + "# " + "x" * (8 * MAX_BYTES),
}


@pytest.mark.parametrize("name", SPECS)
def test_answered_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    load_spec(path)  # what is made once per process is not this spec's
    path.write_text(SPECS[name])
    # The better of two: a process may be made to wait with its clock running.
    took, said = min(_answered(lambda: load_spec(path)) for _ in range(2))
    assert took < MOST_S
    assert len(said) < 20_000


def _answered(load: Callable[[], object]) -> tuple[float, str]:
    began, said = time.process_time(), ""
    try:
        load()
    except SpecError as error:
        said = str(error)
    return time.process_time() - began, said


def test_a_spec_of_the_most_values_is_resolved_and_read_again(tmp_path: Path) -> None:
    """What the run holds is longer than what was given: paths are absolute, defaults are filled in."""
    names = [f"f{number:050d}.jsonl" for number in range(MAX_VALUES - 20)]
    path = tmp_path / "job.yaml"
    path.write_text(f"name: x\nmodel: {{path: org/m}}\ninput: {{path: [{', '.join(names)}]}}\n")
    spec = load_spec(path).spec
    (tmp_path / "resolved.yaml").write_text(dump_spec(spec))
    assert (tmp_path / "resolved.yaml").stat().st_size > MAX_BYTES
    assert load_resolved(tmp_path / "resolved.yaml") == spec


def test_specs_broken_at_random_are_refused_or_loaded(tmp_path: Path) -> None:
    """Nothing but a LauncherError ever comes out. The seed is fixed."""
    whole = MINIMAL + (
        "parallel: {strategy: pipeline, stages: 2, options: {a: [1, 2.5, ~]}}\n"
        "generation: {temperature: 1e-3, stop: ['\\n', \"x\"]}\n"
        "slurm:\n  time: 12:00:00\n  setup: |\n    module load cuda\n  env: [A, B]\nlimits: {step: 60s}\n"
    )
    pieces = [
        "{",
        "]",
        ": ",
        "- ",
        "&a ",
        "*a",
        "!t ",
        "\t",
        "\n",
        "'",
        '"',
        "%",
        "\x00",
        "\ud7ff",
        "9" * 50,
    ]
    rng, path, loaded = random.Random(20261120), tmp_path / "job.yaml", 0
    for _ in range(400):
        text = list(whole)
        for _ in range(rng.choice([1, 1, 2, 6])):
            at = rng.randrange(len(text))
            text[at : at + rng.choice([0, 0, 1, 5])] = rng.choice(pieces)
        path.write_text("".join(text))
        try:
            loaded += load_spec(path).spec.name != ""
        except LauncherError as error:
            assert "job.yaml" in str(error)
    assert 10 < loaded < 390
