"""Description of a registered name (`optplug info`): origin, arguments, documentation."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

import pytest
import torch
from typer.testing import CliRunner

import optplug
from optplug.cli.app import app
from optplug.config.describe import WIDTH, describe_registration, type_text
from optplug.errors import PluginError
from optplug.optim.ranges import COMMON_RANGES, at_least, declared_ranges
from optplug.registry import Plugin, Registration, registry
from optplug.registry.signature import documented_arguments
from optplug.registry.specs import FunctionSpec, OptimizerSpec, SchedulerSpec
from support import first_party

FIRST_PARTY = [registry.resolve(kind, name) for kind in ("optimizer", "scheduler") for name in first_party(kind)]


def described_lines(kind: str, name: str) -> list[str]:
    return describe_registration(registry.resolve(kind, name)).splitlines()


@pytest.mark.parametrize("registration", FIRST_PARTY, ids=lambda registration: registration.name)
def test_first_party_arguments_each_have_their_own_description(registration: Registration):
    arguments = documented_arguments(registration)
    assert arguments
    names = {argument.name for argument in arguments}
    for argument in arguments:
        assert argument.description, f"{registration.name}: the docstring does not describe {argument.name}"
        others = {name for name in names if re.search(rf"\. {name}: ", argument.description)}
        assert not others, f"{registration.name}: the description of {argument.name} includes {others}"


@pytest.mark.parametrize("registration", FIRST_PARTY, ids=lambda registration: registration.name)
def test_first_party_descriptions_have_the_docstring_once_and_no_long_lines(registration: Registration):
    has_keys = registration.spec.kind == "scheduler" or "matrix_only" in registration.spec.capabilities
    _, *keys, arguments, doc = describe_registration(registration).split("\n\n", 3 if has_keys else 2)
    assert [block.split()[0] for block in keys] == ["key"] * has_keys
    assert arguments.startswith("argument ")
    assert all(len(line) <= WIDTH for line in arguments.splitlines())
    docstring = inspect.getdoc(registry.get(registration.spec.kind, registration.qualified_name)) or ""
    without_args = re.sub(r"^Args:\n(    .*\n)+\n?", "", f"{docstring}\n", flags=re.MULTILINE)
    assert len(without_args) < len(docstring)
    assert doc == without_args.strip()


def test_description_of_an_optimizer(without_adapters: None):
    lines = described_lines("optimizer", "SGD")
    assert lines[:7] == [
        "sgd: stochastic gradient descent",
        "  kind          optimizer",
        "  class         optplug_classic.sgd.SGD",
        f"  plugin        optplug-classic (optplug {optplug.__version__})",
        "  plugin API    1 (this optplug supports 1)",
        "  capabilities  complex: takes complex parameters; fused: is a RuleOptimizer, which engines step in "
        "fused kernels; sparse: takes sparse gradients",
        "",
    ]
    assert lines[7].split() == ["argument", "type", "default"]
    row = lines.index(next(line for line in lines if line.startswith("momentum")))
    assert lines[row].split() == ["momentum", "float", "0.0"]
    assert lines[row + 1] == r"    momentum factor :math:`\mu \ge 0`. Allowed: at least 0."
    assert lines[row + 2].split() == ["dampening", "float", "0.0"]
    assert "Stochastic gradient descent, optionally with momentum or Nesterov momentum." in lines
    start = lines.index(".. math::")
    assert lines[start + 1] == r"    b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1 \qquad"
    assert not any(line.startswith("Args:") or line.strip().startswith("params:") for line in lines)
    assert "Raises:" in lines
    assert lines[-1].startswith("Source: Sutskever")


def test_description_of_a_scheduler():
    lines = described_lines("scheduler", "cosine_annealing_lr")
    assert "  interval      epoch" in lines
    row = next(line for line in lines if line.startswith("T_max"))
    assert row.split() == ["T_max", "int", "required"]
    assert "  interval      validation" in described_lines("scheduler", "reduce_lr_on_plateau")
    lines = described_lines("scheduler", "reduce_lr_on_plateau")
    start = lines.index(next(line for line in lines if line.startswith("key in a configuration")))
    rows = [re.split(" {2,}", line) for line in lines[start : lines.index("", start)] if line[0] != " "]
    assert rows == [
        ["key in a configuration", "value", "default"],
        ["warmup_steps", "a whole number of optimizer steps, at least 0 and at most 1,000,000,000,000"],
        ["warmup", "a number, or a mapping such as {steps: 100}"],
        ["monitor", "the name of a metric"],
        ["mode", "'min' or 'max'"],
        ["patience_unit", "one of validations, epochs, steps", "validations"],
        ["on_nonfinite", "one of bad, ignore, raise", "bad"],
    ]
    of_step_lr = [line.split()[0] for line in described_lines("scheduler", "step_lr") if line]
    assert {"interval", "frequency", "warmup"} <= set(of_step_lr)
    assert not {"patience_unit", "monitor"} & set(of_step_lr)
    assert re.search(r"^mode +'min' \| 'max' +'min'$", "\n".join(lines), re.MULTILINE)


def test_declared_ranges_are_part_of_the_description():
    text = " ".join(" ".join(described_lines("optimizer", "adam")).split())
    assert "each in [0, 1). Allowed: each at least 0 and below 1." in text
    assert "Allowed" not in "\n".join(described_lines("scheduler", "step_lr"))


@pytest.mark.parametrize(
    ("hint", "text"),
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
def test_type_text_is_source_notation(hint: Any, text: str):
    assert type_text(hint) == text


# ------------------------------------------------------------------------------------------ third-party classes


class UndocumentedScheduler(torch.optim.lr_scheduler.LRScheduler):
    __doc__ = None

    def __init__(self, optimizer: Any, speed, last_epoch: int = -1) -> None: ...


class NumpyStyleOptimizer(torch.optim.Optimizer):
    """A third-party optimizer.

    Parameters
    ----------
    speed : float
        How fast.
    """

    ranges = (at_least(1, "speed"), "no range")

    def __init__(self, params: Any, speed: float = 2.0) -> None: ...


class MathOptimizer(torch.optim.Optimizer):
    r"""Steps of :math:`\gamma \ge 0`, in Unicode μ ≥ 0. :v: [b]\[x][/b]

    .. math::
        \theta_t = \Big[ \theta_{t-1} - \gamma \, g_t \Big]

    Args:
        speed: the factor :math:`\gamma \ge 0`,
            or μ ≥ 0

    \foo :class:`Bar`\
    """

    def __init__(self, params: Any, speed: float = 2.0) -> None: ...


def half(epoch: int, floor: float = 0.0) -> float:
    """Halves."""
    return floor + 0.5**epoch


THIRD_PARTY = Plugin("third-party", "third-party", "1")


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers third-party classes and a function."""
    registry.names("optimizer")
    registrations = registry._discovered().registrations
    specs = [
        SchedulerSpec("undocumented", UndocumentedScheduler),
        OptimizerSpec("numpy_style", NumpyStyleOptimizer),
        OptimizerSpec("math", MathOptimizer),
        FunctionSpec("half", half, "halves"),
    ]
    specs.append(SchedulerSpec("validation_only", UndocumentedScheduler, capabilities=frozenset({"metric"})))
    specs.append(OptimizerSpec("unloadable", "missing.module:Missing"))
    for spec in specs:
        monkeypatch.setitem(registrations[spec.kind], spec.name.replace("_", ""), [Registration(spec, THIRD_PARTY)])


@pytest.mark.usefixtures("third_party")
def test_undocumented_class_is_described():
    lines = described_lines("scheduler", "undocumented")
    assert lines[0] == "undocumented"
    assert next(line for line in lines if line.startswith("speed")).split() == ["speed", "required"]


@pytest.mark.usefixtures("third_party")
def test_metric_scheduler_without_at_counts_only_validations():
    (line,) = (line for line in described_lines("scheduler", "validation_only") if line.startswith("patience_unit"))
    assert line.split() == ["patience_unit", "'validations'", "validations"]


@pytest.mark.usefixtures("third_party")
def test_docstring_in_numpy_style_is_shown_unchanged():
    text = "\n".join(described_lines("optimizer", "numpy_style"))
    assert "    How fast. Allowed: at least 1.\n" in text
    assert text.endswith("Parameters\n----------\nspeed : float\n    How fast.")


@pytest.mark.usefixtures("third_party")
def test_function_is_described_with_its_signature():
    lines = described_lines("function", "half")
    assert lines[0] == "half: halves"
    assert any(line.startswith("  function") and line.endswith("half") for line in lines)
    assert [line.split() for line in lines if line.startswith("floor")] == [["floor", "float", "0.0"]]
    assert lines[-1] == "Halves."


@pytest.mark.usefixtures("third_party")
def test_unloadable_class_raises_plugin_error():
    with pytest.raises(PluginError, match="could not be loaded"):
        describe_registration(registry.resolve("optimizer", "unloadable"))
    result = CliRunner().invoke(app, ["info", "unloadable"])
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: optimizer 'unloadable' of plugin third-party (third-party 1) could not be loaded"
    )


MATH_DESCRIPTION = r"""
speed     float  2.0
    the factor :math:`\gamma \ge 0`, or μ ≥ 0

Steps of :math:`\gamma \ge 0`, in Unicode μ ≥ 0. :v: [b]\[x][/b]

.. math::
    \theta_t = \Big[ \theta_{t-1} - \gamma \, g_t \Big]

\foo :class:`Bar`\
"""


@pytest.mark.usefixtures("third_party")
def test_info_prints_a_docstring_as_written():
    assert CliRunner().invoke(app, ["info", "math"]).stdout.endswith(MATH_DESCRIPTION)


@pytest.mark.usefixtures("third_party")
def test_characters_outside_the_encoding_become_question_marks():
    result = CliRunner(charset="ascii").invoke(app, ["info", "math"])
    assert result.exit_code == 0
    assert result.stdout.endswith(MATH_DESCRIPTION.encode("ascii", "replace").decode())


def test_declared_ranges_merges_own_and_common_ranges():
    assert set(declared_ranges(optplug.get_optimizer("rmsprop"))) == {
        "alpha",
        *(range_.name for range_ in (*COMMON_RANGES, *optplug.RuleOptimizer.ranges)),
    }
    assert (
        declared_ranges(optplug.get_optimizer("sparse_adam"))["lr"].words == "above 0"
    )  # its own range has precedence over the common one
    assert declared_ranges(NumpyStyleOptimizer)["speed"].words == "at least 1"
    assert declared_ranges(torch.optim.SGD) == declared_ranges(UndocumentedScheduler) == {}


def test_default_after_a_long_type_is_in_its_column():
    lines = describe_registration(registry.resolve("scheduler", "lambda_lr")).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("argument "))
    assert lines[header + 1].startswith("lr_lambda ")
    assert lines[header + 2] == " " * lines[header].index("default") + "required"
