"""Stochastic gradient descent."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions, State
from optplug.errors import HyperparameterError


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent, optionally with momentum or Nesterov momentum.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1 \qquad
        \theta_t = \theta_{t-1} - \gamma \, (b_t \text{ or, with Nesterov, } g_t + \mu b_t)

    Without momentum, :math:`\theta_t = \theta_{t-1} - \gamma g_t`.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        momentum: momentum factor :math:`\mu \ge 0`.
        dampening: the part :math:`\tau` of the gradient that is not added to the momentum buffer.
        nesterov: use Nesterov momentum. Requires momentum and zero dampening.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range, or `nesterov` without momentum or with dampening.
        SparseGradientError: in `step`, for a sparse gradient and a nonzero weight decay.

    Sparse gradients: with momentum every row that had a gradient in any step is updated, as with dense gradients.

    State: `momentum_buffer` :math:`b` with the shape of the parameter, if momentum is not 0. Sparse for sparse
    gradients.

    Source: Sutskever, Martens, Dahl, Hinton, On the importance of initialization and momentum in deep learning, 2013.
    """

    states = (State("momentum_buffer", when="momentum", sparse=True),)
    capabilities = frozenset({"complex", "sparse"})
    cases = (
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05, "maximize": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        **options: Unpack[RuleOptions],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        super().__init__(params, hyperparameters, **options)

    def check_options(self, options: dict[str, Any]) -> None:
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            message = "Nesterov momentum requires a momentum and zero dampening"
            raise HyperparameterError(message, argument="nesterov")

    @staticmethod
    def rule(p, g, momentum_buffer, *, lr, momentum, dampening, first, nesterov=False):  # type: ignore[no-untyped-def]
        if momentum_buffer is not None:
            # In the first step the buffer is the gradient: momentum and dampening are not applied.
            not_first = 1 - first
            momentum_buffer = (momentum * not_first) * momentum_buffer + (1 - dampening * not_first) * g
            g = g + momentum * momentum_buffer if nesterov else momentum_buffer
        return p - lr * g, momentum_buffer
