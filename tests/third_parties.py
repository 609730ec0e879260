"""Checks of a registered optimizer or scheduler: training by name, compared with a plain loop of its class.

`results_of_optimizer` and `results_of_scheduler` return an outcome for each check: `OK`, or text that begins with
`n/a` (the check does not apply) or is the cause of the failure. `python third_parties.py KIND LIMIT NAME...` checks
names, and prints one line of JSON for each. `benchmarks/third_parties.py` makes the table of all names from these, and
`tests/plugins/test_third_parties.py` tests them.
"""

from __future__ import annotations

import faulthandler
import json
import math
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optplug.config.build import parse_and_check
from optplug.config.form import BASE_KEY
from optplug.errors import OptplugError, one_line
from optplug.lightning import ConfigureOptimizers
from optplug.registry import Registration, registry
from optplug.registry.signature import (
    accepts_any_argument,
    base_argument,
    configurable_arguments,
    declared_cases,
    function_arguments,
    takes_built_base,
    target_of,
)

OK = "ok"
NOT_APPLICABLE = "n/a"
STEPS = 20
TOLERANCE = 1e-6
BASE = {"name": "sgd", "lr": 0.05}
"""The optimizer that wrappers wrap."""

OPTIMIZER_CHECKS = {
    "loads": "the class is imported",
    "trains": f"{STEPS} steps through YAML and Lightning change the weights, which stay finite",
    "native": "the same steps in a plain loop of the class",
    "equal": f"both give the same weights (difference below {TOLERANCE})",
    "resumes": "interrupted in the middle and resumed from the checkpoint, the weights are the same",
    "typo": "a misspelt keyword is refused with its location",
    "lr -1": "`lr: -1` is refused with its location at construction",
    "lr text": "`lr: fast` is refused with its location at construction",
    "groups": "`no_decay` and a rule with `lr_mult` set the options of the groups, and train",
}
SCHEDULER_CHECKS = {
    key: OPTIMIZER_CHECKS[key] if key in ("loads", "typo", "resumes") else words
    for key, words in {
        "loads": "",
        "trains": f"{STEPS} steps through YAML and Lightning",
        "native": "the same steps in a plain loop of the class",
        "equal": "both give the same learning rates",
        "resumes": "",
        "typo": "",
    }.items()
}
CHECKS = {"optimizer": OPTIMIZER_CHECKS, "scheduler": SCHEDULER_CHECKS}
"""The checks of each kind, with their meaning."""

Outcomes = dict[str, str]
Loss = Callable[[], Tensor]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
TRAINER_STEPS_PER_EPOCH = 4


# ------------------------------------------------------------------------------------------ models


class Model(LightningModule):
    """A convolution, a linear layer, a norm and a linear layer. Each step has a seed of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = self.layers()
        self.lrs: list[float] = []

    def layers(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 2)
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.network(x.view(-1, 1, 2, 4)), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step)
        return self.loss(*batch)

    def on_train_batch_start(self, *_: Any) -> None:
        self.lrs.append(self.trainer.optimizers[0].param_groups[0].get("lr", math.nan))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(*batch))

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data()), batch_size=8, generator=torch.Generator())

    val_dataloader = train_dataloader


class MatrixModel(Model):
    """Two matrices, for optimizers that take nothing else."""

    def layers(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 2, bias=False))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.network(x), y)


class SparseModel(Model):
    """An embedding with sparse gradients."""

    def layers(self) -> nn.Module:
        return nn.Embedding(8, 2, sparse=True)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.network(x.argmax(1)), y)


class ShapedModel(Model):
    """Parameters of given shapes.

    Args:
        shapes: the shapes.
    """

    def __init__(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.shapes = shapes
        super().__init__()

    def layers(self) -> nn.Module:
        return nn.ParameterList(nn.Parameter(torch.randn(shape) / 2) for shape in self.shapes)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return sum(((p - x.mean()) ** 2).mean() for p in self.network)  # type: ignore[return-value]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * TRAINER_STEPS_PER_EPOCH, 8, generator=generator)
    return x, torch.stack([x[:, :4].sum(1), x[:, 4:].prod(1)], 1)


def make_model(registration: Registration) -> Model:
    """A model whose parameters an optimizer takes."""
    spec: Any = registration.spec
    if "sparse_only" in spec.capabilities:
        return SparseModel()
    if "matrix_only" in spec.capabilities:
        return MatrixModel()
    if spec.shapes and all(len(shape) > 1 for shape in spec.shapes):
        return ShapedModel(spec.shapes)
    return Model()


# ------------------------------------------------------------------------------------------ optimizers


@dataclass(frozen=True)
class Subject:
    """An optimizer and the arguments with which it is checked."""

    registration: Registration
    arguments: Mapping[str, Any]

    @property
    def capabilities(self) -> Any:
        return self.registration.spec.capabilities

    @property
    def config(self) -> dict[str, Any]:
        arguments = dict(self.arguments)
        config: dict[str, Any] = {"name": self.registration.qualified_name, "args": arguments}
        if base_argument(self.registration):
            config["base"] = arguments.pop(BASE_KEY, BASE)
        if "matrix_only" in self.capabilities:
            config["output"] = []
        return config

    def has(self, argument: str) -> bool:
        return argument in configurable_arguments(self.registration)

    def construct(self, model: Model) -> Any:
        """The optimizer as the documentation of its package constructs it."""
        cls, build = target_of(self.registration), self.registration.load_build()
        arguments = dict(self.arguments)
        params: Any = list(model.network.parameters())
        if "module" in self.capabilities:
            params = model
        elif "named_params" in self.capabilities:
            params = list(model.named_parameters())
        if base_argument(self.registration):
            name = arguments.pop(BASE_KEY, None)
            base, lr = (registry.get("optimizer", name), {}) if name else (torch.optim.SGD, {"lr": BASE["lr"]})
            if takes_built_base(self.registration):
                params = base(params, **lr)
            else:
                arguments |= {base_argument(self.registration): base, **lr}
        return cls(params, **arguments) if build is None else build(cls, params, **arguments)


def results_of_optimizer(registration: Registration) -> Outcomes:
    """Run the checks of an optimizer."""
    outcomes: Outcomes = {}
    with _outcome(outcomes, "loads"):
        target_of(registration)
    if outcomes["loads"] != OK or registration.spec.unsupported:
        return {**_if_unsupported(registration, OPTIMIZER_CHECKS), **outcomes}
    arguments = dict(declared_cases(registration)[0])
    lr = configurable_arguments(registration).get("lr")
    if lr is not None and ("closure" in registration.spec.capabilities or lr.default == 1):
        arguments.setdefault("lr", 0.01)  # with 1.0, LBFGS and Schedule-Free SGD diverge on these batches
    subject = Subject(registration, arguments)
    trained, native = None, None
    with _outcome(outcomes, "trains"):
        trained = _train(subject, subject.config)
    with _outcome(outcomes, "native"):
        native = _train_natively(subject)
    with _outcome(outcomes, "equal"):
        if trained is None or native is None:
            raise _NotApplicableError("one of them does not train")
        if _difference(trained, native) >= TOLERANCE and "gradients_first" not in subject.capabilities:
            native = _train_natively(subject, passes_closure=True)  # as Lightning; some classes read the loss
        _compare(trained, native)
    with _outcome(outcomes, "resumes"):
        if trained is None:
            raise _NotApplicableError("does not train")
        _check_resume(subject, trained, native)
    with _outcome(outcomes, "typo"):
        if accepts_any_argument(registration):
            raise _NotApplicableError("the class accepts any keyword")
        _expect_error({**subject.config, "momemtum_decay_typo": 0.1}, "momemtum_decay_typo")
    for check, value in (("lr -1", -1), ("lr text", "fast")):
        with _outcome(outcomes, check):
            if not subject.has("lr"):
                raise _NotApplicableError("no argument lr")
            config = {**subject.config, "lr": value}
            config["args"] = {key: given for key, given in config["args"].items() if key != "lr"}
            _expect_error(config, "lr")
    with _outcome(outcomes, "groups"):
        _check_groups(subject)
    return outcomes


def _train(subject: Subject, optimizer: Any, steps: int = STEPS, *, groups: Any = None, **options: Any) -> Model:
    """Train through YAML and Lightning, and return the model with its trainer's optimizer in eval mode.

    Args:
        subject: the optimizer.
        optimizer: its configuration.
        steps: the number of optimizer steps.
        groups: the configuration of `param_groups`.
        options: `start`, the checkpoint from which the training resumes, or `save`, the path of a checkpoint after it.
    """
    config: dict[str, Any] = {"optimizer": optimizer}
    if groups is not None:
        config["param_groups"] = groups
    model = make_model(subject.registration)
    return _fit(model, config, steps, **options)


def _fit(model: Model, config: Any, steps: int, *, start: Path | None = None, save: Path | None = None) -> Model:
    before = [p.detach().clone() for p in model.parameters()]
    text = yaml.safe_dump(config)
    callback = ConfigureOptimizers(**yaml.safe_load(text))
    # The length of the training is the same in each part: a schedule may depend on it.
    stop = [] if steps == STEPS else [_StopAfter(steps)]
    trainer = Trainer(**QUIET, max_epochs=STEPS // TRAINER_STEPS_PER_EPOCH, callbacks=[callback, *stop])
    trainer.fit(model, ckpt_path=start, **({} if start is None else {"weights_only": True}))
    if save is not None:
        trainer.save_checkpoint(save)
    if steps == STEPS:
        _check_moved(before, model)
    model.optimizer_of_trainer = trainer.optimizers[0]  # type: ignore[assignment]
    return model


class _StopAfter(Callback):
    """Ends the training at the end of an epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def _train_natively(subject: Subject, *, interrupt: bool = False, passes_closure: bool = False) -> Model:
    """Train in a plain loop, as the documentation of the class does.

    Args:
        subject: the optimizer.
        interrupt: whether a new optimizer continues from the state in the middle.
        passes_closure: whether `step` gets the closure, also if the class does not need it.
    """
    model = make_model(subject.registration)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = subject.construct(model)
    x, y = data()
    capabilities = subject.capabilities
    for step in range(STEPS):
        if interrupt and step == STEPS // 2:
            _call(optimizer, "eval")
            state = optimizer.state_dict()
            fresh = make_model(subject.registration)
            fresh.load_state_dict(model.state_dict())
            model = fresh
            optimizer = subject.construct(model)
            optimizer.load_state_dict(state)
        rows = slice(8 * (step % TRAINER_STEPS_PER_EPOCH), 8 * (step % TRAINER_STEPS_PER_EPOCH + 1))

        def closure(model: Model = model, optimizer: Any = optimizer, step: int = step, rows: slice = rows) -> Tensor:
            optimizer.zero_grad()
            torch.manual_seed(step)
            loss = model.loss(x[rows], y[rows])
            loss.backward(create_graph="create_graph" in capabilities)
            return loss

        _call(optimizer, "train")
        if passes_closure or "closure" in capabilities:
            optimizer.step(closure)
        elif "gradients_first" in capabilities:
            closure()
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    _call(optimizer, "eval")
    _check_moved(before, model)
    return model


def _call(optimizer: Any, mode: str) -> None:
    if callable(getattr(optimizer, mode, None)):
        getattr(optimizer, mode)()


def _check_moved(before: list[Tensor], model: Model) -> None:
    after = [p.detach() for p in model.parameters()]
    assert all(bool(torch.isfinite(p).all()) for p in after), "the weights are not finite"
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the weights did not change"


def _difference(first: Model, second: Model) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs if a.numel())


def _compare(first: Model, second: Model) -> None:
    difference = _difference(first, second)
    assert difference < TOLERANCE, f"the weights differ by {difference:.1g}"


def _check_resume(subject: Subject, trained: Model, native: Model | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.ckpt"
        try:
            _train(subject, subject.config, STEPS // 5 * 2, save=path)
            resumed = _train(subject, subject.config, start=path)
            difference, error = _difference(trained, resumed), ""
        except Exception as raised:
            difference, error = math.inf, _cause(raised)
    if difference < TOLERANCE:
        return
    cause = error or f"the weights differ by {difference:.1g}"
    if native is not None:
        try:
            natively = _difference(native, _train_natively(subject, interrupt=True))
        except Exception as raised:
            raise AssertionError(f"{cause} (package: natively too: {_cause(raised)})") from raised
        if natively >= TOLERANCE:
            cause += f" (package: natively by {natively:.1g})"
    raise AssertionError(cause)


def _expect_error(optimizer: Any, key: str, kind: str = "optimizer") -> None:
    config = {"optimizer": optimizer} if kind == "optimizer" else {"optimizer": BASE, "scheduler": optimizer}
    try:
        parse_and_check(**yaml.safe_load(yaml.safe_dump(config)))
    except OptplugError as error:
        locs = [each.loc for each in getattr(error, "errors", [error])]
        places = ((kind, key), (kind, "args", key), (kind, "base", key))
        if not any(loc in places for loc in locs):
            raise AssertionError(f"refused at {locs}: {one_line(error)}") from error
    else:
        raise AssertionError("accepted")


def _default(subject: Subject, argument: str) -> Any:
    return configurable_arguments(subject.registration)[argument].default


def _check_groups(subject: Subject) -> None:
    if "module" in subject.capabilities:
        raise _NotApplicableError("takes the module, which has no groups")
    rules: list[Any] = []
    if subject.has("weight_decay"):
        rules.append("no_decay")
    if subject.has("lr") and subject.config["args"].get("lr", _default(subject, "lr")) is not None:
        first, _ = next(make_model(subject.registration).named_parameters())
        rules.append({"match": first, "lr_mult": 0.5})
    if not rules:
        raise _NotApplicableError("neither lr nor weight_decay")
    optimizer = {**subject.config, "args": {**subject.config["args"]}}
    if "no_decay" in rules:
        optimizer["args"].setdefault("weight_decay", 0.01)
    try:
        model = _train(subject, optimizer, 2 * TRAINER_STEPS_PER_EPOCH, groups=rules)
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters()), "the weights are not finite"
    except Exception as error:
        if re.search("parameter groups|param groups", str(error)):
            raise _NotApplicableError(f"the class takes no groups: {one_line(error)}") from error
        raise
    groups = model.optimizer_of_trainer.param_groups  # type: ignore[union-attr]
    if "no_decay" in rules and not isinstance(model, (MatrixModel, SparseModel, ShapedModel)):
        assert {bool(group["weight_decay"]) for group in groups} == {True, False}, "no group without weight decay"
    if rules[-1] != "no_decay" and len(list(model.parameters())) > 1:
        assert len({float(group.get("initial_lr", group["lr"])) for group in groups}) > 1, "all groups have one lr"


# ------------------------------------------------------------------------------------------ schedulers


def _if_unsupported(registration: Registration, checks: Iterable[str]) -> Outcomes:
    """The outcomes of the checks of a name that cannot be used, by its declaration; none for other names."""
    reason = registration.spec.unsupported
    return dict.fromkeys(checks, f"{NOT_APPLICABLE}: unsupported: {reason}") if reason else {}


def results_of_scheduler(registration: Registration) -> Outcomes:
    """Run the checks of a scheduler."""
    outcomes: Outcomes = {}
    with _outcome(outcomes, "loads"):
        target_of(registration)
    spec: Any = registration.spec
    if outcomes["loads"] != OK or spec.unsupported:
        return {**_if_unsupported(registration, SCHEDULER_CHECKS), **outcomes}
    arguments = dict(declared_cases(registration)[0])
    functions = [key for key in function_arguments(registration) if key in arguments]
    written = {key: _plain(value) for key, value in arguments.items()} | dict.fromkeys(functions, "0.9 ** epoch")
    arguments |= dict.fromkeys(functions, lambda step: 0.9**step)
    config: dict[str, Any] = {"name": registration.qualified_name, "args": written}
    metric = "metric" in spec.capabilities
    if metric:
        config["monitor"] = "val_loss"
    trained = None
    with _outcome(outcomes, "trains"):
        trained = _fit(_small_model(), {"optimizer": BASE, "scheduler": config}, STEPS)
    lrs: list[float] = []
    with _outcome(outcomes, "native"):
        lrs = _lrs_natively(target_of(registration), arguments, 1 if spec.interval == "step" else 4, metric=metric)
    with _outcome(outcomes, "equal"):
        if trained is None or not lrs:
            raise _NotApplicableError("one of them does not train")
        if metric:
            raise _NotApplicableError("depends on the metric")
        difference = max(abs(a - b) for a, b in zip(trained.lrs, lrs, strict=True))
        assert difference < TOLERANCE, f"the learning rates differ by {difference:.1g}"
    with _outcome(outcomes, "resumes"), tempfile.TemporaryDirectory() as folder:
        if trained is None:
            raise _NotApplicableError("does not train")
        path = Path(folder) / "half.ckpt"
        made = {"optimizer": BASE, "scheduler": config}
        _fit(_small_model(), made, STEPS // 5 * 2, save=path)
        _compare(trained, _fit(_small_model(), made, STEPS, start=path))
    with _outcome(outcomes, "typo"):
        if accepts_any_argument(registration):
            raise _NotApplicableError("the class accepts any keyword")
        _expect_error({**config, "gamma_typo": 0.1}, "gamma_typo", "scheduler")
    return outcomes


def _small_model() -> Model:
    """A model that no learning rate below 1 makes infinite."""
    return ShapedModel(((3, 4),))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _lrs_natively(cls: Any, arguments: Mapping[str, Any], every: int, *, metric: bool) -> list[float]:
    """The learning rate in each step of a plain loop."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE["lr"])  # type: ignore[arg-type]
    scheduler, lrs = cls(optimizer, **arguments), []
    for step in range(STEPS):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step(*([1.0] if metric else []))
    return lrs


# ------------------------------------------------------------------------------------------ outcomes


class _NotApplicableError(Exception):
    """A check does not apply."""


class _TimeoutError(BaseException):
    """A check took too long. No handler of a package catches it."""


@contextmanager
def _outcome(outcomes: Outcomes, check: str) -> Iterator[None]:
    try:
        yield
        outcomes[check] = OK
    except _NotApplicableError as error:
        outcomes[check] = f"{NOT_APPLICABLE}: {error}"
    except _TimeoutError:
        outcomes[check] = "takes too long"
    except Exception as error:
        outcomes[check] = _cause(error)


def _cause(error: BaseException) -> str:
    """The cause of a failure in one line, with the package and line that raised it."""
    text = " ".join(str(error).split())[:160] if isinstance(error, AssertionError) else one_line(error)[:200]
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, (AssertionError, OptplugError)) or not frames:
        return text or type(error).__name__
    last = Path(frames[-1].filename)
    return f"{text} [{last.parent.name}/{last.name}:{frames[-1].lineno}]"


def check(kind: str, name: str, limit: int = 0) -> Outcomes:
    """Run the checks of a name.

    Args:
        kind: `"optimizer"` or `"scheduler"`.
        name: the name.
        limit: the seconds after which the check that runs fails; 0 for no limit.
    """

    def stop(*_: Any) -> None:
        signal.alarm(limit)  # for the next check
        raise _TimeoutError

    registration = registry.resolve(kind, name)
    if limit:
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return results_of_optimizer(registration) if kind == "optimizer" else results_of_scheduler(registration)
    finally:
        if limit:
            signal.alarm(0)


def main() -> None:
    """Check the names on the command line: the kind, the limit in seconds, then names."""
    faulthandler.enable()
    kind, limit, *names = sys.argv[1:]
    torch.set_num_threads(1)
    output = sys.stdout
    sys.stdout = sys.stderr  # packages print
    for name in names:
        print(json.dumps({"starts": name}), file=output, flush=True)
        outcomes = check(kind, name, int(limit))
        print(json.dumps({"name": name, "outcomes": outcomes}), file=output, flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
