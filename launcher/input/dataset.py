"""Hugging Face datasets as `save_to_disk` leaves them: a folder of Arrow files with their order in state.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.errors import UsageError

STATE, SPLITS = "state.json", "dataset_dict.json"


def data_files(folder: Path) -> list[Path] | None:
    """The Arrow files of the dataset in ``folder``, in order; None if there is none. Raises UsageError."""
    if (folder / SPLITS).is_file():
        names = _read(folder / SPLITS).get("splits", [])
        raise UsageError(
            f"the dataset has splits: {', '.join(map(str, names))}",
            where=str(folder),
            fix=f"name one or several: {folder / str(names[0]) if names else folder}",
        )
    if not (folder / STATE).is_file():
        return None
    state = _read(folder / STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UsageError(
            "the dataset was saved with its rows reordered by an index",
            where=str(folder),
            fix="save it again after dataset.flatten_indices()",
        )
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise UsageError("not the state of a dataset", where=str(folder / STATE)) from None
    foreign = [name for name in names if Path(name).name != name]
    if foreign or not names:
        what = f"names {foreign[0]!r}, outside its folder" if foreign else "names no file"
        raise UsageError(f"the dataset {what}", where=str(folder / STATE))
    return [folder / name for name in names]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"can't be read: {error}", where=str(path)) from None
    return found if isinstance(found, dict) else {}
