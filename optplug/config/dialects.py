"""Keys of other configuration formats, such as NeMo's `sched` and timm's `warmup_epochs`, and optplug's keys for them.

They only choose the words of error messages: optplug accepts its own keys only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

_SIMILAR = 0.9
"""A key that is at least so similar to one of optplug's keys is a misspelled key of optplug."""

_NAME = (
    r"_target_|_?class(_?(path|name))?_?|cls|type|algo(rithm)?|method|policy|"
    r"(opt(im(izer)?)?|(lr_?)?sched(uler)?)(_?(name|class|cls|type|id))?"
)
_ARGUMENTS = r"(\w+_)?(args|kwargs|params|parameters|options|arguments|config|cfg|hparams|settings)"
_SCHEDULER = r"(lr_?)?sched(ule|uler)?s?(_\w+)?|lr_(policy|config|decay\w*)"
_WARMUP = r"\w*warm_?up\w*"
_PARAM_GROUPS = r"paramwise_cfg|custom_keys|param(eter)?_?groups?\w*|(no_|layer_?wise_|layer_)(weight_)?(lr_)?decay\w*"
_METRIC = r"metrics?|metric_\w+|\w+_metric|monitor\w*|quantity"
_INTERVAL = r"by_epochs?|(step|update)_(on|per|unit|every)|\w*interval\w*|t_in_epochs|every|per|on_step|per_step"
_LENGTH = r"((max|total|num|n|decay|training|train)_)+(steps|epochs|iters?|iterations|updates)|epochs|t_?(max|initial)"

_TRAINER_ARGUMENTS = (
    (r"(gradient|grad)_clip\w*|clip_(grad|value|norm)\w*|max_grad_norm", "gradient_clip_val"),
    (r"accumulate_grad\w*|grad(ient)?_acc\w*", "accumulate_grad_batches"),
    (r"((max|num|n)_)?epochs", "max_epochs"),
    (r"((max|num|total)_)+(training_)?(steps|iters|updates)", "max_steps"),
)
"""Patterns of keys, each with the argument of Lightning's Trainer that is meant."""

_SYNONYMS = (
    (r"(base_|init(ial)?_|max_|peak_)?(lr|learning_?rate)", ("lr",)),
    (r"wd|l2(_\w+)?|weight_?decay\w*|decay", ("weight_decay",)),
    (r"(adam_)?(beta_?[12]|b[12])", ("betas",)),
    (r"(adam_)?eps(ilon)?", ("eps",)),
    (r"mom|momentum_\w+", ("momentum",)),
    (r"min_lr\w*|lr_min|(final|end)_lr|eta_?min\w*", ("eta_min", "min_lr")),
    (r"(lr_)?(decay|reduce)(_?(rate|factor))?|gamma|factor", ("gamma", "factor")),
    (r"step(_?lr|s)?|(decay|step)_(steps|epochs)|lr_steps?|milestones|step_?size", ("step_size", "milestones")),
)
"""Patterns of words for arguments, each with the arguments that are meant. An optimizer has at most one of them."""

_NOT_NEEDED = (
    (r"strict", "a metric that is missing is an error"),
    (r"reduce_on_plateau", "optplug knows which schedulers take a metric"),
    (r"_(partial|recursive|convert|args)_", "optplug builds the object from its name"),
)
"""Patterns of keys that have no counterpart, each with the reason."""


def _matches(pattern: str, key: str) -> bool:
    return re.fullmatch(pattern, key.lower().replace("-", "_")) is not None


def _text(value: Any) -> str:
    """A number or a word as it is written; `...` for other values."""
    return str(value) if isinstance(value, (int, float, str)) and len(str(value)) <= 20 else "..."


def _items(values: Mapping[Any, Any]) -> str:
    """The first two items of a mapping as they are written, each after a comma."""
    return "".join(f", {key}: {_text(value)}" for key, value in list(values.items())[:2])


def foreign_key_hint(
    kind: str, key: str, value: Any, *, arguments: Collection[str], keys: Collection[str], length: str | None = None
) -> str:
    """The end of a message about an unknown key: what to write instead. Empty for a key that is not of another format.

    Args:
        kind: `"optimizer"` or `"scheduler"`.
        key: the unknown key.
        value: its value.
        arguments: the arguments of the optimizer or the scheduler.
        keys: the keys that it has beside the arguments.
        length: the argument that sets the scheduler's length. Default: it has none.
    """
    if difflib.get_close_matches(key.lower(), [known.lower() for known in (*arguments, *keys)], 1, _SIMILAR):
        return ""
    if re.fullmatch(r"\w+:\S+", key):
        return f"; write a space after the colon: {key.replace(':', ': ', 1)}"
    if _matches(_WARMUP, key):
        return f"; write {warmup_form(key, value)}" + (" in scheduler" if kind == "optimizer" else "")
    hint = _optimizer_hint(key, keys) if kind == "optimizer" else _scheduler_hint(key, keys, length)
    if hint:
        return hint
    if isinstance(value, Mapping) and _matches(_ARGUMENTS, key):
        return f"; write the arguments beside name: {{name: ...{_items(value)}}}"
    if _matches(_NAME, key):
        return f"; the key name alone chooses the {kind}: omit {key}"
    for pattern, reason in _NOT_NEEDED:
        if _matches(pattern, key):
            return f"; omit it: {reason}"
    meant = argument_of(key, arguments)
    return f"; did you mean {meant!r}?" if meant else ""


def argument_of(key: str, arguments: Collection[str]) -> str | None:
    """The one of the given arguments that is meant by a key of another format; None if there is none."""
    for pattern, targets in _SYNONYMS:
        meant = [target for target in targets if target in arguments]
        if meant and _matches(pattern, key):
            return meant[0]
    return None


def _optimizer_hint(key: str, keys: Collection[str]) -> str:
    if _matches(_SCHEDULER, key):
        if "scheduler" in keys:
            return "; did you mean 'scheduler'?"
        return "; the schedule is configured by scheduler, a key beside optimizer: scheduler: {name: ...}"
    if _matches(_PARAM_GROUPS, key):
        where = "" if "param_groups" in keys else " beside optimizer"
        return f"; write param_groups{where}, for example param_groups: [no_decay]"
    for pattern, argument in _TRAINER_ARGUMENTS:
        if _matches(pattern, key):
            return f"; it belongs to Lightning's Trainer: write {argument} there"
    return ""


def _scheduler_hint(key: str, keys: Collection[str], length: str | None) -> str:
    if _matches(_METRIC, key):
        return "; did you mean 'monitor'?" if "monitor" in keys else "; omit it: the scheduler takes no metric"
    if _matches(_INTERVAL, key) and "interval" in keys:
        return "; did you mean 'interval', which is epoch or step?"
    if _matches(_LENGTH, key):
        return f"; did you mean {length!r}? Its value auto is the length of the training" if length else ""
    return ""


def warmup_form(key: str, value: Any) -> str:
    """What to write instead of a key of another format that configures a warmup; empty for other keys.

    Args:
        key: the key, such as `warmup_epochs` or `num_warmup_steps`.
        value: its value.
    """
    if not _matches(_WARMUP, key):
        return ""
    shown = _text(value)
    if re.search("epoch", key) and not isinstance(value, bool):
        return f"warmup: {{epochs: {shown}}}"
    if re.search("ratio|proportion|frac|pct|percent|portion", key):
        return f"warmup: {{ratio: {shown}}}"
    if re.search("lr|factor|init|start|momentum|method|type|mode|by_|power", key):
        return "warmup: {steps: ..., start_factor: ...}, which is linear"
    return f"warmup_steps: {shown}"


def is_name_key(key: str) -> bool:
    """Whether another format names the optimizer or the scheduler by this key."""
    return _matches(_NAME, key)


def top_level_key(key: str) -> str | None:
    """The key of a configuration that is meant by a key beside it; None if there is none."""
    if _matches(_SCHEDULER, key):
        return "scheduler"
    if _matches(_PARAM_GROUPS, key):
        return "param_groups"
    return "optimizer" if re.fullmatch(r"opti(m|mi[sz]ers?|m_\w+)|opt", key.lower()) else None


_GROUP_SYNONYMS = (
    (r"(lr|learning_rate)_?(scale|factor|multiplier|mul|ratio)|lr_decay", "lr_mult"),
    (r"(wd|weight_decay|decay)_?(scale|factor|multiplier|mul|mult|ratio)", "wd_mult"),
    (
        r"params?|parameters?|names?_?(pattern)?|patterns?|modules?|layers?|include|keys?|prefix|select(or)?|glob",
        "match",
    ),
    (r"module_types?|class(es)?|layer_types?|instances?", "type"),
    (r"regexp?|re", "regex"),
)
"""Patterns of keys of parameter groups in other formats, each with the key of a group rule that is meant."""


def group_rule_key(key: str, keys: Collection[str]) -> str | None:
    """The one of the given keys of a group rule that is meant by a key of another format; None if there is none.

    Args:
        key: the unknown key.
        keys: the keys that a group rule may have.
    """
    if difflib.get_close_matches(key, keys, 1, _SIMILAR):
        return None
    return next((target for pattern, target in _GROUP_SYNONYMS if _matches(pattern, key) and target in keys), None)
