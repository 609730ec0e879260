"""optplug bench: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
import gc
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
    entries,
    entry,
    geometric_mean,
    measure,
    plot,
    profile,
    timing,
)
from optplug.bench.roofline import arrays, limit_of
from optplug.cli import bench as cli
from optplug.cli.app import app
from optplug.errors import ConfigError, HyperparameterError, OptplugError, UnknownNameError
from optplug.registry import Plugin, Registration, registry
from optplug.rules.trace import trace

SMALL = Profile("small", ((5, 3), (7,)))
BOTH = ["adam", "rprop"]
COMPARED = ["adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "rmsprop", "rprop", "sgd"]


class Signs(RuleOptimizer):
    """Steps of equal length; torch.optim has none of this name."""

    states = (State("seen"),)

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @staticmethod
    def rule(p, g, seen, *, lr):
        return p - lr * optplug.ops.sign(g), seen + g


class Plain(torch.optim.Optimizer):
    """Has no rule."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None: ...


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two optimizers of somebody's plugin, `signs` and `plain`."""
    for name, cls in {"signs": Signs, "plain": Plain}.items():
        registration = Registration(OptimizerSpec(name, cls), Plugin("stranger", "stranger-dist", "1"))
        monkeypatch.setitem(registry._catalogue().registrations["optimizer"], name, [registration])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "small", SMALL)


def quick(*names: str, **options: Any) -> list[Any]:
    """What two rounds of the small profile find."""
    return list(measure([entry(n) for n in names], [SMALL], **{"rounds": 2, "cold": False, **options}))


def timing_of(path: str, median: float) -> Timing:
    return Timing(path, median, median, median, 5, (median, median), False, 2**20)


def cell(optimizer: str = "adam", on: str = "tiny", ours: float = 0.2, **changes: Any) -> Cell:
    made = Cell(
        optimizer, on, 3, 12, "float32", "swift", "auto", "swift", 1, "torch.optim.Adam", 2,
        ours=timing_of("optplug", ours),
        limit=timing_of("limit", 0.1),
        paths=(timing_of("loop", 0.8), timing_of("fused", 0.4), timing_of("foreach", 0.5)),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.fixture
def report() -> Report:
    return Report.of(
        [
            cell(left_out={"compile": "no compiler"}, complaints=("p is not finite",)),
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
def test_a_profile_has_the_shapes_it_says(name: str, tensors: int, elements: int):
    assert (len(profile(name).shapes), profile(name).elements) == (tensors, elements)


def test_an_unknown_profile_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^no profile named 'tny'; there are tiny, .*; did you mean 'tiny'\?$"):
        profile("tny")


# ----------------------------------------------------------------------------------------------- entries


def test_without_names_all_are_compared_that_torch_has_and_that_step_alone(strangers: None):
    found, left_out = entries()
    assert [one.label for one in found] == COMPARED
    assert left_out["lbfgs"].startswith("lbfgs needs a closure")
    assert left_out["sparse_adam"].startswith("sparse_adam takes sparse gradients only")
    assert left_out["signs"].startswith("torch.optim has none of this name")
    assert left_out["plain"] == "plain has nothing to be compared with: torch.optim has no Plain"


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
def test_a_name_may_carry_options(text: str, name: str, options: dict[str, Any]):
    found = entry(text)
    assert (found.label, found.name, found.options) == (text, name, options)
    group = found.ours(timing.tensors(SMALL, torch.float32), "auto").param_groups[0]
    assert all(group[key] == value for key, value in options.items() if key != "engine")


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("adm", UnknownNameError, "no optimizer named 'adm'; did you mean 'adam'"),
        ("sgd:momentun=0.9", ConfigError, "did you mean 'momentum'?"),
        ("sgd:momentum=-1", HyperparameterError, "Invalid momentum value: -1"),
        ("sgd:momentum=0.9,momentum=0.8", ConfigError, "gives momentum twice"),
        ("sgd:momentum=", ConfigError, "write option=value,option=value after the name's colon, not 'momentum='"),
        ("sgd,momentum=0.9", ConfigError, "options come after a colon"),
        ("lbfgs", ConfigError, "lbfgs needs a closure"),
        ("sparse_adam", ConfigError, "sparse_adam takes sparse gradients only"),
        ("plain", ConfigError, "plain has nothing to be compared with"),
        ("adam:state_dtype=float32", ConfigError, "torch.optim.Adam has no state_dtype to be compared with"),
        ("sgd:decoupled_weight_decay=True", ConfigError, "torch.optim.SGD has no decoupled_weight_decay to be"),
    ],
)
def test_what_cannot_be_measured_is_refused(strangers: None, text: str, kind: type[OptplugError], says: str):
    with pytest.raises(kind) as caught:
        entry(text)
    assert says in str(caught.value)


# ------------------------------------------------------------------------------------------------- paths


def test_the_paths_of_adam_are_the_three_that_torch_has():
    made = {name: make(timing.tensors(SMALL, torch.float32)) for name, make in entry("adam").paths().items()}
    assert {type(one) for one in made.values()} == {torch.optim.Adam}
    ways = {name: (one.param_groups[0]["foreach"], one.param_groups[0]["fused"]) for name, one in made.items()}
    assert ways == {"loop": (False, False), "foreach": (True, False), "fused": (False, True)}
    (found,) = quick("adam")
    assert [path.path for path in found.paths] == ["loop", "foreach", "fused"]
    assert found.against == "torch.optim.Adam"


def test_a_path_that_torch_lacks_is_none():
    (found,) = quick("rprop")
    assert [path.path for path in found.paths] == ["loop", "foreach"]
    assert not found.left_out


def test_the_options_are_those_of_all_paths_and_the_engine_is_ours_alone():
    chosen = entry("adam:lr=0.25,engine=loop")
    for make in chosen.paths().values():
        assert make(timing.tensors(SMALL, torch.float32)).param_groups[0]["lr"] == 0.25
    (found,) = quick("adam:lr=0.25,engine=loop")
    assert (found.engine, len(found.paths)) == ("loop", 3)
    assert found.notes == ("engine is given to ours alone",)


@pytest.mark.parametrize("option", ["fused=True", "foreach=True", "foreach=False"])
def test_an_option_that_names_a_way_to_step_leaves_torch_all_of_its_own(option: str):
    (found,) = quick(f"adam:{option}")
    assert ([path.path for path in found.paths], found.left_out) == (["loop", "foreach", "fused"], {})
    assert found.notes == (f"{option.partition('=')[0]} is given to ours alone",)


def test_the_same_optimizer_with_the_same_options_counts_once():
    several = ["adam", "ADAM", "optplug-classic:adam", "adam:lr=1e-2", "adam:lr=0.01", "adam:lr=0.02"]
    assert [one.label for one in entries(several)[0]] == ["adam", "adam:lr=1e-2", "adam:lr=0.02"]


class Picky(torch.optim.SGD):
    """Says no to fused only in its first step, and to foreach when it is made."""

    def __init__(self, params: Any, foreach: Any = None, fused: Any = None) -> None:
        if foreach:
            raise TypeError("no foreach here")
        super().__init__(params)
        self.defaults["picky"] = fused

    def step(self, closure: Any = None) -> None:
        if self.defaults["picky"]:
            raise RuntimeError("no fused kernel")


def test_a_path_that_raises_is_left_out_with_its_reason():
    (found,) = measure([dataclasses.replace(entry("sgd"), reference=Picky)], [SMALL], rounds=2, cold=False)
    assert [path.path for path in found.paths] == ["loop"]
    assert found.left_out == {"foreach": "TypeError: no foreach here", "fused": "RuntimeError: no fused kernel"}


def test_without_any_path_there_is_no_cell_and_the_next_is_measured():
    options = {"state_dtype": "float32"}  # of which torch knows nothing
    hopeless = dataclasses.replace(entry("adam"), options=options, label="adam:state_dtype=float32")
    failed, found = measure([hopeless, entry("sgd")], [SMALL], rounds=2, cold=False)
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("no path of torch.optim.Adam can be measured: loop: TypeError")
    assert isinstance(found, Cell)


def test_who_has_no_counterpart_is_compared_with_its_own_loop(strangers: None):
    (found,) = quick("signs")
    assert [path.path for path in found.paths] == ["own loop"]
    assert found.against == "itself, foreach=False"
    assert not found.of_torch
    loop = entry("signs").paths()["own loop"](timing.tensors(SMALL, torch.float32))
    loop.step()
    assert {r.reason for r in loop.engine_report()} == {"foreach=False"}


def test_the_compiled_path_goes_through_torch_compile(monkeypatch: pytest.MonkeyPatch):
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda step: compiled.append(step) or step)
    (found,) = quick("adam", compiled=True)
    assert [path.path for path in found.paths] == ["loop", "foreach", "fused", "compile"]
    assert len(compiled) == 1
    assert "compile" not in [path.path for path in quick("adam")[0].paths]


# ------------------------------------------------------------------------------------------------ timing


class Turns:
    """Paths whose steps note their name."""

    def __init__(self, count: int) -> None:
        self.taken: list[str] = []
        self.paths = [timing._Path(name, None, self.step_of(name), (0.0, 0.0)) for name in "abcd"[:count]]

    def step_of(self, name: str) -> Any:
        return lambda: self.taken.append(name)

    def rounds(self) -> list[str]:
        """The order within each round, after the warm-up."""
        n = len(self.paths)
        return ["".join(self.taken[i : i + n]) for i in range(n, len(self.taken), n)]


def test_every_round_is_one_step_of_every_path_in_an_order_that_favours_nobody():
    turns = Turns(4)
    timing.take_turns(turns.paths, 240, 60.0)
    rounds = turns.rounds()
    assert len(rounds) == 240
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in rounds)
    firsts = Counter(order[0] for order in rounds)
    assert len(firsts) == 4
    assert min(firsts.values()) > 40
    follows = Counter(pair for order in rounds for pair in pairwise(order))
    assert len(follows) == 12
    assert min(follows.values()) > 40
    assert all(len(path.seconds) == 240 for path in turns.paths)
    again = Turns(4)
    timing.take_turns(again.paths, 240, 60.0)
    assert again.rounds() == rounds


def test_rounds_end_with_the_time_but_not_before_the_fifth():
    turns = Turns(2)
    timing.take_turns(turns.paths, 100, 0.0)
    assert len(turns.rounds()) == 5
    turns = Turns(2)
    timing.take_turns(turns.paths, 3, 0.0)
    assert len(turns.rounds()) == 3


def test_garbage_waits_until_the_rounds_are_over():
    assert gc.isenabled()
    collecting: list[bool] = []
    path = timing._Path("a", None, lambda: collecting.append(gc.isenabled()), (0.0, 0.0))
    timing.take_turns([path], 4, 0.0)
    assert collecting == [True, False, False, False, False], "the warm-up may collect, the timed rounds may not"
    assert gc.isenabled()


def test_a_timing_is_of_the_median_and_the_quartiles():
    found = Timing.of("loop", [5.0, 1.0, 2.0, 4.0, 3.0], (9.0, 8.0), cold=True, extra_bytes=7)
    assert found == Timing("loop", 3.0, 2.0, 4.0, 5, (9.0, 8.0), True, 7)
    assert Timing.of("loop", [2.0], (9.0, 8.0), cold=True, extra_bytes=7).median == 2.0


def test_a_cell_says_who_stepped_and_is_timed_in_every_round():
    found, other = quick("adam", "sgd", rounds=4)
    params = timing.tensors(SMALL, torch.float32)
    ours = entry("adam").ours(params, "auto")
    ours.step()
    assert {found.engine} == {r.engine for r in ours.engine_report()}
    assert {found.reason} == {r.reason for r in ours.engine_report()}
    assert (found.tensors, found.elements, found.states, other.states) == (2, 22, 2, 0)
    for path in (found.ours, found.limit, *found.paths):
        assert path.rounds == 4
        assert 0 < path.lower <= path.median <= path.upper < 1
        assert min(path.first) > 0
    assert not found.complaints


def test_the_engine_dtype_and_threads_are_those_asked_for():
    before = torch.get_num_threads()
    seen: list[int] = []
    found = quick(
        "adam", engine="loop", dtype=torch.float64, threads=1, progress=lambda _: seen.append(torch.get_num_threads())
    )
    assert (found[0].engine, found[0].dtype) == ("loop", "float64")
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_a_report_tells_the_threads_measured_with():
    asked = torch.get_num_threads() + 1
    assert Report.of(measure([entry("sgd")], [SMALL], rounds=2, cold=False, threads=asked)).machine["threads"] == asked


def test_gradients_and_parameters_are_the_same_for_everybody():
    a, b = timing.tensors(SMALL, torch.float32), timing.tensors(SMALL, torch.float32)
    assert all(torch.equal(p, q) and torch.equal(p.grad, q.grad) for p, q in zip(a, b, strict=True))
    assert [tuple(p.shape) for p in a] == list(SMALL.shapes)


def test_the_first_two_steps_of_ours_are_those_of_a_fresh_process():
    (found,) = quick("adam", cold=True)
    assert found.ours.cold
    assert not any(path.cold for path in (found.limit, *found.paths))
    assert min(found.ours.first) > 0


def test_the_fresh_process_takes_what_it_is_told(monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> Any:
        told.update(json.loads(options["input"]))
        return type("Ran", (), {"returncode": 0, "stdout": "noise\n[3.0, 4.0]\n", "stderr": ""})

    monkeypatch.setattr(timing.subprocess, "run", run)
    (found,) = quick("sgd:momentum=0.5", cold=True, dtype=torch.float64, engine="loop")
    assert found.ours.first == (3.0, 4.0)
    threads = torch.get_num_threads()
    shapes = [list(shape) for shape in SMALL.shapes]
    assert told == {
        "path": "optplug",
        "entry": "sgd:momentum=0.5",
        "profile": ["small", shapes],
        "engine": "loop",
        "dtype": "float64",
        "threads": threads,
    }


def test_a_failing_fresh_process_is_reported(strangers: None):
    (failed,) = quick("signs", cold=True)  # which that process does not know
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("the process for the first two steps failed: no optimizer named 'signs'")


def test_extra_memory_is_torch_s_and_python_s_together():
    assert timing.extra_bytes(lambda: torch.ones(2**18) + 1) == pytest.approx(2 * 2**20, rel=0.05)
    assert timing.extra_bytes(lambda: bytearray(2**20)) == pytest.approx(2**20, rel=0.05)
    assert timing.extra_bytes(lambda: None) < 2**12


def test_values_that_distort_the_time_are_told():
    params = timing.tensors(Profile("one", ((100,),)), torch.float32)
    optimizer = entry("adam").ours(params, "auto")
    path = timing._Path("optplug", optimizer, optimizer.step, (0.0, 0.0))
    optimizer.step()
    assert not list(timing.complaints(params, [path]))
    with torch.no_grad():
        params[0][3] = math.nan
        optimizer.state[params[0]]["exp_avg"][:2] = 1e-40
    assert list(timing.complaints(params, [path])) == [
        "1 of 100 elements of p are not finite",
        "2 of 100 elements of exp_avg of optplug are subnormal",
    ]


# ------------------------------------------------------------------------------------------------- limit


def reads_and_writes(optimizer: Any) -> tuple[int, int]:
    """How many element-wise arrays the graph of an optimizer reads and writes."""
    group = optimizer.param_groups[0]
    variant = optimizer._variant(group)
    lengths = {h: len(v) if isinstance(v := group.get(h), (tuple, list)) else 0 for h in variant.hypers}
    traced = trace(variant, tuple(lengths.items()))
    return len(traced.reads), len(traced.outputs)


CASES = [(name, case) for name in COMPARED for case in optplug.get_optimizer(name).cases]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case}" for name, case in CASES])
def test_the_limit_reads_and_writes_as_many_arrays_as_the_optimizer(name: str, case: dict[str, Any]):
    params = timing.tensors(SMALL, torch.float32)
    optimizer = optplug.create_optimizer(name, params, **case)
    optimizer.step()
    limit = limit_of(optimizer, params, "auto")
    assert reads_and_writes(limit) == reads_and_writes(optimizer)


def test_the_limit_adds_the_gradient_to_every_array():
    params = timing.tensors(SMALL, torch.float32)
    optimizer = optplug.create_optimizer("adam", params, state_dtype=torch.float64)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    limit = limit_of(optimizer, params, "auto")
    limit.step()
    limit.step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), old + 2 * p.grad)
        states = list(limit.state[p].values())
        assert [s.dtype for s in states] == [torch.float64] * 2, "as those of the optimizer"
        assert all(torch.equal(s.float(), 2 * p.grad) for s in states)
    assert len(arrays(limit)) == len(arrays(optimizer)) == 2


def test_the_limit_runs_with_the_engine_of_the_optimizer():
    params = timing.tensors(SMALL, torch.float32)
    for engine in ("auto", "loop"):
        ours = entry("adam").ours(params, engine)
        ours.step()
        limit = limit_of(ours, params, engine)
        limit.step()
        assert timing.engine_of(limit) == timing.engine_of(ours)


def test_the_limit_of_a_cell_is_that_of_our_optimizer_over_all_parameters(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(timing, "limit_of", lambda *args: asked.append(args) or limit_of(*args))
    (found,) = quick("adam", engine="loop")
    ((optimizer, params, engine),) = asked
    assert type(optimizer) is optplug.get_optimizer("adam")
    assert [tuple(p.shape) for p in params] == list(SMALL.shapes)
    assert all(p is q for p, q in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert engine == "auto"
    assert found.limit.path == "limit"
    assert (found.engine, found.limit_engine) == ("loop", timing.engine_of(entry("sgd").ours(params, "auto"))[0])
    assert found.fraction is None


# ----------------------------------------------------------------------------------------------- results


def test_ratios_are_over_the_best_path_and_the_fraction_is_of_the_limit():
    found = cell(ours=0.2)
    assert found.best.path == "fused"
    assert found.ratio == 0.5
    assert found.fraction == 0.5
    assert cell(limit_engine="slow").fraction is None
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)


def test_a_ratio_is_doubtful_when_one_of_its_times_scatters():
    noisy = {"lower": 0.1, "upper": 0.16}
    calm = cell()
    assert not calm.doubtful
    assert not dataclasses.replace(calm, ours=dataclasses.replace(calm.ours, lower=0.1, upper=0.15)).doubtful
    assert dataclasses.replace(calm, ours=dataclasses.replace(calm.ours, **noisy)).doubtful
    loop, fused, foreach = calm.paths
    assert not dataclasses.replace(calm, paths=(dataclasses.replace(loop, **noisy), fused, foreach)).doubtful
    assert dataclasses.replace(calm, paths=(loop, dataclasses.replace(fused, **noisy), foreach)).doubtful


def test_a_report_survives_json(report: Report):
    assert Report.from_json(report.to_json()) == report
    (found,) = quick("sgd")
    measured = Report.of([found])
    assert Report.from_json(measured.to_json()) == measured


def test_json_has_all_that_a_reader_needs(report: Report):
    read = json.loads(report.to_json())
    assert set(read) == {"format", "date", "machine", "versions", "settings", "cells", "failures"}
    assert set(read["machine"]) == {"cpu", "cores", "threads", "system", "load"}
    assert {"python", "torch", "optplug"} <= set(read["versions"])
    assert read["versions"]["torch"] == torch.__version__
    first = read["cells"][0]
    assert (first["best"], first["ratio"], first["fraction"]) == ("fused", 0.5, 0.5)
    keys = {"path", "median", "lower", "upper", "rounds", "first", "cold", "extra_bytes"}
    assert all(set(one) == keys for one in (first["ours"], first["limit"], *first["paths"]))
    assert read["failures"] == [{"optimizer": "sgd", "profile": "one", "reason": "no memory"}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "this is no result of optplug bench"),
        ("[]", "this is no result of optplug bench"),
        ("{}", "this is no result of optplug bench: KeyError: 'format'"),
        ('{"format": 99}', "this is a result of another version of optplug bench; this one reads format 2"),
        ('{"format": 2, "cells": [{}], "failures": []}', "this is no result of optplug bench"),
    ],
)
def test_what_is_no_result_is_refused(text: str, says: str):
    with pytest.raises(ConfigError) as caught:
        Report.from_json(text)
    assert str(caught.value).startswith(says)


# ----------------------------------------------------------------------------------------------- plot


def test_the_picture_has_a_bar_for_every_ratio(report: Report, tmp_path: Path):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    path = tmp_path / "ratios.png"
    plot.draw(report, path)
    pixels = torch.from_numpy(imread(path)[..., :3])
    assert min(pixels.shape[:2]) > 300

    def covered(colour: str) -> int:
        return int(((pixels - torch.tensor(to_rgb(colour))).abs().amax(-1) < 0.01).sum())

    faster, slower = covered(plot.FASTER), covered(plot.SLOWER)
    assert faster > 5000
    assert slower > 5000
    # 0.5 and 0.25 of torch's time against 1.5 of it; ticks and the line at 1 take some away.
    assert 0.4 < faster / slower < 0.6


def test_the_picture_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a picture 'a\.doc' cannot be written; its name may end in .*png"):
        plot.check(tmp_path / "a.doc")
    with pytest.raises(ConfigError, match="there is nothing to draw"):
        plot.draw(Report.of([]), tmp_path / "a.png")
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"^a picture needs matplotlib: pip install 'optplug\[demo\]'$"):
        plot.check(tmp_path / "a.png")


# ----------------------------------------------------------------------------------------------- command


def command(*args: Any) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def test_the_command_measures_shows_and_writes(small: None, tmp_path: Path):
    written, drawn = tmp_path / "out.json", tmp_path / "out.png"
    options = ("--profile", "small", "--rounds", 5, "--seconds", 0, "--no-cold", "--json", written, "--picture", drawn)
    result = command(*BOTH, *options)
    assert (result.exit_code, result.exception) == (0, None), result.output
    report = Report.from_json(written.read_text())
    assert [(found.optimizer, found.profile) for found in report.cells] == [(name, "small") for name in BOTH]
    assert drawn.stat().st_size > 10_000
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = {words[0]: words for words in lines if words and words[0] in BOTH}
    for found in report.cells:
        assert f"{found.ratio:.2f}{'?' * found.doubtful}" in rows[found.optimizer]
        assert f"{found.fraction:.0%}" in rows[found.optimizer]
        assert found.engine == rows[found.optimizer][1]
    assert rows["rprop"][5] == "-", "torch has no fused Rprop"
    assert "small: 2 tensors, 22 float32 elements" in result.stdout
    mean = geometric_mean(found.ratio for found in report.cells)
    assert f"geometric mean of the ratios: small {mean:.2f}; all {mean:.2f}" in result.stdout
    begin, end, begin_next, end_next = result.stderr.splitlines()
    assert (begin, begin_next) == ("1/2 adam on small", "2/2 rprop on small")
    assert end.startswith("adam on small: ratio")
    assert end_next.startswith("rprop on small: ratio")


def test_from_shows_a_file_again_and_markdown_makes_tables_of_it(report: Report, tmp_path: Path):
    path = tmp_path / "old.json"
    path.write_text(dataclasses.replace(report, failures=()).to_json())
    shown = command("--from", path)
    assert shown.exit_code == 0
    for expected in ("sgd:momentum=0.9", "*400.0", "adam, compile is left out: no compiler", "worst: sgd:momentum=0.9"):
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


def test_a_cell_that_failed_is_told_at_the_end(report: Report, tmp_path: Path):
    path = tmp_path / "old.json"
    path.write_text(report.to_json())
    result = command("--from", path)
    assert result.exit_code == 1
    assert result.stderr == "error: sgd on one: no memory\n"
    assert "worst:" in result.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["adm"], "error: no optimizer named 'adm'; did you mean 'adam'"),
        (
            ["--profile", "resnet"],
            "error: no profile named 'resnet'; there are tiny, resnet50, gpt2, one; did you mean",
        ),
        (["adam:amsgrd=True"], "error: optimizer.args.amsgrd: adam has no option 'amsgrd'; it has amsgrad, "),
        (["adam", "--dtype", "float31"], "error: no dtype 'float31' for bench; there are float32, "),
        (["adam", "--engine", "lop"], "error: no engine named 'lop'; "),
        (["adam", "--json", "nowhere/out.json"], "error: there is no folder 'nowhere' to write out.json to"),
        (
            ["adam", "--profile", "tiny", "--no-cold", "--seconds", "0", "--picture", "out.doc"],
            "error: a picture 'out.doc' cannot be written",
        ),
        (["--from", "nowhere.json"], "error: 'nowhere.json' cannot be read: No such file or directory"),
        (["adam", "--from", "nowhere.json"], "error: --from shows what a file has: leave names out"),
        (
            ["--from", "nowhere.json", "--dtype", "float32", "--compile", "--no-cold"],
            "error: --from shows what a file has: leave --compile, --cold, --dtype out",
        ),
        (["adam", "--json", "."], "error: '.' is a folder, not a file to write"),
        (["adam:state_dtype=float32"], "error: 'adam:state_dtype=float32': torch.optim.Adam has no state_dtype"),
    ],
)
def test_what_is_wrong_ends_with_one_sentence(args: list[str], says: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    result = command(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


def test_who_is_compared_with_itself_is_marked_and_counts_in_no_mean(tmp_path: Path):
    alone = cell("signs", ours=3.0, against="itself, foreach=False", paths=(timing_of("own loop", 1.0),))
    path = tmp_path / "old.json"
    path.write_text(Report.of([cell(), alone]).to_json())
    shown = command("--from", path).stdout
    assert "own loop" in shown
    assert "signs is compared with itself" in shown
    assert "geometric mean of the ratios: tiny 0.50; all 0.50" in shown
    assert "worst: adam on tiny" in shown
    path.write_text(Report.of([alone]).to_json())
    only = command("--from", path)
    assert only.exit_code == 0
    assert "geometric mean" not in only.stdout
    assert command("--from", path, "--markdown").exit_code == 0
    plot.draw(Report.of([cell(), alone]), tmp_path / "a.png")


def test_doubt_and_another_engine_are_seen_in_both_kinds_of_table(tmp_path: Path):
    noisy = dataclasses.replace(timing_of("optplug", 0.2), upper=0.4)
    path = tmp_path / "old.json"
    path.write_text(Report.of([cell(), cell("sgd", limit_engine="slow")]).to_json())
    assert "?" not in command("--from", path).stdout
    path.write_text(Report.of([dataclasses.replace(cell("sgd", limit_engine="slow"), ours=noisy)]).to_json())
    shown = command("--from", path).stdout
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("sgd ")]
    assert row[6:9] == ["0.50?", "-", "-"]
    assert "?: doubtful, the upper quartile" in shown
    assert ", load " in shown
    markdown = command("--from", path, "--markdown").stdout
    assert "| `sgd` | 200.0 ms | 400.0 ms, `fused` | 0.50? | - |" in markdown
    assert "?: doubtful, the upper quartile" in markdown


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_keeps_the_figures_that_matter(columns: int, monkeypatch: pytest.MonkeyPatch):
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


def test_an_interrupt_before_the_first_cell_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    written, drawn = tmp_path / "out.json", tmp_path / "out.png"
    written.write_text("old")
    drawn.write_text("old")
    monkeypatch.setattr(optplug.bench, "measure", interrupted(Failure("adam", "tiny", "no memory")))
    result = command("adam", "--json", written, "--picture", drawn)
    assert result.exit_code == 130
    assert (result.stdout, written.read_text(), drawn.read_text()) == ("", "old", "old")
    assert "interrupted before anything was measured: nothing is written" in result.stderr


def test_an_interrupt_later_shows_and_writes_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    written = tmp_path / "out.json"
    monkeypatch.setattr(optplug.bench, "measure", interrupted(cell()))
    result = command("adam", "--json", written)
    assert result.exit_code == 130
    assert "worst: adam on tiny" in result.stdout
    assert "(interrupted)" in result.stdout
    assert Report.from_json(written.read_text()).settings["interrupted"] is True
    assert command("--from", written).exit_code == 0


def test_tables_are_printed_even_if_the_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(optplug.bench, "measure", lambda *args, **options: iter([cell()]))
    monkeypatch.setattr(Path, "write_text", full)
    result = command("adam", "--json", tmp_path / "out.json")
    assert (result.exit_code, "worst: adam on tiny" in result.stdout) == (1, True)
    assert result.stderr.endswith("error: no space left\n")


def test_a_file_that_may_not_be_written_is_refused_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    result = command("adam", "--json", tmp_path / "out.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "may not be written" in result.stderr


def spoiled(**changes: Any) -> bytes:
    read = json.loads(Report.of([cell()]).to_json())
    read["cells"][0]["ours"].update(changes.pop("ours", {}))
    return json.dumps(read | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"",
        spoiled(ours={"median": 0.0}),
        spoiled(ours={"median": "fast"}),
        spoiled(ours={"extra_bytes": None}),
        spoiled(ours={"first": ["a", "b"]}),
        spoiled(machine={}),
        spoiled(versions=3),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(content: bytes, tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    result = command("--from", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: this is no result of optplug bench: ")
    assert result.stderr.count("\n") == 1


def test_a_profile_named_twice_is_measured_once(small: None):
    result = command("rprop", "--profile", "small", "--profile", "SMALL", "--rounds", 5, "--seconds", 0, "--no-cold")
    assert result.stderr.startswith("1/1 rprop on small\n")
