"""Which models transformers can load as a causal language model, told without importing it: its own tables are read."""

from __future__ import annotations

import ast
import functools
from importlib.metadata import version
from pathlib import Path

from launcher.errors import PreflightError
from launcher.plan.dims import Config
from launcher.plan.kept import library_folder

TABLES = Path("models", "auto", "modeling_auto.py")
CAUSAL, MASKED = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"


def check_loadable(config: Config, where: str, *, trusted: bool) -> None:
    """Raises PreflightError for a model that every rank would refuse. Of one that brings code that is ``trusted``, or
    that says no type, nothing is known."""
    kind, known = config.get("model_type"), _tables()
    if trusted or not isinstance(kind, str):
        return
    if kind == "bloom" or (kind == "falcon" and config.get("alibi")):
        raise PreflightError(
            f"this {kind} can't be run: it takes distances (alibi) from a mask of one length for all rows",
            where=where,
            cause="here each row of a step has its own length",
            fix="another model",
        )
    if CAUSAL not in known:
        return
    own = known[CAUSAL].get(kind)
    if own is None and config.get("auto_map"):
        raise PreflightError(
            f"transformers has no {kind}, and the code that comes with the model is not trusted",
            where=where,
            fix="model.trust_remote_code: true (runs that code: read it first), or another model",
        )
    if own is None:
        raise PreflightError(
            f"transformers {version('transformers')} has no causal language model of model_type {kind}",
            where=where,
            cause="it is a model of another kind, or newer than the installed transformers",
            fix="another model, or pip install --upgrade transformers",
        )
    named = config.get("architectures") or []
    if kind in known.get(MASKED, {}) and own not in named and not config.get("is_decoder"):
        raise PreflightError(
            f"this {kind} is not a causal language model but an encoder: it does not generate",
            where=where,
            cause=f"its config has neither is_decoder nor {own}, but {', '.join(map(str, named)) or 'no architectures'}",
            fix="another model",
        )


@functools.cache
def _tables() -> dict[str, dict[str, str]]:
    """Class by model_type, of those tables that can be made out: transformers promises nobody that they are there."""
    folder = library_folder()
    try:
        tree = ast.parse((folder / TABLES).read_bytes() if folder else b"")
        return {
            name: dict(ast.literal_eval(node.value.args[0]))
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args
            for name in map(ast.unparse, node.targets)
            if name in (CAUSAL, MASKED)
        }
    except (OSError, SyntaxError, ValueError, TypeError):
        return {}
