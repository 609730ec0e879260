"""Decay with the inverse square root of the number of steps."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from optplug import ClosedFormLR
from optplug.schedulers.closed_form import linear_warmup


class InverseSqrt(ClosedFormLR):
    r"""Inverse square root decay after W warmup steps: :math:`lr(t) = base \cdot \sqrt{s / (t - W + s)}`.

    The warmup is linear and begins at :math:`1 / W` of the base learning rate. With :math:`s = W`, the default, the
    decay is :math:`\sqrt{W / t}`, as for the original Transformer.

    Args:
        optimizer: the optimizer whose learning rates are set.
        warmup_steps: number of steps :math:`W` of the warmup, an integer, at least 0.
        timescale: the number of steps :math:`s`, at least 1: the larger, the slower the decay. Default: `warmup_steps`,
            or 10000 without a warmup.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].
        last_epoch: index of the last step; -1 to start.

    Raises:
        HyperparameterError: an argument is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    Source: Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762; with a timescale: Zhai et
    al., Scaling Vision Transformers, 2022, https://arxiv.org/abs/2106.04560.
    """

    interval = "step"
    cases = ({"warmup_steps": 10}, {"timescale": 5, "min_lr_ratio": 0.4}, {"warmup_steps": 4, "timescale": 20})

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        timescale: float | None = None,
        min_lr_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps: int = self.check_number("warmup_steps", warmup_steps, whole=True)
        default = self.warmup_steps or 10_000
        self.timescale: float = default if timescale is None else self.check_number("timescale", timescale, 1)
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    def multiplier(self, t: int) -> float:
        if t < self.warmup_steps:
            return linear_warmup(t, self.warmup_steps)
        return math.sqrt(self.timescale / (t - self.warmup_steps + self.timescale))
