"""LARS."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions, State
from optplug.errors import HyperparameterError
from optplug.ops import norm, where
from optplug.optim.ranges import at_least


class Lars(RuleOptimizer):
    r"""SGD with momentum and layer-wise adaptive step sizes, for large batches: the length of a scaled gradient is
    proportional to the norm of the parameter.

    .. math::
        u_t = \eta \, \frac{\|\theta_{t-1}\|}{\|g_t\| + \lambda \|\theta_{t-1}\| + \epsilon} \,
        (g_t + \lambda \theta_{t-1}) \qquad
        b_t = \mu b_{t-1} + (1 - \tau) u_t \qquad
        \theta_t = \theta_{t-1} - \gamma \, (b_t \text{ or, with Nesterov, } u_t + \mu b_t)

    The factor before the parenthesis, with norms over all elements of a parameter, is called trust ratio. It is 1 if
    the norm of the parameter is 0, or that of the gradient and the weight decay. Without momentum,
    :math:`\theta_t = \theta_{t-1} - \gamma u_t`.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        momentum: momentum factor :math:`\mu \ge 0`.
        dampening: the part :math:`\tau` of the update that is not added to the momentum buffer.
        weight_decay: coefficient :math:`\lambda \ge 0` of the L2 penalty.
        nesterov: use Nesterov momentum. Requires momentum and zero dampening.
        trust_coefficient: :math:`\eta \ge 0`, the length of an update in units of the norm of the parameter, for a
            learning rate of 1.
        eps: :math:`\epsilon \ge 0`, in units of the norm of a gradient.
        adaptive: whether to use the trust ratio. A group with `adaptive=False`, customary for biases and the weights of
            normalization layers, steps with a trust ratio of 1.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay before each step, instead of the L2
            penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range, or `nesterov` without momentum or with dampening.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `momentum_buffer` :math:`b` with the shape of the parameter, if momentum is not 0.

    Source: You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    https://arxiv.org/abs/1708.03888. There the momentum buffer contains the learning rate; here the learning rate
    multiplies the buffer, as in SGD. The first step dampens the gradient too, unlike that of SGD.
    """

    states = (State("momentum_buffer", when="momentum"),)
    ranges = (at_least(0, "trust_coefficient"),)
    cases = (
        {"trust_coefficient": 0.02},
        {"momentum": 0.0, "eps": 0.1, "weight_decay": 0.05, "trust_coefficient": 0.1},
        {"dampening": 0.3, "weight_decay": 0.05, "trust_coefficient": 0.1, "maximize": True},
        {"nesterov": True, "weight_decay": 0.05, "decoupled_weight_decay": True, "trust_coefficient": 0.02},
        {"lr": 0.01, "weight_decay": 0.05, "adaptive": False},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        adaptive: bool = True,
        **options: Unpack[RuleOptions],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            trust_coefficient=trust_coefficient,
            eps=eps,
            adaptive=adaptive,
        )
        super().__init__(params, hyperparameters, **options)

    def check_options(self, options: dict[str, Any]) -> None:
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            message = "Nesterov momentum requires a momentum and zero dampening"
            raise HyperparameterError(message, argument="nesterov")

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, momentum_buffer, *, lr, momentum, dampening, weight_decay, trust_coefficient, eps,
        nesterov=False, adaptive=True, decoupled_weight_decay=False,
    ):  # fmt: skip
        if decoupled_weight_decay:
            p, weight_decay = (1 - lr * weight_decay) * p, 0.0
        update = g + weight_decay * p
        if adaptive:
            p_norm, scale = norm(p), norm(g) + weight_decay * norm(p)
            update = where((p_norm > 0) & (scale > 0), trust_coefficient * p_norm / (scale + eps), 1.0) * update
        if momentum_buffer is not None:
            momentum_buffer = momentum * momentum_buffer + (1 - dampening) * update
            update = update + momentum * momentum_buffer if nesterov else momentum_buffer
        return p - lr * update, momentum_buffer
