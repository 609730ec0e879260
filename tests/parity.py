"""Reproducible trajectories of optimizers of any class, to compare optplug's with those of other packages."""

from __future__ import annotations

import functools
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


def option_combinations(
    switches: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any], all_options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Combinations of options that change a result. Some may be invalid.

    Args:
        switches: groups of options that are on or off. All combinations are tested.
        numbers: options that are numbers. All of them are tested with every combination of switches; each one is tested
            with no switch and with `all_options`.
        all_options: the options that can be combined, all at once.
    """
    for chosen in itertools.product((False, True), repeat=len(switches)):
        on = {key: v for switch, is_on in zip(switches, chosen, strict=True) if is_on for key, v in switch.items()}
        yield on
        yield {**numbers, **on}
    for key, value in numbers.items():
        yield {key: value}
        yield {k: v for k, v in all_options.items() if k == key or k not in numbers}


def options_id(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()).replace(" ", "") or "default"


@functools.lru_cache(maxsize=1000)
def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Trajectory:
    """Parameters and an optimizer that perform the same 50 steps for any class.

    After half of the steps the learning rate of the first group changes, or with `equal_lrs` that of both groups.
    Gradients are noise, or with `quadratic` those of (p - 3)**2 / 2 with noise, as an estimate of the distance needs.
    """

    def __init__(
        self,
        cls,
        dtype: torch.dtype,
        *,
        rounded: torch.dtype | None = None,
        shapes: tuple[tuple[int, ...], ...] = ((5, 3), (7,), (), (0,), (4,)),
        equal_lrs: bool = False,
        quadratic: bool = False,
        **options: Any,
    ) -> None:
        self.rounded = rounded or dtype
        generator = torch.Generator().manual_seed(0)
        self.params = [
            torch.randn(s, generator=generator, dtype=torch.float64).to(self.rounded).to(dtype).requires_grad_()
            for s in shapes
        ]
        self.equal_lrs, self.quadratic = equal_lrs, quadratic
        self.initial = [p.detach().clone() for p in self.params]
        half = len(shapes) // 2
        self.optimizer = cls([{"params": self.params[:half]}, {"params": self.params[half:]}], **options)

    def run_steps(self, start: int = 0, stop: int = 50):
        for step in range(start, stop):
            for i, p in enumerate(self.params):
                g = noise(tuple(p.shape), 97 * step + i)
                absent = (i == 1 and step < 7) or (i == 2 and step % 10 == 3)
                g = g.to(self.rounded, copy=True).to(p.dtype) + (p.detach() - 3 if self.quadratic else 0)
                p.grad = None if absent else g
            if step == 25:
                for group in self.optimizer.param_groups[: None if self.equal_lrs else 1]:
                    group["lr"] = group["lr"] * 0.3
            self.optimizer.step()
        return self

    def resume(self, first: Trajectory, state_dict: dict[str, Any] | None = None):
        """Continue from `first`, with its state dict or with a modified one."""
        for p, q in zip(self.params, first.params, strict=True):
            p.data.copy_(q.data)
        self.optimizer.load_state_dict(save_and_load_state(first.optimizer) if state_dict is None else state_dict)
        return self

    def max_difference(self, other: Trajectory, states: Sequence[str] | None = None) -> float:
        """The largest difference from `other`. Arguments as of `differences`."""
        return max(self.differences(other, states).values())

    def differences(self, other: Trajectory, states: Sequence[str] | None = None) -> dict[str, float]:
        """The relative differences from `other`, for the parameters (`"p"`) and for each state.

        Args:
            other: the trajectory to compare with.
            states: the names of the states to compare, where `other` has them, in the state of a parameter or in a
                parameter group. Default: all states of parameters; both optimizers must have the same.
        """
        far, size = defaultdict(float), defaultdict(float)

        def compare(what, a, b, origin):
            assert a.shape == b.shape, what
            assert torch.stack([a, b]).isfinite().all(), what
            if b.numel():
                far[what] = max(far[what], float((a - b).detach().abs().max()))
                size[what] = max(size[what], float((b - origin).detach().abs().max()))

        for p, q, origin in zip(self.params, other.params, other.initial, strict=True):
            compare("p", p, q, origin)
            ours, theirs = self.optimizer.state.get(p, {}), other.optimizer.state.get(q, {})
            if states is None or not theirs:
                assert ours.keys() == theirs.keys()
            for name in theirs if states is None else [name for name in states if name in theirs]:
                compare(name, ours[name], theirs[name], torch.zeros_like(theirs[name]))
        for group, other_group in zip(self.optimizer.param_groups, other.optimizer.param_groups, strict=True):
            for name in set(states or ()) & other_group.keys():
                a, b = (torch.as_tensor(g[name], dtype=torch.float64) for g in (group, other_group))
                compare(name, a, b, torch.zeros_like(b))
        assert size["p"] > 0, "nothing moved"
        return {what: distance / size[what] if distance else 0.0 for what, distance in far.items()}


def save_and_load_state(optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
