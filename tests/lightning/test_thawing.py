"""Layers that are thawed in the middle of a training: every schedule takes their group along."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from optplug.registry.specs import SchedulerSpec

BATCHES = 4
"""Of an epoch of the scripted module."""

EPOCHS = 4
RATIO = 0.1
"""Of the thawed layers' rate to that of the others."""

SGD = {"name": "sgd", "lr": 0.01}
ADAM = {"name": "adam", "lr": 0.01}
WORSE = {"val_loss": [0.0, 1.0, 2.0, 3.0]}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "eps": 0.0, "monitor": "val_loss"}
BOUNDED = {**PLATEAU, "min_lr": [1e-5]}

SCHEDULES: dict[str, Any] = {
    "plateau": PLATEAU,
    "plateau, bounds by group": BOUNDED,
    "cosine": {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"},
    "cosine by epoch": {"name": "cosine_annealing_lr", "T_max": "auto"},
    "lambda": {"name": "lambda_lr", "lr_lambda": "0.9 ** epoch", "interval": "step"},
    "torch's OneCycleLR": {"name": "one_cycle_lr", "max_lr": 0.05, "total_steps": EPOCHS * BATCHES},
    "torch's LambdaLR": {"name": "torch_lambda_lr"},
}
WARMED = {
    name: {**SCHEDULES[name], "warmup_steps": 7}
    for name in ("plateau", "plateau, bounds by group", "cosine", "lambda", "torch's OneCycleLR", "torch's LambdaLR")
}
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
warmed = pytest.mark.parametrize("schedule", WARMED.values(), ids=WARMED)
orders = pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])

pytestmark = [
    pytest.mark.usefixtures("plugins"),
    # What saved the checkpoint is of no more use where a run goes on.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
]


class Falling(LambdaLR):
    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        super().__init__(optimizer, falling, last_epoch)


def falling(step: int) -> float:
    return 0.9**step


@pytest.fixture
def plugins(strangers: Any) -> None:
    """torch's `one_cycle_lr` and `torch_lambda_lr`, which count steps, from somebody else's plugin."""
    strangers(
        SchedulerSpec("one_cycle_lr", OneCycleLR, interval="step"),
        SchedulerSpec("torch_lambda_lr", Falling, interval="step"),
    )


@pytest.fixture
def transfer(scripted: type) -> Any:
    """A module with a backbone; it notes the learning rates of each batch's optimizer step, by group."""

    class Transfer(scripted):
        def __init__(self) -> None:
            super().__init__(val=WORSE)
            self.backbone = nn.Linear(4, 4)
            self.frozen = self.backbone.weight.detach().clone()
            self.used: list[list[float]] = []

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.used.append([float(group["lr"]) for group in optimizer.param_groups])

    return Transfer


@pytest.fixture
def thawed(pl: Any, ours: Any, trainer: Any, transfer: type) -> Any:
    """Fits a module beside callbacks that thaw; returns the trainer and the module."""

    def run(
        thaw: Any, schedule: Any, *, first: bool = True, optimizer: Any = SGD, verbose: bool = False, **kwargs: Any
    ) -> Any:
        mine = ours.ConfigureOptimizers(optimizer, schedule, verbose=verbose)
        module, path = kwargs.pop("module", None) or transfer(), kwargs.pop("ckpt_path", None)
        callbacks = [mine, *thaw] if first else [*thaw, mine]
        made = trainer(callbacks=callbacks, **{"max_epochs": EPOCHS, **kwargs})
        made.fit(module, ckpt_path=path)
        return made, module

    return run


@pytest.fixture
def backbone_finetuning(pl: Any) -> Any:
    """Lightning's callback, which in each epoch sets the backbone's rate itself."""

    def make() -> Any:
        return pl.callbacks.BackboneFinetuning(1, lambda_func=keep, backbone_initial_ratio_lr=RATIO)

    return make


def keep(epoch: int) -> float:
    return 1.0


@pytest.fixture
def finetuning(pl: Any) -> Any:
    """A finetuning callback that sets the backbone's rate once."""

    class Thaw(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                lr = RATIO * optimizer.param_groups[0]["lr"]
                self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=lr)

    return Thaw


@pytest.fixture
def adding(pl: Any) -> Any:
    """Adds the backbone in a hook of a callback, in the second epoch."""

    def make(hook: str) -> Any:
        class Add(pl.Callback):
            def setup(self, trainer: Any, module: Any, stage: str) -> None:
                module.backbone.requires_grad_(False)

        def add(self: Any, trainer: Any, module: Any, *_: Any) -> None:
            (optimizer,) = trainer.optimizers
            if trainer.current_epoch == 1 and len(optimizer.param_groups) == 1:
                add_backbone(module, optimizer)

        setattr(Add, hook, add)
        return Add()

    return make


def add_backbone(module: Any, optimizer: Any) -> None:
    module.backbone.requires_grad_(True)
    lr = RATIO * optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": list(module.backbone.parameters()), "lr": lr})


WITHIN = RATIO * (1 / 7 + 6 / 7 * BATCHES / 7)
"""Of a rate that joins after an epoch of a warmup: the rate it is given counts as the one without warmup."""


def assert_scheduled_too(made: Any, module: Any, alone: Any, least: int, ratio: float = RATIO) -> None:
    """The head has the rates that it has alone, and the backbone's are in proportion; both have trained."""
    assert [head for head, *_ in module.used] == pytest.approx([head for (head,) in alone.used], rel=1e-12)
    both = [rates for rates in module.used if len(rates) == 2]
    assert len(both) >= least
    assert [backbone for _, backbone in both] == pytest.approx([ratio * head for head, _ in both], rel=1e-9)
    assert len({head for head, _ in both}) > 1
    assert [group.get("name") for group in made.optimizers[0].param_groups][1:] == ["backbone"]
    assert not torch.equal(module.backbone.weight, module.frozen)


@schedules
@orders
def test_row_11_a_backbone_that_lightning_thaws(
    thawed: Any, backbone_finetuning: Any, schedule: Any, first: bool, capsys: Any
) -> None:
    made, module = thawed([backbone_finetuning()], schedule, first=first, verbose=True)
    _, alone = thawed([], schedule)
    assert [len(rates) for rates in module.used] == [1] * BATCHES + [2] * (EPOCHS - 1) * BATCHES
    assert [head for head, *_ in module.used] == pytest.approx([head for head, *_ in alone.used], rel=1e-12)
    epoch = module.used[BATCHES : 2 * BATCHES]  # in the next one the callback sets the rate anew
    assert [backbone for _, backbone in epoch] == pytest.approx([RATIO * head for head, _ in epoch], rel=1e-9)
    assert [group.get("name") for group in made.optimizers[0].param_groups][1:] == ["backbone"]
    assert capsys.readouterr().out.count("epoch 1: new parameter groups are scheduled too: backbone\n") == 1


@warmed
def test_row_11_a_backbone_that_lightning_thaws_within_a_warmup(
    thawed: Any, backbone_finetuning: Any, schedule: Any
) -> None:
    _, module = thawed([backbone_finetuning()], schedule)
    _, alone = thawed([], schedule)
    assert [head for head, *_ in module.used] == pytest.approx([head for head, *_ in alone.used], rel=1e-12)
    epoch = module.used[BATCHES : 2 * BATCHES]
    assert [backbone for _, backbone in epoch] == pytest.approx([WITHIN * head for head, _ in epoch], rel=1e-9)


@schedules
@orders
def test_row_11_a_group_of_a_finetuning_callback_keeps_its_ratio(
    thawed: Any, finetuning: type, schedule: Any, first: bool
) -> None:
    made, module = thawed([finetuning()], schedule, first=first)
    _, alone = thawed([], schedule)
    assert_scheduled_too(made, module, alone, (EPOCHS - 1) * BATCHES)


@warmed
def test_row_11_a_group_that_joins_within_a_warmup_keeps_its_ratio(
    thawed: Any, finetuning: type, schedule: Any
) -> None:
    made, module = thawed([finetuning()], schedule)
    _, alone = thawed([], schedule)
    assert_scheduled_too(made, module, alone, (EPOCHS - 1) * BATCHES, WITHIN)


@pytest.mark.parametrize("schedule", WARMED.values(), ids=WARMED)
def test_row_11_a_group_that_joins_after_a_warmup_keeps_its_ratio(thawed: Any, finetuning: type, schedule: Any) -> None:
    schedule = {**schedule, "warmup_steps": BATCHES - 1}
    made, module = thawed([finetuning()], schedule)
    _, alone = thawed([], schedule)
    assert_scheduled_too(made, module, alone, (EPOCHS - 1) * BATCHES)


STEPPED = {
    name: SCHEDULES[name] for name in ("plateau, bounds by group", "lambda", "torch's OneCycleLR", "torch's LambdaLR")
}
some_schedules = pytest.mark.parametrize("schedule", STEPPED.values(), ids=STEPPED)
HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


@some_schedules
@pytest.mark.parametrize("hook", HOOKS)
@orders
def test_row_11_a_group_may_be_added_in_any_hook(
    thawed: Any, adding: Any, schedule: Any, hook: str, first: bool
) -> None:
    made, module = thawed([adding(hook)], schedule, first=first)
    _, alone = thawed([], schedule)
    assert_scheduled_too(made, module, alone, (EPOCHS - 2) * BATCHES)


@some_schedules
@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_train_epoch_start", "on_train_epoch_end"])
def test_row_11_the_module_may_add_it(thawed: Any, transfer: type, schedule: Any, hook: str) -> None:
    def add(self: Any, *args: Any) -> Any:
        optimizer = self.optimizers()
        if self.trainer.current_epoch == 1 and len(optimizer.param_groups) == 1:
            add_backbone(self, optimizer)
        return getattr(super(Adding, self), hook)(*args)

    def __init__(self: Any) -> None:
        super(Adding, self).__init__()
        self.backbone.requires_grad_(False)

    Adding = type("Adding", (transfer,), {hook: add, "__init__": __init__})
    made, module = thawed([], schedule, module=Adding())
    _, alone = thawed([], schedule)
    assert_scheduled_too(made, module, alone, (EPOCHS - 2) * BATCHES)


@some_schedules
def test_row_11_the_module_may_add_it_in_manual_optimisation(thawed: Any, transfer: type, schedule: Any) -> None:
    class Manual(transfer):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.backbone.requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            if self.trainer.global_step == BATCHES + 1:
                add_backbone(self, optimizer)
            super().training_step(batch, batch_idx)

    made, module = thawed([], schedule, module=Manual())
    _, alone = thawed([], schedule)
    assert_scheduled_too(made, module, alone, (EPOCHS - 1) * BATCHES - 1)


@some_schedules
@orders
@pytest.mark.parametrize("interval", ["step", "epoch", None])
def test_row_11_a_monitor_of_learning_rates_beside_it(
    pl: Any, thawed: Any, finetuning: type, schedule: Any, first: bool, interval: str | None, tmp_path: Path
) -> None:
    monitor = pl.callbacks.LearningRateMonitor(logging_interval=interval)
    logger = pl.loggers.CSVLogger(tmp_path)
    thawed([finetuning(), monitor], schedule, first=first, logger=logger, log_every_n_steps=1)
    logged = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "backbone" in logged.splitlines()[0]


EVERY = {**SCHEDULES, **{f"{name}, warmed up": schedule for name, schedule in WARMED.items()}}


@pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize(
    ("optimizer", "first"), [(SGD, True), (ADAM, False)], ids=["sgd, ours first", "adam, ours last"]
)
def test_row_11_what_goes_on_after_thawing_equals_the_uninterrupted(
    pl: Any, thawed: Any, finetuning: type, schedule: Any, optimizer: Any, first: bool, tmp_path: Path
) -> None:
    class Again(finetuning):
        """Thaws once more on resuming, where Lightning leaves the layers frozen."""

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            super().on_fit_start(trainer, module)
            if len(trainer.optimizers[0].param_groups) == 2:
                self.make_trainable(module.backbone)

    def run(*saver: Any, **kwargs: Any) -> Any:
        return thawed([Again(), *saver], schedule, first=first, optimizer=optimizer, **kwargs)

    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    made, whole = run(saver, enable_checkpointing=True)
    for epoch in (0, 1, 2):
        remade, rest = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert rest.used == whole.used[(epoch + 1) * BATCHES :]
        for mine, other in zip(rest.parameters(), whole.parameters(), strict=True):
            assert torch.equal(mine, other)
        names = [[group.get("name") for group in one.optimizers[0].param_groups] for one in (made, remade)]
        assert names[0] == names[1]


@schedules
@orders
def test_row_11_the_rates_of_a_backbone_that_lightning_thawed_go_on(
    pl: Any, thawed: Any, backbone_finetuning: Any, schedule: Any, first: bool, tmp_path: Path
) -> None:
    def run(*saver: Any, **kwargs: Any) -> Any:
        return thawed([backbone_finetuning(), *saver], schedule, first=first, **kwargs)

    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    _, whole = run(saver, enable_checkpointing=True)
    for epoch in (0, 1):
        _, rest = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert rest.used == whole.used[(epoch + 1) * BATCHES :]


# -------------------------------------------------------------------------------- what else callbacks do to schedules


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 5}], ids=["plain", "warmed up"])
def test_weight_averaging_that_replaces_a_plateau_is_named_once(pl: Any, thawed: Any, warmup: Any) -> None:
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made, module = thawed([averaging], {**PLATEAU, **warmup}, max_epochs=6)
    ours = [str(w.message) for w in caught if "optplug steps it no more" in str(w.message)]
    assert len(ours) == 1
    assert ours[0].startswith("reduce_lr_on_plateau is no longer among the trainer's schedulers")
    assert "SWALR" in ours[0]
    assert made.current_epoch == 6
    assert len(module.used) == 6 * BATCHES
    assert module.used[-1] == pytest.approx([0.05])


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 3}], ids=["plain", "warmed up"])
def test_a_cycle_that_is_shorter_than_the_training_stays_at_its_end(thawed: Any, warmup: Any) -> None:
    cycle = {"name": "one_cycle_lr", "max_lr": 0.05, "total_steps": 10, **warmup}
    _, module = thawed([], cycle)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler, rates = OneCycleLR(optimizer, 0.05, 10), []
    for step in range(10):
        rates.append(optimizer.param_groups[0]["lr"] * (min(1.0, 1 / 3 + 2 / 9 * step) if warmup else 1.0))
        optimizer.step()
        if step < 9:
            scheduler.step()
    assert [rate for (rate,) in module.used[:10]] == pytest.approx(rates, rel=1e-9)
    assert {rate for (rate,) in module.used[9:]} == {module.used[9][0]}
    assert len(module.used) == EPOCHS * BATCHES
