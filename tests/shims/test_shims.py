"""Registered names in an unmodified LightningCLI, by both import names of Lightning."""

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
from torch import nn

import optplug
import optplug.shims
from optplug.errors import ConfigError, ConfigTypeError, HyperparameterError, PluginError
from optplug.registry import Plugin, Registration, registry
from optplug.registry.signature import documented
from optplug.registry.specs import OptimizerSpec, SchedulerSpec
from optplug.shims import factory

# pytest's own command line stands in sys.argv, which LightningCLI takes for somebody's mistake.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 3,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
VALUES = {"val_loss": [1.0, 2.0, 3.0]}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "monitor": "val_loss"}


@pytest.fixture
def lightning_cli(pl: Any) -> Any:
    """The module that holds LightningCLI."""
    return importlib.import_module(f"{pl.__name__}.cli")


@pytest.fixture
def model(scripted: type) -> type:
    class Model(scripted):
        def __init__(self) -> None:
            super().__init__(val=VALUES)

    return Model


@pytest.fixture
def run(lightning_cli: Any, model: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs LightningCLI, without subcommands, on a file of these keys and on arguments; and fits."""
    monkeypatch.chdir(tmp_path)

    def make(*args: str, config: Any = None, module: type = model, trainer: Any = None, fit: bool = True) -> Any:
        path = tmp_path / "in.yaml"
        path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": QUIET, **(config or {})}))
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
def by_callback(model: type, trainer: Any, ours: Any) -> Any:
    """Fits the same module with the callback."""

    def make(optimizer: Any, scheduler: Any = None) -> Any:
        callback = ours.ConfigureOptimizers(optimizer, scheduler, verbose=False)
        made = trainer(callbacks=[callback], max_epochs=QUIET["max_epochs"])
        module = model()
        made.fit(module)
        return made, module

    return make


def options_of(flag: str, given: Any) -> list[str]:
    """`{name: adam, lr: 0.1}` -> `--optimizer adam --optimizer.lr 0.1`."""
    own = {"name": given} if isinstance(given, str) else dict(given)
    return [f"--{flag}", own.pop("name"), *(word for k, v in own.items() for word in (f"--{flag}.{k}", str(v)))]


def groups_of(trainer: Any) -> list[dict[str, Any]]:
    """The options of each group; the base rate that optplug notes under a plateau is no option."""
    left_out = ("params", "initial_lr")
    return [{k: v for k, v in g.items() if k not in left_out} for g in trainer.optimizers[0].param_groups]


def dtypes_of(trainer: Any) -> list[dict[str, Any]]:
    """The states of each parameter, tensors by their dtype."""
    states = trainer.optimizers[0].state_dict()["state"].values()
    return [{key: getattr(value, "dtype", value) for key, value in state.items()} for state in states]


def complaint(capsys: Any, make: Any) -> str:
    """What a refused command line says on stderr, without line breaks; it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        make()
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def python(program: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "OPTPLUG_DISABLE"}
    options = [sys.executable, "-W", "ignore", "-c", program]
    ran = subprocess.run(options, capture_output=True, text=True, timeout=240, env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# ------------------------------------------------------------------------- ways to say a name


@pytest.mark.parametrize(
    "args",
    [["--optimizer", "adam", "--optimizer.lr", "1e-3"], ["--optimizer=adam", "--optimizer.lr=0.001"]],
    ids=["two words", "equals"],
)
def test_a_name_on_the_command_line_trains(run: Any, args: list[str]):
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
def test_a_name_in_a_file_trains(run: Any, given: Any, lr: float):
    made = run(config={"optimizer": given})
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert groups_of(made.trainer)[0]["lr"] == lr


def test_a_schedule_by_name_is_stepped_each_epoch(run: Any):
    made = run("--optimizer=sgd", "--lr_scheduler", "cosine_annealing_lr", "--lr_scheduler.T_max", "10")
    (entry,) = made.trainer.lr_scheduler_configs
    assert type(entry.scheduler) is optplug.get_scheduler("cosine_annealing_lr")
    assert entry.scheduler.T_max == 10
    assert entry.scheduler.last_epoch == QUIET["max_epochs"]
    assert len(set(made.model.rates)) == QUIET["max_epochs"]


def test_help_has_the_words_of_the_class(run: Any, capsys: Any):
    with pytest.raises(SystemExit) as caught:
        run("--optimizer.help", "adam")
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    words = {argument.name: argument.words for argument in documented(registry.find("optimizer", "adam"))}
    assert len(words["decoupled_weight_decay"]) > 20  # its base class says it
    for name, says in words.items():
        assert f"--optimizer.{name}" in said
        assert " ".join(says.split()) in said
    assert "default: 0.001" in said
    assert "params" not in said


def test_help_of_a_plateau_has_its_monitor(run: Any, capsys: Any):
    with pytest.raises(SystemExit):
        run("--lr_scheduler.help", "reduce_lr_on_plateau")
    assert "--lr_scheduler.monitor MONITOR the metric to follow (required, type: str)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_model_that_takes_a_factory_takes_a_name(run: Any, lightning_cli: Any, scripted: type):
    class Injected(scripted):
        def __init__(self, optimizer, schedule) -> None:
            super().__init__(val=VALUES)
            self.optimizer, self.schedule = optimizer, schedule

        def configure_optimizers(self) -> Any:
            optimizer = self.optimizer(self.parameters())
            schedule = self.schedule(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}

    hints = {"optimizer": lightning_cli.OptimizerCallable, "schedule": lightning_cli.LRSchedulerCallable}
    Injected.__init__.__annotations__ = hints
    arguments = [*options_of("model.optimizer", {"name": "adam", "lr": 0.5}), *options_of("model.schedule", PLATEAU)]
    made = run(*arguments, module=Injected)
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert groups_of(made.trainer)[0]["lr"] == 0.125
    assert isinstance(made.trainer.lr_scheduler_configs[0].scheduler, lightning_cli.ReduceLROnPlateau)


# ------------------------------------------------------------------------- the same as elsewhere

CASES = {
    "adam": ({"name": "adam", "lr": 0.01}, {"name": "cosine_annealing_lr", "T_max": 3, "eta_min": 0.001}),
    "sgd": ({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}, {"name": "step_lr", "step_size": 1}),
    "adamw": ({"name": "adamw", "lr": 0.01}, {"name": "multi_step_lr", "milestones": [1, 2]}),
    "rmsprop": ({"name": "rmsprop", "lr": 0.01}, {"name": "lambda_lr", "lr_lambda": "0.5 ** epoch"}),
    "rprop": ({"name": "rprop", "lr": 0.01, "etas": [0.4, 1.3]}, None),
    "adagrad": ({"name": "adagrad", "lr": 0.1, "state_dtype": "float64"}, PLATEAU),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_the_callback_builds(run: Any, by_callback: Any, case: str):
    optimizer, scheduler = CASES[case]
    made = run(*options_of("optimizer", optimizer), *(options_of("lr_scheduler", scheduler) if scheduler else []))
    trainer, module = by_callback(optimizer, scheduler)
    assert type(made.trainer.optimizers[0]) is type(trainer.optimizers[0])
    assert groups_of(made.trainer) == groups_of(trainer)
    assert made.model.rates == module.rates
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), module.parameters(), strict=True))
    assert dtypes_of(made.trainer) == dtypes_of(trainer)


def test_it_is_what_optplug_cli_builds(run: Any, ours: Any, model: type, tmp_path: Path):
    optimizer, scheduler = CASES["adam"]
    made = run(*options_of("optimizer", optimizer), *options_of("lr_scheduler", scheduler))
    path = tmp_path / "ours.yaml"
    choice = {"optimizer": optimizer, "scheduler": scheduler}
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": QUIET, **choice}))
    other = ours.OptplugCLI(model, run=False, args=["--config", str(path)], save_config_callback=None)
    other.trainer.fit(other.model)
    assert type(made.trainer.optimizers[0]) is type(other.trainer.optimizers[0])
    assert groups_of(made.trainer) == groups_of(other.trainer)
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), other.model.parameters(), strict=True))


def test_a_saved_configuration_runs_again(run: Any, pl: Any, tmp_path: Path):
    logger = {"class_path": f"{pl.__name__}.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    first = run(
        *options_of("optimizer", {"name": "adam", "lr": 0.05, "betas": [0.5, 0.9], "state_dtype": "float64"}),
        *options_of("lr_scheduler", {"name": "cosine_annealing_lr", "T_max": 7}),
        config={"trainer": {**QUIET, "logger": logger}},
    )
    saved = yaml.safe_load(Path(first.trainer.log_dir, "config.yaml").read_text())
    assert saved["optimizer"]["class_path"] == "optplug.shims.optimizers.adam"
    assert saved["optimizer"]["init_args"]["betas"] == [0.5, 0.9]
    assert saved["lr_scheduler"]["init_args"]["T_max"] == 7
    again = run(config=saved)
    assert groups_of(first.trainer) == groups_of(again.trainer)
    assert again.model.rates == first.model.rates
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


# ------------------------------------------------------------------------- plateaus


def test_a_plateau_is_lightning_s_and_ours_and_steps(run: Any, lightning_cli: Any):
    made = run("--optimizer=sgd", "--optimizer.lr=0.8", *options_of("lr_scheduler", PLATEAU))
    (entry,) = made.trainer.lr_scheduler_configs
    assert isinstance(entry.scheduler, lightning_cli.ReduceLROnPlateau)
    assert isinstance(entry.scheduler, optplug.get_scheduler("reduce_lr_on_plateau"))
    assert entry.monitor == entry.scheduler.monitor == "val_loss"
    assert [metric for *_, metric in made.model.stepped] == VALUES["val_loss"]
    assert groups_of(made.trainer)[0]["lr"] == 0.2


def test_the_class_of_a_plateau_is_no_name_to_choose(run: Any, capsys: Any):
    run("--optimizer=sgd", *options_of("lr_scheduler", PLATEAU))
    with pytest.raises(SystemExit):
        run("--help")
    offered = "".join(capsys.readouterr().out.split())
    assert "optplug.shims.schedulers.reduce_lr_on_plateau" in offered
    assert "optplug.shims.factory" not in offered


def test_a_plateau_is_taken_over_by_the_callback(run: Any, ours: Any, capsys: Any):
    callback = ours.ConfigureOptimizers()
    arguments = ["--optimizer=sgd", "--optimizer.lr=0.8", *options_of("lr_scheduler", PLATEAU)]
    made = run(*arguments, trainer={"callbacks": [callback]})
    assert "optplug: epoch 1: val_loss is 2, not better than 1: learning rate 0.8 -> 0.4" in capsys.readouterr().out
    assert [metric for *_, metric in made.model.stepped] == VALUES["val_loss"]
    assert groups_of(made.trainer)[0]["lr"] == 0.2


def test_a_plateau_needs_its_monitor(run: Any, capsys: Any):
    says = complaint(capsys, lambda: run("--optimizer=sgd", "--lr_scheduler=reduce_lr_on_plateau"))
    assert "the following arguments are required: monitor" in says
    with pytest.raises(ConfigError, match=r"^scheduler 'reduce_lr_on_plateau' needs monitor, the name of a metric"):
        optplug.shims.schedulers.reduce_lr_on_plateau(torch.optim.SGD(nn.Linear(1, 1).parameters()))


def test_a_plateau_survives_a_checkpoint(run: Any, tmp_path: Path):
    arguments = ["--optimizer=sgd", "--optimizer.lr=0.8", *options_of("lr_scheduler", PLATEAU)]
    made = run(*arguments)
    made.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = run(*arguments, "--trainer.max_epochs=5", fit=False)
    again.trainer.fit(again.model, ckpt_path=tmp_path / "saved.ckpt")
    scheduler = again.trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.last_epoch, scheduler.monitor, scheduler.best) == (5, "val_loss", 1.0)
    assert again.model.rates[0] == 0.2


# ------------------------------------------------------------------------- functions and lengths


@pytest.mark.parametrize(
    ("given", "rate"), [("0.1 ** epoch", 0.02), ("0.25", 0.5), (0.25, 0.5), (["1 / (1 + epoch)"], 2 / 3)]
)
def test_a_function_of_the_epoch_is_text(run: Any, given: Any, rate: float):
    chosen = {"class_path": "lambda_lr", "init_args": {"lr_lambda": given}}
    made = run("--optimizer=sgd", "--optimizer.lr=2", config={"lr_scheduler": chosen})
    assert made.model.rates[-1] == pytest.approx(rate)


def test_a_wrong_expression_is_our_error(run: Any):
    with pytest.raises(ConfigError, match="there is no name 'epcoh'"):
        run("--optimizer=sgd", *options_of("lr_scheduler", {"name": "lambda_lr", "lr_lambda": "1 / epcoh"}))


AUTO = {"class_path": "cosine_annealing_lr", "init_args": {"T_max": "auto"}}


@pytest.mark.parametrize(
    ("args", "config"),
    [
        (options_of("lr_scheduler", {"name": "cosine_annealing_lr", "T_max": "auto"}), {}),
        ([], {"lr_scheduler": AUTO}),
    ],
    ids=["command line", "file"],
)
def test_an_automatic_length_is_refused_with_a_remedy(run: Any, capsys: Any, args: list[str], config: Any):
    says = complaint(capsys, lambda: run("--optimizer=sgd", *args, config=config))
    assert "LightningCLI cannot know what 'auto' is: give a number" in says
    assert "OptplugCLI or the callback ConfigureOptimizers" in says


@pytest.mark.parametrize("given", ["1.5", "ten", True, 2.5])
def test_a_length_is_a_whole_number(run: Any, capsys: Any, given: Any):
    chosen = {"class_path": "cosine_annealing_lr", "init_args": {"T_max": given}}
    says = complaint(capsys, lambda: run("--optimizer=sgd", config={"lr_scheduler": chosen}))
    assert f"must be a whole number, got {given!r}" in says


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("args", "words"),
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
def test_what_the_signature_has_not_is_refused_at_once(run: Any, capsys: Any, args: list[str], words: str):
    assert words in complaint(capsys, lambda: run(*args))


def test_a_value_out_of_range_is_our_error(run: Any):
    with pytest.raises(HyperparameterError, match=r"lr must be at least 0"):
        run("--optimizer=adam", "--optimizer.lr=-1")


def test_called_by_hand_it_takes_no_unknown_option():
    with pytest.raises(ConfigError, match=r"adam has no option 'lrr'.*did you mean 'lr'"):
        optplug.shims.optimizers.adam([torch.zeros(1, requires_grad=True)], lrr=1)


# ------------------------------------------------------------------------- every name, any plugin

KINDS = {"optimizer": optplug.shims.optimizers, "scheduler": optplug.shims.schedulers}
SUPPLIED = {"exponential_lr": {"gamma": 0.5}, "lambda_lr": {"lr_lambda": "1"}, "cosine_annealing_lr": {"T_max": 2}}
SUPPLIED |= {"multi_step_lr": {"milestones": [1]}, "step_lr": {"step_size": 1}}
SUPPLIED |= {"reduce_lr_on_plateau": {"monitor": "val_loss"}}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in registry.names(kind)])
def test_every_name_has_its_shim(kind: str, name: str):
    shim = getattr(KINDS[kind], name)
    assert (shim.__name__, shim.__module__) == (name, f"optplug.shims.{kind}s")
    expected = [argument.name for argument in documented(registry.find(kind, name))]
    parameters = list(inspect.signature(shim).parameters)[1:]
    assert [p for p in parameters if p != "monitor"] == expected
    assert ("monitor" in parameters) == (name == "reduce_lr_on_plateau")
    optimizer = optplug.create_optimizer("sgd", nn.Linear(1, 1))
    target = optimizer if kind == "scheduler" else [torch.zeros(1, requires_grad=True)]
    made = shim(target, **SUPPLIED.get(name, {}))
    cls = registry.get(kind, name)
    assert isinstance(made, cls)
    assert type(made) is cls or name == "reduce_lr_on_plateau"


class Fussy(torch.optim.SGD):
    """Says no."""

    def __init__(self, params: Any, lr: float = 0.1, mood: str = "good", dtype: torch.dtype | None = None) -> None:
        if mood == "bad":
            raise ValueError("not today")
        if mood == "worse":
            raise TypeError("never")
        super().__init__(params, lr=lr)


class Follower(torch.optim.lr_scheduler.LRScheduler):
    """Takes a metric, is no plateau of torch's, and has lengths."""

    def __init__(self, optimizer: Any, span: int | None = None, total_iters: int = 3) -> None:
        self.span, self.total_iters, self.metrics = span, total_iters, []
        super().__init__(optimizer)

    def step(self, metrics: Any = None) -> None:
        if metrics is not None:
            self.metrics.append(metrics)

    def get_lr(self) -> Any:
        return self.base_lrs


STRANGERS = Plugin("my-strangers", "strangers", "1")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Offers specs, makes their shims, and puts them where all shims are."""

    def registration(*pairs: tuple[Plugin, Any]) -> dict[str, Any]:
        registrations: dict[str, list[Registration]] = {}
        for plugin, spec in pairs:
            registrations.setdefault(spec.name.replace("_", ""), []).append(Registration(spec, plugin))
        kind = pairs[0][1].kind
        for key, found in registrations.items():
            monkeypatch.setitem(registry._catalogue().registrations[kind], key, found)
        made = factory.shims(kind, KINDS[kind].__name__)
        new = {name: cls for name, cls in made.items() if any(spec.name in name for _, spec in pairs)}
        for name, cls in new.items():
            monkeypatch.setattr(KINDS[kind], name, cls, raising=False)
        assert made.keys() >= set(registry.names(kind, "optplug-*:*")), "the others are there"
        return new

    return registration


def test_what_a_stranger_s_class_says_is_our_error(run: Any, offered: Any, capsys: Any):
    offered((STRANGERS, OptimizerSpec("fussy", Fussy)))
    made = run("--optimizer=fussy", "--optimizer.lr=0.5", fit=False)
    made.trainer.fit(made.model)
    assert type(made.trainer.optimizers[0]) is Fussy
    assert "Expected a <class 'float'>" in complaint(capsys, lambda: run("--optimizer=fussy", "--optimizer.lr=x"))
    with pytest.raises(ConfigError, match=r"fussy refused .*: not today"):
        run("--optimizer=fussy", "--optimizer.mood=bad")
    with pytest.raises(ConfigTypeError, match=r"fussy refused .*: never"):
        run("--optimizer=fussy", "--optimizer.mood=worse")


def test_a_stranger_that_takes_a_metric_is_a_plateau_to_lightning(run: Any, offered: Any, lightning_cli: Any):
    spec = SchedulerSpec("follower", Follower, capabilities=frozenset({"metric"}), length="span")
    offered((STRANGERS, spec))
    made = run("--optimizer=sgd", *options_of("lr_scheduler", {"name": "follower", "monitor": "val_loss"}))
    (entry,) = made.trainer.lr_scheduler_configs
    assert isinstance(entry.scheduler, lightning_cli.ReduceLROnPlateau)
    assert entry.scheduler.metrics == VALUES["val_loss"]
    assert (entry.scheduler.span, entry.scheduler.total_iters) == (None, 3)


@pytest.mark.parametrize("argument", ["span", "total_iters"])
def test_the_length_of_a_stranger_is_known_too(run: Any, offered: Any, capsys: Any, argument: str):
    offered((STRANGERS, SchedulerSpec("follower", Follower, length="span")))
    arguments = ["--optimizer=sgd", *options_of("lr_scheduler", {"name": "follower", argument: "auto"})]
    assert "LightningCLI cannot know what 'auto' is" in complaint(capsys, lambda: run(*arguments))
    made = run("--optimizer=sgd", *options_of("lr_scheduler", {"name": "follower", argument: "8"}), fit=False)
    assert made.config.lr_scheduler.init_args[argument] == 8


@pytest.mark.filterwarnings("default:optplug.shims")
@pytest.mark.parametrize("kind", ["optimizer", "scheduler"])
def test_a_class_that_cannot_be_loaded_breaks_no_other(run: Any, offered: Any, kind: str):
    broken = (
        OptimizerSpec("gone", "nowhere_to_be_found:Gone")
        if kind == "optimizer"
        else SchedulerSpec("gone", "nowhere_to_be_found:Gone", capabilities=frozenset({"metric"}))
    )
    offered((STRANGERS, broken))
    assert run("--optimizer=adam", "--lr_scheduler=step_lr", "--lr_scheduler.step_size=1").trainer.lr_scheduler_configs
    words = ["--optimizer=gone"] if kind == "optimizer" else ["--optimizer=sgd", "--lr_scheduler=gone"]
    words += ["--lr_scheduler.monitor=val_loss"] if kind == "scheduler" else []
    with (
        pytest.warns(UserWarning, match=r"^optplug.shims: .*'gone' of plugin my-strangers .* could not be loaded"),
        pytest.raises(PluginError, match=f"^{kind} 'gone' of plugin my-strangers .* could not be loaded"),
    ):
        run(*words)


def test_a_name_of_two_plugins_has_one_shim_for_each(run: Any, offered: Any):
    class Other(Fussy):
        pass

    made = offered((STRANGERS, OptimizerSpec("twin", Fussy)), (Plugin("other", "o", "1"), OptimizerSpec("twin", Other)))
    assert sorted(made) == ["my_strangers__twin", "other__twin"]
    ran = run("--optimizer=other__twin", "--optimizer.lr=0.5")
    assert type(ran.trainer.optimizers[0]) is Other
    assert type(run("--optimizer=my_strangers__twin").trainer.optimizers[0]) is Fussy


# ------------------------------------------------------------------------- what is imported when


def test_optplug_alone_makes_no_shims():
    python(
        "import sys, optplug; optplug.list_optimizers()\n"
        "assert not {'optplug.shims', 'jsonargparse', 'torch'} & set(sys.modules)"
    )


def test_shims_bring_in_neither_lightning_nor_the_classes():
    python(
        "import sys, optplug.shims\n"
        "assert optplug.shims.optimizers.adam and optplug.shims.schedulers.step_lr\n"
        "assert not {'lightning', 'pytorch_lightning', 'optplug.schedulers.closed_form'} & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('optplug_') and '.' in name]"
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


def test_the_full_path_needs_no_import(pl: Any):
    args = ["--optimizer=optplug.shims.optimizers.adam", "--optimizer.lr=0.1"]
    args += ["--lr_scheduler=optplug.shims.schedulers.step_lr", "--lr_scheduler.step_size=1"]
    said = python(PROGRAM.format(namespace=pl.__name__, first="", args=args)).split()
    assert said[-2:] == ["optplug.shims.optimizers.adam", registry.get("scheduler", "step_lr").__module__]


def test_the_names_of_torch_stay_what_they_were(pl: Any):
    said = python(PROGRAM.format(namespace=pl.__name__, first="import optplug.shims", args=["--optimizer=Adam"]))
    assert said.split()[-2:] == ["torch.optim.Adam", "torch.optim.adam"]
