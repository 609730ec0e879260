"""Who may import whom, read from the source; and that no algorithm of torch is inherited or called (design, D2)."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.registry import registry

ROOT = Path(__file__).resolve().parent.parent


class Room(NamedTuple):
    """What the files that match may import besides the standard library; a folder stands for all that is in it."""

    files: str
    at_import: str
    within_functions: str = ""


WHOLE_FRAMEWORK = "optplug"
LIGHTNING = "lightning pytorch_lightning"
WIRING = (
    "torch optplug.build optplug.combined optplug.complaints optplug.config optplug.errors optplug.following "
    "optplug.groups optplug.lengths optplug.rates optplug.registry optplug.schedules optplug.wiring"
)

ROOMS = (
    # Names and plugins: no torch, so that listing is quick.
    Room("optplug/errors.py", ""),
    Room("optplug/specs.py", "optplug.errors"),
    Room("optplug/hookspecs.py", "pluggy"),
    Room("optplug/registry.py", "pluggy optplug.errors optplug.specs optplug.hookspecs"),
    Room("optplug/__init__.py", "optplug.hookspecs optplug.specs optplug.registry"),
    # Rules know no engine, engines know no rule; `execution` chooses one, and `stepping` hands it the tensors.
    Room("optplug/ops.py", "torch optplug.errors"),
    Room("optplug/ranges.py", ""),
    Room("optplug/keywords.py", "optplug.errors"),
    Room(
        "optplug/rules/driver.py",
        "torch optplug.errors optplug.keywords optplug.ops optplug.ranges optplug.rules optplug.engines.report",
    ),
    Room(
        "optplug/rules/execution.py",
        "torch optplug.errors optplug.engines optplug.rules.buckets optplug.rules.trace",
    ),
    Room(
        "optplug/rules/stepping.py",
        "torch optplug.engines.foreach optplug.engines.loop optplug.rules",
        "optplug.engines.addresses optplug.engines.numba",
    ),
    Room(
        "optplug/rules/buckets.py",
        "torch optplug.errors optplug.rules.buffers optplug.rules.trace optplug.engines.report",
    ),
    Room(
        "optplug/rules/*.py",
        "torch optplug.errors optplug.keywords optplug.ops optplug.ranges "
        + "".join(
            f"optplug.rules.{part} "
            for part in ("buckets", "buffers", "columns", "graph", "hypers", "likeness", "prelude", "state", "trace")
        ),
    ),
    # The compiler is imported where it is used, and by what only its users import.
    Room("optplug/engines/__init__.py", "torch", "numba optplug.engines.compiler optplug.engines.numba"),
    Room(
        "optplug/engines/[!_]*.py",
        "torch numba llvmlite numpy optplug.errors optplug.ops optplug.rules.graph optplug.rules.trace optplug.engines",
    ),
    Room("optplug/rates.py", "torch"),
    Room("optplug/following.py", "torch optplug.groups optplug.rates"),
    Room("optplug/schedules.py", "torch optplug.errors optplug.following optplug.keywords optplug.rates"),
    Room("optplug/curvature.py", "torch optplug.engines", "optplug.engines.history"),
    # One schema -> parameter groups -> optimizer and scheduler.
    Room("optplug/arguments.py", "optplug.registry", "docstring_parser"),
    Room("optplug/complaints.py", "optplug.errors"),
    Room("optplug/plain.py", "optplug.complaints optplug.errors"),
    Room("optplug/selection.py", "torch optplug.complaints optplug.errors"),
    Room("optplug/presets.py", "torch optplug.complaints optplug.errors optplug.selection"),
    Room(
        "optplug/config.py",
        "optplug.arguments optplug.groups optplug.plain optplug.registry optplug.selection optplug.specs",
    ),
    Room(
        "optplug/parsing.py",
        "optplug.arguments optplug.complaints optplug.config optplug.errors optplug.groups optplug.plain "
        "optplug.presets optplug.registry optplug.schedules optplug.selection optplug.specs",
    ),
    Room("optplug/lengths.py", "optplug.complaints optplug.config optplug.errors"),
    Room(
        "optplug/schema.py",
        "optplug.arguments optplug.config optplug.errors optplug.explaining optplug.groups optplug.presets "
        "optplug.ranges optplug.registry optplug.selection optplug.specs",
    ),
    Room("optplug/explaining.py", "optplug.arguments optplug.ranges optplug.registry optplug.specs", "optplug.config"),
    Room("optplug/functions.py", "simpleeval optplug.errors optplug.registry"),
    Room("optplug/combined.py", "torch optplug.errors optplug.specs"),
    Room(
        "optplug/groups.py",
        "torch optplug.complaints optplug.errors optplug.plain optplug.presets optplug.selection",
    ),
    Room(
        "optplug/build.py",
        "torch optplug.arguments optplug.combined optplug.complaints optplug.config optplug.errors optplug.groups "
        "optplug.keywords optplug.parsing optplug.plain optplug.presets optplug.registry optplug.schedules "
        "optplug.selection",
        "optplug.functions",
    ),
    # What knows Lightning. The wiring finds out which of its two names is installed, see DYNAMIC.
    Room("optplug/wiring/callback.py", f"{LIGHTNING} {WIRING}"),
    Room("optplug/wiring/cli.py", f"{LIGHTNING} {WIRING} optplug.explaining", "jsonargparse"),
    Room("optplug/wiring/*.py", WIRING),
    Room("optplug/lightning.py", "lightning optplug.wiring"),
    Room("optplug/pytorch_lightning.py", "pytorch_lightning optplug.wiring"),
    # Names for a command line that is not ours: jsonargparse, and no Lightning.
    Room(
        "optplug/shims/making.py",
        "torch jsonargparse optplug.arguments optplug.complaints optplug.config optplug.errors optplug.registry "
        "optplug.specs",
        "optplug.build",
    ),
    Room("optplug/shims/*.py", "optplug.shims"),
    # On top of everything.
    Room("optplug/cli/files.py", f"yaml {WHOLE_FRAMEWORK}", "omegaconf"),
    Room("optplug/cli/configs.py", f"typer yaml {WHOLE_FRAMEWORK}", "torch jsonargparse"),
    Room("optplug/cli/*.py", f"typer rich torch numpy {WHOLE_FRAMEWORK}", "matplotlib"),
    Room("optplug/bench/*.py", f"torch {WHOLE_FRAMEWORK}", "matplotlib"),
    Room("optplug/testing/*.py", f"torch pytest {WHOLE_FRAMEWORK}"),
    Room("optplug/__main__.py", "optplug.cli"),
    # Our plugins: what any author may use.
    Room("plugins/*/__init__.py", "optplug.hookspecs optplug.specs"),
    Room(
        "plugins/optplug_classic/*.py",
        "torch optplug.curvature optplug.errors optplug.keywords optplug.ops optplug.ranges optplug.rules.driver "
        "optplug.rules.execution optplug.rules.constructors optplug.rules.hypers optplug.rules.parameters "
        "optplug.rules.state optplug_classic",
    ),
    Room(
        "plugins/optplug_schedules/*.py",
        "torch optplug.errors optplug.following optplug.keywords optplug.rates optplug.schedules optplug_schedules",
    ),
)

DYNAMIC = {
    "optplug/__init__.py": "its own public names, on first use",
    "optplug/registry.py": "a plugin's target",
    "optplug/wiring/callback.py": "the installed names of Lightning",
    "optplug/wiring/cli.py": "the installed names of Lightning",
    "optplug/cli/configs.py": "the model that --model names",
}
"""The files that may import what is named at run time, and what that is."""

KNOWS_LIGHTNING = ("optplug.lightning", "optplug.pytorch_lightning", "optplug.wiring.callback", "optplug.wiring.cli")

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


def room_of(file: str) -> Room:
    rooms = [room for room in ROOMS if fnmatchcase(file, room.files)]
    assert rooms, f"{file} has no row in ROOMS: say there what it may import"
    return rooms[0]


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


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_room_may(file):
    room = room_of(file)
    wrong = [
        f"{file}:{line} imports {module}"
        for module, within_function, line in imports(parsed(file))
        if not is_standard(module)
        and not is_within(module, room.at_import)
        and not (within_function and is_within(module, room.within_functions))
    ]
    assert not wrong, f"{room.files} may import {room.at_import or 'the standard library only'}"


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_by_computed_name_only_where_that_is_its_job(file):
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


def test_the_table_has_no_row_that_lets_a_low_room_know_a_high_one():
    for room in ROOMS:
        low = room.files.startswith(("optplug/rules", "optplug/engines", "optplug/ops", "optplug/schedules", "plugins"))
        for high in ("optplug.registry", "optplug.wiring", "optplug.build", "optplug.config", "lightning", "optplug"):
            assert not (low and high in room.at_import.split()), room
    assert "optplug.rules.driver" not in room_of("optplug/engines/loop.py").at_import.split()
    assert "optplug.engines" not in room_of("optplug/rules/trace.py").at_import.split()


def run(program: str, *options: str) -> str:
    ran = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_an_algorithm_is_one_short_file():
    lengths = {
        file.stem: len(file.read_text().splitlines())
        for file in (ROOT / "plugins/optplug_classic").glob("*.py")
        if file.stem != "__init__"
    }
    print(lengths)
    assert len(lengths) == 11
    assert all(length <= (250 if name == "lbfgs" else 85) for name, length in lengths.items()), lengths
    assert sum(lengths.values()) - lengths["adamw"] < 900, "the ten of the documentation"


def test_nothing_but_the_wiring_brings_lightning_in():
    apart = (*KNOWS_LIGHTNING, "optplug.cli.", "optplug.__main__")  # the command runs, and needs an extra
    others = sorted(name for name in MODULES if not name.startswith(apart))
    loaded = run(
        f"import importlib, sys\nfor name in {others}: importlib.import_module(name)\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)), len(sys.modules))"
    )
    assert loaded.startswith("[] "), loaded


def test_listing_our_names_imports_neither_torch_nor_lightning_nor_numpy():
    heavy = (
        "{'torch', 'lightning', 'pytorch_lightning', 'lightning_fabric', 'numpy', 'numba', 'simpleeval', 'optplug.ops'}"
    )
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
    return [offer.name for offer in registry.offers(kind) if offer.plugin.distribution == "optplug"]


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
