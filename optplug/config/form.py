"""The form of a configuration: one table of fields for each of its mappings.

Checks, JSON Schema, `optplug info`, OptplugCLI's help and the tables of `docs/configuration.md` are made from these
tables. Arguments of optimizers and schedulers are not declared here: they come from the signatures of the classes.
"""

from __future__ import annotations

import dataclasses
import re
import sys

from optplug.config.fields import Checked, Choice, Field, Flag, Kind, ListOf, Nested, Number, Text, table
from optplug.config.param_group_presets import PARAMETER_KINDS
from optplug.errors import ConfigError, ErrorCollector, listing
from optplug.optim.ranges import Range, at_least

ARGS = "args"
AUTO = "auto"
"""The value of a schedule's length that stands for the length of the training."""


def is_auto(value: object) -> bool:
    """Whether a value is `AUTO`. Arrays and tensors have no single truth value when compared with text."""
    return isinstance(value, str) and value == AUTO


NAME_OR_MAPPING = "a name or a mapping with a name"
OPTIMIZER_FORMS = "a name, a mapping with a name, or a list of such mappings"


def _check_metric_name(name: str) -> None:
    if name.startswith("lr-"):
        raise ConfigError(f"is {name!r}, a learning rate, which the scheduler sets: name a metric of the model")


def _check_regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{pattern!r} is not a valid regular expression: {error}") from None


ON_RESUME = ("keep", "override_hparams", "reset_scheduler", "reset_all")
"""What is restored when training resumes from a checkpoint.

- `keep`: everything is restored from the checkpoint.
- `override_hparams`: as `keep`, but hyperparameters come from the configuration.
- `reset_scheduler`: as `keep`, but the scheduler comes from the configuration and starts from the beginning.
- `reset_all`: as `keep`, but optimizer and scheduler come from the configuration and start from the beginning.
"""

RESTARTING = ("reset_scheduler", "reset_all")
"""The values of `ON_RESUME` with which the schedule starts anew."""

PATIENCE_UNITS = ("validations", "epochs", "steps")
"""What the patience of a scheduler with a metric counts since the last improvement.

- `validations`: completed validations that logged the metric; for a training metric, epochs.
- `epochs`: epochs.
- `steps`: optimizer steps.

The learning rate is reduced only at a validation, whatever the unit.
"""

ON_NONFINITE = ("bad", "ignore", "raise")
"""How non-finite metric values are handled. They are never stored as the best value.

- `bad`: the value counts as no improvement.
- `ignore`: the value is skipped, and patience does not count it.
- `raise`: training stops with an error.
"""

METRIC_NAME = Checked(Text("the name of a metric"), _check_metric_name, {"pattern": "^(?!lr-)"})
FRACTION = Number(
    Range("", "above 0 and at most 1", lambda x: 0 < x <= 1, bounds={"exclusiveMinimum": 0, "maximum": 1})
)
FACTOR = Number(Range("", "at least 0 and finite", lambda x: 0 <= x <= sys.float_info.max, bounds={"minimum": 0}))


def _between(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    words = f"at least {low} and at most {high:,}"
    return Range("", words, lambda x: low <= x <= high, bounds={"minimum": low, "maximum": high})


STEPS = Number(_between(0, 10**12), True, "a whole number of optimizer steps")


def _metric_field(name: str, kind: Kind, words: str, default: str | None = None) -> Field:
    """A key of schedulers that take a metric."""
    refusal = "{name} takes no metric: {key}={value!r} has no effect"
    return Field(name, kind, f"for plateau schedulers: {words}", default, True, "metric", None, refusal)


def _time_field(name: str, kind: Kind, words: str, default: str | int) -> Field:
    """A key of schedulers that take no metric."""
    refusal = (
        "{name} steps once per completed validation (or per epoch, for a training metric): omit {key}, got {value!r}"
    )
    words += ". Not for plateau schedulers"
    return Field(name, kind, words, default, False, "time", default, refusal)


# ------------------------------------------------------------------------------------------------ tables

SELECTORS = table(
    Field(
        "match",
        ListOf(Text("a glob"), "a glob, or a list of them"),
        'a glob over parameter names, such as `"*.bias"`; `*` matches dots too',
    ),
    Field(
        "regex",
        ListOf(Checked(Text("a regular expression"), _check_regex), "a regular expression, or a list of them"),
        "a regular expression that matches any part of a parameter name (`re.search`)",
    ),
    Field(
        "type",
        ListOf(Text("a glob over class names"), "a glob over class names, or a list of them"),
        "a glob that is compared with the class name of the module that directly owns the parameter, and with the "
        'names of that class\'s base classes: `LayerNorm`, `"*Norm"`',
    ),
    Field(
        "ndim",
        ListOf(Number(_between(0, 99), True, "a whole number"), "a number of dimensions, or a list of them"),
        "the number of dimensions of the parameter: 2 for the weight of a linear layer",
    ),
)
"""The keys that select parameters."""

LENGTH = table(
    Field("steps", STEPS, "the length in optimizer steps"),
    Field("epochs", Number(_between(0, 10**9)), "the length in epochs; it need not be whole"),
    Field("ratio", Number(_between(0, 1)), "the length as a fraction of the training"),
)
"""A length with its unit. It has exactly one of these keys."""

WARMUP_SCHEDULES = ("during", "after")
"""When the schedule of a warmup starts.

- `during`: with the warmup. Both advance together.
- `after`: when the warmup ends. Its `auto` and ratios refer to what is left of the training.
"""

WARMUP = table(
    *LENGTH.values(),
    Field(
        "start_factor",
        FRACTION,
        "the warmup factor at the first optimizer step. Default: 1 / number of warmup steps",
        is_nullable=True,
    ),
    Field(
        "schedule",
        Choice(WARMUP_SCHEDULES),
        "`during`: the schedule advances during the warmup too. `after`: the schedule starts when the warmup ends, and "
        "the rest of the training is its length",
        WARMUP_SCHEDULES[0],
    ),
)
"""The long form of a warmup. It has exactly one of the keys of `LENGTH`."""

OPTIMIZER = table(
    Field("name", Text("a name"), "the name of the optimizer", ...),
    Field(
        ARGS,
        Nested("arguments", "a mapping of arguments", is_mapping=True),
        "a mapping with arguments of the optimizer. Needed only if an argument has the same name as a key of optplug, "
        "for example `name` or `match`",
        is_nullable=True,
    ),
)
"""An optimizer, beside the arguments of its class."""

DEFAULT_FALLBACK = "adamw"
"""The name of the optimizer of the parameters that an optimizer of matrices does not take."""

NOT_FALLBACK = ("matrix_only", "closure", "gradients_first", "module", "sparse_only")
"""Capabilities of optimizers that cannot be a fallback."""

MATRICES = table(
    Field(
        "fallback",
        Nested("fallback", "a name or a mapping"),
        "the optimizer of all other parameters",
        DEFAULT_FALLBACK,
    ),
    Field(
        "output",
        ListOf(Text("a glob"), "a glob, or a list of globs, which may be empty", allows_empty=True),
        "globs over the names of the parameters of the output layer, which the fallback optimizes; `[]` for none. "
        "Default: found in the model",
    ),
    Field(
        "convolutions",
        Flag(),
        "whether the optimizer also takes the weights of convolutions, each as a matrix of its first dimension times "
        "all others",
        False,
    ),
)
"""Additional keys of an optimizer that takes matrices only (capability `matrix_only`)."""

BASE_KEY = "base"
"""The key of the optimizer that an optimizer wraps."""

BASE = table(
    Field(
        BASE_KEY,
        Nested("base", NAME_OR_MAPPING),
        "the optimizer that this optimizer wraps, such as `sgd` or `{name: sgd, lr: 0.1}`",
    ),
)
"""The additional key of an optimizer that wraps another one (field `base` of its spec)."""

NOT_BASE = (
    *("closure", "create_graph", "gradients_first", "matrix_only"),
    *("modes", "module", "named_params", "sparse_only"),
)
"""Capabilities of optimizers that cannot be a base."""

FALLBACK = table(
    dataclasses.replace(OPTIMIZER["name"], words="the name of the optimizer", default=DEFAULT_FALLBACK),
    OPTIMIZER[ARGS],
    *SELECTORS.values(),
)
"""The optimizer of the parameters that an optimizer of matrices does not take, beside the arguments of its class.

The selectors move further parameters to it.
"""

SCHEDULER = table(
    Field("name", Text("a name"), "the name of the scheduler. Without a name there is only a warmup"),
    _time_field(
        "interval",
        Choice(("epoch", "step")),
        "when the scheduler is stepped: after each `epoch`, or after each optimizer `step`. A plugin may declare "
        "another default (`optplug info` shows it)",
        "epoch",
    ),
    _time_field(
        "frequency",
        Number(at_least(1, ""), True, "a whole number"),
        "the scheduler is stepped after every N-th epoch or optimizer step, where N is this value. The counter of "
        "optimizer steps is not reset at the end of an epoch",
        1,
    ),
    Field(
        "warmup_steps",
        STEPS,
        "linear warmup over this number of optimizer steps: learning rate = base learning rate x warmup factor x "
        "schedule factor. The schedule also advances during the warmup. For a scheduler with a length of this name, it "
        "is the scheduler's argument",
    ),
    Field(
        "warmup",
        Nested("warmup", "a number, or a mapping such as {steps: 100}"),
        "the warmup: a ratio of the training below 1, such as `0.05`; or a number of optimizer steps, such as `100`; "
        "or `{steps: 100, start_factor: 0.1}`, or `{epochs: 1}`, or `{ratio: 0.05, schedule: after}`",
        is_nullable=True,
    ),
    _metric_field("monitor", METRIC_NAME, "the name of the metric. Default: inferred, see [Lightning](lightning.md)"),
    _metric_field(
        "mode",
        Choice(("min", "max")),
        "`min` if a lower metric is better, `max` if a higher metric is better. Default: inferred, see "
        "[Lightning](lightning.md)",
    ),
    _metric_field(
        "patience_unit",
        Choice(PATIENCE_UNITS),
        "the unit of `patience` and `cooldown`: completed validations, epochs, or optimizer steps",
        PATIENCE_UNITS[0],
    ),
    _metric_field(
        "on_nonfinite",
        Choice(ON_NONFINITE),
        "how a NaN or infinite metric is handled: as no improvement, not at all, or with an error",
        ON_NONFINITE[0],
    ),
    Field(
        ARGS,
        Nested("arguments", "a mapping of arguments", is_mapping=True),
        "a mapping with arguments of the scheduler. Needed only if an argument has the same name as a key above",
        is_nullable=True,
    ),
)
"""A scheduler, beside the arguments of its class."""

NESTED_SCHEDULE = table(
    Field("name", Text("a name"), "the name of the schedule", ...),
    Field(
        "length",
        Nested("length", "a number of scheduler steps, `auto`, or a mapping such as {ratio: 0.2}"),
        "how long the schedule lasts. The last schedule may omit it, or have `auto`: it has the rest of the training. "
        "It is also the length of the whole schedule, such as `T_max`, if this argument is not given",
    ),
    SCHEDULER[ARGS],
)
"""A schedule in a list of schedules, as in `sequential`, beside the arguments of its class."""

METRIC_KEYS = tuple(key for key, field in SCHEDULER.items() if field.needs == "metric")
"""Keys that only a scheduler with a metric has."""

TABLES = {"optimizer": OPTIMIZER, "scheduler": SCHEDULER}
"""The fields of an optimizer and of a scheduler. An algorithm's argument of the same name is written under `args`."""

PARAM_GROUPS = Field(
    "param_groups",
    Nested("param_groups", "the name of a preset, or a list of group rules and presets"),
    "the rules and presets of the parameter groups, see [param_groups](#param_groups)",
    is_nullable=True,
)

ENTRY = table(
    *SELECTORS.values(),
    Field("rest", Flag(), "`true`: selects the parameters that no other optimizer of the list selects", False),
    PARAM_GROUPS,
    Field("scheduler", Nested("scheduler", "a scheduler"), "the scheduler of this optimizer", is_nullable=True),
)
"""Additional keys of an optimizer in a list of optimizers."""

MULTIPLIERS = {"lr_mult": "lr", "wd_mult": "weight_decay"}
"""Keys of a group rule that multiply an option of the optimizer, each with the option that is multiplied."""

GROUP_RULE = table(
    *SELECTORS.values(),
    Field(
        "name",
        Text("a non-empty string"),
        "the name of the rule, used in the name of the group; each rule has another. Default: the patterns, separated "
        "by spaces",
    ),
    Field("lr_mult", FACTOR, "a factor for the learning rate; not together with `lr`"),
    Field("wd_mult", FACTOR, "a factor for the weight decay; not together with `weight_decay`"),
    Field(
        "scheduler",
        Nested("scheduler", NAME_OR_MAPPING),
        "the schedule of these parameters, in the form of the top-level `scheduler`, which it replaces as a whole, "
        "warmup included; `null`: their learning rate is constant. See "
        "[A schedule for a group](#a-schedule-for-a-group)",
        is_nullable=True,
    ),
)
"""A group rule, beside the options of the optimizer."""

OPTIMIZER_WIDE_OPTIONS = ("engine", "state_dtype")
"""Hyperparameters that apply to the whole optimizer. A parameter group cannot override them."""

INHERITED_OPTIONS = (*OPTIMIZER_WIDE_OPTIONS, "maximize")
"""Hyperparameters of an optimizer of matrices that its fallback has too, unless the configuration sets others."""

PRESETS = {
    "no_decay": table(
        Field(
            "of",
            ListOf(Choice(tuple(PARAMETER_KINDS)), f"one of {listing(PARAMETER_KINDS)}, or a list of them"),
            "the kinds of parameters without weight decay",
            tuple(PARAMETER_KINDS),
        ),
    ),
    "layer_decay": table(
        Field("decay", FRACTION, "the factor of the learning rate from one layer to the layer before it", ...),
        Field(
            "layers",
            ListOf(Text("a glob"), "a list of globs from input to output", allows_single=False),
            "globs over parameter names, from input to output; `{}` stands for a whole number",
            ...,
        ),
    ),
}
"""The presets of parameter groups, each with its keys beside `preset`."""

TOP_LEVEL = table(
    Field(
        "optimizer",
        Nested("optimizer", OPTIMIZER_FORMS),
        "`adam`, `{name: adam, lr: 0.001}`, a list of these, or `{combine: [...]}`",
    ),
    Field(
        "scheduler",
        Nested("scheduler", NAME_OR_MAPPING),
        "`step_lr`, or `{name: step_lr, step_size: 10}`, or `{warmup_steps: 100}`",
    ),
    PARAM_GROUPS,
    dataclasses.replace(SCHEDULER["monitor"], words="as `monitor` in `scheduler`; give it once"),
    dataclasses.replace(SCHEDULER["mode"], words="as `mode` in `scheduler`; give it once"),
    Field(
        "on_resume",
        Choice(ON_RESUME),
        "what is restored from the checkpoint when training resumes; see [on_resume](#on_resume)",
        ON_RESUME[0],
        is_nullable=True,
    ),
)
"""The keys of a configuration."""

OVERRIDE = Field(
    "override",
    Flag(),
    "replace the model's own `configure_optimizers`, or its schedule",
    False,
)
"""A key of files, of the callback and of the functions, beside those of a configuration."""

VERBOSE = Field(
    "verbose",
    Flag(),
    "report the configuration when the training begins, and each learning-rate cut",
    True,
)
"""A key of files, of the callback and of the functions, beside those of a configuration."""


def check_flags(*, override: object, verbose: object) -> None:
    """Check the values of `OVERRIDE` and `VERBOSE`.

    Raises:
        ConfigTypeError: a value is neither True nor False.
        ConfigErrors: neither of them is.
    """
    collector = ErrorCollector()
    for field, value in ((OVERRIDE, override), (VERBOSE, verbose)):
        with collector.collect((field.name,)):
            field.read(value)
    collector.raise_collected()


CALLBACK_OPTIONS = table(OVERRIDE, VERBOSE)
"""The keys that are options of the callback, beside those of a configuration. They always have a value."""

CORRECT_KEYS = {"lr_scheduler": "scheduler", "optimizers": "optimizer", "schedulers": "scheduler"}
"""Keys that are refused because they look like a key of a configuration, each with the correct key."""

SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""LightningCLI's subcommands. In a file the keys of a configuration may be nested under one of them."""
