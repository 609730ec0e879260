"""Engine `numba` compared with torch's fused CPU kernels: time of a step.

    python benchmarks/fused.py [--rounds 31] [--threads 2] [--profiles uneven ...] [--optimizers sgd ...]

Both optimizers step the same parameters in alternating order. Times are medians of rounds; the ratio is optplug's time
divided by torch's. The other options change one property of the kernel, to find out what a difference is caused by:

    --chunk-size N      smallest limit on the elements of a chunk (default: `cpu_kernel.CHUNK_SIZE`)
    --static            one block per thread instead of blocks from a counter
    --vector-width N    elements of a vector register that LLVM's vectorizer uses
    --interleave N      iterations that LLVM's vectorizer executes together
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time

import torch

import optplug
from optplug.bench.profiles import get_profile

OPTIMIZERS = {
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "adagrad": ("Adagrad", {}),
    "sgd, momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "sgd": ("SGD", {"lr": 1e-3}),
}


def uneven_shapes(tensors: int = 400, seed: int = 0) -> list[tuple[int, ...]]:
    """The shapes of vectors of 10 to 300,000 elements, equally distributed on a logarithmic scale."""
    generator = random.Random(seed)
    return [(round(10 ** generator.uniform(1, math.log10(300_000))),) for _ in range(tensors)]


PROFILES = {
    "tiny": lambda: get_profile("tiny").shapes,
    "resnet50": lambda: get_profile("resnet50").shapes,
    "uneven": uneven_shapes,
}


def time_step(optimizer: torch.optim.Optimizer, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        optimizer.step()
    return (time.perf_counter() - start) / repeats


def measure(name: str, shapes: list[tuple[int, ...]], rounds: int) -> tuple[float, float]:
    """Return the median times of a step of torch and of optplug in seconds."""
    torch.manual_seed(0)
    params = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    torch_name, options = OPTIMIZERS[name]
    theirs = getattr(torch.optim, torch_name)(params, fused=True, **options)
    ours = optplug.get_optimizer(name.partition(",")[0])(params, engine="numba", **options)
    times: dict[torch.optim.Optimizer, list[float]] = {theirs: [], ours: []}
    for optimizer in times:
        for _ in range(3):
            optimizer.step()
    repeats = max(1, round(5e-3 / time_step(theirs, 3)))
    for number in range(rounds):
        for optimizer in (theirs, ours) if number % 2 else (ours, theirs):
            times[optimizer].append(time_step(optimizer, repeats))
    return statistics.median(times[theirs]), statistics.median(times[ours])


def change_kernel(arguments: argparse.Namespace) -> None:
    """Apply the options that change the kernel, before the first kernel is compiled."""
    import llvmlite.binding as llvm

    from optplug.engines import cpu_kernel

    if arguments.chunk_size:
        cpu_kernel.CHUNK_SIZE = arguments.chunk_size
    if arguments.static:
        cpu_kernel.BLOCK_SIZE, cpu_kernel.MIN_BLOCKS = 1 << 62, torch.get_num_threads()
    if arguments.vector_width:
        llvm.set_option("optplug", f"--force-vector-width={arguments.vector_width}")
    if arguments.interleave:
        llvm.set_option("optplug", f"--force-vector-interleave={arguments.interleave}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--chunk-size", type=int)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--vector-width", type=int)
    parser.add_argument("--interleave", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    change_kernel(arguments)
    print(f"{arguments.threads} threads, {arguments.rounds} rounds, torch {torch.__version__}")
    print(f"{'profile':<12}{'optimizer':<16}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}")
    ratios = []
    for profile in arguments.profiles:
        for name in arguments.optimizers:
            theirs, ours = measure(name, PROFILES[profile](), arguments.rounds)
            ratios.append(ours / theirs)
            print(f"{profile:<12}{name:<16}{1e3 * theirs:10.3f}{1e3 * ours:10.3f}{ratios[-1]:8.2f}", flush=True)
    print(f"geometric mean of {len(ratios)} ratios: {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
