"""Construction of optimizers of other packages: what they take in place of parameters, and how they use closures."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import optplug
from optplug import OptimizerSpec
from optplug.config.build import build_optimizer, parse_and_check
from optplug.errors import ConfigError, ConfigTypeError, PluginError, WiringError
from optplug.optim.adapted_step import original_class


class Descent(torch.optim.Optimizer):
    """Gradient descent, as written in another package."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.descend()
        return loss

    def descend(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


class WithoutClosure(Descent):
    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.descend()


class IgnoresClosure(Descent):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.descend()


class Sharpness(Descent):
    """Needs gradients when `step` is called, as sharpness-aware minimization."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        ascents = [0.05 * p.grad for p in parameters]
        for p, ascent in zip(parameters, ascents, strict=True):
            p.add_(ascent)
        with torch.enable_grad():
            closure()
        for p, ascent in zip(parameters, ascents, strict=True):
            p.sub_(ascent)
        self.descend()


class OfModule(Descent):
    def __init__(self, model: nn.Module, lr: float = 0.1) -> None:
        self.model = model
        super().__init__([p for p in model.parameters() if p.requires_grad], lr)


class OfNames(Descent):
    """Has a parameter group for each parameter."""

    def __init__(self, named_parameters: Any, lr: float = 0.1) -> None:
        pairs = list(named_parameters)
        super().__init__([{"params": [p], "label": name} for name, p in pairs], lr)


class OfNamesInGroups(Descent):
    """Takes the forms that torch's optimizers take."""


def descent_of(params: Any, lr: float = 0.1, *, scale: float = 1.0) -> torch.optim.Optimizer:
    """Make an optimizer.

    Args:
        scale: a factor of the learning rate.
    """
    return Descent(params, lr * scale)


def no_optimizer(params: Any) -> list[Any]:
    return list(params)


def build_with_double_lr(cls: Any, params: Any, lr: float = 0.1) -> Any:
    return cls(params, lr=2 * lr)


SPECS = (
    OptimizerSpec("descent", Descent),
    OptimizerSpec("without_closure", WithoutClosure),
    OptimizerSpec("ignores_closure", IgnoresClosure),
    OptimizerSpec("declared", IgnoresClosure, capabilities={"no_closure"}),
    OptimizerSpec("sharpness", Sharpness, capabilities={"closure", "gradients_first"}),
    OptimizerSpec("searches", Descent, capabilities={"closure"}),
    OptimizerSpec("of_module", OfModule, capabilities={"module"}),
    OptimizerSpec("of_names", OfNames, capabilities={"named_params"}),
    OptimizerSpec("of_names_in_groups", OfNamesInGroups, capabilities={"named_params"}),
    OptimizerSpec("factory", descent_of),
    OptimizerSpec("faulty_factory", no_optimizer),
    OptimizerSpec("doubled", Descent, build=build_with_double_lr),
    OptimizerSpec("doubled_by_path", Descent, build=f"{__name__}:build_with_double_lr"),
    OptimizerSpec("unusable", Descent, unsupported="it steps in backward: use its own trainer"),
)


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    register_optimizers(*SPECS)


def build(module: nn.Module, optimizer: Any, **options: Any) -> torch.optim.Optimizer:
    return build_optimizer(module, parse_and_check(optimizer, **options).setup)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))


def closure_of(module: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> Callable[[], Any]:
    inputs = torch.linspace(-1, 1, 12).reshape(4, 3)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = module(inputs).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    return closure


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[float]:
    """Train with closures; return the losses that `step` returns."""
    return [optimizer.step(closure_of(module, optimizer, [])).item() for _ in range(steps)]


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# ------------------------------------------------------------------------------------------ closures


@pytest.mark.parametrize("name", ["without_closure", "declared"])
def test_closure_is_evaluated_before_a_step_without_closure(name: str):
    reference = model()
    losses = train(reference, Descent(reference.parameters()))
    module = model()
    assert train(module, build(module, name)) == losses
    assert torch.equal(weights(module), weights(reference))


def test_step_that_needs_gradients_gets_them():
    reference = model()
    theirs, losses = Sharpness(reference.parameters()), []
    for _ in range(5):
        closure = closure_of(reference, theirs, [])
        losses.append(closure().item())
        theirs.step(closure)
    module = model()
    assert train(module, build(module, "sharpness")) == losses
    assert torch.equal(weights(module), weights(reference))


@pytest.mark.parametrize("name", ["sharpness", "searches", "lbfgs"])
def test_step_that_evaluates_a_closure_cannot_be_combined(name: str):
    combined = {"combine": [{"name": name, "match": "0.*"}, {"name": "descent", "rest": True}]}
    message = rf"combine\[0\]: {name} evaluates the closure in its own step, .*: use {name} alone"
    with pytest.raises(ConfigError, match=message):
        parse_and_check(combined)


def test_ignored_closure_raises_error_with_remedy():
    module = model()
    optimizer = build(module, "ignores_closure")
    with pytest.raises(WiringError, match=r'^ignores_closure: step\(closure\) did not call .*"no_closure"'):
        train(module, optimizer)
    optimizer.step()  # without a closure there is nothing to call


def test_used_closure_raises_no_error():
    module = model()
    assert len(train(module, build(module, "descent"))) == 5
    optimizer = build(module, "descent")
    assert optimizer.step(closure=closure_of(module, optimizer, [])) is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("name", ["without_closure", "sharpness"])
def test_copies_are_adapted_too(name: str, copied: Any):
    module = model()
    optimizer = build(module, name)
    train(module, optimizer, 2)
    both = copied((module, optimizer))
    assert train(*both) == train(module, optimizer)
    assert type(both[1]) is type(optimizer)
    assert isinstance(both[1], {spec.name: spec.target for spec in SPECS}[name])  # type: ignore[arg-type]


def test_adapted_optimizer_has_name_state_and_hooks_of_its_class():
    module = model()
    optimizer = build(module, "without_closure")
    assert (type(optimizer).__name__, type(optimizer).__module__) == ("WithoutClosure", __name__)
    other = WithoutClosure(model().parameters(), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.1
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    scheduler = StepLR(optimizer, 1, 0.5)
    inner = closure_of(module, optimizer, [])
    optimizer.step(lambda: (calls.append("closure"), inner())[1])
    scheduler.step()
    assert calls == ["before", "closure", "after"]
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_adapted_optimizer_is_freed():
    optimizer = weakref.ref(build(model(), "without_closure"))
    assert optimizer() is None


# ------------------------------------------------------------------------------------------ the parameters


def test_class_gets_the_module():
    module = model()
    optimizer: Any = build(module, {"name": "of_module", "lr": 0.2})
    assert optimizer.model is module
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert optplug.create_optimizer("of_module", module).model is module  # type: ignore[attr-defined]


def test_class_of_modules_refuses_groups_and_selections():
    module = model()
    with pytest.raises(ConfigError, match="makes its own parameter groups: remove param_groups"):
        build(module, "of_module", param_groups=[{"match": "0.*", "lr": 0.2}])
    with pytest.raises(ConfigError, match=r"of_module takes the whole module, and cannot leave out 2\.weight, 2\.bias"):
        optplug.create_optimizer_and_scheduler(
            module, {"combine": [{"name": "of_module", "match": "0.*"}, {"name": "descent", "rest": True}]}
        )
    module[2].requires_grad_(False)
    assert len(build(module, "of_module").param_groups[0]["params"]) == 2
    with pytest.raises(ConfigTypeError, match="of_module takes a module in place of parameters: pass the module"):
        optplug.create_optimizer("of_module", module.parameters())


def test_class_gets_names_of_parameters():
    module = model()
    names = [name for name, _ in module.named_parameters()]
    for made in (build(module, "of_names"), optplug.create_optimizer("of_names", module.named_parameters())):
        assert [group["label"] for group in made.param_groups] == names
    with pytest.raises(ConfigTypeError, match=r"pass the module, or its named_parameters\(\)"):
        optplug.create_optimizer("of_names", module.parameters())


def test_names_are_in_parameter_groups():
    made = build(model(), "of_names_in_groups", param_groups=[{"match": "0.*", "lr": 0.2}])
    assert [(group["lr"], group["param_names"]) for group in made.param_groups] == [
        (0.2, ["0.weight", "0.bias"]),
        (0.1, ["2.weight", "2.bias"]),
    ]


def test_class_of_names_that_takes_no_groups_refuses_them():
    message = r"^param_groups\[0\]: of_names takes no parameter groups: remove param_groups \("
    with pytest.raises(ConfigError, match=message):
        build(model(), "of_names", param_groups=[{"match": "0.*", "lr": 0.2}])


# ------------------------------------------------------------------------------------------ factories, `build`


def test_factory_makes_the_optimizer():
    made = build(model(), {"name": "factory", "lr": 0.2, "scale": 0.5}, param_groups=[{"match": "0.*", "lr": 0.3}])
    assert original_class(made) is Descent
    assert [group["lr"] for group in made.param_groups] == [0.3, 0.1]
    with pytest.raises(ConfigError, match="factory has no option 'scal'; did you mean 'scale'"):
        parse_and_check({"name": "factory", "scal": 1.0})


def test_factory_that_returns_no_optimizer_raises_error():
    with pytest.raises(PluginError, match=r"'faulty_factory' .* returned a list, which is not a torch.optim.Optim"):
        optplug.create_optimizer("faulty_factory", model())


@pytest.mark.parametrize("name", ["doubled", "doubled_by_path"])
def test_build_is_called_in_place_of_the_class(name: str):
    assert build(model(), {"name": name, "lr": 0.2}).param_groups[0]["lr"] == 0.4


def test_build_that_cannot_be_imported_raises_error(register_optimizers: Any):
    register_optimizers(OptimizerSpec("broken", Descent, build="nowhere:build"))
    with pytest.raises(PluginError, match=r"'broken' .* could not be loaded from 'nowhere:build'"):
        optplug.create_optimizer("broken", model())


# ------------------------------------------------------------------------------------------ unsupported


def test_unsupported_optimizer_is_refused_early():
    message = "unusable of plugin .* cannot be used: it steps in backward: use its own trainer"
    with pytest.raises(ConfigError, match=rf"^optimizer\.name: {message}"):
        parse_and_check({"name": "unusable", "lr": 0.1})
    with pytest.raises(ConfigError, match=message):
        optplug.create_optimizer("unusable", model())
