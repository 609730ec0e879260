"""L-BFGS.

It has no update rule, because it uses all parameters together and evaluates the loss several times in a step.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.engines._torch_compat import disable_dynamo, search_limit
from optplug.errors import (
    ConfigTypeError,
    ErrorCollector,
    HyperparameterError,
    LineSearchError,
    ParameterError,
    did_you_mean,
    listing,
    short_list,
)
from optplug.optim import hyperparameters
from optplug.optim.parameters import Params, check_group_params
from optplug.optim.ranges import any_number, at_least
from optplug.optim.strict_kwargs import StrictKwargs
from optplug_classic.lbfgs_history import CurvaturePairs, copy_pairs

RANGES = [at_least(1, name, whole=True) for name in ("max_iter", "max_eval", "history_size")]
RANGES += [any_number(name) for name in ("tolerance_grad", "tolerance_change")]
C1, C2 = 1e-4, 0.9  # the constants of the strong Wolfe conditions


def update_history(pairs: CurvaturePairs, state: dict[str, Any], y: Tensor, history_size: int) -> None:
    """Add the pair of the last step s and the change y of the gradient, unless the curvature s . y is not positive."""
    s = state["d"] * state["t"]
    curvature = y.dot(s)
    if curvature > 1e-10:
        pairs.append(s, y, history_size)
        state.update(old_stps=pairs.s, old_dirs=pairs.y, ro=[*state["ro"], 1.0 / curvature][-history_size:])
        state["H_diag"] = curvature / y.dot(y)


class LinePoint(NamedTuple):
    """A point x + t d of the search line: t, the loss f, its gradient g, and the slope g . d."""

    t: Any  # a number, or after interpolation a 0-dim tensor, so that it is rounded as the slopes are
    f: float
    g: Tensor
    slope: Tensor


def strong_wolfe(
    phi: Callable[[Any], LinePoint], start: LinePoint, t: Any, min_bracket: Any, max_evals: int
) -> LinePoint:
    """A point that satisfies the strong Wolfe conditions, or else the best point of the search.

    Algorithm 3.5 of Nocedal and Wright brackets the point, Algorithm 3.6 zooms in.

    Args:
        phi: evaluates the loss at a step length.
        start: the point at step length 0.
        t: the first step length.
        min_bracket: the search ends when the bracket is shorter.
        max_evals: the maximum number of evaluations after the first one.
    """
    last, new, evals = start, phi(t), 0
    while evals < max_evals and not (new.f > start.f + C1 * new.t * start.slope or (evals > 1 and new.f >= last.f)):
        if abs(new.slope) <= -C2 * start.slope:
            return new
        if new.slope >= 0:
            break
        t = cubic_minimum(last, new, new.t + 0.01 * (new.t - last.t), new.t * 10)
        last, new, evals = new, phi(t), evals + 1
    ends = [start if evals == max_evals else last, new]
    low, stalled = int(not ends[0].f <= ends[1].f), False
    while evals < max_evals and not abs(ends[1].t - ends[0].t) < min_bracket:
        left, right = min(ends[0].t, ends[1].t), max(ends[0].t, ends[1].t)
        t, margin = cubic_minimum(ends[0], ends[1], left, right), 0.1 * (right - left)
        near_end = bool(min(right - t, t - left) < margin)
        if near_end and (stalled or t >= right or t <= left):  # move t inward, so that the bracket shrinks
            t, near_end = (right - margin if abs(t - right) < abs(t - left) else left + margin), False
        new, evals, stalled = phi(t), evals + 1, near_end
        if new.f > start.f + C1 * new.t * start.slope or new.f >= ends[low].f:
            ends[1 - low] = new
            low = int(not ends[0].f <= ends[1].f)
        elif abs(new.slope) <= -C2 * start.slope:
            return new
        elif new.slope * (ends[1 - low].t - ends[low].t) >= 0:
            ends[low], ends[1 - low] = new, ends[low]
        else:
            ends[low] = new
    return ends[low]


def cubic_minimum(a: LinePoint, b: LinePoint, low: Any, high: Any) -> Any:
    """The minimizer, within [low, high], of the cubic that interpolates two points and their slopes (eq. 3.59)."""
    a, b = (a, b) if a.t <= b.t else (b, a)
    d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
    square = d1**2 - a.slope * b.slope
    if not square >= 0:  # no minimum, or NaN
        return (low + high) / 2.0
    d2 = square.sqrt()
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    return min(max(t, low), high)


class LBFGS(StrictKwargs, torch.optim.LBFGS):
    r"""Limited-memory BFGS: a quasi-Newton method with several iterations p' = p - t H g in each step.

    .. math::
        H' = (1 - \rho \, s y^\top) \, H \, (1 - \rho \, y s^\top) + \rho \, s s^\top \qquad \rho = 1 / y^\top s

    Args:
        params: tensors of any shape on one device, or one dict with `params` and options.
        lr: step length t, or its initial value in a line search, at least 0. In the very first iteration the step
            length is multiplied by min(1, 1 / sum of abs(g)).
        max_iter: maximum number of iterations in a step, at least 1.
        max_eval: maximum number of closure calls in a step, at least 1. A line search may add one call. Default:
            max_iter * 5 // 4.
        tolerance_grad: a step ends when no component of the gradient is larger. A negative number, such as -1 or
            minus infinity, never ends a step.
        tolerance_change: a step ends when the loss, or each component of the parameters, changes by less. A negative
            number never ends a step.
        history_size: number of pairs of s (change of the parameters) and y (change of the gradient), at least 1.
        line_search_fn: `"strong_wolfe"`, or None for fixed step lengths.
        maximize: whether to maximize the loss instead of minimizing it. The iterations then use the negated loss and
            gradient. `step` returns the loss of the closure.

    Raises:
        HyperparameterError: a value is out of range.
        LineSearchError: the line search does not exist.
        ParameterError: there is a second parameter group; parameters are duplicate, sparse or on several devices.

    State, stored under the first parameter: the counts `func_evals` and `n_iter`; of the last iteration `d`, `t`,
    `prev_flat_grad` and `prev_loss`, both negated with `maximize`; the pairs s in `old_stps` and y in `old_dirs`, with
    rho in `ro`; `H_diag`, the factor of the identity from which H starts.

    The class inherits from torch's class because Lightning requires it. No algorithm of torch's class is used.

    Source: Liu and Nocedal, On the Limited Memory BFGS Method for Large Scale Optimization, 1989; Nocedal and Wright,
    Numerical Optimization, 2006.
    """

    cases: ClassVar[Any] = (
        {},
        {"line_search_fn": "strong_wolfe"},
        {"history_size": 3, "max_iter": 7},
        {"maximize": True},
    )
    capabilities = frozenset({"closure", "complex"})
    _pairs: CurvaturePairs | None = None  # a cache: the matrices of the pairs in the state

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            max_iter=max_iter,
            max_eval=max_eval,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
            line_search_fn=line_search_fn,
            maximize=maximize,
        )
        self._check({**defaults, "max_eval": 1 if max_eval is None else max_eval})  # before the parameters, as in torch
        defaults["max_eval"] = max_iter * 5 // 4 if max_eval is None else max_eval
        Optimizer.__init__(self, [{"params": params}] if isinstance(params, set) else params, defaults)

    def _check(self, options: dict[str, Any], *, in_range: bool = True) -> None:
        collector = ErrorCollector()
        with collector.collect():
            references = {**hyperparameters.declared_defaults(LBFGS), "max_eval": 1}
            hyperparameters.check_hyperparameters(references, options, "LBFGS", RANGES, in_range=in_range)
        if (name := options.get("line_search_fn")) not in (None, "strong_wolfe"):
            near = did_you_mean(name, ["strong_wolfe"])
            message = f"only 'strong_wolfe' is supported, or None for fixed steps; got {name!r}{near}"
            collector.add(LineSearchError(message, argument="line_search_fn"))
        collector.raise_joined()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the parameter group. There can be only one. Raises the errors of the constructor."""
        if isinstance(param_group, dict):
            param_group = {**param_group, "params": check_group_params(param_group, 0, "LBFGS", takes_complex=True)}
            self._check(hyperparameters.group_options(param_group, self.defaults))
        Optimizer.add_param_group(self, param_group)
        if self.param_groups[1:]:
            del self.param_groups[1:]
            raise ParameterError("LBFGS doesn't support per-parameter options (parameter groups): pass one group")
        if len(devices := sorted({str(p.device) for p in self._params})) > 1:
            raise ParameterError(f"LBFGS needs all parameters on one device; these are on {listing(devices)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of `torch.optim.LBFGS`. Raises the errors of the constructor."""
        for group in state_dict["param_groups"]:
            self._check({k: v for k, v in group.items() if k in self.defaults}, in_range=False)
        first = next((i for group in state_dict["param_groups"] for i in group["params"]), None)
        if (saved := state_dict["state"].get(first)) and "n_iter" not in saved:
            raise HyperparameterError(
                f"this is the state of another optimizer, with the keys {short_list(saved)}; LBFGS keeps n_iter"
            )
        Optimizer.load_state_dict(self, state_dict)

    def state_dict(self) -> dict[str, Any]:
        """The state dict. It has the format of torch's class, and each class can load it."""
        state_dict = Optimizer.state_dict(self)
        return {**state_dict, "state": copy_pairs(state_dict["state"])}

    def __getstate__(self) -> dict[str, Any]:
        return {**Optimizer.__getstate__(self), "state": defaultdict(dict, copy_pairs(self.state))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)
        # Old checkpoints lack keys. "differentiable" is a default of the base class, which groups of L-BFGS do not
        # have.
        for group in self.param_groups:
            defaults = {**self.defaults, "maximize": False}  # torch's class before 2.14 minimizes
            group.update({k: v for k, v in defaults.items() if k not in (*group, "differentiable")})

    _params = property(
        lambda self: self.param_groups[0]["params"]
    )  # a property, because an attribute would refer to the old parameters in copies

    def _numel(self) -> int:
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self._params)

    def _gather_flat_grad(self) -> Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense().resolve_conj() for p in self._params]
        flat = torch.cat([(torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in grads])
        return flat.neg_() if self.param_groups[0]["maximize"] else flat

    def _add_grad(self, step_size: Any, update: Tensor) -> None:
        real = [torch.view_as_real(p) if p.is_complex() else p for p in self._params]
        for p, part in zip(real, torch.split(update, [p.numel() for p in real]), strict=True):
            p.add_(part.view(p.shape), alpha=float(step_size))

    def _clone_param(self) -> list[Tensor]:
        return [p.clone() for p in self._params]

    def _set_param(self, params_data: list[Tensor]) -> None:
        torch._foreach_copy_(self._params, params_data)

    def _directional_evaluate(self, closure: Callable[[], Any], x: list[Tensor], t: Any, d: Tensor) -> LinePoint:
        self._add_grad(t, d)
        try:
            _, f, g = self._evaluate(closure)
        finally:
            self._set_param(x)
        return LinePoint(t, f, g, g.dot(d))

    def _evaluate(self, closure: Callable[[], Any]) -> tuple[Any, float, Tensor]:
        """Call the closure. Returns its loss, and the value and the gradient of the function to minimize."""
        if (loss := closure()) is None:
            raise ConfigTypeError(
                "LBFGS needs a closure that returns the loss: write optimizer.step(closure); the closure returned None"
            )
        self.state[self._params[0]]["func_evals"] += 1
        f = -float(loss) if self.param_groups[0]["maximize"] else float(loss)
        return loss, f, self._gather_flat_grad()

    @disable_dynamo  # the number of iterations depends on data
    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Perform up to `max_iter` iterations.

        Args:
            closure: evaluates the model and the gradients, and returns the loss.

        Returns:
            The loss of the first evaluation.
        """
        group, closure = self.param_groups[0], torch.enable_grad()(closure)
        self._check({"line_search_fn": group["line_search_fn"]})  # the user may have changed it
        if not self._params:
            return closure()
        state = self.state[self._params[0]]
        lr, tolerance = float(group["lr"]), group["tolerance_change"]
        state.update({"func_evals": 0, "n_iter": 0, **state})
        has_line_search = group["line_search_fn"] and lr > 0  # a warmup may start with lr 0
        eval_limit = state["func_evals"] + group["max_eval"]
        first, f, g = self._evaluate(closure)
        for remaining in reversed(range(group["max_iter"])):
            if (g.abs() <= group["tolerance_grad"]).all():
                break
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1)  # H is the identity
            pairs = self._pairs = CurvaturePairs.from_state(state, self._pairs)
            if state["n_iter"] > 1:
                update_history(pairs, state, g - state["prev_flat_grad"], group["history_size"])
            t: Any = lr if state["n_iter"] > 1 else lr * min(1.0, 1.0 / g.abs().sum())  # type: ignore[operator]
            d = pairs.direction(g, state["H_diag"])
            state.update(d=d, t=t, prev_flat_grad=g, prev_loss=f)
            start = LinePoint(0, f, g, g.dot(d))
            if start.slope > -tolerance:
                break
            if has_line_search:
                phi = partial(self._directional_evaluate, closure, self._clone_param(), d=d)
                max_evals = search_limit(eval_limit - state["func_evals"])
                t, f, g, _ = strong_wolfe(phi, start, t, tolerance / d.abs().max(), max_evals)
                state["t"] = t
            self._add_grad(t, d)
            if remaining and not has_line_search:
                _, f, g = self._evaluate(closure)
            if state["func_evals"] >= eval_limit or (d * t).abs().max() <= tolerance or abs(f - start.f) < tolerance:
                break
        return first
