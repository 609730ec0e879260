"""L-BFGS against torch's: time of an iteration with a full history, without a line search, in float32.

    python benchmarks/lbfgs.py [--elements 10000000] [--history 100] [--rounds 7]

The loss is a quadratic, x . (a * x) / 2. Both optimizers start from the same synthetic pairs, loaded as a state dict;
they live in this process and take turns. A step is one iteration with one call of the closure, whose time is taken off.
With the defaults this needs 17 GB. Figures are medians, the ratio is ours over torch's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import optplug


class Subject:
    """An optimizer, its parameter, and how long its closure has taken."""

    def __init__(self, cls: type[torch.optim.Optimizer], a: torch.Tensor, history: int) -> None:
        self.a, self.spent = a, 0.0
        self.x = torch.ones_like(a).requires_grad_()
        self.x.grad = torch.empty_like(a)
        self.optimizer = cls([self.x], lr=0.1, max_iter=1, history_size=history, tolerance_grad=0, tolerance_change=0)

    def closure(self) -> float:
        start = time.perf_counter()
        torch.mul(self.a, self.x.detach(), out=self.x.grad)
        loss = float(self.x.detach().dot(self.x.grad)) / 2
        self.spent += time.perf_counter() - start
        return loss

    def step(self) -> tuple[float, float]:
        """Seconds of an iteration without its closure, and of the closure."""
        self.spent, start = 0.0, time.perf_counter()
        self.optimizer.step(self.closure)
        return time.perf_counter() - start - self.spent, self.spent


def pairs(a: torch.Tensor, history: int) -> dict[str, Any]:
    """The state of torch's optimizer after more than `history` iterations, the pairs at random."""
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
    state = pairs(a, arguments.history)
    subjects = [Subject(cls, a, arguments.history) for cls in (torch.optim.LBFGS, optplug.get_optimizer("lbfgs"))]
    for subject in subjects:  # the pairs are shared, for nobody writes to them; torch writes to the previous gradient
        groups = subject.optimizer.state_dict()["param_groups"]
        own = {**state, "prev_flat_grad": state["prev_flat_grad"].clone()}
        subject.optimizer.load_state_dict({"state": {0: own}, "param_groups": groups})
    del state, own
    print(f"{arguments.elements} elements, {arguments.history} pairs, {torch.get_num_threads()} threads")
    for subject in subjects:  # ours makes its matrices
        subject.step()
    times: list[list[float]] = [[], []]
    closures: list[float] = []
    for _ in range(arguments.rounds):
        for subject, found in zip(subjects, times, strict=True):
            spent, closure = subject.step()
            found.append(spent)
            closures.append(closure)
    theirs, ours = (1e3 * statistics.median(found) for found in times)
    apart = float((subjects[1].x - subjects[0].x).detach().abs().max() / (subjects[0].x.detach() - 1).abs().max())
    print(f"torch {theirs:.1f} ms, ours {ours:.1f} ms, ratio {ours / theirs:.2f}")
    best = min(times[1]) / min(times[0])
    print(f"closure {1e3 * statistics.median(closures):.1f} ms, not counted; ratio of the fastest {best:.2f}")
    print(f"after {arguments.rounds + 1} iterations the parameters differ by {apart:.1e} of how far they moved")


if __name__ == "__main__":
    main()
