"""The class `Check`, and helpers of the checks: class look-up, declared cases, comparison of tensors."""

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
    """A test of one property of an optimizer or scheduler in one case.

    Attributes:
        id: `property[case]`. Unique among the checks of a class; usable as an id in pytest.
        run: the test. It raises an exception if the property does not hold.
    """

    id: str
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> None:
        """Run the test.

        Raises:
            AssertionError: the property does not hold. The message has the property, the case and the values.
        """
        try:
            self.run()
        except AssertionError as error:
            raise AssertionError(f"{self.id}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{self.id}: raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.id


def run_all(checks: Sequence[Check]) -> None:
    """Run all checks.

    Raises:
        AssertionError: some checks failed; the message has one line for each.
    """
    failures = []
    for check in checks:
        try:
            check()
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} of {len(checks)} checks failed:\n" + "\n".join(failures)


def resolve_class(kind: str, what: str | type, base: type) -> tuple[type, frozenset[str]]:
    """Return the class and the capabilities of a registered name or of a class.

    Args:
        kind: `"optimizer"` or `"scheduler"`.
        what: the name or the class.
        base: the class from which the class must derive.

    Raises:
        TypeError: `what` is neither a name nor a subclass of `base`. Errors of `Registry.resolve`.
    """
    if isinstance(what, str):
        return registry.get(kind, what), frozenset(registry.resolve(kind, what).spec.capabilities)
    if not (isinstance(what, type) and issubclass(what, base)):
        raise TypeError(f"expected the name of {'an' if kind[0] in 'aeiou' else 'a'} {kind} or its class, got {what!r}")
    return what, frozenset(getattr(what, "capabilities", ()))


def declared_cases(cls: type) -> tuple[dict[str, Any], ...]:
    """Return the class attribute `cases`; one case without arguments if the class has none."""
    declared: Sequence[Mapping[str, Any]] = getattr(cls, "cases", ())
    return tuple(dict(case) for case in declared) or ({},)


def case_label(case: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in case.items()).replace(" ", "") or "default"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def max_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of two elements; infinite if only one of the two is NaN."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = (t.detach().to_dense() for t in (x, y))
        x, y = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (x, y))
        x, y = x.to(torch.float64), y.to(torch.float64)
        if not bool((x.isnan() == y.isnan()).all()):
            return math.inf
        same = (x == y) | (x.isnan() & y.isnan())  # equal infinities have the difference NaN
        difference = torch.where(same, 0.0, (x - y).abs())
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    return worst


def assert_equal(what: str, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Assert that two lists of tensors have equal dtypes, shapes and values. NaN equals NaN."""
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.dtype == y.dtype, f"{what}: parameter {i} is {dtype_name(x.dtype)} and {dtype_name(y.dtype)}"
        assert x.shape == y.shape, f"{what}: parameter {i} has shape {tuple(x.shape)} and {tuple(y.shape)}"
        difference = max_difference([x], [y])
        assert difference == 0, f"{what}: parameter {i} differs by {difference:.3g}, must be equal bit for bit"


def assert_close(
    what: str, actual: Sequence[Tensor], expected: Sequence[Tensor], moved: float, limit: float = 1e-11
) -> None:
    """Assert that tensors are close to the expected ones.

    Args:
        what: the beginning of the message.
        actual: the tensors under test.
        expected: the tensors to compare with.
        moved: the distance that the parameters moved.
        limit: the allowed difference as a fraction of `moved`.
    """
    difference = max_difference(actual, expected) / (moved or 1.0)
    assert difference <= limit, (
        f"{what}: differ by {difference:.3g} of the distance moved ({moved:.3g}), allowed is {limit:.3g}"
    )


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    packed = optimizer.state_dict()["state"]
    return [v for i in sorted(packed) for _, v in sorted(packed[i].items()) if isinstance(v, Tensor)]


def save_and_load(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
