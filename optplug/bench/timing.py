"""The measurement: all paths of a cell run in one process, in random order."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from optplug.bench.entries import Entry, parse_entry
from optplug.bench.profiles import Profile
from optplug.bench.results import Cell, Failure, Timing
from optplug.bench.roofline import memory_limit_optimizer, state_arrays
from optplug.errors import ConfigError, one_line
from optplug.optim.rule_optimizer import RuleOptimizer

MIN_ROUNDS = 5
"""The number of rounds that are measured even after the time is over."""

COMPILE_SECONDS = 300
"""The time limit of `torch.compile` in its own process. A path that takes longer is skipped."""

CHECK_CHUNK_ELEMENTS = 2**20
"""The number of elements that are checked together, so that the checks need little memory."""


def measure(
    entries: Iterable[Entry],
    profiles: Iterable[Profile],
    *,
    engine: str = "auto",
    rounds: int = 51,
    seconds: float = 10.0,
    compiled: bool = False,
    cold: bool = True,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Cell | Failure]:
    """Measure each entry on each profile, one cell after the other.

    Args:
        entries: the optimizers.
        profiles: the parameter shapes.
        engine: the engine of optplug's optimizers. The memory limit uses the fastest engine.
        rounds: the largest number of rounds of a cell. Each round is one step of every path.
        seconds: the time for the rounds of a cell. At least 5 rounds are measured, or `rounds` if that is less.
        compiled: also measure `torch.compile` of torch's step.
        cold: take the first two steps of optplug, and those of the compiled path, in a new process.
        dtype: the dtype of parameters and gradients.
        threads: torch's number of threads. None: unchanged.
        progress: is called with a description of each phase.

    Yields:
        A cell, or a failure with the reason.
    """
    threads_before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        entries = list(entries)
        measurement: _CellMeasurement | None = None
        for profile in profiles:
            for entry in entries:
                try:
                    measurement = _CellMeasurement(entry, entry.measured_profile(profile), engine, dtype, progress)
                    yield measurement.measure(rounds, seconds, compiled=compiled, cold=cold)
                except Exception as error:  # the step of a third-party class can raise anything
                    yield Failure(entry.label, profile.name, one_line(error))
                finally:
                    measurement = None
                    gc.collect()
    finally:
        torch.set_num_threads(threads_before)


@dataclass
class _TimedPath:
    """A path whose first two steps were taken, and the seconds of its further steps."""

    name: str
    optimizer: Optimizer
    step: Callable[[], Any]
    first_steps: tuple[float, float]
    cold: bool = False
    seconds: list[float] = field(default_factory=list)

    def timing(self) -> Timing:
        extra = extra_bytes(self.step)
        return Timing.from_seconds(self.name, self.seconds, self.first_steps, cold=self.cold, extra_bytes=extra)


@dataclass
class _CellMeasurement:
    """The measurement of one entry on one profile."""

    entry: Entry
    profile: Profile
    engine: str
    dtype: torch.dtype
    progress: Callable[[str], None]

    def report_progress(self, phase: str) -> None:
        self.progress(f"{self.entry.label} on {self.profile.name}: {phase}")

    def measure(self, rounds: int, seconds: float, *, compiled: bool, cold: bool) -> Cell:
        """Measure the cell.

        Raises:
            ConfigError: no path of the baseline can be measured, or the new process fails.
            Errors of optimizers.
        """
        entry = self.entry
        self.report_progress("parameters")
        params = make_params(self.profile, self.dtype)
        cold_steps = {}
        if cold:
            self.report_progress("first two steps")
            cold_steps["optplug"] = self.first_steps_in_fresh_process("optplug")
        ours = _take_first_steps("optplug", entry.create(params, self.engine), cold_steps.get("optplug"))
        paths, skipped = [], {}
        for name, factory in entry.baseline_paths(compiled=compiled).items():
            self.report_progress(name)
            try:
                if cold and name == "compile":
                    cold_steps[name] = self.first_steps_in_fresh_process(name)
                paths.append(_take_first_steps(name, factory(params), cold_steps.get(name)))
            except Exception as error:  # the other paths can still be measured
                skipped[name] = one_line(error)
        if entry.baseline and not paths:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise ConfigError(f"no path of {entry.baseline} can be measured: {reasons}")
        measured = [ours, *paths]
        memory_limit = None
        if isinstance(ours.optimizer, RuleOptimizer):  # other classes have other states
            memory_limit = _take_first_steps("memory limit", memory_limit_optimizer(ours.optimizer, params, "auto"))
            measured.append(memory_limit)
        self.report_progress("rounds")
        run_rounds(measured, rounds, seconds)
        engine, reason = engine_and_reason(ours.optimizer)
        self.report_progress("memory")
        return Cell(
            optimizer=entry.label,
            profile=self.profile.name,
            tensors=len(params),
            elements=self.profile.elements,
            dtype=str(self.dtype).removeprefix("torch."),
            engine=engine,
            reason=reason,
            memory_limit_engine=engine_and_reason(memory_limit.optimizer)[0] if memory_limit else "",
            threads=torch.get_num_threads(),
            baseline=entry.baseline,
            states=len(state_arrays(ours.optimizer)),
            ours=ours.timing(),
            memory_limit=memory_limit.timing() if memory_limit else None,
            paths=tuple(path.timing() for path in paths),
            skipped=skipped,
            notes=entry.notes,
            warnings=tuple(value_warnings(params, measured)),
        )

    def first_steps_in_fresh_process(self, path: str) -> tuple[float, float]:
        """Return the seconds of the first two steps of a path in a new process, with an empty compilation cache.

        Raises:
            ConfigError: the process fails, or compilation takes more than `COMPILE_SECONDS`.
        """
        request = {
            "path": path,
            "entry": self.entry.label,
            "profile": [self.profile.name, self.profile.shapes],
            "engine": self.engine,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        program = "from optplug.bench.timing import fresh_process_main; fresh_process_main()"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                ran = subprocess.run(  # noqa: S603  # runs this interpreter with a constant program
                    [sys.executable, "-c", program],
                    input=json.dumps(request),
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                        "TORCHINDUCTOR_CACHE_DIR": folder,
                    },
                    capture_output=True,
                    text=True,
                    timeout=COMPILE_SECONDS if path == "compile" else None,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise ConfigError(f"its first two steps take more than {COMPILE_SECONDS} s") from None
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
            raise ConfigError(f"the process for the first two steps failed: {last[0]}")
        first, second = json.loads(ran.stdout.splitlines()[-1])
        return first, second


def fresh_process_main() -> None:
    """Take the first two steps of a path in this process: the request is read from stdin, the seconds go to stdout."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    path = request["path"]
    name, shapes = request["profile"]
    try:
        entry = parse_entry(request["entry"])
        params = make_params(Profile(name, tuple(map(tuple, shapes))), getattr(torch, request["dtype"]))
        if path == "optplug":
            optimizer = entry.create(params, request["engine"])
        else:
            optimizer = entry.baseline_paths(compiled=True)[path](params)
        print(json.dumps(_take_first_steps(path, optimizer).first_steps))
    except Exception as error:  # the parent process reports the last line of stderr
        sys.exit(one_line(error))


def make_params(profile: Profile, dtype: torch.dtype) -> list[Tensor]:
    """Return parameters with gradients in the shapes of a profile, with the same values at every call."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in profile.shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def _take_first_steps(name: str, optimizer: Optimizer, cold_steps: tuple[float, float] | None = None) -> _TimedPath:
    """Take the first two steps of an optimizer.

    Args:
        name: the name of the path.
        optimizer: the optimizer.
        cold_steps: the seconds of the first two steps in a new process. Default: those of the steps taken here.
    """
    step: Callable[[], Any] = optimizer.step
    if name == "compile":
        torch.compiler.reset()  # the limit of recompilations is for all cells together
        step = torch.compile(lambda: optimizer.step())
    warm_steps = (time_step(step), time_step(step))
    return _TimedPath(name, optimizer, step, cold_steps or warm_steps, cold=cold_steps is not None)


def time_step(step: Callable[[], Any]) -> float:
    """Take a step and return its seconds."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def run_rounds(paths: Sequence[_TimedPath], rounds: int, seconds: float) -> None:
    """Measure rounds of one step of every path. The order is random in each round, and the same in every run."""
    order = list(paths)
    generator = random.Random(0)  # noqa: S311  # not used for cryptography
    for path in paths:  # warm-up: compiled paths may compile again
        path.step()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        for i in range(rounds):
            if i >= MIN_ROUNDS and time.perf_counter() > deadline:
                break
            generator.shuffle(order)
            for path in order:
                path.seconds.append(time_step(path.step))
    finally:
        if was_enabled:
            gc.enable()


def extra_bytes(step: Callable[[], Any]) -> int:
    """Return the peak memory of a step beyond the memory before it: of torch's allocator, and of Python with numpy."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # suppresses a message of the profiler on stderr
    with torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            step()
            python_peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = torch_peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        torch_peak = max(torch_peak, allocated)
    return torch_peak + python_peak


def engine_and_reason(optimizer: Optimizer) -> tuple[str, str]:
    """Return the engines of the last step and the reasons for them; no engine for a class that is not a rule."""
    if not isinstance(optimizer, RuleOptimizer):
        return "", "not a RuleOptimizer"
    reports = optimizer.engine_report()
    return ", ".join(sorted({r.engine for r in reports})), "; ".join(sorted({r.reason for r in reports}))


def value_warnings(params: Sequence[Tensor], paths: Iterable[_TimedPath]) -> Iterator[str]:
    """Yield a warning for values that distort the time: any non-finite ones, and more than 1 % subnormal ones."""
    values_by_name = {"p": list(params)}
    for path in paths:
        for state in path.optimizer.state.values():
            for name, value in state.items() if isinstance(state, dict) else ():
                if type(value) is Tensor and value.is_floating_point():  # not a subclass, such as a quantized tensor
                    values_by_name.setdefault(f"{name} of {path.name}", []).append(value)
    for name, values in values_by_name.items():
        non_finite = subnormal = 0
        for value in values:
            for chunk in torch.split(value.detach().reshape(-1), CHECK_CHUNK_ELEMENTS):
                non_finite += chunk.numel() - int(chunk.isfinite().sum())
                subnormal += int(((chunk.abs() < torch.finfo(chunk.dtype).tiny) & (chunk != 0)).sum())
        elements = sum(map(Tensor.numel, values))
        if non_finite:
            yield f"{non_finite:,} of {elements:,} elements of {name} are not finite"
        elif subnormal > elements / 100:
            yield f"{subnormal:,} of {elements:,} elements of {name} are subnormal"
