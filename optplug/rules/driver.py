"""`RuleOptimizer`: a `torch.optim.Optimizer` that steps an update rule.

What every algorithm shares lives here once: parameter groups and their checks, state, buckets, the choice of engine, complex
parameters, AMP, state dicts. An algorithm adds a constructor, a declaration of its state and its rule.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from optplug.engines import foreach, loop
from optplug.engines.report import BucketReport
from optplug.errors import (
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    RuleError,
    SparseGradientError,
    did_you_mean,
    listing,
)
from optplug.rules import hypers as hypers_table
from optplug.rules.columns import Columns
from optplug.rules.trace import FIRST, SHRINK, Rule, Traced, Variant, missing_hypers, signature_of, trace

Engine = Literal["auto", "loop", "foreach", "numba", "triton"]
ENGINES: tuple[str, ...] = ("auto", "loop", "foreach", "numba", "triton")

EXECUTION_KEYS = ("foreach", "fused", "capturable", "differentiable")
"""Group keys that say how to run, not what to compute: never taken from a checkpoint."""

_PLAIN = (Tensor, Parameter)


@dataclass(frozen=True)
class State:
    """One state of a rule, kept under torch's name.

    Args:
        name: the key in `optimizer.state[p]` and the rule's argument.
        scalar: one number for the parameter (a 0-dim float32 tensor) rather than one per element.
        when: the hyperparameter that must be true, or not 0, for the state to exist. Default: it always does.
        init: its first value, or the name of the hyperparameter that gives it.
    """

    name: str
    scalar: bool = False
    when: str | None = None
    init: float | str = 0.0

    def exists(self, group: dict[str, Any]) -> bool:
        return self.when is None or bool(group[self.when])


@dataclass
class _Bucket:
    """Parameters of one group that one engine steps together; `traced` is None for the loop."""

    group: int
    engine: str
    reason: str
    variant: Variant
    traced: Traced | None
    params: list[Tensor]

    def report(self, *, ran: bool) -> BucketReport:
        p, elements = self.params[0], sum(p.numel() for p in self.params)
        return BucketReport(self.group, self.engine, self.reason, len(self.params), elements, p.dtype, p.device, ran)


class RuleOptimizer(torch.optim.Optimizer):
    """Steps the update rule of a subclass.

    Args:
        params: tensors, named parameters, or dicts that each describe a parameter group.
        defaults: the algorithm's hyperparameters and their values.
        decoupled_weight_decay: for algorithms with `weight_decay`: shrink the parameter by lr * weight_decay per step
            instead of adding weight_decay * p to the gradient.
        maximize: ascend instead of descend.
        foreach: torch's spelling of `engine="foreach"` (True) and `engine="loop"` (False). None: `engine` decides.
        capturable: keep scalar states on the parameter's device, as torch does for graph capture.
        differentiable: let autograd record the step (engine `loop`).
        fused: torch's promise that `step` unscales gradients itself under a GradScaler.
        engine: `"auto"` takes the fastest engine that is correct for the parameters; `engine_report` tells which.
        state_dtype: dtype of the element-wise states, e.g. `torch.float32` for bfloat16 parameters (`float32` in YAML);
            the rule then computes in it. None: the parameter's dtype.

    Raises:
        HyperparameterError: a hyperparameter is out of range or unknown.
        HyperparameterTypeError: a hyperparameter has the wrong type.
        EngineError: `engine`, `foreach` and `fused` contradict each other, or the engine cannot serve.

    Subclasses declare `states` and a static `rule(p, g, *states, *, hypers, flags) -> (p, *states)`.
    """

    states: ClassVar[Sequence[State]] = ()
    cases: ClassVar[Sequence[dict[str, Any]]] = ({},)
    capabilities: ClassVar[frozenset[str]] = frozenset({"complex"})
    sparse_remedy: ClassVar[str] = ""
    rule: ClassVar[Rule]

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        engine: Engine = "auto",
        state_dtype: torch.dtype | str | None = None,
    ) -> None:
        self._check_declaration()
        defaults = {
            **_tuples(type(self), defaults),
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        if "weight_decay" in defaults:
            defaults["decoupled_weight_decay"] = decoupled_weight_decay
        if engine not in ENGINES:
            raise EngineError(f"no engine named {engine!r}; there are {listing(ENGINES)}{did_you_mean(engine, ENGINES)}")
        if engine in ("numba", "triton"):
            raise EngineError(f"engine {engine!r} is not part of this version; there are loop and foreach")
        if isinstance(state_dtype, str):  # as YAML gives it
            state_dtype = getattr(torch, state_dtype.removeprefix("torch."), state_dtype)
        if state_dtype is not None and not (isinstance(state_dtype, torch.dtype) and state_dtype.is_floating_point):
            raise HyperparameterTypeError(f"state_dtype must be a floating-point torch.dtype or None, got {state_dtype!r}")
        self.engine = engine
        self.state_dtype = state_dtype
        self._columns = Columns()
        self._ran: list[_Bucket] = []
        # Hyperparameters are checked before parameters, as torch does.
        self._check_group(defaults, defaults)
        super().__init__(params, defaults)
        if fused:
            self._step_supports_amp_scaling = True

    # ------------------------------------------------------------------ checks

    @classmethod
    def _check_declaration(cls) -> None:
        names = tuple(state.name for state in cls.states)
        if names != signature_of(cls.rule).states:
            raise RuleError(
                f"{cls.__name__} declares the states {listing(names)}, but its rule takes "
                f"{listing(signature_of(cls.rule).states)}: both must be the same, in the same order"
            )
        for name in names:
            if re.fullmatch(r"[pg]|[ct]\d+", name):
                raise RuleError(f"{cls.__name__}: a state may not be named {name!r}")

    def check_options(self, options: dict[str, Any]) -> None:
        """A subclass's own checks on options that constrain each other; raise `HyperparameterError`."""

    def _check_group(self, group: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Check the options of a group, which override `defaults`."""
        owner = type(self).__name__
        hypers_table.check({**defaults, **_signature_defaults(type(self))}, group, owner)
        merged = {**defaults, **group}
        for key in ("foreach", "fused"):
            if merged[key] not in (None, True, False):
                raise HyperparameterTypeError(f"{owner}: {key} must be True, False or None, got {merged[key]!r}")
        if merged["fused"] and merged["differentiable"]:
            raise EngineError("`fused` does not support `differentiable`")
        if merged["fused"] and merged["foreach"]:
            raise EngineError("`fused` and `foreach` cannot be `True` together.")
        if merged["foreach"] and self.engine not in ("auto", "foreach"):
            raise EngineError(f"foreach=True contradicts engine={self.engine!r}")
        if merged["foreach"] is False and self.engine not in ("auto", "loop"):
            raise EngineError(f"foreach=False contradicts engine={self.engine!r}")
        if merged["differentiable"] and (merged["foreach"] or self.engine not in ("auto", "loop")):
            raise EngineError("differentiable=True needs engine 'loop' (or 'auto')")
        if merged["foreach"] and not merged["capturable"] and "capturable" in _signature_defaults(type(self)):
            for key, value in merged.items():
                several = isinstance(value, (tuple, list)) and key not in hypers_table.FOREIGN_KEYS
                for name, one in ((f"{key}[{i}]", v) for i, v in enumerate(value)) if several else ((key, value),):
                    if isinstance(one, Tensor) and key not in hypers_table.FOREIGN_KEYS:
                        raise HyperparameterError(
                            f"{name} as a Tensor is not supported for capturable=False and foreach=True"
                        )
        complaint = missing_hypers(self._variant(merged), list(defaults))
        if complaint:
            raise RuleError(complaint)
        self.check_options(merged)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked like the constructor's.

        Args:
            param_group: `params`, options that override the defaults, and if wanted a `name`.

        Raises:
            HyperparameterError: an unknown option, with the nearest one, or a value out of range.
        """
        if isinstance(param_group, dict):
            param_group = _tuples(type(self), param_group)
            options = {k: v for k, v in param_group.items() if k not in hypers_table.FOREIGN_KEYS}
            self._check_group(options, self.defaults)
        super().add_param_group(param_group)

    # -------------------------------------------------------------------- step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called first, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            SparseGradientError: a gradient is sparse and this optimizer takes dense ones.
            EngineError: the engine that was asked for cannot serve a parameter.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return loss
        ran: list[_Bucket] = []
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for number, group in enumerate(self.param_groups):
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    self._unscale(params)
                    for bucket in self._buckets(number, group, params):
                        self._step_bucket(bucket, group)
                        ran.append(bucket)
        self._ran = ran
        return loss

    def _unscale(self, params: list[Tensor]) -> None:
        """Under a GradScaler that leaves it to us (fused): in place, as torch does."""
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            for p in params:
                cast(Tensor, p.grad).div_(grad_scale.to(cast(Tensor, p.grad).device))

    def _variant(self, group: dict[str, Any]) -> Variant:
        """The rule with the static choices of a group."""
        rule = type(self).rule
        signature = signature_of(rule)
        decays = bool(group.get("weight_decay", 0)) and "weight_decay" not in signature.hypers
        present = tuple(state for state in self.states if state.exists(group))
        return Variant(
            rule=rule,
            flags=tuple((flag, bool(group.get(flag))) for flag in signature.flags),
            present=tuple(state.name for state in present),
            scalars=tuple(state.name for state in present if state.scalar),
            maximize=group["maximize"],
            decay="none" if not decays else "decoupled" if group.get("decoupled_weight_decay") else "coupled",
        )

    # ----------------------------------------------------------------- buckets

    def _buckets(self, number: int, group: dict[str, Any], params: Sequence[Tensor]) -> Iterable[_Bucket]:
        """The parameters of a group, together where they share engine, device and dtypes."""
        variant = self._variant(group)
        engine, reason, traced = self._engine_of_group(group, variant)
        forced = self.engine != "auto" or group["foreach"] is not None
        buckets: dict[tuple[Any, ...], _Bucket] = {}
        for p in params:
            g = p.grad
            chosen, why = engine, reason
            if g is not None and g.layout is not torch.strided:
                raise SparseGradientError(f"{type(self).__name__} does not support sparse gradients{self.sparse_remedy}")
            if chosen != "loop" and (type(p) not in _PLAIN or (g is not None and type(g) not in _PLAIN)):
                name = type(p).__name__ if type(p) not in _PLAIN else type(g).__name__
                if forced:
                    raise EngineError(f"engine {engine!r} takes plain tensors only, got {name}; use engine='auto'")
                chosen, why = "loop", f"auto: {name} is no plain tensor"
            key = (chosen, why, p.device, p.dtype, None if g is None else g.dtype)
            if key not in buckets:
                buckets[key] = _Bucket(number, chosen, why, variant, traced, [])
            buckets[key].params.append(p)
        return buckets.values()

    def _engine_of_group(self, group: dict[str, Any], variant: Variant) -> tuple[str, str, Traced | None]:
        """The engine for plain dense tensors of a group, why, and the graph it runs."""
        wanted, why = self.engine, f"engine={self.engine!r}"
        if group["foreach"] is not None:
            wanted, why = ("foreach" if group["foreach"] else "loop"), f"foreach={group['foreach']}"
        if wanted == "loop":
            return "loop", why, None
        for key in ("differentiable", "capturable"):
            if group[key]:
                if wanted == "foreach":
                    raise EngineError(f"{key}=True needs engine 'loop' (or 'auto'), not 'foreach'")
                return "loop", f"auto: {key}=True keeps scalars as tensors", None
        lengths = {h: len(v) if isinstance(v := group.get(h), (tuple, list)) else 0 for h in variant.hypers}
        traced = trace(variant, tuple(lengths.items()))
        if isinstance(traced, RuleError):
            if wanted != "auto":
                raise EngineError(f"engine {wanted!r} cannot run this rule: {traced}") from traced
            return "loop", f"auto: {traced}", None
        if wanted == "auto":
            why = "auto: no fused engine in this version" if group["fused"] else "auto"
        return "foreach", why, traced

    def _step_bucket(self, bucket: _Bucket, group: dict[str, Any]) -> None:
        variant = bucket.variant
        options = {h: group[h] for h in variant.hypers if h not in (FIRST, SHRINK)}
        if variant.decay == "decoupled":
            options[SHRINK] = 1 - group["lr"] * group["weight_decay"]
        as_tensors = group["capturable"] or group["differentiable"]
        options = {h: _as_scalars(value, as_tensors) for h, value in options.items()}
        first = [self._prepare_state(p, group, variant) for p in bucket.params]
        if bucket.traced is None:
            for p, is_first in zip(bucket.params, first, strict=True):
                self._step_one(variant, {**options, FIRST: float(is_first)}, p, as_tensors, group["differentiable"])
        else:
            self._step_together(bucket, bucket.traced, options, first)

    def _step_one(
        self, variant: Variant, options: dict[str, Any], p: Tensor, as_tensors: bool, differentiable: bool
    ) -> None:
        state = self.state.get(p, {})
        originals = self._tensors([p], variant)
        work = self._working(originals)
        scalars = {name: state[name] if as_tensors else float(state[name]) for name in variant.scalars}
        one = {role: tensors[0] for role, tensors in work.items()}
        states = {name: one[name] for name in variant.elementwise}
        for name, value in loop.step(
            variant, one["p"], one["g"], {**states, **scalars}, options, differentiable=differentiable
        ).items():
            if isinstance(value, Tensor):
                state[name].copy_(value)
            else:
                state[name].fill_(value)
        _write_back(work, originals)

    def _step_together(self, bucket: _Bucket, traced: Traced, options: dict[str, Any], first: list[bool]) -> None:
        variant, params = bucket.variant, bucket.params
        key = (bucket.group, params[0].device, params[0].dtype)
        column = self._columns.adopt(key, variant.scalars, [self.state.get(p, {}) for p in params])
        new_scalars: dict[str, list[float]] = {name: [0.0] * len(params) for name in variant.scalars}
        for row, members in column.rows(first).items():
            values = dict(zip((FIRST, *variant.scalars), row, strict=True))
            constants, new = traced.scalars({**options, **values})
            for name, value in new.items():
                for i in members:
                    new_scalars[name][i] = value
            chosen = [params[i] for i in members]
            for part in foreach.chunks(chosen):
                originals = self._tensors(chosen[part], variant)
                work = self._working(originals)
                foreach.step(traced, work, constants)
                if work is not originals:
                    _write_back(work, originals)
        column.write(new_scalars)

    def _tensors(self, params: list[Tensor], variant: Variant) -> dict[str, list[Tensor]]:
        """Parameters, gradients and element-wise states, by role."""
        states = [self.state.get(p, {}) for p in params]  # a rule without states leaves none behind, as in torch
        return {
            "p": params,
            "g": [cast(Tensor, p.grad) for p in params],
            **{name: [state[name] for state in states] for name in variant.elementwise},
        }

    def _working(self, originals: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The same in one real dtype, for the rule to compute on: views where possible, copies where dtypes differ."""
        p = originals["p"][0]
        dtype = self.state_dtype or (p.real.dtype if p.is_complex() else p.dtype)
        same = all(t.dtype is dtype for tensors in originals.values() for t in tensors)
        if same and not any(t.is_neg() for role in ("p", "g") for t in originals[role]):
            return originals
        return {role: [_as_real(t).to(dtype) for t in tensors] for role, tensors in originals.items()}

    # ------------------------------------------------------------------- state

    def _prepare_state(self, p: Tensor, group: dict[str, Any], variant: Variant) -> bool:
        """Make the states that are missing; True when an element-wise one was."""
        if not variant.present:
            return False
        state = self.state[p]
        fresh = False
        for declared in self.states:
            if declared.name in variant.present and state.get(declared.name) is None:
                value = group[declared.init] if isinstance(declared.init, str) else declared.init
                if declared.scalar:
                    device = p.device if group["capturable"] else "cpu"
                    state[declared.name] = torch.tensor(float(value), dtype=torch.float32, device=device)
                else:
                    state[declared.name] = torch.full_like(p, float(value), dtype=self._state_dtype_of(p))
                    fresh = True
        return fresh

    def _state_dtype_of(self, p: Tensor) -> torch.dtype:
        if self.state_dtype is None:
            return p.dtype
        return self.state_dtype.to_complex() if p.is_complex() else self.state_dtype

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of torch.optim's class of the same name.

        How to run (`foreach`, `fused`, `capturable`, `differentiable`) stays as it is; keys that an older state dict lacks
        take the defaults; `state_dtype` is kept.
        """
        execution = [{key: group[key] for key in EXECUTION_KEYS} for group in self.param_groups]
        loaded: dict[str, Any] = {}
        # As the last pre-hook and the first post-hook, so that the user's hooks see and change what really counts.
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        after = self.register_load_state_dict_post_hook(
            lambda optimizer: cast(RuleOptimizer, optimizer)._refine_loaded(loaded, execution), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _refine_loaded(self, loaded: dict[str, Any], execution: list[dict[str, Any]]) -> None:
        """Undo what torch's loading does to execution keys, scalar states and `state_dtype`."""
        for group, keys in zip(self.param_groups, execution, strict=True):
            group.update(keys)
        indices = [i for group in loaded["param_groups"] for i in group["params"]]
        owners = [(p, group) for group in self.param_groups for p in group["params"]]
        for i, (p, group) in zip(indices, owners, strict=True):
            saved = loaded["state"].get(i, {})
            for declared in self.states:
                value = saved.get(declared.name)
                if value is None:
                    continue
                if declared.scalar:  # old state dicts hold plain numbers; reading a scalar off the CPU would wait for it
                    device = p.device if group["capturable"] else torch.device("cpu")
                    value = torch.as_tensor(value, dtype=torch.float32, device=device).detach().clone()
                else:
                    value = value.to(p.device, self._state_dtype_of(p), copy=True)
                self.state[p][declared.name] = value

    def __getstate__(self) -> dict[str, Any]:
        kept = ("engine", "state_dtype", "_step_supports_amp_scaling")
        return super().__getstate__() | {key: self.__dict__[key] for key in kept if key in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("engine", "auto")
        self.__dict__.setdefault("state_dtype", None)
        self._columns = Columns()
        self._ran = []
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    # ------------------------------------------------------------------ report

    def engine_report(self) -> list[BucketReport]:
        """Which engine stepped each bucket in the last step, or before the first step will; and why."""
        ran = bool(self._ran)
        buckets = self._ran or [
            bucket
            for number, group in enumerate(self.param_groups)
            for bucket in self._buckets(number, group, group["params"])
        ]
        return [bucket.report(ran=ran) for bucket in buckets]


@functools.lru_cache(maxsize=1024)
def _signature_defaults(cls: type) -> Mapping[str, Any]:
    """The constructor's defaults: they show which hyperparameters are flags, tuples and numbers."""
    return {
        q.name: q.default
        for q in inspect.signature(cls).parameters.values()
        if q.default is not q.empty and q.default is not None and q.name not in ("engine", "state_dtype")
    }


def _tuples(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Options with lists, which is what YAML makes, as tuples where the constructor has tuples."""
    shapes = _signature_defaults(cls)
    return {
        key: tuple(value) if isinstance(value, list) and isinstance(shapes.get(key), tuple) else value
        for key, value in options.items()
    }


def _as_real(t: Tensor) -> Tensor:
    """A complex tensor as reals, conjugation and negation resolved; a view whenever there is neither."""
    t = t.resolve_conj().resolve_neg()
    return torch.view_as_real(t) if t.is_complex() else t


def _as_scalars(value: Any, as_tensors: bool) -> Any:
    """Hyperparameters as the rule gets them: 1-element tensors as floats or 0-dim tensors."""
    if isinstance(value, (tuple, list)):
        return tuple(_as_scalars(v, as_tensors) for v in value)
    if isinstance(value, Tensor):
        return value.reshape(()) if as_tensors else float(value.detach())
    return value


def _write_back(work: dict[str, list[Tensor]], originals: dict[str, list[Tensor]]) -> None:
    """Copy what the rule computed on a copy to where it belongs; views have written through."""
    for role, tensors in originals.items():
        if role != "g":
            for original, computed in zip(tensors, work[role], strict=True):
                if original.is_conj() or original.is_neg():  # its memory holds something else than its value
                    value = computed.to(original.real.dtype).contiguous()
                    original.copy_(torch.view_as_complex(value) if original.is_complex() else value)
                    continue
                target = _as_real(original)
                if computed is not target and computed.data_ptr() != target.data_ptr():
                    target.copy_(computed)
