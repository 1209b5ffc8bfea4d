"""Every command in a code block of the documentation, read by the real command line and, where that takes little, run.

Which are only read is in ONLY_READ, and in the names of the tests (`read`). Commands about a run get one that is
complete; `run` of a model of the hub is planned for this machine, and `submit` is a dry run.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from jobs import launcher
from pages import PAGES, ROOT, Block, Command, blocks, commands, parse

from launcher.errors import LauncherError
from launcher.job.load import load_spec
from launcher.prepare import plan_job

# What takes minutes, or several nodes, or changes the user's shell: with the test that runs it.
ONLY_READ = {
    "bench machine": "tests/unit/test_bench.py",
    "bench attention": "tests/unit/test_bench_attention.py",
    "convert": "tests/unit/test_convert.py",
    "doctor": "tests/unit/test_doctor.py, tests/slurm/test_node_check.py",
    "": "tests/unit/test_cli.py",  # --help, --install-completion
}
RUN_OF = ("run", "check")  # parameters that name a run
OWN_PROMPTS = re.compile(r"path: prompts\.jsonl")  # beside a spec that a reader writes
LINKED = ("configs", "tests", "slurm", "docs", "benchmarks", "Makefile")
ALL = [command for page in PAGES for block in blocks(page) for command in commands(block)]
OURS = [command for command in ALL if "launcher" in command.words[:1] or "srun" in command.words[0]]
OTHERS = [command for command in ALL if command.words[0] in ("make", "python", "PYTHONPATH=tests")]


def name_of(words: tuple[str, ...]) -> str:
    """The command that is called: `plan`, `bench machine`."""
    called = [word for word in words[1:3] if re.fullmatch("[a-z]+", word)]
    return " ".join(called if called[:1] == ["bench"] else called[:1])


def own_words(command: Command) -> tuple[str, ...]:
    """Of `srun OPTIONS launcher doctor --node`: what srun starts."""
    words = command.words
    return words[words.index("launcher") :] if "launcher" in words else ()


def only_read(words: tuple[str, ...]) -> bool:
    asks = name_of(words) == "init" and "--yes" not in words
    return asks or name_of(words) in ONLY_READ


def title(command: Command) -> str:
    words = own_words(command)
    return f"{command.where} {'read' if only_read(words) else 'run'}: {' '.join(words)}"


def once(found: list[Command]) -> list[Command]:
    """Without those that say the same about the same specs."""
    told = {(each.words, each.ends_with, tuple(specs(each).items())): each for each in found[::-1]}
    return list(told.values())[::-1]


def checkout(folder: Path) -> Path:
    """``folder`` as if it were the repository's."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    return folder


def specs(command: Command) -> dict[str, str]:
    """The specs that the page shows before a command: `job.yaml`, or as a comment in its first line says."""
    found = {}
    for block in blocks(command.block.page):
        named = re.match(r"# ([\w-]+\.yaml)", block.text)
        if block.line < command.line and (named or is_whole(block)):
            found[named[1] if named else "job.yaml"] = block.text
    return {name: text for name, text in found.items() if name in command.words}


def is_whole(block: Block) -> bool:
    given = block.spec() or {}
    return "name" in given and ("model" in given or given.get("task") == "script")


@pytest.mark.parametrize("command", once(OURS), ids=title)
def test_command(
    command: Command,
    whole_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = own_words(command)
    if only_read(words):
        if not {"--help", "--install-completion"} & set(words):
            parse(words)
        return
    monkeypatch.chdir(checkout(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, text in specs(command).items():
        (tmp_path / name).write_text(text)
        if OWN_PROMPTS.search(text):
            shutil.copy(ROOT / "configs" / "demo" / "prompts.jsonl", tmp_path)
    context = parse(words)
    if context.info_name == "run" and is_here(context.params):
        launcher(*words[1:], "--run-dir", tmp_path / "run", code=command.ends_with, cwd=tmp_path)
    else:
        assert run(context, whole_run) == command.ends_with, capsys.readouterr()


def is_here(given: dict[str, Any]) -> bool:
    """Whether what a spec runs is on this machine: a script, or a model in a folder."""
    spec = load_spec(given["spec"], given["overrides"] or []).spec
    return spec.script is not None or Path(spec.model.path).is_dir()


def run(context: Any, finished: Path) -> int:
    """What the command ends with."""
    given: dict[str, Any] = context.params
    for name in RUN_OF:
        if given.get(name) is not None or (name == "run" and name in given):
            given[name] = str(finished)
    try:
        if context.info_name == "run":
            said = given["overrides"] or []
            gpus = load_spec(given["spec"], said).spec.resources.gpus_per_node
            here = gpus in (0, "auto")  # others are planned for a cluster
            planned = plan_job(given["spec"], said, here=here, say=lambda _: None, fetch=False)
            return 0 if planned.plan.fits else 3
        if context.info_name == "submit":
            given["dry_run"] = True
        with context:
            context.command.invoke(context)
    except (typer.Exit, LauncherError) as end:
        return end.exit_code
    return 0


@pytest.mark.parametrize("command", OTHERS, ids=lambda each: f"{each.where} {each.words[-1]}")
def test_other_command_is_there(command: Command) -> None:
    """A goal of the Makefile, a module, a file."""
    words = [word for word in command.words if "=" not in word]
    if words[0] == "make":
        goals = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in goals
    elif words[1] == "-m":
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    else:
        assert (ROOT / words[1]).is_file()
