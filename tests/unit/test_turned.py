"""TurnedLinear: the same products, whichever way round they are taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from launcher.model.turned import LEAST, ROWS, TurnedLinear, turn_linears


def turned(bias: bool) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias, dtype=torch.bfloat16).requires_grad_(False)
    model = nn.Sequential(nn.Linear(48, 80, bias, dtype=torch.bfloat16).requires_grad_(False))
    model[0].load_state_dict(linear.state_dict())
    turn_linears(model)
    return linear, model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(1,), (LEAST - 1,), (LEAST,), (ROWS,), (ROWS + 1,), (2, 13), (1, ROWS)]
)
def test_products_are_those_of_linear(shape: tuple[int, ...], bias: bool) -> None:
    linear, model = turned(bias)
    inputs = torch.randn(*shape, 48, dtype=torch.bfloat16)
    found = model(inputs)
    exact = inputs.double() @ linear.weight.double().t() + (linear.bias.double() if bias else 0)
    assert found.shape == (*shape, 80)
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.01)


def test_rows_do_not_touch_each_other() -> None:
    _, model = turned(bias=False)
    inputs = torch.randn(LEAST, 48, dtype=torch.bfloat16)
    alone = model(inputs)
    inputs[3] = torch.nan
    found = model(inputs)
    assert found[3].isnan().all()
    others = [row for row in range(LEAST) if row != 3]
    assert torch.equal(found[others], alone[others])


def test_what_is_left_alone() -> None:
    """Other dtypes, for which it does not pay, and layers that only look like linear ones."""

    class Other(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 4), Other(4, 4, dtype=torch.bfloat16)])
    model.append(nn.Linear(4, 4, dtype=torch.bfloat16))
    turn_linears(model)
    assert [type(module) for module in model] == [nn.Linear, Other, TurnedLinear]
