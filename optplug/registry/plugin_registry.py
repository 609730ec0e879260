"""The registry: discovers plugins, isolates faulty ones, and resolves names.

Plugins are imported on the first listing or look-up. This file does not import torch.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import pluggy

from optplug.errors import (
    AmbiguousNameError,
    ConfigTypeError,
    PluginError,
    UnknownNameError,
    did_you_mean,
    listing,
    nearest,
    one_line,
    short_list,
)
from optplug.registry import hookspecs
from optplug.registry.specs import (
    FunctionSpec,
    OptimizerSpec,
    SchedulerSpec,
    Spec,
    errors_kept,
    is_rule,
    lookup_key,
    snake_case,
    spec_from_target,
)

ENTRY_POINT_GROUP = "optplug"
DISABLE_VARIABLE = "OPTPLUG_DISABLE"
"""Environment variable with the names of plugins or distributions that are not loaded."""

MAX_CAUSES = 3
"""The number of quarantined plugins whose causes the error about an unknown name has."""

MAX_NAME_LENGTH = 80
"""The length at which the name of a rejected item is cut; for most, it is a representation."""

KINDS: dict[str, type[Spec]] = {"optimizer": OptimizerSpec, "scheduler": SchedulerSpec, "function": FunctionSpec}
HOOK_NAMES = {kind: f"optplug_{kind}s" for kind in KINDS}
SLOW_PACKAGES = ("torch", "lightning", "pytorch_lightning", "numpy")
"""Packages that a plugin should not import before one of its names is used."""

REQUIRED_METHODS = {
    "optimizer": ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict"),
    "scheduler": ("step", "state_dict", "load_state_dict"),
    "function": ("__call__",),
}
"""Methods that a class of each kind must have. Base classes are not checked, since that would import torch."""


@dataclass(frozen=True)
class Plugin:
    """An installed plugin.

    Attributes:
        name: the name of its entry point.
        distribution: the distribution that contains the entry point; the plugin's module if this is unknown.
        version: the version of the distribution; `?` if it is unknown.
    """

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class QuarantinedPlugin:
    """A plugin that is not used because it raised an exception or returned invalid values.

    Attributes:
        plugin: the plugin.
        cause: the exception, on one line.
        traceback: the traceback of the exception.
    """

    plugin: Plugin
    cause: str
    traceback: str

    def __str__(self) -> str:
        return f"plugin {self.plugin} is quarantined: {self.cause}"


@dataclass(frozen=True)
class PluginLoad:
    """What it took to load a plugin, also one that was then quarantined.

    Attributes:
        plugin: the plugin.
        seconds: the time for the import of its entry point and for its hooks.
        names: how many names it registers.
        imported: those of `SLOW_PACKAGES` that it imported first.
        gives_way_to: for an adapter that is not used: the plugin that has its name and is no adapter.
    """

    plugin: Plugin
    seconds: float
    names: int
    imported: tuple[str, ...]
    gives_way_to: Plugin | None = None


@dataclass(frozen=True)
class RejectedItem:
    """One item of a plugin's hook that is not used. The other items of the plugin are.

    Attributes:
        plugin: the plugin.
        kind: `"optimizer"`, `"scheduler"` or `"function"`.
        name: the name of the item, or its representation if it has no valid name.
        cause: why it is not used, on one line.
    """

    plugin: Plugin
    kind: str
    name: str
    cause: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of plugin {self.plugin} is not used: {self.cause}"


class Source(NamedTuple):
    """A distribution that contains a registered class."""

    distribution: str
    version: str
    """Its version; `?` if it is unknown."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@functools.cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except Exception:  # it is not installed, or its metadata is damaged
        return "?"


@dataclass(frozen=True)
class Registration:
    """A spec and the plugin that registered it."""

    spec: Spec
    plugin: Plugin

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def qualified_name(self) -> str:
        """The name as `plugin:name`."""
        return f"{self.plugin.name}:{self.spec.name}"

    @property
    def source(self) -> Source:
        """The distribution that contains the class: that of the plugin, or for an adapter the adapted package."""
        package = self.spec.package
        return Source(package, _version(package)) if package else Source(self.plugin.distribution, self.plugin.version)

    @property
    def is_fused(self) -> bool:
        """Whether the class is a RuleOptimizer. If it is not imported yet, its spec must say so: `fused`."""
        return "fused" in self.spec.capabilities or is_rule(self.spec.target)

    def load(self) -> Any:
        """Import and return the class or function.

        Raises:
            PluginError: the import fails, or the imported object is not a class or function of the registered kind.
        """
        found, kind = self._imported(self.spec.target), self.spec.kind
        required = REQUIRED_METHODS[kind] if isinstance(found, type) or kind == "function" else ()
        missing = [method for method in required if not callable(getattr(found, method, None))]
        has_right_type = self.spec.is_valid_target(found)
        if not has_right_type or missing:
            noun = self.spec.target_nouns[0]
            wanted = kind if kind == noun else f"{kind} {noun}"
            article = "an" if wanted[0] in "aeiou" else "a"
            raise PluginError(
                f"{kind} {self.name!r} of plugin {self.plugin} is {found!r}, which is not {article} {wanted}"
                + (f" (it lacks {listing(missing)})" if has_right_type else "")
            )
        return found

    def load_build(self) -> Callable[..., Any] | None:
        """Import and return the function `build` of an optimizer's spec; None without one.

        Raises:
            PluginError: the import fails, or the imported object is not callable.
        """
        build: Callable[..., Any] | None = self._imported(getattr(self.spec, "build", None))
        if build is not None and not callable(build):
            raise PluginError(f"build of {self.spec.kind} {self.name!r} of plugin {self.plugin} is {build!r}")
        return build

    def _imported(self, target: Any) -> Any:
        """Return the object that `"module:object"` names; other values unchanged.

        Raises:
            PluginError: the import fails.
        """
        if not isinstance(target, str):
            return target
        module, _, path = target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # includes SystemExit and panics of compiled extensions
            raise PluginError(
                f"{self.spec.kind} {self.name!r} of plugin {self.plugin} could not be loaded from {target!r}: "
                f"{one_line(error)}"
            ) from error
        return found


@dataclass
class _Discovery:
    """The result of one discovery.

    Attributes:
        manager: the pluggy manager with the plugins in use.
        registrations: by kind, and by `lookup_key` of the name, one registration for each plugin.
        plugins: the plugins in use.
        quarantined: the plugins that failed.
        rejected: the items of plugins in use that are invalid.
        loads: what it took to load each plugin.
        disabled: the plugins that OPTPLUG_DISABLE names.
    """

    manager: pluggy.PluginManager
    registrations: dict[str, dict[str, list[Registration]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    plugins: list[Plugin] = field(default_factory=list)
    quarantined: list[QuarantinedPlugin] = field(default_factory=list)
    rejected: list[RejectedItem] = field(default_factory=list)
    loads: list[PluginLoad] = field(default_factory=list)
    disabled: list[Plugin] = field(default_factory=list)


class Registry:
    """Finds installed plugins and resolves the names that they register.

    Discovery runs once, on the first listing or look-up; `reload` discards its result. Each plugin is isolated: a
    plugin that raises an exception or has the name of another plugin is quarantined, and the other plugins are used.
    Each item that a plugin returns is isolated too: an invalid one is rejected, and the others are used.

    Args:
        points: the entry points to load. Default: those of the group `optplug` of all installed distributions.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None) -> None:
        self._points = None if entry_points is None else tuple(entry_points)
        self._lock = threading.RLock()
        self._is_discovering = False
        self._result: _Discovery | None = None
        self._loaded: dict[Registration, Any] = {}

    def reload(self) -> None:
        """Discard the result of the discovery; the next listing or look-up discovers again."""
        with self._lock:
            self._result = None
            self._loaded.clear()
            _version.cache_clear()
            importlib.invalidate_caches()  # finds modules that were installed after this process started

    @property
    def plugins(self) -> Sequence[Plugin]:
        """The plugins in use, sorted by name."""
        return tuple(self._discovered().plugins)

    @property
    def quarantined(self) -> Sequence[QuarantinedPlugin]:
        """The quarantined plugins, each with its cause and traceback."""
        return tuple(self._discovered().quarantined)

    @property
    def rejected(self) -> Sequence[RejectedItem]:
        """The items of plugins in use that are invalid, each with the cause."""
        return tuple(self._discovered().rejected)

    @property
    def loads(self) -> Sequence[PluginLoad]:
        """What it took to load each plugin that is not disabled."""
        return tuple(self._discovered().loads)

    @property
    def disabled(self) -> Sequence[Plugin]:
        """The plugins that the environment variable OPTPLUG_DISABLE disables."""
        return tuple(self._discovered().disabled)

    @property
    def manager(self) -> pluggy.PluginManager:
        """The pluggy manager with the plugins in use."""
        return self._discovered().manager

    def names(self, kind: str, pattern: str = "*") -> list[str]:
        """Return the sorted names of a kind, one for each registration: the shortest that means this registration.

        If several plugins register a name, that is the name alone for the one of the lowest precedence, and
        `plugin:name` for the others.

        Args:
            kind: `"optimizer"`, `"scheduler"` or `"function"`.
            pattern: a glob over canonical names (`"ada*"`), or over `plugin:name` if it contains a colon. Case is
                ignored, and `-` equals `_`. Default: all names.

        Raises:
            ConfigTypeError: `pattern` is not text.
        """
        return [name for name, _ in self.named_registrations(kind, pattern)]

    def registrations(self, kind: str, pattern: str = "*") -> list[Registration]:
        """Return the registrations of `names`, in the same order."""
        return [registration for _, registration in self.named_registrations(kind, pattern)]

    def named_registrations(self, kind: str, *patterns: str) -> list[tuple[str, Registration]]:
        """Return each of `names` that matches one of the patterns, with its registration."""
        found: dict[str, Registration] = {}
        for pattern in patterns:
            _check_is_text("pattern", pattern)
            found.update(self._matching(kind, pattern))
        return sorted(found.items(), key=lambda pair: pair[0])

    def resolve(self, kind: str, name: str) -> Registration:
        """Return the registration of a name.

        If several plugins register the name, that is the one of the lowest precedence.

        Args:
            kind: `"optimizer"`, `"scheduler"` or `"function"`.
            name: the name, or `plugin:name`. Case, `-` and `_` are ignored.

        Raises:
            UnknownNameError: no plugin registers the name; the message has similar names and all quarantined plugins.
            AmbiguousNameError: several plugins register the name with the same precedence; the message has each as
                `plugin:name`.
            ConfigTypeError: `name` is not text.
        """
        _check_is_text(f"{kind} name", name)
        plugin, colon, bare = name.rpartition(":")
        found = self._discovered().registrations[kind].get(lookup_key(bare), [])
        if colon:
            found = [each for each in found if lookup_key(each.plugin.name) == lookup_key(plugin)]
        if not found:
            raise UnknownNameError(self._unknown_name_message(kind, name))
        first = _of_lowest_precedence(found)
        if len(first) > 1:
            choices = " or ".join(repr(registration.qualified_name) for registration in first)
            raise AmbiguousNameError(f"{len(first)} plugins register {kind} {name!r}: write {choices}")
        return first[0]

    def others(self, registration: Registration) -> list[Registration]:
        """Return the registrations of other plugins with the same name, in the order of their precedence."""
        same_name = self._discovered().registrations[registration.spec.kind].get(lookup_key(registration.name), [])
        others = [each for each in same_name if each is not registration]
        return sorted(others, key=lambda each: (each.spec.precedence, each.plugin.name))

    def alternatives(self, kind: str, name: str) -> list[str]:
        """Return the names, as `plugin:name`, that other plugins have for a name without plugin; else none.

        Errors: see `resolve`.
        """
        return [] if ":" in name else [each.qualified_name for each in self.others(self.resolve(kind, name))]

    def others_text(self, kind: str, name: str) -> str:
        """Return `"also torch:adam, timm:adam and 3 more"` if other plugins have a name without plugin; else `""`.

        Errors: see `resolve`.
        """
        others = self.alternatives(kind, name)
        return f"also {short_list(others, limit=3)}" if others else ""

    def get(self, kind: str, name: str) -> Any:
        """Return the class or function of a name. Errors: see `resolve` and `Registration.load`."""
        registration = self.resolve(kind, name)
        if not isinstance(registration.spec.target, str):
            return registration.load()  # not cached: there is nothing to import, and the target may be unhashable
        if registration not in self._loaded:
            self._loaded[registration] = registration.load()
        return self._loaded[registration]

    # ------------------------------------------------------------------ look-up

    def _matching(self, kind: str, pattern: str) -> Iterator[tuple[str, Registration]]:
        """Yield the registrations that match a glob, each with the shortest name that resolves to it."""
        # A `-` in brackets, as in [a-c], is a range.
        pattern = re.sub(r"(\[[^]]*])|-", lambda match: match[1] or "_", pattern.lower())
        for registrations in self._discovered().registrations[kind].values():
            first = _of_lowest_precedence(registrations)
            for registration in registrations:
                qualified_name = registration.qualified_name
                text = qualified_name.lower().replace("-", "_") if ":" in pattern else registration.name
                if fnmatchcase(text, pattern):
                    yield (registration.name if first == [registration] else qualified_name), registration

    def _unknown_name_message(self, kind: str, name: str) -> str:
        plugin, colon, bare = name.rpartition(":")
        message = f"no {kind} named {name!r}"
        hint = self._hint_for_qualified_name(kind, plugin, bare) if colon else ""
        if hint := hint or did_you_mean(bare, (registration.name for registration in self.registrations(kind))):
            message += f"{hint} `optplug list` shows all names."
        else:
            message += f"; installed: {short_list(self.names(kind), 'optplug list')}."
        for other in KINDS:
            if other != kind and lookup_key(bare) in self._discovered().registrations[other]:
                message += f" ({bare!r} is {'an' if other[0] in 'aeiou' else 'a'} {other}.)"
        for rejected in self.rejected:
            if rejected.kind == kind and lookup_key(rejected.name) == lookup_key(bare):
                message += f" ({rejected}.)"
        for quarantined in self.quarantined[:MAX_CAUSES]:
            message += f" ({quarantined}.)"
        if further := [each.plugin.name for each in self.quarantined[MAX_CAUSES:]]:
            message += f" (Also quarantined: {short_list(further)}; `optplug doctor` shows the causes.)"
        if self.disabled:
            message += f" ({DISABLE_VARIABLE} disables {listing(plugin.name for plugin in self.disabled)}.)"
        return message

    def _hint_for_qualified_name(self, kind: str, plugin: str, bare: str) -> str:
        """The nearest plugin, or the nearest names of the plugin, for an unknown `plugin:name`; empty without one."""
        registrations = [each for found in self._discovered().registrations[kind].values() for each in found]
        of_plugin = {lookup_key(each.plugin.name): each.plugin.name for each in registrations}
        if lookup_key(plugin) in of_plugin:
            names = [each.name for each in registrations if lookup_key(each.plugin.name) == lookup_key(plugin)]
            near = [f"{of_plugin[lookup_key(plugin)]}:{each}" for each in nearest(bare, names)]
            return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
        unused = [*(each.plugin for each in self.quarantined), *self.disabled]
        if lookup_key(plugin) in {lookup_key(each.name) for each in unused}:
            return ""
        near = nearest(plugin, of_plugin.values())
        named = [f"{each}:{bare}" for each in near if self._has(kind, each, bare)]
        shown = named or near
        return f": there is no plugin {plugin!r}" + (f"; did you mean {', '.join(map(repr, shown))}?" if shown else ".")

    def _has(self, kind: str, plugin: str, bare: str) -> bool:
        found = self._discovered().registrations[kind].get(lookup_key(bare), [])
        return any(each.plugin.name == plugin for each in found)

    # ---------------------------------------------------------------- discovery

    def _discovered(self) -> _Discovery:
        """Return the result of the discovery, which runs on the first call."""
        with self._lock:
            if self._is_discovering:  # the lock is reentrant: only a plugin that is being loaded can get here
                raise PluginError("a plugin must not look up names while plugins are being loaded")
            if self._result is None:
                self._is_discovering = True
                try:
                    self._result = self._discover()
                finally:
                    self._is_discovering = False
            return self._result

    def _discover(self) -> _Discovery:
        discovery = _Discovery(_new_manager())
        disabled = {_distribution_key(word) for word in os.environ.get(DISABLE_VARIABLE, "").replace(",", " ").split()}

        # A distribution can appear twice, e.g. an editable install and a build. The first one on the path is used.
        entry_points: dict[tuple[str, str], tuple[Plugin, EntryPoint]] = {}
        for point in self._points if self._points is not None else metadata.entry_points(group=ENTRY_POINT_GROUP):
            plugin = _plugin_of(point)
            entry_points.setdefault((plugin.name, _distribution_key(plugin.distribution)), (plugin, point))
        by_name: dict[str, list[tuple[Plugin, EntryPoint]]] = {}
        for _, (plugin, point) in sorted(entry_points.items()):
            if {_distribution_key(plugin.name), _distribution_key(plugin.distribution)} & disabled:
                discovery.disabled.append(plugin)
            else:
                by_name.setdefault(lookup_key(plugin.name), []).append((plugin, point))

        for candidates in by_name.values():
            # An adapter gives way to a plugin of its name, such as one of the adapted package.
            owners = [plugin for plugin, point in candidates if len(candidates) == 1 or not self._is_adapter(point)]
            owners = owners or [plugin for plugin, _ in candidates]
            for plugin, point in candidates:
                start, slow = time.perf_counter(), _imported_slow_packages()
                is_used = plugin in owners
                others = [other for other in owners if other is not plugin]
                names = self._load(discovery, plugin, point, others) if is_used else 0
                imported = tuple(name for name in _imported_slow_packages() if name not in slow)
                discovery.loads.append(
                    PluginLoad(plugin, time.perf_counter() - start, names, imported, None if is_used else owners[0])
                )
        return discovery

    def _is_adapter(self, point: EntryPoint) -> bool:
        """Return whether all specs of a plugin are for classes of another package. It may have none."""
        try:
            with errors_kept():
                items = self._hook_items(_new_manager(), point)
        except KeyboardInterrupt:
            raise
        except BaseException:  # it is quarantined with the cause when it is loaded
            return False
        return all(isinstance(item, Spec) and item.precedence > 0 for _, item in items)

    def _load(self, discovery: _Discovery, plugin: Plugin, point: EntryPoint, others: Sequence[Plugin]) -> int:
        """Load a plugin, or quarantine it if it fails. Return how many names it registers.

        Args:
            discovery: gets the registrations.
            plugin: the plugin.
            point: its entry point.
            others: other plugins with its name.
        """
        try:
            if others:
                raise PluginError(
                    f"{listing(other.distribution for other in others)} also has a plugin named {plugin.name!r}; "
                    f"disable one of the distributions with {DISABLE_VARIABLE}"
                )
            return self._register(discovery, plugin, point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # includes SystemExit and panics of compiled extensions
            if discovery.manager.has_plugin(point.name):
                discovery.manager.unregister(name=point.name)
            discovery.quarantined.append(QuarantinedPlugin(plugin, one_line(error), traceback.format_exc()))
            return 0

    def _register(self, discovery: _Discovery, plugin: Plugin, point: EntryPoint) -> int:
        """Load a plugin, and add its registrations. Return how many there are.

        Raises:
            PluginError: the plugin is invalid. Exceptions of the plugin's own code.
        """
        with errors_kept():
            items = self._hook_items(discovery.manager, point)
        accepted: dict[tuple[str, str], Registration] = {}
        for kind, item in items:
            try:
                registration = _registration(kind, item, plugin)
                key = kind, lookup_key(registration.name)
                if key in accepted:
                    raise PluginError(f"its name is that of {accepted[key].spec.target!r} (case and _ are ignored)")
                accepted[key] = registration
            except Exception as error:  # the item's own code, such as that of a metaclass, can raise anything
                discovery.rejected.append(RejectedItem(plugin, kind, _item_name(item), one_line(error)))
        for (kind, name), registration in accepted.items():
            discovery.registrations[kind].setdefault(name, []).append(registration)
        discovery.plugins.append(plugin)
        return len(accepted)

    def _hook_items(self, manager: pluggy.PluginManager, point: EntryPoint) -> list[tuple[str, Any]]:
        """Load an entry point, and return what its hooks return: the kind and the item.

        Raises:
            PluginError: the plugin is invalid. Exceptions of the plugin's own code.
        """
        implementation = point.load()
        if manager.is_registered(implementation):
            raise PluginError(f"{point.value!r} is already in use as plugin {manager.get_name(implementation)!r}")
        manager.register(implementation, name=point.name)
        manager.check_pending()
        hooks = manager.get_hookcallers(implementation)
        if not hooks:
            raise PluginError(f"{point.value!r} implements no optplug hook ({listing(HOOK_NAMES.values())})")
        others = [p for name, p in manager.list_name_plugin() if name != point.name]
        items: list[tuple[str, Any]] = []
        for kind, hook in HOOK_NAMES.items():
            if getattr(manager.hook, hook) in hooks:
                # pluggy omits a result of None
                for result in manager.subset_hook_caller(hook, others)() or [None]:
                    items += [(kind, item) for item in _items(hook, result, KINDS[kind])]
        return items


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    return manager


def _imported_slow_packages() -> list[str]:
    return [name for name in SLOW_PACKAGES if name in sys.modules]


def _of_lowest_precedence(registrations: list[Registration]) -> list[Registration]:
    """Return those of several registrations of a name that the name alone can mean: more than one if they clash.

    Among adapters of the same precedence, the first in the order of the names of their plugins is meant.
    """
    lowest = min(each.spec.precedence for each in registrations)
    first = [each for each in registrations if each.spec.precedence == lowest]
    return first if lowest == 0 else [min(first, key=lambda each: each.plugin.name)]


def _items(hook: str, result: Any, spec_class: type[Spec]) -> list[Any] | tuple[Any, ...]:
    """Return the items of the result of a hook.

    Raises:
        PluginError: the result is not a list.
    """
    if not isinstance(result, (list, tuple)):
        raise PluginError(
            f"{hook}() returned {result!r}; it must return a list of specs or {spec_class.target_nouns[1]}"
        )
    return result


def _registration(kind: str, item: Any, plugin: Plugin) -> Registration:
    """Return the registration of an item that a hook returned.

    Raises:
        PluginError: the item is not a spec, class or function, or the class or function has not the right methods.
        SpecError: a spec is malformed, or cannot be made of a class or function.
    """
    spec_class = KINDS[kind]
    if isinstance(item, spec_class):
        if item.error is not None:
            raise item.error
        spec = item
    elif spec_class.is_valid_target(item) and not (isinstance(item, type) and issubclass(item, Spec)):
        spec = spec_from_target(spec_class, item)
    else:
        wanted = f"{spec_class.__name__} or {spec_class.target_nouns[1]}"
        raise PluginError(f"{HOOK_NAMES[kind]}() returned {item!r} in its list; items must be {wanted}")
    registration = Registration(spec, plugin)
    if not isinstance(spec.target, str):
        registration.load()  # checks the target now, since there is nothing to import
    return registration


def unregistered(kind: str, what: Any) -> Registration:
    """Return a registration of a spec, class or function that no plugin registers, with its target loaded.

    Raises:
        PluginError: the target of the spec cannot be loaded.
    """
    if not isinstance(what, Spec):
        what = spec_from_target(KINDS[kind], what, snake_case(what.__name__).strip("_"))
    target = Registration(what, Plugin("unregistered", "?", "?")).load()
    module = getattr(target, "__module__", "?")
    return Registration(replace(what, target=target), Plugin("unregistered", module, "?"))


def _item_name(item: Any) -> str:
    """Return the name of an item that is not used, for messages."""
    try:
        name = getattr(item, "name", None) or getattr(item, "__name__", None)
        text = name if isinstance(name, str) else " ".join(repr(item).split())
        return text if len(text) <= MAX_NAME_LENGTH else f"{text[: MAX_NAME_LENGTH - 3]}..."
    except Exception:  # attributes and representations of third-party objects can raise anything
        return f"of type {type(item).__name__}"


def _plugin_of(point: EntryPoint) -> Plugin:
    """Return the plugin of an entry point. If its metadata is damaged, its module name replaces the distribution."""
    try:
        # `dist.name` and `dist.version` would each parse the whole file, with the package's description.
        distribution: Any = point.dist
        header = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
        found = dict(re.findall(r"^(Name|Version):[ \t]*(.*\S)", header, re.MULTILINE))
    except Exception:  # there is no distribution, or its files cannot be read
        found = {}
    return Plugin(point.name, found.get("Name", point.value.partition(":")[0]), found.get("Version", "?"))


def _distribution_key(name: str) -> str:
    """Return the form in which names of plugins and distributions are compared: `lookup_key` without `.`."""
    return lookup_key(name).replace(".", "")


def _check_is_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigTypeError(f"{what} must be text, got {value!r} ({type(value).__name__})")


registry = Registry()
"""The registry of this process."""


def list_optimizers(pattern: str = "*") -> list[str]:
    """Return the sorted canonical names of the installed optimizers.

    Args:
        pattern: a glob, e.g. `"ada*"`, or `"plugin:*"`. Default: all names.

    Raises:
        ConfigTypeError: `pattern` is not text.
    """
    return registry.names("optimizer", pattern)


def list_schedulers(pattern: str = "*") -> list[str]:
    """Return the sorted canonical names of the installed schedulers.

    Args:
        pattern: a glob, e.g. `"*_lr"`, or `"plugin:*"`. Default: all names.

    Raises:
        ConfigTypeError: `pattern` is not text.
    """
    return registry.names("scheduler", pattern)


def get_optimizer(name: str) -> type:
    """Return the optimizer class of a name, or the function that a plugin registers in place of a class.

    Args:
        name: the name, or `plugin:name`. Case, `-` and `_` are ignored.

    Raises:
        UnknownNameError: no plugin registers the name.
        AmbiguousNameError: several plugins register the name.
        PluginError: the class or function cannot be loaded.
        ConfigTypeError: `name` is not text.
    """
    found: type = registry.get("optimizer", name)
    return found


def get_scheduler(name: str) -> type:
    """Return the scheduler class, or function, of a name. Argument and errors: see `get_optimizer`."""
    found: type = registry.get("scheduler", name)
    return found
