"""A training iteration (forward, backward, step) with optplug's step compared with torch's fastest path.

    python benchmarks/training.py [NAME ...] [--rounds 25]

The network has six layers of 1024 x 1024 with ReLU; a batch has 64 samples. SparseAdam trains an embedding of 100,000 x
64 with sparse gradients instead. LBFGS has a history of 10 and two iterations per step. All paths run in this process,
each with its own network, in rotating order. Times are medians; the ratio is optplug's divided by that of torch's
fastest path.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import optplug

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adadelta": ("Adadelta", {}),
    "adagrad": ("Adagrad", {}),
    "adam": ("Adam", {}),
    "sparse_adam": ("SparseAdam", {}),
    "adamax": ("Adamax", {}),
    "asgd": ("ASGD", {}),
    "lbfgs": ("LBFGS", {"history_size": 10, "max_iter": 2, "lr": 1e-3}),
    "rmsprop": ("RMSprop", {"lr": 1e-4}),
    "rprop": ("Rprop", {"lr": 1e-4}),
    "sgd": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
}
PATHS: dict[str, dict[str, bool]] = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}

Task = Callable[[], tuple[nn.Module, Callable[[], torch.Tensor]]]
"""Creates a network, and a function that computes its loss."""


def dense_task() -> Task:
    x, y = torch.randn(64, 1024), torch.randn(64, 1024)

    def create() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        torch.manual_seed(0)
        network = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.ReLU())])
        return network, lambda: nn.functional.mse_loss(network(x), y)

    return create


def sparse_task() -> Task:
    rows, y = torch.randint(0, 100_000, (64, 64)), torch.randn(64, 64)

    def create() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        torch.manual_seed(0)
        network = nn.EmbeddingBag(100_000, 64, sparse=True)
        return network, lambda: nn.functional.mse_loss(network(rows), y)

    return create


def training_iteration(cls: type[torch.optim.Optimizer], task: Task, **options: Any) -> Callable[[], None]:
    """Return a function that runs one training iteration. The first iteration is already done."""
    network, loss = task()
    optimizer = cls(network.parameters(), **options)

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    def train() -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(evaluate)  # type: ignore[arg-type]
        else:
            evaluate()
            optimizer.step()

    train()
    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    print(f"{'optimizer':<13}{'torch ms':>10}{'path':>9}{'ours ms':>10}{'ratio':>8}")
    for name in arguments.names or CASES:
        torch_name, options = CASES[name]
        task = sparse_task() if name == "sparse_adam" else dense_task()
        paths = {"ours": training_iteration(optplug.get_optimizer(name), task, **options)}
        for path, keywords in PATHS.items():
            try:
                paths[path] = training_iteration(getattr(torch.optim, torch_name), task, **options, **keywords)
            except (TypeError, RuntimeError):  # the optimizer does not support this path
                continue
        times: dict[str, list[float]] = {path: [] for path in paths}
        for turn in range(arguments.rounds):
            order = list(paths)[turn % len(paths) :] + list(paths)[: turn % len(paths)]
            for path in order:
                start = time.perf_counter()
                paths[path]()
                times[path].append(1e3 * (time.perf_counter() - start))
        medians = {path: statistics.median(measured) for path, measured in times.items()}
        ours = medians.pop("ours")
        best = min(medians, key=medians.__getitem__)
        print(f"{name:<13}{medians[best]:10.2f}{best:>9}{ours:10.2f}{ours / medians[best]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
