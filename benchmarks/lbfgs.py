"""L-BFGS compared with torch's: time of an iteration with a full history, without a line search, in float32.

    python benchmarks/lbfgs.py [--elements 10000000] [--history 100] [--rounds 7]

The loss is the quadratic function x . (a * x) / 2. Both optimizers load the same synthetic pairs as a state dict, and
run in this process in alternating order. A step is one iteration with one call of the closure, whose time is
subtracted. The defaults need 17 GB of memory. Times are medians; the ratio is optplug's divided by torch's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import optplug


class MeasuredOptimizer:
    """An optimizer, its parameter, and the seconds in its closure."""

    def __init__(self, cls: type[torch.optim.Optimizer], a: torch.Tensor, history: int) -> None:
        self.a, self.closure_seconds = a, 0.0
        self.x = torch.ones_like(a).requires_grad_()
        self.x.grad = torch.empty_like(a)
        self.optimizer = cls([self.x], lr=0.1, max_iter=1, history_size=history, tolerance_grad=0, tolerance_change=0)

    def closure(self) -> float:
        start = time.perf_counter()
        torch.mul(self.a, self.x.detach(), out=self.x.grad)
        loss = float(self.x.detach().dot(self.x.grad)) / 2
        self.closure_seconds += time.perf_counter() - start
        return loss

    def step(self) -> tuple[float, float]:
        """Take a step; return the seconds of the iteration without its closure, and of the closure."""
        self.closure_seconds, start = 0.0, time.perf_counter()
        self.optimizer.step(self.closure)
        return time.perf_counter() - start - self.closure_seconds, self.closure_seconds


def random_state(a: torch.Tensor, history: int) -> dict[str, Any]:
    """Return the state of torch's optimizer after more than `history` iterations, with random pairs."""
    steps = [torch.randn_like(a) * 1e-3 for _ in range(history)]
    changes = [a * s for s in steps]
    curvatures = [y.dot(s) for s, y in zip(steps, changes, strict=True)]
    scale = curvatures[-1] / changes[-1].dot(changes[-1])
    last = {"d": steps[-1].clone(), "t": 1.0, "prev_flat_grad": a - changes[-1], "prev_loss": 1.0, "H_diag": scale}
    counts = {"func_evals": history + 9, "n_iter": history + 9}
    return {**counts, **last, "old_stps": steps, "old_dirs": changes, "ro": [1.0 / c for c in curvatures]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    a = torch.rand(arguments.elements) + 0.5
    state = random_state(a, arguments.history)
    optimizers = [
        MeasuredOptimizer(cls, a, arguments.history) for cls in (torch.optim.LBFGS, optplug.get_optimizer("lbfgs"))
    ]
    for measured in optimizers:  # the pairs are shared: no optimizer changes them; torch changes prev_flat_grad
        groups = measured.optimizer.state_dict()["param_groups"]
        own = {**state, "prev_flat_grad": state["prev_flat_grad"].clone()}
        measured.optimizer.load_state_dict({"state": {0: own}, "param_groups": groups})
    del state, own
    print(f"{arguments.elements} elements, {arguments.history} pairs, {torch.get_num_threads()} threads")
    for measured in optimizers:  # warm-up: optplug allocates its matrices
        measured.step()
    times: list[list[float]] = [[], []]
    closures: list[float] = []
    for _ in range(arguments.rounds):
        for measured, found in zip(optimizers, times, strict=True):
            seconds, closure = measured.step()
            found.append(seconds)
            closures.append(closure)
    theirs, ours = (1e3 * statistics.median(found) for found in times)
    difference = float(
        (optimizers[1].x - optimizers[0].x).detach().abs().max() / (optimizers[0].x.detach() - 1).abs().max()
    )
    print(f"torch {theirs:.1f} ms, ours {ours:.1f} ms, ratio {ours / theirs:.2f}")
    best = min(times[1]) / min(times[0])
    print(
        f"closure {1e3 * statistics.median(closures):.1f} ms, not included; ratio of the fastest iterations {best:.2f}"
    )
    print(f"after {arguments.rounds + 1} iterations the parameters differ by {difference:.1e} of the distance moved")


if __name__ == "__main__":
    main()
