"""Steps that a gradient scaler skips: no schedule, warmup or patience counts them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from support import SGD

BATCHES = 4
"""The number of batches in an epoch of `scripted_module`."""

ADAM = {"name": "adam", "lr": 0.1}
FUSED = {**ADAM, "fused": True}
EXPONENTIAL = {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}
PLATEAU = {
    "name": "reduce_lr_on_plateau",
    "patience": 6,
    "patience_unit": "steps",
    "factor": 0.5,
    "monitor": "val_loss",
}
RISING_LOSSES = {"val_loss": [0.0, 1.0, 2.0, 3.0, 4.0]}

OVERFLOWING_BATCHES = {"first": {0}, "first two": {0, 1}, "middle": {5}, "last of an epoch": {3}, "many": {0, 2, 3, 7}}
automatic_and_manual = pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
optimizers = pytest.mark.parametrize("optimizer", [SGD, ADAM, FUSED], ids=["sgd", "adam", "fused"])
skipped = pytest.mark.parametrize("overflows", OVERFLOWING_BATCHES.values(), ids=OVERFLOWING_BATCHES)


@pytest.fixture
def overflowing_module(scripted_module: type) -> Any:
    """A module class with gradients that overflow in given batches. It records the batches that change no weight."""

    class OverflowingModule(scripted_module):
        def __init__(self, overflows: Any, automatic: bool = True, **kwargs: Any) -> None:
            super().__init__(automatic=automatic, **kwargs)
            self.overflows = overflows
            self.batches_without_step: set[int] = set()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.batch = self.trainer.current_epoch * BATCHES + batch_idx
            self.before = [p.detach().clone() for p in self.parameters()]

        def on_after_backward(self) -> None:
            if self.batch in self.overflows:
                self.layer.weight.grad[0, 1] = math.inf

        def on_train_batch_end(self, *_: Any) -> None:
            if all(torch.equal(p, q) for p, q in zip(self.parameters(), self.before, strict=True)):
                self.batches_without_step.add(self.batch)

    return OverflowingModule


@pytest.fixture
def fit_with_scaler(pl: Any, fit: Any) -> Any:
    """Like `fit`, with 16-bit mixed precision and a gradient scaler."""

    def run(*args: Any, **kwargs: Any) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return fit(*args, plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)], **kwargs)

    return run


def steps_taken_before(overflows: Any, batch: int) -> int:
    """The number of optimizer steps before a batch."""
    return batch - sum(skipped < batch for skipped in overflows)


def lrs_by_batch(overflows: Any, lr_of: Any, batches: int = 3 * BATCHES) -> Any:
    """The expected learning rates by batch; `lr_of` gives the learning rate after a number of optimizer steps."""
    return pytest.approx([lr_of(steps_taken_before(overflows, batch)) for batch in range(batches)], rel=1e-12)


@skipped
@optimizers
@automatic_and_manual
def test_skipped_steps_are_not_counted(
    overflowing_module: type, fit_with_scaler: Any, automatic: bool, optimizer: Any, overflows: Any
) -> None:
    made, module = fit_with_scaler(optimizer, EXPONENTIAL, module=overflowing_module(overflows, automatic))
    assert module.batches_without_step == overflows
    assert module.lrs == lrs_by_batch(overflows, lambda n: optimizer["lr"] * 0.5**n)
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 3 * BATCHES - len(overflows)


@pytest.mark.parametrize("overflows", [{0, 1}, {2, 3, 9}], ids=["first", "middle"])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@automatic_and_manual
def test_warmup_does_not_advance_with_skipped_steps(
    overflowing_module: type, fit_with_scaler: Any, automatic: bool, optimizer: Any, overflows: Any
) -> None:
    module = overflowing_module(overflows, automatic)
    warmup = {"steps": 6, "start_factor": 0.25}
    made, _ = fit_with_scaler(optimizer, {**EXPONENTIAL, "frequency": 100, "warmup": warmup}, module=module)
    assert module.lrs == lrs_by_batch(overflows, lambda n: optimizer["lr"] * (0.25 + 0.75 * min(n, 6) / 6))
    assert not made.lr_scheduler_configs[0].scheduler.is_warming_up


@pytest.mark.parametrize(
    ("overflows", "cut"), [(set(), 2), ({0}, 2), ({0, 1}, 2), ({4}, 2), ({4, 6}, 3), ({4, 6, 8, 9, 10, 12}, 4)]
)
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@automatic_and_manual
def test_patience_in_steps_does_not_count_skipped_steps(
    overflowing_module: type, fit_with_scaler: Any, automatic: bool, optimizer: Any, overflows: Any, cut: int
) -> None:
    """The first value is the best. The lr is cut at the first validation that is more than six steps later."""
    module = overflowing_module(overflows, automatic, val=RISING_LOSSES)
    fit_with_scaler(optimizer, PLATEAU, module=module, max_epochs=cut + 2)
    epochs = [module.lrs[epoch * BATCHES] for epoch in range(cut + 2)]
    assert epochs == [0.1] * (cut + 1) + [0.05]


@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
def test_frequency_does_not_count_skipped_steps(overflowing_module: type, fit_with_scaler: Any, optimizer: Any) -> None:
    overflows = {2, 5}
    _, module = fit_with_scaler(optimizer, {**EXPONENTIAL, "frequency": 3}, module=overflowing_module(overflows))
    assert module.lrs == lrs_by_batch(overflows, lambda n: 0.1 * 0.5 ** (n // 3))


@pytest.mark.parametrize("overflow", [2, 3], ids=["first half", "second half"])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
def test_overflow_in_one_accumulated_batch_skips_the_step(
    overflowing_module: type, fit_with_scaler: Any, optimizer: Any, overflow: int
) -> None:
    _, module = fit_with_scaler(
        optimizer, EXPONENTIAL, module=overflowing_module({overflow}), accumulate_grad_batches=2
    )
    steps = [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4]  # no step after batch 3
    assert module.lrs == pytest.approx([0.1 * 0.5**n for n in steps], rel=1e-12)
    assert module.batches_without_step == {0, 2, 3, 4, 6, 8, 10}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_of_torch_optimizers_are_not_counted(
    overflowing_module: type, fit_with_scaler: Any, make: Any, fused: bool
) -> None:
    class Own(overflowing_module):
        def configure_optimizers(self) -> Any:
            return make(self.parameters(), lr=0.1, fused=fused)

    overflows = {0, 5}
    _, module = fit_with_scaler(None, EXPONENTIAL, module=Own(overflows))
    assert module.batches_without_step == overflows
    assert module.lrs == lrs_by_batch(overflows, lambda n: 0.1 * 0.5**n)


@pytest.mark.parametrize("fused", [False, True])
def test_combined_optimizer_skips_the_whole_step(overflowing_module: type, fit_with_scaler: Any, fused: bool) -> None:
    options = {"lr": 0.1, **({"fused": True} if fused else {})}
    members = [{"name": "adam", "match": "*.weight", **options}, {"name": "adamw", "match": "*.bias", **options}]
    overflows = {0, 5}  # only in the gradient of the weight
    _, module = fit_with_scaler({"combine": members}, EXPONENTIAL, module=overflowing_module(overflows))
    assert module.batches_without_step == overflows
    assert module.lrs == lrs_by_batch(overflows, lambda n: 0.1 * 0.5**n)


@pytest.mark.both_import_names
@pytest.mark.parametrize("fused", [False, True])
def test_each_of_two_optimizers_has_its_own_step_count(
    overflowing_module: type, fit_with_scaler: Any, fused: bool
) -> None:
    class Two(overflowing_module):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            both = self.optimizers()
            self.lrs.append([optimizer.param_groups[0]["lr"] for optimizer in both])
            self.manual_backward(self.loss(batch))
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()

    options = {"lr": 0.1, "scheduler": EXPONENTIAL, **({"fused": True} if fused else {})}
    two = [{"name": "adam", "match": "*.weight", **options}, {"name": "adam", "match": "*.bias", **options}]
    overflows = {0, 5}
    _, module = fit_with_scaler(two, module=Two(overflows, automatic=False))
    assert [weight for weight, _ in module.lrs] == lrs_by_batch(overflows, lambda n: 0.1 * 0.5**n)
    assert [bias for _, bias in module.lrs] == lrs_by_batch(set(), lambda n: 0.1 * 0.5**n)


def test_steps_skipped_at_the_initial_scale_are_not_counted(pl: Any, fit: Any, scripted_module: type) -> None:
    """With torch's initial scale, 16-bit gradients overflow until the scaler has reduced the scale."""

    class LargeGradients(scripted_module):
        def loss(self, batch: Any) -> Any:
            return 100 * super().loss(batch)

        def on_train_batch_start(self, *_: Any) -> None:
            self.scales = [*getattr(self, "scales", []), scaler.get_scale()]

    scaler, module = torch.amp.GradScaler("cpu"), LargeGradients()
    fit(ADAM, EXPONENTIAL, module=module, plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    overflows = {
        i for i, (scale, later) in enumerate(zip(module.scales, module.scales[1:], strict=False)) if later < scale
    }
    assert 0 in overflows
    assert len(overflows) < 11
    assert module.lrs == lrs_by_batch(overflows, lambda n: 0.1 * 0.5**n)


@pytest.mark.parametrize("scheduler", [{**EXPONENTIAL, "frequency": 3}, {**EXPONENTIAL, "warmup_steps": 7}, PLATEAU])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@automatic_and_manual
def test_checkpoint_restores_the_step_count(
    overflowing_module: type, fit_with_scaler: Any, tmp_path: Path, automatic: bool, optimizer: Any, scheduler: Any
) -> None:
    overflows = {1, 4, 6, 9, 13}

    def run(epochs: int, **kwargs: Any) -> Any:
        module = overflowing_module(overflows, automatic, val=RISING_LOSSES)
        return fit_with_scaler(optimizer, scheduler, module=module, max_epochs=epochs, **kwargs)

    made, _ = run(2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["optplug"]["steps"] == [5]
    _, resumed = run(5, ckpt_path=tmp_path / "half.ckpt")
    _, uninterrupted = run(5)
    assert resumed.lrs == uninterrupted.lrs[2 * BATCHES :]
    assert len(set(uninterrupted.lrs)) > 1
    for mine, other in zip(resumed.parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(mine, other)
