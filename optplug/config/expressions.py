"""Functions of the epoch in a configuration: an arithmetic expression, or the name of a registered function."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    Loc,
    OptplugError,
    UnknownNameError,
    did_you_mean,
    listing,
    one_line,
)
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable_arguments, function_arguments

CONSTANTS = {"e": math.e, "pi": math.pi}
NAMES = ("epoch", *CONSTANTS)
"""The names that an expression can use as numbers."""

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
"""The functions that an expression can call, each with its minimum and maximum number of arguments."""

MAX_EXPRESSION_LENGTH = 500
"""Maximum number of characters of an expression.

The limit bounds the nesting depth, and so the cost of parsing and the depth of the recursion in the evaluation.
"""


def _power(a: float, b: float) -> float:
    result: Any = a**b
    if isinstance(result, complex):
        raise ValueError(f"{a:g} ** {b:g} is complex")
    return float(result)


OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ALLOWED_NODES = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Load, ast.And, ast.Or, *OPERATORS)

ALLOWED_SYNTAX = (
    f"an expression can use numbers, {listing(NAMES)}, + - * / // % **, comparisons, and, or, not, a if b else c, "
    f"and the functions {listing(FUNCTIONS)}"
)


class Expression:
    """An arithmetic expression in `epoch`, as a function.

    Its only attribute is its text. A scheduler saves the text in checkpoints.

    Args:
        text: the expression, for example `"0.95 ** epoch"`. See `ALLOWED_SYNTAX` for what it can use.

    Raises:
        ConfigError: the text is not an expression, or its value at epoch 0 is not finite. A call raises the same error
            where the value at the given epoch is not finite.
        ConfigTypeError: `text` is not a string.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ConfigTypeError(f"an expression must be text, got {text!r} ({type(text).__name__})")
        self.text = text.strip()
        self(0)

    def __call__(self, epoch: float) -> float:
        """The value at an epoch, or at a step for a schedule that counts steps."""
        tree = _parse(self.text)
        try:
            value = _evaluate(tree, {**CONSTANTS, "epoch": float(epoch)})
        except (ArithmeticError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"expression {_quoted(self.text)} has no value at epoch {epoch}: {one_line(error)}"
            ) from None
        if not math.isfinite(value):
            raise ConfigError(f"expression {_quoted(self.text)} is {value} at epoch {epoch}; it must be finite")
        return value

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> ast.expr:
    """The syntax tree of an expression. Every node is checked, also in branches that are never evaluated."""
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise ConfigError(
            f"expression {_quoted(text)} has {len(text)} characters, at most {MAX_EXPRESSION_LENGTH} are allowed; "
            "register a function in a plugin instead"
        )
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise ConfigError(f"{_quoted(text)} is not a valid expression ({reason}); {ALLOWED_SYNTAX}") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        problem = _error_in(node, is_called=id(node) in called)
        if problem:
            raise ConfigError(f"expression {_quoted(text)}: {problem}")
    return tree


def _error_in(node: ast.AST, *, is_called: bool) -> str:
    """The error message for one node of a syntax tree; empty if the node is allowed."""
    if isinstance(node, ast.Name):
        kind, known = ("function", FUNCTIONS) if is_called else ("name", NAMES)
        if node.id in known:
            return ""
        if node.id in FUNCTIONS:
            return f"{node.id} is a function: write {node.id}(epoch)"
        hint = did_you_mean(node.id, known) or f"; the {kind}s are {listing(known)}"
        return f"there is no {kind} {node.id!r}{hint}"
    if isinstance(node, ast.Constant):
        return "" if type(node.value) in (int, float) else f"{_quoted(str(node.value))} is not a number"
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):
            return f"only these functions can be called: {listing(FUNCTIONS)}"
        if node.keywords:
            return f"{node.func.id} takes no arguments by name"
        _, least, most = FUNCTIONS.get(node.func.id, (None, 0, math.inf))
        if not least <= len(node.args) <= most:
            span = least if least == most else f"{least} to {most}" if most < math.inf else f"{least} or more"
            return f"{node.func.id} takes {span} argument{'' if most == 1 else 's'}, got {len(node.args)}"
        return ""
    if isinstance(node, ast.BitXor):
        return "a power is written **, not ^"
    if isinstance(node, ast.Lambda):
        return "a lambda is not allowed; write only its body, for example 0.95 ** epoch"
    return "" if isinstance(node, ALLOWED_NODES) else f"{type(node).__name__} is not allowed; {ALLOWED_SYNTAX}"


def _evaluate(node: ast.expr, names: Mapping[str, float]) -> float:
    """The value of a syntax tree that `_parse` has checked: Python's, with every literal and comparison as a float.

    Python integers have no size limit, so 9**9**9 on integers would not terminate. On floats it overflows.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp():
            return OPERATORS[type(node.op)](_evaluate(node.left, names), _evaluate(node.right, names))
        case ast.UnaryOp():
            return float(OPERATORS[type(node.op)](_evaluate(node.operand, names)))
        case ast.Call(func=ast.Name(id=name)):
            return float(FUNCTIONS[name][0](*[_evaluate(argument, names) for argument in node.args]))
        case ast.IfExp():
            return _evaluate(node.body if _evaluate(node.test, names) else node.orelse, names)
        case ast.BoolOp():
            decisive = isinstance(node.op, ast.Or)
            for operand in node.values:
                value = _evaluate(operand, names)
                if bool(value) is decisive:
                    break
            return value
        case ast.Compare():
            left = _evaluate(node.left, names)
            for comparison, operand in zip(node.ops, node.comparators, strict=True):
                right = _evaluate(operand, names)
                if not OPERATORS[type(comparison)](left, right):
                    return 0.0
                left = right
            return 1.0
    raise AssertionError(f"{type(node).__name__} is evaluated but not allowed")


def _quoted(text: str) -> str:
    """The text in quotes, cut after 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


# Text that may be the name of a registered function: hyphens are allowed, and a plugin's name before a colon.
_NAME = re.compile(r"([\w.-]+:)?[A-Za-z][\w-]*")


def resolve_function(value: Any) -> Callable[[int], float]:
    """The function of the epoch that a configuration value specifies.

    Args:
        value: the name of a registered function (any case, `-` or `_`, or `plugin:name`), an expression in `epoch`, a
            number, or a function.

    Raises:
        UnknownNameError: no function of this name is registered, and no expression can use the name.
        AmbiguousNameError: several plugins register a function of this name.
        PluginError: the registered function cannot be loaded.
        ConfigError: the text is not a valid expression; see `Expression`.
        ConfigTypeError: the value has another type.
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
    is_arithmetic = set(words) <= set(NAMES)  # epoch-1 is an expression, even if a function of this name is registered
    if len(text) <= MAX_EXPRESSION_LENGTH and _NAME.fullmatch(text) and not is_arithmetic:
        try:
            registered: Callable[[int], float] = registry.get("function", text)
        except UnknownNameError as error:
            if text not in FUNCTIONS and (text.isidentifier() or ":" in text):
                in_expressions = [*NAMES, *FUNCTIONS]
                known = [*in_expressions, *registry.names("function")]
                message = str(error) if str(error).endswith((".", "?", ")")) else f"{error}."
                hint = "." if "did you mean" in message else did_you_mean(text, known)
                raise UnknownNameError(f"{message} An expression can use {listing(in_expressions)}{hint}") from None
        else:
            return registered
    return Expression(text)


def resolve_function_arguments(registration: Registration, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's arguments, with functions in place of expressions, names and numbers.

    Args:
        registration: the scheduler. Its arguments that are functions: see `function_arguments`.
        arguments: the arguments by name. A list of values becomes a list of functions.

    Raises:
        OptplugError: as `resolve_function`, with the name of the argument as location; several errors are raised
            together.
    """
    result, collector = dict(arguments), ErrorCollector()
    parameters = configurable_arguments(registration)
    for name in function_arguments(registration):
        value = arguments.get(name)
        if value is None and name in parameters and parameters[name].default is None:
            continue
        if isinstance(value, (list, tuple)):
            result[name] = [_resolve_item(collector, name, (i,), item) for i, item in enumerate(value)]
        elif name in arguments:
            result[name] = _resolve_item(collector, name, (), value)
    collector.raise_joined()
    return result


def _resolve_item(collector: ErrorCollector, name: str, inside: Loc, value: Any) -> Any:
    """Resolve a function in an argument. An error is collected with the argument and the location in its value."""
    try:
        return resolve_function(value)
    except OptplugError as error:
        error.argument, error.inside = name, inside
        collector.add(error, (name, *inside))
        return None
