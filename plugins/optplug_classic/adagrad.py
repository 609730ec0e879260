"""Adagrad."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import sqrt
from optplug.optim.options import OptionsWithoutForeach
from optplug.optim.ranges import at_least


class Adagrad(RuleOptimizer):
    r"""Divides the gradient by the square root of the sum of all squared gradients so far.

    .. math::
        G_t = G_{t-1} + g_t^2, \quad G_0 = \tau \qquad
        \theta_t = \theta_{t-1} - \frac{\gamma}{1 + (t - 1) \eta} \, \frac{g_t}{\sqrt{G_t} + \epsilon}

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        lr_decay: decay :math:`\eta \ge 0` of the learning rate per step.
        weight_decay: coefficient of the L2 penalty, at least 0.
            Must be 0 if gradients are sparse.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        initial_accumulator_value: :math:`\tau \ge 0`, in units of the squared gradient. Can be set per parameter group.
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient and a nonzero weight decay.

    A sparse gradient updates only the rows that it contains. The result is the same as for a dense gradient with zeros
    in the other rows.

    State: `step`; `sum` :math:`G`, with the shape of the parameter.

    Source: Duchi, Hazan, Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, 2011.
    """

    states = (State("step", scalar=True), State("sum", init="initial_accumulator_value"))
    ranges = (at_least(0, "lr_decay"), at_least(0, "initial_accumulator_value"))
    capabilities = frozenset({"complex", "sparse"})
    cases = ({}, {"lr_decay": 0.1, "initial_accumulator_value": 0.3}, {"weight_decay": 0.05}, {"maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        **options: Unpack[OptionsWithoutForeach],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )
        super().__init__(params, hyperparameters, foreach=foreach, **options)

    @staticmethod
    def rule(p, g, step, sum, *, lr, lr_decay, eps):  # type: ignore[no-untyped-def]  # noqa: A002
        sum = sum + g * g
        p = p - (lr / (1 + step * lr_decay)) * (g / (sqrt(sum) + eps))
        return p, step + 1, sum
