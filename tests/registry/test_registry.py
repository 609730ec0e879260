"""The registry: discovery, look-up, ambiguous names, isolation of faulty plugins, specs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from threading import Barrier

import pytest
import torch

import optplug
from optplug.config.build import _log_once
from optplug.errors import (
    AmbiguousNameError,
    ConfigTypeError,
    OptplugError,
    PluginError,
    SpecError,
    UnknownNameError,
    one_line,
)
from optplug.registry import Plugin, QuarantinedPlugin, Registration, Registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec, lookup_key, snake_case
from support import register_too

PLUGIN_HEADER = """
from optplug import OptimizerSpec, SchedulerSpec, hookimpl

class SignDescent:
    \"\"\"Steps along the sign.\"\"\"

    def step(self): ...
    zero_grad = add_param_group = state_dict = load_state_dict = step
"""


def hook(returned: str, kind: str = "optimizer", arguments: str = "") -> str:
    """Return the source of a plugin whose hook executes `return {returned}`."""
    return f"{PLUGIN_HEADER}\n@hookimpl\ndef optplug_{kind}s({arguments}):\n    return {returned}\n"


def registering(*names: str, kind: str = "optimizer") -> str:
    """Return the source of a plugin that registers these names, each with a target in a module that does not exist."""
    return hook(", ".join(f"{kind.title()}Spec({name!r}, 'nowhere:Nothing')" for name in names).join("[]"), kind)


class SitePackages:
    """A folder with installed distributions, like `site-packages`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: set[str] = set()

    def module(self, name: str, source: str) -> None:
        self.path.joinpath(f"{name}.py").write_text(source)
        self.modules.add(name)

    def install(
        self,
        plugin: str,
        source: str | None = None,
        *,
        distribution: str | None = None,
        version: str = "1.0",
        value: str | None = None,
        folder: str = ".",
    ) -> None:
        """Install a distribution with one plugin.

        Args:
            plugin: the name of the plugin.
            source: the source of its module. None: no module is written.
            distribution: the name of the distribution. Default: derived from the plugin.
            version: the version of the distribution.
            value: the value of the entry point. Default: the module.
            folder: where the metadata is written.
        """
        distribution = distribution or f"{plugin}-dist"
        name = lookup_key(f"plug_{plugin}_{distribution}").replace(".", "")
        if source is not None:
            self.module(name, source)
        info = self.path / folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        info.joinpath("entry_points.txt").write_text(f"[optplug]\n{plugin} = {value or name}\n")

    def entry_points(self, *folders: str) -> list[EntryPoint]:
        path = [str(self.path / folder) for folder in folders or (".",)]
        return [point for found in distributions(path=path) for point in found.entry_points.select(group="optplug")]

    def registry(self, *folders: str) -> Registry:
        return Registry(self.entry_points(*folders))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SitePackages]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("OPTPLUG_DISABLE", raising=False)
    site = SitePackages(tmp_path)
    yield site
    for name in site.modules:
        sys.modules.pop(name, None)


def only_quarantined(registry: Registry) -> QuarantinedPlugin:
    (quarantined,) = registry.quarantined
    return quarantined


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter, with `path` on its module path."""
    env = {key: value for key, value in os.environ.items() if key != "OPTPLUG_DISABLE"}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), env.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, env=env)


# ---------------------------------------------------------------- built-in names


def test_built_in_names_are_listed():
    assert {"adam", "adamw", "sgd"} <= set(optplug.list_optimizers())
    assert {"cosine_annealing_lr", "reduce_lr_on_plateau"} <= set(optplug.list_schedulers())


def test_built_in_plugins_come_from_distribution_optplug():
    built_in = [p for p in optplug.registry.registry.plugins if p.distribution == "optplug"]
    assert {"optplug-classic", "optplug-modern", "optplug-schedules"} <= {p.name for p in built_in}
    assert {p.version for p in built_in} == {optplug.__version__}


@pytest.mark.parametrize(
    "name", [*optplug.list_optimizers("optplug-classic:*"), *optplug.list_optimizers("optplug-modern:*")]
)
def test_built_in_optimizer_class_has_the_registered_name(name):
    assert lookup_key(optplug.get_optimizer(name).__name__) == lookup_key(name)


@pytest.mark.parametrize("name", optplug.list_schedulers("optplug-schedules:*"))
def test_built_in_scheduler_class_has_the_registered_name(name):
    assert lookup_key(optplug.get_scheduler(name).__name__) == lookup_key(name)


def test_import_loads_no_plugin_and_listing_loads_no_algorithm():
    ran = python(
        "-c",
        "import sys, optplug\n"
        "assert 'optplug_classic' not in sys.modules\n"
        "assert 'adam' in optplug.list_optimizers()\n"
        "assert 'optplug_classic' in sys.modules\n"
        "assert 'optplug_classic.adam' not in sys.modules",
    )
    assert ran.returncode == 0, ran.stderr


# ---------------------------------------------------------------- look-up


@pytest.mark.parametrize("name", ["step_down", "StepDown", "step-down", "STEPDOWN", "Step_Down", "stepdown"])
def test_lookup_ignores_case_hyphens_and_underscores(site, name):
    site.install("mine", registering("step_down"))
    assert site.registry().resolve("optimizer", name).name == "step_down"


@pytest.mark.parametrize("name", ["my-plug:lion", "my_plug:Lion", "MyPlug:LION"])
def test_lookup_accepts_plugin_and_name(site, name):
    site.install("my-plug", registering("lion"))
    assert site.registry().resolve("optimizer", name).qualified_name == "my-plug:lion"


def test_name_of_another_plugin_raises_unknown_name(site):
    site.install("one", registering("lion"))
    site.install("two", registering("tiger"))
    with pytest.raises(UnknownNameError, match="no optimizer named 'two:lion'; did you mean 'lion'"):
        site.registry().resolve("optimizer", "two:lion")


def test_unknown_name_error_has_similar_names_and_quarantined_plugins(site):
    site.install("good", registering("adam", "adamw", "sgd"))
    site.install("broken", "raise RuntimeError('no luck')")
    site.install("silent", "")
    with pytest.raises(UnknownNameError) as caught:
        site.registry().resolve("optimizer", "adm")
    assert str(caught.value) == (
        "no optimizer named 'adm'; did you mean 'adam', 'adamw'? `optplug list` shows all names."
        " (plugin broken (broken-dist 1.0) is quarantined: RuntimeError: no luck.)"
        " (plugin silent (silent-dist 1.0) is quarantined: 'plugsilentsilentdist' implements no optplug hook"
        " (optplug_optimizers, optplug_schedulers, optplug_functions).)"
    )


def test_unknown_name_error_without_similar_name_lists_installed_names(site):
    site.install("good", registering("adam"))
    with pytest.raises(UnknownNameError) as caught:
        site.registry().resolve("optimizer", "xyz")
    assert str(caught.value) == "no optimizer named 'xyz'; installed: adam."


def test_unknown_name_error_without_installed_plugins():
    with pytest.raises(UnknownNameError) as caught:
        Registry([]).resolve("scheduler", "step_lr")
    assert str(caught.value) == "no scheduler named 'step_lr'; installed: none."


@pytest.mark.parametrize("name", ["StepLR", "mine:StepLR"])
def test_unknown_optimizer_error_mentions_scheduler_of_that_name(site, name):
    site.install("mine", registering("step_lr", kind="scheduler"))
    with pytest.raises(UnknownNameError, match=r"\('StepLR' is a scheduler\.\)"):
        site.registry().resolve("optimizer", name)


@pytest.mark.parametrize("name", [None, 3, ["adam"], str])
def test_name_of_wrong_type_raises_type_error(name):
    with pytest.raises(ConfigTypeError, match="optimizer name must be text, got"):
        optplug.get_optimizer(name)
    with pytest.raises(ConfigTypeError, match="scheduler name must be text, got"):
        optplug.get_scheduler(name)


@pytest.mark.parametrize("list_names", [optplug.list_optimizers, optplug.list_schedulers])
def test_pattern_of_wrong_type_raises_type_error(list_names):
    with pytest.raises(ConfigTypeError, match=r"pattern must be text, got None \(NoneType\)"):
        list_names(None)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(UnknownNameError, LookupError), (AmbiguousNameError, LookupError), (PluginError, RuntimeError)],
)
def test_errors_derive_from_optplug_error_and_builtin(error, builtin):
    assert issubclass(error, OptplugError)
    assert issubclass(error, builtin)


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["ada_delta", "adam", "lion", "sgd"]),
        ("ada*", ["ada_delta", "adam"]),
        ("ADA-*", ["ada_delta"]),
        ("?d*", ["ada_delta", "adam"]),
        ("[k-s]*", ["lion", "sgd"]),
        ("zoo:*", ["lion"]),
        ("my-plug:a*", ["ada_delta", "adam"]),
        ("My_Plug:*", ["ada_delta", "adam", "sgd"]),
        ("*:*d*", ["ada_delta", "adam", "sgd"]),
        ("nothing*", []),
    ],
)
def test_glob_selects_names(site, pattern, names):
    site.install("my-plug", registering("sgd", "adam", "ada_delta"))
    site.install("zoo", registering("lion"))
    assert site.registry().names("optimizer", pattern) == names


def test_listing_imports_no_target(site):
    site.module("heavy", PLUGIN_HEADER)
    site.install("mine", hook("[OptimizerSpec('sign', 'heavy:SignDescent')]"))
    registry = site.registry()
    assert registry.names("optimizer") == ["sign"]
    assert registry.resolve("optimizer", "sign").spec.target == "heavy:SignDescent"
    assert "heavy" not in sys.modules
    assert registry.get("optimizer", "sign").__module__ == "heavy"


def test_order_of_names_does_not_depend_on_order_of_plugins(site):
    site.install("zoo", registering("lion", "ant"))
    site.install("alpha", registering("lion", "bee"))
    forward, backward = Registry(site.entry_points()), Registry(reversed(site.entry_points()))
    for registry in forward, backward:
        assert registry.names("optimizer") == ["alpha:lion", "ant", "bee", "zoo:lion"]
        assert [registration.qualified_name for registration in registry.registrations("optimizer")] == [
            "alpha:lion",
            "zoo:ant",
            "alpha:bee",
            "zoo:lion",
        ]
        assert [plugin.name for plugin in registry.plugins] == ["alpha", "zoo"]


# ---------------------------------------------------------------- ambiguous names


def test_ambiguous_name_error_has_qualified_names(site):
    site.install("two", registering("lion"))
    site.install("one", registering("lion"))
    with pytest.raises(AmbiguousNameError) as caught:
        site.registry().resolve("optimizer", "Lion")
    assert str(caught.value) == "2 plugins register optimizer 'Lion': write 'one:lion' or 'two:lion'"


def test_ambiguous_name_is_listed_and_resolved_by_qualified_names(site):
    site.install("one", registering("lion", "cat"))
    site.install("two", registering("lion"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat", "one:lion", "two:lion"]
    assert registry.names("optimizer", "li*") == ["one:lion", "two:lion"]
    assert [registry.resolve("optimizer", name).qualified_name for name in registry.names("optimizer")] == [
        "one:cat",
        "one:lion",
        "two:lion",
    ]
    assert not registry.quarantined


def adapting(*names: str, precedence: int) -> str:
    """Return the source of an adapter: a plugin whose names have a precedence."""
    return registering(*names).replace("'nowhere:Nothing'", f"'nowhere:Nothing', precedence={precedence}")


@pytest.fixture
def adapters(site) -> Registry:
    """A plugin with its own `lion`, and adapters with `lion` too: `a` and `b` of one precedence, `c` of a lower one."""
    site.install("zoo", registering("lion", "ant"))
    site.install("b", adapting("lion", "tiger", precedence=20))
    site.install("a", adapting("li_on", "tiger", precedence=20))
    site.install("c", adapting("lion", "tiger", "cat", precedence=3))
    return site.registry()


def test_name_means_that_of_the_lowest_precedence(adapters):
    assert adapters.resolve("optimizer", "lion").qualified_name == "zoo:lion"
    assert adapters.resolve("optimizer", "Tiger").qualified_name == "c:tiger"
    assert adapters.resolve("optimizer", "cat").qualified_name == "c:cat"


def test_of_adapters_with_one_precedence_the_first_plugin_by_name_is_meant(site):
    site.install("b", adapting("lion", precedence=20))
    site.install("a", adapting("lion", precedence=20))
    registry = site.registry()
    assert registry.resolve("optimizer", "lion").qualified_name == "a:lion"
    assert registry.names("optimizer") == ["b:lion", "lion"]


def test_plugin_and_name_reach_every_registration(adapters):
    for name in ("a:lion", "b:LION", "c:li-on", "zoo:lion"):
        assert lookup_key(adapters.resolve("optimizer", name).qualified_name) == lookup_key(name)


def test_others_are_in_the_order_of_precedence_and_plugin(adapters):
    others = {
        name: [each.qualified_name for each in adapters.others(adapters.resolve("optimizer", name))]
        for name in ("lion", "b:lion", "cat")
    }
    assert others == {
        "lion": ["c:lion", "a:li_on", "b:lion"],
        "b:lion": ["zoo:lion", "c:lion", "a:li_on"],
        "cat": [],
    }


def test_alternatives_of_a_name_without_plugin(adapters, site):
    assert adapters.alternatives("optimizer", "Lion") == ["c:lion", "a:li_on", "b:lion"]
    assert adapters.alternatives("optimizer", "c:lion") == []
    assert adapters.others_text("optimizer", "lion") == "also c:lion, a:li_on, b:lion"
    assert adapters.others_text("optimizer", "cat") == ""
    for i in range(3):
        site.install(f"d{i}", adapting("lion", precedence=30))
    assert site.registry().others_text("optimizer", "lion") == "also c:lion, a:li_on, b:lion and 3 more"


def test_choice_among_plugins_is_logged_and_is_no_warning(monkeypatch, caplog):
    register_too(monkeypatch, "optimizer", "sgd")
    register_too(monkeypatch, "scheduler", "step_lr")
    _log_once.cache_clear()
    params = [torch.zeros(1, requires_grad=True)]
    for level, names in (
        (logging.WARNING, []),
        (logging.INFO, ["optimizer sgd is optplug-classic:sgd", "scheduler st"]),
    ):
        caplog.clear()
        with caplog.at_level(level, logger="optplug"):
            optimizer = optplug.create_optimizer("sgd", params, lr=0.1)
            optplug.create_scheduler("step_lr", optimizer, step_size=3)
            optplug.create_optimizer("sgd", params, lr=0.1)
            optplug.create_optimizer("optplug-classic:sgd", params, lr=0.1)
        assert [record.getMessage()[: len(name)] for record, name in zip(caplog.records, names, strict=True)] == names
        assert all(record.levelno == logging.INFO and "later:s" in record.getMessage() for record in caplog.records)


def test_listed_names_are_the_shortest_that_resolve_to_their_registration(adapters):
    names = adapters.names("optimizer")
    assert names == ["a:li_on", "a:tiger", "ant", "b:lion", "b:tiger", "c:lion", "cat", "lion", "tiger"]
    assert [adapters.resolve("optimizer", name) for name in names] == adapters.registrations("optimizer")
    assert adapters.names("optimizer", "c:*") == ["c:lion", "cat", "tiger"]
    assert adapters.names("optimizer", "t*") == ["a:tiger", "b:tiger", "tiger"]


def test_names_of_two_plugins_clash_whatever_adapters_there_are(adapters, site):
    site.install("den", registering("lion"))
    registry = site.registry()
    with pytest.raises(AmbiguousNameError) as caught:
        registry.resolve("optimizer", "lion")
    assert str(caught.value) == "2 plugins register optimizer 'lion': write 'den:lion' or 'zoo:lion'"
    assert "lion" not in registry.names("optimizer")


def test_names_that_differ_only_in_underscores_are_ambiguous(site):
    site.install("one", registering("step_down"))
    site.install("two", registering("stepdown"))
    registry = site.registry()
    with pytest.raises(AmbiguousNameError, match="write 'one:step_down' or 'two:stepdown'"):
        registry.resolve("optimizer", "StepDown")
    assert registry.resolve("optimizer", "two:step_down").qualified_name == "two:stepdown"


def test_misspelled_ambiguous_name_suggests_the_nearest_name(site):
    site.install("one", registering("lion"))
    site.install("two", registering("lion"))
    with pytest.raises(UnknownNameError, match="did you mean 'lion'"):
        site.registry().resolve("optimizer", "lino")


def test_optimizer_and_scheduler_may_share_a_name(site):
    site.install("one", registering("lion"))
    site.install("two", registering("lion", kind="scheduler"))
    registry = site.registry()
    assert registry.resolve("optimizer", "lion").plugin.name == "one"
    assert registry.resolve("scheduler", "lion").plugin.name == "two"


def test_plugins_with_the_same_name_are_both_quarantined(site):
    site.install("zoo", registering("lion"), distribution="north")
    site.install("zoo", registering("lion"), distribution="south")
    site.install("other", registering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat"]
    assert [str(q) for q in registry.quarantined] == [
        "plugin zoo (north 1.0) is quarantined: south also has a plugin named 'zoo';"
        " disable one of the distributions with OPTPLUG_DISABLE",
        "plugin zoo (south 1.0) is quarantined: north also has a plugin named 'zoo';"
        " disable one of the distributions with OPTPLUG_DISABLE",
    ]


@pytest.mark.parametrize("source", [adapting("lion", "cat", precedence=3), hook("[]")], ids=["used", "no package"])
@pytest.mark.parametrize("distribution", ["north", "zulu"])
def test_adapter_gives_way_to_a_plugin_of_its_name(site, source, distribution):
    site.install("zoo", source, distribution="optplug")
    site.install("zoo", registering("lion"), distribution=distribution)
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    assert registry.resolve("optimizer", "zoo:lion").plugin.distribution == distribution
    assert not registry.quarantined
    assert [(load.plugin.distribution, load.gives_way_to) for load in registry.loads if load.gives_way_to] == [
        ("optplug", Plugin("zoo", distribution, "1.0"))
    ]


def test_adapter_gives_way_to_a_broken_plugin_that_is_quarantined_with_its_cause(site):
    site.install("zoo", adapting("lion", precedence=3), distribution="optplug")
    site.install("zoo", "1 / 0", distribution="south")
    (quarantined,) = site.registry().quarantined
    assert quarantined.plugin.distribution == "south"
    assert quarantined.cause == "ZeroDivisionError: division by zero"


def test_adapters_with_the_same_name_are_both_quarantined(site):
    site.install("zoo", adapting("lion", precedence=3), distribution="north")
    site.install("zoo", adapting("lion", precedence=3), distribution="south")
    assert len(site.registry().quarantined) == 2


def test_plugins_with_the_same_name_and_module_are_both_quarantined(site):
    site.module("shared", registering("lion"))
    site.install("zoo", value="shared", distribution="north")
    site.install("zoo", value="shared", distribution="south")
    assert len(site.registry().quarantined) == 2


def test_disabling_one_distribution_resolves_equal_plugin_names(site, monkeypatch):
    site.install("zoo", registering("lion"), distribution="north")
    site.install("zoo", registering("tiger"), distribution="south")
    monkeypatch.setenv("OPTPLUG_DISABLE", "north")
    assert site.registry().names("optimizer") == ["tiger"]


def test_distribution_found_twice_is_loaded_once_from_first_path(site):
    site.install("zoo", registering("lion"), distribution="the-zoo", version="2.0", folder="editable")
    site.install("zoo", distribution="the-zoo", version="1.9", folder="build")
    registry = site.registry("editable", "build")
    assert not registry.quarantined
    assert registry.plugins == (Plugin("zoo", "the-zoo", "2.0"),)
    assert registry.names("optimizer") == ["lion"]


# ---------------------------------------------------------------- quarantine

RAISING_PLUGINS = {
    "an exception at import": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "an exception without a message": ("raise RuntimeError", "RuntimeError"),
    "a message of several lines": ("raise ImportError('''one\n  two''')", "ImportError: one two"),
    "a syntax error": ("def", "SyntaxError: invalid syntax"),
    "a missing dependency": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "an exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "a custom BaseException": ("class Panic(BaseException): ...\nraise Panic('overflow')", "Panic: overflow"),
    "an exception whose __str__ raises": (
        "class Bad(Exception):\n    def __str__(self): return 1 / 0\nraise Bad",
        "Bad: (its message cannot be shown)",
    ),
    "a look-up at import": (
        "import optplug.registry as r, inspect\n"
        "next(f.frame.f_locals['self'] for f in inspect.stack() if f.function == '_discover').names('optimizer')",
        "a plugin must not look up names while plugins are being loaded",
    ),
}

INVALID_PLUGINS = {
    "no hook": (
        PLUGIN_HEADER,
        "implements no optplug hook (optplug_optimizers, optplug_schedulers, optplug_functions)",
    ),
    "a hook that raises": (hook("1 / 0"), "ZeroDivisionError: division by zero"),
    "a hook that exits": (hook("exit(1)"), "SystemExit: 1"),
    "a hook that returns nothing": (hook("None"), "optplug_optimizers() returned None; it must return a list"),
    "a hook that returns a string": (hook("'lion'"), "optplug_optimizers() returned 'lion'; it must return a list"),
    "a hook that returns a dict": (hook("{}"), "optplug_optimizers() returned {}; it must return a list of specs"),
    "a hook that is a generator": (hook("(yield)"), "optplug_optimizers() returned <generator"),
    "a hook with an argument": (hook("[]", arguments="config"), "Argument(s) {'config'} are declared in the hookimpl"),
    "a misspelt hook": (hook("[]", "optimiser"), "unknown hook 'optplug_optimisers'"),
}


INVALID_ITEMS = {
    "a string": ("'tiger'", "'tiger'", "returned 'tiger' in its list; items must be OptimizerSpec or classes or func"),
    "an instance": ("SignDescent()", "<plug", "items must be OptimizerSpec or classes or functions"),
    "nothing": ("None", "None", "returned None in its list; items must be"),
    "the spec class itself": ("OptimizerSpec", "OptimizerSpec", "items must be OptimizerSpec or classes or func"),
    "a spec of another kind": ("SchedulerSpec('x', 'm:X')", "x", "returned SchedulerSpec(name='x', target='m:X'"),
    "a class that is no optimizer": (
        "dict",
        "dict",
        "which is not an optimizer class or function (it lacks step, zero_grad, add_param_group, state_dict",
    ),
    "a private class": (
        "type('_Adam', (SignDescent,), {})",
        "_Adam",
        "optimizer name '_adam' is not snake case (e.g. 'sign_descent')",
    ),
    "a function without a name": ("lambda params: None", "<lambda>", "OptimizerSpec(name, function)"),
    "a malformed spec": ("OptimizerSpec('tiger', 'm:X', shapes=3)", "tiger", "must be a list of tuples of sizes, got"),
    "an object that cannot be shown": ("Secret()", "of type Secret", "ZeroDivisionError: division by zero"),
}
"""By case: an item of a hook's list, the start of its name in messages, and the cause."""

SECRET = "\nclass Secret:\n    def __getattr__(self, name):\n        1 / 0\n    __repr__ = __getattr__\n"


@pytest.mark.parametrize("case", RAISING_PLUGINS)
def test_plugin_that_raises_is_quarantined_and_others_are_used(site, case):
    source, cause = RAISING_PLUGINS[case]
    site.install("bad", source)
    site.install("a-good", registering("lion"))
    site.install("c-good", registering("tiger"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion", "tiger"]
    quarantined = only_quarantined(registry)
    assert quarantined.plugin == Plugin("bad", "bad-dist", "1.0")
    assert quarantined.cause.startswith(cause)
    assert quarantined.traceback.startswith("Traceback (most recent call last)")
    assert "plugbadbaddist.py" in quarantined.traceback


@pytest.mark.parametrize("case", INVALID_PLUGINS)
def test_plugin_with_invalid_hook_is_quarantined_and_others_are_used(site, case):
    source, cause = INVALID_PLUGINS[case]
    site.install("bad", source)
    site.install("a-good", registering("lion"))
    site.install("c-good", registering("tiger"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion", "tiger"]
    assert cause in only_quarantined(registry).cause
    assert "Traceback (most recent call last)" in only_quarantined(registry).traceback
    assert [name for name, _ in registry.manager.list_name_plugin()] == ["a-good", "c-good"]


@pytest.mark.parametrize("case", INVALID_ITEMS)
def test_invalid_item_is_rejected_and_the_others_of_its_plugin_are_used(site, case):
    item, name, cause = INVALID_ITEMS[case]
    items = f"[OptimizerSpec('lion', 'm:X'), {item}, SignDescent, OptimizerSpec('zebra', 'm:X')]"
    site.install("mixed", hook(items) + SECRET.replace("self, name", "self, name=''"))
    site.install("other", registering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat", "lion", "sign_descent", "zebra"]
    assert not registry.quarantined
    (rejected,) = registry.rejected
    assert (rejected.plugin.name, rejected.kind) == ("mixed", "optimizer")
    assert rejected.name.startswith(name)
    assert cause in rejected.cause
    assert str(rejected).startswith(f"optimizer {name}")
    assert "of plugin mixed (mixed-dist 1.0) is not used: " in str(rejected)


def test_of_two_classes_whose_names_are_the_same_the_first_is_used(site):
    classes = "[type(n, (SignDescent,), {'__doc__': n}) for n in ('AdaHessian', 'Adahessian', 'Lion')]"
    site.install("hessians", hook(classes))
    registry = site.registry()
    assert registry.names("optimizer") == ["ada_hessian", "lion"]
    assert registry.get("optimizer", "adahessian").__doc__ == "AdaHessian"
    (rejected,) = registry.rejected
    assert rejected.name == "Adahessian"
    assert "its name is that of <class 'plughessianshessiansdist.AdaHessian'>" in rejected.cause


def test_rejected_item_does_not_take_a_name_from_a_later_one(site):
    site.install("mine", hook("[OptimizerSpec('lion', 'm:X', summary=3), OptimizerSpec('lion', 'm:Y')]"))
    registry = site.registry()
    assert registry.resolve("optimizer", "lion").spec.target == "m:Y"
    assert [rejected.name for rejected in registry.rejected] == ["lion"]


def test_broken_target_loses_only_itself(site):
    site.module("broken", "raise OSError('no library')")
    site.install("mine", hook("[OptimizerSpec('lion', 'broken:Lion'), SignDescent]"))
    registry = site.registry()
    with pytest.raises(PluginError, match="could not be loaded from 'broken:Lion': OSError: no library"):
        registry.get("optimizer", "lion")
    assert registry.names("optimizer") == ["lion", "sign_descent"]
    assert registry.get("optimizer", "sign_descent").__name__ == "SignDescent"
    assert not registry.quarantined
    assert not registry.rejected


def test_unknown_name_error_mentions_a_rejected_item_of_that_name(site):
    site.install("mine", hook("[OptimizerSpec('lion', 'm:X', precedence=-1), SignDescent]"))
    with pytest.raises(UnknownNameError) as caught:
        site.registry().resolve("optimizer", "Lion")
    assert str(caught.value) == (
        "no optimizer named 'Lion'; installed: sign_descent. (optimizer lion of plugin mine (mine-dist 1.0) is not "
        "used: precedence of optimizer 'lion' must be an int >= 0, got -1.)"
    )


def test_spec_with_a_field_that_does_not_exist_is_an_error_of_the_plugin(site):
    site.install("future", hook("[OptimizerSpec('lion', 'm:X', colour='red')]"))
    assert "unexpected keyword argument 'colour'" in only_quarantined(site.registry()).cause


def test_errors_of_specs_are_raised_again_after_the_discovery(site):
    site.install("mine", hook("[OptimizerSpec('Lion', 'm:X')]"))
    assert len(site.registry().rejected) == 1
    with pytest.raises(SpecError):
        OptimizerSpec("Lion", "m:X")


def test_keyboard_interrupt_during_discovery_is_raised(site):
    site.install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.registry().names("optimizer")


def test_plugin_with_one_invalid_hook_registers_nothing(site):
    site.install("half", registering("lion") + "\n@hookimpl\ndef optplug_schedulers():\n    return 3\n")
    registry = site.registry()
    assert registry.names("optimizer") == []
    assert only_quarantined(registry).cause.startswith("optplug_schedulers() returned 3")


def test_hook_may_return_empty_list(site):
    site.install("empty", hook("[]"))
    registry = site.registry()
    assert not registry.quarantined
    assert [plugin.name for plugin in registry.plugins] == ["empty"]


@pytest.mark.parametrize("value", ["no_such_module", "plugzoozoodist:no_such_thing", "plugzoozoodist:nothing"])
def test_entry_point_that_cannot_be_loaded_is_quarantined(site, value):
    site.install("zoo", "nothing = None", value=value)
    assert only_quarantined(site.registry()).plugin.name == "zoo"


def test_second_entry_point_of_the_same_module_is_quarantined(site):
    site.module("shared", registering("lion"))
    site.install("one", value="shared")
    site.install("two", value="shared")
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    assert str(only_quarantined(registry)) == (
        "plugin two (two-dist 1.0) is quarantined: 'shared' is already in use as plugin 'one'"
    )


def test_plugin_may_be_an_object(site):
    method = "    @hookimpl\n    def optplug_optimizers(self):\n        return [SignDescent]\n"
    source = f"{PLUGIN_HEADER}\nclass P:\n{method}p = P()"
    site.install("zoo", source, value="plugzoozoodist:p")
    assert site.registry().names("optimizer") == ["sign_descent"]


def test_plugin_with_damaged_metadata_is_used(site):
    site.install("zoo", registering("lion"))
    next(site.path.glob("zoo_dist*")).joinpath("METADATA").write_text("")
    site.install("other", registering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat", "lion"]
    assert registry.resolve("optimizer", "lion").plugin == Plugin("zoo", "plugzoozoodist", "?")


def test_entry_point_without_distribution_is_used(site):
    site.module("shared", registering("lion"))
    registry = Registry([EntryPoint("zoo", "shared", "optplug")])
    assert registry.resolve("optimizer", "lion").plugin == Plugin("zoo", "shared", "?")


# ---------------------------------------------------------------- specs

BAD_SPECS = {
    "a name in capitals": ("OptimizerSpec('Lion', 'm:X')", "optimizer name 'Lion' is not snake case"),
    "a name that is not text": ("OptimizerSpec(3, 'm:X')", "optimizer name 3 is not snake case"),
    "a name with a colon": ("OptimizerSpec('zoo:lion', 'm:X')", "optimizer name 'zoo:lion' is not snake case"),
    "a target without an object": ("OptimizerSpec('lion', 'm.X')", "target 'm.X' of optimizer 'lion' is not 'module:"),
    "a target with an empty part": (
        "OptimizerSpec('lion', 'm..n:X')",
        "target 'm..n:X' of optimizer 'lion' is not 'module:",
    ),
    "a target that is a number": ("OptimizerSpec('lion', 3)", "'lion' is 3: give 'module:object' or a class or func"),
    "a scheduler target that is a number": (
        "SchedulerSpec('lion', 3)",
        "'lion' is 3: give 'module:object' or a class or func",
    ),
    "a summary that is not text": ("OptimizerSpec('lion', 'm:X', ['roars'])", "must be text, got ['roars']"),
    "a misspelt capability": (
        "OptimizerSpec('lion', 'm:X', capabilities={'sparce'})",
        "optimizer 'lion' declares the unknown capability 'sparce'; did you mean 'sparse'?",
    ),
    "a capability of another kind": (
        "OptimizerSpec('lion', 'm:X', capabilities='metric')",
        "optimizer 'lion' declares the unknown capability 'metric'; known are closure, complex, create_graph, ",
    ),
    "capabilities that are not text": ("OptimizerSpec('lion', 'm:X', capabilities=[3])", "must be a set of words"),
    "capabilities that are not iterable": (
        "OptimizerSpec('lion', 'm:X', capabilities=3)",
        "must be a set of words, got 3",
    ),
    "a newer API version": (
        "OptimizerSpec('lion', 'm:X', api_version=2)",
        "optimizer 'lion' was written for plugin API 2; this optplug supports 1 to 1: update optplug",
    ),
    "an older API version": (
        "OptimizerSpec('lion', 'm:X', api_version=0)",
        "optimizer 'lion' was written for plugin API 0; this optplug supports 1 to 1: update the plugin",
    ),
    "an API version that is not an int": ("OptimizerSpec('lion', 'm:X', api_version='1')", "must be an int, got '1'"),
    "an API version that is a bool": ("OptimizerSpec('lion', 'm:X', api_version=True)", "must be an int, got True"),
    "cases that are one mapping": ("OptimizerSpec('lion', 'm:X', cases={'lr': 1})", "must be a list of keyword argum"),
    "cases that are not mappings": ("OptimizerSpec('lion', 'm:X', cases=[3])", "must be a list of keyword arguments"),
    "a case with a key that is not text": ("OptimizerSpec('lion', 'm:X', cases=[{1: 2}])", "must be a list of keyword"),
    "arguments that are a list": ("OptimizerSpec('lion', 'm:X', arguments=['lr'])", "must be a mapping, got ['lr']"),
    "a negative precedence": ("OptimizerSpec('lion', 'm:X', precedence=-1)", "must be an int >= 0, got -1"),
    "a precedence that is text": ("OptimizerSpec('lion', 'm:X', precedence='low')", "must be an int >= 0, got 'low'"),
    "a precedence that is a bool": ("OptimizerSpec('lion', 'm:X', precedence=True)", "must be an int >= 0, got True"),
    "a length that is no name": ("OptimizerSpec('lion', 'm:X', length='n steps')", "must be the name of an argument"),
    "a base that is no name": ("OptimizerSpec('lion', 'm:X', base=3)", "base of optimizer 'lion' must be the name of"),
    "shapes that are one shape": ("OptimizerSpec('lion', 'm:X', shapes=(3, 4))", "must be a list of tuples of sizes"),
    "a shape with a negative size": ("OptimizerSpec('lion', 'm:X', shapes=[(-1,)])", "must be a list of tuples of si"),
    "a build that is no target": ("OptimizerSpec('lion', 'm:X', build='m.build')", "give 'module:object' or a functi"),
    "a build that is a number": ("OptimizerSpec('lion', 'm:X', build=3)", "build of optimizer 'lion' is 3: give"),
    "unsupported as a bool": ("OptimizerSpec('lion', 'm:X', unsupported=True)", "must be text, got True"),
    "functions as text": (
        "SchedulerSpec('lion', 'm:X', functions='f')",
        "must be a list of names of arguments, got",
    ),
    "lengths as text": ("SchedulerSpec('lion', 'm:X', lengths='n')", "must be a list of names of arguments, got 'n'"),
    "a final length that is no length": (
        "SchedulerSpec('lion', 'm:X', final_lengths=('n',))",
        "final_lengths of scheduler 'lion' must be in its lengths, got 'n'",
    ),
    "an unknown interval": (
        "SchedulerSpec('lion', 'm:X', interval='minute')",
        "interval 'minute' of scheduler 'lion' is neither 'epoch' nor 'step'",
    ),
}


def test_specs_with_tensors_can_be_compared():
    cases = [[{"matrix": torch.eye(2)}] for _ in range(2)]
    first, second = (OptimizerSpec("lion", "m:X", cases=each, arguments=each[0]) for each in cases)
    assert first == second
    assert hash(first) == hash(second)


def test_specs_copy_mappings():
    case, arguments, exceptions = {"lr": 1}, {"nu": 2}, {"promise": "reason"}
    spec = OptimizerSpec("lion", "m:X", cases=[case], arguments=arguments, exceptions=exceptions)
    for mapping in (case, arguments, exceptions):
        mapping.clear()
    assert (spec.cases, spec.arguments, spec.exceptions) == (({"lr": 1},), {"nu": 2}, {"promise": "reason"})


def test_scheduler_spec_takes_lists_of_arguments():
    spec = SchedulerSpec("lion", "m:X", lengths=["n", "m"], final_lengths=["m"], functions=["f"])
    assert (spec.lengths, spec.final_lengths, spec.functions) == (("n", "m"), ("m",), ("f",))
    assert isinstance(hash(spec), int)


def test_name_of_a_rejected_item_is_one_short_line(site):
    site.install("zoo", hook("[__import__('torch').zeros(9, 9)]"))
    (rejected,) = site.registry().rejected
    assert "\n" not in rejected.name
    assert len(rejected.name) == 80
    assert rejected.name.startswith("tensor([[0., 0.,")
    assert rejected.name.endswith("...")


def test_reload_reads_versions_again(site, monkeypatch):
    site.install("zoo", registering("lion").replace("'nowhere:Nothing'", "'nowhere:Nothing', package='lions'"))
    registry = site.registry()
    versions = iter(["1.0", "2.0"])
    monkeypatch.setattr("optplug.registry.plugin_registry.metadata.version", lambda name: next(versions))
    assert str(registry.resolve("optimizer", "lion").source) == "lions 1.0"
    assert str(registry.resolve("optimizer", "lion").source) == "lions 1.0"
    registry.reload()
    assert str(registry.resolve("optimizer", "lion").source) == "lions 2.0"


@pytest.mark.parametrize("case", BAD_SPECS)
def test_malformed_spec_raises_an_error_with_its_name_and_is_rejected_by_the_registry(site, case):
    source, cause = BAD_SPECS[case]
    with pytest.raises(SpecError) as caught:
        eval(source, vars(optplug.registry.specs))
    assert cause in str(caught.value)
    kind = source.partition("Spec")[0].lower()
    site.install("bad", hook(f"[{source}]", kind))
    site.install("good", registering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat"]
    (rejected,) = registry.rejected
    assert rejected.kind == kind
    assert cause in rejected.cause
    assert "lion" in rejected.cause.lower() or "3" in rejected.cause


def test_error_about_an_unknown_capability_says_where_all_are_listed():
    with pytest.raises(SpecError, match=r"and \d+ more \(see OptimizerSpec\.CAPABILITIES\)$"):
        OptimizerSpec("lion", "m:X", capabilities="metric")


def test_spec_error_is_a_value_error():
    with pytest.raises(SpecError) as caught:
        OptimizerSpec("Lion", "m:X")
    assert isinstance(caught.value, ValueError)


def test_capabilities_may_be_one_word_or_a_list():
    assert OptimizerSpec("a", "m:A", capabilities="sparse").capabilities == {"sparse"}
    assert OptimizerSpec("a", "m:A", capabilities=["sparse", "complex"]).capabilities == {"sparse", "complex"}


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("SignDescent", "sign_descent"),
        ("SGD", "sgd"),
        ("StepLR", "step_lr"),
        ("ReduceLROnPlateau", "reduce_lr_on_plateau"),
    ],
)
def test_snake_case(name, snake):
    assert snake_case(name) == snake


def test_class_is_registered_in_snake_case(site):
    site.install("mine", hook("[SignDescent]"))
    registry = site.registry()
    assert registry.names("optimizer") == ["sign_descent"]
    assert registry.resolve("optimizer", "sign_descent").spec.summary == "Steps along the sign."
    assert registry.get("optimizer", "SignDescent").__name__ == "SignDescent"


def test_class_attributes_declare_capabilities_and_interval(site):
    site.install("mine", hook("[SignDescent]") + "SignDescent.capabilities = ['sparse']")
    site.install("slow", hook("[SignDescent]", "scheduler") + "SignDescent.interval = 'step'")
    registry = site.registry()
    assert registry.resolve("optimizer", "sign_descent").spec.capabilities == {"sparse"}
    assert registry.resolve("scheduler", "sign_descent").spec.interval == "step"


# ---------------------------------------------------------------- loading a target

TARGETS = {
    "no_such_module:X": "ModuleNotFoundError: No module named 'no_such_module'",
    "toolbox:NoSuchThing": "AttributeError: module 'toolbox' has no attribute 'NoSuchThing'",
    "toolbox:Outer.Nothing": "AttributeError: type object 'Outer' has no attribute 'Nothing'",
    "leaving:X": "SystemExit: 0",
}


@pytest.mark.parametrize("target", TARGETS)
def test_load_error_has_plugin_and_target(site, target):
    site.module("toolbox", "class Outer: ...")
    site.module("leaving", "raise SystemExit(0)")
    site.install("zoo", hook(f"[OptimizerSpec('lion', {target!r})]"))
    with pytest.raises(PluginError) as caught:
        site.registry().get("optimizer", "lion")
    assert str(caught.value) == (
        f"optimizer 'lion' of plugin zoo (zoo-dist 1.0) could not be loaded from {target!r}: {TARGETS[target]}"
    )
    assert caught.value.__cause__ is not None


def test_target_that_is_not_a_class_raises_plugin_error(site):
    site.module("toolbox", "thing = 3")
    site.install("zoo", hook("[SchedulerSpec('lion', 'toolbox:thing')]", "scheduler"))
    with pytest.raises(PluginError) as caught:
        site.registry().get("scheduler", "lion")
    assert (
        str(caught.value)
        == "scheduler 'lion' of plugin zoo (zoo-dist 1.0) is 3, which is not a scheduler class or function"
    )


def test_scheduler_class_registered_as_optimizer_raises_plugin_error(site):
    site.install("zoo", hook("[OptimizerSpec('lion', 'torch.optim.lr_scheduler:StepLR')]"))
    with pytest.raises(PluginError, match=r"not an optimizer class or function \(it lacks zero_g"):
        site.registry().get("optimizer", "lion")


def test_target_may_be_a_function_that_returns_an_optimizer(site):
    factory = "\ndef make_lion(params, lr=0.1):\n    return SignDescent()\n"
    site.install("zoo", hook("[make_lion, OptimizerSpec('tiger', 'plugzoozoodist:make_lion')]") + factory)
    registry = site.registry()
    assert registry.names("optimizer") == ["make_lion", "tiger"]
    assert registry.get("optimizer", "tiger") is registry.get("optimizer", "make_lion")


def test_target_may_be_an_attribute_of_a_class(site):
    nested = "class Outer:\n    Inner = SignDescent\n"
    site.install("zoo", hook("[OptimizerSpec('lion', 'plugzoozoodist:Outer.Inner')]") + nested)
    assert site.registry().get("optimizer", "lion").__name__ == "SignDescent"


def test_target_that_failed_is_loaded_again_after_reload(site):
    site.install("zoo", hook("[OptimizerSpec('lion', 'later:SignDescent')]"))
    registry = site.registry()
    with pytest.raises(PluginError):
        registry.get("optimizer", "lion")
    site.module("later", PLUGIN_HEADER)
    registry.reload()
    assert registry.get("optimizer", "lion").__name__ == "SignDescent"


# ---------------------------------------------------------------- provenance, OPTPLUG_DISABLE, reload


def test_registration_has_plugin_distribution_version_and_api_version(site):
    site.install("zoo", registering("lion"), distribution="the-zoo", version="2.3.1")
    registration = site.registry().resolve("optimizer", "lion")
    assert registration == Registration(OptimizerSpec("lion", "nowhere:Nothing"), Plugin("zoo", "the-zoo", "2.3.1"))
    assert registration.spec.api_version == optplug.API_VERSION
    assert str(registration.plugin) == "zoo (the-zoo 2.3.1)"


@pytest.mark.parametrize(
    "word", ["my-plug", "My_Plug", "MYPLUG", "Some.Dist", "some-dist", "x, some_dist", "x my-plug"]
)
def test_disabled_plugins_and_distributions_are_not_imported(site, monkeypatch, word):
    monkeypatch.setenv("OPTPLUG_DISABLE", word)
    site.install("my-plug", "raise AssertionError('imported')", distribution="some.dist")
    site.install("other", registering("lion"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    assert registry.disabled == (Plugin("my-plug", "some.dist", "1.0"),)
    assert not registry.quarantined


def test_unknown_name_error_mentions_disabled_plugins(site, monkeypatch):
    monkeypatch.setenv("OPTPLUG_DISABLE", "zoo")
    site.install("zoo", registering("lion"))
    with pytest.raises(UnknownNameError) as caught:
        site.registry().resolve("optimizer", "lion")
    assert str(caught.value) == "no optimizer named 'lion'; installed: none. (OPTPLUG_DISABLE disables zoo.)"


def test_built_in_plugins_can_be_disabled(monkeypatch):
    monkeypatch.setenv("OPTPLUG_DISABLE", "optplug-classic")
    registry = Registry()
    assert registry.names("optimizer", "optplug-classic:*") == []
    assert "optplug-classic" not in [plugin.name for plugin in registry.plugins]
    assert "cosine_annealing_lr" in registry.names("scheduler")


def test_reload_reads_changed_environment(site, monkeypatch):
    site.install("zoo", registering("lion"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    monkeypatch.setenv("OPTPLUG_DISABLE", "zoo")
    assert registry.names("optimizer") == ["lion"]
    registry.reload()
    assert registry.names("optimizer") == []


def test_reload_finds_newly_installed_plugin(site):
    registry = Registry()
    assert "ant" not in registry.names("optimizer")
    site.install("zoo", registering("ant"))
    registry.reload()
    assert "ant" in registry.names("optimizer")


def test_reload_keeps_entry_points_given_to_the_constructor(site):
    site.install("zoo", registering("lion"))
    registry = Registry(iter(site.entry_points()))
    assert registry.names("optimizer") == ["lion"]
    registry.reload()
    assert registry.names("optimizer") == ["lion"]


def test_concurrent_threads_discover_once(site):
    slow = "import time\ncalls = []\n@hookimpl\ndef optplug_optimizers():\n    calls.append(1)\n    time.sleep(0.05)\n"
    site.install("zoo", f"{PLUGIN_HEADER}{slow}    return [SignDescent]")
    registry, barrier = site.registry(), Barrier(16)

    def load(_: int) -> type:
        barrier.wait(timeout=30)
        return registry.get("optimizer", "sign_descent")

    with ThreadPoolExecutor(16) as pool:
        classes = set(pool.map(load, range(16)))
    assert len(classes) == 1
    assert sys.modules["plugzoozoodist"].calls == [1]


def test_one_line_joins_the_lines_of_a_message():
    assert one_line(ValueError("a\n b")) == "ValueError: a b"
    assert one_line(UnknownNameError("nobody")) == "nobody"
    assert one_line(KeyError("k")) == "KeyError: 'k'"


# ---------------------------------------------------------------- a third-party package

PLUGIN_SOURCE = '''
from optplug import RuleOptimizer, hookimpl
from optplug.ops import sign

class SignDescent(RuleOptimizer):
    """Moves each weight by lr, against the sign of its gradient."""

    def __init__(self, params, lr=0.01, **options):
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * sign(g)

@hookimpl
def optplug_optimizers():
    return [SignDescent]
'''

PLUGIN_PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "sign-descent"
version = "0.3"
[tool.setuptools]
py-modules = ["signs"]
[project.entry-points.optplug]
signs = "signs"
"""

USER_PROGRAM = """
import optplug, torch
assert "sign_descent" in optplug.list_optimizers(), optplug.registry.registry.quarantined
assert optplug.list_optimizers("signs:*") == ["sign_descent"]
assert str(optplug.registry.registry.resolve("optimizer", "sign_descent").plugin) == "signs (sign-descent 0.3)"
p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
optimizer = optplug.get_optimizer("sign_descent")([p], lr=0.25)
assert isinstance(optimizer, torch.optim.Optimizer)
for _ in range(3):
    p.grad = torch.tensor([5.0, -0.1, 0.0])
    optimizer.step()
assert p.tolist() == [0.25, -1.25, 3.0], p
"""


def test_third_party_package_is_built_installed_found_and_used(tmp_path):
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    source.joinpath("signs.py").write_text(PLUGIN_SOURCE)
    source.joinpath("pyproject.toml").write_text(textwrap.dedent(PLUGIN_PYPROJECT))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    pip = python("-m", "pip", "install", *options, "--target", str(target), str(source))
    assert pip.returncode == 0, pip.stderr
    used = python("-c", USER_PROGRAM, path=target)
    assert used.returncode == 0, used.stderr


def test_unknown_plugin_of_a_qualified_name_is_reported_with_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"there is no plugin 'optplug-clasic'; did you mean 'optplug-classic:adam'"
    ):
        optplug.registry.registry.resolve("optimizer", "optplug-clasic:adam")
    with pytest.raises(UnknownNameError, match=r"'optplug-classic:adm'; did you mean 'optplug-classic:adam'"):
        optplug.registry.registry.resolve("optimizer", "optplug-classic:adm")
    with pytest.raises(UnknownNameError, match=r"'qqqq:adam': there is no plugin 'qqqq'\. "):
        optplug.registry.registry.resolve("optimizer", "qqqq:adam")
