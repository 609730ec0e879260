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
from optplug.registry import registry
from support import register_too

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


class NeedsWidth(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Linear(2, width)


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


def test_validate_says_once_which_other_plugins_have_a_name(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    register_too(monkeypatch, "optimizer", "sgd")
    register_too(monkeypatch, "scheduler", "step_lr")
    optimizers = "optimizer: {combine: [{name: SGD, match: '*.bias'}, {name: SGD, rest: true}]}\n"
    result = run("validate", f"{optimizers}scheduler: {{name: step-lr, step_size: 3}}\n")
    assert [line for line in result.stdout.splitlines() if line.startswith("#")] == [
        f"# SGD is optplug-classic:sgd, {registry.others_text('optimizer', 'sgd')}",
        f"# step-lr is optplug-schedules:step_lr, {registry.others_text('scheduler', 'step_lr')}",
    ]
    assert "later:sgd" in result.stdout
    assert "#" not in run("validate", "optimizer: optplug-classic:sgd\n").stdout


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
            "optimizer: {name: adam, lr: '${lr'}\n",
            "config.yaml:1: optimizer.lr: ${lr cannot be resolved: GrammarParseError: ",
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


def test_schema_of_names_or_of_all_classes() -> None:
    options = ([], ["--complete"], ["--names"])
    quick, complete, names = (json.loads(CliRunner().invoke(app, ["schema", *each]).stdout) for each in options)
    assert jsonschema.Draft202012Validator(names).is_valid({"optimizer": {"name": "adam", "lrr": 1}})
    assert not jsonschema.Draft202012Validator(quick).is_valid({"optimizer": {"name": "adam", "lrr": 1}})
    assert len(str(names)) < len(str(quick)) <= len(str(complete))
    assert CliRunner().invoke(app, ["schema", "--names", "--complete"]).exit_code == 2


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


def test_null_keys_beside_a_callback_are_no_configuration(run: Any) -> None:
    callback = "callbacks: [{class_path: optplug.lightning.ConfigureOptimizers, init_args: {optimizer: sgd}}]"
    result = run("validate", f"optimizer: null\nscheduler: null\nparam_groups: null\n{callback}\n")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout.partition("\n\n")[2]) == {"optimizer": {"name": "sgd"}}


def test_validate_accepts_a_callback_without_optimizer(run: Any) -> None:
    result = run("validate", "callbacks: [{class_path: optplug.lightning.ConfigureOptimizers}]\n")
    assert result.exit_code == 0, result.output
    assert "the callback steps the schedulers that the module's own configure_optimizers returns" in result.stdout


# ------------------------------------------------------------------------------------------ mistakes in YAML


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("optimizer:\n\tname: adam\n", "line 2, column 1; indent with spaces, not with tabs"),
        ("optimizer:\n  name: adam\n  lr:0.1\n", "; write a space after the colon: lr: 0.1"),
        ("optimizer:\n  name: adam\n  lr:0.1\n  eps: 1\n", "; write a space after the colon: lr: 0.1"),
        ("optimizer: {name: adam, lr:0.1}\n", "; write a space after the colon: lr: 0.1"),
        (
            "optimizer:\n  name:adam\n",
            "config.yaml:1: optimizer: is 'name:adam': write a space after the colon: name: adam",
        ),
        (
            "optimizer:\n  name = adam\n",
            "config.yaml:1: optimizer: is 'name = adam': write a colon: name: adam",
        ),
        ("optimizer = adam\n", "must contain a mapping, got str; write a colon: optimizer: adam"),
        (
            "optimizer: {name:adam, lr:0.1}\n",
            "needs a name; it has name:adam, lr:0.1; write a space after the colon: name: adam",
        ),
        ("optimizer: {name: adam, lr: 0,1}\n", "keys must be strings; a decimal number has a point: 0.1"),
        ("optimizer:adam\n", "must contain a mapping, got str; write a space after the colon: optimizer: adam"),
        ("optimizer:adam\nscheduler: step_lr\n", "; write a space after the colon: optimizer: adam"),
        (
            "optimizer: adam\n  lr: 0.1\n",
            "; the keys of a mapping begin in the same column, each in its own line, and have one value each",
        ),
        (
            "optimizer:\n  name: adam\n lr: 0.1\n",
            "; the keys of a mapping begin in the same column, each in its own line, and have one value each",
        ),
        ("optimizer: adam\nparam_groups:\n  - match: *.bias\n", "; write text that begins with * in quotes: '*.bias'"),
        ("optimizer: adam\nparam_groups:\n  - match: *bias\n", "; write text that begins with * in quotes: '*.bias'"),
        ("optimizer: @adam\n", "; write text that begins with @ in quotes"),
        (
            "optimizer: {name: adam, betas: [0.9, 0.99}\n",
            "; close every bracket, and write text with brackets in quotes",
        ),
        (
            "optimizer: '{name: adam}'\n",
            "config.yaml:1: optimizer: is text and not a mapping: close every bracket, and omit "
            "quotes around the whole",
        ),
        (
            "optimizer:\n  - name: adam\n  - lr: 0.1\n",
            "config.yaml:1: optimizer: is a list of 2 optimizers with one key each: "
            "write the keys of one optimizer without dashes",
        ),
        ("optimizer: {name: adam, lr: None}\n", "; in YAML None is null, or omit the key"),
        ("optimizer: {name: adam, lr: '0,1'}\n", "; write 0.1"),
        (
            "optimizer:\nname: adam\nlr: 0.1\n",
            "config.yaml:1: optimizer: has no value: indent name, lr under optimizer",
        ),
        (
            "optimizer: adam\nscheduler:\nname: step_lr\nstep_size: 3\n",
            "config.yaml:2: scheduler: has no value: indent name, step_size under scheduler",
        ),
        ("name: adam\nlr: 0.1\n", "it has name, lr; indent them under optimizer"),
        (
            "optimizer:\nname: adma\nlr: 0.1\n",
            "config.yaml:1: optimizer: has no value: indent name, lr under optimizer",
        ),
        ("optimizer:\ntype: adam\n", "config.yaml:1: optimizer: has no value: indent type under optimizer"),
        ("optimizer:\nlr: 0.1\n", "config.yaml:1: optimizer: has no value: indent lr under optimizer"),
        (
            "optimizer: adam\nscheduler:\nwarmup_epochs: 1\n",
            "config.yaml:2: scheduler: has no value: indent warmup_epochs under scheduler",
        ),
        (
            "optimizer: adam\nparam_groups:\nmatch: '*.bias'\nlr: 0.1\n",
            "config.yaml:2: param_groups: has no value: indent match, lr under param_groups, as an item of a list: "
            "- match: ...",
        ),
        (
            "optimizer: adam\nscheduller: step_lr\n",
            "config.yaml:2: scheduller: unknown key 'scheduller'; did you mean 'scheduler'?",
        ),
        ("optimizer: adam\nmoniter: loss\n", "config.yaml:2: moniter: unknown key 'moniter'; did you mean 'monitor'?"),
        (
            "optimizer: adam\nsched: {name: step_lr}\n",
            "config.yaml:2: sched: unknown key 'sched'; did you mean 'scheduler'?",
        ),
        (
            "model:\n  optim: {name: adam, sched: {name: step_lr}}\n",
            "config.yaml:2: model.optim: has none of the keys "
            "optimizer, scheduler, param_groups; it has optim; did you mean 'optimizer'?",
        ),
    ],
    ids=lambda text: text.replace("\n", "/")[:40],
)
def test_mistake_in_yaml_names_the_cause(run: Any, text: str, end: str) -> None:
    (line,) = error_lines(run("validate", text))
    assert line.endswith(end)


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("warmup_epochs: 1", "; if it is meant for the scheduler, indent it under scheduler as warmup: {epochs: 1}"),
        ("warmup: 100", "; if it is meant for the scheduler, indent it under scheduler as warmup_steps: 100"),
        ("warmup: false", None),
        ("warmup_epochs: null", None),
        ("frequency: 3", "; if it is meant for the scheduler, indent it under scheduler"),
        ("opt: x", "; did you mean 'optimizer'?"),
        ("lr_decay: 0.1", "; did you mean 'scheduler'?"),
        ("lr_config: {policy: step}", "; did you mean 'scheduler'?"),
        ("schedule_callbacks: true", "; did you mean 'scheduler'?"),
        ("no_decay: [bias]", "; did you mean 'param_groups'?"),
        ("layer_decay: 0.5", "; did you mean 'param_groups'?"),
        ("optimized: true", None),
        ("optimized_metric: val/acc", None),
        ("base_model: x", None),
        ("models: [x]", None),
        ("overrides: [x]", None),
    ],
)
def test_key_that_a_program_can_have_is_at_most_a_note(run: Any, key: str, note: str | None) -> None:
    name = key.partition(":")[0]
    result = run("validate", f"optimizer: adam\nscheduler: {{name: step_lr, step_size: 3}}\n{key}\n")
    assert result.exit_code == 0, result.output
    if note is None:
        assert result.stderr == "" or "did you mean" in result.stderr
        assert "indent" not in result.stderr
    else:
        assert result.stderr == f"config.yaml:3: note: {name}: is not used{note}\n"


def test_every_duplicate_key_is_reported_with_the_other_errors(run: Any) -> None:
    text = "optimizer:\n  name: adam\n  lr: 1\n  lr: -2\nscheduler: step_lr\ntrainer: {max_epochs: 1, max_epochs: 2}\n"
    assert error_lines(run("validate", text)) == [
        "config.yaml:3: optimizer.lr: Invalid learning rate: -2 (Adam: lr must be at least 0)",
        "config.yaml:4: duplicate key 'lr', in lines 3 and 4",
        "config.yaml:5: scheduler: step_lr needs step_size",
        "config.yaml:6: duplicate key 'max_epochs', in lines 6 and 6",
    ]


def test_value_that_an_interpolation_uses_may_have_the_name_of_an_argument(run: Any) -> None:
    result = run("validate", "lr: 0.1\nname: adam\noptimizer: {name: '${name}', lr: '${lr}'}\n")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout.partition("\n\n")[2]) == {"optimizer": {"name": "adam", "lr": 0.1}}


# ------------------------------------------------------------------------------------------ interpolations


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("${model.lr}", "${model.lr} cannot be resolved: the file has no model.lr"),
        ("${oc.env:NO_SUCH_VARIABLE}", "cannot be resolved: environment variable 'NO_SUCH_VARIABLE' not found"),
        ("${hydra:runtime.cwd}", "cannot be resolved: the training program defines the resolver hydra"),
        ("${eval:1 + 1}", "cannot be resolved: the training program defines the resolver eval"),
        ("???", "not set: it must be set in another file or on the command line"),
    ],
)
def test_interpolation_to_another_file_is_a_note_and_the_rest_is_checked(run: Any, value: str, reason: str) -> None:
    text = f"""
    optimizer: {{name: adam, lr: '{value}', eps: 1e-6}}
    scheduler: {{name: cosine_annealing_lr, T_max: '{value}', interval: %s}}
    param_groups: [{{match: '*.bias', weight_decay: '{value}'}}]
    """
    result = run("validate", text.replace("%s", "step"))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("config.yaml is valid, except for 3 values that could not be checked:\n")
    assert yaml.safe_load(result.stdout.partition("\n\n")[2])["optimizer"]["lr"] == value
    notes = result.stderr.splitlines()
    assert len(notes) == 4
    assert notes[0].startswith("config.yaml:1: note: optimizer.lr: ")
    assert notes[0].endswith(reason)
    assert notes[1].startswith("config.yaml:2: note: scheduler.T_max: ")
    assert notes[2].startswith("config.yaml:3: note: param_groups[0].weight_decay: ")
    assert "python train.py --cfg job | optplug validate -" in notes[3]
    lines = error_lines(run("validate", text.replace("%s", "setp").replace("1e-6", "-1")))
    assert lines[4].startswith("config.yaml:1: optimizer.eps: Invalid epsilon value: -1")
    assert lines[5].startswith("config.yaml:2: scheduler.interval: must be 'epoch' or 'step', got 'setp'")


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: ${o}\nparam_groups: ${p}\nscheduler: ${s}\non_resume: ${r}\n",
        "optimizer: {name: '${o}', lr: 1}\nscheduler: {name: '${s}', warmup_steps: '${w}'}\n",
        "optimizer: [{name: '${o}', match: '${m}', param_groups: [{preset: '${p}'}, '${q}']}, '${r}']\n",
        "optimizer: {combine: '${o}'}\nscheduler: {warmup: {epochs: '${w}'}}\n",
    ],
    ids=["sections", "names", "list", "combine"],
)
def test_names_and_sections_may_be_interpolations(run: Any, text: str) -> None:
    result = run("validate", text)
    assert result.exit_code == 0, result.output
    count = text.count("${")
    assert f"config.yaml is valid, except for {count} values that could not be checked:\n" in result.stdout
    assert yaml.safe_load(result.stdout.partition("\n\n")[2]) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "model: {learning_rate: 0.1}\noptimizer: {name: adam, lr: '${model.learning_rat}'}\n",
            "the file has no model.learning_rat; did you mean 'model.learning_rate'?",
        ),
        ("experiment: {b2: 0.9}\noptimizer: {name: adam, eps: '${experiment.b}'}\n", "did you mean 'experiment.b2'?"),
        ("experiment: {width: 3}\noptimizer: {name: adam, eps: '${experiment.b}'}\n", "the file has no experiment.b"),
    ],
    ids=["misspelled", "similar", "parent"],
)
def test_similar_key_is_a_hint_as_another_file_can_have_the_key(run: Any, text: str, reason: str) -> None:
    result = run("validate", text)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0].endswith(reason)


def test_recursive_interpolation_is_an_error(run: Any) -> None:
    assert "recursive" in error_lines(run("validate", "optimizer: {name: adam, lr: '${optimizer.lr}'}\n"))[0]


@pytest.mark.parametrize("with_model", [False, True], ids=["", "model"])
@pytest.mark.parametrize(
    "text",
    [
        "optimizer: ${a}\n",
        "optimizer: {name: adam, args: '${a}'}\n",
        "optimizer: {name: sgd, nesterov: true, momentum: '${a}'}\n",
        "optimizer: [{name: adam, match: '${a}'}, {name: sgd, match: '*'}]\n",
        "optimizer: adam\nscheduler: {name: step_lr, step_size: 3, warmup: '${a}'}\n",
        "optimizer: adam\nscheduler: {name: step_lr, args: '${a}'}\n",
        "optimizer: adam\nscheduler: {name: reduce_lr_on_plateau, frequency: '${a}'}\n",
        "optimizer: adam\nscheduler: {name: reduce_lr_on_plateau, monitor: '${a}'}\nmonitor: val_loss\n",
        "optimizer: adam\nscheduler: {name: step_lr, step_size: 3}\nmonitor: '${a}'\n",
        "optimizer: adam\nmonitor: '${a}'\n",
        "optimizer: adam\nparam_groups: ['${a}']\n",
        "optimizer: adam\nparam_groups: [{preset: no_decay, of: '${a}'}]\n",
        "optimizer: adam\nparam_groups: [{preset: no_decay, of: [norms, '${a}']}]\n",
        "optimizer: adam\nparam_groups: [{preset: layer_decay, decay: 0.5, layers: '${a}'}]\n",
        "optimizer: adam\nparam_groups: [{preset: layer_decay, decay: '${a}', layers: ['*']}]\n",
        "optimizer: adam\nparam_groups: [{regex: '^(${a}', lr: 1}]\n",
        "optimizer: adam\nparam_groups: [{type: '${a}', lr: 1}]\n",
        "optimizer: adam\nparam_groups: [{match: '${a}', lr: 1}, {match: '${a}', eps: 1}]\n",
        "optimizer: adam\nparam_groups: [{match: '*', name: '${a}'}, {match: 'b*', name: '${a}'}]\n",
    ],
)
def test_unresolved_value_is_never_an_error(run: Any, text: str, with_model: bool) -> None:
    result = run("validate", text + "model: {class_path: nets.Net}\n" * with_model)
    assert result.exit_code == 0, result.output
    assert "could not be checked" in result.stdout


def test_errors_beside_a_group_rule_that_is_not_known_are_reported(run: Any) -> None:
    text = "optimizer: adam\nparam_groups:\n- {match: '${a}', lr: 1}\n- {match: 'heat.*', lr: 1}\n"
    (line,) = [line for line in error_lines(run("validate", text, "--model", "nets:Net")) if "note:" not in line]
    assert line.startswith("config.yaml:4: param_groups[1].match: 'heat.*' matches no parameter of Net")


def test_model_argument_that_is_not_known_is_no_error(run: Any) -> None:
    text = "optimizer: adam\nmodel: {class_path: nets.NeedsWidth, init_args: {width: '${w}'}}\n"
    result = run("validate", text)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("config.yaml is valid:")
    assert "config.yaml: note: the groups are not checked: the model nets.NeedsWidth cannot be built" in result.stderr
    assert run("groups", text).exit_code == 1


def test_interpolations_without_omegaconf_are_notes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    result = run("validate", "lr: 1\noptimizer: {name: adam, lr: '${lr}'}\n")
    assert result.exit_code == 0
    assert "interpolations need omegaconf: pip install omegaconf" in result.stderr


def test_groups_are_built_without_values_that_are_not_known(run: Any) -> None:
    text = "optimizer: {name: adamw, lr: '${lr}'}\nparam_groups: [no_decay]\nscheduler: ${s}\n"
    result = run("groups", text, "--model", "nets:Net")
    assert result.exit_code == 0, result.output
    assert "config.yaml: note: built without optimizer.lr" in result.stderr
    assert "no_decay" in result.stdout
    lines = error_lines(run("groups", "optimizer: ${o}\n", "--model", "nets:Net"))
    assert lines[-1].endswith("optimizer: the groups need the name of the optimizer, which is not in this file")


# ------------------------------------------------------------------------------------------ the layout of Hydra

COMPOSED = """
lr: 0.1
model:
  _target_: nets.Net
  width: 5
optimizer:
  name: adamw
  lr: ${lr}
scheduler:
  name: step_lr
  step_size: 3
trainer:
  _target_: lightning.pytorch.Trainer
  default_root_dir: ${paths.output_dir}
callbacks:
  configure_optimizers:
    _target_: optplug.lightning.ConfigureOptimizers
    optimizer: ${optimizer}
    scheduler: ${scheduler}
    param_groups: [no_decay]
"""


def test_composed_configuration_of_hydra(run: Any) -> None:
    result = run("validate", COMPOSED)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("config.yaml is valid for Net:\n")
    shown = yaml.safe_load(result.stdout.partition("\n\n")[2])
    assert shown["optimizer"] == {"name": "adamw", "lr": 0.1}
    assert shown["scheduler"]["name"] == "step_lr"
    table = run("groups", COMPOSED)
    assert table.exit_code == 0, table.output
    assert table.stdout.startswith("AdamW of Net\n")
    assert "no_decay" in table.stdout


def test_errors_of_interpolated_groups_have_the_line_of_the_group(run: Any) -> None:
    text = COMPOSED.replace("step_size: 3", "step_sizee: 3").replace("lr: ${lr}", "lr: -1").replace("[no_", "[no")
    assert [line.split(": ")[:2] for line in error_lines(run("validate", text))] == [
        ["config.yaml:7", "optimizer.lr"],
        ["config.yaml:8", "scheduler"],
        ["config.yaml:10", "scheduler.step_sizee"],
        ["config.yaml:19", "param_groups[0]"],
    ]


def test_group_that_hydra_does_not_pass_to_the_callback_is_a_note(run: Any) -> None:
    result = run("validate", COMPOSED.replace("    scheduler: ${scheduler}\n", ""))
    assert result.exit_code == 0
    assert result.stderr == (
        "config.yaml:8: note: scheduler: Hydra does not pass it to ConfigureOptimizers; write scheduler: ${scheduler} "
        "under callbacks.configure_optimizers\n"
    )


def test_unknown_argument_of_the_callback_is_an_error(run: Any) -> None:
    (line,) = error_lines(
        run(
            "validate",
            COMPOSED.replace("param_groups:", "foo: 1\n    groups:", 1).replace("groups: [no_decay]", "_convert_: all"),
        )
    )
    assert line == "config.yaml:19: foo: ConfigureOptimizers has no argument 'foo'"


@pytest.mark.parametrize(
    "arguments",
    ["_target_: {}, _args_: [adm]", "class_path: {}, dict_kwargs: {{optimizer: adm}}"],
    ids=["_args_", "dict_kwargs"],
)
def test_arguments_of_the_callback_in_other_places_are_checked(run: Any, arguments: str) -> None:
    callback = arguments.format("optplug.lightning.ConfigureOptimizers")
    (line,) = error_lines(run("validate", f"callback: {{{callback}}}\n"))
    assert line.startswith("config.yaml:1: optimizer: no optimizer named 'adm'")


def test_callback_with_null_and_wrong_flags(run: Any) -> None:
    callback = "callback: {_target_: optplug.lightning.ConfigureOptimizers, optimizer: null, verbose: %s}\n"
    result = run("validate", callback % "true")
    assert result.exit_code == 0, result.output
    assert "the callback steps the schedulers" in result.stdout
    (line,) = error_lines(run("validate", callback % "maybe"))
    assert line == "config.yaml:1: verbose: must be True or False, got 'maybe' (str)"


def test_optimizer_of_hydra_beside_defaults_is_an_error(run: Any) -> None:
    lines = error_lines(run("validate", "defaults: [_self_]\noptimizer: {_target_: torch.optim.Adam, lr: 0.1}\n"))
    assert "config.yaml:2: optimizer: needs a name; it has _target_, lr" in lines[0]


@pytest.mark.parametrize(
    ("name", "text", "heading"),
    [
        ("optim/a.yaml", "name: adam\nlr: 0.1\neps: ${optim.lr}\n", "optim/a.yaml is valid:"),
        ("x/a.yaml", "# @package model.optimizer\nname: adam\n", "x/a.yaml is valid:"),
        ("optimizer/a.yaml", "defaults: [base]\nname: adam\n", "optimizer/a.yaml is valid:"),
        ("scheduler/none.yaml", "", "scheduler/none.yaml is valid: it configures no scheduler"),
        ("scheduler/none.yaml", "null\n", "scheduler/none.yaml is valid: it configures no scheduler"),
        (
            "param_groups/a.yaml",
            "- no_decay\n- {match: '*', lr: 1}\n",
            "param_groups/a.yaml is valid, except for 1 value that could not be checked:",
        ),
        ("model/a.yaml", "_target_: nets.Net\noptimizer: {name: adam}\nlr: 1\n", "model/a.yaml is valid:"),
    ],
    ids=["folder", "header", "defaults", "empty", "null", "list", "model"],
)
def test_file_of_one_hydra_group(run: Any, tmp_path: Path, name: str, text: str, heading: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(text)
    result = run("validate", None, name)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == heading


def test_file_of_a_hydra_group_in_the_current_folder(
    run: Any, hydra_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hydra_files / "scheduler")
    assert run("validate", None, "step.yaml").stdout.startswith("step.yaml is valid:")


@pytest.mark.parametrize(
    "text",
    [
        "_target_: nets.Net\noptimizer: {_target_: torch.optim.Adam, _partial_: true}\n",
        "# @package _global_\ndefaults: [_self_]\noptimized_metric: val/acc\n",
        "optim_wrapper: {type: x}\n",
    ],
    ids=["model", "metric", "wrapper"],
)
def test_file_with_keys_of_a_program_is_skipped(run: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "good.yaml").write_text("optimizer: adam\n")
    (tmp_path / "other.yaml").write_text(text)
    result = run("validate", None, "good.yaml", "other.yaml")
    assert result.exit_code == 0, result.output
    assert "other.yaml: skipped: it has none of the keys" in result.stderr


@pytest.fixture
def hydra_files(run: Any, tmp_path: Path) -> Path:
    """A folder with one file for each group."""
    files = {
        "train.yaml": "defaults:\n  - optimizer: adam\n  - _self_\nlr: 0.1\n",
        "optimizer/adam.yaml": "# @package _group_\nname: adam\nlr: ${lr}\n",
        "scheduler/step.yaml": "name: step_lr\nstep_size: 3\n",
        "callbacks/optplug.yaml": COMPOSED.partition("callbacks:\n")[2].replace("\n  ", "\n").removeprefix("  "),
        "experiment/one.yaml": "# @package _global_\ndefaults:\n  - override /optimizer: adam\noptimizer:\n  lr: 1\n",
        "trainer/default.yaml": "max_epochs: 3\n",
    }
    for name, text in files.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "configs"


def test_files_of_hydra_groups(run: Any, hydra_files: Path) -> None:
    files = [str(path.relative_to(hydra_files.parent)) for path in sorted(hydra_files.rglob("*.yaml"))]
    result = run("validate", None, *files)
    assert result.exit_code == 0, result.output
    headings = [line for line in result.stdout.splitlines() if " is valid" in line]
    assert headings == [
        "configs/callbacks/optplug.yaml is valid, except for 2 values that could not be checked:",
        "configs/experiment/one.yaml is valid, except for 1 value that could not be checked:",
        "configs/optimizer/adam.yaml is valid, except for 1 value that could not be checked:",
        "configs/scheduler/step.yaml is valid:",
    ]
    skipped = [line.partition(":")[0] for line in result.stderr.splitlines() if ": skipped: " in line]
    assert skipped == ["configs/train.yaml", "configs/trainer/default.yaml"]
    (hydra_files / "scheduler/step.yaml").write_text("name: step_lr\nstep_sizee: 3\n")
    result = run("validate", None, *files)
    assert result.exit_code == 1
    assert "configs/scheduler/step.yaml:2: scheduler.step_sizee: step_lr has no argument 'step_sizee'" in result.stderr
    (line,) = error_lines(run("validate", None, "configs/train.yaml"))
    assert line.endswith("Hydra composes it with other files: python train.py --cfg job | optplug validate -")


def test_arguments_of_a_model_that_configures_optplug(run: Any) -> None:
    result = run("validate", "model: {optimizer: {name: adam, lr: 1}, lr: 2}\n")
    assert yaml.safe_load(result.stdout.partition("\n\n")[2]) == {"optimizer": {"name": "adam", "lr": 1}}
    lines = error_lines(run("validate", "model: {init_args: {optimizer: {name: adam, lrr: 1}}}\n"))
    assert lines == ["config.yaml:1: optimizer.lrr: adam has no option 'lrr'; did you mean 'lr'?"]


# ------------------------------------------------------------------------------------------ several files


def test_several_files_are_checked_each(run: Any, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("optimizer: adam\n")
    (tmp_path / "bad.yaml").write_text("optimizer: {name: adam, lr: -1}\n")
    (tmp_path / "worse.yaml").write_text("optimizer: [\n")
    result = run("validate", None, "bad.yaml", "good.yaml", "worse.yaml", "missing.yaml")
    assert result.exit_code == 1
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [
        "bad.yaml:1",
        "worse.yaml",
        "missing.yaml",
    ]
    assert result.stdout.startswith("good.yaml is valid:\n")
    result = run("validate", None, "good.yaml", "good.yaml")
    assert result.exit_code == 0
    assert result.stdout.count("good.yaml is valid:\n") == 2
    result = run("groups", None, "good.yaml", "bad.yaml", "--model", "nets:Net")
    assert result.exit_code == 1
    assert result.stdout.startswith("good.yaml: Adam of Net\n")


@pytest.mark.parametrize("text", ["optimizer: adam\n", "\ufeffoptimizer: adam\n"], ids=["plain", "byte order mark"])
def test_standard_input(run: Any, text: str) -> None:
    result = CliRunner().invoke(app, ["validate", "-"], input=text)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("<stdin> is valid:\n")
    result = CliRunner().invoke(app, ["groups", "-", "--model", "nets:Net"], input=text)
    assert result.stdout.startswith("Adam of Net\n")
    result = CliRunner().invoke(app, ["validate", "-"], input="optimizer: {name: adm}\n")
    assert error_lines(result)[0].startswith("<stdin>:1: optimizer.name: no optimizer named 'adm'")
