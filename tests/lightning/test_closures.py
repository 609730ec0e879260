"""Optimizers that evaluate a closure in their step: what a trainer must not do, and manual optimization."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optplug import OptimizerSpec
from optplug.errors import ConfigTypeError, WiringError


class Evaluates(torch.optim.SGD):
    """Evaluates the closure once before each update, and once after it."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = super().step(closure)
        if closure is not None:
            with torch.enable_grad():
                closure()
        return loss


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any) -> None:
    register_optimizers(
        OptimizerSpec("evaluates", Evaluates, capabilities={"closure"}),
        OptimizerSpec("needs_gradients", Evaluates, capabilities={"gradients_first"}),
    )


names = pytest.mark.parametrize("name", ["evaluates", "needs_gradients", "optplug-classic:lbfgs"])


@pytest.fixture
def untrained_module(scripted_module: Any) -> Any:
    class Untrained(scripted_module):
        def training_step(self, *_: Any) -> Any:
            pytest.fail("a batch was trained")

    return Untrained()


@names
def test_gradient_scaler_is_refused(fit: Any, untrained_module: Any, pl: Any, name: str):
    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    message = rf"^optimizer: {name.split(':')[-1]} evaluates a closure, and .*use precision 'bf16-mixed' or '32-true'"
    with pytest.raises(WiringError, match=message):
        fit(name, module=untrained_module, plugins=[plugin])


@names
def test_accumulation_of_gradients_is_refused(fit: Any, untrained_module: Any, name: str):
    message = (
        rf"^optimizer: {name.split(':')[-1]} evaluates a closure, .* but accumulate_grad_batches=3 accumulates .*: "
        "use accumulate_grad_batches=1 and a larger batch size$"
    )
    with pytest.raises(WiringError, match=message):
        fit(name, module=untrained_module, accumulate_grad_batches=3)


@pytest.mark.both_import_names
def test_later_accumulation_of_gradients_is_refused(
    optplug_lightning: Any, trainer: Any, untrained_module: Any, pl: Any
):
    scheduler = pl.callbacks.GradientAccumulationScheduler({2: 2})
    configure = optplug_lightning.ConfigureOptimizers("evaluates", verbose=False)
    with pytest.raises(WiringError, match=r"but GradientAccumulationScheduler accumulates"):
        trainer(callbacks=[configure, scheduler]).fit(untrained_module)


def test_accumulation_by_a_scheduler_of_ones_is_no_accumulation(
    optplug_lightning: Any, trainer: Any, scripted_module: Any, pl: Any
):
    scheduler = pl.callbacks.GradientAccumulationScheduler({2: 1})
    configure = optplug_lightning.ConfigureOptimizers("evaluates", verbose=False)
    trainer(callbacks=[configure, scheduler]).fit(scripted_module())


def test_other_optimizers_accumulate_gradients(fit: Any):
    fit("sgd", accumulate_grad_batches=3)


@pytest.fixture
def manual_module(scripted_module: Any) -> Any:
    """The class of a module with manual optimization that passes a closure, or none."""

    class Manual(scripted_module):
        def __init__(self, *, passes_closure: bool) -> None:
            super().__init__(automatic=False)
            self.passes_closure = passes_closure

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Any:
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            if self.passes_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()

    return Manual


@pytest.mark.both_import_names
@names
def test_manual_step_without_a_closure_is_refused(fit: Any, manual_module: Any, name: str):
    with pytest.raises((WiringError, ConfigTypeError), match=r"(?i)closure.*: write optimizer.step\(closure\)"):
        fit(name, module=manual_module(passes_closure=False))


@names
def test_manual_step_with_a_closure_trains(fit: Any, manual_module: Any, name: str):
    module = manual_module(passes_closure=True)
    before = module.layer.weight.detach().clone()
    fit({"name": name, "lr": 0.1}, module=module)
    assert not torch.equal(module.layer.weight, before)
