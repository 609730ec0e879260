"""What checks are made of: the check itself, look-up, cases, and comparing things that must be equal."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.registry import registry


@dataclass(frozen=True)
class Check:
    """One property of one optimizer or scheduler in one case.

    Attributes:
        id: `property[case]`, unique, fit for a pytest id.
    """

    id: str
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> None:
        """Raises AssertionError, with property, case and figures, when the property does not hold."""
        try:
            self.run()
        except AssertionError as error:
            raise AssertionError(f"{self.id}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{self.id}: raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.id


def run_all(checks: Sequence[Check]) -> None:
    failures = []
    for check in checks:
        try:
            check()
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} of {len(checks)} checks failed:\n" + "\n".join(failures)


def look_up(kind: str, what: str | type, base: type) -> tuple[type, frozenset[str]]:
    if isinstance(what, str):
        return registry.get(kind, what), frozenset(registry.find(kind, what).spec.capabilities)
    if not (isinstance(what, type) and issubclass(what, base)):
        raise TypeError(f"expected the name of {'an' if kind[0] in 'aeiou' else 'a'} {kind} or its class, got {what!r}")
    return what, frozenset(getattr(what, "capabilities", ()))


def cases_of(cls: type) -> tuple[dict[str, Any], ...]:
    declared: Sequence[Mapping[str, Any]] = getattr(cls, "cases", ())
    return tuple(dict(case) for case in declared) or ({},)


def label(case: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in case.items()).replace(" ", "") or "default"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference; infinite when only one of two numbers is NaN."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = (t.detach().to_dense() for t in (x, y))
        x, y = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (x, y))
        x, y = x.to(torch.float64), y.to(torch.float64)
        if not bool((x.isnan() == y.isnan()).all()):
            return math.inf
        same = (x == y) | (x.isnan() & y.isnan())  # infinities are equal, though their difference is NaN
        difference = torch.where(same, 0.0, (x - y).abs())
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    return worst


def equal(what: str, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.dtype == y.dtype, f"{what}: parameter {i} is {short(x.dtype)} and {short(y.dtype)}"
        assert x.shape == y.shape, f"{what}: parameter {i} has shape {tuple(x.shape)} and {tuple(y.shape)}"
        difference = distance([x], [y])
        assert difference == 0, f"{what}: parameter {i} differs by {difference:.3g}, must be equal bit for bit"


def close(what: str, a: Sequence[Tensor], b: Sequence[Tensor], moved: float, limit: float = 1e-11) -> None:
    """`a` is what was tested; `b` is what it must be."""
    figure = distance(a, b) / (moved or 1.0)
    assert figure <= limit, (
        f"{what}: differ by {figure:.3g} of the distance moved ({moved:.3g}), allowed is {limit:.3g}"
    )


def states_of(optimizer: Optimizer) -> list[Tensor]:
    packed = optimizer.state_dict()["state"]
    return [v for i in sorted(packed) for _, v in sorted(packed[i].items()) if isinstance(v, Tensor)]


def saved_and_loaded(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
