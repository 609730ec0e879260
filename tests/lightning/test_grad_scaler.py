"""A gradient scaler that skips a step: no schedule counts what was not taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

BATCHES = 4
"""Of an epoch of the scripted module."""

SGD = {"name": "sgd", "lr": 1.0}
ADAM = {"name": "adam", "lr": 0.1}
FUSED = {**ADAM, "fused": True}
HALVING = {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}
PLATEAU = {
    "name": "reduce_lr_on_plateau",
    "patience": 6,
    "patience_unit": "steps",
    "factor": 0.5,
    "monitor": "val_loss",
}
WORSE = {"val_loss": [0.0, 1.0, 2.0, 3.0, 4.0]}

SKIPPED = {"the first": {0}, "the first two": {0, 1}, "amid": {5}, "the last of an epoch": {3}, "many": {0, 2, 3, 7}}
automatically = pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
optimizers = pytest.mark.parametrize("optimizer", [SGD, ADAM, FUSED], ids=["sgd", "adam", "fused"])
skipped = pytest.mark.parametrize("overflows", SKIPPED.values(), ids=SKIPPED)


@pytest.fixture
def overflowing(scripted: type) -> Any:
    """A module whose gradients overflow in some batches of the training; it notes those that changed no weight."""

    class Overflowing(scripted):
        def __init__(self, overflows: Any, automatic: bool = True, **kwargs: Any) -> None:
            super().__init__(automatic=automatic, **kwargs)
            self.overflows = overflows
            self.idle: set[int] = set()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.batch = self.trainer.current_epoch * BATCHES + batch_idx
            self.before = [p.detach().clone() for p in self.parameters()]

        def on_after_backward(self) -> None:
            if self.batch in self.overflows:
                self.layer.weight.grad[0, 1] = math.inf

        def on_train_batch_end(self, *_: Any) -> None:
            if all(torch.equal(p, q) for p, q in zip(self.parameters(), self.before, strict=True)):
                self.idle.add(self.batch)

    return Overflowing


@pytest.fixture
def scaled(pl: Any, fit: Any) -> Any:
    """As `fit`, with half precision and a scaler."""

    def run(*args: Any, **kwargs: Any) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return fit(*args, plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)], **kwargs)

    return run


def taken(overflows: Any, batch: int) -> int:
    """The steps taken before a batch."""
    return batch - sum(skipped < batch for skipped in overflows)


def by_batch(overflows: Any, rate: Any, batches: int = 3 * BATCHES) -> Any:
    """The learning rate of each batch, which is a function of the steps taken."""
    return pytest.approx([rate(taken(overflows, batch)) for batch in range(batches)], rel=1e-12)


@skipped
@optimizers
@automatically
def test_row_17_a_step_that_was_skipped_is_not_counted(
    overflowing: type, scaled: Any, automatic: bool, optimizer: Any, overflows: Any
) -> None:
    made, module = scaled(optimizer, HALVING, module=overflowing(overflows, automatic))
    assert module.idle == overflows
    assert module.rates == by_batch(overflows, lambda n: optimizer["lr"] * 0.5**n)
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 3 * BATCHES - len(overflows)


@pytest.mark.parametrize("overflows", [{0, 1}, {2, 3, 9}], ids=["at once", "amid"])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@automatically
def test_row_17_a_warmup_goes_on_where_it_was(
    overflowing: type, scaled: Any, automatic: bool, optimizer: Any, overflows: Any
) -> None:
    module = overflowing(overflows, automatic)
    warmup = {"steps": 6, "start_factor": 0.25}
    made, _ = scaled(optimizer, {**HALVING, "frequency": 100, "warmup": warmup}, module=module)
    assert module.rates == by_batch(overflows, lambda n: optimizer["lr"] * (0.25 + 0.75 * min(n, 6) / 6))
    assert not made.lr_scheduler_configs[0].scheduler.warming


@pytest.mark.parametrize(
    ("overflows", "cut"), [(set(), 2), ({0}, 2), ({0, 1}, 2), ({4}, 2), ({4, 6}, 3), ({4, 6, 8, 9, 10, 12}, 4)]
)
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@automatically
def test_row_17_patience_in_steps_is_not_used_up_by_them(
    overflowing: type, scaled: Any, automatic: bool, optimizer: Any, overflows: Any, cut: int
) -> None:
    """The first validation is the best; more than six steps later, without a better one, the rate is cut."""
    module = overflowing(overflows, automatic, val=WORSE)
    scaled(optimizer, PLATEAU, module=module, max_epochs=cut + 2)
    epochs = [module.rates[epoch * BATCHES] for epoch in range(cut + 2)]
    assert epochs == [0.1] * (cut + 1) + [0.05]


@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
def test_row_17_a_frequency_counts_none_that_was_skipped(overflowing: type, scaled: Any, optimizer: Any) -> None:
    overflows = {2, 5}
    _, module = scaled(optimizer, {**HALVING, "frequency": 3}, module=overflowing(overflows))
    assert module.rates == by_batch(overflows, lambda n: 0.1 * 0.5 ** (n // 3))


@pytest.mark.parametrize("overflow", [2, 3], ids=["first half", "second half"])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
def test_row_17_an_overflow_in_one_accumulated_batch_skips_the_step(
    overflowing: type, scaled: Any, optimizer: Any, overflow: int
) -> None:
    _, module = scaled(optimizer, HALVING, module=overflowing({overflow}), accumulate_grad_batches=2)
    steps = [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4]  # none after batch 3
    assert module.rates == pytest.approx([0.1 * 0.5**n for n in steps], rel=1e-12)
    assert module.idle == {0, 2, 3, 4, 6, 8, 10}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("fused", [False, True])
def test_row_17_an_optimizer_of_torch_s_too(overflowing: type, scaled: Any, make: Any, fused: bool) -> None:
    class Own(overflowing):
        def configure_optimizers(self) -> Any:
            return make(self.parameters(), lr=0.1, fused=fused)

    overflows = {0, 5}
    _, module = scaled(None, HALVING, module=Own(overflows))
    assert module.idle == overflows
    assert module.rates == by_batch(overflows, lambda n: 0.1 * 0.5**n)


@pytest.mark.parametrize("fused", [False, True])
def test_row_17_one_optimizer_made_of_two_skips_as_one(overflowing: type, scaled: Any, fused: bool) -> None:
    options = {"lr": 0.1, **({"fused": True} if fused else {})}
    members = [{"name": "adam", "match": "*.weight", **options}, {"name": "adamw", "match": "*.bias", **options}]
    overflows = {0, 5}  # in the weight alone
    _, module = scaled({"combine": members}, HALVING, module=overflowing(overflows))
    assert module.idle == overflows
    assert module.rates == by_batch(overflows, lambda n: 0.1 * 0.5**n)


@pytest.mark.parametrize("fused", [False, True])
def test_row_17_each_of_two_optimizers_has_its_own_count(overflowing: type, scaled: Any, fused: bool) -> None:
    class Two(overflowing):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            both = self.optimizers()
            self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in both])
            self.manual_backward(self.loss(batch))
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()

    options = {"lr": 0.1, "scheduler": HALVING, **({"fused": True} if fused else {})}
    two = [{"name": "adam", "match": "*.weight", **options}, {"name": "adam", "match": "*.bias", **options}]
    overflows = {0, 5}
    _, module = scaled(two, module=Two(overflows, automatic=False))
    assert [weight for weight, _ in module.rates] == by_batch(overflows, lambda n: 0.1 * 0.5**n)
    assert [bias for _, bias in module.rates] == by_batch(set(), lambda n: 0.1 * 0.5**n)


def test_row_17_the_scale_that_torch_begins_with_finds_its_way(pl: Any, fit: Any, scripted: type) -> None:
    """Gradients of half precision overflow by themselves until the scale has fallen."""

    class Steep(scripted):
        def loss(self, batch: Any) -> Any:
            return 100 * super().loss(batch)

        def on_train_batch_start(self, *_: Any) -> None:
            self.scales = [*getattr(self, "scales", []), scaler.get_scale()]

    scaler, module = torch.amp.GradScaler("cpu"), Steep()
    fit(ADAM, HALVING, module=module, plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    overflows = {
        i for i, (scale, later) in enumerate(zip(module.scales, module.scales[1:], strict=False)) if later < scale
    }
    assert 0 in overflows
    assert len(overflows) < 11
    assert module.rates == by_batch(overflows, lambda n: 0.1 * 0.5**n)


@pytest.mark.parametrize("scheduler", [{**HALVING, "frequency": 3}, {**HALVING, "warmup_steps": 7}, PLATEAU])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@automatically
def test_row_17_a_checkpoint_keeps_the_count(
    overflowing: type, scaled: Any, tmp_path: Path, automatic: bool, optimizer: Any, scheduler: Any
) -> None:
    overflows = {1, 4, 6, 9, 13}

    def run(epochs: int, **kwargs: Any) -> Any:
        module = overflowing(overflows, automatic, val=WORSE)
        return scaled(optimizer, scheduler, module=module, max_epochs=epochs, **kwargs)

    made, _ = run(2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["optplug"]["steps"] == [5]
    _, rest = run(5, ckpt_path=tmp_path / "half.ckpt")
    _, whole = run(5)
    assert rest.rates == whole.rates[2 * BATCHES :]
    assert len(set(whole.rates)) > 1
    for mine, other in zip(rest.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)
