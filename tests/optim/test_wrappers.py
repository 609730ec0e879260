"""optplug's optimizers as the base of optimizers that wrap another, compared with the same around torch's classes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import nn

import optplug
from optplug.errors import HyperparameterError

BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}


class Radius:
    """The schedule of the radius of GSAM."""

    def step(self) -> float:
        return 0.05


class OwnGroups(torch.optim.Optimizer):
    """A wrapper that keeps its own list of groups. One of its options resembles an option of SGD."""

    def __init__(self, params: Any, base: Any, moment: float = 0.5, **options: Any) -> None:
        super().__init__(params, {"moment": moment, **options})
        self.base = base(self.param_groups, **options)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(1 - group["moment"])
        return self.base.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"wrapper": super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["wrapper"])
        self.base.load_state_dict(state_dict["base"])
        self.base.param_groups = self.param_groups

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def around_class(wrapper: Any, **options: Any) -> Callable[..., Any]:
    return lambda model, groups, cls, settings: wrapper(groups, cls, **options, **settings)


def around_instance(wrapper: Any, **options: Any) -> Callable[..., Any]:
    return lambda model, groups, cls, settings: wrapper(cls(groups, **settings), **options)


WRAPPERS: dict[str, Callable[..., Any]] = {
    "FriendlySAM": around_class(pytorch_optimizer.FriendlySAM),
    "GSAM": lambda model, groups, cls, settings: pytorch_optimizer.GSAM(
        model.parameters(), cls(groups, **settings), model, Radius()
    ),
    "LookSAM": around_class(pytorch_optimizer.LookSAM, k=3),
    "Lookahead": around_instance(pytorch_optimizer.Lookahead, pullback_momentum="none"),
    "Lookahead pullback": around_instance(pytorch_optimizer.Lookahead, pullback_momentum="pullback"),
    "Lookahead of a class": lambda model, groups, cls, settings: pytorch_optimizer.Lookahead(
        cls, params=groups, **settings
    ),
    "Magma": around_instance(pytorch_optimizer.Magma),
    "OrthoGrad": around_instance(pytorch_optimizer.OrthoGrad),
    "OwnGroups": around_class(OwnGroups),
    "SAM": around_class(pytorch_optimizer.SAM),
    "SAM adaptive": around_class(pytorch_optimizer.SAM, rho=0.2, adaptive=True),
    "ScheduleFreeWrapper": around_instance(pytorch_optimizer.ScheduleFreeWrapper),
    "TRAC": around_instance(pytorch_optimizer.TRAC),
    "WSAM": lambda model, groups, cls, settings: pytorch_optimizer.WSAM(model, groups, cls, **settings),
    "schedulefree": around_instance(schedulefree.ScheduleFreeWrapper),
}
WITH_GRADIENTS = ("FriendlySAM", "LookSAM", "SAM")
"""The beginnings of the names of wrappers whose `step(closure)` needs gradients."""

STEPS = 20


class Training:
    """A training with a wrapper whose learning rates are set on the groups of the wrapper.

    Args:
        wrapper: a name of `WRAPPERS`.
        cls: the class of the base.
        settings: its hyperparameters.
    """

    def __init__(self, wrapper: str, cls: Any, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.name, self.lr = wrapper, settings["lr"]
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.inputs, self.targets = torch.randn(16, 4).double(), torch.randn(16, 3).double()
        groups = [
            {"params": list(self.model[0].parameters())},
            {"params": list(self.model[2].parameters()), "weight_decay": 0.1},
        ]
        self.optimizer = WRAPPERS[wrapper](self.model, groups, cls, settings)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()

    def closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = ((self.model(self.inputs) - self.targets) ** 2).mean()
        loss.backward()
        return loss

    def step(self, number: int) -> None:
        torch.manual_seed(number)  # Magma draws random numbers
        for group, factor in zip(self.optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = self.lr * factor * 0.95**number
        if self.name.startswith(WITH_GRADIENTS):
            self.closure()
            self.optimizer.step(self.closure)
        elif self.name == "GSAM":
            self.optimizer.set_closure(nn.MSELoss(), self.inputs, self.targets)
            self.optimizer.step()
        elif self.name == "WSAM":
            self.optimizer.step(self.closure)
        else:
            self.closure()
            self.optimizer.step()

    def run(self, start: int = 0, end: int = STEPS) -> Training:
        for number in range(start, end):
            self.step(number)
        return self

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def resumed(wrapper: str, cls: Any, settings: dict[str, Any]) -> torch.Tensor:
    """The weights after half of the steps, a resume from the state dict, and the other half."""
    first = Training(wrapper, cls, settings).run(0, STEPS // 2)
    model, optimizer = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
    second = Training(wrapper, cls, settings)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    return second.run(STEPS // 2).weights


def copied(wrapper: str, cls: Any, settings: dict[str, Any]) -> torch.Tensor:
    """The weights after half of the steps, a deep copy of all, and the other half."""
    return copy.deepcopy(Training(wrapper, cls, settings).run(0, STEPS // 2)).run(STEPS // 2).weights


COMBINATIONS = [
    (wrapper, name)
    for wrapper in WRAPPERS
    for name in BASES
    if (wrapper, name) != ("schedulefree", "adamw")  # fails with torch's AdamW too: it looks for `exp_avg` too early
]


@pytest.mark.parametrize("engine", ["loop", "foreach", "numba"])
@pytest.mark.parametrize(("wrapper", "name"), COMBINATIONS)
def test_wrapper_trains_as_around_torchs_class(wrapper, name, engine):
    cls, settings = BASES[name]
    expected = Training(wrapper, cls, settings).run().weights
    made = Training(wrapper, optplug.get_optimizer(name), {**settings, "engine": engine}).run().weights
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("wrapper", "name"), COMBINATIONS)
def test_resumed_wrapper_trains_as_without_interruption(wrapper, name):
    settings = BASES[name][1]
    ours = optplug.get_optimizer(name)
    made, expected = resumed(wrapper, ours, settings), Training(wrapper, ours, settings).run().weights
    torch.testing.assert_close(made, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("wrapper", "name"), [("OwnGroups", "sgd"), ("OwnGroups", "adamw"), ("schedulefree", "sgd")])
def test_copied_wrapper_trains_as_the_original(wrapper, name):  # the others lose attributes, around torch's classes too
    settings = BASES[name][1]
    ours = optplug.get_optimizer(name)
    made, expected = copied(wrapper, ours, settings), Training(wrapper, ours, settings).run().weights
    torch.testing.assert_close(made, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("cls", [torch.optim.SGD, optplug.get_optimizer("sgd")], ids=["torch", "optplug"])
def test_base_shares_the_groups_of_a_wrapper(cls):
    wrapper = OwnGroups([{"params": [torch.zeros(2)], "lr": 1.0}, {"params": [torch.zeros(3)]}], cls, lr=0.1)
    assert all(ours is its for ours, its in zip(wrapper.base.param_groups, wrapper.param_groups, strict=True))
    wrapper.param_groups[1]["lr"] = 7.0
    assert [group["lr"] for group in wrapper.base.param_groups] == [1.0, 7.0]


@pytest.mark.parametrize(("key", "hint"), [("moment", "momentum"), ("momentun", "momentum")])
def test_misspelled_option_in_a_group_of_the_user_is_refused(key, hint):
    groups = [{"params": [torch.zeros(2)], key: 0.5}]
    with pytest.raises(HyperparameterError, match=f"SGD has no option '{key}'; did you mean '{hint}'"):
        optplug.create_optimizer("sgd", groups)
    if key != "moment":  # not an option of the wrapper either
        with pytest.raises(HyperparameterError, match=f"SGD has no option '{key}'; did you mean '{hint}'"):
            OwnGroups(groups, optplug.get_optimizer("sgd"), lr=0.1)


def test_groups_of_the_user_are_not_shared():
    group = {"params": [torch.zeros(2)]}
    optplug.create_optimizer("sgd", [group], lr=0.1)
    assert list(group) == ["params"]


def test_value_of_a_wrapper_out_of_range_is_refused():
    with pytest.raises(HyperparameterError, match="Invalid learning rate: -1"):
        OwnGroups([torch.zeros(2)], optplug.get_optimizer("sgd"), lr=-1)


class NoDefaults(torch.optim.Optimizer):
    """A wrapper without own options."""

    def __init__(self, params: Any, base: Any, **options: Any) -> None:
        super().__init__(params, {})
        self.base = base(self.param_groups, **options)


def test_base_shares_the_groups_of_a_wrapper_without_options():
    wrapper = NoDefaults([torch.zeros(2)], optplug.get_optimizer("sgd"), lr=0.1)
    assert wrapper.base.param_groups[0] is wrapper.param_groups[0]


def test_options_of_nested_wrappers_are_ignored():
    def inner(groups: Any, **options: Any) -> Any:
        return NoDefaults(groups, optplug.get_optimizer("sgd"), **options)

    wrapper = OwnGroups([torch.zeros(2)], inner, lr=0.1)
    assert wrapper.base.base.param_groups[0] is wrapper.param_groups[0]


def test_misspelled_option_is_refused_while_another_optimizer_steps():
    class Building(OwnGroups):
        def step(self, closure: Any = None) -> Any:
            return optplug.create_optimizer("sgd", [{"params": [torch.zeros(2)], "moment": 0.5}])

    with pytest.raises(HyperparameterError, match="SGD has no option 'moment'"):
        Building([torch.zeros(2)], torch.optim.SGD, lr=0.1).step()


def test_wrapper_drops_a_tensor_while_its_constructor_runs():
    class Dropping(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})
            large = torch.zeros(10)
            reference = weakref.ref(large)
            self.base = optplug.create_optimizer("sgd", self.param_groups)
            del large
            self.is_freed = reference() is None

    assert Dropping([torch.zeros(2)]).is_freed


def test_locals_of_a_constructor_are_left_alone():
    class WithLocals(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {})
            options = locals()
            self.base = optplug.create_optimizer("sgd", self.param_groups, lr=lr)
            self.lr = options["lr"]

    assert WithLocals([torch.zeros(2)], 0.5).lr == 0.5
