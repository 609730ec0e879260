"""The registry: discovery, look-up, ambiguous names, isolation of faulty plugins, specs."""

from __future__ import annotations

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

import optplug
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
from optplug.registry.specs import OptimizerSpec, lookup_key, snake_case

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
    "a list of strings": (hook("['lion']"), "returned 'lion' in its list; items must be OptimizerSpec or classes"),
    "a list of instances": (hook("[SignDescent()]"), "items must be OptimizerSpec or classes"),
    "the spec class itself": (hook("[OptimizerSpec]"), "items must be OptimizerSpec or classes"),
    "specs of another kind": (
        hook("[SchedulerSpec('x', 'm:X')]"),
        "returned SchedulerSpec(name='x', target='m:X'",
    ),
    "a class that is not an optimizer": (
        hook("[dict]"),
        "is <class 'dict'>, which is not an optimizer class (it lacks step, zero_grad, add_param_group, state_dict",
    ),
    "a class whose name is not snake case": (
        hook("[type('_Odd', (SignDescent,), {})]"),
        "optimizer name '_odd' is not snake case (e.g. 'sign_descent')",
    ),
    "a duplicate name": (hook("[OptimizerSpec(n, 'm:X') for n in ('lion', 'li_on')]"), "returned 'li_on' twice"),
    "a hook with an argument": (hook("[]", arguments="config"), "Argument(s) {'config'} are declared in the hookimpl"),
    "a misspelt hook": (hook("[]", "optimiser"), "unknown hook 'optplug_optimisers'"),
}


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
    "a target that is a function": ("OptimizerSpec('lion', print)", "give 'module:object' or a class"),
    "a summary that is not text": ("OptimizerSpec('lion', 'm:X', ['roars'])", "must be text, got ['roars']"),
    "a misspelt capability": (
        "OptimizerSpec('lion', 'm:X', capabilities={'sparce'})",
        "optimizer 'lion' declares the unknown capability 'sparce'; did you mean 'sparse'?",
    ),
    "a capability of another kind": (
        "OptimizerSpec('lion', 'm:X', capabilities='metric')",
        "optimizer 'lion' declares the unknown capability 'metric'; known are closure, complex, create_graph, "
        "matrix_only, modes, sparse, sparse_only",
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
    "an unknown interval": (
        "SchedulerSpec('lion', 'm:X', interval='minute')",
        "interval 'minute' of scheduler 'lion' is neither 'epoch' nor 'step'",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_malformed_spec_is_the_cause_of_quarantine(site, case):
    source, cause = BAD_SPECS[case]
    site.install("bad", hook(f"[{source}]", source.partition("Spec")[0].lower()))
    site.install("good", registering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat"]
    assert cause in only_quarantined(registry).cause
    assert "SpecError" in only_quarantined(registry).traceback


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
    assert str(caught.value) == "scheduler 'lion' of plugin zoo (zoo-dist 1.0) is 3, which is not a scheduler class"


def test_scheduler_class_registered_as_optimizer_raises_plugin_error(site):
    site.install("zoo", hook("[OptimizerSpec('lion', 'torch.optim.lr_scheduler:StepLR')]"))
    with pytest.raises(PluginError, match=r"not an optimizer class \(it lacks zero_grad, add_param_group\)"):
        site.registry().get("optimizer", "lion")


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
    assert "adam" not in registry.names("optimizer")
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
