"""The registry: what it finds, how it is asked, and that no plugin can spoil it for the others."""

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
    describe,
)
from optplug.registry import Plugin, Quarantined, Registration, Registry
from optplug.registry.specs import OptimizerSpec, lookup_key, snake_case

HEAD = """
from optplug import OptimizerSpec, SchedulerSpec, hookimpl

class SignDescent:
    \"\"\"Steps along the sign.\"\"\"

    def step(self): ...
    zero_grad = add_param_group = state_dict = load_state_dict = step
"""


def hook(returned: str, kind: str = "optimizer", arguments: str = "") -> str:
    """Source of a plugin whose hook has `return {returned}`."""
    return f"{HEAD}\n@hookimpl\ndef optplug_{kind}s({arguments}):\n    return {returned}\n"


def offering(*names: str, kind: str = "optimizer") -> str:
    """Source of a plugin that offers these names, each for a class of another module."""
    return hook(", ".join(f"{kind.title()}Spec({name!r}, 'nowhere:Nothing')" for name in names).join("[]"), kind)


class Site:
    """A folder of installed distributions."""

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
        """Install a distribution with one plugin, whose module has this source."""
        distribution = distribution or f"{plugin}-dist"
        name = lookup_key(f"plug_{plugin}_{distribution}").replace(".", "")
        if source is not None:
            self.module(name, source)
        info = self.path / folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        info.joinpath("entry_points.txt").write_text(f"[optplug]\n{plugin} = {value or name}\n")

    def points(self, *folders: str) -> list[EntryPoint]:
        path = [str(self.path / folder) for folder in folders or (".",)]
        return [point for found in distributions(path=path) for point in found.entry_points.select(group="optplug")]

    def registry(self, *folders: str) -> Registry:
        return Registry(self.points(*folders))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("OPTPLUG_DISABLE", raising=False)
    site = Site(tmp_path)
    yield site
    for name in site.modules:
        sys.modules.pop(name, None)


def only_quarantined(registry: Registry) -> Quarantined:
    (quarantined,) = registry.quarantined
    return quarantined


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter; `path` is put on its path."""
    env = {key: value for key, value in os.environ.items() if key != "OPTPLUG_DISABLE"}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), env.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, env=env)


# ---------------------------------------------------------------- our own names


def test_our_own_names_are_listed():
    assert {"adam", "adamw", "sgd"} <= set(optplug.list_optimizers())
    assert {"cosine_annealing_lr", "reduce_lr_on_plateau"} <= set(optplug.list_schedulers())


def test_our_own_plugins_come_from_our_distribution():
    ours = [p for p in optplug.registry.registry.plugins if p.distribution == "optplug"]
    assert [p.name for p in ours] == ["optplug-classic", "optplug-schedules"]
    assert {p.version for p in ours} == {optplug.__version__}


@pytest.mark.parametrize("name", optplug.list_optimizers("optplug-classic:*"))
def test_each_of_our_optimizers_loads_and_is_called_what_it_says(name):
    assert lookup_key(optplug.get_optimizer(name).__name__) == lookup_key(name)


@pytest.mark.parametrize("name", optplug.list_schedulers("optplug-schedules:*"))
def test_each_of_our_schedulers_loads_and_is_called_what_it_says(name):
    assert lookup_key(optplug.get_scheduler(name).__name__) == lookup_key(name)


def test_importing_optplug_loads_no_plugin_and_listing_loads_no_algorithm():
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
def test_case_hyphens_and_underscores_do_not_count(site, name):
    site.install("mine", offering("step_down"))
    assert site.registry().find("optimizer", name).name == "step_down"


@pytest.mark.parametrize("name", ["my-plug:lion", "my_plug:Lion", "MyPlug:LION"])
def test_a_plugin_can_be_named_before_the_colon(site, name):
    site.install("my-plug", offering("lion"))
    assert site.registry().find("optimizer", name).qualified == "my-plug:lion"


def test_a_name_of_another_plugin_is_unknown(site):
    site.install("one", offering("lion"))
    site.install("two", offering("tiger"))
    with pytest.raises(UnknownNameError, match="no optimizer named 'two:lion'; did you mean 'lion'"):
        site.registry().find("optimizer", "two:lion")


def test_an_unknown_name_gives_the_nearest_all_names_and_what_was_left_out(site):
    site.install("good", offering("adam", "adamw", "sgd"))
    site.install("broken", "raise RuntimeError('no luck')")
    site.install("silent", "")
    with pytest.raises(UnknownNameError) as caught:
        site.registry().find("optimizer", "adm")
    assert str(caught.value) == (
        "no optimizer named 'adm'; did you mean 'adam', 'adamw'? Installed: adam, adamw, sgd."
        " (plugin broken (broken-dist 1.0) was left out: RuntimeError: no luck.)"
        " (plugin silent (silent-dist 1.0) was left out: 'plugsilentsilentdist' implements no optplug hook"
        " (optplug_optimizers, optplug_schedulers, optplug_functions).)"
    )


def test_a_name_like_no_other_gets_no_guess(site):
    site.install("good", offering("adam"))
    with pytest.raises(UnknownNameError) as caught:
        site.registry().find("optimizer", "xyz")
    assert str(caught.value) == "no optimizer named 'xyz'. Installed: adam."


def test_with_nothing_installed_the_error_says_so():
    with pytest.raises(UnknownNameError) as caught:
        Registry([]).find("scheduler", "step_lr")
    assert str(caught.value) == "no scheduler named 'step_lr'. Installed: none."


@pytest.mark.parametrize("name", ["StepLR", "mine:StepLR"])
def test_a_scheduler_asked_for_as_an_optimizer_is_called_one(site, name):
    site.install("mine", offering("step_lr", kind="scheduler"))
    with pytest.raises(UnknownNameError, match=r"\('StepLR' is a scheduler\.\)"):
        site.registry().find("optimizer", name)


@pytest.mark.parametrize("name", [None, 3, ["adam"], str])
def test_a_name_that_is_no_text_is_a_type_error(name):
    with pytest.raises(ConfigTypeError, match="optimizer name must be text, got"):
        optplug.get_optimizer(name)
    with pytest.raises(ConfigTypeError, match="scheduler name must be text, got"):
        optplug.get_scheduler(name)


@pytest.mark.parametrize("list_names", [optplug.list_optimizers, optplug.list_schedulers])
def test_a_pattern_that_is_no_text_is_a_type_error(list_names):
    with pytest.raises(ConfigTypeError, match=r"pattern must be text, got None \(NoneType\)"):
        list_names(None)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(UnknownNameError, LookupError), (AmbiguousNameError, LookupError), (PluginError, RuntimeError)],
)
def test_each_error_is_ours_and_a_builtin(error, builtin):
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
def test_a_glob_selects_names(site, pattern, names):
    site.install("my-plug", offering("sgd", "adam", "ada_delta"))
    site.install("zoo", offering("lion"))
    assert site.registry().names("optimizer", pattern) == names


def test_listing_imports_no_target(site):
    site.module("heavy", HEAD)
    site.install("mine", hook("[OptimizerSpec('sign', 'heavy:SignDescent')]"))
    registry = site.registry()
    assert registry.names("optimizer") == ["sign"]
    assert registry.find("optimizer", "sign").spec.target == "heavy:SignDescent"
    assert "heavy" not in sys.modules
    assert registry.get("optimizer", "sign").__module__ == "heavy"


def test_the_order_does_not_depend_on_who_comes_first(site):
    site.install("zoo", offering("lion", "ant"))
    site.install("alpha", offering("lion", "bee"))
    forth, back = Registry(site.points()), Registry(reversed(site.points()))
    for registry in forth, back:
        assert registry.names("optimizer") == ["alpha:lion", "ant", "bee", "zoo:lion"]
        assert [registration.qualified for registration in registry.registrations("optimizer")] == [
            "alpha:lion",
            "zoo:ant",
            "alpha:bee",
            "zoo:lion",
        ]
        assert [plugin.name for plugin in registry.plugins] == ["alpha", "zoo"]


# ---------------------------------------------------------------- clashes


def test_a_clash_is_an_error_that_spells_both(site):
    site.install("two", offering("lion"))
    site.install("one", offering("lion"))
    with pytest.raises(AmbiguousNameError) as caught:
        site.registry().find("optimizer", "Lion")
    assert str(caught.value) == "2 plugins offer optimizer 'Lion': write 'one:lion' or 'two:lion'"


def test_a_clash_is_listed_with_both_spellings_and_settled_by_either(site):
    site.install("one", offering("lion", "cat"))
    site.install("two", offering("lion"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat", "one:lion", "two:lion"]
    assert registry.names("optimizer", "li*") == ["one:lion", "two:lion"]
    assert [registry.find("optimizer", name).qualified for name in registry.names("optimizer")] == [
        "one:cat",
        "one:lion",
        "two:lion",
    ]
    assert not registry.quarantined


def test_names_that_differ_only_in_underscores_clash(site):
    site.install("one", offering("step_down"))
    site.install("two", offering("stepdown"))
    registry = site.registry()
    with pytest.raises(AmbiguousNameError, match="write 'one:step_down' or 'two:stepdown'"):
        registry.find("optimizer", "StepDown")
    assert registry.find("optimizer", "two:step_down").qualified == "two:stepdown"


def test_a_misspelt_name_that_clashes_still_gets_a_guess(site):
    site.install("one", offering("lion"))
    site.install("two", offering("lion"))
    with pytest.raises(UnknownNameError, match="did you mean 'lion'"):
        site.registry().find("optimizer", "lino")


def test_an_optimizer_and_a_scheduler_of_one_name_do_not_clash(site):
    site.install("one", offering("lion"))
    site.install("two", offering("lion", kind="scheduler"))
    registry = site.registry()
    assert registry.find("optimizer", "lion").plugin.name == "one"
    assert registry.find("scheduler", "lion").plugin.name == "two"


def test_two_distributions_with_one_plugin_name_are_both_left_out(site):
    site.install("zoo", offering("lion"), distribution="north")
    site.install("zoo", offering("lion"), distribution="south")
    site.install("other", offering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat"]
    assert [str(q) for q in registry.quarantined] == [
        "plugin zoo (north 1.0) was left out: south also has a plugin named 'zoo';"
        " put one distribution into OPTPLUG_DISABLE",
        "plugin zoo (south 1.0) was left out: north also has a plugin named 'zoo';"
        " put one distribution into OPTPLUG_DISABLE",
    ]


def test_even_when_both_name_the_same_module(site):
    site.module("shared", offering("lion"))
    site.install("zoo", value="shared", distribution="north")
    site.install("zoo", value="shared", distribution="south")
    assert len(site.registry().quarantined) == 2


def test_disabling_one_distribution_settles_it(site, monkeypatch):
    site.install("zoo", offering("lion"), distribution="north")
    site.install("zoo", offering("tiger"), distribution="south")
    monkeypatch.setenv("OPTPLUG_DISABLE", "north")
    assert site.registry().names("optimizer") == ["tiger"]


def test_a_plugin_seen_twice_is_one_and_the_first_on_the_path_counts(site):
    site.install("zoo", offering("lion"), distribution="the-zoo", version="2.0", folder="editable")
    site.install("zoo", distribution="the-zoo", version="1.9", folder="build")
    registry = site.registry("editable", "build")
    assert not registry.quarantined
    assert registry.plugins == (Plugin("zoo", "the-zoo", "2.0"),)
    assert registry.names("optimizer") == ["lion"]


# ---------------------------------------------------------------- quarantine

RAISES = {
    "an exception at import": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "an exception without a message": ("raise RuntimeError", "RuntimeError"),
    "a message of several lines": ("raise ImportError('''one\n  two''')", "ImportError: one two"),
    "a syntax error": ("def", "SyntaxError: invalid syntax"),
    "a missing dependency": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "an exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "a panic": ("class Panic(BaseException): ...\nraise Panic('overflow')", "Panic: overflow"),
    "an exception that cannot be shown": (
        "class Bad(Exception):\n    def __str__(self): return 1 / 0\nraise Bad",
        "Bad: (its message cannot be shown)",
    ),
    "asking for names at import": (
        "import optplug.registry as r, inspect\n"
        "next(f.frame.f_locals['self'] for f in inspect.stack() if f.function == '_discover').names('optimizer')",
        "a plugin may not ask for names while plugins are being loaded",
    ),
}

NONSENSE = {
    "no hook": (HEAD, "implements no optplug hook (optplug_optimizers, optplug_schedulers, optplug_functions)"),
    "a hook that raises": (hook("1 / 0"), "ZeroDivisionError: division by zero"),
    "a hook that exits": (hook("exit(1)"), "SystemExit: 1"),
    "a hook that returns nothing": (hook("None"), "optplug_optimizers() returned None; it must return a list"),
    "a hook that returns text": (hook("'lion'"), "optplug_optimizers() returned 'lion'; it must return a list"),
    "a hook that returns a dict": (hook("{}"), "optplug_optimizers() returned {}; it must return a list of specs"),
    "a hook that yields": (hook("(yield)"), "optplug_optimizers() returned <generator"),
    "a list of text": (hook("['lion']"), "returned 'lion' in its list; items must be OptimizerSpec or classes"),
    "a list of instances": (hook("[SignDescent()]"), "items must be OptimizerSpec or classes"),
    "the spec class itself": (hook("[OptimizerSpec]"), "items must be OptimizerSpec or classes"),
    "specs of the other kind": (
        hook("[SchedulerSpec('x', 'm:X')]"),
        "returned SchedulerSpec(name='x', target='m:X'",
    ),
    "a class that is no optimizer": (
        hook("[dict]"),
        "is <class 'dict'>, which is no optimizer class (it has no step, zero_grad, add_param_group, state_dict",
    ),
    "a class whose name is no name": (
        hook("[type('_Odd', (SignDescent,), {})]"),
        "optimizer name '_odd' is not snake case (e.g. 'sign_descent')",
    ),
    "a name twice": (hook("[OptimizerSpec(n, 'm:X') for n in ('lion', 'li_on')]"), "returned 'li_on' twice"),
    "a hook with an argument": (hook("[]", arguments="config"), "Argument(s) {'config'} are declared in the hookimpl"),
    "a misspelt hook": (hook("[]", "optimiser"), "unknown hook 'optplug_optimisers'"),
}


@pytest.mark.parametrize("case", RAISES)
def test_a_plugin_that_raises_is_left_out_alone(site, case):
    source, cause = RAISES[case]
    site.install("bad", source)
    site.install("a-good", offering("lion"))
    site.install("c-good", offering("tiger"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion", "tiger"]
    quarantined = only_quarantined(registry)
    assert quarantined.plugin == Plugin("bad", "bad-dist", "1.0")
    assert quarantined.cause.startswith(cause)
    assert quarantined.traceback.startswith("Traceback (most recent call last)")
    assert "plugbadbaddist.py" in quarantined.traceback


@pytest.mark.parametrize("case", NONSENSE)
def test_a_plugin_that_returns_nonsense_is_left_out_alone(site, case):
    source, cause = NONSENSE[case]
    site.install("bad", source)
    site.install("a-good", offering("lion"))
    site.install("c-good", offering("tiger"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion", "tiger"]
    assert cause in only_quarantined(registry).cause
    assert "Traceback (most recent call last)" in only_quarantined(registry).traceback
    assert [name for name, _ in registry.manager.list_name_plugin()] == ["a-good", "c-good"]


def test_a_keyboard_interrupt_is_nobody_s_fault(site):
    site.install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.registry().names("optimizer")


def test_a_plugin_with_one_bad_hook_offers_nothing(site):
    site.install("half", offering("lion") + "\n@hookimpl\ndef optplug_schedulers():\n    return 3\n")
    registry = site.registry()
    assert registry.names("optimizer") == []
    assert only_quarantined(registry).cause.startswith("optplug_schedulers() returned 3")


def test_a_hook_may_return_an_empty_list(site):
    site.install("empty", hook("[]"))
    registry = site.registry()
    assert not registry.quarantined
    assert [plugin.name for plugin in registry.plugins] == ["empty"]


@pytest.mark.parametrize("value", ["no_such_module", "plugzoozoodist:no_such_thing", "plugzoozoodist:nothing"])
def test_an_entry_point_to_nowhere_is_left_out(site, value):
    site.install("zoo", "nothing = None", value=value)
    assert only_quarantined(site.registry()).plugin.name == "zoo"


def test_one_module_is_one_plugin(site):
    site.module("shared", offering("lion"))
    site.install("one", value="shared")
    site.install("two", value="shared")
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    assert str(only_quarantined(registry)) == (
        "plugin two (two-dist 1.0) was left out: 'shared' is already in use as plugin 'one'"
    )


def test_a_plugin_may_be_an_object(site):
    source = (
        f"{HEAD}\nclass P:\n    @hookimpl\n    def optplug_optimizers(self):\n        return [SignDescent]\np = P()"
    )
    site.install("zoo", source, value="plugzoozoodist:p")
    assert site.registry().names("optimizer") == ["sign_descent"]


def test_damaged_metadata_spoils_nothing(site):
    site.install("zoo", offering("lion"))
    next(site.path.glob("zoo_dist*")).joinpath("METADATA").write_text("")
    site.install("other", offering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat", "lion"]
    assert registry.find("optimizer", "lion").plugin == Plugin("zoo", "plugzoozoodist", "?")


def test_an_entry_point_without_a_distribution_is_as_good(site):
    site.module("shared", offering("lion"))
    registry = Registry([EntryPoint("zoo", "shared", "optplug")])
    assert registry.find("optimizer", "lion").plugin == Plugin("zoo", "shared", "?")


# ---------------------------------------------------------------- specs

BAD_SPECS = {
    "a name in capitals": ("OptimizerSpec('Lion', 'm:X')", "optimizer name 'Lion' is not snake case"),
    "a name that is no text": ("OptimizerSpec(3, 'm:X')", "optimizer name 3 is not snake case"),
    "a name with a colon": ("OptimizerSpec('zoo:lion', 'm:X')", "optimizer name 'zoo:lion' is not snake case"),
    "a target without an object": ("OptimizerSpec('lion', 'm.X')", "target 'm.X' of optimizer 'lion' is not 'module:"),
    "a target of dots": ("OptimizerSpec('lion', 'm..n:X')", "target 'm..n:X' of optimizer 'lion' is not 'module:"),
    "a target that is a function": ("OptimizerSpec('lion', print)", "give 'module:object' or a class"),
    "a summary that is no text": ("OptimizerSpec('lion', 'm:X', ['roars'])", "must be text, got ['roars']"),
    "a misspelt capability": (
        "OptimizerSpec('lion', 'm:X', capabilities={'sparce'})",
        "optimizer 'lion' declares capability 'sparce'; known are closure, complex, create_graph, modes, sparse, "
        "sparse_only;"
        " did you mean 'sparse'?",
    ),
    "a capability of the other kind": (
        "OptimizerSpec('lion', 'm:X', capabilities='metric')",
        "optimizer 'lion' declares capability 'metric'",
    ),
    "capabilities that are no words": ("OptimizerSpec('lion', 'm:X', capabilities=[3])", "must be a set of words"),
    "capabilities that are no set": ("OptimizerSpec('lion', 'm:X', capabilities=3)", "must be a set of words, got 3"),
    "an API of the future": (
        "OptimizerSpec('lion', 'm:X', api_version=2)",
        "optimizer 'lion' was written for plugin API 2; this optplug speaks 1 to 1: update optplug",
    ),
    "an API of the past": (
        "OptimizerSpec('lion', 'm:X', api_version=0)",
        "optimizer 'lion' was written for plugin API 0; this optplug speaks 1 to 1: update the plugin",
    ),
    "an API that is no number": ("OptimizerSpec('lion', 'm:X', api_version='1')", "must be an int, got '1'"),
    "an interval of minutes": (
        "SchedulerSpec('lion', 'm:X', interval='minute')",
        "interval 'minute' of scheduler 'lion' is neither 'epoch' nor 'step'",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_malformed_spec_is_the_cause(site, case):
    source, cause = BAD_SPECS[case]
    site.install("bad", hook(f"[{source}]", source.partition("Spec")[0].lower()))
    site.install("good", offering("cat"))
    registry = site.registry()
    assert registry.names("optimizer") == ["cat"]
    assert cause in only_quarantined(registry).cause
    assert "SpecError" in only_quarantined(registry).traceback


def test_a_spec_error_is_a_value_error():
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


def test_a_plain_class_is_registered_in_snake_case(site):
    site.install("mine", hook("[SignDescent]"))
    registry = site.registry()
    assert registry.names("optimizer") == ["sign_descent"]
    assert registry.find("optimizer", "sign_descent").spec.summary == "Steps along the sign."
    assert registry.get("optimizer", "SignDescent").__name__ == "SignDescent"


def test_a_plain_class_may_declare_its_capabilities_and_interval(site):
    site.install("mine", hook("[SignDescent]") + "SignDescent.capabilities = ['sparse']")
    site.install("slow", hook("[SignDescent]", "scheduler") + "SignDescent.interval = 'step'")
    registry = site.registry()
    assert registry.find("optimizer", "sign_descent").spec.capabilities == {"sparse"}
    assert registry.find("scheduler", "sign_descent").spec.interval == "step"


# ---------------------------------------------------------------- loading a target

TARGETS = {
    "no_such_module:X": "ModuleNotFoundError: No module named 'no_such_module'",
    "toolbox:NoSuchThing": "AttributeError: module 'toolbox' has no attribute 'NoSuchThing'",
    "toolbox:Outer.Nothing": "AttributeError: type object 'Outer' has no attribute 'Nothing'",
    "leaving:X": "SystemExit: 0",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_cannot_be_loaded_is_an_error_with_plugin_and_target(site, target):
    site.module("toolbox", "class Outer: ...")
    site.module("leaving", "raise SystemExit(0)")
    site.install("zoo", hook(f"[OptimizerSpec('lion', {target!r})]"))
    with pytest.raises(PluginError) as caught:
        site.registry().get("optimizer", "lion")
    assert str(caught.value) == (
        f"optimizer 'lion' of plugin zoo (zoo-dist 1.0) could not be loaded from {target!r}: {TARGETS[target]}"
    )
    assert caught.value.__cause__ is not None


def test_a_target_that_is_no_class_is_an_error(site):
    site.module("toolbox", "thing = 3")
    site.install("zoo", hook("[SchedulerSpec('lion', 'toolbox:thing')]", "scheduler"))
    with pytest.raises(PluginError) as caught:
        site.registry().get("scheduler", "lion")
    assert str(caught.value) == "scheduler 'lion' of plugin zoo (zoo-dist 1.0) is 3, which is no scheduler class"


def test_a_scheduler_s_class_offered_as_an_optimizer_is_an_error(site):
    site.install("zoo", hook("[OptimizerSpec('lion', 'torch.optim.lr_scheduler:StepLR')]"))
    with pytest.raises(PluginError, match=r"no optimizer class \(it has no zero_grad, add_param_group\)"):
        site.registry().get("optimizer", "lion")


def test_a_target_may_lie_within_a_class(site):
    nested = "class Outer:\n    Inner = SignDescent\n"
    site.install("zoo", hook("[OptimizerSpec('lion', 'plugzoozoodist:Outer.Inner')]") + nested)
    assert site.registry().get("optimizer", "lion").__name__ == "SignDescent"


def test_a_failed_target_is_tried_again(site):
    site.install("zoo", hook("[OptimizerSpec('lion', 'later:SignDescent')]"))
    registry = site.registry()
    with pytest.raises(PluginError):
        registry.get("optimizer", "lion")
    site.module("later", HEAD)
    registry.reload()
    assert registry.get("optimizer", "lion").__name__ == "SignDescent"


# ---------------------------------------------------------------- provenance, OPTPLUG_DISABLE, reload


def test_each_offer_knows_plugin_distribution_version_and_api(site):
    site.install("zoo", offering("lion"), distribution="the-zoo", version="2.3.1")
    registration = site.registry().find("optimizer", "lion")
    assert registration == Registration(OptimizerSpec("lion", "nowhere:Nothing"), Plugin("zoo", "the-zoo", "2.3.1"))
    assert registration.spec.api_version == optplug.API_VERSION
    assert str(registration.plugin) == "zoo (the-zoo 2.3.1)"


@pytest.mark.parametrize(
    "word", ["my-plug", "My_Plug", "MYPLUG", "Some.Dist", "some-dist", "x, some_dist", "x my-plug"]
)
def test_optplug_disable_leaves_out_plugins_and_distributions_without_importing_them(site, monkeypatch, word):
    monkeypatch.setenv("OPTPLUG_DISABLE", word)
    site.install("my-plug", "raise AssertionError('imported')", distribution="some.dist")
    site.install("other", offering("lion"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    assert registry.disabled == (Plugin("my-plug", "some.dist", "1.0"),)
    assert not registry.quarantined


def test_an_unknown_name_s_error_mentions_what_is_disabled(site, monkeypatch):
    monkeypatch.setenv("OPTPLUG_DISABLE", "zoo")
    site.install("zoo", offering("lion"))
    with pytest.raises(UnknownNameError) as caught:
        site.registry().find("optimizer", "lion")
    assert str(caught.value) == "no optimizer named 'lion'. Installed: none. (OPTPLUG_DISABLE leaves out zoo.)"


def test_our_own_plugins_can_be_disabled(monkeypatch):
    monkeypatch.setenv("OPTPLUG_DISABLE", "optplug-classic")
    registry = Registry()
    assert "adam" not in registry.names("optimizer")
    assert "cosine_annealing_lr" in registry.names("scheduler")


def test_reload_sees_what_has_changed(site, monkeypatch):
    site.install("zoo", offering("lion"))
    registry = site.registry()
    assert registry.names("optimizer") == ["lion"]
    monkeypatch.setenv("OPTPLUG_DISABLE", "zoo")
    assert registry.names("optimizer") == ["lion"]
    registry.reload()
    assert registry.names("optimizer") == []


def test_reload_sees_what_was_installed_since(site):
    registry = Registry()
    assert "lion" not in registry.names("optimizer")
    site.install("zoo", offering("lion"))
    registry.reload()
    assert "lion" in registry.names("optimizer")


def test_reload_of_given_points_finds_them_again(site):
    site.install("zoo", offering("lion"))
    registry = Registry(iter(site.points()))
    assert registry.names("optimizer") == ["lion"]
    registry.reload()
    assert registry.names("optimizer") == ["lion"]


def test_many_threads_discover_once(site):
    slow = "import time\ncalls = []\n@hookimpl\ndef optplug_optimizers():\n    calls.append(1)\n    time.sleep(0.05)\n"
    site.install("zoo", f"{HEAD}{slow}    return [SignDescent]")
    registry, together = site.registry(), Barrier(16)

    def ask(_: int) -> type:
        together.wait(timeout=30)
        return registry.get("optimizer", "sign_descent")

    with ThreadPoolExecutor(16) as pool:
        classes = set(pool.map(ask, range(16)))
    assert len(classes) == 1
    assert sys.modules["plugzoozoodist"].calls == [1]


def test_an_error_s_description_is_one_line():
    assert describe(ValueError("a\n b")) == "ValueError: a b"
    assert describe(UnknownNameError("nobody")) == "nobody"
    assert describe(KeyError("k")) == "KeyError: 'k'"


# ---------------------------------------------------------------- the promise to authors

AUTHOR_S_PYTHON = '''
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

AUTHOR_S_TOML = """
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

USER_S_PYTHON = """
import optplug, torch
assert "sign_descent" in optplug.list_optimizers(), optplug.registry.registry.quarantined
assert optplug.list_optimizers("signs:*") == ["sign_descent"]
assert str(optplug.registry.registry.find("optimizer", "sign_descent").plugin) == "signs (sign-descent 0.3)"
p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
optimizer = optplug.get_optimizer("sign_descent")([p], lr=0.25)
assert isinstance(optimizer, torch.optim.Optimizer)
for _ in range(3):
    p.grad = torch.tensor([5.0, -0.1, 0.0])
    optimizer.step()
assert p.tolist() == [0.25, -1.25, 3.0], p
"""


def test_an_author_s_package_is_built_installed_found_and_used(tmp_path):
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    source.joinpath("signs.py").write_text(AUTHOR_S_PYTHON)
    source.joinpath("pyproject.toml").write_text(textwrap.dedent(AUTHOR_S_TOML))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    pip = python("-m", "pip", "install", *options, "--target", str(target), str(source))
    assert pip.returncode == 0, pip.stderr
    used = python("-c", USER_S_PYTHON, path=target)
    assert used.returncode == 0, used.stderr
