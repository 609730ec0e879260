"""Adam."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions, State
from optplug.errors import HyperparameterError
from optplug.ops import lerp, maximum, sqrt


class Adam(RuleOptimizer):
    r"""Adaptive moment estimation.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \qquad
        \theta_t = \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \, m_t \Big/
        \Big( \sqrt{v_t} \big/ \sqrt{1 - \beta_2^t} + \epsilon \Big)

    AMSGrad replaces :math:`v_t` by the elementwise maximum of all :math:`v` so far.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        amsgrad: use the AMSGrad variant.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg`, `exp_avg_sq` and, with AMSGrad, `max_exp_avg_sq`, with the shape of the parameter.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980; AMSGrad:
    Reddi, Kale, Kumar, On the Convergence of Adam and Beyond, 2018.
    """

    states = (
        State("step", scalar=True),
        State("exp_avg"),
        State("exp_avg_sq"),
        State("max_exp_avg_sq", when="amsgrad"),
    )
    remedy = ", please consider SparseAdam instead"
    cases = ({}, {"weight_decay": 0.05}, {"amsgrad": True, "betas": (0.8, 0.95)}, {"maximize": True, "eps": 1e-3})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **options: Unpack[RuleOptions],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        super().__init__(params, hyperparameters, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:  # of torch < 2.8, whose class lacks this option
            group.setdefault("decoupled_weight_decay", False)
        super().__setstate__(state)

    def check_options(self, options: dict[str, Any]) -> None:
        if not options["foreach"] or options["capturable"]:
            return
        reason = "as a Tensor is not supported for capturable=False and foreach=True"
        if isinstance(options["lr"], Tensor):
            raise HyperparameterError(f"lr {reason}", argument="lr")
        if isinstance(options["betas"][0], Tensor):
            raise HyperparameterError(f"betas[0] {reason}", argument="betas")

    @staticmethod
    def rule(p, g, step, exp_avg, exp_avg_sq, max_exp_avg_sq, *, lr, betas, eps, amsgrad=False):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        largest = exp_avg_sq
        if amsgrad:
            largest = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
        denominator = sqrt(largest) / sqrt(1 - beta2**step) + eps
        p = p - (lr / (1 - beta1**step)) * (exp_avg / denominator)
        return p, step, exp_avg, exp_avg_sq, max_exp_avg_sq
