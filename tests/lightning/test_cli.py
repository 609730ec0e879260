"""OptplugCLI, by both import names of Lightning, and the optplug command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import optplug
from optplug.cli.app import app
from optplug.errors import WiringError
from optplug.registry import Plugin, Quarantined, registry

# pytest's own command line stands in sys.argv, which LightningCLI takes for somebody's mistake.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 2,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(pl: Any, folder: Path) -> Any:
    """Writes a configuration file and returns its path."""

    def make(name: str = "in.yaml", **config: Any) -> str:
        logger = {"class_path": f"{pl.__name__}.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
        path = folder / name
        path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": {**QUIET, "logger": logger}, **config}))
        return str(path)

    return make


@pytest.fixture
def model(scripted_module: type) -> type:
    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__(val={"val_loss": range(1, 9)})

    return Model


@pytest.fixture
def cli(optplug_lightning: Any, model: type) -> Any:
    """Runs OptplugCLI on arguments, without subcommands unless told otherwise, and fits."""

    def run(
        args: list[str], *, module: type = model, base: type = optplug_lightning.OptplugCLI, fit: bool = True
    ) -> Any:
        made = base(module, run=False, args=args, save_config_kwargs={"overwrite": True})
        if fit:
            made.trainer.fit(made.model)
        return made

    return run


def only_group(made: Any) -> dict[str, Any]:
    (group,) = made.trainer.optimizers[0].param_groups
    return group


def complaint(capsys: Any, run: Any) -> str:
    """The last line of what a refused command line says on stderr; it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# -------------------------------------------------------------------------------------------- training


def test_a_file_with_names_trains(cli: Any, write: Any):
    config = write(
        optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.9},
        scheduler={"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "warmup_steps": 2},
        param_groups=[{"match": "*.bias", "lr": 0.1}],
    )
    made = cli(["--config", config])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("sgd")
    assert [g["momentum"] for g in made.trainer.optimizers[0].param_groups] == [0.9, 0.9]
    assert made.model.lrs == [0.25, 0.375] + [0.5] * 6
    assert [group["lr"] for group in made.trainer.optimizers[0].param_groups] == [0.25, 0.05]


@pytest.mark.parametrize("scheduler", [None, "reduce_lr_on_plateau"])
def test_a_bare_name_in_a_file_trains(cli: Any, write: Any, scheduler: Any):
    made = cli(["--config", write(optimizer="adam", scheduler=scheduler)])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert len(made.trainer.lr_scheduler_configs) == (scheduler is not None)


def test_the_saved_configuration_has_the_same_form_and_trains_the_same(cli: Any, write: Any):
    given = {
        "optimizer": {"name": "adam", "lr": 0.02, "betas": [0.8, 0.99]},
        "scheduler": {"name": "cosine_annealing_lr", "T_max": 4, "warmup": {"steps": 3}},
        "param_groups": [{"match": "*.bias", "weight_decay": 0.1}],
    }
    first = cli(["--config", write(**given)])
    saved = Path(first.trainer.log_dir) / "config.yaml"
    assert {key: yaml.safe_load(saved.read_text())[key] for key in given} == given
    again = cli(["--config", str(saved)])
    assert again.model.lrs == first.model.lrs
    for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_options_are_added_on_the_command_line(cli: Any, write: Any):
    made = cli(["--config", write(), "--optimizer", "adam", "--optimizer.lr", "0.02"])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert only_group(made)["lr"] == 0.02
    saved = yaml.safe_load((Path(made.trainer.log_dir) / "config.yaml").read_text())
    assert saved["optimizer"] == {"name": "adam", "lr": 0.02}


def test_the_command_line_adds_to_the_file(cli: Any, write: Any):
    config = write(optimizer={"name": "adam", "lr": 0.5, "eps": 1e-3})
    group = only_group(cli(["--config", config, "--optimizer.lr", "0.02", "--optimizer.betas", "[0.5, 0.6]"]))
    assert (group["lr"], group["eps"], group["betas"]) == (0.02, 1e-3, (0.5, 0.6))


def test_the_command_line_adds_to_a_bare_name_in_the_file(cli: Any, write: Any):
    assert only_group(cli(["--config", write(optimizer="adam"), "--optimizer.lr", "0.02"]))["lr"] == 0.02


@pytest.mark.parametrize("spelled", [["--optimizer", "adam"], ["--optimizer=adam"]], ids=["space", "equals"])
def test_a_name_on_the_command_line_replaces_the_optimizer_of_the_file(cli: Any, write: Any, spelled: list[str]):
    config = write(optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": True})
    made = cli(["--config", config, *spelled, "--optimizer.lr", "0.02"])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert only_group(made)["lr"] == 0.02
    assert made.config["optimizer"] == {"name": "adam", "lr": 0.02}


def test_a_name_on_the_command_line_replaces_the_scheduler_of_the_file(cli: Any, write: Any):
    config = write(optimizer="adam", scheduler={"name": "reduce_lr_on_plateau", "patience": 3})
    made = cli(["--config", config, "--scheduler", "cosine_annealing_lr", "--scheduler.T_max", "7"])
    assert made.trainer.lr_scheduler_configs[0].scheduler.T_max == 7


def test_nested_keys_are_given_on_the_command_line(cli: Any, write: Any):
    made = cli(
        [
            *("--config", write(optimizer="adam"), "--scheduler", "optplug-schedules:cosine_annealing_lr"),
            *(
                "--scheduler.T_max",
                "7",
                "--scheduler.warmup",
                "{steps: 3}",
                "--param_groups",
                "[{match: '*', eps: 0.5}]",
            ),
        ]
    )
    assert made.trainer.lr_scheduler_configs[0].scheduler.warmup_steps == 3
    assert only_group(made)["eps"] == 0.5


def test_without_an_optimizer_the_model_is_left_to_itself(cli: Any, write: Any, scripted_module: type):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    made = cli(["--config", write()], module=Own)
    assert type(made.trainer.optimizers[0]) is torch.optim.SGD
    assert not any(type(c).__name__ == "ConfigureOptimizers" for c in made.trainer.callbacks)


def test_a_model_with_its_own_configure_optimizers_needs_override(cli: Any, write: Any, scripted_module: type):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            raise AssertionError("is replaced")

    with pytest.raises(WiringError, match=r"^Own defines configure_optimizers, .* pass override=True"):
        cli(["--config", write(optimizer="adam")], module=Own)
    made = cli(["--config", write(optimizer="adam"), "--override", "true"], module=Own)
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")


def test_subcommands_take_names(optplug_lightning: Any, model: type, write: Any):
    config = write(optimizer={"name": "sgd", "lr": 0.5})
    made = optplug_lightning.OptplugCLI(
        model, args=["fit", "--config", config, "--optimizer", "adam", "--optimizer.lr", "0.02"]
    )
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert only_group(made)["lr"] == 0.02
    assert made.trainer.state.finished
    made = optplug_lightning.OptplugCLI(model, args=["validate", "--config", config])
    assert made.trainer.callback_metrics["val_loss"] == 1.0


def test_a_bare_name_in_the_section_of_a_subcommand_is_added_to(optplug_lightning: Any, model: type, write: Any):
    config = Path(write())
    whole = yaml.safe_load(config.read_text())
    for choice in ({"optimizer": "adam", "scheduler": "cosine_annealing_lr"}, {"optimizer": {"name": "adam"}}):
        config.write_text(yaml.safe_dump({"fit": {**whole, **choice}}))
        args = ["--config", str(config), "fit", "--optimizer.lr", "0.02"]
        if "scheduler" in choice:
            args += ["--scheduler.T_max", "7"]
        made = optplug_lightning.OptplugCLI(model, args=args)
        assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
        assert made.trainer.optimizers[0].defaults["lr"] == 0.02


def test_arguments_may_come_as_a_mapping(optplug_lightning: Any, model: type, folder: Path):
    config = {"optimizer": {"name": "adam", "lr": 0.02}, "trainer": {**QUIET, "logger": False}}
    made = optplug_lightning.OptplugCLI(model, run=False, args=config, save_config_callback=None)
    made.trainer.fit(made.model)
    assert only_group(made)["lr"] == 0.02


def test_a_subclass_may_add_arguments_without_super(optplug_lightning: Any, cli: Any, write: Any):
    class Mine(optplug_lightning.OptplugCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--extra", type=int, default=3)

    made = cli(["--config", write(optimizer="adam"), "--extra", "4", "--optimizer.lr", "0.02"], base=Mine)
    assert made.config["extra"] == 4
    assert only_group(made)["lr"] == 0.02


def test_a_parser_class_of_the_user_s_is_kept(pl: Any, optplug_lightning: Any, model: type, write: Any):
    base = sys.modules[f"{pl.__name__}.cli"].LightningArgumentParser

    class Parser(base):
        pass

    args = ["--config", write(), "--optimizer", "adam"]
    made = optplug_lightning.OptplugCLI(model, run=False, args=args, parser_class=Parser)
    assert isinstance(made.parser, Parser)
    assert made.config["optimizer"] == {"name": "adam"}


def test_the_class_is_found_where_it_says(optplug_lightning: Any, pl: Any):
    assert optplug_lightning.OptplugCLI.__module__ == optplug_lightning.__name__
    assert issubclass(optplug_lightning.OptplugCLI, sys.modules[f"{pl.__name__}.cli"].LightningCLI)


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--optimizer", "adm"], "optimizer.name: no optimizer named 'adm'; did you mean 'adam'"),
        (
            ["--optimizer", "adam", "--optimizer.lrr", "1"],
            "optimizer.lrr: adam has no option 'lrr'; did you mean 'lr'?",
        ),
        (
            ["--optimizer", "adam", "--optimizer.lr", "fast"],
            "optimizer.lr: Adam: lr must be a number, got 'fast' (str)",
        ),
        (["--optimizer", "adam", "--optimizer.lr", "-1"], "optimizer.lr: Invalid learning rate: -1"),
        (
            ["--optimizer", "adam", "--scheduler", "cosine_annealing_lr"],
            "scheduler: cosine_annealing_lr needs T_max",
        ),
        (
            ["--optimizer", "{class_path: torch.optim.Adam}"],
            "optimizer: needs a name; it has class_path: write {name: ..., lr: ...}; optplug looks up registered names",
        ),
        (
            ["--optimizer", "adam", "--param_groups", "[{lr: 1.0}]"],
            "param_groups[0]: needs one of match, regex, type to select parameters; it has lr",
        ),
        (["--param_groups", "[{match: '*'}]"], "param_groups: requires an optimizer: add e.g. optimizer: adam"),
        (["--param_groups", "no_decay"], "param_groups: requires an optimizer: add e.g. optimizer: adam"),
        (
            ["--optimizer", "adam", "--param_groups", "no_dcay"],
            "param_groups[0]",
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
@pytest.mark.parametrize("subcommand", [False, True], ids=["", "fit"])
def test_what_is_wrong_ends_with_one_sentence(
    optplug_lightning: Any,
    cli: Any,
    model: type,
    write: Any,
    capsys: Any,
    args: list[str],
    sentence: str,
    subcommand: bool,
):
    args = ["--config", write(), *args]
    says = complaint(
        capsys, lambda: optplug_lightning.OptplugCLI(model, args=["fit", *args]) if subcommand else cli(args)
    )
    assert says.startswith(f"error: {sentence}")


def test_a_wrong_file_ends_with_one_sentence(cli: Any, write: Any, capsys: Any):
    config = write(optimizer={"name": "adam", "weigth_decay": 0.1})
    says = complaint(capsys, lambda: cli(["--config", config]))
    assert says.startswith(
        "error: optimizer.weigth_decay: adam has no option 'weigth_decay'; did you mean 'weight_decay'"
    )


def complaints(capsys: Any, run: Any) -> list[str]:
    """The lines from the one with `error:` on; it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("error:")) :]


def test_everything_that_is_wrong_in_a_file_is_said_at_once(cli: Any, write: Any, capsys: Any):
    config = write(
        optimizer={"name": "adam", "lr": -1.0, "foo": 1},
        scheduler={"name": "cosine_annealing_lr", "T_max": 5, "interval": "batch", "frequency": 0},
        param_groups=[{"match": 5}],
    )
    says = complaints(capsys, lambda: cli(["--config", config]))
    assert says[0] == "error: the configuration has 5 errors:"
    assert {line.strip().partition(":")[0] for line in says[1:]} == {
        "optimizer.lr",
        "optimizer.foo",
        "scheduler.interval",
        "scheduler.frequency",
        "param_groups[0].match",
    }
    assert len(says) == 6


def test_what_is_wrong_in_a_file_and_on_the_command_line_is_said_together(cli: Any, write: Any, capsys: Any):
    config = write(optimizer={"name": "adam", "lr": -1.0}, scheduler={"name": "step_lr", "step_size": 3})
    says = complaints(capsys, lambda: cli(["--config", config, "--optimizer.foo", "1", "--scheduler.frequency", "0"]))
    assert {line.strip().partition(":")[0] for line in says[1:]} == {
        "optimizer.lr",
        "optimizer.foo",
        "scheduler.frequency",
    }


@pytest.mark.parametrize("given", ["step_lr", {"name": "step_lr", "step_size": 3}], ids=["name", "mapping"])
@pytest.mark.parametrize("where", ["file", "file with fit", "file of fit", "arguments", "arguments of fit", "option"])
def test_the_key_lr_scheduler_is_told_what_it_is_called_here(
    optplug_lightning: Any, cli: Any, model: type, write: Any, folder: Path, capsys: Any, where: str, given: Any
):
    written = write(optimizer="adam", **({"lr_scheduler": given} if where.startswith("file") else {}))
    if where == "file of fit":
        Path(written).write_text(yaml.safe_dump({"fit": yaml.safe_load(Path(written).read_text())}))
    args = ["--config", written]
    if where == "option":
        args += ["--lr_scheduler.name", "step_lr"]
    elif where.startswith("arguments"):
        args += ["--lr_scheduler", given if isinstance(given, str) else "{name: step_lr, step_size: 3}"]
    if where == "file of fit":
        run = lambda: optplug_lightning.OptplugCLI(model, args=[*args, "fit"])  # noqa: E731
    elif where.endswith("fit"):
        run = lambda: optplug_lightning.OptplugCLI(model, args=["fit", *args])  # noqa: E731
    else:
        run = lambda: cli(args)  # noqa: E731
    says = "\n".join(complaints(capsys, run))
    assert "lr_scheduler" in says
    assert "did you mean 'scheduler'" in says


@pytest.mark.parametrize(
    ("key", "nearest"), [("optimiser", "optimizer"), ("param_group", "param_groups"), ("overide", "override")]
)
def test_a_misspelt_key_of_ours_has_its_nearest_match(cli: Any, write: Any, capsys: Any, key: str, nearest: str):
    says = "\n".join(complaints(capsys, lambda: cli(["--config", write(**{key: "adam"})])))
    assert f"did you mean {nearest!r}" in says


# ------------------------------------------------------------------------------ what the form can besides


@pytest.mark.parametrize(
    ("args", "first", "words"),
    [
        (["--optimizer.help", "adam"], "adam: adaptive moment estimation", "betas "),
        (["--optimizer.help=Adam"], "adam: adaptive moment estimation", "betas "),
        (["--scheduler.help=step_lr"], "step_lr: ", "step_size "),
        (["--scheduler.help", "optplug-schedules:step_lr"], "step_lr: ", "step_size "),
    ],
    ids=str,
)
@pytest.mark.parametrize("subcommand", [False, True], ids=["", "fit"])
def test_the_command_line_explains_a_name(
    optplug_lightning: Any,
    cli: Any,
    model: type,
    capsys: Any,
    args: list[str],
    first: str,
    words: str,
    subcommand: bool,
):
    with pytest.raises(SystemExit) as caught:
        optplug_lightning.OptplugCLI(model, args=["fit", *args]) if subcommand else cli(args)
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert out.startswith(first)
    assert words in out


@pytest.mark.parametrize("kind", ["optimizer", "scheduler"])
def test_an_unknown_name_is_explained_by_the_nearest(cli: Any, capsys: Any, kind: str):
    name = {"optimizer": "adm", "scheduler": "steplr2"}[kind]
    nearest = {"optimizer": "adam", "scheduler": "step_lr"}[kind]
    says = complaint(capsys, lambda: cli([f"--{kind}.help", name]))
    assert says.startswith(f"error: no {kind} named {name!r}; did you mean {nearest!r}")


def test_the_help_names_the_keys(cli: Any, capsys: Any):
    with pytest.raises(SystemExit) as caught:
        cli(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for key in ("optimizer", "scheduler", "param_groups", "override", "optimizer.help", "scheduler.help"):
        assert f"--{key} " in out or f"--{key}\n" in out


class Two(nn.Module):
    """Steps two optimizers by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss


def test_a_list_in_a_file_is_several_optimizers(cli: Any, write: Any, scripted_module: type):
    class Manual(Two, scripted_module):
        def __init__(self) -> None:
            super().__init__(automatic=False)

    given = [
        {"name": "sgd", "match": "*.weight", "lr": 0.5, "scheduler": {"name": "exponential_lr", "gamma": 0.5}},
        {"name": "adam", "regex": "bias$", "lr": 0.1, "param_groups": ["no_decay"]},
    ]
    made = cli(["--config", write(optimizer=given)], module=Manual)
    one, other = made.trainer.optimizers
    assert (type(one), type(other)) == (optplug.get_optimizer("sgd"), optplug.get_optimizer("adam"))
    assert one.param_groups[0]["lr"] == 0.125
    assert other.param_groups[0]["name"] == "no_decay"
    saved = Path(made.trainer.log_dir) / "config.yaml"
    assert yaml.safe_load(saved.read_text())["optimizer"] == given
    again = cli(["--config", str(saved)], module=Manual)
    for p, q in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_optimizer_made_of_several_is_read_from_a_file(cli: Any, write: Any):
    given = {"combine": [{"name": "sgd", "match": "*.weight", "lr": 0.5}, {"name": "adam", "match": "*.bias"}]}
    made = cli(["--config", write(optimizer=given, scheduler={"name": "exponential_lr", "gamma": 0.5})])
    (optimizer,) = made.trainer.optimizers
    assert [type(member) for member in optimizer.members] == [optplug.get_optimizer(n) for n in ("sgd", "adam")]
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.00025]


@pytest.mark.parametrize(
    "args",
    [
        ["--param_groups", "no_decay"],
        ["--param_groups=no_decay"],
        ["--param_groups", "[no_decay]"],
        ["--param_groups", "[{preset: no_decay, of: [biases]}]"],
        ["--param_groups+=no_decay"],
    ],
    ids=str,
)
def test_presets_are_given_on_the_command_line(cli: Any, write: Any, args: list[str]):
    made = cli(["--config", write(optimizer={"name": "adamw", "weight_decay": 0.5}), *args])
    assert [(g["name"], g["weight_decay"]) for g in made.trainer.optimizers[0].param_groups] == [
        ("default", 0.5),
        ("no_decay", 0.0),
    ]


def test_presets_and_multipliers_are_read_from_a_file(cli: Any, write: Any):
    groups = ["no_decay", {"type": "Linear", "match": "*.weight", "lr_mult": 0.5}]
    made = cli(["--config", write(optimizer={"name": "adamw", "lr": 1.0}, param_groups=groups)])
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in made.trainer.optimizers[0].param_groups} == {
        "*.weight Linear": (0.5, 0.01),
        "no_decay": (1.0, 0.0),
    }


def test_a_scheduler_alone_schedules_the_model_s_own_optimizer(cli: Any, write: Any, scripted_module: type):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    config = write(scheduler={"name": "exponential_lr", "gamma": 0.5})
    assert cli(["--config", config], module=Own).model.lrs == [1.0] * 4 + [0.5] * 4
    args = ["--config", write(), "--scheduler", "exponential_lr", "--scheduler.gamma", "0.5"]
    made = cli(args, module=Own)
    assert made.model.lrs == [1.0] * 4 + [0.5] * 4
    assert type(made.trainer.optimizers[0]) is torch.optim.SGD


def test_a_scheduler_alone_needs_a_model_with_an_optimizer(cli: Any, write: Any):
    config = write(scheduler={"name": "exponential_lr", "gamma": 0.5})
    with pytest.raises(WiringError, match=r"^scheduler: no optimizer is configured, and Model defines no "):
        cli(["--config", config])


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_length_of_auto_is_the_training_s(cli: Any, write: Any, interval: str):
    scheduler = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": interval}
    made = cli(["--config", write(optimizer={"name": "sgd", "lr": 1.0}, scheduler=scheduler)])
    assert made.trainer.lr_scheduler_configs[0].scheduler.T_max == {"epoch": 2, "step": 8}[interval]
    assert only_group(made)["lr"] == pytest.approx(0, abs=1e-12)
    saved = yaml.safe_load((Path(made.trainer.log_dir) / "config.yaml").read_text())
    assert saved["scheduler"] == scheduler


def test_auto_and_a_warmup_alone_are_given_on_the_command_line(cli: Any, write: Any):
    config = write(optimizer={"name": "sgd", "lr": 1.0})
    args = ["--scheduler", "cosine_annealing_lr", "--scheduler.T_max", "auto"]
    assert cli(["--config", config, *args]).trainer.lr_scheduler_configs[0].scheduler.T_max == 2
    made = cli(["--config", config, "--scheduler.warmup", "{ratio: 0.5}"])
    assert made.model.lrs == [0.25, 0.4375, 0.625, 0.8125] + [1.0] * 4


def test_a_link_is_read_from_a_file(cli: Any, write: Any, model: type):
    class Own(model):
        def __init__(self, rate: float = 0.25) -> None:
            super().__init__()
            self.rate = rate

    config = write(optimizer={"name": "sgd", "lr": "module.rate"}, model={"rate": 0.5})
    assert cli(["--config", config], module=Own).model.lrs == [0.5] * 8


@pytest.mark.parametrize("subcommand", [False, True], ids=["", "fit"])
def test_what_print_config_prints_is_our_form_and_can_be_run_again(
    optplug_lightning: Any, cli: Any, model: type, write: Any, folder: Path, capsys: Any, subcommand: bool
):
    given = {
        "optimizer": {"name": "adam", "lr": 0.02, "betas": [0.8, 0.99]},
        "scheduler": {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"steps": 3}},
        "param_groups": ["no_decay", {"match": "*.bias", "lr_mult": 0.5}],
    }

    def run(args: list[str], fit: bool = True) -> Any:
        return optplug_lightning.OptplugCLI(model, args=["fit", *args]) if subcommand else cli(args, fit=fit)

    config = write(**given)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(["--config", config, "--optimizer.eps", "0.5", "--print_config"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    read = yaml.safe_load(printed)
    given["optimizer"]["eps"] = 0.5
    assert {key: read[key] for key in given} == given
    again = folder / "printed.yaml"
    again.write_text(printed)
    first = run(["--config", config, "--optimizer.eps", "0.5"])
    second = run(["--config", str(again)])
    assert first.model.lrs == second.model.lrs
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_without_anything_of_ours_print_config_prints_nothing_of_ours(cli: Any, write: Any, folder: Path, capsys: Any):
    config = write()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli(["--config", config, "--print_config"])
    printed = capsys.readouterr().out
    read = yaml.safe_load(printed)
    assert [read[key] for key in ("optimizer", "scheduler", "param_groups", "override")] == [None, None, None, False]
    assert not [key for key in read if "help" in key]


# --------------------------------------------------------------------------------- the optplug command


@pytest.fixture
def command() -> Any:
    def run(*args: str) -> Any:
        return CliRunner().invoke(app, list(args))

    return run


def words(line: str) -> list[str]:
    return line.split()


def test_list_shows_every_name_with_its_plugin(command: Any):
    result = command("list")
    assert result.exit_code == 0
    rows = {words(line)[0]: words(line)[1:] for line in result.stdout.splitlines() if line.strip()}
    names = optplug.list_optimizers() + optplug.list_schedulers()
    assert set(names) <= set(rows)
    assert rows["adam"][:3] == ["optplug-classic", "optplug", optplug.__version__]
    assert " ".join(rows["adam"][3:]) == "adaptive moment estimation"
    assert rows["reduce_lr_on_plateau"][0] == "optplug-schedules"


def test_list_takes_a_glob(command: Any):
    result = command("list", "adam*")
    names = [words(line)[0] for line in result.stdout.splitlines() if line.strip()]
    assert names == ["optimizer", *optplug.list_optimizers("adam*")]
    by_plugin = command("list", "optplug-schedules:*").stdout
    assert "cosine_annealing_lr" in by_plugin
    assert "adam" not in by_plugin


def test_list_of_nothing_fails(command: Any):
    result = command("list", "zzz*")
    assert result.exit_code == 1
    assert result.stderr == "no optimizer, scheduler or function matches 'zzz*'\n"


def test_list_shows_what_is_quarantined_and_disabled(command: Any, monkeypatch: pytest.MonkeyPatch):
    catalogue = registry._discovered()
    monkeypatch.setattr(
        catalogue, "quarantined", [Quarantined(Plugin("bad", "bad-dist", "2"), "ValueError: [oh] no", "")]
    )
    monkeypatch.setattr(catalogue, "disabled", [Plugin("off", "off-dist", "3")])
    out = command("list").stdout
    assert "plugin bad (bad-dist 2) is quarantined: ValueError: [oh] no\n" in out
    assert "plugin off (off-dist 3) is disabled by OPTPLUG_DISABLE\n" in out


def test_info_shows_arguments_and_documentation(command: Any):
    result = command("info", "Adam")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "adam: adaptive moment estimation"
    assert lines[1:5] == [
        "  kind          optimizer",
        "  class         optplug_classic.adam.Adam",
        f"  plugin        optplug-classic (optplug {optplug.__version__})",
        "  plugin API    1 (this optplug supports 1)",
    ]
    rows = {words(line)[0]: words(line)[-1] for line in lines if line.strip()}
    assert (rows["lr"], rows["eps"], rows["amsgrad"]) == ("0.001", "1e-08", "False")
    assert "https://arxiv.org/abs/1412.6980" in result.stdout


@pytest.mark.parametrize(
    ("name", "interval"), [("reduce-lr-on-plateau", "validation"), ("optplug-schedules:cosine_annealing_lr", "epoch")]
)
def test_info_of_a_scheduler_says_when_it_steps(command: Any, name: str, interval: str):
    assert f"  interval      {interval}\n" in command("info", name).stdout


def test_info_of_an_unknown_name_fails_with_the_nearest(command: Any):
    result = command("info", "adm")
    assert result.exit_code == 1
    assert result.stdout == ""
    told = "error: no optimizer, scheduler or function named 'adm'; did you mean 'adam', 'adamw', 'adamax'?\n"
    assert result.stderr == told


def test_python_m_optplug_lists_without_importing_torch(tmp_path: Path):
    blocked = tmp_path / "torch"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('torch is not needed for this')")
    result = subprocess.run(
        [sys.executable, "-m", "optplug", "list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OPTPLUG_DISABLE": "optplug-schedules"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "adam " in result.stdout
    assert "cosine_annealing_lr" not in result.stdout
    assert "plugin optplug-schedules (optplug " in result.stdout
    assert result.stdout.rstrip().endswith("is disabled by OPTPLUG_DISABLE")
