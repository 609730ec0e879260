"""`RuleOptimizer`: a `torch.optim.Optimizer` that steps an update rule.

What every algorithm shares is driven from here: parameter groups and their checks, state, buckets, engines, complex
parameters, AMP, state dicts. An algorithm adds a constructor, a declaration of its state and its rule.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from optplug.engines import foreach, loop
from optplug.engines.report import BucketReport
from optplug.errors import EngineError, HyperparameterError, RuleError, SparseGradientError, listing
from optplug.rules import execution, hypers
from optplug.rules.buffers import PLAIN, Overlaps, Roles, working, write_back
from optplug.rules.columns import Column, Columns
from optplug.rules.execution import Engine
from optplug.rules.state import State, prepare
from optplug.rules.trace import FIRST, SHRINK, Rule, Traced, Variant, missing_hypers, signature_of


@dataclass
class _Bucket:
    """Parameters of one group that one engine steps together; `traced` is None for the loop."""

    group: int
    engine: str
    reason: str
    variant: Variant
    traced: Traced | None
    params: list[Tensor]
    grads: list[Tensor]

    def report(self, *, ran: bool) -> BucketReport:
        p, elements = self.params[0], sum(map(Tensor.numel, self.params))
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
            the rule then computes in the wider of the two dtypes. None: the parameter's dtype.

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
            **hypers.as_tuples(type(self), defaults),
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        if "weight_decay" in defaults:
            defaults["decoupled_weight_decay"] = decoupled_weight_decay
        execution.check_engine(engine)
        self.engine = engine
        self.state_dtype = execution.as_dtype(state_dtype)
        self._columns = Columns()
        self._overlaps = Overlaps()
        self._ran: list[BucketReport] = []
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
        owner, declared = type(self).__name__, hypers.declared(type(self))
        hypers.check({**defaults, **declared}, group, owner)
        merged = {**defaults, **group}
        execution.check_options(owner, merged, self.engine, has_capturable="capturable" in declared)
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
            param_group = hypers.as_tuples(type(self), param_group)
            options = {k: v for k, v in param_group.items() if k not in hypers.FOREIGN_KEYS}
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
        ran: list[BucketReport] = []  # no tensors: gradients must be free to go
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for number, group in enumerate(self.param_groups):
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    self._unscale(params)
                    for bucket in list(self._buckets(number, group, params)):  # refuse before anything moves
                        self._step_bucket(bucket, group)
                        ran.append(bucket.report(ran=True))
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
        present = self._present(group)
        return Variant(
            rule=rule,
            flags=tuple((flag, bool(group.get(flag))) for flag in signature.flags),
            present=tuple(state.name for state in present),
            scalars=tuple(state.name for state in present if state.scalar),
            maximize=group["maximize"],
            decay="none" if not decays else "decoupled" if group.get("decoupled_weight_decay") else "coupled",
        )

    def _present(self, group: dict[str, Any]) -> list[State]:
        return [state for state in self.states if state.exists(group)]

    def _buckets(self, number: int, group: dict[str, Any], params: Sequence[Tensor]) -> Iterable[_Bucket]:
        """The parameters of a group, together where they share engine, device and dtypes."""
        variant = self._variant(group)
        engine, reason, traced = execution.choose(self.engine, group, variant)
        forced = self.engine != "auto" or group["foreach"] is not None
        shared = self._overlaps.among(number, params) if engine != "loop" else frozenset()
        grads = [p if p.grad is None else p.grad for p in params]  # before the first backward a report has none
        for (p_type, _, _, g_type, _, layout, overlaps), members in _by_kind(params, grads, shared).items():
            if layout is not torch.strided:
                raise SparseGradientError(
                    f"{type(self).__name__} does not support sparse gradients{self.sparse_remedy}"
                )
            obstacle = None
            if engine != "loop" and not (p_type in PLAIN and g_type in PLAIN):
                obstacle = f"{(g_type if p_type in PLAIN else p_type).__name__} is no plain tensor"
            elif overlaps:
                obstacle = "it shares memory with another parameter, or with itself"
            if obstacle is not None and forced:
                raise EngineError(f"engine {engine!r} cannot take a parameter: {obstacle}; use engine='auto'")
            some_p, some_g = [params[i] for i in members], [grads[i] for i in members]
            if obstacle is None:
                yield _Bucket(number, engine, reason, variant, traced, some_p, some_g)
            else:
                yield _Bucket(number, "loop", f"auto: {obstacle}", variant, None, some_p, some_g)

    def _step_bucket(self, bucket: _Bucket, group: dict[str, Any]) -> None:
        variant, present = bucket.variant, self._present(group)
        options = {h: group[h] for h in variant.hypers if h not in (FIRST, SHRINK)}
        if variant.decay == "decoupled":
            options[SHRINK] = 1 - group["lr"] * group["weight_decay"]
        as_tensors = group["capturable"] or group["differentiable"]
        options = {h: _as_scalars(value, as_tensors) for h, value in options.items()}
        if present:
            states = [self.state[p] for p in bucket.params]
            first = [
                prepare(present, s, p, group, self.state_dtype) for s, p in zip(states, bucket.params, strict=True)
            ]
        else:  # a rule without states leaves none behind, as in torch
            states, first = [{} for _ in bucket.params], [True] * len(bucket.params)
        roles: Roles = {"p": bucket.params, "g": bucket.grads}
        roles.update((name, [state[name] for state in states]) for name in variant.elementwise)
        if bucket.traced is not None:
            key = (bucket.group, bucket.params[0].device, bucket.params[0].dtype, bucket.grads[0].dtype)
            column = self._columns.adopt(key, variant.scalars, states)
            self._step_together(bucket.traced, options, roles, column, first)
            return
        for i, state in enumerate(states):
            one = {role: tensors[i : i + 1] for role, tensors in roles.items()}
            self._step_one(variant, {**options, FIRST: float(first[i])}, one, state, group)

    def _step_one(
        self, variant: Variant, options: dict[str, Any], roles: Roles, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One parameter with engine `loop`."""
        differentiable = group["differentiable"]
        as_tensors = group["capturable"] or differentiable
        work = working(roles, self.state_dtype)
        inputs: dict[str, Any] = {role: tensors[0] for role, tensors in work.items()}
        inputs.update((name, state[name] if as_tensors else float(state[name])) for name in variant.scalars)
        p, g = inputs.pop("p"), inputs.pop("g")
        for name, value in loop.step(variant, p, g, inputs, options, differentiable=differentiable).items():
            if isinstance(value, Tensor):
                state[name].copy_(value)
            else:
                state[name].fill_(value)
        write_back(work, roles)

    def _step_together(
        self, traced: Traced, options: dict[str, Any], roles: Roles, column: Column, first: list[bool]
    ) -> None:
        """Many parameters with engine `foreach`, those with equal scalars at once."""
        rows = column.rows(first)
        for row, members in rows.items():
            constants, new = traced.scalars({**options, **dict(zip((FIRST, *column.names), row, strict=True))})
            column.write(new, members)
            if len(rows) > 1:
                chosen = {role: [tensors[i] for i in members] for role, tensors in roles.items()}
            else:
                chosen = roles
            for part in foreach.chunks(traced, chosen["p"]):
                originals = {role: tensors[part] for role, tensors in chosen.items()}
                work = working(originals, self.state_dtype)
                foreach.step(traced, work, constants)
                if work is not originals:
                    write_back(work, originals)

    # ------------------------------------------------------------- state dicts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of torch.optim's class of the same name.

        How to run (`foreach`, `fused`, `capturable`, `differentiable`) stays as it is; keys that an older state dict
        lacks take the defaults; `state_dtype` is kept.
        """
        how_to_run = [{key: group[key] for key in execution.KEYS} for group in self.param_groups]
        loaded: dict[str, Any] = {}
        # As the last pre-hook and the first post-hook, so that the user's hooks see and change what really counts.
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        after = self.register_load_state_dict_post_hook(
            lambda optimizer: cast(RuleOptimizer, optimizer)._refine_loaded(loaded, how_to_run), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _refine_loaded(self, loaded: dict[str, Any], how_to_run: list[dict[str, Any]]) -> None:
        """Undo what torch's loading does to execution keys and states."""
        kept = {state.name for state in self.states}
        found = {name for saved in loaded["state"].values() if isinstance(saved, dict) for name in saved}
        if found and not found & kept:
            raise HyperparameterError(
                f"this is the state of another optimizer: it has {listing(sorted(found))}; "
                f"{type(self).__name__} keeps {listing(sorted(kept))}"
            )
        for group, keys in zip(self.param_groups, how_to_run, strict=True):
            group.update(keys)
        indices = [i for group in loaded["param_groups"] for i in group["params"]]
        owners = [(p, group) for group in self.param_groups for p in group["params"]]
        for i, (p, group) in zip(indices, owners, strict=True):
            saved = loaded["state"].get(i, {})
            for state in self.states:
                if saved.get(state.name) is not None:
                    self.state[p][state.name] = state.loaded(saved[state.name], p, group, self.state_dtype)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("engine", "state_dtype", "_step_supports_amp_scaling")
        return super().__getstate__() | {key: self.__dict__[key] for key in kept if key in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("engine", "auto")
        self.__dict__.setdefault("state_dtype", None)
        self._columns = Columns()
        self._overlaps = Overlaps()
        self._ran = []
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    # ------------------------------------------------------------------ report

    def engine_report(self) -> list[BucketReport]:
        """Which engine stepped each bucket in the last step, or before the first step will; and why."""
        return list(self._ran) or [
            bucket.report(ran=False)
            for number, group in enumerate(self.param_groups)
            for bucket in self._buckets(number, group, group["params"])
        ]


_ABOUT_P = operator.attrgetter("dtype", "device")
_ABOUT_G = operator.attrgetter("dtype", "layout")


def _by_kind(
    params: Sequence[Tensor], grads: Sequence[Tensor], shared: frozenset[int]
) -> dict[tuple[Any, ...], Sequence[int]]:
    """Indices by type, dtype and device of the parameter, the gradient's type, dtype and layout, and shared memory."""
    kinds = [
        (p_type, *about_p, g_type, *about_g, False)
        for p_type, about_p, g_type, about_g in zip(
            map(type, params), map(_ABOUT_P, params), map(type, grads), map(_ABOUT_G, grads), strict=True
        )
    ]
    if not shared and len(set(kinds)) == 1:
        return {kinds[0]: range(len(kinds))}
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault((*kind[:-1], i in shared), []).append(i)
    return found  # type: ignore[return-value]


def _as_scalars(value: Any, as_tensors: bool) -> Any:
    """Hyperparameters as the rule gets them: 1-element tensors as floats or 0-dim tensors."""
    if isinstance(value, (tuple, list)):
        return tuple(_as_scalars(v, as_tensors) for v in value)
    if isinstance(value, Tensor):
        return value.reshape(()) if as_tensors else float(value.detach())
    return value
