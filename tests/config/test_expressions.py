"""Functions of the epoch in configurations: expressions, and functions that plugins register."""

from __future__ import annotations

import _ast
import ast
import copy
import functools
import io
import math
import pickle
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug import FunctionSpec, OptimizerSpec
from optplug.config.build import parse_and_check
from optplug.config.expressions import FUNCTIONS, MAX_EXPRESSION_LENGTH, NAMES, Expression, _error_in, resolve_function
from optplug.errors import (
    AmbiguousNameError,
    ConfigError,
    ConfigTypeError,
    HyperparameterError,
    PluginError,
    SpecError,
    UnknownNameError,
)
from optplug.registry import Plugin, Registration, Registry, registry


def sgd(*lrs, **options):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **options} for lr in lrs], lr=1)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def step_and_record_lrs(scheduler, steps):
    seen = [lrs_of(scheduler.optimizer)]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        seen.append(lrs_of(scheduler.optimizer))
    return seen


def save_and_load(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def configure(scheduler, **options):
    module = nn.Linear(2, 1)
    made = optplug.configure_optimizers(module, {"name": "sgd", "lr": 0.1}, scheduler, **options)
    return made["lr_scheduler"]["scheduler"]


def decaying(t):
    return 0.97**t


class DecayFunction:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, t):
        return self.factor**t

    def method(self, t):
        return self.factor**t


# ------------------------------------------------------------------------------------------------ expressions


PYTHON_NAMES = {"__builtins__": {}, "pi": math.pi, "e": math.e, "abs": abs, "min": min, "max": max}
PYTHON_NAMES |= {name: getattr(math, name) for name in ("sqrt", "exp", "log", "cos", "sin")}
PYTHON_NAMES |= {"floor": lambda x: float(math.floor(x)), "ceil": lambda x: float(math.ceil(x))}

VALID_EXPRESSIONS = [
    "0.95 ** epoch",
    "1e-3",
    "epoch",
    "epoch // 30 + 2.5 * (epoch >= 4)",
    "1 / (1 + epoch % 7)",
    "max(0.1, 1 - epoch / 100, e / 9)",
    "0.5 * (1 + cos(pi * epoch / 50))",
    "1 if epoch < 5 else 0.1 if epoch <= 8 else 0.01",
    "not epoch % 2 == 1",
    "epoch > 3 and 0.5 or 1",
    "1 < epoch < 4 != 3",
    "1 / epoch if epoch else 0.5",  # what Python does not evaluate cannot raise
    "(epoch and 1 / epoch) + (epoch == 0 or 1 / epoch) + (1 < epoch < 1 / (epoch - 1))",
    "-epoch + +3e2",
    "2 ** -epoch",
    "sqrt(abs(min(epoch, 4) - 2)) + exp(-epoch) + log(1 + epoch) + log(8, 2) + sin(epoch) + ceil(epoch / 3)",
    " (epoch\n+ 1) ",
]


@pytest.mark.parametrize("text", VALID_EXPRESSIONS)
def test_expression_has_the_value_of_python(text):
    expression = Expression(text)
    for epoch in [*range(20), 1000]:
        value = expression(epoch)
        assert type(value) is float
        expected = float(eval(text.strip(), {**PYTHON_NAMES, "epoch": epoch}))
        assert value == pytest.approx(expected, rel=1e-14, abs=0)


def test_deepest_expression_has_a_value():
    assert Expression("-" * (MAX_EXPRESSION_LENGTH - 1) + "1")(0) == -1
    assert Expression("1+" * (MAX_EXPRESSION_LENGTH // 2 - 1) + "1")(0) == MAX_EXPRESSION_LENGTH // 2


def test_evaluation_that_exceeds_the_stack_raises_config_error():
    expression = Expression("-" * (MAX_EXPRESSION_LENGTH - 1) + "1")

    def call_at_depth(depth):
        return call_at_depth(depth - 1) if depth else expression(0)

    with pytest.raises(ConfigError, match="has no value at epoch 0: RecursionError"):
        call_at_depth(sys.getrecursionlimit() - MAX_EXPRESSION_LENGTH)


BINARY = ["+", "-", "*", "/", "//", "%", "**", "and", "or"]
COMPARISONS = ["<", "<=", ">", ">=", "==", "!="]
ONE_ARGUMENT = ["abs", "sqrt", "exp", "log", "cos", "sin", "floor", "ceil"]


def compound_expressions(inner):
    """The expressions of one more level, one line for each rule of the grammar."""
    comparison = st.tuples(st.sampled_from(COMPARISONS), inner).map(" ".join)
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(BINARY), inner),
        st.builds("({} {})".format, st.sampled_from(["+", "-", "not"]), inner),
        st.builds("({} {})".format, inner, st.lists(comparison, min_size=1, max_size=3).map(" ".join)),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("{}({})".format, st.sampled_from(ONE_ARGUMENT), inner),
        st.builds("log({}, {})".format, inner, inner),
        st.builds("{}({})".format, st.sampled_from(["min", "max"]), st.lists(inner, min_size=2).map(", ".join)),
    )


ATOMS = st.sampled_from(["epoch", "pi", "e", "0.0", "1.0", "2.0", "0.5", "7.25", "1e3", "1e300"])


@settings(max_examples=1000)
@given(st.recursive(ATOMS, compound_expressions, max_leaves=8), st.integers(0, 50))
def test_random_expression_has_the_value_of_python_or_raises(text, epoch):
    assume(len(text) <= MAX_EXPRESSION_LENGTH)

    def ours():
        try:
            return Expression.__call__(unchecked, epoch)
        except ConfigError:
            return None

    def python():
        try:
            value = eval(text, {**PYTHON_NAMES, "epoch": float(epoch)})
            return value if not isinstance(value, complex) and math.isfinite(value) else None
        except (ArithmeticError, ValueError, TypeError):  # TypeError: of a complex intermediate result
            return None

    unchecked = Expression("1")
    unchecked.text = text
    a, b = ours(), python()
    if "**" in text and a is None:  # Python can get a real number from complex powers
        return
    assert a == b


ACCEPTED_NODES = {
    *(ast.Constant, ast.Name, ast.Load, ast.Call, ast.IfExp),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UnaryOp, ast.UAdd, ast.USub, ast.Not),
    *(ast.BoolOp, ast.And, ast.Or),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
}


def node_of_class(cls):
    node = cls.__new__(cls)
    if cls is ast.Constant:
        node.value = 1.0
    elif cls is ast.Name:
        node.id = "epoch"
    elif cls is ast.Call:
        node.func, node.args, node.keywords = ast.Name("cos"), [ast.Constant(1.0)], []
    return node


def test_exactly_the_listed_nodes_of_python_are_accepted():
    node_classes = {cls for cls in vars(_ast).values() if isinstance(cls, type) and issubclass(cls, ast.AST)}
    assert {ast.Attribute, ast.Await, ast.Store, ast.expr, *ACCEPTED_NODES} < node_classes
    assert {cls for cls in node_classes if not _error_in(node_of_class(cls), is_called=False)} == ACCEPTED_NODES


def test_every_accepted_node_is_evaluated():
    """`test_expression_has_the_value_of_python` covers every node that is accepted."""
    trees = [ast.parse(text.strip(), mode="eval").body for text in VALID_EXPRESSIONS]
    assert {type(node) for tree in trees for node in ast.walk(tree)} == ACCEPTED_NODES


INVALID_EXPRESSIONS = {
    "import": ("__import__('os')", "there is no function '__import__'"),
    "import and call": ("__import__('os').system('true')", "only these functions can be called"),
    "attribute of a number": ("(1).__class__", "Attribute is not allowed"),
    "attribute of a name": ("epoch.__class__.__mro__[1]", "Subscript is not allowed"),
    "attribute of a function": ("abs.__self__", "Attribute is not allowed"),
    "calling a call": ("abs(epoch)(3)", "only these functions can be called"),
    "calling a number": ("3(4)", "only these functions can be called"),
    "calling a name": ("epoch(3)", "there is no function 'epoch'"),
    "eval": ("eval('1')", "there is no function 'eval'"),
    "open": ("open('/etc/passwd')", "there is no function 'open'"),
    "a dunder": ("__builtins__", "there is no name '__builtins__'"),
    "a function as a value": ("max", "max is a function: write max(epoch)"),
    "a function as an argument": ("max(epoch, exp)", "exp is a function: write exp(epoch)"),
    "a lambda": ("lambda epoch: 1", "a lambda is not allowed; write only its body"),
    "a comprehension": ("[x for x in (1, 2)]", "ListComp is not allowed"),
    "a generator": ("max(x for x in y)", "max takes 2 or more arguments, got 1"),
    "a starred argument": ("max(1, *(2, 3))", "Starred is not allowed"),
    "a keyword": ("log(epoch, base=2)", "log takes no arguments by name"),
    "keywords": ("log(**epoch)", "log takes no arguments by name"),
    "an f-string": ("f'{epoch}'", "JoinedStr is not allowed"),
    "text": ("'a' * 3", "'a' is not a number"),
    "a long text": ("'a' * 10**9", "'a' is not a number"),
    "a complex number": ("1j", "'1j' is not a number"),
    "nothing": ("None + 1", "'None' is not a number"),
    "an ellipsis": ("...", "'Ellipsis' is not a number"),
    "a list": ("[1][0]", "Subscript is not allowed"),
    "a dict": ("{}", "Dict is not allowed"),
    "an assignment": ("epoch := 3", "is not a valid expression (invalid syntax)"),
    "a nested assignment": ("(epoch := 3)", "NamedExpr is not allowed"),
    "a statement": ("import os", "is not a valid expression (invalid syntax)"),
    "two statements": ("1; 2", "is not a valid expression (invalid syntax)"),
    "two lines": ("1\n2", "is not a valid expression (invalid syntax)"),
    "a null byte": ("1\0", "is not a valid expression"),
    "nothing at all": ("  ", "is not a valid expression"),
    "a tower of powers": ("9**9**9", "has no value at epoch 0: OverflowError"),
    "a great power": ("9 ** 9999999", "has no value at epoch 0: OverflowError: (34, 'Numerical result out of range')"),
    "a taller tower": ("9**9**9**9**9**9", "has no value at epoch 0: OverflowError"),
    "a tower of truths": ("(1>0)+(1>0)**((1>0)+(1>0))**99999999**9", "OverflowError"),
    "a great integer": ("10**400", "has no value at epoch 0: OverflowError"),
    "a great literal": ("9" * 400, "int too large"),
    "a power of negatives": ("(-8) ** (1 / 3)", "-8 ** 0.333333 is complex"),
    "a shift": ("1 << 10**9", "LShift is not allowed"),
    "a bitwise or": ("1 | 2", "BitOr is not allowed"),
    "a caret": ("0.95 ^ epoch", "a power is written **, not ^"),
    "membership": ("1 in (1, 2)", "In is not allowed"),
    "too long": (
        "1+" * MAX_EXPRESSION_LENGTH + "1",
        f"has {2 * MAX_EXPRESSION_LENGTH + 1} characters, at most {MAX_EXPRESSION_LENGTH} are allowed",
    ),
    "much too long": ("(" * 10**6, "has 1000000 characters"),
    "a very long name": ("x" * 10**6, "has 1000000 characters"),
    "many brackets": ("(" * (MAX_EXPRESSION_LENGTH // 2) + "1", "is not a valid expression"),
    "a branch never taken": ("1 if epoch >= 0 else danger", "there is no name 'danger'"),
    "a call never taken": ("1 if epoch >= 0 else sqrt(1, 2)", "sqrt takes 1 argument, got 2"),
    "a misspelt name": ("0.95 ** epch", "there is no name 'epch'; did you mean 'epoch'?"),
    "a misspelt function": ("sqr(epoch)", "did you mean 'sqrt'?"),
    "too many arguments": ("log(1, 2, 3)", "log takes 1 to 2 arguments, got 3"),
    "infinity": ("1e308 * 10", "is inf at epoch 0"),
    "not a number": ("(1e308 * 10) - (1e308 * 10)", "is nan at epoch 0"),
    "division by zero": ("1 / epoch", "expression '1 / epoch' has no value at epoch 0: ZeroDivisionError"),
    "out of a domain": ("log(epoch)", "has no value at epoch 0: ValueError"),
}


@pytest.mark.parametrize("case", INVALID_EXPRESSIONS)
def test_invalid_expression_is_rejected_quickly(case):
    text, message = INVALID_EXPRESSIONS[case]
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        resolve_function(text)
    assert time.perf_counter() - start < 10  # without the checks the evaluation would take hours
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "epoch", "message"),
    [
        ("1 / (epoch - 3)", 3, "expression '1 / (epoch - 3)' has no value at epoch 3: ZeroDivisionError"),
        ("exp(epoch)", 800, "expression 'exp(epoch)' has no value at epoch 800: OverflowError"),
        (
            "(2 - epoch) ** 0.5",
            3,
            "expression '(2 - epoch) ** 0.5' has no value at epoch 3: ValueError: -1 ** 0.5 is c",
        ),
        ("1e300 * epoch ** 9", 10, "expression '1e300 * epoch ** 9' is inf at epoch 10"),
    ],
)
def test_missing_value_at_an_epoch_raises_at_that_epoch(text, epoch, message):
    expression = Expression(text)
    with pytest.raises(ConfigError) as caught:
        expression(epoch)
    assert str(caught.value).startswith(message)
    scheduler = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda=text)
    scheduler.last_epoch = epoch - 1
    scheduler.optimizer.step()
    with pytest.raises(ConfigError, match="at epoch"):
        scheduler.step()


def test_expression_is_stored_as_text_and_parsed_once(monkeypatch):
    import optplug.config.expressions as module

    module._parse.cache_clear()
    expression = Expression(" 0.5 ** epoch ")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(expression)))
    assert vars(expression) == vars(twin) == {"text": "0.5 ** epoch"}
    assert [expression(t) for t in range(4)] == [twin(t) for t in range(4)] == [1, 0.5, 0.25, 0.125]
    assert module._parse.cache_info().misses == 1
    assert repr(expression) == "Expression('0.5 ** epoch')"


@pytest.mark.parametrize("value", [None, True, {}, [], {"text": "1"}, b"1"])
def test_value_of_wrong_type_is_rejected(value):
    with pytest.raises(ConfigTypeError, match=r"must be an expression such as '0.95 \*\* epoch', the name of a reg"):
        resolve_function(value)
    with pytest.raises(ConfigTypeError, match="an expression must be text"):
        Expression(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400])
def test_number_that_is_not_finite_is_rejected(value):
    with pytest.raises(ConfigError):
        resolve_function(value)


@pytest.mark.parametrize("value", [0, 3, 0.5, -1.5, 1e-30, torch.tensor(0.25).item()])
def test_number_is_a_constant_function(value):
    assert resolve_function(value)(7) == value


# ------------------------------------------------------------------------------------------- registered functions


def ramp(epoch):
    """Up for five epochs, then flat.

    And so on.
    """
    return min(1.0, (epoch + 1) / 5)


@pytest.fixture
def register_functions(monkeypatch):
    """Registers functions as if they came from a plugin: `register_functions("zoo", ramp)`."""

    def registration(plugin, *functions):
        registrations = registry._discovered().registrations["function"]
        for function in functions:
            spec = function if isinstance(function, FunctionSpec) else FunctionSpec(function.__name__, function)
            key = spec.name.replace("_", "")
            monkeypatch.setitem(
                registrations,
                key,
                [*registrations.get(key, []), Registration(spec, Plugin(plugin, f"{plugin}-dist", "1"))],
            )

    return registration


def slow_start(epoch):
    return 0.1 if epoch < 2 else 1.0


@pytest.mark.parametrize(
    "name", ["slow_start", "Slow-Start", "SLOWSTART", " slowStart ", "zoo:slow-start", "Zoo:SlowStart"]
)
def test_registered_function_is_found_under_any_spelling(register_functions, name):
    register_functions("zoo", slow_start)
    assert resolve_function(name) is slow_start


def test_names_of_expressions_have_priority_over_registered_functions(register_functions):
    register_functions("zoo", *(FunctionSpec(name, ramp) for name in (*NAMES, "cos", "epoch_1")))
    assert [resolve_function(name)(1) for name in NAMES] == [1.0, math.e, math.pi]
    assert resolve_function("epoch-1")(5) == 4.0
    assert resolve_function("zoo:epoch") is resolve_function("zoo:epoch-1") is resolve_function("cos") is ramp
    assert resolve_function("cos(epoch)")(0) == 1.0


def test_name_registered_by_two_plugins_needs_a_prefix(register_functions):
    register_functions("one", ramp)
    register_functions("two", FunctionSpec("ramp", slow_start))
    with pytest.raises(AmbiguousNameError, match="2 plugins register function 'ramp': write 'one:ramp' or 'two:ramp'"):
        resolve_function("ramp")
    assert (resolve_function("one:ramp"), resolve_function("two:ramp")) == (ramp, slow_start)


def test_unknown_name_suggests_functions_and_expression_names(register_functions):
    register_functions("zoo", ramp)
    with pytest.raises(UnknownNameError) as caught:
        resolve_function("rump")
    assert str(caught.value) == (
        "no function named 'rump'; did you mean 'ramp'? `optplug list` shows all names. "
        "An expression can use epoch, e, pi, "
        f"{', '.join(FUNCTIONS)}."
    )
    with pytest.raises(UnknownNameError, match="did you mean 'epoch'"):
        resolve_function("epohc")
    with pytest.raises(UnknownNameError, match="no function named 'other:ramp'"):
        resolve_function("other:ramp")
    with pytest.raises(UnknownNameError, match=r"\('adam' is an optimizer\.\)"):
        resolve_function("adam")


def registry_with_plugin(monkeypatch, **names):
    module = ModuleType("functions_plugin")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "functions_plugin", module)
    return Registry([EntryPoint("zoo", "functions_plugin", "optplug")])


def registry_with_hook(monkeypatch, returned):
    @optplug.hookimpl
    def optplug_functions():
        return returned() if returned.__name__ == "<lambda>" else returned

    return registry_with_plugin(monkeypatch, optplug_functions=optplug_functions, ramp=ramp, nothing=3)


def test_plain_function_is_registered_under_its_name(monkeypatch):
    registry_under_test = registry_with_hook(monkeypatch, lambda: [ramp])
    assert not registry_under_test.quarantined
    (registration,) = registry_under_test.registrations("function")
    assert (registration.name, registration.spec.summary, registry_under_test.get("function", "Ramp")) == (
        "ramp",
        "Up for five epochs, then flat.",
        ramp,
    )


def test_spec_refers_to_function_by_import_path_or_object(monkeypatch):
    unhashable = type("U", (), {"__hash__": None, "__call__": lambda self, t: 1.0})()
    specs = [
        FunctionSpec("far", "functions_plugin:ramp", "far away"),
        FunctionSpec("near", lambda t: 1.0),
        FunctionSpec("thing", unhashable),
        FunctionSpec("c", math.exp),
    ]
    registry_under_test = registry_with_hook(monkeypatch, lambda: specs)
    assert registry_under_test.names("function") == ["c", "far", "near", "thing"]
    assert registry_under_test.get("function", "far") is ramp
    assert registry_under_test.get("function", "thing") is unhashable
    assert registry_under_test.get("function", "near")(3) == 1.0


INVALID_REGISTRATIONS = {
    "a lambda": (lambda: [lambda t: 1.0], "has no name to be registered under: make it a function by def, or give Fun"),
    "a partial": (lambda: [functools.partial(pow, 0.5)], "has no name to be registered under"),
    "a class": (lambda: [DecayFunction], "returned <class", "items must be FunctionSpec or functions"),
    "text": (
        lambda: ["ramp"],
        "optplug_functions() returned 'ramp' in its list; items must be FunctionSpec or functions",
    ),
    "no list": (lambda: ramp, "returned <function ramp", "it must return a list of specs or functions"),
    "nothing": (lambda: None, "optplug_functions() returned None; it must return a list of specs or functions"),
    "a spec of another kind": (lambda: [OptimizerSpec("x", "m:X")], "items must be FunctionSpec or functions"),
    "a spec class": (lambda: [FunctionSpec], "items must be FunctionSpec or functions"),
    "a target that is a number": (
        lambda: [FunctionSpec("x", 3)],
        "target of function 'x' is 3: give 'module:object' or a",
    ),
    "a target that is a class": (lambda: [FunctionSpec("x", DecayFunction)], "give 'module:object' or a function"),
    "a name in capitals": (lambda: [FunctionSpec("X", ramp)], "function name 'X' is not snake case"),
    "a capability": (
        lambda: [FunctionSpec("x", ramp, capabilities="sparse")],
        "function 'x' declares the unknown capability 'sparse'; known are none",
    ),
    "an API of the future": (lambda: [FunctionSpec("x", ramp, api_version=9)], "was written for plugin API 9"),
    "a name twice": (lambda: [ramp, FunctionSpec("RAMP".lower(), ramp)], "its name is that of <function ramp"),
    "a failure": (lambda: 1 / 0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", INVALID_REGISTRATIONS)
def test_invalid_function_is_rejected_and_a_failing_hook_quarantined(monkeypatch, case):
    returned, *causes = INVALID_REGISTRATIONS[case]
    registry_under_test = registry_with_hook(monkeypatch, returned)
    assert registry_under_test.names("function") == (["ramp"] if case == "a name twice" else [])
    (problem,) = (*registry_under_test.quarantined, *registry_under_test.rejected)
    assert (problem in registry_under_test.quarantined) == (case in ("no list", "nothing", "a failure"))
    for cause in causes:
        assert cause in problem.cause


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("functions_plugin:nothing", "is 3, which is not a function"),
        ("functions_plugin:Nowhere", "could not be loaded from 'functions_plugin:Nowhere': AttributeError"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("collections:Counter", "is <class 'collections.Counter'>, which is not a function"),
    ],
)
def test_target_that_is_not_a_function_raises_when_loaded(monkeypatch, target, message):
    registry_under_test = registry_with_hook(monkeypatch, lambda: [FunctionSpec("x", target)])
    assert registry_under_test.names("function") == ["x"]
    with pytest.raises(PluginError) as caught:
        registry_under_test.get("function", "x")
    assert message in str(caught.value)


def test_function_spec_has_kind_function_and_rejects_none():
    with pytest.raises(SpecError, match="give 'module:object' or a function"):
        FunctionSpec("x", None)
    assert FunctionSpec("x", ramp).kind == "function"


def test_hook_is_documented_with_its_signature():
    import inspect

    from optplug.registry import hookspecs

    signature = str(inspect.signature(hookspecs.optplug_functions)).replace("'", "")
    page = Path(__file__).parent.parent.parent.joinpath("docs/plugins.md").read_text()
    assert f"def optplug_functions{signature}" in page


def test_list_and_info_commands_show_functions(register_functions):
    from typer.testing import CliRunner

    from optplug.cli.app import app

    register_functions(
        "zoo",
        FunctionSpec("ramp", ramp, "up, then flat"),
        FunctionSpec("thing", DecayFunction(0.5)),
        FunctionSpec("m", max),
    )
    shown = CliRunner().invoke(app, ["list", "ramp"])
    assert [line.split() for line in shown.stdout.splitlines() if line] == [
        ["function", "plugin", "source", "fused", "summary"],
        ["ramp", "zoo", "zoo-dist", "1", "-", "up,", "then", "flat"],
    ]
    lines = CliRunner().invoke(app, ["info", "Ramp"]).stdout.splitlines()
    assert lines[:3] == [
        "ramp: up, then flat",
        "  kind          function",
        f"  function      {__name__}.ramp",
    ]
    assert ["epoch", "required"] in [line.split() for line in lines]
    assert "Up for five epochs, then flat." in lines
    assert f"  function      {__name__}.DecayFunction" in CliRunner().invoke(app, ["info", "thing"]).stdout
    assert CliRunner().invoke(app, ["info", "m"]).exit_code == 0  # `max` has no signature


# --------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    "value",
    ["0.5 ** epoch", ["0.5 ** epoch"], "halves", "ZOO:Halves", ["halves"], lambda t: 0.5**t, [lambda t: 0.5**t]],
)
def test_lr_lambda_as_expression_name_or_function(register_functions, value):
    register_functions("zoo", FunctionSpec("halves", lambda t: 0.5**t))
    assert step_and_record_lrs(configure({"name": "LambdaLR", "lr_lambda": value}), 3) == [
        [0.1],
        [0.05],
        [0.025],
        [0.0125],
    ]
    made = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda=value)
    assert step_and_record_lrs(made, 3) == [[0.1], [0.05], [0.025], [0.0125]]


def test_lr_lambda_as_list_of_numbers_expressions_and_functions():
    scheduler = optplug.create_scheduler("lambda_lr", sgd(1, 1, 1, 1), lr_lambda=[0.5, "epoch", decaying, 2])
    assert step_and_record_lrs(scheduler, 2)[2] == [0.5, 2, 0.97**2, 2]


def test_lr_lambda_list_needs_one_entry_per_parameter_group():
    groups = [{"match": "bias", "lr": 1.0}]
    scheduler = configure({"name": "lambda_lr", "lr_lambda": ["0.5 ** epoch", 1]}, param_groups=groups)
    by_name = {group["name"]: i for i, group in enumerate(scheduler.optimizer.param_groups)}
    last = step_and_record_lrs(scheduler, 2)[-1]
    assert sorted(last) in ([0.025, 1.0], [0.1, 0.25])
    assert set(by_name) == {"bias", "default"}
    with pytest.raises(HyperparameterError, match="Expected 2 lr_lambdas, but got 3"):
        configure({"name": "lambda_lr", "lr_lambda": [1, 1, 1]}, param_groups=groups)
    with pytest.raises(HyperparameterError, match="Expected 1 lr_lambdas, but got 2"):
        parse_and_check("sgd", {"name": "lambda_lr", "lr_lambda": [1, 1]})


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("0.95 ** epch", ConfigError, "scheduler.lr_lambda: expression '0.95 ** epch': there is no name 'epch'"),
        ("decay", UnknownNameError, "scheduler.lr_lambda: no function named 'decay'"),
        (["1", "oops(epoch)"], ConfigError, "scheduler.lr_lambda[1]: expression 'oops(epoch)': there is no function"),
        (None, ConfigTypeError, "scheduler.lr_lambda: a function of the epoch must be"),
        ("1 / epoch", ConfigError, "scheduler.lr_lambda: expression '1 / epoch' has no value at epoch 0"),
    ],
)
def test_invalid_lr_lambda_is_reported_before_training(value, kind, message):
    with pytest.raises(kind) as caught:
        parse_and_check("adam", {"name": "lambda_lr", "lr_lambda": value})
    assert str(caught.value).startswith(message)


def test_other_arguments_are_checked_before_training_with_parameter_groups():
    groups = [{"match": "bias", "lr": 1.0}]
    with pytest.raises(HyperparameterError, match="MultiStepLR: gamma must be at least 0"):
        parse_and_check("sgd", {"name": "multi_step_lr", "milestones": [3, 4, 5], "gamma": -1}, param_groups=groups)
    for good in ([], [3], [3, 4, 5]):
        parse_and_check("sgd", {"name": "multi_step_lr", "milestones": good}, param_groups=groups)


def test_parsed_configuration_contains_plain_data(register_functions):
    register_functions("zoo", ramp)
    given = {"name": "lambda_lr", "lr_lambda": ["ramp", "0.5"]}
    config = parse_and_check("sgd", given, param_groups=[{"match": "bias", "lr": 1.0}])
    assert config.scheduler.arguments == {"lr_lambda": ["ramp", "0.5"]}
    assert pickle.loads(pickle.dumps(config)) == config


def test_expression_is_restored_from_checkpoint():
    first = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda="0.5 ** epoch")
    step_and_record_lrs(first, 3)
    second = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda="0.9 ** epoch")
    second.load_state_dict(save_and_load(first.state_dict()))
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert step_and_record_lrs(second, 3) == step_and_record_lrs(first, 3)


def test_scheduler_can_declare_function_arguments(monkeypatch):
    class Twofold(optplug.ClosedFormLR):
        """The product of two functions."""

        functions = ("up", "down")

        def __init__(self, optimizer, up, down="1", last_epoch=-1):
            self.up, self.down = up, down
            super().__init__(optimizer, last_epoch)

        def multiplier(self, t):
            return self.up(t) * (self.down(t) if callable(self.down) else 1)

    spec = optplug.SchedulerSpec("twofold", Twofold)
    registrations = registry._discovered().registrations["scheduler"]
    monkeypatch.setitem(registrations, "twofold", [Registration(spec, Plugin("p", "d", "1"))])
    made = optplug.create_scheduler("twofold", sgd(0.1), up="1 + epoch", down="0.5 ** epoch")
    assert step_and_record_lrs(made, 2) == [[0.1], [pytest.approx(0.1)], [pytest.approx(0.075)]]
    assert optplug.create_scheduler("twofold", sgd(0.1), up=2).down == "1"  # defaults are not converted
