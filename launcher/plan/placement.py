"""Which module goes to which device: the device maps of accelerate, computed without torch.

``infer_device_map`` and ``balanced_memory`` follow the rules of accelerate's ``infer_auto_device_map``
and ``get_balanced_memory`` at the granularity of decoder layers; a test holds them equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from launcher.errors import UsageError
from launcher.plan.outline import Module, Outline

Device = int | str  # an index among a rank's own GPUs, "cpu" or "disk"
DeviceMap = dict[str, Device]


def infer_device_map(
    model: Outline, max_memory: Mapping[Device, int], unsplit: Sequence[str] = ()
) -> DeviceMap:
    """Fill the devices of ``max_memory`` (bytes; GPUs by index, then cpu, then disk) one after the other.

    What finds no room goes to ``disk``. The first GPU and the CPU keep room for the largest layer
    that is still to be placed, because offloaded layers are brought back there to be computed.
    ``unsplit`` names modules that must stay whole; decoder layers always do.
    """
    devices = _in_order(max_memory)
    main = {next((d for d in devices if isinstance(d, int)), "cpu"), "cpu"}
    pending = list(model.root.children)
    sizes: dict[str, int] = {}  # of the largest pieces, which are asked for again and again

    def largest(module: Module) -> int:
        if module.name not in sizes:
            sizes[module.name] = _largest(module, unsplit)
        return sizes[module.name]

    placed: DeviceMap = {}
    device, used = devices.pop(0), 0
    while pending:
        module = pending.pop(0)
        partners = [m for m in pending if _tied(model, module, m)]
        reserve = max(map(largest, pending), default=0) if device in main else 0
        room = float("inf") if device == "disk" else max_memory[device] - reserve - used
        if module.size + sum(partner.size for partner in partners) <= room:
            for part in (module, *partners):
                placed[part.name] = device
                used += part.size
            pending = [m for m in pending if m not in partners]
        elif module.children and module.name not in unsplit:
            pending = [*module.children, *pending]
        else:
            pending = [module, *pending]
            device, used = devices.pop(0), 0
    return _merge(model.root, placed)


def balanced_memory(
    model: Outline,
    max_memory: Mapping[Device, int],
    unsplit: Sequence[str] = (),
    low_zero: bool = False,
) -> dict[Device, int]:
    """``max_memory`` lowered so that the GPUs get about the same; with ``low_zero`` the first one the least."""
    memory = dict(max_memory)
    gpus = sorted(d for d, size in memory.items() if isinstance(d, int) and size > 0)
    if not gpus:
        return memory
    low_zero = low_zero and len(gpus) > 1 and 0 in gpus
    whole = [module.size for module in model.root.walk() if module.name in unsplit]
    whole += [layer.size for layer in model.layers[:1]]
    share = model.root.size // (len(gpus) - 1 if low_zero else len(gpus))
    # The margin: a layer that does not fit into one share must not end up off the GPUs.
    share += int(1.25 * max(*whole, model.mean_leaf))
    for gpu in gpus[:-1]:  # the last one takes what is left, so it keeps all that it has
        memory[gpu] = min(memory[0] if low_zero and gpu == 0 else share, memory[gpu])
    if low_zero:
        others = sum(memory[gpu] for gpu in gpus if gpu != 0)
        memory[0] = min(max(0, model.root.size - others), memory[0])
    return memory


def check_device_map(model: Outline, given: Mapping[str, Device], where: str) -> DeviceMap:
    """A hand-written map, with the modules that weigh nothing filled in.

    Raises UsageError for names that the model does not have, modules that are named twice (by
    themselves and by a parent), and weights that no entry covers.
    """
    modules = {module.name: module for module in model.root.walk()}
    for name in given:
        if name not in modules:
            raise UsageError(
                f"the model has no module {name!r} to place", where=where, fix=_hint(name, modules)
            )
        above = [other for other in given if other != name and _within(name, other)]
        if above:
            raise UsageError(
                f"{name!r} is placed twice: by itself and as a part of {above[0]!r}",
                where=where,
                fix=f"give the other parts of {above[0]!r} one by one",
            )
    full = dict(given)
    for leaf in model.root.leaves():
        if find_device(full, leaf.name) is None and not leaf.weights:
            full[leaf.name] = _home(model, full, leaf.name)
    missing = [leaf.name for leaf in model.root.leaves() if find_device(full, leaf.name) is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(
            f"no device is given for {', '.join(missing[:3])}{more}",
            where=where,
            fix="name every decoder layer, embedding, norm and head, or their parents",
        )
    _check_ties(model, full, where)
    return full


def unsplit_modules(model: Outline, classes: Sequence[str], where: str) -> list[str]:
    """The modules that the user's no-split classes name, beyond decoder layers. Raises UsageError."""
    for name in classes:
        if name not in model.classes:
            close = difflib.get_close_matches(name, model.classes, n=1)
            raise UsageError(
                f"{name!r} is no class that a placement could split",
                where=where,
                cause="a decoder layer is never split, so nothing inside of one need be named",
                fix=f"did you mean {close[0]}?" if close else f"use {', '.join(model.classes)}",
            )
    return [module for module in (model.classes[name] for name in classes) if module is not None]


def find_device(device_map: Mapping[str, Device], name: str) -> Device | None:
    """Where ``name`` goes: by its own entry or its nearest parent's; None if the map does not say."""
    while name not in device_map:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return device_map[name]


def _in_order(max_memory: Mapping[Device, int]) -> list[Device]:
    gpus = sorted(device for device in max_memory if isinstance(device, int))
    return [*gpus, *(["cpu"] if "cpu" in max_memory else []), "disk"]


def _largest(module: Module, unsplit: Sequence[str]) -> int:
    """Bytes of the largest piece of it that can't be split further."""
    if module.name in unsplit:
        return module.size
    return max((_largest(child, unsplit) for child in module.children), default=module.size)


def _tied(model: Outline, module: Module, other: Module) -> bool:
    """Whether ``other`` shares a tensor with something in ``module``, and must go where it goes."""
    return bool(model.tied) and any(
        any(_within(name, module.name) for name in group)
        and any(_within(name, other.name) for name in group)
        for group in model.tied
    )


def _within(name: str, parent: str) -> bool:
    return not parent or name == parent or name.startswith(f"{parent}.")


def _merge(module: Module, placed: DeviceMap) -> DeviceMap:
    """One entry for each module whose parts are all on one device."""
    if module.name in placed:
        return {module.name: placed[module.name]}
    parts: DeviceMap = {}
    for child in module.children:
        parts |= _merge(child, placed)
    if len(set(parts.values())) == 1 and len(parts) > 1:
        return {module.name: next(iter(parts.values()))}
    return parts


def _home(model: Outline, device_map: DeviceMap, name: str) -> Device:
    """Where a module without weights goes: beside the one whose tensor it shares, else the first layer."""
    beside = [group[0] for group in model.tied if name in group] + [model.layers[0].name]
    found = (find_device(device_map, other) for other in beside)
    return next((device for device in found if device is not None), 0)


def _check_ties(model: Outline, device_map: DeviceMap, where: str) -> None:
    for group in model.tied:
        if len({find_device(device_map, name) for name in group}) > 1:
            raise UsageError(
                f"{' and '.join(group)} share one tensor but are given different devices",
                where=where,
                fix="give them the same device",
            )


def _hint(name: str, modules: Mapping[str, Module]) -> str:
    parent = next(
        (m for m in modules if m and _within(name, m) and modules[m].layer is not None), ""
    )
    if parent:
        return f"a decoder layer is not split: place {parent}"
    close = difflib.get_close_matches(name, modules, n=1)
    known = [module for module in modules if module and modules[module].layer is None]
    return f"did you mean {close[0]}?" if close else f"the modules are {', '.join(known)} ..."
