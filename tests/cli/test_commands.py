"""The commands `optplug validate`, `optplug groups` and `optplug schema`, on valid and invalid files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from optplug.cli.app import app

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 3, lr: float = 0.25):
        super().__init__()
        self.lr = lr
        self.body = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)


class WithConfigureModel(Net):
    def configure_model(self):
        self.late = nn.Linear(2, 2)


class WithOptimizer(Net):
    def configure_optimizers(self):
        from torch.optim import SGD

        return SGD(self.parameters(), lr=0.5)


class Raising(nn.Module):
    def __init__(self):
        raise RuntimeError("no such thing")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a file with the given text, in a folder with the module `nets`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "nets.py").write_text(MODEL)
    monkeypatch.delitem(sys.modules, "nets", raising=False)

    def command(name: str, text: str | bytes | None = None, *args: str) -> Any:
        if text is None:
            return CliRunner().invoke(app, [name, *args])
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else dedent(text).lstrip().encode())
        return CliRunner().invoke(app, [name, "config.yaml", *args])

    return command


def error_lines(result: Any) -> list[str]:
    """The lines on stderr of a command that must fail and print nothing on stdout."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr.splitlines()


# ------------------------------------------------------------------------------------------ validate


def test_validate_prints_the_complete_configuration(run: Any) -> None:
    result = run("validate", "optimizer: SGD\nscheduler: {name: step-lr, step_size: 3, warmup_steps: 2}\n")
    assert result.exit_code == 0
    heading, _, rest = result.stdout.partition("\n\n")
    assert heading == "config.yaml is valid:"
    assert yaml.safe_load(rest) == {
        "optimizer": {"name": "SGD"},
        "scheduler": {
            "name": "step-lr",
            "step_size": 3,
            "interval": "epoch",
            "frequency": 1,
            "warmup": {"steps": 2},
        },
    }


def test_validate_metric_keys_of_a_scheduler(run: Any) -> None:
    text = """
    optimizer: adam
    scheduler:
      name: reduce_lr_on_plateau
      patience_unit: {}
      on_nonfinite: {}
      monitor: {}
    """
    result = run("validate", text.format("epochs", "bad", "val_loss"))
    assert yaml.safe_load(result.stdout.partition("\n\n")[2])["scheduler"] == {
        "name": "reduce_lr_on_plateau",
        "patience_unit": "epochs",
        "monitor": "val_loss",
    }
    lines = error_lines(run("validate", text.format("epoch", "rais", "lr-Adam")))
    assert [line.partition(": must be")[0].partition(": is ")[0] for line in lines] == [
        "config.yaml:4: scheduler.patience_unit",
        "config.yaml:5: scheduler.on_nonfinite",
        "config.yaml:6: scheduler.monitor",
    ]
    assert lines[0].endswith("did you mean 'epochs'?")
    assert lines[1].endswith("did you mean 'raise'?")


def test_validate_prints_every_error_with_its_line(run: Any) -> None:
    lines = error_lines(
        run(
            "validate",
            """
            seed_everything: 1
            fit:
              optimizer:
                name: adam
                lr: -1
                weigth_decay: 0.1
              scheduler:
                name: cosine_annealing_lr
                interval: setp
              param_groups:
                - no_deacy
                - match: "*.bias"
                  betas: [0.9]
              on_resume: kep
            """,
        )
    )
    assert [line.split(": ")[0] for line in lines] == [f"config.yaml:{n}" for n in (5, 6, 7, 9, 11, 13, 14)]
    locs = [line.split(": ")[1] for line in lines]
    assert locs == [
        "optimizer.lr",
        "optimizer.weigth_decay",
        "scheduler",
        "scheduler.interval",
        "param_groups[0]",
        "param_groups[1].betas",
        "on_resume",
    ]
    assert "did you mean 'weight_decay'" in lines[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.yaml: is empty; a minimal configuration is optimizer: adam"),
        ("- 1\n", "config.yaml: must contain a mapping, got list"),
        ("optimizer: [", "config.yaml: cannot be read: ParserError: "),
        (b"\xff\xfe\x00", "config.yaml: cannot be read: UnicodeDecodeError"),
        ("model: {}\n", "config.yaml: has none of the keys optimizer, scheduler, param_groups; it has model"),
        (
            "optimiser: adam\n",
            "has none of the keys optimizer, scheduler, param_groups; it has optimiser; did you mean 'optimizer'?",
        ),
        (
            "optimizer: adam\nlr_scheduler: step_lr\n",
            "config.yaml:2: lr_scheduler: unknown key 'lr_scheduler'; did",
        ),
        (
            "optimizer: adam\nfit: {optimizer: sgd}\n",
            "optplug is configured in several places: the top, fit",
        ),
        ("optimizer: adam\noverride: 3\n", "config.yaml:2: override: must be True or False, got 3 (int)"),
        (
            "optimizer: {name: adam, lr: '${nothing}'}\n",
            "config.yaml: an interpolation cannot be resolved: ",
        ),
    ],
    ids=str,
)
def test_validate_rejects_files_without_a_configuration(run: Any, text: Any, message: str) -> None:
    assert message in "\n".join(error_lines(run("validate", text)))


def test_validate_rejects_a_missing_file(run: Any) -> None:
    assert "config: cannot be read: FileNotFoundError" in run("validate", None, "config").stderr


def test_validate_reads_exponents_and_interpolations(run: Any) -> None:
    result = run("validate", "base_lr: 1e-3\noptimizer: {name: adam, lr: '${base_lr}', eps: 1e-6}\n")
    assert result.exit_code == 0, result.output
    shown = yaml.safe_load(result.stdout.partition("\n\n")[2])["optimizer"]
    assert shown == {"name": "adam", "lr": 1e-3, "eps": 1e-6}


@pytest.mark.parametrize("key", ["class_path", "_target_"])
def test_validate_finds_the_arguments_of_a_callback(run: Any, key: str) -> None:
    inner = {"optimizer": {"name": "adam", "lrr": 1}, "verbose": False}
    callback: dict[str, Any] = {key: "optplug.lightning.ConfigureOptimizers"}
    callback |= {"init_args": inner} if key == "class_path" else inner
    text = yaml.safe_dump({"trainer": {"callbacks": [{"class_path": "Other"}, callback]}}, sort_keys=False)
    (line,) = error_lines(run("validate", text))
    assert line.startswith(
        f"config.yaml:{text.splitlines().index(next(x for x in text.splitlines() if 'lrr' in x)) + 1}: "
    )
    assert "optimizer.lrr: adam has no option 'lrr'; did you mean 'lr'?" in line


def test_validate_checks_patterns_on_a_model(run: Any) -> None:
    text = "optimizer: adam\nparam_groups:\n  - match: '*.biass'\n    lr: 0.1\n"
    assert run("validate", text).exit_code == 0
    (line,) = error_lines(run("validate", text, "--model", "nets:Net"))
    assert line == (
        "config.yaml:3: param_groups[0].match: '*.biass' matches no parameter of Net; did you mean "
        "'norm.bias', 'head.bias', 'body.bias'?"
    )
    assert "is valid for Net:" in run("validate", text.replace("biass", "bias"), "--model", "nets:Net").stdout


# ------------------------------------------------------------------------------------------ groups


def test_groups_prints_the_table_and_the_names(run: Any) -> None:
    text = """
    optimizer: {name: adamw, lr: module.lr, weight_decay: 0.1}
    param_groups: [no_decay, {match: "head.*", lr_mult: 2}]
    model: {width: 5}
    """
    result = run("groups", text, "--model", "nets.py:Net")
    assert result.exit_code == 0, result.output
    assert result.stdout == dedent(
        """\
        AdamW of Net

        group              parameters  elements    lr  weight_decay
        default                     1        10  0.25           0.1
        no_decay                    3        15  0.25             0
        head.*                      1         5   0.5           0.1
        no_decay + head.*           1         1   0.5             0

        """
    )
    assert (
        "\nno_decay\n  body.bias\n  norm.weight\n  norm.bias\n"
        in run("groups", text, "--model", "nets:Net", "--names").stdout
    )


def test_groups_builds_the_model_of_the_file_and_calls_configure_model(run: Any) -> None:
    text = "optimizer: sgd\nmodel: {class_path: nets.WithConfigureModel, init_args: {width: 2}}\n"
    result = run("groups", text, "--names")
    assert result.exit_code == 0, result.output
    assert "late.bias" in result.stdout


def test_groups_shows_optimizer_of_configure_optimizers(run: Any) -> None:
    result = run("groups", "scheduler: {name: step_lr, step_size: 1}\n", "--model", "nets:WithOptimizer")
    assert result.stdout.startswith("SGD of WithOptimizer\n\ngroup  parameters")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "the section model has no class_path: add --model package.module:Class"),
        ("nets", "--model must be package.module:Class or path/to/file.py:Class, got 'nets'"),
        ("nets:Nett", "--model: nets has no class 'Nett'; did you mean 'Net'"),
        ("netss:Net", "--model: netss cannot be imported: ModuleNotFoundError: No module named 'netss'"),
        ("nope.py:Net", "--model: nope.py cannot be imported: FileNotFoundError"),
        ("nets:Raising", "the model nets.Raising cannot be built: "),
    ],
)
def test_groups_rejects_models_that_cannot_be_built(run: Any, model: str | None, message: str) -> None:
    result = run("groups", "optimizer: sgd\n", *(() if model is None else ("--model", model)))
    assert message in "\n".join(error_lines(result))


def test_groups_rejects_wrong_arguments_of_the_model(run: Any) -> None:
    lines = error_lines(run("groups", "optimizer: sgd\nmodel: {width: wide}\n", "--model", "nets:Net"))
    assert "the model nets.Net cannot be built: " in lines[0]
    assert "width" in "\n".join(lines)


# ------------------------------------------------------------------------------------------ schema


def test_schema_accepts_the_examples_and_rejects_unknown_keys(run: Any) -> None:
    result = run("schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in (Path(__file__).parent.parent.parent / "examples").glob("*.yaml"):
        assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == [], path
    assert list(validator.iter_errors({"optimizer": {"name": "adam", "lrr": 1}}))


@pytest.mark.parametrize("name", ["adam_plateau", "sgd_cosine"])
def test_validate_accepts_the_examples_with_their_model(run: Any, name: str) -> None:
    examples = Path(__file__).parent.parent.parent / "examples"
    model = f"{examples / 'digits.py'}:DigitsClassifier"
    result = CliRunner().invoke(app, ["validate", str(examples / f"{name}.yaml"), "--model", model])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: adam\noptimizer: sgd\n", "duplicate key 'optimizer', in lines 1 and 2"),
        ("optimizer:\n  name: adam\n  lr: 1\n  lr: 2\n", "duplicate key 'lr', in lines 3 and 4"),
        (
            "optimizer:\n  name: adam\nlr: 1.0e-3\n",
            "config.yaml:3: lr: is an argument of the optimizer; indent it under optimizer",
        ),
        (
            "optimizer: adam\nscheduler: exponential_lr\ngamma: 0.5\n",
            "config.yaml:3: gamma: is an argument of the scheduler; indent it under scheduler",
        ),
        ("a: &a [*a]\noptimizer: adam\n", ": is nested too deeply, or contains itself"),
    ],
)
def test_validate_rejects_invalid_yaml(run: Any, text: str, message: str) -> None:
    assert message in "\n".join(error_lines(run("validate", text)))


def test_validate_accepts_a_callback_without_optimizer(run: Any) -> None:
    result = run("validate", "callbacks: [{class_path: optplug.lightning.ConfigureOptimizers}]\n")
    assert result.exit_code == 0, result.output
    assert "the callback steps the schedulers that the module's own configure_optimizers returns" in result.stdout
