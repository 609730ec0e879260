"""Optimizers that differentiate the gradients: `backward` with create_graph=True, and what refuses it."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optplug import OptimizerSpec
from optplug.errors import WiringError
from support import QUIET_NO_SANITY

CALLBACK, HELPER = "callback", "configure_optimizers"


class Curvature(torch.optim.Optimizer):
    """Divides the gradient by the diagonal of the Hessian, as AdaHessian does with an estimate."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            hessians = torch.autograd.grad([p.grad.sum() for p in held], held, retain_graph=True)
            with torch.no_grad():
                for p, hessian in zip(held, hessians, strict=True):
                    p.sub_(group["lr"] * p.grad / hessian.abs().clamp_min(0.1))
        return loss


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any) -> None:
    register_optimizers(OptimizerSpec("curvature", Curvature, capabilities={"create_graph"}))


@pytest.fixture
def fit_named(optplug_lightning: Any, scripted_module: Any, self_configured_module: Any, trainer: Any) -> Any:
    """A function that fits a module with an optimizer by name, through the callback or through the helper."""

    def run(name: str = "curvature", by: str = CALLBACK, module: Any = None, **options: Any) -> Any:
        settings = {key: options.pop(key) for key in tuple(options) if key in ("automatic",)}
        if by == HELPER:
            module = self_configured_module({"optimizer": name}, **settings)
            callbacks = []
        else:
            module = scripted_module(**settings) if module is None else module
            callbacks = [optplug_lightning.ConfigureOptimizers(name, verbose=False)]
        made = trainer(**{**QUIET_NO_SANITY, "callbacks": callbacks, **options})
        made.fit(module)
        return module

    return run


def trained_natively(scripted_module: Any) -> torch.Tensor:
    module = scripted_module()
    module.trainer = SimpleNamespace(optimizers=[], current_epoch=0)
    optimizer = Curvature(module.parameters())
    for _ in range(3):
        for batch in module.train_dataloader():
            optimizer.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module.loss(batch).backward(create_graph=True)
            optimizer.step()
    return module.layer.weight.detach()


@pytest.mark.filterwarnings("error:Using backward")
@pytest.mark.parametrize("by", [CALLBACK, HELPER])
@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
def test_gradients_have_a_graph(fit_named: Any, scripted_module: Any, by: str, automatic: bool):
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        module = fit_named(by=by, automatic=automatic)
    finally:
        torch.set_warn_always(before)
    assert torch.equal(module.layer.weight.detach(), trained_natively(scripted_module))


class Saved:
    """A tensor that a graph has saved."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach() if tensor.is_leaf else tensor


@pytest.mark.filterwarnings("ignore:no optimizer of the trainer holds unused")
def test_graphs_are_freed(fit_named: Any, scripted_module: Any):
    saved: list[Any] = []

    def save(tensor: torch.Tensor) -> Saved:
        one = Saved(tensor)
        saved.append(weakref.ref(one))
        return one

    class Model(scripted_module):
        def on_train_start(self) -> None:
            self.unused = torch.nn.Parameter(torch.ones(1))  # no optimizer holds it

        def loss(self, batch: Any) -> torch.Tensor:
            with torch.autograd.graph.saved_tensors_hooks(save, lambda one: one.tensor):
                return super().loss(batch) + self.unused.square().sum() * 0

        def on_train_batch_end(self, *_: Any) -> None:
            assert not any(p.grad.requires_grad for p in self.parameters())

    gc.collect()
    gc.disable()
    try:
        fit_named(module=Model())
        alive = [ref() for ref in saved if ref() is not None]
        assert len(saved) > 36
        assert alive == []
    finally:
        gc.enable()


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
def test_copies_of_the_module_make_no_graph(fit_named: Any, scripted_module: Any, automatic: bool):
    copies: list[Any] = []

    class Model(scripted_module):
        def on_train_batch_end(self, *_: Any) -> None:
            copies.append(copy.deepcopy(self))

        def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
            assert kwargs == ({} if self.is_copy else {"create_graph": True})
            super().backward(loss, **kwargs)

        is_copy = False

    fit_named(module=Model(automatic=automatic))
    copied = copies[-1]
    copied.is_copy = True
    copied.zero_grad()
    loss = copied.layer(torch.ones(1, copied.layer.in_features)).sum()
    copied.backward(loss)
    assert copied.layer.weight.grad is not None
    assert not copied.layer.weight.grad.requires_grad


def test_own_backward_of_a_module_is_called_and_restored(fit_named: Any, scripted_module: Any):
    calls: list[dict[str, Any]] = []

    def own(loss: torch.Tensor, **kwargs: Any) -> None:
        calls.append(kwargs)
        loss.backward(**kwargs)

    module = scripted_module()
    module.__dict__["backward"] = own
    fit_named(module=module)
    assert calls == [{"create_graph": True}] * 12
    assert module.__dict__["backward"] is own


def test_plugin_is_restored_after_an_exception(fit_named: Any, scripted_module: Any):
    plugins: list[Any] = []

    class Failing(scripted_module):
        def on_train_batch_end(self, *_: Any) -> None:
            plugins.append(self.trainer.precision_plugin)
            assert "backward" in vars(plugins[0])
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        fit_named(module=Failing())
    assert "backward" not in vars(plugins[0])


def test_other_optimizers_make_no_graph(fit_named: Any, scripted_module: Any):
    class Model(scripted_module):
        def on_train_batch_end(self, *_: Any) -> None:
            assert "backward" not in vars(self.trainer.precision_plugin)

    fit_named("sgd", module=Model())


def test_backward_without_the_argument_is_refused(fit_named: Any, scripted_module: Any):
    class Model(scripted_module):
        def backward(self, loss: torch.Tensor) -> None:
            pytest.fail("called")

    message = r"^optimizer: curvature needs .* Model.backward takes no such argument: write def backward\(self, "
    with pytest.raises(WiringError, match=message):
        fit_named(module=Model())


def test_own_backward_pass_in_a_manual_step_is_refused(fit_named: Any, scripted_module: Any):
    class Model(scripted_module):
        def manual_backward(self, loss: torch.Tensor) -> None:
            loss.backward()

    with pytest.raises(WiringError, match=r"curvature needs .*: write self.manual_backward\(loss\) in place of"):
        fit_named(module=Model(automatic=False))


def test_gradient_scaler_is_refused(fit_named: Any, pl: Any):
    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    message = "^optimizer: curvature differentiates the gradients, which .*use precision 'bf16-mixed' or '32-true'"
    with pytest.raises(WiringError, match=message):
        fit_named(plugins=[plugin])


def test_several_processes_are_refused():
    from optplug.lightning.gradient_graphs import _check_can_serve

    with pytest.raises(WiringError, match=r"curvature needs .* several processes cannot average"):
        _check_can_serve(SimpleNamespace(world_size=2, precision_plugin=None), None, None, "curvature")
