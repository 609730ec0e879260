"""`RuleOptimizer`: a `torch.optim.Optimizer` that steps an update rule.

It implements everything that algorithms share: parameter groups and their checks, state, buckets, engines, complex
parameters, AMP and state dicts. An algorithm adds a constructor, a declaration of its states, and its rule.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from typing_extensions import Unpack

from optplug.engines._torch_compat import check_graph_capture, disable_dynamo
from optplug.engines.arena import Arena
from optplug.engines.buffers import indices_sharing_memory, not_in_place_reason
from optplug.engines.protocol import Bucket, GroupSettings, SuspendedStep
from optplug.engines.report import BucketReport
from optplug.engines.scalars import PackedScalarsCache, StepScalars
from optplug.errors import (
    ErrorCollector,
    HyperparameterError,
    ParameterError,
    RuleError,
    SparseGradientError,
    listing,
    suggest,
)
from optplug.optim import dispatch
from optplug.optim.bucket_cache import CachedBuckets, gather_roles
from optplug.optim.buckets import PendingStep, ReadyStep, check_grad_layout, group_by_key, split_sparse_bucket
from optplug.optim.hyperparameters import (
    check_hyperparameters,
    declared_defaults,
    group_options,
    lists_to_tuples,
    reference_values,
)
from optplug.optim.options import OPTION_DEFAULTS, RuleOptions, show_options
from optplug.optim.parameters import Params, check_group_params
from optplug.optim.ranges import Range, above_zero
from optplug.optim.shared_reductions import run_together
from optplug.optim.state import (
    State,
    check_saved_states,
    elementwise_dtype,
    init_missing_states,
    is_matrix,
    matrix_not_in_place_reason,
)
from optplug.optim.strict_kwargs import StrictKwargs, check_keywords
from optplug.optim.wrappers import constructing_optimizers, inherited_keys, is_group_of
from optplug.rules.modifiers import CLIPS, MODIFIER_KEYS
from optplug.rules.trace import (
    DECAY_FACTOR,
    FIRST_STEP,
    RuleFunction,
    RuleVariant,
    TracedRule,
    missing_hyperparameter_message,
    rule_signature,
)


class RuleOptimizer(StrictKwargs, torch.optim.Optimizer):
    """Steps the update rule of a subclass.

    Subclasses declare `states` and a static method `rule(p, g, *states, *, hyperparameters, flags) -> (p, *states)`.
    They can also declare `ranges` of their own hyperparameters, `capabilities`, and `remedy`: the end of the message
    for gradients that they do not support.

    Args:
        params: tensors, named parameters, or dicts that each describe a parameter group.
        defaults: the algorithm's hyperparameters and their values. They can include defaults of the keywords below.
        decoupled_weight_decay: for algorithms with `weight_decay`: whether to shrink the parameter by
            lr * weight_decay per step instead of adding weight_decay * p to the gradient. Default: False.
        maximize: whether to maximize the objective instead of minimizing it. Default: False.
        cautious: whether to omit the update of the elements where it and the gradient have the same sign, or one of
            them is 0: there it does not descend. States are updated. Default: False.
        clip_value: limit each element of the gradient to the range from -clip_value to clip_value. Default: None.
        clip_norm: scale the gradient of each parameter to the norm clip_norm if its norm is larger. Default: None.
        agc: adaptive gradient clipping: scale the gradient of each parameter if its norm is larger than agc times the
            norm of the parameter (at least 1e-3). A common value is 0.01. Default: None.
        foreach: torch's form of `engine="foreach"` (True) and `engine="loop"` (False). Default: None, the argument
            `engine` selects the engine.
        capturable: whether to keep scalar states on the parameter's device, as torch does for graph capture.
            Default: False.
        differentiable: whether autograd records the step (engine `loop`). Default: False.
        fused: whether `step` itself unscales gradients under a GradScaler, as torch's fused optimizers do.
            Default: None, which means no.
        engine: name of the engine. Default: `"auto"`, the fastest engine that supports the parameters.
            `engine_report` returns which one was used.
        state_dtype: dtype of the element-wise states, for example `torch.float32` (`float32` in YAML) for bfloat16
            parameters. The rule then computes in the wider of the two dtypes. Default: None, the parameter's dtype.

    Raises:
        HyperparameterError: a hyperparameter is out of range or unknown.
        HyperparameterTypeError: a hyperparameter has the wrong type.
        EngineError: `engine`, `foreach` and `fused` contradict each other, or the engine is not available.

    An exception has the class of the first error. Its attribute `errors` has an error for each wrong argument.
    """

    states: ClassVar[Sequence[State]] = ()
    cases: ClassVar[Sequence[dict[str, Any]]] = ({},)
    capabilities: ClassVar[frozenset[str]] = frozenset({"complex"})
    ranges: ClassVar[Sequence[Range]] = tuple(above_zero(name) for name in CLIPS)
    remedy: ClassVar[str] = ""
    rule: ClassVar[RuleFunction]

    @show_options
    def __init__(self, params: Params, defaults: Mapping[str, Any], **options: Unpack[RuleOptions]) -> None:
        if any(value is self for value in defaults.values()):
            name = type(self).__name__
            raise RuleError(f"{name} passes its locals(): pass a dict of its hyperparameters, and **options")
        if not options.keys() <= OPTION_DEFAULTS.keys():
            check_keywords(type(self), options, [*defaults, *OPTION_DEFAULTS])
        # The algorithm's hyperparameters come first, because they are checked in this order.
        defaults = {**defaults, **OPTION_DEFAULTS, **defaults, **options}
        if "weight_decay" not in defaults:
            del defaults["decoupled_weight_decay"]
        self._check_declaration(defaults)
        engine, state_dtype = defaults.pop("engine"), defaults.pop("state_dtype")
        defaults = lists_to_tuples(reference_values(type(self), defaults), defaults)
        collector = ErrorCollector()
        self.engine = "auto"
        with collector.collect():
            dispatch.check_engine(engine)
            self.engine = engine
        with collector.collect():
            self.state_dtype = dispatch.parse_state_dtype(state_dtype)
        with collector.collect():  # hyperparameters are checked before parameters, as in torch
            self._check_group(defaults, defaults)
        collector.raise_joined()
        self._packed_scalars = PackedScalarsCache()
        self._bucket_cache: dict[tuple[int, bool], CachedBuckets] = {}
        self._arena = Arena()
        self._last_reports: list[BucketReport] = []
        # torch raises for a set, which has no order, only inside a group.
        super().__init__([{"params": params}] if isinstance(params, set) else params, defaults)
        if defaults["fused"]:
            self._step_supports_amp_scaling = True

    # ------------------------------------------------------------------ checks

    @classmethod
    def _check_declaration(cls, defaults: Mapping[str, Any]) -> None:
        """Check that the declared states fit the rule, and that declarations name existing hyperparameters."""
        names = tuple(state.name for state in cls.states)
        if names != rule_signature(cls.rule).states:
            raise RuleError(
                f"{cls.__name__} declares the states {listing(names)}, but its rule takes "
                f"{listing(rule_signature(cls.rule).states)}: both must be the same, in the same order"
            )
        for name in names:
            if re.fullmatch(r"[pg]|[clrt]\d+|_.*|inf|nan", name):
                raise RuleError(f"{cls.__name__}: a state may not be named {name!r}")
        for state in cls.states:
            if state.shared and state.name in (*defaults, *OPTION_DEFAULTS, "params", "name", "initial_lr"):
                raise RuleError(f"{cls.__name__}: parameter groups have another value named {state.name!r}")
        named = {f"ranges: {r.name}": r.name for r in vars(cls).get("ranges", ())}
        named |= {f"when of state {s.name}": s.when for s in cls.states if s.when is not None}
        named |= {f"init of state {s.name}": s.init for s in cls.states if isinstance(s.init, str) and s.init != "p"}
        unsupported = {"complex": "complex parameters", "sparse": "sparse gradients"}
        uses = [s for s in cls.states if not s.scalar and not s.is_elementwise]
        used = "matrix functions" if any(s.shape for s in uses) else "rows and columns"
        for capability in unsupported.keys() & cls.capabilities if uses else ():
            raise RuleError(
                f"{cls.__name__}: a rule that uses {used} does not support {unsupported[capability]}; "
                f"declare capabilities without {capability!r}"
            )
        for declaration, name in named.items():
            if name not in defaults:
                known = [key for key in defaults if key not in OPTION_DEFAULTS]
                raise RuleError(
                    f"{cls.__name__}: {declaration} names the unknown hyperparameter {name!r}{suggest(name, known)}"
                )

    @classmethod
    def _ranges(cls) -> list[Range]:
        """Return the ranges of all classes in the ancestry; later ones override earlier ones of the same name."""
        return [r for base in reversed(cls.__mro__) for r in vars(base).get("ranges", ())]

    def check_options(self, options: dict[str, Any]) -> None:
        """Check options that constrain each other. Subclasses override this and raise `HyperparameterError`.

        It is called if each option by itself is valid. `argument` of the error is the option at fault.
        """

    def resolve_hyperparameters(self, group: Mapping[str, Any], dtype: torch.dtype) -> Mapping[str, Any]:
        """Return the hyperparameters that the rule receives. Subclasses override this if they depend on the dtype.

        Values can be replaced and numbers can be added. A tuple must keep its length, and a number must stay a number.

        Args:
            group: the parameter group; must not be modified.
            dtype: the dtype of the parameters.
        """
        return group

    def _check_group(self, group: dict[str, Any], defaults: dict[str, Any]) -> None:
        """Check the options of a group, which override `defaults`, and raise all errors together."""
        known = declared_defaults(type(self))
        # `defaults` also has options that the constructor lacks. A group may repeat them, as a copy of a group does.
        references = {
            key: reference
            for key, reference in reference_values(type(self), defaults).items()
            if key in known or key not in OPTION_DEFAULTS or group.get(key, defaults[key]) is defaults[key]
        }
        check_hyperparameters(references, group, type(self).__name__, self._ranges())
        merged = {**defaults, **group}
        collector = ErrorCollector()
        with collector.collect():
            dispatch.check_engine_options(merged, self.engine)
        resolved = self.resolve_hyperparameters(merged, torch.get_default_dtype())
        variant = self._variant(merged)
        message = missing_hyperparameter_message(variant, list(resolved))
        if message:
            raise RuleError(message)
        if "agc" in variant.clips and "sparse_only" in self.capabilities:
            message = f"{type(self).__name__} takes sparse gradients only, which agc does not support; use clip_norm"
            collector.add(HyperparameterError(message, argument="agc"))
        with collector.collect():
            self.check_options(merged)
        for error in collector.errors:
            error.is_contradiction = True
        collector.raise_joined()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Its options are checked like those of the constructor.

        A group of a wrapper, such as SAM, becomes a group of both optimizers: its dictionary is shared, as in torch,
        and the options of the wrapper in it are ignored.

        Args:
            param_group: `params`, options that override the defaults, optionally a `name`, and keys of your own.

        Raises:
            HyperparameterError: an option is out of range, or a key is a misspelled option.
            ParameterError: parameters are missing, duplicate or sparse, or complex and not supported.
        """
        if isinstance(param_group, dict):
            given, wrappers = param_group, constructing_optimizers(self)
            param_group = lists_to_tuples(reference_values(type(self), self.defaults), given)
            param_group["params"] = check_group_params(
                param_group,
                len(self.param_groups),
                type(self).__name__,
                takes_complex="complex" in self.capabilities,
                matrix_only="matrix_only" in self.capabilities,
            )
            ignored = inherited_keys(wrappers) - self.defaults.keys()
            options = group_options(param_group, self.defaults)
            self._check_group({key: value for key, value in options.items() if key not in ignored}, self.defaults)
            if is_group_of(wrappers, given):
                given.update(param_group)
                param_group = given
        super().add_param_group(param_group)
        self._add_shared_states()
        self._last_reports = []

    # -------------------------------------------------------------------- step

    @disable_dynamo  # a step depends on addresses, and its kernels are already fused
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called first, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            SparseGradientError: a gradient is sparse or dense, and this optimizer supports only the other layout.
            EngineError: the user requested an engine that cannot step a parameter; or `fused` is set for a parameter
                on a device that torch's fused optimizers do not support, such as meta.
            RecordingError: `capturable` is set for a parameter on a device that cannot capture graphs.
        """
        check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return loss
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            steps: list[ReadyStep | PendingStep] = []
            for index, group in enumerate(self.param_groups):  # errors are raised before any parameter changes
                params = group["params"]
                grads = [p.grad for p in params]
                not_none = [g for g in grads if g is not None]
                if len(not_none) < len(grads):
                    params, grads = [p for p in params if p.grad is not None], not_none
                for matrices, members, their_grads in self._split_matrices(params, grads):
                    steps += self._bucket_steps(index, group, members, their_grads, matrices=matrices)
            self._check_shared_reductions(steps)
            new_shared: dict[str, Any] = {}
            waiting: list[tuple[ReadyStep | PendingStep, StepScalars, SuspendedStep]] = []
            for step in steps:
                self._arena.reset()
                if (started := self._step_bucket(step, new_shared)) is not None:
                    waiting.append(started)
            run_together([(step.bucket.group, partial_steps) for step, _, partial_steps in waiting])
            for _, scalars, _ in waiting:
                scalars.store()
            self._store_shared(new_shared)
            self._after_step()
        self._last_reports = [step.bucket.report for step in steps]
        return loss

    def _check_shared_reductions(self, steps: Sequence[ReadyStep | PendingStep]) -> None:
        """Raise RuleError if the rule reduces over several parameters in some buckets more often than in others."""
        if len(steps) < 2 or all(step.bucket.traced and not step.bucket.traced.shared_reductions for step in steps):
            return
        graphs = [step.bucket.traced or dispatch.trace_or_none(step.bucket.settings) for step in steps]
        counts = {graph.shared_reductions for graph in graphs if graph is not None}
        if len(counts) > 1:
            raise RuleError(
                f"the rule of {type(self).__name__} reduces over several parameters {listing(sorted(counts))} times, "
                "depending on the group or the parameter: it must do so equally often for all of them"
            )

    def _split_matrices(
        self, params: list[Tensor], grads: list[Tensor]
    ) -> Iterator[tuple[bool, list[Tensor], list[Tensor]]]:
        """Split parameters into matrices (True) and others (False), if their states differ.

        Matrices are stepped first, also if they share memory with others.
        """
        if all(state.matrices is None for state in self.states):
            if params:
                yield False, params, grads
            return
        for matrices in (True, False):
            indices = [i for i, p in enumerate(params) if is_matrix(p) == matrices]
            if indices:
                yield matrices, [params[i] for i in indices], [grads[i] for i in indices]

    def _after_step(self) -> None:
        """Called at the end of a step that was not skipped. Subclasses override this to update their groups."""

    def _store_shared(self, values: Mapping[str, Any]) -> None:
        """Store the shared states in all groups, as floats, or as tensors where an option keeps scalars as tensors."""
        for group in self.param_groups:
            for name, value in values.items():
                if group["capturable"] and isinstance(group[name], Tensor):  # a captured graph updates this tensor
                    group[name].copy_(value)
                else:
                    as_tensor = group["capturable"] or group["differentiable"]
                    group[name] = value if as_tensor else float(value)

    def _unscale(self, grads: list[Tensor]) -> None:
        """Unscale gradients in place, as torch does, if a GradScaler leaves this to the step (fused)."""
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            for g in grads:
                g.div_(grad_scale.to(g.device))

    def _variant(self, group: dict[str, Any], *, matrices: bool = False) -> RuleVariant:
        """Return the rule with the static choices of a group, for matrices or other parameters."""
        rule = type(self).rule
        signature = rule_signature(rule)
        own = signature.hyperparameters + signature.flags  # a rule may implement a modifier itself
        decays = bool(group.get("weight_decay", 0)) and "weight_decay" not in own
        states = self._existing_states(group, matrices=matrices)
        return RuleVariant(
            rule=rule,
            flags=tuple([(flag, bool(group.get(flag))) for flag in signature.flags]),
            present_states=tuple([state.name for state in states]),
            scalar_states=tuple([state.name for state in states if state.scalar]),
            state_dims=tuple([(state.name, state.dim) for state in states if state.dim is not None]),
            whole_states=tuple([state.name for state in states if state.shape is not None]),
            shared_states=tuple([state.name for state in states if state.shared]),
            maximize=group["maximize"],
            clips=tuple([name for name in CLIPS if group.get(name) is not None and name not in own]),
            decay_kind="none" if not decays else "decoupled" if group.get("decoupled_weight_decay") else "coupled",
            cautious=bool(group.get("cautious")) and "cautious" not in own,
        )

    def _existing_states(self, group: dict[str, Any], *, matrices: bool) -> list[State]:
        """Return the declared states that exist under the options of a group, for matrices or other parameters."""
        return [state for state in self.states if state.exists(group, matrices=matrices)]

    def _own_states(self, group: dict[str, Any], *, matrices: bool) -> list[State]:
        """Return the existing states that each parameter has for itself."""
        return [state for state in self._existing_states(group, matrices=matrices) if not state.shared]

    def _bucket_steps(
        self, index: int, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *, matrices: bool
    ) -> Sequence[ReadyStep | PendingStep]:
        """Return the buckets of a group with their tensors, from the cache if it is valid.

        Args:
            index: index of the group.
            group: the parameter group.
            params: the parameters to step.
            grads: the gradient of each parameter.
            matrices: whether the parameters are matrices, if the states depend on it; else False.
        """
        variant = self._variant(group, matrices=matrices)
        settings = dispatch.group_settings(self.engine, group, variant, self.state_dtype, matrices=matrices)
        states = self._states_of(params)
        cached = self._bucket_cache.get((index, matrices))
        ready = cached and cached.lookup(settings, params, grads, states)
        if ready:
            return ready
        self._bucket_cache.pop((index, matrices), None)
        candidates = dispatch.find_candidates(settings)
        buckets = list(self._make_buckets(index, group, params, grads, candidates))
        if candidates.traced is not None:
            try:
                roles = gather_roles(settings.variant.array_states, params, grads, states)
            except (KeyError, TypeError):  # states are missing
                pass
            else:
                if CachedBuckets.can_cache(roles):
                    cached = self._bucket_cache[index, matrices] = CachedBuckets(settings, buckets, roles)
                    self._packed_scalars.read_addresses = cached.read_addresses or self._packed_scalars.read_addresses
        return [PendingStep(b, [params[i] for i in b.indices], [grads[i] for i in b.indices]) for b in buckets]

    def _states_of(self, params: list[Tensor]) -> list[Any]:
        """Return the state dict of each parameter; None for a parameter without state."""
        # Comparing identities is faster than hashing every parameter.
        if len(self.state) == len(params) and all(map(operator.is_, self.state, params)):
            return list(self.state.values())
        return list(map(self.state.get, params))

    def _make_buckets(
        self,
        index: int,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        candidates: dispatch.Candidates,
    ) -> Iterator[Bucket]:
        """Create the buckets of a group.

        Args:
            index: index of the group.
            group: the parameter group.
            params: the parameters to step.
            grads: the gradient of each parameter.
            candidates: the engines that can step the group.
        """
        states = self._own_states(group, matrices=candidates.settings.matrices)
        sparse_states = [state.name for state in states if state.sparse]
        key_fields: list[tuple[Any, ...]] = [()] * len(params)
        if candidates.traced is not None:
            sharing = indices_sharing_memory(params)
            in_place = any(engine.in_place for engine in candidates.engines)
            graph = candidates.traced
            key_fields = [
                (i in sharing, *self._state_key_fields(states, p, g, group, graph, in_place=in_place))
                for i, (p, g) in enumerate(zip(params, grads, strict=True))
            ]
        for key, indices in group_by_key(params, grads, key_fields).items():
            if group["capturable"]:
                dispatch.check_capturable(params[indices[0]])
            if group["fused"]:
                dispatch.check_fused(params[indices[0]])
            for i in indices:
                self._check_matrix_values(candidates, params[i], grads[i])
            engine, reason = dispatch.choose_engine(candidates, key)
            traced = candidates.traced if engine.runs_graph else None
            shapes = [params[i].shape for i in indices]
            lengths = [shape.numel() for shape in shapes]
            bucket = Bucket(index, key, candidates.settings, engine, reason, traced, indices, lengths, shapes)
            if params[indices[0]].grad is not None:
                check_grad_layout(bucket, type(self).__name__, self.capabilities, self.remedy)
            if key.grad_layout is torch.sparse_coo:
                yield from split_sparse_bucket(bucket, params, grads, sparse_states, self.state)
            else:
                yield bucket

    def _check_matrix_values(self, candidates: dispatch.Candidates, p: Tensor, g: Tensor) -> None:
        """Raise an error if the rule uses rows and columns or matrix functions, and a parameter does not have them."""
        if not (p.is_complex() or g.layout is not torch.strided or not is_matrix(p)):
            return
        traced = candidates.traced or dispatch.trace_or_none(candidates.settings)
        if traced is None or not (traced.needs_matrices or traced.matrix_functions):
            return
        name = type(self).__name__
        used = "matrix functions" if traced.matrix_functions else "rows and columns of matrices"
        if p.is_complex():
            raise ParameterError(f"{name} uses {used}: it does not support complex parameters")
        if g.layout is not torch.strided:
            if "sparse" not in self.capabilities:
                return  # `check_grad_layout` refuses it
            raise SparseGradientError(f"{name} uses {used}: it does not support sparse gradients")
        if traced.needs_matrices:
            raise ParameterError(f"{name} uses rows and columns: a parameter of shape {tuple(p.shape)} is not a matrix")

    def _state_key_fields(
        self,
        states: Sequence[State],
        p: Tensor,
        g: Tensor,
        group: dict[str, Any],
        traced: TracedRule,
        *,
        in_place: bool,
    ) -> tuple[str | None, tuple[torch.dtype, ...]]:
        """Return the fields `not_in_place_reason` and `state_dtypes` of a parameter's bucket key.

        Args:
            states: the states that the parameter has.
            p: the parameter.
            g: its gradient.
            group: its parameter group.
            traced: the graph of the rule.
            in_place: whether an engine in question needs to know whether it can step the parameter in place.
        """
        param_state = self.state.get(p) or {}
        values = {state: param_state.get(state.name) for state in states if not state.scalar}
        dtypes = tuple(elementwise_dtype(p, self.state_dtype) if t is None else t.dtype for t in values.values())
        if not in_place:
            return None, dtypes
        if g.layout is torch.sparse_coo:
            for state in values:
                if state.sparse:
                    return f"its gradient is sparse and so is its {state.name}", dtypes
        found = {state: t for state, t in values.items() if t is not None}
        reason = None
        if traced.uses_dims or traced.matrix_functions:
            reason = matrix_not_in_place_reason(p, g, found, group, uses_dims=traced.uses_dims)
        return reason or not_in_place_reason(p, g, [t for state, t in found.items() if state.is_elementwise]), dtypes

    def _step_bucket(
        self, step: ReadyStep | PendingStep, new_shared: dict[str, Any]
    ) -> tuple[ReadyStep | PendingStep, StepScalars, SuspendedStep] | None:
        """Step a bucket, or start its step, if its rule reduces over several parameters: then return the rest.

        Args:
            step: the bucket.
            new_shared: receives the new values of the shared states.
        """
        self._unscale(step.grads)
        group = self.param_groups[step.bucket.group]
        if isinstance(step, PendingStep):
            step = self._create_states(step, group)
        bucket = step.bucket
        packed_key = (bucket.group, bucket.settings.matrices, bucket.key)
        pack = functools.partial(self._packed_scalars.get, packed_key, step.scalar_states, step.states)
        resolved = self.resolve_hyperparameters(group, bucket.key.param_dtype)
        values = _hyperparameter_values(resolved, bucket.settings)
        scalars = StepScalars(values, step.first, step.states, pack, new_shared)
        partial_steps = bucket.program.step(step.roles, scalars, step.addresses, self._arena)
        if partial_steps is not None:
            return step, scalars, partial_steps
        scalars.store()  # after the step, so that a step that failed is not counted
        return None

    def _create_states(self, pending: PendingStep, group: dict[str, Any]) -> ReadyStep:
        """Create the missing states of the parameters of a bucket."""
        bucket, params, grads = pending
        declared = self._own_states(group, matrices=bucket.settings.matrices)
        variant = bucket.settings.variant
        # Without states no entry is added to `self.state`, as in torch.
        states = [self.state[p] if declared else {} for p in params]
        first = [
            init_missing_states(declared, state, p, g, group, self.state_dtype) if declared else True
            for state, p, g in zip(states, params, grads, strict=True)
        ]
        roles = gather_roles(variant.array_states, params, grads, states)
        scalar_states = {name: [state[name] for state in states] for name in variant.own_scalar_states}
        return ReadyStep(bucket, roles, states, scalar_states, first)

    # ------------------------------------------------------------------- states

    def share_memory(self) -> None:
        """Move every element-wise state to shared memory, for processes that train the same parameters (Hogwild).

        Missing states are created with their initial values.

        Raises:
            RuleError: the first step of the rule differs from the others, and a parameter has not been stepped yet.
        """
        for group in self.param_groups:
            if (
                self.states
                and FIRST_STEP in rule_signature(self.rule).hyperparameters
                and not all(self.state.get(p) for p in group["params"])
            ):
                raise RuleError(
                    f"{type(self).__name__}: the first step initializes the states; call share_memory() after it"
                )
            for p in group["params"] if self.states else ():
                states = self._own_states(group, matrices=is_matrix(p))
                init_missing_states(states, self.state[p], p, p, group, self.state_dtype)
                for state in states:
                    if not state.scalar:
                        self.state[p][state.name].share_memory_()

    def _add_shared_states(self) -> None:
        """Add the shared states to groups that lack them, with the values of the first group."""
        for state in self.states:
            for group in self.param_groups if state.shared else ():
                group.setdefault(state.name, self.param_groups[0].get(state.name, state.initial_number(group)))

    # ------------------------------------------------------------- state dicts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of the class of the same name in torch.optim.

        `foreach`, `fused`, `capturable`, `differentiable` and `state_dtype` keep their current values. Keys that an
        older state dict lacks get the values of the constructor, but `maximize` is off, and `cautious`, `clip_value`,
        `clip_norm` and `agc` keep their current values.
        """
        previous = [{**group} for group in self.param_groups]
        loaded: dict[str, Any] = {}
        # Registered as the last pre-hook and the first post-hook: the pre-hook checks the state dict after the user's
        # hooks have changed it, and the user's post-hooks run on the final state.
        pre_hook = self.register_load_state_dict_pre_hook(
            lambda optimizer, final: loaded.update(cast(RuleOptimizer, optimizer)._check_state_dict(final))
        )
        post_hook = self.register_load_state_dict_post_hook(
            lambda optimizer: cast(RuleOptimizer, optimizer)._restore_after_load(loaded, previous), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            pre_hook.remove()
            post_hook.remove()

    def _check_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Check the states and options in a state dict, and return it. Unknown keys are allowed."""
        name = type(self).__name__
        params = [
            (p, {**group, **saved})
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False)
            for p in group["params"]
        ]
        check_saved_states(state_dict, name, self.states, params)
        references = reference_values(type(self), self.defaults)
        collector = ErrorCollector()
        for index, group in enumerate(state_dict["param_groups"]):
            known = {k: v for k, v in group.items() if k in self.defaults and k not in dispatch.ENGINE_KEYS}
            # Ranges are not checked: a scheduler may have left them, and the checkpoint must still be loadable.
            with collector.collect():
                where = f"{name}, group {index} of the state dict"
                check_hyperparameters(references, known, where, self._ranges(), in_range=False)
        collector.raise_joined()
        return state_dict

    def _restore_after_load(self, loaded: dict[str, Any], previous: list[dict[str, Any]]) -> None:
        """Restore options that are not loaded, and the dtypes and devices of states, which torch changes.

        Args:
            loaded: the state dict that torch has loaded.
            previous: the groups before loading.
        """
        for group, before, saved in zip(self.param_groups, previous, loaded["param_groups"], strict=True):
            kept = [*dispatch.ENGINE_KEYS, *(key for key in MODIFIER_KEYS if key not in saved)]
            group.update({key: before[key] for key in kept if key in before})
        indices = [i for group in loaded["param_groups"] for i in group["params"]]
        params = [(p, group) for group in self.param_groups for p in group["params"]]
        for i, (p, group) in zip(indices, params, strict=True):
            saved = loaded["state"].get(i, {})
            for state in self.states:
                if saved.get(state.name) is not None and not state.shared:
                    self.state[p][state.name] = state.restore(saved[state.name], p, group, self.state_dtype)

    def __getstate__(self) -> dict[str, Any]:
        attributes = ("engine", "state_dtype", "_step_supports_amp_scaling")
        return super().__getstate__() | {key: self.__dict__[key] for key in attributes if key in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("engine", "auto")
        self.__dict__.setdefault("state_dtype", None)
        self._packed_scalars = PackedScalarsCache()
        self._bucket_cache = {}
        self._arena = Arena()
        self._last_reports = []
        for group in self.param_groups:
            group.setdefault("maximize", False)  # as in versions without this option
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        self._add_shared_states()

    # ------------------------------------------------------------------ report

    def engine_report(self) -> list[BucketReport]:
        """Report which engine stepped each bucket in the last step and why; before the first step, which one will."""
        if self._last_reports:
            return list(self._last_reports)
        reports = []
        for index, group in enumerate(self.param_groups):
            # Before the first backward pass there are no gradients: the parameters stand in for them. Frozen parameters
            # are not stepped, and lazy parameters have no shape yet.
            params = [p for p in group["params"] if not is_lazy(p)]
            if any(p.requires_grad for p in params):
                params = [p for p in params if p.requires_grad]
            grads = [p if p.grad is None else p.grad for p in params]
            for matrices, members, their_grads in self._split_matrices(params, grads):
                steps = self._bucket_steps(index, group, members, their_grads, matrices=matrices)
                reports += [replace(step.bucket.report, ran=False) for step in steps]
        return reports


def _hyperparameter_values(group: Mapping[str, Any], settings: GroupSettings) -> dict[str, Any]:
    """Return the hyperparameters and shared states that a rule reads, except what depends on the parameter."""
    variant, as_tensors = settings.variant, settings.tensor_scalars
    names = (*variant.hyperparameters, *variant.shared_states)
    values = {name: group[name] for name in names if name not in (FIRST_STEP, DECAY_FACTOR)}
    if variant.decay_kind == "decoupled":
        values[DECAY_FACTOR] = 1 - group["lr"] * group["weight_decay"]
    return {h: _as_scalars(value, as_tensors) for h, value in values.items()}


def _as_scalars(value: Any, as_tensors: bool) -> Any:
    """Convert 1-element tensors in a hyperparameter to floats, or to 0-dim tensors if `as_tensors`."""
    if isinstance(value, (tuple, list)):
        return tuple(_as_scalars(v, as_tensors) for v in value)
    if isinstance(value, Tensor):
        return value.reshape(()) if as_tensors else float(value.detach())
    return value
