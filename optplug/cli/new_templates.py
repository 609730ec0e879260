"""The files that `optplug new` writes. The fields in a template are those of `optplug.cli.new.Project`, and:

- `summary`: one of `SUMMARIES`.
- `capabilities`: an argument of the spec, as source text; may be empty.
- `example`: a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

SUMMARIES: Mapping[str, str] = {
    "rule": "averaged gradients",
    "class": "averaged gradients",
    "factory": "SGD with Nesterov momentum",
    "schedule": "decay with the inverse of the step",
}
"""The summary for listings, by kind."""

CAPABILITIES: Mapping[str, str] = {
    "rule": '{"complex", "fused"}',
    "class": '{"complex"}',
    "factory": '{"complex", "sparse"}',
}
"""The capabilities of the spec, by kind, as source text."""

OPTIMIZER_EXAMPLE = Template("optimizer: {name: $registered_name, lr: 0.01}")
SCHEDULE_EXAMPLE = Template("optimizer: {name: sgd, lr: 0.1}\nscheduler: {name: $registered_name, decay: 0.01}")

PYPROJECT = Template("""\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "The $kind $name, a plugin of optplug"
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["optplug", "torch"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.optplug]
$distribution = "$name"

[tool.setuptools]
packages = ["$name"]

[tool.ruff]
line-length = 100
""")

README = Template("""\
# $distribution

The $kind `$name`, a plugin of optplug.

- `$name/$module.py`: `$object`, the code to change.
- `$name/__init__.py`: the spec with the name, the summary and the capabilities, which are listed without torch.
- `tests/test_$name.py`: the conformance suite of optplug.

Install the plugin and run its tests:

    pip install -e ".[test]"
    pytest

Use it in a configuration:

```yaml
$example
```
""")

OPTIMIZER_HOOK = Template('''\
"""Plugin of optplug with the optimizer `$name`.

This module does not import torch, so that names are listed fast.
"""

from optplug import OptimizerSpec, hookimpl


@hookimpl
def optplug_optimizers():
    return [
        OptimizerSpec(
            "$name",
            "$name.$module:$object",
            summary="$summary",$capabilities
        )
    ]
''')

SCHEDULE_HOOK = Template('''\
"""Plugin of optplug with the schedule `$name`.

This module does not import torch, so that names are listed fast.
"""

from optplug import SchedulerSpec, hookimpl


@hookimpl
def optplug_schedulers():
    return [
        SchedulerSpec(
            "$name",
            "$name.$module:$object",
            summary="$summary",
            interval="step",
        )
    ]
''')

RULE = Template('''\
"""The optimizer `$name`."""

from optplug import RuleOptimizer, State
from optplug.ops import lerp


class $object(RuleOptimizer):
    """Gradient descent along an average of the gradients.

    Args:
        params: parameters, or dicts that each describe a parameter group.
        lr: learning rate, at least 0.
        beta: decay rate of the average, in [0, 1).
        weight_decay: coefficient of the weight decay, at least 0.
        options: options that every rule has, such as `maximize` and `engine`.
    """

    states = (State("average"),)
    cases = ({}, {"lr": 0.1, "beta": 0.5, "weight_decay": 0.01})

    def __init__(self, params, lr=1e-2, beta=0.9, weight_decay=0.0, **options):
        hyperparameters = {"lr": lr, "beta": beta, "weight_decay": weight_decay}
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(p, g, average, *, lr, beta):
        average = lerp(average, g, 1 - beta)
        return p - lr * average, average
''')

CLASS = Template('''\
"""The optimizer `$name`."""

import torch
from torch.optim import Optimizer


class $object(Optimizer):
    """Gradient descent along an average of the gradients.

    Args:
        params: parameters, or dicts that each describe a parameter group.
        lr: learning rate, at least 0.
        beta: decay rate of the average, in [0, 1).
    """

    cases = ({}, {"lr": 0.1, "beta": 0.5})

    def __init__(self, params, lr: float = 1e-2, beta: float = 0.9):
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr!r}")
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta!r}")
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "average" not in state:
                    state["average"] = torch.zeros_like(p)
                state["average"].lerp_(p.grad, 1 - group["beta"])
                p.sub_(group["lr"] * state["average"])
        return loss
''')

FACTORY = Template('''\
"""The optimizer `$name`."""

import torch


def $object(
    params,
    lr: float = 1e-2,
    momentum: float = 0.9,
    maximize: bool = False,
) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum.

    Args:
        params: parameters, or dicts that each describe a parameter group.
        lr: learning rate, at least 0.
        momentum: momentum factor, above 0.
        maximize: whether to maximize the objective.
    """
    options = {"momentum": momentum, "maximize": maximize, "nesterov": True}
    return torch.optim.SGD(params, lr=lr, **options)
''')

SCHEDULE = Template('''\
"""The schedule `$name`."""

from optplug import ClosedFormLR


class $object(ClosedFormLR):
    """Decay of the learning rate: the multiplier after t steps is 1 / (1 + decay * t).

    Args:
        optimizer: the optimizer whose learning rates are set.
        decay: decay of each step, at least 0.
        last_epoch: index of the last step; -1 to start.
    """

    cases = ({}, {"decay": 0.5})

    def __init__(self, optimizer, decay=0.01, last_epoch=-1):
        self.decay = self.check_number("decay", decay)
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t):
        return 1 / (1 + self.decay * t)
''')

TEST = Template('''\
"""Tests of the $kind `$name`.

The plugin must be installed: `pip install -e ".[test]"`.
"""

import optplug
from optplug import testing

from $name.$module import $object


def test_${name}_is_registered():
    assert optplug.get_$kind("$registered_name") is $object


@testing.parametrize("$registered_name")
def test_${name}_conforms(check):
    check()
''')
