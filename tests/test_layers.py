"""Import rules, checked in the source: layers, cycles, light imports; and no use of algorithms of torch.

The last rule: no file inherits or calls an optimizer or scheduler of torch, its functional form or its kernel.
"""

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
from support import first_party

ROOT = Path(__file__).resolve().parent.parent


class Layer(NamedTuple):
    """A package or module, and what it may import besides the standard library.

    Attributes:
        name: the dotted name.
        third_party: the third-party packages that it may import, separated by spaces.
        below: the layers that it may import, separated by spaces. None: all layers below it.
    """

    name: str
    third_party: str = ""
    below: str | None = None


LAYERS = (
    # From bottom to top: a layer may only import layers that are listed before it.
    Layer("optplug.errors"),
    Layer("optplug.registry", "pluggy docstring_parser"),
    Layer("optplug.rules", "torch", "errors"),
    Layer("optplug.ops", "", "rules"),
    Layer("optplug.engines", "torch numba llvmlite numpy", "errors rules"),
    Layer("optplug.optim", "torch typing_extensions", "errors registry rules engines"),
    Layer("optplug.schedulers", "torch", "errors engines optim"),
    Layer("optplug.config", "torch typing_extensions yaml", "errors registry optim schedulers"),
    Layer("optplug.shims", "torch jsonargparse", "errors registry config"),
    Layer("optplug.testing", "torch pytest"),
    Layer("optplug.bench", "torch matplotlib", "errors registry rules engines optim config"),
    Layer(
        "optplug.lightning",
        "torch lightning pytorch_lightning jsonargparse typing_extensions",
        "errors registry engines optim schedulers config",
    ),
    Layer("optplug.pytorch_lightning", "", "lightning"),
    Layer("optplug.cli", "torch typer rich yaml omegaconf hydra jsonargparse matplotlib numpy"),
    Layer("optplug.__main__", "", "cli"),
    Layer(
        "optplug_classic",
        "torch numba llvmlite numpy typing_extensions",
        "errors registry rules ops engines optim schedulers",
    ),
    Layer("optplug_modern", "torch typing_extensions", "errors registry rules ops optim"),
    Layer("optplug_schedules", "torch", "errors registry engines optim schedulers config"),
    Layer(
        "optplug_adapters",
        "torch heavyball pytorch_optimizer schedulefree timm torchao transformers",
        "errors registry engines schedulers",
    ),
)
"""`optplug/__init__.py` is not a layer: it may import every public name on first use, and only `registry` at import."""

AT_IMPORT = {
    "optplug": "optplug.registry",
    "optplug.registry": "pluggy optplug.errors",
    "optplug.errors": "",
    "optplug.engines": "torch",  # numba and llvmlite are imported on first use of the engine
    "optplug.optim.ranges": "",
    "optplug.shims.factory": "torch jsonargparse optplug.errors optplug.registry optplug.config.third_party",
}
"""Modules whose import must be fast, and what they may import outside of functions besides themselves."""

COMPUTED_IMPORTS = {
    "optplug/__init__.py": "its public names, on first use",
    "optplug/cli/app.py": "the subcommand that runs",
    "optplug/registry/plugin_registry.py": "a plugin's target",
    "optplug/registry/safe_globals.py": "the classes of optplug that files may contain",
    "optplug/lightning/_compat.py": "the installed names of Lightning",
    "optplug/lightning/cli.py": "the installed names of Lightning",
    "optplug/cli/config_commands.py": "the model that --model names",
    "plugins/optplug_adapters/pytorch_optimizer_state.py": "a module of pytorch_optimizer, for its objects in states",
}
"""The files that may import a module whose name is computed, and which module that is."""

IMPORTS_LIGHTNING = (
    "optplug.lightning.callback",
    "optplug.lightning.cli",
    "optplug.lightning.stepping_callback",
    "optplug.pytorch_lightning",
)
"""The modules whose import imports Lightning."""

IMPORTS_ADAPTED_PACKAGES = (
    "optplug_adapters.heavyball_sam",
    "optplug_adapters.pytorch_optimizer_classes",
    "optplug_adapters.pytorch_optimizer_schedulers",
    "optplug_adapters.schedulefree_wrapper",
    "optplug_adapters.timm_schedulers",
    "optplug_adapters.torchao_offload",
    "optplug_adapters.torchao_state",
    "optplug_adapters.transformers_greedy",
)
"""The modules whose import imports a package that may not be installed."""

TORCH_BASES = (torch.optim.Optimizer, LRScheduler)
"""The classes of torch.optim that are not algorithms."""

TORCH_SUBCLASSES = {
    "plugins/optplug_classic/lbfgs.py": torch.optim.LBFGS,
    "plugins/optplug_schedules/reduce_lr_on_plateau.py": ReduceLROnPlateau,
    "optplug/schedulers/plateau_warmup.py": ReduceLROnPlateau,
}
"""Files whose class derives from torch's class, since trainers check `isinstance`, and overrides all its methods."""

ALLOWED_TORCH_MODULES = ("torch.optim", "torch.optim.optimizer", "torch.optim.lr_scheduler")
"""The modules of torch.optim that may be imported. The other ones contain algorithms."""

TORCH_KERNEL = re.compile(r"\b_(fused|single_tensor|multi_tensor)_\w")
"""Matches the names of torch's optimizer kernels."""

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
    """Return the module of each name in `from optplug import name`, from the imports for type checkers."""
    tree = parsed("optplug/__init__.py")
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: node.module for node in found for alias in node.names if node.module}


class Import(NamedTuple):
    module: str
    within_function: bool
    line: int


def imports(tree: ast.AST, *, typing: bool = False, within_function: bool = False) -> Iterator[Import]:
    """Yield the imports of a file; with `typing` also those under `if TYPE_CHECKING`."""
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
    """Return `"x"` for `import_module("x")`; an empty string if the name is computed."""
    argument = node.args[0] if imports_by_call(node) and node.args else None
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def layer_of(module: str) -> int:
    """Return the index of the layer of a module of this repository."""
    found = [i for i, layer in enumerate(LAYERS) if is_within(module, layer.name)]
    assert found, f"{module} belongs to no layer: add it to LAYERS"
    return found[0]


def is_within(module: str, allowed: str) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in allowed.split())


def is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def texts(tree: ast.AST) -> list[tuple[str, int]]:
    """Return the string constants of a file with their lines, except docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [(node.value, node.lineno) for node in constants if isinstance(node.value, str)]


# ---------------------------------------------------------------- layers


def is_in_repository(module: str) -> bool:
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
        if is_in_repository(found.module):
            theirs = layer_of(found.module)
            allowed = layer.below is None or LAYERS[theirs].name.removeprefix("optplug.") in layer.below.split()
            fine = theirs < own and allowed
        else:
            fine = is_within(found.module, layer.third_party)
        if not fine:
            wrong.append(f"{file}:{found.line} imports {found.module}")
    assert not wrong, f"{layer.name} may import {layer.third_party} and {layer.below or 'all layers below it'}"


@pytest.mark.parametrize("package", AT_IMPORT)
def test_light_modules_import_only_allowed_packages(package):
    files = [file for file in FILES if is_within(module_name(file), package)]
    if package in ("optplug", "optplug.engines"):  # only the package's __init__
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
    """Return the cycles of a graph: its strongly connected components with more than one node."""
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


def test_no_import_cycles():
    graph = {
        module_name(file): {found.module for found in imports(parsed(file), typing=True)} & (MODULES - {"optplug"})
        for file in FILES
    }
    assert sum(map(len, graph.values())) > 150  # the graph was read
    assert import_cycles(graph) == []


def test_import_cycles_finds_a_cycle():
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [("b", "c")]


def test_optplug_contains_only_the_layers():
    entries = {path.name for path in (ROOT / "optplug").iterdir()} - {"__pycache__"}
    packages = {layer.name.removeprefix("optplug.") for layer in LAYERS if layer.name.startswith("optplug.")}
    files = {"errors", "ops", "pytorch_lightning", "__main__"}
    assert entries == (packages - files) | {f"{file}.py" for file in files} | {"__init__.py", "py.typed"}
    assert len(entries) <= 17


@pytest.mark.parametrize("file", FILES)
def test_computed_imports_occur_only_in_declared_files(file):
    computed = [
        node.lineno
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Call) and imports_by_call(node) and not imported_by_call(node)
    ]
    assert not computed or file in COMPUTED_IMPORTS


@pytest.mark.parametrize("file", OPTPLUG_FILES)
def test_optplug_does_not_name_its_plugins(file):
    tree, plugins = parsed(file), {module.partition(".")[0] for module in MODULES} - {"optplug"}
    assert plugins >= {"optplug_classic", "optplug_modern", "optplug_schedules"}
    assert not [found for found in imports(tree, typing=True) if found.module.partition(".")[0] in plugins]
    assert not [text for text, _ in texts(tree) if any(plugin in text for plugin in plugins)]


def run(program: str, *options: str) -> str:
    ran = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_only_declared_modules_import_lightning():
    # __main__ runs the command, and optplug.cli needs an extra.
    excluded = (*IMPORTS_LIGHTNING, "optplug.cli.", "optplug.__main__", *IMPORTS_ADAPTED_PACKAGES)
    others = sorted(name for name in MODULES if not name.startswith(excluded))
    loaded = run(
        f"import importlib, sys\nfor name in {others}: importlib.import_module(name)\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)), len(sys.modules))"
    )
    assert loaded.startswith("[] "), loaded


def test_listing_names_does_not_import_heavy_packages():
    heavy = {"torch", "lightning", "pytorch_lightning", "lightning_fabric"}
    heavy |= {"numpy", "numba", "optplug.rules.ops"}
    program = (
        "import sys, optplug\n"
        "assert optplug.list_optimizers() and optplug.list_schedulers()\n"
        f"found = sorted({heavy} & set(sys.modules))\n"
        "assert not found, found"
    )
    run(program, "-X", "importtime")


# ---------------------------------------------------------------- no algorithms of torch


def aliases(tree: ast.AST) -> dict[str, str]:
    """Return the dotted path of each imported name."""
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
    """Return the dotted path of an expression, e.g. `torch.optim.Adam`; an empty string for other expressions."""
    if isinstance(node, ast.Subscript):
        return dotted(node.value, known)
    if isinstance(node, ast.Attribute):
        prefix = dotted(node.value, known)
        return prefix and f"{prefix}.{node.attr}"
    return known.get(node.id, "") if isinstance(node, ast.Name) else ""


@cache
def objects_on_path(path: str) -> tuple[Any, ...]:
    """Return the objects on a dotted path of torch: torch, torch.optim, torch.optim.Adam, ..."""
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


def is_algorithm(value: Any) -> bool:
    return isinstance(value, type) and value.__module__.startswith("torch.optim") and value not in TORCH_BASES


def torch_algorithm_uses(file: str) -> Iterator[str]:
    """Yield the places where a file inherits or calls an algorithm of torch, its functional form or its kernel."""
    tree = parsed(file)
    known = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                for value in objects_on_path(dotted(base, known)):
                    if is_algorithm(value) and value is not TORCH_SUBCLASSES.get(file):
                        yield f"{file}:{node.lineno} {node.name} inherits {value}"
        elif isinstance(node, ast.Call):
            for value in objects_on_path(dotted(node.func, known)):
                if is_algorithm(value):
                    yield f"{file}:{node.lineno} calls {ast.unparse(node.func)}"
            if file in TORCH_SUBCLASSES and ast.unparse(node) == "super()":
                yield f"{file}:{node.lineno} super() calls torch's algorithm"
        elif isinstance(node, (ast.Name, ast.Attribute)):
            for value in objects_on_path(dotted(node, known)):
                name = getattr(value, "__name__", "")
                if type(value) is type(torch) and name.startswith("torch.optim") and name not in ALLOWED_TORCH_MODULES:
                    yield f"{file}:{node.lineno} uses {name}"
            if TORCH_KERNEL.search(node.id if isinstance(node, ast.Name) else node.attr):
                yield f"{file}:{node.lineno} uses {ast.unparse(node)}"
        elif isinstance(node, ast.alias) and TORCH_KERNEL.search(node.name):
            yield f"{file}:{node.lineno} imports {node.name}"
    for text, line in texts(tree):
        if TORCH_KERNEL.search(text):
            yield f"{file}:{line} contains the string {text!r}"
    for module, _, line in imports(tree, typing=True):
        if module.startswith("torch.optim.") and module not in ALLOWED_TORCH_MODULES:
            yield f"{file}:{line} imports {module}"


@pytest.mark.parametrize("file", FILES)
def test_file_does_not_use_algorithms_of_torch(file):
    assert not list(torch_algorithm_uses(file))


FORBIDDEN_SOURCES = {
    "import torch\nclass A(torch.optim.Adam): ...": "inherits",
    "from torch.optim import Adam as B\nclass A(B): ...": "inherits",
    "from torch import optim\noptim.SGD([])": "calls optim.SGD",
    "import torch.optim as o\no.Adam.step(1)": "calls o.Adam.step",
    "from torch.optim.lr_scheduler import StepLR\nStepLR(1, 2)": "calls StepLR",
    "from torch.optim.adam import adam": "imports torch.optim.adam",
    "import torch\ntorch.optim._functional.adam()": "uses torch.optim._functional",
    "import torch\ntorch._fused_adam_([])": "uses torch._fused_adam_",
    "import torch\ntorch.ops.aten._fused_sgd_([])": "uses torch.ops.aten._fused_sgd_",
    "import torch\ngetattr(torch, '_fused_adamw_')": "contains the string '_fused_adamw_'",
}


@pytest.mark.parametrize("source", FORBIDDEN_SOURCES)
def test_use_of_torch_algorithm_is_found(source, monkeypatch):
    monkeypatch.setitem(globals(), "parsed", lambda file: ast.parse(source))
    assert any(FORBIDDEN_SOURCES[source] in found for found in torch_algorithm_uses("plugins/new/algorithm.py"))


def torch_bases_of(cls: type) -> set[type]:
    """Return the classes of torch.optim from which a class derives."""
    return {base for base in cls.__mro__ if base.__module__.startswith("torch.optim")}


TORCH_SUBCLASSES_BY_NAME = {Path(file).stem: cls for file, cls in TORCH_SUBCLASSES.items()}


@pytest.mark.parametrize("name", first_party("optimizer"))
def test_optimizer_derives_only_from_allowed_torch_classes(name):
    expected = {torch.optim.Optimizer} | (
        {TORCH_SUBCLASSES_BY_NAME[name]} if name in TORCH_SUBCLASSES_BY_NAME else set()
    )
    assert torch_bases_of(registry.get("optimizer", name)) == expected


@pytest.mark.parametrize("name", first_party("scheduler"))
def test_scheduler_derives_only_from_allowed_torch_classes(name):
    expected = {LRScheduler} | ({TORCH_SUBCLASSES_BY_NAME[name]} if name in TORCH_SUBCLASSES_BY_NAME else set())
    assert torch_bases_of(registry.get("scheduler", name)) == expected


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in ("optimizer", "scheduler") for n in first_party(k) if n in TORCH_SUBCLASSES_BY_NAME],
)
def test_subclass_of_torch_class_overrides_all_methods(kind, name):
    theirs, cls = TORCH_SUBCLASSES_BY_NAME[name], registry.get(kind, name)
    defined = {name for name, value in vars(theirs).items() if callable(value) or hasattr(value, "__get__")}
    assert {"__init__", "step"} <= defined
    assert not {name for name in defined if getattr(cls, name) is getattr(theirs, name)}


def test_configuration_is_built_without_the_packages_of_the_command_line():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['yaml', 'typer', 'rich', 'jsonargparse']))"
    arguments = "torch.nn.Linear(1, 1), 'sgd', {'name': 'step_lr', 'step_size': 2}, param_groups='no_decay'"
    code = f"{blocked}; import torch, optplug; optplug.create_optimizer_and_scheduler({arguments})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
