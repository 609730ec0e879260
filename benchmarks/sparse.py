"""A step on sparse gradients compared with torch's: an embedding of 1,000,000 x 64 with 4096 rows in the gradient.

    python benchmarks/sparse.py [--engine auto] [--rounds 51]

The rows are drawn with repetition, like words in a text. The gradient is not coalesced, as after a backward pass. Both
optimizers run in this process in alternating order. Times are medians; the ratio is optplug's divided by torch's.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch

import optplug

CASES = {
    "sparse_adam": ("SparseAdam", {}),
    "adagrad": ("Adagrad", {}),
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd, momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
}


def create_and_warm_up(cls: type, **options: object) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    p = torch.randn(1_000_000, 64, requires_grad=True)
    rows = torch.randint(0, len(p), (1, 4096))
    p.grad = torch.sparse_coo_tensor(rows, torch.randn(4096, 64), p.shape, check_invariants=False)
    optimizer = cls([p], **options)
    for _ in range(3):
        optimizer.step()
    return optimizer


def main() -> None:
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rounds", type=int, default=51)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    print(f"{'optimizer':<14}{'engine':<9}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}")
    for name, (torch_name, options) in CASES.items():
        theirs = create_and_warm_up(getattr(torch.optim, torch_name), **options)
        ours = create_and_warm_up(optplug.get_optimizer(name.partition(",")[0]), engine=arguments.engine, **options)
        times: dict[torch.optim.Optimizer, list[float]] = {theirs: [], ours: []}
        for turn in range(arguments.rounds):
            for optimizer in (theirs, ours) if turn % 2 else (ours, theirs):
                start = time.perf_counter()
                optimizer.step()
                times[optimizer].append(1e3 * (time.perf_counter() - start))
        a, b = (statistics.median(times[optimizer]) for optimizer in (theirs, ours))
        print(f"{name:<14}{ours.engine_report()[0].engine:<9}{a:10.2f}{b:10.2f}{b / a:8.2f}", flush=True)


if __name__ == "__main__":
    main()
