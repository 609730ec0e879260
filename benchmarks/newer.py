"""The optimizers of `optplug-modern`, and the modifiers of all rules: time of a step.

    python benchmarks/newer.py [--seconds 4] [--threads 2] [--optimizers lamb lion ...] [--parts peers memory modifiers]

- `peers`: optplug's time divided by that of the fastest class of torch and of other packages (pytorch_optimizer,
  lion-pytorch, prodigyopt, schedulefree), with `foreach` where a class has it, on `tiny` and `resnet50`.
- `memory`: the speed on `one`, as a fraction of a kernel that reads and writes the same arrays; and how many times the
  memory of one such pass a step takes, by its traffic and by its time.
- `modifiers`: the time with a modifier divided by the time without, on `resnet50`. `clip_norm` and `agc` read the
  gradient (and the parameter) once more; the table has the ratio of the traffic, too.

All optimizers of a table row step parameters of equal shapes in one process, in alternating order. Times are medians.
"""

from __future__ import annotations

import argparse
import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import lion_pytorch
import prodigyopt
import pytorch_optimizer
import schedulefree
import torch
from torch import Tensor
from torch.optim import Optimizer

import optplug
from optplug.bench.profiles import get_profile
from optplug.bench.results import geometric_mean
from optplug.bench.roofline import memory_limit_optimizer

Factory = Callable[[Sequence[Tensor]], Optimizer]

CONSTANT_STEP_SIZE: dict[str, Any] = {"growth_rate": 1.0}
"""For Prodigy, whose estimate would grow without limit on gradients that never change."""

OPTIONS = {"prodigy": CONSTANT_STEP_SIZE}
"""The options of optplug's optimizers that are not the defaults."""

PEERS: dict[str, list[Factory]] = {
    "lamb": [pytorch_optimizer.Lamb],
    "lars": [pytorch_optimizer.LARS],
    "adafactor": [
        functools.partial(torch.optim.Adafactor, foreach=False),
        functools.partial(torch.optim.Adafactor, foreach=True),
        pytorch_optimizer.AdaFactor,
    ],
    "lion": [
        lion_pytorch.Lion,
        functools.partial(pytorch_optimizer.Lion, foreach=False),
        functools.partial(pytorch_optimizer.Lion, foreach=True),
    ],
    "adan": [
        functools.partial(pytorch_optimizer.Adan, foreach=False),
        functools.partial(pytorch_optimizer.Adan, foreach=True),
    ],
    "nadam": [functools.partial(torch.optim.NAdam, foreach=foreach) for foreach in (False, True)],
    "radam": [functools.partial(torch.optim.RAdam, foreach=foreach) for foreach in (False, True)],
    "adabelief": [pytorch_optimizer.AdaBelief],
    "prodigy": [
        functools.partial(prodigyopt.Prodigy, **CONSTANT_STEP_SIZE),
        functools.partial(pytorch_optimizer.Prodigy, **CONSTANT_STEP_SIZE),
    ],
    "adopt": [pytorch_optimizer.ADOPT],
    "ademamix": [pytorch_optimizer.AdEMAMix],
    "signum": [pytorch_optimizer.SignSGD],
    "schedule_free_sgd": [
        functools.partial(schedulefree.SGDScheduleFree, foreach=foreach) for foreach in (False, True)
    ],
    "schedule_free_adamw": [
        functools.partial(schedulefree.AdamWScheduleFree, foreach=foreach) for foreach in (False, True)
    ],
}
ELEMENTWISE = ("lion", "adan", "nadam", "radam", "adabelief", "adopt", "ademamix", "signum", "schedule_free_adamw")
MODIFIERS = {"cautious": True, "clip_value": 1.0, "clip_norm": 1.0, "agc": 0.01}
MODIFIED = {"adamw": {}, "sgd": {"lr": 1e-3, "momentum": 0.9}, "lion": {}, "lamb": {}}


def parameters(profile: str) -> list[Tensor]:
    """Parameters with gradients of the size that gradients of a network have."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in get_profile(profile).shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def medians(optimizers: Sequence[Optimizer], seconds: float) -> list[float]:
    """Return the median seconds of a step of each optimizer. They step in alternating order, 5 times at least."""
    for optimizer in optimizers:
        if hasattr(optimizer, "train"):
            optimizer.train()
        for _ in range(3):
            optimizer.step()
    times: list[list[float]] = [[] for _ in optimizers]
    order = list(range(len(optimizers)))
    end = time.perf_counter() + seconds * len(optimizers)
    while len(times[0]) < 5 or time.perf_counter() < end:
        random.shuffle(order)
        for i in order:
            start = time.perf_counter()
            optimizers[i].step()
            times[i].append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def name_of(factory: Factory) -> str:
    cls = factory.func if isinstance(factory, functools.partial) else factory
    suffix = ", foreach" if isinstance(factory, functools.partial) and factory.keywords.get("foreach") else ""
    return f"{cls.__module__.partition('.')[0]} {cls.__name__}{suffix}"  # type: ignore[attr-defined]


def compare_with_peers(names: Sequence[str], seconds: float) -> None:
    print("| optimizer | profile | optplug, ms | fastest peer | ms | ratio | segments |")
    print("|---|---|---|---|---|---|---|")
    ratios = {}
    for name in names:
        for profile in ("tiny", "resnet50"):
            ours = optplug.create_optimizer(name, parameters(profile), **OPTIONS.get(name, {}))
            peers = [factory(parameters(profile)) for factory in PEERS[name]]
            (own, *others) = medians([ours, *peers], seconds)
            best = min(others)
            ratios[name, profile] = own / best
            segments = "+".join(str(report.segments) for report in ours.engine_report())  # type: ignore[attr-defined]
            fastest = name_of(PEERS[name][others.index(best)])
            cells = (
                f"`{name}`",
                profile,
                f"{own * 1e3:.2f}",
                fastest,
                f"{best * 1e3:.2f}",
                f"{own / best:.2f}",
                segments,
            )
            print(f"| {' | '.join(cells)} |", flush=True)
            del ours, peers
            gc.collect()
    print(f"\nGeometric mean {geometric_mean(ratios.values()):.2f}, largest {max(ratios.values()):.2f}.\n")


def compare_with_memory(names: Sequence[str], seconds: float) -> None:
    print("| optimizer | ms | one pass, ms | fraction of the limit | passes by traffic | passes by time |")
    print("|---|---|---|---|---|---|")
    for name in names:
        params = parameters("one")
        ours = optplug.create_optimizer(name, params)
        ours.step()
        limit = memory_limit_optimizer(ours, params, "auto")
        own, one_pass = medians([ours, limit], seconds)
        traffic = sum(r.bytes_per_element * r.elements for r in ours.engine_report())  # type: ignore[attr-defined]
        least = sum(r.bytes_per_element * r.elements for r in limit.engine_report())  # type: ignore[operator]
        print(
            f"| `{name}` | {own * 1e3:.1f} | {one_pass * 1e3:.1f} | {one_pass / own:.2f} | {traffic / least:.2f} "
            f"| {own / one_pass:.2f} |",
            flush=True,
        )
        del ours, limit, params
        gc.collect()
    print()


def compare_modifiers(seconds: float) -> None:
    print("| optimizer | modifier | ratio of times | ratio of traffic |")
    print("|---|---|---|---|")
    for name, options in MODIFIED.items():
        keywords = [options, *({**options, modifier: value} for modifier, value in MODIFIERS.items())]
        optimizers = [optplug.create_optimizer(name, parameters("resnet50"), **kw) for kw in keywords]
        plain, *modified = medians(optimizers, seconds)
        traffic = [sum(r.bytes_per_element * r.elements for r in o.engine_report()) for o in optimizers]  # type: ignore[attr-defined]
        for modifier, seconds_with, bytes_with in zip(MODIFIERS, modified, traffic[1:], strict=True):
            print(f"| `{name}` | `{modifier}` | {seconds_with / plain:.2f} | {bytes_with / traffic[0]:.2f} |")
        del optimizers
        gc.collect()
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="seconds for each optimizer of a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--parts", nargs="+", choices=["peers", "memory", "modifiers"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = arguments.parts or ["peers", "memory", "modifiers"]
    if "peers" in parts:
        compare_with_peers(arguments.optimizers, arguments.seconds)
    if "memory" in parts:
        names = [name for name in (*ELEMENTWISE, "lamb") if name in arguments.optimizers]
        compare_with_memory(names, arguments.seconds)
    if "modifiers" in parts:
        compare_modifiers(arguments.seconds)


if __name__ == "__main__":
    main()
