"""The protocol of engines, and the description of the parameters that an engine steps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from optplug.engines.arena import Arena
from optplug.engines.buffers import PLAIN_TYPES, AddressReader, TensorsByRole
from optplug.engines.report import BucketReport
from optplug.engines.scalars import StepScalars
from optplug.errors import RuleError
from optplug.rules.trace import RuleVariant, TracedRule


class GroupSettings(NamedTuple):
    """What a parameter group and its optimizer prescribe for a step, apart from numbers."""

    requested: str
    """The name of the requested engine, or `"auto"`."""

    reason: str
    """The setting that requests the engine, such as `"foreach=True"`."""

    variant: RuleVariant
    """The rule with its static choices."""

    lengths: tuple[tuple[str, int], ...]
    """The name of each hyperparameter and 0 for a number, n for a tuple of n numbers."""

    differentiable: bool
    """The option `differentiable` of the group."""

    capturable: bool
    """The option `capturable` of the group."""

    transform: str | None
    """The transform of torch that is active during the step, in words; None if there is none."""

    state_dtype: torch.dtype | None
    """The dtype of the element-wise states; None for that of the parameter."""

    matrices: bool = False
    """Whether the parameters are matrices, if the states of the rule depend on it; else False."""

    @property
    def tensor_scalars(self) -> bool:
        """Whether hyperparameters and scalar states stay tensors; else they are floats."""
        return self.differentiable or self.capturable


class BucketKey(NamedTuple):
    """The properties that all parameters of a bucket, their gradients and their states have in common."""

    param_type: type
    param_dtype: torch.dtype
    device: torch.device
    grad_type: type
    grad_dtype: torch.dtype
    grad_layout: torch.layout
    shares_memory: bool = False
    """Whether the parameters overlap in memory with other parameters or with themselves."""

    not_in_place_reason: str | None = None
    """Why a kernel cannot update the tensors through their addresses; None if it can. Found for `in_place` engines."""

    state_dtypes: tuple[torch.dtype, ...] = ()
    """The dtypes of the element-wise states."""

    densify_grads: bool = False
    """Whether the sparse gradients are converted to dense ones because a state is dense."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of the roles: `p`, `g`, then the element-wise states."""
        return (self.param_dtype, self.grad_dtype, *self.state_dtypes)

    @property
    def has_dense_grads(self) -> bool:
        return self.grad_layout is torch.strided


@dataclass
class Bucket:
    """Parameters of one group that one engine steps together.

    A bucket holds indices instead of tensors, so that it can be reused in later steps.

    Attributes:
        group: index of the parameter group.
        key: the properties that the parameters have in common.
        settings: the settings of the group.
        engine: the engine.
        reason: why this engine was chosen.
        traced: the graph of the rule; None for an engine that does not run graphs.
        indices: the parameters, as indices into those of the group that have a gradient.
        lengths: number of elements of each parameter.
        shapes: shape of each parameter.
    """

    group: int
    key: BucketKey
    settings: GroupSettings
    engine: EngineProtocol
    reason: str
    traced: TracedRule | None
    indices: Sequence[int]
    lengths: Sequence[int]
    shapes: Sequence[torch.Size]

    @property
    def graph(self) -> TracedRule:
        """The graph of the rule, for an engine that runs graphs."""
        assert self.traced is not None
        return self.traced

    @cached_property
    def program(self) -> Program:
        """What the engine prepared for the bucket. It is prepared in the first step of the bucket."""
        return self.engine.prepare(self)

    @cached_property
    def report(self) -> BucketReport:
        """The report after a step of the bucket."""
        return BucketReport(
            group=self.group,
            engine=self.engine.name,
            reason=self.reason,
            tensors=len(self.indices),
            elements=sum(self.lengths),
            dtype=self.key.param_dtype,
            device=self.key.device,
            bytes_per_element=self.engine.bytes_per_element(self),
            segments=self.engine.segments(self),
            matrix_functions=() if self.traced is None else tuple(dict.fromkeys(self.traced.matrix_functions)),
            ran=True,
        )


class PartialReduction(NamedTuple):
    """A reduction over several parameters, as far as one bucket can compute it."""

    op: str
    """A key of `optplug.rules.ops.REDUCTIONS`."""

    scope: str
    """One of `optplug.rules.ops.SCOPES`."""

    value: Tensor
    """The reduction over the parameters of the bucket, 0-dim."""


def combine_partials(partials: Sequence[PartialReduction]) -> PartialReduction:
    """Combine the parts of one reduction.

    Raises:
        RuleError: the parts belong to different reductions.
    """
    first, device = partials[0], partials[0].value.device
    if any((one.op, one.scope) != (first.op, first.scope) for one in partials):
        raise RuleError("a rule must reduce over several parameters in the same order for all of them")
    values = torch.stack([one.value.to(device) for one in partials])
    return first._replace(value=values.amax() if first.op == "amax" else values.sum())


SuspendedStep = Generator[PartialReduction, Tensor, None]
"""A step that waits for reductions over the parameters of all buckets: it yields its part and receives the whole."""


class Program(Protocol):
    """What an engine prepared for a bucket. It is used in every step until the bucket changes."""

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> SuspendedStep | None:
        """Update the parameters and the element-wise states in place.

        Args:
            roles: the parameters, the gradients and the element-wise states.
            scalars: the hyperparameters and scalar states. An engine that runs the graph uses `scalars.rows(graph)`;
                the new scalar states of these rows are stored after the step.
            addresses: the addresses of all tensors in `roles`, one row per role, from `address_reader` of the engine;
                None if they have not been read.
            arena: memory for temporaries.

        Returns:
            None after the step. For a rule that reduces over several parameters a generator, which makes the step.
        """


class EngineProtocol(Protocol):
    """An engine: it updates the parameters of a bucket by a rule. The defaults suit one that runs graphs in torch.

    Attributes:
        name: the value of `engine=`.
        advantage: the reason in `engine_report` if no faster engine was passed over.
        runs_graph: whether the engine runs the traced graph, on plain tensors that do not overlap. If False, it runs
            the rule itself, on any tensors, also in transforms of torch.
        in_place: whether the engine accesses tensors through their addresses. Tensors then have a
            `not_in_place_reason` in their bucket key where this is impossible.
        takes_rows: whether the engine steps the rows of sparse gradients in place. If False, it steps copies of the
            rows (`sparse.as_dense`), and `engine="auto"` does not choose it for sparse gradients.
        reduces: whether the engine runs graphs with reductions.
        calls: whether the engine runs graphs that call matrix functions.
        tensor_scalars: the options among `differentiable` and `capturable` that the engine supports. With them
            hyperparameters and scalar states are tensors.
    """

    name: str
    advantage: str
    runs_graph: bool = True
    in_place: bool = False
    takes_rows: bool = False
    reduces: bool = False
    calls: bool = False
    tensor_scalars: frozenset[str] = frozenset()

    def unavailable(self) -> str | None:
        """Return why the engine cannot run on this machine, on any parameters; None if it can."""
        return None

    def unsupported(self, key: BucketKey, traced: TracedRule | None) -> str | None:
        """Return why the engine cannot step the parameters of a bucket; None if it can.

        Args:
            key: the properties of the parameters.
            traced: the graph of the rule; None if no engine in question runs graphs.
        """
        return graph_obstacle(key)

    def bytes_per_element(self, bucket: Bucket) -> float | None:
        """Return how many bytes a step reads and writes per element of a parameter; None if unknown."""
        return None

    def segments(self, bucket: Bucket) -> int | None:
        """Return how many times a step passes over the memory of the parameters; None if unknown."""
        return None

    def address_reader(self) -> AddressReader | None:
        """Return a fast function that reads the addresses of many tensors, if the engine needs addresses."""
        return None

    def prepare(self, bucket: Bucket) -> Program:
        """Return what steps the bucket. This is called once per bucket, before its first step."""
        ...


def graph_obstacle(key: BucketKey) -> str | None:
    """Return why an engine that runs graphs cannot step these tensors; None if it can."""
    for tensor_type in (key.param_type, key.grad_type):
        if tensor_type not in PLAIN_TYPES:
            return f"{tensor_type.__name__} is not a plain tensor"
    return "the parameter shares memory with another parameter or with itself" if key.shares_memory else None
