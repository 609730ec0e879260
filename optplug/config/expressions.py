"""Functions of the epoch in a configuration: arithmetic as text, or the name of a function of a plugin."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval  # type: ignore[import-untyped]

from optplug.errors import ConfigError, ConfigTypeError, OptplugError, UnknownNameError, describe, did_you_mean, listing
from optplug.registry import registry

CONSTANTS = {"e": math.e, "pi": math.pi}
NAMES = ("epoch", *CONSTANTS)
FUNCTIONS: dict[str, tuple[Callable[..., float], int, float]] = {
    "abs": (abs, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "cos": (math.cos, 1, 1),
    "exp": (math.exp, 1, 1),
    "floor": (math.floor, 1, 1),
    "log": (math.log, 1, 2),
    "max": (max, 2, math.inf),
    "min": (min, 2, math.inf),
    "sin": (math.sin, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
}
"""What an expression may call, with how many arguments at least and at most."""

LONGEST = 500
"""Characters of an expression; more is no formula, and deep nesting costs the parser dearly."""


def _power(a: float, b: float) -> float:
    result: Any = a**b
    if isinstance(result, complex):
        raise ValueError(f"{a:g} ** {b:g} is complex")
    return float(result)


def _of_floats(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation on floats: whole numbers of Python grow without end, and 9**9**9 would never come back."""
    return lambda *operands: operation(*map(float, operands))


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _of_floats(operator.add),
    ast.Sub: _of_floats(operator.sub),
    ast.Mult: _of_floats(operator.mul),
    ast.Div: _of_floats(operator.truediv),
    ast.FloorDiv: _of_floats(operator.floordiv),
    ast.Mod: _of_floats(operator.mod),
    ast.Pow: _of_floats(_power),
    ast.UAdd: _of_floats(operator.pos),
    ast.USub: _of_floats(operator.neg),
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
SYNTAX = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Load, ast.And, ast.Or, *OPERATORS)

ALLOWED = (
    f"an expression is made of numbers, {listing(NAMES)}, + - * / // % **, comparisons, and, or, not, a if b else c, "
    f"and the functions {listing(FUNCTIONS)}"
)


class Expression:
    """Arithmetic in `epoch`, as a function.

    Args:
        text: such as `"0.95 ** epoch"`; see `ALLOWED`.

    Raises:
        ConfigError: it is none, or has no finite value; the latter for epoch 0 at once, for others when called.
        ConfigTypeError: no text.

    It holds its text and nothing else, which is what a scheduler saves of it.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ConfigTypeError(f"an expression must be text, got {text!r} ({type(text).__name__})")
        self.text = text.strip()
        self(0)

    def __call__(self, epoch: float) -> float:
        """The value at an epoch (or at a step, where that is what is counted)."""
        evaluator = SimpleEval(OPERATORS, _CALLED, {**CONSTANTS, "epoch": float(epoch)})
        tree = _parsed(self.text)
        try:
            value = float(evaluator.eval(self.text, tree))
        except (ArithmeticError, ValueError, RecursionError, InvalidExpression) as error:
            raise ConfigError(
                f"expression {_shown(self.text)} has no value at epoch {epoch}: {describe(error)}"
            ) from None
        if not math.isfinite(value):
            raise ConfigError(f"expression {_shown(self.text)} is {value} at epoch {epoch}")
        return value

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


_CALLED = {name: function for name, (function, _, _) in FUNCTIONS.items()}


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> ast.expr:
    """The tree of an expression, every node of which is allowed, whether or not it is ever reached."""
    if len(text) > LONGEST:
        raise ConfigError(
            f"expression {_shown(text)} has {len(text)} characters, {LONGEST} are allowed: "
            "make it a function of a plugin"
        )
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        says = error.msg if isinstance(error, SyntaxError) else describe(error)
        raise ConfigError(f"{_shown(text)} is no expression ({says}): {ALLOWED}") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        complaint = _complaint(node, is_called=id(node) in called)
        if complaint:
            raise ConfigError(f"expression {_shown(text)}: {complaint}")
    return tree


def _complaint(node: ast.AST, *, is_called: bool) -> str:
    """What is wrong with one node of a tree, or nothing."""
    if isinstance(node, ast.Name):
        kind, known = ("function", FUNCTIONS) if is_called else ("name", NAMES)
        if node.id in known:
            return ""
        if node.id in FUNCTIONS:
            return f"{node.id} is a function: write {node.id}(epoch)"
        return f"there is no {kind} {node.id!r}; there are {listing(known)}{did_you_mean(node.id, known)}"
    if isinstance(node, ast.Constant):
        return "" if type(node.value) in (int, float) else f"{_shown(str(node.value))} is no number"
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):
            return f"only functions can be called: {listing(FUNCTIONS)}"
        if node.keywords:
            return f"{node.func.id} takes no arguments by name"
        _, least, most = FUNCTIONS.get(node.func.id, (None, 0, math.inf))
        if not least <= len(node.args) <= most:
            span = least if least == most else f"{least} to {most}" if most < math.inf else f"{least} or more"
            return f"{node.func.id} of {len(node.args)} numbers; it takes {span}"
        return ""
    if isinstance(node, ast.BitXor):
        return "a power is written **, not ^"
    if isinstance(node, ast.Lambda):
        return "write what it returns alone, such as 0.95 ** epoch"
    return "" if isinstance(node, SYNTAX) else f"{type(node).__name__} is not allowed; {ALLOWED}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


# What may be a name: hyphens as everywhere, and `plugin:name`.
_NAME = re.compile(r"([\w.-]+:)?[A-Za-z][\w-]*")


def as_function(value: Any) -> Callable[[int], float]:
    """The function that a configuration's value stands for.

    Args:
        value: the name of a registered function (any case, `-` or `_`, or `plugin:name`), an expression in `epoch`, a
            number, or a function already.

    Raises:
        UnknownNameError: a name that neither plugins nor expressions know. AmbiguousNameError, PluginError: the name.
        ConfigError: no expression; see `Expression`. ConfigTypeError: nothing of the kind.
    """
    if callable(value):
        function: Callable[[int], float] = value
        return function
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"a function of the epoch must have finite values, got {value}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Expression(repr(float(value) if isinstance(value, float) else value))
    if not isinstance(value, str):
        raise ConfigTypeError(
            "a function of the epoch must be an expression such as '0.95 ** epoch', the name of a registered function, "
            f"a number or a function, got {value!r} ({type(value).__name__})"
        )
    text = value.strip()
    words = re.findall(r"\b[^\W\d]\w*", text)
    is_arithmetic = set(words) <= set(NAMES)  # epoch-1 is, whatever is registered
    if len(text) <= LONGEST and _NAME.fullmatch(text) and not is_arithmetic:
        try:
            registered: Callable[[int], float] = registry.get("function", text)
        except UnknownNameError as error:
            if text not in FUNCTIONS and (text.isidentifier() or ":" in text):
                known = [*NAMES, *FUNCTIONS, *registry.names("function")]
                raise UnknownNameError(
                    f"{error} In an expression there are {listing([*NAMES, *FUNCTIONS])}"
                    + ("." if "did you mean" in str(error) else did_you_mean(text, known))
                ) from None
        else:
            return registered
    return Expression(text)


def resolved(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a scheduler, with functions for what its class declares to be functions (`functions`).

    Raises:
        As `as_function`, with the name of the argument.
    """
    declared = getattr(cls, "functions", ())
    result = dict(arguments)
    for name in declared if isinstance(declared, (tuple, list)) else ():
        value = arguments.get(name)
        try:
            if isinstance(value, (list, tuple)):
                result[name] = [as_function(v) for v in value]
            elif name in arguments:
                result[name] = as_function(value)
        except OptplugError as error:
            raise type(error)(f"{name}: {error}") from None
    return result
