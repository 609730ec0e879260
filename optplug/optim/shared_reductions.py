"""Steps of several buckets whose rule reduces over all parameters of a group or of the optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from optplug.engines.protocol import PartialReduction, SuspendedStep, combine_partials
from optplug.errors import RuleError


def run_together(steps: Sequence[tuple[int, SuspendedStep]]) -> None:
    """Run the steps of several buckets. Each reduction is combined over all buckets before a step continues.

    Args:
        steps: the index of the parameter group of each bucket, and its step.

    Raises:
        RuleError: the buckets do not need the same reductions in the same order.
    """
    generators = [generator for _, generator in steps]
    partials = [next(generator, None) for generator in generators]
    while any(partial is not None for partial in partials):
        totals = _combine([group for group, _ in steps], partials)
        partials = [_send(generator, total) for generator, total in zip(generators, totals, strict=True)]


def _combine(groups: Sequence[int], partials: Sequence[PartialReduction | None]) -> list[Tensor]:
    """Return for each bucket the reduction over all buckets in its scope."""
    by_scope: dict[tuple[str, int | None], list[PartialReduction]] = defaultdict(list)
    for group, partial in zip(groups, partials, strict=True):
        if partial is None:
            raise RuleError("a rule must reduce over several parameters equally often in all groups")
        by_scope[_scope_key(group, partial)].append(partial)
    totals = {key: combine_partials(found).value for key, found in by_scope.items()}
    return [totals[_scope_key(group, p)].to(p.value.device) for group, p in zip(groups, partials, strict=True) if p]


def _scope_key(group: int, partial: PartialReduction) -> tuple[str, int | None]:
    return partial.scope, None if partial.scope == "optimizer" else group


def _send(generator: SuspendedStep, total: Tensor) -> PartialReduction | None:
    try:
        return generator.send(total)
    except StopIteration:
        return None
