"""OptplugCLI: training from files and command lines, error messages, and help."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import optplug
from optplug.config import build
from optplug.errors import HyperparameterError, WiringError
from support import LIGHTNING, first_party

# LightningCLI warns if both `args` and sys.argv are given, and sys.argv has the arguments of pytest.
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
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_config(pl: Any, working_directory: Path) -> Any:
    """Writes a configuration file and returns its path."""

    def make(name: str = "in.yaml", **config: Any) -> str:
        logger = {"class_path": f"{pl.__name__}.loggers.CSVLogger", "init_args": {"save_dir": str(working_directory)}}
        path = working_directory / name
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
    """Runs OptplugCLI without subcommands on command-line arguments, and fits the model; returns the CLI object."""

    def run(
        args: list[str], *, module: type = model, base: type = optplug_lightning.OptplugCLI, fit: bool = True
    ) -> Any:
        made = base(module, run=False, args=args, save_config_kwargs={"overwrite": True})
        if fit:
            made.trainer.fit(made.model)
        return made

    return run


def only_param_group(made: Any) -> dict[str, Any]:
    (group,) = made.trainer.optimizers[0].param_groups
    return group


def last_error_line(capsys: Any, run: Any) -> str:
    """The last line on stderr of a run that exits with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# -------------------------------------------------------------------------------------------- training


@pytest.mark.both_import_names
def test_file_with_names_trains(cli: Any, write_config: Any):
    config = write_config(
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
def test_bare_name_in_file_trains(cli: Any, write_config: Any, scheduler: Any):
    made = cli(["--config", write_config(optimizer="adam", scheduler=scheduler)])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert len(made.trainer.lr_scheduler_configs) == (scheduler is not None)


def test_saved_configuration_has_the_same_form_and_trains_equally(cli: Any, write_config: Any):
    given = {
        "optimizer": {"name": "adam", "lr": 0.02, "betas": [0.8, 0.99]},
        "scheduler": {"name": "cosine_annealing_lr", "T_max": 4, "warmup": {"steps": 3}},
        "param_groups": [{"match": "*.bias", "weight_decay": 0.1}],
    }
    first = cli(["--config", write_config(**given)])
    saved = Path(first.trainer.log_dir) / "config.yaml"
    assert {key: yaml.safe_load(saved.read_text())[key] for key in given} == given
    again = cli(["--config", str(saved)])
    assert again.model.lrs == first.model.lrs
    for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_name_and_option_on_the_command_line(cli: Any, write_config: Any):
    made = cli(["--config", write_config(), "--optimizer", "adam", "--optimizer.lr", "0.02"])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert only_param_group(made)["lr"] == 0.02
    saved = yaml.safe_load((Path(made.trainer.log_dir) / "config.yaml").read_text())
    assert saved["optimizer"] == {"name": "adam", "lr": 0.02}


def test_command_line_options_are_merged_into_the_file(cli: Any, write_config: Any):
    config = write_config(optimizer={"name": "adam", "lr": 0.5, "eps": 1e-3})
    group = only_param_group(cli(["--config", config, "--optimizer.lr", "0.02", "--optimizer.betas", "[0.5, 0.6]"]))
    assert (group["lr"], group["eps"], group["betas"]) == (0.02, 1e-3, (0.5, 0.6))


def test_command_line_options_are_merged_into_a_bare_name(cli: Any, write_config: Any):
    assert only_param_group(cli(["--config", write_config(optimizer="adam"), "--optimizer.lr", "0.02"]))["lr"] == 0.02


@pytest.mark.parametrize("spelled", [["--optimizer", "adam"], ["--optimizer=adam"]], ids=["space", "equals"])
def test_name_on_the_command_line_replaces_the_optimizer_of_the_file(cli: Any, write_config: Any, spelled: list[str]):
    config = write_config(optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": True})
    made = cli(["--config", config, *spelled, "--optimizer.lr", "0.02"])
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert only_param_group(made)["lr"] == 0.02
    assert made.config["optimizer"] == {"name": "adam", "lr": 0.02}


def test_name_on_the_command_line_replaces_the_scheduler_of_the_file(cli: Any, write_config: Any):
    config = write_config(optimizer="adam", scheduler={"name": "reduce_lr_on_plateau", "patience": 3})
    made = cli(["--config", config, "--scheduler", "cosine_annealing_lr", "--scheduler.T_max", "7"])
    assert made.trainer.lr_scheduler_configs[0].scheduler.T_max == 7


def test_command_line_accepts_nested_keys(cli: Any, write_config: Any):
    made = cli(
        [
            *("--config", write_config(optimizer="adam"), "--scheduler", "optplug-schedules:cosine_annealing_lr"),
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
    assert only_param_group(made)["eps"] == 0.5


def test_without_optplug_keys_configure_optimizers_of_the_model_is_used(
    cli: Any, write_config: Any, scripted_module: type
):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    made = cli(["--config", write_config()], module=Own)
    assert type(made.trainer.optimizers[0]) is torch.optim.SGD
    assert not any(type(c).__name__ == "ConfigureOptimizers" for c in made.trainer.callbacks)


def test_model_with_configure_optimizers_needs_override(cli: Any, write_config: Any, scripted_module: type):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            raise AssertionError("must not be called")

    with pytest.raises(WiringError, match=r"^Own defines configure_optimizers, .* pass override=True"):
        cli(["--config", write_config(optimizer="adam")], module=Own)
    made = cli(["--config", write_config(optimizer="adam"), "--override", "true"], module=Own)
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")


@pytest.mark.both_import_names
def test_subcommands_take_names(optplug_lightning: Any, model: type, write_config: Any):
    config = write_config(optimizer={"name": "sgd", "lr": 0.5})
    made = optplug_lightning.OptplugCLI(
        model, args=["fit", "--config", config, "--optimizer", "adam", "--optimizer.lr", "0.02"]
    )
    assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
    assert only_param_group(made)["lr"] == 0.02
    assert made.trainer.state.finished
    made = optplug_lightning.OptplugCLI(model, args=["validate", "--config", config])
    assert made.trainer.callback_metrics["val_loss"] == 1.0


def test_options_are_merged_into_a_bare_name_of_a_subcommand_section(
    optplug_lightning: Any, model: type, write_config: Any
):
    config = Path(write_config())
    whole = yaml.safe_load(config.read_text())
    for choice in ({"optimizer": "adam", "scheduler": "cosine_annealing_lr"}, {"optimizer": {"name": "adam"}}):
        config.write_text(yaml.safe_dump({"fit": {**whole, **choice}}))
        args = ["--config", str(config), "fit", "--optimizer.lr", "0.02"]
        if "scheduler" in choice:
            args += ["--scheduler.T_max", "7"]
        made = optplug_lightning.OptplugCLI(model, args=args)
        assert type(made.trainer.optimizers[0]) is optplug.get_optimizer("adam")
        assert made.trainer.optimizers[0].defaults["lr"] == 0.02


def test_args_may_be_a_mapping(optplug_lightning: Any, model: type, working_directory: Path):
    config = {"seed_everything": 1, "optimizer": {"name": "adam", "lr": 0.02}, "trainer": {**QUIET, "logger": False}}
    made = optplug_lightning.OptplugCLI(model, run=False, args=config, save_config_callback=None)
    made.trainer.fit(made.model)
    assert only_param_group(made)["lr"] == 0.02


def test_subclass_may_add_arguments_without_super(optplug_lightning: Any, cli: Any, write_config: Any):
    class CLIWithOwnArguments(optplug_lightning.OptplugCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--extra", type=int, default=3)

    made = cli(
        ["--config", write_config(optimizer="adam"), "--extra", "4", "--optimizer.lr", "0.02"], base=CLIWithOwnArguments
    )
    assert made.config["extra"] == 4
    assert only_param_group(made)["lr"] == 0.02


@pytest.mark.skipif(LIGHTNING < (2, 5, 1), reason="Lightning < 2.5.1: LightningCLI has no argument parser_class")
def test_parser_class_of_the_user_is_used(pl: Any, optplug_lightning: Any, model: type, write_config: Any):
    base = sys.modules[f"{pl.__name__}.cli"].LightningArgumentParser

    class Parser(base):
        pass

    args = ["--config", write_config(), "--optimizer", "adam"]
    made = optplug_lightning.OptplugCLI(model, run=False, args=args, parser_class=Parser)
    assert isinstance(made.parser, Parser)
    assert made.config["optimizer"] == {"name": "adam"}


@pytest.mark.both_import_names
def test_class_has_the_right_module_and_base(optplug_lightning: Any, pl: Any):
    assert optplug_lightning.OptplugCLI.__module__ == optplug_lightning.__name__
    assert issubclass(optplug_lightning.OptplugCLI, sys.modules[f"{pl.__name__}.cli"].LightningCLI)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("args", "start"),
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
            "optimizer: needs a name; it has class_path: write {name: adam, lr: ...}; optplug looks up registered",
        ),
        (
            ["--optimizer", "adam", "--param_groups", "[{lr: 1.0}]"],
            "param_groups[0]: needs one of match, regex, type, ndim to select parameters; it has lr",
        ),
        (["--param_groups", "[{match: '*'}]"], "param_groups: requires an optimizer: add e.g. optimizer: adam"),
        (["--param_groups", "no_decay"], "param_groups: requires an optimizer: add e.g. optimizer: adam"),
        (
            ["--optimizer", "adam", "--param_groups", "no_dcay"],
            "param_groups: there is no preset 'no_dcay'; did you mean 'no_decay'?",
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
@pytest.mark.parametrize("subcommand", [False, True], ids=["no subcommand", "fit"])
def test_error_ends_parsing_with_one_message(
    optplug_lightning: Any,
    cli: Any,
    model: type,
    write_config: Any,
    capsys: Any,
    args: list[str],
    start: str,
    subcommand: bool,
):
    args = ["--config", write_config(), *args]
    message = last_error_line(
        capsys, lambda: optplug_lightning.OptplugCLI(model, args=["fit", *args]) if subcommand else cli(args)
    )
    assert message.startswith(f"error: {start}")


def test_error_in_file_ends_parsing_with_one_message(cli: Any, write_config: Any, capsys: Any):
    config = write_config(optimizer={"name": "adam", "weigth_decay": 0.1})
    message = last_error_line(capsys, lambda: cli(["--config", config]))
    assert message.startswith(
        "error: optimizer.weigth_decay: adam has no option 'weigth_decay'; did you mean 'weight_decay'"
    )


def error_lines(capsys: Any, run: Any) -> list[str]:
    """The lines on stderr of a run that exits with code 2, from the line that starts with `error:`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("error:")) :]


def test_all_errors_of_a_file_are_reported_together(cli: Any, write_config: Any, capsys: Any):
    config = write_config(
        optimizer={"name": "adam", "lr": -1.0, "foo": 1},
        scheduler={"name": "cosine_annealing_lr", "T_max": 5, "interval": "batch", "frequency": 0},
        param_groups=[{"match": 5}],
    )
    message = error_lines(capsys, lambda: cli(["--config", config]))
    assert message[0] == "error: the configuration has 5 errors:"
    assert {line.strip().partition(":")[0] for line in message[1:]} == {
        "optimizer.lr",
        "optimizer.foo",
        "scheduler.interval",
        "scheduler.frequency",
        "param_groups[0].match",
    }
    assert len(message) == 6


def test_errors_of_file_and_command_line_are_reported_together(cli: Any, write_config: Any, capsys: Any):
    config = write_config(optimizer={"name": "adam", "lr": -1.0}, scheduler={"name": "step_lr", "step_size": 3})
    message = error_lines(
        capsys, lambda: cli(["--config", config, "--optimizer.foo", "1", "--scheduler.frequency", "0"])
    )
    assert {line.strip().partition(":")[0] for line in message[1:]} == {
        "optimizer.lr",
        "optimizer.foo",
        "scheduler.frequency",
    }


@pytest.mark.parametrize("given", ["step_lr", {"name": "step_lr", "step_size": 3}], ids=["name", "mapping"])
@pytest.mark.parametrize(
    "source", ["file", "file with fit", "section of fit", "arguments", "arguments of fit", "option"]
)
def test_key_lr_scheduler_suggests_scheduler(
    optplug_lightning: Any,
    cli: Any,
    model: type,
    write_config: Any,
    working_directory: Path,
    capsys: Any,
    source: str,
    given: Any,
):
    written = write_config(
        optimizer="adam", **({"lr_scheduler": given} if source.startswith(("file", "section")) else {})
    )
    if source == "section of fit":
        Path(written).write_text(yaml.safe_dump({"fit": yaml.safe_load(Path(written).read_text())}))
    args = ["--config", written]
    if source == "option":
        args += ["--lr_scheduler.name", "step_lr"]
    elif source.startswith("arguments"):
        args += ["--lr_scheduler", given if isinstance(given, str) else "{name: step_lr, step_size: 3}"]
    if source == "section of fit":
        run = lambda: optplug_lightning.OptplugCLI(model, args=[*args, "fit"])  # noqa: E731
    elif source.endswith("fit"):
        run = lambda: optplug_lightning.OptplugCLI(model, args=["fit", *args])  # noqa: E731
    else:
        run = lambda: cli(args)  # noqa: E731
    message = "\n".join(error_lines(capsys, run))
    assert "lr_scheduler" in message
    assert "did you mean 'scheduler'" in message


@pytest.mark.parametrize(
    ("key", "nearest"), [("optimiser", "optimizer"), ("param_group", "param_groups"), ("overide", "override")]
)
def test_misspelled_key_suggests_the_nearest_key(cli: Any, write_config: Any, capsys: Any, key: str, nearest: str):
    message = "\n".join(error_lines(capsys, lambda: cli(["--config", write_config(**{key: "adam"})])))
    assert f"did you mean {nearest!r}" in message


@pytest.fixture
def fit_errors(optplug_lightning: Any, model: type, capsys: Any, working_directory: Path) -> Any:
    """The lines on stderr of a run that ends with exit code 2, without `error: ` and without the heading of several."""

    def run(args: Any, module: Any = model, base: type = optplug_lightning.OptplugCLI, **arguments: Any) -> list[str]:
        defaults = {**QUIET, "logger": False}
        lines = error_lines(
            capsys, lambda: base(module, args=args, trainer_defaults=defaults, seed_everything_default=1, **arguments)
        )
        lines = [line.removeprefix("error: ").strip() for line in lines]
        heading = f"the configuration has {len(lines) - 1} errors:"
        return lines[1:] if lines[0] == heading else lines

    return run


@pytest.mark.both_import_names
@pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
def test_values_of_any_type_have_messages_of_optplug(fit_errors: Any, working_directory: Path, subcommand: str):
    path = working_directory / "bad.yaml"
    path.write_text("optimizer: 3\nscheduler: [step_lr]\nparam_groups: {match: '*'}\noverride: maybe\n")
    assert fit_errors([subcommand, "--config", str(path)]) == [
        "override: must be True or False, got 'maybe' (str)",
        "optimizer: must be a name, a mapping with a name, or a list of such mappings, got 3 (int)",
        "scheduler: must be a name or a mapping with a name, got ['step_lr'] (list); an optimizer has one scheduler: "
        "write it without the list",
        "param_groups: must be the name of a preset, or a list of group rules and presets, got {'match': '*'}; write a "
        "list: [{'match': '*'}]",
    ]


@pytest.mark.parametrize(
    ("args", "starts"),
    [
        (["--optimizer=[adam]"], ["optimizer[0]: must be a mapping such as {name: adam, match:"]),
        (["--optimizer", "adam", "--optimizer.lr=abc"], ["optimizer.lr: Adam: lr must be a number, got 'abc' (str)"]),
        (["--optimizer", "adam", "--optimizer.betas.0", "0.1"], ["optimizer.betas: Adam: betas must be 2 numbers"]),
        (["--optimizer", "adam", "--monitor", "[a]"], ["monitor: ['a'] requires a scheduler that takes a metric"]),
        (["--optimizer", "{name: adam, lr: 1"], ["optimizer: is text and not a mapping: close every bracket"]),
        (["--optimizer", "adam", "--lr", "1"], ["lr: unknown key; it belongs to optimizer: write --optimizer.lr"]),
        (["--optimizer", "adam", "lr=0.1"], ["lr: unknown key; it belongs to optimizer: write --optimizer.lr"]),
        (["--lr", "1"], ["lr: unknown key; it belongs to optimizer: write e.g. --optimizer adam --optimizer.lr"]),
        (
            ["--optimizer", "adm", "--trainer.max_epochs=abc", "--scheduler", "step_lr", "--on_resume=kep"],
            [
                "trainer.max_epochs: must be one of int, NoneType, got 'abc'",
                "optimizer: no optimizer named 'adm'; did you mean 'adam'",
                "scheduler: step_lr needs step_size",
                "on_resume: must be one of",
            ],
        ),
        (
            ["--optimizer", "adam", "--optimizer.lr=-1", "--param_groups+=no_deacy", "--foo", "1"],
            ["unrecognized arguments: --foo 1", "optimizer.lr: Invalid learning rate: -1", "param_groups"],
        ),
        (
            ["--optimizer.name=adam", "--optimizer.sched=x", "--lr_sched", "step_lr"],
            [
                "lr_sched: unknown key; did you mean 'scheduler'?",
                "optimizer.sched: adam has no option 'sched'; the schedule is configured by scheduler",
            ],
        ),
    ],
    ids=lambda given: " ".join(given),
)
def test_command_line_reports_all_errors(fit_errors: Any, args: list[str], starts: list[str]):
    lines = fit_errors(["fit", *args])
    assert len(lines) == len(starts), lines
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_errors_do_not_print_the_usage(cli: Any, capsys: Any, working_directory: Path):
    for args in (["--optimizer", "3"], ["--foo", "1"], ["--trainer.max_epochs=abc"], ["--optimizer"]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli(args)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 2, lines
        assert "Subtypes" not in lines[1]


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (
            "optimizer:\nname: adam\nlr: 0.1\n",
            [
                "name: unknown key; it belongs to optimizer: write --optimizer.name, or "
                "indent it under optimizer in the file",
                "lr: unknown key; it belongs to optimizer: write --optimizer.lr, or "
                "indent it under optimizer in the file",
            ],
        ),
        ("optimizer: {name: adam, lr: 1, lr: 2}\n", ["bad.yaml:1: duplicate key 'lr', in lines 1 and 1"]),
        ("fit:\n  optimizer: adam\n  optimizer: sgd\n", ["bad.yaml:3: duplicate key 'optimizer', in lines 2 and 3"]),
        ("optimizer:\n\tname: adam\n", ["line 2, column 1; indent with spaces, not with tabs"]),
        (
            "optimizer: {name: adam, lr: '${a.b}'}\n",
            [
                "lr must be a number, got '${a.b}' (str)",
                'interpolations: OptplugCLI(..., parser_kwargs={"parser_mode": "omegaconf"}) resolves ${...}',
            ],
        ),
        (
            "optimizer: {name: adam, lr: -1}\nlr_scheduler: {class_path: x.Y}\n",
            [
                "lr_scheduler: unknown key; did you mean 'scheduler'?",
                "optimizer.lr: Invalid learning rate: -1 (Adam: lr must be at least 0)",
            ],
        ),
    ],
    ids=lambda given: given if isinstance(given, list) else given.replace("\n", "/"),
)
def test_file_reports_all_errors(fit_errors: Any, working_directory: Path, text: str, ends: list[str]):
    (working_directory / "bad.yaml").write_text(text)
    args = ["--config", "bad.yaml", "fit"] if text.startswith("fit:") else ["fit", "--config", "bad.yaml"]
    lines = fit_errors(args)
    assert len(lines) == len(ends), lines
    for line, end in zip(lines, ends, strict=True):
        assert line.endswith(end)


@pytest.mark.both_import_names
def test_fit_without_any_optimizer_names_the_option(fit_errors: Any):
    (line,) = fit_errors(["fit"])
    assert line.startswith(
        "no optimizer is configured, and Model defines no configure_optimizers: add e.g. optimizer: adam"
    )
    assert "--optimizer adam" in line


@pytest.mark.both_import_names
def test_later_fit_without_any_optimizer_names_the_option(cli: Any, write_config: Any):
    made = cli(["--config", write_config()], fit=False)
    made.trainer.validate(made.model, verbose=False)
    with pytest.raises(WiringError, match=r"^no optimizer is configured, and Model defines no .* --optimizer adam\)$"):
        made.trainer.fit(made.model)


def test_validation_needs_no_optimizer(optplug_lightning: Any, model: type, write_config: Any):
    made = optplug_lightning.OptplugCLI(model, args=["validate", "--config", write_config()])
    assert made.trainer.callback_metrics["val_loss"] == 1.0


def test_help_option_replaces_characters_that_the_encoding_lacks(cli: Any, monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    for name in first_party("optimizer"):
        with pytest.raises(SystemExit) as caught:
            cli(["--optimizer.help", name])
        assert caught.value.code == 0
    stream.flush()
    assert b"adam: adaptive moment estimation" in stream.buffer.getvalue()


# ------------------------------------------------------------------------- help and the rest of the configuration


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
@pytest.mark.parametrize("subcommand", [False, True], ids=["no subcommand", "fit"])
def test_help_option_describes_a_name(
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
def test_help_option_suggests_the_nearest_name(cli: Any, capsys: Any, kind: str):
    name = {"optimizer": "adm", "scheduler": "steplr2"}[kind]
    nearest = {"optimizer": "adam", "scheduler": "step_lr"}[kind]
    message = last_error_line(capsys, lambda: cli([f"--{kind}.help", name]))
    assert message.startswith(f"error: no {kind} named {name!r}; did you mean {nearest!r}")


def test_help_lists_the_keys(cli: Any, capsys: Any):
    with pytest.raises(SystemExit) as caught:
        cli(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for key in ("optimizer", "scheduler", "param_groups", "override", "optimizer.help", "scheduler.help"):
        assert f"--{key} " in out or f"--{key}\n" in out


class StepsAllOptimizers(nn.Module):
    """A mixin that steps every optimizer in `training_step`."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss


def test_list_in_file_configures_several_optimizers(cli: Any, write_config: Any, scripted_module: type):
    class Manual(StepsAllOptimizers, scripted_module):
        def __init__(self) -> None:
            super().__init__(automatic=False)

    given = [
        {"name": "sgd", "match": "*.weight", "lr": 0.5, "scheduler": {"name": "exponential_lr", "gamma": 0.5}},
        {"name": "adam", "regex": "bias$", "lr": 0.1, "param_groups": ["no_decay"]},
    ]
    made = cli(["--config", write_config(optimizer=given)], module=Manual)
    one, other = made.trainer.optimizers
    assert (type(one), type(other)) == (optplug.get_optimizer("sgd"), optplug.get_optimizer("adam"))
    assert one.param_groups[0]["lr"] == 0.125
    assert other.param_groups[0]["name"] == "no_decay"
    saved = Path(made.trainer.log_dir) / "config.yaml"
    assert yaml.safe_load(saved.read_text())["optimizer"] == given
    again = cli(["--config", str(saved)], module=Manual)
    for p, q in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_combine_in_file_configures_a_combined_optimizer(cli: Any, write_config: Any):
    given = {"combine": [{"name": "sgd", "match": "*.weight", "lr": 0.5}, {"name": "adam", "match": "*.bias"}]}
    made = cli(["--config", write_config(optimizer=given, scheduler={"name": "exponential_lr", "gamma": 0.5})])
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
def test_presets_on_the_command_line(cli: Any, write_config: Any, args: list[str]):
    made = cli(["--config", write_config(optimizer={"name": "adamw", "weight_decay": 0.5}), *args])
    assert [(g["name"], g["weight_decay"]) for g in made.trainer.optimizers[0].param_groups] == [
        ("default", 0.5),
        ("no_decay", 0.0),
    ]


def test_presets_and_multipliers_in_file(cli: Any, write_config: Any):
    groups = ["no_decay", {"type": "Linear", "match": "*.weight", "lr_mult": 0.5}]
    made = cli(["--config", write_config(optimizer={"name": "adamw", "lr": 1.0}, param_groups=groups)])
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in made.trainer.optimizers[0].param_groups} == {
        "*.weight Linear": (0.5, 0.01),
        "no_decay": (1.0, 0.0),
    }


def test_scheduler_without_optimizer_schedules_the_models_own_optimizer(
    cli: Any, write_config: Any, scripted_module: type
):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    config = write_config(scheduler={"name": "exponential_lr", "gamma": 0.5})
    assert cli(["--config", config], module=Own).model.lrs == [1.0] * 4 + [0.5] * 4
    args = ["--config", write_config(), "--scheduler", "exponential_lr", "--scheduler.gamma", "0.5"]
    made = cli(args, module=Own)
    assert made.model.lrs == [1.0] * 4 + [0.5] * 4
    assert type(made.trainer.optimizers[0]) is torch.optim.SGD


def test_scheduler_without_any_optimizer_raises(cli: Any, write_config: Any):
    config = write_config(scheduler={"name": "exponential_lr", "gamma": 0.5})
    with pytest.raises(WiringError, match=r"^scheduler: no optimizer is configured, and Model defines no "):
        cli(["--config", config])


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_auto_length_is_the_training_length(cli: Any, write_config: Any, interval: str):
    scheduler = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": interval}
    made = cli(["--config", write_config(optimizer={"name": "sgd", "lr": 1.0}, scheduler=scheduler)])
    assert made.trainer.lr_scheduler_configs[0].scheduler.T_max == {"epoch": 2, "step": 8}[interval]
    assert only_param_group(made)["lr"] == pytest.approx(0, abs=1e-12)
    saved = yaml.safe_load((Path(made.trainer.log_dir) / "config.yaml").read_text())
    assert saved["scheduler"] == scheduler


def test_auto_and_warmup_on_the_command_line(cli: Any, write_config: Any):
    config = write_config(optimizer={"name": "sgd", "lr": 1.0})
    args = ["--scheduler", "cosine_annealing_lr", "--scheduler.T_max", "auto"]
    assert cli(["--config", config, *args]).trainer.lr_scheduler_configs[0].scheduler.T_max == 2
    made = cli(["--config", config, "--scheduler.warmup", "{ratio: 0.5}"])
    assert made.model.lrs == [0.25, 0.4375, 0.625, 0.8125] + [1.0] * 4


@pytest.mark.parametrize(
    "spelled",
    [
        ["--scheduler.decay_steps.ratio", "0.25", "--scheduler.warmup_steps.epochs", "0.5"],
        ["--scheduler.decay_steps", "{ratio: 0.25}", "--scheduler.warmup_steps", '{"steps": 2}'],
    ],
    ids=str,
)
def test_lengths_with_units_on_the_command_line(cli: Any, write_config: Any, spelled: list[str]):
    config = write_config(optimizer={"name": "sgd", "lr": 1.0})
    made = cli(["--config", config, "--scheduler", "wsd", "--scheduler.total_steps", "auto", *spelled])
    scheduler = made.trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.total_steps, scheduler.decay_steps, scheduler.warmup_steps) == (8, 2, 2)
    assert made.model.lrs == [0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]


def test_warmups_on_the_command_line(cli: Any, write_config: Any):
    config = write_config(optimizer={"name": "sgd", "lr": 1.0})
    assert cli(["--config", config, "--scheduler.warmup", "0.5"]).model.lrs == [0.25, 0.4375, 0.625, 0.8125] + [1.0] * 4
    args = ["--scheduler", "cosine_annealing_lr", "--scheduler.T_max", "auto", "--scheduler.interval", "step"]
    args += ["--scheduler.warmup", "{steps: 4, schedule: after}"]
    scheduler = cli(["--config", config, *args]).trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.warmup_steps, scheduler.T_max, scheduler.last_epoch) == (4, 4, 4)


def test_keys_of_an_inner_mapping_are_merged(cli: Any, write_config: Any):
    """Those of the file and of several options."""
    config = write_config(
        optimizer={"name": "sgd", "lr": 1.0}, scheduler={"warmup": {"steps": 2, "start_factor": 0.25}}
    )
    made = cli(["--config", config, "--scheduler.warmup.steps", "4", "--scheduler.warmup.schedule=during"])
    warmup = made.trainer.lr_scheduler_configs[0].scheduler
    assert (warmup.warmup_steps, warmup.start_factor) == (4, 0.25)
    args = ["--scheduler", "wsd", "--scheduler.total_steps", "auto", "--scheduler.decay_steps.ratio", "0.5"]
    args += ["--scheduler.warmup.schedule", "after", "--scheduler.warmup.steps", "2"]
    scheduler = cli(["--config", write_config(optimizer="sgd"), *args]).trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.warmup_steps, scheduler.last_epoch, scheduler.scheduler.decay_steps) == (2, 6, 3)


def test_link_in_file_is_resolved(cli: Any, write_config: Any, model: type):
    class Own(model):
        def __init__(self, learning_rate: float = 0.25) -> None:
            super().__init__()
            self.learning_rate = learning_rate

    config = write_config(optimizer={"name": "sgd", "lr": "module.learning_rate"}, model={"learning_rate": 0.5})
    assert cli(["--config", config], module=Own).model.lrs == [0.5] * 8


@pytest.mark.parametrize("subcommand", [False, True], ids=["no subcommand", "fit"])
def test_printed_configuration_has_the_same_form_and_trains_equally(
    optplug_lightning: Any,
    cli: Any,
    model: type,
    write_config: Any,
    working_directory: Path,
    capsys: Any,
    subcommand: bool,
):
    given = {
        "optimizer": {"name": "adam", "lr": 0.02, "betas": [0.8, 0.99]},
        "scheduler": {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"steps": 3}},
        "param_groups": ["no_decay", {"match": "*.bias", "lr_mult": 0.5}],
    }

    def run(args: list[str], fit: bool = True) -> Any:
        return optplug_lightning.OptplugCLI(model, args=["fit", *args]) if subcommand else cli(args, fit=fit)

    config = write_config(**given)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(["--config", config, "--optimizer.eps", "0.5", "--print_config"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    read = yaml.safe_load(printed)
    given["optimizer"]["eps"] = 0.5
    assert {key: read[key] for key in given} == given
    again = working_directory / "printed.yaml"
    again.write_text(printed)
    first = run(["--config", config, "--optimizer.eps", "0.5"])
    second = run(["--config", str(again)])
    assert first.model.lrs == second.model.lrs
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_printed_configuration_without_optplug_keys_has_empty_values(
    cli: Any, write_config: Any, working_directory: Path, capsys: Any
):
    config = write_config()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli(["--config", config, "--print_config"])
    printed = capsys.readouterr().out
    read = yaml.safe_load(printed)
    assert [read[key] for key in ("optimizer", "scheduler", "param_groups", "override")] == [None, None, None, False]
    assert not [key for key in read if "help" in key]


# -------------------------------------------------------------------------------------------- how often it is checked


@pytest.fixture
def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of each call of `parse_and_check`, through whichever module."""
    calls: list[Any] = []
    original = build.parse_and_check

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("optplug") and getattr(module, "parse_and_check", None) is original:
            monkeypatch.setattr(module, "parse_and_check", counted)
    return calls


@pytest.mark.both_import_names
def test_configuration_is_checked_once_between_file_and_optimizer(
    cli: Any, write_config: Any, count_checks: list[Any]
) -> None:
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0}
    config = write_config(optimizer={"name": "sgd", "lr": 0.5}, scheduler=plateau, monitor="val_loss")
    made = cli(["--config", config, "--override", "true"])
    assert len(count_checks) == 1
    assert only_param_group(made)["lr"] < 0.5
    assert made.trainer.callbacks[0].override


def test_configuration_edited_after_parsing_is_used(
    optplug_lightning: Any, cli: Any, write_config: Any, count_checks: list[Any]
) -> None:
    class Edited(optplug_lightning.OptplugCLI):
        def before_instantiate_classes(self) -> None:
            self.config["optimizer"]["lr"] = 0.25

    made = cli(["--config", write_config(optimizer={"name": "sgd", "lr": 0.5})], base=Edited)
    assert only_param_group(made)["lr"] == 0.25
    assert len(count_checks) == 2


def test_configuration_added_after_parsing_is_used(optplug_lightning: Any, cli: Any, write_config: Any) -> None:
    class Added(optplug_lightning.OptplugCLI):
        def before_instantiate_classes(self) -> None:
            self.config["optimizer"] = {"name": "sgd", "lr": 0.25}

    made = cli(["--config", write_config()], base=Added)
    assert only_param_group(made)["lr"] == 0.25


def test_invalid_configuration_edited_after_parsing_raises(optplug_lightning: Any, cli: Any, write_config: Any) -> None:
    class Edited(optplug_lightning.OptplugCLI):
        def before_instantiate_classes(self) -> None:
            self.config["optimizer"]["lr"] = -1.0

    with pytest.raises(HyperparameterError):
        cli(["--config", write_config(optimizer={"name": "sgd", "lr": 0.5})], base=Edited)


# ------------------------------------------------------------------------- programs and files that LightningCLI accepts


@pytest.fixture
def quiet_cli(optplug_lightning: Any, model: type, working_directory: Path) -> Any:
    """Runs OptplugCLI with a quiet trainer, without logger and without saved configuration."""

    def run(args: Any, *, module: type = model, base: type = optplug_lightning.OptplugCLI, **arguments: Any) -> Any:
        defaults = {**QUIET, "logger": False}
        arguments = {"save_config_callback": None, "seed_everything_default": 1, **arguments}
        return base(module, args=args, trainer_defaults=defaults, **arguments)

    return run


def _sgd(module: nn.Module) -> Any:
    return lambda: torch.optim.SGD(module.parameters(), lr=0.1)


@pytest.mark.both_import_names
@pytest.mark.parametrize("place", ["before_fit", "instantiate_classes"])
def test_optimizer_may_be_set_on_the_model_before_the_fit(optplug_lightning: Any, quiet_cli: Any, place: str):
    class Sets(optplug_lightning.OptplugCLI):
        def instantiate_classes(self) -> None:
            super().instantiate_classes()
            if place == "instantiate_classes":
                self.model.configure_optimizers = _sgd(self.model)

        def before_fit(self) -> None:
            if place == "before_fit":
                self.model.configure_optimizers = _sgd(self.model)

    made = quiet_cli(["fit"], base=Sets)
    assert type(made.trainer.optimizers[0]) is torch.optim.SGD
    assert not any(type(c).__name__ == "ConfigureOptimizers" for c in made.trainer.callbacks)


@pytest.mark.both_import_names
def test_callback_may_be_added_before_the_fit(optplug_lightning: Any, quiet_cli: Any):
    class Adds(optplug_lightning.OptplugCLI):
        def before_fit(self) -> None:
            scheduler = {"name": "exponential_lr", "gamma": 0.5}
            callback = optplug_lightning.ConfigureOptimizers({"name": "sgd", "lr": 1.0}, scheduler)
            self.trainer.callbacks.append(callback)

    assert quiet_cli(["fit"], base=Adds).model.lrs == [1.0] * 4 + [0.5] * 4


@pytest.fixture
def finetune(pl: Any, optplug_lightning: Any) -> dict[str, Any]:
    """The arguments of OptplugCLI for a program with the subcommand `finetune`."""

    class Trainer(pl.Trainer):
        def finetune(self, model: Any, datamodule: Any = None) -> None:
            self.fit(model, datamodule=datamodule)

    class WithFinetune(optplug_lightning.OptplugCLI):
        @staticmethod
        def subcommands() -> Any:
            return {**optplug_lightning.OptplugCLI.subcommands(), "finetune": {"model", "datamodule"}}

    return {"base": WithFinetune, "trainer_class": Trainer}


@pytest.mark.both_import_names
def test_subcommand_of_the_user_takes_names(quiet_cli: Any, fit_errors: Any, finetune: Any, working_directory: Path):
    made = quiet_cli(["finetune", "--optimizer", "sgd", "--optimizer.lr", "0.5"], **finetune)
    assert made.model.lrs == [0.5] * 8
    file = working_directory / "whole.yaml"
    file.write_text("finetune:\n  optimizer: sgd\n")
    made = quiet_cli(["--config", str(file), "finetune", "--optimizer.lr", "0.5"], **finetune)
    assert made.model.lrs == [0.5] * 8
    file.write_text("finetune: {optimizer: adma, trainer: {max_epochs: x}}\n")
    lines = fit_errors(["--config", str(file), "finetune"], **finetune)
    assert [line.partition(":")[0] for line in lines] == ["trainer.max_epochs", "optimizer"]
    with pytest.raises(WiringError, match="--optimizer adam"):
        quiet_cli(["finetune"], **finetune)


def test_later_fit_leaves_the_models_own_plateau_to_lightning(cli: Any, write_config: Any):
    made = cli(["--config", write_config()], fit=False)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    made.model.configure_optimizers = lambda: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
    }
    (callback,) = [each for each in made.trainer.callbacks if type(each).__name__ == "ConfigureOptimizers"]
    managed: list[int] = []
    made.model.on_train_end = lambda: managed.append(len(callback.fit_state.managed))
    made.trainer.fit(made.model)
    assert managed == [0]


FILES = {
    "toml": ("toml", '[optimizer]\nname = "sgd"\nlr = 0.5\n'),
    "json": ("json", '{"optimizer": {"name": "sgd", "lr": 0.5}}'),
    "date": ("yaml", "optimizer: {name: sgd, lr: 0.5}\nmodel: {extra: {day: 2024-02-30}}\n"),
    "own duplicates": ("yaml", "optimizer: {name: sgd, lr: 0.5}\nmodel: {extra: {a: 1, a: 2}}\n"),
    "interpolation": ("omegaconf", "model: {rate: 0.5}\noptimizer: {name: sgd, lr: '${model.rate}'}\n"),
}


@pytest.fixture
def model_with_arguments(model: type) -> type:
    class WithArguments(model):
        def __init__(self, rate: float = 0.1, extra: dict | None = None) -> None:
            super().__init__()

    return WithArguments


@pytest.mark.parametrize("kind", FILES)
def test_files_that_lightning_reads_are_accepted(
    quiet_cli: Any, model_with_arguments: type, working_directory: Path, kind: str
):
    mode, text = FILES[kind]
    if mode == "toml" and LIGHTNING < (2, 5, 6):
        pytest.skip("Lightning < 2.5.6 reads the dump of a TOML parser as YAML")
    path = working_directory / f"in.{mode}"
    path.write_text(text)
    made = quiet_cli(
        ["--config", str(path)], module=model_with_arguments, run=False, parser_kwargs={"parser_mode": mode}
    )
    made.trainer.fit(made.model)
    assert made.model.lrs == [0.5] * 8


@pytest.mark.parametrize("kind", FILES)
def test_error_elsewhere_adds_no_false_error(
    fit_errors: Any, model_with_arguments: type, working_directory: Path, kind: str
):
    mode, text = FILES[kind]
    path = working_directory / f"in.{mode}"
    path.write_text(text)
    args = ["--config", str(path), "--scheduler.step_size=3", "--scheduler.name=step_lr", "--trainer.max_epochs=x"]
    lines = fit_errors(args, module=model_with_arguments, run=False, parser_kwargs={"parser_mode": mode})
    assert lines == ["trainer.max_epochs: must be one of int, NoneType, got 'x'"]


@pytest.mark.parametrize("source", ["set_defaults", "default_config_files", "environment"])
def test_other_sources_of_the_optimizer_add_no_false_error(
    optplug_lightning: Any,
    quiet_cli: Any,
    fit_errors: Any,
    working_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
):
    class WithDefault(optplug_lightning.OptplugCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            if source == "set_defaults":
                parser.set_defaults({"optimizer": {"name": "sgd", "lr": 0.1}})

    parser_kwargs: dict[str, Any] = {}
    if source == "default_config_files":
        (working_directory / "default.yaml").write_text("optimizer: {name: sgd, lr: 0.1}\n")
        parser_kwargs = {"default_config_files": ["default.yaml"]}
    elif source == "environment":
        monkeypatch.setenv("PL_OPTIMIZER", "{name: sgd, lr: 0.1}")
        parser_kwargs = {"default_env": True}
    arguments = {"base": WithDefault, "run": False, "parser_kwargs": parser_kwargs}
    assert quiet_cli(["--optimizer.lr=0.5"], **arguments).config["optimizer"] == {"name": "sgd", "lr": 0.5}
    lines = fit_errors(["--optimizer.lr=0.5", "--trainer.max_epochs=x"], **arguments)
    assert lines == ["trainer.max_epochs: must be one of int, NoneType, got 'x'"]


# -------------------------------------------------------------------------------------------- messages of the parser


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--lr=abc"], "lr: expected float. Got value: abc"),
        (
            ["--config", "own.yaml", "--trainer.max_epochs=x"],
            "trainer.max_epochs: must be one of int, NoneType, got 'x'",
        ),
        (["--config", "own.yaml"], "lr is too large"),
    ],
    ids=["wrong value", "error elsewhere", "error of the program"],
)
def test_arguments_of_a_subclass_are_known(
    optplug_lightning: Any, fit_errors: Any, working_directory: Path, args: list[str], line: str
):
    class WithArguments(optplug_lightning.OptplugCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--lr", type=float, default=0.1)
            parser.add_argument("--warmup_steps", type=int, default=5)

        def before_instantiate_classes(self) -> None:
            if self.config.fit.lr > 0.2:
                self.parser.error("lr is too large")

    (working_directory / "own.yaml").write_text("lr: 0.3\nwarmup_steps: 7\noptimizer: adam\n")
    assert fit_errors(["fit", *args], base=WithArguments) == [line]


def test_keys_of_other_sections_are_not_optplug_keys(fit_errors: Any, pl: Any, working_directory: Path):
    callbacks = f"{pl.__name__}.callbacks"
    for text, words in (
        (f"trainer: {{callbacks: [{{class_path: {callbacks}.ModelCheckpoint, init_args: {{monitr: x}}}}]}}", "monitr"),
        (
            "trainer: {callbacks: [{class_path: optplug.lightning.ConfigureOptimizers, "
            "init_args: {optimiser: {name: adam}}}]}",
            "optimiser",
        ),
    ):
        (working_directory / "in.yaml").write_text(f"{text}\noptimizer: adam\n")
        (line,) = fit_errors(["fit", "--config", "in.yaml"])
        assert line.startswith("trainer.callbacks: Problem with given class_path")
        assert f"Option '{words}" in line
        assert line.endswith("is not accepted")
    (working_directory / "in.yaml").write_text("trainer: {lr: 3}\noptimizer: adam\n")
    assert fit_errors(["fit", "--config", "in.yaml"]) == ["Subcommand 'fit' does not accept option 'trainer.lr'"]
    lines = fit_errors(["fit", "--optimizer=adam", "--model.momentum=3", "--lr=1", "--foo=1"])
    assert lines == [
        "lr: unknown key; it belongs to optimizer: write --optimizer.lr, or indent it under optimizer in the file",
        "unrecognized arguments: --model.momentum=3 --lr=1 --foo=1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "model: {class_path: PL.demos.transformer.LightningTransformer, init_args: {vocab_size: abc}}",
            "LightningTransformer': vocab_size: expected int. Got value: abc",
        ),
        ("model: {class_path: torch.Nope}", "Problem with given class_path 'torch.Nope': "),
        (
            "trainer: {logger: {class_path: CSVLogger, init_args: {name: x}}}",
            "the following arguments are required: save_dir",
        ),
    ],
    ids=["wrong value", "import error", "missing argument"],
)
def test_message_has_the_innermost_cause(fit_errors: Any, pl: Any, working_directory: Path, text: str, line: str):
    (working_directory / "in.yaml").write_text(f"{text.replace('PL', pl.__name__)}\n")
    arguments = {"module": pl.LightningModule, "subclass_mode_model": True} if text.startswith("model") else {}
    (message,) = fit_errors(["fit", "--optimizer=adam", "--config", "in.yaml"], **arguments)
    assert message.startswith(text.partition(":")[0])
    assert line in message
    assert "must be one of" not in message


@pytest.mark.both_import_names
@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "callbacks.yaml"],
        ["--trainer.callbacks=ConfigureOptimizers", "--trainer.callbacks.optimizer=adma"],
        ["--trainer.callbacks+=ConfigureOptimizers", "--trainer.callbacks.optimizer=adma"],
    ],
    ids=["file", "option", "added option"],
)
def test_error_of_a_callback_in_the_trainers_callbacks(
    optplug_lightning: Any, fit_errors: Any, working_directory: Path, arguments: list[str]
):
    (working_directory / "callbacks.yaml").write_text(
        f"trainer:\n  callbacks:\n  - class_path: {optplug_lightning.__name__}.ConfigureOptimizers\n"
        "    init_args: {optimizer: adma}\n"
    )
    (line,) = fit_errors(["fit", *arguments])
    assert line.startswith("optimizer: no optimizer named 'adma'; did you mean 'adam")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["fit", "--optimizer=torch.optim.AdamW", "--optimizer.lr=0.1"],
            "optimizer.name: no optimizer named 'torch.optim.AdamW'; did you mean 'adamw'",
        ),
        (["fit", "--optimizer={name:adam}"], "optimizer: is '{name:adam}': write a space after the colon: name: adam"),
        (["--optimizer=adam"], "argument subcommand: invalid choice: '--optimizer=adam' "),
        (["fit", "--config", "{optimizer: None}"], "optimizer.name: is 'None': in YAML, None is null"),
        (["fit", "--optimizer=None"], "optimizer.name: is 'None': in YAML, None is null"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_names_are_shown_as_written(fit_errors: Any, args: list[str], line: str):
    (message,) = fit_errors(args)
    assert message.startswith(line)
