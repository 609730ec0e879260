"""The operations an update rule may use, besides `+ - * /`, `**` on scalars, `x ** 2`, comparisons and `& | ~`.

Each works on Python floats, on tensors and on the symbols of a trace, so a rule can be called on any of them.
On floats they follow IEEE 754 as tensors do: `sqrt(-1.0)` is NaN, `1.0 / 0.0` of a traced scalar is inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optplug.errors import RuleError

__all__ = ["abs", "exp", "lerp", "log", "maximum", "minimum", "sign", "sqrt", "where"]


class Symbolic:
    """Base of values that record operations instead of computing them (`optplug.rules.graph.Symbol`)."""

    __slots__ = ()

    def record(self, op: str, *operands: Any) -> Any:
        raise NotImplementedError


def _ieee(compute: Callable[..., float]) -> Callable[..., float]:
    """Python raises where IEEE 754 has a value; a branch that `where` does not take must not raise."""

    def guarded(*args: float) -> float:
        try:
            return compute(*args)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return guarded


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _pow(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except ValueError:
        if a:  # a negative number to a fraction
            return math.nan
    except OverflowError:
        pass
    return math.copysign(math.inf, a) if b % 2 == 1 else math.inf


def _lerp(a: float, b: float, weight: float) -> float:
    if weight == 1:  # whatever a is
        return b
    return a + weight * (b - a) if -0.5 < weight < 0.5 else b - (b - a) * (1 - weight)


def _sign(a: float) -> float:
    return float((a > 0) - (a < 0))


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if type(condition) is int:  # `~True` is -2, which counts as true
        raise RuleError("where got a whole number as its condition; ~ is for element-wise conditions only")
    return a if condition else b


def _max(a: float, b: float) -> float:
    return math.nan if a != a or b != b else max(a, b)


def _min(a: float, b: float) -> float:
    return math.nan if a != a or b != b else min(a, b)


ON_FLOATS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "neg": lambda a: -a,
    "pow": _pow,
    "sqrt": _ieee(math.sqrt),
    "exp": _ieee(math.exp),
    "log": _ieee(lambda a: math.log(a) if a else -math.inf),
    "abs": lambda a: -a if a < 0 else a + 0.0,
    "sign": _sign,
    "maximum": _max,
    "minimum": _min,
    "lerp": _lerp,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "not": lambda a: not a,
    "where": _choose,
}
"""Every operation on floats; also the complete list of operations."""

PREDICATES = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})


def _apply(op: str, on_tensors: Callable[..., Tensor], *operands: Any) -> Any:
    for operand in operands:
        if isinstance(operand, Symbolic):
            return operand.record(op, *operands)
    for operand in operands:
        if isinstance(operand, Tensor):
            return on_tensors(*operands)
    return ON_FLOATS[op](*operands)


def _pairwise(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Torch's maximum and minimum take two tensors."""

    def on_tensors(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        as_tensor = (x if isinstance(x, Tensor) else torch.full_like(like, x) for x in (a, b))
        return compute(*as_tensor)

    return on_tensors


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        chosen, other = ON_FLOATS["where"](condition, (a, b), (b, a))
        # What is element-wise in one case is so in both.
        return chosen if isinstance(chosen, Tensor) else torch.full_like(other, chosen)
    return torch.where(condition, a, b)


def _lerp_tensors(a: Any, b: Any, weight: Any) -> Any:
    if isinstance(weight, Tensor):  # which autograd may be following: no choice by its value
        return a + weight * (b - a)
    if weight == 1:
        return b
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.lerp(a, b, weight)
    return a + weight * (b - a)


def sqrt(x: Any) -> Any:
    """Square root."""
    return _apply("sqrt", torch.sqrt, x)


def exp(x: Any) -> Any:
    """Exponential."""
    return _apply("exp", torch.exp, x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _apply("log", torch.log, x)


def abs(x: Any) -> Any:
    """Absolute value."""
    return _apply("abs", torch.abs, x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; 0 for NaN, as torch on CPU."""
    return _apply("sign", torch.sign, x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; NaN if either is."""
    return _apply("maximum", _pairwise(torch.maximum), a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; NaN if either is."""
    return _apply("minimum", _pairwise(torch.minimum), a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; for an element-wise condition one of the two must be element-wise."""
    return _apply("where", _where, condition, a, b)


def lerp(a: Any, b: Any, weight: Any) -> Any:
    """`a + weight * (b - a)`, for a scalar weight, computed so that a number 1 gives `b` exactly, whatever `a` is."""
    return _apply("lerp", _lerp_tensors, a, b, weight)
