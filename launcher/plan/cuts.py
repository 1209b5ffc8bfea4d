"""How transformers cuts the tensors of a model for tensor parallelism: its styles, and which of its plans can be followed.
The installed library is read, not imported, which would take seconds. No torch."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping

from launcher.plan.kept import library_folder

COLUMNS = "colwise"  # a rank computes a part of the outputs
ROWS = "rowwise"  # it has a part of the inputs, and the ranks' results are added up
GATHERED = ("colwise_gather_output", "colwise_rep")  # as COLUMNS, and all ranks get all outputs
SPLIT = ("rowwise_split_input", "rowwise_rep")  # as ROWS, from the whole input
FUSED = "packed_colwise"  # two weights end to end, of each of them a part
EXPERTS = "moe_tp_experts"  # a part of every expert: the ranks' results are added up
EMBEDDING = "embedding_rowwise"  # every rank knows a part of the tokens
WHOLE = ("replicated_with_grad_allreduce", "replicate")
KNOWN = {COLUMNS, ROWS, *GATHERED, *SPLIT, FUSED, EXPERTS, EMBEDDING, *WHOLE}

NO_PLAN = "transformers has no plan for its layers"
TYPE, PLAN = "model_type", "base_model_tp_plan"  # of a config's class


def why_uncut(plan: Mapping[str, str]) -> str | None:
    """None if tensors can be cut by the library's ``plan`` of a model, which has their styles, else why not."""
    if not any("*" in name for name in plan):
        return NO_PLAN
    strange = sorted(set(plan.values()) - KNOWN)
    return f"transformers' plan for it has {', '.join(strange)}" if strange else None


@functools.cache
def cuts_of(model_type: str) -> Mapping[str, str] | None:
    """The plan of the installed transformers for such a model, empty if it has none; None where that can't be told: no
    transformers here, code that comes with a model, or a plan that is made by a computation."""
    library, name = library_folder(), model_type.replace("-", "_")
    if library is None or not name.isidentifier():
        return None
    for kind in (name, name.removesuffix("_text")):
        path = library / "models" / kind / f"configuration_{kind}.py"
        if path.is_file():
            return _written(ast.parse(path.read_bytes()), model_type)
    return None


def _written(source: ast.Module, model_type: str) -> Mapping[str, str] | None:
    """What the class of this type says in ``source``."""
    for node in source.body:
        said = _fields(node) if isinstance(node, ast.ClassDef) else {}
        kind, plan = said.get(TYPE), said.get(PLAN)
        if not (isinstance(kind, ast.Constant) and kind.value == model_type):
            continue
        try:
            return ast.literal_eval(plan) or {} if plan is not None else {}
        except ValueError:
            return None
    return None


def _fields(made: ast.ClassDef) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in made.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(targets[0], ast.Name) and isinstance(value, ast.expr):
            found[targets[0].id] = value
    return found
