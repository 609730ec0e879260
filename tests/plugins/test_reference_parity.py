"""The optimizers that torch lacks, compared with the classes of the authors or of pytorch_optimizer, for all options.

`python tests/plugins/test_reference_parity.py` prints the largest differences. They are measured as in
`test_optimizer_parity.py`: for the parameters max|a - b| / max|moved| after 50 steps, with a late gradient, a missing
gradient, and a change of the learning rate; for a state max|a - b| / max|b|. Maximization is left out: the conformance
kit compares it with the minimization of the negative.

Engine `numba` adds products without rounding them first. Its float32 results are therefore compared with the float64
results of the reference: their error must be within the limit, or not much larger than that of the float32 reference.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lion_pytorch
import pytest
import pytorch_optimizer
import schedulefree
import torch

import optplug

sys.path.append(str(Path(__file__).parents[1]))  # when this file is run as a program
import adapted_references
from parity import Trajectory, option_combinations, options_id

ENGINES = ("loop", "foreach", "numba")
LIMITS = {torch.float64: 1e-9, torch.float32: 2e-5}


class OnePerParameter:
    """An optimizer of another class for each parameter. It takes a step only if the parameter has a gradient.

    Some classes have one step count for a parameter group. It also counts steps in which a parameter has no gradient.
    The step count of optplug belongs to the parameter, as in torch.

    Args:
        cls: the class.
        groups: the parameter groups. Only their learning rate is changed later.
        options: the options of all parameters.
    """

    def __init__(self, cls: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]], **options: Any) -> None:
        self.param_groups = groups
        self.by_parameter = {p: cls([p], **options) for group in groups for p in group["params"]}
        for group in groups:
            group["lr"] = next(iter(self.by_parameter.values())).defaults["lr"]

    @property
    def state(self) -> dict[torch.Tensor, Any]:
        return {p: optimizer.state.get(p, {}) for p, optimizer in self.by_parameter.items()}

    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.by_parameter[p].param_groups[0]["lr"] = group["lr"]
                    self.by_parameter[p].step()


def from_pytorch_optimizer(name: str, **fixed: Any) -> Callable[..., OnePerParameter]:
    """What constructs a class of pytorch_optimizer from optplug's options.

    Args:
        name: name of the class.
        fixed: options that optplug's class does not have.
    """

    def make(groups: list[dict[str, Any]], decoupled_weight_decay: bool = False, **options: Any) -> OnePerParameter:
        cls = getattr(pytorch_optimizer, name)
        return OnePerParameter(cls, groups, weight_decouple=decoupled_weight_decay, **fixed, **options)

    return make


def in_train_mode(cls: Callable[..., Any]) -> Callable[..., Any]:
    """What constructs an optimizer of schedulefree, and sets it to train mode, the mode of optplug's new ones."""

    def make(groups: list[dict[str, Any]], **options: Any) -> Any:
        optimizer = cls(groups, **options)
        optimizer.train()
        return optimizer

    return make


def make_adan(groups: list[dict[str, Any]], no_prox: bool = False, **options: Any) -> OnePerParameter:
    return from_pytorch_optimizer("Adan")(groups, decoupled_weight_decay=no_prox, **options)


def make_ademamix(groups: list[dict[str, Any]], t_alpha_beta3: float = 0.0, **options: Any) -> OnePerParameter:
    options = {"decoupled_weight_decay": True, "t_alpha_beta3": t_alpha_beta3 or None, **options}
    return from_pytorch_optimizer("AdEMAMix")(groups, **options)


def make_adabelief(groups: list[dict[str, Any]], **options: Any) -> OnePerParameter:
    return from_pytorch_optimizer("AdaBelief", rectify=False)(groups, **{"decoupled_weight_decay": True, **options})


@dataclass(frozen=True)
class Reference:
    """The class of another package with the same algorithm, and the options to compare it with.

    Attributes:
        make: constructs the reference from parameter groups and optplug's options.
        switches: groups of options that are on or off, as in `option_combinations`.
        numbers: options that are numbers, with another value than the default.
        extremes: further combinations.
        states: the names of the states to compare, which both have.
        checkpoints: whether optplug loads the state dict of the reference, and the reference that of optplug.
        always: options of all combinations.
        equal_lrs: whether the reference requires equal learning rates in all groups.
        quadratic: whether the gradients are those of a quadratic function with noise, in place of noise.
        shapes: the shapes of the parameters; None for those of `Trajectory`.
        limit: returns the limit of the difference for some options, where it is not that of `LIMITS`.
    """

    make: Callable[..., Any]
    numbers: Mapping[str, Any]
    switches: Sequence[Mapping[str, Any]] = ()
    extremes: Sequence[Mapping[str, Any]] = ()
    states: Sequence[str] = ()
    checkpoints: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)
    equal_lrs: bool = False
    quadratic: bool = False
    shapes: tuple[tuple[int, ...], ...] | None = None
    limit: Callable[[Mapping[str, Any]], float | None] = lambda options: None

    @property
    def trajectory(self) -> dict[str, Any]:
        """The arguments of trajectories."""
        shapes = {} if self.shapes is None else {"shapes": self.shapes}
        return {"equal_lrs": self.equal_lrs, "quadratic": self.quadratic, **shapes}

    @property
    def all_options(self) -> dict[str, Any]:
        """All options at once."""
        return {**self.numbers, **{key: value for switch in self.switches for key, value in switch.items()}}

    def combinations(self) -> Iterator[dict[str, Any]]:
        """All combinations of the options that change the result."""
        for options in (*option_combinations(self.switches, self.numbers, self.all_options), *self.extremes):
            yield {**self.always, **options}


DECAY = {"weight_decay": 0.1}
COUPLED, DECOUPLED = {"decoupled_weight_decay": False}, {"decoupled_weight_decay": True}
REFERENCES = {
    "adabelief": Reference(
        make=make_adabelief,
        numbers={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3},
        switches=[DECAY, COUPLED],
        extremes=[{"betas": (0.5, 0.0)}],
        states=["exp_avg", "exp_avg_var"],
    ),
    "adan": Reference(
        make=make_adan,
        numbers={"lr": 0.1, "betas": (0.9, 0.8, 0.7), "eps": 1e-3},
        switches=[DECAY, {"no_prox": True}],
        extremes=[{"betas": (0.0, 0.0, 0.0)}],
        states=["exp_avg", "exp_avg_diff", "exp_avg_sq"],
    ),
    "ademamix": Reference(
        make=make_ademamix,
        numbers={"lr": 0.1, "betas": (0.8, 0.9, 0.99), "eps": 1e-3, "alpha": 2.0, "t_alpha_beta3": 30.0},
        switches=[DECAY, COUPLED],
        extremes=[{"betas": (0.0, 0.0, 0.5)}, {"alpha": 0.0}],
        states=["exp_avg", "exp_avg_sq", "exp_avg_slow"],
    ),
    "adopt": Reference(
        # pytorch_optimizer clips the second gradient to 2 ** (1 / 4), the authors and optplug to 1.
        make=from_pytorch_optimizer("ADOPT", clip_lambda=lambda step: (step - 1) ** 0.25),
        numbers={"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.5},
        switches=[DECAY, DECOUPLED],
        extremes=[{"betas": (0.0, 0.0)}],
        states=["exp_avg", "exp_avg_sq"],
    ),
    "lamb": Reference(
        make=adapted_references.Lamb,
        numbers={"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2},
        switches=[{"weight_decay": 0.3}, {"adaptive": False}, {"decoupled_weight_decay": True}],
        extremes=[{"weight_decay": 0.0}, {"betas": (0.0, 0.0)}, {"eps": 0.0}],
        states=["exp_avg", "exp_avg_sq"],
    ),
    "lars": Reference(
        make=adapted_references.Lars,
        numbers={"lr": 0.5, "trust_coefficient": 0.1, "eps": 0.3},
        switches=[
            {"weight_decay": 0.3},
            {"momentum": 0.5},
            {"dampening": 0.3},
            {"adaptive": False},
            {"decoupled_weight_decay": True},
        ],
        extremes=[{"nesterov": True}, {"nesterov": True, "weight_decay": 0.3, "eps": 0.0}, {"momentum": 0.0}],
    ),
    "lion": Reference(
        make=lion_pytorch.Lion,
        numbers={"lr": 0.01, "betas": (0.8, 0.7)},
        switches=[{"weight_decay": 0.1}],
        extremes=[{"betas": (0.0, 0.0)}, {"betas": (0.9, 0.0)}],
        states=["exp_avg"],
        checkpoints=True,
    ),
    "muon": Reference(
        make=adapted_references.Muon,
        numbers={
            "lr": 0.05,
            "weight_decay": 0.3,
            "momentum": 0.6,
            "eps": 0.5,
            "ns_steps": 3,
            "ns_coefficients": (2.0, -1.5, 0.5),
        },
        switches=[{"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, {"ns_dtype": "float32", "flatten": True}],
        extremes=[{"flatten": True}, {"ns_dtype": "float32"}, {"nesterov": False}, {"momentum": 1.5}, {"ns_steps": 0}],
        states=["momentum_buffer"],
        # The products of several matrices add in another order than those of one, which may change the last bit of a
        # number in bfloat16.
        limit=lambda options: None if options.get("ns_dtype") == "float32" else 1e-3,
        # Three matrices of one shape are orthogonalized in one call; so are the matrices of a stack.
        shapes=((5, 3), (3, 5), (5, 3), (5, 3), (2, 4, 3), (3, 2, 2, 2)),
    ),
    "prodigy": Reference(
        make=adapted_references.make_prodigy,
        # With the default, 1e-6, 50 steps change a float32 parameter by a few units in the last place only.
        always={"d0": 0.01},
        numbers={"lr": 0.5, "betas": (0.8, 0.95), "beta3": 0.9, "eps": 1e-3, "d_coef": 2.0, "growth_rate": 1.02},
        switches=[DECAY, COUPLED, {"use_bias_correction": True}, {"safeguard_warmup": True}],
        extremes=[{"d0": 1.0, "betas": (0.0, 0.9)}, {"beta3": 1.0}, {"beta3": 0.0}, {"growth_rate": 1.0}],
        states=["exp_avg", "exp_avg_sq", "d", "d_max", "d_numerator", "k"],
        equal_lrs=True,
        quadratic=True,
    ),
    "schedule_free_adamw": Reference(
        make=in_train_mode(schedulefree.AdamWScheduleFree),
        numbers={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "warmup_steps": 9, "r": 1.5, "weight_lr_power": 1.0},
        switches=[DECAY],
        extremes=[{"betas": (0.5, 0.0)}, {"weight_lr_power": 0.0}, {"warmup_steps": 40, "weight_lr_power": 3.0}],
        states=["z", "exp_avg_sq"],
        checkpoints=True,
    ),
    "schedule_free_sgd": Reference(
        make=in_train_mode(schedulefree.SGDScheduleFree),
        numbers={"lr": 0.1, "momentum": 0.7, "warmup_steps": 9, "r": 1.5, "weight_lr_power": 1.0},
        switches=[DECAY],
        extremes=[{"weight_lr_power": 0.0}, {"warmup_steps": 40, "weight_lr_power": 3.0}],
        states=["z"],
        checkpoints=True,
    ),
    "soap": Reference(
        make=adapted_references.SOAP,
        numbers={
            "lr": 0.05,
            "betas": (0.8, 0.9),
            "shampoo_beta": 0.7,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "precondition_frequency": 3,
            "max_precondition_dim": 4,
        },
        switches=[{"flatten": False}],
        extremes=[
            {"betas": (0.0, 0.0), "shampoo_beta": 0.9},
            {"precondition_frequency": 1},
            {"max_precondition_dim": 1},
        ],
        states=["exp_avg", "exp_avg_sq"],
        # The eigenvectors of a gradient without full rank depend on rounding: square matrices have full rank.
        shapes=((4, 4), (7,), (4, 4), (4, 2, 2)),
    ),
    "signum": Reference(
        make=from_pytorch_optimizer("SignSGD"),
        numbers={"lr": 0.01, "momentum": 0.6},
        switches=[DECAY, DECOUPLED],
        extremes=[{"momentum": 0.0}],
        states=["momentum_buffer"],
    ),
}
NAMES_AND_CHECKPOINTS = [name for name, reference in REFERENCES.items() if reference.checkpoints]


@functools.cache
def reference_trajectory(
    name: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...], rounded: torch.dtype | None = None
) -> Trajectory:
    reference = REFERENCES[name]
    return Trajectory(reference.make, dtype, rounded=rounded, **reference.trajectory, **dict(options)).run_steps()


def difference_and_limit(name: str, engine: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[float, float]:
    """The largest difference from the reference, and the limit of it."""
    states = REFERENCES[name].states
    given = tuple(options.items())
    cls = optplug.get_optimizer(name)
    ours = Trajectory(cls, dtype, engine=engine, **REFERENCES[name].trajectory, **options).run_steps()
    theirs = reference_trajectory(name, dtype, given)
    limit = REFERENCES[name].limit(options) or LIMITS[dtype]
    if (engine, dtype) != ("numba", torch.float32):
        return ours.max_difference(theirs, states), limit
    exact = reference_trajectory(name, torch.float64, given, torch.float32)
    return ours.max_difference(exact, states), max(limit, 1.5 * theirs.max_difference(exact, states))


def worst_difference(name: str, engine: str, dtype: torch.dtype) -> tuple[float, float, str]:
    """The largest difference in relation to its limit over all combinations: the difference, the limit, the options."""
    found = [(*difference_and_limit(name, engine, dtype, o), options_id(o)) for o in REFERENCES[name].combinations()]
    return max(found, key=lambda one: one[0] / one[1])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", REFERENCES)
def test_all_option_combinations_equal_the_reference(name, engine, dtype):
    difference, limit, where = worst_difference(name, engine, dtype)
    assert difference <= limit, where


@pytest.mark.parametrize("name", REFERENCES)
def test_combinations_cover_all_options_that_change_the_result(name):
    unrelated = {*inspect.signature(optplug.RuleOptimizer).parameters} - {"decoupled_weight_decay"}
    options = set(inspect.signature(optplug.get_optimizer(name)).parameters) - unrelated
    assert options == {key for combination in REFERENCES[name].combinations() for key in combination}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES_AND_CHECKPOINTS)
@pytest.mark.parametrize("direction", ["ours continues theirs", "theirs continues ours"])
def test_state_dicts_are_exchanged_with_the_reference(name, engine, direction):
    reference = REFERENCES[name]
    ours, theirs = functools.partial(optplug.get_optimizer(name), engine=engine), reference.make
    first_class, then_class = (theirs, ours) if direction.startswith("ours") else (ours, theirs)
    for dtype, limit in LIMITS.items():
        first = Trajectory(first_class, dtype, **reference.all_options).run_steps(0, 20)
        then = Trajectory(then_class, dtype).resume(first).run_steps(20)
        through = Trajectory(theirs, dtype, **reference.all_options).run_steps()
        assert then.max_difference(through, reference.states) <= limit, f"{direction} in {dtype}"


if __name__ == "__main__":
    print(f"{'':18} {'engine':8} {'dtype':14} {'largest':>8} {'allowed':>8}  options")
    for name, engine, dtype in itertools.product(REFERENCES, ENGINES, LIMITS):
        difference, limit, where = worst_difference(name, engine, dtype)
        print(f"{name:18} {engine:8} {dtype!s:14} {difference:8.1e} {limit:8.1e}  {where}")
