"""`RuleOptimizer`: a `torch.optim.Optimizer` that steps an update rule.

What every algorithm shares is driven from here: parameter groups and their checks, state, buckets, engines, complex
parameters, AMP, state dicts. An algorithm adds a constructor, a declaration of its state and its rule.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from optplug.engines._torch_compat import disable_dynamo
from optplug.engines.report import BucketReport
from optplug.errors import HyperparameterError, RuleError, did_you_mean, listing
from optplug.optim import constructor, dispatch, hyperparameters, parameters, sparse
from optplug.optim.bucket_cache import CachedBuckets, roles_of, split_by_bucket
from optplug.optim.buckets import Bucket, BucketTensors, by_key, check_layout, split_sparse
from optplug.optim.buffers import Roles, misfit, overlapping
from optplug.optim.dispatch import Engine
from optplug.optim.packed_scalars import PackedScalarsCache
from optplug.optim.parameters import Params
from optplug.optim.ranges import Range
from optplug.optim.state import State, check_saved, dtype_of, prepare
from optplug.optim.strict_kwargs import CheckedKeywords, unexpected_keyword
from optplug.rules.trace import FIRST, SHRINK, RuleFunction, Traced, Variant, missing_hypers, signature_of


class RuleOptimizer(CheckedKeywords, torch.optim.Optimizer):
    """Steps the update rule of a subclass.

    Args:
        params: tensors, named parameters, or dicts that each describe a parameter group.
        defaults: the algorithm's hyperparameters and their values. A constructor that has the keywords below may hand
            over its `locals()`: they are taken from there.
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

    Subclasses declare `states` and a static `rule(p, g, *states, *, hypers, flags) -> (p, *states)`; if need be
    `ranges` of hyperparameters that others do not have, `capabilities`, and which optimizer is the `remedy` for
    gradients they refuse.
    """

    states: ClassVar[Sequence[State]] = ()
    cases: ClassVar[Sequence[dict[str, Any]]] = ({},)
    capabilities: ClassVar[frozenset[str]] = frozenset({"complex"})
    ranges: ClassVar[Sequence[Range]] = ()
    remedy: ClassVar[str] = ""
    rule: ClassVar[RuleFunction]

    def __init__(
        self,
        params: Params,
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
        **unknown: Any,
    ) -> None:
        given = constructor.handed_over(self, RuleOptimizer, defaults)
        options = {
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "engine": engine,
            "state_dtype": state_dtype,
        }
        for key in unknown:
            raise unexpected_keyword(type(self), key, list(dict.fromkeys([*given, *options])))
        usual = _keywords()
        options = {key: given.get(key, value) if value is usual[key] else value for key, value in options.items()}
        defaults = constructor.as_tuples(type(self), RuleOptimizer, {**given, **options})
        if "weight_decay" not in defaults:
            del defaults["decoupled_weight_decay"]
        self._check_declaration(defaults)
        self.engine = defaults.pop("engine")
        dispatch.check_engine(self.engine)
        self.state_dtype = dispatch.as_dtype(defaults.pop("state_dtype"))
        self._columns = PackedScalarsCache()
        self._bucket_cache: dict[int, CachedBuckets] = {}
        self._ran: list[BucketReport] = []
        # Hyperparameters are checked before parameters, as torch does.
        self._check_group(defaults, defaults)
        # In a group torch refuses a set, which has no order to go by.
        super().__init__([{"params": params}] if isinstance(params, set) else params, defaults)
        if defaults["fused"]:
            self._step_supports_amp_scaling = True

    # ------------------------------------------------------------------ checks

    @classmethod
    def _check_declaration(cls, defaults: Mapping[str, Any]) -> None:
        names = tuple(state.name for state in cls.states)
        if names != signature_of(cls.rule).states:
            raise RuleError(
                f"{cls.__name__} declares the states {listing(names)}, but its rule takes "
                f"{listing(signature_of(cls.rule).states)}: both must be the same, in the same order"
            )
        for name in names:
            if re.fullmatch(r"[pg]|[ct]\d+", name):
                raise RuleError(f"{cls.__name__}: a state may not be named {name!r}")
        wanted = {f"ranges: {r.name}": r.name for r in vars(cls).get("ranges", ())}
        wanted |= {f"when of state {s.name}": s.when for s in cls.states if s.when is not None}
        wanted |= {f"init of state {s.name}": s.init for s in cls.states if isinstance(s.init, str)}
        for where, name in wanted.items():
            if name not in defaults:
                known = [key for key in defaults if key not in _keywords()]
                raise RuleError(
                    f"{cls.__name__}: {where} names no hyperparameter {name!r}; it has "
                    f"{listing(known)}{did_you_mean(name, known)}"
                )

    @classmethod
    def _ranges(cls) -> list[Range]:
        """Those of all classes it descends from; its own go first."""
        return [r for base in reversed(cls.__mro__) for r in vars(base).get("ranges", ())]

    def check_options(self, options: dict[str, Any]) -> None:
        """A subclass's own checks on options that constrain each other; raise `HyperparameterError`."""

    def _check_group(self, group: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Check the options of a group, which override `defaults`."""
        owner = type(self).__name__
        hyperparameters.check(constructor.shapes(type(self), RuleOptimizer, defaults), group, owner, self._ranges())
        merged = {**defaults, **group}
        dispatch.check_options(owner, merged, self.engine)
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
            ParameterError: no parameters, duplicate or sparse ones, or complex ones for a rule that takes none.
        """
        if isinstance(param_group, dict):
            param_group = constructor.as_tuples(type(self), RuleOptimizer, param_group)
            param_group["params"] = parameters.of_group(
                param_group,
                len(self.param_groups),
                type(self).__name__,
                takes_complex="complex" in self.capabilities,
            )
            options = {k: v for k, v in param_group.items() if k not in hyperparameters.FOREIGN_KEYS}
            self._check_group(options, self.defaults)
            known = constructor.arguments(type(self), RuleOptimizer)
            for key, value in options.items():  # the framework's keywords, where the constructor does not take them
                if key in _keywords() and key not in known and value != self.defaults[key]:
                    raise HyperparameterError(f"{type(self).__name__} has no option {key!r}; it has {listing(known)}")
        super().add_param_group(param_group)
        self._ran = []

    # -------------------------------------------------------------------- step

    @disable_dynamo  # what it does depends on addresses, and its kernels are fused already
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called first, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            SparseGradientError: a gradient is sparse or dense, and this optimizer takes only the other kind.
            EngineError: the engine that was asked for cannot serve a parameter.
            RecordingError: `capturable` for a parameter on a device that captures no graphs.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return loss
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            batches: list[BucketTensors] = []
            for number, group in enumerate(self.param_groups):  # what is refused is refused before anything moves
                params = group["params"]
                grads = [p.grad for p in params]
                held = [g for g in grads if g is not None]
                if len(held) < len(grads):
                    params, grads = [p for p in params if p.grad is not None], held
                if params:
                    batches += self._batches(number, group, params, grads)
            for batch in batches:
                self._unscale(batch.roles["g"])
                self._step_batch(batch, self.param_groups[batch.bucket.group])
        self._ran = [batch.bucket.report(ran=True) for batch in batches]
        return loss

    def _unscale(self, grads: list[Tensor]) -> None:
        """Under a GradScaler that leaves it to us (fused): in place, as torch does."""
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            for g in grads:
                g.div_(grad_scale.to(g.device))

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

    def _batches(
        self, number: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[BucketTensors]:
        """The parameters of a group, together where they share engine, device, dtypes and layout."""
        variant = self._variant(group)
        engine, reason, traced = dispatch.choose(self.engine, group, variant)
        kept = self._kept(params)
        key = (engine, reason, variant, traced, self.state_dtype)
        plan = self._bucket_cache.get(number)
        batches = plan and plan.batches(key, params, grads, kept)
        if batches:
            return batches
        self._bucket_cache.pop(number, None)
        try:
            roles, complete = roles_of(variant.elementwise, params, grads, kept), True
        except (KeyError, TypeError):  # states are missing
            roles, complete = {"p": params, "g": grads}, False
        found = list(self._buckets(number, group, roles, engine, reason, variant, traced))
        if complete and engine != "loop" and CachedBuckets.can_be_for(roles):
            read = dispatch.reader(found)
            self._bucket_cache[number] = CachedBuckets(key, found, roles, read)
            self._columns.read = read or self._columns.read
        return split_by_bucket(found, roles)

    def _kept(self, params: list[Tensor]) -> list[Any]:
        """What is kept for each parameter, None for one without states."""
        if len(self.state) == len(params) and all(map(operator.is_, self.state, params)):  # hashing costs more
            return list(self.state.values())
        return list(map(self.state.get, params))

    def _buckets(
        self,
        number: int,
        group: dict[str, Any],
        roles: Roles,
        engine: str,
        reason: str,
        variant: Variant,
        traced: Traced | None,
    ) -> Iterator[Bucket]:
        """The buckets of a group, from scratch."""
        forced = self.engine != "auto" or group["foreach"] is not None
        present = self._present(group)
        sparse_states = [state.name for state in present if state.sparse]
        params, grads = roles["p"], roles["g"]
        facts: list[tuple[Any, ...]] = [()] * len(params)
        if engine != "loop":
            shared = overlapping(params)
            facts = [
                (i in shared, *self._memory(present, p, g, engine))
                for i, (p, g) in enumerate(zip(params, grads, strict=True))
            ]
        for kind, members in by_key(params, grads, facts).items():
            if group["capturable"]:
                dispatch.check_capturable(params[members[0]])
            elements = sum(params[i].numel() for i in members)
            suited, why = dispatch.settle(engine, reason, kind, forced)
            graph = traced if suited != "loop" else None
            dtypes = (kind.p_dtype, kind.g_dtype, *kind.s_dtypes)
            moved = dispatch.bytes_per_element(suited, graph, dtypes)
            bucket = Bucket(number, kind, suited, why, variant, graph, members, elements, moved)
            if params[members[0]].grad is not None:
                check_layout(bucket, type(self).__name__, self.capabilities, self.remedy)
            if kind.layout is torch.sparse_coo:
                yield from split_sparse(bucket, roles, sparse_states, self.state)
            else:
                yield bucket

    def _memory(
        self, present: Sequence[State], p: Tensor, g: Tensor, engine: str
    ) -> tuple[str | None, tuple[torch.dtype, ...]]:
        """Why a kernel cannot work in place, and the dtypes of the element-wise states."""
        kept = self.state.get(p) or {}
        found = {state: kept.get(state.name) for state in present if not state.scalar}
        dtypes = tuple(dtype_of(p, self.state_dtype) if t is None else t.dtype for t in found.values())
        if engine != "numba":
            return None, dtypes
        if g.layout is torch.sparse_coo:
            for state in found:
                if state.sparse:
                    return f"its gradient is sparse and so is its {state.name}", dtypes
        return misfit(p, g, [t for t in found.values() if t is not None]), dtypes

    def _step_batch(self, batch: BucketTensors, group: dict[str, Any]) -> None:
        bucket, roles, kept, places, values = batch
        variant, params = bucket.variant, roles["p"]
        options = {h: group[h] for h in variant.hypers if h not in (FIRST, SHRINK)}
        if variant.decay == "decoupled":
            options[SHRINK] = 1 - group["lr"] * group["weight_decay"]
        as_tensors = group["capturable"] or group["differentiable"]
        options = {h: _as_scalars(value, as_tensors) for h, value in options.items()}
        first = None
        present = self._present(group)
        if kept is None and present:
            kept = [self.state[p] for p in params]
            first = [
                prepare(present, state, p, g, group, self.state_dtype)
                for state, p, g in zip(kept, params, roles["g"], strict=True)
            ]
            roles = roles_of(variant.elementwise, params, roles["g"], kept)
        elif not present:  # a rule without states leaves none behind, as in torch
            kept, first = [{} for _ in params], [True] * len(params)
        assert kept is not None
        if bucket.traced is not None:
            if values is None:
                values = {name: [state[name] for state in kept] for name in variant.scalars}
            column = self._columns.adopt((bucket.group, bucket.key), values, kept)
            scalars = dispatch.scalars_of(bucket.traced, options, column, first)
            if bucket.engine == "numba":
                dispatch.with_numba(bucket, bucket.traced, roles, scalars, places)
            else:
                dispatch.with_foreach(bucket.traced, bucket.key, roles, scalars, self.state_dtype)
            for _, new, members in scalars:  # not before: a step that failed is none
                column.write(new, members)
            return
        for i, state in enumerate(kept):
            one = {role: tensors[i : i + 1] for role, tensors in roles.items()}
            with sparse.named(one, bucket.key) as dense:
                dispatch.with_loop(
                    variant,
                    {**options, FIRST: float(first is not None and first[i])},
                    dense,
                    state,
                    self.state_dtype,
                    as_tensors=as_tensors,
                    differentiable=group["differentiable"],
                )

    # ------------------------------------------------------------------- states

    def share_memory(self) -> None:
        """Move every element-wise state to shared memory, for processes that train the same parameters (Hogwild).

        States of parameters that have none yet are made, with their first values.

        Raises:
            RuleError: the rule's first step is another one, and there has been none.
        """
        for group in self.param_groups:
            present = self._present(group)
            if (
                present
                and FIRST in signature_of(self.rule).hypers
                and not all(self.state.get(p) for p in group["params"])
            ):
                raise RuleError(
                    f"{type(self).__name__}: the first step makes the states; share_memory() comes after it"
                )
            for p in group["params"] if present else ():
                prepare(present, self.state[p], p, p, group, self.state_dtype)
                for state in present:
                    if not state.scalar:
                        self.state[p][state.name].share_memory_()

    # ------------------------------------------------------------- state dicts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of torch.optim's class of the same name.

        How to run (`foreach`, `fused`, `capturable`, `differentiable`) stays as it is; keys that an older state dict
        lacks take the defaults; `state_dtype` is kept.
        """
        how_to_run = [{key: group[key] for key in dispatch.ENGINE_KEYS} for group in self.param_groups]
        loaded: dict[str, Any] = {}
        # As the last pre-hook and the first post-hook, so that the user's hooks see and change what really counts.
        before = self.register_load_state_dict_pre_hook(
            lambda optimizer, final: loaded.update(cast(RuleOptimizer, optimizer)._checked(final))
        )
        after = self.register_load_state_dict_post_hook(
            lambda optimizer: cast(RuleOptimizer, optimizer)._refine_loaded(loaded, how_to_run), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Refuse the state of another optimizer, and values that no group can have; unknown keys are kept."""
        params = [p for group in self.param_groups for p in group["params"]]
        check_saved(state_dict, type(self).__name__, self.states, params)
        kinds = constructor.shapes(type(self), RuleOptimizer, self.defaults)
        for number, group in enumerate(state_dict["param_groups"]):
            known = {k: v for k, v in group.items() if k in self.defaults and k not in dispatch.ENGINE_KEYS}
            # Not against ranges: schedules may have left them, and a run must find back into its own checkpoint.
            hyperparameters.check(kinds, known, f"{type(self).__name__}, group {number} of the state dict", None)
        return state_dict

    def _refine_loaded(self, loaded: dict[str, Any], how_to_run: list[dict[str, Any]]) -> None:
        """Undo what torch's loading does to execution keys and states."""
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
        self._columns = PackedScalarsCache()
        self._bucket_cache = {}
        self._ran = []
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    # ------------------------------------------------------------------ report

    def engine_report(self) -> list[BucketReport]:
        """Which engine stepped each bucket in the last step, or before the first step will; and why."""
        if self._ran:
            return list(self._ran)
        reports = []
        for number, group in enumerate(self.param_groups):
            grads = [
                p if p.grad is None else p.grad for p in group["params"]
            ]  # before the first backward there are none
            reports += [b.bucket.report(ran=False) for b in self._batches(number, group, group["params"], grads)]
        return reports


def _keywords() -> dict[str, Any]:
    """The framework's own keywords and their defaults."""
    return RuleOptimizer.__init__.__kwdefaults__ or {}


def _as_scalars(value: Any, as_tensors: bool) -> Any:
    """Hyperparameters as the rule gets them: 1-element tensors as floats or 0-dim tensors."""
    if isinstance(value, (tuple, list)):
        return tuple(_as_scalars(v, as_tensors) for v in value)
    if isinstance(value, Tensor):
        return value.reshape(()) if as_tensors else float(value.detach())
    return value
