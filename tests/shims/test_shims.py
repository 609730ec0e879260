"""Shims: registered names in an unmodified LightningCLI, for both import names of Lightning."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_optimizer import Lookahead
from torch import nn

import optplug
import optplug.shims
from optplug.errors import ConfigError, ConfigTypeError, HyperparameterError, OptplugError, PluginError
from optplug.optim.adapted_step import original_class
from optplug.registry import Plugin, Registration, registry
from optplug.registry.signature import documented_arguments
from optplug.registry.specs import OptimizerSpec, SchedulerSpec
from optplug.shims import factory
from support import QUIET_NO_SANITY, first_party

# LightningCLI warns that `args` is given although sys.argv, here pytest's command line, has arguments.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")

VALUES = {"val_loss": [1.0, 2.0, 3.0]}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "monitor": "val_loss"}


@pytest.fixture
def lightning_cli(pl: Any) -> Any:
    """The module that holds LightningCLI."""
    return importlib.import_module(f"{pl.__name__}.cli")


@pytest.fixture
def model(scripted_module: type) -> type:
    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__(val=VALUES)

    return Model


@pytest.fixture
def run(lightning_cli: Any, model: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs LightningCLI without subcommands on a configuration and on command-line arguments, and fits."""
    monkeypatch.chdir(tmp_path)

    def make(*args: str, config: Any = None, module: type = model, trainer: Any = None, fit: bool = True) -> Any:
        path = tmp_path / "in.yaml"
        path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": QUIET_NO_SANITY, **(config or {})}))
        made = lightning_cli.LightningCLI(
            module,
            run=False,
            args=["--config", str(path), *args],
            trainer_defaults=trainer,
            save_config_kwargs={"overwrite": True},
        )
        if fit:
            made.trainer.fit(made.model)
        return made

    return make


@pytest.fixture
def by_callback(model: type, trainer: Any, optplug_lightning: Any) -> Any:
    """Fits the same module with the callback ConfigureOptimizers."""

    def make(optimizer: Any, scheduler: Any = None) -> Any:
        callback = optplug_lightning.ConfigureOptimizers(optimizer, scheduler, verbose=False)
        made = trainer(callbacks=[callback], max_epochs=QUIET_NO_SANITY["max_epochs"])
        module = model()
        made.fit(module)
        return made, module

    return make


def cli_args(flag: str, given: Any) -> list[str]:
    """`{name: adam, lr: 0.1}` -> `--optimizer adam --optimizer.lr 0.1`."""
    arguments = {"name": given} if isinstance(given, str) else dict(given)
    return [
        f"--{flag}",
        arguments.pop("name"),
        *(word for k, v in arguments.items() for word in (f"--{flag}.{k}", str(v))),
    ]


def groups_of(trainer: Any) -> list[dict[str, Any]]:
    """The options of each group, without `initial_lr`, which optplug adds for schedulers that take a metric."""
    left_out = ("params", "initial_lr")
    return [{k: v for k, v in g.items() if k not in left_out} for g in trainer.optimizers[0].param_groups]


def dtypes_of(trainer: Any) -> list[dict[str, Any]]:
    """The states of each parameter, with dtypes in place of tensors."""
    states = trainer.optimizers[0].state_dict()["state"].values()
    return [{key: getattr(value, "dtype", value) for key, value in state.items()} for state in states]


def cli_error(capsys: Any, make: Any) -> str:
    """The error of a refused command line, on one line. The exit code must be 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        make()
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def run_python(program: str) -> str:
    """Run a program in a new process and return its output."""
    env = {key: value for key, value in os.environ.items() if key != "OPTPLUG_DISABLE"}
    options = [sys.executable, "-W", "ignore", "-c", program]
    ran = subprocess.run(options, capture_output=True, text=True, timeout=240, env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# ------------------------------------------------------------------------------------------ forms of a name


@pytest.mark.parametrize(
    "args",
    [["--optimizer", "adam", "--optimizer.lr", "1e-3"], ["--optimizer=adam", "--optimizer.lr=0.001"]],
    ids=["two words", "equals"],
)
def test_command_line_accepts_optimizer_name(run: Any, args: list[str]):
    made = run(*args)
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert groups_of(made.trainer)[0]["lr"] == 1e-3
    assert made.trainer.lr_scheduler_configs == []


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ("adam", 1e-3),
        ({"class_path": "adam", "init_args": {"lr": 0.25}}, 0.25),
        ({"class_path": "optplug.shims.optimizers.adam", "init_args": {"lr": 0.25}}, 0.25),
    ],
    ids=["bare", "class_path", "full path"],
)
def test_file_accepts_optimizer_name(run: Any, given: Any, lr: float):
    made = run(config={"optimizer": given})
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert groups_of(made.trainer)[0]["lr"] == lr


def test_scheduler_by_name_is_stepped_each_epoch(run: Any):
    made = run("--optimizer=sgd", "--lr_scheduler", "cosine_annealing_lr", "--lr_scheduler.T_max", "10")
    (entry,) = made.trainer.lr_scheduler_configs
    assert type(entry.scheduler) is optplug.get_scheduler("cosine_annealing_lr")
    assert entry.scheduler.T_max == 10
    assert entry.scheduler.last_epoch == QUIET_NO_SANITY["max_epochs"]
    assert len(set(made.model.lrs)) == QUIET_NO_SANITY["max_epochs"]


def test_help_shows_the_documentation_of_the_class(run: Any, capsys: Any):
    with pytest.raises(SystemExit) as caught:
        run("--optimizer.help", "adam")
    assert caught.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    descriptions = {
        argument.name: argument.description for argument in documented_arguments(registry.resolve("optimizer", "adam"))
    }
    assert len(descriptions["decoupled_weight_decay"]) > 20  # documented in the base class
    for name, description in descriptions.items():
        assert f"--optimizer.{name}" in output
        assert " ".join(description.split()) in output
    assert "default: 0.001" in output
    assert "params" not in output


def test_help_of_a_metric_scheduler_shows_monitor(run: Any, capsys: Any):
    with pytest.raises(SystemExit):
        run("--lr_scheduler.help", "reduce_lr_on_plateau")
    assert "--lr_scheduler.monitor MONITOR the metric to monitor (required, type: str)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_model_argument_that_is_a_factory_accepts_a_name(run: Any, lightning_cli: Any, scripted_module: type):
    class Injected(scripted_module):
        def __init__(self, optimizer, schedule) -> None:
            super().__init__(val=VALUES)
            self.optimizer, self.schedule = optimizer, schedule

        def configure_optimizers(self) -> Any:
            optimizer = self.optimizer(self.parameters())
            schedule = self.schedule(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}

    hints = {"optimizer": lightning_cli.OptimizerCallable, "schedule": lightning_cli.LRSchedulerCallable}
    Injected.__init__.__annotations__ = hints
    arguments = [*cli_args("model.optimizer", {"name": "adam", "lr": 0.5}), *cli_args("model.schedule", PLATEAU)]
    made = run(*arguments, module=Injected)
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert groups_of(made.trainer)[0]["lr"] == 0.125
    assert isinstance(made.trainer.lr_scheduler_configs[0].scheduler, lightning_cli.ReduceLROnPlateau)


# ------------------------------------------------------------------------- same result as callback and OptplugCLI

CASES = {
    "adam": ({"name": "adam", "lr": 0.01}, {"name": "cosine_annealing_lr", "T_max": 3, "eta_min": 0.001}),
    "sgd": ({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}, {"name": "step_lr", "step_size": 1}),
    "adamw": ({"name": "adamw", "lr": 0.01}, {"name": "multi_step_lr", "milestones": [1, 2]}),
    "rmsprop": ({"name": "rmsprop", "lr": 0.01}, {"name": "lambda_lr", "lr_lambda": "0.5 ** epoch"}),
    "rprop": ({"name": "rprop", "lr": 0.01, "etas": [0.4, 1.3]}, None),
    "adagrad": ({"name": "adagrad", "lr": 0.1, "state_dtype": "float64"}, PLATEAU),
}


@pytest.mark.parametrize("case", CASES)
def test_training_with_shims_equals_callback(run: Any, by_callback: Any, case: str):
    optimizer, scheduler = CASES[case]
    made = run(*cli_args("optimizer", optimizer), *(cli_args("lr_scheduler", scheduler) if scheduler else []))
    trainer, module = by_callback(optimizer, scheduler)
    assert type(made.trainer.optimizers[0]) is type(trainer.optimizers[0])
    assert groups_of(made.trainer) == groups_of(trainer)
    assert made.model.lrs == module.lrs
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), module.parameters(), strict=True))
    assert dtypes_of(made.trainer) == dtypes_of(trainer)


def test_training_with_shims_equals_optplug_cli(run: Any, optplug_lightning: Any, model: type, tmp_path: Path):
    optimizer, scheduler = CASES["adam"]
    made = run(*cli_args("optimizer", optimizer), *cli_args("lr_scheduler", scheduler))
    path = tmp_path / "ours.yaml"
    choice = {"optimizer": optimizer, "scheduler": scheduler}
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": QUIET_NO_SANITY, **choice}))
    other = optplug_lightning.OptplugCLI(model, run=False, args=["--config", str(path)], save_config_callback=None)
    other.trainer.fit(other.model)
    assert type(made.trainer.optimizers[0]) is type(other.trainer.optimizers[0])
    assert groups_of(made.trainer) == groups_of(other.trainer)
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), other.model.parameters(), strict=True))


def test_saved_config_gives_the_same_training(run: Any, pl: Any, tmp_path: Path):
    logger = {"class_path": f"{pl.__name__}.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    first = run(
        *cli_args("optimizer", {"name": "adam", "lr": 0.05, "betas": [0.5, 0.9], "state_dtype": "float64"}),
        *cli_args("lr_scheduler", {"name": "cosine_annealing_lr", "T_max": 7}),
        config={"trainer": {**QUIET_NO_SANITY, "logger": logger}},
    )
    saved = yaml.safe_load(Path(first.trainer.log_dir, "config.yaml").read_text())
    assert saved["optimizer"]["class_path"] == "optplug.shims.optimizers.adam"
    assert saved["optimizer"]["init_args"]["betas"] == [0.5, 0.9]
    assert saved["lr_scheduler"]["init_args"]["T_max"] == 7
    again = run(config=saved)
    assert groups_of(first.trainer) == groups_of(again.trainer)
    assert again.model.lrs == first.model.lrs
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------ schedulers with a metric


def test_metric_scheduler_has_both_classes_and_is_stepped(run: Any, lightning_cli: Any):
    made = run("--optimizer=sgd", "--optimizer.lr=0.8", *cli_args("lr_scheduler", PLATEAU))
    (entry,) = made.trainer.lr_scheduler_configs
    assert isinstance(entry.scheduler, lightning_cli.ReduceLROnPlateau)
    assert isinstance(entry.scheduler, optplug.get_scheduler("reduce_lr_on_plateau"))
    assert entry.monitor == entry.scheduler.monitor == "val_loss"
    assert [metric for *_, metric in made.model.scheduler_steps] == VALUES["val_loss"]
    assert groups_of(made.trainer)[0]["lr"] == 0.2


def test_internal_scheduler_class_is_not_listed_in_help(run: Any, capsys: Any):
    run("--optimizer=sgd", *cli_args("lr_scheduler", PLATEAU))
    with pytest.raises(SystemExit):
        run("--help")
    offered = "".join(capsys.readouterr().out.split())
    assert "optplug.shims.schedulers.reduce_lr_on_plateau" in offered
    assert "optplug.shims.factory" not in offered


def test_callback_steps_a_metric_scheduler_of_lightning_cli(run: Any, optplug_lightning: Any, capsys: Any):
    callback = optplug_lightning.ConfigureOptimizers()
    arguments = ["--optimizer=sgd", "--optimizer.lr=0.8", *cli_args("lr_scheduler", PLATEAU)]
    made = run(*arguments, trainer={"callbacks": [callback]})
    assert "optplug: epoch 1: val_loss is 2, not better than 1: learning rate 0.8 -> 0.4" in capsys.readouterr().out
    assert [metric for *_, metric in made.model.scheduler_steps] == VALUES["val_loss"]
    assert groups_of(made.trainer)[0]["lr"] == 0.2


def test_metric_scheduler_requires_monitor(run: Any, capsys: Any):
    message = cli_error(capsys, lambda: run("--optimizer=sgd", "--lr_scheduler=reduce_lr_on_plateau"))
    assert "the following arguments are required: monitor" in message
    with pytest.raises(ConfigError, match=r"^scheduler 'reduce_lr_on_plateau' needs monitor, the name of a metric"):
        optplug.shims.schedulers.reduce_lr_on_plateau(torch.optim.SGD(nn.Linear(1, 1).parameters()))


def test_metric_scheduler_resumes_from_a_checkpoint(run: Any, tmp_path: Path):
    arguments = ["--optimizer=sgd", "--optimizer.lr=0.8", *cli_args("lr_scheduler", PLATEAU)]
    made = run(*arguments)
    made.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = run(*arguments, "--trainer.max_epochs=5", fit=False)
    again.trainer.fit(again.model, ckpt_path=tmp_path / "saved.ckpt")
    scheduler = again.trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.last_epoch, scheduler.monitor, scheduler.best) == (5, "val_loss", 1.0)
    assert again.model.lrs[0] == 0.2


# ------------------------------------------------------------------------------------------ functions and lengths


@pytest.mark.parametrize(
    ("given", "lr"), [("0.1 ** epoch", 0.02), ("0.25", 0.5), (0.25, 0.5), (["1 / (1 + epoch)"], 2 / 3)]
)
def test_function_of_the_epoch_is_an_expression(run: Any, given: Any, lr: float):
    chosen = {"class_path": "lambda_lr", "init_args": {"lr_lambda": given}}
    made = run("--optimizer=sgd", "--optimizer.lr=2", config={"lr_scheduler": chosen})
    assert made.model.lrs[-1] == pytest.approx(lr)


def test_invalid_expression_raises_config_error(run: Any):
    with pytest.raises(ConfigError, match="there is no name 'epcoh'"):
        run("--optimizer=sgd", *cli_args("lr_scheduler", {"name": "lambda_lr", "lr_lambda": "1 / epcoh"}))


AUTO = {"class_path": "cosine_annealing_lr", "init_args": {"T_max": "auto"}}


@pytest.mark.parametrize(
    ("args", "config"),
    [
        (cli_args("lr_scheduler", {"name": "cosine_annealing_lr", "T_max": "auto"}), {}),
        ([], {"lr_scheduler": AUTO}),
    ],
    ids=["command line", "file"],
)
def test_length_auto_is_rejected_with_alternatives(run: Any, capsys: Any, args: list[str], config: Any):
    message = cli_error(capsys, lambda: run("--optimizer=sgd", *args, config=config))
    assert "LightningCLI cannot compute the length for 'auto': give a number" in message
    assert "OptplugCLI or the callback ConfigureOptimizers" in message


@pytest.mark.parametrize("given", ["1.5", "ten", True, 2.5])
def test_length_must_be_a_whole_number(run: Any, capsys: Any, given: Any):
    chosen = {"class_path": "cosine_annealing_lr", "init_args": {"T_max": given}}
    message = cli_error(capsys, lambda: run("--optimizer=sgd", config={"lr_scheduler": chosen}))
    assert f"must be a whole number, got {given!r}" in message


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optimizer=adam", "--optimizer.lrr=0.1"], "Option 'lrr' is not accepted"),
        (["--optimizer=adam", "--optimizer.lr=abc"], "Expected a <class 'float'>. Got value: abc"),
        (["--optimizer=adam", "--optimizer.engine=turbo"], "turbo"),
        (["--optimizer=nope"], "nope"),
        (["--optimizer=sgd", "--lr_scheduler=step_lr"], "the following arguments are required: step_size"),
        (["--optimizer=sgd", "--lr_scheduler=step_lr", "--lr_scheduler.step=1"], "Option 'step' is not accepted"),
        (["--optimizer=step_lr"], "step_lr"),
    ],
)
def test_invalid_options_are_rejected_by_the_parser(run: Any, capsys: Any, args: list[str], message: str):
    assert message in cli_error(capsys, lambda: run(*args))


def test_value_out_of_range_raises_hyperparameter_error(run: Any):
    with pytest.raises(HyperparameterError, match=r"lr must be at least 0"):
        run("--optimizer=adam", "--optimizer.lr=-1")


def test_shim_called_directly_rejects_unknown_options():
    with pytest.raises(ConfigError, match=r"adam has no option 'lrr'.*did you mean 'lr'"):
        optplug.shims.optimizers.adam([torch.zeros(1, requires_grad=True)], lrr=1)


# ------------------------------------------------------------------------- every name, third-party plugins

SHIM_MODULES = {"optimizer": optplug.shims.optimizers, "scheduler": optplug.shims.schedulers}
REQUIRED_ARGUMENTS = {
    "exponential_lr": {"gamma": 0.5},
    "lambda_lr": {"lr_lambda": "1"},
    "cosine_annealing_lr": {"T_max": 2},
}
REQUIRED_ARGUMENTS |= {"multi_step_lr": {"milestones": [1]}, "step_lr": {"step_size": 1}}
REQUIRED_ARGUMENTS |= {"wsd": {"total_steps": 9, "decay_steps": 3}, "one_cycle_lr": {"max_lr": 1.0, "total_steps": 9}}
REQUIRED_ARGUMENTS |= {"cyclic_lr": {"base_lr": 0.1, "max_lr": 1.0}, "cosine_annealing_warm_restarts": {"T_0": 3}}
REQUIRED_ARGUMENTS |= {"multiplicative_lr": {"lr_lambda": "1"}, "sequential": {"schedules": [{"name": "linear_lr"}]}}
REQUIRED_ARGUMENTS |= {"reduce_lr_on_plateau": {"monitor": "val_loss"}}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SHIM_MODULES for name in first_party(kind)])
def test_every_registered_name_has_a_shim(kind: str, name: str):
    shim = getattr(SHIM_MODULES[kind], name)
    assert (shim.__name__, shim.__module__) == (name, f"optplug.shims.{kind}s")
    expected = [argument.name for argument in documented_arguments(registry.resolve(kind, name))]
    parameters = list(inspect.signature(shim).parameters)[1:]
    assert [p for p in parameters if p != "monitor"] == expected
    assert ("monitor" in parameters) == (name == "reduce_lr_on_plateau")
    optimizer = optplug.create_optimizer("sgd", nn.Linear(1, 1))
    target = optimizer if kind == "scheduler" else [torch.zeros(1, 1, requires_grad=True)]
    made = shim(target, **REQUIRED_ARGUMENTS.get(name, {}))
    cls = registry.get(kind, name)
    assert isinstance(made, cls)
    assert type(made) is cls or name == "reduce_lr_on_plateau"


class RaisingOptimizer(torch.optim.SGD):
    """A third-party optimizer whose constructor raises for some values."""

    def __init__(self, params: Any, lr: float = 0.1, variant: str = "plain", dtype: torch.dtype | None = None) -> None:
        if variant == "value error":
            raise ValueError("wrong value")
        if variant == "type error":
            raise TypeError("wrong type")
        super().__init__(params, lr=lr)


class MetricScheduler(torch.optim.lr_scheduler.LRScheduler):
    """A third-party scheduler that takes a metric, does not derive from ReduceLROnPlateau, and has lengths."""

    def __init__(self, optimizer: Any, span: int | None = None, total_iters: int = 3) -> None:
        self.span, self.total_iters, self.metrics = span, total_iters, []
        super().__init__(optimizer)

    def step(self, metrics: Any = None) -> None:
        if metrics is not None:
            self.metrics.append(metrics)

    def get_lr(self) -> Any:
        return self.base_lrs


THIRD_PARTY = Plugin("my-plugin", "third-party", "1")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers specs, creates their shims, and adds the shims to the module of all shims."""

    def register_specs(*pairs: tuple[Plugin, Any]) -> dict[str, Any]:
        registrations: dict[str, list[Registration]] = {}
        for plugin, spec in pairs:
            registrations.setdefault(spec.name.replace("_", ""), []).append(Registration(spec, plugin))
        kind = pairs[0][1].kind
        for key, found in registrations.items():
            monkeypatch.setitem(registry._discovered().registrations[kind], key, found)
        made = factory.make_shims(kind, SHIM_MODULES[kind].__name__)
        new = {name: cls for name, cls in made.items() if any(spec.name in name for _, spec in pairs)}
        for name, cls in new.items():
            monkeypatch.setattr(SHIM_MODULES[kind], name, cls, raising=False)
        assert made.keys() >= set(registry.names(kind, "optplug-*:*")), "the other names have shims too"
        return new

    return register_specs


def test_third_party_exceptions_become_config_errors(run: Any, register: Any, capsys: Any):
    register((THIRD_PARTY, OptimizerSpec("raising", RaisingOptimizer)))
    made = run("--optimizer=raising", "--optimizer.lr=0.5", fit=False)
    made.trainer.fit(made.model)
    assert type(made.trainer.optimizers[0]) is RaisingOptimizer
    assert "Expected a <class 'float'>" in cli_error(capsys, lambda: run("--optimizer=raising", "--optimizer.lr=x"))
    with pytest.raises(ConfigError, match=r"raising rejected .*: wrong value"):
        run("--optimizer=raising", "--optimizer.variant=value error")
    with pytest.raises(ConfigTypeError, match=r"raising rejected .*: wrong type"):
        run("--optimizer=raising", "--optimizer.variant=type error")


@pytest.mark.parametrize("base", ["sgd", "{name: sgd, lr: 0.25}"])
def test_optimizer_that_wraps_another_takes_its_base(run: Any, register: Any, capsys: Any, base: str):
    register((THIRD_PARTY, OptimizerSpec("wrapping", Lookahead, base="optimizer")))
    made = run("--optimizer=wrapping", "--optimizer.k=3", f"--optimizer.base={base}")
    (optimizer,) = made.trainer.optimizers
    found = original_class(optimizer), optimizer.k, type(optimizer.optimizer), optimizer.param_groups[0]["lr"]
    assert found == (Lookahead, 3, optplug.get_optimizer("sgd"), 1e-3 if base == "sgd" else 0.25)
    assert "base" in cli_error(capsys, lambda: run("--optimizer=wrapping"))
    with pytest.raises(OptplugError, match=r"base\.momentun: sgd has no option"):
        run("--optimizer=wrapping", "--optimizer.base={name: sgd, momentun: 0.9}")


def test_third_party_metric_scheduler_is_stepped_with_the_metric(run: Any, register: Any, lightning_cli: Any):
    spec = SchedulerSpec("metric_scheduler", MetricScheduler, capabilities=frozenset({"metric"}), length="span")
    register((THIRD_PARTY, spec))
    made = run("--optimizer=sgd", *cli_args("lr_scheduler", {"name": "metric_scheduler", "monitor": "val_loss"}))
    (entry,) = made.trainer.lr_scheduler_configs
    assert isinstance(entry.scheduler, lightning_cli.ReduceLROnPlateau)
    assert entry.scheduler.metrics == VALUES["val_loss"]
    assert (entry.scheduler.span, entry.scheduler.total_iters) == (None, 3)


@pytest.mark.parametrize("argument", ["span", "total_iters"])
def test_length_of_third_party_scheduler_rejects_auto_and_accepts_number(
    run: Any, register: Any, capsys: Any, argument: str
):
    register((THIRD_PARTY, SchedulerSpec("metric_scheduler", MetricScheduler, length="span")))
    arguments = ["--optimizer=sgd", *cli_args("lr_scheduler", {"name": "metric_scheduler", argument: "auto"})]
    assert "LightningCLI cannot compute the length for 'auto'" in cli_error(capsys, lambda: run(*arguments))
    made = run("--optimizer=sgd", *cli_args("lr_scheduler", {"name": "metric_scheduler", argument: "8"}), fit=False)
    assert made.config.lr_scheduler.init_args[argument] == 8


@pytest.mark.filterwarnings("default:optplug.shims")
@pytest.mark.parametrize("kind", ["optimizer", "scheduler"])
def test_unloadable_class_warns_and_leaves_the_others_usable(run: Any, register: Any, kind: str):
    broken = (
        OptimizerSpec("unloadable", "missing_module:Missing")
        if kind == "optimizer"
        else SchedulerSpec("unloadable", "missing_module:Missing", capabilities=frozenset({"metric"}))
    )
    register((THIRD_PARTY, broken))
    assert run("--optimizer=adam", "--lr_scheduler=step_lr", "--lr_scheduler.step_size=1").trainer.lr_scheduler_configs
    args = ["--optimizer=unloadable"] if kind == "optimizer" else ["--optimizer=sgd", "--lr_scheduler=unloadable"]
    args += ["--lr_scheduler.monitor=val_loss"] if kind == "scheduler" else []
    with (
        pytest.warns(UserWarning, match=r"^optplug.shims: .*'unloadable' of plugin my-plugin .* could not be loaded"),
        pytest.raises(PluginError, match=f"^{kind} 'unloadable' of plugin my-plugin .* could not be loaded"),
    ):
        run(*args)


def test_ambiguous_name_has_one_shim_for_each_plugin(run: Any, register: Any):
    class Other(RaisingOptimizer):
        pass

    made = register(
        (THIRD_PARTY, OptimizerSpec("ambiguous", RaisingOptimizer)),
        (Plugin("other", "o", "1"), OptimizerSpec("ambiguous", Other)),
    )
    assert sorted(made) == ["my_plugin__ambiguous", "other__ambiguous"]
    ran = run("--optimizer=other__ambiguous", "--optimizer.lr=0.5")
    assert type(ran.trainer.optimizers[0]) is Other
    assert type(run("--optimizer=my_plugin__ambiguous").trainer.optimizers[0]) is RaisingOptimizer


def test_name_of_an_adapter_too_has_a_shim_of_its_own_and_one_with_the_plugin(run: Any, register: Any):
    class Adapted(RaisingOptimizer):
        pass

    made = register(
        (THIRD_PARTY, OptimizerSpec("shared", RaisingOptimizer)),
        (Plugin("other", "o", "1"), OptimizerSpec("shared", Adapted, precedence=1)),
    )
    assert sorted(made) == ["other__shared", "shared"]
    assert type(run("--optimizer=shared").trainer.optimizers[0]) is RaisingOptimizer
    assert type(run("--optimizer=other__shared").trainer.optimizers[0]) is Adapted


# ------------------------------------------------------------------------------------------ imports


def test_import_of_optplug_does_not_import_shims():
    run_python(
        "import sys, optplug; optplug.list_optimizers()\n"
        "assert not {'optplug.shims', 'jsonargparse', 'torch'} & set(sys.modules)"
    )


def test_import_of_shims_imports_neither_lightning_nor_registered_classes():
    run_python(
        "import sys, optplug.shims\n"
        "assert optplug.shims.optimizers.adam and optplug.shims.schedulers.step_lr\n"
        "assert not {'lightning', 'pytorch_lightning', 'optplug.schedulers.closed_form'} & set(sys.modules)\n"
        "loaded = [name for name in sys.modules if name.startswith('optplug_') and '.' in name]\n"
        "assert not [name for name in loaded if not name.startswith('optplug_adapters.')]"
    )


PROGRAM = """
import sys, torch, {namespace} as pl
from {namespace}.cli import LightningCLI
{first}
class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
assert ("optplug.shims" in sys.modules) == bool({first!r})
args = {args}
made = LightningCLI(Model, run=False, args=args, trainer_defaults=dict(accelerator="cpu", logger=False))
print(made.config.optimizer.class_path)
found = made.model.configure_optimizers()
print(type(found).__module__ if isinstance(found, torch.optim.Optimizer) else type(found[1][0]).__module__)
"""


def test_full_path_works_without_importing_shims(pl: Any):
    args = ["--optimizer=optplug.shims.optimizers.adam", "--optimizer.lr=0.1"]
    args += ["--lr_scheduler=optplug.shims.schedulers.step_lr", "--lr_scheduler.step_size=1"]
    output = run_python(PROGRAM.format(namespace=pl.__name__, first="", args=args)).split()
    assert output[-2:] == ["optplug.shims.optimizers.adam", registry.get("scheduler", "step_lr").__module__]


@pytest.mark.slow
def test_class_names_of_torch_still_refer_to_torch(pl: Any):
    output = run_python(PROGRAM.format(namespace=pl.__name__, first="import optplug.shims", args=["--optimizer=Adam"]))
    assert output.split()[-2:] == ["torch.optim.Adam", "torch.optim.adam"]
