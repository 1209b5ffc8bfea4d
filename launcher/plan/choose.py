"""Which of several plans to take. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.plan.plan import Plan


def best(plans: Sequence[Plan]) -> Plan:
    """Of the plans that fit, the one that leaves least of the devices' time unused; of equals (to a hundredth)
    the one with fewer ranks, then the first. Where none fits, the same among all of them."""
    return max(plans, key=lambda plan: (plan.fits, round(used(plan), 2), -plan.world_size))


def used(plan: Plan) -> float:
    """The predicted busy share of all devices that the plan asks for; those that stay empty are idle, and so
    are those of which nothing is predicted."""
    own = [device for device in plan.devices if device.device.startswith(plan.device)]
    asked_for = plan.nodes * plan.gpus_per_node or len(own)
    return sum(device.utilization or 0.0 for device in own) / asked_for
