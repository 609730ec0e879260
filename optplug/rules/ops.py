"""The operations that an update rule may use besides `+ - * /`, `**` on scalars, `x ** 2`, comparisons and `& | ~`.

Each operation works on Python floats, on tensors and on the symbols of a trace. So a rule can be called on any of
these. Operations on floats follow IEEE 754, as operations on tensors do: `sqrt(-1.0)` is NaN, and `1.0 / 0.0` of a
traced scalar is inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optplug.errors import RuleError

__all__ = ["abs", "exp", "lerp", "log", "maximum", "minimum", "sign", "sqrt", "where"]


class SymbolicValue:
    """Base class of values that record operations instead of computing them; see `optplug.rules.graph.Symbol`."""

    __slots__ = ()

    def record(self, op: str, *operands: Any) -> Any:
        raise NotImplementedError


def _with_ieee_values(compute: Callable[..., float]) -> Callable[..., float]:
    """Return inf on overflow and NaN outside the domain, as IEEE 754 does, where Python raises.

    A branch that `where` does not select is evaluated too, and must not raise.
    """

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
        if a:  # a negative base and a fractional exponent
            return math.nan
    except OverflowError:
        pass
    return math.copysign(math.inf, a) if b % 2 == 1 else math.inf


def _lerp(a: float, b: float, weight: float) -> float:
    if weight == 1:  # exact, even where a is infinite or NaN
        return b
    return a + weight * (b - a) if -0.5 < weight < 0.5 else b - (b - a) * (1 - weight)


def _sign(a: float) -> float:
    return float((a > 0) - (a < 0))


def _select(condition: Any, a: Any, b: Any) -> Any:
    if type(condition) is int:  # `~True` is -2, which is truthy
        raise RuleError("where got an integer as its condition; ~ is for element-wise conditions only")
    return a if condition else b


def _max(a: float, b: float) -> float:
    return math.nan if a != a or b != b else max(a, b)


def _min(a: float, b: float) -> float:
    return math.nan if a != a or b != b else min(a, b)


FLOAT_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "neg": lambda a: -a,
    "pow": _pow,
    "sqrt": _with_ieee_values(math.sqrt),
    "exp": _with_ieee_values(math.exp),
    "log": _with_ieee_values(lambda a: math.log(a) if a else -math.inf),
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
    "where": _select,
}
"""All operations, by name, as functions of floats."""

PREDICATES = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})
"""The operations whose result is a condition."""


def _apply(op: str, on_tensors: Callable[..., Tensor], *operands: Any) -> Any:
    for operand in operands:
        if isinstance(operand, SymbolicValue):
            return operand.record(op, *operands)
    for operand in operands:
        if isinstance(operand, Tensor):
            return on_tensors(*operands)
    return FLOAT_OPERATIONS[op](*operands)


def _with_tensor_operands(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Convert a number among the operands to a tensor: torch's maximum and minimum take tensors only."""

    def on_tensors(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        as_tensor = (x if isinstance(x, Tensor) else torch.full_like(like, x) for x in (a, b))
        return compute(*as_tensor)

    return on_tensors


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        selected, other = FLOAT_OPERATIONS["where"](condition, (a, b), (b, a))
        # The result is element-wise for either value of the condition.
        return selected if isinstance(selected, Tensor) else torch.full_like(other, selected)
    return torch.where(condition, a, b)


def _lerp_tensors(a: Any, b: Any, weight: Any) -> Any:
    if isinstance(weight, Tensor):  # autograd may record the weight: do not branch on its value
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
    """Sign: -1, 0 or 1; 0 for NaN, as in torch on CPU."""
    return _apply("sign", torch.sign, x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two values; NaN if either is NaN."""
    return _apply("maximum", _with_tensor_operands(torch.maximum), a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two values; NaN if either is NaN."""
    return _apply("minimum", _with_tensor_operands(torch.minimum), a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`. For an element-wise condition `a` or `b` must be element-wise."""
    return _apply("where", _where, condition, a, b)


def lerp(a: Any, b: Any, weight: Any) -> Any:
    """Linear interpolation `a + weight * (b - a)` with a scalar weight.

    A weight of exactly 1, given as a number, returns `b` exactly, even where `a` is infinite or NaN.
    """
    return _apply("lerp", _lerp_tensors, a, b, weight)
