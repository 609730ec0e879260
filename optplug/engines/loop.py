"""Engine `loop`: runs the rule itself, on one parameter after another.

It is the reference for the other engines, and the only engine that autograd can record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug.engines.arena import Arena
from optplug.engines.buffers import TensorsByRole, at_least_1d, working_tensors, write_back
from optplug.engines.matrix_calls import check_shapes
from optplug.engines.protocol import (
    Bucket,
    BucketKey,
    EngineProtocol,
    PartialReduction,
    Program,
    SuspendedStep,
    combine_partials,
)
from optplug.engines.scalars import StepScalars, scalar_dtype
from optplug.engines.sparse import as_dense
from optplug.errors import RuleError
from optplug.rules.ops import combine_shared
from optplug.rules.trace import FIRST_STEP, RuleVariant, TracedRule


class LoopEngine(EngineProtocol):
    name = "loop"
    advantage = "the rule itself"
    runs_graph = False
    tensor_scalars = frozenset({"differentiable", "capturable"})

    def unsupported(self, key: BucketKey, traced: TracedRule | None) -> str | None:
        return None

    def prepare(self, bucket: Bucket) -> Program:
        return _LoopProgram(bucket)


class _LoopProgram:
    """Steps the parameters of a bucket one after another."""

    def __init__(self, bucket: Bucket) -> None:
        self._settings = bucket.settings
        self._densify_grads = bucket.key.densify_grads

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> SuspendedStep | None:
        partials = self._attempt(roles, scalars, [])
        return self._step_with_totals(roles, scalars, partials) if partials else None

    def _step_with_totals(
        self, roles: TensorsByRole, scalars: StepScalars, partials: list[PartialReduction]
    ) -> SuspendedStep:
        """Run the rule again after each reduction over several parameters, until it needs no further reduction."""
        totals: list[Tensor] = []
        while partials:
            totals.append((yield combine_partials(partials)))
            partials = self._attempt(roles, scalars, totals)

    def _attempt(self, roles: TensorsByRole, scalars: StepScalars, totals: Sequence[Tensor]) -> list[PartialReduction]:
        """Step all parameters; or none, if the rule needs one more reduction over several parameters.

        Args:
            roles: the parameters, the gradients and the element-wise states.
            scalars: the hyperparameters and scalar states.
            totals: the reductions over several parameters that are known, in the order in which the rule needs them.

        Returns:
            The part of each parameter in the reduction that is needed.
        """
        partials = []
        for i, state in enumerate(scalars.states):
            first = float(scalars.first is not None and scalars.first[i])
            one = {role: tensors[i : i + 1] for role, tensors in roles.items()}
            token = combine_shared.set(_KnownTotals(totals).combine)
            try:
                with as_dense(one, densify_grads=self._densify_grads) as dense:
                    shared = self._step_parameter(dense, state, {**scalars.hyperparameters, FIRST_STEP: first})
                    scalars.set_shared(shared)
            except _TotalNeededError as needed:
                partials.append(needed.partial)
            finally:
                combine_shared.reset(token)
        if partials and len(partials) < len(scalars.states):
            raise RuleError("a rule must reduce over several parameters equally often for all of them")
        return partials

    def _step_parameter(
        self, roles: TensorsByRole, state: dict[str, Any], hyperparameters: dict[str, Any]
    ) -> dict[str, Any]:
        """Step one parameter, and return the new values of the shared states.

        Args:
            roles: its dense tensors, in lists of length one.
            state: its state dict. The scalar states are updated.
            hyperparameters: the values by name, including the shared states.
        """
        settings = self._settings
        work = working_tensors(roles, settings.state_dtype)
        inputs: dict[str, Any] = {role: at_least_1d(tensors[0]) for role, tensors in work.items()}
        inputs |= {name: hyperparameters[name] for name in settings.variant.shared_states}
        for name in settings.variant.own_scalar_states:
            inputs[name] = state[name] if settings.tensor_scalars else float(state[name])
        p, g = inputs.pop("p"), inputs.pop("g")
        new = step(settings.variant, p, g, inputs, hyperparameters, differentiable=settings.differentiable)
        shared = {name: new.pop(name) for name in settings.variant.shared_states}
        for name, value in new.items():
            if not isinstance(state[name], Tensor):  # the user may have assigned a plain number
                state[name] = torch.tensor(0.0, dtype=scalar_dtype())
            if isinstance(value, Tensor):
                state[name].copy_(value)
            else:
                state[name].fill_(value)
        write_back(work, roles)
        return shared


class _TotalNeededError(Exception):
    """A rule needs a reduction over several parameters that is not known yet."""

    def __init__(self, partial: PartialReduction) -> None:
        super().__init__()
        self.partial = partial


class _KnownTotals:
    """Gives a rule the reductions over several parameters, in the order in which the rule needs them."""

    def __init__(self, totals: Sequence[Tensor]) -> None:
        self._totals = iter(totals)

    def combine(self, op: str, scope: str, value: Tensor) -> Tensor:
        for total in self._totals:
            return total
        raise _TotalNeededError(PartialReduction(op, scope, value))


def step(
    variant: RuleVariant,
    p: Tensor,
    g: Tensor,
    states: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    *,
    differentiable: bool = False,
) -> dict[str, Any]:
    """Update `p` and the element-wise states in place, and return the new scalar states by name.

    Args:
        variant: the rule variant.
        p: the parameter.
        g: the gradient.
        states: the states by name: element-wise states as tensors, scalar states as floats or, for `capturable` and
            `differentiable`, as 0-dim tensors.
        hyperparameters: the values by name.
        differentiable: whether autograd records the step. The rule then runs on clones, because autograd saves its
            inputs and they must not be modified in place.
    """
    inputs = {"p": p, **states}
    if differentiable:
        inputs = {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    outputs = variant(inputs["p"], g, inputs, hyperparameters)
    scalars = {name: outputs.pop(name) for name in variant.scalar_states}
    changed = {name: value for name, value in outputs.items() if value is not inputs[name]}
    for name, value in changed.items():
        if any(value is x for x in inputs.values()):  # another input, which may be overwritten before it is copied
            changed[name] = value.clone()
    for name in variant.whole_states:
        if isinstance(outputs[name], Tensor):
            check_shapes(name, [states[name]], [outputs[name]])
    for name, value in changed.items():
        target = p if name == "p" else states[name]
        if isinstance(value, Tensor):
            target.copy_(value)
        else:
            target.fill_(value)
    return scalars
