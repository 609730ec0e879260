"""SparseAdam."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, sqrt
from optplug.optim.options import EngineOptions
from optplug.optim.ranges import above_zero


class SparseAdam(RuleOptimizer):
    r"""Adam for sparse gradients, such as those of `nn.Embedding(sparse=True)`.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \qquad
        \theta_t = \theta_{t-1} - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}

    A step updates only the rows that the gradient contains. The parameters and the running averages of the other rows
    do not change. t counts the steps of the whole tensor.

    Args:
        params: dense real tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma > 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon > 0`, in units of the gradient.
        maximize, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        ParameterError: a parameter is sparse or complex.
        SparseGradientError: in `step`, for a dense gradient.

    State: `step`; `exp_avg` and `exp_avg_sq`, with the shape of the parameter.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_avg_sq"))
    ranges = (above_zero("lr", "learning rate"), above_zero("eps", "epsilon value"))
    capabilities = frozenset({"sparse", "sparse_only"})
    remedy = ", please consider Adam instead"
    cases = ({}, {"betas": (0.8, 0.95), "eps": 1e-3}, {"maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        **options: Unpack[EngineOptions],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps)
        super().__init__(params, hyperparameters, maximize=maximize, **options)

    @staticmethod
    def rule(p, g, step, exp_avg, exp_avg_sq, *, lr, betas, eps):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
        step_size = lr * sqrt(1 - beta2**step) / (1 - beta1**step)
        return p - step_size * (exp_avg / (sqrt(exp_avg_sq) + eps)), step, exp_avg, exp_avg_sq

    def state_dict(self) -> dict[str, Any]:
        """As `Optimizer.state_dict`, with `step` as an integer, as in torch's SparseAdam."""
        saved = super().state_dict()
        for key, state in saved["state"].items():
            if isinstance(state, dict) and "step" in state:
                saved["state"][key] = {**state, "step": int(state["step"])}
        return saved
