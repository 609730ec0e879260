"""What is told of one name: facts, arguments with their words, documentation; mathematics as a terminal can show it."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
import torch
from typer.testing import CliRunner

import optplug
from optplug.cli.app import app
from optplug.config.describe import WIDTH, explain, readable, type_words
from optplug.errors import PluginError
from optplug.optim.ranges import COMMON, at_least, declared
from optplug.registry import Plugin, Registration, registry
from optplug.registry.signature import documented
from optplug.registry.specs import FunctionSpec, OptimizerSpec, SchedulerSpec

OURS = [
    registration
    for kind in ("optimizer", "scheduler")
    for registration in registry.registrations(kind)
    if registration.plugin.distribution == "optplug"
]


def of(kind: str, name: str) -> list[str]:
    return explain(registry.find(kind, name)).splitlines()


@pytest.mark.parametrize("registration", OURS, ids=lambda registration: registration.name)
def test_every_argument_of_our_own_has_words_of_its_own(registration: Registration):
    arguments = documented(registration)
    assert arguments
    names = {argument.name for argument in arguments}
    for argument in arguments:
        assert argument.words, f"{registration.name}: the docstring says nothing about {argument.name}"
        others = {name for name in names if re.search(rf"\. {name}: ", argument.words)}
        assert not others, f"{registration.name}: {others} are explained on the line of {argument.name}"


@pytest.mark.parametrize("registration", OURS, ids=lambda registration: registration.name)
def test_no_latex_and_no_long_line_is_left_of_our_own(registration: Registration):
    text = explain(registration)
    assert ":math:" not in text
    assert ".. math::" not in text
    assert "\\" not in text
    assert not re.search("[\ue000-\uf8ff]", text)
    beginning = text.partition("\n\n")[2].partition("\n\n")[0]
    assert beginning.startswith("argument ")
    assert all(len(line) <= WIDTH for line in beginning.splitlines())


def test_the_explanation_of_an_optimizer():
    lines = of("optimizer", "SGD")
    assert lines[:7] == [
        "sgd: stochastic gradient descent",
        "  kind          optimizer",
        "  class         optplug_classic.sgd.SGD",
        f"  plugin        optplug-classic (optplug {optplug.__version__})",
        "  plugin API    1 (this optplug speaks 1)",
        "  capabilities  complex: takes complex parameters; sparse: takes sparse gradients",
        "",
    ]
    assert lines[7].split() == ["argument", "type", "default"]
    at = lines.index(next(line for line in lines if line.startswith("momentum")))
    assert lines[at].split() == ["momentum", "float", "0.0"]
    assert lines[at + 1] == "    μ ≥ 0. Allowed: at least 0."
    assert lines[at + 2].split() == ["dampening", "float", "0.0"]
    assert "Stochastic gradient descent, with momentum and Nesterov's variant of it." in lines
    assert "    b_t = μ b_{t-1} + (1 - τ) g_t,    b_1 = g_1" in lines
    assert not any(line.startswith("Args:") or line.strip().startswith("params:") for line in lines)
    assert "Raises:" in lines
    assert lines[-1].startswith("Source: Sutskever")


def test_the_explanation_of_a_scheduler():
    lines = of("scheduler", "cosine_annealing_lr")
    assert "  interval      epoch" in lines
    row = next(line for line in lines if line.startswith("T_max"))
    assert row.split() == ["T_max", "int", "required"]
    assert "  interval      validation" in of("scheduler", "reduce_lr_on_plateau")
    lines = of("scheduler", "reduce_lr_on_plateau")
    assert "  patience_unit validations | epochs | steps (default: validations)" in lines
    assert "  on_nonfinite  bad | ignore | raise (default: bad)" in lines
    assert not any("nonfinite" in line or "patience_unit" in line for line in of("scheduler", "step_lr"))
    assert re.search(r"^mode +'min' \| 'max' +'min'$", "\n".join(lines), re.MULTILINE)


def test_a_range_is_told_where_the_class_declares_one():
    text = "\n".join(of("optimizer", "adam"))
    assert "each in [0, 1). Allowed: each at least 0 and below 1." in text
    assert "Allowed" not in "\n".join(of("scheduler", "step_lr"))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (r":math:`\gamma \ge 0`, a factor", "γ ≥ 0, a factor"),  # noqa: RUF001
        (r"rates :math:`(\beta_1, \beta_2)`", "rates (β_1, β_2)"),
        (r":math:`\theta \leftarrow (1 - \gamma\lambda) \, \theta`", "θ ← (1 - γλ) θ"),
        (r":math:`\frac{a}{1 - b^{t-1}}`", "(a / (1 - b^{t-1}))"),
        (r":math:`\sqrt{v_t}/\sqrt{1 - x}`", "√v_t/√(1 - x)"),
        (r":math:`(s_{min}, \bar\theta_t)`", "(s_min, θ̄_t)"),
        (r":math:`lr(t) = \gamma^{\lfloor t / step\_size \rfloor}`", "lr(t) = γ^{⌊t / step_size⌋}"),  # noqa: RUF001
        (r":math:`\{i : m_i \le t\}`", "{i : m_i ≤ t}"),
        (r":math:`\eta_{min} + \tfrac12 x`", "η_min + 1/2 x"),
        (r":math:`\gamma \ge \foo{x}`", r"γ ≥ \foo{x}"),  # noqa: RUF001
        (r"C:\gamma and \beta outside of mathematics", r"C:\gamma and \beta outside of mathematics"),
        ("a\n\n.. math::\n    x_t = \\mu \\qquad\n    y = 1\n\nb", "a\n\n    x_t = μ\n    y = 1\n\nb"),
        ("", ""),
    ],
)
def test_mathematics_is_shown_as_a_terminal_can(given: str, shown: str):
    assert readable(given) == shown


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Any, ""),
        (float, "float"),
        (float | None, "float | None"),
        (tuple[float, float], "tuple[float, float]"),
        (Literal["min", 3], "'min' | 3"),
        (torch.dtype | None, "torch.dtype | None"),
        ("Whatever", "Whatever"),
    ],
    ids=str,
)
def test_a_type_is_written_as_a_person_would(hint: Any, words: str):
    assert type_words(hint) == words


# ----------------------------------------------------------------------------------- of somebody else's


class Bare(torch.optim.lr_scheduler.LRScheduler):
    __doc__ = None

    def __init__(self, optimizer: Any, speed, last_epoch: int = -1) -> None: ...


class Numpy(torch.optim.Optimizer):
    """Somebody's.

    Parameters
    ----------
    speed : float
        How fast.
    """

    ranges = (at_least(1, "speed"), "no range")

    def __init__(self, params: Any, speed: float = 2.0) -> None: ...


def half(epoch: int, floor: float = 0.0) -> float:
    """Halves."""
    return floor + 0.5**epoch


STRANGERS = Plugin("strangers", "strangers", "1")


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names("optimizer")
    registrations = registry._catalogue().registrations
    specs = [SchedulerSpec("bare", Bare), OptimizerSpec("numpy_style", Numpy), FunctionSpec("half", half, "halves")]
    specs.append(SchedulerSpec("deaf", Bare, capabilities=frozenset({"metric"})))
    specs.append(OptimizerSpec("lost", "nowhere.to:Be_Found"))
    for spec in specs:
        monkeypatch.setitem(registrations[spec.kind], spec.name.replace("_", ""), [Registration(spec, STRANGERS)])


@pytest.mark.usefixtures("strangers")
def test_a_class_without_a_word_is_explained():
    lines = of("scheduler", "bare")
    assert lines[0] == "bare"
    assert next(line for line in lines if line.startswith("speed")).split() == ["speed", "required"]


@pytest.mark.usefixtures("strangers")
def test_a_schedule_that_is_told_no_position_counts_validations():
    assert "  patience_unit validations (default: validations)" in of("scheduler", "deaf")


@pytest.mark.usefixtures("strangers")
def test_a_docstring_in_another_style_is_left_whole():
    text = "\n".join(of("optimizer", "numpy_style"))
    assert "    How fast. Allowed: at least 1.\n" in text
    assert text.endswith("Parameters\n----------\nspeed : float\n    How fast.")


@pytest.mark.usefixtures("strangers")
def test_a_function_is_explained_with_its_signature():
    lines = of("function", "half")
    assert lines[0] == "half: halves"
    assert any(line.startswith("  function") and line.endswith("half") for line in lines)
    assert [line.split() for line in lines if line.startswith("floor")] == [["floor", "float", "0.0"]]
    assert lines[-1] == "Halves."


@pytest.mark.usefixtures("strangers")
def test_what_cannot_be_loaded_is_an_error():
    with pytest.raises(PluginError, match="could not be loaded"):
        explain(registry.find("optimizer", "lost"))
    result = CliRunner().invoke(app, ["info", "lost"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: optimizer 'lost' of plugin strangers (strangers 1) could not be loaded")


def test_a_terminal_without_greek_gets_question_marks():
    assert "μ ≥ 0." in CliRunner().invoke(app, ["info", "sgd"]).stdout
    result = CliRunner(charset="ascii").invoke(app, ["info", "sgd"])
    assert result.exit_code == 0
    assert "    ? ? 0. Allowed: at least 0.\n" in result.stdout


def test_ranges_are_those_of_a_class_that_declares_some():
    assert set(declared(optplug.get_optimizer("rmsprop"))) == {"alpha", *(range_.name for range_ in COMMON)}
    assert declared(optplug.get_optimizer("sparse_adam"))["lr"].words == "above 0"  # its own goes first
    assert declared(Numpy)["speed"].words == "at least 1"
    assert declared(torch.optim.SGD) == declared(Bare) == {}
