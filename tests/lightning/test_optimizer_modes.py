"""Optimizers with `train()` and `eval()`: their mode in each hook, and the weights in checkpoints."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import nn

import optplug
from optplug.lightning.optimizer_modes import OptimizerModes
from optplug.optim.combined import Combined
from support import LIGHTNING

# Some resumed runs save into the folder of the checkpoint that they resume from.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
]

EPOCHS, BATCHES = 2, 4


class Averaging(torch.optim.Optimizer):
    """SGD that evaluates with the mean of the weights so far.

    The mode is an attribute and not part of the state dict. A new optimizer is in training mode. Switching to eval and
    back adds rounding errors to weights and state.
    """

    training = True

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        assert self.training
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["step"] = state.get("step", 0) + 1
                    p.sub_(p.grad, alpha=group["lr"])
                    state.setdefault("mean", torch.zeros_like(p)).lerp_(p, 1 / state["step"])
        return loss

    @torch.no_grad()
    def _swap(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            if (mean := self.state[p].get("mean")) is not None:
                p.add_(mean)
                mean.sub_(p).neg_()
                p.sub_(mean)

    def train(self) -> None:
        if not self.training:
            self._swap()
        self.training = True

    def eval(self) -> None:
        if self.training:
            self._swap()
        self.training = False


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda params: AdamWScheduleFree(params, lr=0.05, warmup_steps=3, weight_decay=0.1),
    "sgd": lambda params: SGDScheduleFree(params, lr=0.1),
    "optplug_adamw": lambda params: optplug.create_optimizer(
        "schedule_free_adamw", params, lr=0.05, warmup_steps=3, weight_decay=0.1
    ),
    "attribute": lambda params: Averaging(params, lr=0.1),
}
all_optimizers = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
automatic_and_manual = pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])


def mode_of(optimizer: Any) -> str:
    training = optimizer.training if isinstance(optimizer, Averaging) else optimizer.param_groups[0]["train_mode"]
    return "train" if training else "eval"


def to_lists(value: Any) -> Any:
    """Tensors in nested containers as lists, for exact comparison."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: to_lists(inner) for key, inner in value.items()}
    return [to_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def evaluation_state(layer: nn.Module, *optimizers: Any) -> tuple[Any, Any]:
    """Weights and optimizer states in eval mode, from a copy."""
    layer, optimizers = copy.deepcopy((layer, optimizers))
    for optimizer in optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    return to_lists(layer.state_dict()), to_lists([optimizer.state_dict() for optimizer in optimizers])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    return net


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()))
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


@pytest.fixture
def switching_module(scripted_module: type) -> Any:
    """A module class with its own `configure_optimizers`. The training batch depends only on the number of steps."""

    class SwitchingModule(scripted_module):
        def __init__(self, make_optimizer: Any, *, self_configured: bool = False, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.layer, self.make_optimizer, self.self_configured = network(), make_optimizer, self_configured
            self.recorded_modes: list[tuple[str, str]] = []
            self.validated: list[Any] = []
            self.after_forward: Any = lambda: None

        def configure_optimizers(self) -> Any:
            self.optimizer = self.make_optimizer(self.layer.parameters())
            return optplug.configure_optimizers(self, self.optimizer) if self.self_configured else self.optimizer

        def record_mode(self, hook: str) -> None:
            self.recorded_modes.append((hook, mode_of(self.optimizer)))

        def loss(self, batch: Any) -> torch.Tensor:
            if not self.trainer.training:
                return super().loss((batch[0], batch[1]))
            self.record_mode("forward")
            loss = loss_of(self.layer, self.trainer.global_step)
            self.after_forward()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.record_mode("sanity check" if self.trainer.sanity_checking else "validation_step")
            self.validated.append(to_lists(self.layer.state_dict()))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.record_mode("test_step")
            self.tested = to_lists(self.layer.state_dict())

    return SwitchingModule


@pytest.fixture
def run(optplug_lightning: Any, trainer: Any) -> Any:
    """Fits a module with `ConfigureOptimizers()` without configuration, and other callbacks; returns the trainer."""

    def fit(module: Any, *callbacks: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
        self_configured = getattr(module, "self_configured", False)
        own = [] if self_configured else [optplug_lightning.ConfigureOptimizers(verbose=False)]
        settings = {"max_epochs": EPOCHS, "val_check_interval": 0.5, "enable_checkpointing": bool(callbacks)}
        made = trainer(**{**settings, "callbacks": [*own, *callbacks], **kwargs})
        made.fit(module, ckpt_path=ckpt_path)
        return made

    return fit


@pytest.fixture
def batch_end_callback(pl: Any) -> Any:
    """Makes a callback that calls a function with the trainer at the end of each batch, before ModelCheckpoint."""

    class BatchEndCallback(pl.Callback):
        def __init__(self, function: Any) -> None:
            self.function = function

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.function(trainer)

    return BatchEndCallback


def final_state(module: Any) -> Any:
    optimizers = module.trainer.optimizers
    return to_lists([module.layer.state_dict(), *(o.state_dict() for o in optimizers)]), mode_of(module.optimizer)


# ---------------------------------------------------------------- hooks

MODES = {
    "sanity check": "eval",
    "on_train_batch_start": "train",
    "forward": "train",
    "on_before_optimizer_step": "train",
    "on_train_batch_end": "train",
    "on_validation_start": "eval",
    "validation_step": "eval",
    "on_validation_end": "eval",
    "on_train_epoch_end": "eval",
    "on_train_end": "eval",
    "test_step": "eval",
}


@automatic_and_manual
@all_optimizers
@pytest.mark.parametrize("self_configured", [False, True], ids=["callback", "configure_optimizers"])
def test_optimizer_has_the_right_mode_in_every_hook(
    pl, switching_module, run, make_optimizer, automatic, self_configured
):
    fitted = switching_module(make_optimizer, automatic=automatic, self_configured=self_configured)
    hooks = {
        hook: lambda self, trainer, pl_module, *_, hook=hook: pl_module.record_mode(hook)
        for hook in MODES
        if hook.startswith("on_")
    }
    recorder = type("Recorder", (pl.Callback,), hooks)()
    # With an interval of 3, each epoch ends with a training batch.
    made = run(fitted, *([] if self_configured else [recorder]), val_check_interval=3)
    made.test(fitted, verbose=False)
    assert set(fitted.recorded_modes) == {
        (hook, mode) for hook, mode in MODES.items() if not (self_configured and hook.startswith("on_"))
    }
    assert sum(hook == "forward" for hook, _ in fitted.recorded_modes) == EPOCHS * BATCHES
    assert fitted.tested == to_lists(fitted.layer.state_dict())


@automatic_and_manual
@all_optimizers
def test_fit_equals_a_manual_loop_that_switches_modes(switching_module, run, make_optimizer, automatic):
    fitted, net, validated = switching_module(make_optimizer, automatic=automatic), network(), []
    run(fitted, num_sanity_val_steps=0)
    optimizer = make_optimizer(net.parameters())
    for step in range(EPOCHS * BATCHES):
        optimizer.train()

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            return loss

        optimizer.step(closure)
        if step % 2:
            optimizer.eval()
            validated.append(to_lists(net.state_dict()))
    assert final_state(fitted) == (to_lists([net.state_dict(), optimizer.state_dict()]), "eval")
    assert fitted.validated[::BATCHES] == validated


@pytest.mark.both_import_names
@all_optimizers
def test_exception_leaves_and_saves_evaluation_weights(
    switching_module, run, save_every_checkpoint, batch_end_callback, tmp_path, make_optimizer
):
    fitted, before = switching_module(make_optimizer), []

    def fail(trainer: Any) -> None:
        if trainer.global_step == 6:
            before.append(evaluation_state(fitted.layer, fitted.optimizer))
            raise InterruptedError

    saves = {"save_on_exception": True} if LIGHTNING >= (2, 5, 3) else {}  # older ones have no such argument
    with pytest.raises(InterruptedError):
        run(fitted, batch_end_callback(fail), save_every_checkpoint(save_on_train_epoch_end=True, **saves))
    weights, states = before[0]
    assert to_lists(fitted.layer.state_dict()) == weights
    assert (tmp_path / "step=6.ckpt").exists() == bool(saves)
    if saves:
        saved = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
        assert saved_weights(saved) == weights
        assert to_lists(saved["optimizer_states"]) == states


# ---------------------------------------------------------------- checkpoints


def saved_weights(checkpoint: Any, prefix: str = "layer.") -> Any:
    return to_lists({k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)})


@automatic_and_manual
@all_optimizers
def test_checkpoint_has_evaluation_weights_and_states(
    switching_module, run, save_every_checkpoint, batch_end_callback, tmp_path, make_optimizer, automatic
):
    fitted, expected, live = switching_module(make_optimizer, automatic=automatic), {}, {}

    def record(trainer: Any) -> None:
        expected[trainer.global_step] = evaluation_state(fitted.layer, fitted.optimizer)
        live[trainer.global_step] = to_lists(fitted.layer.state_dict())

    run(fitted, batch_end_callback(record), save_every_checkpoint(every_n_train_steps=1))
    assert len(expected) == EPOCHS * BATCHES
    for step, (weights, states) in expected.items():
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert saved_weights(saved) == weights
        assert to_lists(saved["optimizer_states"]) == states
        assert (weights == live[step]) == (step == 1)  # after one step the average equals the weights


@automatic_and_manual
@all_optimizers
@pytest.mark.parametrize("when", ["batch end", "between forward and backward"])
def test_saving_does_not_change_the_training(
    switching_module, run, save_every_checkpoint, tmp_path, make_optimizer, automatic, when, batch_end_callback
):
    reference, saved = (
        switching_module(make_optimizer, automatic=automatic),
        switching_module(make_optimizer, automatic=automatic),
    )
    paths: tuple[list[Any], list[Any]] = ([], [])

    def record_states(fitted: Any, path: list[Any]) -> Any:
        return batch_end_callback(lambda trainer: path.append(final_state(fitted)))

    run(reference, record_states(reference, paths[0]), enable_checkpointing=False)
    if when == "batch end":
        run(saved, record_states(saved, paths[1]), save_every_checkpoint(every_n_train_steps=1))
    else:
        saved.after_forward = lambda: saved.trainer.save_checkpoint(tmp_path / f"{saved.trainer.global_step}.ckpt")
        run(saved, record_states(saved, paths[1]))
    assert len(list(tmp_path.glob("*.ckpt"))) == EPOCHS * BATCHES
    assert paths[1] == paths[0]
    assert final_state(saved) == final_state(reference)


@all_optimizers
@pytest.mark.parametrize(
    "settings",
    [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": True, "save_weights_only": True}, {}],
    ids=["epoch end", "epoch end, weights only", "validation end"],
)
def test_checkpoint_at_epoch_or_validation_end_has_the_validated_weights(
    switching_module, run, save_every_checkpoint, tmp_path, make_optimizer, settings
):
    fitted = switching_module(make_optimizer)
    made = run(fitted, save_every_checkpoint(**settings), num_sanity_val_steps=0)
    before = final_state(fitted)
    assert before[1] == "eval"
    made.save_checkpoint(tmp_path / f"step={EPOCHS * BATCHES}.ckpt")
    assert final_state(fitted) == before
    validated = dict(zip(range(2, EPOCHS * BATCHES + 1, 2), fitted.validated[::BATCHES], strict=True))
    files = {int(path.stem.removeprefix("step=")): path for path in tmp_path.glob("*.ckpt")}
    assert set(files) == (set(validated) if settings == {} else {4, 8})
    for step, path in files.items():
        assert saved_weights(torch.load(path, weights_only=True)) == validated[step]


@all_optimizers
def test_module_may_switch_modes_in_its_own_hooks(
    switching_module, run, save_every_checkpoint, tmp_path, make_optimizer
):
    class SwitchesItself(switching_module):
        def on_validation_epoch_start(self) -> None:
            self.optimizer.eval()

        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.optimizer.train()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            if self.trainer.global_step == 6:
                before = evaluation_state(self.layer, self.optimizer)[0]
                self.optimizer.eval()
                self.trainer.save_checkpoint(tmp_path / "by_module.ckpt")
                self.optimizer.train()
                saved = saved_weights(torch.load(tmp_path / "by_module.ckpt", weights_only=True))
                for name, values in saved.items():
                    torch.testing.assert_close(torch.tensor(values), torch.tensor(before[name]), rtol=0, atol=1e-6)

    reference, fitted = (
        switching_module(make_optimizer, automatic=False),
        SwitchesItself(make_optimizer, automatic=False),
    )
    run(reference, num_sanity_val_steps=0)
    run(fitted, save_every_checkpoint(), num_sanity_val_steps=0)
    for step, weights in zip((2, 4), fitted.validated[::BATCHES], strict=False):
        assert saved_weights(torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)) == weights
    for p, q in zip(fitted.layer.parameters(), reference.layer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@all_optimizers
@pytest.mark.parametrize("combined", [False, True], ids=["two optimizers", "combined"])
def test_checkpoint_has_evaluation_weights_of_one_of_two_optimizers_and_a_shared_layer(
    switching_module, run, save_every_checkpoint, batch_end_callback, tmp_path, make_optimizer, combined
):
    class WithHead(switching_module):
        def __init__(self) -> None:
            super().__init__(make_optimizer, automatic=combined)
            self.head = self.layer[2]

        def configure_optimizers(self) -> Any:
            plain = torch.optim.SGD(self.layer[:2].parameters(), lr=0.1, momentum=0.9)
            self.optimizer = make_optimizer(self.head.parameters())
            self.optimizer.add_param_group({"params": []})
            return Combined([plain, self.optimizer]) if combined else [plain, self.optimizer]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if combined:
                return super().training_step(batch, batch_idx)
            loss = self.loss(batch)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            return None

    reference, saved, expected = WithHead(), WithHead(), {}

    def record(trainer: Any) -> None:
        expected[trainer.global_step] = evaluation_state(saved.layer, *trainer.optimizers)

    run(reference)
    run(saved, batch_end_callback(record), save_every_checkpoint(every_n_train_steps=2))
    assert len(list(tmp_path.glob("*.ckpt"))) == EPOCHS * BATCHES / (2 if combined else 1)
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        weights, states = expected[checkpoint["global_step"]]
        assert saved_weights(checkpoint) == weights
        assert saved_weights(checkpoint, "head.") == saved_weights(checkpoint, "layer.2.")
        assert to_lists(checkpoint["optimizer_states"]) == states
    assert final_state(saved) == final_state(reference)


def test_optimizers_without_both_methods_are_not_switched():
    net = network()
    plain = [torch.optim.SGD(net.parameters()), Combined([torch.optim.SGD(net.parameters())])]
    for half in ("train", "eval"):  # only one of the two methods
        plain.append(type("Half", (torch.optim.SGD,), {half: lambda self: pytest.fail("called")})(net.parameters()))
    trainer, checkpoint = SimpleNamespace(optimizers=plain), {"state_dict": net.state_dict()}
    modes = OptimizerModes(trainer.optimizers)
    for mode in ("train", "eval", "train"):
        modes.switch(mode)
    before = dict(checkpoint)
    modes.save_eval_weights(trainer, checkpoint)  # raises if it used the strategy, which this trainer lacks
    assert checkpoint == before


class Smoothed(Averaging):
    """An optimizer whose `eval()` needs the state of the first step. It writes to its state before it fails."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.param_groups[0]["train_mode"] = True

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["train_mode"]
        return super().step(closure)

    @torch.no_grad()
    def _swap(self) -> None:
        for p in self.param_groups[0]["params"]:
            if p.requires_grad:
                state = self.state[p]
                state["saved"] = p.clone()
                p.copy_(state["mean"])
                state["mean"].copy_(state.pop("saved"))

    def train(self) -> None:
        if not self.param_groups[0]["train_mode"]:
            self._swap()
        self.param_groups[0]["train_mode"] = True

    def eval(self) -> None:
        if self.param_groups[0]["train_mode"]:
            self.param_groups[0]["train_mode"] = False
            self._swap()


@pytest.mark.parametrize("combined", [False, True], ids=["alone", "combined"])
def test_eval_that_needs_a_state_is_not_called_before_the_first_step(
    switching_module, run, save_every_checkpoint, tmp_path, combined
):
    def make(params: Any) -> Any:
        params = list(params)
        made: Any = Smoothed([p for p in params if p.ndim == 2], lr=0.1)
        return Combined([made, torch.optim.SGD([p for p in params if p.ndim == 1], lr=0.1)]) if combined else made

    def fit(**kwargs: Any) -> Any:
        module = switching_module(make)
        module.record_mode = lambda hook: None
        checkpoint = save_every_checkpoint(every_n_train_steps=2, save_on_train_epoch_end=False)
        run(module, checkpoint, num_sanity_val_steps=2, **kwargs)
        return to_lists(module.layer.state_dict()), to_lists([o.state_dict() for o in module.trainer.optimizers])

    uninterrupted = fit()
    assert uninterrupted[1][0]["param_groups"][0]["train_mode"] is False
    assert fit(ckpt_path=tmp_path / "step=4.ckpt") == uninterrupted


class FailingEval(Smoothed):
    """An optimizer whose `eval()` changes weights and then raises an error."""

    error: Any = KeyError("mean")

    def _swap(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.zero_()
        raise self.error


@pytest.mark.parametrize("error", [KeyError("mean"), AttributeError("mean"), TypeError("None"), IndexError("0")])
def test_eval_that_needs_a_state_leaves_the_weights(error):
    module = nn.Linear(2, 1)
    before = to_lists(module.state_dict())
    optimizer = FailingEval(module.parameters(), lr=0.1)
    optimizer.error = error
    OptimizerModes([optimizer]).switch("eval")
    assert to_lists(module.state_dict()) == before
    assert optimizer.param_groups[0]["train_mode"]


def test_other_errors_of_eval_are_raised():
    optimizer = FailingEval(nn.Linear(2, 1).parameters(), lr=0.1)
    optimizer.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        OptimizerModes([optimizer]).switch("eval")


# ---------------------------------------------------------------- resuming


@automatic_and_manual
@all_optimizers
@pytest.mark.parametrize(
    ("settings", "step"),
    [({"save_on_train_epoch_end": True}, 4), ({}, 4), ({}, 6)],
    ids=["epoch end", "validation end", "validation within an epoch"],
)
def test_resumed_run_equals_uninterrupted_run(
    switching_module, run, save_every_checkpoint, tmp_path, make_optimizer, automatic, settings, step
):
    uninterrupted, resumed = (
        switching_module(make_optimizer, automatic=automatic),
        switching_module(make_optimizer, automatic=automatic),
    )
    run(uninterrupted, save_every_checkpoint(**settings))
    run(resumed, save_every_checkpoint(**settings), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert sum(hook == "forward" for hook, _ in resumed.recorded_modes) == EPOCHS * BATCHES - step
    assert final_state(resumed) == final_state(uninterrupted)


@automatic_and_manual
@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize(
    ("name", "dtype"),
    # Averaging rounds three times per switch: in float32 the final difference is 1.8e-7.
    [("adamw", torch.float32), ("sgd", torch.float32), ("attribute", torch.float64)],
)
def test_resume_from_checkpoint_within_training_differs_only_by_rounding(
    switching_module, run, save_every_checkpoint, tmp_path, name, dtype, automatic, step
):
    uninterrupted, resumed = (switching_module(OPTIMIZERS[name], automatic=automatic).to(dtype) for _ in range(2))
    run(uninterrupted, save_every_checkpoint(every_n_train_steps=1))
    run(resumed, save_every_checkpoint(every_n_train_steps=1), ckpt_path=tmp_path / f"step={step}.ckpt")
    repeated = LIGHTNING < (2, 5)  # after the resume, Lightning counts and trains the batch of the checkpoint again
    assert sum(hook == "forward" for hook, _ in resumed.recorded_modes) == EPOCHS * BATCHES - step + repeated
    if not repeated:
        for p, q in zip(resumed.layer.parameters(), uninterrupted.layer.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


def test_schedule_free_optimizer_by_name_validates_and_saves_the_average(
    scripted_module, optplug_lightning, trainer, save_every_checkpoint, tmp_path
):
    class Recording(scripted_module):
        def on_validation_end(self) -> None:
            validated[self.trainer.global_step] = copy.deepcopy(self.layer.state_dict())

    validated: dict[int, Any] = {}
    own = optplug_lightning.ConfigureOptimizers({"name": "schedule_free_adamw", "lr": 0.1}, verbose=False)
    settings = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, "enable_checkpointing": True}
    trainer(**settings, callbacks=[own, save_every_checkpoint(every_n_train_steps=3)]).fit(Recording())

    by_hand, averages = scripted_module(), {}
    optimizer = AdamWScheduleFree(by_hand.layer.parameters(), lr=0.1)
    for step, batch in enumerate(EPOCHS * list(by_hand.train_dataloader()), 1):
        optimizer.train()
        optimizer.zero_grad()
        by_hand.loss(batch).backward()
        optimizer.step()
        optimizer.eval()
        averages[step] = copy.deepcopy(by_hand.layer.state_dict())

    files = {int(path.stem.removeprefix("step=")): path for path in tmp_path.glob("*.ckpt")}
    assert (set(validated), set(files)) == ({4, 8}, {3, 6})
    for step, path in files.items():
        saved = torch.load(path, weights_only=True)["state_dict"]
        validated[step] = {key: saved[f"layer.{key}"] for key in averages[step]}
    for step, weights in validated.items():
        torch.testing.assert_close(dict(weights), dict(averages[step]), rtol=0, atol=1e-5)
        assert (weights["weight"] - averages[step - 1]["weight"]).abs().max() > 1e-3


def test_resume_from_checkpoint_with_training_weights(switching_module, run, trainer, save_every_checkpoint, tmp_path):
    """A run without optplug may save training weights; the optimizer's groups have the flag `train_mode`."""

    class WithoutEvalSwitch(switching_module):
        def on_train_start(self) -> None:
            self.optimizer.train()

    make_optimizer = OPTIMIZERS["sgd"]
    trainer(max_epochs=1, enable_checkpointing=True, callbacks=save_every_checkpoint()).fit(
        WithoutEvalSwitch(make_optimizer)
    )
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["train_mode"]
    resumed, first = switching_module(make_optimizer), []
    resumed.on_train_start = lambda: resumed.record_mode("on_train_start")
    resumed.after_forward = lambda: first.append(to_lists(dict(resumed.layer.named_parameters())))
    run(resumed, save_every_checkpoint(), ckpt_path=tmp_path / "step=4.ckpt", num_sanity_val_steps=0)
    assert ("on_train_start", "train") in resumed.recorded_modes
    assert len(first) == (EPOCHS - 1) * BATCHES
    assert first[0] == {name: values for name, values in saved_weights(saved).items() if name in first[0]}
