"""What the adapters share: the precedence of the packages, and specs made from a table of classes.

A name that several packages have means, in this order: the optimizer of a plugin that owns the name, such as those of
optplug; that of torch; that of the authors' own package (lion_pytorch, prodigyopt, schedulefree, dadaptation); that of
a collection (timm, pytorch_optimizer, optimi, heavyball, bitsandbytes, torchao, torch_optimizer); that of transformers.
`package:name` means that of the package.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optplug import OptimizerSpec, SchedulerSpec

PRECEDENCE = (
    "torch",
    # packages of the authors of an optimizer
    *("lion_pytorch", "prodigyopt", "schedulefree", "dadaptation"),
    # collections
    *("timm", "pytorch_optimizer", "optimi", "heavyball", "bitsandbytes", "torchao", "torch_optimizer"),
    "transformers",
)
"""The adapted packages. If several have a name, the name alone means the class of the first."""

NO_EMPTY_TENSOR = ((3, 4), (5,), ())
"""Shapes of the parameters in the conformance kit, for a class that does not take empty tensors."""

_EXPORTS = re.compile(
    r"\n(?:[ \t]*from[ \t]+[.\w]+[ \t]+import[ \t]+(\([^)]*\)|.*)"  # names that it imports
    r"|(?:class|def)[ \t]+(\w+)|(\w+)(?:[ \t]*:[^=\n]*)?[ \t]*=)"  # names that it defines
)
"""Matches the statements that give a module its names."""


@dataclass(frozen=True)
class Entry:
    """One class or function of a package, and how it is registered.

    Attributes:
        cls: the name of the class or function in the package.
        summary: one line for listings.
        name: the canonical name.
        fields: further fields of the spec.
    """

    cls: str
    summary: str
    name: str
    fields: Mapping[str, Any]


def entry(cls: str, summary: str, *capabilities: str, name: str = "", **fields: Any) -> Entry:
    """Describe one class or function of a package.

    Args:
        cls: the name of the class or function in the package.
        summary: one line for listings.
        capabilities: the capabilities of the spec.
        name: the canonical name. Default: `cls` in lower case.
        fields: further fields of the spec. A `target` replaces the class of the package, e.g. by an adapter class.
    """
    return Entry(cls, summary, name or cls.lower(), {"capabilities": frozenset(capabilities), **fields})


def optimizers(package: str, *entries: Entry, module: str = "", source: str = "") -> list[OptimizerSpec]:
    """Return the specs of the optimizers that the installed version of a package has: none if it is not installed.

    Args:
        package: the package, as it is imported.
        entries: the optimizers of all supported versions of the package.
        module: the module from which a user imports the classes. Default: the package.
        source: the file whose statements define or import the classes, relative to the package. Default: its
            `__init__.py`.
    """
    return [
        OptimizerSpec(
            each.name, summary=each.summary, precedence=precedence(package), package=distribution(package), **fields
        )
        for each, fields in _installed(package, entries, module, source)
    ]


def schedulers(package: str, *entries: Entry, module: str = "", source: str = "") -> list[SchedulerSpec]:
    """Return the specs of the schedulers that the installed version of a package has. Arguments: see `optimizers`."""
    return [
        SchedulerSpec(
            each.name, summary=each.summary, precedence=precedence(package), package=distribution(package), **fields
        )
        for each, fields in _installed(package, entries, module, source)
    ]


def distribution(package: str) -> str:
    """Return the name under which pip installs a package."""
    return "torch-optimi" if package == "optimi" else package


def precedence(package: str) -> int:
    """Return the precedence of the names of a package: its place in `PRECEDENCE`, from 1."""
    return 1 + PRECEDENCE.index(package)


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    return _origin(package) is not None


def exported_names(package: str, source: str = "") -> Container[str] | None:
    """Return the names that a file of a package defines or imports, without importing it.

    Args:
        package: the package. It must be installed.
        source: the file, relative to the package. Default: its `__init__.py`.

    Returns:
        the names: none if the installed version has no such file; None if its source text is not available.
    """
    origin = _origin(package) or Path()
    try:
        text = (origin.parent / source if source else origin).read_text(encoding="utf-8")
    except FileNotFoundError:
        return () if origin.suffix == ".py" else None
    except (OSError, UnicodeDecodeError):
        return None
    return {name for match in _EXPORTS.findall("\n" + text) for name in re.findall(r"\w+", " ".join(match))}


def _installed(
    package: str, entries: tuple[Entry, ...], module: str, source: str
) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Yield the entries that the installed version of a package has, each with the fields of its spec."""
    if not is_installed(package):
        return
    exported = exported_names(package, source)
    for each in entries:
        if exported is None or each.cls in exported:
            yield each, {"target": f"{module or package}:{each.cls}", **each.fields}


def _origin(package: str) -> Path | None:
    """Return the file that defines a package; None if there is none, as for a directory without `__init__.py`."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None
