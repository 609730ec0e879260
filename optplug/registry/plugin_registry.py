"""Names and plugins: discovery, isolation and look-up. Imports no plugin until asked, and torch never."""

from __future__ import annotations

import importlib
import os
import re
import threading
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from optplug.errors import (
    AmbiguousNameError,
    ConfigTypeError,
    PluginError,
    UnknownNameError,
    describe,
    did_you_mean,
    listing,
)
from optplug.registry import hookspecs
from optplug.registry.specs import FunctionSpec, OptimizerSpec, SchedulerSpec, Spec, lookup_key, spec_of

GROUP = "optplug"
DISABLE = "OPTPLUG_DISABLE"
KINDS: dict[str, type[Spec]] = {"optimizer": OptimizerSpec, "scheduler": SchedulerSpec, "function": FunctionSpec}
HOOKS = {kind: f"optplug_{kind}s" for kind in KINDS}
METHODS = {
    "optimizer": ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict"),
    "scheduler": ("step", "state_dict", "load_state_dict"),
    "function": ("__call__",),
}
"""What a class of each kind must have; torch is not asked, since listing names must not import it."""


@dataclass(frozen=True)
class Plugin:
    """An installed plugin: its entry-point name and the distribution and version it came with."""

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Quarantined:
    """A plugin left out because it raised or returned nonsense."""

    plugin: Plugin
    cause: str
    traceback: str

    def __str__(self) -> str:
        return f"plugin {self.plugin} was left out: {self.cause}"


@dataclass(frozen=True)
class Registration:
    """A spec together with the plugin that offers it."""

    spec: Spec
    plugin: Plugin

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def qualified(self) -> str:
        return f"{self.plugin.name}:{self.spec.name}"

    def load(self) -> Any:
        """Import the class, or the function.

        Raises:
            PluginError: when the import fails or what was imported is no optimizer (or scheduler) class, no function.
        """
        target = self.spec.target
        if isinstance(target, str):
            module, _, path = target.partition(":")
            try:
                found: Any = importlib.import_module(module)
                for part in path.split("."):
                    found = getattr(found, part)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too, and what a compiled extension makes of a panic
                raise PluginError(
                    f"{self.spec.kind} {self.name!r} of plugin {self.plugin} could not be loaded from {target!r}: "
                    f"{describe(error)}"
                ) from error
        else:
            found = target
        kind = self.spec.kind
        missing = [m for m in METHODS[kind] if not callable(getattr(found, m, None))]
        fits = self.spec.is_thing(found)
        if not fits or missing:
            wanted = kind if kind in self.spec.thing else f"{kind} {self.spec.thing[0]}"
            raise PluginError(
                f"{kind} {self.name!r} of plugin {self.plugin} is {found!r}, which is no {wanted}"
                + (f" (it has no {listing(missing)})" if fits else "")
            )
        return found


@dataclass
class _Catalogue:
    """What one discovery found."""

    manager: pluggy.PluginManager
    registrations: dict[str, dict[str, list[Registration]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    plugins: list[Plugin] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    disabled: list[Plugin] = field(default_factory=list)


class Registry:
    """Finds what plugins offer.

    Args:
        points: the entry points to look at. Default: those of group `optplug` of every installed distribution.

    Discovery happens on the first listing or look-up and once; `reload` forgets it. Each plugin is isolated: one that
    raises, returns nonsense or shares its name with another plugin is quarantined, and the others go on.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._points = None if points is None else tuple(points)
        self._lock = threading.RLock()
        self._discovering = False
        self._found: _Catalogue | None = None
        self._loaded: dict[Registration, Any] = {}

    def reload(self) -> None:
        """Forget what was found; the next look-up discovers anew."""
        with self._lock:
            self._found = None
            self._loaded.clear()
            importlib.invalidate_caches()  # what was installed since this process started

    @property
    def plugins(self) -> Sequence[Plugin]:
        """The plugins in use, by name."""
        return tuple(self._catalogue().plugins)

    @property
    def quarantined(self) -> Sequence[Quarantined]:
        """The plugins left out, each with its cause and traceback."""
        return tuple(self._catalogue().quarantined)

    @property
    def disabled(self) -> Sequence[Plugin]:
        """The plugins that OPTPLUG_DISABLE leaves out."""
        return tuple(self._catalogue().disabled)

    @property
    def manager(self) -> pluggy.PluginManager:
        """The pluggy manager that holds the plugins in use."""
        return self._catalogue().manager

    def names(self, kind: str, pattern: str = "*") -> list[str]:
        """Sorted canonical names of a kind that match a glob; a name that two plugins offer is spelt `plugin:name`.

        Args:
            kind: `"optimizer"`, `"scheduler"` or `"function"`.
            pattern: a glob over canonical names (`"ada*"`), or over `plugin:name` when it contains a colon. Case does
                not count and `-` is `_`.
        """
        _must_be_text("pattern", pattern)
        return sorted(spelling for spelling, _ in self._spelled(kind, pattern))

    def registrations(self, kind: str, pattern: str = "*") -> list[Registration]:
        """The offers behind `names`, in its order."""
        return [registration for _, registration in sorted(self._spelled(kind, pattern), key=lambda pair: pair[0])]

    def find(self, kind: str, name: str) -> Registration:
        """The offer of a name (any case, `-` or `_`), or of `plugin:name`.

        Raises:
            UnknownNameError: nobody offers it; the message has the nearest names and every quarantined plugin.
            AmbiguousNameError: two plugins offer it; the message spells both as `plugin:name`.
            ConfigTypeError: `name` is not text.
        """
        _must_be_text(f"{kind} name", name)
        plugin, colon, bare = name.rpartition(":")
        found = self._catalogue().registrations[kind].get(lookup_key(bare), [])
        if colon:
            found = [
                registration for registration in found if lookup_key(registration.plugin.name) == lookup_key(plugin)
            ]
        if not found:
            raise UnknownNameError(self._unknown(kind, name))
        if len(found) > 1:
            spellings = " or ".join(repr(registration.qualified) for registration in found)
            raise AmbiguousNameError(f"{len(found)} plugins offer {kind} {name!r}: write {spellings}")
        return found[0]

    def get(self, kind: str, name: str) -> Any:
        """The class (or function) of a name; errors as in `find` and `Registration.load`."""
        registration = self.find(kind, name)
        if not isinstance(registration.spec.target, str):
            return registration.load()  # it is there already, and may be a function that has no hash
        if registration not in self._loaded:
            self._loaded[registration] = registration.load()
        return self._loaded[registration]

    # ------------------------------------------------------------------ look-up

    def _spelled(self, kind: str, pattern: str) -> list[tuple[str, Registration]]:
        pattern = re.sub(r"(\[[^]]*])|-", lambda match: match[1] or "_", pattern.lower())  # [a-c] keeps its -
        spelled = []
        for registrations in self._catalogue().registrations[kind].values():
            for registration in registrations:
                qualified = registration.qualified
                subject = qualified.lower().replace("-", "_") if ":" in pattern else registration.name
                if fnmatchcase(subject, pattern):
                    spelled.append((qualified if len(registrations) > 1 else registration.name, registration))
        return spelled

    def _unknown(self, kind: str, name: str) -> str:
        bare = name.rpartition(":")[2]
        hint = did_you_mean(bare, (registration.name for registration in self.registrations(kind))) or "."
        message = f"no {kind} named {name!r}{hint} Installed: {listing(self.names(kind))}."
        for other in KINDS:
            if other != kind and lookup_key(bare) in self._catalogue().registrations[other]:
                message += f" ({bare!r} is a {other}.)"
        for quarantined in self.quarantined:
            message += f" ({quarantined}.)"
        if self.disabled:
            message += f" ({DISABLE} leaves out {listing(p.name for p in self.disabled)}.)"
        return message

    # ---------------------------------------------------------------- discovery

    def _catalogue(self) -> _Catalogue:
        with self._lock:
            if self._discovering:  # only a plugin in the middle of its own loading gets here; anyone else waits
                raise PluginError("a plugin may not ask for names while plugins are being loaded")
            if self._found is None:
                self._discovering = True
                try:
                    self._found = self._discover()
                finally:
                    self._discovering = False
            return self._found

    def _discover(self) -> _Catalogue:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        catalogue = _Catalogue(manager)
        disabled = {_loose(word) for word in os.environ.get(DISABLE, "").replace(",", " ").split()}

        # One distribution may be seen twice (an editable install next to a build): the first on the path counts.
        points: dict[tuple[str, str], tuple[Plugin, EntryPoint]] = {}
        for point in self._points if self._points is not None else entry_points(group=GROUP):
            plugin = _provenance(point)
            points.setdefault((plugin.name, _loose(plugin.distribution)), (plugin, point))
        by_name: dict[str, list[tuple[Plugin, EntryPoint]]] = {}
        for _, (plugin, point) in sorted(points.items()):
            if {_loose(plugin.name), _loose(plugin.distribution)} & disabled:
                catalogue.disabled.append(plugin)
            else:
                by_name.setdefault(lookup_key(plugin.name), []).append((plugin, point))

        for claims in by_name.values():
            for plugin, point in claims:
                try:
                    if len(claims) > 1:
                        others = listing(p.distribution for p, _ in claims if p is not plugin)
                        raise PluginError(
                            f"{others} also has a plugin named {plugin.name!r}; put one distribution into {DISABLE}"
                        )
                    self._admit(catalogue, plugin, point)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # SystemExit too, and what a compiled extension makes of a panic
                    if manager.has_plugin(point.name):
                        manager.unregister(name=point.name)
                    catalogue.quarantined.append(Quarantined(plugin, describe(error), traceback.format_exc()))
        return catalogue

    def _admit(self, catalogue: _Catalogue, plugin: Plugin, point: EntryPoint) -> None:
        manager = catalogue.manager
        implementation = point.load()
        if manager.is_registered(implementation):
            raise PluginError(f"{point.value!r} is already in use as plugin {manager.get_name(implementation)!r}")
        manager.register(implementation, name=point.name)
        manager.check_pending()
        hooks = manager.get_hookcallers(implementation)
        if not hooks:
            raise PluginError(f"{point.value!r} implements no optplug hook ({listing(HOOKS.values())})")
        others = [p for name, p in manager.list_name_plugin() if name != point.name]
        accepted: list[tuple[str, Registration]] = []
        for kind, spec_class in KINDS.items():
            hook = HOOKS[kind]
            if getattr(manager.hook, hook) not in hooks:
                continue
            seen: set[str] = set()
            for result in manager.subset_hook_caller(hook, others)() or [None]:  # pluggy drops a None
                for spec in _specs(hook, result, spec_class):
                    key = lookup_key(spec.name)
                    if key in seen:
                        raise PluginError(f"{hook}() returned {spec.name!r} twice")
                    seen.add(key)
                    registration = Registration(spec, plugin)
                    if not isinstance(spec.target, str):
                        registration.load()  # nothing to import, so nonsense shows at once
                    accepted.append((kind, registration))
        for kind, registration in accepted:
            catalogue.registrations[kind].setdefault(lookup_key(registration.name), []).append(registration)
        catalogue.plugins.append(plugin)


def _specs(hook: str, result: Any, spec_class: type[Spec]) -> list[Spec]:
    if not isinstance(result, (list, tuple)):
        raise PluginError(f"{hook}() returned {result!r}; it must return a list of specs or {spec_class.thing[1]}")
    specs = []
    for item in result:
        if isinstance(item, spec_class):
            specs.append(item)
        elif spec_class.is_thing(item) and not (isinstance(item, type) and issubclass(item, Spec)):
            specs.append(spec_of(spec_class, item))
        else:
            wanted = f"{spec_class.__name__} or {spec_class.thing[1]}"
            raise PluginError(f"{hook}() returned {item!r} in its list; items must be {wanted}")
    return specs


def _provenance(point: EntryPoint) -> Plugin:
    """Where a plugin comes from; where its metadata is missing or damaged, its module stands for the distribution."""
    module = point.value.partition(":")[0]
    try:
        distribution: Any = point.dist
        return Plugin(point.name, distribution.name or module, distribution.version or "?")
    except Exception:
        return Plugin(point.name, module, "?")


def _loose(name: str) -> str:
    """What plugins and distributions are compared by: as a look-up, and `.` does not count either."""
    return lookup_key(name).replace(".", "")


def _must_be_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigTypeError(f"{what} must be text, got {value!r} ({type(value).__name__})")


registry = Registry()
"""The registry of this process."""


def list_optimizers(pattern: str = "*") -> list[str]:
    """Sorted canonical names of the installed optimizers.

    Args:
        pattern: a glob, e.g. `"ada*"`, or `"plugin:*"`. Default: all.
    """
    return registry.names("optimizer", pattern)


def list_schedulers(pattern: str = "*") -> list[str]:
    """Sorted canonical names of the installed schedulers.

    Args:
        pattern: a glob, e.g. `"*_lr"`, or `"plugin:*"`. Default: all.
    """
    return registry.names("scheduler", pattern)


def get_optimizer(name: str) -> type:
    """The optimizer class of a name: any case, `-` or `_`, or `plugin:name`.

    Raises:
        UnknownNameError: nobody offers it. AmbiguousNameError: several plugins do. PluginError: it cannot be loaded.
    """
    found: type = registry.get("optimizer", name)
    return found


def get_scheduler(name: str) -> type:
    """The scheduler class of a name; names and errors as in `get_optimizer`."""
    found: type = registry.get("scheduler", name)
    return found
