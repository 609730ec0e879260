"""`create_optimizer_and_scheduler`: training loops without a Lightning trainer, in Fabric, and of Hugging Face."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

import optplug
from optplug.config.param_groups import group_table
from optplug.errors import ConfigError, ConfigErrors, ConfigTypeError, OptplugError
from optplug.schedulers.warmup import Warmup

SGD = {"name": "sgd", "lr": 1.0}
COSINE = {"name": "cosine_annealing_lr", "T_max": 12, "interval": "step"}
HALVING = {"name": "step_lr", "step_size": 1, "gamma": 0.5}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "mode": "min"}


class Layers(nn.Module):
    """A linear layer and a norm; the rate of the links is `rate`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(3, 2), nn.LayerNorm(2)
        self.rate = 0.25

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


def warmup_factor(step: int, steps: int, start: float | None = None) -> float:
    start = 1 / steps if start is None else start
    return 1.0 if step >= steps else start + (1 - start) * step / steps


def cosine_factor(t: int, period: int = 12) -> float:
    return (1 + math.cos(math.pi * t / period)) / 2


def train(
    optimizer: Any, scheduler: Any, epochs: int, batches: int, interval: str, model: Any = None, closure: Any = None
) -> list[float]:
    """Train, and return the learning rate of each optimizer step.

    Args:
        optimizer: the optimizer; a wrapper is allowed.
        scheduler: the scheduler.
        epochs: the number of epochs. The metric of an epoch is its number.
        batches: the number of optimizer steps of each epoch.
        interval: `"step"`, `"epoch"` or `"validation"`.
        model: computes the gradients. Default: no gradients.
        closure: the argument of the optimizer's step.
    """
    lrs = []
    for epoch in range(epochs):
        for _ in range(batches):
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            if model is not None:
                optimizer.zero_grad()
                model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step(closure)
            if interval == "step":
                scheduler.step()
        if interval == "epoch":
            scheduler.step()
        elif interval == "validation":
            scheduler.step(float(epoch))
    return lrs


LOOPS: dict[str, tuple[Any, str, Callable[[int], float]]] = {
    "step": ({**COSINE, "warmup_steps": 5}, "step", lambda i: warmup_factor(i, 5) * cosine_factor(i)),
    "start factor": (
        {**COSINE, "warmup": {"ratio": 0.5, "start_factor": 0.2}},
        "step",
        lambda i: warmup_factor(i, 6, 0.2) * cosine_factor(i),
    ),
    "auto": (
        {**COSINE, "T_max": "auto", "warmup": {"epochs": 1.5}},
        "step",
        lambda i: warmup_factor(i, 6) * cosine_factor(i),
    ),
    "warmup only": ({"warmup_steps": 7}, "step", lambda i: warmup_factor(i, 7)),
    "epoch": ({**HALVING, "warmup_steps": 6}, "epoch", lambda i: warmup_factor(i, 6) * 0.5 ** (i // 4)),
    "plateau": (
        {**PLATEAU, "warmup_steps": 5},
        "validation",
        lambda i: warmup_factor(i, 5) * (0.5 if i >= 8 else 1),
    ),
    "after the warmup": (
        {**COSINE, "T_max": "auto", "warmup": {"steps": 5, "schedule": "after"}},
        "step",
        lambda i: warmup_factor(i, 5) * cosine_factor(max(0, i - 5), 7),
    ),
    "epoch, after the warmup": (
        {**HALVING, "warmup": {"steps": 3, "schedule": "after"}},
        "epoch",
        lambda i: warmup_factor(i, 3) * 0.5 ** max(0, i // 4 - 1),
    ),
    "interval that the loop does not follow": (
        {**COSINE, "interval": "epoch", "T_max": 13, "warmup_steps": 5},
        "step",
        lambda i: warmup_factor(i, 5) * cosine_factor(i, 13),
    ),
}
"""For each loop: the scheduler, when the loop steps it, and the learning rate of each step."""


def create(name: str = "step", optimizer: Any = SGD, model: Any = None, **options: Any) -> tuple[Any, Any]:
    return optplug.create_optimizer_and_scheduler(
        Layers() if model is None else model, optimizer, LOOPS[name][0], epochs=3, steps_per_epoch=4, **options
    )


# ---------------------------------------------------------------------------------------- a plain training loop


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs", "torch"])
def test_warmup_ramps_by_the_steps_of_a_plain_loop(name: str, optimizer: str):
    model = Layers()
    chosen = torch.optim.SGD(model.parameters(), lr=1.0) if optimizer == "torch" else {**SGD, "name": optimizer}
    optimizer, scheduler = create(name, chosen, model)
    _, interval, lr = LOOPS[name]
    assert train(optimizer, scheduler, 3, 4, interval, closure=lambda: torch.zeros(())) == pytest.approx(
        [lr(i) for i in range(12)], rel=1e-12
    )


@pytest.mark.parametrize("name", LOOPS)
def test_steps_use_the_learning_rate_of_the_formula(name: str):
    p = nn.Parameter(torch.zeros((), dtype=torch.float64))
    model = nn.ParameterDict({"p": p})
    optimizer, scheduler = create(name, SGD, model)
    _, interval, lr = LOOPS[name]
    p.grad = torch.ones_like(p)
    train(optimizer, scheduler, 3, 4, interval)
    assert -p.item() == pytest.approx(sum(lr(i) for i in range(12)), rel=1e-12)


def test_learning_rate_changes_in_step_if_the_schedule_steps_with_the_optimizer():
    optimizer, scheduler = create("step")
    for i in range(8):
        optimizer.step()  # a logger that runs here reads the rate of this step
        read = scheduler.get_last_lr(), [optimizer.param_groups[0]["lr"]]
        assert read == ([pytest.approx(LOOPS["step"][2](i))],) * 2
        scheduler.step()


@pytest.mark.parametrize("name", ["step", "warmup only", "interval that the loop does not follow"])
@pytest.mark.parametrize("steps_first", [False, True])
def test_schedule_can_be_drawn_without_optimizer_steps(name: str, steps_first: bool):
    optimizer, scheduler = create(name)
    if steps_first:
        optimizer.step()  # prevents torch's warning
    drawn = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
        for _ in range(10):
            drawn += scheduler.get_last_lr() if drawn or not steps_first else [LOOPS[name][2](0)]
            scheduler.step()
    assert drawn == pytest.approx([LOOPS[name][2](i) for i in range(10)])


def test_step_before_the_first_optimizer_step_warns_as_in_torch():
    _, scheduler = create("step")
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()


@pytest.mark.parametrize("name", ["step", "plateau", "epoch"])
def test_loop_may_count_the_warmup_itself(name: str):
    _, interval, lr = LOOPS[name]
    optimizer, scheduler = create(name)
    lrs = []
    for i in range(12):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.warmup_step()
        if interval == "step" or i % 4 == 3:
            scheduler.step(*((float(i // 4),) if interval == "validation" else ()))
    assert lrs == pytest.approx([lr(i) for i in range(12)], rel=1e-12)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_steps_that_a_gradient_scaler_skips_count_if_the_schedule_is_stepped(interval: str):
    model = Layers()
    optimizer, scheduler = create(interval, SGD, model)
    scaler = torch.amp.GradScaler("cpu")
    lrs = []
    for i in range(4):
        lrs.append(optimizer.param_groups[0]["lr"])
        for p in model.parameters():
            p.grad = torch.full_like(p, math.inf if i == 1 else 1.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        if interval == "step":
            scheduler.step()
    counted = [0, 1, 2, 3] if interval == "step" else [0, 1, 1, 2]
    assert lrs == pytest.approx([LOOPS[interval][2](i) for i in counted])


def test_optimizer_without_step_hooks_warms_up_by_the_steps_of_the_scheduler():
    class Wrapper(torch.optim.Optimizer):
        """Like Accelerate's: an optimizer without the attributes of `Optimizer.__init__`."""

        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> Any:
            return self.optimizer.param_groups

        def step(self, closure: Any = None) -> None:
            self.optimizer.step(closure)

    wrapper = Wrapper(torch.optim.SGD(Layers().parameters(), lr=1.0))
    _, scheduler = create("step", wrapper)
    expected = [LOOPS["step"][2](i) for i in range(12)]
    assert train(wrapper, scheduler, 3, 4, "step") == pytest.approx(expected)


@pytest.mark.parametrize("name", ["warmup only", "epoch"])
def test_rate_that_the_loop_sets_during_the_warmup_is_the_rate_without_warmup(name: str):
    p = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer, scheduler = create(name, SGD, nn.ParameterDict({"p": p}))
    train(optimizer, scheduler, 1, 2, LOOPS[name][1])
    optimizer.param_groups[0]["lr"] = 2.0
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert -p.item() == pytest.approx(2.0 * scheduler.factor(2))


def test_group_added_during_the_warmup_is_warmed_up():
    optimizer, scheduler = create("epoch")
    train(optimizer, scheduler, 1, 3, "")
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5})
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [warmup_factor(4, 6), warmup_factor(4, 6) / 2]
    )


# ---------------------------------------------------------------------------------------------------- state and copies


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("stop", range(1, 12, 2))
@pytest.mark.parametrize("before_step", [False, True])
def test_resumed_loop_equals_uninterrupted_loop(name: str, stop: int, before_step: bool):
    """The interruption is after the optimizer step, before or after the scheduler step that follows it."""
    interval = LOOPS[name][1]

    def step(scheduler: Any, i: int) -> None:
        if interval == "step" or i % 4 == 3:
            scheduler.step(*((float(i // 4),) if interval == "validation" else ()))

    def run(interrupted: bool) -> list[float]:
        optimizer, scheduler = create(name)
        lrs = []
        for i in range(12):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if not (interrupted and before_step and i == stop):
                step(scheduler, i)
            if interrupted and i == stop:
                file = io.BytesIO()
                torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
                file.seek(0)
                optimizer, scheduler = create(name)
                for part, state in zip((optimizer, scheduler), torch.load(file, weights_only=True), strict=True):
                    part.load_state_dict(state)
                if before_step:
                    optimizer._opt_called = True  # torch would warn that the new optimizer has made no step
                    step(scheduler, i)
        return lrs

    assert run(interrupted=True) == run(interrupted=False)


# torch warns in the first step of a copied schedule: the copy of the optimizer does not count its steps for torch.
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step..` has been overridden")
@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"]
)
def test_copy_continues_like_the_original(name: str, duplicate: Any):
    optimizer, scheduler = create(name)
    interval = LOOPS[name][1]
    train(optimizer, scheduler, 1, 2, interval)
    twin = duplicate(scheduler)
    before = twin.optimizer.param_groups[0]["lr"]
    original = train(optimizer, scheduler, 3, 4, interval)
    assert twin.optimizer.param_groups[0]["lr"] == before
    assert train(twin.optimizer, twin, 3, 4, interval) == original


def test_copy_of_the_optimizer_alone_does_not_step_the_original_warmup():
    optimizer, scheduler = create("epoch")
    twin = copy.deepcopy(optimizer)
    twin.step()
    assert (scheduler.steps_taken, twin.param_groups[0]["lr"]) == (0, optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", ["step", "epoch", "plateau"])
@pytest.mark.parametrize("kind", ["sgd", "torch"])
def test_second_warmup_of_an_optimizer_replaces_the_first(name: str, kind: str):
    optimizer = torch.optim.SGD(Layers().parameters(), lr=1.0) if kind == "torch" else SGD
    _, interval, lr = LOOPS[name]
    optimizer, first = create(name, optimizer)
    train(optimizer, first, 1, 2, interval)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer, second = create(name, optimizer)
    lrs = train(optimizer, second, 3, 4, interval)
    assert lrs == pytest.approx([lr(i) for i in range(12)])
    assert first.steps_taken < 3


def test_optimizer_does_not_keep_the_warmup_alive():
    optimizer, scheduler = create("epoch")
    alive = weakref.ref(scheduler), weakref.ref(optimizer)
    gc.disable()
    try:
        del scheduler
        assert alive[0]() is None
        optimizer.step()
        del optimizer
        assert alive[1]() is None
    finally:
        gc.enable()


# -------------------------------------------------------------------------------------------------- Fabric, Accelerate


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("setup", ["together", "module first"])
def test_warmup_ramps_in_fabric(name: str, setup: str):
    fabric = Fabric(accelerator="cpu", devices=1)
    model = module = Layers()
    if setup == "module first":
        model = fabric.setup_module(module)
    optimizer, scheduler = create(name, SGD, module, param_groups=[{"match": "layer.*", "name": "layer"}])
    if setup == "module first":
        optimizer = fabric.setup_optimizers(optimizer)
    else:
        model, optimizer = fabric.setup(model, optimizer)
    _, interval, lr = LOOPS[name]
    lrs = train(optimizer, scheduler, 3, 4, interval, model)
    assert lrs == pytest.approx([lr(i) for i in range(12)], rel=1e-12)


def test_fabric_checkpoint_resumes_the_warmup(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)

    def make() -> dict[str, Any]:
        model = Layers()
        optimizer, scheduler = create("step", SGD, model)
        model, optimizer = fabric.setup(model, optimizer)
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    first, second = make(), make()
    whole = train(first["optimizer"], first["scheduler"], 1, 3, "step", first["model"])
    fabric.save(tmp_path / "state.ckpt", first)
    whole += train(first["optimizer"], first["scheduler"], 1, 9, "step", first["model"])
    fabric.load(tmp_path / "state.ckpt", second)
    assert train(second["optimizer"], second["scheduler"], 1, 9, "step", second["model"]) == whole[3:]
    assert whole == pytest.approx([LOOPS["step"][2](i) for i in range(12)])


def test_warmup_ramps_under_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Layers()
    model, optimizer, scheduler = accelerator.prepare(model, *create("step", SGD, model))
    lrs = []
    for _ in range(24):
        with accelerator.accumulate(model):
            lrs.append(optimizer.param_groups[0]["lr"])
            accelerator.backward(model(torch.ones(4, 3)).square().sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert lrs[1::2] == pytest.approx([LOOPS["step"][2](i) for i in range(12)])


def test_steps_of_several_processes_under_accelerate_count_for_the_warmup():
    """With two processes, Accelerate calls the scheduler's `step` twice after each optimizer step."""
    optimizer, scheduler = create("step")
    lrs = []
    for _ in range(6):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        scheduler.step()
    assert lrs == pytest.approx([LOOPS["step"][2](2 * i) for i in range(6)])


# -------------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture
def hugging_face() -> Callable[..., Any]:
    """Trains a tiny classifier for 9 optimizer steps; returns the rate of each step, the Trainer and the model."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Recorder(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.lrs: list[float] = []

        def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            self.lrs.append(optimizer.param_groups[0]["lr"])

    def run(folder: Any, scheduler: Any, resume: Any = None, **options: Any) -> Any:
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **size))
        data = [{"input_ids": torch.arange(5) + i % 9, "labels": torch.tensor(i % 2)} for i in range(24)]
        quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_steps": 4}
        batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
        arguments = transformers.TrainingArguments(str(folder), **quiet, **batches, **options)
        pair = optplug.create_optimizer_and_scheduler(
            model, {"name": "adamw", "lr": 1.0}, scheduler, param_groups="no_decay", total_steps=9
        )
        recorder = Recorder()
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, eval_dataset=data[:4], optimizers=pair, callbacks=[recorder]
        )
        trainer.train(resume_from_checkpoint=resume)
        return recorder.lrs, trainer, model

    return run


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_warmup_ramps_in_the_trainer_of_hugging_face(hugging_face: Any, tmp_path, interval: str):
    schedule = {**COSINE, "interval": interval, "T_max": 9, "warmup_steps": 4}
    expected = [warmup_factor(i, 4) * cosine_factor(i, 9) for i in range(9)]
    lrs, trainer, model = hugging_face(tmp_path, schedule)
    assert lrs == pytest.approx(expected)
    assert [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e] == pytest.approx(expected)

    resumed, _, again = hugging_face(tmp_path / "resumed", schedule, tmp_path / "checkpoint-4")
    assert resumed == lrs[4:]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_schedule_starts_after_the_warmup_in_the_trainer_of_hugging_face(hugging_face: Any, tmp_path):
    schedule = {**COSINE, "T_max": "auto", "warmup": {"steps": 4, "schedule": "after"}}
    expected = [warmup_factor(i, 4) * cosine_factor(max(0, i - 4), 5) for i in range(9)]
    lrs, _, _ = hugging_face(tmp_path, schedule)
    assert lrs == pytest.approx(expected)
    resumed, _, _ = hugging_face(tmp_path / "resumed", schedule, tmp_path / "checkpoint-4")
    assert resumed == lrs[4:]


def test_plateau_with_warmup_is_stepped_with_the_metric_by_the_trainer_of_hugging_face(hugging_face: Any, tmp_path):
    schedule = {**PLATEAU, "patience": 0, "mode": "max", "threshold": 10.0, "warmup_steps": 4}  # no improvement ever
    lrs, trainer, _ = hugging_face(
        tmp_path, schedule, eval_strategy="epoch", metric_for_best_model="eval_loss", save_strategy="no"
    )
    assert lrs == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1.0, 1.0, 0.5, 0.5, 0.5])
    assert trainer.lr_scheduler.scheduler.last_epoch == 3


# ------------------------------------------------------------------------------------------------------- configuration


def test_all_parts_of_a_configuration_are_built():
    model = Layers()
    optimizer, scheduler = optplug.create_optimizer_and_scheduler(
        model,
        {"name": "adamw", "lr": "module.rate", "weight_decay": 0.5},
        {**HALVING, "warmup": {"ratio": 0.5}},
        param_groups=["no_decay", {"match": "layer.weight", "lr_mult": 2}],
        total_steps=8,
    )
    rows = [(row.lr, row.weight_decay, row.parameters) for row in group_table(optimizer, model)]
    assert rows == [(0.5, 0.5, ("layer.weight",)), (0.25, 0.0, ("layer.bias", "norm.weight", "norm.bias"))]
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.0625]
    assert (type(scheduler), scheduler.warmup_steps) == (Warmup, 4)
    assert type(scheduler.scheduler) is optplug.get_scheduler("step_lr")


def test_result_without_a_scheduler():
    optimizer, scheduler = optplug.create_optimizer_and_scheduler(Layers(), "adam")
    assert (type(optimizer), scheduler) == (optplug.get_optimizer("adam"), None)


def test_list_and_combination_of_optimizers():
    parts = [
        {"name": "sgd", "match": "layer.*", "lr": 1.0, "scheduler": {**HALVING, "warmup_steps": 2}},
        {"name": "adam", "match": "norm.*"},
    ]
    (sgd, warmup), (adam, none) = optplug.create_optimizer_and_scheduler(Layers(), parts)
    assert [type(o).__name__ for o in (sgd, adam)] == ["SGD", "Adam"]
    assert (type(warmup), none) == (Warmup, None)
    combined, scheduler = optplug.create_optimizer_and_scheduler(
        Layers(),
        {"combine": [{k: v for k, v in part.items() if k != "scheduler"} for part in parts]},
        {**HALVING, "warmup_steps": 4},
    )
    lrs = [lr[0] for _ in range(4) if (lr := [g["lr"] for g in combined.param_groups]) and not combined.step()]
    assert lrs == pytest.approx([warmup_factor(i, 4) for i in range(4)])
    assert scheduler.steps_taken == 4


def test_optimizer_object_is_used_as_it_is():
    given = torch.optim.SGD(Layers().parameters(), lr=1.0)
    assert optplug.create_optimizer_and_scheduler(Layers(), given) == (given, None)
    optimizer, scheduler = create("step", given)
    assert optimizer is given is scheduler.optimizer
    with pytest.raises(ConfigError, match=r"^param_groups: not allowed with an optimizer object"):
        create("step", given, param_groups="no_decay")


def test_monitor_is_accepted_and_mode_is_passed_to_the_plateau():
    schedule = {"name": "reduce_lr_on_plateau", "monitor": "val_acc", "mode": "max"}
    _, plateau = optplug.create_optimizer_and_scheduler(Layers(), SGD, schedule)
    assert plateau.mode == "max"
    _, plateau = optplug.create_optimizer_and_scheduler(Layers(), SGD, "reduce_lr_on_plateau", mode="max")
    assert plateau.mode == "max"


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [("val_loss", None, "min"), ("val_acc", None, "max"), ("val_loss", "max", "max"), ("val_score", "min", "min")],
)
def test_name_of_monitored_metric_implies_mode(monitor: str, mode: str | None, expected: str) -> None:
    options = {} if mode is None else {"mode": mode}
    _, scheduler = optplug.create_optimizer_and_scheduler(
        Layers(), SGD, "reduce_lr_on_plateau", monitor=monitor, **options
    )
    assert scheduler.mode == expected


LENGTH = "the length is not known from total_steps, epochs and steps_per_epoch"
INVALID: list[tuple[dict[str, Any], type[OptplugError], str]] = [
    ({"optimizer": None}, ConfigTypeError, "optimizer: must be a name, a mapping with a name"),
    ({"optimizer": "adm"}, OptplugError, "optimizer: no optimizer named 'adm'; did you mean 'adam'"),
    ({"optimizer": {"name": "adam", "lr": -1}}, OptplugError, "optimizer.lr: Invalid learning rate: -1"),
    ({"on_resume": "reset_all"}, ConfigError, "on_resume: reset_all needs a Lightning trainer"),
    ({"scheduler": {**HALVING, "frequency": 2}}, ConfigError, "scheduler.frequency: is 2, but without a Lightning"),
    (
        {"scheduler": "reduce_lr_on_plateau"},
        ConfigError,
        "scheduler.mode: without a Lightning trainer it must be given",
    ),
    (
        {"scheduler": "reduce_lr_on_plateau", "monitor": "val_score"},
        ConfigError,
        "scheduler.mode: without a Lightning trainer it must be given",
    ),
    ({"scheduler": {**PLATEAU, "patience_unit": "steps"}}, ConfigError, "scheduler.patience_unit: steps needs a"),
    ({"scheduler": {**PLATEAU, "on_nonfinite": "raise"}}, ConfigError, "scheduler.on_nonfinite: raise needs a"),
    (
        {"scheduler": {**COSINE, "T_max": "auto"}},
        ConfigError,
        f"scheduler.T_max: is auto, and {LENGTH}: pass them, or give a number",
    ),
    (
        {"scheduler": {**COSINE, "T_max": "auto", "interval": "epoch"}, "total_steps": 9},
        ConfigError,
        "scheduler.T_max: is auto, and the length is not known from total_steps alone: pass epochs or steps_per_epoch "
        "too, give a number, or interval: step",
    ),
    (
        {"scheduler": {"warmup": {"ratio": 0.1}}},
        ConfigError,
        f"scheduler.warmup.ratio: {LENGTH}: pass them, or give the warmup in steps",
    ),
    (
        {"scheduler": {"warmup": {"ratio": 0.1}}, "epochs": 3},
        ConfigError,
        "scheduler.warmup.ratio: the length is not known from epochs alone: pass total_steps or steps_per_epoch too",
    ),
    (
        {"scheduler": {"warmup": {"epochs": 1}}, "total_steps": 3},
        ConfigError,
        "scheduler.warmup.epochs: the length is not known from total_steps alone: pass epochs or steps_per_epoch too,",
    ),
    (
        {"scheduler": {**COSINE, "T_max": "auto"}, "steps_per_epoch": 3},
        ConfigError,
        "scheduler.T_max: is auto, and the length is not known from steps_per_epoch alone: pass total_steps or epochs",
    ),
    ({"verbose": None}, ConfigTypeError, "verbose: must be True or False, got None (NoneType)"),
    ({"override": "no"}, ConfigTypeError, "override: must be True or False, got 'no' (str)"),
    ({"total_steps": 0}, ConfigError, "total_steps: must be at least 1, got 0"),
    ({"epochs": 1.5}, ConfigTypeError, "epochs: must be a whole number, got 1.5"),
    ({"steps_per_epoch": True}, ConfigTypeError, "steps_per_epoch: must be a whole number, got True"),
    (
        {"total_steps": 9, "epochs": 2, "steps_per_epoch": 4},
        ConfigError,
        "total_steps: is 9, but 2 epochs of 4 steps are 8",
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), INVALID, ids=[message for *_, message in INVALID])
def test_invalid_arguments_raise(given: Any, error: type[Exception], message: str):
    with pytest.raises(error) as caught:
        optplug.create_optimizer_and_scheduler(Layers(), **{"optimizer": "adam", **given})
    assert str(caught.value).startswith(message)


def test_several_errors_are_reported_together():
    with pytest.raises(ConfigErrors) as caught:
        optplug.create_optimizer_and_scheduler(
            Layers(), SGD, {**PLATEAU, "mode": None, "on_nonfinite": "raise"}, on_resume="reset_all"
        )
    assert [error.loc for error in caught.value.errors] == [
        ("on_resume",),
        ("scheduler", "on_nonfinite"),
        ("scheduler", "mode"),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"epochs": 3, "steps_per_epoch": 4}, 12),
        ({"total_steps": 10, "epochs": 3, "steps_per_epoch": 4}, 10),
        ({"total_steps": 10, "steps_per_epoch": 4}, 10),
        ({"total_steps": 12, "epochs": 3}, 12),
    ],
    ids=str,
)
def test_two_of_the_lengths_give_the_third(given: Any, expected: int):
    model, schedule = Layers(), {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"epochs": 1}}
    _, by_epoch = optplug.create_optimizer_and_scheduler(model, SGD, schedule, **given)
    _, by_step = optplug.create_optimizer_and_scheduler(model, SGD, {**schedule, "interval": "step"}, **given)
    assert (by_epoch.T_max, by_step.T_max, by_epoch.warmup_steps) == (3, expected, 4)


def test_length_may_be_an_integer_of_another_library():
    _, scheduler = optplug.create_optimizer_and_scheduler(
        Layers(), SGD, {"warmup": {"ratio": 0.5}}, total_steps=np.int64(10)
    )
    assert scheduler.warmup_steps == 5


@pytest.mark.parametrize("flag", ["override", "verbose"])
@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("function", [optplug.create_optimizer_and_scheduler, optplug.configure_optimizers])
def test_flags_of_a_whole_configuration_are_accepted(function: Any, flag: str, value: bool):
    returned = function(Layers(), optimizer=SGD, scheduler=HALVING, **{flag: value})
    assert len(returned) == 2


@pytest.mark.parametrize(
    "given", [list(Layers().parameters()), iter([]), [Layers()]], ids=["list", "iterator", "models"]
)
def test_parameters_in_place_of_the_module_raise(given: Any):
    message = f"module: parameters are selected by name; pass the module, got {type(given).__name__}"
    with pytest.raises(ConfigTypeError, match=message):
        optplug.create_optimizer_and_scheduler(given, SGD)


@pytest.mark.parametrize("schedule", [{**COSINE, "T_max": "auto"}, {"warmup": {"ratio": 0.1}}], ids=["auto", "warmup"])
def test_unknown_length_without_a_trainer_names_the_function_that_takes_it(schedule: Any):
    with pytest.raises(ConfigError, match=r"pass the length to optplug.create_optimizer_and_scheduler, or give"):
        optplug.configure_optimizers(Layers(), SGD, schedule)


def test_create_optimizer_and_scheduler_does_not_import_lightning():
    code = (
        "import sys, torch, optplug\n"
        "pair = optplug.create_optimizer_and_scheduler(torch.nn.Linear(1, 1), 'adam', {'warmup_steps': 2})\n"
        "assert not {'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---------------------------------------------------------------------------------------------------- create_optimizer


def test_create_optimizer_builds_parameter_groups():
    model = Layers()
    optimizer = optplug.create_optimizer("adamw", model, lr=0.5, weight_decay=0.1, param_groups="no_decay")
    configured, _ = optplug.create_optimizer_and_scheduler(
        model, {"name": "adamw", "lr": 0.5, "weight_decay": 0.1}, param_groups="no_decay"
    )
    assert repr(optimizer) == repr(configured)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (None, {"param_groups": "no_deca"}, "param_groups: there is no preset 'no_deca'; did you mean 'no_decay'?"),
        (None, {"param_groups": [{"match": "x", "lr": 1.0}]}, "param_groups[0].match: 'x' matches no parameter"),
        (None, {"param_groups": "no_decay", "lrr": 1}, "optimizer.args.lrr: adamw has no option 'lrr'; did you mean"),
        ([], {"param_groups": "no_decay"}, "param_groups: select parameters of a module by name; pass the module"),
    ],
)
def test_invalid_groups_of_create_optimizer_raise(params: Any, options: Any, message: str):
    with pytest.raises(OptplugError) as caught:
        optplug.create_optimizer("adamw", Layers() if params is None else params, **options)
    assert str(caught.value).startswith(message)
