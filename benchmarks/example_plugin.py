"""The Lion of `examples/lion_plugin` compared with optplug's Adam: bytes for each element, and bytes per second.

    python benchmarks/example_plugin.py [--profiles resnet50 one ...] [--seconds 4] [--threads 2]

Both use engine `numba`, on parameters of equal shapes, and are stepped in alternating order in one process. Times are
medians. The ratio is Lion's bytes per second divided by Adam's: at least 1 means that the kernel of a rule of 12 lines
is as fast for each byte as that of Adam. Bytes are those that the kernel reads and writes, as in `engine_report()`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import torch

import optplug
from optplug.bench.profiles import PROFILES, get_profile

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lion_plugin"


def parameters(profile: str) -> list[torch.nn.Parameter]:
    """Parameters with gradients of the size that gradients of a network have."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in get_profile(profile).shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def median_times(optimizers: list[optplug.RuleOptimizer], seconds: float) -> list[float]:
    """Return the median seconds of a step of each optimizer, from at least 5 steps."""
    for optimizer in optimizers:
        for _ in range(3):
            optimizer.step()
    times: list[list[float]] = [[] for _ in optimizers]
    order = list(range(len(optimizers)))
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        random.shuffle(order)
        for i in order:
            start = time.perf_counter()
            optimizers[i].step()
            times[i].append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def traffic(optimizer: optplug.RuleOptimizer) -> tuple[int, int]:
    """Return the bytes for each element and the bytes of a step."""
    reports = optimizer.engine_report()
    (per_element,) = {report.bytes_per_element for report in reports}
    assert per_element is not None
    return per_element, sum(per_element * report.elements for report in reports)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", choices=list(PROFILES), default=["resnet50", "one"])
    parser.add_argument("--seconds", type=float, default=4, help="seconds for each profile")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(EXAMPLE))
    from my_lion import MyLion

    print(f"{arguments.threads} threads, torch {torch.__version__}\n")
    print("| profile | optimizer | bytes for each element | ms | GB/s | ratio |")
    print("|---|---|---|---|---|---|")
    for profile in arguments.profiles:
        classes = {"my_lion": MyLion, "adam": optplug.get_optimizer("adam")}
        optimizers = [cls(parameters(profile), engine="numba") for cls in classes.values()]
        times = median_times(optimizers, arguments.seconds)
        found = [traffic(optimizer) for optimizer in optimizers]
        speeds = [total / seconds / 1e9 for (_, total), seconds in zip(found, times, strict=True)]
        for name, (per_element, _), seconds, speed in zip(classes, found, times, speeds, strict=True):
            figures = (f"{1e3 * seconds:.2f}", f"{speed:.1f}", f"{speed / speeds[1]:.2f}")
            cells = (profile, f"`{name}`", per_element, *figures)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
