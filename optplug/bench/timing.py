"""The measuring: every path of a cell in one process, taking turns."""

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

from optplug.bench.entries import Entry, entry
from optplug.bench.profiles import Profile
from optplug.bench.results import Cell, Failure, Timing
from optplug.bench.roofline import arrays, limit_of
from optplug.errors import ConfigError, OptplugError, describe
from optplug.optim.rule_optimizer import RuleOptimizer

AT_LEAST = 5
"""Rounds, whatever the time allowed."""

COMPILE_SECONDS = 300
"""How long `torch.compile` may take in its own process before its path is left out."""

CHECKED_TOGETHER = 2**20
"""Elements, so that looking at the values afterwards takes no memory to speak of."""


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
    """Measure every entry on every profile, one cell after the other.

    Args:
        entries: the optimizers. profiles: the shapes.
        engine: of our optimizers; the memory limit has the fastest.
        rounds: at most so many, each one step of every path. seconds: for the rounds of a cell; 5 there are always,
            or `rounds` if that is less.
        compiled: also `torch.compile` of torch's step.
        cold: take the first two steps of ours, and of a compiled one, in a fresh process.
        dtype: of parameters and gradients. threads: torch's, None: as many as it has now.
        progress: is told what is being done.

    Yields:
        A cell, or why there is none.
    """
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        several = list(entries)
        for shapes in profiles:
            for one in several:
                work = _Cell(one, shapes, engine, dtype, progress)
                try:
                    yield work.measured(rounds, seconds, compiled=compiled, cold=cold)
                except (OptplugError, RuntimeError, MemoryError) as error:  # RuntimeError: what torch raises
                    yield Failure(one.label, shapes.name, describe(error))
                finally:
                    del work
                    gc.collect()
    finally:
        torch.set_num_threads(before)


@dataclass
class _Path:
    """One path that has taken its first two steps."""

    name: str
    optimizer: Optimizer
    step: Callable[[], Any]
    first: tuple[float, float]
    cold: bool = False
    seconds: list[float] = field(default_factory=list)

    def timing(self) -> Timing:
        extra = extra_bytes(self.step)
        return Timing.of(self.name, self.seconds, self.first, cold=self.cold, extra_bytes=extra)


@dataclass
class _Cell:
    entry: Entry
    profile: Profile
    engine: str
    dtype: torch.dtype
    progress: Callable[[str], None]

    def say(self, what: str) -> None:
        self.progress(f"{self.entry.label} on {self.profile.name}: {what}")

    def measured(self, rounds: int, seconds: float, *, compiled: bool, cold: bool) -> Cell:
        entry = self.entry
        self.say("parameters")
        params = tensors(self.profile, self.dtype)
        firsts = {}
        if cold:
            self.say("first two steps")
            firsts["optplug"] = self.first_in_fresh_process("optplug")
        ours = _started("optplug", entry.ours(params, self.engine), firsts.get("optplug"))
        paths, left_out = [], {}
        for name, make in entry.paths(compiled=compiled).items():
            self.say(name)
            try:
                if cold and name == "compile":
                    firsts[name] = self.first_in_fresh_process(name)
                paths.append(_started(name, make(params), firsts.get(name)))
            except Exception as error:  # whatever a path cannot do, the others can still be measured
                left_out[name] = describe(error)
        if not paths:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise ConfigError(f"no path of {entry.against} can be measured: {reasons}")
        limit = _started("limit", limit_of(ours.optimizer, params, "auto"))
        self.say("rounds")
        take_turns([ours, *paths, limit], rounds, seconds)
        engine, reason = engine_of(ours.optimizer)
        self.say("memory")
        return Cell(
            optimizer=entry.label,
            profile=self.profile.name,
            tensors=len(params),
            elements=self.profile.elements,
            dtype=str(self.dtype).removeprefix("torch."),
            engine=engine,
            reason=reason,
            limit_engine=engine_of(limit.optimizer)[0],
            threads=torch.get_num_threads(),
            against=entry.against,
            states=len(arrays(ours.optimizer)),
            ours=ours.timing(),
            limit=limit.timing(),
            paths=tuple(path.timing() for path in paths),
            left_out=left_out,
            notes=entry.notes,
            complaints=tuple(complaints(params, [ours, *paths, limit])),
        )

    def first_in_fresh_process(self, path: str) -> tuple[float, float]:
        """The first two steps of a path where nothing was imported, compiled or cached before.

        Raises:
            ConfigError: the process fails, or compiling takes too long.
        """
        told = {
            "path": path,
            "entry": self.entry.label,
            "profile": [self.profile.name, self.profile.shapes],
            "engine": self.engine,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        program = "from optplug.bench.timing import fresh_process; fresh_process()"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                ran = subprocess.run(  # noqa: S603  # this interpreter, this file
                    [sys.executable, "-c", program],
                    input=json.dumps(told),
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


def fresh_process() -> None:
    """What the process for the first two steps does: told on stdin, both times on stdout."""
    told = json.load(sys.stdin)
    torch.set_num_threads(told["threads"])
    path = told["path"]
    name, shapes = told["profile"]
    try:
        one = entry(told["entry"])
        params = tensors(Profile(name, tuple(map(tuple, shapes))), getattr(torch, told["dtype"]))
        optimizer = one.ours(params, told["engine"]) if path == "optplug" else one.paths(compiled=True)[path](params)
        print(json.dumps(_started(path, optimizer).first))
    except Exception as error:  # told in one line, whatever it is
        sys.exit(describe(error))


def tensors(profile: Profile, dtype: torch.dtype) -> list[Tensor]:
    """Parameters of a profile's shapes with gradients, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in profile.shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def _started(name: str, optimizer: Optimizer, first: tuple[float, float] | None = None) -> _Path:
    """An optimizer after its first two steps, which are timed unless they were in a fresh process."""
    step: Callable[[], Any] = optimizer.step
    if name == "compile":
        torch.compiler.reset()  # else all cells together count against the limit of recompilations
        step = torch.compile(lambda: optimizer.step())
    taken = (elapsed(step), elapsed(step))
    return _Path(name, optimizer, step, first or taken, cold=first is not None)


def elapsed(step: Callable[[], Any]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def take_turns(paths: Sequence[_Path], rounds: int, seconds: float) -> None:
    """Rounds of one step of every path, in an order drawn for each round, the same in every run."""
    order = list(paths)
    draw = random.Random(0)  # noqa: S311  # nothing is kept secret
    for path in paths:  # those that are compiled warm up longer, and caches are as they will be
        path.step()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        for i in range(rounds):
            if i >= AT_LEAST and time.perf_counter() > deadline:
                break
            draw.shuffle(order)
            for path in order:
                path.seconds.append(elapsed(path.step))
    finally:
        if collecting:
            gc.enable()


def extra_bytes(step: Callable[[], Any]) -> int:
    """The most that a step holds beyond what it found: the peaks of torch's allocator and of Python's and numpy's."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # asked for memory, the profiler would note every start on stderr
    with torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            step()
            beyond = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak + beyond


def engine_of(optimizer: Optimizer) -> tuple[str, str]:
    """The engines that took the last step, and why; a class without engines has none."""
    if not isinstance(optimizer, RuleOptimizer):
        return "", "an ordinary Optimizer class"
    reports = optimizer.engine_report()
    return ", ".join(sorted({r.engine for r in reports})), "; ".join(sorted({r.reason for r in reports}))


def complaints(params: Sequence[Tensor], paths: Iterable[_Path]) -> Iterator[str]:
    """Values that distort the time: infinite ones, NaN, and more than one in a hundred subnormal."""
    kept = {"p": list(params)}
    for path in paths:
        for state in path.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    kept.setdefault(f"{name} of {path.name}", []).append(value)
    for name, values in kept.items():
        infinite = subnormal = 0
        for value in values:
            for part in torch.split(value.detach().reshape(-1), CHECKED_TOGETHER):
                infinite += part.numel() - int(part.isfinite().sum())
                subnormal += int(((part.abs() < torch.finfo(part.dtype).tiny) & (part != 0)).sum())
        elements = sum(map(Tensor.numel, values))
        if infinite:
            yield f"{infinite:,} of {elements:,} elements of {name} are not finite"
        elif subnormal > elements / 100:
            yield f"{subnormal:,} of {elements:,} elements of {name} are subnormal"
