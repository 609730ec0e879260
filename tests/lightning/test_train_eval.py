"""Optimizers with `train()` and `eval()`: switched at every hook, right in every checkpoint, not disturbed by one."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import nn

import optplug
from optplug.lightning import train_eval
from optplug.optim.combined import Combined

# Resuming into the folder of the checkpoint is what some of these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
]

EPOCHS, BATCHES = 2, 4


class Averaging(torch.optim.Optimizer):
    """SGD that evaluates with the mean of where it has been. The mode is a plain attribute, in no state dict.

    A new one claims to be training. Going there and back costs rounding in weights and state.
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
    "attribute": lambda params: Averaging(params, lr=0.1),
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
both = pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])


def mode_of(optimizer: Any) -> str:
    training = optimizer.training if isinstance(optimizer, Averaging) else optimizer.param_groups[0]["train_mode"]
    return "train" if training else "eval"


def frozen(value: Any) -> Any:
    """A nest of tensors as it is now, to be compared bit by bit."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: frozen(inner) for key, inner in value.items()}
    return [frozen(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def for_evaluation(layer: nn.Module, *optimizers: Any) -> tuple[Any, Any]:
    """The weights and optimizer states of evaluation, taken from a copy."""
    layer, optimizers = copy.deepcopy((layer, optimizers))
    for optimizer in optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    return frozen(layer.state_dict()), frozen([optimizer.state_dict() for optimizer in optimizers])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    return net


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()))
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


@pytest.fixture
def module(scripted: type) -> Any:
    """Makes modules with their own `configure_optimizers`, whose batches depend on the number of steps alone."""

    class Switched(scripted):
        def __init__(self, make: Any, *, helped: bool = False, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.layer, self.make, self.helped = network(), make, helped
            self.seen: list[tuple[str, str]] = []
            self.validated: list[Any] = []
            self.forwarded: Any = lambda: None

        def configure_optimizers(self) -> Any:
            self.optimizer = self.make(self.layer.parameters())
            return optplug.configure_optimizers(self, self.optimizer) if self.helped else self.optimizer

        def saw(self, hook: str) -> None:
            self.seen.append((hook, mode_of(self.optimizer)))

        def loss(self, batch: Any) -> torch.Tensor:
            if not self.trainer.training:
                return super().loss((batch[0], batch[1]))
            self.saw("forward")
            loss = loss_of(self.layer, self.trainer.global_step)
            self.forwarded()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.saw("sanity check" if self.trainer.sanity_checking else "validation_step")
            self.validated.append(frozen(self.layer.state_dict()))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.saw("test_step")
            self.tested = frozen(self.layer.state_dict())

    return Switched


@pytest.fixture
def run(ours: Any, trainer: Any) -> Any:
    """Fits a module under an owner that configures nothing, and the callbacks given."""

    def fit(module: Any, *callbacks: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
        own = [] if getattr(module, "helped", False) else [ours.ConfigureOptimizers(verbose=False)]
        settings = {"max_epochs": EPOCHS, "val_check_interval": 0.5, "enable_checkpointing": bool(callbacks)}
        made = trainer(**{**settings, "callbacks": [*own, *callbacks], **kwargs})
        made.fit(module, ckpt_path=ckpt_path)
        return made

    return fit


@pytest.fixture
def saver(pl: Any, tmp_path: Path) -> Any:
    """Makes a checkpoint callback that keeps every checkpoint."""

    def make(**kwargs: Any) -> Any:
        return pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **kwargs)

    return make


@pytest.fixture
def watcher(pl: Any) -> Any:
    """Makes a callback that does something at the end of each batch, before a checkpoint is written there."""

    class Watcher(pl.Callback):
        def __init__(self, act: Any) -> None:
            self.act = act

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.act(trainer)

    return Watcher


def outcome(module: Any) -> Any:
    optimizers = module.trainer.optimizers
    return frozen([module.layer.state_dict(), *(o.state_dict() for o in optimizers)]), mode_of(module.optimizer)


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


@both
@every
@pytest.mark.parametrize("helped", [False, True], ids=["callback", "helper"])
def test_row_26_every_hook_finds_the_optimizer_in_its_mode(pl, module, run, make, automatic, helped):
    fitted = module(make, automatic=automatic, helped=helped)
    hooks = {
        hook: lambda self, trainer, pl_module, *_, hook=hook: pl_module.saw(hook)
        for hook in MODES
        if hook.startswith("on_")
    }
    watch = type("Watch", (pl.Callback,), hooks)()
    made = run(fitted, *([] if helped else [watch]), val_check_interval=3)  # so an epoch ends in training
    made.test(fitted, verbose=False)
    assert set(fitted.seen) == {(hook, mode) for hook, mode in MODES.items() if not (helped and hook.startswith("on_"))}
    assert sum(hook == "forward" for hook, _ in fitted.seen) == EPOCHS * BATCHES
    assert fitted.tested == frozen(fitted.layer.state_dict())


@both
@every
def test_row_26_a_fit_is_the_loop_that_switches_by_hand(module, run, make, automatic):
    fitted, net, validated = module(make, automatic=automatic), network(), []
    run(fitted, num_sanity_val_steps=0)
    optimizer = make(net.parameters())
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
            validated.append(frozen(net.state_dict()))
    assert outcome(fitted) == (frozen([net.state_dict(), optimizer.state_dict()]), "eval")
    assert fitted.validated[::BATCHES] == validated


@every
def test_row_26_an_exception_leaves_the_evaluation_weights(module, run, saver, watcher, tmp_path, make):
    fitted, before = module(make), []

    def fail(trainer: Any) -> None:
        if trainer.global_step == 6:
            before.append(for_evaluation(fitted.layer, fitted.optimizer))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(fitted, watcher(fail), saver(save_on_train_epoch_end=True, save_on_exception=True))
    weights, states = before[0]
    assert frozen(fitted.layer.state_dict()) == weights
    saved = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert saved_weights(saved) == weights
    assert frozen(saved["optimizer_states"]) == states


# ---------------------------------------------------------------- checkpoints


def saved_weights(checkpoint: Any, prefix: str = "layer.") -> Any:
    return frozen({k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)})


@both
@every
def test_row_26_the_weights_in_a_checkpoint_are_those_of_evaluation(
    module, run, saver, watcher, tmp_path, make, automatic
):
    fitted, expected, live = module(make, automatic=automatic), {}, {}

    def note(trainer: Any) -> None:
        expected[trainer.global_step] = for_evaluation(fitted.layer, fitted.optimizer)
        live[trainer.global_step] = frozen(fitted.layer.state_dict())

    run(fitted, watcher(note), saver(every_n_train_steps=1))
    assert len(expected) == EPOCHS * BATCHES
    for step, (weights, states) in expected.items():
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert saved_weights(saved) == weights
        assert frozen(saved["optimizer_states"]) == states
        assert (weights == live[step]) == (step == 1)  # the average of one is that one


@both
@every
@pytest.mark.parametrize("where", ["batch end", "between forward and backward"])
def test_row_26_training_goes_on_as_if_nothing_had_been_saved(
    module, run, saver, tmp_path, make, automatic, where, watcher
):
    straight, saved = module(make, automatic=automatic), module(make, automatic=automatic)
    paths: tuple[list[Any], list[Any]] = ([], [])

    def follow(fitted: Any, path: list[Any]) -> Any:
        return watcher(lambda trainer: path.append(outcome(fitted)))

    run(straight, follow(straight, paths[0]), enable_checkpointing=False)
    if where == "batch end":
        run(saved, follow(saved, paths[1]), saver(every_n_train_steps=1))
    else:
        saved.forwarded = lambda: saved.trainer.save_checkpoint(tmp_path / f"{saved.trainer.global_step}.ckpt")
        run(saved, follow(saved, paths[1]))
    assert len(list(tmp_path.glob("*.ckpt"))) == EPOCHS * BATCHES
    assert paths[1] == paths[0]
    assert outcome(saved) == outcome(straight)


@every
@pytest.mark.parametrize(
    "settings",
    [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": True, "save_weights_only": True}, {}],
    ids=["epoch end", "epoch end, weights only", "validation end"],
)
def test_row_26_checkpoints_of_epochs_and_validations_hold_what_was_validated(
    module, run, saver, tmp_path, make, settings
):
    fitted = module(make)
    made = run(fitted, saver(**settings), num_sanity_val_steps=0)
    before = outcome(fitted)
    assert before[1] == "eval"
    made.save_checkpoint(tmp_path / f"step={EPOCHS * BATCHES}.ckpt")
    assert outcome(fitted) == before
    validated = dict(zip(range(2, EPOCHS * BATCHES + 1, 2), fitted.validated[::BATCHES], strict=True))
    files = {int(path.stem.removeprefix("step=")): path for path in tmp_path.glob("*.ckpt")}
    assert set(files) == (set(validated) if settings == {} else {4, 8})
    for step, path in files.items():
        assert saved_weights(torch.load(path, weights_only=True)) == validated[step]


@every
def test_row_26_a_module_that_switches_by_itself_may_go_on_doing_so(module, run, saver, tmp_path, make):
    class ByHand(module):
        def on_validation_epoch_start(self) -> None:
            self.optimizer.eval()

        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.optimizer.train()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            if self.trainer.global_step == 6:
                before = for_evaluation(self.layer, self.optimizer)[0]
                self.optimizer.eval()
                self.trainer.save_checkpoint(tmp_path / "by hand.ckpt")
                self.optimizer.train()
                saved = saved_weights(torch.load(tmp_path / "by hand.ckpt", weights_only=True))
                for name, values in saved.items():
                    torch.testing.assert_close(torch.tensor(values), torch.tensor(before[name]), rtol=0, atol=1e-6)

    straight, fitted = module(make, automatic=False), ByHand(make, automatic=False)
    run(straight, num_sanity_val_steps=0)
    run(fitted, saver(), num_sanity_val_steps=0)
    for step, weights in zip((2, 4), fitted.validated[::BATCHES], strict=False):
        assert saved_weights(torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)) == weights
    for p, q in zip(fitted.layer.parameters(), straight.layer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@every
@pytest.mark.parametrize("combined", [False, True], ids=["two optimizers", "combined"])
def test_row_26_only_one_of_two_has_modes_and_one_layer_has_two_names(
    module, run, saver, watcher, tmp_path, make, combined
):
    class Two(module):
        def __init__(self) -> None:
            super().__init__(make, automatic=combined)
            self.head = self.layer[2]

        def configure_optimizers(self) -> Any:
            plain = torch.optim.SGD(self.layer[:2].parameters(), lr=0.1, momentum=0.9)
            self.optimizer = make(self.head.parameters())
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

    straight, saved, expected = Two(), Two(), {}

    def note(trainer: Any) -> None:
        expected[trainer.global_step] = for_evaluation(saved.layer, *trainer.optimizers)

    run(straight)
    run(saved, watcher(note), saver(every_n_train_steps=2))
    assert len(list(tmp_path.glob("*.ckpt"))) == EPOCHS * BATCHES / (2 if combined else 1)
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        weights, states = expected[checkpoint["global_step"]]
        assert saved_weights(checkpoint) == weights
        assert saved_weights(checkpoint, "head.") == saved_weights(checkpoint, "layer.2.")
        assert frozen(checkpoint["optimizer_states"]) == states
    assert outcome(saved) == outcome(straight)


def test_row_26_what_has_no_modes_is_left_alone():
    net = network()
    plain = [torch.optim.SGD(net.parameters()), Combined([torch.optim.SGD(net.parameters())])]
    for half in ("train", "eval"):  # no pair
        plain.append(type("Half", (torch.optim.SGD,), {half: lambda self: pytest.fail("called")})(net.parameters()))
    trainer, checkpoint = SimpleNamespace(optimizers=plain), {"state_dict": net.state_dict()}
    for mode in ("train", "eval", "train"):
        train_eval.set_mode(trainer.optimizers, mode)
    before = dict(checkpoint)
    train_eval.save_eval_weights(trainer, checkpoint)  # the trainer has no strategy to ask
    assert checkpoint == before


# ---------------------------------------------------------------- resuming


@both
@every
@pytest.mark.parametrize(
    ("settings", "step"),
    [({"save_on_train_epoch_end": True}, 4), ({}, 4), ({}, 6)],
    ids=["epoch end", "validation end", "validation in mid-epoch"],
)
def test_row_26_resumed_equals_uninterrupted(module, run, saver, tmp_path, make, automatic, settings, step):
    whole, rest = module(make, automatic=automatic), module(make, automatic=automatic)
    run(whole, saver(**settings))
    run(rest, saver(**settings), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert sum(hook == "forward" for hook, _ in rest.seen) == EPOCHS * BATCHES - step
    assert outcome(rest) == outcome(whole)


@both
@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize(
    ("name", "dtype"),
    # Averaging rounds three times on its way; in single precision that is 1.8e-7 in the end.
    [("adamw", torch.float32), ("sgd", torch.float32), ("attribute", torch.float64)],
)
def test_row_26_resumed_from_amid_training_differs_by_rounding(
    module, run, saver, tmp_path, name, dtype, automatic, step
):
    whole, rest = (module(OPTIMIZERS[name], automatic=automatic).to(dtype) for _ in range(2))
    run(whole, saver(every_n_train_steps=1))
    run(rest, saver(every_n_train_steps=1), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert sum(hook == "forward" for hook, _ in rest.seen) == EPOCHS * BATCHES - step
    for p, q in zip(rest.layer.parameters(), whole.layer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


def test_row_26_training_weights_in_a_checkpoint_are_taken_for_what_they_are(module, run, trainer, saver, tmp_path):
    """A run without optplug may have saved them, and said so in the optimizer's groups."""

    class Unaware(module):
        def on_train_start(self) -> None:
            self.optimizer.train()

    make = OPTIMIZERS["sgd"]
    trainer(max_epochs=1, enable_checkpointing=True, callbacks=saver()).fit(Unaware(make))
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["train_mode"]
    rest, first = module(make), []
    rest.on_train_start = lambda: rest.saw("on_train_start")
    rest.forwarded = lambda: first.append(frozen(dict(rest.layer.named_parameters())))
    run(rest, saver(), ckpt_path=tmp_path / "step=4.ckpt", num_sanity_val_steps=0)
    assert ("on_train_start", "train") in rest.seen
    assert len(first) == (EPOCHS - 1) * BATCHES
    assert first[0] == {name: values for name, values in saved_weights(saved).items() if name in first[0]}
