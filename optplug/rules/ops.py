"""The operations that an update rule may use besides `+ - * /`, `**` on scalars, `x ** 2`, comparisons and `& | ~`.

Each operation works on Python floats, on tensors and on the symbols of a trace. So a rule can be called on any of
these. Operations on floats follow IEEE 754, as operations on tensors do: `sqrt(-1.0)` is NaN, and `1.0 / 0.0` of a
traced scalar is inf.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from optplug.errors import RuleError, suggest

__all__ = [
    "abs",
    "amax",
    "dot",
    "exp",
    "lerp",
    "log",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "numel",
    "sign",
    "sqrt",
    "sum",
    "where",
]


class SymbolicValue:
    """Base class of values that record operations instead of computing them; see `optplug.rules.graph.Symbol`."""

    __slots__ = ()

    def record(self, op: str, *operands: Any) -> Any:
        raise NotImplementedError

    def reduce(self, op: str, operands: tuple[Any, ...], over: str | None, dim: int | None, name: str) -> Any:
        raise NotImplementedError

    def count(self, dim: int | None) -> Any:
        raise NotImplementedError

    def call(self, operation: Any, operands: tuple[Any, ...]) -> Any:
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


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return float64, or float32 on devices that lack float64 or compute it slowly."""
    return torch.float64 if x.device.type in ("cpu", "cuda", "meta") else torch.float32


BLOCK_ELEMENTS = 1 << 15
"""The elements that are reduced at a time on the CPU. Torch reduces so many in one thread, and their copy in float64
stays in the cache."""


def _total(reduce: Callable[..., Tensor], combine: Callable[[Tensor], Tensor], *operands: Tensor) -> Tensor:
    """Reduce tensors of one shape to a 0-dim tensor in float64.

    On the CPU the result does not depend on the number of threads, because tensors are reduced in blocks of equal size.

    Args:
        reduce: reduces vectors in float64 to a number.
        combine: reduces a vector with the numbers of all blocks.
        operands: the tensors.
    """
    dtype = _accumulation_dtype(operands[0])
    vectors = [x.flatten() for x in operands]
    if vectors[0].device.type != "cpu" or len(vectors[0]) <= BLOCK_ELEMENTS:
        return reduce(*(x.to(dtype) for x in vectors))
    blocks = zip(*(torch.split(x, BLOCK_ELEMENTS) for x in vectors), strict=True)
    return _total(combine, combine, torch.stack([reduce(*(x.to(dtype) for x in block)) for block in blocks]))


def _amax(x: Tensor) -> Tensor:
    return x.amax() if len(x) else x.new_full((), -math.inf)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x is y and not x.requires_grad:
        return _total(torch.linalg.vector_norm, torch.linalg.vector_norm, x).square()
    return _total(lambda a, b: (a * b).sum(), torch.sum, x, y)


def reduce_along(op: str, dim: int, *operands: Tensor, name: str = "") -> Tensor:
    """Reduce matrices along a dimension, which is kept with size 1. The result has the dtype of the operands."""
    x = operands[0]
    if x.ndim < 2:
        raise RuleError(f"{name or op}(…, dim={dim}) needs a matrix, got a value of shape {tuple(x.shape)}")
    wide = [operand.to(_accumulation_dtype(x)) for operand in operands]
    if op == "amax":
        nonempty = wide[0] if x.shape[dim] else wide[0].sum(dim, keepdim=True) - math.inf
        reduced = nonempty.amax(dim, keepdim=True)
    else:
        reduced = (wide[0] if op == "sum" else wide[0] * wide[1]).sum(dim, keepdim=True)
    return reduced.to(x.dtype)


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "sum": functools.partial(_total, torch.sum, torch.sum),
    "dot": _dot,
    "amax": functools.partial(_total, _amax, _amax),
}
"""The reductions of element-wise values to one number per parameter, by name, as functions of tensors."""

DIMS: dict[int, Literal["row", "column"]] = {-1: "row", -2: "column"}
"""The values of `dim`, and the kind of value that the reduction of a matrix along this dimension gives."""


def count_values(shape: Sequence[int], what: int | str | None) -> int:
    """Return the size of a parameter in a dimension, or its number of rows, columns, matrices or elements.

    Args:
        shape: the shape of the parameter.
        what: a dimension; `"row"`, `"column"` or `"matrix"`; or None for elements.
    """
    if isinstance(what, int):
        return shape[what]
    reduced = {"row": (-1,), "column": (-2,), "matrix": (-2, -1)}.get(what or "", ())
    return math.prod(size for d, size in enumerate(shape, -len(shape)) if d not in reduced)


SCOPES = ("group", "optimizer")
"""The values of `over`: all parameters of a group, or of the optimizer."""

CombineFunction = Callable[[str, str, Tensor], Tensor]
"""Returns a reduction over all parameters: of the operation, the scope, and the value of one parameter."""

combine_shared: ContextVar[CombineFunction | None] = ContextVar("combine_shared", default=None)
"""How a rule that runs on tensors reduces over all parameters. None: the parameter is the only one."""


def _apply(op: str, on_tensors: Callable[..., Tensor], *operands: Any) -> Any:
    for operand in operands:
        if isinstance(operand, SymbolicValue):
            return operand.record(op, *operands)
    for operand in operands:
        if isinstance(operand, Tensor):
            return on_tensors(*operands)
    return FLOAT_OPERATIONS[op](*operands)


def fit(x: float, dtype: torch.dtype) -> float:
    """Return infinity for a number that is too large for a dtype, where torch raises an error."""
    return math.copysign(math.inf, x) if math.fabs(x) > torch.finfo(dtype).max else x


def _with_tensor_operands(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Convert a number among the operands to a tensor: torch's maximum and minimum take tensors only."""

    def on_tensors(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        as_tensor = (x if isinstance(x, Tensor) else torch.full_like(like, fit(x, like.dtype)) for x in (a, b))
        return compute(*as_tensor)

    return on_tensors


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        selected, other = FLOAT_OPERATIONS["where"](condition, (a, b), (b, a))
        # The result is element-wise for either value of the condition.
        return selected if isinstance(selected, Tensor) else torch.full_like(other, selected)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):  # numbers per parameter; torch's default is float32
        a = torch.as_tensor(a, dtype=_accumulation_dtype(condition), device=condition.device)
    return torch.where(condition, a, b)


def _lerp_tensors(a: Any, b: Any, weight: Any) -> Any:
    if isinstance(weight, Tensor):  # autograd may record the weight: do not branch on its value
        return a + weight * (b - a)
    if weight == 1:
        return b
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype:
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


def _reduce(op: str, operands: tuple[Any, ...], over: str | None, dim: int | None, name: str = "") -> Any:
    name = name or op  # in messages
    if over is not None and over not in SCOPES:
        raise RuleError(f"{name} got over={over!r}{suggest(str(over), SCOPES, intro='it may be')}")
    if dim is not None and (over is not None or dim not in DIMS):
        problem = "over and dim: it takes one of them" if over is not None else f"dim={dim!r}; it may be -1 or -2"
        raise RuleError(f"{name} got {problem}")
    for x in operands:
        if isinstance(x, SymbolicValue):
            return x.reduce(op, operands, over, dim, name)
    if not all(isinstance(x, Tensor) for x in operands):
        wrong = next(x for x in operands if not isinstance(x, Tensor))
        raise RuleError(f"{name} needs element-wise values, got {wrong!r}")
    if len({x.shape for x in operands}) > 1:
        raise RuleError(f"{name} needs two values of one kind, for example both element-wise")
    if dim is not None:
        return reduce_along(op, dim, *operands, name=name)
    value, combine = REDUCTIONS[op](*operands), combine_shared.get()
    return value if over is None or combine is None else combine(op, over, value)


def sum(x: Any, *, over: str | None = None, dim: int | None = None) -> Any:
    """The sum of an element-wise value: one number for each parameter. On the CPU it is computed in float64.

    Args:
        x: the value.
        over: `"group"` or `"optimizer"` for one number for all parameters of the group or of the optimizer that have a
            gradient. Default: None, one number for each parameter.
        dim: -1 for one number for each row of a matrix, -2 for one for each column. A parameter with more than two
            dimensions is a stack of matrices. The result has the dtype of the value, and size 1 in this dimension.
    """
    return _reduce("sum", (x,), over, dim)


def dot(x: Any, y: Any, *, over: str | None = None, dim: int | None = None) -> Any:
    """The inner product of two element-wise values. `over` and `dim` as in `sum`."""
    return _reduce("dot", (x, y), over, dim)


def norm(x: Any, *, over: str | None = None, dim: int | None = None) -> Any:
    """The Euclidean norm of an element-wise value. `over` and `dim` as in `sum`."""
    if over is None and dim is None and isinstance(x, Tensor):  # its derivative at 0 is 0; that of sqrt is infinite
        return _total(torch.linalg.vector_norm, torch.linalg.vector_norm, x)
    return sqrt(_reduce("dot", (x, x), over, dim, "norm"))


def amax(x: Any, *, over: str | None = None, dim: int | None = None) -> Any:
    """The largest element of an element-wise value; NaN if one element is NaN. `over` and `dim` as in `sum`."""
    return _reduce("amax", (x,), over, dim)


def mean(x: Any, *, dim: int | None = None) -> Any:
    """The mean of an element-wise value. `dim` as in `sum`."""
    return _reduce("sum", (x,), None, dim, "mean") / numel(x, dim=dim)


def numel(x: Any, *, dim: int | None = None) -> Any:
    """The number of elements of a value, or its size in dimension `dim`: -1, -2, or 0 for the first dimension.

    A complex element counts as two.
    """
    if dim is not None and dim not in (*DIMS, 0):
        raise RuleError(f"numel got dim={dim!r}; it may be -1, -2 or 0")
    if isinstance(x, SymbolicValue):
        return x.count(dim)
    if not isinstance(x, Tensor):
        raise RuleError(f"numel needs an element-wise value, got {x!r}")
    count = x.numel() if dim is None else x.shape[dim]
    return torch.full((), count, dtype=_accumulation_dtype(x), device=x.device)


def compute_tensor_scalars(op: str, *operands: Any) -> Any:
    """Apply an operation to vectors with one number per parameter, and numbers. The result is a vector.

    Args:
        op: a key of `FLOAT_OPERATIONS`, except `lerp`, which graphs contain for element-wise values only.
        operands: vectors in float64, or of bool for conditions that depend on elements, and numbers.
    """
    return _VECTOR_OPERATIONS[op](*operands)


def _logical(combine: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def on_vectors(*operands: Any) -> Tensor:
        like = next(x for x in operands if isinstance(x, Tensor))
        return combine(*(x if isinstance(x, Tensor) else torch.full_like(like, bool(x)) for x in operands))

    return on_vectors


def _where_vectors(condition: Any, a: Any, b: Any) -> Any:
    # A condition that depends on scalars only is given as numbers.
    return where(condition.bool() if isinstance(condition, Tensor) else condition, a, b)


_VECTOR_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "sqrt": sqrt,
    "exp": exp,
    "log": log,
    "abs": abs,
    "sign": sign,
    "maximum": maximum,
    "minimum": minimum,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": _logical(torch.logical_and),
    "or": _logical(torch.logical_or),
    "not": _logical(torch.logical_not),
    "where": _where_vectors,
}
