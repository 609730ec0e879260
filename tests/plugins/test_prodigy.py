"""Prodigy with learning rates of 0, compared with the authors' package prodigyopt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prodigyopt
import pytest
import torch

import optplug

ENGINES = ("loop", "foreach", "numba")
ESTIMATE = ("d", "d_max", "d_numerator", "k")
OPTIONS = [{}, {"safeguard_warmup": True}, {"safeguard_warmup": True, "beta3": 0.9, "growth_rate": 1.1}]


def estimates(make: Callable[..., Any], lrs: Callable[[int], tuple[float, float]]) -> torch.Tensor:
    """The states of the estimate after each step: a small parameter descends, and a large one has a constant gradient.

    A learning rate of 0 does not increase again: the moments, which the package does not change then, would differ.

    Args:
        make: constructs the optimizer.
        lrs: the learning rates of the two parameters, by step.
    """
    a, b = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (5, 500))
    optimizer = make([{"params": [a]}, {"params": [b]}])
    found = []
    for step in range(60):
        a.grad, b.grad = a.detach() - 3, torch.ones_like(b)
        for group, lr in zip(optimizer.param_groups, lrs(step), strict=True):
            group["lr"] = lr
        optimizer.step()
        sizes = [optimizer.state[p]["s"].abs().sum() for p in (a, b)]
        found.append([float(optimizer.param_groups[0][name]) for name in ESTIMATE] + [float(size) for size in sizes])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "lrs",
    [
        pytest.param(lambda step: (1.0, 0.0), id="one group stands still"),
        pytest.param(lambda step: (1.0, 0.0 if step > 20 else 1.0), id="one group stops"),
        pytest.param(lambda step: (0.0 if step > 20 else 1.0,) * 2, id="all groups stop"),
    ],
)
def test_parameters_with_a_learning_rate_of_0_have_no_effect_on_the_estimate(lrs, options, engine):
    given = {"d0": 1e-3, **options}
    ours = estimates(lambda groups: optplug.create_optimizer("prodigy", groups, engine=engine, **given), lrs)
    theirs = estimates(lambda groups: prodigyopt.Prodigy(groups, **given), lrs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert theirs[-1, 0] > 2 * given["d0"]
