"""Who may import whom, read from the source; and that no algorithm of torch is inherited or called (design, D2)."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.registry import registry

ROOT = Path(__file__).resolve().parent.parent


class Layer(NamedTuple):
    """A package or module, and what it may import besides the standard library and what stands below it.

    Attributes:
        name: dotted. third_party: packages that it may import. below: the layers it may import; None: all below it.
    """

    name: str
    third_party: str = ""
    below: str | None = None


LAYERS = (
    # From the bottom to the top: a layer imports only layers before its own.
    Layer("optplug.errors"),
    Layer("optplug.registry", "pluggy docstring_parser"),
    Layer("optplug.rules", "torch", "errors"),
    Layer("optplug.ops", "", "rules"),
    Layer("optplug.engines", "torch numba llvmlite numpy", "errors rules"),
    Layer("optplug.optim", "torch", "errors registry rules engines"),
    Layer("optplug.schedulers", "torch", "errors optim"),
    Layer("optplug.config", "torch simpleeval", "errors registry optim schedulers"),
    Layer("optplug.shims", "torch jsonargparse", "errors registry config"),
    Layer("optplug.testing", "torch pytest"),
    Layer("optplug.bench", "torch matplotlib", "errors registry rules engines optim config"),
    Layer(
        "optplug.lightning",
        "torch lightning pytorch_lightning jsonargparse",
        "errors registry engines optim schedulers config",
    ),
    Layer("optplug.pytorch_lightning", "", "lightning"),
    Layer("optplug.cli", "torch typer rich yaml omegaconf jsonargparse matplotlib numpy"),
    Layer("optplug.__main__", "", "cli"),
    Layer("optplug_classic", "torch numba llvmlite numpy", "errors registry rules ops engines optim schedulers"),
    Layer("optplug_schedules", "torch", "errors registry optim schedulers"),
)
"""`optplug/__init__.py` is the public face and may import, lazily, what it shows; at import only `errors`, `registry`."""

AT_IMPORT = {
    "optplug": "optplug.registry",
    "optplug.registry": "pluggy optplug.errors",
    "optplug.errors": "",
    "optplug.engines": "torch",  # Numba and llvmlite are for those who use them
    "optplug.optim.ranges": "",
    "optplug.shims.factory": "torch jsonargparse optplug.errors optplug.registry optplug.config.error_collector",
}
"""Modules that must stay light: what they may import outside of functions, themselves apart."""

DYNAMIC = {
    "optplug/__init__.py": "its own public names, on first use",
    "optplug/registry/plugin_registry.py": "a plugin's target",
    "optplug/lightning/_compat.py": "the installed names of Lightning",
    "optplug/lightning/cli.py": "the installed names of Lightning",
    "optplug/cli/configs.py": "the model that --model names",
}
"""The files that may import a module named at run time, and what that module is."""

IMPORTS_LIGHTNING = (
    "optplug.lightning.callback",
    "optplug.lightning.cli",
    "optplug.lightning.stepping_callback",
    "optplug.pytorch_lightning",
)
"""The modules whose import imports Lightning."""

BASES = (torch.optim.Optimizer, LRScheduler)
"""The classes of torch.optim that are no algorithm."""

IDENTITY = {
    "plugins/optplug_classic/lbfgs.py": torch.optim.LBFGS,
    "plugins/optplug_schedules/reduce_lr_on_plateau.py": ReduceLROnPlateau,
}
"""Lightning asks `isinstance`: these derive from torch's class of the same name, and override all of it."""

NO_ALGORITHM = ("torch.optim", "torch.optim.optimizer", "torch.optim.lr_scheduler")
"""The modules of torch.optim that may be imported; every other one holds an algorithm and its functional form."""

KERNEL = re.compile(r"\b_(fused|single_tensor|multi_tensor)_\w")

FILES = sorted(
    path.relative_to(ROOT).as_posix() for top in ("optplug", "plugins") for path in (ROOT / top).rglob("*.py")
)
OPTPLUG_FILES = [file for file in FILES if file.startswith("optplug/")]


# ---------------------------------------------------------------- reading source


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse(ROOT.joinpath(file).read_text(), file)


def module_name(file: str) -> str:
    return file.removeprefix("plugins/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(file) for file in FILES}


@cache
def public_names() -> dict[str, str]:
    """Where each name of `from optplug import name` really lives; `optplug/__init__.py` says it to type checkers."""
    tree = parsed("optplug/__init__.py")
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: node.module for node in found for alias in node.names if node.module}


class Import(NamedTuple):
    module: str
    within_function: bool
    line: int


def imports(tree: ast.AST, *, typing: bool = False, within_function: bool = False) -> Iterator[Import]:
    """Every import of a file; those for type checkers only when asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, within_function, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module not in MODULES:
                    module = (
                        public_names().get(alias.name, "optplug") if node.module == "optplug" else node.module or ""
                    )
                yield Import(module, within_function, node.lineno)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            if typing:
                yield from imports(node, typing=True, within_function=within_function)
        else:
            if isinstance(node, ast.Call) and imported_by_call(node):
                yield Import(imported_by_call(node), within_function, node.lineno)
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, typing=typing, within_function=within_function or is_function)


def imports_by_call(node: ast.Call) -> bool:
    return ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")


def imported_by_call(node: ast.Call) -> str:
    """`"x"` for `import_module("x")`; nothing for a module that only the run knows."""
    argument = node.args[0] if imports_by_call(node) and node.args else None
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def layer_of(module: str) -> int:
    """The index of the layer that a module of ours belongs to."""
    found = [i for i, layer in enumerate(LAYERS) if is_within(module, layer.name)]
    assert found, f"{module} belongs to no layer: add it to LAYERS"
    return found[0]


def is_within(module: str, allowed: str) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in allowed.split())


def is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def texts(tree: ast.AST) -> list[tuple[str, int]]:
    """The texts of a file and their lines, but for docstrings: a text that stands alone does nothing."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return [(node.value, node.lineno) for node in constants if isinstance(node.value, str)]


# ---------------------------------------------------------------- layers


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {layer.name.partition(".")[0] for layer in LAYERS}


@pytest.mark.parametrize("file", [file for file in FILES if file != "optplug/__init__.py"])
def test_imports_only_layers_below(file):
    module = module_name(file)
    own = layer_of(module)
    layer = LAYERS[own]
    wrong = []
    for found in imports(parsed(file)):
        if is_standard(found.module) or is_within(found.module, layer.name):
            continue
        if is_ours(found.module):
            theirs = layer_of(found.module)
            allowed = layer.below is None or LAYERS[theirs].name.removeprefix("optplug.") in layer.below.split()
            fine = theirs < own and allowed
        else:
            fine = is_within(found.module, layer.third_party)
        if not fine:
            wrong.append(f"{file}:{found.line} imports {found.module}")
    assert not wrong, f"{layer.name} may import {layer.third_party} and {layer.below or 'all layers below it'}"


@pytest.mark.parametrize("package", AT_IMPORT)
def test_light_modules_stay_light(package):
    files = [file for file in FILES if is_within(module_name(file), package)]
    if package in ("optplug", "optplug.engines"):  # the package's own __init__ alone
        files = [file for file in files if module_name(file) == package]
    assert files
    wrong = [
        f"{file}:{line} imports {module}"
        for file in files
        for module, within_function, line in imports(parsed(file))
        if not (within_function or is_standard(module) or is_within(module, f"{package} {AT_IMPORT[package]}"))
    ]
    assert not wrong


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The cycles of a graph, as its strongly connected components of more than one node."""
    reachable = {node: reached_from(graph, node) for node in graph}
    cyclic = [node for node in graph if node in reachable[node]]
    return sorted({tuple(sorted(o for o in cyclic if o in reachable[n] and n in reachable[o])) for n in cyclic})


def reached_from(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph.get(node, ())
    return reached


def test_there_is_no_import_cycle():
    graph = {
        module_name(file): {found.module for found in imports(parsed(file), typing=True)} & (MODULES - {"optplug"})
        for file in FILES
    }
    assert sum(map(len, graph.values())) > 150  # it is the graph
    assert import_cycles(graph) == []


def test_an_import_cycle_is_noticed():
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [("b", "c")]


def test_the_package_has_few_entries():
    entries = {path.name for path in (ROOT / "optplug").iterdir()} - {"__pycache__"}
    packages = {layer.name.removeprefix("optplug.") for layer in LAYERS if layer.name.startswith("optplug.")}
    files = {"errors", "ops", "pytorch_lightning", "__main__"}
    assert entries == (packages - files) | {f"{file}.py" for file in files} | {"__init__.py", "py.typed"}
    assert len(entries) <= 17


@pytest.mark.parametrize("file", FILES)
def test_imports_by_computed_name_only_where_declared(file):
    computed = [
        node.lineno
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Call) and imports_by_call(node) and not imported_by_call(node)
    ]
    assert not computed or file in DYNAMIC


@pytest.mark.parametrize("file", OPTPLUG_FILES)
def test_the_framework_names_no_plugin(file):
    tree, plugins = parsed(file), {module.partition(".")[0] for module in MODULES} - {"optplug"}
    assert plugins >= {"optplug_classic", "optplug_schedules"}
    assert not [found for found in imports(tree, typing=True) if found.module.partition(".")[0] in plugins]
    assert not [text for text, _ in texts(tree) if any(plugin in text for plugin in plugins)]


def run(program: str, *options: str) -> str:
    ran = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_only_the_callback_and_the_cli_import_lightning():
    apart = (*IMPORTS_LIGHTNING, "optplug.cli.", "optplug.__main__")  # the command runs, and needs an extra
    others = sorted(name for name in MODULES if not name.startswith(apart))
    loaded = run(
        f"import importlib, sys\nfor name in {others}: importlib.import_module(name)\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)), len(sys.modules))"
    )
    assert loaded.startswith("[] "), loaded


def test_listing_our_names_imports_neither_torch_nor_lightning_nor_numpy():
    heavy = "{'torch', 'lightning', 'pytorch_lightning', 'lightning_fabric', 'numpy', 'numba', 'simpleeval', 'optplug.rules.ops'}"
    program = (
        "import sys, optplug\n"
        "assert optplug.list_optimizers() and optplug.list_schedulers()\n"
        f"found = sorted({heavy} & set(sys.modules))\n"
        "assert not found, found"
    )
    run(program, "-X", "importtime")


# ---------------------------------------------------------------- D2: our own algorithms


def aliases(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, dotted."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return known


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    """`torch.optim.Adam` for any expression that spells it in this file; else nothing."""
    if isinstance(node, ast.Subscript):
        return dotted(node.value, known)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, known)
        return owner and f"{owner}.{node.attr}"
    return known.get(node.id, "") if isinstance(node, ast.Name) else ""


@cache
def prefixes(path: str) -> tuple[Any, ...]:
    """The objects that a dotted path of torch passes: torch, torch.optim, torch.optim.Adam, ..."""
    if path.partition(".")[0] != "torch":
        return ()
    found: list[Any] = [torch]
    for i, part in enumerate(path.split(".")[1:], 2):
        try:
            found.append(getattr(found[-1], part))
        except AttributeError:
            try:
                found.append(importlib.import_module(".".join(path.split(".")[:i])))
            except ImportError:
                break
    return tuple(found)


def is_algorithm(thing: Any) -> bool:
    return isinstance(thing, type) and thing.__module__.startswith("torch.optim") and thing not in BASES


def torch_algorithms_used(file: str) -> Iterator[str]:
    """Where a file inherits or calls an algorithm of torch, its functional form or its kernel."""
    tree = parsed(file)
    known = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                for thing in prefixes(dotted(base, known)):
                    if is_algorithm(thing) and thing is not IDENTITY.get(file):
                        yield f"{file}:{node.lineno} {node.name} inherits {thing}"
        elif isinstance(node, ast.Call):
            for thing in prefixes(dotted(node.func, known)):
                if is_algorithm(thing):
                    yield f"{file}:{node.lineno} calls {ast.unparse(node.func)}"
            if file in IDENTITY and ast.unparse(node) == "super()":
                yield f"{file}:{node.lineno} super() is torch's algorithm here"
        elif isinstance(node, (ast.Name, ast.Attribute)):
            for thing in prefixes(dotted(node, known)):
                name = getattr(thing, "__name__", "")
                if type(thing) is type(torch) and name.startswith("torch.optim") and name not in NO_ALGORITHM:
                    yield f"{file}:{node.lineno} uses {name}"
            if KERNEL.search(node.id if isinstance(node, ast.Name) else node.attr):
                yield f"{file}:{node.lineno} uses {ast.unparse(node)}"
        elif isinstance(node, ast.alias) and KERNEL.search(node.name):
            yield f"{file}:{node.lineno} imports {node.name}"
    for text, line in texts(tree):
        if KERNEL.search(text):
            yield f"{file}:{line} spells {text!r}"
    for module, _, line in imports(tree, typing=True):
        if module.startswith("torch.optim.") and module not in NO_ALGORITHM:
            yield f"{file}:{line} imports {module}"


@pytest.mark.parametrize("file", FILES)
def test_no_file_inherits_or_calls_an_algorithm_of_torch(file):
    assert not list(torch_algorithms_used(file))


BORROWED = {
    "import torch\nclass A(torch.optim.Adam): ...": "inherits",
    "from torch.optim import Adam as B\nclass A(B): ...": "inherits",
    "from torch import optim\noptim.SGD([])": "calls optim.SGD",
    "import torch.optim as o\no.Adam.step(1)": "calls o.Adam.step",
    "from torch.optim.lr_scheduler import StepLR\nStepLR(1, 2)": "calls StepLR",
    "from torch.optim.adam import adam": "imports torch.optim.adam",
    "import torch\ntorch.optim._functional.adam()": "uses torch.optim._functional",
    "import torch\ntorch._fused_adam_([])": "uses torch._fused_adam_",
    "import torch\ntorch.ops.aten._fused_sgd_([])": "uses torch.ops.aten._fused_sgd_",
    "import torch\ngetattr(torch, '_fused_adamw_')": "spells '_fused_adamw_'",
}


@pytest.mark.parametrize("source", BORROWED)
def test_borrowing_is_noticed(source, monkeypatch):
    monkeypatch.setitem(globals(), "parsed", lambda file: ast.parse(source))
    assert any(BORROWED[source] in found for found in torch_algorithms_used("plugins/new/algorithm.py"))


def of_torch(cls: type) -> set[type]:
    return {base for base in cls.__mro__ if base.__module__.startswith("torch.optim")}


def ours(kind: str) -> list[str]:
    return [
        registration.name
        for registration in registry.registrations(kind)
        if registration.plugin.distribution == "optplug"
    ]


IDENTITY_BY_NAME = {Path(file).stem: cls for file, cls in IDENTITY.items()}


@pytest.mark.parametrize("name", ours("optimizer"))
def test_an_optimizer_is_torch_s_only_by_its_base_class(name):
    expected = {torch.optim.Optimizer} | ({IDENTITY_BY_NAME[name]} if name in IDENTITY_BY_NAME else set())
    assert of_torch(registry.get("optimizer", name)) == expected


@pytest.mark.parametrize("name", ours("scheduler"))
def test_a_scheduler_is_torch_s_only_by_its_base_class(name):
    expected = {LRScheduler} | ({IDENTITY_BY_NAME[name]} if name in IDENTITY_BY_NAME else set())
    assert of_torch(registry.get("scheduler", name)) == expected


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("optimizer", "scheduler") for n in ours(k) if n in IDENTITY_BY_NAME]
)
def test_who_derives_from_torch_s_class_overrides_all_of_it(kind, name):
    theirs, cls = IDENTITY_BY_NAME[name], registry.get(kind, name)
    defined = {name for name, value in vars(theirs).items() if callable(value) or hasattr(value, "__get__")}
    assert {"__init__", "step"} <= defined
    assert not {name for name in defined if getattr(cls, name) is getattr(theirs, name)}
