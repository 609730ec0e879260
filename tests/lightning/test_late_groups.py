"""Parameter groups that callbacks or modules add during training, for example when they unfreeze layers."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from optplug.config.param_groups import name_groups, parameter_infos
from optplug.optim.combined import Combined
from optplug.registry.specs import SchedulerSpec
from optplug.schedulers.late_groups import follow_groups

BATCHES = 4
"""The number of batches in an epoch of `scripted_module`."""

EPOCHS = 4
RATIO = 0.1
"""The learning rate of the added group, relative to that of the first group."""

SGD = {"name": "sgd", "lr": 0.01}
ADAM = {"name": "adam", "lr": 0.01}
RISING_LOSSES = {"val_loss": [0.0, 1.0, 2.0, 3.0]}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "eps": 0.0, "monitor": "val_loss"}
BOUNDED = {**PLATEAU, "min_lr": [1e-5]}

SCHEDULES: dict[str, Any] = {
    "plateau": PLATEAU,
    "plateau, bounds by group": BOUNDED,
    "cosine": {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"},
    "cosine per epoch": {"name": "cosine_annealing_lr", "T_max": "auto"},
    "lambda": {"name": "lambda_lr", "lr_lambda": "0.9 ** epoch", "interval": "step"},
    "torch OneCycleLR": {"name": "one_cycle_lr", "max_lr": 0.05, "total_steps": EPOCHS * BATCHES},
    "torch LambdaLR": {"name": "torch_lambda_lr"},
}
WITH_WARMUP = {
    name: {**SCHEDULES[name], "warmup_steps": 7}
    for name in ("plateau", "plateau, bounds by group", "cosine", "lambda", "torch OneCycleLR", "torch LambdaLR")
}
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
schedules_with_warmup = pytest.mark.parametrize("schedule", WITH_WARMUP.values(), ids=WITH_WARMUP)
callback_orders = pytest.mark.parametrize("first", [True, False], ids=["optplug first", "optplug last"])

pytestmark = [
    pytest.mark.usefixtures("torch_schedulers"),
    # The resumed runs have no ModelCheckpoint.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
]


class DecayingLR(LambdaLR):
    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        super().__init__(optimizer, decaying, last_epoch)


def decaying(step: int) -> float:
    return 0.9**step


@pytest.fixture
def torch_schedulers(register_schedulers: Any) -> None:
    """Registers torch's schedulers `one_cycle_lr` and `torch_lambda_lr`, stepped after each optimizer step."""
    register_schedulers(
        SchedulerSpec("one_cycle_lr", OneCycleLR, interval="step"),
        SchedulerSpec("torch_lambda_lr", DecayingLR, interval="step"),
    )


@pytest.fixture
def transfer_module(scripted_module: type) -> Any:
    """A module with a backbone. It records the learning rates of all groups at each optimizer step."""

    class Transfer(scripted_module):
        def __init__(self) -> None:
            super().__init__(val=RISING_LOSSES)
            self.backbone = nn.Linear(4, 4)
            self.initial_weight = self.backbone.weight.detach().clone()
            self.lrs_of_steps: list[list[float]] = []

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.lrs_of_steps.append([float(group["lr"]) for group in optimizer.param_groups])

    return Transfer


@pytest.fixture
def fit_with_callbacks(pl: Any, optplug_lightning: Any, trainer: Any, transfer_module: type) -> Any:
    """Fits a module with `ConfigureOptimizers` and other callbacks; returns the trainer and the module."""

    def run(
        callbacks: Any, schedule: Any, *, first: bool = True, optimizer: Any = SGD, verbose: bool = False, **kwargs: Any
    ) -> Any:
        mine = optplug_lightning.ConfigureOptimizers(optimizer, schedule, verbose=verbose)
        module, path = kwargs.pop("module", None) or transfer_module(), kwargs.pop("ckpt_path", None)
        ordered = [mine, *callbacks] if first else [*callbacks, mine]
        made = trainer(callbacks=ordered, **{"max_epochs": EPOCHS, **kwargs})
        made.fit(module, ckpt_path=path)
        return made, module

    return run


@pytest.fixture
def backbone_finetuning(pl: Any) -> Any:
    """Makes Lightning's BackboneFinetuning, which sets the backbone's learning rate in each epoch."""

    def make() -> Any:
        return pl.callbacks.BackboneFinetuning(1, lambda_func=constant_ratio, backbone_initial_ratio_lr=RATIO)

    return make


def constant_ratio(epoch: int) -> float:
    return 1.0


@pytest.fixture
def finetuning_callback(pl: Any) -> Any:
    """A finetuning callback that adds the backbone's group in epoch 1 and sets its learning rate only then."""

    class Unfreeze(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                lr = RATIO * optimizer.param_groups[0]["lr"]
                self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=lr)

    return Unfreeze


@pytest.fixture
def adding_callback(pl: Any) -> Any:
    """Makes a callback that adds the backbone's group in the given hook, in epoch 1."""

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


RATIO_WITHIN_WARMUP = RATIO * (1 / 7 + 6 / 7 * BATCHES / 7)
"""The later ratio of a group that is added one epoch into a warmup: its lr is taken as an lr without warmup."""


def assert_added_group_is_scheduled(made: Any, module: Any, alone: Any, least: int, ratio: float = RATIO) -> None:
    """Check the learning rates of a run in which the backbone's group was added.

    Args:
        made: the trainer.
        module: the module.
        alone: the module of a run without added group. The first group must have the same learning rates in both.
        least: the least number of optimizer steps with both groups.
        ratio: the learning rate of the added group relative to that of the first group.
    """
    assert [head for head, *_ in module.lrs_of_steps] == pytest.approx(
        [head for (head,) in alone.lrs_of_steps], rel=1e-12
    )
    both = [lrs for lrs in module.lrs_of_steps if len(lrs) == 2]
    assert len(both) >= least
    assert [backbone for _, backbone in both] == pytest.approx([ratio * head for head, _ in both], rel=1e-9)
    assert len({head for head, _ in both}) > 1
    assert [group.get("name") for group in made.optimizers[0].param_groups][1:] == ["backbone"]
    assert not torch.equal(module.backbone.weight, module.initial_weight)


@schedules
@callback_orders
def test_group_of_backbone_finetuning_is_scheduled_and_named(
    fit_with_callbacks: Any, backbone_finetuning: Any, schedule: Any, first: bool, capsys: Any
) -> None:
    made, module = fit_with_callbacks([backbone_finetuning()], schedule, first=first, verbose=True)
    _, alone = fit_with_callbacks([], schedule)
    assert [len(lrs) for lrs in module.lrs_of_steps] == [1] * BATCHES + [2] * (EPOCHS - 1) * BATCHES
    assert [head for head, *_ in module.lrs_of_steps] == pytest.approx(
        [head for head, *_ in alone.lrs_of_steps], rel=1e-12
    )
    # Epoch 1 only: at the start of each later epoch BackboneFinetuning sets the learning rate again.
    epoch = module.lrs_of_steps[BATCHES : 2 * BATCHES]
    assert [backbone for _, backbone in epoch] == pytest.approx([RATIO * head for head, _ in epoch], rel=1e-9)
    assert [group.get("name") for group in made.optimizers[0].param_groups][1:] == ["backbone"]
    assert capsys.readouterr().out.count("epoch 1: new parameter groups are scheduled too: backbone\n") == 1


@pytest.mark.both_import_names
@schedules_with_warmup
def test_backbone_finetuning_within_warmup_keeps_the_ratio(
    fit_with_callbacks: Any, backbone_finetuning: Any, schedule: Any
) -> None:
    _, module = fit_with_callbacks([backbone_finetuning()], schedule)
    _, alone = fit_with_callbacks([], schedule)
    assert [head for head, *_ in module.lrs_of_steps] == pytest.approx(
        [head for head, *_ in alone.lrs_of_steps], rel=1e-12
    )
    epoch = module.lrs_of_steps[BATCHES : 2 * BATCHES]
    assert [backbone for _, backbone in epoch] == pytest.approx(
        [RATIO_WITHIN_WARMUP * head for head, _ in epoch], rel=1e-9
    )


@schedules
@callback_orders
def test_group_of_finetuning_callback_keeps_its_ratio(
    fit_with_callbacks: Any, finetuning_callback: type, schedule: Any, first: bool
) -> None:
    made, module = fit_with_callbacks([finetuning_callback()], schedule, first=first)
    _, alone = fit_with_callbacks([], schedule)
    assert_added_group_is_scheduled(made, module, alone, (EPOCHS - 1) * BATCHES)


@schedules_with_warmup
def test_group_added_within_warmup_keeps_its_ratio(
    fit_with_callbacks: Any, finetuning_callback: type, schedule: Any
) -> None:
    made, module = fit_with_callbacks([finetuning_callback()], schedule)
    _, alone = fit_with_callbacks([], schedule)
    assert_added_group_is_scheduled(made, module, alone, (EPOCHS - 1) * BATCHES, RATIO_WITHIN_WARMUP)


@pytest.mark.parametrize("schedule", WITH_WARMUP.values(), ids=WITH_WARMUP)
def test_group_added_after_warmup_keeps_its_ratio(
    fit_with_callbacks: Any, finetuning_callback: type, schedule: Any
) -> None:
    schedule = {**schedule, "warmup_steps": BATCHES - 1}
    made, module = fit_with_callbacks([finetuning_callback()], schedule)
    _, alone = fit_with_callbacks([], schedule)
    assert_added_group_is_scheduled(made, module, alone, (EPOCHS - 1) * BATCHES)


SOME_SCHEDULES = {
    name: SCHEDULES[name] for name in ("plateau, bounds by group", "lambda", "torch OneCycleLR", "torch LambdaLR")
}
some_schedules = pytest.mark.parametrize("schedule", SOME_SCHEDULES.values(), ids=SOME_SCHEDULES)
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
@callback_orders
def test_group_added_in_any_callback_hook_is_scheduled(
    fit_with_callbacks: Any, adding_callback: Any, schedule: Any, hook: str, first: bool
) -> None:
    made, module = fit_with_callbacks([adding_callback(hook)], schedule, first=first)
    _, alone = fit_with_callbacks([], schedule)
    assert_added_group_is_scheduled(made, module, alone, (EPOCHS - 2) * BATCHES)


@some_schedules
@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_train_epoch_start", "on_train_epoch_end"])
def test_group_added_by_module_hook_is_scheduled(
    fit_with_callbacks: Any, transfer_module: type, schedule: Any, hook: str
) -> None:
    def add(self: Any, *args: Any) -> Any:
        optimizer = self.optimizers()
        if self.trainer.current_epoch == 1 and len(optimizer.param_groups) == 1:
            add_backbone(self, optimizer)
        return getattr(super(Adding, self), hook)(*args)

    def __init__(self: Any) -> None:
        super(Adding, self).__init__()
        self.backbone.requires_grad_(False)

    Adding = type("Adding", (transfer_module,), {hook: add, "__init__": __init__})
    made, module = fit_with_callbacks([], schedule, module=Adding())
    _, alone = fit_with_callbacks([], schedule)
    assert_added_group_is_scheduled(made, module, alone, (EPOCHS - 2) * BATCHES)


@some_schedules
def test_group_added_by_module_in_manual_optimization_is_scheduled(
    fit_with_callbacks: Any, transfer_module: type, schedule: Any
) -> None:
    class Manual(transfer_module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.backbone.requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            if self.trainer.global_step == BATCHES + 1:
                add_backbone(self, optimizer)
            super().training_step(batch, batch_idx)

    made, module = fit_with_callbacks([], schedule, module=Manual())
    _, alone = fit_with_callbacks([], schedule)
    assert_added_group_is_scheduled(made, module, alone, (EPOCHS - 1) * BATCHES - 1)


@some_schedules
@callback_orders
@pytest.mark.parametrize("interval", ["step", "epoch", None])
def test_learning_rate_monitor_logs_the_added_group(
    pl: Any,
    fit_with_callbacks: Any,
    finetuning_callback: type,
    schedule: Any,
    first: bool,
    interval: str | None,
    tmp_path: Path,
) -> None:
    monitor = pl.callbacks.LearningRateMonitor(logging_interval=interval)
    logger = pl.loggers.CSVLogger(tmp_path)
    fit_with_callbacks([finetuning_callback(), monitor], schedule, first=first, logger=logger, log_every_n_steps=1)
    logged = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "backbone" in logged.splitlines()[0]


ALL_SCHEDULES = {
    **SCHEDULES,
    **{f"{name}, warmup": schedule for name, schedule in WITH_WARMUP.items()},
}


@pytest.mark.parametrize("schedule", ALL_SCHEDULES.values(), ids=ALL_SCHEDULES)
@pytest.mark.parametrize(
    ("optimizer", "first"), [(SGD, True), (ADAM, False)], ids=["sgd, optplug first", "adam, optplug last"]
)
def test_resume_after_group_was_added_equals_uninterrupted_run(
    save_every_checkpoint: Any,
    fit_with_callbacks: Any,
    finetuning_callback: type,
    schedule: Any,
    optimizer: Any,
    first: bool,
    tmp_path: Path,
) -> None:
    class UnfreezeOnResume(finetuning_callback):
        """Unfreezes the layers again after a resume, because Lightning leaves them frozen."""

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            super().on_fit_start(trainer, module)
            if len(trainer.optimizers[0].param_groups) == 2:
                self.make_trainable(module.backbone)

    def run(*saver: Any, **kwargs: Any) -> Any:
        return fit_with_callbacks([UnfreezeOnResume(), *saver], schedule, first=first, optimizer=optimizer, **kwargs)

    saver = save_every_checkpoint("{epoch}")
    made, uninterrupted = run(saver, enable_checkpointing=True)
    for epoch in (0, 1, 2):
        remade, resumed = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert resumed.lrs_of_steps == uninterrupted.lrs_of_steps[(epoch + 1) * BATCHES :]
        for mine, other in zip(resumed.parameters(), uninterrupted.parameters(), strict=True):
            assert torch.equal(mine, other)
        names = [[group.get("name") for group in one.optimizers[0].param_groups] for one in (made, remade)]
        assert names[0] == names[1]


@schedules
@callback_orders
def test_resume_of_backbone_finetuning_continues_the_lrs(
    save_every_checkpoint: Any,
    fit_with_callbacks: Any,
    backbone_finetuning: Any,
    schedule: Any,
    first: bool,
    tmp_path: Path,
) -> None:
    def run(*saver: Any, **kwargs: Any) -> Any:
        return fit_with_callbacks([backbone_finetuning(), *saver], schedule, first=first, **kwargs)

    saver = save_every_checkpoint("{epoch}")
    _, uninterrupted = run(saver, enable_checkpointing=True)
    for epoch in (0, 1):
        _, resumed = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert resumed.lrs_of_steps == uninterrupted.lrs_of_steps[(epoch + 1) * BATCHES :]


@pytest.mark.parametrize("policy", ["keep", "override_hparams", "reset_scheduler"])
@callback_orders
def test_resume_with_finetuning_callback_under_each_policy(
    pl: Any, optplug_lightning: Any, scripted_module: type, trainer: Any, tmp_path: Path, policy: str, first: bool
) -> None:
    class Unfreeze(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=0.01)

    class WithBackbone(scripted_module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(4, 4)

        def loss(self, batch: Any) -> Any:
            return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

    def run(**kwargs: Any) -> Any:
        path = kwargs.pop("ckpt_path", None)
        mine = optplug_lightning.ConfigureOptimizers(
            "sgd", {"name": "exponential_lr", "gamma": 0.5}, verbose=False, on_resume=policy
        )
        callbacks = [mine, Unfreeze()] if first else [Unfreeze(), mine]
        made = trainer(callbacks=callbacks, **kwargs)
        made.fit(WithBackbone(), ckpt_path=path)
        return made

    made = run(max_epochs=2)
    made.save_checkpoint(tmp_path / "unfrozen.ckpt")
    made = run(max_epochs=3, ckpt_path=tmp_path / "unfrozen.ckpt")
    assert made.current_epoch == 3
    assert len(made.optimizers[0].param_groups) == 2


# ------------------------------------------------------------- schedules that are replaced or end during training


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 5}], ids=["no warmup", "warmup"])
def test_scheduler_replaced_by_weight_averaging_warns_once(pl: Any, fit_with_callbacks: Any, warmup: Any) -> None:
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made, module = fit_with_callbacks([averaging], {**PLATEAU, **warmup}, max_epochs=6)
    messages = [str(w.message) for w in caught if "optplug no longer steps it" in str(w.message)]
    assert len(messages) == 1
    assert messages[0].startswith("reduce_lr_on_plateau is no longer among the trainer's schedulers")
    assert "SWALR" in messages[0]
    assert made.current_epoch == 6
    assert len(module.lrs_of_steps) == 6 * BATCHES
    assert module.lrs_of_steps[-1] == pytest.approx([0.05])


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 3}], ids=["no warmup", "warmup"])
def test_one_cycle_shorter_than_the_training_stays_at_its_end(fit_with_callbacks: Any, warmup: Any) -> None:
    cycle = {"name": "one_cycle_lr", "max_lr": 0.05, "total_steps": 10, **warmup}
    _, module = fit_with_callbacks([], cycle)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler, lrs = OneCycleLR(optimizer, 0.05, 10), []
    for step in range(10):
        lrs.append(optimizer.param_groups[0]["lr"] * (min(1.0, 1 / 3 + 2 / 9 * step) if warmup else 1.0))
        optimizer.step()
        if step < 9:
            scheduler.step()
    assert [lr for (lr,) in module.lrs_of_steps[:10]] == pytest.approx(lrs, rel=1e-9)
    assert {lr for (lr,) in module.lrs_of_steps[9:]} == {module.lrs_of_steps[9][0]}
    assert len(module.lrs_of_steps) == EPOCHS * BATCHES


# ------------------------------------------------------------------------------------------ without a trainer


@pytest.mark.both_import_names
@pytest.mark.parametrize("combined", [False, True], ids=["one optimizer", "combined"])
def test_group_added_through_lightning_optimizer_is_scheduled_and_named(pl: Any, combined: bool) -> None:
    def group(lr: float) -> dict[str, Any]:
        return {"params": [torch.zeros(1, requires_grad=True)], "lr": lr}

    module = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1, bias=False)})
    optimizer = torch.optim.SGD([group(0.1), group(0.02)], momentum=0.9)
    given: dict[str, Any] = {}
    if combined:
        optimizer = Combined([torch.optim.SGD([group(0.1)], momentum=0.9), torch.optim.Adam([group(0.02)])])
        given = {"member": 0}
    scheduler = StepLR(optimizer, 1, 0.5)
    wrapper = importlib.import_module(f"{pl.__name__}.core.optimizer").LightningOptimizer(optimizer)
    wrapper.add_param_group({"params": module["head"].parameters(), "lr": 0.04, **given})
    follow_groups(scheduler)
    assert name_groups(optimizer, parameter_infos(module), 2) == ["sgd_2" if combined else "head.weight"]
    assert scheduler.base_lrs == pytest.approx([0.1, 0.02, 0.04])


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("interval", ["step", "epoch", None])
def test_added_group_keeps_the_name_by_which_it_is_logged_first(
    pl: Any, fit_with_callbacks: Any, adding_callback: Any, hook: str, interval: str | None, tmp_path: Path
) -> None:
    callbacks = [adding_callback(hook), pl.callbacks.LearningRateMonitor(logging_interval=interval)]
    logger = pl.loggers.CSVLogger(tmp_path)
    fit_with_callbacks(callbacks, SCHEDULES["plateau"], logger=logger, log_every_n_steps=1)
    logged = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert sorted(name for name in logged if name.startswith("lr-")) == ["lr-SGD", "lr-SGD/backbone", "lr-SGD/pg1"]


def test_group_added_to_the_modules_own_optimizer_is_not_renamed(
    optplug_lightning: Any, trainer: Any, transfer_module: type, adding_callback: Any
) -> None:
    class Own(transfer_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)

    mine = optplug_lightning.ConfigureOptimizers(scheduler=SCHEDULES["cosine"], verbose=False)
    made = trainer(callbacks=[mine, adding_callback("on_train_batch_start")], max_epochs=EPOCHS)
    module = Own()
    made.fit(module)
    assert [group.get("name") for group in made.optimizers[0].param_groups] == [None, None]
    assert module.lrs_of_steps[-1][1] == pytest.approx(RATIO * module.lrs_of_steps[-1][0])
