"""What the documents say, tried."""

from __future__ import annotations

import inspect
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch

import optplug
from optplug import errors, testing
from optplug.config.model import WIRING_KEYS
from optplug.registry import Registry, hookspecs
from optplug.registry.specs import OptimizerSpec, SchedulerSpec

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def code(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS[page], re.DOTALL)


def test_every_public_name_is_in_the_reference() -> None:
    missing = [name for name in optplug.__all__ if name not in DOCS["reference.md"]]

    assert missing == []


@pytest.mark.parametrize("hook", ["optplug_optimizers", "optplug_schedulers"])
def test_every_hook_is_documented_with_its_signature(hook: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")

    assert f"def {hook}{signature}" in DOCS["plugins.md"]


@pytest.mark.parametrize("spec", [OptimizerSpec, SchedulerSpec])
def test_every_capability_is_documented(spec: type[OptimizerSpec]) -> None:
    for word in spec.CAPABILITIES:
        assert f"`{word}`" in DOCS["plugins.md"]


@pytest.mark.parametrize("kind", WIRING_KEYS)
def test_every_wiring_key_is_documented(kind: str) -> None:
    section = DOCS["configuration.md"].partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    for key in WIRING_KEYS[kind]:
        assert f"| `{key}` |" in section


def test_every_op_is_documented() -> None:
    for op in optplug.ops.__all__:
        assert re.search(rf"\b{op}\b", DOCS["rules.md"])


def test_every_error_is_an_optplug_error_and_a_builtin() -> None:
    own = [c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__]
    classes = [c for c in own if c is not errors.OptplugError]

    assert classes
    for cls in classes:
        assert issubclass(cls, errors.OptplugError)
        assert issubclass(cls, (ValueError, TypeError, LookupError, RuntimeError, ImportError))


def test_every_link_between_documents_leads_somewhere() -> None:
    for page, text in DOCS.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (folder / target).exists(), f"{page} links to {target}"


def test_every_file_that_a_document_names_is_there_and_no_page_is_empty() -> None:
    pages = {**DOCS, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
    for page, text in pages.items():
        assert len(text.splitlines()) > 10, page
        for path in re.findall(r"\b(?:tests|benchmarks|examples|plugins)/[\w/]+\.\w+", text):
            assert (ROOT / path).exists(), f"{page} names {path}"


def test_the_commands_of_the_readme_are_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?\bmake ([a-z-]+)`?", DOCS["README.md"]):
        assert f"\n{target}:" in makefile


def test_the_plugin_of_the_readme_is_found_trains_and_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (block for block in code("README.md", "python") if "class Lion" in block)
    module = ModuleType("lion_plugin")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "lion_plugin", module)
    registry = Registry([EntryPoint("lion-plugin", "lion_plugin", "optplug")])

    assert [str(q) for q in registry.quarantined] == []
    assert registry.names("optimizer") == ["lion"]
    lion = registry.get("optimizer", "Lion")
    testing.check_optimizer(lion)


def test_the_test_of_the_plugin_page_collects_checks() -> None:
    (block,) = (block for block in code("plugins.md", "python") if "parametrize" in block)
    names: dict[str, object] = {}
    exec(block.replace('"lion"', '"adam"'), names)
    (mark,) = names["test_lion_conforms"].pytestmark
    argument, checks = mark.args

    assert argument == "check"
    assert checks
    checks[0]()


def test_the_rule_of_the_documentation_is_the_rule_of_adam() -> None:
    (block,) = (block for block in code("rules.md", "python") if "class Adam" in block)
    rule = inspect.getsource(optplug.get_optimizer("adam").rule)
    for line in block.partition("def rule")[2].splitlines()[1:4]:
        assert line.strip() in rule


def test_every_class_documents_each_of_its_arguments() -> None:
    for kind, names in (("optimizer", optplug.list_optimizers()), ("scheduler", optplug.list_schedulers())):
        for name in names:
            cls = getattr(optplug, f"get_{kind}")(name)
            for argument in inspect.signature(cls).parameters:
                assert re.search(rf"\b{argument}\b", cls.__doc__), f"{cls.__name__} does not document {argument}"


def test_the_version_is_that_of_the_distribution() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert declared is not None
    assert optplug.__version__ == declared[1]


# ---------------------------------------------------------------- torch.md, argument by argument

SECTIONS = re.findall(r"\n### (\w+) \(`(\w+)`\)\n\n(.*?)(?=\n\n|\Z)", DOCS["torch.md"] + "\n\n", re.DOTALL)


def rows(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in cells}


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    return {k: p for k, p in inspect.signature(cls).parameters.items() if k not in ("params", "optimizer")}


def both(name: str) -> tuple[type, type]:
    """Ours and torch's."""
    kind = "optimizer" if name in optplug.list_optimizers() else "scheduler"
    ours = getattr(optplug, f"get_{kind}")(name)
    return ours, getattr(torch.optim, ours.__name__, None) or getattr(torch.optim.lr_scheduler, ours.__name__)


def test_the_comparison_has_every_class_of_the_documentation() -> None:
    names = {name for _, name, _ in SECTIONS}

    assert len(names) == len(SECTIONS) == 16
    assert names == {*optplug.list_optimizers("optplug-classic:*"), *optplug.list_schedulers("optplug-schedules:*")} - {
        "adamw"
    }


@pytest.mark.parametrize(("title", "name", "table"), SECTIONS, ids=[name for _, name, _ in SECTIONS])
def test_the_comparison_is_true_argument_by_argument(title: str, name: str, table: str) -> None:
    ours, theirs = both(name)
    documented = rows(table)

    assert ours.__name__ == title
    assert set(documented) == {*arguments(ours), *arguments(theirs), *(["verbose"] if "Plateau" in title else [])}
    for column, cls in ((1, theirs), (2, ours)):
        for argument, cells in documented.items():
            parameter = arguments(cls).get(argument)
            default = None if parameter is None else parameter.default
            shown = "-" if parameter is None else "required" if default is inspect.Parameter.empty else repr(default)
            assert cells[column] == shown, f"{argument} of {cls}"


@pytest.mark.parametrize("name", [name for _, name, _ in SECTIONS])
def test_defaults_and_positions_are_torchs(name: str) -> None:
    ours, theirs = both(name)
    positional = [k for k, p in arguments(theirs).items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert list(arguments(ours))[: len(positional)] == positional
    for argument, parameter in arguments(theirs).items():
        assert arguments(ours)[argument].default == parameter.default, argument


@pytest.mark.parametrize(("name", "table"), [(name, table) for _, name, table in SECTIONS])
def test_the_allowed_ranges_are_those_that_are_checked(name: str, table: str) -> None:
    cls, _ = both(name)
    own = {r.name: r.words for r in getattr(cls, "ranges", ())}
    for argument, (*_, allowed) in rows(table).items():
        if argument in own:
            assert allowed.startswith(own[argument]), argument
