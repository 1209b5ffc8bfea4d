"""Devices that take turns within a step, and layers that are brought to them from elsewhere: how long that takes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.plan.cost import whole_model
from launcher.plan.course import Line, Replayed
from launcher.plan.memory import SPILLED, Share, main_device
from launcher.plan.placement import Device
from launcher.plan.plan import Batch
from launcher.plan.replay import replay
from launcher.plan.subject import Subject


def turns_of(shares: Sequence[Share], layers: int) -> dict[Device, float]:
    """The part of a step's time that each device that computes has: its layers, and on the main one spilled layers."""
    main = main_device([share.device for share in shares])
    computed: dict[Device, int] = {}
    for share in shares:
        place = main if share.device in SPILLED else share.device
        computed[place] = computed.get(place, 0) + len(share.layers)
    return {device: count / layers for device, count in computed.items()}


def in_turns(subject: Subject, shares: Sequence[Share], batch: Batch) -> Replayed:
    """The work of one replica played through; spilled weights come anew at every step."""
    cost, moved = whole_model(subject), _moved_s(subject, shares)
    line = Line([lambda load: (cost(load)[0], moved)], [lambda _: 0.0], subject.rates.step_s)
    found = replay(line, batch, subject.work(batch))
    (spent,) = found.stages  # what stages exchange elsewhere are weights here
    return replace(found, stages=(replace(spent, transfer=0.0, weights=spent.transfer),))


def _moved_s(subject: Subject, shares: Sequence[Share]) -> float:
    """Per step, for the weights that are not where they are used. Files that fit in memory are found there."""
    rates, machines = subject.rates, subject.machines
    main = main_device([share.device for share in shares])
    sizes = {s.device: s.weights for s in shares if s.device in SPILLED and s.device != main}
    on_disk = sizes.get("disk", 0)
    disk = rates.cached if on_disk < machines.host_bytes // 2 else rates.disk
    link = rates.host_link if machines.device == "cuda" else rates.bandwidth
    return on_disk / disk + sum(sizes.values()) / link
