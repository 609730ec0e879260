"""The subcommand `new`: writes the skeleton of a plugin distribution. The texts are in `new_templates.py`."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from optplug.cli import new_templates as templates
from optplug.errors import ConfigError
from optplug.registry import Registration, registry
from optplug.registry.specs import lookup_key, snake_case

TESTS = "tests"
"""The folder of the tests in a new distribution."""

Kind = Literal["rule", "class", "factory", "schedule"]

TARGETS: Mapping[Kind, Template] = {
    "rule": templates.RULE,
    "class": templates.CLASS,
    "factory": templates.FACTORY,
    "schedule": templates.SCHEDULE,
}
"""The template of the module with the class or function, for each kind."""


@dataclass(frozen=True)
class Project:
    """The names in a new distribution. The templates have these fields.

    Attributes:
        name: the registered name, in snake case; also the name of the package.
        distribution: the name of the distribution and of the plugin.
        object: the name of the class or function.
        kind: `"optimizer"` or `"scheduler"`.
        module: the module with the class or function, in the package.
        registered_name: the name that is certain to mean this plugin's class or function.
    """

    name: str
    distribution: str
    object: str
    kind: str
    module: str
    registered_name: str


def new(
    name: Annotated[
        str, typer.Argument(help="The name of the optimizer or schedule, in any case: sign_descent, 'Sign Descent'.")
    ],
    kind: Annotated[
        Kind,
        typer.Option(
            help="An update rule, which optplug runs on every engine; a class derived from torch.optim.Optimizer; a "
            "function that returns an optimizer; or a learning-rate schedule."
        ),
    ] = "rule",
    directory: Annotated[
        Path | None, typer.Option(help="The folder that gets the files. Default: ./NAME.", show_default=False)
    ] = None,
) -> None:
    """Write the skeleton of a plugin: pyproject.toml, an optimizer or a schedule, its tests, and a README."""
    try:
        project = new_project(name, kind)
        folder = directory or Path(project.distribution)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is not an empty folder: choose another name or --directory")
        others = _same_name(project)
        others = [other for other in others if other.spec.precedence == 0] or others
        files = project_files(project, kind)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(
        f"{project.kind} {project.name!r}: {project.object} in {folder / project.name / project.module}.py, "
        f"distribution and plugin {project.distribution!r}"
    )
    for path in files:
        typer.echo(f"    {folder / path}")
    typer.echo(f'next: cd {folder}; pip install -e ".[test]"; pytest')
    for other in others:
        typer.echo(f"warning: {_clash(project, other)}", err=True)


def new_project(text: str, kind: Kind) -> Project:
    """Return the names of a new distribution.

    Args:
        text: the name that the author typed: words in any case, with any separators.
        kind: what the distribution registers.

    Raises:
        ConfigError: a package cannot have the name, or another one has it.
    """
    given = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
    if re.fullmatch(r"[A-Z][A-Za-z0-9]*", given):
        class_name = given
    else:
        class_name = "".join(word[:1].upper() + word[1:] for word in snake_case(given).split("_"))
    name = snake_case(class_name)  # as a class without a spec would be registered
    _check_name(text, name)
    is_schedule = kind == "schedule"
    project = Project(
        name=name,
        distribution=name.replace("_", "-"),
        object=name if kind == "factory" else class_name,
        kind="scheduler" if is_schedule else "optimizer",
        module="schedule" if is_schedule else "optimizer",
        registered_name=name,
    )
    if any(other.spec.precedence == 0 for other in _same_name(project)):
        return Project(**{**asdict(project), "registered_name": f"{project.distribution}:{name}"})
    return project


def project_files(project: Project, kind: Kind) -> dict[str, str]:
    """Return the files of a new distribution, by path."""
    fields = asdict(project)
    hook, example = templates.OPTIMIZER_HOOK, templates.OPTIMIZER_EXAMPLE
    if kind == "schedule":
        hook, example = templates.SCHEDULE_HOOK, templates.SCHEDULE_EXAMPLE
    fields["summary"] = templates.SUMMARIES[kind]
    words = templates.CAPABILITIES.get(kind)
    fields["capabilities"] = f"\n            capabilities={words}," if words else ""
    fields["example"] = example.substitute(fields)
    contents = {
        "pyproject.toml": templates.PYPROJECT,
        "README.md": templates.README,
        f"{project.name}/__init__.py": hook,
        f"{project.name}/{project.module}.py": TARGETS[kind],
        f"{TESTS}/test_{project.name}.py": templates.TEST,
    }
    return {path: template.substitute(fields) for path, template in contents.items()}


def _check_name(text: str, name: str) -> None:
    """Raise ConfigError unless a new package can have the name.

    Args:
        text: what the author typed.
        name: the same in snake case.
    """
    if not text.isascii():
        raise ConfigError(f"{text!r} is not ASCII: a package has a name of a-z, 0-9 and '_', such as 'sign_descent'")
    if not name:
        raise ConfigError(f"{text!r} has no letter: choose a name such as 'sign_descent'")
    if not name[0].isalpha():
        raise ConfigError(f"{text!r} does not begin with a letter: choose a name such as {'opt_' + name!r}")
    if owner := _owner(name):
        raise ConfigError(f"{name!r} is {owner}: choose another name, such as {'my_' + name!r}")


def _owner(name: str) -> str:
    """Return in words what has the name of a package already; empty if nothing has it."""
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name):
        return "a word of Python"
    if name in sys.stdlib_module_names:
        return "a module of Python's standard library"
    if name == TESTS:
        return "the folder of the plugin's tests"
    used = (*registry.plugins, *(each.plugin for each in registry.quarantined), *registry.disabled)
    for plugin in used:
        if lookup_key(name) == lookup_key(plugin.name):
            return f"the installed plugin {plugin}"
    found = importlib.util.find_spec(name)
    is_package = found is not None and found.origin is not None  # no origin: a folder, such as a new project
    return f"the installed module {found.origin}" if found is not None and is_package else ""


def _same_name(project: Project) -> list[Registration]:
    """Return the registrations of installed plugins that have the name."""
    registrations = registry.registrations(project.kind)
    return [each for each in registrations if lookup_key(each.name) == lookup_key(project.name)]


def _clash(project: Project, other: Registration) -> str:
    message = f"plugin {other.plugin} registers {project.kind} {other.name!r} too"
    own = f"{project.distribution}:{project.name}"
    if other.spec.precedence:
        return f"{message}: {project.name!r} alone will mean the new plugin, {other.qualified_name!r} the other"
    return f"{message}: {project.name!r} alone will be ambiguous; write {own!r} or {other.qualified_name!r}"
