"""Engine `foreach` compared with torch's foreach: time and extra memory of a step on the 161 tensors of ResNet-50.

    python benchmarks/foreach.py [--profile resnet50|tiny] [--rounds 31]

Both optimizers run in this process in alternating order. Times are medians; the ratio is optplug's divided by torch's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import optplug
from optplug.bench.profiles import get_profile
from optplug.bench.timing import extra_bytes

CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd, momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "adadelta": ("Adadelta", {}),
    "adagrad": ("Adagrad", {}),
    "adamax": ("Adamax", {}),
    "asgd": ("ASGD", {}),
    "rmsprop": ("RMSprop", {}),
    "rprop": ("Rprop", {}),
}


def create_and_warm_up(cls: type, shapes: list[tuple[int, ...]], **options: object) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    params = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = cls(params, **options)
    for _ in range(3):
        optimizer.step()
    return optimizer


def time_step(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", choices=("resnet50", "tiny"), default="resnet50")
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    shapes = get_profile(arguments.profile).shapes
    print(f"{arguments.profile}: {len(shapes)} tensors, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'optimizer':<14}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}{'torch MiB':>12}{'ours MiB':>10}{'ratio':>8}")
    for name, (torch_name, options) in CASES.items():
        theirs = create_and_warm_up(getattr(torch.optim, torch_name), shapes, foreach=True, **options)
        ours = create_and_warm_up(optplug.get_optimizer(name.partition(",")[0]), shapes, engine="foreach", **options)
        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(arguments.rounds):
            times["theirs"].append(time_step(theirs))
            times["ours"].append(time_step(ours))
        a, b = (1e3 * statistics.median(times[key]) for key in ("theirs", "ours"))
        m, n = (extra_bytes(optimizer.step) / 2**20 for optimizer in (theirs, ours))
        ratio = f"{n / m:8.2f}" if m >= 0.1 else "       -"
        print(f"{name:<14}{a:10.2f}{b:10.2f}{b / a:8.2f}{m:12.2f}{n:10.2f}{ratio}")


if __name__ == "__main__":
    main()
