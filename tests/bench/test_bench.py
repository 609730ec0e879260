"""Tests of `optplug bench`: entries, measurement, results, plot, and the command."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import optplug
from optplug import OptimizerSpec, RuleOptimizer, State
from optplug.bench import (
    PROFILES,
    Cell,
    Failure,
    Profile,
    Report,
    Timing,
    geometric_mean,
    get_profile,
    measure,
    parse_entry,
    plot,
    select_entries,
    timing,
)
from optplug.bench.roofline import memory_limit_optimizer, state_arrays
from optplug.cli import bench as cli
from optplug.cli.app import app
from optplug.errors import ConfigError, HyperparameterError, OptplugError, UnknownNameError
from optplug.registry import Plugin, Registration, registry
from optplug.rules.trace import trace

SMALL = Profile("small", ((5, 3), (7,)))
TWO_OPTIMIZERS = ["adam", "rprop"]
COMPARABLE = [
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd"),
    *("nadam", "radam", "rmsprop", "rprop", "sgd"),
]


class Signs(RuleOptimizer):
    """Takes steps of equal length. torch.optim has no class of this name."""

    states = (State("seen"),)

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @staticmethod
    def rule(p, g, seen, *, lr):
        return p - lr * optplug.ops.sign(g), seen + g


class Plain(torch.optim.Optimizer):
    """A class that is not a RuleOptimizer. torch.optim has no class of this name."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None: ...


@pytest.fixture
def third_party_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the optimizers `signs` and `plain` of a third-party plugin."""
    for name, cls in {"signs": Signs, "plain": Plain}.items():
        registration = Registration(OptimizerSpec(name, cls), Plugin("third-party", "third-party-dist", "1"))
        monkeypatch.setitem(registry._discovered().registrations["optimizer"], name, [registration])


@pytest.fixture
def small_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the profile `small`."""
    monkeypatch.setitem(PROFILES, "small", SMALL)


def measure_small(*names: str, **options: Any) -> list[Any]:
    """Measure two rounds of the small profile."""
    return list(measure([parse_entry(n) for n in names], [SMALL], **{"rounds": 2, "cold": False, **options}))


def timing_of(path: str, median: float) -> Timing:
    return Timing(path, median, median, median, 5, (median, median), False, 2**20)


def cell(optimizer: str = "adam", profile: str = "tiny", ours: float = 0.2, **changes: Any) -> Cell:
    result = Cell(
        optimizer, profile, 3, 12, "float32", "swift", "auto", "swift", 1, "torch.optim.Adam", 2,
        ours=timing_of("optplug", ours),
        memory_limit=timing_of("memory limit", 0.1),
        paths=(timing_of("loop", 0.8), timing_of("fused", 0.4), timing_of("foreach", 0.5)),
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


@pytest.fixture
def report() -> Report:
    return Report.from_results(
        [
            cell(skipped={"compile": "no compiler"}, warnings=("p is not finite",)),
            cell("sgd:momentum=0.9", ours=0.6),
            cell("adam", "one", ours=0.1),
            Failure("sgd", "one", "no memory"),
        ],
        {"rounds": 5},
    )


# ---------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [("tiny", 1000, 256_000), ("resnet50", 161, 25_557_032), ("gpt2", 148, 124_439_808), ("one", 1, 64_000_000)],
)
def test_profile_has_documented_shapes(name: str, tensors: int, elements: int):
    assert (len(get_profile(name).shapes), get_profile(name).elements) == (tensors, elements)


def test_unknown_profile_raises_with_similar_name():
    with pytest.raises(ConfigError, match=r"^no profile named 'tny'; did you mean 'tiny'\?$"):
        get_profile("tny")


# ----------------------------------------------------------------------------------------------- entries


def test_default_entries_are_all_comparable_optimizers(third_party_optimizers: None):
    found, skipped = select_entries()
    assert [one.label for one in found] == COMPARABLE
    assert skipped["muon"].startswith("takes matrices only")
    assert skipped["lbfgs"].startswith("lbfgs needs a closure")
    assert skipped["sparse_adam"].startswith("sparse_adam takes sparse gradients only")
    assert skipped["signs"].startswith("torch.optim has no class of this name")
    assert skipped["plain"].startswith("torch.optim has no class of this name")


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("adam", "adam", {}),
        ("optplug-classic:adam", "optplug-classic:adam", {}),
        ("sgd:momentum=0.9,nesterov=True", "sgd", {"momentum": 0.9, "nesterov": True}),
        ("optplug-classic:SGD:momentum=0.9", "optplug-classic:SGD", {"momentum": 0.9}),
        ("adam:betas=(0.8, 0.9), amsgrad=true", "adam", {"betas": (0.8, 0.9), "amsgrad": True}),
        ("adam:engine=loop,lr=1e-2", "adam", {"engine": "loop", "lr": 0.01}),
    ],
)
def test_entry_is_parsed_with_options(text: str, name: str, options: dict[str, Any]):
    found = parse_entry(text)
    assert (found.label, found.name, found.options) == (text, name, options)
    group = found.create(timing.make_params(SMALL, torch.float32), "auto").param_groups[0]
    assert all(group[key] == value for key, value in options.items() if key != "engine")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("adm", UnknownNameError, "no optimizer named 'adm'; did you mean 'adam'"),
        ("sgd:momentun=0.9", ConfigError, "did you mean 'momentum'?"),
        ("sgd:momentum=-1", HyperparameterError, "Invalid momentum value: -1"),
        ("sgd:momentum=0.9,momentum=0.8", ConfigError, "has the option momentum twice"),
        ("sgd:momentum=", ConfigError, "write option=value,option=value after the name's colon, not 'momentum='"),
        ("sgd,momentum=0.9", ConfigError, "options come after a colon"),
        ("lbfgs", ConfigError, "lbfgs needs a closure"),
        ("sparse_adam", ConfigError, "sparse_adam takes sparse gradients only"),
        ("adam:state_dtype=float32", ConfigError, "has no baseline: torch.optim.Adam has no option state_dtype"),
        (
            "sgd:decoupled_weight_decay=True",
            ConfigError,
            "has no baseline: torch.optim.SGD has no option decoupled_weight_decay",
        ),
    ],
)
def test_invalid_entry_raises(third_party_optimizers: None, text: str, error: type[OptplugError], message: str):
    with pytest.raises(error) as caught:
        parse_entry(text)
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------------- paths


def test_adam_has_three_baseline_paths():
    made = {
        name: make(timing.make_params(SMALL, torch.float32))
        for name, make in parse_entry("adam").baseline_paths().items()
    }
    assert {type(one) for one in made.values()} == {torch.optim.Adam}
    ways = {name: (one.param_groups[0]["foreach"], one.param_groups[0]["fused"]) for name, one in made.items()}
    assert ways == {"loop": (False, False), "foreach": (True, False), "fused": (False, True)}
    (found,) = measure_small("adam")
    assert [path.path for path in found.paths] == ["loop", "foreach", "fused"]
    assert found.baseline == "torch.optim.Adam"


def test_rprop_has_no_fused_path():
    (found,) = measure_small("rprop")
    assert [path.path for path in found.paths] == ["loop", "foreach"]
    assert not found.skipped


def test_options_apply_to_all_paths_but_engine_only_to_optplug():
    chosen = parse_entry("adam:lr=0.25,engine=loop")
    for make in chosen.baseline_paths().values():
        assert make(timing.make_params(SMALL, torch.float32)).param_groups[0]["lr"] == 0.25
    (found,) = measure_small("adam:lr=0.25,engine=loop")
    assert (found.engine, len(found.paths)) == ("loop", 3)
    assert found.notes == ("the baseline is measured without engine",)


@pytest.mark.parametrize("option", ["fused=True", "foreach=True", "foreach=False"])
def test_foreach_and_fused_options_apply_to_optplug_only(option: str):
    (found,) = measure_small(f"adam:{option}")
    assert ([path.path for path in found.paths], found.skipped) == (["loop", "foreach", "fused"], {})
    assert found.notes == (f"the baseline is measured without {option.partition('=')[0]}",)


def test_duplicate_entries_are_removed():
    several = ["adam", "ADAM", "optplug-classic:adam", "adam:lr=1e-2", "adam:lr=0.01", "adam:lr=0.02"]
    assert [one.label for one in select_entries(several)[0]] == ["adam", "adam:lr=1e-2", "adam:lr=0.02"]


class SupportsLoopOnly(torch.optim.SGD):
    """Raises in the constructor for foreach, and in the first step for fused."""

    def __init__(self, params: Any, foreach: Any = None, fused: Any = None) -> None:
        if foreach:
            raise TypeError("no foreach here")
        super().__init__(params)
        self.defaults["use_fused"] = fused

    def step(self, closure: Any = None) -> None:
        if self.defaults["use_fused"]:
            raise RuntimeError("no fused kernel")


def test_path_that_raises_is_skipped_with_reason():
    (found,) = measure(
        [dataclasses.replace(parse_entry("sgd"), reference=SupportsLoopOnly)], [SMALL], rounds=2, cold=False
    )
    assert [path.path for path in found.paths] == ["loop"]
    assert found.skipped == {"foreach": "TypeError: no foreach here", "fused": "RuntimeError: no fused kernel"}


def test_cell_without_any_path_is_a_failure_and_the_next_is_measured():
    options = {"state_dtype": "float32"}  # torch has no such option
    without_paths = dataclasses.replace(parse_entry("adam"), options=options, label="adam:state_dtype=float32")
    failed, found = measure([without_paths, parse_entry("sgd")], [SMALL], rounds=2, cold=False)
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("no path of torch.optim.Adam can be measured: loop: TypeError")
    assert isinstance(found, Cell)


def test_optimizer_without_torch_class_is_compared_with_its_own_loop(third_party_optimizers: None):
    (found,) = measure_small("signs")
    assert [path.path for path in found.paths] == ["own loop"]
    assert found.baseline == "itself, foreach=False"
    assert not found.is_compared_with_torch
    loop = parse_entry("signs").baseline_paths()["own loop"](timing.make_params(SMALL, torch.float32))
    loop.step()
    assert {r.reason for r in loop.engine_report()} == {"foreach=False"}


# ------------------------------------------------------------------------------------ third-party optimizers


class Adam(torch.optim.Adam):
    """A third-party class of the same name as that of torch, with another option."""

    def __init__(self, params: Any, lr: float = 0.1, speed: float = 1.0) -> None:
        super().__init__(params, lr=lr * speed)


class NeedsLength(torch.optim.SGD):
    """A class with a required argument, which must be in training mode."""

    def __init__(self, params: Any, length: int, *, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.length = length
        self.is_training = False

    def train(self) -> None:
        self.is_training = True

    def step(self, closure: Any = None) -> None:
        assert self.is_training
        super().step()


class Matrices(torch.optim.SGD):
    """A class that takes matrices only."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        assert all(p.ndim == 2 for p in self.param_groups[0]["params"])


class Named(torch.optim.SGD):
    """A class that takes pairs of a name and a parameter."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__([p for _, p in params], lr=lr)


class OfModule(torch.optim.SGD):
    """A class that takes a module."""

    def __init__(self, module: torch.nn.Module, lr: float = 0.1) -> None:
        super().__init__(module.parameters(), lr=lr)


class Breaking(torch.optim.SGD):
    """A class whose step fails with an exception of any kind."""

    def step(self, closure: Any = None) -> None:
        raise KeyError("ema")


class OddStates(torch.optim.SGD):
    """A class with states that are no dicts of tensors."""

    def step(self, closure: Any = None) -> None:
        super().step()
        self.state["all"] = [1, 2]
        for p in self.param_groups[0]["params"]:
            self.state[p]["codes"] = torch.zeros(p.shape, dtype=torch.uint8)


FOREIGN = (
    OptimizerSpec("adam", Adam),
    OptimizerSpec("needs_length", NeedsLength, capabilities="modes", cases=({"length": 7},)),
    OptimizerSpec("matrices", Matrices, capabilities="matrix_only"),
    OptimizerSpec("named", Named, capabilities="named_params"),
    OptimizerSpec("of_module", OfModule, capabilities="module"),
    OptimizerSpec("breaking", Breaking),
    OptimizerSpec("odd_states", OddStates),
    OptimizerSpec("flat", Plain, shapes=((8,),)),
    OptimizerSpec("sam", Plain, capabilities="gradients_first"),
    OptimizerSpec("lomo", Plain, unsupported="it steps in backward"),
    OptimizerSpec("maker", lambda params, lr=0.1: torch.optim.SGD(params, lr)),
)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the optimizers of an adapter `zoo`."""
    for spec in FOREIGN:
        registration = Registration(dataclasses.replace(spec, precedence=5), Plugin("zoo", "zoo-dist", "1"))
        registrations = registry._discovered().registrations["optimizer"]
        key = spec.name.replace("_", "")
        monkeypatch.setitem(registrations, key, [*registrations.get(key, []), registration])


def test_third_party_optimizers_without_torch_class_are_measured_alone(foreign: None):
    names = ["needs_length", "zoo:named", "of-module", "odd_states", "maker"]
    cells = measure_small(*names)
    assert [each.optimizer for each in cells] == names
    for each in cells:
        assert isinstance(each, Cell), each
        assert (each.baseline, each.paths, each.best, each.ratio, each.memory_limit) == ("", (), None, None, None)
        assert (each.ours.rounds, each.tensors, each.is_doubtful) == (2, 2, False)
    assert parse_entry("needs_length").options == {"length": 7}
    assert parse_entry("needs_length:length=9").options == {"length": 9}


def test_third_party_class_is_compared_with_the_class_of_torch_unless_its_options_differ(foreign: None):
    without, with_speed = measure_small("zoo:adam", "zoo:adam:speed=2.0")
    assert (without.baseline, [path.path for path in without.paths]) == (
        "torch.optim.Adam",
        ["loop", "foreach", "fused"],
    )
    assert (with_speed.baseline, with_speed.ratio) == ("", None)


def test_optimizer_of_some_shapes_is_measured_on_these(foreign: None):
    matrices, flat = measure_small("matrices", "flat")
    assert (matrices.tensors, matrices.elements) == (1, 15)
    assert (flat.tensors, flat.elements) == (1, 7)
    (failed,) = measure([parse_entry("matrices")], [Profile("vectors", ((5,),))])
    assert failed == Failure("matrices", "vectors", "takes parameters with 2 dimensions only: vectors has none")


def test_step_that_raises_is_a_failure_and_the_next_is_measured(foreign: None):
    failed, found = measure_small("breaking", "flat")
    assert failed == Failure("breaking", "small", "KeyError: 'ema'")
    assert isinstance(found, Cell)


def test_command_names_what_it_cannot_measure_and_measures_the_others(
    foreign: None, small_profile: None, tmp_path: Path
):
    names = ["adam", "lbfgs", "zoo:adam", "sam", "lomo", "needs_length", "matrices"]
    path = tmp_path / "out.json"
    ran = command(*names, "--profile", "small", "--rounds", "5", "--seconds", "0", "--no-cold", "--json", path)
    assert ran.exit_code == 1
    table = ran.stdout.partition("Times are medians")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.strip() and " is " not in line}
    assert [name for name in rows if name in names] == ["adam", "zoo:adam", "needs_length", "matrices"]
    assert rows["needs_length"].count("-") >= 7
    assert "needs_length is compared with nothing: torch.optim has no class of this name" in ran.stdout
    assert "matrices is measured on 1 of 2 tensors" in ran.stdout
    assert [line for line in ran.stderr.splitlines() if line.startswith("error: ")] == [
        "error: lbfgs on every profile: needs a closure, whose time is the time of the model: bench steps all tensors, "
        "with dense gradients",
        "error: sam on every profile: needs a closure, whose time is the time of the model: bench steps all tensors, "
        "with dense gradients",
        "error: lomo on every profile: cannot be used: it steps in backward",
    ]
    for shown in (command("--from", path), command("--from", path, "--markdown")):
        assert shown.exit_code == 1  # the failures
        assert "needs_length" in shown.stdout
    with pytest.raises(ConfigError, match="no cells with a baseline: there is nothing to plot"):
        plot.draw(Report.from_results([cell(baseline="", paths=())]), tmp_path / "a.png")
    plot.draw(Report.from_json(path.read_text()), tmp_path / "a.png")


def test_command_with_nothing_to_measure_fails(foreign: None):
    ran = command("lbfgs", "lomo")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: lbfgs needs a closure")
    assert ran.stderr.endswith("; lomo cannot be used: it steps in backward\n")


def test_compiled_path_uses_torch_compile(monkeypatch: pytest.MonkeyPatch):
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda step: compiled.append(step) or step)
    (found,) = measure_small("adam", compiled=True)
    assert [path.path for path in found.paths] == ["loop", "foreach", "fused", "compile"]
    assert len(compiled) == 1
    assert "compile" not in [path.path for path in measure_small("adam")[0].paths]


# ------------------------------------------------------------------------------------------------ timing


class RecordedPaths:
    """Paths whose steps record their name."""

    def __init__(self, count: int) -> None:
        self.taken: list[str] = []
        self.paths = [timing._TimedPath(name, None, self.step_of(name), (0.0, 0.0)) for name in "abcd"[:count]]

    def step_of(self, name: str) -> Any:
        return lambda: self.taken.append(name)

    def rounds(self) -> list[str]:
        """Return the order of the paths in each round after the warm-up."""
        n = len(self.paths)
        return ["".join(self.taken[i : i + n]) for i in range(n, len(self.taken), n)]


def test_each_round_has_one_step_of_every_path_in_uniform_random_order():
    recorded = RecordedPaths(4)
    timing.run_rounds(recorded.paths, 240, 60.0)
    rounds = recorded.rounds()
    assert len(rounds) == 240
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in rounds)
    firsts = Counter(order[0] for order in rounds)
    assert len(firsts) == 4
    assert min(firsts.values()) > 40
    follows = Counter(pair for order in rounds for pair in pairwise(order))
    assert len(follows) == 12
    assert min(follows.values()) > 40
    assert all(len(path.seconds) == 240 for path in recorded.paths)
    again = RecordedPaths(4)
    timing.run_rounds(again.paths, 240, 60.0)
    assert again.rounds() == rounds


def test_rounds_stop_after_the_time_limit_but_not_before_the_fifth():
    recorded = RecordedPaths(2)
    timing.run_rounds(recorded.paths, 100, 0.0)
    assert len(recorded.rounds()) == 5
    recorded = RecordedPaths(2)
    timing.run_rounds(recorded.paths, 3, 0.0)
    assert len(recorded.rounds()) == 3


def test_garbage_collection_is_disabled_during_rounds():
    assert gc.isenabled()
    collecting: list[bool] = []
    path = timing._TimedPath("a", None, lambda: collecting.append(gc.isenabled()), (0.0, 0.0))
    timing.run_rounds([path], 4, 0.0)
    assert collecting == [True, False, False, False, False], "the warm-up may collect, the timed rounds may not"
    assert gc.isenabled()


def test_timing_has_median_and_quartiles():
    found = Timing.from_seconds("loop", [5.0, 1.0, 2.0, 4.0, 3.0], (9.0, 8.0), cold=True, extra_bytes=7)
    assert found == Timing("loop", 3.0, 2.0, 4.0, 5, (9.0, 8.0), True, 7)
    assert Timing.from_seconds("loop", [2.0], (9.0, 8.0), cold=True, extra_bytes=7).median == 2.0


def test_cell_has_engine_and_one_time_per_round():
    found, other = measure_small("adam", "sgd", rounds=4)
    params = timing.make_params(SMALL, torch.float32)
    ours = parse_entry("adam").create(params, "auto")
    ours.step()
    assert {found.engine} == {r.engine for r in ours.engine_report()}
    assert {found.reason} == {r.reason for r in ours.engine_report()}
    assert (found.tensors, found.elements, found.states, other.states) == (2, 22, 2, 0)
    for path in (found.ours, found.memory_limit, *found.paths):
        assert path.rounds == 4
        assert 0 < path.lower <= path.median <= path.upper < 1
        assert min(path.first_steps) > 0
    assert not found.warnings


def test_requested_engine_dtype_and_threads_are_used():
    before = torch.get_num_threads()
    seen: list[int] = []
    found = measure_small(
        "adam", engine="loop", dtype=torch.float64, threads=1, progress=lambda _: seen.append(torch.get_num_threads())
    )
    assert (found[0].engine, found[0].dtype) == ("loop", "float64")
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_report_has_number_of_threads_of_the_measurement():
    asked = torch.get_num_threads() + 1
    assert (
        Report.from_results(measure([parse_entry("sgd")], [SMALL], rounds=2, cold=False, threads=asked)).machine[
            "threads"
        ]
        == asked
    )


def test_make_params_returns_equal_values_at_every_call():
    a, b = timing.make_params(SMALL, torch.float32), timing.make_params(SMALL, torch.float32)
    assert all(torch.equal(p, q) and torch.equal(p.grad, q.grad) for p, q in zip(a, b, strict=True))
    assert [tuple(p.shape) for p in a] == list(SMALL.shapes)


def test_first_two_steps_of_optplug_are_from_a_fresh_process():
    (found,) = measure_small("adam", cold=True)
    assert found.ours.cold
    assert not any(path.cold for path in (found.memory_limit, *found.paths))
    assert min(found.ours.first_steps) > 0


def test_fresh_process_receives_the_measurement_settings(monkeypatch: pytest.MonkeyPatch):
    request: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> Any:
        request.update(json.loads(options["input"]))
        return type("Ran", (), {"returncode": 0, "stdout": "noise\n[3.0, 4.0]\n", "stderr": ""})

    monkeypatch.setattr(timing.subprocess, "run", run)
    (found,) = measure_small("sgd:momentum=0.5", cold=True, dtype=torch.float64, engine="loop")
    assert found.ours.first_steps == (3.0, 4.0)
    threads = torch.get_num_threads()
    shapes = [list(shape) for shape in SMALL.shapes]
    assert request == {
        "path": "optplug",
        "entry": "sgd:momentum=0.5",
        "profile": ["small", shapes],
        "engine": "loop",
        "dtype": "float64",
        "threads": threads,
    }


def test_failing_fresh_process_is_a_failure(third_party_optimizers: None):
    (failed,) = measure_small("signs", cold=True)  # the new process has no such plugin
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("the process for the first two steps failed: no optimizer named 'signs'")


def test_extra_bytes_includes_memory_of_torch_and_python():
    assert timing.extra_bytes(lambda: torch.ones(2**18) + 1) == pytest.approx(2 * 2**20, rel=0.05)
    assert timing.extra_bytes(lambda: bytearray(2**20)) == pytest.approx(2**20, rel=0.05)
    assert timing.extra_bytes(lambda: None) < 2**12


def test_value_warnings_for_non_finite_and_subnormal_values():
    params = timing.make_params(Profile("one", ((100,),)), torch.float32)
    optimizer = parse_entry("adam").create(params, "auto")
    path = timing._TimedPath("optplug", optimizer, optimizer.step, (0.0, 0.0))
    optimizer.step()
    assert not list(timing.value_warnings(params, [path]))
    with torch.no_grad():
        params[0][3] = math.nan
        optimizer.state[params[0]]["exp_avg"][:2] = 1e-40
    assert list(timing.value_warnings(params, [path])) == [
        "1 of 100 elements of p are not finite",
        "2 of 100 elements of exp_avg of optplug are subnormal",
    ]


# ------------------------------------------------------------------------------------------------- limit


def reads_and_writes(optimizer: Any) -> tuple[int, int]:
    """Return how many element-wise arrays the graph of an optimizer reads and writes for a matrix.

    Arrays with one number per row or column are not counted: they are small.
    """
    group = optimizer.param_groups[0]
    variant = optimizer._variant(group, matrices=True)
    lengths = {h: len(v) if isinstance(v := group.get(h), (tuple, list)) else 0 for h in variant.hyperparameters}
    traced = trace(variant, tuple(lengths.items()))
    inputs = [node.kind for node in traced.nodes if node.op == "input"]
    return inputs.count("element"), [node.kind for node in traced.outputs.values()].count("element")


CASES = [(name, case) for name in COMPARABLE for case in optplug.get_optimizer(name).cases]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case}" for name, case in CASES])
def test_memory_limit_reads_and_writes_as_many_arrays_as_the_optimizer(name: str, case: dict[str, Any]):
    params = timing.make_params(SMALL, torch.float32)
    optimizer = optplug.create_optimizer(name, params, **case)
    optimizer.step()
    limit = memory_limit_optimizer(optimizer, params, "auto")
    assert reads_and_writes(limit) == reads_and_writes(optimizer)


def test_memory_limit_adds_the_gradient_to_every_array():
    params = timing.make_params(SMALL, torch.float32)
    optimizer = optplug.create_optimizer("adam", params, state_dtype=torch.float64)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    limit = memory_limit_optimizer(optimizer, params, "auto")
    limit.step()
    limit.step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), old + 2 * p.grad)
        states = list(limit.state[p].values())
        assert [s.dtype for s in states] == [torch.float64] * 2, "the dtype of the optimizer's states"
        assert all(torch.equal(s.float(), 2 * p.grad) for s in states)
    assert len(state_arrays(limit)) == len(state_arrays(optimizer)) == 2


def test_memory_limit_uses_the_given_engine():
    params = timing.make_params(SMALL, torch.float32)
    for engine in ("auto", "loop"):
        ours = parse_entry("adam").create(params, engine)
        ours.step()
        limit = memory_limit_optimizer(ours, params, engine)
        limit.step()
        assert timing.engine_and_reason(limit) == timing.engine_and_reason(ours)


def test_memory_limit_of_a_cell_is_of_the_optimizer_and_all_parameters(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    def recorded(*args: Any) -> Any:
        calls.append(args)
        return memory_limit_optimizer(*args)

    monkeypatch.setattr(timing, "memory_limit_optimizer", recorded)
    (found,) = measure_small("adam", engine="loop")
    ((optimizer, params, engine),) = calls
    assert type(optimizer) is optplug.get_optimizer("adam")
    assert [tuple(p.shape) for p in params] == list(SMALL.shapes)
    assert all(p is q for p, q in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert engine == "auto"
    assert found.memory_limit.path == "memory limit"
    assert (found.engine, found.memory_limit_engine) == (
        "loop",
        timing.engine_and_reason(parse_entry("sgd").create(params, "auto"))[0],
    )
    assert found.memory_limit_fraction is None


# ----------------------------------------------------------------------------------------------- results


def test_ratio_and_memory_limit_fraction():
    found = cell(ours=0.2)
    assert found.best.path == "fused"
    assert found.ratio == 0.5
    assert found.memory_limit_fraction == 0.5
    assert cell(memory_limit_engine="slow").memory_limit_fraction is None
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)


def test_ratio_is_doubtful_if_one_of_its_timings_is_noisy():
    noisy = {"lower": 0.1, "upper": 0.16}
    calm = cell()
    assert not calm.is_doubtful
    assert not dataclasses.replace(calm, ours=dataclasses.replace(calm.ours, lower=0.1, upper=0.15)).is_doubtful
    assert dataclasses.replace(calm, ours=dataclasses.replace(calm.ours, **noisy)).is_doubtful
    loop, fused, foreach = calm.paths
    assert not dataclasses.replace(calm, paths=(dataclasses.replace(loop, **noisy), fused, foreach)).is_doubtful
    assert dataclasses.replace(calm, paths=(loop, dataclasses.replace(fused, **noisy), foreach)).is_doubtful


def test_report_is_equal_after_json_round_trip(report: Report):
    assert Report.from_json(report.to_json()) == report
    (found,) = measure_small("sgd")
    measured = Report.from_results([found])
    assert Report.from_json(measured.to_json()) == measured


def test_json_has_expected_keys(report: Report):
    read = json.loads(report.to_json())
    assert set(read) == {"format", "date", "machine", "versions", "settings", "cells", "failures"}
    assert set(read["machine"]) == {"cpu", "cores", "threads", "system", "load"}
    assert {"python", "torch", "optplug"} <= set(read["versions"])
    assert read["versions"]["torch"] == importlib.metadata.version("torch")
    first = read["cells"][0]
    assert (first["best"], first["ratio"], first["memory_limit_fraction"]) == ("fused", 0.5, 0.5)
    keys = {"path", "median", "lower", "upper", "rounds", "first_steps", "cold", "extra_bytes"}
    assert all(set(one) == keys for one in (first["ours"], first["memory_limit"], *first["paths"]))
    assert read["failures"] == [{"optimizer": "sgd", "profile": "one", "reason": "no memory"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is not a result of optplug bench"),
        ("[]", "this is not a result of optplug bench"),
        ("{}", "this is not a result of optplug bench: KeyError: 'format'"),
        ('{"format": 99}', "this is a result of another version of optplug bench; this version reads format 3"),
        ('{"format": 3, "cells": [{}], "failures": []}', "this is not a result of optplug bench"),
    ],
)
def test_from_json_raises_for_invalid_text(text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        Report.from_json(text)
    assert str(caught.value).startswith(message)


# ----------------------------------------------------------------------------------------------- plot


def test_plot_has_bars_in_proportion_to_ratios(report: Report, tmp_path: Path):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    path = tmp_path / "ratios.png"
    plot.draw(report, path)
    pixels = torch.from_numpy(imread(path)[..., :3])
    assert min(pixels.shape[:2]) > 300

    def count_pixels(color: str) -> int:
        return int(((pixels - torch.tensor(to_rgb(color))).abs().amax(-1) < 0.01).sum())

    faster, slower = count_pixels(plot.FASTER_COLOR), count_pixels(plot.SLOWER_COLOR)
    assert faster > 5000
    assert slower > 5000
    # 0.5 and 0.25 of torch's time against 1.5 of it; ticks and the line at 1 take some away.
    assert 0.4 < faster / slower < 0.6


def test_plot_errors_are_raised_before_the_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a plot 'a\.doc' cannot be written; its suffix must be one of .*png"):
        plot.check_plot_path(tmp_path / "a.doc")
    with pytest.raises(ConfigError, match="there is nothing to plot"):
        plot.draw(Report.from_results([]), tmp_path / "a.png")
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"^a plot needs matplotlib: pip install 'optplug\[demo\]'$"):
        plot.check_plot_path(tmp_path / "a.png")


# ----------------------------------------------------------------------------------------------- command


def command(*args: Any) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def test_command_prints_tables_and_writes_json_and_plot(small_profile: None, tmp_path: Path):
    written, drawn = tmp_path / "out.json", tmp_path / "out.png"
    options = ("--profile", "small", "--rounds", 5, "--seconds", 0, "--no-cold", "--json", written, "--picture", drawn)
    result = command(*TWO_OPTIMIZERS, *options)
    assert (result.exit_code, result.exception) == (0, None), result.output
    report = Report.from_json(written.read_text())
    assert [(found.optimizer, found.profile) for found in report.cells] == [(name, "small") for name in TWO_OPTIMIZERS]
    assert drawn.stat().st_size > 10_000
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = {words[0]: words for words in lines if words and words[0] in TWO_OPTIMIZERS}
    for found in report.cells:
        assert f"{found.ratio:.2f}{'?' * found.is_doubtful}" in rows[found.optimizer]
        assert f"{found.memory_limit_fraction:.0%}" in rows[found.optimizer]
        assert found.engine == rows[found.optimizer][1]
    assert rows["rprop"][5] == "-", "torch has no fused Rprop"
    assert "small: 2 tensors, 22 float32 elements" in result.stdout
    mean = geometric_mean(found.ratio for found in report.cells)
    assert f"geometric mean of the ratios: small {mean:.2f}; all {mean:.2f}" in result.stdout
    begin, end, begin_next, end_next = result.stderr.splitlines()
    assert (begin, begin_next) == ("1/2 adam on small", "2/2 rprop on small")
    assert end.startswith("adam on small: ratio")
    assert end_next.startswith("rprop on small: ratio")


def test_from_option_prints_a_saved_report_as_tables_or_markdown(report: Report, tmp_path: Path):
    path = tmp_path / "old.json"
    path.write_text(dataclasses.replace(report, failures=()).to_json())
    shown = command("--from", path)
    assert shown.exit_code == 0
    for expected in ("sgd:momentum=0.9", "*400.0", "adam, compile is skipped: no compiler", "worst: sgd:momentum=0.9"):
        assert expected in shown.stdout
    assert "adam: doubtful, p is not finite" in shown.stdout
    assert shown.stdout.splitlines().count("swift: auto") == 2, "why this engine, under the table of each profile"
    result = command("--from", path, "--markdown")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    head = "| tiny: 3 tensors, 12 float32 elements | optplug | torch's best | ratio | of the memory limit |"
    assert lines.index(head) < lines.index("| `adam` | 200.0 ms | 400.0 ms, `fused` | 0.50 | 50% |")
    assert "| `sgd:momentum=0.9` | 600.0 ms | 400.0 ms, `fused` | 1.50 | 17% |" in lines
    assert "| `adam` | 100.0 ms | 400.0 ms, `fused` | 0.25 | 100% |" in lines
    assert "swift: auto." in lines
    assert lines[-1].startswith("Geometric mean of the ratios: tiny 0.87, one 0.25; all 0.57; worst: sgd:momentum=0.9")


def test_failed_cells_are_printed_on_stderr(report: Report, tmp_path: Path):
    path = tmp_path / "old.json"
    path.write_text(report.to_json())
    result = command("--from", path)
    assert result.exit_code == 1
    assert result.stderr == "error: sgd on one: no memory\n"
    assert "worst:" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["adm"], "error: no optimizer named 'adm'; did you mean 'adam'"),
        (
            ["--profile", "resnet"],
            "error: no profile named 'resnet'; did you mean 'resnet50'?",
        ),
        (["adam:amsgrd=True"], "error: optimizer.args.amsgrd: adam has no option 'amsgrd'; did you mean 'amsgrad'?"),
        (["adam", "--dtype", "float31"], "error: no dtype 'float31' for bench; did you mean 'float32'"),
        (["adam", "--engine", "lop"], "error: no engine named 'lop'; "),
        (["adam", "--json", "nowhere/out.json"], "error: out.json cannot be written: there is no folder 'nowhere'"),
        (
            ["adam", "--profile", "tiny", "--no-cold", "--seconds", "0", "--picture", "out.doc"],
            "error: a plot 'out.doc' cannot be written",
        ),
        (["--from", "nowhere.json"], "error: 'nowhere.json' cannot be read: No such file or directory"),
        (["adam", "--from", "nowhere.json"], "error: --from shows the results in a file: remove names"),
        (
            ["--from", "nowhere.json", "--dtype", "float32", "--compile", "--no-cold"],
            "error: --from shows the results in a file: remove --compile, --cold, --dtype",
        ),
        (["adam", "--json", "."], "error: '.' cannot be written: it is a folder"),
        (
            ["adam:state_dtype=float32"],
            "error: 'adam:state_dtype=float32' has no baseline: torch.optim.Adam has no option state_dtype",
        ),
    ],
)
def test_command_errors_are_one_line(args: list[str], message: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    result = command(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_cell_compared_with_itself_is_marked_and_excluded_from_means(tmp_path: Path):
    alone = cell("signs", ours=3.0, baseline="itself, foreach=False", paths=(timing_of("own loop", 1.0),))
    path = tmp_path / "old.json"
    path.write_text(Report.from_results([cell(), alone]).to_json())
    shown = command("--from", path).stdout
    assert "own loop" in shown
    assert "signs is compared with itself" in shown
    assert "geometric mean of the ratios: tiny 0.50; all 0.50" in shown
    assert "worst: adam on tiny" in shown
    path.write_text(Report.from_results([alone]).to_json())
    only = command("--from", path)
    assert only.exit_code == 0
    assert "geometric mean" not in only.stdout
    assert command("--from", path, "--markdown").exit_code == 0
    plot.draw(Report.from_results([cell(), alone]), tmp_path / "a.png")


def test_doubtful_ratio_and_other_engine_are_marked_in_both_formats(tmp_path: Path):
    noisy = dataclasses.replace(timing_of("optplug", 0.2), upper=0.4)
    path = tmp_path / "old.json"
    path.write_text(Report.from_results([cell(), cell("sgd", memory_limit_engine="slow")]).to_json())
    assert "?" not in command("--from", path).stdout
    path.write_text(
        Report.from_results([dataclasses.replace(cell("sgd", memory_limit_engine="slow"), ours=noisy)]).to_json()
    )
    shown = command("--from", path).stdout
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("sgd ")]
    assert row[6:9] == ["0.50?", "-", "-"]
    assert "?: doubtful, the upper quartile" in shown
    assert ", load " in shown
    markdown = command("--from", path, "--markdown").stdout
    assert "| `sgd` | 200.0 ms | 400.0 ms, `fused` | 0.50? | - |" in markdown
    assert "?: doubtful, the upper quartile" in markdown


@pytest.mark.parametrize("columns", [60, 80])
def test_narrow_terminal_shows_the_most_important_columns(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "WIDE", columns)
    out = Console(width=columns)
    with out.capture() as captured:
        out.print(cli._table([cell("sgd:momentum=0.9,nesterov=True,weight_decay=0.0001")]))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].split() == ["optimizer", "ours", "ms", "best", "ms", "ratio", "of", "limit"]
    assert "".join(line.split()[0] for line in lines[2:]) == "sgd:momentum=0.9,nesterov=True,weight_decay=0.0001"
    assert lines[2].split()[1:] == ["200.0", "400.0", "fused", "0.50", "50%"]


def interrupted(*found: Any) -> Any:
    def measured(*args: Any, **options: Any) -> Any:
        yield from found
        raise KeyboardInterrupt

    return measured


def test_interrupt_before_the_first_cell_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    written, drawn = tmp_path / "out.json", tmp_path / "out.png"
    written.write_text("old")
    drawn.write_text("old")
    monkeypatch.setattr(optplug.bench, "measure", interrupted(Failure("adam", "tiny", "no memory")))
    result = command("adam", "--json", written, "--picture", drawn)
    assert result.exit_code == 130
    assert (result.stdout, written.read_text(), drawn.read_text()) == ("", "old", "old")
    assert "interrupted before the first result: nothing is written" in result.stderr


def test_interrupt_after_a_cell_prints_and_writes_partial_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    written = tmp_path / "out.json"
    monkeypatch.setattr(optplug.bench, "measure", interrupted(cell()))
    result = command("adam", "--json", written)
    assert result.exit_code == 130
    assert "worst: adam on tiny" in result.stdout
    assert "(interrupted)" in result.stdout
    assert Report.from_json(written.read_text()).settings["interrupted"] is True
    assert command("--from", written).exit_code == 0


def test_tables_are_printed_if_writing_the_file_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(optplug.bench, "measure", lambda *args, **options: iter([cell()]))
    monkeypatch.setattr(Path, "write_text", full)
    result = command("adam", "--json", tmp_path / "out.json")
    assert (result.exit_code, "worst: adam on tiny" in result.stdout) == (1, True)
    assert result.stderr.endswith("error: no space left\n")


def test_unwritable_file_raises_before_the_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    result = command("adam", "--json", tmp_path / "out.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be written: permission denied" in result.stderr


def modified_report(**changes: Any) -> bytes:
    read = json.loads(Report.from_results([cell()]).to_json())
    read["cells"][0]["ours"].update(changes.pop("ours", {}))
    return json.dumps(read | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"",
        modified_report(ours={"median": 0.0}),
        modified_report(ours={"median": "fast"}),
        modified_report(ours={"extra_bytes": None}),
        modified_report(ours={"first": ["a", "b"]}),
        modified_report(machine={}),
        modified_report(versions=3),
    ],
    ids=["not UTF-8", "empty", "zero", "text", "null", "texts", "no machine", "no versions"],
)
def test_invalid_file_is_a_one_line_error(content: bytes, tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    result = command("--from", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: this is not a result of optplug bench: ")
    assert result.stderr.count("\n") == 1


def test_profile_given_twice_is_measured_once(small_profile: None):
    result = command("rprop", "--profile", "small", "--profile", "SMALL", "--rounds", 5, "--seconds", 0, "--no-cold")
    assert result.stderr.startswith("1/1 rprop on small\n")
