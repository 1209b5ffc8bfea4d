"""The options that the installed accelerate has, and a spec's choice of them as its config file. No torch.

`accelerate launch` takes what its config file says as it is, unknown keys and impossible values included, so they
are checked here, against the parser of its own command line.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, create_model

from launcher.errors import PreflightError, Problem
from launcher.job.nodes import Node
from launcher.job.problems import explain
from launcher.job.section import Count, Section

# Sections of the spec, and how accelerate's own names of their options begin. Its config file says `fsdp_config` ...
SECTIONS = {
    "fsdp": "fsdp_",
    "deepspeed": "deepspeed_",
    "megatron_lm": "megatron_lm_",
    "parallelism": "parallelism_config_",
    "fp8": "fp8_",
    "dynamo": "dynamo_",
}
KINDS = {"fsdp": "FSDP", "deepspeed": "DEEPSPEED", "megatron_lm": "MEGATRON_LM"}
# Which nodes there are, and who starts the processes there, is the launcher's to say.
OURS = {
    *("deepspeed_hostfile", "deepspeed_multinode_launcher"),
    *("deepspeed_exclusion_filter", "deepspeed_inclusion_filter"),
}
# What is the same in every config file. A CPU's ranks are told so by their environment: see runtime/script.py.
ALWAYS = {"compute_environment": "LOCAL_MACHINE", "use_cpu": False}
# One `accelerate launch` per node runs already.
OUR_DEEPSPEED = {"deepspeed_multinode_launcher": "standard"}
TRUTH = ("true", "false")
EITHER = ("fsdp_reshard_after_forward",)  # a truth value, or a word of FSDP's first version


@functools.cache
def schema() -> type[Section]:
    """The ``accelerate:`` section as the installed accelerate has it. Raises PreflightError without one."""
    parser, constants = _parser()
    actions = {action.dest: action for action in parser._actions}
    fields: dict[str, Any] = {
        "mixed_precision": (_one_of(actions["mixed_precision"].choices or ()), "no"),
        "num_cpu_threads_per_process": (Count | None, None),
        "enable_cpu_affinity": (bool, False),
        "debug": (bool, False),
    }
    groups = {group.title: group for group in parser._action_groups}
    zero = {action.dest for action in groups["DeepSpeed Arguments"]._group_actions}
    for name, prefix in SECTIONS.items():
        own = zero - OURS if name == "deepspeed" else {d for d in actions if d.startswith(prefix)}
        options = {d.removeprefix(prefix): (d, _kind(actions[d], constants)) for d in sorted(own)}
        section = create_model(
            name,
            __base__=Section,
            **{short: _field(short, dest, kind) for short, (dest, kind) in options.items()},
        )
        told: Any = section | None
        fields[name] = (Annotated[told, BeforeValidator(_word)] if name == "dynamo" else told, None)
    return create_model("AccelerateSpec", __base__=Section, **fields)


def mistakes(root: Node, chosen: Any) -> list[Problem]:
    """What the installed accelerate would not take of ``chosen``, the section of the spec ``root``: all of it, with its
    places. Raises PreflightError without an accelerate."""
    node, found = root.child("accelerate"), list[Problem]()
    if node is None or not isinstance(chosen, dict):
        return found
    try:
        schema().model_validate(chosen)
    except ValidationError as error:
        found = explain(error, node, schema(), ("accelerate",))
    kinds = [name for name in KINDS if chosen.get(name) is not None]
    if len(kinds) > 1:
        what = f"accelerate can't do {' and '.join(kinds)} at once"
        found.append(Problem((node.child(kinds[1]) or node).key_where, what, "keep one"))
    return found


def config(chosen: Section, ranks: int) -> dict[str, Any]:
    """``chosen`` (of ``schema``) as the config file of a world of ``ranks``: what is left open stays accelerate's
    own default. Raises PreflightError for packages that are not here."""
    given = chosen.model_dump(exclude_unset=True, exclude_none=True, by_alias=True)
    given.pop("num_cpu_threads_per_process", None)  # of each rank: a flag of its node's launch
    kinds = [name for name in KINDS if name in given]
    if "deepspeed" in given and importlib.util.find_spec("deepspeed") is None:
        raise PreflightError(
            "deepspeed is not installed", where="accelerate.deepspeed", fix="pip install deepspeed"
        )
    made = {
        **ALWAYS,
        "distributed_type": KINDS[kinds[0]] if kinds else "MULTI_GPU" if ranks > 1 else "NO",
        **{name: value for name, value in given.items() if name not in SECTIONS},
        **{_key(name): value for name, value in given.items() if name in SECTIONS},
    }
    if "deepspeed" in given:
        made["deepspeed_config"] |= OUR_DEEPSPEED
    if "dynamo" in given:
        made["dynamo_config"].setdefault("dynamo_backend", "inductor")
    return made


def _key(section: str) -> str:
    return "parallelism_config" if section == "parallelism" else f"{section}_config"


def _word(value: Any) -> Any:
    """``dynamo: inductor`` is short for its backend."""
    return {"backend": value} if isinstance(value, str) else value


def _field(short: str, dest: str, kind: Any) -> Any:
    """An option by its short name or by accelerate's own, which the config file has."""
    return kind | None, Field(
        None, validation_alias=AliasChoices(short, dest), serialization_alias=dest
    )


def _kind(action: argparse.Action, constants: dict[str, Any]) -> Any:
    """The type of an option's value. Many a truth value is a text to accelerate's parser."""
    words = action.choices or constants.get(action.dest.upper())
    if words:
        return _one_of(words)
    if action.nargs == 0 or action.type is bool:
        return bool
    if action.dest in EITHER:
        return bool | _one_of(constants.get("FSDP_SHARDING_STRATEGY", ()))
    if action.default in TRUTH or f"({'|'.join(TRUTH)})" in (action.help or ""):
        return bool
    return action.type if action.type in (int, float) else Annotated[str, BeforeValidator(_text)]


def _one_of(words: Iterable[Any]) -> Any:
    return Annotated[Literal.__getitem__(tuple(words)), BeforeValidator(_text)]


def _text(value: Any) -> Any:
    """Versions and sizes may be written as numbers."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """accelerate's own parser of `accelerate launch`, and its lists of words.

    Its module imports torch, seconds of work; the function that makes the parser needs argparse and some of those
    lists alone, so it is run by itself. Should that fail with another version, the module is imported.
    """
    found = importlib.util.find_spec("accelerate")
    if found is None or found.origin is None:
        raise PreflightError("accelerate is not installed", fix="pip install accelerate")
    folder = Path(found.origin).parent
    constants = _constants(folder / "utils" / "constants.py")
    constants |= _constants(folder / "commands" / "config" / "config_utils.py")
    try:
        return _parser_alone(folder / "commands" / "launch.py", constants), constants
    except (OSError, SyntaxError, LookupError, NameError, TypeError, AttributeError):
        from accelerate.commands.launch import launch_command_parser

        return launch_command_parser(), constants


def _parser_alone(path: Path, constants: dict[str, Any]) -> argparse.ArgumentParser:
    body = ast.parse(path.read_bytes()).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    alone = ast.Module([functions["launch_command_parser"]], [])
    names = {
        **constants,
        "argparse": argparse,
        "CustomArgumentParser": argparse.ArgumentParser,
        "CustomHelpFormatter": argparse.HelpFormatter,
        "str_to_bool": bool,
    }
    exec(compile(alone, path, "exec"), names)
    made: argparse.ArgumentParser = names["launch_command_parser"]()
    return made


def _constants(path: Path) -> dict[str, Any]:
    """Lists of words that a module of accelerate has at its top."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_bytes()).body if path.is_file() else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            try:
                found |= dict.fromkeys(names, ast.literal_eval(node.value))
            except ValueError:
                continue  # not of plain words
    return found
