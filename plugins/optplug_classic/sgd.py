"""Stochastic gradient descent."""

from typing import Any

from torch import Tensor, dtype

from optplug import Engine, Params, RuleOptimizer, State
from optplug.errors import HyperparameterError


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent, with momentum and Nesterov's variant of it.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1 \qquad
        \theta_t = \theta_{t-1} - \gamma \, (b_t \text{ or, with Nesterov, } g_t + \mu b_t)

    without momentum :math:`\theta_t = \theta_{t-1} - \gamma g_t`.

    Args:
        params: tensors of any shape, named or not, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`. Documented as required; 1e-3 as in torch today.
        momentum: :math:`\mu \ge 0`.
        dampening: :math:`\tau`, what the buffer leaves out of a gradient.
        nesterov: look ahead; needs momentum and no dampening.
        weight_decay: L2 penalty, at least 0; with `decoupled_weight_decay` a shrinkage by lr * weight_decay per step.
        maximize, foreach, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value out of range; Nesterov without momentum or with dampening.

    Sparse gradients: with momentum every row that ever had a gradient goes on moving, as dense ones would.

    State: `momentum_buffer`, of the parameter's shape, when momentum is not 0; sparse where gradients are.

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
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        engine: Engine = "auto",
        state_dtype: dtype | None = None,
    ) -> None:
        super().__init__(params, locals())

    def check_options(self, options: dict[str, Any]) -> None:
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise HyperparameterError("Nesterov momentum requires a momentum and zero dampening")

    @staticmethod
    def rule(p, g, momentum_buffer, *, lr, momentum, dampening, first, nesterov=False):  # type: ignore[no-untyped-def]
        if momentum_buffer is not None:
            # The buffer starts as the gradient itself: before that, momentum and dampening count for nothing.
            later = 1 - first
            momentum_buffer = (momentum * later) * momentum_buffer + (1 - dampening * later) * g
            g = g + momentum * momentum_buffer if nesterov else momentum_buffer
        return p - lr * g, momentum_buffer
