"""The class `Check`, and helpers of the checks: class look-up, declared cases, comparison of tensors."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.errors import ConfigTypeError, ConformanceError
from optplug.registry import KINDS, Registration, registry
from optplug.registry.plugin_registry import unregistered


@dataclass(frozen=True)
class Check:
    """A test of one promise of an optimizer or scheduler in one case.

    Attributes:
        id: `promise[case]`. Unique among the checks of a class; usable as an id in pytest.
        run: the test. It raises an exception if the promise is broken.
        meaning: the promise in one sentence.
        remedy: what the author of the class can change if the test does not say it.
    """

    id: str
    run: Callable[[], None] = field(repr=False)
    meaning: str = field(default="", repr=False)
    remedy: str = field(default="", repr=False)

    @property
    def promise(self) -> str:
        """The name of the promise."""
        return self.id.partition("[")[0]

    def __call__(self) -> None:
        """Run the test.

        Raises:
            ConformanceError: an AssertionError: the promise is broken. The message has the promise, the case and the
                values. Its attributes have whose fault it is, and the remedy.
        """
        if broken := self.failure():
            raise ConformanceError(f"{self.id}: {broken}", blame=broken.blame, remedy=broken.remedy) from broken

    def failure(self) -> ConformanceError | None:
        """Run the test, and return the error without the id; None if the promise is kept."""
        try:
            self.run()
        except ConformanceError as error:
            error.remedy = error.remedy or self.remedy
            return error
        except Exception as error:
            text = str(error) if isinstance(error, AssertionError) else f"raised {type(error).__name__}: {error}"
            broken = ConformanceError(text, remedy=self.remedy)
            broken.__cause__ = error
            return broken
        return None

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


def registration_of(kind: str, what: Any, base: type) -> Registration:
    """Return the registration of a registered name, of a spec, of a class, or of a function that returns an optimizer.

    Args:
        kind: `"optimizer"` or `"scheduler"`.
        what: the name, the spec or the class.
        base: the class from which the class must derive.

    Raises:
        ConfigTypeError: `what` is none of these. Errors of `Registry.resolve`.
    """
    if isinstance(what, str):
        return registry.resolve(kind, what)
    is_class = isinstance(what, type) and issubclass(what, base)
    if isinstance(what, KINDS[kind]) or is_class or (kind == "optimizer" and inspect.isfunction(what)):
        return unregistered(kind, what)
    article = "an" if kind[0] in "aeiou" else "a"
    raise ConfigTypeError(f"expected the name of {article} {kind}, its class or its spec, got {what!r}")


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
        limit: the allowed difference of float64 numbers as a fraction of `moved`. That of float32 numbers is at least
            1e-4, since their rounding errors are larger.
    """
    if any(t.dtype == torch.float32 for t in expected):
        limit = max(limit, 1e-4)
    difference = max_difference(actual, expected) / (moved or 1.0)
    assert difference <= limit, (
        f"{what}: differ by {difference:.3g} of the distance moved ({moved:.3g}), allowed is {limit:.3g}"
    )


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors in the state dict of an optimizer, in an order that does not depend on that of the steps."""
    return list(_tensors_in(optimizer.state_dict()["state"]))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=lambda key: (str(type(key)), key)):
            yield from _tensors_in(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def save_and_load(value: Any, *, weights_only: bool = True) -> Any:
    """Return what is loaded from a file to which a value was saved."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)
