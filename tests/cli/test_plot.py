"""The command `optplug plot`: schedulers and configuration files, in the terminal, as pictures, as numbers."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

import optplug
from optplug.cli.app import app
from optplug.cli.lr_plot import LrPlot, plot_as_text
from optplug.cli.plot_sources import schedule_label
from optplug.cli.terminal_plot import draw_curves, ticks
from optplug.config.lr_curves import Curve
from optplug.config.model import SchedulerConfig, WarmupConfig

BRAILLE = range(0x2801, 0x2900)


@pytest.fixture
def plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `optplug plot` in a folder with the files that are given by name, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def command(*args: str, **files: str) -> Any:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(dedent(text))
        return CliRunner().invoke(app, ["plot", *args])

    return command


@pytest.fixture
def numbers(plot: Any, tmp_path: Path) -> Any:
    """Runs `optplug plot ... --json` and returns the numbers."""

    def command(*args: str, **files: str) -> Any:
        result = plot(*args, "--json", "numbers.json", **files)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "numbers.json").read_text())

    return command


def labels_of(found: Any) -> list[str]:
    return [curve["label"] for curve in found["curves"]]


def errors_of(result: Any) -> list[str]:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr.splitlines()


# ------------------------------------------------------------------------------------ named schedulers


@pytest.mark.parametrize(
    "text",
    [
        "step_lr:step_size=30",
        "{name: step_lr, step_size: 30}",
        "Step-LR:step_size=30",
        "{name: step_lr, args: {step_size: 30}}",
    ],
)
def test_forms_of_a_scheduler(numbers: Any, text: str) -> None:
    found = numbers(text, "--lr", "2", "--epochs", "61")
    (curve,) = found["curves"]
    assert found["x"] == "epochs"
    assert curve["lr"] == pytest.approx([2.0] * 30 + [0.2] * 30 + [0.02] * 2)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("step_lr(step_size=3, gamma=0.5)", "step_lr(step_size=3, gamma=0.5)"),
        ("step_lr:step_size={steps: 3}", "step_lr(step_size={steps: 3})"),
        ("multi_step_lr:milestones=[{ratio: 0.5}, 9]", "multi_step_lr(milestones=[{ratio: 0.5}, 9])"),
        (
            "cyclic_lr(base_lr=0.01, max_lr=0.1, mode=triangular2)",
            "cyclic_lr(base_lr=0.01, max_lr=0.1, mode=triangular2)",
        ),
        ("cyclic_lr:base_lr=0.01,max_lr=0.1,mode=exp_range", "cyclic_lr(base_lr=0.01, max_lr=0.1, mode=exp_range)"),
        ("reduce_lr_on_plateau(patience=3)", "reduce_lr_on_plateau(patience=3)"),
        (
            "exponential_lr(gamma=0.9, warmup={steps: 3, start_factor: 0.5})",
            "exponential_lr(gamma=0.9) + warmup(steps=3, start_factor=0.5)",
        ),
    ],
)
def test_label_is_also_a_form_of_a_scheduler(numbers: Any, text: str, label: str) -> None:
    assert labels_of(numbers(text, "--steps", "20")) == [label]


@pytest.mark.parametrize("name", list(optplug.list_schedulers("optplug-schedules:*")))
def test_name_alone_is_drawn(plot: Any, numbers: Any, name: str) -> None:
    found = numbers(name)
    (curve,) = found["curves"]
    assert len(set(curve["lr"])) > 1
    shown = [line.partition(": optplug plot ")[2] for line in found["caption"] if "arguments of an example" in line]
    assert bool(shown) == ("(" in curve["label"] and curve["label"] != "cosine_annealing_lr(T_max=auto)")
    for command in shown:
        assert numbers(*shlex.split(command))["curves"] == found["curves"]


def test_remarks_about_what_is_not_drawn(numbers: Any) -> None:
    assert numbers("exponential_lr:gamma=0.9", "--log")["caption"] == []
    assert numbers("polynomial_lr:total_iters=9", "--log")["caption"] == [
        "a learning rate of 0 is not drawn: a logarithmic axis has no place for it"
    ]
    assert numbers("one_cycle_lr:max_lr=1", "exponential_lr:gamma=0.9", "--lr", "5")["caption"] == [
        "one_cycle_lr: its arguments set the learning rate; --lr has no effect on it"
    ]


def test_several_schedulers_share_the_axis(numbers: Any) -> None:
    found = numbers("exponential_lr:gamma=0.5", "cosine_annealing_lr:T_max=20", "reduce_lr_on_plateau:patience=3")
    assert labels_of(found) == [
        "exponential_lr(gamma=0.5)",
        "cosine_annealing_lr(T_max=20)",
        "reduce_lr_on_plateau(patience=3)",
    ]
    assert [len(curve["lr"]) for curve in found["curves"]] == [21] * 3  # as long as the schedule with a length
    assert [round(curve["lr"][10], 9) for curve in found["curves"]] == [round(0.1 / 2**10, 9), 0.05, 0.001]
    assert found["caption"] == ["reduce_lr_on_plateau: for a metric that never improves, with one validation per epoch"]


def test_length_of_the_schedule_may_be_omitted(numbers: Any) -> None:
    (curve,) = numbers("cosine_annealing_lr", "--steps", "50")["curves"]
    assert curve["label"] == "cosine_annealing_lr(T_max=auto)"
    assert curve["lr"][25] == pytest.approx(0.05)
    assert curve["lr"][50] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("args", "unit", "length"),
    [
        (["exponential_lr:gamma=0.9"], "epochs", 100),
        (["{name: exponential_lr, gamma: 0.9, interval: step}"], "optimizer steps", 100),
        (["exponential_lr:gamma=0.9", "--warmup", "30"], "optimizer steps", 120),
        (["cosine_annealing_lr:T_max=7"], "epochs", 7),
        (["step_lr:step_size=7"], "epochs", 28),
        (["multi_step_lr:milestones=[3,8]"], "epochs", 16),
        (["linear_lr"], "epochs", 5),  # the default of total_iters
        (["cyclic_lr:base_lr=0.1,max_lr=0.2"], "optimizer steps", 8000),  # the default of step_size_up is 2000
        (["{name: sequential, schedules: [{name: linear_lr, length: 9}, {name: constant_lr}]}"], "epochs", 18),
        (["cosine_annealing_lr:T_max=7", "--steps", "9"], "optimizer steps", 9),
        (["cosine_annealing_lr:T_max=7", "--epochs", "9"], "epochs", 9),
        (["cosine_annealing_lr:T_max=7", "--steps-per-epoch", "9"], "optimizer steps (9 per epoch)", 63),
        (["cosine_annealing_lr", "--steps", "90", "--epochs", "9"], "optimizer steps (10 per epoch)", 90),
        (["reduce_lr_on_plateau", "--steps", "12"], "optimizer steps", 12),
    ],
)
def test_axis(numbers: Any, args: list[str], unit: str, length: int) -> None:
    found = numbers(*args)
    assert found["x"] == unit
    assert len(found["curves"][0]["lr"]) == length + 1


def test_label_is_a_call() -> None:
    inner = [{"name": "step_lr", "step_size": 3, "length": {"ratio": 0.2}}, {"name": "lambda_lr", "lr_lambda": "1"}]
    label = schedule_label(SchedulerConfig("sequential", {"schedules": inner}, warmup=WarmupConfig(0.1, "ratio")))
    assert label == (
        "sequential(schedules=[step_lr(step_size=3, length={ratio: 0.2}), lambda_lr(lr_lambda=1)]) + warmup(ratio=0.1)"
    )


def test_schedulers_in_epochs_and_in_steps_share_an_axis(numbers: Any) -> None:
    in_steps = "{name: exponential_lr, gamma: 0.5, interval: step}"
    by_epoch, by_step = numbers("exponential_lr:gamma=0.5", in_steps, "--steps", "8", "--epochs", "2")["curves"]
    assert by_epoch["lr"] == [0.1] * 4 + [0.05] * 4 + [0.025]
    assert by_step["lr"] == [0.1 / 2**n for n in range(9)]


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ("4", [0.025, 0.04375, 0.0625, 0.08125, 0.1]),
        ("0.5", [0.05, 0.075, 0.1, 0.1, 0.1]),
        ("{steps: 2, start_factor: 0.25}", [0.025, 0.0625, 0.1, 0.1, 0.1]),
    ],
)
def test_warmup_of_named_schedulers(numbers: Any, warmup: str, expected: list[float]) -> None:
    own = "{name: lambda_lr, lr_lambda: 1, warmup_steps: 1}"
    added, kept = numbers("lambda_lr:lr_lambda=1", own, "--warmup", warmup, "--steps", "4")["curves"]
    assert added["lr"] == pytest.approx(expected)
    assert kept["lr"] == [0.1] * 5


# ------------------------------------------------------------------------------------------ files

GROUPS = """
    trainer: {max_epochs: 4, max_steps: -1}
    optimizer: {name: adamw, lr: 0.5}
    scheduler: {name: exponential_lr, gamma: 0.5}
    param_groups:
      - no_decay
      - {match: "head.*", lr_mult: 4}
"""


def test_file_has_one_curve_for_each_group(numbers: Any) -> None:
    found = numbers("config.yaml", config=GROUPS)
    assert labels_of(found) == ["default, no_decay", "head.*"]
    assert found["curves"][0]["groups"] == ["default", "no_decay"]
    assert [curve["lr"] for curve in found["curves"]] == [[0.5 / 2**n for n in range(5)], [2 / 2**n for n in range(5)]]
    assert found["x"] == "epochs"
    assert found["caption"] == ["one curve for each rule; --model shows the groups of the model"]


def test_options_replace_the_length_and_the_learning_rate_of_a_file(numbers: Any) -> None:
    found = numbers("config.yaml", "--steps", "6", "--epochs", "3", "--lr", "1", config=GROUPS)
    assert found["x"] == "optimizer steps (2 per epoch)"
    assert [curve["lr"] for curve in found["curves"]] == [
        [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125],
        [4, 4, 2, 2, 1, 1, 0.5],
    ]


def test_file_of_lightning_cli_and_its_max_steps(numbers: Any) -> None:
    text = """
    fit:
      optimizer: sgd
      scheduler: {name: cosine_annealing_lr, T_max: auto, interval: step, warmup: {ratio: 0.25}}
      trainer: {max_steps: 8, max_epochs: 1000}
    """
    (curve,) = numbers("config.yaml", config=text)["curves"]
    assert len(curve["lr"]) == 9
    assert curve["lr"][4] == pytest.approx(0.0005)  # half of the default of sgd
    assert curve["lr"][0] == pytest.approx(0.0005)  # half of it by the warmup


@pytest.mark.parametrize(
    ("steps", "epochs", "per_epoch", "length"),
    [(50, 2, 10, 20), (15, 2, 10, 15), (20, 2, 10, 20), (50, 2, None, 50), (-1, 2, 10, 20), (50, -1, 10, 50)],
)
def test_training_of_a_file_ends_with_the_first_of_both_lengths(
    numbers: Any, steps: int, epochs: int, per_epoch: int | None, length: int
) -> None:
    text = f"""
    trainer: {{max_steps: {steps}, max_epochs: {epochs}}}
    optimizer: sgd
    scheduler: {{name: cosine_annealing_lr, T_max: auto, interval: step}}
    """
    (curve,) = numbers(
        "config.yaml", *([] if per_epoch is None else ["--steps-per-epoch", str(per_epoch)]), config=text
    )["curves"]
    assert len(curve["lr"]) == length + 1
    assert curve["lr"][-1] == pytest.approx(0, abs=1e-12)


def test_callback_in_a_file(numbers: Any) -> None:
    text = """
    trainer:
      max_epochs: 2
      callbacks:
        - class_path: optplug.lightning.ConfigureOptimizers
          init_args: {scheduler: {name: exponential_lr, gamma: 0.5}}
    """
    found = numbers("config.yaml", config=text)
    assert found["curves"][0]["lr"] == [0.1, 0.05, 0.025]
    assert found["caption"] == ["the module's own optimizer is not known: a learning rate of 0.1 is assumed"]


def test_groups_of_a_model(numbers: Any, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    lr = 0.5\n    def __init__(self):\n"
        "        super().__init__()\n        self.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))\n"
    )
    text = """
    optimizer: {name: sgd, lr: module.lr}
    scheduler: {name: exponential_lr, gamma: 0.5}
    param_groups: [{preset: layer_decay, decay: 0.5, layers: ["blocks.{}.*"]}]
    """
    found = numbers("config.yaml", "--epochs", "1", "--model", "nets.py:Net", config=text)
    assert labels_of(found) == ["blocks.0.*", "blocks.1.*", "blocks.2.*"]
    assert [curve["lr"] for curve in found["curves"]] == [[0.125, 0.0625], [0.25, 0.125], [0.5, 0.25]]
    without = numbers("config.yaml", "--epochs", "1", "--lr", "1", config=text)
    assert without["caption"] == ["layer_decay: only the last layer is shown; --model shows the layers of the model"]


def test_schedules_of_groups_in_a_file(plot: Any, numbers: Any) -> None:
    text = """
    optimizer: {name: sgd, lr: 0.5}
    scheduler: {name: exponential_lr, gamma: 0.5}
    param_groups:
      - {match: "head.*", scheduler: {name: step_lr, step_size: 2}}
      - {match: "body.*", scheduler: null}
    """
    found = numbers("config.yaml", "--epochs", "2", config=text)
    assert plot("config.yaml", "--epochs", "2").stdout.startswith("config.yaml\n")
    assert labels_of(found) == [
        "default: exponential_lr(gamma=0.5)",
        "head.*: step_lr(step_size=2)",
        "body.*: no schedule",
    ]
    assert [curve["lr"] for curve in found["curves"]] == [[0.5, 0.25, 0.125], [0.5, 0.5, 0.05], [0.5] * 3]


def test_several_optimizers_of_a_file(plot: Any, numbers: Any) -> None:
    text = """
    optimizer:
      - {name: adam, match: "g.*", lr: 0.5, scheduler: {name: step_lr, step_size: 2}}
      - {name: sgd, match: "d.*", lr: 0.25, param_groups: [{match: "d.b", lr_mult: 2}]}
    """
    found = numbers("config.yaml", "--epochs", "2", config=text)
    assert labels_of(found) == [
        "optimizer[0] adam: step_lr(step_size=2)",
        "optimizer[1] sgd: no schedule: default",
        "optimizer[1] sgd: no schedule: d.b",
    ]
    assert [curve["lr"] for curve in found["curves"]] == [[0.5, 0.5, 0.05], [0.25] * 3, [0.5] * 3]
    assert plot("config.yaml", "--epochs", "2").stdout.startswith("config.yaml\n")
    both = numbers("config.yaml", "exponential_lr:gamma=0.9", "--epochs", "2")
    assert labels_of(both)[0] == "config.yaml: optimizer[0] adam: step_lr(step_size=2)"
    assert labels_of(both)[3] == "exponential_lr(gamma=0.9)"


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (
            ["stp_lr"],
            ["error: stp_lr: name: no scheduler named 'stp_lr'; did you mean 'step_lr', "],
        ),
        (
            ["step_lr:stepsize=3,gamma=-1"],
            [
                "error: step_lr:stepsize=3,gamma=-1: step_lr needs step_size",
                "error: step_lr:stepsize=3,gamma=-1: stepsize: step_lr has no argument 'stepsize'; did you mean",
                "error: step_lr:stepsize=3,gamma=-1: gamma: StepLR: gamma must be",
            ],
        ),
        (["{name: step_lr"], ["error: {name: step_lr: cannot be read: ParserError: "]),
        (["step_lr=3"], ["error: step_lr=3: 'step_lr=3': options come after a colon: step_lr:option=value"]),
        (["{name: step_lr, step_size: 3, warmup: {step: 3}}"], ["error: {name: step_lr, step_size: 3, warmup: {step"]),
        (["exponential_lr:gamma=0.9", "--warmup", "{step: 3}"], ["error: exponential_lr:gamma=0.9: warmup"]),
        (
            ["{name: cosine_annealing_lr, interval: epoch}", "--steps", "9"],
            ["error: cosine_annealing_lr(T_max=auto): T_max: is auto, and the number of steps of an epoch is"],
        ),
        (
            ["{name: cosine_annealing_lr, interval: step, T_max: 9}", "--epochs", "9"],
            [
                "error: cosine_annealing_lr(T_max=9): interval: is in optimizer steps, and the number of steps of an "
                "epoch is not known: add --steps or --steps-per-epoch"
            ],
        ),
        (
            ["cosine_annealing_lr", "--steps", "9", "--epochs", "2", "--steps-per-epoch", "9"],
            ["error: --steps is 9, but 2 epochs of 9 steps are 18"],
        ),
        (
            ["cosine_annealing_lr:T_max"],
            ["error: cosine_annealing_lr:T_max: T_max has no value: write cosine_annealing_lr:T_max=V"],
        ),
        (["none.yaml"], ["none.yaml: cannot be read: FileNotFoundError: "]),
        (
            ["cosine_annealing_lr", "-o", "lr.docx"],
            ["error: a plot 'lr.docx' cannot be written; its suffix must be one of"],
        ),
        (["cosine_annealing_lr", "-o", "no/lr.png"], ["error: lr.png cannot be written: there is no folder 'no'"]),
        (
            ["cosine_annealing_lr", "--json", "no/lr.json"],
            ["error: lr.json cannot be written: there is no folder 'no'"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(plot: Any, args: list[str], messages: list[str]) -> None:
    lines = errors_of(plot(*args))
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(message)


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        (
            "optimizer: sgd\nscheduler:\n  name: step_lr\n  step_siz: 3\n",
            (),
            "config.yaml:4: scheduler.step_siz: step_lr has no argument 'step_siz'; did you mean 'step_size'?",
        ),
        (
            "optimizer: sgd\nscheduler: {name: exponential_lr, gamma: 0.5}\n",
            (),
            "error: config.yaml: the length of the training is not known: add --steps or --epochs",
        ),
        (
            "optimizer: sgd\nscheduler: {name: exponential_lr, gamma: 0.5}\n",
            ("--steps", "9"),
            "config.yaml:2: scheduler: the schedule takes one step for each epoch, and the number of steps of an epoch "
            "is not known: add --epochs or --steps-per-epoch",
        ),
        (
            "optimizer:\n  name: sgd\n  lr: module.lr\n",
            ("--steps", "9"),
            "config.yaml:3: optimizer.lr: is module.lr, which is not known here: add --model or --lr",
        ),
        (
            "optimizer: sgd\nscheduler: {name: step_lr, step_size: '${oc.env:OPTPLUG_NOT_SET}'}\n",
            ("--steps", "9"),
            "config.yaml:2: scheduler.step_size: is ${oc.env:OPTPLUG_NOT_SET}, which is not known here",
        ),
        (
            "optimizer: sgd\n",
            ("--warmup", "3"),
            "error: --warmup is for schedulers on the command line; write the warmup in the file",
        ),
        ("model: {}\n", (), "error: config.yaml has none of the keys optimizer, scheduler, param_groups; it has model"),
    ],
)
def test_errors_of_files(plot: Any, text: str, args: tuple[str, ...], message: str) -> None:
    assert errors_of(plot("config.yaml", *args, config=text))[-1] == message


# ---------------------------------------------------------------------------------------- drawing


def test_terminal(plot: Any) -> None:
    result = plot("step_lr:step_size=2,gamma=0.5", "exponential_lr:gamma=0.5", "--epochs", "4")
    lines = result.stdout.splitlines()
    assert lines[:3] == ["Learning rate", "", "learning rate"]
    assert lines[-3:] == [
        " " * 73 + "epochs",
        "  a  step_lr(step_size=2, gamma=0.5)",
        "  b  exponential_lr(gamma=0.5)",
    ]
    assert lines[-4].split() == ["0", "1", "2", "3", "4"]
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == ["0.1", "0.08", "0.06", "0.04", "0.02", "0"]
    assert "\x1b" not in result.stdout  # no colors without a terminal
    assert max(map(len, lines)) <= 80
    drawn = "".join(lines[3:-5])
    assert {"a", "b"} < set(drawn)
    assert any(ord(character) in BRAILLE for character in drawn)


def test_colors_on_a_terminal() -> None:
    from rich.console import Console

    curves = [("x", Curve(("0",), (0.0, 1.0))), ("y", Curve(("0",), (1.0, 0.0)))]
    console = Console(force_terminal=True, color_system="256", width=60, record=True)
    with console.capture() as capture:
        console.print(plot_as_text(LrPlot(curves, "both", "epochs"), 60))
    assert "\x1b[38;5;32m" in capture.get()
    assert "\x1b[38;5;166m" in capture.get()


def test_curve_is_drawn_where_it_is() -> None:
    (top, *_, bottom) = cells = draw_curves([[0.0, 1.0, 2.0, 3.0]], (0.0, 3.0), 8, 4)
    assert len(cells) == 4
    assert [character for character, _ in top] == [" "] * 7 + ["⢸"]  # only the last column of dots
    assert [k for _, k in bottom] == [0, 0, 0, None, None, None, None, None]
    rows = [
        "".join(character for character, _ in row) for row in draw_curves([[0.0, 3.0]], (0.0, 3.0), 3, 2, braille=False)
    ]
    assert rows == ["  *", "***"]


def test_values_that_are_not_numbers_are_not_drawn() -> None:
    cells = draw_curves([[float("nan"), float("nan"), 1.0]], (0.0, 1.0), 4, 2)
    assert [k for _, k in cells[0]] == [None, None, None, 0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.1, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 12345, [0, 5000, 10000]),
        (-7.2, -1.3, [-6, -4, -2]),
        (0, 3e-5, [0, 1e-5, 2e-5, 3e-5]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_log_scale_and_momentum(plot: Any) -> None:
    result = plot("exponential_lr:gamma=0.1", "--epochs", "4", "--log", "--momentum")
    lines = result.stdout.splitlines()
    assert "learning rate (log scale)" in lines
    assert "momentum" in lines
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line][:5] == [
        "0.1",
        "0.01",
        "0.001",
        "0.0001",
        "1e-05",
    ]


def test_narrow_terminal_and_one_without_braille(plot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, plot("cosine_annealing_lr").stdout.splitlines())) <= 40
    text = plot_as_text(LrPlot([("x", Curve(("0",), (0.0, 1.0)))], "x", "epochs"), 60, braille=False).plain
    assert text.isascii()
    assert "*" in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_picture(plot: Any, tmp_path: Path, suffix: str) -> None:
    result = plot("cosine_annealing_lr", "step_lr:step_size=30", "--momentum", "--log", "--output", f"lr.{suffix}")
    assert (result.exit_code, result.stdout) == (0, "")
    content = (tmp_path / f"lr.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "png":
        pixels = imread(tmp_path / "lr.png")
        colors = {tuple((255 * pixel[:3]).round().astype(int).tolist()) for row in pixels for pixel in row}
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} < colors
        assert (pixels[0, 0] == 1).all()  # white, not transparent: it is readable on a dark page


def test_svg_is_reproducible(plot: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot("cosine_annealing_lr", "-o", f"{name}.svg")
    one, two = ((tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b"<dc:date>" not in one


def test_picture_without_matplotlib(plot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    (line,) = errors_of(plot("cosine_annealing_lr", "-o", "lr.png"))
    assert line == "error: a plot needs matplotlib: pip install 'optplug[demo]'"


def test_terminal_needs_neither_compiler_nor_matplotlib_nor_lightning() -> None:
    code = """
import gc, sys
from optplug.cli import main
sys.argv = ["optplug", "plot", "cosine_annealing_lr", "--warmup", "5"]
try:
    main()
except SystemExit as error:
    assert not error.code
assert gc.get_freeze_count() > 100_000  # they are not examined at exit
found = {"torch._dynamo", "matplotlib", "lightning", "pytorch_lightning", "jsonargparse"} & set(sys.modules)
assert not found, found
from torch.optim import Optimizer
assert not hasattr(Optimizer.add_param_group.__wrapped__, "__dynamo_disable")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
