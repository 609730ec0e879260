"""Muon compared with the classes of torch (2.9 and later) and of pytorch_optimizer: time of a step, in float32.

    python benchmarks/muon.py [--profiles gpt2 resnet50] [--blocks 12] [--rounds 7] [--threads 2]

- `gpt2`: the matrices of the blocks of GPT-2. `resnet50`: the weights of its linear layer and its convolutions. Each
  convolution is one matrix. optplug receives it as it is, with `flatten=True`, the others with two dimensions.
- `--blocks`: the number of blocks of GPT-2, or of stages of ResNet-50 (at most 4).

All of them run in this process in random order, with 5 Newton-Schulz iterations in bfloat16. Times are medians. `ratio`
is optplug's time divided by that of the fastest other class. `outside` is the share of optplug's step that is not spent
in matrix functions.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor
from torch.optim import Optimizer

import optplug
from optplug.bench.profiles import get_profile
from optplug.rules.matrix import MatrixOperation

Shapes = Sequence[tuple[int, ...]]

WARM_UP = 2
"""The steps before the measurement."""


def gpt2_shapes(blocks: int) -> Shapes:
    """The matrices of the blocks of GPT-2."""
    return [(3 * 768, 768), (768, 768), (4 * 768, 768), (768, 4 * 768)] * blocks


def resnet50_shapes(stages: int) -> Shapes:
    """The weights of the convolutions and of the linear layer of ResNet-50, up to a number of stages."""
    limit = 64 * 4 * 2 ** (stages - 1)
    shapes = [shape for shape in get_profile("resnet50").shapes if len(shape) > 1]
    return [shape for shape in shapes if shape[0] <= limit or stages >= 4]


def parameters(shapes: Shapes, *, flat: bool) -> list[Tensor]:
    """Parameters with gradients; with `flat` all of them have two dimensions."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]
    if flat:
        params = [torch.nn.Parameter(p.detach().flatten(1)) for p in params]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def peers(shapes: Shapes) -> dict[str, Optimizer]:
    """The classes of others."""
    found: dict[str, Optimizer] = {}
    if hasattr(torch.optim, "Muon"):
        found["torch"] = torch.optim.Muon(parameters(shapes, flat=True), lr=0.02, weight_decay=0.1)
    for foreach in (False, True):
        group = {"params": parameters(shapes, flat=True), "use_muon": True}
        options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "foreach": foreach}
        found[f"pytorch_optimizer, foreach={foreach}"] = pytorch_optimizer.Muon([group], **options)
    return found


@contextmanager
def seconds_in_matrix_functions() -> Iterator[Callable[[], float]]:
    """Measure the matrix functions of all rules. Yields a function that returns the seconds since its last call."""
    original = MatrixOperation.__call__
    total = 0.0

    def measured(self: MatrixOperation, arrays: Sequence[Tensor], scalars: Sequence[Any]) -> Tensor:
        def function(*args: Any, **static: Any) -> Tensor:
            nonlocal total
            start = time.perf_counter()
            result = self.function(*args, **static)
            total += time.perf_counter() - start
            return result

        return original(MatrixOperation(function, self.static), arrays, scalars)

    def take() -> float:
        nonlocal total
        seconds, total = total, 0.0
        return seconds

    MatrixOperation.__call__ = measured  # type: ignore[method-assign]
    try:
        yield take
    finally:
        MatrixOperation.__call__ = original  # type: ignore[method-assign]


def compare(profile: str, shapes: Shapes, rounds: int) -> None:
    """Print a row of the table for each optimizer."""
    ours = optplug.create_optimizer("muon", parameters(shapes, flat=False), lr=0.02, weight_decay=0.1, flatten=True)
    optimizers = {"optplug": ours, **peers(shapes)}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    outside: list[float] = []
    with seconds_in_matrix_functions() as take:
        for round_ in range(WARM_UP + rounds):
            for name in random.sample(list(optimizers), len(optimizers)):
                take()
                start = time.perf_counter()
                optimizers[name].step()
                seconds = time.perf_counter() - start
                if round_ >= WARM_UP:
                    times[name].append(seconds)
                    outside += [1 - take() / seconds] if name == "optplug" else []
    medians = {name: statistics.median(found) for name, found in times.items()}
    fastest = min(seconds for name, seconds in medians.items() if name != "optplug")
    for name, seconds in medians.items():
        is_ours = name == "optplug"
        share = f"{statistics.median(outside):.1%}" if is_ours else ""
        print(f"| {profile} | {name} | {1e3 * seconds:.1f} | {seconds / fastest:.2f} | {share} |", flush=True)
    for report in ours.engine_report():
        print(f"\n{report}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profiles", nargs="+", choices=["gpt2", "resnet50"], default=["gpt2", "resnet50"])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| profile | class | ms | ratio to the fastest other | outside |\n|---|---|---|---|---|")
    for profile in arguments.profiles:
        shapes = {"gpt2": gpt2_shapes, "resnet50": resnet50_shapes}[profile](arguments.blocks)
        compare(profile, shapes, arguments.rounds)


if __name__ == "__main__":
    main()
