"""Parameter groups from patterns over parameter names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from optplug.errors import ConfigError, did_you_mean, listing

_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
"""What wrappers put into parameter names; patterns are written against the bare ones."""


def trainable(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's parameters that require gradients, by bare name.

    Raises:
        ConfigError: there are none.
    """
    named: list[tuple[str, Tensor]] = [
        (_WRAPPERS.sub("", name), p) for name, p in module.named_parameters() if p.requires_grad
    ]
    if not named:
        frozen = sum(1 for _ in module.parameters())
        why = f"all {frozen} of its parameters are frozen" if frozen else "it has no parameters"
        raise ConfigError(f"{type(module).__name__} has nothing to train: {why}")
    return named


def param_groups(module: nn.Module, rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups that rules make of a module's trainable parameters.

    Args:
        module: whose parameters to group.
        rules: mappings with `match` (a list of globs over parameter names), `name` and options. The rules cascade: a
            parameter takes the options of every rule that matches it, and a later rule wins. Parameters with equal
            options form one group, named after the rules it comes from, or `default`.

    Returns:
        One dict per group, with `params`, `name` (left out when there are no rules) and the options.

    Raises:
        ConfigError: a pattern matches no trainable parameter, there is none to train, or two groups share a name.
    """
    named = trainable(module)
    if not rules:
        return [{"params": [p for _, p in named]}]
    for i, rule in enumerate(rules):
        for pattern in rule["match"]:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                names = [name for name, _ in named]
                raise ConfigError(
                    f"param_groups[{i}]: {pattern!r} matches no trainable parameter of {type(module).__name__}"
                    f"{did_you_mean(pattern, names) or '.'} They are {_shortened(names)}."
                )
    groups: list[tuple[dict[str, Any], dict[str, Any]]] = []  # options, group
    for name, p in named:
        options: dict[str, Any] = {}
        origin: list[str] = []
        for rule in rules:
            if any(fnmatchcase(name, pattern) for pattern in rule["match"]):
                origin.append(rule["name"])
                options.update({k: v for k, v in rule.items() if k not in ("match", "name")})
        group = next((group for known, group in groups if known == options), None)
        if group is None:
            group = {"params": [], "name": " + ".join(origin) or "default", **options}
            groups.append((options, group))
        group["params"].append(p)
    taken = [group["name"] for _, group in groups]
    for name in taken:
        if taken.count(name) > 1:  # a rule named "default", or "a + b" beside "a" and "b"
            raise ConfigError(f"param_groups make two groups named {name!r}: rename the rule of that name")
    return [group for _, group in groups]


def _shortened(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return listing(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
