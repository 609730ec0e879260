"""Rprop."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.errors import ErrorCollector, HyperparameterError
from optplug.ops import maximum, minimum, sign, where
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import at_least


class Rprop(RuleOptimizer):
    r"""Resilient propagation: each element has its own step size, and only the sign of the gradient is used.

    The step size :math:`s` is multiplied by :math:`\eta^+` while the sign of the gradient stays the same, and by
    :math:`\eta^-` when the sign changes. After a change of sign the element is not updated, and the step size is kept
    in the next step:

    .. math::
        s_t = \mathrm{clip}(\eta^\pm s_{t-1}, s_{min}, s_{max}) \qquad
        \theta_t = \theta_{t-1} - s_t \, \mathrm{sign}(g_t), \quad g_t := 0 \text{ where } g_t g_{t-1} < 0

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: initial step size :math:`s_0 \ge 0`. A later change has no effect.
        etas: :math:`(\eta^-, \eta^+)`, with 0 < eta- < 1 < eta+.
        step_sizes: :math:`(s_{min}, s_{max})`, in units of the parameter, at least 0 and in this order.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `prev`, the last gradient (0 where the sign changed), and `step_size` :math:`s`, with the shape of
    the parameter.

    Source: Riedmiller and Braun, A direct adaptive method for faster backpropagation learning: the RPROP algorithm,
    1993; without weight backtracking: Igel and Husken, Improving the Rprop Learning Algorithm, 2000 (iRprop-).
    """

    states = (State("step", scalar=True), State("prev"), State("step_size", init="lr"))
    ranges = (at_least(0, "step_sizes", "step size"),)
    cases = ({}, {"etas": (0.3, 1.5), "step_sizes": (1e-4, 0.02)}, {"lr": 0.1, "maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, etas=etas, step_sizes=step_sizes)
        super().__init__(params, hyperparameters, **options)

    def check_options(self, options: dict[str, Any]) -> None:
        (minus, plus), (low, high) = options["etas"], options["step_sizes"]
        collector = ErrorCollector()
        if wrong := [i for i, is_valid in enumerate((0 < minus < 1, plus > 1)) if not is_valid]:
            message = f"Invalid eta values: {minus}, {plus} (Rprop: 0 < etas[0] < 1 < etas[1])"
            collector.add(HyperparameterError(message, argument="etas", inside=tuple(wrong) if len(wrong) == 1 else ()))
        if low > high:
            message = f"Invalid step sizes: {low}, {high} (Rprop: step_sizes[0] <= step_sizes[1])"
            collector.add(HyperparameterError(message, argument="step_sizes"))
        collector.raise_joined()

    @staticmethod
    def rule(p, g, step, prev, step_size, *, etas, step_sizes):  # type: ignore[no-untyped-def]
        agreement = g * prev
        shrunk = where(agreement < 0, etas[0] * step_size, step_size)
        step_size = where(agreement > 0, etas[1] * step_size, shrunk)
        step_size = minimum(maximum(step_size, step_sizes[0]), step_sizes[1])
        g = where(agreement < 0, 0.0, g)
        return p - step_size * sign(g), step + 1, g, step_size
